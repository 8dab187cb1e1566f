#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include <skald/core/half.hpp>
#include <skald/model/model_file.hpp>
#include <skald/model/safetensors/writer.hpp>

#include "support/catch.hpp"

namespace skald_test {

namespace fs = std::filesystem;

/// A folder that is removed with its contents.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& name)
      : path_(fs::temp_directory_path() /
              ("skald-" + name + "-" + std::to_string(::getpid()) + "-" + std::to_string(counter()++))) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  [[nodiscard]] std::string path() const { return path_.string(); }
  [[nodiscard]] std::string of(const std::string& name) const { return (path_ / name).string(); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }

 private:
  static int& counter() {
    static int count = static_cast<int>(std::hash<std::string>{}(fs::current_path().string()) % 100000) * 1000;
    return count;
  }
  fs::path path_;
};

/// Values of a matrix or stack, outermost dimension first.
struct PlainTensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
  std::vector<std::byte> raw{};  ///< if not empty, what is written, as `raw_type`
  skald::SafetensorsType raw_type = skald::SafetensorsType::u8;

  [[nodiscard]] std::size_t columns() const { return shape.size() < 2 ? 1 : static_cast<std::size_t>(shape.back()); }
  [[nodiscard]] std::size_t rows() const { return values.size() / columns(); }
  [[nodiscard]] PlainTensor with_rows(const std::vector<std::size_t>& order, std::vector<std::int64_t> new_shape) const {
    PlainTensor result{std::move(new_shape), {}};
    for (const std::size_t row : order)
      result.values.insert(result.values.end(), values.begin() + static_cast<std::ptrdiff_t>(row * columns()),
                           values.begin() + static_cast<std::ptrdiff_t>((row + 1) * columns()));
    return result;
  }
};

inline PlainTensor plain_tensor(const skald::ModelFile& file, const skald::TensorInfo& info) {
  REQUIRE(info.type == skald::DType::f32);
  PlainTensor tensor;
  for (std::size_t i = info.rank; i-- > 0;) tensor.shape.push_back(info.dims[i]);
  tensor.values.resize(static_cast<std::size_t>(info.elements()));
  file.read(info, std::as_writable_bytes(std::span(tensor.values)));
  return tensor;
}

/// How a model is written: element type and number of files.
struct FolderForm {
  skald::SafetensorsType type = skald::SafetensorsType::f32;
  int shards = 1;
};

inline std::vector<std::byte> stored_bytes(const std::vector<float>& values, skald::SafetensorsType type) {
  std::vector<std::byte> bytes(values.size() * skald::element_bytes(type));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto store = [&](auto value) { std::memcpy(bytes.data() + i * sizeof(value), &value, sizeof(value)); };
    if (type == skald::SafetensorsType::f16) store(skald::f32_to_f16(values[i]));
    else if (type == skald::SafetensorsType::bf16) store(skald::f32_to_bf16(values[i]));
    else if (type == skald::SafetensorsType::f64) store(static_cast<double>(values[i]));
    else store(values[i]);
  }
  return bytes;
}

inline void write_tensors(const TemporaryFolder& folder, const std::map<std::string, PlainTensor>& tensors,
                          FolderForm form = {}) {
  std::vector<skald::SafetensorsWriter> writers(static_cast<std::size_t>(form.shards));
  nlohmann::json map;
  const auto name_of = [&](std::size_t shard) {
    return form.shards == 1 ? std::string("model.safetensors") : "part-" + std::to_string(shard) + ".safetensors";
  };
  std::size_t next = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t shard = next++ % writers.size();
    if (tensor.raw.empty()) writers[shard].add_tensor(name, form.type, tensor.shape, stored_bytes(tensor.values, form.type));
    else writers[shard].add_tensor(name, tensor.raw_type, tensor.shape, tensor.raw);
    map[name] = name_of(shard);
  }
  for (std::size_t i = 0; i < writers.size(); ++i) writers[i].write_file(folder.of(name_of(i)));
  if (form.shards > 1) folder.write("model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
}

/// Writes a GGUF model of F32 tensors as `transformers` would save it: the inverse of what the library does, written
/// from the models' published code.
class FolderWriter {
 public:
  FolderWriter(const skald::ModelFile& gguf, std::string model_type) : gguf_(gguf), type_(std::move(model_type)) {
    arch_ = gguf.metadata().get_string("general.architecture");
    heads_ = integer("attention.head_count");
    kv_heads_ = integer_or("attention.head_count_kv", heads_);
  }

