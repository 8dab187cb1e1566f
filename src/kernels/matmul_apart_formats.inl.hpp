#pragma once

// How the panel blocks of the low-bit formats lie and how they are taken apart (matmul_apart.inl.hpp). As in
// matmul_formats.inl.hpp a panel block is the binary16 fields as [field][16], then the 32-bit words of the sixteen
// rows' blocks as [word][16], as many bytes as in the file. File layouts: skald/quant/block_layout.hpp.

#include "kernels/matmul_apart.inl.hpp"
#include "kernels/matmul_lookup.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

namespace codebooks = quant::codebooks;

SKALD_INLINE f32x16 half_field(const std::byte* p, int field) noexcept {
  return load_f16(reinterpret_cast<const std::uint16_t*>(p + 32 * field));
}
SKALD_INLINE i32x16 panel_word(const std::byte* p, int index) noexcept { return words(load_bytes(p + 64 * index)); }

/// Writes a taken-apart block.
template <class L>
struct ApartWriter {
  std::byte* to;
  SKALD_INLINE void scale(f32x16 value) const noexcept { store(reinterpret_cast<float*>(to), value); }
  SKALD_INLINE void minimum(f32x16 value) const noexcept { store(reinterpret_cast<float*>(to) + 16, value); }
  SKALD_INLINE void codes(int group, u8x64 value) const noexcept {
    store_bytes(to + 64 * (L::code_line + group), value);
  }
  SKALD_INLINE void sub(int j, i32x16 value) const noexcept {
    store_bytes(to + 64 * (L::sub_line + j), bytes(apart_multiplier(value)));
  }
  /// Pairs of `values` (int16 in int32) in the order of the activations' pairs of sums.
  SKALD_INLINE void pairs(const i32x16* values) const noexcept {
    unroll<L::pairs>([&](auto i) SKALD_INLINE_LAMBDA {
      constexpr int first = i.value / 2 * 4 + i.value % 2;
      store_bytes(to + 64 * (L::pair_line + i), bytes((values[first] & set1(0xFFFF)) | shl<16>(values[first + 2])));
    });
  }
  SKALD_INLINE void subs_and_pairs(const i32x16* values) const noexcept {
    unroll<L::subs>([&](auto j) SKALD_INLINE_LAMBDA { sub(j, values[j]); });
    pairs(values);
  }
};

SKALD_INLINE i32x16 odd_scale(i32x16 s) noexcept { return s + s + set1(1); }
/// Nibble j (constant) of consecutive words.
SKALD_INLINE i32x16 nibble_of(const std::byte* words_at, int j) noexcept {
  return shift_right(panel_word(words_at, j / 8), 4 * (j % 8)) & set1(15);
}

struct ApartQ2_K {
  using Layout = ApartLayout<16, true>;
  static constexpr CodeRange range = CodeRange::five;
  static constexpr int file_bytes = 84, panel_block_bytes = 1344, offset = 0;
  static constexpr int half_fields = 2, half_offsets[2] = {80, 82}, first_word = 0;
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    out.scale(half_field(p, 0));
    out.minimum(half_field(p, 1));
    const std::byte* at = p + 64;
    i32x16 minimums[16];
    unroll<16>([&](auto j) SKALD_INLINE_LAMBDA {
      const i32x16 both = shr<8 * (j.value % 4)>(panel_word(at, j / 4));
      out.sub(j, both & set1(15));
      minimums[j] = shr<4>(both) & set1(15);
    });
    out.pairs(minimums);
    for (int half = 0; half < 2; ++half)
      for (int word = 0; word < 8; ++word) {
        const i32x16 codes = panel_word(at, 4 + 8 * half + word);
        unroll<4>([&](auto q) SKALD_INLINE_LAMBDA {
          out.codes(32 * half + 8 * q + word, bytes(shr<2 * q.value>(codes) & set1(0x03030303)));
        });
      }
  }
};

