#include <functional>
#include <limits>
#include <string>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/model_spec.hpp>

#include "support/catch.hpp"
#include "support/model_parts.hpp"

using namespace skald;
using namespace skald_test;

namespace {

ModelSpec spec_of(const TinyModel& model) { return read_spec(read_gguf(source_of(model))); }

}  // namespace

TEST_CASE("model.read_spec: sizes may differ from layer to layer") {
  TinyModel model = tiny_model();
  model.set("llama.attention.head_count", MetadataArray{std::vector<std::uint32_t>{4, 2}});
  model.set("llama.attention.head_count_kv", MetadataArray{std::vector<std::uint64_t>{2, 1}});
  model.set("llama.feed_forward_length", MetadataArray{std::vector<std::int32_t>{64, 96}});
  model.set_tensor("blk.1.attn_q.weight", {32, 16});
  model.set_tensor("blk.1.attn_k.weight", {32, 8});
  model.set_tensor("blk.1.attn_v.weight", {32, 8});
  model.set_tensor("blk.1.attn_output.weight", {16, 32});
  model.set_tensor("blk.1.ffn_gate.weight", {32, 96});
  model.set_tensor("blk.1.ffn_up.weight", {32, 96});
  model.set_tensor("blk.1.ffn_down.weight", {96, 32});
  const ModelFile file = read_gguf(source_of(model));
  const ModelSpec spec = read_spec(file);
  CHECK(spec.layers[0].attention->heads == 4);
  CHECK(spec.layers[1].attention->heads == 2);
  CHECK(spec.layers[1].attention->kv_heads == 1);
  CHECK(spec.layers[1].ffn->width == 96);
  CHECK_NOTHROW(bind_tensors(file, spec));
}

TEST_CASE("model.read_spec: head sizes and KV heads have the defaults of the format") {
  TinyModel model = tiny_model({.heads = 4, .kv_heads = 4});
  for (const char* key : {"attention.head_count_kv", "attention.key_length", "attention.value_length",
                          "rope.dimension_count", "rope.freq_base", "vocab_size"})
    model.erase(std::string("llama.") + key);
  const ModelSpec spec = spec_of(model);
  CHECK(spec.layers[0].attention->kv_heads == 4);
  CHECK(spec.layers[0].attention->head_dim_k == 8);
  CHECK(spec.layers[0].attention->head_dim_v == 8);
  CHECK(spec.ropes[0].dims == 8);
  CHECK(spec.ropes[0].freq_base == 10000.0);
  CHECK(spec.vocabulary == tiny_vocabulary);
}

TEST_CASE("model.read_spec: a scaling factor without a type is linear, also under its old key") {
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    TinyModel model = tiny_model();
    model.set(key, 2.0F);
    const ModelSpec spec = spec_of(model);
    CHECK(spec.ropes[0].scaling == RopeScaling::linear);
    CHECK(spec.ropes[0].factor == 2.0);
  }
  TinyModel model = tiny_model();
  model.set("llama.rope.scaling.factor", 2.0F);
  model.set("llama.rope.scaling.type", std::string("none"));
  CHECK(spec_of(model).ropes[0].scaling == RopeScaling::none);
  CHECK(spec_of(model).ropes[0].factor == 1.0);
}

TEST_CASE("model.read_spec: reads every YaRN key") {
  TinyModel model = tiny_model();
  const std::string prefix = "llama.rope.scaling.";
  model.set(prefix + "type", std::string("yarn"));
  model.set(prefix + "factor", 4.0F);
  RopeSpec rope = spec_of(model).ropes[0];
  CHECK(rope.scaling == RopeScaling::yarn);
  CHECK(rope.factor == 4.0);
  CHECK(rope.original_context == 512);  // the context length where the file does not say
  CHECK(rope.extrapolation == 1.0);
  CHECK(rope.attention_factor == 1.0);
  CHECK(rope.beta_fast == 32.0);
  CHECK(rope.beta_slow == 1.0);
  model.set(prefix + "original_context_length", std::uint32_t{128});
  model.set(prefix + "attn_factor", 1.5F);
  model.set(prefix + "yarn_attn_factor", 2.0F);
  model.set(prefix + "yarn_ext_factor", 0.5F);
  model.set(prefix + "yarn_beta_fast", 16.0F);
  model.set(prefix + "yarn_beta_slow", 2.0F);
  rope = spec_of(model).ropes[0];
  CHECK(rope.original_context == 128);
  CHECK(rope.attention_factor == 3.0);
  CHECK(rope.extrapolation == 0.5);
  CHECK(rope.beta_fast == 16.0);
  CHECK(rope.beta_slow == 2.0);
}

