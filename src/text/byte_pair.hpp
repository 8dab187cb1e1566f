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
  struct Entry {
    TokenId left, right;
    std::uint32_t rank;
    TokenId result;
  };
  /// Of entries with equal parts the last one stays.
  void build(const std::vector<Entry>& entries);
  /// The merge, or null.
  [[nodiscard]] const Merge* find(TokenId left, TokenId right) const noexcept;

 private:
  struct Slot {
    std::uint64_t key;
    Merge merge;
  };
  void resize(std::size_t merges);
  [[nodiscard]] std::size_t slot_of(std::uint64_t key) const noexcept;
  std::vector<Slot> slots_;
  int shift_ = 0;
};

/// Merging within a word: repeatedly the pair of lowest rank, leftmost first, becomes one token. O(n log n) in the
/// number of symbols, memory of about 40 bytes for each.
class BytePairMerger {
 public:
  void build(const Vocabulary& vocabulary, const TokenIndex& index) { merges_.build(vocabulary, index); }
  void build(const std::vector<MergeTable::Entry>& entries) { merges_.build(entries); }

  struct Symbol {
    TokenId id;
    std::int32_t previous, next;
    std::uint32_t rank;  // of the merge with the next symbol
  };
  /// Memory that calls of one thread reuse.
  struct Scratch {
    std::vector<Symbol> symbols;
    MergeQueue queue;
    std::string spelling;
  };
  /// Merges `scratch.symbols`, of which only the ids need to be set. What is left is the list from the first symbol on,
  /// by `next`; -1 ends it.
  void merge(Scratch& scratch) const;

 private:
  [[nodiscard]] std::uint32_t rank_at(const std::vector<Symbol>& symbols, std::int32_t left) const noexcept;
  void merge_at(std::vector<Symbol>& symbols, std::int32_t left) const noexcept;
  void merge_short(std::vector<Symbol>& symbols) const noexcept;
  void merge_long(std::vector<Symbol>& symbols, MergeQueue& queue) const;
  MergeTable merges_;
};

/// Byte-pair encoding of single words of bytes.
class BytePairEncoder {
 public:
  /// `whole_words`: a word that is a token of type normal or user-defined is taken without merging.
  void build(const Vocabulary& vocabulary, const TokenIndex& index, bool whole_words);

  using Scratch = BytePairMerger::Scratch;
  /// Appends the tokens of `word`. Bytes without a token are left out.
  void encode(std::string_view word, std::vector<TokenId>& tokens, Scratch& scratch) const;
  /// True if the vocabulary has a text token for this very byte.
  [[nodiscard]] bool spells(unsigned char byte) const noexcept { return spells_[byte]; }

 private:
  BytePairMerger merger_;
  std::array<TokenId, 256> byte_tokens_{};
  std::array<bool, 256> spells_{};
  const TokenIndex* whole_words_ = nullptr;
  std::vector<bool> is_text_;
};

}  // namespace skald::inline v0::detail
