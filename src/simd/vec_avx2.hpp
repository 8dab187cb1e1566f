#pragma once

// Part of simd/vec.hpp: AVX2, FMA, F16C.

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

struct f32x16 {
  __m256 lo, hi;
};
struct i32x16 {
  __m256i lo, hi;
};
struct u8x64 {
  __m256i lo, hi;
};
struct mask16 {
  __m256 lo, hi;
};

SKALD_INLINE __m256i load256(const void* p) noexcept { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
SKALD_INLINE void store256(void* p, __m256i a) noexcept { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
/// Mask of the first n of eight lanes, for any n.
SKALD_INLINE __m256i first_eight(int n) noexcept {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

SKALD_INLINE f32x16 load(const float* p) noexcept { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SKALD_INLINE i32x16 load(const std::int32_t* p) noexcept { return {load256(p), load256(p + 8)}; }
SKALD_INLINE i32x16 load_i8(const std::int8_t* p) noexcept {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}
SKALD_INLINE u8x64 load_bytes(const void* p) noexcept {
  return {load256(p), load256(static_cast<const std::uint8_t*>(p) + 32)};
}
SKALD_INLINE f32x16 load_n(const float* p, int n) noexcept {
  return {_mm256_maskload_ps(p, first_eight(n)), _mm256_maskload_ps(p + 8, first_eight(n - 8))};
}
SKALD_INLINE i32x16 load_n(const std::int32_t* p, int n) noexcept {
  return {_mm256_maskload_epi32(p, first_eight(n)), _mm256_maskload_epi32(p + 8, first_eight(n - 8))};
}
SKALD_INLINE void store(float* p, f32x16 a) noexcept {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
SKALD_INLINE void store(std::int32_t* p, i32x16 a) noexcept {
  store256(p, a.lo);
  store256(p + 8, a.hi);
}
SKALD_INLINE void store_bytes(void* p, u8x64 a) noexcept {
  store256(p, a.lo);
  store256(static_cast<std::uint8_t*>(p) + 32, a.hi);
}
SKALD_INLINE void store_n(float* p, f32x16 a, int n) noexcept {
  _mm256_maskstore_ps(p, first_eight(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_eight(n - 8), a.hi);
}
SKALD_INLINE void store_n(std::int32_t* p, i32x16 a, int n) noexcept {
  _mm256_maskstore_epi32(p, first_eight(n), a.lo);
  _mm256_maskstore_epi32(p + 8, first_eight(n - 8), a.hi);
}
SKALD_INLINE f32x16 set1(float a) noexcept { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
SKALD_INLINE i32x16 set1(std::int32_t a) noexcept { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
SKALD_INLINE f32x16 zero_f32() noexcept { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
SKALD_INLINE i32x16 zero_i32() noexcept { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

#define SKALD_VEC_BINARY(type, name, intrinsic) \
  SKALD_INLINE type name(type a, type b) noexcept { return {intrinsic(a.lo, b.lo), intrinsic(a.hi, b.hi)}; }
SKALD_VEC_BINARY(f32x16, operator+, _mm256_add_ps)
SKALD_VEC_BINARY(f32x16, operator-, _mm256_sub_ps)
SKALD_VEC_BINARY(f32x16, operator*, _mm256_mul_ps)
SKALD_VEC_BINARY(f32x16, operator/, _mm256_div_ps)
SKALD_VEC_BINARY(f32x16, min, _mm256_min_ps)
SKALD_VEC_BINARY(f32x16, max, _mm256_max_ps)
SKALD_VEC_BINARY(i32x16, operator+, _mm256_add_epi32)
SKALD_VEC_BINARY(i32x16, operator-, _mm256_sub_epi32)
SKALD_VEC_BINARY(i32x16, operator*, _mm256_mullo_epi32)
SKALD_VEC_BINARY(i32x16, operator&, _mm256_and_si256)
SKALD_VEC_BINARY(i32x16, operator|, _mm256_or_si256)
SKALD_VEC_BINARY(i32x16, operator^, _mm256_xor_si256)
SKALD_VEC_BINARY(i32x16, min, _mm256_min_epi32)
SKALD_VEC_BINARY(i32x16, max, _mm256_max_epi32)
SKALD_VEC_BINARY(u8x64, operator&, _mm256_and_si256)
SKALD_VEC_BINARY(u8x64, operator|, _mm256_or_si256)
SKALD_VEC_BINARY(u8x64, operator^, _mm256_xor_si256)
/// int16 addition on the pairs of each lane.
SKALD_VEC_BINARY(i32x16, add16, _mm256_add_epi16)
#undef SKALD_VEC_BINARY

SKALD_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) noexcept {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SKALD_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) noexcept {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
SKALD_INLINE f32x16 sqrt(f32x16 a) noexcept { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }

template <int N>
SKALD_INLINE i32x16 shl(i32x16 a) noexcept {
  return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)};
}
template <int N>
SKALD_INLINE i32x16 shr(i32x16 a) noexcept {
  return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)};
}
template <int N>
SKALD_INLINE i32x16 sra(i32x16 a) noexcept {
  return {_mm256_srai_epi32(a.lo, N), _mm256_srai_epi32(a.hi, N)};
}

SKALD_INLINE i32x16 shift_right(i32x16 a, int n) noexcept {
  const __m128i count = _mm_cvtsi32_si128(n);
  return {_mm256_srl_epi32(a.lo, count), _mm256_srl_epi32(a.hi, count)};
}

SKALD_INLINE i32x16 bits(f32x16 a) noexcept { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
SKALD_INLINE f32x16 from_bits(i32x16 a) noexcept { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
SKALD_INLINE f32x16 to_f32(i32x16 a) noexcept { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
SKALD_INLINE i32x16 round_to_i32(f32x16 a) noexcept {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_cvtps_epi32(_mm256_round_ps(a.lo, mode)), _mm256_cvtps_epi32(_mm256_round_ps(a.hi, mode))};
}
SKALD_INLINE f32x16 abs(f32x16 a) noexcept { return from_bits(bits(a) & set1(INT32_MAX)); }

SKALD_INLINE mask16 greater(f32x16 a, f32x16 b) noexcept {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)};
}
SKALD_INLINE mask16 less(f32x16 a, f32x16 b) noexcept { return greater(b, a); }
SKALD_INLINE mask16 greater(i32x16 a, i32x16 b) noexcept {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.lo, b.lo)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(a.hi, b.hi))};
}
SKALD_INLINE f32x16 select(mask16 m, f32x16 a, f32x16 b) noexcept {
  return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}
SKALD_INLINE i32x16 select(mask16 m, i32x16 a, i32x16 b) noexcept {
  return bits(select(m, from_bits(a), from_bits(b)));
}

SKALD_INLINE i32x16 load_u8(const std::uint8_t* p) noexcept {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))};
}
SKALD_INLINE i32x16 load_i8_pairs(const std::uint8_t* p) noexcept {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}
SKALD_INLINE f32x16 load_f16(const std::uint16_t* p) noexcept {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
SKALD_INLINE f32x16 load_bf16(const std::uint16_t* p) noexcept {
  const i32x16 wide{_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                    _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  return from_bits(shl<16>(wide));
}
SKALD_INLINE void store_f16(std::uint16_t* p, f32x16 a) noexcept {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, mode));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, mode));
}
SKALD_INLINE void store_bf16(std::uint16_t* p, f32x16 a) noexcept {
  const i32x16 b = bits(a);
  const i32x16 rounded = b + set1(0x7FFF) + (shr<16>(b) & set1(1));
  const mask16 nan = greater(b & set1(INT32_MAX), set1(0x7F800000));
  const i32x16 result = shr<16>(select(nan, b | set1(0x400000), rounded));
  const __m256i packed = _mm256_packus_epi32(result.lo, result.hi);
  store256(p, _mm256_permute4x64_epi64(packed, 0xD8));
}

