#include <skald/text/tokenizer.hpp>

#include <atomic>
#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <pthread.h>

#include <skald/core/error.hpp>

#include "support/catch.hpp"
#include "text/byte_level.hpp"
#include "unit/text/small_vocabularies.hpp"

namespace {

using skald::EncodeOptions;
using skald::FormatError;
using skald::TokenId;
using skald::Tokenizer;
using skald::TokenType;
using skald::UnsupportedError;
using skald::Vocabulary;
using skald_test::Random;
using skald_test::small_byte_level;
using skald_test::small_sentence_piece;

using Ids = std::vector<TokenId>;

std::vector<std::string> texts_of(const Tokenizer& tokenizer, const Ids& ids) {
  std::vector<std::string> texts;
  for (const TokenId id : ids) texts.emplace_back(tokenizer.token_text(id));
  return texts;
}

constexpr EncodeOptions plain{.add_special = false};
constexpr EncodeOptions parsing{.add_special = false, .parse_special = true};

// Runs `body` in a thread with a stack of 256 KiB.
template <class Body>
void on_small_stack(Body body) {
  pthread_attr_t attributes;
  REQUIRE(pthread_attr_init(&attributes) == 0);
  REQUIRE(pthread_attr_setstacksize(&attributes, 256 * 1024) == 0);
  pthread_t thread{};
  const auto start = [](void* argument) -> void* {
    (*static_cast<Body*>(argument))();
    return nullptr;
  };
  REQUIRE(pthread_create(&thread, &attributes, start, &body) == 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

// A text of at least `bytes` bytes.
std::string repeated(std::string_view part, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += part;
  return text;
}

}  // namespace

TEST_CASE("text.tokenizer: merges the pair of lowest rank first, leftmost among equals") {
  const Tokenizer tokenizer(small_byte_level());
  CHECK(texts_of(tokenizer, tokenizer.encode("hello", plain)) == std::vector<std::string>{"hello"});
  CHECK(texts_of(tokenizer, tokenizer.encode("hell", plain)) == std::vector<std::string>{"he", "ll"});
  CHECK(texts_of(tokenizer, tokenizer.encode("lll", plain)) == std::vector<std::string>{"ll", "l"});
  CHECK(texts_of(tokenizer, tokenizer.encode("llll", plain)) == std::vector<std::string>{"ll", "ll"});
  CHECK(texts_of(tokenizer, tokenizer.encode("hello hello", plain)) == std::vector<std::string>{"hello", "Ġhello"});
}

TEST_CASE("text.tokenizer: adds the begin and end tokens that the vocabulary asks for") {
  auto vocabulary = small_byte_level();
  const Tokenizer without(vocabulary);
  CHECK(without.encode("") == Ids{});
  vocabulary.add_bos = true;
  vocabulary.add_eos = true;
  const Tokenizer with(vocabulary);
  CHECK(with.encode("") == Ids{with.bos(), with.eos()});
  CHECK(with.encode("", plain) == Ids{});
  CHECK(with.adds_bos());
  vocabulary.bos = -1;
  CHECK_THROWS_AS(Tokenizer(vocabulary), FormatError);
}

TEST_CASE("text.tokenizer: makes control tokens of text only when asked to") {
  for (const Vocabulary& vocabulary : {small_byte_level(), small_sentence_piece()}) {
    const Tokenizer tokenizer(vocabulary);
    const auto control = [&](const Ids& ids) {
      int count = 0;
      for (const TokenId id : ids) count += tokenizer.is_control(id) ? 1 : 0;
      return count;
    };
    Random random(7);
    const std::vector<std::string> parts = {"<s>",   "</s>", "<|im_end|>", "<|im_start|>", "<s", ">", " ",
                                            "hello", "<",    "|"};
    int parsed = 0;
    for (int i = 0; i < 10'000; ++i) {
      std::string text;
      for (std::uint32_t n = random.below(8); n > 0; --n) text += parts[random.below(10)];
      CHECK(control(tokenizer.encode(text, plain)) == 0);
      parsed += control(tokenizer.encode(text, parsing));
      if (tokenizer.model() == "gpt2") CHECK(tokenizer.decode(tokenizer.encode(text, plain)) == text);
    }
    CHECK(parsed > 5000);
  }
}

TEST_CASE("text.tokenizer: prefers longer special tokens over shorter ones wherever they begin") {
  auto vocabulary = small_byte_level();
  for (const char* text : {"aab", "abcd", "bc", "cde"}) {
    vocabulary.tokens.emplace_back(text);
    vocabulary.types.push_back(TokenType::user_defined);
  }
  const Tokenizer tokenizer(vocabulary);
  using Texts = std::vector<std::string>;
  CHECK(texts_of(tokenizer, tokenizer.encode("aabcd", plain)) == Texts{"a", "abcd"});
  CHECK(texts_of(tokenizer, tokenizer.encode("aab", plain)) == Texts{"aab"});
  CHECK(texts_of(tokenizer, tokenizer.encode("bcde", plain)) == Texts{"b", "cde"});
  CHECK(texts_of(tokenizer, tokenizer.encode("abcde", plain)) == Texts{"abcd", "e"});
  CHECK(texts_of(tokenizer, tokenizer.encode("xbcx", plain)) == Texts{"x", "bc", "x"});
}

TEST_CASE("text.tokenizer: splits special tokens like cutting them out one by one, longest first") {
  // The slow way, as other engines do it.
  const auto slow = [](const std::vector<std::string>& specials, const std::string& text) {
    std::vector<std::pair<bool, std::string>> parts = {{false, text}};
    for (const std::string& special : specials) {
      std::vector<std::pair<bool, std::string>> next;
      for (const auto& [done, part] : parts) {
        std::size_t at = 0;
        for (std::size_t found; !done && (found = part.find(special, at)) != std::string::npos;) {
          if (found > at) next.emplace_back(false, part.substr(at, found - at));
          next.emplace_back(true, special);
          at = found + special.size();
        }
        if (at < part.size()) next.emplace_back(done, part.substr(at));
      }
      parts = next;
    }
    std::vector<std::string> texts;
    for (const auto& [done, part] : parts) {
      if (done) texts.push_back(part);
      else
        for (const char c : part) texts.emplace_back(1, c);
    }
    return texts;
  };
  const std::vector<std::string> specials = {"abbabb", "babab", "aaaa", "bab", "aa"};  // one of each length: no ties
  auto vocabulary = small_byte_level();
  for (const std::string& text : specials) {
    vocabulary.tokens.push_back(text);
    vocabulary.types.push_back(TokenType::user_defined);
  }
  const Tokenizer tokenizer(vocabulary);
  Random random(11);
  for (int i = 0; i < 5000; ++i) {
    std::string text;
    for (std::uint32_t n = random.below(24); n > 0; --n) text += random.below(2) == 0 ? 'a' : 'b';
    INFO(text);
    CHECK(texts_of(tokenizer, tokenizer.encode(text, plain)) == slow(specials, text));
  }
}

TEST_CASE("text.tokenizer: lets special tokens swallow white space where the vocabulary says so") {
  auto vocabulary = small_byte_level();
  REQUIRE(vocabulary.tokens[static_cast<std::size_t>(vocabulary.eos)] == "</s>");
  vocabulary.strip_right = {vocabulary.eos};
  vocabulary.strip_left = {vocabulary.bos};
  const Tokenizer tokenizer(vocabulary);
  CHECK(tokenizer.decode(tokenizer.encode("l</s> \n l <s>l", parsing)) == "l</s>l<s>l");
}

TEST_CASE("text.tokenizer: byte-level encoding is lossless for random texts and bytes") {
  const Tokenizer tokenizer(small_byte_level());
  Random random(1);
  for (int i = 0; i < 10'000; ++i) {
    const std::string text = random.utf8_text(40);
    REQUIRE(tokenizer.decode(tokenizer.encode(text, plain)) == text);
  }
  for (int i = 0; i < 10'000; ++i) {
    const std::string bytes = random.bytes(40);
    REQUIRE(tokenizer.decode(tokenizer.encode(bytes, plain)) == bytes);
  }
}

TEST_CASE("text.tokenizer: SentencePiece with byte tokens is lossless for random texts and bytes") {
  const Tokenizer tokenizer(small_sentence_piece());
  Random random(2);
  for (int i = 0; i < 10'000; ++i) {
    const std::string text = i % 2 == 0 ? random.utf8_text(40) : random.bytes(40);
    if (text.find("\xe2\x96\x81") != std::string::npos) continue;  // U+2581 is how it writes spaces
    REQUIRE(tokenizer.decode(tokenizer.encode(text, plain)) == text);
  }
}

TEST_CASE("text.tokenizer: writes U+FFFD for bytes that the vocabulary cannot spell") {
  auto vocabulary = small_byte_level();
  // The token of byte 0xFF becomes user-defined, as in vocabularies where it is the letter of that code point.
  vocabulary.types[0xff] = TokenType::user_defined;
  REQUIRE(vocabulary.tokens[0xff] == skald::detail::byte_level_char(0xff));
  const Tokenizer tokenizer(vocabulary);
  CHECK(tokenizer.decode(tokenizer.encode("a\xff\xfe", plain)) == "a\xef\xbf\xbd\xfe");
}

TEST_CASE("text.tokenizer: SentencePiece puts a space before text at the start and after special tokens") {
  auto vocabulary = small_sentence_piece();
  const Tokenizer tokenizer(vocabulary);
  using Texts = std::vector<std::string>;
  CHECK(texts_of(tokenizer, tokenizer.encode("hi")) == Texts{"<s>", "▁hi"});
  CHECK(texts_of(tokenizer, tokenizer.encode(" hi", plain)) == Texts{"▁", "▁hi"});
  CHECK(texts_of(tokenizer, tokenizer.encode("hi</s>hi", parsing)) == Texts{"▁hi", "</s>", "▁hi"});
  CHECK(tokenizer.encode("", plain).empty());
  CHECK(tokenizer.decode(tokenizer.encode("hi hi")) == "<s> hi hi");
  CHECK(tokenizer.decode(tokenizer.encode("hi hi"), {.skip_special = true}) == "hi hi");
  CHECK(tokenizer.decode(tokenizer.encode("hi hi", plain), {.strip_space_prefix = false}) == " hi hi");
  vocabulary.add_space_prefix = false;
  const Tokenizer without(vocabulary);
  CHECK(texts_of(without, without.encode("hi", plain)) == Texts{"hi"});
  CHECK(without.decode(without.encode(" hi", plain)) == " hi");
}

TEST_CASE("text.tokenizer: SentencePiece spells what it has no token for with byte tokens or the unknown token") {
  auto vocabulary = small_sentence_piece();
  const Tokenizer tokenizer(vocabulary);
  CHECK(texts_of(tokenizer, tokenizer.encode("é", plain)) == std::vector<std::string>{"▁", "<0xC3>", "<0xA9>"});
  CHECK(tokenizer.piece(*tokenizer.find("<0xC3>")) == "\xc3");
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (vocabulary.types[i] == TokenType::byte) {
      vocabulary.types[i] = TokenType::unused;
      vocabulary.tokens[i] += "?";
    }
  }
  const Tokenizer unknown(vocabulary);
  CHECK(unknown.encode("é", plain) == Ids{*unknown.find("▁"), unknown.unk(), unknown.unk()});
}

TEST_CASE("text.tokenizer: ends generation at eos, eot, eom and well-known spellings") {
  auto vocabulary = small_byte_level();
  vocabulary.tokens.insert(vocabulary.tokens.end(), {"<end_of_turn>", "<|stop|>"});
  vocabulary.types.insert(vocabulary.types.end(), {TokenType::normal, TokenType::control});
  const auto stop = static_cast<TokenId>(vocabulary.tokens.size() - 1);
  CHECK_FALSE(Tokenizer(vocabulary).is_end_of_generation(stop));
  vocabulary.extra_eog = {stop};
  const Tokenizer tokenizer(vocabulary);
  CHECK(tokenizer.is_end_of_generation(stop));
  CHECK(tokenizer.is_end_of_generation(tokenizer.eos()));
  CHECK(tokenizer.is_end_of_generation(*tokenizer.find("<|im_end|>")));
  CHECK(tokenizer.is_end_of_generation(*tokenizer.find("<end_of_turn>")));
  CHECK(tokenizer.is_control(*tokenizer.find("<end_of_turn>")));
  CHECK_FALSE(tokenizer.is_end_of_generation(tokenizer.bos()));
  CHECK_FALSE(tokenizer.is_end_of_generation(-1));
  CHECK_FALSE(tokenizer.is_end_of_generation(1 << 30));
  CHECK(tokenizer.eot() == *tokenizer.find("<|im_end|>"));
}

TEST_CASE("text.tokenizer: refuses vocabularies that contradict themselves, naming the key") {
  const auto refused = [](const std::string& key, auto change, const Vocabulary& base) {
    auto vocabulary = base;
    change(vocabulary);
    INFO(key);
    try {
      const Tokenizer tokenizer(vocabulary);
      FAIL("accepted");
    } catch (const FormatError& error) {
      CHECK(error.context().key == "tokenizer.ggml." + key);
    }
  };
  const auto bpe = small_byte_level();
  const auto spm = small_sentence_piece();
  refused(
      "tokens", [](Vocabulary& v) { v = {.model = "gpt2"}; }, bpe);
  refused(
      "tokens", [](Vocabulary& v) { v.tokens[3] = "\xff"; }, bpe);
  refused(
      "tokens", [](Vocabulary& v) { v.tokens[3] = v.tokens[4]; }, spm);
  refused(
      "tokens", [](Vocabulary& v) { v.tokens.back().assign(100'000, 'x'); }, bpe);
  refused(
      "tokens", [](Vocabulary& v) { v.types[5] = TokenType::byte, v.tokens[5] = "<0xGG>"; }, spm);
  refused(
      "scores", [](Vocabulary& v) { v.scores.pop_back(); }, spm);
  refused(
      "scores", [](Vocabulary& v) { v.scores[3] = std::nanf(""); }, spm);
  refused(
      "token_type", [](Vocabulary& v) { v.types.push_back(TokenType::normal); }, bpe);
  refused(
      "token_type", [](Vocabulary& v) { v.types[0] = static_cast<TokenType>(7); }, bpe);
  refused(
      "merges", [](Vocabulary& v) { v.merges.push_back(v.merges[0]); }, bpe);
  refused(
      "merges", [](Vocabulary& v) { v.merges.emplace_back("he zz"); }, bpe);
  refused(
      "merges", [](Vocabulary& v) { v.merges.emplace_back("h h"); }, bpe);
  refused(
      "merges", [](Vocabulary& v) { v.merges.emplace_back("hh"); }, bpe);
  refused(
      "merges", [](Vocabulary& v) { v.merges.emplace_back(""); }, bpe);
  refused(
      "bos_token_id", [](Vocabulary& v) { v.bos = static_cast<TokenId>(v.tokens.size()); }, bpe);
  refused(
      "eos_token_id", [](Vocabulary& v) { v.eos = -2; }, spm);
  refused(
      "eog_token_ids", [](Vocabulary& v) { v.extra_eog = {-1}; }, bpe);
}

TEST_CASE("text.tokenizer: names the tokenizer models and pre-tokenizers it does not know") {
  auto vocabulary = small_byte_level();
  vocabulary.pre = "no-such-words";
  CHECK_THROWS_AS(Tokenizer(vocabulary), UnsupportedError);
  for (const char* model : {"plamo2", "GPT2", ""}) {
    vocabulary.model = model;
    try {
      const Tokenizer tokenizer(vocabulary);
      FAIL("accepted");
    } catch (const UnsupportedError& error) {
      CHECK(error.message().find("'" + std::string(model) + "'") != std::string::npos);
    }
  }
}

TEST_CASE("text.tokenizer: refuses ids outside the vocabulary") {
  const Tokenizer tokenizer(small_byte_level());
  CHECK_THROWS_AS(tokenizer.piece(-1), skald::UsageError);
  CHECK_THROWS_AS(tokenizer.piece(tokenizer.size()), skald::UsageError);
  CHECK_THROWS_AS(tokenizer.type(tokenizer.size()), skald::UsageError);
  CHECK_THROWS_AS(tokenizer.token_text(-1), skald::UsageError);
  const Ids ids = {0, tokenizer.size()};
  CHECK_THROWS_AS(tokenizer.decode(ids), skald::UsageError);
  CHECK_FALSE(tokenizer.find("no such token").has_value());
}

TEST_CASE("text.tokenizer: cleans up spaces before punctuation when asked to") {
  const Tokenizer tokenizer(small_byte_level());
  const auto clean = [&](const std::string& text) {
    return tokenizer.decode(tokenizer.encode(text, plain), {.clean_up_spaces = true});
  };
  CHECK(clean("a , b . c ! d ?") == "a, b. c! d?");
  CHECK(clean("it 's I 'm we 're they 've he 'd") == "it's I'm we're they've he 'd");
  CHECK(clean("a ' b") == "a'b");
  CHECK(clean(" .") == ".");
  CHECK(clean("") == "");
}

TEST_CASE("text.tokenizer: encodes a MiB of anything on a stack of 256 KiB") {
  std::vector<Vocabulary> vocabularies;
  for (const char* pre : {"default", "gpt-2", "llama-bpe", "qwen2", "starcoder", "falcon", "deepseek-llm",
                          "deepseek-coder", "deepseek-v3", "bloom", "viking", "tekken", "gpt-4o", "chameleon",
                          "superbpe", "bailingmoe", "seed-coder", "kimi-k2", "afmoe"}) {
    vocabularies.push_back(small_byte_level());
    vocabularies.back().pre = pre;
  }
  vocabularies.push_back(small_sentence_piece());
  constexpr std::size_t size = 1 << 18;  // every text of 1 MiB takes too long without optimization
  Random random(3);
  const std::vector<std::string> texts = {
      repeated("a", size),    repeated("A", size),          repeated("1", size),        repeated(" ", size),
      repeated("\n", size),   repeated(" \n", size),        repeated("l", 1 << 20),     repeated("hello ", size),
      repeated("!", size),    repeated("~", size),          repeated("'", size),        repeated("\xff", size),
      repeated("中", size),   repeated("<|im_end|>", size), repeated("<s><", size),     repeated("e\xcc\x81", size),
      repeated("   x", size), repeated(" ", size) + "x",    repeated("\t \v", size),    repeated("aB1 ", size),
      repeated("½1", size),   random.bytes(size),           random.utf8_text(size / 3), repeated("\xf0\x9f", size)};
  for (const Vocabulary& vocabulary : vocabularies) {
    const Tokenizer tokenizer(vocabulary);
    std::string failure;
    on_small_stack([&] {
      try {
        for (std::size_t i = 0; i < texts.size(); ++i) {
          const auto ids = tokenizer.encode(texts[i], plain);
          if (tokenizer.decode(ids) != texts[i]) failure += "text " + std::to_string(i) + " is not the same; ";
          if (tokenizer.encode(texts[i], parsing).empty()) failure += "nothing; ";
        }
      } catch (const std::exception& error) {
        failure += error.what();
      }
    });
    INFO(vocabulary.pre);
    CHECK(failure == "");
  }
}

TEST_CASE("text.tokenizer: is shared between threads") {
  auto vocabulary = small_byte_level();
  vocabulary.pre = "llama-bpe";
  const Tokenizer tokenizer(vocabulary);
  const std::string text = repeated("hello hell 123 ", 5000);
  const auto expected = tokenizer.encode(text);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, copy = tokenizer] {
      for (int round = 0; round < 5; ++round) wrong += copy.encode(text) == expected ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}
