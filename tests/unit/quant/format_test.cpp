#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include <skald/core/error.hpp>

#include "quant_support.hpp"
#include "support/catch.hpp"

using namespace skald_test;
using skald::DType;

namespace {

/// A format that no file knows, as a user would write it: 8 elements, a float scale, int8 codes.
struct UserFormat {
  static constexpr std::string_view name = "user8";
  static constexpr std::size_t block_elements = 8;
  static constexpr float max_magnitude = 1000;
  struct Block {
    float scale;
    std::int8_t codes[8];
  };
  static void encode(const float* x, Block* out, const float* /*importance*/) {
    float top = 0;
    for (int i = 0; i < 8; ++i) top = std::max(top, std::fabs(x[i]));
    out->scale = top / 100;
    for (int i = 0; i < 8; ++i) out->codes[i] = static_cast<std::int8_t>(top > 0 ? std::lround(x[i] / out->scale) : 0);
  }
  static void decode(const Block* block, float* out) {
    for (int i = 0; i < 8; ++i) out[i] = static_cast<float>(block->codes[i]) * block->scale;
  }
};
static_assert(skald::BlockFormat<UserFormat>);
static_assert(!skald::StoredBlockFormat<UserFormat> && !skald::IntegerBlockFormat<UserFormat>);
static_assert(!skald::BlockFormat<int> && !skald::BlockFormat<skald::quant::BlockQ4_0>);

/// The message of the error that `call` throws.
template <class Error, class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

/// The layout formulas of block_layout.hpp, element by element, independent of the library's unpacking.
int code_at(const skald::quant::BlockQ4_K& b, std::size_t i) {
  return (b.codes[32 * (i / 64) + i % 32] >> (i % 64 < 32 ? 0 : 4)) & 15;
}
int code_at(const skald::quant::BlockQ5_K& b, std::size_t i) {
  return ((b.codes[32 * (i / 64) + i % 32] >> (i % 64 < 32 ? 0 : 4)) & 15) +
         16 * ((b.fifth_bits[i % 32] >> (i / 32)) & 1);
}
int code_at(const skald::quant::BlockQ6_K& b, std::size_t i) {
  const std::size_t half = i / 128;
  const std::size_t quarter = i % 128 / 32;
  const std::size_t lane = i % 32;
  const int low = b.low_bits[64 * half + (quarter % 2) * 32 + lane] >> (quarter < 2 ? 0 : 4);
  return (low & 15) + 16 * ((b.high_bits[32 * half + lane] >> (2 * quarter)) & 3);
}
int code_at(const skald::quant::BlockQ4_0& b, std::size_t i) { return (b.codes[i % 16] >> (i < 16 ? 0 : 4)) & 15; }
int code_at(const skald::quant::BlockQ4_1& b, std::size_t i) { return (b.codes[i % 16] >> (i < 16 ? 0 : 4)) & 15; }
template <class Block>
int fifth_at(const Block& b, std::size_t i) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, b.fifth_bits, 4);
  return ((b.codes[i % 16] >> (i < 16 ? 0 : 4)) & 15) + 16 * static_cast<int>((bits >> i) & 1);
}
int code_at(const skald::quant::BlockQ5_0& b, std::size_t i) { return fifth_at(b, i); }
int code_at(const skald::quant::BlockQ5_1& b, std::size_t i) { return fifth_at(b, i); }
int code_at(const skald::quant::BlockQ8_0& b, std::size_t i) { return b.codes[i]; }

