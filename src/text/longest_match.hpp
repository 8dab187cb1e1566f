#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/byte_trie.hpp"

namespace skald::inline v0::detail {

/// The tokenizer of RWKV models: from left to right, always the longest token. The family knows no difference between
/// text and control tokens: text that spells one becomes it, also when special tokens are not parsed.
class LongestMatchEncoder {
 public:
  /// Throws `FormatError` for a token whose escape sequences are broken.
  void build(const Vocabulary& vocabulary);
  /// Appends the tokens of `text`. A byte that begins no token becomes the unknown token, if there is one.
  void encode(std::string_view text, std::vector<TokenId>& tokens) const;
  /// Bytes of a token.
  [[nodiscard]] std::string_view bytes(std::size_t token) const noexcept { return bytes_[token]; }
  void forget_bytes() { bytes_ = {}; }

 private:
  std::vector<std::string> bytes_;
  ByteTrie trie_;
  TokenId unknown_ = -1;
};

}  // namespace skald::inline v0::detail
