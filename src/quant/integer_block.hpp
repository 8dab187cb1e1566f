#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <skald/quant/activation.hpp>
#include <skald/quant/block_layout.hpp>

/// What the formats of 256 elements without minimums have in common. Private to src/quant.
namespace skald::inline v0::quant {

/// A super-block taken apart: value i is (scale * sub_scales[i / sub_size]) * weights[i].
struct IntegerBlock {
  float scale = 0;
  std::size_t sub_size = 32;  ///< 16 or 32
  std::int16_t sub_scales[16] = {};
  std::int8_t weights[super_block_elements] = {};
};

inline void decode_block(const IntegerBlock& block, float* out) noexcept {
  for (std::size_t i = 0; i < super_block_elements; ++i) {
    const float step = block.scale * static_cast<float>(block.sub_scales[i / block.sub_size]);
    out[i] = step * static_cast<float>(block.weights[i]);
  }
}

inline float fold_integer_block(const IntegerBlock& block, const ActivationView& a, std::size_t index,
                                float acc) noexcept {
  std::int32_t scaled = 0;
  for (std::size_t j = 0; j < super_block_elements / block.sub_size; ++j) {
    std::int32_t sum = 0;
    for (std::size_t i = block.sub_size * j; i < block.sub_size * (j + 1); ++i)
      sum += block.weights[i] * a.codes[super_block_elements * index + i];
    scaled += block.sub_scales[j] * sum;
  }
  return std::fma(static_cast<float>(scaled), block.scale * a.scales[index], acc);
}

/// Takes blocks of the iq formats, the ternary formats and iq4_xs apart.
void take_apart(const BlockIQ4_XS& from, IntegerBlock& to) noexcept;
void take_apart(const BlockTQ1_0& from, IntegerBlock& to) noexcept;
void take_apart(const BlockTQ2_0& from, IntegerBlock& to) noexcept;
void take_apart(const BlockIQ2_XXS& from, IntegerBlock& to) noexcept;
void take_apart(const BlockIQ2_XS& from, IntegerBlock& to) noexcept;
void take_apart(const BlockIQ2_S& from, IntegerBlock& to) noexcept;
void take_apart(const BlockIQ3_XXS& from, IntegerBlock& to) noexcept;
void take_apart(const BlockIQ3_S& from, IntegerBlock& to) noexcept;
void take_apart(const BlockIQ1_S& from, IntegerBlock& to) noexcept;
void take_apart(const BlockIQ1_M& from, IntegerBlock& to) noexcept;

}  // namespace skald::inline v0::quant