float half(std::uint16_t bits) { return skald::f16_to_f32(bits); }
float value_at(const skald::quant::BlockQ8_0& b, std::size_t i) {
  return static_cast<float>(code_at(b, i)) * half(b.scale);
}
float value_at(const skald::quant::BlockQ4_0& b, std::size_t i) {
  return static_cast<float>(code_at(b, i) - 8) * half(b.scale);
}
float value_at(const skald::quant::BlockQ5_0& b, std::size_t i) {
  return static_cast<float>(code_at(b, i) - 16) * half(b.scale);
}
float value_at(const skald::quant::BlockQ4_1& b, std::size_t i) {
  return static_cast<float>(code_at(b, i)) * half(b.scale) + half(b.minimum);
}
float value_at(const skald::quant::BlockQ5_1& b, std::size_t i) {
  return static_cast<float>(code_at(b, i)) * half(b.scale) + half(b.minimum);
}
template <class Block>
float affine_at(const Block& b, std::size_t i) {
  const std::size_t j = i / 32;
  const int s = j < 4 ? b.scales[j] & 63 : (b.scales[j + 4] & 15) | (b.scales[j - 4] >> 6) << 4;
  const int m = j < 4 ? b.scales[j + 4] & 63 : b.scales[j + 4] >> 4 | (b.scales[j] >> 6) << 4;
  const float scale = half(b.scale) * static_cast<float>(s);
  const float minimum = half(b.minimum) * static_cast<float>(m);
  return scale * static_cast<float>(code_at(b, i)) - minimum;
}
float value_at(const skald::quant::BlockQ4_K& b, std::size_t i) { return affine_at(b, i); }
float value_at(const skald::quant::BlockQ5_K& b, std::size_t i) { return affine_at(b, i); }
float value_at(const skald::quant::BlockQ6_K& b, std::size_t i) {
  return half(b.scale) * static_cast<float>(b.scales[i / 16]) * static_cast<float>(code_at(b, i) - 32);
}

bool same_value(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

/// Decodes blocks of any bytes and compares with the formula.
template <class F>
void check_random_blocks() {
  INFO(F::name);
  TestRandom random(F::block_elements + F::name.size());
  std::size_t wrong = 0;
  for (int round = 0; round < 300; ++round) {
    typename F::Block block;
    std::byte bytes[sizeof(block)];
    for (auto& byte : bytes) byte = static_cast<std::byte>(random.bits());
    std::memcpy(&block, bytes, sizeof(block));
    float values[F::block_elements];
    F::decode(&block, values);
    std::conditional_t<std::is_same_v<F, skald::quant::Q8_0>, std::int8_t, std::uint8_t> codes[F::block_elements];
    skald::quant::unpack_codes(block, codes);
    for (std::size_t i = 0; i < F::block_elements; ++i) {
      wrong += codes[i] != code_at(block, i);
      wrong += !same_value(values[i], value_at(block, i));
    }
  }
  CHECK(wrong == 0);
}

/// Every binary16 scale with every byte as code byte.
template <class F>
void check_all_scales() {
  INFO(F::name);
  std::size_t wrong = 0;
  for (std::uint32_t scale = 0; scale < 0x10000; ++scale) {
    typename F::Block block;
    // Over 256 scales each byte position takes every value.
    std::memset(&block, static_cast<int>(scale & 255), sizeof(block));
    block.scale = static_cast<std::uint16_t>(scale);
    float values[F::block_elements];
    F::decode(&block, values);
    for (std::size_t i = 0; i < F::block_elements; i += 5) wrong += !same_value(values[i], value_at(block, i));
  }
  CHECK(wrong == 0);
}

template <template <class> class Check>
void for_quantized() {
  using namespace skald::quant;
  Check<Q8_0>()();
  Check<Q4_0>()();
  Check<Q4_1>()();
  Check<Q5_0>()();
  Check<Q5_1>()();
  Check<Q4_K>()();
  Check<Q5_K>()();
  Check<Q6_K>()();
}
template <class F>
struct RandomBlocks {
  void operator()() const { check_random_blocks<F>(); }
};
template <class F>
struct AllScales {
  void operator()() const { check_all_scales<F>(); }
};

/// Largest error that the simple formats may make on a block whose values span `range` with top magnitude `top`.
double error_bound(DType type, double top, double range) {
  const double half_ulp = 0x1p-11;  // relative rounding of a binary16 scale or minimum
  const double tiny = 0x1p-24;      // the smallest step there is
  switch (type) {
    case DType::q8_0: return top / 127 * 0.5 + top * half_ulp + tiny;
    // The largest magnitude has code -8 (-16); the same value with the other sign lacks one step.
    case DType::q4_0: return top / 8 * 1.0 + top * half_ulp + tiny;
    case DType::q5_0: return top / 16 * 1.0 + top * half_ulp + tiny;
    case DType::q4_1: return range / 15 * 0.5 + (range + top) * half_ulp + tiny;
    case DType::q5_1: return range / 31 * 0.5 + (range + top) * half_ulp + tiny;
    default: return 0;
  }
}

}  // namespace

