#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "matmul_support.hpp"

using namespace skald_test;
using skald::ActivationKind;
using skald::ActivationRow;
using skald::format_ops;

namespace {

const std::vector<DType> all_types{DType::f32,  DType::f16,  DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1,
                                   DType::q5_0, DType::q5_1, DType::q4_k, DType::q5_k, DType::q6_k, DType::iq4_nl, DType::mxfp4,
                                   DType::q2_k, DType::q3_k, DType::iq4_xs, DType::tq1_0, DType::tq2_0, DType::iq2_xxs,
                                   DType::iq2_xs, DType::iq2_s, DType::iq3_xxs, DType::iq3_s, DType::iq1_s, DType::iq1_m,
                                   DType::f64, DType::i8, DType::i16, DType::i32};

/// One output as the scalar specification gives it; `fused` says whether product and sum are rounded together.
float specified(const Weight& weight, std::int64_t row, const float* x, bool fused) {
  const auto cols = static_cast<std::size_t>(weight.cols);
  const auto& ops = format_ops(weight.type);
  if (!is_float(weight.type)) {
    REQUIRE(ops.dot_q8 != nullptr);
    return ops.dot_q8(weight.row(row), ActivationRow(std::span(x, cols), ops.activation), cols);
  }
  std::vector<float> w(cols);
  ops.decode_row(weight.row(row), w.data(), cols);
  float acc = 0;
  for (std::size_t k = 0; k < cols; ++k) acc = fused ? std::fma(w[k], x[k], acc) : w[k] * x[k] + acc;
  return acc;
}

/// The nearest bf16, ties to even.
float rounded_to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
}

/// As `specified`, by bf16 dot products: of each pair of columns first the second (VDPBF16PS).
float specified_bf16(const Weight& weight, std::int64_t row, const float* x) {
  const auto cols = static_cast<std::size_t>(weight.cols);
  std::vector<float> w(cols + cols % 2, 0.0F), rounded(cols + cols % 2, 0.0F);
  format_ops(weight.type).decode_row(weight.row(row), w.data(), cols);
  for (std::size_t k = 0; k < cols; ++k) rounded[k] = rounded_to_bf16(x[k]);
  float acc = 0;
  for (std::size_t k = 0; k < w.size(); k += 2)
    acc = std::fma(w[k], rounded[k], std::fma(w[k + 1], rounded[k + 1], acc));
  return acc;
}

std::vector<float> specified(const Weight& weight, const std::vector<float>& x, std::int64_t count, Isa isa) {
  std::vector<float> out;
  const bool bf16 = isa == Isa::avx512bf16;
  for (std::int64_t c = 0; c < count; ++c)
    for (std::int64_t r = 0; r < weight.rows; ++r) {
      const float* row = x.data() + c * weight.cols;
      out.push_back(bf16 ? specified_bf16(weight, r, row) : specified(weight, r, row, has_fma(isa)));
    }
  return out;
}

std::vector<float> specified(const Weight& weight, const std::vector<float>& x, std::int64_t count, bool fused) {
  std::vector<float> out;
  for (std::int64_t c = 0; c < count; ++c)
    for (std::int64_t r = 0; r < weight.rows; ++r)
      out.push_back(specified(weight, r, x.data() + c * weight.cols, fused));
  return out;
}

/// Integers in [-127, 127] with 127 in every block of 32, so that activation scales are exactly 1.
std::vector<float> integer_activations(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> x(n);
  for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
  for (std::size_t i = 0; i < n; i += 32) x[i + random() % 32] = random() % 2 ? 127.0F : -127.0F;
  return x;
}

}  // namespace

TEST_CASE("kernels.matmul: every instruction set has every format") {
  for (const Isa isa : skald::available_isas()) {
    std::vector<DType> types;
    for (const auto& kernel : matmul_kernels(isa)) types.push_back(kernel.type);
    // The last one replaces some kernels of the one before.
    if (isa == Isa::avx512bf16) CHECK(types == std::vector<DType>{DType::bf16});
    else {
      // The last one looks up what another one of its type unpacks.
      auto expected = all_types;
      expected.push_back(DType::tq1_0);
      CHECK(types == expected);
    }
  }
}