struct ApartTQ1_0 {
  using Layout = ApartLayout<8, false>;
  static constexpr CodeRange range = CodeRange::five;
  static constexpr int file_bytes = 54, panel_block_bytes = 864, offset = 1;
  static constexpr int half_fields = 1, half_offsets[2] = {52, 0}, first_word = 0;
  /// The digits of four bytes, most significant first, one after the other to groups first, first + stride, ...
  template <int Digits>
  SKALD_INLINE static void digits(const ApartWriter<Layout>& out, i32x16 four, int first, int stride) noexcept {
    const i32x16 low_bytes = set1(0x00FF00FF);
    i32x16 even = four & low_bytes, odd = shr<8>(four) & low_bytes;
    unroll<Digits>([&](auto n) SKALD_INLINE_LAMBDA {
      // Three times the fraction: the digit is before the point, the rest behind it.
      even = even + even + even;
      odd = odd + odd + odd;
      out.codes(first + stride * n,
                bytes((shr<8>(even) & low_bytes) | (odd & set1(static_cast<std::int32_t>(0xFF00FF00)))));
      even = even & low_bytes;
      odd = odd & low_bytes;
    });
  }
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    out.scale(half_field(p, 0));
    i32x16 ones[8];
    unroll<8>([&](auto j) SKALD_INLINE_LAMBDA { ones[j] = set1(1); });
    out.subs_and_pairs(ones);
    for (int word = 0; word < 8; ++word) digits<5>(out, panel_word(p + 32, word), word, 8);
    for (int word = 0; word < 4; ++word) digits<5>(out, panel_word(p + 32, 8 + word), 40 + word, 4);
    digits<4>(out, panel_word(p + 32, 12), 60, 1);
  }
};

/// Codes of a group of four elements: levels of two or three bits in each byte, a sign bit above them.
alignas(16) inline constexpr std::uint8_t iq2_bytes[16] = {51, 68, 86, 43, 35, 18, 0, 43};
alignas(16) inline constexpr std::uint8_t iq3_xxs_bytes[16] = {66, 74, 82, 90, 98, 106, 114, 124,
                                                               58, 50, 42, 34, 26, 18,  10,  0};
alignas(16) inline constexpr std::uint8_t iq3_s_bytes[16] = {16, 18, 20, 22, 24, 26, 28, 30, 14, 12, 10, 8, 6, 4, 2, 0};
inline constexpr std::uint8_t iq1_bytes[4] = {2, 10, 18, 10};  // shifted up

/// Indices of 32 groups of eight elements by sixteen rows, two groups side by side.
struct PairedIndices {
  alignas(64) std::uint16_t pairs[16][32];
  SKALD_INLINE void set(int pair, i32x16 indices) noexcept { store_bytes(pairs[pair], bytes(indices)); }
  /// Compilers that know an index to be in a vector would take it out of there.
  SKALD_INLINE void stored() const noexcept { asm volatile("" : : "r"(pairs) : "memory"); }
};

inline constexpr std::uint8_t plain_codes[4] = {0, 1, 2, 3};
/// Eight codes of an iq2 entry in two lines; signs in the low eight bits.
template <class L>
SKALD_INLINE void put_eight(const ApartWriter<L>& out, const ByteTable& table, int group, u8x64 first, u8x64 last,
                            i32x16 signs) noexcept {
  out.codes(group, lookup16(table, bytes(words(first) | spread_signs<2>(signs))));
  out.codes(group + 1, lookup16(table, bytes(words(last) | spread_signs<2>(shr<4>(signs)))));
}
#if SKALD_VEC_REGISTERS == 1
inline constexpr auto iq2_xxs_paired = pair_codes<256>(codebooks::iq2_xxs_grid);
inline constexpr auto iq2_xs_paired = pair_codes<512>(codebooks::iq2_xs_grid);
inline constexpr auto iq2_s_wide = widen<1024>(codebooks::iq2_s_grid, iq2_bytes);  // of positive elements
inline constexpr auto iq3_xxs_spread = spread_codes<256>(codebooks::iq3_xxs_grid);
inline constexpr auto iq3_s_spread = spread_codes<512>(codebooks::iq3_s_grid);
/// The eight elements of an entry in one half of each lane to groups `group` and `group` + 1, with the signs in one
/// byte.
template <int Half, int Byte, class L>
SKALD_INLINE void put_half(const ApartWriter<L>& out, const SignedLookup& table, int group, i32x16 entries,
                           i32x16 signs) noexcept {
  const __m512i nibbles = nibbles_of_half<Half>(entries), sign = byte_of_lane<Byte>(signs);
  out.codes(group, table.weights<0>(nibbles, sign));
  out.codes(group + 1, table.weights<1>(nibbles, sign));
}
/// The four elements each of two entries in one half of each lane.
template <int Half, int Byte, class L>
SKALD_INLINE void put_fours(const ApartWriter<L>& out, const SignedLookup& table, int group, i32x16 first,
                            i32x16 second, i32x16 signs) noexcept {
  const __m512i sign = byte_of_lane<Byte>(signs);
  out.codes(group, table.weights<0>(nibbles_of_half<Half>(first), sign));
  out.codes(group + 1, table.weights<1>(nibbles_of_half<Half>(second), sign));
}
#else
inline constexpr auto iq2_xxs_wide = widen<256>(codebooks::iq2_xxs_grid, plain_codes);
inline constexpr auto iq2_xs_wide = widen<512>(codebooks::iq2_xs_grid, plain_codes);
inline constexpr auto iq2_s_wide = widen<1024>(codebooks::iq2_s_grid, plain_codes);
inline constexpr auto iq3_xxs_fours = fours_of<256>(codebooks::iq3_xxs_grid);
inline constexpr auto iq3_s_fours = fours_of<512>(codebooks::iq3_s_grid);
/// Four codes of an iq3 entry per lane; signs in the low four bits.
template <class L>
SKALD_INLINE void put_four(const ApartWriter<L>& out, const ByteTable& table, int group, i32x16 codes,
                           i32x16 signs) noexcept {
  out.codes(group, lookup16(table, bytes(codes | spread_signs<3>(signs))));
}
#endif

