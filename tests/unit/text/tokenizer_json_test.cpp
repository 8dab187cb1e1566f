#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>
#include <skald/text/detokenizer.hpp>
#include <skald/text/tokenizer_json.hpp>

#include "small_vocabularies.hpp"
#include "support/catch.hpp"
#include "support/shared_data.hpp"

// The vectors are those of the Python package (tokenizer_json/generate.py); ids and texts must be the same.

namespace {

using Ids = std::vector<skald::TokenId>;
using Json = nlohmann::json;
using skald::Tokenizer;

const std::string folder = skald_test::source_path("tests/unit/text/tokenizer_json");

struct Counts {
  int files = 0;
  int encodings = 0;
  int texts = 0;
  int control = 0;  // texts that spell control tokens and are kept from becoming them
  int invalid = 0;  // texts with bytes that are not UTF-8, of which the library keeps only U+FFFD
};

Tokenizer read(const std::string& json) { return skald::read_tokenizer_json({.tokenizer_json = json}); }

void check_ids(const Tokenizer& tokenizer, const std::string& text, bool parse, const Json& expected, Counts& counts) {
  ++counts.encodings;
  if (expected.is_string()) {
    CHECK_THROWS_AS(tokenizer.encode(text, {.add_special = false, .parse_special = parse}), skald::FormatError);
    return;
  }
  const Ids ids = tokenizer.encode(text, {.add_special = false, .parse_special = parse});
  // Some models of the library make control tokens of text that spells them even when told not to; ours never do.
  const auto is_control = [&](skald::TokenId id) { return tokenizer.is_control(id); };
  if (!parse && std::ranges::any_of(expected.get<Ids>(), is_control)) {
    CHECK(std::ranges::none_of(ids, is_control));
    ++counts.control;
    return;
  }
  CHECK(ids == expected.get<Ids>());
}

void check_text(const std::string& found, const std::string& expected, Counts& counts) {
  const std::string valid = skald::replace_invalid_utf8(found);
  // One U+FFFD for each byte there, for each maximal part here.
  if (valid != found) ++counts.invalid;
  else CHECK(found == expected);
  ++counts.texts;
}

void check_streaming(const Tokenizer& tokenizer, const Ids& ids) {
  if (!tokenizer.streams()) {
    CHECK_THROWS_AS(skald::StreamingDetokenizer(tokenizer), skald::UsageError);
    return;
  }
  skald::StreamingDetokenizer detokenizer(tokenizer);
  std::string text;
  for (const auto id : ids) text += detokenizer.push(id);
  text += detokenizer.finish();
  CHECK(text == skald::replace_invalid_utf8(tokenizer.decode(ids)));
}

void check_file(const std::string& path, const Json& texts, Counts& counts) {
  INFO(path);
  const Json golden = Json::parse(skald_test::read_text(path));
  const Tokenizer tokenizer = read(golden.at("tokenizer").dump());
  ++counts.files;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto text = texts[i].get<std::string>();
    const Json& entry = golden.at("cases")[i];
    INFO("text " << i << ": " << text);
    const Json& parsed = entry.contains("parsed") ? entry["parsed"] : entry.at("ids");
    check_ids(tokenizer, text, false, entry.at("ids"), counts);
    check_ids(tokenizer, text, true, parsed, counts);
    if (parsed.is_string()) continue;
    const Ids ids = parsed.get<Ids>();
    Ids whole = golden.at("prefix").get<Ids>();
    whole.insert(whole.end(), ids.begin(), ids.end());
    for (const auto& id : golden.at("suffix")) whole.push_back(id.get<skald::TokenId>());
    CHECK(tokenizer.encode(text, {.add_special = true, .parse_special = true}) == whole);
    const std::string decoded = entry.value("decoded", text);
    check_text(tokenizer.decode(ids), decoded, counts);
    check_text(tokenizer.decode(ids, {.skip_special = true}), entry.value("skipped", decoded), counts);
    check_streaming(tokenizer, ids);
  }
}