TEST_CASE("kernels.matmul: panels take as many bytes as the file and give back what the file's rows decode to") {
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    for (const std::int64_t blocks : {1, 2, 3, 7}) {
      const std::int64_t cols = blocks * std::max<std::int64_t>(block_of(kernel.type), 1);
      for (const std::int64_t rows : {16, 17, 5}) {
        const Weight weight = random_bytes_weight(kernel.type, rows, cols, static_cast<unsigned>(7 * rows + cols));
        // Pairs of columns: an odd last one takes the room of two.
        const std::size_t padding = isa == Isa::avx512bf16 ? static_cast<std::size_t>(cols % 2) * 2 : 0;
        REQUIRE(kernel.panel_bytes(cols) == (packs_floats(kernel.type) ? 64 * static_cast<std::size_t>(cols)
                                                                       : 16 * (weight.row_bytes() + padding)));
        GuardedBytes panels(packed_bytes(kernel, weight));
        pack_weight(kernel, weight, panels.data());
        GuardedBytes out(static_cast<std::size_t>(cols) * 4);
        std::vector<float> expected(static_cast<std::size_t>(cols));
        for (std::int64_t r = 0; r < rows; ++r) {
          format_ops(kernel.type).decode_row(weight.row(r), expected.data(), expected.size());
          auto* floats = reinterpret_cast<float*>(out.data());
          kernel.unpack_row(panels.data() + static_cast<std::size_t>(r / 16) * kernel.panel_bytes(cols),
                            static_cast<int>(r % 16), cols, floats);
          CAPTURE(rows, cols, r);
          REQUIRE(first_difference(expected, std::span(floats, expected.size())) == -1);
        }
      }
    }
  });
}

TEST_CASE("kernels.matmul: activations are quantized as specified") {
  // Rows with a single one take the activations out again.
  std::vector<float> x = normal_floats(16 * 256, 3);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto block = [&](std::size_t index) { return std::span(x).subspan(256 * index, 256); };
  std::fill(block(1).begin(), block(1).end(), 0.0F);
  block(2)[17] = infinity;
  block(3)[200] = -infinity;
  block(4)[31] = std::numeric_limits<float>::quiet_NaN();
  for (float& value : block(5)) value *= 0x1p-101F;
  for (float& value : block(6)) value *= 0x1p-99F;
  for (float& value : block(7)) value *= 0x1p-140F;
  for (float& value : block(8)) value = std::numeric_limits<float>::max();
  for (std::size_t i = 0; i < 256; ++i) block(9)[i] = static_cast<float>(i) - 127.5F;  // ties
  for (std::size_t i = 0; i < 256; ++i) block(10)[i] = (i % 2 ? 0.5F : -1.5F) * static_cast<float>(i % 128);
  block(11)[0] = -0.0F;
  block(12)[255] = 1e30F;
  block(13)[0] = -1e-30F;
  for_each_kernel([&](Isa, const MatmulKernel& kernel) {
    if (kernel.type != DType::q8_0 && kernel.type != DType::q4_k) return;
    Weight weight{kernel.type, block_of(kernel.type), 0, {}};
    weight.cols = weight.rows;
    weight.bytes.resize(static_cast<std::size_t>(weight.rows) * weight.row_bytes());
    for (std::int64_t r = 0; r < weight.rows; ++r) {
      std::byte* row = weight.bytes.data() + static_cast<std::size_t>(r) * weight.row_bytes();
      if (kernel.type == DType::q8_0) {
        row[2 + r] = std::byte{1};
      } else {
        for (const int i : {4, 5, 6, 7, 12, 13, 14, 15}) row[i] = std::byte{1};  // all sub-scales 1, minimums 0
        row[16 + r / 64 * 32 + r % 32] = std::byte{static_cast<unsigned char>(r % 64 < 32 ? 0x01 : 0x10)};
      }
    }
    set_scales(weight, 0x3C00, 0);
    const std::int64_t count = static_cast<std::int64_t>(x.size()) / weight.cols;
    const auto got = product(kernel, weight, x, count);
    const auto kind = format_ops(kernel.type).activation;
    std::vector<float> expected(x.size());
    ActivationRow(x, kind).decode(expected);
    for (std::size_t i = 0; i < x.size(); ++i) {
      CAPTURE(i, x[i], got[i], expected[i]);
      // The sum of the other products with zero turns -0 into +0.
      REQUIRE(same_bits(got[i], expected[i] + 0.0F));
    }
  });
}

