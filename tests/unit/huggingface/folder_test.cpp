// Models of the reference data written as folders: the same tensors, hyper-parameters and logits must come back.
#include <skald/model/huggingface/directory.hpp>

#include <algorithm>
#include <cmath>

#include <skald/core/error.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/decoder/embed.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/quant/row_codec.hpp>

#include "support/huggingface_folder.hpp"
#include "support/shared_data.hpp"

namespace {

using namespace skald;
using skald_test::FolderForm;
using skald_test::FolderWriter;
using skald_test::TemporaryFolder;

struct Case {
  const char* model;
  const char* type;
};
constexpr Case cases[] = {{"llama2-spm", "llama"},       {"llama3-ropefreqs", "llama"}, {"llama-yarn", "llama"},
                          {"llama-linear-bias", "llama"}, {"mixtral", "mixtral"},       {"qwen2", "qwen2"},
                          {"qwen3", "qwen3"},            {"gemma", "gemma"},            {"gemma2", "gemma2"},
                          {"gemma3", "gemma3_text"},     {"phi2", "phi"},               {"phi3-long", "phi3"},
                          {"phi3-short", "phi3"},        {"gpt2", "gpt2"},              {"gptneox", "gpt_neox"},
                          {"falcon", "falcon"},          {"bloom", "bloom"},            {"mpt", "mpt"},
                          {"stablelm", "stablelm"},      {"starcoder2", "starcoder2"},  {"olmo2", "olmo2"},
                          {"olmo3-swa", "olmo3"},        {"command-r", "cohere"},       {"cohere2", "cohere2"},
                          {"granite", "granite"},        {"granitemoe", "granitemoe"},  {"smollm3", "smollm3"},
                          {"qwen2moe", "qwen2_moe"},     {"qwen3moe", "qwen3_moe"},     {"olmoe", "olmoe"},
                          {"bert", "bert"},              {"nomic-bert", "nomic_bert"}, {"deepseek3", "deepseek_v3"},
                          {"deepseek2-lite", "deepseek_v2"}, {"gpt-oss", "gpt_oss"},    {"gpt-oss-mxfp4", "gpt_oss"}};

ModelFile golden(const std::string& name) {
  return open_gguf(skald_test::shared_path("goldens/models/" + name + ".gguf"));
}

/// Largest difference of two tensors' values, with the right one rounded to a type first.
double largest_difference(const ModelFile& a, const TensorInfo& left, const ModelFile& b, const TensorInfo& right) {
  const auto values = [](const ModelFile& file, const TensorInfo& info) {
    std::vector<float> result(static_cast<std::size_t>(info.elements()));
    const std::size_t columns = static_cast<std::size_t>(info.columns());
    std::vector<std::byte> row(row_bytes(info.type, columns));
    for (std::size_t r = 0; r < static_cast<std::size_t>(info.rows()); ++r) {
      file.read(info, r * row.size(), row);
      decode_row(info.type, row, std::span(result).subspan(r * columns, columns));
    }
    return result;
  };
  const auto x = values(a, left), y = values(b, right);
  double difference = 0;
  for (std::size_t i = 0; i < x.size(); ++i) difference = std::max(difference, std::abs(static_cast<double>(x[i]) - y[i]));
  return difference;
}

void check_tensors(const ModelFile& gguf, const ModelFile& folder, bool plus_one) {
  std::size_t joined = 0;
  for (const auto& tensor : gguf.tensors()) {
    INFO(tensor.name);
    // The two parts of a matrix that folders keep as one; its numbers show in the logits.
    if (tensor.name.ends_with(".attn_k_b.weight")) {
      ++joined;
      continue;
    }
    if (tensor.name.ends_with(".attn_v_b.weight")) {
      CHECK(folder.find(tensor.name.substr(0, tensor.name.size() - 10) + "kv_b.weight") != nullptr);
      continue;
    }
    const auto* found = folder.find(tensor.name);
    REQUIRE(found != nullptr);
    CHECK(found->shape() == tensor.shape());
    // Taking one away from a norm and adding it again rounds once; factors are computed in double, stored in float.
    const bool computed = (plus_one && tensor.name.find("norm") != std::string::npos) || tensor.name.starts_with("rope_freqs");
    CHECK(largest_difference(gguf, tensor, folder, *found) <= (computed ? 2e-6 : 0.0));
  }
  CHECK(folder.tensors().size() + joined == gguf.tensors().size());
}

std::vector<float> logits_of(const Model& model, std::int64_t count = 12) {
  const Decoder decoder(model, {.kv = {.format = "f32"}});
  auto session = decoder.new_session();
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<TokenId>((i * 37 + 11) % model.spec().vocabulary));
  const auto logits = session.forward(tokens, LogitsWanted::all);
  const auto first = logits.row(0).data();
  return {first, first + logits.rows() * logits.vocabulary()};
}

bool is_known(const ModelFile& file) {
  const auto& name = file.metadata().get_string("general.architecture");
  return std::ranges::any_of(architectures(), [&](const Architecture& each) { return each.name == name; });
}

/// Largest difference over the largest magnitude.
double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return difference / largest;
}

TEST_CASE("huggingface.folder: gives the tensors of the GGUF file for every known model type") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const auto& [name, type] : cases) {
    INFO(name);
    const ModelFile gguf = golden(name);
    const TemporaryFolder folder("folder");
    FolderWriter(gguf, type).write(folder);
    check_tensors(gguf, open_huggingface(folder.path()), std::string(type).starts_with("gemma"));
  }
}

