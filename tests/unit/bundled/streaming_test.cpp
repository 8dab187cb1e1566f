// Perplexity of long streams of the bundled model's grammar under a short cache.

#include <cmath>

#include <skald/skald.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"
#include "support/story_grammar.hpp"

namespace {

constexpr std::int64_t budget = 128;
constexpr int page = 16;
constexpr std::size_t length = 1600;

/// Nats of a token under a row of logits.
double nats(std::span<const float> row, skald::TokenId token) {
  double largest = row[0];
  for (const float x : row) largest = std::max<double>(largest, x);
  double total = 0;
  for (const float x : row) total += std::exp(static_cast<double>(x) - largest);
  return largest + std::log(total) - static_cast<double>(row[static_cast<std::size_t>(token)]);
}

/// Mean nats per token of the tokens after the first cache-full.
double streamed(const skald::Model& model, const std::string& eviction, const std::vector<skald::TokenId>& tokens) {
  const skald::Decoder decoder(model, {.kv = {.eviction = eviction, .page_tokens = page}, .context = 4096});
  auto session = decoder.new_session();
  double sum = 0;
  for (std::size_t i = 0; i + 1 < tokens.size(); i += page) {
    const auto count = std::min<std::size_t>(page, tokens.size() - 1 - i);
    const auto logits = session.forward(std::span(tokens).subspan(i, count), skald::LogitsWanted::all);
    for (std::size_t n = 0; n < count && i >= budget; ++n)
      sum += nats(logits.row(static_cast<std::int64_t>(n)), tokens[i + n + 1]);
  }
  return sum / static_cast<double>(tokens.size() - 1 - budget);
}

/// The same where each page sees what is computed anew from the tokens that a window holds.
double recomputed(const skald::Model& model, const std::vector<skald::TokenId>& tokens) {
  const skald::Decoder decoder(model, {.kv = {.page_tokens = page}});
  double sum = 0;
  for (std::size_t i = budget; i + 1 < tokens.size(); i += page) {
    const auto count = std::min<std::size_t>(page, tokens.size() - 1 - i);
    auto session = decoder.new_session();
    const auto before = static_cast<std::size_t>(budget - page);
    (void)session.forward(std::span(tokens).subspan(i - before, before), skald::LogitsWanted::none);
    const auto logits = session.forward(std::span(tokens).subspan(i, count), skald::LogitsWanted::all);
    for (std::size_t n = 0; n < count; ++n) sum += nats(logits.row(static_cast<std::int64_t>(n)), tokens[i + n + 1]);
  }
  return sum / static_cast<double>(tokens.size() - 1 - budget);
}

/// Share of the attention of the last tokens that the first four get, mean over layers and heads, when all is kept.
double share_of_sinks(const skald::Model& model, const std::vector<skald::TokenId>& tokens) {
  const skald::Decoder decoder(model, {.kv = {.page_tokens = page}, .context = 4096});
  auto session = decoder.new_session();
  constexpr std::size_t before = 512;
  constexpr std::size_t rows = 64;
  (void)session.forward(std::span(tokens).first(before), skald::LogitsWanted::none);
  skald::AttentionScores scores;
  skald::Batch batch;
  batch.add(session, std::span(tokens).subspan(before, rows), skald::LogitsWanted::none);
  (void)decoder.forward(batch, {.scores = &scores});
  double first = 0;
  double all = 0;
  for (const auto& layer : scores.values.at(0))
    for (const auto& group : layer)
      for (std::size_t slot = 0; slot < group.size(); ++slot) {
        all += static_cast<double>(group[slot]);
        if (slot < 4) first += static_cast<double>(group[slot]);
      }
  return first / all;
}

}  // namespace

TEST_CASE("bundled.streaming: with four sinks perplexity stays close to recomputing the window", "[bundled]") {
  const auto model = skald::Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  skald_test::StoryGrammar grammar(91);
  std::vector<skald::TokenId> tokens;
  while (tokens.size() < length) {
    const auto more = model.tokenizer().encode(grammar.story(25).text);
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  tokens.resize(length);
  const double again = std::exp(recomputed(model, tokens));
  const double sinks = std::exp(streamed(model, "streaming:sinks=4,window=124", tokens));
  const double kept = std::exp(streamed(model, "window:sinks=4,window=124", tokens));
  const double none = std::exp(streamed(model, "window:sinks=0,window=128", tokens));
  const double full = std::exp(streamed(model, "none", tokens));
  INFO("perplexity: window computed anew " << again << ", streaming with 4 sinks " << sinks << ", 4 sinks at their own places "
                                           << kept << ", none " << none << ", everything kept " << full);
  CHECK(sinks < 1.05 * again);
  CHECK(sinks < 1.05 * full);
  // The jump without sinks that the paper reports does not appear: this small model rests no attention on its first tokens.
  // (What happens where there is such attention: state.streaming.)
  CHECK(none < 1.05 * again);
  const double share = share_of_sinks(model, tokens);
  INFO("share of the attention on the first four tokens " << share);
  CHECK(share < 0.01);  // a like share for all tokens were 0.7 %
}
