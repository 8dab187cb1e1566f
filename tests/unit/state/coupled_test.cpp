// Coupled quantization of channels (Zhang et al. 2024, arXiv 2405.03917).

#include <cmath>

#include <skald/core/error.hpp>
#include <skald/core/random.hpp>
#include <skald/state/coupled.hpp>

#include "support/catch.hpp"

namespace {

using namespace skald;

AnyExecutor serial() { return {std::make_shared<SerialExecutor>()}; }

constexpr std::size_t dims = 16;

/// [channel][token], nearly normal; `shared` is the part that all channels of a group of eight have in common.
std::vector<float> values(std::uint64_t seed, std::size_t tokens, float shared) {
  std::vector<float> result(dims * tokens);
  const auto normal = [&](std::uint64_t stream, std::size_t t) {
    CounterRandom random(seed, stream, t);
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += random.uniform() - 0.5;
    return static_cast<float>(sum * std::sqrt(2.0));
  };
  for (std::size_t t = 0; t < tokens; ++t) {
    float common[2] = {normal(100, t), normal(101, t)};
    for (std::size_t c = 0; c < dims; ++c)
      result[c * tokens + t] =
          std::sqrt(shared) * common[c / 8] * (c % 3 == 0 ? -1.0F : 1.0F) + std::sqrt(1.0F - shared) * normal(c, t);
  }
  return result;
}

std::vector<float> token(const std::vector<float>& all, std::size_t tokens, std::size_t t) {
  std::vector<float> x(dims);
  for (std::size_t c = 0; c < dims; ++c) x[c] = all[c * tokens + t];
  return x;
}

/// Mean squared error on values that the codebook was not learned from, over their variance.
double error(const CoupledShape& shape, float shared) {
  constexpr std::size_t tokens = 3000;
  const auto known = values(1, tokens, shared);
  const auto fresh = values(2, 800, shared);
  const CoupledCodebook book(shape, 1, dims, known, {}, serial());
  std::vector<std::byte> codes(book.row_bytes());
  std::vector<float> x(dims);
  double sum = 0;
  double square = 0;
  for (std::size_t t = 0; t < 800; ++t) {
    const auto exact = token(fresh, 800, t);
    book.encode(0, exact.data(), codes.data());
    book.decode(0, codes.data(), x.data());
    for (std::size_t c = 0; c < dims; ++c) {
      sum += std::pow(static_cast<double>(x[c] - exact[c]), 2);
      square += std::pow(static_cast<double>(exact[c]), 2);
    }
  }
  return sum / square;
}

}  // namespace

TEST_CASE("state.coupled: eight channels in eight bits take one bit per channel", "[state]") {
  const auto sample = values(1, 600, 0.5F);
  CHECK(CoupledCodebook({8, 8}, 1, dims, sample, {}, serial()).row_bytes() == dims / 8);
  CHECK(CoupledCodebook({1, 1}, 1, dims, sample, {}, serial()).row_bytes() == dims / 8);
  CHECK(CoupledCodebook({4, 8}, 1, dims, sample, {}, serial()).row_bytes() == dims / 4);
  CHECK(CoupledCodebook({8, 10}, 1, dims, sample, {}, serial()).row_bytes() == 4);  // 20 bits in whole pairs of bytes
}

TEST_CASE("state.coupled: correlated channels lose clearly less than one by one, independent ones hardly less",
          "[state]") {
  const double coupled = error({8, 8}, 0.8F);
  const double apart = error({1, 1}, 0.8F);
  const double coupled_independent = error({8, 8}, 0.0F);
  const double apart_independent = error({1, 1}, 0.0F);
  INFO("correlated " << coupled << " against " << apart << ", independent " << coupled_independent << " against "
                     << apart_independent);
  CHECK(coupled < 0.6 * apart);
  CHECK(coupled_independent > 0.8 * apart_independent);
  CHECK(std::abs(apart - apart_independent) < 0.05);  // one channel at a time knows nothing of the others
}

TEST_CASE("state.coupled: attention over codes equals attention over what they stand for", "[state]") {
  constexpr std::size_t tokens = 300;
  const auto keys = values(3, tokens, 0.5F);
  const auto query = token(values(4, 1, 0.0F), 1, 0);
  for (const CoupledShape shape :
       {CoupledShape{8, 8}, CoupledShape{4, 3}, CoupledShape{3, 5}, CoupledShape{1, 1}, CoupledShape{16, 11}}) {
    const CoupledCodebook book(shape, 1, dims, keys, {.iterations = 3}, serial());
    std::vector<float> table(static_cast<std::size_t>(book.groups()) << shape.bits);
    book.products(0, query.data(), table);
    std::vector<std::byte> codes(book.row_bytes());
    std::vector<float> x(dims);
    for (std::size_t t = 0; t < tokens; ++t) {
      book.encode(0, token(keys, tokens, t).data(), codes.data());
      book.decode(0, codes.data(), x.data());
      double dot = 0;
      for (std::size_t c = 0; c < dims; ++c) dot += static_cast<double>(x[c]) * static_cast<double>(query[c]);
      REQUIRE(std::abs(dot - static_cast<double>(book.dot(codes.data(), table))) < 1e-5);
      auto again = codes;
      book.encode(0, x.data(), again.data());
      std::vector<float> y(dims);
      book.decode(0, again.data(), y.data());
      REQUIRE(x == y);  // what a code stands for is coded as itself, or as an equal
    }
  }
}

TEST_CASE("state.coupled: files of codebooks come back, damaged ones are refused", "[state]") {
  const auto sample = values(5, 400, 0.5F);
  const CoupledShape shape{4, 4};
  const CoupledCodebook book(shape, 1, dims, sample, {}, serial());
  const CoupledCodebooks books(shape, {{book, book}, {}, {book, book}});
  const auto bytes = books.to_bytes();
  const auto again = CoupledCodebooks::read(bytes, "books");
  CHECK(again.to_bytes() == bytes);
  CHECK(again.name() == books.name());
  CHECK(again.layers()[1].keys.heads() == 0);
  for (std::size_t size = 0; size < bytes.size(); size += 7)
    CHECK_THROWS_AS(CoupledCodebooks::read(std::span(bytes).first(size), "books"), FormatError);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    auto damaged = bytes;
    damaged[i] ^= std::byte{4};
    CHECK_THROWS_AS(CoupledCodebooks::read(damaged, "books"), Error);
  }
  CHECK_THROWS_AS(CoupledCodebook({8, 13}, 1, dims, sample, {}, serial()), UsageError);
  CHECK_THROWS_AS(CoupledCodebook({8, 8}, 1, dims, std::vector<float>(3)), UsageError);
  auto bad = sample;
  bad[9] = std::nanf("");
  CHECK_THROWS_AS(CoupledCodebook(shape, 1, dims, bad, {}, serial()), NumericError);
}
