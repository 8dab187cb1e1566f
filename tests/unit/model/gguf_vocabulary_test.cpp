#include <skald/model/gguf/vocabulary.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/text/tokenizer.hpp>

#include "support/catch.hpp"
#include "text/byte_level.hpp"

namespace {

using skald::FormatError;
using skald::Metadata;
using skald::MetadataArray;
using skald::StringArray;
using skald::TokenId;
using skald::Tokenizer;
using skald::TokenType;
using skald::vocabulary_from_metadata;

MetadataArray strings(const std::vector<std::string>& texts) { return {StringArray(texts)}; }

std::string key(std::string_view field) { return "tokenizer.ggml." + std::string(field); }

// 256 byte tokens, "ab" and "<s>".
Metadata byte_level() {
  Metadata metadata("file.gguf");
  metadata.set(key("model"), std::string("gpt2"));
  metadata.set(key("pre"), std::string("llama-bpe"));
  std::vector<std::string> tokens;
  for (unsigned byte = 0; byte < 256; ++byte) {
    tokens.emplace_back(skald::detail::byte_level_char(static_cast<unsigned char>(byte)));
  }
  std::vector<std::int32_t> types(256, 1);
  tokens.insert(tokens.end(), {"ab", "<s>"});
  types.insert(types.end(), {1, 3});
  metadata.set(key("tokens"), strings(tokens));
  metadata.set(key("token_type"), MetadataArray{types});
  metadata.set(key("merges"), strings({"a b"}));
  metadata.set(key("bos_token_id"), std::uint32_t{257});
  return metadata;
}

Metadata sentence_piece() {
  Metadata metadata("file.gguf");
  metadata.set(key("model"), std::string("llama"));
  metadata.set(key("tokens"), strings({"<unk>", "<s>", "</s>", "▁a", "<|end|>"}));
  metadata.set(key("scores"), MetadataArray{std::vector<float>{0, 0, 0, -1, 0}});
  metadata.set(key("token_type"), MetadataArray{std::vector<std::int32_t>{2, 3, 3, 1, 3}});
  return metadata;
}

}  // namespace

TEST_CASE("model.gguf: reads a byte-level vocabulary with its flags and ids") {
  auto metadata = byte_level();
  auto vocabulary = vocabulary_from_metadata(metadata);
  CHECK(vocabulary.tokens.size() == 258);
  CHECK(vocabulary.types[257] == TokenType::control);
  CHECK(vocabulary.merges == std::vector<std::string>{"a b"});
  CHECK(vocabulary.bos == 257);
  CHECK(vocabulary.eos == -1);
  CHECK_FALSE(vocabulary.add_bos.has_value());
  CHECK(Tokenizer(vocabulary).encode("ab") == std::vector<TokenId>{257, 256});  // this family adds it by default
  metadata.set(key("add_bos_token"), false);
  CHECK(Tokenizer(vocabulary_from_metadata(metadata)).encode("ab") == std::vector<TokenId>{256});
}

TEST_CASE("model.gguf: gives SentencePiece files the ids they start with") {
  auto metadata = sentence_piece();
  const auto vocabulary = vocabulary_from_metadata(metadata);
  CHECK(vocabulary.unk == 0);
  CHECK(vocabulary.bos == 1);
  CHECK(vocabulary.eos == 2);
  CHECK(vocabulary.strip_right.empty());
  metadata.set(key("eos_token_id"), std::uint64_t{4});
  CHECK(vocabulary_from_metadata(metadata).eos == 4);
}

TEST_CASE("model.gguf: lets the special tokens of phi-3 files swallow the white space after them") {
  auto metadata = sentence_piece();
  metadata.set("general.name", std::string("Phi-3 Mini"));
  const auto vocabulary = vocabulary_from_metadata(metadata);
  CHECK(vocabulary.strip_right == std::vector<TokenId>{2, 4});
}

