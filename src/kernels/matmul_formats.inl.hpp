#pragma once

// Weight formats in panels of sixteen rows. A panel block holds one file block of each of the sixteen rows, with as many
// bytes: the binary16 fields as [field][16], byte fields as [field][16], then 32-bit words of each row as [word][16]. Lane r
// of a 64-byte line is row r, and its four bytes are four consecutive k ("group"); the codes of several groups share a few
// lines (a "run") and come apart with shifts and masks on whole lines. Words of codes lie in the order in which they are
// read. File layouts: skald/quant/block_layout.hpp; q8_0 codes are stored plus 128.
//
// Each format gives
//   block_k, file_bytes, panel_block_bytes
//   half_fields, half_offsets, file_word      where the parts of a panel block come from in the file's block
//   byte_fields, byte_offset                  (optional)
//   bits               the unsigned codes are below 2^bits (8: code - 128 is the weight)
//   offset_shift       the weight is code - 2^offset_shift; -1: no offset
//   scale, minimum     as floats
//   group(block, j)    codes of elements 4 j .. 4 j + 3 of the block
// the K formats
//   sub_scale(block, j)                 the multiplier of sub-block j (see multiplier())
//   minimum_pair, scale_pair            int16 pairs in the order of the activations' pairs of sums
//   chunk_group(block, chunk, g)        group g of chunk_subs sub-blocks; with a constant g only addresses and one shift
//                                       depend on the chunk. Only needed without runs
// and for speed, if several groups are cheaper to take apart together,
//   run_groups                          groups of a run; divides the groups of a block or sub-block
//   run_group(r, i)                     which group the run's i-th is; in a K format runs follow each other
//   run(block, r, codes)                takes the groups of run r apart

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

