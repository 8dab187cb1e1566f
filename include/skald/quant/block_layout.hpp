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

static_assert(sizeof(BlockQ8_0) == 34 && std::is_trivially_copyable_v<BlockQ8_0>);
static_assert(sizeof(BlockQ4_0) == 18 && std::is_trivially_copyable_v<BlockQ4_0>);
static_assert(sizeof(BlockQ4_1) == 20 && std::is_trivially_copyable_v<BlockQ4_1>);
static_assert(sizeof(BlockQ5_0) == 22 && std::is_trivially_copyable_v<BlockQ5_0>);
static_assert(sizeof(BlockQ5_1) == 24 && std::is_trivially_copyable_v<BlockQ5_1>);
static_assert(sizeof(BlockQ4_K) == 144 && std::is_trivially_copyable_v<BlockQ4_K>);
static_assert(sizeof(BlockQ5_K) == 176 && std::is_trivially_copyable_v<BlockQ5_K>);
static_assert(sizeof(BlockQ6_K) == 210 && std::is_trivially_copyable_v<BlockQ6_K>);

}  // namespace skald::inline v0::quant
