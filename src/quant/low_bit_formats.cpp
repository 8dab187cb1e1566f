// Decoding and integer products of the codebook and ternary formats. Their encoders: low_bit_encode.cpp.
#include <skald/quant/low_bit_formats.hpp>

#include <bit>
#include <cmath>
#include <cstring>

#include <skald/core/half.hpp>

#include "quant/codebooks.hpp"
#include "quant/fit.hpp"
#include "quant/integer_block.hpp"

namespace skald::inline v0::quant {

namespace {

std::uint32_t word_at(const void* bytes, std::size_t index) noexcept {
  std::uint32_t word;
  std::memcpy(&word, static_cast<const std::uint8_t*>(bytes) + 4 * index, 4);
  return word;
}

/// Seven sign bits and an eighth that makes the number of set bits even.
std::uint32_t even_signs(std::uint32_t bits) noexcept {
  bits &= 127;
  return bits | (static_cast<std::uint32_t>(std::popcount(bits)) & 1) << 7;
}

/// Eight weights of an entry of two-bit codes.
void put_iq2(std::uint16_t entry, std::uint32_t signs, std::int8_t* weights) noexcept {
  for (int i = 0; i < 8; ++i) {
    const int value = codebooks::iq2_values[(entry >> (2 * i)) & 3];
    weights[i] = static_cast<std::int8_t>((signs >> i) & 1 ? -value : value);
  }
}

/// Four weights of an entry of three-bit codes.
void put_iq3_xxs(std::uint16_t entry, std::uint32_t signs, std::int8_t* weights) noexcept {
  for (int i = 0; i < 4; ++i) {
    const int value = codebooks::iq3_xxs_values[(entry >> (3 * i)) & 7];
    weights[i] = static_cast<std::int8_t>((signs >> i) & 1 ? -value : value);
  }
}
void put_iq3_s(std::uint16_t entry, std::uint32_t signs, std::int8_t* weights) noexcept {
  for (int i = 0; i < 4; ++i) {
    const int value = 2 * ((entry >> (3 * i)) & 7) + 1;
    weights[i] = static_cast<std::int8_t>((signs >> i) & 1 ? -value : value);
  }
}

/// Eight weights 8 (g + shift), shift 1/8 or -1/8.
void put_iq1(std::uint16_t entry, bool negative_shift, std::int8_t* weights) noexcept {
  for (int i = 0; i < 8; ++i) {
    const int value = static_cast<int>((entry >> (2 * i)) & 3) - 1;
    weights[i] = static_cast<std::int8_t>(8 * value + (negative_shift ? -1 : 1));
  }
}

std::int16_t odd(std::uint32_t scale) noexcept { return static_cast<std::int16_t>(2 * scale + 1); }
std::uint32_t nibble(const std::uint8_t* bytes, std::size_t index) noexcept {
  return (bytes[index / 2] >> (4 * (index % 2))) & 15U;
}

/// The ternary digit n of a byte, 0..2.
int ternary_digit(std::uint8_t byte, int n) noexcept {
  constexpr unsigned powers[] = {1, 3, 9, 27, 81};
  const auto shifted = static_cast<std::uint8_t>(byte * powers[n]);
  return static_cast<int>((shifted * 3U) >> 8);
}

template <class Block>
void decode_apart(const Block& block, float* out) noexcept {
  IntegerBlock apart;
  take_apart(block, apart);
  decode_block(apart, out);
}
template <class Block>
float fold_apart(const Block& block, const ActivationView& a, std::size_t index, float acc) noexcept {
  IntegerBlock apart;
  take_apart(block, apart);
  return fold_integer_block(apart, a, index, acc);
}

/// The power of two of an exponent byte e: 2^(e - 128), subnormal for 0 and 1.
float microscale(std::uint8_t exponent) noexcept {
  const std::uint32_t bits = exponent < 2 ? 0x00200000U << exponent : (exponent - 1U) << 23;
  return std::bit_cast<float>(bits);
}

void decode_nibbles(const std::uint8_t* codes, const std::int8_t* values, float scale, float* out) noexcept {
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>(values[codes[i] & 15]);
    out[i + 16] = scale * static_cast<float>(values[codes[i] >> 4]);
  }
}

float fold_nibbles(const std::uint8_t* codes, const std::int8_t* values, float scale, const ActivationView& a,
                   std::size_t index, float acc) noexcept {
  std::int32_t sum = 0;
  const std::int8_t* x = a.codes + simple_block_elements * index;
  for (std::size_t i = 0; i < 16; ++i) sum += values[codes[i] & 15] * x[i] + values[codes[i] >> 4] * x[i + 16];
  return std::fma(static_cast<float>(sum), scale * a.scales[index], acc);
}

}  // namespace