struct ApartIQ2_XXS {
  using Layout = ApartLayout<8, false>;
  static constexpr CodeRange range = CodeRange::seven;
  static constexpr int file_bytes = 66, panel_block_bytes = 1056, offset = 43;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0}, first_word = 2;
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    out.scale(half_field(p, 0) * set1(0.125F));
    i32x16 scales[8];
#if SKALD_VEC_REGISTERS == 1
    const auto table = SignedLookup::of_pairs(iq2_bytes, 2 * offset);
    for (int j = 0; j < 8; ++j) {
      const i32x16 indices = panel_word(p + 32, 2 * j), rest = panel_word(p + 32, 2 * j + 1);
      scales[j] = odd_scale(shr<28>(rest));
      const i32x16 signs = bytes_of_sevens(rest);
      // What is above an index does not matter.
      const i32x16 even = lookup_pair<256>(iq2_xxs_paired.entries, indices);
      const i32x16 odd = lookup_pair<256>(iq2_xxs_paired.entries, shr<8>(indices));
      put_half<0, 0>(out, table, 8 * j, even, signs);
      put_half<0, 1>(out, table, 8 * j + 2, odd, signs);
      put_half<1, 2>(out, table, 8 * j + 4, even, signs);
      put_half<1, 3>(out, table, 8 * j + 6, odd, signs);
    }
#else
    const ByteTable table(iq2_bytes);
    PairedIndices indices;
    for (int j = 0; j < 8; ++j) {
      const i32x16 four = panel_word(p + 32, 2 * j), upper = shr<16>(four);
      indices.set(2 * j, (four & set1(0xFF)) | (shl<8>(four) & set1(0xFF0000)));
      indices.set(2 * j + 1, (upper & set1(0xFF)) | (shl<8>(upper) & set1(0xFF0000)));
    }
    indices.stored();
    for (int j = 0; j < 8; ++j) {
      const i32x16 rest = panel_word(p + 32, 2 * j + 1), parity = parity_of_sevens(rest);
      scales[j] = odd_scale(shr<28>(rest));
      unroll<2>([&](auto pair) SKALD_INLINE_LAMBDA {
        constexpr int l = 2 * pair.value;
        const auto signs_of = [&](auto k) SKALD_INLINE_LAMBDA {
          return (shr<7 * k.value>(rest) & set1(127)) | shl<7>(shr<7 * k.value>(parity) & set1(1));
        };
        u8x64 lines[4];
        lookup_wide(iq2_xxs_wide.entries, indices.pairs[2 * j + pair], lines);
        put_eight(out, table, 8 * j + 2 * l, lines[0], lines[1], signs_of(Index<l>{}));
        put_eight(out, table, 8 * j + 2 * l + 2, lines[2], lines[3], signs_of(Index<l + 1>{}));
      });
    }
