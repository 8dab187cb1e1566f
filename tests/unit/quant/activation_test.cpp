#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include <skald/core/error.hpp>

#include "quant_support.hpp"
#include "support/catch.hpp"

using namespace skald_test;
using skald::ActivationKind;
using skald::ActivationRow;
using skald::DType;

namespace {

constexpr ActivationKind int8_kinds[] = {ActivationKind::q8_32, ActivationKind::q8_256};

/// The integer dot products written out from their specification, with 64-bit integers and no code of the library but
/// the unpacked codes.
float specified_fold(DType type, const std::byte* bytes, const skald::ActivationView& a, std::size_t b, float acc) {
  const auto block_dot = [&](const auto& codes, int offset, std::size_t first, std::size_t count, std::size_t at) {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += (codes[first + i] - offset) * std::int64_t{a.codes[at + first + i]};
    return sum;
  };
  const auto simple = [&](auto block, int offset) {
    std::memcpy(&block, bytes, sizeof(block));
    std::conditional_t<sizeof(block) == 34, std::int8_t, std::uint8_t> codes[32];
    skald::quant::unpack_codes(block, codes);
    const float scale = skald::f16_to_f32(block.scale) * a.scales[b];
    acc = std::fma(static_cast<float>(block_dot(codes, offset, 0, 32, 32 * b)), scale, acc);
    if constexpr (requires { block.minimum; })
      acc = std::fma(static_cast<float>(a.sums[b]), skald::f16_to_f32(block.minimum) * a.scales[b], acc);
    return acc;
  };
  const auto affine = [&](auto block) {
    std::memcpy(&block, bytes, sizeof(block));
    std::uint8_t codes[256];
    skald::quant::unpack_codes(block, codes);
    std::int64_t scaled = 0;
    std::int64_t minimums = 0;
    for (std::size_t j = 0; j < 8; ++j) {
      const auto sub = skald::quant::unpack_sub_scale(block.scales, j);
      scaled += sub.scale * block_dot(codes, 0, 32 * j, 32, 256 * b);
      minimums += sub.minimum * std::int64_t{a.sums[8 * b + j]};
    }
    acc = std::fma(static_cast<float>(scaled), skald::f16_to_f32(block.scale) * a.scales[b], acc);
    return std::fma(-static_cast<float>(minimums), skald::f16_to_f32(block.minimum) * a.scales[b], acc);
  };
  switch (type) {
    case DType::q8_0: return simple(skald::quant::BlockQ8_0{}, 0);
    case DType::q4_0: return simple(skald::quant::BlockQ4_0{}, 8);
    case DType::q4_1: return simple(skald::quant::BlockQ4_1{}, 0);
    case DType::q5_0: return simple(skald::quant::BlockQ5_0{}, 16);
    case DType::q5_1: return simple(skald::quant::BlockQ5_1{}, 0);
    case DType::q4_k: return affine(skald::quant::BlockQ4_K{});
    case DType::q5_k: return affine(skald::quant::BlockQ5_K{});
    default: break;
  }
  skald::quant::BlockQ6_K block{};
  std::memcpy(&block, bytes, sizeof(block));
  std::uint8_t codes[256];
  skald::quant::unpack_codes(block, codes);
  // In the order a kernel with unsigned codes takes: codes times activations, then 32 times the sum of 16 less.
  std::int64_t scaled = 0;
  for (std::size_t j = 0; j < 16; ++j)
    scaled += block.scales[j] * (block_dot(codes, 0, 16 * j, 16, 256 * b) - 32 * std::int64_t{a.sum16(16 * b + j)});
  return std::fma(static_cast<float>(scaled), skald::f16_to_f32(block.scale) * a.scales[b], acc);
}

}  // namespace

TEST_CASE("quant.activation: codes, scales and sums follow the definition", "[quant]") {
  const auto x = heavy_values(1024, 31, 3.0);
  for (const auto kind : int8_kinds) {
    INFO(skald::to_string(kind));
    const ActivationRow row(x, kind);
    const auto a = row.view();
    CHECK(a.elements == 1024);
    const std::size_t block = skald::activation_block_elements(kind);
    std::vector<float> decoded(1024);
    row.decode(decoded);
    for (std::size_t i = 0; i < 1024; ++i) {
      float top = 0;
      for (std::size_t k = i / block * block; k < (i / block + 1) * block; ++k) top = std::max(top, std::fabs(x[k]));
      const float inverse = 127.0F / top;
      REQUIRE(a.scales[i / block] == top / 127.0F);
      REQUIRE(a.codes[i] == static_cast<int>(std::nearbyint(x[i] * inverse)));
      REQUIRE(std::fabs(decoded[i] - x[i]) <= 0.5001F * a.scales[i / block]);
    }
    for (std::size_t g = 0; g < 32; ++g) {
      std::int32_t sum = 0;
      for (std::size_t i = 0; i < 32; ++i) sum += a.codes[32 * g + i];
      REQUIRE(a.sums[g] == sum);
      REQUIRE(a.sum16(2 * g) + a.sum16(2 * g + 1) == sum);
    }
  }
}