TEST_CASE("model.read_spec: qwen2 needs its biases, qwen3 its head norms") {
  CHECK(spec_of(tiny_model({.architecture = "qwen2"})).layers[1].attention->k_bias);
  CHECK(spec_of(tiny_model({.architecture = "qwen3"})).layers[1].attention->k_norm.kind == NormKind::rms);
  const auto missing = [](const std::string& architecture, const std::string& tensor) {
    TinyModel model = tiny_model({.architecture = architecture});
    model.erase_tensor(tensor);
    const ModelFile file = read_gguf(source_of(model));
    try {
      static_cast<void>(bind_tensors(file, read_spec(file)));
      FAIL_CHECK("accepted without " << tensor);
    } catch (const FormatError& error) {
      CHECK(error.context().tensor == tensor);
    }
  };
  missing("qwen2", "blk.1.attn_k.bias");
  missing("qwen3", "blk.0.attn_q_norm.weight");
}

TEST_CASE("model.architectures: are listed in the order of their names, each once") {
  const auto table = architectures();
  REQUIRE(table.size() >= 3);
  for (std::size_t i = 1; i < table.size(); ++i) CHECK(table[i - 1].name < table[i].name);
}

TEST_CASE("model.tensor_bindings: no tensor is bound twice and every role has its own name") {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    const ModelFile file = read_gguf(source_of(tiny_model({.architecture = architecture})));
    const ModelSpec spec = read_spec(file);
    std::set<std::string> names;
    std::set<std::pair<Role, int>> roles;
    for (const TensorBinding& binding : tensor_bindings(spec)) {
      CHECK(names.insert(binding.name).second);
      CHECK(roles.emplace(binding.role, binding.layer).second);
    }
    CHECK(names.size() == file.tensors().size());
    CHECK(bind_tensors(file, spec).unused.empty());
  }
  std::set<std::string_view> role_names;
  for (std::int32_t i = 0; i < role_count; ++i) role_names.insert(to_string(static_cast<Role>(i)));
  CHECK(role_names.size() == static_cast<std::size_t>(role_count));
  CHECK(to_string(static_cast<Role>(role_count)) == "unknown");
  CHECK(to_string(Role::ffn_down_bias) == "ffn_down_bias");
}

