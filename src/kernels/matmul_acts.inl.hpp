#pragma once

// Prepared activations: groups of up to twelve columns, each with its codes interleaved so that one 32-bit broadcast gives
// four consecutive k of one column.
//
//   group of w columns (w = 12 but for the last), K columns of the weight:
//     q8_32    codes [K / 4][w][4] int8, scales [K / 32][w] float, negated sums [K / 32][w] int32
//     q8_256   codes [K / 4][w][4] int8, scales [K / 256][w] float, pairs of sums of 32 [K / 256][4][w],
//              pairs of sums of 16 [K / 256][8][w] (a pair is two int16 in one int32), negated sums of 16
//              [K / 256][16][w] int32, 0 if no sum of 16 magnitudes is beyond narrow_sum [K / 256][w] int32
//     f32      [K][w] float
//   groups follow each other at multiples of 64 bytes
//
// Pairs of sums hold sums (0, 2), (1, 3), (4, 6), (5, 7) and so on: the order in which masks take 16-bit scale pairs out
// of four packed bytes. Quantization is specified in skald/quant/activation.hpp.

#include "simd/vec.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

inline constexpr int group_columns = 12;

/// If no sum of the magnitudes of 16 codes is larger, sums of products of 16 k with offset codes of six bits (at most 32) fit
/// into 16 bits, and those of 32 k with codes of four bits.
inline constexpr std::int32_t narrow_sum = 1023;
static_assert(narrow_sum * 32 <= INT16_MAX && 2 * narrow_sum * 15 <= INT16_MAX);

SKALD_INLINE int width_of_group(std::int64_t count, std::int64_t group) noexcept {
  const std::int64_t left = count - group * group_columns;
  return left < group_columns ? static_cast<int>(left) : group_columns;
}

struct ActsF32 {
  static constexpr int id = 0;
  static constexpr std::size_t group_bytes(std::int64_t cols, int width) noexcept {
    return (static_cast<std::size_t>(cols) * static_cast<std::size_t>(width) * 4 + 63) / 64 * 64;
  }
};

struct Acts32 {
  static constexpr int id = 1;
  static constexpr std::size_t group_bytes(std::int64_t cols, int width) noexcept {
    return (static_cast<std::size_t>(cols + cols / 32 * 8) * static_cast<std::size_t>(width) + 63) / 64 * 64;
  }
  const std::byte* codes;
  const float* scales;
  const std::int32_t* negated_sums;
  int width;

  SKALD_INLINE Acts32(const std::byte* group, std::int64_t cols, int group_width, int column) noexcept {
    const std::ptrdiff_t blocks = cols / 32;
    width = group_width;
    codes = group + 4 * column;
    const std::byte* after = group + cols * width;
    scales = reinterpret_cast<const float*>(after) + column;
    negated_sums = reinterpret_cast<const std::int32_t*>(after) + blocks * width + column;
  }
  SKALD_INLINE void next() noexcept {
    codes += 32 * width;
    scales += width;
    negated_sums += width;
  }
};

struct Acts256 {
  static constexpr int id = 2;
  static constexpr std::size_t group_bytes(std::int64_t cols, int width) noexcept {
    return (static_cast<std::size_t>(cols + cols / 256 * 120) * static_cast<std::size_t>(width) + 63) / 64 * 64;
  }
  const std::byte* codes;
  const float* scales;
  const std::int32_t* pairs32;
  const std::int32_t* pairs16;
  const std::int32_t* negated_sums16;
  const std::int32_t* wide;
  int width;

  SKALD_INLINE Acts256(const std::byte* group, std::int64_t cols, int group_width, int column) noexcept {
    const std::ptrdiff_t blocks = cols / 256;
    width = group_width;
    codes = group + 4 * column;
    const std::byte* after = group + cols * width;
    scales = reinterpret_cast<const float*>(after) + column;
    pairs32 = reinterpret_cast<const std::int32_t*>(after) + blocks * width + column;
    pairs16 = reinterpret_cast<const std::int32_t*>(after) + 5 * blocks * width + column;
    negated_sums16 = reinterpret_cast<const std::int32_t*>(after) + 13 * blocks * width + column;
    wide = reinterpret_cast<const std::int32_t*>(after) + 29 * blocks * width + column;
  }
  SKALD_INLINE void next() noexcept {
    codes += 256 * width;
    scales += width;
    pairs32 += 4 * width;
    pairs16 += 8 * width;
    negated_sums16 += 16 * width;
    wide += width;
  }
};

