// q2_k to q6_k: super-blocks of 256 with small integer scales per sub-block.
#include <cmath>
#include <cstdint>
#include <cstring>

#include <skald/quant/block_format.hpp>
#include <skald/quant/low_bit_formats.hpp>

#include "quant/fit.hpp"

namespace skald::inline v0::quant {

namespace {

constexpr std::size_t elements = super_block_elements;

// --- q2_k, q4_k and q5_k: x ~ (d * s) * q - (e * m), s and m per 16 or 32 ---

constexpr std::size_t affine_subs = 8;
constexpr std::size_t affine_size = 32;

/// Everything an encoded affine super-block holds, before packing.
struct AffineBlock {
  std::uint16_t scale = 0;
  std::uint16_t minimum = 0;
  int sub_scale[16] = {};
  int sub_minimum[16] = {};
};

/// How a format divides its super-block.
struct AffineShape {
  std::size_t subs;  ///< sub-blocks, at most 16
  std::size_t size;  ///< elements of each
  int sub_top;       ///< largest small integer
  int high;          ///< largest code
};
constexpr AffineShape q4_k_shape{8, 32, 63, 15};
constexpr AffineShape q5_k_shape{8, 32, 63, 31};
constexpr AffineShape q2_k_shape{16, 16, 15, 3};

int nearest_code(double value, double unit, int low, int high) noexcept {
  if (unit == 0) return 0;
  const double quotient = value / unit;
  return quotient <= low ? low : quotient >= high ? high : static_cast<int>(std::nearbyint(quotient));
}

/// For given block.scale and block.minimum chooses the best small integers of every sub-block near the wanted values.
/// Returns the weighted squared error.
double choose_affine_subs(const float* x, const float* w, const fit::Affine* wanted, const AffineShape& shape,
                          AffineBlock& block) noexcept {
  const float d = f16_to_f32(block.scale);
  const float e = f16_to_f32(block.minimum);
  double total = 0;
  for (std::size_t j = 0; j < shape.subs; ++j) {
    const int s0 = nearest_code(wanted[j].scale, d, 0, shape.sub_top);
    const int m0 = nearest_code(wanted[j].minimum, e, 0, shape.sub_top);
    double best = -1;
    for (int s = s0 > 0 ? s0 - 1 : 0; s <= s0 + 1 && s <= shape.sub_top; ++s) {
      for (int m = m0 > 0 ? m0 - 1 : 0; m <= m0 + 1 && m <= shape.sub_top; ++m) {
        const double error = fit::coded_error(x + shape.size * j, w + shape.size * j, shape.size,
                                              d * static_cast<float>(s), e * static_cast<float>(m), 0, shape.high);
        if (best < 0 || error < best) {
          best = error;
          block.sub_scale[j] = s;
          block.sub_minimum[j] = m;
        }
      }
    }
    total += best;
  }
  return total;
}

void affine_codes(const float* x, const AffineBlock& block, const AffineShape& shape, std::uint8_t* codes) noexcept {
  for (std::size_t j = 0; j < shape.subs; ++j) {
    const float scale = f16_to_f32(block.scale) * static_cast<float>(block.sub_scale[j]);
    const float minimum = f16_to_f32(block.minimum) * static_cast<float>(block.sub_minimum[j]);
    const float inverse = fit::inverse_of(scale);
    for (std::size_t i = shape.size * j; i < shape.size * (j + 1); ++i)
      codes[i] = static_cast<std::uint8_t>(fit::code_of(x[i] + minimum, inverse, 0, shape.high));
  }
}

/// Scale and minimum of the whole block that fit best, by least squares, to the small integers and codes chosen.
/// False if the equations have no usable solution.
bool refit_affine(const float* x, const float* w, const std::uint8_t* codes, const AffineShape& shape,
                  AffineBlock& block) noexcept {
  double uu = 0;
  double uv = 0;
  double vv = 0;
  double xu = 0;
  double xv = 0;
  for (std::size_t i = 0; i < elements; ++i) {
    const double u = block.sub_scale[i / shape.size] * static_cast<double>(codes[i]);
    const double v = block.sub_minimum[i / shape.size];
    const double wi = w[i];
    uu += wi * u * u;
    uv += wi * u * v;
    vv += wi * v * v;
    xu += wi * u * x[i];
    xv += wi * v * x[i];
  }
  double d = 0;
  double e = 0;
  const double determinant = uu * vv - uv * uv;
  if (determinant > 1e-9 * uu * vv) {
    d = (xu * vv - xv * uv) / determinant;
    e = (xu * uv - xv * uu) / determinant;
  } else if (uu > 0 && vv == 0) {
    d = xu / uu;
  } else {
    return false;
  }
  if (!(d > 0 && e >= 0 && d <= 65504 && e <= 65504)) return false;
  block.scale = f32_to_f16(static_cast<float>(d));
  block.minimum = f32_to_f16(static_cast<float>(e));
  return true;
}

AffineBlock encode_affine(const float* x, const float* importance, const AffineShape& shape,
                          std::uint8_t* codes) noexcept {
  float weights[elements];
  fit::load_weights(importance, elements, weights);
  fit::Affine wanted[16];
  double top_scale = 0;
  double top_minimum = 0;
  for (std::size_t j = 0; j < shape.subs; ++j) {
    wanted[j] = fit::affine_fit(x + shape.size * j, weights + shape.size * j, shape.size, shape.high, false);
    top_scale = wanted[j].scale > top_scale ? wanted[j].scale : top_scale;
    top_minimum = wanted[j].minimum > top_minimum ? wanted[j].minimum : top_minimum;
  }
  AffineBlock best;
  best.scale = fit::scale_bits(static_cast<float>(top_scale / shape.sub_top), static_cast<float>(top_scale),
                               static_cast<float>(shape.sub_top));
  best.minimum = fit::scale_bits(static_cast<float>(top_minimum / shape.sub_top), static_cast<float>(top_minimum),
                                 static_cast<float>(shape.sub_top));
  double best_error = choose_affine_subs(x, weights, wanted, shape, best);
  affine_codes(x, best, shape, codes);
  for (int round = 0; round < 2; ++round) {
    AffineBlock next = best;
    if (!refit_affine(x, weights, codes, shape, next)) break;
    const double error = choose_affine_subs(x, weights, wanted, shape, next);
    if (!(error < best_error)) break;
    best_error = error;
    best = next;
    affine_codes(x, best, shape, codes);
  }
  return best;
}

void pack_sub_scales(const AffineBlock& block, std::uint8_t* packed) noexcept {
  for (std::size_t j = 0; j < 4; ++j) {
    const auto low_s = static_cast<unsigned>(block.sub_scale[j]);
    const auto low_m = static_cast<unsigned>(block.sub_minimum[j]);
    const auto high_s = static_cast<unsigned>(block.sub_scale[j + 4]);
    const auto high_m = static_cast<unsigned>(block.sub_minimum[j + 4]);
    packed[j] = static_cast<std::uint8_t>(low_s | ((high_s >> 4) << 6));
    packed[j + 4] = static_cast<std::uint8_t>(low_m | ((high_m >> 4) << 6));
    packed[j + 8] = static_cast<std::uint8_t>((high_s & 15) | ((high_m & 15) << 4));
  }
}

void unpack_low_nibbles(const std::uint8_t* packed, std::uint8_t* codes) noexcept {
  for (std::size_t part = 0; part < 4; ++part)
    for (std::size_t i = 0; i < 32; ++i) {
      codes[64 * part + i] = static_cast<std::uint8_t>(packed[32 * part + i] & 15);
      codes[64 * part + 32 + i] = static_cast<std::uint8_t>(packed[32 * part + i] >> 4);
    }
}

void pack_low_nibbles(const std::uint8_t* codes, std::uint8_t* packed) noexcept {
  for (std::size_t part = 0; part < 4; ++part)
    for (std::size_t i = 0; i < 32; ++i)
      packed[32 * part + i] =
          static_cast<std::uint8_t>((codes[64 * part + i] & 15) | ((codes[64 * part + 32 + i] & 15) << 4));
}

template <class Block>
void decode_affine(const Block& block, float* out) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(block, codes);
  const float d = f16_to_f32(block.scale);
  const float e = f16_to_f32(block.minimum);
  for (std::size_t j = 0; j < affine_subs; ++j) {
    const auto sub = unpack_sub_scale(block.scales, j);
    const float scale = d * static_cast<float>(sub.scale);
    const float minimum = e * static_cast<float>(sub.minimum);
    for (std::size_t i = affine_size * j; i < affine_size * (j + 1); ++i)
      out[i] = scale * static_cast<float>(codes[i]) - minimum;
  }
}

template <class Block>
float fold_affine(const Block& block, const ActivationView& a, std::size_t index, float acc) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(block, codes);
  std::int32_t scaled = 0;
  std::int32_t minimums = 0;
  for (std::size_t j = 0; j < affine_subs; ++j) {
    const auto sub = unpack_sub_scale(block.scales, j);
    std::int32_t sum = 0;
    for (std::size_t i = affine_size * j; i < affine_size * (j + 1); ++i)
      sum += codes[i] * a.codes[elements * index + i];
    scaled += sub.scale * sum;
    minimums += sub.minimum * a.sums[affine_subs * index + j];
  }
  acc = std::fma(static_cast<float>(scaled), f16_to_f32(block.scale) * a.scales[index], acc);
  return std::fma(-static_cast<float>(minimums), f16_to_f32(block.minimum) * a.scales[index], acc);
}

