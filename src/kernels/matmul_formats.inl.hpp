#pragma once

// Weight formats in panels of sixteen rows. A panel block holds one file block of each of the sixteen rows, with as many
// bytes: the binary16 fields as [field][16], then the 32-bit words of the rows' blocks transposed to [word][16]. Lane r of a
// 64-byte line is row r, and its four bytes are four consecutive k; nibbles and high bits come apart with shifts and masks.
// File layouts: skald/quant/block_layout.hpp. Three things are not plain transposition: q8_0 codes are stored plus 128,
// the 32 fifth bits of q5_0 and q5_1 are permuted so that bit j of byte k belongs to element 4 j + k, and the words of q6_k
// lie in the order in which they are read.
//
// Each format gives
//   block_k, file_bytes, panel_block_bytes
//   bits               the unsigned codes are below 2^bits (8: code - 128 is the weight)
//   offset_shift       the weight is code - 2^offset_shift; -1: no offset
//   group(block, j)    codes of elements 4 j .. 4 j + 3 of the block
//   scale, minimum     as floats
// and the K formats
//   sub_scale(block, j)                 the multiplier of sub-block j (see multiplier())
//   minimum_pair, scale_pair            int16 pairs in the order of the activations' pairs of sums
//   chunk_group(block, chunk, g)        group g of chunk_subs sub-blocks; with a constant g only addresses and one shift
//                                       depend on the chunk

#include "simd/vec.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

#if defined(SKALD_ISA_avx512) || defined(SKALD_ISA_avx2)
inline constexpr bool paired_multiplier = true;
#else
inline constexpr bool paired_multiplier = false;
#endif

SKALD_INLINE const std::uint16_t* halves(const std::byte* p) noexcept {
  return reinterpret_cast<const std::uint16_t*>(p);
}
SKALD_INLINE i32x16 line(const std::byte* p, int index) noexcept { return words(load_bytes(p + 64 * index)); }
SKALD_INLINE u8x64 low_nibbles(i32x16 a) noexcept { return bytes(a & set1(0x0F0F0F0F)); }
SKALD_INLINE u8x64 high_nibbles(i32x16 a) noexcept { return bytes(shr<4>(a) & set1(0x0F0F0F0F)); }
/// Bit `bit` of every byte, moved to bit 4.
SKALD_INLINE i32x16 bit_to_4(i32x16 a, int bit) noexcept {
  i32x16 moved = a;
  switch (bit) {
    case 0: moved = shl<4>(a); break;
    case 1: moved = shl<3>(a); break;
    case 2: moved = shl<2>(a); break;
    case 3: moved = shl<1>(a); break;
    case 5: moved = shr<1>(a); break;
    case 6: moved = shr<2>(a); break;
    case 7: moved = shr<3>(a); break;
    default: break;
  }
  return moved & set1(0x10101010);
}

/// Multiplier of a sub-block's integer sum: int32, or twice the same int16 for instruction sets that multiply the int16
/// sums of neighbouring products (pmaddwd).
SKALD_INLINE i32x16 multiplier(i32x16 value) noexcept {
  if constexpr (paired_multiplier) return (value & set1(0xFFFF)) | shl<16>(value);
  return value;
}
/// Byte `index` (0..3) of every lane.
SKALD_INLINE i32x16 unsigned_byte(i32x16 a, int index) noexcept {
  switch (index) {
    case 0: return a & set1(0xFF);
    case 1: return shr<8>(a) & set1(0xFF);
    case 2: return shr<16>(a) & set1(0xFF);
    default: return shr<24>(a);
  }
}
SKALD_INLINE i32x16 signed_byte(i32x16 a, int index) noexcept {
  switch (index) {
    case 0: return sra<24>(shl<24>(a));
    case 1: return sra<24>(shl<16>(a));
    case 2: return sra<24>(shl<8>(a));
    default: return sra<24>(a);
  }
}

struct FormatQ8_0 {
  static constexpr int block_k = 32, file_bytes = 34, panel_block_bytes = 544, bits = 8, offset_shift = 7, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return load_bytes(p + 32 + 64 * j); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    std::uint32_t value;
    __builtin_memcpy(&value, block + 2 + 4 * word, 4);
    return value ^ 0x80808080u;
  }
};

struct FormatQ4_0 {
  static constexpr int block_k = 32, file_bytes = 18, panel_block_bytes = 288, bits = 4, offset_shift = 3, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept {
    return j < 4 ? low_nibbles(line(p + 32, j)) : high_nibbles(line(p + 32, j - 4));
  }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    std::uint32_t value;
    __builtin_memcpy(&value, block + 2 + 4 * word, 4);
    return value;
  }
};

struct FormatQ4_1 {
  static constexpr int block_k = 32, file_bytes = 20, panel_block_bytes = 320, bits = 4, offset_shift = -1, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = true;
  static constexpr int half_fields = 2, half_offsets[2] = {0, 2};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static f32x16 minimum(const std::byte* p) noexcept { return load_f16(halves(p + 32)); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept {
    return j < 4 ? low_nibbles(line(p + 64, j)) : high_nibbles(line(p + 64, j - 4));
  }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    std::uint32_t value;
    __builtin_memcpy(&value, block + 4 + 4 * word, 4);
    return value;
  }
};

