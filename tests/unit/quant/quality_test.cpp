// Encoders against the plain rule "extreme value to extreme code", scales rounded as the format must.
#include <algorithm>
#include <cmath>

#include "quant_support.hpp"
#include "support/catch.hpp"

using namespace skald_test;
using skald::DType;

namespace {

float to_half(double value) { return skald::f16_to_f32(skald::f32_to_f16(static_cast<float>(value))); }

float extreme_of(const float* x, std::size_t n) {
  float extreme = 0;
  for (std::size_t i = 0; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  return extreme;
}

double code(double value, double scale, int low, int high) {
  return scale == 0 ? 0.0
                    : std::clamp(std::nearbyint(value / scale), static_cast<double>(low), static_cast<double>(high));
}

/// Decoded values of the plain rule.
void plain_symmetric(const float* x, float* out, std::size_t n, int low, int high, double scale) {
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(scale * code(x[i], scale, low, high));
}

void plain_affine(const float* x, float* out, std::size_t n, int high, double scale, double minimum) {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = static_cast<float>(scale * code(x[i] - minimum, scale, 0, high) + minimum);
}

void plain_super_affine(const float* x, float* out, int high) {
  double scales[8];
  double minimums[8];
  for (std::size_t j = 0; j < 8; ++j) {
    const auto [low, top] = std::minmax_element(x + 32 * j, x + 32 * j + 32);
    minimums[j] = std::max(0.0F, -*low);
    scales[j] = (*top + minimums[j]) / high;
  }
  const double d = to_half(*std::max_element(scales, scales + 8) / 63);
  const double e = to_half(*std::max_element(minimums, minimums + 8) / 63);
  for (std::size_t j = 0; j < 8; ++j)
    plain_affine(x + 32 * j, out + 32 * j, 32, high, d * code(scales[j], d, 0, 63), -e * code(minimums[j], e, 0, 63));
}

void plain_super_symmetric(const float* x, float* out) {
  double scales[16];
  double top = 0;
  for (std::size_t j = 0; j < 16; ++j) {
    scales[j] = extreme_of(x + 16 * j, 16) / -32.0;
    if (std::fabs(scales[j]) > std::fabs(top)) top = scales[j];
  }
  const double d = to_half(top / -128);
  for (std::size_t j = 0; j < 16; ++j)
    plain_symmetric(x + 16 * j, out + 16 * j, 16, -32, 31, d * code(scales[j], d, -128, 127));
}

void plain_block(DType type, const float* x, float* out) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  switch (type) {
    case DType::q8_0: return plain_symmetric(x, out, 32, -127, 127, to_half(std::fabs(extreme_of(x, 32)) / 127));
    case DType::q4_0: return plain_symmetric(x, out, 32, -8, 7, to_half(extreme_of(x, 32) / -8));
    case DType::q5_0: return plain_symmetric(x, out, 32, -16, 15, to_half(extreme_of(x, 32) / -16));
    case DType::q4_1: return plain_affine(x, out, 32, 15, to_half((*high - *low) / 15), to_half(*low));
    case DType::q5_1: return plain_affine(x, out, 32, 31, to_half((*high - *low) / 31), to_half(*low));
    case DType::q4_k: return plain_super_affine(x, out, 15);
    case DType::q5_k: return plain_super_affine(x, out, 31);
    default: return plain_super_symmetric(x, out);
  }
}

/// Values of different character: 0 heavy tails, 1 normal, 2 uniform, 3 positive, 4 shifted, 5 sparse, 6 mixed sizes.
std::vector<float> values_of_kind(int kind, std::size_t n) {
  TestRandom random(static_cast<std::uint64_t>(kind) + 100);
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) {
    double value = 0;
    switch (kind) {
      case 0: value = random.heavy(); break;
      case 1: value = random.normal(); break;
      case 2: value = 2 * random.uniform() - 1; break;
      case 3: value = random.uniform() + 0.01; break;
      case 4: value = 0.2 * random.normal() - 1; break;
      case 5: value = random.uniform() < 0.05 ? random.normal() : 0; break;
      default: value = random.normal() * std::ldexp(1.0, static_cast<int>(i / 16 % 9) - 6); break;
    }
    x[i] = static_cast<float>(0.05 * value);
  }
  return x;
}

}  // namespace

TEST_CASE("quant.encode: no worse than rounding to the extreme value, and better for the searched formats", "[quant]") {
  constexpr std::size_t n = 256 * 128;
  for (const DType type : quantized_types) {
    const std::size_t block = skald::format_ops(type).block_elements;
    for (int kind = 0; kind < 7; ++kind) {
      const auto x = values_of_kind(kind, n);
      std::vector<float> plain(n);
      for (std::size_t at = 0; at < n; at += block) plain_block(type, x.data() + at, plain.data() + at);
      const double ratio = std::sqrt(squared_error(x, decode(type, encode(type, x))) / squared_error(x, plain));
      INFO(skald::to_string(type) << " kind " << kind << " rmse ratio " << ratio);
      // The simple formats follow the rule itself; only ties of rounding may fall differently.
      CHECK(ratio <= (block == 256 ? 0.99 : 1.0001));
    }
  }
}

TEST_CASE("quant.encode: relative error shrinks with the bits of the format", "[quant]") {
  const auto x = values_of_kind(1, 256 * 64);
  const double power = squared_error(x, std::vector<float>(x.size()));
  // Measured on this data, rounded up by about a tenth.
  const std::pair<DType, double> limits[] = {{DType::q8_0, 0.0065}, {DType::q6_k, 0.021}, {DType::q5_1, 0.042},
                                             {DType::q5_k, 0.045},  {DType::q5_0, 0.052}, {DType::q4_1, 0.085},
                                             {DType::q4_k, 0.085},  {DType::q4_0, 0.10}};
  for (const auto& [type, limit] : limits) {
    const double relative = std::sqrt(squared_error(x, decode(type, encode(type, x))) / power);
    INFO(skald::to_string(type) << " " << relative);
    CHECK(relative <= limit);
    CHECK(relative >= 0.5 * limit);
  }
}
