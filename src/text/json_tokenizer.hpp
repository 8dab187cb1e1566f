#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/text/tokenizer.hpp>

#include "text/json_decoder.hpp"
#include "text/json_model.hpp"
#include "text/json_words.hpp"
#include "text/special_tokens.hpp"

namespace skald::inline v0::detail {

/// What `tokenizer.json` describes: added tokens, normalizer, pre-tokenizer, model, post-processor, decoder. Immutable
/// once read; safe to share between threads.
class JsonTokenizer {
 public:
  explicit JsonTokenizer(const JsonNode& root);
  JsonTokenizer(const JsonTokenizer&) = delete;
  JsonTokenizer& operator=(const JsonTokenizer&) = delete;

  [[nodiscard]] std::vector<TokenId> encode(std::string_view text, EncodeOptions options) const;
  [[nodiscard]] std::string decode(std::span<const TokenId> tokens) const;
  [[nodiscard]] bool streams() const noexcept { return decoder_.streams(); }

  /// Texts by id; empty for ids that are not used.
  [[nodiscard]] const JsonVocabulary& texts() const noexcept { return texts_; }
  [[nodiscard]] std::vector<TokenType> types() const;
  [[nodiscard]] const JsonModel& model() const noexcept { return *model_; }
  /// What the post-processor puts before and after a text.
  [[nodiscard]] const std::vector<TokenId>& prefix() const noexcept { return prefix_; }
  [[nodiscard]] const std::vector<TokenId>& suffix() const noexcept { return suffix_; }
  /// What a token contributes at the start of a text, and elsewhere.
  [[nodiscard]] std::string first_piece(TokenId token) const;
  [[nodiscard]] std::string piece(TokenId token) const;

 private:
  struct Added {
    TokenId id = -1;
    bool left = false, right = false, word = false, normalized = false, special = false;
  };
  struct Part {
    std::string_view text;
    TokenId token;  // or -1
  };

  void read_added_tokens(const JsonNode& list);
  void read_post_processor(const JsonNode& node);
  void read_template(const JsonNode& node);
  void cut(std::string_view text, const SpecialTokens& tokens, bool special, std::vector<Part>& parts) const;
  void encode_part(std::string_view text, bool at_start, std::size_t most, const std::vector<bool>* skip,
                   std::vector<TokenId>& tokens, JsonModel::Scratch& scratch, JsonWords& words) const;

  JsonVocabulary model_texts_;  // the index refers to them
  TokenIndex index_;
  std::unique_ptr<const JsonModel> model_;
  JsonVocabulary texts_;
  std::vector<Added> added_;  // in the order in which they win
  SpecialTokens plain_, normalized_;
  std::vector<bool> is_special_;
  std::unique_ptr<const JsonNormalizer> normalizer_;
  std::unique_ptr<const JsonPreTokenizer> pre_tokenizer_;
  JsonDecoder decoder_;
  std::vector<TokenId> prefix_, suffix_;
};

}  // namespace skald::inline v0::detail
