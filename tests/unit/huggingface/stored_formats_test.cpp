// Folders whose matrices are 8-bit floats with scales, or MXFP4 blocks beside their scales.
#include <cmath>
#include <cstring>

#include <skald/core/error.hpp>
#include <skald/core/random.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/huggingface/directory.hpp>
#include <skald/quant/row_codec.hpp>

#include "support/huggingface_folder.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace skald;
using skald_test::PlainTensor;
using skald_test::TemporaryFolder;
using Tensors = std::map<std::string, PlainTensor>;

/// By the definition: one sign, four exponent and three mantissa bits.
double value_of(unsigned code) {
  const double sign = code & 0x80 ? -1 : 1;
  const unsigned exponent = (code & 0x78) >> 3, mantissa = code & 7;
  if (exponent == 0) return sign * mantissa / 8.0 * std::pow(2.0, -6);
  return sign * (1 + mantissa / 8.0) * std::pow(2.0, static_cast<int>(exponent) - 7);
}

unsigned code_of(double value) {
  unsigned best = 0;
  for (unsigned code = 0; code < 256; ++code)
    if ((code & 0x7F) != 0x7F && std::abs(value_of(code) - value) < std::abs(value_of(best) - value)) best = code;
  return best;
}

std::vector<float> decoded(const ModelFile& file, const std::string& name) {
  const TensorInfo& info = file.at(name);
  std::vector<float> result;
  std::vector<float> row(static_cast<std::size_t>(info.columns()));
  std::vector<std::byte> bytes(row_bytes(info.type, row.size()));
  for (std::int64_t r = 0; r < info.rows(); ++r) {
    file.read(info, static_cast<std::uint64_t>(r) * bytes.size(), bytes);
    decode_row(info.type, bytes, row);
    result.insert(result.end(), row.begin(), row.end());
  }
  return result;
}

nlohmann::json llama_config() {
  return {{"model_type", "llama"},     {"hidden_size", 200},     {"num_hidden_layers", 1}, {"num_attention_heads", 4},
          {"intermediate_size", 160}, {"rms_norm_eps", 1e-5}, {"max_position_embeddings", 64}};
}