/// Bit i of the file's 32 fifth bits (element i) to bit i / 4 of byte i % 4.
inline std::uint32_t permute_fifth_bits(std::uint32_t file) noexcept {
  std::uint32_t permuted = 0;
  for (unsigned i = 0; i < 32; ++i) permuted |= ((file >> i) & 1u) << (8 * (i % 4) + i / 4);
  return permuted;
}

struct FormatQ5_0 {
  static constexpr int block_k = 32, file_bytes = 22, panel_block_bytes = 352, bits = 5, offset_shift = 4, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept {
    const u8x64 low = j < 4 ? low_nibbles(line(p + 96, j)) : high_nibbles(line(p + 96, j - 4));
    return low | bytes(bit_to_4(line(p + 32, 0), j));
  }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    std::uint32_t value;
    __builtin_memcpy(&value, block + 2 + 4 * word, 4);
    return word == 0 ? permute_fifth_bits(value) : value;
  }
};

struct FormatQ5_1 {
  static constexpr int block_k = 32, file_bytes = 24, panel_block_bytes = 384, bits = 5, offset_shift = -1, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = true;
  static constexpr int half_fields = 2, half_offsets[2] = {0, 2};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static f32x16 minimum(const std::byte* p) noexcept { return load_f16(halves(p + 32)); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept {
    const u8x64 low = j < 4 ? low_nibbles(line(p + 128, j)) : high_nibbles(line(p + 128, j - 4));
    return low | bytes(bit_to_4(line(p + 64, 0), j));
  }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    std::uint32_t value;
    __builtin_memcpy(&value, block + 4 + 4 * word, 4);
    return word == 0 ? permute_fifth_bits(value) : value;
  }
};

/// What q4_k and q5_k share: d and dmin, then three words with eight 6-bit scales and minimums.
struct SubScales {
  SKALD_INLINE static i32x16 sub_scale(const std::byte* p, int j) noexcept {
    const i32x16 w0 = line(p + 64, 0);
    if (j < 4) return multiplier(unsigned_byte(w0 & set1(0x3F3F3F3F), j));
    const i32x16 upper = (line(p + 64, 2) & set1(0x0F0F0F0F)) | (shr<2>(w0) & set1(0x30303030));
    return multiplier(unsigned_byte(upper, j - 4));
  }
  /// Minimums as int16 pairs: (0, 2), (1, 3), (4, 6), (5, 7).
  SKALD_INLINE static i32x16 minimum_pair(const std::byte* p, int i) noexcept {
    const i32x16 w1 = line(p + 64, 1);
    i32x16 four = w1 & set1(0x3F3F3F3F);
    if (i >= 2) four = (shr<4>(line(p + 64, 2)) & set1(0x0F0F0F0F)) | (shr<2>(w1) & set1(0x30303030));
    return (i % 2 == 0 ? four : shr<8>(four)) & set1(0x00FF00FF);
  }
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static f32x16 minimum(const std::byte* p) noexcept { return load_f16(halves(p + 32)); }
};

struct FormatQ4_K : SubScales {
  static constexpr int block_k = 256, file_bytes = 144, panel_block_bytes = 2304, bits = 4, offset_shift = -1;
  static constexpr int sub_blocks = 8, chunk_subs = 2;
  static constexpr bool packed = true, has_minimum = true;
  static constexpr int half_fields = 2, half_offsets[2] = {0, 2};
  SKALD_INLINE static u8x64 chunk_group(const std::byte* p, int chunk, int g) noexcept {
    const i32x16 codes = line(p + 256, chunk * 8 + g % 8);
    return g < 8 ? low_nibbles(codes) : high_nibbles(codes);
  }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return chunk_group(p, j / 16, j % 16); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    std::uint32_t value;
    __builtin_memcpy(&value, block + 4 + 4 * word, 4);
    return value;
  }
};

struct FormatQ5_K : SubScales {
  static constexpr int block_k = 256, file_bytes = 176, panel_block_bytes = 2816, bits = 5, offset_shift = -1;
  static constexpr int sub_blocks = 8, chunk_subs = 2;
  static constexpr bool packed = true, has_minimum = true;
  static constexpr int half_fields = 2, half_offsets[2] = {0, 2};
  SKALD_INLINE static u8x64 chunk_group(const std::byte* p, int chunk, int g) noexcept {
    const i32x16 codes = line(p + 768, chunk * 8 + g % 8);
    const u8x64 low = g < 8 ? low_nibbles(codes) : high_nibbles(codes);
    return low | bytes(bit_to_4(shift_right(line(p + 256, g % 8), 2 * chunk), g / 8));
  }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return chunk_group(p, j / 16, j % 16); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    std::uint32_t value;
    __builtin_memcpy(&value, block + 4 + 4 * word, 4);
    return value;
  }
};

