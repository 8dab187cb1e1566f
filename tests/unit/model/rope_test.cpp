#include <algorithm>
#include <cmath>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/model_spec.hpp>
#include <skald/model/architecture.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

using namespace skald;

namespace {

constexpr double pi = 3.14159265358979323846;

std::vector<double> plain(int dims, double base) {
  std::vector<double> result;
  for (int i = 0; i < dims; i += 2) result.push_back(1.0 / std::exp(std::log(base) * i / dims));
  return result;
}

// YaRN as in the code published with the paper: frequencies that are interpolated and extrapolated, mixed by a mask.
std::vector<double> yarn(int dims, double base, double factor, double context, double fast, double slow, double share,
                         bool whole = true) {
  const auto correction = [&](double rotations) {
    return dims * std::log(context / (rotations * 2 * pi)) / (2 * std::log(base));
  };
  const double low = std::max(whole ? std::floor(correction(fast)) : correction(fast), 0.0);
  double high = std::min(whole ? std::ceil(correction(slow)) : correction(slow), dims - 1.0);
  // Where even the slowest pair turns often enough, all are kept: a step beyond the last pair, as GGUF engines do.
  if (low >= high) high = low + 0.001;
  std::vector<double> result;
  for (int i = 0; i < dims / 2; ++i) {
    const double position = std::pow(base, 2.0 * i / dims);
    const double ramp = std::min(1.0, std::max(0.0, (i - low) / (high - low)));
    const double mask = (1 - ramp) * share;
    result.push_back(1 / (factor * position) * (1 - mask) + 1 / position * mask);
  }
  return result;
}

void check_equal(const std::vector<double>& found, const std::vector<double>& expected) {
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    CAPTURE(i);
    CHECK(found[i] == Approx(expected[i]).epsilon(1e-13));
  }
}

}  // namespace

TEST_CASE("model.rope_frequencies: plain frequencies fall from 1 by powers of the base") {
  const auto result = rope_frequencies({.kind = RopeKind::half, .dims = 24, .freq_base = 5e5});
  check_equal(result.inverse_frequencies, plain(24, 5e5));
  CHECK(result.inverse_frequencies.front() == 1.0);
  CHECK(result.magnitude == 1.0F);
}

TEST_CASE("model.rope_frequencies: linear scaling divides every frequency and keeps the magnitude") {
  const auto result =
      rope_frequencies({.kind = RopeKind::interleaved, .dims = 12, .scaling = RopeScaling::linear, .factor = 2.5});
  auto expected = plain(12, 1e4);
  for (double& each : expected) each /= 2.5;
  check_equal(result.inverse_frequencies, expected);
  CHECK(result.magnitude == 1.0F);
}

TEST_CASE("model.rope_frequencies: a factor without a kind of scaling has no effect") {
  const auto result = rope_frequencies({.kind = RopeKind::half, .dims = 16, .factor = 8});
  check_equal(result.inverse_frequencies, plain(16, 1e4));
}

TEST_CASE("model.rope_frequencies: YaRN matches shares worked out by hand") {
  // dims 16, base 10^4, 2048 tokens: 32 turns at pair 2.016, one turn at pair 5.03; so the ramp runs from pair 2 to 6.
  const auto result = rope_frequencies(
      {.kind = RopeKind::interleaved, .dims = 16, .scaling = RopeScaling::yarn, .factor = 4, .original_context = 2048});
  const std::vector<double> shares = {1, 1, 1, 0.75 + 0.25 / 4, 0.5 + 0.5 / 4, 0.25 + 0.75 / 4, 0.25, 0.25};
  auto expected = plain(16, 1e4);
  for (std::size_t i = 0; i < shares.size(); ++i) expected[i] *= shares[i];
  check_equal(result.inverse_frequencies, expected);
  CHECK(result.magnitude == Approx(1 + 0.1 * std::log(4.0)).epsilon(1e-7));
}

