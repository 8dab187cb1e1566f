#pragma once

// Part of simd/vec.hpp: AVX-512 F, BW, DQ, VL.

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

struct f32x16 {
  __m512 r;
};
struct i32x16 {
  __m512i r;
};
struct u8x64 {
  __m512i r;
};
struct mask16 {
  __mmask16 m;
};

SKALD_INLINE __mmask16 first_lanes(int n) noexcept { return static_cast<__mmask16>((1u << n) - 1u); }

SKALD_INLINE f32x16 load(const float* p) noexcept { return {_mm512_loadu_ps(p)}; }
SKALD_INLINE i32x16 load(const std::int32_t* p) noexcept { return {_mm512_loadu_si512(p)}; }
SKALD_INLINE i32x16 load_i8(const std::int8_t* p) noexcept {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
SKALD_INLINE u8x64 load_bytes(const void* p) noexcept { return {_mm512_loadu_si512(p)}; }
SKALD_INLINE f32x16 load_n(const float* p, int n) noexcept { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
SKALD_INLINE i32x16 load_n(const std::int32_t* p, int n) noexcept {
  return {_mm512_maskz_loadu_epi32(first_lanes(n), p)};
}
SKALD_INLINE void store(float* p, f32x16 a) noexcept { _mm512_storeu_ps(p, a.r); }
SKALD_INLINE void store(std::int32_t* p, i32x16 a) noexcept { _mm512_storeu_si512(p, a.r); }
SKALD_INLINE void store_bytes(void* p, u8x64 a) noexcept { _mm512_storeu_si512(p, a.r); }
SKALD_INLINE void store_n(float* p, f32x16 a, int n) noexcept { _mm512_mask_storeu_ps(p, first_lanes(n), a.r); }
SKALD_INLINE void store_n(std::int32_t* p, i32x16 a, int n) noexcept {
  _mm512_mask_storeu_epi32(p, first_lanes(n), a.r);
}
SKALD_INLINE f32x16 set1(float a) noexcept { return {_mm512_set1_ps(a)}; }
SKALD_INLINE i32x16 set1(std::int32_t a) noexcept { return {_mm512_set1_epi32(a)}; }
SKALD_INLINE f32x16 zero_f32() noexcept { return {_mm512_setzero_ps()}; }
SKALD_INLINE i32x16 zero_i32() noexcept { return {_mm512_setzero_si512()}; }

SKALD_INLINE f32x16 operator+(f32x16 a, f32x16 b) noexcept { return {_mm512_add_ps(a.r, b.r)}; }
SKALD_INLINE f32x16 operator-(f32x16 a, f32x16 b) noexcept { return {_mm512_sub_ps(a.r, b.r)}; }
SKALD_INLINE f32x16 operator*(f32x16 a, f32x16 b) noexcept { return {_mm512_mul_ps(a.r, b.r)}; }
SKALD_INLINE f32x16 operator/(f32x16 a, f32x16 b) noexcept { return {_mm512_div_ps(a.r, b.r)}; }
SKALD_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) noexcept { return {_mm512_fmadd_ps(a.r, b.r, c.r)}; }
SKALD_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) noexcept { return {_mm512_fnmadd_ps(a.r, b.r, c.r)}; }
SKALD_INLINE f32x16 min(f32x16 a, f32x16 b) noexcept { return {_mm512_min_ps(a.r, b.r)}; }
SKALD_INLINE f32x16 max(f32x16 a, f32x16 b) noexcept { return {_mm512_max_ps(a.r, b.r)}; }
SKALD_INLINE f32x16 sqrt(f32x16 a) noexcept { return {_mm512_sqrt_ps(a.r)}; }

