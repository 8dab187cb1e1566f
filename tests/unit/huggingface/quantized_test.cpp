// GPTQ and AWQ checkpoints, quantizing while loading, hostile configurations.
#include <cmath>
#include <cstring>

#include <skald/core/error.hpp>
#include <skald/core/random.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/model/huggingface/directory.hpp>
#include <skald/model/model.hpp>
#include <skald/model/quantize.hpp>
#include <skald/quant/row_codec.hpp>

#include "support/huggingface_folder.hpp"
#include "support/shared_data.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace skald;
using skald_test::PlainTensor;
using skald_test::TemporaryFolder;

constexpr std::int64_t inputs = 128, outputs = 16;

/// One group-quantized matrix, packed by the formats' definitions.
struct Checkpoint {
  bool awq = false;
  int bits = 4;
  std::int64_t group = 32;
  bool ordered = true;       // false: g_idx shuffled, as desc_act leaves it
  std::int32_t zero = -1;    // of all groups; -1: random
  bool round_scales = false; // scales with few bits, so that scale * zero fits binary16
  std::vector<float> expected{};  // [output][input]

  void write(const TemporaryFolder& folder) {
    const std::int64_t groups = inputs / group;
    CounterRandom random(7, 0, 0);
    std::vector<std::uint16_t> scales(static_cast<std::size_t>(groups * outputs));
    for (auto& scale : scales)
      scale = f32_to_f16(round_scales ? 0.0625F * static_cast<float>(1 + random.next() % 4)
                                      : 0.01F + 0.02F * static_cast<float>(random.uniform()));
    const std::int32_t largest = (1 << bits) - 1;
    std::vector<std::int32_t> zeros(scales.size()), codes(static_cast<std::size_t>(inputs * outputs)), index;
    for (auto& each : zeros) each = zero >= 0 ? zero : 1 + static_cast<std::int32_t>(random.next() % static_cast<std::uint32_t>(largest));
    for (auto& each : codes) each = static_cast<std::int32_t>(random.next() % static_cast<std::uint32_t>(largest + 1));
    for (std::int64_t i = 0; i < inputs; ++i)
      index.push_back(static_cast<std::int32_t>(ordered ? i / group : (i * 5 + 3) % inputs / group));
    expected.clear();
    for (std::int64_t o = 0; o < outputs; ++o)
      for (std::int64_t i = 0; i < inputs; ++i) {
        const auto cell = static_cast<std::size_t>(index[static_cast<std::size_t>(i)] * outputs + o);
        expected.push_back(f16_to_f32(scales[cell]) * static_cast<float>(codes[static_cast<std::size_t>(i * outputs + o)] - zeros[cell]));
      }
    SafetensorsWriter writer;
    const auto add = [&](const std::string& name, SafetensorsType type, std::vector<std::int64_t> shape, const auto& values) {
      writer.add_tensor("model.layers.0.mlp.up_proj." + name, type, std::move(shape), std::as_bytes(std::span(values)));
    };
    const std::int64_t per_word = 32 / bits;
    const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // AWQ's: nibble n of a word holds output order[n]
    const auto along_outputs = [&](const std::vector<std::int32_t>& values, std::int64_t rows, std::int32_t offset) {
      std::vector<std::uint32_t> words(static_cast<std::size_t>(rows * outputs / per_word));
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t w = 0; w < outputs / per_word; ++w)
          for (std::int64_t n = 0; n < per_word; ++n) {
            const std::int64_t o = w * per_word + (awq ? order[n] : n);
            const auto value = static_cast<std::uint32_t>(values[static_cast<std::size_t>(r * outputs + o)] - offset);
            words[static_cast<std::size_t>(r * (outputs / per_word) + w)] |= value << (n * bits);
          }
      return words;
    };
    if (awq) {
      add("qweight", SafetensorsType::i32, {inputs, outputs / 8}, along_outputs(codes, inputs, 0));
      add("qzeros", SafetensorsType::i32, {groups, outputs / 8}, along_outputs(zeros, groups, 0));
    } else {
      std::vector<std::uint32_t> words(static_cast<std::size_t>(inputs / per_word * outputs));
      for (std::int64_t i = 0; i < inputs; ++i)
        for (std::int64_t o = 0; o < outputs; ++o)
          words[static_cast<std::size_t>(i / per_word * outputs + o)] |=
              static_cast<std::uint32_t>(codes[static_cast<std::size_t>(i * outputs + o)]) << (i % per_word * bits);
      add("qweight", SafetensorsType::i32, {inputs / per_word, outputs}, words);
      add("qzeros", SafetensorsType::i32, {groups, outputs / per_word}, along_outputs(zeros, groups, 1));
      add("g_idx", SafetensorsType::i32, {inputs}, index);
    }
    add("scales", SafetensorsType::f16, {groups, outputs}, scales);
    writer.write_file(folder.of("model.safetensors"));
    nlohmann::json config{{"model_type", "llama"},       {"hidden_size", inputs},        {"num_hidden_layers", 1},
                          {"num_attention_heads", 4},    {"intermediate_size", outputs}, {"max_position_embeddings", 64},
                          {"rms_norm_eps", 1e-5}};
    config["quantization_config"] = {{"quant_method", awq ? "awq" : "gptq"}, {"bits", bits}, {"group_size", group},
                                     {"desc_act", !ordered}};
    folder.write("config.json", config.dump());
  }
};

