#include "text/byte_pair.hpp"

#include <algorithm>
#include <bit>

#include <skald/core/error.hpp>

#include "text/byte_level.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr std::uint64_t no_key = ~std::uint64_t{0};
constexpr std::uint32_t no_rank = ~std::uint32_t{0};

constexpr std::uint64_t pair_key(TokenId left, TokenId right) noexcept {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

std::size_t MergeTable::slot_of(std::uint64_t key) const noexcept {
  key ^= key >> 32;  // Fibonacci hashing; the upper bits of the product are well mixed
  return static_cast<std::size_t>((key * 0x9e37'79b9'7f4a'7c15U) >> shift_);
}

const MergeTable::Merge* MergeTable::find(TokenId left, TokenId right) const noexcept {
  if (slots_.empty() || left < 0 || right < 0) return nullptr;
  const std::uint64_t key = pair_key(left, right);
  for (std::size_t i = slot_of(key);; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].key == key) return &slots_[i].merge;
    if (slots_[i].key == no_key) return nullptr;
  }
}

void MergeTable::build(const Vocabulary& vocabulary, const TokenIndex& index) {
  const auto& merges = vocabulary.merges;
  resize(merges.size());
  std::string result;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto refuse = [&](std::string_view why) {
      throw FormatError(
          "text.tokenizer",
          "merges[" + std::to_string(rank) + "] = '" + printable(merges[rank], 80) + "' " + std::string(why),
          {.file = vocabulary.source, .key = vocabulary.key_prefix + "merges"});
    };
    const std::string_view merge = merges[rank];
    // A part may itself begin with a space in vocabularies that were not mapped to printable characters.
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) refuse("is not of the form 'left right'");
    const TokenId left = index.find(merge.substr(0, space));
    const TokenId right = index.find(merge.substr(space + 1));
    if (left < 0 || right < 0) refuse("has a part that is not a token");
    result.assign(merge.substr(0, space)).append(merge.substr(space + 1));
    const TokenId merged = index.find(result);
    if (merged < 0) refuse("gives a text that is not a token");
    const std::uint64_t key = pair_key(left, right);
    std::size_t i = slot_of(key);
    for (; slots_[i].key != no_key; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) refuse("occurs twice");
    }
    slots_[i] = {key, {static_cast<std::uint32_t>(rank), merged}};
  }
}

void MergeTable::build(const std::vector<Entry>& entries) {
  resize(entries.size());
  for (const Entry& entry : entries) {
    const std::uint64_t key = pair_key(entry.left, entry.right);
    std::size_t i = slot_of(key);
    while (slots_[i].key != no_key && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = {key, {entry.rank, entry.result}};
  }
}

void MergeTable::resize(std::size_t merges) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(2 * merges, 16));
  slots_.assign(size, {no_key, {}});
  shift_ = 64 - std::countr_zero(size);
}

void BytePairEncoder::build(const Vocabulary& vocabulary, const TokenIndex& index, bool whole_words) {
  merger_.build(vocabulary, index);
  whole_words_ = whole_words ? &index : nullptr;
  is_text_.assign(vocabulary.tokens.size(), true);
  for (std::size_t i = 0; i < vocabulary.types.size(); ++i) {
    is_text_[i] = vocabulary.types[i] == TokenType::normal || vocabulary.types[i] == TokenType::user_defined;
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const TokenId id = index.find(byte_level_char(static_cast<unsigned char>(byte)));
    byte_tokens_[byte] = id;
    // A user-defined token of that spelling stands for the character, not for the byte.
    const bool normal =
        vocabulary.types.empty() || (id >= 0 && vocabulary.types[static_cast<std::size_t>(id)] == TokenType::normal);
    spells_[byte] = id >= 0 && normal;
  }
}

