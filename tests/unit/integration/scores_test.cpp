// Attention probabilities as the kernels hand them out.
#include <cmath>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.layers = 3, .heads = 6, .kv_heads = 2, .type = skald::DType::f32};

struct Result {
  skald::AttentionScores scores;
  Rows logits;
};

/// Scores of `rows` tokens after a prefix, in cuts of `batch_tokens`.
Result run(const skald::Model& model, std::int64_t prefix, std::int64_t rows, skald::ScoreKind kind,
           std::int32_t last_rows = 0, std::int64_t batch_tokens = 512, std::int32_t heads_per_group = 1) {
  const skald::Decoder decoder(
      model, {.kv = {.format = "f32", .heads_per_group = heads_per_group}, .batch_tokens = batch_tokens});
  auto session = decoder.new_session();
  if (prefix > 0) (void)session.forward(some_tokens(prefix, shape.vocabulary, 3));
  Result result;
  result.scores.kind = kind;
  result.scores.last_rows = last_rows;
  skald::Batch batch;
  const auto tokens = some_tokens(rows, shape.vocabulary, 4);
  batch.add(session, tokens, skald::LogitsWanted::all);
  result.logits = copy(decoder.forward(batch, {.scores = &result.scores}));
  return result;
}

void check_close(const skald::AttentionScores& a, const skald::AttentionScores& b, double tolerance) {
  REQUIRE(a.values.size() == b.values.size());
  double worst = 0;
  for (std::size_t e = 0; e < a.values.size(); ++e) {
    REQUIRE(a.values[e].size() == b.values[e].size());
    for (std::size_t l = 0; l < a.values[e].size(); ++l) {
      REQUIRE(a.values[e][l].size() == b.values[e][l].size());
      for (std::size_t g = 0; g < a.values[e][l].size(); ++g) {
        REQUIRE(a.values[e][l][g].size() == b.values[e][l][g].size());
        for (std::size_t s = 0; s < a.values[e][l][g].size(); ++s)
          worst = std::max(worst, std::abs(static_cast<double>(a.values[e][l][g][s]) - b.values[e][l][g][s]));
      }
    }
  }
  CHECK(worst < tolerance);
}

}  // namespace

TEST_CASE("integration.scores: the probabilities of a group sum to its rows times its heads") {
  const auto model = tiny_model(shape, {.backend = cpu_with(3)});
  for (const std::int32_t heads_per_group : {1, 2})
    for (const auto& [prefix, rows] : {std::pair{0, 1}, {0, 77}, {500, 1}, {300, 40}}) {
      INFO("prefix " << prefix << ", rows " << rows << ", " << heads_per_group << " heads per group");
      const auto result = run(model, prefix, rows, skald::ScoreKind::sum, 0, 512, heads_per_group);
      REQUIRE(result.scores.values.size() == 1);
      REQUIRE(result.scores.values[0].size() == 3);
      for (const auto& layer : result.scores.values[0]) {
        REQUIRE(layer.size() == static_cast<std::size_t>(2 / heads_per_group));
        for (const auto& slots : layer) {
          REQUIRE(slots.size() == static_cast<std::size_t>(prefix + rows));
          double sum = 0;
          bool negative = false;
          for (const float value : slots) {
            sum += value;
            negative = negative || value < 0.0F;
          }
          CHECK(sum == Approx(rows * 3 * heads_per_group).epsilon(1e-4));
          CHECK_FALSE(negative);
        }
      }
    }
}

TEST_CASE("integration.scores: the fast kernels agree with the reference backend") {
  const auto fast = tiny_model(shape, {.backend = cpu_with(3)});
  const auto slow = tiny_model(shape, {.backend = skald::make_reference_backend()});
  for (const auto kind : {skald::ScoreKind::sum, skald::ScoreKind::max})
    for (const std::int32_t last_rows : {0, 5})
      for (const auto& [prefix, rows] : {std::pair{0, 60}, {300, 1}, {270, 33}}) {
        INFO("prefix " << prefix << ", rows " << rows << ", last " << last_rows);
        check_close(run(fast, prefix, rows, kind, last_rows).scores, run(slow, prefix, rows, kind, last_rows).scores,
                    1e-3);
      }
}

TEST_CASE("integration.scores: cuts of a batch add up, threads change no bit") {
  const auto one = tiny_model(shape, {.backend = cpu_with(1)});
  const auto four = tiny_model(shape, {.backend = cpu_with(4)});
  const auto whole = run(one, 20, 90, skald::ScoreKind::sum);
  check_close(run(one, 20, 90, skald::ScoreKind::sum, 0, 32).scores, whole.scores, 1e-4);
  check_close(run(four, 20, 90, skald::ScoreKind::sum).scores, whole.scores, 1e-30);
  check_close(run(one, 20, 90, skald::ScoreKind::max, 0, 32).scores, run(one, 20, 90, skald::ScoreKind::max).scores,
              1e-6);
}

TEST_CASE("integration.scores: asking for scores changes no bit of the logits") {
  for (const int threads : {1, 4}) {
    const auto model = tiny_model(shape, {.backend = cpu_with(threads)});
    for (const std::int64_t prefix : {0, 700}) {
      const skald::Decoder decoder(model, {.kv = {.format = "f32"}});
      auto session = decoder.new_session();
      if (prefix > 0) (void)session.forward(some_tokens(prefix, shape.vocabulary, 3));
      const auto plain = copy(session.forward(some_tokens(50, shape.vocabulary, 4), skald::LogitsWanted::all));
      CHECK(same_bits(run(model, prefix, 50, skald::ScoreKind::sum).logits, plain));
      CHECK(same_bits(run(model, prefix, 50, skald::ScoreKind::max).logits, plain));
    }
  }
}

TEST_CASE("integration.scores: every entry of a batch has scores of its own, as if it were alone") {
  const auto model = tiny_model(shape, {.backend = cpu_with(3)});
  const skald::Decoder decoder(model, {.kv = {.format = "f32"}});
  const auto score = [&](std::vector<std::int64_t> lengths) {
    std::vector<skald::Session> sessions;
    std::vector<std::vector<skald::TokenId>> tokens;
    skald::Batch batch;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      sessions.push_back(decoder.new_session());
      tokens.push_back(some_tokens(lengths[i], shape.vocabulary, static_cast<std::uint64_t>(lengths[i])));
    }
    for (std::size_t i = 0; i < lengths.size(); ++i) batch.add(sessions[i], tokens[i]);
    skald::AttentionScores scores;
    (void)decoder.forward(batch, {.scores = &scores});
    return scores;
  };
  const auto both = score({30, 71});
  skald::AttentionScores apart;
  for (const std::int64_t length : {30, 71}) apart.values.push_back(score({length}).values.front());
  check_close(both, apart, 1e-30);
}
