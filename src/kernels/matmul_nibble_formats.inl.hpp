#pragma once

// iq4_nl and mxfp4 for the block kernels (matmul_formats.inl.hpp): q4_0 with a table of sixteen values.

#include "kernels/matmul_formats.inl.hpp"
#include "kernels/matmul_lookup.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

alignas(16) inline constexpr std::uint8_t iq4_nl_bytes[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                              129, 141, 153, 166, 181, 197, 217, 241};

/// Two groups of values of the nibbles of a line.
SKALD_INLINE void run_of_sixteen(const std::uint8_t* values, const std::byte* lines, u8x64* codes) noexcept {
  const ByteTable table(values);
  run_of_4(lines, codes);
  codes[0] = lookup16(table, codes[0]);
  codes[1] = lookup16(table, codes[1]);
}

struct FormatIQ4_NL {
  static constexpr int block_k = 32, file_bytes = 18, panel_block_bytes = 288, bits = 8, offset_shift = 7, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = false;
  static constexpr int half_fields = 1, half_offsets[2] = {0, 0};
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load_f16(halves(p)); }
  static constexpr int run_groups = 2;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return r + 4 * i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept {
    run_of_sixteen(iq4_nl_bytes, p + 32 + 64 * r, codes);
  }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatIQ4_NL>(p, j % 4, j / 4); }
  static std::uint32_t file_word(const std::byte* block, int word) noexcept { return word_at(block + 2 + 4 * word); }
};

/// Twice the 4-bit floats, plus 16.
alignas(16) inline constexpr std::uint8_t mxfp4_bytes[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

/// The sixteen rows' exponents, then four lines of nibbles.
struct FormatMXFP4 {
  static constexpr int block_k = 32, file_bytes = 17, panel_block_bytes = 272, bits = 5, offset_shift = 4, sub_blocks = 0;
  static constexpr bool packed = true, has_minimum = false;
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept {
#if SKALD_VEC_REGISTERS == 1
    const i32x16 exponent{_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#elif SKALD_VEC_REGISTERS == 2
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const i32x16 exponent{_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
#else
    std::int32_t values[16];
    for (int r = 0; r < 16; ++r) values[r] = static_cast<std::int32_t>(p[r]);
    const i32x16 exponent = load(values);
#endif
    // 2^(exponent - 128): subnormal for 0 and 1.
    const i32x16 subnormal = shl<21>(exponent + set1(1));
    return from_bits(select(greater(set1(2), exponent), subnormal, shl<23>(exponent - set1(1))));
  }
  static constexpr int run_groups = 2;
  SKALD_INLINE static constexpr int run_group(int r, int i) noexcept { return r + 4 * i; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept {
    run_of_sixteen(mxfp4_bytes, p + 16 + 64 * r, codes);
  }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return group_of_run<FormatMXFP4>(p, j % 4, j / 4); }
  static void pack(const std::byte* const* rows, std::int64_t cols, std::byte* panel) noexcept {
    for (std::int64_t b = 0; b < cols / block_k; ++b, panel += panel_block_bytes)
      for (int r = 0; r < 16; ++r) {
        std::byte zero[file_bytes];
        const std::byte* block = zero;
        if (rows[r]) block = rows[r] + b * file_bytes;
        else __builtin_memset(zero, 0, sizeof(zero));
        panel[r] = block[0];
        for (int w = 0; w < 4; ++w) __builtin_memcpy(panel + 16 + 64 * w + 4 * r, block + 1 + 4 * w, 4);
      }
  }
};

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
