#include <skald/generate/score.hpp>

#include <cmath>
#include <string>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "generate.score";

void check_token(TokenId token, std::size_t vocabulary) {
  if (token < 0 || static_cast<std::size_t>(token) >= vocabulary)
    throw UsageError(where,
                     "token " + std::to_string(token) + " is not among " + std::to_string(vocabulary) + " logits");
}

}  // namespace

double log_probability(std::span<const float> logits, TokenId token) {
  check_token(token, logits.size());
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float value : logits) sum += std::exp(static_cast<double>(value) - static_cast<double>(most));
  const double result =
      static_cast<double>(logits[static_cast<std::size_t>(token)]) - static_cast<double>(most) - std::log(sum);
  if (std::isnan(result)) throw NumericError(where, "the logits have no probabilities");
  return result;
}

LabelScores label_scores(std::span<const float> logits, std::span<const TokenId> labels) {
  if (labels.empty()) throw UsageError(where, "no labels are given");
  LabelScores result;
  for (const TokenId label : labels) {
    check_token(label, logits.size());
    result.logits.push_back(logits[static_cast<std::size_t>(label)]);
  }
  const double most = static_cast<double>(*std::max_element(result.logits.begin(), result.logits.end()));
  double sum = 0.0;
  for (const float value : result.logits)
    sum += result.probabilities.emplace_back(std::exp(static_cast<double>(value) - most));
  if (!std::isfinite(sum)) throw NumericError(where, "the logits of the labels have no probabilities");
  for (double& value : result.probabilities) value /= sum;
  return result;
}

namespace detail {

void add_score(SequenceScore& score, const Logits& logits, std::size_t entry, std::span<const TokenId> tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    score.sum += log_probability(logits.row(entry, static_cast<std::int64_t>(i)), tokens[i]);
  score.tokens += static_cast<std::int64_t>(tokens.size());
}

void check_scored(std::span<const TokenId> prefix, std::span<const std::vector<TokenId>> continuations) {
  const std::size_t least = prefix.empty() ? 2 : 1;
  for (const auto& continuation : continuations)
    if (continuation.size() < least)
      throw UsageError(where, "a text of " + std::to_string(continuation.size()) +
                                  " tokens has nothing to score; without a "
                                  "prefix two are needed, else one");
}

}  // namespace detail

}  // namespace skald::inline v0