TEST_CASE("kernels.matmul: prepared columns are lists of words, interleaved by column") {
  // Those of experts are prepared alone and put together.
  for_each_kernel([](Isa, const MatmulKernel& kernel) {
    if (kernel.alone) return;
    const std::int64_t cols = 3 * (is_float(kernel.type) ? 32 : block_of(kernel.type));
    const auto values = static_cast<std::size_t>(cols);
    for (const std::int64_t width : {2, 5, 8, 12}) {
      auto x = normal_floats(static_cast<std::size_t>(width) * values, static_cast<unsigned>(width));
      std::fill_n(x.begin(), 40, 1.0F);        // magnitudes that are all large
      std::fill_n(x.begin() + cols, cols, 0.0F);
      GuardedBytes group(kernel.acts_bytes(cols, width)), alone(kernel.acts_bytes(cols, 1));
      kernel.prepare(x.data(), cols, cols, 0, width, group.data(), width);
      const std::size_t stride = 4 * static_cast<std::size_t>(width);
      const std::size_t words = std::min(alone.size() / 4, group.size() / stride);
      for (std::size_t c = 0; c < static_cast<std::size_t>(width); ++c) {
        kernel.prepare(x.data() + c * values, cols, cols, 0, 1, alone.data(), 1);
        CAPTURE(width, c);
        bool same = true;
        for (std::size_t i = 0; i < words; ++i)
          same = same && std::memcmp(alone.data() + 4 * i, group.data() + i * stride + 4 * c, 4) == 0;
        REQUIRE(same);
      }
    }
  });
}

TEST_CASE("kernels.matmul: products are the scalar specification's, bit for bit with fused multiply-add") {
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    for (const std::int64_t blocks : {1, 2, 3, 5, 16}) {
      const std::int64_t cols = blocks * (is_float(kernel.type) ? 37 : block_of(kernel.type));
      const std::int64_t rows = 16 * (blocks % 3) + 13, count = blocks == 16 ? 40 : 13;
      const Weight weight = encoded_weight(kernel.type, rows, cols, 100 + static_cast<unsigned>(blocks));
      const auto x = normal_floats(static_cast<std::size_t>(count * cols), 5);
      const auto got = product(kernel, weight, x, count);
      CAPTURE(rows, cols, count);
      if (has_fma(isa) || is_float(kernel.type)) {
        REQUIRE(first_difference(got, specified(weight, x, count, isa)) == -1);
      } else {
        // Two roundings instead of one per block: each at most 2^-24 of terms that are below a few times sqrt(cols).
        const auto expected = specified(weight, x, count, true);
        const float tolerance = 0x1p-22F * static_cast<float>(blocks + 1) * 16 * std::sqrt(static_cast<float>(cols));
        for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::abs(got[i] - expected[i]) <= tolerance);
      }
    }
  });
}

