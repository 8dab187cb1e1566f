#pragma once

// Table lookups and bit spreading for the codebook formats.
//
// Entries of the codebooks are 16-bit numbers of two- or three-bit codes (quant/codebooks.hpp). Sixteen rows look
// theirs up together: small codebooks with permutations of registers that hold them, after which the codes are spread
// to a byte each; large ones, and without AVX-512 all, in tables whose entries have a byte for each element. Signs are
// joined to the codes before a table of sixteen bytes gives the weights, or choose between these and their opposites.

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

#if SKALD_VEC_REGISTERS == 1
/// Entries of a codebook for two indices per lane, in the low and the high half; Count is a power of two, and what is
/// above an index does not matter.
template <int Count>
SKALD_INLINE i32x16 lookup_pair(const std::uint16_t* entries, i32x16 indices) noexcept {
  constexpr int levels = Count == 256 ? 2 : 3;
  static_assert(64 << levels == Count);
  return {permuted_words<levels>(entries, indices.r)};
}
#else
/// Entries of four elements with a byte each.
template <int Count>
struct FourBook {
  alignas(64) std::uint32_t entries[Count];
};
/// The three-bit codes of a codebook.
template <int Count>
constexpr FourBook<Count> fours_of(const std::uint16_t* codes) noexcept {
  FourBook<Count> book{};
  for (int n = 0; n < Count; ++n)
    for (int i = 0; i < 4; ++i) book.entries[n] |= (std::uint32_t{codes[n]} >> (3 * i) & 7) << (8 * i);
  return book;
}
/// The entry of each lane's index.
SKALD_INLINE_LOOKUP i32x16 lookup_four(const std::uint32_t* entries, i32x16 indices) noexcept {
#if SKALD_VEC_REGISTERS == 2
  const auto* base = reinterpret_cast<const int*>(entries);
  return {_mm256_i32gather_epi32(base, indices.lo, 4), _mm256_i32gather_epi32(base, indices.hi, 4)};
#else
  std::int32_t values[16];
  store(values, indices);
  for (std::int32_t& value : values) value = static_cast<std::int32_t>(entries[value]);
  return load(values);
#endif
}
#endif

/// Entries of eight elements with a byte each.
template <int Count>
struct WideBook {
  alignas(64) std::uint64_t entries[Count];
};
/// The entries of a codebook with two-bit codes, through `values`.
template <int Count>
constexpr WideBook<Count> widen(const std::uint16_t* codes, const std::uint8_t* values) noexcept {
  WideBook<Count> book{};
  for (int n = 0; n < Count; ++n)
    for (int i = 0; i < 8; ++i) book.entries[n] |= std::uint64_t{values[codes[n] >> (2 * i) & 3]} << (8 * i);
  return book;
}

