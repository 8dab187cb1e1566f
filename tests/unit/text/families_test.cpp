#include <string>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/text/detokenizer.hpp>
#include <skald/text/tokenizer.hpp>

#include "small_vocabularies.hpp"
#include "support/catch.hpp"
#include "text/byte_trie.hpp"
#include "text/charsmap.hpp"
#include "text/unicode.hpp"

namespace {

using skald::TokenId;
using skald::Tokenizer;
using skald::TokenType;
using skald::Vocabulary;
using Ids = std::vector<TokenId>;

void add(Vocabulary& vocabulary, std::string text, TokenType type, float score = 0) {
  vocabulary.tokens.push_back(std::move(text));
  vocabulary.types.push_back(type);
  vocabulary.scores.push_back(score);
}

Vocabulary word_pieces() {
  Vocabulary vocabulary;
  vocabulary.model = "bert";
  for (const char* text : {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}) {
    add(vocabulary, text, std::string(text) == "[UNK]" ? TokenType::unknown : TokenType::control);
  }
  for (const char* text : {"▁un", "aff", "able", "▁e", "a", "▁中", "▁!"}) add(vocabulary, text, TokenType::normal);
  vocabulary.pad = 0;
  vocabulary.unk = 1;
  vocabulary.bos = 2;
  vocabulary.sep = 3;
  return vocabulary;
}

Vocabulary unigrams() {
  Vocabulary vocabulary;
  vocabulary.model = "t5";
  add(vocabulary, "<pad>", TokenType::control);
  add(vocabulary, "</s>", TokenType::control);
  add(vocabulary, "<unk>", TokenType::unknown);
  add(vocabulary, "▁", TokenType::normal, -3);
  add(vocabulary, "a", TokenType::normal, -2);
  add(vocabulary, "b", TokenType::normal, -2);
  add(vocabulary, "ab", TokenType::normal, -3.5F);
  add(vocabulary, "▁a", TokenType::normal, -2.5F);
  add(vocabulary, "XYZ", TokenType::user_defined);
  vocabulary.eos = 1;
  vocabulary.unk = 2;
  vocabulary.add_space_prefix = true;
  vocabulary.remove_extra_whitespaces = true;
  return vocabulary;
}

std::string little_endian(std::uint32_t value) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}

// A table that maps "A" to "a" and "AB" to "": root -> 'A' -> (value, 'B' -> value).
std::string small_charsmap() {
  std::vector<std::uint32_t> units(1024, 0xff);
  const auto offset = [](std::uint32_t to) { return to << 10; };
  const auto place = [&](std::size_t at, std::uint32_t children, bool leaf, unsigned char byte) {
    units[at] = offset(static_cast<std::uint32_t>(at) ^ children) | (leaf ? 1U << 8 : 0U) | byte;
  };
  place(0, 256, false, 0);
  place(256 ^ 'A', 512, true, 'A');
  units[512] = 1U << 31 | 0;  // "a"
  place(512 ^ 'B', 768, true, 'B');
  units[768] = 1U << 31 | 2;  // ""
  std::string bytes = little_endian(static_cast<std::uint32_t>(4 * units.size()));
  for (const std::uint32_t unit : units) bytes += little_endian(unit);
  return bytes + std::string("a\0\0", 3);
}

}  // namespace

TEST_CASE("text.byte_trie: finds all prefixes of a text and the last of equal entries") {
  skald::detail::ByteTrie trie;
  trie.build({{"a", 1}, {"abc", 2}, {"", 3}, {"b", 4}, {"abc", 5}, {"\xff", 6}});
  std::vector<std::pair<std::size_t, TokenId>> found;
  trie.prefixes("abcd", [&](std::size_t size, TokenId token) { found.emplace_back(size, token); });
  CHECK(found == std::vector<std::pair<std::size_t, TokenId>>{{1, 1}, {3, 5}});
  CHECK(trie.longest("ab") == std::pair<std::size_t, TokenId>{1, 1});
  CHECK(trie.longest("\xff\xff") == std::pair<std::size_t, TokenId>{1, 6});
  CHECK(trie.longest("x").second == -1);
  CHECK(trie.longest("").second == -1);
  skald::detail::ByteTrie none;
  none.build({});
  CHECK(none.longest("a").second == -1);
}