// --- q3_k and q6_k: x ~ (d * s) * q, s per 16 ---

constexpr std::size_t signed_subs = 16;
constexpr std::size_t signed_size = 16;

struct SignedShape {
  int sub_low, sub_high;  ///< range of the small integers
  int low, high;          ///< range of the codes
};
constexpr SignedShape q6_k_shape{-128, 127, -32, 31};
constexpr SignedShape q3_k_shape{-32, 31, -4, 3};

struct SignedBlock {
  std::uint16_t scale = 0;
  int sub_scale[signed_subs] = {};
};

double choose_signed_subs(const float* x, const float* w, const double* wanted, const SignedShape& shape,
                          SignedBlock& block) noexcept {
  const float d = f16_to_f32(block.scale);
  double total = 0;
  for (std::size_t j = 0; j < signed_subs; ++j) {
    const int s0 = nearest_code(wanted[j], d, shape.sub_low, shape.sub_high);
    double best = -1;
    for (int s = s0 - 1; s <= s0 + 1; ++s) {
      if (s < shape.sub_low || s > shape.sub_high) continue;
      const double error = fit::coded_error(x + signed_size * j, w + signed_size * j, signed_size,
                                            d * static_cast<float>(s), 0, shape.low, shape.high);
      if (best < 0 || error < best) {
        best = error;
        block.sub_scale[j] = s;
      }
    }
    total += best;
  }
  return total;
}