Counts check_folder(const std::string& where) {
  Counts counts;
  const Json texts = Json::parse(skald_test::read_text(where + "/texts.json"));
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(where)) {
    if (entry.path().extension() == ".json" && entry.path().stem() != "texts") files.push_back(entry.path().string());
  }
  std::ranges::sort(files);
  for (const std::string& file : files) check_file(file, texts, counts);
  return counts;
}

}  // namespace

TEST_CASE("text.tokenizer_json: gives the ids and texts of the Python package") {
  const Counts counts = check_folder(folder);
  CHECK(counts.files >= 27);
  CHECK(counts.encodings > 4000);
  CHECK(counts.control < 40);
  CHECK(counts.invalid < counts.texts / 50);
  if (const char* more = std::getenv("SKALD_TOKENIZER_VECTORS")) {
    const Counts others = check_folder(more);
    WARN(others.files << " further files, " << others.encodings << " encodings, " << others.texts << " texts, "
                      << others.invalid << " of them not UTF-8, " << others.control
                      << " kept from spelling control tokens");
  }
}

namespace {

Json small() {
  return Json::parse(R"({"added_tokens":[{"id":3,"content":"<s>","special":true},{"id":9,"content":"<x>"}],
    "normalizer":{"type":"Replace","pattern":{"Regex":" +"},"content":" "},
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},
    "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]},
    "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
      {"Sequence":{"id":"A","type_id":0}}],"special_tokens":{"<s>":{"id":"<s>","ids":[3],"tokens":["<s>"]}}},
    "decoder":{"type":"ByteLevel"}})");
}

// Refused with an error that names the place.
template <class E>
void refused(const char* path, const std::string& json) {
  INFO(json);
  try {
    (void)read(json);
    FAIL("accepted");
  } catch (const E& error) {
    CHECK(error.context().path == path);
    CHECK(error.context().file == "tokenizer.json");
  }
}

}  // namespace

TEST_CASE("text.tokenizer_json: reads roles from tokenizer_config.json and the ids of other files") {
  const std::string json = small().dump();
  const std::string config = R"({"bos_token":"<s>","eos_token":{"content":"<x>","lstrip":false},"unk_token":null,
    "add_bos_token":true,"clean_up_tokenization_spaces":true,"tokenizer_class":"LlamaTokenizerFast",
    "chat_template":[{"name":"default","template":"D"},{"name":"tool_use","template":"T"}]})";
  const Tokenizer tokenizer =
      skald::read_tokenizer_json({.tokenizer_json = json, .tokenizer_config_json = config, .eos_token_ids = {2}});
  CHECK(tokenizer.model() == "BPE");
  CHECK(tokenizer.size() == 10);
  CHECK(tokenizer.bos() == 3);
  CHECK(tokenizer.eos() == 9);
  CHECK(tokenizer.adds_bos());
  CHECK_FALSE(tokenizer.adds_eos());
  CHECK(tokenizer.cleans_up_spaces());
  CHECK(tokenizer.is_end_of_generation(2));
  CHECK(tokenizer.is_end_of_generation(9));
  CHECK(tokenizer.is_control(3));
  CHECK(tokenizer.encode("abb<x>") == Ids{3, 2, 1, 9});
  CHECK(tokenizer.encode("<s>ab", {.add_special = false, .parse_special = true}) == Ids{3, 2});
  CHECK(tokenizer.type(5) == skald::TokenType::unused);
  CHECK(tokenizer.piece(5).empty());
  const auto read_config = skald::read_tokenizer_config(config);
  REQUIRE(read_config.find_chat_template("tool_use") != nullptr);
  CHECK(*read_config.find_chat_template("tool_use") == "T");
  CHECK(*read_config.find_chat_template() == "D");
  CHECK(read_config.find_chat_template("rag") == nullptr);
  CHECK(read_config.tokenizer_class == "LlamaTokenizerFast");
  const auto single = skald::read_tokenizer_config(R"({"chat_template":"S"})");
  REQUIRE(single.find_chat_template() != nullptr);
  CHECK(*single.find_chat_template() == "S");
  CHECK_THROWS_AS(skald::read_tokenizer_config(R"({"bos_token":3})"), skald::FormatError);
  CHECK_THROWS_AS(skald::read_tokenizer_config("{"), skald::FormatError);
}

