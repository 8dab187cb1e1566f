#include "text/pre_tokenizer.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/core/error.hpp>

#include "support/catch.hpp"
#include "unit/text/small_vocabularies.hpp"

namespace {

using skald::detail::PreTokenizer;

// The words, with | between them.
std::string split(const PreTokenizer& splitter, std::string_view text) {
  std::vector<std::uint32_t> ends;
  splitter.split(text, ends);
  std::string words;
  std::size_t begin = 0;
  for (const std::uint32_t end : ends) {
    REQUIRE(end > begin);
    words.append(begin == 0 ? "" : "|").append(text.substr(begin, end - begin));
    begin = end;
  }
  REQUIRE(begin == text.size());
  return words;
}

}  // namespace

TEST_CASE("text.pre_tokenizer: every way of splitting gives the words of the reference engine") {
  const std::string text = "I'M don't 1234567½ xY~z AB中文12 café.. \n\n  $5 (a) <b>\t ";
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"default", "I|'|M| don|'|t| |123|456|7½| xY|~|z| AB中文|12| café|..| \n\n  |$|5| |(|a|)| |<|b|>|\t "},
      {"gpt-2", "I|'|M| don|'t| 1234567½| xY|~|z| AB中文|12| café|..| \n\n | $|5| (|a|)| <|b|>|\t "},
      {"llama-bpe", "I|'M| don|'t| |123|456|7½| xY|~z| AB中文|12| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
      {"qwen2", "I|'M| don|'t| |1|2|3|4|5|6|7|½| xY|~z| AB中文|1|2| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
      {"starcoder", "I|'|M| don|'t| |1|2|3|4|5|6|7|½| xY|~|z| AB中文|1|2| café|..| \n\n | $|5| (|a|)| <|b|>|\t "},
      {"falcon", "I|'|M| don|'|t| |123|456|7½| xY|~|z| AB中文|12| café|..| \n\n  |$|5| |(|a|)| |<|b|>|\t "},
      {"deepseek-llm", "I|'|M| don|'|t| |1234567½| xY|~|z| AB|中文|12| caf|é|..| |\n|\n| | $|5| (|a|)| <|b|>|\t "},
      {"deepseek-coder",
       "I|'|M| don|'|t| |1|2|3|4|5|6|7|½| xY|~|z| AB|中文|1|2| café|..| |\n|\n|  $|5| (|a|)| <|b|>\t "},
      {"deepseek-v3", "I|'M| don|'t| |123|456|7½| xY|~z| AB|中文|12| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
      {"bloom", "I'M| don't| 1234567½| xY~z| AB中文12| café|.. \n\n | $5| (|a|)| <b>|\t "},
      {"viking", "I'M| don't| |1|2|3|4|5|6|7|½| xY~z| AB中文|1|2| café|.. \n\n | $|5| (|a|)| <b>|\t "},
      {"tekken", "I|'M| don|'t| |1|2|3|4|5|6|7|½| x|Y|~z| AB中文|1|2| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
      {"gpt-4o", "I'M| don't| |123|456|7½| x|Y|~z| AB中文|12| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
      {"chameleon",
       "I|'|M| don|'|t| |1|2|3|4|5|6|7|½| xY|~|z| AB中文|1|2| café|.|.| |\n|\n|  |$|5| |(|a|)| |<|b|>|\t| "},
      {"superbpe", "I'M don't |1|234|567½| xY~z AB中文|12| café.. \n\n  $|5| (a) <b>\t "},
      {"bailingmoe", "I|'M| don|'t| |1|2|3|4|5|6|7|½| xY|~z| AB中文|1|2| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
      {"seed-coder", "I|'M| don|'t| |1|2|3|4|5|6|7|½| xY|~z| AB中文|1|2| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
      {"kimi-k2", "I'M| don't| |123|456|7½| xY|~z| AB|中文|12| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
      {"afmoe", "I|'M| don|'t| |12|345|67½| xY|~z| AB|中文|12| café|..| \n\n| | $|5| (|a|)| <|b|>|\t "},
  };
  for (const auto& [name, words] : expected) {
    INFO(name);
    CHECK(split(PreTokenizer(name), text) == words);
  }
}

TEST_CASE("text.pre_tokenizer: groups digits from the right where the family does") {
  CHECK(split(PreTokenizer("superbpe"), "1234567") == "1|234|567");
  CHECK(split(PreTokenizer("superbpe"), "ab 123456") == "ab |123|456");
  CHECK(split(PreTokenizer("afmoe"), "a12345") == "a|12|345");
  CHECK(split(PreTokenizer("llama-bpe"), "1234567") == "123|456|7");
}

TEST_CASE("text.pre_tokenizer: words cover the text whatever it is") {
  skald_test::Random random(9);
  for (const char* name : {"default", "llama-bpe", "deepseek-llm", "deepseek-v3", "tekken", "gpt-4o", "chameleon",
                           "superbpe", "kimi-k2", "afmoe", "viking"}) {
    const PreTokenizer splitter(name);
    for (int i = 0; i < 1000; ++i) {
      const std::string text = random.utf8_text(60);
      static_cast<void>(split(splitter, text));  // checks it
    }
    CHECK(split(splitter, "") == "");
  }
}

TEST_CASE("text.pre_tokenizer: an absent name is the default one, an unknown name is refused with those known") {
  CHECK(split(PreTokenizer(""), "a1") == split(PreTokenizer("default"), "a1"));
  try {
    const PreTokenizer splitter("nonsense");
    FAIL("accepted");
  } catch (const skald::UnsupportedError& error) {
    CHECK(error.message().find("'nonsense'") != std::string::npos);
    CHECK(error.message().find("llama-bpe") != std::string::npos);
    CHECK(error.context().key == "tokenizer.ggml.pre");
  }
}
