#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/charsmap.hpp"
#include "text/unigram.hpp"

namespace skald::inline v0::detail {

/// SentencePiece unigram vocabularies of GGUF files (T5): the text goes through the normalization table, spaces become
/// U+2581, and the best path through the tokens is taken. Runs of unknown code points become one unknown token.
class SentenceUnigramEncoder {
 public:
  /// Throws `FormatError`, naming the key, for a broken normalization table.
  void build(const Vocabulary& vocabulary);

  struct Scratch {
    std::string normalized;
    Unigram::Scratch unigram;
  };
  /// Appends the tokens of `text`; bytes that are not UTF-8 count as U+FFFD.
  void encode(std::string_view text, bool space_prefix, std::vector<TokenId>& tokens, Scratch& scratch) const;

 private:
  void normalize(std::string_view text, bool space_prefix, std::string& out) const;
  [[nodiscard]] std::pair<std::size_t, std::string_view> normalize_prefix(std::string_view text) const;
  Charsmap charsmap_;
  ByteTrie user_defined_;
  Unigram model_;
  TokenId unknown_ = -1;
  bool merge_spaces_ = false;
};

}  // namespace skald::inline v0::detail