int signed_code(const SignedBlock& block, const SignedShape& shape, std::size_t i, float x) noexcept {
  const float scale = f16_to_f32(block.scale) * static_cast<float>(block.sub_scale[i / signed_size]);
  return fit::code_of(x, fit::inverse_of(scale), shape.low, shape.high);
}

bool refit_signed(const float* x, const float* w, const SignedShape& shape, SignedBlock& block) noexcept {
  double uu = 0;
  double xu = 0;
  for (std::size_t i = 0; i < elements; ++i) {
    const double u = block.sub_scale[i / signed_size] * static_cast<double>(signed_code(block, shape, i, x[i]));
    uu += w[i] * u * u;
    xu += w[i] * u * x[i];
  }
  if (!(uu > 0)) return false;
  const double d = xu / uu;
  if (!(std::fabs(d) <= 65504) || d == 0) return false;
  block.scale = f32_to_f16(static_cast<float>(d));
  return true;
}

SignedBlock encode_signed(const float* x, const float* importance, const SignedShape& shape) noexcept {
  float weights[elements];
  fit::load_weights(importance, elements, weights);
  double wanted[signed_subs];
  double extreme = 0;
  for (std::size_t j = 0; j < signed_subs; ++j) {
    wanted[j] =
        fit::symmetric_scale(x + signed_size * j, weights + signed_size * j, signed_size, shape.low, shape.high);
    if (std::fabs(wanted[j]) > std::fabs(extreme)) extreme = wanted[j];
  }
  SignedBlock best;
  // The largest scale takes the longer end of the small integers.
  best.scale = fit::scale_bits(static_cast<float>(extreme / shape.sub_low), static_cast<float>(std::fabs(extreme)),
                               static_cast<float>(-shape.sub_low));
  double best_error = choose_signed_subs(x, weights, wanted, shape, best);
  for (int round = 0; round < 2; ++round) {
    SignedBlock next = best;
    if (!refit_signed(x, weights, shape, next)) break;
    const double error = choose_signed_subs(x, weights, wanted, shape, next);
    if (!(error < best_error)) break;
    best_error = error;
    best = next;
  }
  return best;
}

}  // namespace

void unpack_codes(const BlockQ4_K& block, std::uint8_t* codes) noexcept { unpack_low_nibbles(block.codes, codes); }