SKALD_INLINE i32x16 operator+(i32x16 a, i32x16 b) noexcept { return {_mm512_add_epi32(a.r, b.r)}; }
SKALD_INLINE i32x16 operator-(i32x16 a, i32x16 b) noexcept { return {_mm512_sub_epi32(a.r, b.r)}; }
SKALD_INLINE i32x16 operator*(i32x16 a, i32x16 b) noexcept { return {_mm512_mullo_epi32(a.r, b.r)}; }
SKALD_INLINE i32x16 operator&(i32x16 a, i32x16 b) noexcept { return {_mm512_and_si512(a.r, b.r)}; }
SKALD_INLINE i32x16 operator|(i32x16 a, i32x16 b) noexcept { return {_mm512_or_si512(a.r, b.r)}; }
SKALD_INLINE i32x16 operator^(i32x16 a, i32x16 b) noexcept { return {_mm512_xor_si512(a.r, b.r)}; }
SKALD_INLINE i32x16 min(i32x16 a, i32x16 b) noexcept { return {_mm512_min_epi32(a.r, b.r)}; }
SKALD_INLINE i32x16 max(i32x16 a, i32x16 b) noexcept { return {_mm512_max_epi32(a.r, b.r)}; }
template <int N>
SKALD_INLINE i32x16 shl(i32x16 a) noexcept {
  return {_mm512_slli_epi32(a.r, N)};
}
template <int N>
SKALD_INLINE i32x16 shr(i32x16 a) noexcept {
  return {_mm512_srli_epi32(a.r, N)};
}
template <int N>
SKALD_INLINE i32x16 sra(i32x16 a) noexcept {
  return {_mm512_srai_epi32(a.r, N)};
}

SKALD_INLINE i32x16 shift_right(i32x16 a, int n) noexcept { return {_mm512_srl_epi32(a.r, _mm_cvtsi32_si128(n))}; }

SKALD_INLINE i32x16 bits(f32x16 a) noexcept { return {_mm512_castps_si512(a.r)}; }
SKALD_INLINE f32x16 from_bits(i32x16 a) noexcept { return {_mm512_castsi512_ps(a.r)}; }
SKALD_INLINE f32x16 to_f32(i32x16 a) noexcept { return {_mm512_cvtepi32_ps(a.r)}; }
SKALD_INLINE i32x16 round_to_i32(f32x16 a) noexcept {
  return {_mm512_cvt_roundps_epi32(a.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
SKALD_INLINE f32x16 abs(f32x16 a) noexcept { return from_bits(bits(a) & set1(INT32_MAX)); }

SKALD_INLINE mask16 greater(f32x16 a, f32x16 b) noexcept { return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_GT_OQ)}; }
SKALD_INLINE mask16 less(f32x16 a, f32x16 b) noexcept { return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_LT_OQ)}; }
SKALD_INLINE mask16 greater(i32x16 a, i32x16 b) noexcept { return {_mm512_cmpgt_epi32_mask(a.r, b.r)}; }
SKALD_INLINE f32x16 select(mask16 m, f32x16 a, f32x16 b) noexcept { return {_mm512_mask_blend_ps(m.m, b.r, a.r)}; }
SKALD_INLINE i32x16 select(mask16 m, i32x16 a, i32x16 b) noexcept { return {_mm512_mask_blend_epi32(m.m, b.r, a.r)}; }

/// The nearest integer, halves to even.
SKALD_INLINE f32x16 nearest(f32x16 a) noexcept {
  return {_mm512_roundscale_ps(a.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/// a 2^n for integers n; 0 where x < least.
SKALD_INLINE f32x16 times_power_unless_less(f32x16 a, f32x16 n, f32x16 x, f32x16 least) noexcept {
  return {_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x.r, least.r, _CMP_NLT_UQ), a.r, n.r)};
}

SKALD_INLINE i32x16 load_u8(const std::uint8_t* p) noexcept {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
SKALD_INLINE i32x16 load_i8_pairs(const std::uint8_t* p) noexcept {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
SKALD_INLINE f32x16 load_f16(const std::uint16_t* p) noexcept {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
SKALD_INLINE f32x16 load_bf16(const std::uint16_t* p) noexcept {
  const auto half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
SKALD_INLINE void store_f16(std::uint16_t* p, f32x16 a) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
SKALD_INLINE void store_bf16(std::uint16_t* p, f32x16 a) noexcept {
  const i32x16 b = bits(a);
  const i32x16 rounded = b + set1(0x7FFF) + (shr<16>(b) & set1(1));
  const mask16 nan = greater(b & set1(INT32_MAX), set1(0x7F800000));
  const i32x16 result = shr<16>(select(nan, b | set1(0x400000), rounded));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result.r));
}

SKALD_INLINE float reduce_add(f32x16 a) noexcept {
  const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.r), 1));
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.r), upper);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
SKALD_INLINE float reduce_max(f32x16 a) noexcept {
  const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.r), 1));
  const __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(a.r), upper);
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
SKALD_INLINE std::int32_t reduce_max(i32x16 a) noexcept { return _mm512_reduce_max_epi32(a.r); }
SKALD_INLINE std::int32_t reduce_add(i32x16 a) noexcept { return _mm512_reduce_add_epi32(a.r); }