std::string refusal(const std::string& folder) {
  try {
    static_cast<void>(open_huggingface(folder));
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

constexpr const char* up = "model.layers.0.mlp.up_proj.weight";

/// 160 x 200 codes with scales of a shape.
Tensors float8(std::vector<std::int64_t> scale_shape, const std::vector<float>& scales, const char* ending) {
  CounterRandom random(5, 0, 0);
  PlainTensor codes{{160, 200}, {}, {}, SafetensorsType::f8_e4m3};
  for (int i = 0; i < 160 * 200; ++i) {
    auto code = static_cast<unsigned>(random.next() & 0xFF);
    if ((code & 0x7F) == 0x7F) code = 0x7E;
    codes.raw.push_back(static_cast<std::byte>(code));
  }
  return {{up, codes}, {std::string(up) + ending, PlainTensor{std::move(scale_shape), scales}}};
}

TEST_CASE("huggingface.float8: elements times the scale of their block, row or matrix, exactly") {
  struct Case {
    std::vector<std::int64_t> shape;
    const char* ending;
    DType type;
    bool powers;
  };
  const Case cases[] = {{{2, 2}, "_scale_inv", DType::f32, false}, {{2, 2}, "_scale_inv", DType::bf16, true},
                        {{1}, "_scale", DType::f32, false},        {{}, "_scale_inv", DType::bf16, true},
                        {{160, 1}, "_scale", DType::f32, false},   {{160}, "_scale", DType::f32, false}};
  for (const auto& each : cases) {
    std::vector<float> scales(static_cast<std::size_t>(each.shape.empty() ? 1 : each.shape.size() == 1 ? each.shape[0]
                                                                                                       : each.shape[0] * each.shape[1]));
    for (std::size_t i = 0; i < scales.size(); ++i)
      scales[i] = each.powers ? std::ldexp(1.0F, static_cast<int>(i) - 5) : 0.01F + 0.003F * static_cast<float>(i % 11);
    const auto tensors = float8(each.shape, scales, each.ending);
    const TemporaryFolder folder("float8");
    skald_test::write_tensors(folder, tensors);
    auto config = llama_config();
    config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
    folder.write("config.json", config.dump());
    const ModelFile file = open_huggingface(folder.path());
    CHECK(file.at("blk.0.ffn_up.weight").type == each.type);
    CHECK(file.tensors().size() == 1);  // the scales are used up
    const auto values = decoded(file, "blk.0.ffn_up.weight");
    REQUIRE(values.size() == 160 * 200);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t row = i / 200, column = i % 200;
      const std::size_t at = scales.size() == 1 ? 0 : scales.size() == 160 ? row : row / 128 * 2 + column / 128;
      const auto code = static_cast<float>(value_of(static_cast<unsigned>(tensors.at(up).raw[i])));
      wrong += values[i] == code * scales[at] ? 0 : 1;
    }
    CHECK(wrong == 0);
    // A read that begins and ends anywhere.
    const TensorInfo& info = file.at("blk.0.ffn_up.weight");
    std::vector<std::byte> all(static_cast<std::size_t>(info.bytes)), part(777);
    file.read(info, 0, all);
    file.read(info, 1235, part);
    CHECK(std::memcmp(part.data(), all.data() + 1235, part.size()) == 0);
  }
}

TEST_CASE("huggingface.float8: a checkpoint gives the logits of the folder that holds its numbers as floats") {
  const auto bytes = skald_test::tiny_gguf({.vocabulary = 96, .dim = 160, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 40, .ffn = 288});
  const ModelFile gguf = read_gguf({SpanSource(bytes), "tiny"});
  const auto logits = [&](bool stored) {
    const TemporaryFolder folder("float8-model");
    skald_test::FolderWriter(gguf, "llama").write_changed(folder, [&](Tensors& tensors, nlohmann::json& config) {
      Tensors scales;
      for (auto& [name, tensor] : tensors) {
        if (!name.ends_with("_proj.weight")) continue;
        const auto rows = static_cast<std::size_t>(tensor.shape[0]), columns = static_cast<std::size_t>(tensor.shape[1]);
        const std::size_t across = (columns + 127) / 128;
        PlainTensor scale{{static_cast<std::int64_t>((rows + 127) / 128), static_cast<std::int64_t>(across)}, {}};
        for (std::size_t i = 0; i < (rows + 127) / 128 * across; ++i) scale.values.push_back(0.001F * static_cast<float>(i + 1));
        for (std::size_t i = 0; i < tensor.values.size(); ++i) {
          const float own = scale.values[i / columns / 128 * across + i % columns / 128];
          // Few codes of many: the search over all is slow.
          const unsigned code = code_of(std::round(static_cast<double>(tensor.values[i] / own) / 8) * 8);
          if (stored) tensor.raw.push_back(static_cast<std::byte>(code));
          else tensor.values[i] = static_cast<float>(value_of(code)) * own;
        }
        tensor.raw_type = SafetensorsType::f8_e4m3;
        if (stored) scales.emplace(name + "_scale_inv", scale);
      }
      tensors.merge(scales);
      if (stored) config["quantization_config"] = {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}};
    });
    const Decoder decoder(Model::load(folder.path()));
    auto session = decoder.new_session();
    const auto result = session.forward(skald_test::some_tokens(9, 96), LogitsWanted::all);
    return std::vector<float>(result.row(0).data(), result.row(0).data() + 9 * 96);
  };
  CHECK(logits(true) == logits(false));
}

