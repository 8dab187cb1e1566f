#pragma once

// Table lookups and bit spreading for the codebook formats.
//
// Entries of the codebooks are 16-bit numbers of two- or three-bit codes (quant/codebooks.hpp). Sixteen rows look theirs
// up together, the codes are spread to one byte each, a sign joins them as the next bit, and a table of sixteen bytes
// gives the weights.

#include "quant/codebooks.hpp"
#include "simd/vec.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

/// Sixteen bytes for lookup16.
struct ByteTable {
#if SKALD_VEC_REGISTERS == 1
  __m512i r;
  SKALD_INLINE explicit ByteTable(const std::uint8_t* p) noexcept
      : r(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))) {}
#elif SKALD_VEC_REGISTERS == 2
  __m256i r;
  SKALD_INLINE explicit ByteTable(const std::uint8_t* p) noexcept
      : r(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))) {}
#else
  const std::uint8_t* values;
  SKALD_INLINE explicit ByteTable(const std::uint8_t* p) noexcept : values(p) {}
#endif
};

#if SKALD_VEC_REGISTERS == 4
// Loops over lanes: once each, not wherever they are used.
#define SKALD_INLINE_LOOKUP inline __attribute__((noinline))
#else
#define SKALD_INLINE_LOOKUP SKALD_INLINE
#endif

/// table[index] for bytes below 16.
SKALD_INLINE_LOOKUP u8x64 lookup16(const ByteTable& table, u8x64 index) noexcept {
#if SKALD_VEC_REGISTERS == 1
  return {_mm512_shuffle_epi8(table.r, index.r)};
#elif SKALD_VEC_REGISTERS == 2
  return {_mm256_shuffle_epi8(table.r, index.lo), _mm256_shuffle_epi8(table.r, index.hi)};
#else
  std::uint8_t bytes_of[64];
  store_bytes(bytes_of, index);
  for (std::uint8_t& byte : bytes_of) byte = table.values[byte];
  return load_bytes(bytes_of);
#endif
}

#if SKALD_VEC_REGISTERS == 1
/// Words `index` of the 64 << Levels words at `p`.
template <int Levels>
SKALD_INLINE __m512i permuted_words(const std::uint16_t* p, __m512i index) noexcept {
  if constexpr (Levels == 0) {
    return _mm512_permutex2var_epi16(_mm512_loadu_si512(p), index, _mm512_loadu_si512(p + 32));
  } else {
    constexpr int half = 32 << Levels;
    const __m512i low = permuted_words<Levels - 1>(p, index);
    const __m512i high = permuted_words<Levels - 1>(p + half, index);
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(index, _mm512_set1_epi16(half)), low, high);
  }
}
#endif

/// Entries of a codebook for two indices per lane, in the low and the high half; Count is a power of two.
template <int Count>
SKALD_INLINE_LOOKUP i32x16 lookup_pair(const std::uint16_t* entries, i32x16 indices) noexcept {
#if SKALD_VEC_REGISTERS == 1
  if constexpr (Count <= 1024) {
    constexpr int levels = Count == 256 ? 2 : Count == 512 ? 3 : 4;
    static_assert(64 << levels == Count);
    return {permuted_words<levels>(entries, indices.r)};
  } else {
    // Reads two bytes beyond the entry: the table has one more.
    const __m512i low = _mm512_i32gather_epi32(_mm512_and_si512(indices.r, _mm512_set1_epi32(0xFFFF)), entries, 2);
    const __m512i high = _mm512_i32gather_epi32(_mm512_srli_epi32(indices.r, 16), entries, 2);
    return {_mm512_mask_blend_epi16(0xAAAAAAAAu, low, _mm512_slli_epi32(high, 16))};
  }
#elif SKALD_VEC_REGISTERS == 2
  const auto* base = reinterpret_cast<const int*>(entries);
  const auto half = [&](__m256i index) SKALD_INLINE_LAMBDA {
    const __m256i low = _mm256_i32gather_epi32(base, _mm256_and_si256(index, _mm256_set1_epi32(0xFFFF)), 2);
    const __m256i high = _mm256_i32gather_epi32(base, _mm256_srli_epi32(index, 16), 2);
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xAA);
  };
  return {half(indices.lo), half(indices.hi)};
#else
  std::int32_t values[16];
  store(values, indices);
  for (std::int32_t& value : values) {
    const auto both = static_cast<std::uint32_t>(value);
    value = static_cast<std::int32_t>(entries[both & 0xFFFF] | static_cast<std::uint32_t>(entries[both >> 16]) << 16);
  }
  return load(values);
#endif
}

/// (a | b) & mask.
SKALD_INLINE i32x16 or_and(i32x16 a, i32x16 b, std::int32_t mask) noexcept {
#if SKALD_VEC_REGISTERS == 1
  return {_mm512_ternarylogic_epi32(a.r, b.r, _mm512_set1_epi32(mask), 0xA8)};
#else
  return (a | b) & set1(mask);
#endif
}

/// Four two-bit codes in the low eight bits of each lane to a byte each; the other bits are zero.
SKALD_INLINE i32x16 spread2(i32x16 codes) noexcept {
  const i32x16 pairs = or_and(codes, shl<12>(codes), 0x000F000F);
  return or_and(pairs, shl<6>(pairs), 0x03030303);
}
/// Four three-bit codes in the low twelve bits of each lane to a byte each; the other bits are zero.
SKALD_INLINE i32x16 spread3(i32x16 codes) noexcept {
  const i32x16 pairs = or_and(codes, shl<10>(codes), 0x003F003F);
  return or_and(pairs, shl<5>(pairs), 0x07070707);
}
/// Bits 0..3 of each lane to bit `Bit` of its four bytes; the other bits of the lane do not matter.
template <int Bit>
SKALD_INLINE i32x16 spread_signs(i32x16 signs) noexcept {
#if SKALD_VEC_REGISTERS == 1
  constexpr int b = 1 << Bit;
  const __m512i table = _mm512_setr_epi32(
      0, b, b << 8, b * 0x101, b << 16, b * 0x10001, b * 0x10100, b * 0x10101, b << 24, b * 0x1000001, b * 0x1000100,
      b * 0x1000101, b * 0x1010000, b * 0x1010001, b * 0x1010100, b * 0x1010101);
  return {_mm512_permutexvar_epi32(signs.r, table)};
#else
  const i32x16 four = signs & set1(15);
  const i32x16 both = four | shl<7>(four);
  return shl<Bit>((both | shl<14>(both)) & set1(0x01010101));
#endif
}

/// Parity of the seven bits that begin at bits 0, 7, 14 and 21, at these bits; other bits are anything.
SKALD_INLINE i32x16 parity_of_sevens(i32x16 a) noexcept {
  const i32x16 twos = a ^ shr<1>(a);
  return (twos ^ shr<2>(twos)) ^ (shr<4>(twos) ^ shr<6>(a));
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
