#pragma once

#include <span>
#include <vector>

#include <skald/model/model.hpp>
#include <skald/text/vocabulary.hpp>

namespace skald::inline v0 {

/// The vectors that tokens become before the first layer, [tokens, dim] row-major, the embedding scale included: what
/// Batch::add_embeddings takes. @throws UsageError for ids outside the vocabulary.
[[nodiscard]] SKALD_API std::vector<float> embedding_rows(const Model& model, std::span<const TokenId> tokens);

}  // namespace skald::inline v0