TEST_CASE("quant.layout: the dtype table and the blocks agree", "[quant]") {
  CHECK(skald::block_formats().size() == 29);
  for (const DType type : skald::block_formats()) {
    const auto& ops = skald::format_ops(type);
    const auto& info = skald::dtype_info(type);
    CHECK(ops.name == info.name);
    CHECK(ops.dtype == type);
    CHECK(ops.block_elements == info.block_elements);
    CHECK(ops.block_bytes == info.block_bytes);
    CHECK(skald::can_encode(type));
    CHECK((ops.dot_q8 != nullptr) == info.quantized);
    CHECK((ops.activation == skald::ActivationKind::f32) == !info.quantized);
  }
  CHECK(offsetof(skald::quant::BlockQ5_1, codes) == 8);
  CHECK(offsetof(skald::quant::BlockQ5_K, fifth_bits) == 16);
  CHECK(offsetof(skald::quant::BlockQ6_K, scale) == 208);
}

TEST_CASE("quant.decode: follows the layout's formulas for arbitrary bytes", "[quant]") {
  for_quantized<RandomBlocks>();
}

TEST_CASE("quant.decode: takes every binary16 scale, subnormal and infinite ones too, and every code byte", "[quant]") {
  for_quantized<AllScales>();
}

TEST_CASE("quant.decode: rows may lie at any address", "[quant]") {
  for (const DType type : skald::block_formats()) {
    const auto x = heavy_values(512, 3);
    const auto row = encode(type, x);
    std::vector<std::byte> shifted(row.size() + 1);
    std::copy(row.begin(), row.end(), shifted.begin() + 1);
    std::vector<float> values(512);
    skald::decode_row(type, std::span(shifted).subspan(1), values);
    CHECK(values == decode(type, row));
  }
}

TEST_CASE("quant.encode: simple formats keep every element within their rounding bound", "[quant]") {
  for (const DType type : {DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1}) {
    for (int seed = 0; seed < 200; ++seed) {
      auto x = heavy_values(32, static_cast<std::uint64_t>(seed), std::ldexp(1.0, seed % 40 - 28));
      if (seed % 3 == 1)
        for (auto& value : x) value += x[0];
      const auto [low, high] = std::minmax_element(x.begin(), x.end());
      const double top = std::max(std::fabs(*low), std::fabs(*high));
      const double bound = error_bound(type, top, static_cast<double>(*high) - *low);
      const auto decoded = decode(type, encode(type, x));
      for (std::size_t i = 0; i < 32; ++i) {
        INFO(skald::to_string(type) << " seed " << seed << " element " << i << ": " << x[i] << " -> " << decoded[i]);
        REQUIRE(std::fabs(static_cast<double>(x[i]) - decoded[i]) <= bound);
      }
    }
  }
}

TEST_CASE("quant.encode: zeros, tiny, huge and lopsided blocks survive", "[quant]") {
  for (const DType type : quantized_types) {
    INFO(skald::to_string(type));
    const std::size_t n = skald::format_ops(type).block_elements;
    for (const float zero : {0.0F, -0.0F, 1e-45F, -1e-38F, 1e-12F}) {
      const auto decoded = decode(type, encode(type, std::vector<float>(n, zero)));
      for (const float value : decoded) CHECK(value == 0.0F);
    }
    // A constant, and one outlier among zeros, at sizes from the subnormal binary16 scales to the largest. A subnormal
    // scale is off by up to 2^-25, times the largest code.
    const float step_error = 31 * 0x1p-25F;
    for (const float size : {1e-5F, 1e-3F, 1.0F, 1000.0F, 65000.0F}) {
      for (const float sign : {1.0F, -1.0F}) {
        INFO("size " << size * sign);
        for (const float value : decode(type, encode(type, std::vector<float>(n, size * sign))))
          CHECK(std::fabs(value - size * sign) <= 0.02F * size + step_error);
        for (const std::size_t place : {std::size_t{0}, n / 2 + 3, n - 1}) {
          std::vector<float> x(n);
          x[place] = size * sign;
          const auto decoded = decode(type, encode(type, x));
          for (std::size_t i = 0; i < n; ++i) {
            if (i == place) CHECK(std::fabs(decoded[i] - x[i]) <= 0.02F * size + step_error);
            else CHECK(std::fabs(decoded[i]) <= 0.002F * size + step_error);
          }
        }
      }
    }
  }
}

