// Tokenizers of folders in the form of GGUF files.
#include <skald/model/huggingface/gguf_vocabulary.hpp>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>
#include <skald/model/gguf/vocabulary.hpp>
#include <skald/model/model.hpp>

#include "support/catch.hpp"
#include "support/model_parts.hpp"
#include "support/paths.hpp"
#include "support/shared_data.hpp"

using namespace skald;

namespace {

nlohmann::json file_of(const std::string& name) {
  return nlohmann::json::parse(
      skald_test::read_text(skald_test::source_path("tests/unit/text/tokenizer_json/" + name + ".json")));
}

Metadata metadata_of(const std::string& tokenizer_json) {
  Metadata metadata("folder");
  metadata.set("general.architecture", std::string("llama"));
  metadata.set("tokenizer.huggingface.json", tokenizer_json);
  metadata.set("tokenizer.huggingface.config_json",
               tokenizer_json.find("WordPiece") != std::string::npos
                   ? std::string(R"({"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"})")
                   : std::string(R"({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})"));
  return metadata;
}

std::string tokenizer_of(const std::string& name) {
  const auto file = file_of(name);
  return (file.contains("model") ? file : file.at("tokenizer")).dump();
}

std::vector<std::string> texts() {
  std::vector<std::string> result;
  for (const auto& each : file_of("texts"))
    if (each.is_string()) result.push_back(each.get<std::string>());
  return result;
}

}  // namespace

TEST_CASE("huggingface.gguf_vocabulary: other engines' form gives the tokens of tokenizer.json") {
  struct Case {
    const char* file;
    const char* model;
    const char* pre;
    std::size_t most;  // texts with other tokens: GGUF files do not say that a text is normalized (NFC, accents, cut words)
  };
  const Case cases[] = {{"gpt2", "gpt2", "gpt-2", 0},          {"llama3", "gpt2", "llama-bpe", 0}, {"qwen2", "gpt2", "qwen2", 13},
                        {"starcoder", "gpt2", "smollm", 0},    {"gpt4o", "gpt2", "gpt-4o", 0},     {"deepseek", "gpt2", "deepseek-v3", 0},
                        {"llama2", "llama", "default", 0},     {"gemma", "llama", "default", 16},   {"bert", "bert", "default", 8}};
  for (const Case& each : cases) {
    CAPTURE(each.file);
    Metadata metadata = metadata_of(tokenizer_of(each.file));
    const Tokenizer folder = folder_tokenizer(metadata);
    const std::int64_t rows = folder.size() + 3;
    // Added tokens of spaces are found after normalization there, before it here: that is told.
    CHECK(add_gguf_vocabulary(metadata, rows).empty() == (std::string(each.file) != "gemma"));
    CHECK(metadata.get_string("tokenizer.ggml.model") == each.model);
    CHECK(metadata.get_string("tokenizer.ggml.pre") == each.pre);
    const Tokenizer other(vocabulary_from_metadata(metadata));
    CHECK(other.size() == rows);
    CHECK(other.bos() == folder.bos());
    CHECK(other.eos() == folder.eos());
    CHECK(other.type(static_cast<TokenId>(rows - 1)) == TokenType::unused);
    std::size_t different = 0;
    const auto all = texts();
    REQUIRE(all.size() > 10);
    for (const auto& text : all)
      if (other.encode(text) != folder.encode(text)) {
        ++different;
        UNSCOPED_INFO(text);
      }
    CHECK(different <= each.most);
  }
}

TEST_CASE("huggingface.gguf_vocabulary: what GGUF files cannot say is told") {
  Metadata words = metadata_of(tokenizer_of("wl-whitespace"));
  CHECK(add_gguf_vocabulary(words, 10000).find("WordLevel") != std::string::npos);
  CHECK_FALSE(words.contains("tokenizer.ggml.tokens"));
  Metadata prefix = metadata_of(tokenizer_of("roberta"));  // a space before the first word
  CHECK(add_gguf_vocabulary(prefix, 10000).find("other tokens") != std::string::npos);
  CHECK(prefix.contains("tokenizer.ggml.tokens"));
  Metadata small = metadata_of(tokenizer_of("gpt2"));
  CHECK(add_gguf_vocabulary(small, 100).find("the network 100") != std::string::npos);
  Metadata none("folder");
  CHECK(add_gguf_vocabulary(none, 10) == "");
}

TEST_CASE("huggingface.gguf_vocabulary: skald itself goes by the folder's own tokenizer") {
  skald_test::TinyModel tiny = skald_test::tiny_model();
  const Metadata metadata = metadata_of(tokenizer_of("roberta"));
  for (const auto& entry : metadata.entries())
    if (entry.key.starts_with("tokenizer.")) tiny.set(entry.key, entry.value);
  const Model model = Model::load(skald_test::source_of(tiny), {.backend = make_reference_backend()});
  CHECK(model.tokenizer().model() == "BPE");
  CHECK(model.tokenizer().encode("a b") == folder_tokenizer(metadata).encode("a b"));
}