TEST_CASE("model.rope_frequencies: YaRN matches the published code over many settings") {
  for (const int dims : {2, 8, 64, 128})
    for (const double base : {1e4, 1e6, 32.0})
      for (const double factor : {1.0, 2.0, 32.0})
        for (const std::int64_t context : {16, 4096, 131072})
          for (const double fast : {32.0, 8.0})
            for (const double share : {1.0, 0.5}) {
              CAPTURE(dims, base, factor, context, fast, share);
              const auto result = rope_frequencies({.kind = RopeKind::half,
                                                    .dims = dims,
                                                    .freq_base = base,
                                                    .scaling = RopeScaling::yarn,
                                                    .factor = factor,
                                                    .original_context = context,
                                                    .extrapolation = share,
                                                    .attention_factor = 1.25,
                                                    .beta_fast = fast});
              check_equal(result.inverse_frequencies,
                          yarn(dims, base, factor, static_cast<double>(context), fast, 1.0, share));
              CHECK(result.magnitude == Approx(1.25 * (1 + 0.1 * std::log(factor))).epsilon(1e-7));
            }
  // gpt-oss: the ramp's ends are not rounded.
  RopeSpec rope{.kind = RopeKind::half, .dims = 64, .freq_base = 150000.0, .scaling = RopeScaling::yarn, .factor = 32.0,
                .original_context = 4096};
  rope.whole_pairs = false;
  check_equal(rope_frequencies(rope).inverse_frequencies, yarn(64, 150000.0, 32.0, 4096.0, 32.0, 1.0, 1.0, false));
  CHECK(std::abs(rope_frequencies(rope).inverse_frequencies[12] / yarn(64, 150000.0, 32.0, 4096.0, 32.0, 1.0, 1.0)[12] - 1) > 1e-2);
}

TEST_CASE("model.rope_frequencies: YaRN without extrapolation is linear scaling") {
  const RopeSpec rope{.kind = RopeKind::half,
                      .dims = 32,
                      .scaling = RopeScaling::yarn,
                      .factor = 4,
                      .original_context = 2048,
                      .extrapolation = 0};
  auto expected = plain(32, 1e4);
  for (double& each : expected) each /= 4;
  check_equal(rope_frequencies(rope).inverse_frequencies, expected);
  CHECK(rope_frequencies(rope).magnitude == 1.0F);
}

TEST_CASE("model.rope_frequencies: factors divide frequency by frequency, before any other scaling") {
  RopeSpec rope{.kind = RopeKind::half, .dims = 8, .scaling = RopeScaling::llama3, .factors = {1, 2, 4, 8}};
  auto expected = plain(8, 1e4);
  for (std::size_t i = 0; i < 4; ++i) expected[i] /= rope.factors[i];
  check_equal(rope_frequencies(rope).inverse_frequencies, expected);
  rope.scaling = RopeScaling::linear;
  rope.factor = 10;
  for (double& each : expected) each /= 10;
  check_equal(rope_frequencies(rope).inverse_frequencies, expected);
}

TEST_CASE("model.rope_frequencies: the factors of the golden Llama 3 model are those of the published rule") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto spec = read_spec(open_gguf(skald_test::shared_path("goldens/models/llama3-ropefreqs.gguf")));
  const auto frequencies = rope_frequencies(spec.ropes.at(0)).inverse_frequencies;
  // The rule of Llama 3.1 with factor 8, low 1, high 4; this model was made as if trained on 64 tokens.
  const auto base = plain(24, 5e5);
  REQUIRE(frequencies.size() == base.size());
  for (std::size_t i = 0; i < base.size(); ++i) {
    const double turns = 64 * base[i] / (2 * pi);
    const double smooth = std::clamp((turns - 1) / (4 - 1), 0.0, 1.0);
    CAPTURE(i, turns);
    CHECK(frequencies[i] == Approx(base[i] * ((1 - smooth) / 8 + smooth)).epsilon(1e-6));  // factors are f32
  }
}

TEST_CASE("model.rope_frequencies: refuses dims that are odd or not positive and factors of another length") {
  CHECK_THROWS_AS(rope_frequencies({.kind = RopeKind::half, .dims = 0}), UsageError);
  CHECK_THROWS_AS(rope_frequencies({.kind = RopeKind::half, .dims = 7}), UsageError);
  CHECK_THROWS_AS(rope_frequencies({.kind = RopeKind::half, .dims = -2}), UsageError);
  CHECK_THROWS_AS(rope_frequencies({.kind = RopeKind::half, .dims = 8, .factors = {1, 2}}), UsageError);
}
