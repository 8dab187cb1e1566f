// The portable vectors of the baseline against the scalar conversions; the other instruction sets use instructions for them.

#define SKALD_ISA baseline
#define SKALD_ISA_baseline 1
#include "simd/vec.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <skald/core/half.hpp>

#include "support/catch.hpp"

using namespace skald;
using namespace skald::kernels::baseline;

namespace {
std::vector<float> interesting_floats() {
  std::vector<float> values;
  std::mt19937 random(1);
  for (int i = 0; i < 1 << 18; ++i) values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  // Around every half-precision value and every point in the middle of two.
  for (std::uint32_t h = 0; h < 0x7C00; ++h) {
    const float a = f16_to_f32(static_cast<std::uint16_t>(h));
    const float middle = (a + f16_to_f32(static_cast<std::uint16_t>(h + 1))) / 2;
    for (const float x : {a, middle, std::nextafter(middle, 0.0F), std::nextafter(middle, 1e9F)}) {
      values.push_back(x);
      values.push_back(-x);
    }
  }
  for (const float x : {65519.0F, 65520.0F, 65536.0F, 1e38F, std::numeric_limits<float>::infinity()}) {
    values.push_back(x);
    values.push_back(-x);
  }
  values.resize(values.size() / 16 * 16);
  return values;
}
}  // namespace

TEST_CASE("simd.vec: the baseline converts from half precision and bfloat16 exactly") {
  for (std::uint32_t first = 0; first < 65536; first += 16) {
    std::uint16_t stored[16];
    float half[16], brain[16];
    for (std::uint32_t i = 0; i < 16; ++i) stored[i] = static_cast<std::uint16_t>(first + i);
    store(half, load_f16(stored));
    store(brain, load_bf16(stored));
    for (std::uint32_t i = 0; i < 16; ++i) {
      REQUIRE(std::bit_cast<std::uint32_t>(half[i]) == std::bit_cast<std::uint32_t>(f16_to_f32(stored[i])));
      REQUIRE(std::bit_cast<std::uint32_t>(brain[i]) == std::bit_cast<std::uint32_t>(bf16_to_f32(stored[i])));
    }
  }
}

TEST_CASE("simd.vec: the baseline rounds to half precision and bfloat16 as the scalar functions do") {
  const auto values = interesting_floats();
  for (std::size_t at = 0; at < values.size(); at += 16) {
    std::uint16_t half[16], brain[16];
    store_f16(half, load(values.data() + at));
    store_bf16(brain, load(values.data() + at));
    for (std::size_t i = 0; i < 16; ++i) {
      CAPTURE(values[at + i]);
      REQUIRE(half[i] == f32_to_f16(values[at + i]));
      REQUIRE(brain[i] == f32_to_bf16(values[at + i]));
    }
  }
}

TEST_CASE("simd.vec: the baseline's dot products of bytes are exact for all pairs of bytes") {
  for (int w = 0; w < 256; ++w)
    for (int a = -128; a < 128; ++a) {
      std::uint8_t codes[64] = {};
      std::int8_t values[64] = {};
      const int lane = (w + a + 128) % 64;
      codes[lane] = static_cast<std::uint8_t>(w);
      values[lane] = static_cast<std::int8_t>(a);
      std::int32_t out[16];
      store(out, dot4(set1(7), load_bytes(codes), load_bytes(values)));
      REQUIRE(out[lane / 4] == 7 + w * a);
    }
}

TEST_CASE("simd.vec: rounding to integers is to nearest even") {
  const float x[16] = {0.5F, 1.5F, 2.5F, -0.5F, -1.5F, 126.5F, 127.49F, -126.5F, 0.0F, -0.0F, 0.49999997F, 1e6F, -1e6F, 3.0F, 4194303.5F, 5e6F};
  std::int32_t out[16];
  store(out, round_to_i32(load(x)));
  for (int i = 0; i < 16; ++i) CHECK(out[i] == static_cast<std::int32_t>(std::nearbyint(x[i])));
}
