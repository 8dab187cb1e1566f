// q8_0, q4_0, q4_1, q5_0, q5_1: 32 elements, one scale, perhaps a minimum.
#include <cmath>
#include <cstdint>

#include <skald/quant/block_format.hpp>

#include "quant/fit.hpp"

namespace skald::inline v0::quant {

namespace {

constexpr std::size_t elements = simple_block_elements;

// Without fifth bits: the codes of q4_0 and q4_1.
void unpack_nibbles(const std::uint8_t* packed, std::uint8_t* codes) noexcept {
  for (std::size_t i = 0; i < 16; ++i) {
    codes[i] = static_cast<std::uint8_t>(packed[i] & 15);
    codes[i + 16] = static_cast<std::uint8_t>(packed[i] >> 4);
  }
}

void pack_nibbles(const std::uint8_t* codes, std::uint8_t* packed) noexcept {
  for (std::size_t i = 0; i < 16; ++i)
    packed[i] = static_cast<std::uint8_t>((codes[i] & 15) | ((codes[i + 16] & 15) << 4));
}

void add_fifth_bits(const std::uint8_t* bits, std::uint8_t* codes) noexcept {
  for (std::size_t i = 0; i < elements; ++i)
    codes[i] = static_cast<std::uint8_t>(codes[i] | (((bits[i / 8] >> (i % 8)) & 1) << 4));
}

void pack_fifth_bits(const std::uint8_t* codes, std::uint8_t* bits) noexcept {
  for (std::size_t byte = 0; byte < 4; ++byte) {
    unsigned value = 0;
    for (unsigned bit = 0; bit < 8; ++bit) value |= static_cast<unsigned>((codes[8 * byte + bit] >> 4) & 1) << bit;
    bits[byte] = static_cast<std::uint8_t>(value);
  }
}

// Codes of a symmetric format with offset -low, and the bits of its scale.
std::uint16_t encode_symmetric(const float* x, const float* importance, int low, int high,
                               std::uint8_t* codes) noexcept {
  float extreme = 0;
  for (std::size_t i = 0; i < elements; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  const float top = std::fabs(extreme);
  float scale = extreme / static_cast<float>(low);
  if (importance) {
    float weights[elements];
    fit::load_weights(importance, elements, weights);
    const double fitted = fit::symmetric_scale(x, weights, elements, low, high);
    if (std::fabs(fitted) <= 65504) scale = static_cast<float>(fitted);
  }
  // With a searched scale clipping is deliberate: only a scale that vanishes is lifted.
  const std::uint16_t bits =
      fit::scale_bits(scale, importance ? std::fabs(scale) : top, importance ? 1.0F : static_cast<float>(-low));
  const float inverse = fit::inverse_of(f16_to_f32(bits));
  for (std::size_t i = 0; i < elements; ++i)
    codes[i] = static_cast<std::uint8_t>(fit::code_of(x[i], inverse, low, high) - low);
  return bits;
}

struct ScaleAndMinimum {
  std::uint16_t scale;
  std::uint16_t minimum;
};

ScaleAndMinimum encode_affine(const float* x, const float* importance, int high, std::uint8_t* codes) noexcept {
  float smallest = x[0];
  float largest = x[0];
  for (std::size_t i = 1; i < elements; ++i) {
    smallest = x[i] < smallest ? x[i] : smallest;
    largest = x[i] > largest ? x[i] : largest;
  }
  float scale = (largest - smallest) / static_cast<float>(high);
  float minimum = smallest;
  if (importance) {
    float weights[elements];
    fit::load_weights(importance, elements, weights);
    const auto fitted = fit::affine_fit(x, weights, elements, high, true);
    if (fitted.scale <= 65504 && std::fabs(fitted.minimum) <= 65504) {
      scale = static_cast<float>(fitted.scale);
      minimum = static_cast<float>(-fitted.minimum);
    }
  }
  ScaleAndMinimum result{};
  result.minimum = f32_to_f16(minimum);
  const float stored_minimum = f16_to_f32(result.minimum);
  result.scale = fit::scale_bits(scale, importance ? scale : largest - stored_minimum,
                                 importance ? 1.0F : static_cast<float>(high));
  const float inverse = fit::inverse_of(f16_to_f32(result.scale));
  for (std::size_t i = 0; i < elements; ++i)
    codes[i] = static_cast<std::uint8_t>(fit::code_of(x[i] - stored_minimum, inverse, 0, high));
  return result;
}

void decode_symmetric(std::uint16_t scale, const std::uint8_t* codes, int offset, float* out) noexcept {
  const float s = f16_to_f32(scale);
  for (std::size_t i = 0; i < elements; ++i) out[i] = static_cast<float>(codes[i] - offset) * s;
}

void decode_affine(std::uint16_t scale, std::uint16_t minimum, const std::uint8_t* codes, float* out) noexcept {
  const float s = f16_to_f32(scale);
  const float m = f16_to_f32(minimum);
  for (std::size_t i = 0; i < elements; ++i) out[i] = static_cast<float>(codes[i]) * s + m;
}

template <class Code>
std::int32_t integer_dot(const Code* codes, int offset, const std::int8_t* activations) noexcept {
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < elements; ++i) sum += (codes[i] - offset) * activations[i];
  return sum;
}

float fold_symmetric(std::uint16_t scale, const std::uint8_t* codes, int offset, const ActivationView& a,
                     std::size_t index, float acc) noexcept {
  const std::int32_t sum = integer_dot(codes, offset, a.codes + elements * index);
  return std::fma(static_cast<float>(sum), f16_to_f32(scale) * a.scales[index], acc);
}

float fold_affine(std::uint16_t scale, std::uint16_t minimum, const std::uint8_t* codes, const ActivationView& a,
                  std::size_t index, float acc) noexcept {
  acc = fold_symmetric(scale, codes, 0, a, index, acc);
  return std::fma(static_cast<float>(a.sums[index]), f16_to_f32(minimum) * a.scales[index], acc);
}

}  // namespace

void unpack_codes(const BlockQ8_0& block, std::int8_t* codes) noexcept {
  for (std::size_t i = 0; i < elements; ++i) codes[i] = block.codes[i];
}
void unpack_codes(const BlockQ4_0& block, std::uint8_t* codes) noexcept { unpack_nibbles(block.codes, codes); }
void unpack_codes(const BlockQ4_1& block, std::uint8_t* codes) noexcept { unpack_nibbles(block.codes, codes); }
void unpack_codes(const BlockQ5_0& block, std::uint8_t* codes) noexcept {
  unpack_nibbles(block.codes, codes);
  add_fifth_bits(block.fifth_bits, codes);
}
void unpack_codes(const BlockQ5_1& block, std::uint8_t* codes) noexcept {
  unpack_nibbles(block.codes, codes);
  add_fifth_bits(block.fifth_bits, codes);
}

void Q8_0::encode(const float* x, Block* out, const float* /*importance*/) noexcept {
  float top = 0;
  for (std::size_t i = 0; i < elements; ++i) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
  out->scale = fit::scale_bits(top / 127.0F, top, 127.0F);
  const float inverse = fit::inverse_of(f16_to_f32(out->scale));
  for (std::size_t i = 0; i < elements; ++i)
    out->codes[i] = static_cast<std::int8_t>(fit::code_of(x[i], inverse, -127, 127));
}

void Q8_0::decode(const Block* block, float* out) noexcept {
  const float s = f16_to_f32(block->scale);
  for (std::size_t i = 0; i < elements; ++i) out[i] = static_cast<float>(block->codes[i]) * s;
}

float Q8_0::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  const std::int32_t sum = integer_dot(block->codes, 0, a.codes + elements * index);
  return std::fma(static_cast<float>(sum), f16_to_f32(block->scale) * a.scales[index], acc);
}

