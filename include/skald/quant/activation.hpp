#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// What a matrix product with rows of some weight format reads on the other side.
enum class ActivationKind : std::uint8_t {
  f32,     ///< plain floats
  q8_32,   ///< int8 codes with one float scale per 32 elements
  q8_256,  ///< int8 codes with one float scale per 256 elements
};

/// Name of a kind, e.g. "q8_32".
[[nodiscard]] SKALD_API std::string_view to_string(ActivationKind kind) noexcept;

/// Elements that share a scale: 32 or 256; 1 for f32.
[[nodiscard]] constexpr std::size_t activation_block_elements(ActivationKind kind) noexcept {
  return kind == ActivationKind::q8_32 ? 32 : kind == ActivationKind::q8_256 ? 256 : 1;
}

/// Elements that share one of the integer sums, for both int8 kinds.
inline constexpr std::size_t activation_sum_elements = 32;
/// Blocks whose largest magnitude is below this count as zero; it keeps scale and inverse normal floats.
inline constexpr float activation_zero_below = 0x1p-100F;

/// One row of activations as int8. Value i is codes[i] * scales[i / block].
struct ActivationView {
  ActivationKind kind = ActivationKind::q8_32;
  std::size_t elements = 0;
  const std::int8_t* codes = nullptr;  ///< [elements], each in [-127, 127]
  const float* scales = nullptr;       ///< [elements / activation_block_elements(kind)]
  const std::int32_t* sums = nullptr;  ///< [elements / 32]: sum of the codes of each 32

  /// Sum of the 16 codes from element 16 * index on (for formats with a scale per 16).
  [[nodiscard]] constexpr std::int32_t sum16(std::size_t index) const noexcept {
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < 16; ++i) sum += codes[16 * index + i];
    return sum;
  }
};

/// The specification of activation quantization, bit for bit; every kernel must write the same codes, scales and sums.
///
/// Per block of 32 (q8_32) or 256 (q8_256) elements, all in float, round to nearest even:
///   1. top = the largest of the magnitude bits of x (bits & 0x7FFFFFFF compared as integers), as a float;
///   2. if top is infinite or NaN: scale = the quiet NaN 0x7FC00000, all codes 0 (a product with the block is NaN, so
///      a broken activation stays visible);
///   3. if top < 2^-100: scale = 0, all codes 0;
///   4. otherwise scale = top / 127, inverse = 127 / top, code = x * inverse rounded to an integer (nearest even) and
///      clamped to [-127, 127].
/// Each sum is the integer sum of 32 codes. Nothing crosses a block, so neither batch nor thread count can matter.
/// @param x `elements` floats; `elements` must be a multiple of the block of `kind`, which is not f32 (not checked).
SKALD_API void quantize_activations(const float* x, std::size_t elements, ActivationKind kind, std::int8_t* codes,
                                    float* scales, std::int32_t* sums) noexcept;

/// An ActivationView with its memory.
class SKALD_API ActivationRow {
 public:
  /// Quantizes `x`. @throws UsageError if the kind is f32 or `x` is not a whole number of its blocks.
  ActivationRow(std::span<const float> x, ActivationKind kind);

  [[nodiscard]] ActivationView view() const noexcept {
    return {kind_, codes_.size(), codes_.data(), scales_.data(), sums_.data()};
  }
  operator ActivationView() const noexcept { return view(); }  // NOLINT(google-explicit-constructor)

  /// Value of every element, codes[i] * scales[i / block], to `out` (as many floats as elements).
  /// @throws UsageError for another length.
  void decode(std::span<float> out) const;

 private:
  ActivationKind kind_;
  std::vector<std::int8_t> codes_;
  std::vector<float> scales_;
  std::vector<std::int32_t> sums_;
};

}  // namespace skald::inline v0