#endif
    out.subs_and_pairs(scales);
  }
};

struct ApartIQ2_XS {
  using Layout = ApartLayout<16, false>;
  static constexpr CodeRange range = CodeRange::seven;
  static constexpr int file_bytes = 74, panel_block_bytes = 1184, offset = 43;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0}, first_word = 2;
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    out.scale(half_field(p, 0) * set1(0.125F));
    const std::byte* at = p + 32;
    i32x16 scales[16];
    unroll<16>([&](auto j) SKALD_INLINE_LAMBDA { scales[j] = odd_scale(nibble_of(at + 64 * 16, j)); });
    out.subs_and_pairs(scales);
#if SKALD_VEC_REGISTERS == 1
    const auto table = SignedLookup::of_pairs(iq2_bytes, 2 * offset);
#else
    const ByteTable table(iq2_bytes);
    PairedIndices indices;
    for (int word = 0; word < 16; ++word) indices.set(word, panel_word(at, word) & set1(0x01FF01FF));
    indices.stored();
#endif
    for (int word = 0; word < 16; ++word) {
      const i32x16 codes = panel_word(at, word);
      const i32x16 sevens = shr<9>(codes) & set1(0x007F007F);
      const i32x16 twos = sevens ^ shr<1>(sevens), fours = twos ^ shr<2>(twos);
      const i32x16 signs = sevens | shl<7>((fours ^ shr<4>(fours)) & set1(0x00010001));
#if SKALD_VEC_REGISTERS == 1
      const i32x16 entries = lookup_pair<512>(iq2_xs_paired.entries, codes);
      put_half<0, 0>(out, table, 4 * word, entries, signs);
      put_half<1, 2>(out, table, 4 * word + 2, entries, signs);
#else
      u8x64 lines[4];
      lookup_wide(iq2_xs_wide.entries, indices.pairs[word], lines);
      put_eight(out, table, 4 * word, lines[0], lines[1], signs);
      put_eight(out, table, 4 * word + 2, lines[2], lines[3], shr<16>(signs));
#endif
    }
  }
};

struct ApartIQ2_S {
  using Layout = ApartLayout<16, false>;
  static constexpr CodeRange range = CodeRange::seven;
  static constexpr int file_bytes = 82, panel_block_bytes = 1312, offset = 43;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0}, first_word = 2;
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    out.scale(half_field(p, 0) * set1(0.125F));
    const std::byte* at = p + 32;
    i32x16 scales[16];
    unroll<16>([&](auto j) SKALD_INLINE_LAMBDA { scales[j] = odd_scale(nibble_of(at + 64 * 18, j)); });
    out.subs_and_pairs(scales);
    const i32x16 low_byte = set1(0x00FF00FF);
    PairedIndices indices;
    for (int word = 0; word < 8; ++word) {
      const i32x16 codes = panel_word(at, word);
      const i32x16 high = shift_right(panel_word(at, 16 + word / 4), 8 * (word % 4));
      indices.set(2 * word, (codes & low_byte) | (shl<8>(high) & set1(0x300)) | (shl<20>(high) & set1(0x3000000)));
      indices.set(2 * word + 1,
                  (shr<8>(codes) & low_byte) | (shl<6>(high) & set1(0x300)) | (shl<18>(high) & set1(0x3000000)));
    }
    indices.stored();
#if SKALD_VEC_REGISTERS == 1
    const __m512i sum = _mm512_set1_epi8(2 * offset);
#else
    const ByteTable table(iq2_bytes);
#endif
    for (int word = 0; word < 8; ++word) {
      const i32x16 signs = panel_word(at, 8 + word);
      unroll<2>([&](auto h) SKALD_INLINE_LAMBDA {
        const int group = 8 * word + 2 * h;
        u8x64 lines[4];
        lookup_wide(iq2_s_wide.entries, indices.pairs[2 * word + h], lines);
#if SKALD_VEC_REGISTERS == 1
        const __m512i first = byte_of_lane<h.value>(signs), second = byte_of_lane<h.value + 2>(signs);
        out.codes(group, with_signs<0>(lines[0], first, sum));
        out.codes(group + 1, with_signs<1>(lines[1], first, sum));
        out.codes(group + 4, with_signs<0>(lines[2], second, sum));
        out.codes(group + 5, with_signs<1>(lines[3], second, sum));
#else
        put_eight(out, table, group, lines[0], lines[1], shr<8 * h.value>(signs));
        put_eight(out, table, group + 4, lines[2], lines[3], shr<8 * h.value + 16>(signs));
#endif
      });
    }
  }
};

