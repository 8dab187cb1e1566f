#include "text/byte_pair.hpp"

#include <algorithm>
#include <bit>
#include <functional>

#include <skald/core/error.hpp>

#include "text/byte_level.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr std::uint64_t no_key = ~std::uint64_t{0};

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
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(2 * merges.size(), 16));
  slots_.assign(size, {no_key, {}});
  shift_ = 64 - std::countr_zero(size);
  std::string result;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto refuse = [&](std::string_view why) {
      throw FormatError("text.tokenizer",
                        "merges[" + std::to_string(rank) + "] = '" + printable(merges[rank], 80) + "' " +
                            std::string(why),
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
    for (; slots_[i].key != no_key; i = (i + 1) & (size - 1)) {
      if (slots_[i].key == key) refuse("occurs twice");
    }
    slots_[i] = {key, {static_cast<std::uint32_t>(rank), merged}};
  }
}

void BytePairEncoder::build(const Vocabulary& vocabulary, const TokenIndex& index, bool whole_words) {
  merges_.build(vocabulary, index);
  whole_words_ = whole_words ? &index : nullptr;
  is_text_.assign(vocabulary.tokens.size(), true);
  for (std::size_t i = 0; i < vocabulary.types.size(); ++i) {
    is_text_[i] = vocabulary.types[i] == TokenType::normal || vocabulary.types[i] == TokenType::user_defined;
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const TokenId id = index.find(byte_level_char(static_cast<unsigned char>(byte)));
    byte_tokens_[byte] = id;
    // A user-defined token of that spelling stands for the character, not for the byte.
    const bool normal = vocabulary.types.empty() ||
                        (id >= 0 && vocabulary.types[static_cast<std::size_t>(id)] == TokenType::normal);
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
  const std::size_t size = word.size();
  auto& [ids, previous, next, queue, spelling] = scratch;
  ids.resize(size);
  previous.resize(size);
  next.resize(size);
  queue.clear();
  for (std::size_t i = 0; i < size; ++i) {
    ids[i] = byte_tokens_[static_cast<unsigned char>(word[i])];
    previous[i] = static_cast<std::int32_t>(i) - 1;
    next[i] = i + 1 < size ? static_cast<std::int32_t>(i) + 1 : -1;
  }
  const auto merge_at = [&](std::int32_t left) {
    const std::int32_t right = next[static_cast<std::size_t>(left)];
    return right < 0 ? nullptr : merges_.find(ids[static_cast<std::size_t>(left)], ids[static_cast<std::size_t>(right)]);
  };
  // Rank in the upper half and position in the lower one: the least entry is the leftmost pair of lowest rank.
  const auto entry_of = [](std::uint32_t rank, std::int32_t left) {
    return std::uint64_t{rank} << 32 | static_cast<std::uint32_t>(left);
  };
  for (std::int32_t i = 0; i + 1 < static_cast<std::int32_t>(size); ++i) {
    if (const auto* merge = merge_at(i)) queue.push_back(entry_of(merge->rank, i));
  }
  // Every merge takes one entry out and puts at most two in, so the queue never grows past this.
  queue.reserve(2 * queue.size() + 2);
  std::ranges::make_heap(queue, std::greater{});
  const auto push = [&](std::int32_t left) {
    if (left < 0) return;
    if (const auto* merge = merge_at(left)) {
      queue.push_back(entry_of(merge->rank, left));
      std::ranges::push_heap(queue, std::greater{});
    }
  };
  while (!queue.empty()) {
    std::ranges::pop_heap(queue, std::greater{});
    const std::uint64_t entry = queue.back();
    queue.pop_back();
    const auto left = static_cast<std::int32_t>(entry & 0xffff'ffff);
    const auto at = static_cast<std::size_t>(left);
    // Entries are not removed when a neighbour merges; a rank belongs to one pair only, so it tells.
    const auto* merge = ids[at] == -2 ? nullptr : merge_at(left);
    if (merge == nullptr || merge->rank != entry >> 32) continue;
    const auto right = static_cast<std::size_t>(next[at]);
    ids[at] = merge->result;
    ids[right] = -2;
    next[at] = next[right];
    if (next[at] >= 0) previous[static_cast<std::size_t>(next[at])] = left;
    push(previous[at]);
    push(left);
  }
  for (const TokenId id : ids) {
    if (id >= 0) tokens.push_back(id);
  }
}

}  // namespace skald::inline v0::detail
