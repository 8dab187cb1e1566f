#include "text/sentence_piece.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include <skald/core/error.hpp>

#include "text/utf8.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr std::uint32_t no_rank = ~std::uint32_t{0};

}  // namespace

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
  const std::vector<float>& scores = vocabulary.scores;
  is_text_.assign(count, true);
  byte_tokens_.fill(vocabulary.unk);
  for (std::size_t i = 0; i < count; ++i) {
    const auto refuse = [&](std::string_view key, const std::string& message) {
      throw FormatError("text.tokenizer", message,
                        {.file = vocabulary.source, .key = vocabulary.key_prefix + std::string(key)});
    };
    if (!scores.empty() && std::isnan(scores[i])) refuse("scores", "scores[" + std::to_string(i) + "] is not a number");
    const TokenType type = vocabulary.types.empty() ? TokenType::normal : vocabulary.types[i];
    is_text_[i] = type != TokenType::control && type != TokenType::unknown;
    const int byte = byte_of_spelling(vocabulary.tokens[i]);
    if (type == TokenType::byte && byte < 0) {
      refuse("tokens", "tokens[" + std::to_string(i) + "] = '" + printable(vocabulary.tokens[i], 80) +
                           "' has type byte; byte tokens are spelled <0x00> to <0xFF>");
    }
    if (byte >= 0 && is_text_[i]) byte_tokens_[static_cast<std::size_t>(byte)] = static_cast<TokenId>(i);
  }
  std::vector<float> sorted = scores;
  std::ranges::sort(sorted, std::greater{});
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  ranks_.assign(count, 0);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const auto place = std::ranges::lower_bound(sorted, scores[i], std::greater{});
    ranks_[i] = static_cast<std::uint32_t>(place - sorted.begin());
  }
}

TokenId SentencePieceEncoder::find_text(std::string_view text) const noexcept {
  // Control tokens must not come out of plain text, however it is spelled.
  const TokenId id = index_->find(text);
  return id >= 0 && is_text_[static_cast<std::size_t>(id)] ? id : -1;
}

std::uint32_t SentencePieceEncoder::rank_at(std::string_view text, const std::vector<Symbol>& symbols,
                                            std::int32_t left) const noexcept {
  const Symbol& symbol = symbols[static_cast<std::size_t>(left)];
  if (symbol.next < 0) return no_rank;
  const std::uint32_t size = symbol.size + symbols[static_cast<std::size_t>(symbol.next)].size;
  const TokenId id = find_text(text.substr(symbol.begin, size));
  return id < 0 ? no_rank : ranks_[static_cast<std::size_t>(id)];
}

void SentencePieceEncoder::encode(std::string_view text, std::vector<TokenId>& tokens, Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  MergeQueue& queue = scratch.queue;
  symbols.clear();
  queue.clear();
  std::size_t count = 0;
  for (std::size_t at = 0; at < text.size(); at += utf8_step(text.substr(at)).size) ++count;
  symbols.reserve(count);
  for (std::size_t at = 0; at < text.size();) {
    const std::uint32_t size = utf8_step(text.substr(at)).size;
    const auto i = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({static_cast<std::uint32_t>(at), size, i - 1, at + size < text.size() ? i + 1 : -1, no_rank});
    at += size;
  }
  const auto update = [&](std::int32_t left) {
    if (left < 0) return;
    const std::uint32_t rank = rank_at(text, symbols, left);
    symbols[static_cast<std::size_t>(left)].rank = rank;
    if (rank != no_rank) queue.push(rank, static_cast<std::uint32_t>(left));
  };
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(symbols.size()); ++i) update(i);
  for (MergeQueue::Entry entry{}; queue.pop(entry);) {
    // Entries stay when a neighbour merges; the rank of the symbol tells whether one still holds. If it holds for
    // another pair of the same rank, that pair has the same place in the order.
    Symbol& left = symbols[entry.position];
    if (left.rank != entry.rank) continue;
    Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    left.size += right.size;
    left.next = right.next;
    right.size = 0;
    right.rank = no_rank;
    const auto position = static_cast<std::int32_t>(entry.position);
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = position;
    update(left.previous);
    update(position);
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
