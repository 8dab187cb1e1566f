#pragma once

#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/token_index.hpp"

namespace skald::inline v0::detail {

/// Fills in the special ids of `vocabulary` that are absent but have a token of a well-known spelling, and gives
/// such tokens the type they have in practice, whatever the file says. Returns the tokens that end generation,
/// ascending. `types` must have one entry per token.
[[nodiscard]] std::vector<TokenId> resolve_special_roles(Vocabulary& vocabulary, const TokenIndex& index);

}  // namespace skald::inline v0::detail