/// Narrows to int8 with saturation, sixteen bytes.
SKALD_INLINE void store_i8(std::int8_t* p, i32x16 a) noexcept {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.r));
}

// Bytes.
SKALD_INLINE u8x64 operator&(u8x64 a, u8x64 b) noexcept { return {_mm512_and_si512(a.r, b.r)}; }
SKALD_INLINE u8x64 operator|(u8x64 a, u8x64 b) noexcept { return {_mm512_or_si512(a.r, b.r)}; }
SKALD_INLINE u8x64 operator^(u8x64 a, u8x64 b) noexcept { return {_mm512_xor_si512(a.r, b.r)}; }
SKALD_INLINE u8x64 bytes(i32x16 a) noexcept { return {a.r}; }
SKALD_INLINE i32x16 words(u8x64 a) noexcept { return {a.r}; }

/// acc + a.lo * b.lo + a.hi * b.hi over the two int16 of each lane.
SKALD_INLINE i32x16 dot2(i32x16 acc, i32x16 a, i32x16 b) noexcept {
#if defined(SKALD_ISA_avx512vnni)
  return {_mm512_dpwssd_epi32(acc.r, a.r, b.r)};
#else
  return {_mm512_add_epi32(acc.r, _mm512_madd_epi16(a.r, b.r))};
#endif
}

/// int16 arithmetic on the pairs of each lane.
SKALD_INLINE i32x16 add16(i32x16 a, i32x16 b) noexcept { return {_mm512_add_epi16(a.r, b.r)}; }
SKALD_INLINE i32x16 shl8_16(i32x16 a) noexcept { return {_mm512_slli_epi16(a.r, 8)}; }
SKALD_INLINE i32x16 sra8_16(i32x16 a) noexcept { return {_mm512_srai_epi16(a.r, 8)}; }
/// Unsigned bytes of w times signed bytes of a, neighbouring products added to int16; must not exceed int16.
SKALD_INLINE i32x16 maddubs(u8x64 w, u8x64 a) noexcept { return {_mm512_maddubs_epi16(w.r, a.r)}; }
/// Products of signed bytes w (any) and a (not -128), neighbouring ones added to int16.
SKALD_INLINE i32x16 madd_signed(u8x64 w, u8x64 a) noexcept {
  const __mmask64 negative = _mm512_movepi8_mask(w.r);
  const __m512i signed_a = _mm512_mask_sub_epi8(a.r, negative, _mm512_setzero_si512(), a.r);
  return {_mm512_maddubs_epi16(_mm512_abs_epi8(w.r), signed_a)};
}
#if defined(SKALD_ISA_avx512bf16)
/// Rounds to bf16 (nearest even): the sixteen of a, then the sixteen of b.
SKALD_INLINE void store_bf16_pairs(std::uint32_t* p, f32x16 a, f32x16 b) noexcept {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b.r, a.r));
}
/// acc + w.hi * x.hi + w.lo * x.lo over the two bf16 of each lane; subnormal numbers count as zeros.
SKALD_INLINE f32x16 dot2_bf16(f32x16 acc, u8x64 w, u8x64 x) noexcept {
  return {_mm512_dpbf16_ps(acc.r, (__m512bh)w.r, (__m512bh)x.r)};
}
/// Four bytes in every lane.
SKALD_INLINE u8x64 broadcast32(const void* p) noexcept {
  std::int32_t value;
  __builtin_memcpy(&value, p, 4);
  return {_mm512_set1_epi32(value)};
}
#endif
#if defined(SKALD_ISA_avx512vnni)
/// acc + the four products of unsigned bytes w and signed bytes a of each lane.
SKALD_INLINE i32x16 dot4(i32x16 acc, u8x64 w, u8x64 a) noexcept { return {_mm512_dpbusd_epi32(acc.r, w.r, a.r)}; }
#endif
/// Keeps the compiler from changing the order of a sum of integers: it would hold many terms at once, in memory.
SKALD_INLINE i32x16 in_order(i32x16 a) noexcept {
  asm("" : "+v"(a.r));
  return a;
}
/// Prefetches once `tied` has this value: the compiler moves a plain prefetch to the start of straight code, and a burst
/// of them fills the queue of outstanding misses.
SKALD_INLINE void prefetch_with(const std::byte* p, i32x16& tied) noexcept {
  asm volatile("prefetcht1 %1" : "+v"(tied.r) : "m"(*p));
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