TEST_CASE("quant.encode: the largest magnitudes a format takes decode to finite values near them", "[quant]") {
  const auto check = [](auto format) {
    using F = decltype(format);
    INFO(F::name);
    std::vector<float> x(F::block_elements);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = i % 3 == 0 ? F::max_magnitude : i % 3 == 1 ? -F::max_magnitude : 0;
    const auto decoded = decode(F::dtype, encode(F::dtype, x));
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::fabs(decoded[i] - x[i]) <= 0.13F * F::max_magnitude);
    x[1] = std::nextafter(F::max_magnitude, std::numeric_limits<float>::infinity());
    CHECK_THROWS_AS(encode(F::dtype, x), skald::NumericError);
  };
  check(skald::quant::Q8_0{});
  check(skald::quant::Q4_0{});
  check(skald::quant::Q4_1{});
  check(skald::quant::Q5_0{});
  check(skald::quant::Q5_1{});
  check(skald::quant::Q4_K{});
  check(skald::quant::Q5_K{});
  check(skald::quant::Q6_K{});
}

TEST_CASE("quant.encode: f16 and bf16 round to nearest even and refuse what would become infinite", "[quant]") {
  const std::vector<float> x{1.0F + 0x1p-11F, 1.0F + 3 * 0x1p-11F, -0.0F, 0x1p-24F, 0x1p-25F, 65519.0F};
  CHECK(decode(DType::f16, encode(DType::f16, x)) ==
        std::vector<float>{1.0F, 1.0F + 0x1p-9F, -0.0F, 0x1p-24F, 0.0F, 65504.0F});
  CHECK(std::signbit(decode(DType::f16, encode(DType::f16, x))[2]));
  CHECK(decode(DType::bf16, encode(DType::bf16, {1.0F + 0x1p-8F, 1.0F + 3 * 0x1p-8F})) ==
        std::vector<float>{1.0F, 1.0F + 0x1p-6F});
  CHECK(decode(DType::f32, encode(DType::f32, x)) == x);
  CHECK_THROWS_AS(encode(DType::f16, {65520.0F}), skald::NumericError);
  CHECK(std::isfinite(decode(DType::f16, encode(DType::f16, {skald::quant::F16::max_magnitude}))[0]));
  CHECK(std::isfinite(decode(DType::bf16, encode(DType::bf16, {skald::quant::BF16::max_magnitude}))[0]));
  CHECK_THROWS_AS(encode(DType::bf16, {std::numeric_limits<float>::max()}), skald::NumericError);
}

TEST_CASE("quant.encode: is deterministic and blocks do not influence one another", "[quant]") {
  for (const DType type : quantized_types) {
    INFO(skald::to_string(type));
    const auto x = heavy_values(1024, 11);
    const auto whole = encode(type, x);
    CHECK(whole == encode(type, x));
    const std::size_t n = skald::format_ops(type).block_elements;
    std::vector<std::byte> joined;
    for (std::size_t at = 0; at < x.size(); at += n) {
      const auto part = encode(type, std::vector<float>(x.begin() + static_cast<std::ptrdiff_t>(at),
                                                        x.begin() + static_cast<std::ptrdiff_t>(at + n)));
      joined.insert(joined.end(), part.begin(), part.end());
    }
    CHECK(joined == whole);
  }
}

TEST_CASE("quant.encode: importance moves the error to where it matters less", "[quant]") {
  for (const DType type : quantized_types) {
    INFO(skald::to_string(type));
    const auto x = heavy_values(256 * 64, 21);
    TestRandom random(5);
    std::vector<float> importance(x.size());
    for (auto& value : importance) value = static_cast<float>(std::exp(2 * random.normal()));
    const double plain = squared_error(x, decode(type, encode(type, x)), importance);
    const double weighted = squared_error(x, decode(type, encode(type, x, importance)), importance);
    INFO("weighted " << weighted << " plain " << plain);
    if (type == DType::q8_0) CHECK(weighted == plain);
    else CHECK(weighted < 0.97 * plain);
    // The same importance everywhere, zero too, is no importance; K formats always search.
    const auto even = encode(type, x, std::vector<float>(x.size(), 7.0F));
    CHECK(encode(type, x, std::vector<float>(x.size(), 0.0F)) == even);
    if (skald::format_ops(type).block_elements == 256) CHECK(even == encode(type, x));
  }
}