struct ApartIQ3_XXS {
  using Layout = ApartLayout<8, false>;
  static constexpr CodeRange range = CodeRange::seven;
  static constexpr int file_bytes = 98, panel_block_bytes = 1568, offset = 62;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0}, first_word = 2;
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    out.scale(half_field(p, 0) * set1(0.25F));
    const std::byte* at = p + 32;
    i32x16 scales[8];
#if SKALD_VEC_REGISTERS == 1
    const auto table = SignedLookup::of_codes(iq3_xxs_bytes, 2 * offset);
    for (int j = 0; j < 8; ++j) {
      const i32x16 rest = panel_word(at, 16 + j), signs = bytes_of_sevens(rest);
      scales[j] = odd_scale(shr<28>(rest));
      unroll<2>([&](auto h) SKALD_INLINE_LAMBDA {
        // What is above an index does not matter.
        const i32x16 indices = panel_word(at, 2 * j + h);
        const i32x16 even = lookup_pair<256>(iq3_xxs_spread.entries, indices);
        const i32x16 odd = lookup_pair<256>(iq3_xxs_spread.entries, shr<8>(indices));
        put_fours<0, 2 * h.value>(out, table, 8 * j + 4 * h, even, odd, signs);
        put_fours<1, 2 * h.value + 1>(out, table, 8 * j + 4 * h + 2, even, odd, signs);
      });
    }
#else
    const ByteTable table(iq3_xxs_bytes);
    for (int j = 0; j < 8; ++j) {
      const i32x16 rest = panel_word(at, 16 + j);
      scales[j] = odd_scale(shr<28>(rest));
      const i32x16 parity = parity_of_sevens(rest);
      unroll<4>([&](auto k) SKALD_INLINE_LAMBDA {
        const i32x16 two = shr<16 * (k.value % 2)>(panel_word(at, 2 * j + k / 2));
        const i32x16 upper = (shr<7 * k.value + 4>(rest) & set1(7)) | shl<3>(shr<7 * k.value>(parity) & set1(1));
        put_four(out, table, 8 * j + 2 * k, lookup_four(iq3_xxs_fours.entries, two & set1(0xFF)),
                 shr<7 * k.value>(rest));
        put_four(out, table, 8 * j + 2 * k + 1, lookup_four(iq3_xxs_fours.entries, shr<8>(two) & set1(0xFF)), upper);
      });
    }
#endif
    out.subs_and_pairs(scales);
  }
};

struct ApartIQ3_S {
  using Layout = ApartLayout<8, false>;
  static constexpr CodeRange range = CodeRange::five;
  static constexpr int file_bytes = 110, panel_block_bytes = 1760, offset = 15;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0}, first_word = 2;
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    out.scale(half_field(p, 0));
    const std::byte* at = p + 32;
    i32x16 scales[8];
    unroll<8>([&](auto j) SKALD_INLINE_LAMBDA { scales[j] = odd_scale(nibble_of(at + 64 * 26, j)); });
    out.subs_and_pairs(scales);
#if SKALD_VEC_REGISTERS == 1
    const auto table = SignedLookup::of_codes(iq3_s_bytes, 2 * offset);
    for (int j = 0; j < 8; ++j) {
      const i32x16 eight = shift_right(panel_word(at, 16 + j / 4), 8 * (j % 4)), signs = panel_word(at, 18 + j);
      unroll<2>([&](auto h) SKALD_INLINE_LAMBDA {
        const i32x16 indices = panel_word(at, 2 * j + h), high = shr<4 * h.value>(eight), low_byte = set1(0x00FF00FF);
        const i32x16 even = lookup_pair<512>(iq3_s_spread.entries, (indices & low_byte) | (shl<8>(high) & set1(0x100)) |
                                                                       (shl<22>(high) & set1(0x1000000)));
        const i32x16 odd =
            lookup_pair<512>(iq3_s_spread.entries, (shr<8>(indices) & low_byte) | (shl<7>(high) & set1(0x100)) |
                                                       (shl<21>(high) & set1(0x1000000)));
        put_fours<0, 2 * h.value>(out, table, 8 * j + 4 * h, even, odd, signs);
        put_fours<1, 2 * h.value + 1>(out, table, 8 * j + 4 * h + 2, even, odd, signs);
      });
    }
