#include <skald/quant/activation.hpp>

#include <bit>
#include <string>

#include <skald/core/error.hpp>

#include "quant/fit.hpp"

namespace skald::inline v0 {

std::string_view to_string(ActivationKind kind) noexcept {
  switch (kind) {
    case ActivationKind::f32: return "f32";
    case ActivationKind::q8_32: return "q8_32";
    case ActivationKind::q8_256: return "q8_256";
  }
  return "unknown";
}

void quantize_activations(const float* x, std::size_t elements, ActivationKind kind, std::int8_t* codes, float* scales,
                          std::int32_t* sums) noexcept {
  const std::size_t block = activation_block_elements(kind);
  for (std::size_t b = 0; b < elements / block; ++b) {
    const float* in = x + b * block;
    std::uint32_t top_bits = 0;
    for (std::size_t i = 0; i < block; ++i) {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(in[i]) & 0x7FFFFFFFu;
      top_bits = bits > top_bits ? bits : top_bits;
    }
    const float top = std::bit_cast<float>(top_bits);
    const bool finite = top_bits < 0x7F800000u;
    const bool nonzero = finite && top >= activation_zero_below;
    scales[b] = !finite ? std::bit_cast<float>(0x7FC00000u) : nonzero ? top / 127.0F : 0.0F;
    const float inverse = nonzero ? 127.0F / top : 0.0F;
    for (std::size_t i = 0; i < block; ++i)
      codes[b * block + i] = static_cast<std::int8_t>(nonzero ? quant::fit::code_of(in[i], inverse, -127, 127) : 0);
  }
  for (std::size_t group = 0; group < elements / activation_sum_elements; ++group) {
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < activation_sum_elements; ++i) sum += codes[group * activation_sum_elements + i];
    sums[group] = sum;
  }
}

ActivationRow::ActivationRow(std::span<const float> x, ActivationKind kind) : kind_(kind) {
  if (kind != ActivationKind::q8_32 && kind != ActivationKind::q8_256)
    throw UsageError("quant.activation", "activations of kind " + std::string(to_string(kind)) +
                                             " are not quantized; allowed are q8_32 and q8_256");
  const std::size_t block = activation_block_elements(kind);
  if (x.size() % block != 0)
    throw UsageError("quant.activation", "a row of " + std::to_string(x.size()) +
                                             " elements is not a multiple of the " + std::string(to_string(kind)) +
                                             " block of " + std::to_string(block));
  codes_.resize(x.size());
  scales_.resize(x.size() / block);
  sums_.resize(x.size() / activation_sum_elements);
  quantize_activations(x.data(), x.size(), kind, codes_.data(), scales_.data(), sums_.data());
}

void ActivationRow::decode(std::span<float> out) const {
  if (out.size() != codes_.size())
    throw UsageError("quant.activation", "a row of " + std::to_string(codes_.size()) + " elements does not fit in " +
                                             std::to_string(out.size()) + " floats");
  const std::size_t block = activation_block_elements(kind_);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(codes_[i]) * scales_[i / block];
}

}  // namespace skald::inline v0