SKALD_INLINE float reduce_add(f32x16 a) noexcept {
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
SKALD_INLINE float reduce_max(f32x16 a) noexcept {
  const __m256 s8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
SKALD_INLINE std::int32_t reduce_max(i32x16 a) noexcept {
  const __m256i s8 = _mm256_max_epi32(a.lo, a.hi);
  const __m128i s4 = _mm_max_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
  const __m128i s2 = _mm_max_epi32(s4, _mm_shuffle_epi32(s4, 0x0E));
  return _mm_cvtsi128_si32(_mm_max_epi32(s2, _mm_shuffle_epi32(s2, 1)));
}
SKALD_INLINE std::int32_t reduce_add(i32x16 a) noexcept {
  const __m256i s8 = _mm256_add_epi32(a.lo, a.hi);
  const __m128i s4 = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
  const __m128i s2 = _mm_add_epi32(s4, _mm_shuffle_epi32(s4, 0x0E));
  return _mm_cvtsi128_si32(_mm_add_epi32(s2, _mm_shuffle_epi32(s2, 1)));
}

/// Narrows to int8 with saturation, sixteen bytes.
SKALD_INLINE void store_i8(std::int8_t* p, i32x16 a) noexcept {
  const __m256i half = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8);
  const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

SKALD_INLINE u8x64 bytes(i32x16 a) noexcept { return {a.lo, a.hi}; }
SKALD_INLINE i32x16 words(u8x64 a) noexcept { return {a.lo, a.hi}; }

/// acc + a.lo * b.lo + a.hi * b.hi over the two int16 of each lane.
SKALD_INLINE i32x16 dot2(i32x16 acc, i32x16 a, i32x16 b) noexcept {
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
SKALD_INLINE i32x16 shl8_16(i32x16 a) noexcept { return {_mm256_slli_epi16(a.lo, 8), _mm256_slli_epi16(a.hi, 8)}; }
SKALD_INLINE i32x16 sra8_16(i32x16 a) noexcept { return {_mm256_srai_epi16(a.lo, 8), _mm256_srai_epi16(a.hi, 8)}; }
/// Unsigned bytes of w times signed bytes of a, neighbouring products added to int16; must not exceed int16.
SKALD_INLINE i32x16 maddubs(u8x64 w, u8x64 a) noexcept {
  return {_mm256_maddubs_epi16(w.lo, a.lo), _mm256_maddubs_epi16(w.hi, a.hi)};
}
/// Products of signed bytes w (any) and a (not -128), neighbouring ones added to int16: |w| <= 128, so they fit.
SKALD_INLINE i32x16 madd_signed(u8x64 w, u8x64 a) noexcept {
  return {_mm256_maddubs_epi16(_mm256_abs_epi8(w.lo), _mm256_sign_epi8(a.lo, w.lo)),
          _mm256_maddubs_epi16(_mm256_abs_epi8(w.hi), _mm256_sign_epi8(a.hi, w.hi))};
}
/// Keeps the compiler from changing the order of a sum of integers: it would hold many terms at once, in memory.
SKALD_INLINE i32x16 in_order(i32x16 a) noexcept {
  asm("" : "+x"(a.lo), "+x"(a.hi));
  return a;
}
/// Prefetches once `tied` has this value: the compiler moves a plain prefetch to the start of straight code, and a burst
/// of them fills the queue of outstanding misses.
SKALD_INLINE void prefetch_with(const std::byte* p, i32x16& tied) noexcept {
  asm volatile("prefetcht0 %1" : "+x"(tied.lo) : "m"(*p));
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