/// Elements of two entries per row, the indices of which follow each other for each of sixteen rows: the first one's
/// first and last four, the second one's first and last four. Large tables are read faster by plain loads than by
/// gathering, if the indices were stored well before.
SKALD_INLINE_LOOKUP void lookup_wide(const std::uint64_t* entries, const std::uint16_t* index,
                                     u8x64 (&lines)[4]) noexcept {
#if SKALD_VEC_REGISTERS == 1
  const auto even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const auto odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  const auto four = [&](const std::uint16_t* at) SKALD_INLINE_LAMBDA {
    const auto two = [&](int i) SKALD_INLINE_LAMBDA {
      const auto* p = reinterpret_cast<const double*>(entries);
      return _mm_loadh_pd(_mm_load_sd(p + at[2 * i]), p + at[2 * i + 2]);
    };
    return _mm256_insertf128_pd(_mm256_castpd128_pd256(two(0)), two(2), 1);
  };
  SKALD_UNROLL for (int half = 0; half < 2; ++half) {
    __m512i eights[2];
    SKALD_UNROLL for (int part = 0; part < 2; ++part) {
      const std::uint16_t* at = index + 16 * part + half;
      eights[part] = _mm512_castpd_si512(_mm512_insertf64x4(_mm512_castpd256_pd512(four(at)), four(at + 8), 1));
    }
    lines[2 * half] = {_mm512_permutex2var_epi32(eights[0], even, eights[1])};
    lines[2 * half + 1] = {_mm512_permutex2var_epi32(eights[0], odd, eights[1])};
  }
#elif SKALD_VEC_REGISTERS == 2
  SKALD_UNROLL for (int half = 0; half < 2; ++half) {
    __m256i first[2], last[2];
    SKALD_UNROLL for (int part = 0; part < 2; ++part) {
      const auto four = [&](int at) SKALD_INLINE_LAMBDA {
        const auto entry = [&](int i) SKALD_INLINE_LAMBDA {
          return static_cast<long long>(entries[index[16 * part + 2 * (at + i) + half]]);
        };
        return _mm256_castsi256_ps(_mm256_setr_epi64x(entry(0), entry(1), entry(2), entry(3)));
      };
      const __m256 a = four(0), b = four(4);
      first[part] = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xD8);
      last[part] = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD)), 0xD8);
    }
    lines[2 * half] = {first[0], first[1]};
    lines[2 * half + 1] = {last[0], last[1]};
  }
#else
  for (int half = 0; half < 2; ++half) {
    std::uint32_t parts[2][16];
    for (int r = 0; r < 16; ++r) {
      const std::uint64_t entry = entries[index[2 * r + half]];
      parts[0][r] = static_cast<std::uint32_t>(entry);
      parts[1][r] = static_cast<std::uint32_t>(entry >> 32);
    }
    for (int i = 0; i < 2; ++i) lines[2 * half + i] = load_bytes(parts[i]);
  }
#endif
}

#if SKALD_VEC_REGISTERS == 1
/// For shuffles of the bytes of each lane.
SKALD_INLINE __m512i bytes_of_lanes(int a, int b, int c, int d) noexcept {
  const int one = a | b << 8 | c << 16 | d << 24;
  return _mm512_broadcast_i32x4(_mm_setr_epi32(one, one + 0x04040404, one + 0x08080808, one + 0x0C0C0C0C));
}

/// A codebook of eight two-bit codes with those of elements i and i + 4 side by side, in the order 0, 2, 1, 3 of i.
template <int Count>
struct PairedBook {
  alignas(64) std::uint16_t entries[Count];
};
template <int Count>
constexpr PairedBook<Count> pair_codes(const std::uint16_t* codes) noexcept {
  PairedBook<Count> book{};
  for (int n = 0; n < Count; ++n)
    for (int i = 0; i < 4; ++i) {
      const int both = (codes[n] >> (2 * i) & 3) | (codes[n] >> (2 * i + 8) & 3) << 2, place = i % 2 * 2 + i / 2;
      book.entries[n] = static_cast<std::uint16_t>(book.entries[n] | both << (4 * place));
    }
  return book;
}
/// A codebook of four three-bit codes with four bits each, in the order 0, 2, 1, 3.
template <int Count>
constexpr PairedBook<Count> spread_codes(const std::uint16_t* codes) noexcept {
  PairedBook<Count> book{};
  for (int n = 0; n < Count; ++n)
    for (int i = 0; i < 4; ++i)
      book.entries[n] =
          static_cast<std::uint16_t>(book.entries[n] | (codes[n] >> (3 * i) & 7) << (4 * (i % 2 * 2 + i / 2)));
  return book;
}

/// Codes in the low (Half 0) or high half of each lane, in the order 0, 2, 1, 3, to the low four bits of bytes.
template <int Half>
SKALD_INLINE __m512i nibbles_of_half(i32x16 entries) noexcept {
  const __m512i twice = _mm512_shuffle_epi8(entries.r, bytes_of_lanes(2 * Half, 2 * Half + 1, 2 * Half, 2 * Half + 1));
  return _mm512_and_si512(_mm512_srlv_epi16(twice, _mm512_set1_epi32(0x00040000)), _mm512_set1_epi32(0x0F0F0F0F));
}

