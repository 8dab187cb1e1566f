#pragma once

// Broken variants of a valid model: the container is well-formed, but hyper-parameters, vocabulary or tensors
// contradict each other. Every one must be refused with an error that names the key or tensor.

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/model_parts.hpp"

namespace skald_test {

struct ModelDefect {
  std::string name;
  std::string named;  ///< key or tensor that the error must name
  TinyModel model;
};

/// Collects variants of one valid model.
class ModelDefectMaker {
 public:
  explicit ModelDefectMaker(const TinyModel& valid, std::string architecture)
      : valid_(valid), architecture_(std::move(architecture)) {}

  void add(const std::string& name, const std::string& named, const std::function<void(TinyModel&)>& change) {
    TinyModel model = valid_;
    change(model);
    defects_.push_back({name, named, std::move(model)});
  }
  /// Another value of the hyper-parameter `architecture.key`, which the error must name (or `named` instead).
  void value(const std::string& key, skald::MetadataValue value, const std::string& what, std::string named = {}) {
    const std::string full = architecture_ + "." + key;
    if (named.empty()) named = full;
    add(full + " = " + what, named, [&](TinyModel& model) { model.set(full, value); });
  }
  void missing(const std::string& key) {
    const std::string full = architecture_ + "." + key;
    add(full + " missing", full, [&](TinyModel& model) { model.erase(full); });
  }
  /// Another shape of a tensor.
  void shape(const std::string& tensor, std::vector<std::int64_t> dims) {
    add("shape of " + tensor, tensor, [&](TinyModel& model) { model.set_tensor(tensor, dims); });
  }
  [[nodiscard]] std::vector<ModelDefect> take() { return std::move(defects_); }

 private:
  TinyModel valid_;
  std::string architecture_;
  std::vector<ModelDefect> defects_;
};

namespace model_defect_detail {

using skald::MetadataArray;

inline void integers(ModelDefectMaker& make) {
  for (const char* key :
       {"block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count"}) {
    make.value(key, std::uint32_t{0}, "0");
    make.value(key, std::int32_t{-4}, "-4");
    make.value(key, std::uint64_t{1} << 63, "2^63");
    make.value(key, std::numeric_limits<std::uint32_t>::max(), "2^32 - 1");
    make.value(key, 4.0F, "a float");
    make.value(key, std::string("4"), "a string");
  }
  for (const char* key : {"block_count", "context_length", "embedding_length", "feed_forward_length",
                          "attention.head_count", "attention.layer_norm_rms_epsilon"})
    make.missing(key);
  make.value("block_count", std::uint32_t{1}, "one less than the file has", "blk.1.attn_norm.weight");
  make.value("block_count", std::uint32_t{3}, "one more than the file has", "blk.2.attn_norm.weight");
  make.value("block_count", std::uint32_t{65536}, "65536");
  make.value("attention.head_count", std::uint32_t{3}, "3, no multiple of the KV heads",
             "llama.attention.head_count_kv");
  make.value("attention.head_count", std::uint32_t{8}, "8", "blk.0.attn_q.weight");
  make.value("attention.head_count_kv", std::uint32_t{3}, "3");
  make.value("attention.head_count_kv", std::uint32_t{8}, "8, more than query heads");
  make.value("attention.head_count_kv", std::uint32_t{1}, "1", "blk.0.attn_k.weight");
  make.value("attention.key_length", std::uint32_t{16}, "16", "blk.0.attn_q.weight");
  make.value("attention.value_length", std::uint32_t{16}, "16", "blk.0.attn_v.weight");
  make.value("rope.dimension_count", std::uint32_t{7}, "7, odd");
  make.value("rope.dimension_count", std::uint32_t{10}, "10, above the head size");
  make.value("embedding_length", std::uint32_t{64}, "64", "token_embd.weight");
  make.value("feed_forward_length", std::uint32_t{96}, "96", "blk.0.ffn_gate.weight");
  const auto array = [](std::vector<std::int32_t> values) { return MetadataArray{std::move(values)}; };
  make.value("feed_forward_length", array({64}), "an array of one for two layers");
  make.value("feed_forward_length", array({64, 0}), "an array with 0");
  make.value("attention.head_count", array({4, 4, 4}), "an array of three for two layers");
  make.value("attention.head_count_kv", array({2, 3}), "an array with a bad second layer");
  make.value("attention.head_count_kv", MetadataArray{std::vector<float>{2, 2}}, "an array of floats");
}

inline void numbers(ModelDefectMaker& make) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const char* key :
       {"attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor"}) {
    make.value(key, nan, "NaN");
    make.value(key, infinity, "infinity");
    make.value(key, -infinity, "-infinity");
    make.value(key, 0.0F, "0");
    make.value(key, -1.0F, "-1");
    make.value(key, 3e38F, "3e38");
    make.value(key, std::uint32_t{1}, "an integer");
  }
  make.value("rope.freq_base", 1.0F, "1, whose logarithm is 0");
  for (const float bad : {nan, infinity, -1.0F, 3e38F, 1e-30F})
    make.value("attention.scale", bad, "scale " + std::to_string(bad));
  make.value("attention.causal", std::uint32_t{1}, "an integer");
  make.value("pooling_type", std::uint32_t{9}, "9");
  make.value("pooling_type", std::int32_t{-1}, "-1");
  make.value("attention.layer_norm_rms_epsilon", std::numeric_limits<double>::infinity(), "infinity in f64");
  const auto yarn = [&](const std::string& key, skald::MetadataValue value, const std::string& what) {
    make.add("yarn " + key + " = " + what, "llama." + key, [&](TinyModel& model) {
      model.set("llama.rope.scaling.type", std::string("yarn"));
      model.set("llama.rope.scaling.factor", 4.0F);
      model.set("llama." + key, value);
    });
  };
  yarn("rope.scaling.original_context_length", std::uint32_t{0}, "0");
  yarn("rope.scaling.original_context_length", std::uint64_t{1} << 63, "2^63");
  yarn("rope.scaling.yarn_beta_fast", 0.5F, "below beta_slow");
  yarn("rope.scaling.yarn_beta_fast", nan, "NaN");
  yarn("rope.scaling.yarn_beta_slow", 0.0F, "0");
  yarn("rope.scaling.yarn_ext_factor", -1.0F, "-1");
  yarn("rope.scaling.yarn_attn_factor", 0.0F, "0");
  make.value("rope.scaling.type", std::string("mystery"), "an unknown kind");
  make.value("rope.scaling.type", std::uint32_t{1}, "an integer");
}