void unpack_codes(const BlockQ5_K& block, std::uint8_t* codes) noexcept {
  unpack_low_nibbles(block.codes, codes);
  for (std::size_t i = 0; i < elements; ++i)
    codes[i] = static_cast<std::uint8_t>(codes[i] | (((block.fifth_bits[i % 32] >> (i / 32)) & 1) << 4));
}

void unpack_codes(const BlockQ6_K& block, std::uint8_t* codes) noexcept {
  for (std::size_t half = 0; half < 2; ++half)
    for (std::size_t r = 0; r < 128; ++r) {
      const unsigned low = block.low_bits[64 * half + r % 64] >> (r < 64 ? 0 : 4);
      const unsigned high = block.high_bits[32 * half + r % 32] >> (2 * (r / 32));
      codes[128 * half + r] = static_cast<std::uint8_t>((low & 15) | ((high & 3) << 4));
    }
}

void Q4_K::encode(const float* x, Block* out, const float* importance) noexcept {
  std::uint8_t codes[elements];
  const auto block = encode_affine(x, importance, q4_k_shape, codes);
  out->scale = block.scale;
  out->minimum = block.minimum;
  pack_sub_scales(block, out->scales);
  pack_low_nibbles(codes, out->codes);
}

void Q4_K::decode(const Block* block, float* out) noexcept { decode_affine(*block, out); }

float Q4_K::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  return fold_affine(*block, a, index, acc);
}

void Q5_K::encode(const float* x, Block* out, const float* importance) noexcept {
  std::uint8_t codes[elements];
  const auto block = encode_affine(x, importance, q5_k_shape, codes);
  out->scale = block.scale;
  out->minimum = block.minimum;
  pack_sub_scales(block, out->scales);
  pack_low_nibbles(codes, out->codes);
  std::memset(out->fifth_bits, 0, sizeof(out->fifth_bits));
  for (std::size_t i = 0; i < elements; ++i)
    out->fifth_bits[i % 32] = static_cast<std::uint8_t>(out->fifth_bits[i % 32] | ((codes[i] >> 4) << (i / 32)));
}

void Q5_K::decode(const Block* block, float* out) noexcept { decode_affine(*block, out); }

float Q5_K::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  return fold_affine(*block, a, index, acc);
}

void Q6_K::encode(const float* x, Block* out, const float* importance) noexcept {
  const auto block = encode_signed(x, importance, q6_k_shape);
  std::memset(out, 0, sizeof(*out));
  out->scale = block.scale;
  for (std::size_t j = 0; j < signed_subs; ++j) out->scales[j] = static_cast<std::int8_t>(block.sub_scale[j]);
  for (std::size_t i = 0; i < elements; ++i) {
    const auto code = static_cast<unsigned>(signed_code(block, q6_k_shape, i, x[i]) - q6_k_shape.low);
    const std::size_t half = i / 128;
    const std::size_t r = i % 128;
    auto& low = out->low_bits[64 * half + r % 64];
    auto& high = out->high_bits[32 * half + r % 32];
    low = static_cast<std::uint8_t>(low | ((code & 15) << (r < 64 ? 0 : 4)));
    high = static_cast<std::uint8_t>(high | ((code >> 4) << (2 * (r / 32))));
  }
}

void Q6_K::decode(const Block* block, float* out) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  const float d = f16_to_f32(block->scale);
  for (std::size_t j = 0; j < signed_subs; ++j) {
    const float scale = d * static_cast<float>(block->scales[j]);
    for (std::size_t i = signed_size * j; i < signed_size * (j + 1); ++i)
      out[i] = scale * static_cast<float>(codes[i] + q6_k_shape.low);
  }
}

float Q6_K::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  std::uint8_t codes[elements];
  unpack_codes(*block, codes);
  std::int32_t scaled = 0;
  for (std::size_t j = 0; j < signed_subs; ++j) {
    std::int32_t sum = 0;
    for (std::size_t i = signed_size * j; i < signed_size * (j + 1); ++i)
      sum += (codes[i] + q6_k_shape.low) * a.codes[elements * index + i];
    scaled += block->scales[j] * sum;
  }
  return std::fma(static_cast<float>(scaled), f16_to_f32(block->scale) * a.scales[index], acc);
}