  /// `change` may replace tensors and add to config.json before they are written.
  template <class Change>
  void write_changed(const TemporaryFolder& folder, const Change& change) {
    for (const auto& info : gguf_.tensors()) convert(info.name, plain_tensor(gguf_, info));
    auto json = config();
    change(result_, json);
    write_tensors(folder, result_);
    folder.write("config.json", json.dump(1));
  }
  void write(const TemporaryFolder& folder, FolderForm form = {}) {
    for (const auto& info : gguf_.tensors()) {
      if (info.type == skald::DType::mxfp4) microscaled(info);
      else convert(info.name, plain_tensor(gguf_, info));
    }
    write_tensors(folder, result_, form);
    folder.write("config.json", config().dump(1));
  }

 private:
  using Names = std::map<std::string, std::string>;

  [[nodiscard]] std::int64_t integer(const std::string& key) const { return gguf_.metadata().get_i64(arch_ + "." + key); }
  [[nodiscard]] std::int64_t integer_or(const std::string& key, std::int64_t otherwise) const {
    return gguf_.metadata().find_i64(arch_ + "." + key).value_or(otherwise);
  }
  [[nodiscard]] double number(const std::string& key) const { return gguf_.metadata().get_f64(arch_ + "." + key); }
  [[nodiscard]] bool has(const std::string& key) const { return gguf_.metadata().contains(arch_ + "." + key); }
  [[nodiscard]] bool is(std::initializer_list<const char*> types) const {
    return std::ranges::any_of(types, [&](const char* each) { return type_ == each; });
  }

