#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/vocabulary.hpp>
#include <skald/text/tokenizer.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

namespace {

using skald::TokenId;
using skald::Tokenizer;
using Json = nlohmann::json;
using skald_test::shared_path;

const std::string folder = "goldens/tokenizers";

skald::Vocabulary read_vocabulary(const std::string& path) {
  return skald::vocabulary_from_metadata(skald::open_gguf(path).metadata());
}

std::string vocabulary_path(const std::string& name) {
  return shared_path(name.starts_with("models/") ? "goldens/" + name : folder + "/vocab/" + name);
}

// `true` stands for the text itself, an object for bytes in hexadecimal.
std::string expected_text(const Json& value, const std::string& text) {
  if (value.is_boolean()) return text;
  if (value.is_string()) return value.get<std::string>();
  const auto hex = value.at("hex").get<std::string>();
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::vector<std::string> vector_files() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(shared_path(folder))) {
    if (entry.path().extension() == ".json") files.push_back(entry.path().string());
  }
  std::ranges::sort(files);
  return files;
}

struct Counts {
  int files = 0;
  int cases = 0;
};

void check_file(const std::string& path, Counts& counts) {
  const Json golden = Json::parse(skald_test::read_text(path));
  INFO(path);
  auto vocabulary = read_vocabulary(vocabulary_path(golden.at("vocab")));
  const Tokenizer tokenizer(std::move(vocabulary));
  CHECK(tokenizer.size() == golden.at("n_tokens").get<int>());
  CHECK(tokenizer.bos() == golden.at("bos").get<int>());
  CHECK(tokenizer.eos() == golden.at("eos").get<int>());
  // Where the file names no end of turn, engines pick any token spelled like one.
  const auto eot = golden.at("eot").get<TokenId>();
  CHECK((tokenizer.eot() < 0) == (eot < 0));
  CHECK((eot < 0 || tokenizer.is_end_of_generation(eot)));
  CHECK(tokenizer.adds_bos() == golden.at("add_bos").get<bool>());
  CHECK(tokenizer.adds_eos() == golden.at("add_eos").get<bool>());
  ++counts.files;
  using Ids = std::vector<TokenId>;
  for (const Json& entry : golden.at("cases")) {
    const auto text = entry.at("text").get<std::string>();
    INFO("case " << entry.at("i") << ": " << text);
    const auto ids = entry.at("ids").get<Ids>();
    const auto ids_add = entry.at("ids_add").get<Ids>();
    CHECK(tokenizer.encode(text, {.add_special = false}) == ids);
    CHECK(tokenizer.encode(text) == ids_add);
    CHECK(tokenizer.encode(text, {.add_special = false, .parse_special = true}) == entry.value("ids_parse", ids));
    CHECK(tokenizer.encode(text, {.parse_special = true}) == entry.value("ids_add_parse", ids_add));
    if (entry.contains("detok")) {
      CHECK(tokenizer.decode(ids, {.clean_up_spaces = tokenizer.cleans_up_spaces()}) ==
            expected_text(entry.at("detok"), text));
      std::string pieces;
      for (const TokenId id : ids) pieces += tokenizer.piece(id);
      CHECK(pieces == expected_text(entry.at("pieces"), text));
    }
    ++counts.cases;
  }
}

}  // namespace

TEST_CASE("text.tokenizer: reproduces all reference vectors") {
  if (!skald_test::have_shared(folder)) return;
  Counts counts;
  for (const std::string& path : vector_files()) check_file(path, counts);
  CHECK(counts.files >= 55);
  CHECK(counts.cases >= 55 * 100);
}

TEST_CASE("text.tokenizer: reads the vocabulary of every reference model") {
  if (!skald_test::have_shared("goldens/models")) return;
  int read = 0;
  for (const auto& entry : std::filesystem::directory_iterator(shared_path("goldens/models"))) {
    INFO(entry.path().string());
    auto vocabulary = read_vocabulary(entry.path().string());
    const Tokenizer tokenizer(std::move(vocabulary));
    CHECK(tokenizer.size() > 0);
    ++read;
  }
  CHECK(read > 40);
}

TEST_CASE("text.tokenizer: encodes and decodes with the demo model's vocabulary") {
  const std::string path = "tiny-model/trained/main/model-f32.gguf";
  if (!skald_test::have_shared(path)) return;
  const Tokenizer tokenizer(read_vocabulary(shared_path(path)));
  CHECK(tokenizer.size() == 1536);
  const std::string text = "Once upon a time, Tom's dog found 12 apples.\n";
  const auto ids = tokenizer.encode(text, {.add_special = false});
  CHECK(ids.size() < text.size() / 2);
  CHECK(tokenizer.decode(ids) == text);
  CHECK(tokenizer.encode(text).front() == *tokenizer.find("<|bos|>"));
  const auto chat = tokenizer.encode("<|im_start|>user", {.add_special = false, .parse_special = true});
  CHECK(chat.front() == *tokenizer.find("<|im_start|>"));
  CHECK(tokenizer.is_end_of_generation(*tokenizer.find("<|im_end|>")));
  CHECK(tokenizer.is_end_of_generation(*tokenizer.find("<|eos|>")));
  CHECK_FALSE(tokenizer.is_end_of_generation(*tokenizer.find("<|im_start|>")));
}

TEST_CASE("text.tokenizer: gives the known ids of a real SentencePiece model") {
  const std::string path = "real-model/stories260K.gguf";
  if (!skald_test::have_shared(path)) return;
  const Tokenizer tokenizer(read_vocabulary(shared_path(path)));
  CHECK(tokenizer.encode("Once upon a time") == std::vector<TokenId>{1, 403, 407, 261, 378});
}
