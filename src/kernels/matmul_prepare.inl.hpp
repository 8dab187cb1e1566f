#pragma once

// Prepares activations of many columns. With AVX-512 four neighbouring columns at once: narrowing the integers of four
// columns to bytes puts them side by side as groups of columns want them. The bits are those of prepare_acts.

#include "kernels/matmul_acts.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

#if SKALD_VEC_REGISTERS == 1
/// The largest lanes of a, b, c and d.
SKALD_INLINE void reduce_max_four(i32x16 a, i32x16 b, i32x16 c, i32x16 d, std::int32_t* to) noexcept {
  const __m512i ab = _mm512_max_epi32(_mm512_unpacklo_epi32(a.r, b.r), _mm512_unpackhi_epi32(a.r, b.r));
  const __m512i cd = _mm512_max_epi32(_mm512_unpacklo_epi32(c.r, d.r), _mm512_unpackhi_epi32(c.r, d.r));
  const __m512i four = _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i two = _mm256_max_epi32(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64(four, 1));
  const __m128i one = _mm_max_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), one);
}
/// Narrows to int8 with saturation: bytes 4 j .. 4 j + 3 of a, b, c and d are the four lanes of 16-byte piece j.
SKALD_INLINE u8x64 interleave_i8(i32x16 a, i32x16 b, i32x16 c, i32x16 d) noexcept {
  return {_mm512_packs_epi16(_mm512_packs_epi32(a.r, b.r), _mm512_packs_epi32(c.r, d.r))};
}
/// Stores the four 16-byte pieces `stride` bytes apart.
SKALD_INLINE void store_pieces(std::byte* p, std::ptrdiff_t stride, u8x64 a) noexcept {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(a.r));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + stride), _mm512_extracti32x4_epi32(a.r, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * stride), _mm512_extracti32x4_epi32(a.r, 2));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 3 * stride), _mm512_extracti32x4_epi32(a.r, 3));
}
/// Sums of 16: the lanes' ones over the four pieces.
SKALD_INLINE __m128i add_pieces(i32x16 a) noexcept {
  const __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(a.r), _mm512_extracti64x4_epi64(a.r, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
}
/// The sums of the signed bytes of each lane, over the four pieces.
SKALD_INLINE void sum_pieces(u8x64 a, std::int32_t* sums) noexcept {
  const __m512i ones = _mm512_set1_epi8(1);
#if defined(SKALD_ISA_avx512vnni)
  const i32x16 four = dot4(zero_i32(), {ones}, a);
#else
  const i32x16 four = {_mm512_madd_epi16(_mm512_maddubs_epi16(ones, a.r), _mm512_set1_epi16(1))};
#endif
  _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), add_pieces(four));
}
/// The larger of `most` and, for each of four columns, the sum of the magnitudes of the signed bytes of its lanes.
SKALD_INLINE __m128i most_magnitude([[maybe_unused]] __m128i most, [[maybe_unused]] u8x64 a) noexcept {
#if defined(SKALD_ISA_avx512vnni)
  return _mm_max_epi32(most, add_pieces(dot4(zero_i32(), {_mm512_abs_epi8(a.r)}, {_mm512_set1_epi8(1)})));
#else
  return _mm_set1_epi32(INT32_MAX);  // nobody asks
#endif
}

/// What an Acts256 holds of the sums of 16 elements of block b, s16: [16][4], for four neighbouring columns. `at` is
/// where the first one's scales begin.
SKALD_INLINE void write_sums_of_four(const std::int32_t* s16, std::int32_t* at, std::ptrdiff_t blocks, std::ptrdiff_t b,
                                     std::ptrdiff_t width) noexcept {
  std::int32_t* pairs32 = at + (blocks + 4 * b) * width;
  std::int32_t* pairs16 = at + (5 * blocks + 8 * b) * width;
  std::int32_t* sums16 = at + (13 * blocks + 16 * b) * width;
  for (int i = 0; i < 16; ++i)
    for (int c = 0; c < 4; ++c) sums16[i * width + c] = -s16[4 * i + c];
  for (int i = 0; i < 4; ++i) {
    const std::int32_t* first = s16 + 8 * (i / 2 * 4 + i % 2);
    for (int c = 0; c < 4; ++c)
      pairs32[i * width + c] = pair_of(first[c] + first[4 + c], first[16 + c] + first[20 + c]);
  }
  for (int i = 0; i < 8; ++i) {
    const std::int32_t* first = s16 + 4 * (i / 2 * 4 + i % 2);
    for (int c = 0; c < 4; ++c) pairs16[i * width + c] = pair_of(first[c], first[8 + c]);
  }
}
/// N elements of each of four neighbouring columns at once, with the operations of quantize_block. sums: [N / 16][4];
/// wide: 0 if no sum of 16 magnitudes is beyond narrow_sum, [4].
/// @return false, without having written anything, if a column is one that quantize_block makes zeros of.
template <int N>
SKALD_INLINE bool quantize_four(const float* x, std::int64_t x_stride, std::byte* to, std::ptrdiff_t width,
                                float* scales, std::int32_t* sums, std::int32_t* wide) noexcept {
  i32x16 top[4];
  unroll<4>([&](auto c) SKALD_INLINE_LAMBDA {
    top[c] = zero_i32();
    for (int i = 0; i < N; i += 16) top[c] = max(top[c], bits(load(x + c * x_stride + i)) & set1(INT32_MAX));
  });
  alignas(16) std::int32_t top_bits[4];
  reduce_max_four(top[0], top[1], top[2], top[3], top_bits);
  f32x16 inverse[4];
  for (int c = 0; c < 4; ++c)
    if (top_bits[c] >= 0x7F800000 || top_bits[c] < 0x0D800000) return false;
  unroll<4>([&](auto c) SKALD_INLINE_LAMBDA {
    float largest;
    __builtin_memcpy(&largest, top_bits + c, 4);
    inverse[c] = set1(127.0F / largest);
    scales[c] = largest / 127.0F;
  });
  __m128i most = _mm_setzero_si128();
  for (int i = 0; i < N; i += 16) {
    i32x16 rounded[4];
    unroll<4>([&](auto c) SKALD_INLINE_LAMBDA { rounded[c] = round_to_i32(load(x + c * x_stride + i) * inverse[c]); });
    const u8x64 codes = interleave_i8(rounded[0], rounded[1], rounded[2], rounded[3]);
    store_pieces(to + i * width, 4 * width, codes);
    sum_pieces(codes, sums + i / 4);
    if (wide != nullptr) most = most_magnitude(most, codes);
  }
  if (wide != nullptr) {
    const __mmask8 beyond = _mm_cmpgt_epi32_mask(most, _mm_set1_epi32(narrow_sum));
    for (int c = 0; c < 4; ++c) wide[c] = beyond >> c & 1;
  }
  return true;
}