#else
    const ByteTable table(iq3_s_bytes);
    for (int j = 0; j < 8; ++j) {
      const i32x16 high = shift_right(panel_word(at, 16 + j / 4), 8 * (j % 4)), signs = panel_word(at, 18 + j);
      unroll<4>([&](auto k) SKALD_INLINE_LAMBDA {
        const i32x16 two = shr<16 * (k.value % 2)>(panel_word(at, 2 * j + k / 2)), top = shr<2 * k.value>(high);
        const i32x16 first = (two & set1(0xFF)) | (shl<8>(top) & set1(0x100));
        const i32x16 second = (shr<8>(two) & set1(0xFF)) | (shl<7>(top) & set1(0x100));
        put_four(out, table, 8 * j + 2 * k, lookup_four(iq3_s_fours.entries, first), shr<8 * k.value>(signs));
        put_four(out, table, 8 * j + 2 * k + 1, lookup_four(iq3_s_fours.entries, second), shr<8 * k.value + 4>(signs));
      });
    }
#endif
  }
};

inline constexpr auto iq1_wide = widen<2048>(codebooks::iq1_grid, iq1_bytes);
/// The elements of a pair; `down` has bit 1 of each byte set where the shift is negative.
template <class L>
SKALD_INLINE void put_iq1(const ApartWriter<L>& out, int pair, const PairedIndices& indices, i32x16 first_down,
                          i32x16 second_down) noexcept {
  u8x64 lines[4];
  lookup_wide(iq1_wide.entries, indices.pairs[pair], lines);
  for (int i = 0; i < 4; ++i) out.codes(4 * pair + i, bytes(words(lines[i]) - (i < 2 ? first_down : second_down)));
}

struct ApartIQ1_S {
  using Layout = ApartLayout<8, false>;
  static constexpr CodeRange range = CodeRange::five;
  static constexpr int file_bytes = 50, panel_block_bytes = 800, offset = 9;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0}, first_word = 2;
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    out.scale(half_field(p, 0) * set1(0.125F));
    const std::byte* at = p + 32;
    i32x16 scales[8];
    PairedIndices indices;
    const auto field_of = [&](int j)
                              SKALD_INLINE_LAMBDA { return shift_right(panel_word(at, 8 + j / 2), 16 * (j % 2)); };
    for (int j = 0; j < 8; ++j) {
      const i32x16 codes = panel_word(at, j), field = field_of(j);
      scales[j] = odd_scale(shr<12>(field) & set1(7));
      unroll<2>([&](auto pair) SKALD_INLINE_LAMBDA {
        constexpr int l = 2 * pair.value;
        const i32x16 two = shr<8 * l>(codes), top = shr<3 * l>(field);
        indices.set(2 * j + pair, (two & set1(0xFF)) | (shl<8>(two) & set1(0xFF0000)) | (shl<8>(top) & set1(0x700)) |
                                      (shl<21>(top) & set1(0x7000000)));
      });
    }
    out.subs_and_pairs(scales);
    indices.stored();
    for (int pair = 0; pair < 16; ++pair) {
      const i32x16 down = sra<31>(shl<16>(field_of(pair / 2))) & set1(0x02020202);
      put_iq1(out, pair, indices, down, down);
    }
  }
};