void Q4_0::encode(const float* x, Block* out, const float* importance) noexcept {
  std::uint8_t codes[elements];
  out->scale = encode_symmetric(x, importance, -8, 7, codes);
  pack_nibbles(codes, out->codes);
}

void Q4_0::decode(const Block* block, float* out) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  decode_symmetric(block->scale, codes, 8, out);
}

float Q4_0::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  return fold_symmetric(block->scale, codes, 8, a, index, acc);
}

void Q5_0::encode(const float* x, Block* out, const float* importance) noexcept {
  std::uint8_t codes[elements];
  out->scale = encode_symmetric(x, importance, -16, 15, codes);
  pack_nibbles(codes, out->codes);
  pack_fifth_bits(codes, out->fifth_bits);
}

void Q5_0::decode(const Block* block, float* out) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  decode_symmetric(block->scale, codes, 16, out);
}

float Q5_0::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  return fold_symmetric(block->scale, codes, 16, a, index, acc);
}

void Q4_1::encode(const float* x, Block* out, const float* importance) noexcept {
  std::uint8_t codes[elements];
  const auto header = encode_affine(x, importance, 15, codes);
  out->scale = header.scale;
  out->minimum = header.minimum;
  pack_nibbles(codes, out->codes);
}

void Q4_1::decode(const Block* block, float* out) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  decode_affine(block->scale, block->minimum, codes, out);
}

float Q4_1::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  return fold_affine(block->scale, block->minimum, codes, a, index, acc);
}

void Q5_1::encode(const float* x, Block* out, const float* importance) noexcept {
  std::uint8_t codes[elements];
  const auto header = encode_affine(x, importance, 31, codes);
  out->scale = header.scale;
  out->minimum = header.minimum;
  pack_nibbles(codes, out->codes);
  pack_fifth_bits(codes, out->fifth_bits);
}

void Q5_1::decode(const Block* block, float* out) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  decode_affine(block->scale, block->minimum, codes, out);
}

float Q5_1::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  return fold_affine(block->scale, block->minimum, codes, a, index, acc);
}

}  // namespace skald::inline v0::quant