TEST_CASE("kernels.matmul: integer sums are exact for any bytes on every instruction set") {
  // Scales that are powers of two make every product exact, so fused or not does not matter and bits must agree.
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    if (is_float(kernel.type)) return;
    // With AVX-512 VNNI many columns take another way.
    const std::int64_t cols = 1024, rows = 35, count = isa == Isa::avx512vnni ? 101 : 29;
    for (const int fill : {-1, 0x00, 0xFF, 0x80, 0x7F, 0x88, 0x77}) {
      Weight weight = random_bytes_weight(kernel.type, rows, cols, 11);
      if (fill >= 0) std::fill(weight.bytes.begin(), weight.bytes.end(), static_cast<std::byte>(fill));
      set_scales(weight, 0x3C00, 0x3800);
      auto x = integer_activations(static_cast<std::size_t>(count * cols), 23);
      std::fill(x.begin(), x.begin() + cols, 127.0F);
      std::fill(x.begin() + cols, x.begin() + 2 * cols, -127.0F);
      for (std::int64_t k = 0; k < cols; ++k) x[static_cast<std::size_t>(2 * cols + k)] = k % 2 ? 127.0F : -127.0F;
      CAPTURE(fill);
      REQUIRE(first_difference(product(kernel, weight, x, count), specified(weight, x, count, true)) == -1);
      REQUIRE(first_difference(product(kernel, weight, x, 3), specified(weight, x, 3, true)) == -1);
    }
  });
}

TEST_CASE("kernels.matmul: integer sums are exact where they just fit into 16 bits and just don't") {
  // Products of five columns and more add up two sub-blocks in the halves of a lane unless 16 magnitudes sum up to more
  // than 1023.
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    if (is_float(kernel.type) || isa == Isa::baseline) return;
    const std::int64_t cols = 512, rows = 32, count = 120;
    std::vector<float> x(static_cast<std::size_t>(count * cols));
    for (std::int64_t c = 0; c < count; ++c) {
      // Each group of twelve columns has a sum of its own, but one column of the last two.
      const int sums[] = {1016, 1024, 1023, 1025, 1100, 1040, 127, 2032, 1023, 1024};
      const std::int64_t group = c / 12;
      const int sum = c % 12 == 7 && group >= 8 ? 2047 - sums[group] : sums[group];
      for (std::int64_t k = 0; k < cols; ++k) {
        // 127 as long as they fit, then what is left, then zeros.
        const int magnitude = std::clamp(sum - 127 * static_cast<int>(k % 16), 0, 127);
        const bool negative = c % 3 == 1 || (c % 3 == 2 && (k / 16) % 2 == 1);
        x[static_cast<std::size_t>(c * cols + k)] = static_cast<float>(negative ? -magnitude : magnitude);
      }
    }
    for (const int fill : {0x00, 0xFF, 0x7F, 0x80, -1}) {
      Weight weight = random_bytes_weight(kernel.type, rows, cols, 13);
      if (fill >= 0) std::fill(weight.bytes.begin(), weight.bytes.end(), static_cast<std::byte>(fill));
      set_scales(weight, 0x3C00, 0x3800);
      CAPTURE(fill);
      const auto expected = specified(weight, x, count, true);
      REQUIRE(first_difference(product(kernel, weight, x, count), expected) == -1);
      for (std::int64_t first = 0, few = 4; first < count; first += 12, few = few % 11 + 1) {
        const std::vector<float> part(x.begin() + first * cols, x.begin() + (first + few) * cols);
        CAPTURE(first, few);
        REQUIRE(first_difference(product(kernel, weight, part, few),
                                 std::span(expected).subspan(static_cast<std::size_t>(first * rows),
                                                             static_cast<std::size_t>(few * rows))) == -1);
      }
    }
  });
}

TEST_CASE("kernels.matmul: infinite, NaN, subnormal and huge scales give what the specification gives") {
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    if (is_float(kernel.type) || !has_fma(isa)) return;
    const std::int64_t cols = 512, rows = isa == Isa::avx512vnni ? 32 : 16, count = isa == Isa::avx512vnni ? 98 : 26;
    const auto x = normal_floats(static_cast<std::size_t>(count * cols), 9, 1000.0F);
    for (const std::uint16_t scale : {0x7C00, 0xFC00, 0x7E01, 0x0001, 0x83FF, 0x7BFF, 0x0000, 0x8000}) {
      Weight weight = random_bytes_weight(kernel.type, rows, cols, 31);
      set_scales(weight, scale, 0xFBFF);
      CAPTURE(scale);
      REQUIRE(first_difference(product(kernel, weight, x, count), specified(weight, x, count, true)) == -1);
    }
  });
}

