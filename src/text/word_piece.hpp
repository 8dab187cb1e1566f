#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/byte_trie.hpp"

namespace skald::inline v0::detail {

/// WordPiece (Wu et al. 2016, as in BERT): text loses its case and accents, is split into words, and words are spelled
/// from left to right with the longest tokens; a word that cannot be spelled becomes the unknown token. For
/// vocabularies that mark the beginning of a word with U+2581, as GGUF files do.
class WordPieceEncoder {
 public:
  void build(const Vocabulary& vocabulary);

  struct Scratch {
    std::string word;
  };
  /// Appends the tokens of `text`; what is not UTF-8 is left out.
  void encode(std::string_view text, std::vector<TokenId>& tokens, Scratch& scratch) const;

 private:
  void finish_word(std::vector<TokenId>& tokens, std::string& word) const;
  ByteTrie trie_;
  TokenId unknown_ = -1;
};

}  // namespace skald::inline v0::detail