TEST_CASE("quant.encode: a value that is not finite is refused by index, before anything is written", "[quant]") {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity()};
  for (const DType type : skald::block_formats()) {
    for (const float value : bad) {
      for (const std::size_t index : {std::size_t{0}, std::size_t{300}, std::size_t{511}}) {
        auto x = heavy_values(512, 1);
        x[index] = value;
        std::vector<std::byte> row(skald::row_bytes(type, x.size()), std::byte{0xA5});
        const auto untouched = row;
        const auto text = message_of<skald::NumericError>([&] { skald::encode_row(type, x, row); });
        INFO(text);
        CHECK(text.find("element " + std::to_string(index) + " is") != std::string::npos);
        CHECK(text.find(skald::to_string(type)) != std::string::npos);
        CHECK(row == untouched);
      }
    }
    std::vector<float> importance(512, 1.0F);
    for (const float value : {-1.0F, bad[0], bad[1]}) {
      importance[17] = value;
      const auto text = message_of<skald::NumericError>([&] { encode(type, heavy_values(512, 1), importance); });
      CHECK(text.find("importance 17") != std::string::npos);
    }
  }
}

TEST_CASE("quant.row: wrong lengths and unknown types are refused with what was found and what is allowed", "[quant]") {
  std::vector<float> x(100);
  std::vector<std::byte> row(1000);
  for (const DType type : quantized_types) {
    const auto& ops = skald::format_ops(type);
    const auto text = message_of<skald::UsageError>([&] { ops.decode_row(row.data(), x.data(), 100); });
    CHECK(text.find("100") != std::string::npos);
    CHECK(text.find(std::to_string(ops.block_elements)) != std::string::npos);
    CHECK_THROWS_AS(ops.encode_row(x.data(), row.data(), 100, nullptr), skald::UsageError);
    CHECK_THROWS_AS(ops.dot_row(row.data(), x.data(), 100), skald::UsageError);
    CHECK_THROWS_AS(skald::decode_row(type, row, x), skald::UsageError);
  }
  std::vector<float> block(32);
  CHECK_THROWS_AS(skald::encode_row(DType::q8_0, block, std::span(row).first(33)), skald::UsageError);
  CHECK_THROWS_AS(skald::encode_row(DType::q8_0, block, std::span(row).first(34), x), skald::UsageError);
  skald::encode_row(DType::q8_0, {}, {});
  CHECK(message_of<skald::UnsupportedError>([] { (void)skald::format_ops(DType::q8_k); }).find("q8_k") !=
        std::string::npos);
  CHECK(message_of<skald::UnsupportedError>([] { (void)skald::format_ops(static_cast<DType>(77)); }).find("77") !=
        std::string::npos);
  CHECK(skald::find_format_ops(DType::i64) == nullptr);
  CHECK_FALSE(skald::can_encode(DType::q8_1));
}

TEST_CASE("quant.format_ops_of: makes a row codec of a user's own format", "[quant]") {
  constexpr auto& ops = skald::format_ops_of<UserFormat>;
  CHECK(ops.name == "user8");
  CHECK_FALSE(ops.dtype.has_value());
  CHECK(ops.dot_q8 == nullptr);
  const auto x = heavy_values(24, 9, 1.0);
  std::vector<std::byte> row(3 * ops.block_bytes);
  ops.encode_row(x.data(), row.data(), x.size(), nullptr);
  std::vector<float> decoded(24);
  ops.decode_row(row.data(), decoded.data(), 24);
  double dot = 0;
  for (std::size_t i = 0; i < 24; ++i) {
    CHECK(std::fabs(decoded[i] - x[i]) < 0.1F);
    dot += static_cast<double>(decoded[i]) * x[i];
  }
  CHECK(ops.dot_row(row.data(), x.data(), 24) == dot);
  CHECK_THROWS_AS(ops.encode_row(x.data(), row.data(), 23, nullptr), skald::UsageError);
  const std::vector<float> large(8, 1001.0F);
  CHECK(message_of<skald::NumericError>([&] { ops.encode_row(large.data(), row.data(), 8, nullptr); }).find("1000") !=
        std::string::npos);
}