struct FormatQ6_K {
  static constexpr int block_k = 256, file_bytes = 210, panel_block_bytes = 3360, bits = 6, offset_shift = 5;
  static constexpr int sub_blocks = 16, chunk_subs = 8;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {208, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static i32x16 sub_scale(const std::byte* p, int j) noexcept {
    return multiplier(signed_byte(line(p + 32, j / 4), j % 4));
  }
  /// Scales as int16 pairs: (0, 2), (1, 3), (4, 6) and so on.
  SKALD_INLINE static i32x16 scale_pair(const std::byte* p, int i) noexcept {
    const i32x16 four = line(p + 32, i / 2);
    return sra8_16(i % 2 == 0 ? shl8_16(four) : four);
  }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return chunk_group(p, j / 32, j % 32); }
  SKALD_INLINE static u8x64 chunk_group(const std::byte* p, int chunk, int g) noexcept {
    const int quarter = g / 8;
    const i32x16 codes = line(p + 800, chunk * 24 + g % 16);
    const u8x64 low = quarter < 2 ? low_nibbles(codes) : high_nibbles(codes);
    i32x16 upper = line(p + 288, chunk * 24 + g % 8);
    if (quarter == 0) upper = shl<4>(upper);
    if (quarter == 1) upper = shl<2>(upper);
    if (quarter == 3) upper = shr<2>(upper);
    return low | bytes(upper & set1(0x30303030));
  }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    // Scales, then for each half its high and its low bits: the order in which they are read.
    const int half = (word - 4) / 24, in_half = (word - 4) % 24;
    const int at = word < 4 ? 192 + 4 * word : in_half < 8 ? 128 + 4 * (8 * half + in_half) : 4 * (16 * half + in_half - 8);
    std::uint32_t value;
    __builtin_memcpy(&value, block + at, 4);
    return value;
  }
};

template <class F>
std::size_t panel_bytes(std::int64_t cols) noexcept {
  return static_cast<std::size_t>(cols / F::block_k) * F::panel_block_bytes;
}

template <class F>
void pack(const std::byte* const* rows, std::int64_t cols, std::byte* panel) noexcept {
  constexpr int word_count = F::panel_block_bytes / 64 - (F::half_fields == 2 ? 1 : 0);
  static_assert(32 * F::half_fields + 64 * word_count == F::panel_block_bytes);
  for (std::int64_t b = 0; b < cols / F::block_k; ++b, panel += F::panel_block_bytes) {
    for (int r = 0; r < 16; ++r) {
      std::byte zero[F::file_bytes];
      const std::byte* block = zero;
      if (rows[r])
        block = rows[r] + b * F::file_bytes;
      else
        __builtin_memset(zero, 0, sizeof(zero));
      for (int h = 0; h < F::half_fields; ++h)
        __builtin_memcpy(panel + 32 * h + 2 * r, block + F::half_offsets[h], 2);
      for (int w = 0; w < word_count; ++w) {
        const std::uint32_t value = F::file_word(block, w);
        __builtin_memcpy(panel + 32 * F::half_fields + 64 * w + 4 * r, &value, 4);
      }
    }
  }
}

SKALD_INLINE float lane_of(f32x16 a, int r) noexcept {
  float values[16];
  store(values, a);
  return values[r];
}
SKALD_INLINE std::int32_t lane_of(i32x16 a, int r) noexcept {
  std::int32_t values[16];
  store(values, a);
  return values[r];
}

/// Decodes with the operations of block_layout.hpp, in their order.
template <class F>
void unpack_row(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept {
  for (std::int64_t b = 0; b < cols / F::block_k; ++b, panel += F::panel_block_bytes, out += F::block_k) {
    const float scale = lane_of(F::scale(panel), row);
    float minimum = 0;
    if constexpr (F::has_minimum) minimum = lane_of(F::minimum(panel), row);
    for (int j = 0; j < F::block_k / 4; ++j) {
      std::uint8_t codes[64];
      store_bytes(codes, F::group(panel, j));
      float step = scale, low = minimum;
      if constexpr (F::block_k == 256) {
        const int sub = j * F::sub_blocks / 64;
        const std::int32_t factor = lane_of(F::sub_scale(panel, sub), row);
        step = scale * static_cast<float>(static_cast<std::int16_t>(factor));
        if constexpr (F::has_minimum) {
          const std::int32_t pair = lane_of(F::minimum_pair(panel, sub / 4 * 2 + sub % 2), row);
          low = minimum * static_cast<float>((sub % 4 < 2 ? pair : pair >> 16) & 0xFFFF);
        }
      }
      for (int i = 0; i < 4; ++i) {
        const int code = codes[4 * row + i];
        if constexpr (F::block_k == 256 && F::has_minimum) out[4 * j + i] = step * static_cast<float>(code) - low;
        else if constexpr (F::has_minimum) out[4 * j + i] = static_cast<float>(code) * step + low;
        else out[4 * j + i] = step * static_cast<float>(code - (1 << F::offset_shift));
      }
    }
  }
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