void BytePairEncoder::encode(std::string_view word, std::vector<TokenId>& tokens, Scratch& scratch) const {
  if (whole_words_ != nullptr) {
    scratch.spelling.clear();
    for (const char c : word) scratch.spelling += byte_level_char(static_cast<unsigned char>(c));
    const TokenId id = whole_words_->find(scratch.spelling);
    if (id >= 0 && is_text_[static_cast<std::size_t>(id)]) {
      tokens.push_back(id);
      return;
    }
  }
  auto& symbols = scratch.symbols;
  const auto size = static_cast<std::int32_t>(word.size());
  symbols.resize(word.size());
  for (std::size_t i = 0; i < word.size(); ++i) {
    symbols[i].id = byte_tokens_[static_cast<unsigned char>(word[i])];
  }
  merger_.merge(scratch);
  for (std::int32_t i = 0; i >= 0 && i < size; i = symbols[static_cast<std::size_t>(i)].next) {
    const TokenId id = symbols[static_cast<std::size_t>(i)].id;
    if (id >= 0) tokens.push_back(id);
  }
}

void BytePairMerger::merge(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  const auto size = static_cast<std::int32_t>(symbols.size());
  for (std::int32_t i = 0; i < size; ++i) {
    auto& symbol = symbols[static_cast<std::size_t>(i)];
    symbol.previous = i - 1;
    symbol.next = i + 1 < size ? i + 1 : -1;
  }
  for (std::int32_t i = 0; i < size; ++i) symbols[static_cast<std::size_t>(i)].rank = rank_at(symbols, i);
  constexpr std::int32_t long_word = 64;
  if (size <= long_word) merge_short(symbols);
  else merge_long(symbols, scratch.queue);
}

std::uint32_t BytePairMerger::rank_at(const std::vector<Symbol>& symbols, std::int32_t left) const noexcept {
  const Symbol& symbol = symbols[static_cast<std::size_t>(left)];
  if (symbol.next < 0) return no_rank;
  const auto* merge = merges_.find(symbol.id, symbols[static_cast<std::size_t>(symbol.next)].id);
  return merge == nullptr ? no_rank : merge->rank;
}

// Joins a symbol with the next one and brings both ranks that change up to date.
void BytePairMerger::merge_at(std::vector<Symbol>& symbols, std::int32_t left) const noexcept {
  Symbol& symbol = symbols[static_cast<std::size_t>(left)];
  Symbol& right = symbols[static_cast<std::size_t>(symbol.next)];
  symbol.id = merges_.find(symbol.id, right.id)->result;
  symbol.next = right.next;
  right.rank = no_rank;
  if (symbol.next >= 0) symbols[static_cast<std::size_t>(symbol.next)].previous = left;
  symbol.rank = rank_at(symbols, left);
  if (symbol.previous >= 0) {
    symbols[static_cast<std::size_t>(symbol.previous)].rank = rank_at(symbols, symbol.previous);
  }
}

void BytePairMerger::merge_short(std::vector<Symbol>& symbols) const noexcept {
  while (!symbols.empty()) {
    std::int32_t least = 0;
    for (std::int32_t i = 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
      if (symbols[static_cast<std::size_t>(i)].rank < symbols[static_cast<std::size_t>(least)].rank) least = i;
    }
    if (symbols[static_cast<std::size_t>(least)].rank == no_rank) return;
    merge_at(symbols, least);
  }
}

void BytePairMerger::merge_long(std::vector<Symbol>& symbols, MergeQueue& queue) const {
  queue.clear();
  const auto push = [&](std::int32_t left) {
    if (left < 0) return;
    const std::uint32_t rank = symbols[static_cast<std::size_t>(left)].rank;
    if (rank != no_rank) queue.push(rank, static_cast<std::uint32_t>(left));
  };
  const auto count = std::ranges::count_if(symbols, [](const Symbol& symbol) { return symbol.rank != no_rank; });
  // Every merge takes one entry out and puts at most two in, so the queue never grows past this.
  queue.reserve(2 * static_cast<std::size_t>(count) + 2);
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(symbols.size()); ++i) push(i);
  for (MergeQueue::Entry entry{}; queue.pop(entry);) {
    // Entries stay when a neighbour merges; the rank of the symbol tells whether one still holds.
    if (symbols[entry.position].rank != entry.rank) continue;
    const auto left = static_cast<std::int32_t>(entry.position);
    merge_at(symbols, left);
    push(symbols[entry.position].previous);
    push(left);
  }
}

}  // namespace skald::inline v0::detail