template <class A>
std::size_t acts_bytes(std::int64_t cols, std::int64_t count) noexcept {
  const std::int64_t full = count / group_columns;
  const int rest = static_cast<int>(count % group_columns);
  return static_cast<std::size_t>(full) * A::group_bytes(cols, group_columns) + (rest ? A::group_bytes(cols, rest) : 0);
}

#if defined(SKALD_ISA_avx512vnni)
inline constexpr bool sums_codes = true;
/// Sums of the signed times the unsigned bytes, of each 16 in four neighbouring lanes.
SKALD_INLINE i32x16 sums_of_16(u8x64 factors, u8x64 codes) noexcept {
  const __m512i four = dot4(zero_i32(), factors, codes).r;
  const __m512i eight = _mm512_add_epi32(four, _mm512_shuffle_epi32(four, _MM_PERM_CDAB));
  return {_mm512_add_epi32(eight, _mm512_shuffle_epi32(eight, _MM_PERM_BADC))};
}
/// Sums of each 16 of N codes.
template <int N>
SKALD_INLINE void sum_codes(const std::int8_t* codes, std::int32_t* sums) noexcept {
  for (int i = 0; i < N; i += 64) {
    const i32x16 all = sums_of_16({_mm512_set1_epi8(1)}, load_bytes(codes + i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + i / 16),
                     _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, all.r)));
  }
}
/// Whether a sum of 16 magnitudes of 256 codes is beyond narrow_sum.
SKALD_INLINE std::int32_t is_wide(const std::int8_t* codes) noexcept {
  i32x16 most = zero_i32();
  for (int i = 0; i < 256; i += 64)
    most = max(most, sums_of_16({_mm512_abs_epi8(load_bytes(codes + i).r)}, {_mm512_set1_epi8(1)}));
  return _mm512_cmpgt_epi32_mask(most.r, _mm512_set1_epi32(narrow_sum)) != 0;
}
#else
inline constexpr bool sums_codes = false;
template <int N>
SKALD_INLINE void sum_codes(const std::int8_t*, std::int32_t*) noexcept {}
SKALD_INLINE std::int32_t is_wide(const std::int8_t*) noexcept { return 1; }  // nobody asks
#endif

/// Quantizes N elements (32 or 256) to codes and the sums of each S (16 or 32); returns the scale.
template <int N, int S>
SKALD_INLINE float quantize_block(const float* x, std::int8_t* codes, std::int32_t* sums) noexcept {
  const i32x16 magnitude_mask = set1(INT32_MAX);
  i32x16 top = zero_i32();
  for (int i = 0; i < N; i += 16) top = max(top, bits(load(x + i)) & magnitude_mask);
  const std::int32_t top_bits = reduce_max(top);
  if (top_bits >= 0x7F800000 || top_bits < 0x0D800000) {  // infinite or NaN; below 2^-100
    for (int i = 0; i < N; ++i) codes[i] = 0;
    for (int i = 0; i < N / S; ++i) sums[i] = 0;
    return top_bits >= 0x7F800000 ? __builtin_nanf("") : 0.0F;
  }
  float largest;
  __builtin_memcpy(&largest, &top_bits, 4);
  // No product is beyond 127 by more than its rounding.
  const f32x16 inverse = set1(127.0F / largest);
  constexpr bool apart = sums_codes && S == 16;
  for (int i = 0; i < N; i += S) {
    i32x16 sum = zero_i32();
    for (int j = i; j < i + S; j += 16) {
      const i32x16 rounded = round_to_i32(load(x + j) * inverse);
      store_i8(codes + j, rounded);
      if constexpr (!apart) sum = sum + rounded;
    }
    if constexpr (!apart) sums[i / S] = reduce_add(sum);
  }
  if constexpr (apart) sum_codes<N>(codes, sums);
  return largest / 127.0F;
}

