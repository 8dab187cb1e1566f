#pragma once

#include <cstddef>
#include <cstdint>

#include <skald/core/half.hpp>

/// Shared pieces of the encoders. Private to src/quant.
namespace skald::inline v0::quant::fit {

/// Round to the nearest integer, ties to even, for |x| < 2^22. Adding 1.5 * 2^23 leaves no bits below the point, and
/// the addition itself rounds to nearest even; unlike lrintf it vectorizes everywhere.
inline float round_even(float x) noexcept {
  constexpr float magic = 0x1.8p23F;
  return (x + magic) - magic;
}

inline float clamp(float x, float low, float high) noexcept {
  const float above = x > low ? x : low;
  return above < high ? above : high;
}

/// Code of a value as a float: the integer nearest to x * inverse, within [low, high]. Clamping comes first, so that a
/// product of any size, infinities included, is fine.
inline float float_code(float x, float inverse, float low, float high) noexcept {
  return round_even(clamp(x * inverse, low, high));
}

inline int code_of(float x, float inverse, int low, int high) noexcept {
  return static_cast<int>(float_code(x, inverse, static_cast<float>(low), static_cast<float>(high)));
}

/// A sum over elements in eight interleaved parts, so that compilers vectorize it without reordering anything: the
/// result is the same with every instruction set.
struct LaneSum {
  static constexpr std::size_t lanes = 8;
  float part[lanes] = {};
  [[nodiscard]] double total() const noexcept {
    return (((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7])));
  }
};

/// sum w (scale * q - minimum - x)^2 over n elements, a multiple of 8, with the best codes q in [low, high].
double coded_error(const float* x, const float* w, std::size_t n, float scale, float minimum, int low,
                   int high) noexcept;

/// binary16 bits for a scale whose codes reach `limit` at a value of magnitude `top`. Nearest, except that among the
/// subnormals, where the nearest may be far too small, the next larger one is taken if the codes would not reach `top`.
std::uint16_t scale_bits(float scale, float top, float limit) noexcept;

/// 1 / scale, and 0 for a scale of 0.
inline float inverse_of(float scale) noexcept { return scale != 0 ? 1.0F / scale : 0.0F; }

/// Largest number of elements that one fit sees.
inline constexpr std::size_t max_elements = 32;

/// Copies n weights scaled so that the largest is 1 (all 1 where `importance` is null or all zero).
void load_weights(const float* importance, std::size_t n, float* weights) noexcept;

/// Scale s that makes sum w (x - s q)^2 over n elements, a multiple of 8, small with integer q in [low, high], low < 0
/// < high. Its sign is such that the largest magnitude tends to the longer end. Candidate scales put the largest
/// magnitude at low - reach ... low + reach; for each the codes are rounded and s is solved from least squares. 0 if
/// all x are 0.
double symmetric_scale(const float* x, const float* w, std::size_t n, int low, int high) noexcept;

/// x ~ scale * q - minimum with q in [0, high].
struct Affine {
  double scale;
  double minimum;
};

/// Fits scale >= 0 and minimum to n elements, a multiple of 8, by least squares over candidate scales. If
/// `free_minimum` is false, minimum >= 0 (what the K formats can store).
Affine affine_fit(const float* x, const float* w, std::size_t n, int high, bool free_minimum) noexcept;

}  // namespace skald::inline v0::quant::fit