TEST_CASE("kernels.matmul: a column's bits depend on neither the number of columns nor the ranges") {
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    const std::int64_t block = is_float(kernel.type) ? 32 : block_of(kernel.type);
    const std::int64_t cols = 3 * block, rows = 16 * 5 + 3;
    const Weight weight = encoded_weight(kernel.type, rows, cols, 77);
    const std::int64_t most = isa == Isa::baseline ? 97 : 512;
    const auto x = normal_floats(static_cast<std::size_t>(most * cols), 6);
    std::vector<float> alone;
    for (std::int64_t c = 0; c < most; ++c) {
      const std::vector<float> column(x.begin() + c * cols, x.begin() + (c + 1) * cols);
      const auto one = product(kernel, weight, column, 1);
      alone.insert(alone.end(), one.begin(), one.end());
    }
    const auto expect = [&](std::int64_t count, std::vector<std::int64_t> starts) {
      CAPTURE(count, starts);
      const auto got = product(kernel, weight, x, count, starts);
      REQUIRE(first_difference(got, std::span(alone).first(got.size())) == -1);
    };
    for (std::int64_t count = 1; count <= 40; ++count) expect(count, {0});
    expect(97, {0});
    expect(97, {0, 12, 48});
    expect(97, {0, 36, 84, 96});
    expect(most, {0});
    expect(most, {0, 24, 60});
  });
}

TEST_CASE("kernels.matmul: a range that ends inside a group writes its columns alone") {
  for_each_kernel([](Isa, const MatmulKernel& kernel) {
    const std::int64_t cols = is_float(kernel.type) ? 31 : block_of(kernel.type), rows = 21, count = 50;
    const Weight weight = encoded_weight(kernel.type, rows, cols, 5);
    const auto x = normal_floats(static_cast<std::size_t>(count * cols), 8);
    const auto whole = product(kernel, weight, x, count);
    std::vector<std::byte> panels(packed_bytes(kernel, weight)), acts(kernel.acts_bytes(cols, count)),
        scratch(kernel.scratch_bytes(cols, count) + 64);
    pack_weight(kernel, weight, panels.data());
    kernel.prepare(x.data(), cols, cols, 0, count, acts.data(), count);
    for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, 5}, {12, 13}, {0, 31}, {12, 47}, {24, 24}}) {
      std::vector<float> out(whole.size(), 123.0F);
      kernel.multiply(panels.data(), rows, cols, {acts.data(), count, begin, end}, out.data(), rows, scratch.data());
      std::vector<float> expected(whole.size(), 123.0F);
      std::copy(whole.begin() + begin * rows, whole.begin() + end * rows, expected.begin() + begin * rows);
      CAPTURE(begin, end);
      REQUIRE(first_difference(out, expected) == -1);
    }
  });
}

TEST_CASE("kernels.matmul: a row's bits do not depend on the panels beside it") {
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    const std::int64_t cols = is_float(kernel.type) ? 64 : 2 * block_of(kernel.type), rows = 16 * 9 + 1;
    const Weight weight = encoded_weight(kernel.type, rows, cols, 12);
    for (const std::int64_t count : {1, 2, 30, isa == Isa::avx512vnni ? 100 : 12}) {
      const auto x = normal_floats(static_cast<std::size_t>(count * cols), 4);
      const auto whole = product(kernel, weight, x, count);
      for (std::int64_t first = 0; first < rows; first += 16) {
        Weight part{kernel.type, std::min<std::int64_t>(16, rows - first), cols, {}};
        part.bytes.assign(weight.row(first), weight.row(first) + static_cast<std::size_t>(part.rows) * part.row_bytes());
        const auto got = product(kernel, part, x, count);
        for (std::int64_t c = 0; c < count; ++c)
          for (std::int64_t r = 0; r < part.rows; ++r)
            REQUIRE(same_bits(got[static_cast<std::size_t>(c * part.rows + r)],
                              whole[static_cast<std::size_t>(c * rows + first + r)]));
      }
    }
  });
}

