#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include <skald/core/error.hpp>
#include <skald/core/random.hpp>
#include <skald/generate/sampler.hpp>

#include "support/catch.hpp"

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

skald::Candidates make(const std::vector<float>& logits) {
  skald::Candidates candidates;
  candidates.assign(logits);
  return candidates;
}

std::vector<skald::TokenId> tokens(const skald::Candidates& candidates) {
  std::vector<skald::TokenId> result;
  for (const auto& c : candidates.list()) result.push_back(c.token);
  return result;
}

/// Logits whose softmax is p.
std::vector<float> logs(const std::vector<float>& p) {
  std::vector<float> result;
  for (const float x : p) result.push_back(std::log(x));
  return result;
}

using Ids = std::vector<skald::TokenId>;

}  // namespace

TEST_CASE("generate.candidates: keep_top equals a full sort on large vocabularies with many ties", "[generate]") {
  skald::CounterRandom random(1, 2, 3);
  std::vector<float> logits(50000);
  for (float& x : logits) x = static_cast<float>(random.next() % 1000);
  for (const std::size_t k : {1u, 2u, 40u, 1000u, 49999u, 60000u}) {
    auto fast = make(logits);
    fast.keep_top(k);
    auto slow = make(logits);
    slow.sort();
    slow.keep_first(k);
    CHECK(tokens(fast) == tokens(slow));
  }
}

TEST_CASE("generate.samplers: a bias that is no number, or would make a token certain, is refused", "[generate]") {
  const auto with = [](skald::TokenId token, float bias) { return skald::SamplerOptions{.logit_bias = {{token, bias}}}; };
  for (const float bias : {std::nanf(""), inf}) CHECK_THROWS_AS(skald::make_sampler(with(3, bias)), skald::UsageError);
  CHECK_THROWS_AS(skald::make_sampler(with(-1, 1.0F)), skald::UsageError);
  auto chain = skald::make_sampler(with(0, -inf));  // forbids it
  CHECK(chain.greedy().sample(std::vector<float>{5.0F, 1.0F}, skald::SamplingContext{}) == 1);
}

TEST_CASE("generate.samplers: top-k, top-p, min-p and typical keep what their papers say", "[generate]") {
  const auto logits = logs({0.1F, 0.4F, 0.05F, 0.3F, 0.15F});
  auto c = make(logits);
  skald::TopK{2}.apply(c, {});
  CHECK(tokens(c) == Ids{1, 3});
  c = make(logits);
  skald::TopP{0.7F - 1e-6F}.apply(c, {});
  CHECK(tokens(c) == Ids{1, 3});
  c = make(logits);
  skald::TopP{0.71F}.apply(c, {});
  CHECK(tokens(c) == Ids{1, 3, 4});
  c = make(logits);
  skald::MinP{0.3F}.apply(c, {});  // 0.3 * 0.4 = 0.12
  CHECK(tokens(c) == Ids{1, 3, 4});
  // Entropy is about 1.392; -ln p = 2.303, 0.916, 2.996, 1.204, 1.897: the nearest are tokens 3, 1, 4.
  c = make(logits);
  skald::Typical{0.65F}.apply(c, {});
  CHECK(tokens(c) == Ids{1, 3});
  c = make(logits);
  skald::Typical{0.25F}.apply(c, {});
  CHECK(tokens(c) == Ids{3});
}

TEST_CASE("generate.samplers: off is absent, and at least one candidate always stays", "[generate]") {
  const auto logits = logs({0.1F, 0.4F, 0.05F, 0.3F, 0.15F});
  const std::vector<skald::AnySampler> off{skald::Temperature{1}, skald::TopK{0}, skald::TopP{1}, skald::MinP{0},
                                           skald::Typical{1},     skald::Dry{},   skald::Penalties{}, skald::LogitBias{}};
  const Ids history{0, 1, 2, 1, 2};
  for (const auto& sampler : off) {
    auto c = make(logits);
    sampler.apply(c, {.history = history});
    REQUIRE(c.size() == logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) CHECK(c.list()[i].logit == logits[i]);
  }
  for (const skald::AnySampler& hard : {skald::AnySampler(skald::TopP{1e-9F}), skald::AnySampler(skald::MinP{1.0F}),
                                        skald::AnySampler(skald::Typical{1e-9F}), skald::AnySampler(skald::TopK{1})}) {
    auto c = make(logits);
    hard.apply(c, {});
    CHECK(c.size() == 1);
  }
  auto c = make({1.0F, -inf, 2.0F});
  skald::TopP{0.999F}.apply(c, {});
  CHECK(tokens(c) == Ids{2, 0});
}