namespace {

std::uint8_t two_bits(const std::uint8_t* codes, std::size_t i) noexcept {
  return static_cast<std::uint8_t>((codes[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3);
}
void put_two_bits(std::uint8_t* codes, std::size_t i, unsigned code) noexcept {
  auto& byte = codes[32 * (i / 128) + i % 32];
  byte = static_cast<std::uint8_t>(byte | code << (2 * (i % 128 / 32)));
}

/// Integer scale of a sub-block of q3_k.
int q3_k_scale(const BlockQ3_K& block, std::size_t j) noexcept {
  const int low = (block.scales[j % 8] >> (j < 8 ? 0 : 4)) & 15;
  const int high = (block.scales[8 + j % 4] >> (2 * (j / 4))) & 3;
  return (low | high << 4) - 32;
}
int q3_k_code(const BlockQ3_K& block, std::size_t i) noexcept {
  return two_bits(block.codes, i) + 4 * ((block.high_bits[i % 32] >> (i / 32)) & 1) - 4;
}

}  // namespace

void Q2_K::encode(const float* x, Block* out, const float* importance) noexcept {
  std::uint8_t codes[elements];
  const auto block = encode_affine(x, importance, q2_k_shape, codes);
  std::memset(out, 0, sizeof(*out));
  out->scale = block.scale;
  out->minimum = block.minimum;
  for (std::size_t j = 0; j < 16; ++j)
    out->scales[j] = static_cast<std::uint8_t>(block.sub_scale[j] | block.sub_minimum[j] << 4);
  for (std::size_t i = 0; i < elements; ++i) put_two_bits(out->codes, i, codes[i]);
}

void Q2_K::decode(const Block* block, float* out) noexcept {
  const float d = f16_to_f32(block->scale);
  const float e = f16_to_f32(block->minimum);
  for (std::size_t i = 0; i < elements; ++i) {
    const float scale = d * static_cast<float>(block->scales[i / 16] & 15);
    const float minimum = e * static_cast<float>(block->scales[i / 16] >> 4);
    out[i] = scale * static_cast<float>(two_bits(block->codes, i)) - minimum;
  }
}

float Q2_K::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  std::int32_t scaled = 0;
  std::int32_t minimums = 0;
  for (std::size_t j = 0; j < 16; ++j) {
    std::int32_t sum = 0;
    for (std::size_t i = 16 * j; i < 16 * (j + 1); ++i)
      sum += two_bits(block->codes, i) * a.codes[elements * index + i];
    scaled += (block->scales[j] & 15) * sum;
    minimums += (block->scales[j] >> 4) * a.sum16(16 * index + j);
  }
  acc = std::fma(static_cast<float>(scaled), f16_to_f32(block->scale) * a.scales[index], acc);
  return std::fma(-static_cast<float>(minimums), f16_to_f32(block->minimum) * a.scales[index], acc);
}

void Q3_K::encode(const float* x, Block* out, const float* importance) noexcept {
  const auto block = encode_signed(x, importance, q3_k_shape);
  std::memset(out, 0, sizeof(*out));
  out->scale = block.scale;
  for (std::size_t j = 0; j < 16; ++j) {
    const auto scale = static_cast<unsigned>(block.sub_scale[j] + 32);
    auto& low = out->scales[j % 8];
    auto& high = out->scales[8 + j % 4];
    low = static_cast<std::uint8_t>(low | (scale & 15) << (j < 8 ? 0 : 4));
    high = static_cast<std::uint8_t>(high | (scale >> 4) << (2 * (j / 4)));
  }
  for (std::size_t i = 0; i < elements; ++i) {
    const auto code = static_cast<unsigned>(signed_code(block, q3_k_shape, i, x[i]) - q3_k_shape.low);
    put_two_bits(out->codes, i, code & 3);
    auto& high = out->high_bits[i % 32];
    high = static_cast<std::uint8_t>(high | (code >> 2) << (i / 32));
  }
}

void Q3_K::decode(const Block* block, float* out) noexcept {
  const float d = f16_to_f32(block->scale);
  for (std::size_t i = 0; i < elements; ++i) {
    const float scale = d * static_cast<float>(q3_k_scale(*block, i / 16));
    out[i] = scale * static_cast<float>(q3_k_code(*block, i));
  }
}

float Q3_K::fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept {
  std::int32_t scaled = 0;
  for (std::size_t j = 0; j < 16; ++j) {
    std::int32_t sum = 0;
    for (std::size_t i = 16 * j; i < 16 * (j + 1); ++i) sum += q3_k_code(*block, i) * a.codes[elements * index + i];
    scaled += q3_k_scale(*block, j) * sum;
  }
  return std::fma(static_cast<float>(scaled), f16_to_f32(block->scale) * a.scales[index], acc);
}

}  // namespace skald::inline v0::quant