inline void vocabulary(ModelDefectMaker& make) {
  make.value("vocab_size", std::uint32_t{271}, "one less than tokens");
  make.value("vocab_size", std::uint64_t{1} << 40, "2^40");
  make.shape("token_embd.weight", {32, tiny_vocabulary - 1});
  make.shape("output.weight", {32, tiny_vocabulary + 1});
  const auto set = [&](const std::string& key, skald::MetadataValue value, const std::string& what) {
    make.add(key + " = " + what, key, [&](TinyModel& model) { model.set(key, value); });
  };
  for (const char* role : {"bos", "eos", "unknown", "padding", "eot"}) {
    const std::string key = std::string("tokenizer.ggml.") + role + "_token_id";
    set(key, static_cast<std::uint32_t>(tiny_vocabulary), "the number of tokens");
    set(key, std::numeric_limits<std::uint32_t>::max(), "2^32 - 1");
    set(key, std::int32_t{-1}, "-1");
    set(key, std::string("1"), "a string");
  }
  set("tokenizer.ggml.tokens", MetadataArray{std::vector<std::int32_t>(tiny_vocabulary, 1)}, "integers");
  set("tokenizer.ggml.tokens", MetadataArray{skald::StringArray()}, "empty");
  set("tokenizer.ggml.scores", MetadataArray{std::vector<float>(3, 0.0F)}, "three scores");
  set("tokenizer.ggml.token_type", MetadataArray{std::vector<std::int32_t>(tiny_vocabulary, 77)}, "type 77");
  set("tokenizer.ggml.model", std::string("mystery"), "an unknown family");
}

inline void tensors(ModelDefectMaker& make) {
  for (const char* name :
       {"token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight", "blk.1.attn_q.weight",
        "blk.0.attn_k.weight", "blk.0.attn_v.weight", "blk.1.attn_output.weight", "blk.0.ffn_norm.weight",
        "blk.1.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"})
    make.add(std::string(name) + " missing", name, [&](TinyModel& model) { model.erase_tensor(name); });
  make.shape("blk.0.attn_q.weight", {32, 40});
  make.shape("blk.0.attn_q.weight", {32 * 32});
  make.shape("blk.1.attn_k.weight", {16, 32});  // transposed
  make.shape("blk.0.ffn_down.weight", {32, 64});
  make.shape("blk.0.ffn_down.weight", {64, 16, 2});
  make.shape("blk.1.ffn_norm.weight", {31});
  make.shape("blk.1.ffn_norm.weight", {32, 2});
  make.shape("output_norm.weight", {1});
  make.shape("blk.0.attn_q.bias", {31});
  make.shape("output.bias", {7});
  make.shape("rope_freqs.weight", {5});
  make.shape("rope_freqs.weight", {4});  // random values around 0: some are not positive
  const auto type = [&](const std::string& name, skald::DType type, std::vector<std::int64_t> dims) {
    make.add(name + " as " + std::string(to_string(type)), name,
             [&](TinyModel& model) { model.set_tensor(name, dims, type); });
  };
  type("blk.0.attn_norm.weight", skald::DType::q8_0, {32});
  type("blk.0.attn_norm.weight", skald::DType::i64, {32});
  type("blk.0.attn_q.weight", skald::DType::i64, {32, 32});
  type("blk.0.attn_q.weight", skald::DType::q8_1, {32, 32});
  const auto element = [&](const std::string& name, float value) {
    make.add(name + " holds " + std::to_string(value), name,
             [&](TinyModel& model) { std::memcpy(model.tensor(name).bytes.data() + 8, &value, sizeof(value)); });
  };
  element("output_norm.weight", std::numeric_limits<float>::quiet_NaN());
  element("blk.1.attn_norm.weight", std::numeric_limits<float>::infinity());
}

inline void architecture(ModelDefectMaker& make) {
  const auto set = [&](const std::string& key, skald::MetadataValue value, const std::string& what) {
    make.add(key + " = " + what, key, [&](TinyModel& model) { model.set(key, value); });
  };
  set("general.architecture", std::string("mystery"), "unknown");
  set("general.architecture", std::string(), "empty");
  set("general.architecture", std::uint32_t{1}, "an integer");
  set("llama.expert_count", std::uint32_t{1} << 20, "2^20");
  set("llama.expert_count", std::int32_t{-1}, "-1");
  make.add("general.architecture missing", "general.architecture",
           [](TinyModel& model) { model.erase("general.architecture"); });
}

}  // namespace model_defect_detail

/// All defects of the tiny llama model.
inline std::vector<ModelDefect> model_defects() {
  ModelDefectMaker make(tiny_model(), "llama");
  model_defect_detail::integers(make);
  model_defect_detail::numbers(make);
  model_defect_detail::vocabulary(make);
  model_defect_detail::tensors(make);
  model_defect_detail::architecture(make);
  return make.take();
}

}  // namespace skald_test
