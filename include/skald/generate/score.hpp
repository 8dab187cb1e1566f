#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>
#include <vector>

#include <skald/decoder/decoder.hpp>

/// Probabilities of given texts and tokens: nothing is generated, and no memory is kept.
namespace skald::inline v0 {

/// Natural logarithm of a token's probability under a row of logits. @throws UsageError for a token that is not in the
/// row; NumericError if it is not a number.
[[nodiscard]] SKALD_API double log_probability(std::span<const float> logits, TokenId token);

/// How probable a text is.
struct SequenceScore {
  double sum = 0.0;         ///< of the log-probabilities of its tokens, nats
  std::int64_t tokens = 0;  ///< that were scored
  [[nodiscard]] double mean() const noexcept { return tokens == 0 ? 0.0 : sum / static_cast<double>(tokens); }
};

/// What a model says about a choice between tokens.
struct LabelScores {
  std::vector<float> logits{};          ///< of the labels, in their order
  std::vector<double> probabilities{};  ///< restricted to the labels: they sum to 1
  [[nodiscard]] std::size_t best() const noexcept {
    return static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
};

/// Logits of `labels` in a row, and their softmax. @throws UsageError for no labels or one out of range; NumericError.
[[nodiscard]] SKALD_API LabelScores label_scores(std::span<const float> logits, std::span<const TokenId> labels);

/// Options of scoring.
struct ScoreOptions {
  std::stop_token stop{};
};

namespace detail {

/// Runs `texts`, each after `base` on a fork of it, several in one pass, and calls `take(index, logits, entry)` for
/// each. The forks are gone in the end.
template <class B, class E, class K, class Take>
void run_on_forks(const Decoder<B, E, K>& decoder, const Session& base, std::span<const std::vector<TokenId>> texts,
                  LogitsWanted wanted, const ScoreOptions& options, Take&& take) {
  const EffectiveConfig& config = decoder.effective_config();
  const auto pages = [&](std::int64_t tokens) { return (tokens + config.page_tokens - 1) / config.page_tokens; };
  ForwardOptions pass{};
  pass.stop = options.stop;
  Batch batch;
  for (std::size_t first = 0; first < texts.size();) {
    std::vector<Session> forks;
    forks.reserve(texts.size() - first);  // the batch points to them
    batch.clear();
    auto held = pages(base.length());
    std::size_t last = first;
    for (; last < texts.size(); ++last) {
      // As many as fit one pass and the KV memory; one always goes.
      const auto tokens = static_cast<std::int64_t>(texts[last].size());
      held += pages(tokens) + 1;
      if (forks.size() == static_cast<std::size_t>(config.parallel)) break;
      if (last > first && (batch.rows() + tokens > config.batch_tokens || held > pages(config.capacity_tokens))) break;
      forks.push_back(base.fork());
      batch.add(forks.back(), texts[last], wanted);
    }
    const Logits logits = decoder.forward(batch, pass);
    for (std::size_t i = first; i < last; ++i) take(i, logits, i - first);
    first = last;
  }
}

SKALD_API void add_score(SequenceScore& score, const Logits& logits, std::size_t entry,
                         std::span<const TokenId> tokens);
SKALD_API void check_scored(std::span<const TokenId> prefix, std::span<const std::vector<TokenId>> continuations);

}  // namespace detail

/// Log-probabilities of continuations of one prefix, which is computed once; its pages are shared. With an empty prefix
/// the first token of each text is given and the others count: whole texts.
/// @throws UsageError for texts without a token to score; as Decoder::forward.
template <class B, class E, class K>
[[nodiscard]] std::vector<SequenceScore> score_continuations(const Decoder<B, E, K>& decoder,
                                                             std::span<const TokenId> prefix,
                                                             std::span<const std::vector<TokenId>> continuations,
                                                             const ScoreOptions& options = {}) {
  detail::check_scored(prefix, continuations);
  Session base = decoder.new_session();
  // The last token of the prefix goes with each continuation: it gives the logits of the first token.
  if (prefix.size() > 1) (void)base.forward(prefix.first(prefix.size() - 1), LogitsWanted::none, options.stop);
  std::vector<std::vector<TokenId>> texts;
  for (const auto& continuation : continuations) {
    auto& text = texts.emplace_back();
    if (!prefix.empty()) text.push_back(prefix.back());
    text.insert(text.end(), continuation.begin(), continuation.end() - 1);
  }
  std::vector<SequenceScore> scores(continuations.size());
  detail::run_on_forks(decoder, base, texts, LogitsWanted::all, options,
                       [&](std::size_t i, const Logits& logits, std::size_t entry) {
                         const std::span<const TokenId> all = continuations[i];
                         detail::add_score(scores[i], logits, entry, prefix.empty() ? all.subspan(1) : all);
                       });
  return scores;
}

/// For each item the labels' logits at the end of prefix and item: relevance, classes, yes or no. The prefix is
/// computed once, the items together; no token is decoded, and no memory is kept.
/// @throws UsageError for an empty item or labels out of range; as Decoder::forward.
template <class B, class E, class K>
[[nodiscard]] std::vector<LabelScores> score_labels(const Decoder<B, E, K>& decoder, std::span<const TokenId> prefix,
                                                    std::span<const std::vector<TokenId>> items,
                                                    std::span<const TokenId> labels, const ScoreOptions& options = {}) {
  Session base = decoder.new_session();
  if (!prefix.empty()) (void)base.forward(prefix, LogitsWanted::none, options.stop);
  std::vector<LabelScores> scores(items.size());
  detail::run_on_forks(decoder, base, items, LogitsWanted::last, options,
                       [&](std::size_t i, const Logits& logits, std::size_t entry) {
                         scores[i] = label_scores(logits.last(entry), labels);
                       });
  return scores;
}

}  // namespace skald::inline v0