struct ApartIQ1_M {
  using Layout = ApartLayout<16, false>;
  static constexpr CodeRange range = CodeRange::five;
  static constexpr int file_bytes = 56, panel_block_bytes = 896, offset = 9;
  static constexpr int half_fields = 0, half_offsets[2] = {0, 0}, first_word = 0;
  static void take_apart(const std::byte* p, std::byte* to) noexcept {
    const ApartWriter<Layout> out{to};
    const i32x16 first = panel_word(p, 12), second = panel_word(p, 13);
    const i32x16 scale = (shr<12>(first) & set1(15)) | (shr<24>(first) & set1(0xF0)) | (shr<4>(second) & set1(0xF00)) |
                         (shr<16>(second) & set1(0xF000));
    std::int32_t wide[16];
    std::uint16_t halves_of[16];
    store(wide, scale);
    for (int r = 0; r < 16; ++r) halves_of[r] = static_cast<std::uint16_t>(wide[r]);
    out.scale(load_f16(halves_of) * set1(0.125F));
    i32x16 scales[16];
    unroll<16>([&](auto j) SKALD_INLINE_LAMBDA {
      scales[j] = odd_scale(shr<16 * (j.value / 4 % 2) + 3 * (j.value % 4)>(j < 8 ? first : second) & set1(7));
    });
    out.subs_and_pairs(scales);
    PairedIndices indices;
    const auto high_of = [&](int word)
                             SKALD_INLINE_LAMBDA { return shift_right(panel_word(p, 8 + word / 2), 16 * (word % 2)); };
    for (int word = 0; word < 8; ++word) {
      const i32x16 codes = panel_word(p, word), high = high_of(word);
      unroll<2>([&](auto pair) SKALD_INLINE_LAMBDA {
        constexpr int l = 2 * pair.value;
        const i32x16 two = shr<8 * l>(codes), top = shr<4 * l>(high);
        indices.set(2 * word + pair, (two & set1(0xFF)) | (shl<8>(two) & set1(0xFF0000)) | (shl<8>(top) & set1(0x700)) |
                                         (shl<20>(top) & set1(0x7000000)));
      });
    }
    indices.stored();
    for (int pair = 0; pair < 16; ++pair) {
      const i32x16 top = shift_right(high_of(pair / 2), 8 * (pair % 2));
      put_iq1(out, pair, indices, sra<31>(shl<28>(top)) & set1(0x02020202), sra<31>(shl<24>(top)) & set1(0x02020202));
    }
  }
};

// --- What the kernel table needs of each ---

template <class F>
std::size_t apart_panel_bytes(std::int64_t cols) noexcept {
  return static_cast<std::size_t>(cols / 256) * F::panel_block_bytes;
}

template <class F>
void apart_pack(const std::byte* const* rows, std::int64_t cols, std::byte* panel) noexcept {
  constexpr int word_count = (F::file_bytes - 2 * F::half_fields) / 4;
  static_assert(32 * F::half_fields + 64 * word_count == F::panel_block_bytes);
  for (std::int64_t b = 0; b < cols / 256; ++b, panel += F::panel_block_bytes)
    for (int r = 0; r < 16; ++r) {
      std::byte zero[F::file_bytes];
      const std::byte* block = zero;
      if (rows[r]) block = rows[r] + b * F::file_bytes;
      else __builtin_memset(zero, 0, sizeof(zero));
      for (int h = 0; h < F::half_fields; ++h) __builtin_memcpy(panel + 32 * h + 2 * r, block + F::half_offsets[h], 2);
      std::byte* to = panel + 32 * F::half_fields + 4 * r;
      for (int w = 0; w < word_count; ++w) __builtin_memcpy(to + 64 * w, block + F::first_word + 4 * w, 4);
    }
}

/// Decodes with the operations of block_layout.hpp, in their order.
template <class F>
void apart_unpack_row(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept {
  using L = typename F::Layout;
  alignas(64) std::byte block[L::bytes];
  for (std::int64_t b = 0; b < cols / 256; ++b, panel += F::panel_block_bytes, out += 256) {
    F::take_apart(panel, block);
    const auto* floats = reinterpret_cast<const float*>(block);
    const auto* ints = reinterpret_cast<const std::int32_t*>(block);
    for (int i = 0; i < 256; ++i) {
      const int sub = i * L::subs / 256;
      const auto factor = static_cast<std::int16_t>(ints[16 * (L::sub_line + sub) + row]);
      const float step = floats[row] * static_cast<float>(factor);
      const int code = static_cast<int>(block[64 * (L::code_line + i / 4) + 4 * row + i % 4]);
      if constexpr (L::has_minimum) {
        const int pair = sub / 4 * 2 + sub % 2;
        const auto both = static_cast<std::uint32_t>(ints[16 * (L::pair_line + pair) + row]);
        const float low = floats[16 + row] * static_cast<float>((sub % 4 < 2 ? both : both >> 16) & 0xFFFF);
        out[i] = step * static_cast<float>(code) - low;
      } else {
        out[i] = step * static_cast<float>(code - F::offset);
      }
    }
  }
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