TEST_CASE("generate.samplers: penalties follow their formulas within the last n tokens", "[generate]") {
  const Ids history{3, 0, 1, 1, 4, -1};
  auto c = make({2.0F, -1.0F, 0.5F, 1.0F, 3.0F});
  skald::Penalties{.last_n = 5, .repeat = 2.0F, .frequency = 0.25F, .presence = 0.125F}.apply(c, {.history = history});
  CHECK(c.logit(0) == Approx(1.0 - 0.25 - 0.125));
  CHECK(c.logit(1) == Approx(-2.0 - 0.5 - 0.125));
  CHECK(c.logit(2) == 0.5F);
  CHECK(c.logit(3) == 1.0F);  // outside of the last five
  CHECK(c.logit(4) == Approx(1.5 - 0.25 - 0.125));
}

TEST_CASE("generate.samplers: DRY punishes what would continue a repetition, by its length", "[generate]") {
  //                  0  1  2  3  4  5  6  7
  const Ids history{1, 2, 3, 4, 9, 1, 2, 3};  // "1 2 3" came before and was followed by 4
  skald::Dry dry{.multiplier = 1.0F, .base = 2.0F, .allowed_length = 2};
  auto c = make(std::vector<float>(10, 0.0F));
  dry.apply(c, {.history = history});
  CHECK(c.logit(4) == Approx(-2.0));  // length 3: 2^(3-2)
  for (const skald::TokenId t : {0, 1, 2, 3, 5, 9}) CHECK(c.logit(t) == 0.0F);
  dry.allowed_length = 4;
  c = make(std::vector<float>(10, 0.0F));
  dry.apply(c, {.history = history});
  CHECK(c.logit(4) == 0.0F);
  dry.allowed_length = 2;
  dry.breakers = {2};  // only "3" is left of the repetition
  c = make(std::vector<float>(10, 0.0F));
  dry.apply(c, {.history = history});
  CHECK(c.logit(4) == 0.0F);
  // Long repetition of one token: linear work, finite penalty.
  const Ids same(20000, 7);
  c = make(std::vector<float>(10, 0.0F));
  skald::Dry{.multiplier = 1.0F}.apply(c, {.history = same});
  CHECK(c.logit(7) < -1e20F);
  CHECK(std::isfinite(c.logit(7)));
}

TEST_CASE("generate.sampler_chain: draws follow the probabilities and depend on seed, stream and position alone",
          "[generate]") {
  const auto logits = logs({0.5F, 0.3F, 0.2F});
  skald::SamplerChain chain;
  chain.seed(11);
  std::map<skald::TokenId, int> counts;
  const int draws = 20000;
  for (int i = 0; i < draws; ++i) ++counts[chain.sample(logits, {.position = static_cast<std::uint64_t>(i)})];
  double chi = 0;
  for (const auto& [token, p] : std::map<int, double>{{0, 0.5}, {1, 0.3}, {2, 0.2}})
    chi += std::pow(counts[token] - p * draws, 2) / (p * draws);
  CHECK(chi < 13.8);  // 99.9 % of chi-square with two degrees of freedom
  auto other = chain;
  CHECK(other.sample(logits, {.stream = 4, .position = 9}) == chain.sample(logits, {.stream = 4, .position = 9}));
  int differ = 0;
  for (std::uint64_t i = 0; i < 200; ++i)
    differ += chain.sample(logits, {.stream = 1, .position = i}) != chain.sample(logits, {.stream = 2, .position = i});
  CHECK(differ > 50);
  CHECK(skald::make_sampler({.temperature = 0.0F}).sample(logits, skald::SamplingContext{}) == 0);
  CHECK(skald::make_sampler({.temperature = 0.0F, .logit_bias = {{2, 5.0F}}}).sample(logits, skald::SamplingContext{}) == 2);
  CHECK(skald::make_sampler({.temperature = 1.0F, .top_k = 1, .top_p = 1, .min_p = 0}).sample(logits, skald::SamplingContext{}) == 0);
}

TEST_CASE("generate.sampler_chain: bad options and hopeless logits are errors", "[generate]") {
  CHECK_THROWS_AS(skald::make_sampler({.temperature = -1.0F}), skald::UsageError);
  CHECK_THROWS_AS(skald::make_sampler({.temperature = NAN}), skald::UsageError);
  CHECK_THROWS_AS(skald::make_sampler({.top_p = 0.0F}), skald::UsageError);
  CHECK_THROWS_AS(skald::make_sampler({.min_p = 1.5F}), skald::UsageError);
  CHECK_THROWS_AS(skald::make_sampler({.repeat_penalty = 0.0F}), skald::UsageError);
  skald::SamplerChain chain;
  CHECK_THROWS_AS(chain.sample(std::vector<float>{-inf, -inf}, skald::SamplingContext{}), skald::NumericError);
  CHECK_THROWS_AS(chain.sample(std::vector<float>{NAN, NAN}, skald::SamplingContext{}), skald::NumericError);
  CHECK_THROWS_AS(chain.sample({}, skald::SamplingContext{}), skald::NumericError);
}