inline std::uint32_t word_at(const std::byte* p) noexcept {
  std::uint32_t value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

/// Four-bit codes: the low and the high nibbles of a line are two groups.
SKALD_INLINE void run_of_4(const std::byte* lines, u8x64* codes) noexcept {
  const i32x16 a = line(lines, 0);
  codes[0] = low_nibbles(a);
  codes[1] = high_nibbles(a);
}

/// Five-bit codes: the low bits of five lines are five groups, their high bits three more.
SKALD_INLINE void run_of_5(const std::byte* lines, u8x64* codes) noexcept {
  const i32x16 a = line(lines, 0), b = line(lines, 1), c = line(lines, 2), d = line(lines, 3), e = line(lines, 4);
  const i32x16 low = set1(0x1F1F1F1F), three = set1(0x07070707), two = set1(0x18181818);
  codes[0] = bytes(a & low);
  codes[1] = bytes(b & low);
  codes[2] = bytes(c & low);
  codes[3] = bytes(d & low);
  codes[4] = bytes(e & low);
  codes[5] = bytes((shr<5>(a) & three) | (shr<2>(b) & two));
  codes[6] = bytes((shr<5>(c) & three) | (shr<2>(d) & two));
  codes[7] = bytes((shr<5>(e) & three) | (shr<4>(b) & set1(0x08080808)) | (shr<3>(d) & set1(0x10101010)));
}
inline constexpr std::uint32_t every_byte = 0x01010101u;
/// Word `l` (0..4) of the lines that run_of_5 takes apart into v.
inline std::uint32_t word_of_5(const std::uint32_t* v, int l) noexcept {
  switch (l) {
    case 0: return v[0] | (v[5] & 7 * every_byte) << 5;
    case 1: return v[1] | (v[5] & 24 * every_byte) << 2 | (v[7] & 8 * every_byte) << 4;
    case 2: return v[2] | (v[6] & 7 * every_byte) << 5;
    case 3: return v[3] | (v[6] & 24 * every_byte) << 2 | (v[7] & 16 * every_byte) << 3;
    default: return v[4] | (v[7] & 7 * every_byte) << 5;
  }
}

/// Six-bit codes: the low bits of three lines are three groups, their high bits the fourth.
SKALD_INLINE void run_of_6(const std::byte* lines, u8x64* codes) noexcept {
  const i32x16 a = line(lines, 0), b = line(lines, 1), c = line(lines, 2);
  const i32x16 low = set1(0x3F3F3F3F);
  codes[0] = bytes(a & low);
  codes[1] = bytes(b & low);
  codes[2] = bytes(c & low);
  codes[3] = bytes((shr<2>(a) & set1(0x30303030)) | (shr<4>(b) & set1(0x0C0C0C0C)) | (shr<6>(c) & set1(0x03030303)));
}
inline std::uint32_t word_of_6(const std::uint32_t* v, int l) noexcept {
  switch (l) {
    case 0: return v[0] | (v[3] & 48 * every_byte) << 2;
    case 1: return v[1] | (v[3] & 12 * every_byte) << 4;
    default: return v[2] | (v[3] & 3 * every_byte) << 6;
  }
}

template <class F>
concept HasRuns = requires { F::run_groups; };
template <class F>
concept HasByteFields = requires { F::byte_fields; };

template <class F>
constexpr int groups_of_run() noexcept {
  if constexpr (HasRuns<F>) return F::run_groups;
  else return 1;
}

/// The only group of a run that is wanted: what a compiler leaves out costs nothing.
template <class F>
SKALD_INLINE u8x64 group_of_run(const std::byte* p, int r, int i) noexcept {
  u8x64 codes[F::run_groups];
  F::run(p, r, codes);
  return codes[i];
}

struct FormatQ8_0 {
  static constexpr int block_k = 32, file_bytes = 34, panel_block_bytes = 544, bits = 8, offset_shift = 7, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  static constexpr int run_groups = 1;
  SKALD_INLINE static constexpr int run_group(int r, int) noexcept { return r; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept { codes[0] = group(p, r); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return load_bytes(p + 32 + 64 * j); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    return word_at(block + 2 + 4 * word) ^ 0x80808080u;
  }
};

struct FormatQ4_0 {
  static constexpr int block_k = 32, file_bytes = 18, panel_block_bytes = 288, bits = 4, offset_shift = 3, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  static constexpr int run_groups = 2;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return r + 4 * i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept { run_of_4(p + 32 + 64 * r, codes); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept {
    return j < 4 ? low_nibbles(line(p + 32, j)) : high_nibbles(line(p + 32, j - 4));
  }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept { return word_at(block + 2 + 4 * word); }
};

struct FormatQ4_1 {
  static constexpr int block_k = 32, file_bytes = 20, panel_block_bytes = 320, bits = 4, offset_shift = -1, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = true;
  static constexpr int half_fields = 2, half_offsets[2] = {0, 2};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static f32x16 minimum(const std::byte* p) noexcept { return load_f16(halves(p + 32)); }
  static constexpr int run_groups = 2;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return r + 4 * i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept { run_of_4(p + 64 + 64 * r, codes); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept {
    return j < 4 ? low_nibbles(line(p + 64, j)) : high_nibbles(line(p + 64, j - 4));
  }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept { return word_at(block + 4 + 4 * word); }
};

/// The fifth bits of elements 4 j .. 4 j + 3 of 32, each in bit 4 of its byte.
inline std::uint32_t fifth_bits(std::uint32_t file, int j) noexcept {
  const std::uint32_t four = file >> (4 * j) & 15;
  return ((four & 1) | (four & 2) << 7 | (four & 4) << 14 | (four & 8) << 21) << 4;
}
/// Word `word` of a block of 32 with fifth bits at `block` and nibbles behind them.
inline std::uint32_t file_word_of_5(const std::byte* block, int word) noexcept {
  const std::uint32_t fifth = word_at(block);
  std::uint32_t v[8];
  for (int j = 0; j < 8; ++j)
    v[j] = (word_at(block + 4 + 4 * (j % 4)) >> (j < 4 ? 0 : 4) & 15 * every_byte) | fifth_bits(fifth, j);
  return word_of_5(v, word);
}

struct FormatQ5_0 {
  static constexpr int block_k = 32, file_bytes = 22, panel_block_bytes = 352, bits = 5, offset_shift = 4, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  static constexpr int run_groups = 8;
  SKALD_INLINE static constexpr int run_group(int, int i) noexcept { return i; }
  SKALD_INLINE static void run(const std::byte* p, int, u8x64* codes) noexcept { run_of_5(p + 32, codes); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatQ5_0>(p, 0, j); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept { return file_word_of_5(block + 2, word); }
};

struct FormatQ5_1 {
  static constexpr int block_k = 32, file_bytes = 24, panel_block_bytes = 384, bits = 5, offset_shift = -1, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = true;
  static constexpr int half_fields = 2, half_offsets[2] = {0, 2};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static f32x16 minimum(const std::byte* p) noexcept { return load_f16(halves(p + 32)); }
  static constexpr int run_groups = 8;
  SKALD_INLINE static constexpr int run_group(int, int i) noexcept { return i; }
  SKALD_INLINE static void run(const std::byte* p, int, u8x64* codes) noexcept { run_of_5(p + 64, codes); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatQ5_1>(p, 0, j); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept { return file_word_of_5(block + 4, word); }
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
  static constexpr int run_groups = 2;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return 2 * r + i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept { run_of_4(p + 256 + 64 * r, codes); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept {
    return j % 2 == 0 ? low_nibbles(line(p + 256, j / 2)) : high_nibbles(line(p + 256, j / 2));
  }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    if (word < 3) return word_at(block + 4 + 4 * word);
    const int sub = (word - 3) / 4;
    const std::byte* at = block + 16 + 32 * (sub / 2) + 8 * ((word - 3) % 4);
    const std::uint32_t first = word_at(at), second = word_at(at + 4);
    if (sub % 2 == 0) return (first & 15 * every_byte) | (second & 15 * every_byte) << 4;
    return (first >> 4 & 15 * every_byte) | (second & 0xF0F0F0F0u);
  }
};

struct FormatQ5_K : SubScales {
  static constexpr int block_k = 256, file_bytes = 176, panel_block_bytes = 2816, bits = 5, offset_shift = -1;
  static constexpr int sub_blocks = 8, chunk_subs = 2;
  static constexpr bool packed = true, has_minimum = true;
  static constexpr int half_fields = 2, half_offsets[2] = {0, 2};
  static constexpr int run_groups = 8;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return 8 * r + i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept { run_of_5(p + 256 + 320 * r, codes); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatQ5_K>(p, j / 8, j % 8); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    if (word < 3) return word_at(block + 4 + 4 * word);
    const int sub = (word - 3) / 5;
    std::uint32_t v[8];
    for (int j = 0; j < 8; ++j)
      v[j] = (word_at(block + 48 + 32 * (sub / 2) + 4 * j) >> 4 * (sub % 2) & 15 * every_byte) |
             (word_at(block + 16 + 4 * j) >> sub & every_byte) << 4;
    return word_of_5(v, (word - 3) % 5);
  }
};

struct FormatQ6_K {
  static constexpr int block_k = 256, file_bytes = 210, panel_block_bytes = 3360, bits = 6, offset_shift = 5;
  static constexpr int sub_blocks = 16, chunk_subs = 8;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {208, 0};
  static constexpr int byte_fields = 16, byte_offset = 192;
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  SKALD_INLINE static i32x16 signed_scale(const std::byte* p, int j) noexcept {
    return load_i8(reinterpret_cast<const std::int8_t*>(p + 32 + 16 * j));
  }
  SKALD_INLINE static i32x16 sub_scale(const std::byte* p, int j) noexcept { return multiplier(signed_scale(p, j)); }
  /// Scales as int16 pairs: (0, 2), (1, 3), (4, 6) and so on.
  SKALD_INLINE static i32x16 scale_pair(const std::byte* p, int i) noexcept {
    const int first = i / 2 * 4 + i % 2;
    return (signed_scale(p, first) & set1(0xFFFF)) | shl<16>(signed_scale(p, first + 2));
  }
  static constexpr int run_groups = 4;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return 4 * r + i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept { run_of_6(p + 288 + 192 * r, codes); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatQ6_K>(p, j / 4, j % 4); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept {
    const int sub = word / 3, half = sub / 8, quarter = sub % 8 / 2;
    const std::byte* low = block + 64 * half + 32 * (quarter % 2) + 16 * (sub % 2);
    const std::byte* high = block + 128 + 32 * half + 16 * (sub % 2);
    std::uint32_t v[4];
    for (int j = 0; j < 4; ++j)
      v[j] = (word_at(low + 4 * j) >> 4 * (quarter / 2) & 15 * every_byte) |
             (word_at(high + 4 * j) >> 2 * quarter & 3 * every_byte) << 4;
    return word_of_6(v, word % 3);
  }
};

template <class F>
std::size_t panel_bytes(std::int64_t cols) noexcept {
  return static_cast<std::size_t>(cols / F::block_k) * F::panel_block_bytes;
}

template <class F>
void pack(const std::byte* const* rows, std::int64_t cols, std::byte* panel) noexcept {
  constexpr int byte_fields = [] {
    if constexpr (HasByteFields<F>) return F::byte_fields;
    else return 0;
  }();
  constexpr int words_at = 32 * F::half_fields + 16 * byte_fields, word_count = (F::panel_block_bytes - words_at) / 64;
  static_assert(words_at + 64 * word_count == F::panel_block_bytes);
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
      if constexpr (byte_fields > 0)
        for (int f = 0; f < byte_fields; ++f) panel[32 * F::half_fields + 16 * f + r] = block[F::byte_offset + f];
      for (int w = 0; w < word_count; ++w) {
        const std::uint32_t value = F::file_word(block, w);
        __builtin_memcpy(panel + words_at + 64 * w + 4 * r, &value, 4);
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