  [[nodiscard]] Names names() const {
    if (type_ == "gpt2")
      return {{"token_embd", "transformer.wte"}, {"position_embd", "transformer.wpe"}, {"output_norm", "transformer.ln_f"},
              {"attn_norm", "transformer.h.{}.ln_1"}, {"ffn_norm", "transformer.h.{}.ln_2"},
              {"attn_qkv", "transformer.h.{}.attn.c_attn"}, {"attn_output", "transformer.h.{}.attn.c_proj"},
              {"ffn_up", "transformer.h.{}.mlp.c_fc"}, {"ffn_down", "transformer.h.{}.mlp.c_proj"}};
    if (type_ == "gpt_neox")
      return {{"token_embd", "gpt_neox.embed_in"}, {"output_norm", "gpt_neox.final_layer_norm"}, {"output", "embed_out"},
              {"attn_norm", "gpt_neox.layers.{}.input_layernorm"}, {"ffn_norm", "gpt_neox.layers.{}.post_attention_layernorm"},
              {"attn_qkv", "gpt_neox.layers.{}.attention.query_key_value"}, {"attn_output", "gpt_neox.layers.{}.attention.dense"},
              {"ffn_up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"}, {"ffn_down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"}};
    if (is({"falcon", "bloom"}))
      return {{"token_embd", "transformer.word_embeddings"}, {"token_embd_norm", "transformer.word_embeddings_layernorm"},
              {"output_norm", "transformer.ln_f"}, {"output", "lm_head"},
              {"attn_norm", type_ == "bloom" ? "transformer.h.{}.input_layernorm" : "transformer.h.{}.ln_mlp"},
              {"attn_norm_2", "transformer.h.{}.ln_attn"}, {"ffn_norm", "transformer.h.{}.post_attention_layernorm"},
              {"attn_qkv", "transformer.h.{}.self_attention.query_key_value"},
              {"attn_output", "transformer.h.{}.self_attention.dense"}, {"ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"},
              {"ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"}};
    if (type_ == "mpt")
      return {{"token_embd", "transformer.wte"}, {"output_norm", "transformer.norm_f"}, {"attn_norm", "transformer.blocks.{}.norm_1"},
              {"ffn_norm", "transformer.blocks.{}.norm_2"}, {"attn_qkv", "transformer.blocks.{}.attn.Wqkv"},
              {"attn_output", "transformer.blocks.{}.attn.out_proj"}, {"ffn_up", "transformer.blocks.{}.ffn.up_proj"},
              {"ffn_down", "transformer.blocks.{}.ffn.down_proj"}};
    if (type_ == "bert")
      return {{"token_embd", "bert.embeddings.word_embeddings"}, {"token_types", "bert.embeddings.token_type_embeddings"},
              {"position_embd", "bert.embeddings.position_embeddings"}, {"token_embd_norm", "bert.embeddings.LayerNorm"},
              {"attn_q", "bert.encoder.layer.{}.attention.self.query"}, {"attn_k", "bert.encoder.layer.{}.attention.self.key"},
              {"attn_v", "bert.encoder.layer.{}.attention.self.value"}, {"attn_output", "bert.encoder.layer.{}.attention.output.dense"},
              {"attn_output_norm", "bert.encoder.layer.{}.attention.output.LayerNorm"},
              {"ffn_up", "bert.encoder.layer.{}.intermediate.dense"}, {"ffn_down", "bert.encoder.layer.{}.output.dense"},
              {"layer_output_norm", "bert.encoder.layer.{}.output.LayerNorm"}};
    if (type_ == "nomic_bert")
      return {{"token_embd", "embeddings.word_embeddings"}, {"token_types", "embeddings.token_type_embeddings"},
              {"token_embd_norm", "emb_ln"}, {"attn_qkv", "encoder.layers.{}.attn.Wqkv"},
              {"attn_output", "encoder.layers.{}.attn.out_proj"}, {"attn_output_norm", "encoder.layers.{}.norm1"},
              {"ffn_up", "encoder.layers.{}.mlp.fc11"}, {"ffn_gate", "encoder.layers.{}.mlp.fc12"},
              {"ffn_down", "encoder.layers.{}.mlp.fc2"}, {"layer_output_norm", "encoder.layers.{}.norm2"}};
    Names names{{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"},
                {"attn_norm", "model.layers.{}.input_layernorm"}, {"ffn_norm", "model.layers.{}.post_attention_layernorm"},
                {"attn_q", "model.layers.{}.self_attn.q_proj"}, {"attn_k", "model.layers.{}.self_attn.k_proj"},
                {"attn_v", "model.layers.{}.self_attn.v_proj"}, {"attn_output", "model.layers.{}.self_attn.o_proj"},
                {"attn_q_norm", "model.layers.{}.self_attn.q_norm"}, {"attn_k_norm", "model.layers.{}.self_attn.k_norm"},
                {"ffn_gate", "model.layers.{}.mlp.gate_proj"}, {"ffn_up", "model.layers.{}.mlp.up_proj"},
                {"ffn_down", "model.layers.{}.mlp.down_proj"}, {"ffn_gate_inp", "model.layers.{}.mlp.gate"},
                {"ffn_gate_shexp", "model.layers.{}.mlp.shared_expert.gate_proj"},
                {"ffn_up_shexp", "model.layers.{}.mlp.shared_expert.up_proj"},
                {"ffn_down_shexp", "model.layers.{}.mlp.shared_expert.down_proj"},
                {"ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate"}};
    if (type_ == "mixtral") names["ffn_gate_inp"] = "model.layers.{}.block_sparse_moe.gate";
    if (is({"gemma2", "gemma3_text", "olmo2", "olmo3"})) {
      names["post_attention_norm"] = "model.layers.{}.post_attention_layernorm";
      names["ffn_norm"] = "model.layers.{}.pre_feedforward_layernorm";
      names["post_ffw_norm"] = "model.layers.{}.post_feedforward_layernorm";
    }
    if (type_ == "phi3") {
      names["attn_qkv"] = "model.layers.{}.self_attn.qkv_proj";
      names["ffn_up"] = "model.layers.{}.mlp.gate_up_proj";
    }
    if (type_ == "phi") {
      names["output_norm"] = "model.final_layernorm";
      names["attn_output"] = "model.layers.{}.self_attn.dense";
      names["ffn_up"] = "model.layers.{}.mlp.fc1";
      names["ffn_down"] = "model.layers.{}.mlp.fc2";
    }
    if (is_deepseek()) {
      for (const auto& [own, theirs] : Names{{"attn_q_a", "q_a_proj"}, {"attn_q_a_norm", "q_a_layernorm"}, {"attn_q_b", "q_b_proj"},
                                             {"attn_kv_a_mqa", "kv_a_proj_with_mqa"}, {"attn_kv_a_norm", "kv_a_layernorm"},
                                             {"attn_kv_b", "kv_b_proj"}})
        names[own] = "model.layers.{}.self_attn." + theirs;
      for (const char* part : {"gate", "up", "down"})
        names[std::string("ffn_") + part + "_shexp"] = std::string("model.layers.{}.mlp.shared_experts.") + part + "_proj";
    }
    if (type_ == "gpt_oss") {
      names["post_attention_norm"] = "model.layers.{}.post_attention_layernorm";
      names["ffn_gate_inp"] = "model.layers.{}.mlp.router";
    }
    if (type_ == "starcoder2") {
      names["ffn_up"] = "model.layers.{}.mlp.c_fc";
      names["ffn_down"] = "model.layers.{}.mlp.c_proj";
    }
    return names;
  }

  static std::string with_layer(std::string text, const std::string& layer) {
    if (const auto at = text.find("{}"); at != std::string::npos) text.replace(at, 2, layer);
    return text;
  }

  void put(const std::string& name, PlainTensor tensor) { CHECK(result_.emplace(name, std::move(tensor)).second); }

  void convert(const std::string& name, PlainTensor tensor) {
    std::string stem = name.substr(0, name.rfind('.'));
    const std::string ending = name.substr(name.rfind('.'));
    std::string layer;
    if (stem.starts_with("blk.")) {
      const auto dot = stem.find('.', 4);
      layer = stem.substr(4, dot - 4);
      stem = stem.substr(dot + 1);
    }
    if (stem == "rope_freqs" || stem.starts_with("rope_factors")) return;  // config.json has them
    if (type_ == "gpt_oss" && stem.ends_with("_exps")) return alternating(stem, layer, ending, tensor);
    if (stem.ends_with("_exps")) return experts(stem, layer, tensor);
    if (stem == "attn_sinks") return put("model.layers." + layer + ".self_attn.sinks", std::move(tensor));
    if (stem == "exp_probs_b") return put("model.layers." + layer + ".mlp.gate.e_score_correction_bias", std::move(tensor));
    if (stem == "attn_k_b" || stem == "attn_v_b") return latent_part(stem, layer, tensor);
    if (type_ == "granitemoe" && (stem == "ffn_gate_shexp" || stem == "ffn_up_shexp")) return shared_halves(stem, layer, tensor);
    if (type_ == "phi" && stem == "attn_qkv") return phi_thirds(layer, ending, tensor);
    const Names all = names();
    std::string target = with_layer(all.at(stem), layer) + ending;
    if (type_ == "granitemoe" && stem == "ffn_gate_inp") target = "model.layers." + layer + ".block_sparse_moe.router.layer.weight";
    if (type_ == "granitemoe" && stem == "ffn_down_shexp") target = "model.layers." + layer + ".shared_mlp.output_linear.weight";
    if (is({"llama", "mixtral", "granite", "granitemoe", "smollm3"}) && (stem == "attn_q" || stem == "attn_k"))
      tensor = to_halves(tensor, stem == "attn_q" ? heads_ : kv_heads_);
    if (type_ == "gpt2" && ending == ".weight" && tensor.shape.size() == 2 && !stem.ends_with("_embd")) tensor = transposed(tensor);
    if (is({"gpt_neox", "bloom"}) && stem == "attn_qkv") tensor = fused(tensor, heads_);
    if (type_ == "falcon" && stem == "attn_qkv") tensor = fused(tensor, kv_heads_);
    if (stem == "ffn_gate_inp_shexp") tensor.shape = {1, tensor.shape[0]};
    if (type_.starts_with("gemma") && stem.ends_with("norm"))
      for (float& value : tensor.values) value -= 1.0F;
    put(target, std::move(tensor));
  }

  /// transformers keeps the first elements of all pairs of a head together, then the second ones.
  static PlainTensor to_halves(const PlainTensor& tensor, std::int64_t heads) {
    const std::size_t size = tensor.rows() / static_cast<std::size_t>(heads);
    std::vector<std::size_t> order;
    for (std::size_t row = 0; row < tensor.rows(); ++row) {
      const std::size_t head = row / size, i = row % size;
      order.push_back(head * size + (i < size / 2 ? 2 * i : 2 * (i - size / 2) + 1));
    }
    return tensor.with_rows(order, tensor.shape);
  }
  /// [all q; all k; all v] to groups of query heads, one key, one value.
  [[nodiscard]] PlainTensor fused(const PlainTensor& tensor, std::int64_t kv_heads) const {
    const auto heads = static_cast<std::size_t>(heads_), groups = static_cast<std::size_t>(kv_heads);
    const std::size_t size = tensor.rows() / (heads + 2 * groups), per = heads / groups;
    std::vector<std::size_t> order;
    for (std::size_t group = 0; group < groups; ++group)
      for (std::size_t part = 0; part < per + 2; ++part)
        for (std::size_t i = 0; i < size; ++i) {
          const std::size_t head = part < per ? group * per + part : heads + (part - per) * groups + group;
          order.push_back(head * size + i);
        }
    return tensor.with_rows(order, tensor.shape);
  }
  static PlainTensor transposed(const PlainTensor& tensor) {
    PlainTensor result{{tensor.shape[1], tensor.shape[0]}, {}};
    for (std::size_t c = 0; c < tensor.columns(); ++c)
      for (std::size_t r = 0; r < tensor.rows(); ++r) result.values.push_back(tensor.values[r * tensor.columns() + c]);
    return result;
  }
  static PlainTensor slice(const PlainTensor& tensor, std::size_t first, std::size_t count, std::vector<std::int64_t> shape) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < count; ++i) order.push_back(first + i);
    return tensor.with_rows(order, std::move(shape));
  }
  void experts(const std::string& stem, const std::string& layer, const PlainTensor& tensor) {
    const auto rows = static_cast<std::size_t>(tensor.shape[1]);
    if (type_ == "granitemoe") {
      const std::string base = "model.layers." + layer + ".block_sparse_moe.";
      if (stem == "ffn_down_exps") return put(base + "output_linear.weight", tensor);
      // [experts, 2 * width, dim]: the gate's rows first
      auto& both = result_[base + "input_linear.weight"];
      if (both.values.empty()) {
        both.shape = {tensor.shape[0], 2 * tensor.shape[1], tensor.shape[2]};
        both.values.resize(2 * tensor.values.size());
      }
      const std::size_t length = rows * tensor.columns();
      for (std::size_t e = 0; e < static_cast<std::size_t>(tensor.shape[0]); ++e)
        std::copy_n(tensor.values.begin() + static_cast<std::ptrdiff_t>(e * length), length,
                    both.values.begin() + static_cast<std::ptrdiff_t>((2 * e + (stem == "ffn_up_exps" ? 1 : 0)) * length));
      return;
    }
    const std::string part = stem == "ffn_gate_exps" ? "gate_proj" : stem == "ffn_up_exps" ? "up_proj" : "down_proj";
    const std::map<std::string, std::string> mixtral{{"gate_proj", "w1"}, {"down_proj", "w2"}, {"up_proj", "w3"}};
    for (std::size_t e = 0; e < static_cast<std::size_t>(tensor.shape[0]); ++e) {
      const std::string base = type_ == "mixtral" ? ".block_sparse_moe.experts." : ".mlp.experts.";
      put("model.layers." + layer + base + std::to_string(e) + "." + (type_ == "mixtral" ? mixtral.at(part) : part) + ".weight",
          slice(tensor, e * rows, rows, {tensor.shape[1], tensor.shape[2]}));
    }
  }
  [[nodiscard]] bool is_deepseek() const { return type_.starts_with("deepseek"); }
  /// Of every head the rows of its keys, [rank, plain] there, then those of its values.
  void latent_part(const std::string& stem, const std::string& layer, const PlainTensor& tensor) {
    auto& whole = result_["model.layers." + layer + ".self_attn.kv_b_proj.weight"];
    const bool key = stem == "attn_k_b";
    const std::int64_t plain = integer("attention.key_length_mla") - integer("rope.dimension_count");
    const std::int64_t rank = integer("attention.kv_lora_rank"), rows = plain + integer("attention.value_length_mla");
    whole.shape = {heads_ * rows, rank};
    whole.values.resize(static_cast<std::size_t>(heads_ * rows * rank));
    for (std::int64_t h = 0; h < heads_; ++h)
      for (std::int64_t i = 0; i < (key ? plain : rows - plain); ++i)
        for (std::int64_t r = 0; r < rank; ++r)
          whole.values[static_cast<std::size_t>(((h * rows) + (key ? i : plain + i)) * rank + r)] =
              tensor.values[static_cast<std::size_t>(key ? (h * rank + r) * plain + i : (h * (rows - plain) + i) * rank + r)];
  }
  /// Experts of gpt-oss: [experts, inputs, outputs], outputs of the gate and of the other matrix alternate.
  void alternating(const std::string& stem, const std::string& layer, const std::string& ending, const PlainTensor& tensor) {
    const bool bias = ending == ".bias", down = stem == "ffn_down_exps";
    const std::string base = "model.layers." + layer + ".mlp.experts.";
    const std::int64_t experts = tensor.shape[0], outputs = tensor.shape[1], inputs = bias ? 1 : tensor.shape[2];
    const std::int64_t parts = down ? 1 : 2, part = stem == "ffn_up_exps" ? 1 : 0;
    auto& whole = result_[base + (down ? "down_proj" : "gate_up_proj") + (bias ? "_bias" : "")];
    whole.shape = {experts, inputs, parts * outputs};
    if (bias) whole.shape = {experts, parts * outputs};
    whole.values.resize(static_cast<std::size_t>(parts) * tensor.values.size());
    for (std::int64_t e = 0; e < experts; ++e)
      for (std::int64_t o = 0; o < outputs; ++o)
        for (std::int64_t i = 0; i < inputs; ++i)
          whole.values[static_cast<std::size_t>((e * inputs + i) * parts * outputs + parts * o + part)] =
              tensor.values[static_cast<std::size_t>((e * outputs + o) * inputs + i)];
  }
  /// The same in blocks of 32 inputs, outputs first: element 2 j of a block below element 2 j + 1 in byte j.
  void microscaled(const skald::TensorInfo& info) {
    const std::string layer = info.name.substr(4, info.name.find('.', 4) - 4);
    const bool down = info.name.find("down") != std::string::npos, up = info.name.find("up_exps") != std::string::npos;
    const std::string base = "model.layers." + layer + ".mlp.experts." + (down ? "down_proj" : "gate_up_proj");
    const std::int64_t blocks = info.dims[0] / 32, outputs = info.dims[1], experts = info.dims[2], parts = down ? 1 : 2;
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(info.bytes));
    gguf_.read(info, std::as_writable_bytes(std::span(bytes)));
    auto& codes = result_[base + "_blocks"];
    auto& scales = result_[base + "_scales"];
    codes.shape = {experts, parts * outputs, blocks, 16};
    scales.shape = {experts, parts * outputs, blocks};
    codes.raw.resize(static_cast<std::size_t>(experts * parts * outputs * blocks * 16));
    scales.raw.resize(codes.raw.size() / 16);
    for (std::int64_t row = 0; row < experts * outputs; ++row)
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::uint8_t* from = bytes.data() + (row * blocks + b) * 17;
        const auto to = static_cast<std::size_t>((parts * row + (up ? 1 : 0)) * blocks + b);
        scales.raw[to] = static_cast<std::byte>(from[0]);
        const auto element = [&](int i) { return from[1 + i % 16] >> (i / 16 * 4) & 15; };
        for (int j = 0; j < 16; ++j)
          codes.raw[16 * to + static_cast<std::size_t>(j)] = static_cast<std::byte>(element(2 * j) | element(2 * j + 1) << 4);
      }
  }
  void shared_halves(const std::string& stem, const std::string& layer, const PlainTensor& tensor) {
    auto& both = result_["model.layers." + layer + ".shared_mlp.input_linear.weight"];
    both.shape = {2 * tensor.shape[0], tensor.shape[1]};
    both.values.resize(2 * tensor.values.size());
    std::ranges::copy(tensor.values, both.values.begin() + static_cast<std::ptrdiff_t>(stem == "ffn_up_shexp" ? tensor.values.size() : 0));
  }
  void phi_thirds(const std::string& layer, const std::string& ending, const PlainTensor& tensor) {
    const std::size_t rows = tensor.rows() / 3;
    std::vector<std::int64_t> shape = tensor.shape;
    shape[0] /= 3;
    for (std::size_t i = 0; const char* name : {"q_proj", "k_proj", "v_proj"})
      put("model.layers." + layer + ".self_attn." + name + ending, slice(tensor, rows * i++, rows, shape));
  }

  [[nodiscard]] nlohmann::json config() const {
    nlohmann::json json{{"model_type", type_}};
    const bool gpt = is({"gpt2"}), bloom = is({"bloom"}), mpt = is({"mpt"});
    json[gpt ? "n_embd" : mpt ? "d_model" : "hidden_size"] = integer("embedding_length");
    json[gpt || bloom ? "n_layer" : mpt ? "n_layers" : "num_hidden_layers"] = integer("block_count");
    json[gpt || bloom ? "n_head" : mpt ? "n_heads" : "num_attention_heads"] = heads_;
    json[gpt ? "n_positions" : bloom ? "seq_length" : mpt ? "max_seq_len" : "max_position_embeddings"] = integer("context_length");
    if (is({"falcon"})) {
      json["num_kv_heads"] = kv_heads_;
      json["new_decoder_architecture"] = true;
    } else if (has("attention.head_count_kv") && !bloom && !mpt) {
      json["num_key_value_heads"] = kv_heads_;
    }
    if (!gpt && !bloom && !mpt && !is({"falcon"})) json["intermediate_size"] = integer("feed_forward_length");
    // Of falcon and bloom the width follows from the tensors.
    if (gpt) json["n_inner"] = integer("feed_forward_length");
    if (has("attention.layer_norm_rms_epsilon")) json["rms_norm_eps"] = number("attention.layer_norm_rms_epsilon");
    if (has("attention.layer_norm_epsilon"))
      json[gpt || bloom || is({"falcon"}) ? "layer_norm_epsilon" : is({"starcoder2"}) ? "norm_epsilon" : "layer_norm_eps"] =
          number("attention.layer_norm_epsilon");
    if (has("rope.freq_base")) json["rope_theta"] = number("rope.freq_base");
    if (has("attention.key_length")) json["head_dim"] = integer("attention.key_length");
    if (has("expert_count")) json[is({"mixtral", "granitemoe"}) ? "num_local_experts" : "num_experts"] = integer("expert_count");
    if (has("expert_used_count")) json["num_experts_per_tok"] = integer("expert_used_count");
    if (has("expert_feed_forward_length")) json["moe_intermediate_size"] = integer("expert_feed_forward_length");
    if (has("expert_shared_feed_forward_length"))
      json[is({"granitemoe"}) ? "shared_intermediate_size" : "shared_expert_intermediate_size"] = integer("expert_shared_feed_forward_length");
    if (type_ == "qwen3_moe") json["norm_topk_prob"] = true;
    if (has("attention.sliding_window") && !is({"phi3"})) json["sliding_window"] = integer("attention.sliding_window");
    const auto copy = [&](const char* key, const char* name) {
      if (has(key)) json[name] = number(key);
    };
    copy("attn_logit_softcapping", "attn_logit_softcapping");
    copy("final_logit_softcapping", "final_logit_softcapping");
    copy("attention.scale", "attention_multiplier");
    copy("embedding_scale", "embedding_multiplier");
    copy("residual_scale", "residual_multiplier");
    copy("logit_scale", is({"granite", "granitemoe"}) ? "logits_scaling" : "logit_scale");
    if (mpt) json["attn_config"] = {{"alibi", true}, {"alibi_bias_max", number("attention.max_alibi_bias")}, {"clip_qkv", number("attention.clamp_kqv")}};
    if (is({"gpt_neox", "stablelm"})) json["use_parallel_residual"] = gguf_.metadata().find_bool(arch_ + ".use_parallel_residual").value_or(type_ == "gpt_neox");
    if (is({"olmo3"})) {
      const auto pattern = gguf_.metadata().get_array<bool>(arch_ + ".attention.sliding_window_pattern");
      for (const bool window : pattern) json["layer_types"].push_back(window ? "sliding_attention" : "full_attention");
    }
    if (is_deepseek()) deepseek(json);
    if (type_ == "gpt_oss") {
      json["num_local_experts"] = integer("expert_count");
      json["intermediate_size"] = integer("expert_feed_forward_length");
      for (std::int64_t i = 0; i < integer("block_count"); ++i)
        json["layer_types"].push_back(i % 2 == 0 ? "sliding_attention" : "full_attention");
      if (result_.contains("model.layers.0.mlp.experts.down_proj_blocks"))
        json["quantization_config"] = {{"quant_method", "mxfp4"}};
    }
    rope(json);
    json["tie_word_embeddings"] = gguf_.find("output.weight") == nullptr;
    return json;
  }

  void deepseek(nlohmann::json& json) const {
    json.erase("head_dim");
    json["num_key_value_heads"] = heads_;
    const bool split = has("attention.key_length_mla");
    if (has("attention.q_lora_rank")) json["q_lora_rank"] = integer("attention.q_lora_rank");
    json["kv_lora_rank"] = integer("attention.kv_lora_rank");
    json["qk_rope_head_dim"] = integer("rope.dimension_count");
    json["qk_nope_head_dim"] = integer(split ? "attention.key_length_mla" : "attention.key_length") - integer("rope.dimension_count");
    json["v_head_dim"] = integer(split ? "attention.value_length_mla" : "attention.value_length");
    json["n_routed_experts"] = integer("expert_count");
    json["n_shared_experts"] = integer("expert_shared_count");
    json["first_k_dense_replace"] = integer("leading_dense_block_count");
    json["moe_intermediate_size"] = integer("expert_feed_forward_length");
    if (has("expert_weights_scale")) json["routed_scaling_factor"] = number("expert_weights_scale");
    json["norm_topk_prob"] = gguf_.metadata().find_bool(arch_ + ".expert_weights_norm").value_or(false);
    if (has("expert_group_count")) json["n_group"] = integer("expert_group_count");
    if (has("expert_group_used_count")) json["topk_group"] = integer("expert_group_used_count");
    const bool sigmoid = integer_or("expert_gating_func", 1) == 2;
    json["scoring_func"] = sigmoid ? "sigmoid" : "softmax";
    json["topk_method"] = integer_or("expert_group_count", 1) > 1 ? "noaux_tc" : "greedy";
  }

  void rope(nlohmann::json& json) const {
    const std::int64_t size = has("attention.key_length") ? integer("attention.key_length") : integer("embedding_length") / heads_;
    if (is_deepseek()) {
      // Stated as qk_rope_head_dim.
    } else if (has("rope.dimension_count") && integer("rope.dimension_count") != size)
      json["partial_rotary_factor"] = (static_cast<double>(integer("rope.dimension_count")) + 0.1) / static_cast<double>(size);
    else if (is({"phi", "stablelm", "gpt_neox"})) json["partial_rotary_factor"] = 1.0;
    if (type_ == "phi3") {
      json["original_max_position_embeddings"] = integer("rope.scaling.original_context_length");
      nlohmann::json scaling{{"type", "longrope"}};
      for (const char* which : {"long", "short"})
        scaling[which + std::string("_factor")] = plain_tensor(gguf_, gguf_.at("rope_factors_" + std::string(which) + ".weight")).values;
      json["rope_scaling"] = scaling;
    }
    if (gguf_.find("rope_freqs.weight"))
      json["rope_scaling"] = {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0},
                              {"original_max_position_embeddings", 64}};  // what its factors were made with
    const auto* kind = gguf_.metadata().find_string(arch_ + ".rope.scaling.type");
    if (!kind || *kind == "none") return;
    nlohmann::json scaling{{"rope_type", *kind}, {"factor", number("rope.scaling.factor")}};
    if (*kind == "yarn") scaling["original_max_position_embeddings"] = integer("rope.scaling.original_context_length");
    if (is_deepseek()) {
      scaling["mscale"] = scaling["mscale_all_dim"] = 10 * number("rope.scaling.yarn_log_multiplier");
      json["rope_scaling"] = scaling;
      return;
    }
    if (*kind == "yarn" && has("rope.scaling.attn_factor"))
      scaling["attention_factor"] = number("rope.scaling.attn_factor") * (1 + 0.1 * std::log(number("rope.scaling.factor")));
    json["rope_scaling"] = scaling;
  }

  const skald::ModelFile& gguf_;
  std::string type_;
  std::string arch_;
  std::int64_t heads_ = 0;
  std::int64_t kv_heads_ = 0;
  std::map<std::string, PlainTensor> result_;
};

}  // namespace skald_test