TEST_CASE("model.validate: refuses every spec that contradicts itself") {
  const ModelSpec valid = spec_of(tiny_model());
  CHECK_NOTHROW(validate(valid));
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const auto refused = [&](const char* what, const std::function<void(ModelSpec&)>& change, bool in_layer = false) {
    ModelSpec spec = valid;
    change(spec);
    CAPTURE(what);
    try {
      validate(spec, "file.gguf");
      FAIL_CHECK("accepted");
    } catch (const FormatError& error) {
      CHECK(error.message().find(what) != std::string::npos);
      CHECK(error.context().file == "file.gguf");
      CHECK(error.context().layer.has_value() == in_layer);
    }
  };
  refused("vocabulary", [](ModelSpec& s) { s.vocabulary = 0; });
  refused("dim", [](ModelSpec& s) { s.dim = -1; });
  refused("context_length", [](ModelSpec& s) { s.context_length = INT64_MAX; });
  refused("embedding_scale", [](ModelSpec& s) { s.embedding_scale = nan; });
  refused("logit_scale", [](ModelSpec& s) { s.logit_scale = 0; });
  refused("logit_softcap", [](ModelSpec& s) { s.logit_softcap = -1; });
  refused("layers", [](ModelSpec& s) { s.layers.clear(); });
  refused("final_norm epsilon", [](ModelSpec& s) { s.final_norm.epsilon = 0; });
  refused("rope dims", [](ModelSpec& s) { s.ropes[0].dims = 3; });
  refused("rope freq_base", [](ModelSpec& s) { s.ropes[0].freq_base = 1; });
  refused("rope factors", [](ModelSpec& s) { s.ropes[0].factors = {1, 1, -1, 1}; });
  refused("3 factors", [](ModelSpec& s) { s.ropes[0].factors = {1, 1, 1}; });
  refused("no factors", [](ModelSpec& s) { s.ropes[0].scaling = RopeScaling::llama3; });
  refused("original_context", [](ModelSpec& s) { s.ropes[0].scaling = RopeScaling::yarn; });
  const auto attention = [&](const char* what, const std::function<void(AttentionSpec&)>& change) {
    refused(
        what, [&](ModelSpec& s) { change(*s.layers[1].attention); }, true);
  };
  attention("attention heads", [](AttentionSpec& a) { a.heads = 0; });
  attention("kv_heads", [](AttentionSpec& a) { a.kv_heads = 5; });
  attention("not a multiple", [](AttentionSpec& a) { a.kv_heads = 3; });
  attention("head_dim_k", [](AttentionSpec& a) { a.head_dim_k = 0; });
  attention("head_dim_v", [](AttentionSpec& a) { a.head_dim_v = 1 << 20; });
  attention("scale", [](AttentionSpec& a) { a.scale = nan; });
  attention("softcap", [](AttentionSpec& a) { a.softcap = -1; });
  attention("window", [](AttentionSpec& a) { a.window = -1; });
  attention("attention rope", [](AttentionSpec& a) { a.rope = 1; });
  attention("head size", [](AttentionSpec& a) { a.head_dim_k = 4; });
  attention("q_norm epsilon", [](AttentionSpec& a) { a.q_norm = {.kind = NormKind::rms, .epsilon = nan}; });
  refused(
      "FFN width", [](ModelSpec& s) { s.layers[0].ffn->width = 0; }, true);
  refused(
      "residual_scale", [](ModelSpec& s) { s.layers[0].residual_scale = nan; }, true);
  refused(
      "ffn_norm", [](ModelSpec& s) { s.layers[0].ffn_norm.epsilon = -1; }, true);
}

TEST_CASE("model.to_json: writes equal neighbouring layers once") {
  ModelSpec spec = spec_of(tiny_model({.layers = 4}));
  auto json = nlohmann::json::parse(to_json(spec));
  CHECK(json.at("architecture") == "llama");
  REQUIRE(json.at("layers").size() == 1);
  CHECK(json.at("layers")[0].at("first") == 0);
  CHECK(json.at("layers")[0].at("last") == 3);
  CHECK(json.at("layers")[0].at("attention").at("heads") == 4);
  CHECK(json.at("ropes")[0].at("kind") == "interleaved");
  CHECK(json.at("tied_head") == false);
  CHECK(json.at("final_norm").at("epsilon").get<float>() == 1e-5F);
  spec.layers[2].ffn.reset();
  json = nlohmann::json::parse(to_json(spec));
  REQUIRE(json.at("layers").size() == 3);
  CHECK(json.at("layers")[1].at("ffn").is_null());
  CHECK(json.at("layers")[1].at("first") == 2);
  CHECK(json.at("layers")[2].at("last") == 3);
  spec.architecture = "quote \" back \\ line \n";
  spec.logit_scale = std::numeric_limits<float>::infinity();
  json = nlohmann::json::parse(to_json(spec));
  CHECK(json.at("architecture") == spec.architecture);
  CHECK(json.at("logit_scale").is_null());
}