void take_apart(const BlockIQ4_XS& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale);
  to.sub_size = 32;
  for (std::size_t j = 0; j < 8; ++j) {
    const std::uint32_t high = (static_cast<std::uint32_t>(from.scales_high) >> (2 * j)) & 3;
    to.sub_scales[j] = static_cast<std::int16_t>(static_cast<int>(nibble(from.scales_low, j) | high << 4) - 32);
    for (std::size_t i = 0; i < 16; ++i) {
      to.weights[32 * j + i] = codebooks::iq4_values[from.codes[16 * j + i] & 15];
      to.weights[32 * j + 16 + i] = codebooks::iq4_values[from.codes[16 * j + i] >> 4];
    }
  }
}

void take_apart(const BlockTQ1_0& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale);
  to.sub_size = 32;
  for (auto& sub : to.sub_scales) sub = 1;
  const auto put = [&](std::size_t at, std::uint8_t byte, int n) {
    to.weights[at] = static_cast<std::int8_t>(ternary_digit(byte, n) - 1);
  };
  for (int n = 0; n < 5; ++n) {
    for (std::size_t i = 0; i < 32; ++i) put(32 * static_cast<std::size_t>(n) + i, from.digits[i], n);
    for (std::size_t i = 0; i < 16; ++i) put(160 + 16 * static_cast<std::size_t>(n) + i, from.digits[32 + i], n);
  }
  for (int n = 0; n < 4; ++n)
    for (std::size_t i = 0; i < 4; ++i) put(240 + 4 * static_cast<std::size_t>(n) + i, from.last_digits[i], n);
}

void take_apart(const BlockTQ2_0& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale);
  to.sub_size = 32;
  for (auto& sub : to.sub_scales) sub = 1;
  for (std::size_t i = 0; i < super_block_elements; ++i) {
    const int code = (from.codes[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3;
    to.weights[i] = static_cast<std::int8_t>(code - 1);
  }
}

void take_apart(const BlockIQ2_XXS& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale) * 0.125F;
  to.sub_size = 32;
  for (std::size_t j = 0; j < 8; ++j) {
    const std::uint32_t indices = word_at(from.codes, 2 * j);
    const std::uint32_t rest = word_at(from.codes, 2 * j + 1);
    to.sub_scales[j] = odd(rest >> 28);
    for (std::size_t k = 0; k < 4; ++k)
      put_iq2(codebooks::iq2_xxs_grid[(indices >> (8 * k)) & 255], even_signs(rest >> (7 * k)),
              to.weights + 32 * j + 8 * k);
  }
}

void take_apart(const BlockIQ2_XS& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale) * 0.125F;
  to.sub_size = 16;
  for (std::size_t j = 0; j < 16; ++j) to.sub_scales[j] = odd(nibble(from.scales, j));
  for (std::size_t k = 0; k < 32; ++k)
    put_iq2(codebooks::iq2_xs_grid[from.codes[k] & 511], even_signs(from.codes[k] >> 9), to.weights + 8 * k);
}

void take_apart(const BlockIQ2_S& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale) * 0.125F;
  to.sub_size = 16;
  for (std::size_t j = 0; j < 16; ++j) to.sub_scales[j] = odd(nibble(from.scales, j));
  for (std::size_t k = 0; k < 32; ++k) {
    const unsigned high = (from.high_bits[k / 4] >> (2 * (k % 4))) & 3U;
    put_iq2(codebooks::iq2_s_grid[from.codes[k] | high << 8], from.signs[k], to.weights + 8 * k);
  }
}

void take_apart(const BlockIQ3_XXS& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale) * 0.25F;
  to.sub_size = 32;
  for (std::size_t j = 0; j < 8; ++j) {
    const std::uint32_t rest = word_at(from.signs_and_scales, j);
    to.sub_scales[j] = odd(rest >> 28);
    for (std::size_t k = 0; k < 4; ++k) {
      const std::uint32_t signs = even_signs(rest >> (7 * k));
      std::int8_t* weights = to.weights + 32 * j + 8 * k;
      put_iq3_xxs(codebooks::iq3_xxs_grid[from.codes[8 * j + 2 * k]], signs, weights);
      put_iq3_xxs(codebooks::iq3_xxs_grid[from.codes[8 * j + 2 * k + 1]], signs >> 4, weights + 4);
    }
  }
}

