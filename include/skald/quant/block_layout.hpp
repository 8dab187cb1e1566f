#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <skald/config.hpp>

/// Memory layout of the block formats as GGUF files store them (github.com/ggml-org/ggml, docs/gguf.md and
/// ggml-common.h). Little-endian, without padding. Scales are binary16 bits. Types and constants only, no functions,
/// so that kernel sources may include it.
///
/// In the formulas x[i] is the i-th decoded value of a block; f(s) is the float value of the binary16 bits s; every
/// product and every sum is one rounded float operation in the order written.
namespace skald::inline v0::quant {

/// Elements of a block of the simple formats.
inline constexpr std::size_t simple_block_elements = 32;
/// Elements of a super-block of the K formats.
inline constexpr std::size_t super_block_elements = 256;

/// x[i] = codes[i] * f(scale).
struct BlockQ8_0 {
  std::uint16_t scale;
  std::int8_t codes[32];
};

/// x[i] = (c - 8) * f(scale); c is the low nibble of codes[i] for i < 16, the high nibble of codes[i - 16] after that.
struct BlockQ4_0 {
  std::uint16_t scale;
  std::uint8_t codes[16];
};

/// x[i] = c * f(scale) + f(minimum); nibbles as in BlockQ4_0.
struct BlockQ4_1 {
  std::uint16_t scale;
  std::uint16_t minimum;
  std::uint8_t codes[16];
};

/// x[i] = (c - 16) * f(scale); c is the nibble as in BlockQ4_0 plus 16 times bit i of the little-endian number in
/// fifth_bits.
struct BlockQ5_0 {
  std::uint16_t scale;
  std::uint8_t fifth_bits[4];
  std::uint8_t codes[16];
};

/// x[i] = c * f(scale) + f(minimum); codes as in BlockQ5_0.
struct BlockQ5_1 {
  std::uint16_t scale;
  std::uint16_t minimum;
  std::uint8_t fifth_bits[4];
  std::uint8_t codes[16];
};

/// Eight sub-blocks of 32, each with a 6-bit scale s and a 6-bit minimum m, packed into 12 bytes:
///   sub-block j < 4:  s = scales[j] & 63,                                     m = scales[j + 4] & 63
///   sub-block j >= 4: s = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4,   m = scales[j + 4] >> 4 | (scales[j] >>
///   6) << 4
/// x[i] = (f(scale) * s) * c - (f(minimum) * m), with c the nibble of element i: of each 64 elements the first 32 are
/// the low nibbles of 32 bytes, the other 32 their high nibbles.
struct BlockQ4_K {
  std::uint16_t scale;
  std::uint16_t minimum;
  std::uint8_t scales[12];
  std::uint8_t codes[128];
};

/// As BlockQ4_K; c has 16 times bit (i / 32) of fifth_bits[i % 32] added.
struct BlockQ5_K {
  std::uint16_t scale;
  std::uint16_t minimum;
  std::uint8_t scales[12];
  std::uint8_t fifth_bits[32];
  std::uint8_t codes[128];
};

/// Sixteen sub-blocks of 16, each with a signed 8-bit scale. x[i] = (f(scale) * scales[i / 16]) * (c - 32).
/// With h = i / 128, r = i % 128, l = r % 32: the low four bits of c are a nibble of low_bits[64 h + r % 64] (the low
/// one for r < 64), the high two are bits 2 (r / 32) and up of high_bits[32 h + l].
struct BlockQ6_K {
  std::uint8_t low_bits[128];
  std::uint8_t high_bits[64];
  std::int8_t scales[16];
  std::uint16_t scale;
};

/// Sixteen sub-blocks of 16 with a 4-bit scale s = scales[j] & 15 and a 4-bit minimum m = scales[j] >> 4.
/// x[i] = (f(scale) * s) * c - (f(minimum) * m), j = i / 16; c is bits 2 (i % 128 / 32) and up of
/// codes[32 (i / 128) + i % 32].
struct BlockQ2_K {
  std::uint8_t scales[16];
  std::uint8_t codes[64];
  std::uint16_t scale;
  std::uint16_t minimum;
};

/// Sixteen sub-blocks of 16 with a 6-bit scale: the low four bits of sub-block j are a nibble of scales[j % 8] (the low
/// one for j < 8), the high two are bits 2 (j / 4) and up of scales[8 + j % 4]; s is that minus 32.
/// x[i] = (f(scale) * s) * (c - 4), j = i / 16; the low two bits of c as in BlockQ2_K, the third is bit (i / 32) of
/// high_bits[i % 32].
struct BlockQ3_K {
  std::uint8_t high_bits[32];
  std::uint8_t codes[64];
  std::uint8_t scales[12];
  std::uint16_t scale;
};

/// x[i] = f(scale) * v[c]; nibbles as in BlockQ4_0, v the sixteen values -127, -104, -83, -65, -49, -35, -22, -10, 1, 13,
/// 25, 38, 53, 69, 89, 113.
struct BlockIQ4_NL {
  std::uint16_t scale;
  std::uint8_t codes[16];
};

/// Eight sub-blocks of 32; s is the nibble j of scales_low (low nibble first) plus 16 times bits 2 j and up of
/// scales_high, minus 32. x[i] = (f(scale) * s) * v[c] with j = i / 32; nibbles and values of sub-block j as those of
/// BlockIQ4_NL, from codes[16 j] on.
struct BlockIQ4_XS {
  std::uint16_t scale;
  std::uint16_t scales_high;
  std::uint8_t scales_low[4];
  std::uint8_t codes[128];
};

/// x[i] = v[c] * 2^(exponent - 128); nibbles as in BlockQ4_0, v the sixteen values 0, 1, 2, 3, 4, 6, 8, 12 and their
/// negatives. (OCP Microscaling Formats 1.0: E2M1 elements, an E8M0 scale.)
struct BlockMXFP4 {
  std::uint8_t exponent;
  std::uint8_t codes[16];
};

/// Ternary. x[i] = (t - 1) * f(scale). Bytes hold up to five digits t, the first in the most significant place: digit n
/// of byte b is 3 * (b * 3^n mod 256) / 256. Elements 0..159: digit i / 32 of digits[i % 32]; 160..239: with r = i - 160,
/// digit r / 16 of digits[32 + r % 16]; 240..255: with r = i - 240, digit r / 4 of last_digits[r % 4].
struct BlockTQ1_0 {
  std::uint8_t digits[48];
  std::uint8_t last_digits[4];
  std::uint16_t scale;
};

/// Ternary with two bits each. x[i] = (c - 1) * f(scale), c as in BlockQ2_K.
struct BlockTQ2_0 {
  std::uint8_t codes[64];
  std::uint16_t scale;
};

// The iq formats code groups of eight (iq3: four) elements as an entry of a codebook (src/quant/codebooks.hpp) of
// magnitudes g. A sign byte of eight elements has bit i set for a negative element i; where only seven bits are stored,
// the eighth makes the number of set bits even.

/// Two words per 32 elements: four entry indices of eight bits; four sign groups of seven bits, then a 4-bit scale s.
/// x[i] = (f(scale) * (0.5 + s) * 0.25) * +-g.
struct BlockIQ2_XXS {
  std::uint16_t scale;
  std::uint16_t codes[32];
};

/// Per eight elements nine bits of index and seven of signs; a 4-bit scale s per 16, low nibble first.
/// x[i] = (f(scale) * (0.5 + s) * 0.25) * +-g.
struct BlockIQ2_XS {
  std::uint16_t scale;
  std::uint16_t codes[32];
  std::uint8_t scales[8];
};

/// Per eight elements ten bits of index: codes, and bits 2 (k % 4) and up of high_bits[k / 4] for entry k; signs; scales
/// as in BlockIQ2_XS. x[i] = (f(scale) * (0.5 + s) * 0.25) * +-g.
struct BlockIQ2_S {
  std::uint16_t scale;
  std::uint8_t codes[32];
  std::uint8_t signs[32];
  std::uint8_t high_bits[8];
  std::uint8_t scales[8];
};

/// Per four elements eight bits of index; then a word per 32: four sign groups of seven bits and a 4-bit scale s.
/// x[i] = (f(scale) * (0.5 + s) * 0.5) * +-g.
struct BlockIQ3_XXS {
  std::uint16_t scale;
  std::uint8_t codes[64];
  std::uint8_t signs_and_scales[32];
};

/// Per four elements nine bits of index: codes, and bit k % 8 of high_bits[k / 8] for entry k; signs; a 4-bit scale s per
/// 32, low nibble first. x[i] = (f(scale) * (1 + 2 s)) * +-g.
struct BlockIQ3_S {
  std::uint16_t scale;
  std::uint8_t codes[64];
  std::uint8_t high_bits[8];
  std::uint8_t signs[32];
  std::uint8_t scales[4];
};

/// Per eight elements eleven bits of index: codes, and bits 3 (k % 4) and up of fields[k / 4] for entry k; bits 12..14 of
/// a field are the scale s of 32 elements and bit 15 says that the shift is -1/8 instead of 1/8.
/// x[i] = (f(scale) * (2 s + 1)) * (g + shift), g in -1, 0, 1.
struct BlockIQ1_S {
  std::uint16_t scale;
  std::uint8_t codes[32];
  std::uint16_t fields[8];
};

/// Per eight elements eleven bits of index and a sign of the shift: codes, and a nibble of high_bits[k / 2] (low first):
/// three bits of index, then the sign. scales are four 16-bit numbers; the scale of 16 elements j is bits 3 (j % 4) and up
/// of number j / 4, and the top four bits of the numbers are the nibbles of the binary16 scale, lowest first.
/// x[i] as in BlockIQ1_S.
struct BlockIQ1_M {
  std::uint8_t codes[32];
  std::uint8_t high_bits[16];
  std::uint8_t scales[8];
};

static_assert(sizeof(BlockQ8_0) == 34 && std::is_trivially_copyable_v<BlockQ8_0>);
static_assert(sizeof(BlockQ4_0) == 18 && std::is_trivially_copyable_v<BlockQ4_0>);
static_assert(sizeof(BlockQ4_1) == 20 && std::is_trivially_copyable_v<BlockQ4_1>);
static_assert(sizeof(BlockQ5_0) == 22 && std::is_trivially_copyable_v<BlockQ5_0>);
static_assert(sizeof(BlockQ5_1) == 24 && std::is_trivially_copyable_v<BlockQ5_1>);
static_assert(sizeof(BlockQ4_K) == 144 && std::is_trivially_copyable_v<BlockQ4_K>);
static_assert(sizeof(BlockQ5_K) == 176 && std::is_trivially_copyable_v<BlockQ5_K>);
static_assert(sizeof(BlockQ6_K) == 210 && std::is_trivially_copyable_v<BlockQ6_K>);
static_assert(sizeof(BlockQ2_K) == 84 && std::is_trivially_copyable_v<BlockQ2_K>);
static_assert(sizeof(BlockQ3_K) == 110 && std::is_trivially_copyable_v<BlockQ3_K>);
static_assert(sizeof(BlockIQ4_NL) == 18 && std::is_trivially_copyable_v<BlockIQ4_NL>);
static_assert(sizeof(BlockIQ4_XS) == 136 && std::is_trivially_copyable_v<BlockIQ4_XS>);
static_assert(sizeof(BlockMXFP4) == 17 && std::is_trivially_copyable_v<BlockMXFP4>);
static_assert(sizeof(BlockTQ1_0) == 54 && std::is_trivially_copyable_v<BlockTQ1_0>);
static_assert(sizeof(BlockTQ2_0) == 66 && std::is_trivially_copyable_v<BlockTQ2_0>);
static_assert(sizeof(BlockIQ2_XXS) == 66 && std::is_trivially_copyable_v<BlockIQ2_XXS>);
static_assert(sizeof(BlockIQ2_XS) == 74 && std::is_trivially_copyable_v<BlockIQ2_XS>);
static_assert(sizeof(BlockIQ2_S) == 82 && std::is_trivially_copyable_v<BlockIQ2_S>);
static_assert(sizeof(BlockIQ3_XXS) == 98 && std::is_trivially_copyable_v<BlockIQ3_XXS>);
static_assert(sizeof(BlockIQ3_S) == 110 && std::is_trivially_copyable_v<BlockIQ3_S>);
static_assert(sizeof(BlockIQ1_S) == 50 && std::is_trivially_copyable_v<BlockIQ1_S>);
static_assert(sizeof(BlockIQ1_M) == 56 && std::is_trivially_copyable_v<BlockIQ1_M>);

}  // namespace skald::inline v0::quant
