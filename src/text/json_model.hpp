#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/byte_pair.hpp"
#include "text/json_node.hpp"
#include "text/unigram.hpp"

namespace skald::inline v0::detail {

/// The model of `tokenizer.json`: how a word becomes tokens.
class JsonModel {
 public:
  /// Memory that the calls of one encoding share.
  struct Scratch {
    BytePairEncoder::Scratch byte_pair;
    Unigram::Scratch unigram;
    std::string text;
  };
  virtual ~JsonModel() = default;
  /// Appends the tokens of `word`. With `skip`, tokens marked in it are not used.
  /// Throws `FormatError` for a word that needs an unknown token where there is none.
  virtual void encode(std::string_view word, std::vector<TokenId>& tokens, Scratch& scratch,
                      const std::vector<bool>* skip) const = 0;
  /// "BPE", "Unigram", "WordPiece" or "WordLevel".
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  /// Spelling of the unknown token, or empty.
  [[nodiscard]] virtual std::string_view unknown() const noexcept { return {}; }
  [[nodiscard]] virtual bool byte_fallback() const noexcept { return false; }
};

/// What the model's vocabulary contains, by id; ids that are not used have an empty text.
using JsonVocabulary = std::vector<std::string>;

/// Reads `$.model`. The texts go to `vocabulary`; the model refers to them and to `index`, which is filled here, so
/// both must stay where they are.
[[nodiscard]] std::unique_ptr<const JsonModel> read_json_model(const JsonNode& node, JsonVocabulary& vocabulary,
                                                               TokenIndex& index);

/// Largest id that a vocabulary of `entries` entries may use: gaps are allowed, wasteful ones are not.
[[nodiscard]] constexpr std::int64_t most_id(std::size_t entries) noexcept {
  return static_cast<std::int64_t>(2 * entries) + 65536;
}

}  // namespace skald::inline v0::detail