void take_apart(const BlockIQ3_S& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale);
  to.sub_size = 32;
  for (std::size_t j = 0; j < 8; ++j) to.sub_scales[j] = odd(nibble(from.scales, j));
  for (std::size_t k = 0; k < 64; ++k) {
    const unsigned high = (from.high_bits[k / 8] >> (k % 8)) & 1U;
    put_iq3_s(codebooks::iq3_s_grid[from.codes[k] | high << 8], nibble(from.signs, k), to.weights + 4 * k);
  }
}

void take_apart(const BlockIQ1_S& from, IntegerBlock& to) noexcept {
  to.scale = f16_to_f32(from.scale) * 0.125F;
  to.sub_size = 32;
  for (std::size_t j = 0; j < 8; ++j) {
    const unsigned field = from.fields[j];
    to.sub_scales[j] = odd((field >> 12) & 7);
    for (std::size_t k = 0; k < 4; ++k)
      put_iq1(codebooks::iq1_grid[from.codes[4 * j + k] | ((field >> (3 * k)) & 7) << 8], (field & 0x8000) != 0,
              to.weights + 32 * j + 8 * k);
  }
}

void take_apart(const BlockIQ1_M& from, IntegerBlock& to) noexcept {
  std::uint16_t numbers[4];
  std::memcpy(numbers, from.scales, sizeof numbers);
  unsigned scale = 0;
  for (unsigned n = 0; n < 4; ++n) scale |= (numbers[n] >> 12U) << (4 * n);
  to.scale = f16_to_f32(static_cast<std::uint16_t>(scale)) * 0.125F;
  to.sub_size = 16;
  for (std::size_t j = 0; j < 16; ++j)
    to.sub_scales[j] = odd((static_cast<std::uint32_t>(numbers[j / 4]) >> (3 * (j % 4))) & 7);
  for (std::size_t k = 0; k < 32; ++k) {
    const std::uint32_t high = nibble(from.high_bits, k);
    put_iq1(codebooks::iq1_grid[from.codes[k] | (high & 7) << 8], (high & 8) != 0, to.weights + 8 * k);
  }
}

void IQ4_NL::decode(const Block* block, float* out) noexcept {
  decode_nibbles(block->codes, codebooks::iq4_values, f16_to_f32(block->scale), out);
}
float IQ4_NL::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  return fold_nibbles(block->codes, codebooks::iq4_values, f16_to_f32(block->scale), a, index, acc);
}
void MXFP4::decode(const Block* block, float* out) noexcept {
  decode_nibbles(block->codes, codebooks::mxfp4_values, microscale(block->exponent), out);
}
float MXFP4::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  return fold_nibbles(block->codes, codebooks::mxfp4_values, microscale(block->exponent), a, index, acc);
}

#define SKALD_DEFINE_APART(format)                                                                              \
  void format::decode(const Block* block, float* out) noexcept { decode_apart(*block, out); }                  \
  float format::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {  \
    return fold_apart(*block, a, index, acc);                                                                  \
  }
SKALD_DEFINE_APART(IQ4_XS)
SKALD_DEFINE_APART(TQ1_0)
SKALD_DEFINE_APART(TQ2_0)
SKALD_DEFINE_APART(IQ2_XXS)
SKALD_DEFINE_APART(IQ2_XS)
SKALD_DEFINE_APART(IQ2_S)
SKALD_DEFINE_APART(IQ3_XXS)
SKALD_DEFINE_APART(IQ3_S)
SKALD_DEFINE_APART(IQ1_S)
SKALD_DEFINE_APART(IQ1_M)
#undef SKALD_DEFINE_APART

void F64::encode(const float* x, Block* out, const float* /*importance*/) noexcept {
  out->value = static_cast<double>(*x);
}
void I8::encode(const float* x, Block* out, const float* /*importance*/) noexcept {
  out->value = static_cast<std::int8_t>(std::nearbyintf(*x));
}
void I16::encode(const float* x, Block* out, const float* /*importance*/) noexcept {
  out->value = static_cast<std::int16_t>(std::nearbyintf(*x));
}
void I32::encode(const float* x, Block* out, const float* /*importance*/) noexcept {
  out->value = static_cast<std::int32_t>(std::nearbyintf(*x));
}

}  // namespace skald::inline v0::quant