TEST_CASE("text.charsmap: finds the longest and the shortest entry and refuses tables that contradict themselves") {
  const std::string bytes = small_charsmap();
  const skald::detail::Charsmap map(bytes);
  CHECK(map.longest("ABC")->size == 2);
  CHECK(map.longest("ABC")->replacement.empty());
  CHECK(map.shortest("ABC")->size == 1);
  CHECK(map.shortest("ABC")->replacement == "a");
  CHECK_FALSE(map.longest("BA"));
  CHECK_FALSE(map.longest(""));
  for (const std::size_t size : {1U, 3U, 4U, 5U, 4096U, 4100U, 4101U}) {
    INFO(size);
    CHECK_THROWS_AS(skald::detail::Charsmap(bytes.substr(0, size)), skald::FormatError);
  }
  CHECK_THROWS_AS(skald::detail::Charsmap(little_endian(6) + "123456\0"), skald::FormatError);
  CHECK_THROWS_AS(skald::detail::Charsmap(little_endian(0xffff'fffc) + "123456"), skald::FormatError);
}

TEST_CASE("text.charsmap: walks damaged tables without leaving them") {
  const std::string bytes = small_charsmap();
  skald_test::Random random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = bytes;
    for (int i = 0; i < 20; ++i) damaged[4 + random.below(4096)] = static_cast<char>(random.below(256));
    for (const unsigned at : {0U, 256U ^ 'A', 512U, 512U ^ 'B'}) {
      if (random.below(2) == 0) damaged[4 + 4 * at + 1 + random.below(3)] = static_cast<char>(random.below(256));
    }
    const skald::detail::Charsmap map(damaged);
    const std::string text = "AB" + random.bytes(6);
    if (const auto match = map.longest(text)) CHECK(match->size <= text.size());
    if (const auto match = map.shortest(text)) CHECK(match->size <= text.size());
  }
}

TEST_CASE("text.tokenizer: WordPiece drops case and accents and spells words with the longest tokens") {
  const Tokenizer tokenizer(word_pieces());
  CHECK(tokenizer.adds_bos());
  CHECK(tokenizer.encode("Unaffable") == Ids{2, 4, 5, 6, 3});
  CHECK(tokenizer.encode("\tÉ  Éa!", {.add_special = false}) == Ids{7, 7, 8, 10});
  CHECK(tokenizer.encode("unx中", {.add_special = false}) == Ids{1, 9});
  CHECK(tokenizer.encode("[CLS]e", {.add_special = false, .parse_special = true}) == Ids{2, 7});
  CHECK(tokenizer.encode("[CLS]", {.add_special = false}) == Ids{1, 1, 1});
  CHECK(tokenizer.encode("\xff\xfe", {.add_special = false}).empty());
  CHECK(tokenizer.decode(Ids{4, 5, 6, 10}, {.clean_up_spaces = true}) == " unaffable!");
}

TEST_CASE("text.tokenizer: unigram models take the best path, merge spaces and unknown code points") {
  const Tokenizer tokenizer(unigrams());
  CHECK(tokenizer.model() == "t5");
  CHECK(tokenizer.encode("ab") == Ids{7, 5, 1});
  CHECK(tokenizer.encode("  a   ab ", {.add_special = false}) == Ids{7, 7, 5});
  CHECK(tokenizer.encode("aqqXYZb", {.add_special = false}) == Ids{7, 2, 8, 3, 5});
  CHECK(tokenizer.encode("\xff", {.add_special = false}) == Ids{3, 2});
  CHECK(tokenizer.encode(" ", {.add_special = false}).empty());
  CHECK(tokenizer.encode("</s>", {.add_special = false, .parse_special = true}) == Ids{1});
  CHECK(tokenizer.decode(Ids{7, 5, 7}) == "ab a");
}

TEST_CASE("text.tokenizer: unigram models apply their normalization table") {
  auto vocabulary = unigrams();
  vocabulary.precompiled_charsmap = small_charsmap();
  const Tokenizer tokenizer(std::move(vocabulary));
  CHECK(tokenizer.encode("Ab", {.add_special = false}) == Ids{7, 5});
  CHECK(tokenizer.encode("aABb", {.add_special = false}) == Ids{7, 5});
  auto broken = unigrams();
  broken.precompiled_charsmap = "123";
  try {
    const Tokenizer refused(std::move(broken));
    FAIL("accepted");
  } catch (const skald::FormatError& error) {
    CHECK(error.context().key == "tokenizer.ggml.precompiled_charsmap");
  }
}

TEST_CASE("text.tokenizer: RWKV takes the longest token and keeps all bytes") {
  Vocabulary vocabulary;
  vocabulary.model = "rwkv";
  const char* digits = "0123456789abcdef";
  for (int byte = 0; byte < 256; ++byte) {
    add(vocabulary, std::string("\\x") + digits[byte / 16] + digits[byte % 16], TokenType::normal);
  }
  add(vocabulary, "ab\\n", TokenType::normal);
  add(vocabulary, "\\\\'", TokenType::normal);
  const Tokenizer tokenizer(vocabulary);
  CHECK(tokenizer.encode("ab\nab\\'") == Ids{256, 'a', 'b', 257});
  CHECK(tokenizer.piece(256) == "ab\n");
  skald_test::Random random(3);
  for (int i = 0; i < 200; ++i) {
    const std::string text = random.bytes(50);
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
  for (const char* text : {"\\", "a\\x1", "\\xg0"}) {
    auto broken = vocabulary;
    broken.tokens.back() = text;
    CHECK_THROWS_AS(Tokenizer(std::move(broken)), skald::FormatError);
  }
}

TEST_CASE("text.tokenizer: every family takes any text, and streaming agrees with decoding") {
  skald_test::Random random(11);
  for (auto vocabulary : {word_pieces(), unigrams()}) {
    vocabulary.precompiled_charsmap = vocabulary.model == "t5" ? small_charsmap() : std::string();
    const Tokenizer tokenizer(std::move(vocabulary));
    for (int i = 0; i < 300; ++i) {
      const std::string text = i % 2 == 0 ? random.bytes(60) : random.utf8_text(40);
      const Ids ids = tokenizer.encode(text, {.parse_special = i % 3 == 0});
      skald::StreamingDetokenizer detokenizer(tokenizer);
      std::string streamed;
      for (const TokenId id : ids) streamed += detokenizer.push(id);
      streamed += detokenizer.finish();
      CHECK(streamed == skald::replace_invalid_utf8(tokenizer.decode(ids)));
    }
  }
}
