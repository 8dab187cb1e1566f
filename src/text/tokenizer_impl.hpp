#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <skald/text/tokenizer.hpp>

#include "text/byte_pair.hpp"
#include "text/json_tokenizer.hpp"
#include "text/longest_match.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/sentence_piece.hpp"
#include "text/sentence_unigram.hpp"
#include "text/special_tokens.hpp"
#include "text/token_index.hpp"
#include "text/word_piece.hpp"

namespace skald::inline v0 {

namespace detail {
enum class TokenizerFamily { byte_level, sentence_piece, unigram, word_piece, longest_match, json };
}

struct Tokenizer::Impl {
  Vocabulary vocabulary;  // scores and merges go to the encoders
  detail::TokenIndex index;
  using Family = detail::TokenizerFamily;
  Family family = Family::byte_level;
  detail::PreTokenizerTraits traits{};
  std::vector<detail::PreTokenizer> splitter;  // one for byte-level BPE, none otherwise
  detail::BytePairEncoder byte_pair;
  detail::SentencePieceEncoder sentence_piece;
  detail::SentenceUnigramEncoder unigram;
  detail::WordPieceEncoder word_piece;
  detail::LongestMatchEncoder longest_match;
  std::shared_ptr<const detail::JsonTokenizer> json;
  detail::SpecialTokens always, when_parsing;
  std::vector<bool> strips_left, strips_right;
  std::vector<TokenId> ends;
  std::vector<TokenId> replacement;  // U+FFFD in byte-level tokens
  std::string pieces;
  std::vector<std::size_t> piece_begin;
  std::unordered_map<TokenId, std::string> first_pieces;  // of tokens that contribute something else to the start
  Vocabulary roles;
  bool add_bos = false, add_eos = false, add_space_prefix = false;
  bool add_sep = false;  // WordPiece texts end with a separator

  explicit Impl(Vocabulary from);
  /// Of `tokenizer.json`; `from` has the texts, types and ids.
  Impl(Vocabulary from, std::shared_ptr<const detail::JsonTokenizer> read, bool clean_up_spaces);
  void build_encoder();
  void make_pieces();
  void make_json_pieces();
  void make_roles();
  void make_special_tokens();
  void resolve_flags();
  [[nodiscard]] std::size_t checked(TokenId token) const;

  struct Scratch {
    std::vector<std::uint32_t> word_ends;
    std::vector<std::uint32_t> raw_bytes;
    std::string valid, escaped;
    detail::BytePairEncoder::Scratch byte_pair;
    detail::SentencePieceEncoder::Scratch sentence_piece;
    detail::SentenceUnigramEncoder::Scratch unigram;
    detail::WordPieceEncoder::Scratch word_piece;
  };
  void encode_text(std::string_view text, bool space_prefix, std::vector<TokenId>& tokens, Scratch& scratch) const;
  void encode_byte_level(std::string_view text, std::vector<TokenId>& tokens, Scratch& scratch) const;
};

}  // namespace skald::inline v0