TEST_CASE("text.tokenizer_json: refuses what it does not know by name, with the place") {
  using skald::UnsupportedError;
  const auto with = [](const char* pointer, const char* value) {
    Json json = small();
    json[Json::json_pointer(pointer)] = Json::parse(value);
    return json.dump();
  };
  refused<UnsupportedError>("$.normalizer", with("/normalizer", R"({"type":"Rot13"})"));
  refused<UnsupportedError>("$.normalizer.normalizers[1]",
                            with("/normalizer", R"({"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"X"}]})"));
  refused<UnsupportedError>("$.pre_tokenizer", with("/pre_tokenizer", R"({"type":"UnicodeScripts"})"));
  refused<UnsupportedError>("$.model", with("/model/type", R"("Neural")"));
  refused<UnsupportedError>("$.model.dropout", with("/model/dropout", "0.1"));
  refused<UnsupportedError>("$.post_processor", with("/post_processor/type", R"("Other")"));
  refused<UnsupportedError>("$.decoder", with("/decoder/type", R"("Other")"));
  for (const char* regex : {R"([a-z&&[^b]])", R"(\h+)", R"((a)", R"([[a]b])", R"(\C)"}) {
    refused<UnsupportedError>("$.normalizer.pattern.Regex",
                              with("/normalizer/pattern", Json{{"Regex", regex}}.dump().c_str()));
  }
}