TEST_CASE("kernels.matmul: long rows of odd block counts agree with double precision") {
  for_each_kernel([](Isa isa, const MatmulKernel& kernel) {
    const std::int64_t block = is_float(kernel.type) ? 32 : block_of(kernel.type);
    for (const std::int64_t cols : {4096 / block * block, (4096 / block - 1) * block}) {
      const std::int64_t rows = 18, count = 27;
      const Weight weight = encoded_weight(kernel.type, rows, cols, 55);
      const auto x = normal_floats(static_cast<std::size_t>(count * cols), 2);
      const auto got = product(kernel, weight, x, count);
      const auto& ops = format_ops(kernel.type);
      double worst = 0;
      for (std::int64_t c = 0; c < count; ++c) {
        std::vector<float> decoded(x.begin() + c * cols, x.begin() + (c + 1) * cols);
        if (ops.activation != ActivationKind::f32) {
          const ActivationRow row(decoded, ops.activation);
          row.decode(decoded);
        }
        if (isa == Isa::avx512bf16)
          for (float& value : decoded) value = rounded_to_bf16(value);
        for (std::int64_t r = 0; r < rows; ++r) {
          const double exact = ops.dot_row(weight.row(r), decoded.data(), static_cast<std::size_t>(cols));
          worst = std::max(worst, std::abs(exact - static_cast<double>(got[static_cast<std::size_t>(c * rows + r)])));
        }
      }
      // Sums of 4096 products of unit variance are near 64; a fold of n rounded additions errs by about sqrt(n) 2^-24 of that,
      // and the decoded weights and activations, each rounded, by less.
      CAPTURE(cols, worst);
      REQUIRE(worst < 64 * 0x1p-24 * 64 * 4);
    }
  });
}

// Table lookups for ternary weights (TeLLMe v2).
TEST_CASE("kernels.ternary: looked up products have the bits of unpacked ones for all bytes, in 1.7 bits per weight") {
  for (const Isa isa : skald::available_isas()) {
    const MatmulKernel *unpacked = nullptr, *looked_up = nullptr, *int8 = nullptr;
    for (const auto& kernel : matmul_kernels(isa)) {
      if (kernel.type == DType::tq1_0) (kernel.alone ? looked_up : unpacked) = &kernel;
      if (kernel.type == DType::q8_0) int8 = &kernel;
    }
    if (isa == Isa::avx512bf16) continue;  // adds nothing for these types
    REQUIRE(unpacked != nullptr);
    REQUIRE(looked_up != nullptr);
    CAPTURE(std::string(to_string(isa)));
    CHECK(looked_up->activation_id != unpacked->activation_id);
    for (const std::int64_t cols : {256, 2048}) {
      CHECK(static_cast<double>(looked_up->panel_bytes(cols)) * 8 <= 1.7 * 16 * static_cast<double>(cols));
      CHECK(looked_up->panel_bytes(cols) * 5 < int8->panel_bytes(cols));  // what one token reads
    }
    for (const std::int64_t rows : {16, 33}) {
      const std::int64_t cols = 1024;
      Weight weight = random_bytes_weight(DType::tq1_0, rows, cols, 71);  // also bytes that no encoder writes
      set_scales(weight, 0x2E66, 0);
      for (std::int64_t count = 1; count <= 14; ++count) {
        const auto x = normal_floats(static_cast<std::size_t>(count * cols), static_cast<unsigned>(3 * count));
        const auto expected = product(*unpacked, weight, x, count);
        CAPTURE(rows, count);
        REQUIRE(first_difference(product(*looked_up, weight, x, count), expected) == -1);
      }
    }
  }
}
