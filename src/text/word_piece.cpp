#include "text/word_piece.hpp"

#include "text/unicode.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr std::string_view word_start = "\xe2\x96\x81";  // U+2581

}  // namespace

void WordPieceEncoder::build(const Vocabulary& vocabulary) {
  unknown_ = vocabulary.unk;
  std::vector<ByteTrie::Entry> entries;
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    // Control tokens must not come out of plain text.
    if (vocabulary.types[i] == TokenType::control || vocabulary.types[i] == TokenType::unknown) continue;
    entries.emplace_back(vocabulary.tokens[i], static_cast<TokenId>(i));
  }
  trie_.build(std::move(entries));
}

void WordPieceEncoder::finish_word(std::vector<TokenId>& tokens, std::string& word) const {
  if (word.size() == word_start.size()) return;
  const std::size_t before = tokens.size();
  for (std::string_view rest = word; !rest.empty();) {
    const auto [size, token] = trie_.longest(rest);
    if (size == 0) {
      tokens.resize(before);
      if (unknown_ >= 0) tokens.push_back(unknown_);
      break;
    }
    tokens.push_back(token);
    rest.remove_prefix(size);
  }
  word = word_start;
}

void WordPieceEncoder::encode(std::string_view text, std::vector<TokenId>& tokens, Scratch& scratch) const {
  std::string& word = scratch.word;
  word = word_start;
  while (!text.empty()) {
    const DecodedPoint point = decode_point(text);
    text.remove_prefix(point.size);
    const CodePoint base = base_point(point.value);
    if (is_white_space(base)) {
      finish_word(tokens, word);
      continue;
    }
    if (base == 0 || base == 0xfffd || is_other(base)) continue;
    const bool alone = is_punctuation(base) || (base < 0x7f && is_symbol(base)) || is_chinese(base);
    if (alone) finish_word(tokens, word);
    // Only the first code point of a lower case counts.
    std::string lower;
    append_lower(lower, base);
    word += std::string_view(lower).substr(0, decode_point(lower).size);
    if (alone) finish_word(tokens, word);
  }
  finish_word(tokens, word);
}

}  // namespace skald::inline v0::detail
