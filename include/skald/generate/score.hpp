#pragma once

#include <span>

#include <skald/config.hpp>
#include <skald/text/vocabulary.hpp>

namespace skald::inline v0 {

/// Natural logarithm of a token's probability under a row of logits. @throws UsageError for a token that is not in the
/// row; NumericError if it is not a number.
[[nodiscard]] SKALD_API double log_probability(std::span<const float> logits, TokenId token);

}  // namespace skald::inline v0
