#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/merge_queue.hpp"
#include "text/token_index.hpp"

namespace skald::inline v0::detail {

/// SentencePiece BPE: of all neighbours that together are a token, the pair with the greatest score merges first,
/// leftmost first among equals. What is no token in the end becomes byte tokens, or the unknown token.
class SentencePieceEncoder {
 public:
  /// Throws `FormatError` for byte tokens that are not spelled `<0xHH>`.
  void build(const Vocabulary& vocabulary, const TokenIndex& index);

  struct Symbol {
    std::uint32_t begin, size;
    std::int32_t previous, next;
    std::uint32_t rank;  // of the token that it makes with the next symbol
  };
  /// Memory that calls of one thread reuse.
  struct Scratch {
    std::vector<Symbol> symbols;
    MergeQueue queue;
  };
  /// Appends the tokens of `text`, in which spaces are U+2581 already.
  void encode(std::string_view text, std::vector<TokenId>& tokens, Scratch& scratch) const;

 private:
  [[nodiscard]] std::uint32_t rank_at(std::string_view text, const std::vector<Symbol>& symbols,
                                      std::int32_t left) const noexcept;
  [[nodiscard]] TokenId find_text(std::string_view text) const noexcept;
  const TokenIndex* index_ = nullptr;
  std::vector<std::uint32_t> ranks_;  // of the scores, 0 for the greatest; equal scores have equal ranks
  std::vector<bool> is_text_;
  std::array<TokenId, 256> byte_tokens_{};
};

/// Byte of a token spelled `<0xHH>`, or -1.
[[nodiscard]] int byte_of_spelling(std::string_view text) noexcept;

}  // namespace skald::inline v0::detail