DType type_of(Checkpoint checkpoint) {
  const TemporaryFolder folder("gptq");
  checkpoint.write(folder);
  const ModelFile file = open_huggingface(folder.path());
  const TensorInfo& tensor = file.at("blk.0.ffn_up.weight");
  CHECK(tensor.shape() == "[128, 16]");
  std::vector<float> row(inputs);
  for (std::int64_t o = 0; o < outputs; ++o) {
    std::vector<std::byte> bytes(row_bytes(tensor.type, inputs));
    file.read(tensor, static_cast<std::uint64_t>(o) * bytes.size(), bytes);
    decode_row(tensor.type, bytes, row);
    for (std::int64_t i = 0; i < inputs; ++i)
      if (row[static_cast<std::size_t>(i)] != checkpoint.expected[static_cast<std::size_t>(o * inputs + i)]) {
        FAIL_CHECK("output " << o << ", input " << i << ": " << row[static_cast<std::size_t>(i)] << " is not "
                             << checkpoint.expected[static_cast<std::size_t>(o * inputs + i)]);
        return tensor.type;
      }
  }
  return tensor.type;
}

std::string refusal(const std::string& folder) {
  try {
    static_cast<void>(open_huggingface(folder));
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST_CASE("huggingface.quantized: GPTQ's numbers are exact in the smallest type that holds them") {
  CHECK(type_of({.zero = 8}) == DType::q4_0);
  CHECK(type_of({.group = 64, .round_scales = true}) == DType::q4_1);
  CHECK(type_of({}) == DType::q8_0);
  CHECK(type_of({.group = 128}) == DType::q8_0);
  CHECK(type_of({.ordered = false}) == DType::f32);
  CHECK(type_of({.group = 16}) == DType::f32);
  CHECK(type_of({.bits = 8, .zero = 128}) == DType::q8_0);
  CHECK(type_of({.bits = 8, .zero = 3}) == DType::f32);
  CHECK(type_of({.bits = 2}) == DType::q8_0);
}

TEST_CASE("huggingface.quantized: AWQ's numbers are exact") {
  CHECK(type_of({.awq = true}) == DType::q8_0);
  CHECK(type_of({.awq = true, .group = 64, .zero = 8}) == DType::q4_0);
  CHECK(type_of({.awq = true, .round_scales = true}) == DType::q4_1);
}

TEST_CASE("huggingface.quantized: refuses what it does not know, by name") {
  const TemporaryFolder folder("gptq-refused");
  Checkpoint checkpoint;
  checkpoint.write(folder);
  auto config = nlohmann::json::parse(skald_test::read_text(folder.of("config.json")));
  const auto with = [&](const std::string& key, const nlohmann::json& value) {
    auto changed = config;
    changed["quantization_config"][key] = value;
    folder.write("config.json", changed.dump());
    return refusal(folder.path());
  };
  CHECK(with("quant_method", "aqlm").find("aqlm") != std::string::npos);
  CHECK(with("bits", 3).find("3 bits") != std::string::npos);
  CHECK(with("group_size", 64).find("scales") != std::string::npos);
  CHECK(with("checkpoint_format", "marlin").find("marlin") != std::string::npos);
  CHECK(with("group_size", 0).find("group_size") != std::string::npos);
}

TEST_CASE("huggingface.config: refuses wrong, missing and contradicting values, naming their path") {
  const TemporaryFolder folder("config");
  SafetensorsWriter writer;
  writer.add_tensor("model.embed_tokens.weight", SafetensorsType::f32, {4, 8}, std::vector<std::byte>(128));
  writer.write_file(folder.of("model.safetensors"));
  const nlohmann::json valid{{"model_type", "llama"},    {"hidden_size", 8},       {"num_hidden_layers", 1}, {"num_attention_heads", 2},
                             {"intermediate_size", 16}, {"rms_norm_eps", 1e-5}, {"max_position_embeddings", 64}};
  const auto with = [&](const std::string& key, const nlohmann::json& value) {
    auto changed = valid;
    changed[key] = value;
    folder.write("config.json", changed.dump());
    return refusal(folder.path());
  };
  CHECK(with("model_type", "llama") == "accepted");
  const auto names = [](const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  names(with("model_type", "newest"), "'newest' is not implemented; known are bert");
  names(with("hidden_size", "8"), "$.hidden_size");
  names(with("hidden_size", -8), "$.hidden_size");
  names(with("hidden_size", 8.5), "$.hidden_size");
  names(with("num_hidden_layers", 100000000), "block_count");
  names(with("num_hidden_layers", 1000), "num_hidden_layers");
  names(with("num_attention_heads", 0), "hidden_size");
  names(with("num_key_value_heads", 3), "num_key_value_heads");
  names(with("rms_norm_eps", nullptr), "accepted");
  names(with("rope_scaling", {{"rope_type", "newest"}}), "'newest'");
  names(with("rope_scaling", 1), "$.rope_scaling");
  names(with("text_config", 1), "$.text_config");
  names(with("vocab_size", 1e300), "$.vocab_size");
  folder.write("config.json", "[1]");
  names(refusal(folder.path()), "model_type");
  folder.write("config.json", "{\"model_type\":\"llama\"");
  names(refusal(folder.path()), "offset");
  folder.write("config.json", std::string(10000, '['));
  names(refusal(folder.path()), "nested deeper");
}

TEST_CASE("huggingface.config: llama3 rotation, generation defaults and ids come from the folder's files") {
  const TemporaryFolder folder("files");
  SafetensorsWriter writer;
  writer.add_tensor("model.embed_tokens.weight", SafetensorsType::f32, {4, 8}, std::vector<std::byte>(128));
  writer.write_file(folder.of("model.safetensors"));
  folder.write("config.json", R"({"model_type":"llama","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
    "intermediate_size":16,"rms_norm_eps":1e-5,"max_position_embeddings":64,"bos_token_id":1,"eos_token_id":2})");
  folder.write("generation_config.json", R"({"do_sample":true,"temperature":0.6,"top_p":0.9,"top_k":40,"eos_token_id":[3,2]})");
  folder.write("tokenizer_config.json", R"({"add_bos_token":true,"chat_template":[{"name":"tools","template":"t"},{"name":"default","template":"d"}]})");
  const ModelFile file = open_huggingface(folder.path());
  const Metadata& metadata = file.metadata();
  CHECK(metadata.get_f32("general.sampling.temp") == 0.6F);
  CHECK(metadata.get_i64("general.sampling.top_k") == 40);
  CHECK(metadata.get_u32("tokenizer.ggml.bos_token_id") == 1);
  CHECK(metadata.get_u32("tokenizer.ggml.eos_token_id") == 3);
  CHECK(metadata.get_array<std::int32_t>("tokenizer.ggml.eos_token_ids") == std::vector<std::int32_t>{3, 2});
  CHECK(metadata.get_bool("tokenizer.ggml.add_bos_token"));
  CHECK(metadata.get_string("tokenizer.chat_template") == "d");
}

TEST_CASE("model.quantize: encodes what is read exactly as the encoder does and keeps the rest") {
  const auto bytes = skald_test::tiny_gguf({.dim = 256, .ffn = 512});
  const ModelFile file = read_gguf({SpanSource(bytes), "tiny"});
  for (const char* name : {"q4_k", "q8_0", "f16", "q4_k_m"}) {
    INFO(name);
    const ModelFile result = quantized(file, name);
    for (const auto& tensor : file.tensors()) {
      const TensorInfo& found = result.at(tensor.name);
      CHECK(found.type == quantized_type(file, tensor, name));
      if (tensor.rank < 2) CHECK(found.type == DType::f32);
      // Any range of bytes is that of the whole.
      std::vector<std::byte> whole(found.bytes), part(std::min<std::size_t>(found.bytes / 2, 1000));
      result.read(found, whole);
      result.read(found, found.bytes / 3, part);
      CHECK(std::memcmp(part.data(), whole.data() + found.bytes / 3, part.size()) == 0);
      std::vector<float> values(static_cast<std::size_t>(tensor.columns()));
      std::vector<std::byte> row(row_bytes(found.type, values.size()));
      file.read(tensor, 0, std::as_writable_bytes(std::span(values)));
      encode_row(found.type, values, row);
      CHECK(std::memcmp(row.data(), whole.data(), row.size()) == 0);
    }
  }
  CHECK(quantized_type(file, file.at("output.weight"), "q4_k_m") == DType::q6_k);
  CHECK(quantized_type(file, file.at("blk.0.attn_q.weight"), "q4_k_m") == DType::q4_k);
  CHECK_THROWS_AS(quantized(file, "q9"), UsageError);
}

TEST_CASE("model.quantize: a model quantized while loading is the model that was quantized before") {
  const auto bytes = skald_test::tiny_gguf({.dim = 256, .ffn = 512});
  const ModelFile file = read_gguf({SpanSource(bytes), "tiny"});
  const ModelFile before = quantized(file, "q8_0");
  GgufWriter writer;
  writer.set_all(before.metadata());
  for (const auto& tensor : before.tensors()) {
    std::vector<std::byte> data(tensor.bytes);
    before.read(tensor, data);
    writer.add_tensor(tensor.name, tensor.type, {tensor.dims.begin(), tensor.dims.begin() + static_cast<std::ptrdiff_t>(tensor.rank)}, data);
  }
  const auto written = writer.to_bytes();
  const Model stored = Model::load(read_gguf({SpanSource(written), "stored"}));
  const Model direct = Model::load(file, {.quantize = "q8_0"});
  CHECK(stored.fingerprint() == direct.fingerprint());
  CHECK(direct.info().formats.front().first == "q8_0");
}

}  // namespace