SKALD_INLINE std::int32_t pair_of(std::int32_t low, std::int32_t high) noexcept {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(high) << 16) |
                                   (static_cast<std::uint32_t>(low) & 0xFFFFu));
}
/// Quantizes N elements into the four-byte fields of a column; returns the scale. wide: see Acts256, or null.
template <int N, int S>
SKALD_INLINE float quantize_codes(const float* x, std::byte* to, std::ptrdiff_t width, std::int32_t* sums,
                                  std::int32_t* wide = nullptr) noexcept {
  alignas(64) std::int8_t apart[N];
  std::int8_t* codes = width == 1 ? reinterpret_cast<std::int8_t*>(to) : apart;
  const float scale = quantize_block<N, S>(x, codes, sums);
  if (wide != nullptr) *wide = is_wide(codes);
  if (width != 1)
    for (int i = 0; i < N; i += 4) __builtin_memcpy(to + i * width, codes + i, 4);
  return scale;
}

SKALD_INLINE void prepare_token(ActsF32*, const float* x, std::int64_t cols, std::byte* group, int width,
                                int column) noexcept {
  float* to = reinterpret_cast<float*>(group) + column;
  if (width == 1) {
    __builtin_memcpy(to, x, static_cast<std::size_t>(cols) * 4);
    return;
  }
  for (std::int64_t k = 0; k < cols; ++k) to[k * width] = x[k];
}

SKALD_INLINE void prepare_token(Acts32*, const float* x, std::int64_t cols, std::byte* group, int width,
                                int column) noexcept {
  const std::ptrdiff_t blocks = cols / 32;
  auto* scales = reinterpret_cast<float*>(group + cols * width) + column;
  auto* sums = reinterpret_cast<std::int32_t*>(group + cols * width) + blocks * width + column;
  for (std::ptrdiff_t b = 0; b < blocks; ++b) {
    std::int32_t sum;
    scales[b * width] = quantize_codes<32, 32>(x + 32 * b, group + 32 * b * width + 4 * column, width, &sum);
    sums[b * width] = -sum;
  }
}

SKALD_INLINE void prepare_token(Acts256*, const float* x, std::int64_t cols, std::byte* group, int width,
                                int column) noexcept {
  const std::ptrdiff_t blocks = cols / 256;
  auto* scales = reinterpret_cast<float*>(group + cols * width) + column;
  auto* pairs32 = reinterpret_cast<std::int32_t*>(group + cols * width) + blocks * width + column;
  auto* pairs16 = reinterpret_cast<std::int32_t*>(group + cols * width) + 5 * blocks * width + column;
  auto* sums16 = reinterpret_cast<std::int32_t*>(group + cols * width) + 13 * blocks * width + column;
  auto* wide = reinterpret_cast<std::int32_t*>(group + cols * width) + 29 * blocks * width + column;
  for (std::ptrdiff_t b = 0; b < blocks; ++b) {
    std::int32_t s16[16], s32[8];
    scales[b * width] = quantize_codes<256, 16>(x + 256 * b, group + 256 * b * width + 4 * column, width, s16,
                                                wide + b * width);
    for (int i = 0; i < 16; ++i) sums16[(16 * b + i) * width] = -s16[i];
    for (int i = 0; i < 8; ++i) s32[i] = s16[2 * i] + s16[2 * i + 1];
    for (int i = 0; i < 4; ++i) {
      const int first = i / 2 * 4 + i % 2;
      pairs32[(4 * b + i) * width] = pair_of(s32[first], s32[first + 2]);
    }
    for (int i = 0; i < 8; ++i) {
      const int first = i / 2 * 4 + i % 2;
      pairs16[(8 * b + i) * width] = pair_of(s16[first], s16[first + 2]);
    }
  }
}

template <class A>
void prepare_acts(const float* x, std::int64_t x_stride, std::int64_t cols, std::int64_t begin, std::int64_t end,
                  std::byte* acts, std::int64_t count) noexcept {
  const std::size_t full_bytes = A::group_bytes(cols, group_columns);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t group = t / group_columns;
    prepare_token(static_cast<A*>(nullptr), x + (t - begin) * x_stride, cols,
                  acts + static_cast<std::size_t>(group) * full_bytes, width_of_group(count, group),
                  static_cast<int>(t % group_columns));
  }
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