SKALD_INLINE void prepare_four(Acts32*, const float* x, std::int64_t x_stride, std::int64_t cols, std::byte* group,
                               int width, int column) noexcept {
  const std::ptrdiff_t blocks = cols / 32;
  auto* scales = reinterpret_cast<float*>(group + cols * width) + column;
  auto* sums = reinterpret_cast<std::int32_t*>(group + cols * width) + blocks * width + column;
  for (std::ptrdiff_t b = 0; b < blocks; ++b) {
    std::int32_t s16[8];
    std::byte* to = group + 32 * b * width + 4 * column;
    if (quantize_four<32>(x + 32 * b, x_stride, to, width, scales + b * width, s16, nullptr)) {
      for (int c = 0; c < 4; ++c) sums[b * width + c] = -(s16[c] + s16[4 + c]);
      continue;
    }
    for (int c = 0; c < 4; ++c) {
      std::int32_t sum;
      scales[b * width + c] = quantize_codes<32, 32>(x + c * x_stride + 32 * b, to + 4 * c, width, &sum);
      sums[b * width + c] = -sum;
    }
  }
}

SKALD_INLINE void prepare_four(Acts256*, const float* x, std::int64_t x_stride, std::int64_t cols, std::byte* group,
                               int width, int column) noexcept {
  const std::ptrdiff_t blocks = cols / 256;
  auto* scales = reinterpret_cast<float*>(group + cols * width) + column;
  auto* wide = reinterpret_cast<std::int32_t*>(group + cols * width) + 29 * blocks * width + column;
  for (std::ptrdiff_t b = 0; b < blocks; ++b) {
    std::int32_t sums[16 * 4];
    std::byte* to = group + 256 * b * width + 4 * column;
    if (!quantize_four<256>(x + 256 * b, x_stride, to, width, scales + b * width, sums, wide + b * width))
      for (int c = 0; c < 4; ++c) {
        std::int32_t s16[16];
        scales[b * width + c] =
            quantize_codes<256, 16>(x + c * x_stride + 256 * b, to + 4 * c, width, s16, wide + b * width + c);
        for (int i = 0; i < 16; ++i) sums[4 * i + c] = s16[i];
      }
    write_sums_of_four(sums, reinterpret_cast<std::int32_t*>(scales), blocks, b, width);
  }
}

template <class A>
void prepare_columns(const float* x, std::int64_t x_stride, std::int64_t cols, std::int64_t begin, std::int64_t end,
                     std::byte* acts, std::int64_t count) noexcept {
  const std::size_t full_bytes = A::group_bytes(cols, group_columns);
  for (std::int64_t t = begin; t < end;) {
    const std::int64_t group = t / group_columns;
    const int width = width_of_group(count, group), column = static_cast<int>(t % group_columns);
    const float* row = x + (t - begin) * x_stride;
    std::byte* to = acts + static_cast<std::size_t>(group) * full_bytes;
    if (t + 4 <= end && column + 4 <= width) {
      prepare_four(static_cast<A*>(nullptr), row, x_stride, cols, to, width, column);
      t += 4;
    } else {
      prepare_token(static_cast<A*>(nullptr), row, cols, to, width, column);
      ++t;
    }
  }
}
#else
template <class A>
void prepare_columns(const float* x, std::int64_t x_stride, std::int64_t cols, std::int64_t begin, std::int64_t end,
                     std::byte* acts, std::int64_t count) noexcept {
  prepare_acts<A>(x, x_stride, cols, begin, end, acts, count);
}
#endif

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