TEST_CASE("quant.activation: ties round to even and codes stay in [-127, 127]", "[quant]") {
  std::vector<float> x(32);
  x[0] = 127;  // scale 1, inverse 1
  const float ties[] = {0.5F, 1.5F, 2.5F, -0.5F, -1.5F, -2.5F, 126.5F, -126.5F};
  const int expected[] = {0, 2, 2, 0, -2, -2, 126, -126};
  for (std::size_t i = 0; i < 8; ++i) x[i + 1] = ties[i];
  x[20] = -127;
  x[21] = -0.0F;
  const ActivationRow row(x, ActivationKind::q8_32);
  for (std::size_t i = 0; i < 8; ++i) CHECK(row.view().codes[i + 1] == expected[i]);
  CHECK(row.view().codes[0] == 127);
  CHECK(row.view().codes[20] == -127);
  CHECK(row.view().codes[21] == 0);
  TestRandom random(77);
  for (int round = 0; round < 2000; ++round) {
    // Any magnitude of float, the largest ones included: the extremes get +-127 exactly.
    const float top = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits() % 0x7F800000u));
    for (auto& value : x) value = static_cast<float>(top * (2 * random.uniform() - 1));
    x[5] = top;
    x[6] = -top;
    const ActivationRow any(x, ActivationKind::q8_32);
    const int limit = top >= skald::activation_zero_below ? 127 : 0;
    REQUIRE(any.view().codes[5] == limit);
    REQUIRE(any.view().codes[6] == -limit);
    for (std::size_t i = 0; i < 32; ++i) REQUIRE(std::abs(any.view().codes[i]) <= limit);
  }
}

TEST_CASE("quant.activation: on the borders between codes it is x * (127 / top), not another order", "[quant]") {
  TestRandom random(78);
  std::size_t differs = 0;
  for (int round = 0; round < 500; ++round) {
    const auto top = static_cast<float>(0.5 + random.uniform());
    std::vector<float> x(32);
    for (int i = 0; i < 31; ++i) {
      x[static_cast<std::size_t>(i)] = static_cast<float>((static_cast<int>(random.bits() % 127) + 0.5) * top / 127);
    }
    x[31] = top;
    const float inverse = 127.0F / top;
    const ActivationRow row(x, ActivationKind::q8_32);
    for (std::size_t i = 0; i < 32; ++i) {
      REQUIRE(row.view().codes[i] == static_cast<int>(std::nearbyint(x[i] * inverse)));
      differs += std::nearbyint(x[i] / (top / 127.0F)) != std::nearbyint(x[i] * inverse);
    }
  }
  CHECK(differs > 100);  // the data does tell the two apart
}

TEST_CASE("quant.activation: zero and tiny blocks have scale 0, a value that is not finite poisons its block",
          "[quant]") {
  for (const auto kind : int8_kinds) {
    const std::size_t block = skald::activation_block_elements(kind);
    for (const float tiny : {0.0F, -0.0F, 1e-45F, 0x1.FFFFFEp-101F}) {
      const ActivationRow row(std::vector<float>(block, tiny), kind);
      CHECK(std::bit_cast<std::uint32_t>(row.view().scales[0]) == 0);
      for (std::size_t i = 0; i < block; ++i) REQUIRE(row.view().codes[i] == 0);
    }
    CHECK(ActivationRow(std::vector<float>(block, 0x1p-100F), kind).view().codes[0] == 127);
    for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> x(2 * block, 1.0F);
      x[block + 7] = bad;
      const ActivationRow row(x, kind);
      CHECK(row.view().scales[0] == 1.0F / 127.0F);
      CHECK(std::bit_cast<std::uint32_t>(row.view().scales[1]) == 0x7FC00000u);
      for (std::size_t i = block; i < 2 * block; ++i) REQUIRE(row.view().codes[i] == 0);
    }
  }
}

TEST_CASE("quant.activation: wrong lengths and kinds are refused", "[quant]") {
  const std::vector<float> x(96);
  CHECK_THROWS_AS(ActivationRow(x, ActivationKind::q8_256), skald::UsageError);
  CHECK_THROWS_AS(ActivationRow(std::span(x).first(33), ActivationKind::q8_32), skald::UsageError);
  CHECK_THROWS_AS(ActivationRow(x, ActivationKind::f32), skald::UsageError);
  const ActivationRow row(x, ActivationKind::q8_32);
  std::vector<float> out(95);
  CHECK_THROWS_AS(row.decode(out), skald::UsageError);
  const auto weights = encode(DType::q4_0, std::vector<float>(64));
  CHECK_THROWS_AS(skald::format_ops(DType::q4_0).dot_q8(weights.data(), row, 64), skald::UsageError);
  const std::vector<float> wide(256);
  const auto k_weights = encode(DType::q4_k, wide);
  const ActivationRow other(wide, ActivationKind::q8_32);
  CHECK_THROWS_AS(skald::format_ops(DType::q4_k).dot_q8(k_weights.data(), other, 256), skald::UsageError);
}