TEST_CASE("text.tokenizer_json: long words and tokens of WordPiece and Unigram cost no more than their lengths' product") {
  // Each place of the word is the beginning of a long token that does not come.
  const std::string trap = std::string(1000, 'a') + "b";
  const std::string word(100'000, 'a');
  Json piece = {{"type", "WordPiece"}, {"unk_token", "u"}, {"continuing_subword_prefix", "##"},
                {"max_input_chars_per_word", 1 << 20}, {"vocab", {{"u", 0}, {"a", 1}, {"##aa", 2}, {"##" + trap, 3}}}};
  Json unigram = {{"type", "Unigram"}, {"unk_id", 0}, {"vocab", Json::array()}};
  for (const char* text : {"u", "aa", trap.c_str()}) unigram["vocab"].push_back(Json::array({text, text[0] == 'u' ? 0.0 : -1.0}));
  const auto encoded = [](const Json& model, const std::string& text) {
    const std::string json = Json{{"model", model}}.dump();
    return skald::read_tokenizer_json({.tokenizer_json = json}).encode(text);
  };
  std::vector<skald::TokenId> expected(50'001, 2);
  expected[0] = 1;
  CHECK(encoded(piece, word + "a") == expected);
  CHECK(encoded(unigram, word) == std::vector<skald::TokenId>(50'000, 1));
  piece["vocab"][std::string(1025, 'x')] = 4;
  refused<skald::FormatError>("$.model.vocab", Json{{"model", piece}}.dump());
  unigram["vocab"].push_back(Json::array({std::string(1025, 'x'), -1.0}));
  refused<skald::FormatError>("$.model.vocab", Json{{"model", unigram}}.dump());
}

TEST_CASE("text.tokenizer_json: refuses contradictions with the place") {
  using skald::FormatError;
  const auto with = [](const char* pointer, const char* value) {
    Json json = small();
    json[Json::json_pointer(pointer)] = Json::parse(value);
    return json.dump();
  };
  refused<FormatError>("$.model.vocab.a", with("/model/vocab/a", "-1"));
  refused<FormatError>("$.model.vocab.a", with("/model/vocab/a", "4000000000"));
  refused<FormatError>("$.model.vocab.a", with("/model/vocab/a", "18446744073709551615"));
  refused<FormatError>("$.model.vocab.a", with("/model/vocab/a", "1.5"));
  refused<FormatError>("$.model.vocab", with("/model/vocab/a", "1"));
  refused<FormatError>("$.model.vocab", with("/model/vocab", "[]"));
  refused<FormatError>("$.model.merges[0]", with("/model/merges/0", R"("ab")"));
  refused<FormatError>("$.model.merges[0]", with("/model/merges/0", R"("a c")"));
  refused<FormatError>("$.model.merges[0]", with("/model/merges/0", R"("b a")"));
  refused<FormatError>("$.model.merges[0]", with("/model/merges/0", R"(["a"])"));
  refused<FormatError>("$.model.merges[0]", with("/model/merges/0", "7"));
  refused<FormatError>("$.added_tokens[1]", with("/added_tokens/1/id", "2"));
  refused<FormatError>("$.added_tokens[1].id", with("/added_tokens/1/id", "2000000000"));
  refused<FormatError>("$.added_tokens[0].special", with("/added_tokens/0/special", "1"));
  refused<FormatError>("$.post_processor.single", with("/post_processor/single", "[]"));
  refused<FormatError>("$.post_processor.special_tokens.<s>.ids[0]",
                       with("/post_processor/special_tokens/<s>/ids/0", "10"));
  refused<FormatError>("$.normalizer.pattern", with("/normalizer/pattern", R"({"String":""})"));
  refused<FormatError>("$.normalizer.precompiled_charsmap",
                       with("/normalizer", R"({"type":"Precompiled","precompiled_charsmap":"AAAA"})"));
  refused<FormatError>("$", "[]");
  refused<FormatError>("", "{\"model\":");
  refused<FormatError>("", std::string(100'000, '['));
  refused<FormatError>("$", "{}");
}

TEST_CASE("text.tokenizer_json: encodes without added tokens") {
  const Tokenizer tokenizer = read(R"({"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0],["a",-1],["ab",-3]]}})");
  CHECK(tokenizer.encode("aabx") == Ids{1, 2, 0});
  CHECK(tokenizer.encode("aabx", {.parse_special = true}) == Ids{1, 2, 0});
}

TEST_CASE("text.tokenizer_json: bounds what hostile steps make of a text") {
  Json json = small();
  Json steps = Json::array();
  for (int i = 0; i < 40; ++i) {
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaa"}});
  }
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  json["added_tokens"] = Json::array();
  json["post_processor"] = nullptr;
  CHECK_THROWS_AS(read(json.dump()).encode("a"), skald::FormatError);
  json["normalizer"] = {{"type", "Replace"}, {"pattern", {{"Regex", "(a|aa)+$"}}}, {"content", "b"}};
  CHECK_THROWS_AS(read(json.dump()).encode(std::string(2000, 'a') + "b"), skald::Error);
}

TEST_CASE("text.tokenizer_json: damaged files are refused or tokenize") {
  skald_test::Random random(99);
  const std::string whole = small().dump();
  const std::string text = "ab  <s><x> \xff aab";
  int accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = whole;
    if (round % 3 == 0) damaged.resize(random.below(static_cast<std::uint32_t>(whole.size())));
    for (int i = 0; i < 3; ++i) {
      if (!damaged.empty())
        damaged[random.below(static_cast<std::uint32_t>(damaged.size()))] = "0123456789abx\"{}[],:"[random.below(20)];
    }
    try {
      const Tokenizer tokenizer = read(damaged);
      const Ids ids = tokenizer.encode(text, {.parse_special = round % 2 == 0});
      for (const auto id : ids) CHECK((id >= 0 && id < tokenizer.size()));
      (void)tokenizer.decode(ids);
      ++accepted;
    } catch (const skald::Error&) {
    }
  }
  CHECK(accepted > 10);
}