/// Each byte, or `sum` less it where the low (High 0) or high four bits of bytes `sign` say so.
template <int High>
SKALD_INLINE u8x64 with_signs(u8x64 value, __m512i sign, __m512i sum) noexcept {
  const __mmask64 negative =
      _mm512_test_epi8_mask(sign, _mm512_set1_epi32(High ? static_cast<int>(0x80402010u) : 0x08040201));
  return {_mm512_mask_sub_epi8(value.r, negative, sum, value.r)};
}

/// Weights of codes and signs: a table gives what a code is beside half of `sum`, the sum of a weight and its opposite.
struct SignedLookup {
  __m512i first, second, sum;
  /// Pairs of codes below four, and the values of each.
  SKALD_INLINE static SignedLookup of_pairs(const std::uint8_t* values, int sum) noexcept {
    alignas(16) std::uint8_t low[16], high[16];
    for (int i = 0; i < 16; ++i) {
      low[i] = values[i & 3];
      high[i] = values[i >> 2];
    }
    return {ByteTable(low).r, ByteTable(high).r, _mm512_set1_epi8(static_cast<char>(sum))};
  }
  SKALD_INLINE static SignedLookup of_codes(const std::uint8_t* values, int sum) noexcept {
    const ByteTable table(values);
    return {table.r, table.r, _mm512_set1_epi8(static_cast<char>(sum))};
  }
  /// With the low (High 0) or high four bits of bytes `sign`.
  template <int High>
  SKALD_INLINE u8x64 weights(__m512i nibbles, __m512i sign) const noexcept {
    const __m512i value = _mm512_shuffle_epi8(High ? second : first, nibbles);
    return with_signs<High>({value}, sign, sum);
  }
};
/// Byte `Byte` of each lane in all its bytes.
template <int Byte>
SKALD_INLINE __m512i byte_of_lane(i32x16 a) noexcept {
  return _mm512_shuffle_epi8(a.r, bytes_of_lanes(Byte, Byte, Byte, Byte));
}

/// The seven bits that begin at bits 0, 7, 14 and 21 as four bytes, each with their parity above them.
SKALD_INLINE i32x16 bytes_of_sevens(i32x16 a) noexcept {
  // 0xD8: the third where the second has bits, else the first.
  const __m512i halves = _mm512_ternarylogic_epi32(a.r, _mm512_slli_epi32(a.r, 2), _mm512_set1_epi32(0x3FFF0000), 0xD8);
  const __m512i spread =
      _mm512_ternarylogic_epi32(halves, _mm512_slli_epi32(halves, 1), _mm512_set1_epi32(0x7F007F00), 0xD8);
  const __m512i odd =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m512i low = _mm512_shuffle_epi8(odd, _mm512_and_si512(spread, _mm512_set1_epi32(0x0F0F0F0F)));
  const __m512i high =
      _mm512_shuffle_epi8(odd, _mm512_and_si512(_mm512_srli_epi32(spread, 4), _mm512_set1_epi32(0x07070707)));
  const __m512i seven = _mm512_and_si512(spread, _mm512_set1_epi32(0x7F7F7F7F));
  return {_mm512_ternarylogic_epi32(seven, low, high, 0x96)};
}
#endif

/// Bits 0..3 of each lane to bit `Bit` of its four bytes; the other bits of the lane do not matter.
template <int Bit>
SKALD_INLINE i32x16 spread_signs(i32x16 signs) noexcept {
#if SKALD_VEC_REGISTERS == 1
  constexpr int b = 1 << Bit;
  const __m512i table =
      _mm512_setr_epi32(0, b, b << 8, b * 0x101, b << 16, b * 0x10001, b * 0x10100, b * 0x10101, b << 24, b * 0x1000001,
                        b * 0x1000100, b * 0x1000101, b * 0x1010000, b * 0x1010001, b * 0x1010100, b * 0x1010101);
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