TEST_CASE("model.gguf: reads the normalization table and the flags of unigram vocabularies") {
  auto metadata = sentence_piece();
  metadata.set(key("model"), std::string("t5"));
  metadata.set(key("remove_extra_whitespaces"), true);
  metadata.set(key("precompiled_charsmap"), MetadataArray{std::vector<std::int8_t>{4, 0, 0, 0, -1, 0}});
  auto vocabulary = vocabulary_from_metadata(metadata);
  CHECK(vocabulary.unk == 2);
  CHECK(vocabulary.eos == 1);
  CHECK(vocabulary.pad == 0);
  CHECK(vocabulary.remove_extra_whitespaces == true);
  CHECK(vocabulary.precompiled_charsmap == std::string("\x04\0\0\0\xff\0", 6));
  metadata.set(key("precompiled_charsmap"), MetadataArray{std::vector<std::uint8_t>{4, 0, 0, 0, 255, 0}});
  CHECK(vocabulary_from_metadata(metadata).precompiled_charsmap == vocabulary.precompiled_charsmap);
  metadata.set(key("precompiled_charsmap"), MetadataArray{std::vector<float>{4}});
  CHECK_THROWS_AS(vocabulary_from_metadata(metadata), FormatError);
}

TEST_CASE("model.gguf: lists the chat templates by name") {
  auto metadata = sentence_piece();
  CHECK(skald::chat_templates_from_metadata(metadata).empty());
  metadata.set("tokenizer.chat_template", std::string("D"));
  metadata.set("tokenizer.chat_template.tool_use", std::string("T"));
  metadata.set("tokenizer.chat_templates", strings({"tool_use"}));
  const auto templates = skald::chat_templates_from_metadata(metadata);
  REQUIRE(templates.size() == 2);
  CHECK(templates[0].name == "default");
  CHECK(templates[0].source == "D");
  CHECK(templates[1].name == "tool_use");
  CHECK(templates[1].source == "T");
  metadata.set("tokenizer.chat_template.rag", std::uint32_t{1});
  CHECK_THROWS_AS(skald::chat_templates_from_metadata(metadata), FormatError);
}

TEST_CASE("model.gguf: refuses vocabulary keys of the wrong type, length or range, naming the key") {
  const auto refused = [](Metadata metadata, std::string_view field, skald::MetadataValue value) {
    metadata.set(key(field), std::move(value));
    INFO(field);
    try {
      const auto vocabulary = vocabulary_from_metadata(metadata);
      FAIL("accepted");
    } catch (const FormatError& error) {
      CHECK(error.context().key == key(field));
      CHECK(error.context().file == "file.gguf");
    }
  };
  refused(byte_level(), "model", std::uint32_t{1});
  refused(byte_level(), "pre", std::uint32_t{1});
  refused(byte_level(), "tokens", MetadataArray{std::vector<std::int32_t>(258)});
  refused(byte_level(), "tokens", std::string("a"));
  refused(byte_level(), "merges", MetadataArray{std::vector<std::int32_t>(1)});
  refused(byte_level(), "token_type", MetadataArray{std::vector<float>(258)});
  refused(byte_level(), "token_type", MetadataArray{std::vector<std::int32_t>(257)});
  refused(byte_level(), "token_type", MetadataArray{std::vector<std::int32_t>(258, 7)});
  refused(byte_level(), "token_type", MetadataArray{std::vector<std::int64_t>(258, std::int64_t{1} << 40)});
  refused(byte_level(), "scores", MetadataArray{std::vector<std::int32_t>(258)});
  refused(byte_level(), "scores", MetadataArray{std::vector<float>(1)});
  refused(byte_level(), "bos_token_id", std::uint32_t{258});
  refused(byte_level(), "eos_token_id", std::int32_t{-1});
  refused(byte_level(), "unknown_token_id", ~std::uint32_t{0});
  refused(byte_level(), "add_bos_token", std::uint32_t{1});
  refused(sentence_piece(), "add_space_prefix", std::string("true"));
}

TEST_CASE("model.gguf: refuses vocabularies without tokens or merges") {
  for (const char* field : {"model", "tokens", "merges"}) {
    Metadata metadata("file.gguf");
    const Metadata whole = byte_level();
    for (const auto& entry : whole.entries()) {
      if (entry.key != key(field)) metadata.set(entry.key, entry.value);
    }
    INFO(field);
    try {
      const auto vocabulary = vocabulary_from_metadata(metadata);
      FAIL("accepted");
    } catch (const FormatError& error) {
      CHECK(error.context().key == key(field));
    }
  }
}

TEST_CASE("model.gguf: leaves it to the tokenizer to name models it does not know") {
  Metadata metadata("file.gguf");
  metadata.set(key("model"), std::string("plamo2"));
  CHECK_THROWS_AS(Tokenizer(vocabulary_from_metadata(metadata)), skald::UnsupportedError);
}
