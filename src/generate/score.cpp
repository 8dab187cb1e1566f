#include <skald/generate/score.hpp>

#include <algorithm>
#include <cmath>
#include <string>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

double log_probability(std::span<const float> logits, TokenId token) {
  if (token < 0 || static_cast<std::size_t>(token) >= logits.size())
    throw UsageError("generate.score",
                     "token " + std::to_string(token) + " is not among " + std::to_string(logits.size()) + " logits");
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float value : logits) sum += std::exp(static_cast<double>(value) - static_cast<double>(most));
  const double result =
      static_cast<double>(logits[static_cast<std::size_t>(token)]) - static_cast<double>(most) - std::log(sum);
  if (std::isnan(result)) throw NumericError("generate.score", "the logits have no probabilities");
  return result;
}

}  // namespace skald::inline v0
