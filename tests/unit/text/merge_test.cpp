#include "text/merge_queue.hpp"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <skald/text/tokenizer.hpp>

#include "support/catch.hpp"
#include "unit/text/small_vocabularies.hpp"

namespace {

using skald::TokenId;
using skald::Tokenizer;
using skald::TokenType;
using skald::Vocabulary;
using skald::detail::MergeQueue;
using skald_test::Random;

// Merges as the definition says, with a scan over the whole text for each.
template <class Rank>
std::vector<std::string> merge_slowly(std::vector<std::string> parts, Rank rank) {
  for (;;) {
    std::size_t best = parts.size();
    long best_rank = -1;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      const long found = rank(parts[i], parts[i + 1]);
      if (found >= 0 && (best_rank < 0 || found < best_rank)) {
        best = i;
        best_rank = found;
      }
    }
    if (best == parts.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  return parts;
}

std::vector<std::string> texts_of(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<std::string> texts;
  for (const TokenId id : tokenizer.encode(text, {.add_special = false})) texts.emplace_back(tokenizer.token_text(id));
  return texts;
}

std::string random_word(Random& random, std::uint32_t most) {
  std::string word;
  for (std::uint32_t n = 1 + random.below(most); n > 0; --n) word += static_cast<char>('a' + random.below(3));
  return word;
}

}  // namespace

TEST_CASE("text.merge_queue: gives entries in order of rank and position, like a sorted list") {
  Random random(21);
  MergeQueue queue;
  for (int round = 0; round < 200; ++round) {
    queue.clear();
    std::vector<std::pair<std::uint32_t, std::uint32_t>> model;
    const std::uint32_t ranks = 1 + random.below(300);
    for (int step = 0; step < 600; ++step) {
      if (random.below(5) < 3) {
        const std::uint32_t rank = random.below(ranks);
        const std::uint32_t position = random.below(100);
        queue.push(rank, position);
        model.emplace_back(rank, position);
        std::ranges::push_heap(model, std::greater{});
        continue;
      }
      MergeQueue::Entry entry{};
      REQUIRE(queue.pop(entry) == !model.empty());
      if (model.empty()) continue;
      std::ranges::pop_heap(model, std::greater{});
      REQUIRE(std::pair(entry.rank, entry.position) == model.back());
      model.pop_back();
    }
  }
}

TEST_CASE("text.tokenizer: byte pairs merge as by definition in short and in long words, whatever the order of ranks") {
  Random random(31);
  for (int round = 0; round < 30; ++round) {
    // Random merges over a, b, c; later ones may have lower ranks than those that make their parts.
    Vocabulary vocabulary = skald_test::small_byte_level();
    vocabulary.merges.clear();
    vocabulary.types.clear();
    vocabulary.bos = vocabulary.eos = -1;
    vocabulary.tokens.resize(256);
    std::vector<std::string> pieces = {"a", "b", "c"};
    for (int tries = 0; tries < 40; ++tries) {
      const std::string left = pieces[random.below(static_cast<std::uint32_t>(pieces.size()))];
      const std::string right = pieces[random.below(static_cast<std::uint32_t>(pieces.size()))];
      const std::string merge = left + " " + right;
      if (std::ranges::count(vocabulary.merges, merge) > 0 || left.size() + right.size() > 12) continue;
      const auto place = random.below(static_cast<std::uint32_t>(vocabulary.merges.size()) + 1);
      vocabulary.merges.insert(vocabulary.merges.begin() + place, merge);
      if (std::ranges::count(vocabulary.tokens, left + right) == 0) {
        vocabulary.tokens.push_back(left + right);
        pieces.push_back(left + right);
      }
    }
    const auto merges = vocabulary.merges;
    const auto rank = [&](const std::string& left, const std::string& right) {
      const auto found = std::ranges::find(merges, left + " " + right);
      return found == merges.end() ? -1L : static_cast<long>(found - merges.begin());
    };
    const Tokenizer tokenizer(vocabulary);
    for (int i = 0; i < 40; ++i) {
      const std::string word = random_word(random, i % 2 == 0 ? 60 : 400);
      REQUIRE(texts_of(tokenizer, word) == merge_slowly(characters(word), rank));
    }
  }
}

TEST_CASE("text.tokenizer: SentencePiece merges as by definition, also among equal scores") {
  Random random(41);
  for (int round = 0; round < 30; ++round) {
    Vocabulary vocabulary;
    vocabulary.model = "llama";
    vocabulary.add_space_prefix = false;
    vocabulary.tokens = {"a", "b", "c"};
    for (int tries = 0; tries < 30; ++tries) {
      const std::string piece = random_word(random, 7);
      if (std::ranges::count(vocabulary.tokens, piece) == 0) vocabulary.tokens.push_back(piece);
    }
    for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
      vocabulary.scores.push_back(-static_cast<float>(random.below(4)));
    }
    const auto rank = [&](const std::string& left, const std::string& right) {
      const auto found = std::ranges::find(vocabulary.tokens, left + right);
      if (found == vocabulary.tokens.end()) return -1L;
      return static_cast<long>(-vocabulary.scores[static_cast<std::size_t>(found - vocabulary.tokens.begin())]);
    };
    const Tokenizer tokenizer(vocabulary);
    for (int i = 0; i < 40; ++i) {
      const std::string word = random_word(random, 300);
      REQUIRE(texts_of(tokenizer, word) == merge_slowly(characters(word), rank));
    }
  }
}
