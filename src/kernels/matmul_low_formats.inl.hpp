#pragma once

// q3_k, iq4_xs and tq2_0 for the block kernels (matmul_formats.inl.hpp): codes that masks, shifts and one table take apart.

#include "kernels/matmul_nibble_formats.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

/// Two-bit codes that lie as in BlockQ2_K: those of elements 16 w .. 16 w + 15 as one word, four elements after four.
inline std::uint32_t word_of_2(const std::byte* codes, int w) noexcept {
  std::uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const int group = 4 * w + i;
    word |= (word_at(codes + 32 * (group / 32) + 4 * (group % 8)) >> (group % 32 / 8 * 2) & 3 * every_byte) << (2 * i);
  }
  return word;
}

/// The scale, sixteen lines of two-bit codes.
struct FormatTQ2_0 {
  static constexpr int block_k = 256, file_bytes = 66, panel_block_bytes = 1056, bits = 5, offset_shift = 0;
  static constexpr int sub_blocks = 8, chunk_subs = 1;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {64, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static i32x16 sub_scale(const std::byte*, int) noexcept { return multiplier(set1(1)); }
  SKALD_INLINE static i32x16 scale_pair(const std::byte*, int) noexcept { return set1(0x00010001); }
  static constexpr int run_groups = 4;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return 4 * r + i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept {
    const i32x16 a = line(p + 32, r), low = set1(0x03030303);
    codes[0] = bytes(a & low);
    codes[1] = bytes(shr<2>(a) & low);
    codes[2] = bytes(shr<4>(a) & low);
    codes[3] = bytes(shr<6>(a) & low);
  }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatTQ2_0>(p, j / 4, j % 4); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept { return word_of_2(block, word); }
};

/// The scale; three lines of 6-bit scales; for every 32 elements two lines of two-bit codes and one of third bits, the
/// nibbles of which belong to either of them.
struct FormatQ3_K {
  static constexpr int block_k = 256, file_bytes = 110, panel_block_bytes = 1760, bits = 5, offset_shift = 2;
  static constexpr int sub_blocks = 16, chunk_subs = 1;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {108, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  /// Scale of sub-block j as an integer.
  SKALD_INLINE static i32x16 integer_scale(const std::byte* p, int j) noexcept {
    const i32x16 low = unsigned_byte(line(p + 32, j % 8 / 4), j % 4), top = unsigned_byte(line(p + 32, 2), j % 4);
    const i32x16 low_bits = (j < 8 ? low : shr<4>(low)) & set1(15);
    i32x16 high_bits = shl<4>(top);
    if (j >= 12) high_bits = shr<2>(top);
    else if (j >= 8) high_bits = top;
    else if (j >= 4) high_bits = shl<2>(top);
    return (low_bits | (high_bits & set1(0x30))) - set1(32);
  }
  SKALD_INLINE static i32x16 sub_scale(const std::byte* p, int j) noexcept { return multiplier(integer_scale(p, j)); }
  SKALD_INLINE static i32x16 scale_pair(const std::byte* p, int i) noexcept {
    const int first = i / 2 * 4 + i % 2;
    return (integer_scale(p, first) & set1(0xFFFF)) | shl<16>(integer_scale(p, first + 2));
  }
  static constexpr int run_groups = 4;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return 4 * r + i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept {
    const std::byte* lines = p + 224 + 192 * (r / 2);
    const i32x16 a = line(lines, r % 2), third = line(lines, 2), low = set1(0x03030303), four = set1(0x04040404);
    const i32x16 t = r % 2 == 0 ? third : shr<4>(third);
    codes[0] = bytes((a & low) | (shl<2>(t) & four));
    codes[1] = bytes((shr<2>(a) & low) | (shl<1>(t) & four));
    codes[2] = bytes((shr<4>(a) & low) | (t & four));
    codes[3] = bytes((shr<6>(a) & low) | (shr<1>(t) & four));
  }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatQ3_K>(p, j / 4, j % 4); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    if (word < 3) return word_at(block + 96 + 4 * word);
    const int part = (word - 3) / 3, line_of = (word - 3) % 3;
    if (line_of < 2) return word_of_2(block + 32, 2 * part + line_of);
    // Elements 32 part .. 32 part + 31 have bit `part` of the 32 bytes; element 4 i + k goes to bit i of byte k.
    std::uint32_t bits_of = 0;
    for (int i = 0; i < 8; ++i) bits_of |= (word_at(block + 4 * i) >> part & every_byte) << i;
    return bits_of;
  }
};

/// bits(), which the formats have as a number.
SKALD_INLINE i32x16 vector_bits(f32x16 a) noexcept { return bits(a); }

/// Scale and upper scale bits, a line of lower scale bits, then two groups to a line.
struct FormatIQ4_XS {
  // Where products of signed bytes are used, nothing has to be subtracted.
  static constexpr int block_k = 256, file_bytes = 136, panel_block_bytes = 2176, bits = 8,
                       offset_shift = paired_multiplier ? -1 : 7;
  static constexpr int sub_blocks = 8, chunk_subs = 1;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 2, half_offsets[2] = {0, 2};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static i32x16 integer_scale(const std::byte* p, int j) noexcept {
    // bfloat16 is the upper half of a float: the second field as bits 16..31.
    const i32x16 high = shift_right(bits_of_halves(p + 32), 16 + 2 * j) & set1(3);
    return ((shift_right(line(p + 64, 0), 4 * j) & set1(15)) | shl<4>(high)) - set1(32);
  }
  SKALD_INLINE static i32x16 bits_of_halves(const std::byte* p) noexcept { return vector_bits(load_bf16(halves(p))); }
  SKALD_INLINE static i32x16 sub_scale(const std::byte* p, int j) noexcept { return multiplier(integer_scale(p, j)); }
  /// In the order of sub-blocks of 16: both halves of a sub-block have its scale.
  SKALD_INLINE static i32x16 scale_pair(const std::byte* p, int i) noexcept {
    return (integer_scale(p, i / 2 * 2) & set1(0xFFFF)) | shl<16>(integer_scale(p, i / 2 * 2 + 1));
  }
  static constexpr int run_groups = 2;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return 2 * r + i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept {
    run_of_sixteen(iq4_nl_bytes, p + 128 + 64 * r, codes);
  }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatIQ4_XS>(p, j / 2, j % 2); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    if (word == 0) return word_at(block + 4);
    const int r = word - 1, eight = r % 4;
    const std::byte* at = block + 8 + 16 * (r / 4) + 8 * (eight % 2);
    const std::uint32_t first = word_at(at), second = word_at(at + 4);
    if (eight < 2) return (first & 15 * every_byte) | (second & 15 * every_byte) << 4;
    return (first >> 4 & 15 * every_byte) | (second & 0xF0F0F0F0u);
  }
};

/// Decodes with the operations of block_layout.hpp, in their order.
SKALD_INLINE void unpack_iq4_xs(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept {
  using F = FormatIQ4_XS;
  for (std::int64_t b = 0; b < cols / 256; ++b, panel += F::panel_block_bytes, out += 256) {
    const float scale = lane_of(F::scale(panel), row);
    for (int j = 0; j < 64; ++j) {
      std::uint8_t codes[64];
      store_bytes(codes, F::group(panel, j));
      const float step = scale * static_cast<float>(lane_of(F::integer_scale(panel, j / 8), row));
      for (int i = 0; i < 4; ++i) out[4 * j + i] = step * static_cast<float>(codes[4 * row + i] - 128);
    }
  }
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
