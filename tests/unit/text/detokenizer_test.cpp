#include <skald/text/detokenizer.hpp>

#include <string>
#include <vector>

#include <skald/core/error.hpp>

#include "support/catch.hpp"
#include "text/utf8.hpp"
#include "unit/text/small_vocabularies.hpp"

namespace {

using skald::DecodeOptions;
using skald::replace_invalid_utf8;
using skald::StreamingDetokenizer;
using skald::TokenId;
using skald::Tokenizer;
using skald_test::Random;
using skald_test::small_byte_level;
using skald_test::small_sentence_piece;

bool is_utf8(const std::string& text) { return skald::detail::utf8_valid_prefix(text) == text.size(); }

std::string stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, DecodeOptions options = {}) {
  StreamingDetokenizer detokenizer(tokenizer, options);
  std::string text;
  for (const TokenId id : ids) {
    const std::string part = detokenizer.push(id);
    REQUIRE(is_utf8(part));
    REQUIRE(detokenizer.pending() <= 3);
    text += part;
  }
  text += detokenizer.finish();
  REQUIRE(detokenizer.pending() == 0);
  return text;
}

}  // namespace

TEST_CASE("text.detokenizer: holds bytes back until their code point is whole") {
  for (const auto& vocabulary : {small_byte_level(), small_sentence_piece()}) {
    const Tokenizer tokenizer(vocabulary);
    auto ids = tokenizer.encode("😀", {.add_special = false});
    if (tokenizer.model() == "llama") ids.erase(ids.begin());  // the space prefix
    REQUIRE(ids.size() == 4);
    StreamingDetokenizer detokenizer(tokenizer);
    for (int i = 0; i < 3; ++i) {
      CHECK(detokenizer.push(ids[static_cast<std::size_t>(i)]) == "");
      CHECK(detokenizer.pending() == i + 1);
    }
    CHECK(detokenizer.push(ids[3]) == "😀");
    CHECK(detokenizer.finish() == "");
  }
}

TEST_CASE("text.detokenizer: gives U+FFFD for what never becomes a code point") {
  const Tokenizer tokenizer(small_byte_level());
  const auto ids = [&](std::string_view bytes) { return tokenizer.encode(bytes, {.add_special = false}); };
  StreamingDetokenizer detokenizer(tokenizer);
  CHECK(detokenizer.push(ids("\xe2").front()) == "");
  CHECK(detokenizer.push(ids("a").front()) ==
        "\xef\xbf\xbd"
        "a");
  CHECK(detokenizer.push(ids("\x80").front()) == "\xef\xbf\xbd");
  CHECK(detokenizer.push(ids("\xf0").front()) == "");
  CHECK(detokenizer.push(ids("\x9f").front()) == "");
  CHECK(detokenizer.finish() == "\xef\xbf\xbd");
  CHECK(detokenizer.finish() == "");
  CHECK(detokenizer.push(ids("a").front()) == "a");
}

TEST_CASE("text.detokenizer: its parts together are the decoded text") {
  const DecodeOptions all[] = {{}, {.skip_special = true}, {.strip_space_prefix = false}};
  for (const auto& vocabulary : {small_byte_level(), small_sentence_piece()}) {
    const Tokenizer tokenizer(vocabulary);
    Random random(5);
    for (int i = 0; i < 3000; ++i) {
      std::vector<TokenId> ids;
      if (i % 3 == 0) {
        for (std::uint32_t n = random.below(12); n > 0; --n) {
          ids.push_back(static_cast<TokenId>(random.below(static_cast<std::uint32_t>(tokenizer.size()))));
        }
      } else {
        ids = tokenizer.encode(i % 3 == 1 ? random.utf8_text(20) : random.bytes(20), {.parse_special = true});
      }
      for (const DecodeOptions& options : all) {
        REQUIRE(stream(tokenizer, ids, options) == replace_invalid_utf8(tokenizer.decode(ids, options)));
      }
    }
  }
}

TEST_CASE("text.detokenizer: strips the space prefix of the first word only") {
  const Tokenizer tokenizer(small_sentence_piece());
  const auto ids = tokenizer.encode("hi hi");
  CHECK(stream(tokenizer, ids, {.skip_special = true}) == "hi hi");
  CHECK(stream(tokenizer, ids, {.skip_special = true, .strip_space_prefix = false}) == " hi hi");
  CHECK(stream(tokenizer, ids) == "<s> hi hi");
}

TEST_CASE("text.detokenizer: refuses what it cannot do") {
  const Tokenizer tokenizer(small_byte_level());
  CHECK_THROWS_AS(StreamingDetokenizer(tokenizer, {.clean_up_spaces = true}), skald::UsageError);
  StreamingDetokenizer detokenizer(tokenizer);
  CHECK_THROWS_AS(detokenizer.push(-1), skald::UsageError);
  CHECK_THROWS_AS(detokenizer.push(tokenizer.size()), skald::UsageError);
}

TEST_CASE("text.detokenizer: replaces maximal ill-formed parts like the Unicode standard") {
  const std::string r = "\xef\xbf\xbd";
  // Table 3-8 of the Unicode standard, version 15.0, and two more.
  CHECK(replace_invalid_utf8("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41") == r + r + r + r + r + r + r + r + "A");
  CHECK(replace_invalid_utf8("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41") == r + r + r + r + r + r + r + r + "A");
  CHECK(replace_invalid_utf8("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42") == r + r + r + r + r + "A" + r + r + "B");
  CHECK(replace_invalid_utf8("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41") == r + r + r + r + "A");
  CHECK(replace_invalid_utf8("\xf0\x9f\x98\x80") == "😀");
  CHECK(replace_invalid_utf8("\xf4\x8f\xbf\xbf\xf0\x9f") == "\xf4\x8f\xbf\xbf" + r);
}
