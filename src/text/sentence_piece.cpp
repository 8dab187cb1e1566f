#include "text/sentence_piece.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include <skald/core/error.hpp>

#include "text/utf8.hpp"

namespace skald::inline v0::detail {

int byte_of_spelling(std::string_view text) noexcept {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    if (c >= '0' && c <= '9') value = 16 * value + (c - '0');
    else if (c >= 'A' && c <= 'F') value = 16 * value + (c - 'A' + 10);
    else if (c >= 'a' && c <= 'f') value = 16 * value + (c - 'a' + 10);
    else return -1;
  }
  return value;
}

void SentencePieceEncoder::build(const Vocabulary& vocabulary, const TokenIndex& index) {
  index_ = &index;
  const std::size_t count = vocabulary.tokens.size();
  scores_ = vocabulary.scores.empty() ? std::vector<float>(count, 0.0F) : vocabulary.scores;
  is_text_.assign(count, true);
  byte_tokens_.fill(vocabulary.unk);
  for (std::size_t i = 0; i < count; ++i) {
    const auto refuse = [&](std::string_view key, const std::string& message) {
      throw FormatError("text.tokenizer", message,
                        {.file = vocabulary.source, .key = vocabulary.key_prefix + std::string(key)});
    };
    if (std::isnan(scores_[i])) refuse("scores", "scores[" + std::to_string(i) + "] is not a number");
    const TokenType type = vocabulary.types.empty() ? TokenType::normal : vocabulary.types[i];
    is_text_[i] = type != TokenType::control && type != TokenType::unknown;
    const int byte = byte_of_spelling(vocabulary.tokens[i]);
    if (type == TokenType::byte && byte < 0) {
      refuse("tokens", "tokens[" + std::to_string(i) + "] = '" + printable(vocabulary.tokens[i], 80) +
                           "' has type byte; byte tokens are spelled <0x00> to <0xFF>");
    }
    if (byte >= 0 && is_text_[i]) byte_tokens_[static_cast<std::size_t>(byte)] = static_cast<TokenId>(i);
  }
}

TokenId SentencePieceEncoder::find_text(std::string_view text) const noexcept {
  // Control tokens must not come out of plain text, however it is spelled.
  const TokenId id = index_->find(text);
  return id >= 0 && is_text_[static_cast<std::size_t>(id)] ? id : -1;
}

void SentencePieceEncoder::encode(std::string_view text, std::vector<TokenId>& tokens, Scratch& scratch) const {
  auto& [symbols, queue] = scratch;
  symbols.clear();
  queue.clear();
  std::size_t count = 0;
  for (std::size_t at = 0; at < text.size(); at += utf8_step(text.substr(at)).size) ++count;
  symbols.reserve(count);
  for (std::size_t at = 0; at < text.size();) {
    const std::uint32_t size = utf8_step(text.substr(at)).size;
    const auto i = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({static_cast<std::uint32_t>(at), size, i - 1, at + size < text.size() ? i + 1 : -1});
    at += size;
  }
  const auto less = [](const Entry& a, const Entry& b) {
    return a.score < b.score || (a.score == b.score && a.left > b.left);
  };
  const auto candidate = [&](std::int32_t left, Entry& entry) {
    if (left < 0) return false;
    const Symbol& symbol = symbols[static_cast<std::size_t>(left)];
    if (symbol.next < 0) return false;
    const std::uint32_t size = symbol.size + symbols[static_cast<std::size_t>(symbol.next)].size;
    const TokenId id = find_text(text.substr(symbol.begin, size));
    if (id < 0) return false;
    entry = {scores_[static_cast<std::size_t>(id)], static_cast<std::uint32_t>(left), size};
    return true;
  };
  Entry entry{};
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(symbols.size()); ++i) {
    if (candidate(i, entry)) queue.push_back(entry);
  }
  queue.reserve(2 * queue.size() + 2);  // every merge takes one entry out and puts at most two in
  std::ranges::make_heap(queue, less);
  while (!queue.empty()) {
    std::ranges::pop_heap(queue, less);
    const Entry top = queue.back();
    queue.pop_back();
    Symbol& left = symbols[top.left];
    if (left.size == 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    // Symbols only grow, so the size tells whether the pair is still the one that was entered.
    if (left.size + right.size != top.size) continue;
    left.size = top.size;
    right.size = 0;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = static_cast<std::int32_t>(top.left);
    for (const std::int32_t at : {left.previous, static_cast<std::int32_t>(top.left)}) {
      if (candidate(at, entry)) {
        queue.push_back(entry);
        std::ranges::push_heap(queue, less);
      }
    }
  }
  for (const Symbol& symbol : symbols) {
    if (symbol.size == 0) continue;
    const std::string_view part = text.substr(symbol.begin, symbol.size);
    if (const TokenId id = find_text(part); id >= 0) {
      tokens.push_back(id);
      continue;
    }
    for (const char c : part) {
      if (const TokenId id = byte_tokens_[static_cast<unsigned char>(c)]; id >= 0) tokens.push_back(id);
    }
  }
}

}  // namespace skald::inline v0::detail