TEST_CASE("huggingface.folder: gives the hyper-parameters of the GGUF file for every known model type") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const auto& [name, type] : cases) {
    INFO(name);
    const ModelFile gguf = golden(name);
    const TemporaryFolder folder("keys");
    FolderWriter(gguf, type).write(folder);
    const ModelFile opened = open_huggingface(folder.path());
    const std::string architecture = gguf.metadata().get_string("general.architecture");
    CHECK(opened.metadata().get_string("general.architecture") == architecture);
    for (const auto& entry : gguf.metadata().entries()) {
      if (!entry.key.starts_with(architecture + ".")) continue;
      const std::string key = entry.key.substr(architecture.size() + 1);
      // Stated by the file, not by config.json: no scaling is the default, phi3's window is off, pooling has its own file.
      if (key == "rope.scaling.type" && std::get<std::string>(entry.value) == "none") continue;
      if ((key == "attention.sliding_window" && std::string(type) == "phi3") || key == "pooling_type") continue;
      if (key == "tensor_data_layout") continue;  // a remark of the converter
      INFO(entry.key);
      const auto* found = opened.metadata().find(entry.key);
      if (!found && (key == "vocab_size" || key == "rope.dimension_count")) continue;  // follow from shapes
      REQUIRE(found != nullptr);
      if (std::holds_alternative<float>(entry.value))
        CHECK(std::abs(opened.metadata().get_f64(entry.key) / gguf.metadata().get_f64(entry.key) - 1) < 1e-6);
      else if (std::holds_alternative<std::uint32_t>(entry.value))
        CHECK(opened.metadata().get_i64(entry.key) == gguf.metadata().get_i64(entry.key));
      else CHECK(found->value == entry.value);
    }
  }
}

TEST_CASE("huggingface.folder: gives the logits of the GGUF file") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const auto& [name, type] : cases) {
    const ModelFile gguf = golden(name);
    if (!is_known(gguf) || std::string(type).ends_with("bert")) continue;  // encoders: the next test
    const TemporaryFolder folder("logits");
    FolderWriter(gguf, type).write(folder);
    // The class has the exact GELU; GGUF files leave it open, and other engines take the approximation.
    Metadata metadata = gguf.metadata();
    if (std::string(type) == "mpt") metadata.set("mpt.hidden_activation", std::string("gelu_erf"));
    const ModelFile same(gguf.name(), std::move(metadata), {gguf.tensors().begin(), gguf.tensors().end()},
                         {gguf.sources().begin(), gguf.sources().end()});
    const double error = relative_difference(logits_of(Model::load(folder.path())), logits_of(Model::load(same)));
    INFO(name << ": " << error);
    CHECK(error <= 1e-5);
  }
}

TEST_CASE("huggingface.folder: gives an encoder's hidden states and embeddings of the GGUF file") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto states_of = [](const Model& model) {
    const Decoder decoder(model);
    auto session = decoder.new_session();
    std::vector<TokenId> tokens;
    for (std::int64_t i = 0; i < 12; ++i) tokens.push_back(static_cast<TokenId>((i * 37 + 11) % model.spec().vocabulary));
    std::vector<float> hidden;
    ForwardOptions pass{};
    pass.hidden = &hidden;
    Batch batch;
    batch.add(session, tokens, LogitsWanted::none);
    (void)decoder.forward(batch, pass);
    for (const Pooling pooling : {Pooling::mean, Pooling::cls}) {
      const std::vector<std::vector<TokenId>> texts{tokens};
      const auto embedded = embed(decoder, texts, {.pooling = pooling});
      hidden.insert(hidden.end(), embedded.values.begin(), embedded.values.end());
    }
    return hidden;
  };
  for (const auto& [name, type] : cases) {
    if (!std::string(type).ends_with("bert")) continue;
    const ModelFile gguf = golden(name);
    const TemporaryFolder folder("encoder");
    FolderWriter(gguf, type).write(folder);
    const auto expected = states_of(Model::load(gguf));
    CHECK(expected.size() == 14 * static_cast<std::size_t>(Model::load(gguf).spec().dim));
    const double error = relative_difference(states_of(Model::load(folder.path())), expected);
    INFO(name << ": " << error);
    CHECK(error <= 1e-5);
  }
}

TEST_CASE("huggingface.folder: shards and other element types give the same network") {
  if (!skald_test::have_shared("goldens/models")) return;
  const ModelFile gguf = golden("qwen2");
  const auto expected = logits_of(Model::load(gguf));
  const auto error = [&](FolderForm form) {
    const TemporaryFolder folder("forms");
    FolderWriter(gguf, "qwen2").write(folder, form);
    return relative_difference(logits_of(Model::load(folder.path())), expected);
  };
  CHECK(error({.shards = 3}) == 0.0);
  CHECK(error({.type = SafetensorsType::f64}) == 0.0);
  CHECK(error({.type = SafetensorsType::f16}) < 1e-2);
  CHECK(error({.type = SafetensorsType::f16}) > 0.0);
  CHECK(error({.type = SafetensorsType::bf16, .shards = 2}) < 5e-2);
}

TEST_CASE("huggingface.folder: mapped rows and packed rows give the same logits") {
  if (!skald_test::have_shared("goldens/models")) return;
  const TemporaryFolder folder("layouts");
  const ModelFile gguf = golden("mixtral");
  FolderWriter(gguf, "mixtral").write(folder);
  const auto packed = logits_of(Model::load(folder.path()));
  const auto rows = logits_of(Model::load(folder.path(), {.layout = WeightLayout::rows}));
  CHECK(relative_difference(rows, packed) <= 1e-5);
}

}  // namespace