TEST_CASE("quant.dot: the integer dot product equals its specification in every bit", "[quant]") {
  TestRandom random(41);
  for (const DType type : quantized_types) {
    INFO(skald::to_string(type));
    const auto& ops = skald::format_ops(type);
    for (int round = 0; round < 40; ++round) {
      const auto x = heavy_values(768, static_cast<std::uint64_t>(round) + 900, 1.0);
      const ActivationRow row(x, ops.activation);
      std::vector<std::byte> weights;
      if (round % 2 == 0) {
        weights = encode(type, heavy_values(768, static_cast<std::uint64_t>(round) + 500));
      } else {
        // Any bytes, but scales that are finite: the integer sums are what is tested.
        weights.resize(skald::row_bytes(type, 768));
        for (auto& byte : weights) byte = static_cast<std::byte>(random.bits() & 0xBF);
      }
      float expected = 0;
      for (std::size_t b = 0; b < 768 / ops.block_elements; ++b)
        expected = specified_fold(type, weights.data() + b * ops.block_bytes, row, b, expected);
      const float actual = ops.dot_q8(weights.data(), row, 768);
      REQUIRE(std::bit_cast<std::uint32_t>(actual) == std::bit_cast<std::uint32_t>(expected));
    }
  }
}

TEST_CASE("quant.dot: extreme codes do not overflow", "[quant]") {
  for (const DType type : quantized_types) {
    INFO(skald::to_string(type));
    const auto& ops = skald::format_ops(type);
    for (const int fill : {0x00, 0x80, 0x7F, 0xFF}) {
      for (const float sign : {1.0F, -1.0F}) {
        std::vector<std::byte> weights(skald::row_bytes(type, 512), static_cast<std::byte>(fill));
        // Replace the binary16 scales, which 0xFF would make NaN, by 1.
        for (std::size_t b = 0; b < 512 / ops.block_elements; ++b) {
          const std::uint16_t one = 0x3C00;
          std::byte* block = weights.data() + b * ops.block_bytes;
          std::memcpy(block + (type == DType::q6_k ? 208 : 0), &one, 2);
          if (type == DType::q4_1 || type == DType::q5_1 || type == DType::q4_k || type == DType::q5_k)
            std::memcpy(block + 2, &one, 2);
        }
        const std::vector<float> x(512, sign * 127.0F);  // every code is +-127, every scale 1
        const ActivationRow row(x, ops.activation);
        const double exact = ops.dot_row(weights.data(), x.data(), 512);
        CHECK(std::fabs(ops.dot_q8(weights.data(), row, 512) - exact) <= 1e-6 * std::fabs(exact));
      }
    }
  }
}

TEST_CASE("quant.dot: against double, only float folds are lost, and int8 activations cost what they must", "[quant]") {
  constexpr std::size_t n = 4096;
  for (const DType type : quantized_types) {
    const auto& ops = skald::format_ops(type);
    double worst_fold = 0;
    double squares = 0;
    double scale = 0;
    constexpr int rounds = 50;
    for (int round = 0; round < rounds; ++round) {
      const auto w = heavy_values(n, static_cast<std::uint64_t>(round) + 1);
      const auto x = heavy_values(n, static_cast<std::uint64_t>(round) + 1000, 1.0);
      const auto weights = encode(type, w);
      const auto decoded = decode(type, weights);
      const ActivationRow row(x, ops.activation);
      std::vector<float> rounded(n);
      row.decode(rounded);
      const double with_codes = ops.dot_row(weights.data(), rounded.data(), n);
      const double with_floats = ops.dot_row(weights.data(), x.data(), n);
      const double actual = ops.dot_q8(weights.data(), row, n);
      double magnitude = 0;
      double norm = 0;
      for (std::size_t i = 0; i < n; ++i) {
        magnitude += std::fabs(static_cast<double>(decoded[i]) * rounded[i]);
        norm += std::pow(static_cast<double>(decoded[i]) * x[i], 2);
      }
      worst_fold = std::max(worst_fold, std::fabs(actual - with_codes) / magnitude);
      squares += std::pow(actual - with_floats, 2);
      scale += norm;
    }
    const double relative = std::sqrt(squares / scale);
    INFO(skald::to_string(type) << ": fold error " << worst_fold << ", activation error " << relative);
    // Relative to the sum of magnitudes; a handful of float roundings.
    CHECK(worst_fold < 1e-6);
    CHECK(relative < (ops.activation == ActivationKind::q8_32 ? 0.012 : 0.03));
  }
}

TEST_CASE("quant.dot: a broken activation makes the product NaN", "[quant]") {
  for (const DType type : quantized_types) {
    std::vector<float> x(256, 1.0F);
    x[200] = std::numeric_limits<float>::infinity();
    const auto& ops = skald::format_ops(type);
    const auto weights = encode(type, heavy_values(256, 2));
    CHECK(std::isnan(ops.dot_q8(weights.data(), ActivationRow(x, ops.activation), 256)));
  }
}