TEST_CASE("huggingface.float8: refuses codes without scales and scales without meaning, naming the tensor") {
  const TemporaryFolder folder("float8-refused");
  auto config = llama_config();
  const auto refused = [&](const Tensors& tensors, const nlohmann::json& quantization) {
    skald_test::write_tensors(folder, tensors);
    auto changed = config;
    if (!quantization.is_null()) changed["quantization_config"] = quantization;
    folder.write("config.json", changed.dump());
    const auto text = refusal(folder.path());
    INFO(text);
    CHECK(text.find("up_proj") != std::string::npos);
    return text;
  };
  const nlohmann::json fp8{{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  CHECK(refused(float8({2, 2}, {1, 1, 1, 1}, "_other"), fp8).find("missing") != std::string::npos);
  CHECK(refused(float8({2, 3}, {1, 1, 1, 1, 1, 1}, "_scale_inv"), fp8).find("neither") != std::string::npos);
  CHECK(refused(float8({2, 2}, {1, 1, 1, 1}, "_scale_inv"), {{"quant_method", "fp8"}}).find("neither") != std::string::npos);
  CHECK(refused(float8({2, 2}, {1, 1, std::nanf(""), 1}, "_scale_inv"), fp8).find("not finite") != std::string::npos);
  CHECK(refused(float8({2, 2}, {1, 1, 1, 1}, "_scale_inv"), nullptr).find("F8_E4M3") != std::string::npos);
  CHECK(refused(float8({2, 2}, {1, 1, 1, 1}, "_scale_inv"), {{"quant_method", "mxfp4"}}).find("F8_E4M3") != std::string::npos);
}

nlohmann::json gpt_oss_config() {
  return {{"model_type", "gpt_oss"},   {"hidden_size", 64},        {"num_hidden_layers", 1}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"head_dim", 24},          {"intermediate_size", 64}, {"rms_norm_eps", 1e-5},
          {"num_local_experts", 3},   {"num_experts_per_tok", 2}, {"sliding_window", 8},   {"max_position_embeddings", 64},
          {"quantization_config", {{"quant_method", "mxfp4"}}}};
}

TEST_CASE("huggingface.mxfp4: blocks and scales become the experts' matrices, gates and others apart") {
  const std::string base = "model.layers.0.mlp.experts.gate_up_proj";
  constexpr std::size_t experts = 3, rows = 128, blocks = 2;
  CounterRandom random(9, 0, 0);
  PlainTensor codes{{experts, rows, blocks, 16}, {}}, scales{{experts, rows, blocks}, {}};
  for (std::size_t i = 0; i < experts * rows * blocks; ++i) {
    scales.raw.push_back(static_cast<std::byte>(110 + random.next() % 30));
    for (int j = 0; j < 16; ++j) codes.raw.push_back(static_cast<std::byte>(random.next() & 0xFF));
  }
  const TemporaryFolder folder("mxfp4");
  skald_test::write_tensors(folder, {{base + "_blocks", codes}, {base + "_scales", scales}});
  folder.write("config.json", gpt_oss_config().dump());
  const ModelFile file = open_huggingface(folder.path());
  const double levels[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (const bool second : {false, true}) {
    const std::string name = second ? "blk.0.ffn_up_exps.weight" : "blk.0.ffn_gate_exps.weight";
    CHECK(file.at(name).type == DType::mxfp4);
    CHECK(file.at(name).shape() == "[64, 64, 3]");
    const auto values = decoded(file, name);
    REQUIRE(values.size() == experts * 64 * 64);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t row = 2 * (i / 64) + (second ? 1 : 0), column = i % 64, block = row * blocks + column / 32;
      const auto byte = static_cast<unsigned>(codes.raw[16 * block + column % 32 / 2]);
      const unsigned code = column % 2 == 0 ? byte & 15 : byte >> 4;
      const double expected = (code & 8 ? -1 : 1) * levels[code & 7] * std::pow(2.0, static_cast<int>(scales.raw[block]) - 127);
      wrong += static_cast<double>(values[i]) == expected ? 0 : 1;
    }
    CHECK(wrong == 0);
  }
  // Bytes that no scale goes with, and shapes that do not fit.
  skald_test::write_tensors(folder, {{base + "_blocks", codes}});
  CHECK(refusal(folder.path()).find("gate_up_proj_scales") != std::string::npos);
  scales.shape = {experts, rows * blocks};
  skald_test::write_tensors(folder, {{base + "_blocks", codes}, {base + "_scales", scales}});
  CHECK(refusal(folder.path()).find("shapes of blocks and scales") != std::string::npos);
  skald_test::write_tensors(folder, {{base + "_others", codes}});
  CHECK(refusal(folder.path()).find("U8") != std::string::npos);
}

TEST_CASE("huggingface.config: options of gpt-oss and DeepSeek models are read or refused by name") {
  const TemporaryFolder folder("options");
  skald_test::write_tensors(folder, {{"model.embed_tokens.weight", PlainTensor{{4, 64}, std::vector<float>(256)}}});
  const auto with = [&](nlohmann::json config, const std::string& key, const nlohmann::json& value) {
    config.erase("quantization_config");
    config[key] = value;
    folder.write("config.json", config.dump());
    return refusal(folder.path());
  };
  CHECK(with(gpt_oss_config(), "layer_types", {"sliding_attention"}) == "accepted");
  CHECK(with(gpt_oss_config(), "layer_types", nlohmann::json::array({"full_attention"})).find("layer_types") != std::string::npos);
  CHECK(with(gpt_oss_config(), "swiglu_limit", 5.0).find("swiglu_limit") != std::string::npos);
  const nlohmann::json scaling{{"rope_type", "yarn"}, {"factor", 32.0}, {"original_max_position_embeddings", 4096}, {"truncate", false}};
  CHECK(with(gpt_oss_config(), "rope_scaling", scaling) == "accepted");
  CHECK(open_huggingface(folder.path()).metadata().find_bool("gpt-oss.rope.scaling.yarn_truncate") == false);
  const nlohmann::json deepseek{{"model_type", "deepseek_v3"},  {"hidden_size", 64},     {"num_hidden_layers", 1},
                                {"num_attention_heads", 4},    {"kv_lora_rank", 32},    {"q_lora_rank", nullptr},
                                {"qk_rope_head_dim", 8},       {"qk_nope_head_dim", 16}, {"v_head_dim", 20},
                                {"n_routed_experts", 8},       {"num_experts_per_tok", 2}, {"n_shared_experts", 1},
                                {"first_k_dense_replace", 1},  {"moe_intermediate_size", 24}, {"intermediate_size", 72},
                                {"n_group", 4},                {"topk_group", 2},       {"rms_norm_eps", 1e-5},
                                {"max_position_embeddings", 64}};
  CHECK(with(deepseek, "topk_method", "noaux_tc") == "accepted");
  CHECK(open_huggingface(folder.path()).metadata().get_u64("deepseek2.attention.key_length") == 40);
  CHECK(with(deepseek, "topk_method", "group_limited_greedy") == "accepted");
  CHECK(open_huggingface(folder.path()).metadata().get_u64("deepseek2.expert_group_best_count") == 1);
  for (const int best : {1, 2}) {
    nlohmann::json all = deepseek;
    all["first_k_dense_replace"] = 0;
    CHECK(with(all, "topk_method", best == 1 ? "group_limited_greedy" : "noaux_tc") == "accepted");
    const ModelSpec spec = read_spec(open_huggingface(folder.path()));
    REQUIRE(spec.layers.at(0).ffn->experts);
    CHECK(spec.layers[0].ffn->experts->groups_used == 2);
    CHECK(spec.layers[0].ffn->experts->group_best == best);
  }
  nlohmann::json second = deepseek;
  second["model_type"] = "deepseek_v2";
  second["routed_scaling_factor"] = 16.0;
  CHECK(with(second, "norm_topk_prob", false) == "accepted");
  CHECK(with(second, "norm_topk_prob", true).find("norm_topk_prob") != std::string::npos);
  CHECK(with(deepseek, "topk_method", "random").find("topk_method") != std::string::npos);
  CHECK(with(deepseek, "scoring_func", "relu").find("scoring_func") != std::string::npos);
  CHECK(with(deepseek, "moe_layer_freq", 2).find("moe_layer_freq") != std::string::npos);
  CHECK(with(deepseek, "kv_lora_rank", -1).find("kv_lora_rank") != std::string::npos);
  CHECK(with(deepseek, "rope_scaling", {{"type", "yarn"}, {"factor", 40}, {"mscale", 1.0}, {"mscale_all_dim", 0.5}}).find("mscale") !=
        std::string::npos);
}

}  // namespace
