#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/byte_trie.hpp"

namespace skald::inline v0::detail {

/// Unigram language model (Kudo 2018): of all ways to write a text as tokens the one with the greatest sum of scores,
/// found from left to right (Viterbi). Takes O(text x longest token) time and 16 bytes per byte of text.
class Unigram {
 public:
  struct Entry {
    std::string_view text;
    TokenId token;
    double score;
  };
  /// `unknown_score`: of a code point that is no token by itself. The texts may go afterwards.
  void build(const std::vector<Entry>& entries, std::size_t vocabulary_size, double unknown_score);

  struct Piece {
    std::uint32_t begin, size;
    TokenId token;  ///< -1: no token
  };
  struct Scratch {
    struct Best {
      double score;
      TokenId token;
      std::uint32_t size;  // 0: not reached
    };
    std::vector<Best> best;
    std::vector<Piece> pieces;
  };
  /// Pieces of `text` (valid UTF-8) in order. With `skip`, tokens marked in it are not used.
  const std::vector<Piece>& split(std::string_view text, Scratch& scratch, const std::vector<bool>* skip) const;

 private:
  ByteTrie trie_;
  std::vector<double> scores_;
  double unknown_score_ = 0;
};

}  // namespace skald::inline v0::detail
