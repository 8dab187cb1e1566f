#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <skald/quant/row_codec.hpp>

namespace skald_test {

/// The quantized types of four bits and more.
inline constexpr skald::DType quantized_types[] = {skald::DType::q8_0, skald::DType::q4_0, skald::DType::q4_1,
                                                   skald::DType::q5_0, skald::DType::q5_1, skald::DType::q4_k,
                                                   skald::DType::q5_k, skald::DType::q6_k};

/// The types of the codebook, ternary and low K formats.
inline constexpr skald::DType low_bit_types[] = {
    skald::DType::q2_k,   skald::DType::q3_k,  skald::DType::iq4_nl,  skald::DType::iq4_xs, skald::DType::mxfp4,
    skald::DType::tq1_0,  skald::DType::tq2_0, skald::DType::iq2_xxs, skald::DType::iq2_xs, skald::DType::iq2_s,
    skald::DType::iq3_xxs, skald::DType::iq3_s, skald::DType::iq1_s,  skald::DType::iq1_m};

/// Small deterministic generator for test data.
class TestRandom {
 public:
  explicit TestRandom(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL + 1) {}
  std::uint64_t bits() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  /// In (0, 1).
  double uniform() { return (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53; }
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()); }
  /// Student t with 4 degrees of freedom: heavy tails, as trained weights have.
  double heavy() {
    double sum = 0;
    const double n = normal();
    for (int i = 0; i < 4; ++i) sum += std::pow(normal(), 2);
    return n / std::sqrt(sum / 4);
  }

 private:
  std::uint64_t state_;
};

inline std::vector<float> heavy_values(std::size_t n, std::uint64_t seed, double size = 0.02) {
  TestRandom random(seed);
  std::vector<float> values(n);
  for (auto& value : values) value = static_cast<float>(size * random.heavy());
  return values;
}

inline std::vector<std::byte> encode(skald::DType type, const std::vector<float>& x,
                                     const std::vector<float>& importance = {}) {
  std::vector<std::byte> row(skald::row_bytes(type, x.size()));
  skald::encode_row(type, x, row, importance);
  return row;
}

inline std::vector<float> decode(skald::DType type, const std::vector<std::byte>& row) {
  const auto& ops = skald::format_ops(type);
  std::vector<float> x(row.size() / ops.block_bytes * ops.block_elements);
  skald::decode_row(type, row, x);
  return x;
}

inline double squared_error(const std::vector<float>& a, const std::vector<float>& b,
                            const std::vector<float>& importance = {}) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - b[i];
    sum += (importance.empty() ? 1.0 : importance[i]) * difference * difference;
  }
  return sum;
}

}  // namespace skald_test
