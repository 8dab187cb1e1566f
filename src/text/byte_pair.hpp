#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/merge_queue.hpp"
#include "text/token_index.hpp"

namespace skald::inline v0::detail {

/// Merges of a byte-level vocabulary as an open-addressing table from two tokens to rank and result.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank;
    TokenId result;
  };

  /// Throws `FormatError` for a merge that is not "left right", whose parts or result are not tokens, or that
  /// occurs twice.
  void build(const Vocabulary& vocabulary, const TokenIndex& index);
  /// The merge, or null.
  [[nodiscard]] const Merge* find(TokenId left, TokenId right) const noexcept;

 private:
  struct Slot {
    std::uint64_t key;
    Merge merge;
  };
  [[nodiscard]] std::size_t slot_of(std::uint64_t key) const noexcept;
  std::vector<Slot> slots_;
  int shift_ = 0;
};

/// Byte-pair encoding of single words: repeatedly the pair of lowest rank, leftmost first, becomes one token.
/// O(n log n) in the length of the word, memory of about 40 bytes per byte.
class BytePairEncoder {
 public:
  /// `whole_words`: a word that is a token of type normal or user-defined is taken without merging.
  void build(const Vocabulary& vocabulary, const TokenIndex& index, bool whole_words);

  /// Memory that calls of one thread reuse.
  struct Symbol {
    TokenId id;
    std::int32_t previous, next;
    std::uint32_t rank;  // of the merge with the next symbol
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    MergeQueue queue;
    std::string spelling;
  };
  /// Appends the tokens of `word`. Bytes without a token are left out.
  void encode(std::string_view word, std::vector<TokenId>& tokens, Scratch& scratch) const;
  /// True if the vocabulary has a text token for this very byte.
  [[nodiscard]] bool spells(unsigned char byte) const noexcept { return spells_[byte]; }

 private:
  [[nodiscard]] std::uint32_t rank_at(const std::vector<Symbol>& symbols, std::int32_t left) const noexcept;
  void merge_at(std::vector<Symbol>& symbols, std::int32_t left) const noexcept;
  void merge_short(std::vector<Symbol>& symbols) const noexcept;
  void merge_long(std::vector<Symbol>& symbols, MergeQueue& queue) const;

  MergeTable merges_;
  std::array<TokenId, 256> byte_tokens_{};
  std::array<bool, 256> spells_{};
  const TokenIndex* whole_words_ = nullptr;
  std::vector<bool> is_text_;
};

}  // namespace skald::inline v0::detail
