#include <skald/model/architecture.hpp>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <skald/core/error.hpp>

#include "model/architecture_parts.hpp"
#include "model/hyper_parameters.hpp"
#include "model/limits.hpp"

namespace skald::inline v0 {

namespace {

/// What tells the members of the Llama family apart.
struct DenseVariant {
  RopeKind rope = RopeKind::interleaved;
  bool qkv_bias = false;  ///< always there; otherwise used where the file has them
  bool qk_norm = false;   ///< RMS norm over each query and key head
  bool experts = false;   ///< may have experts instead of one network per layer
};

/// Mixtral's experts: softmax over all, the shares of the chosen add up to 1.
std::optional<ExpertsSpec> read_experts(HyperParameters& parameters, bool known) {
  const std::int64_t count = parameters.integer_or("expert_count", 0, 0, limits::experts);
  const std::int64_t most = std::min(count, limits::experts_used);
  if (count == 0) {
    static_cast<void>(parameters.contains("expert_used_count"));  // means nothing then
    return {};
  }
  if (!known)
    throw UnsupportedError(
        "model.read_spec",
        fmt::format("mixture-of-experts layers are not implemented for {}", parameters.architecture()),
        {.file = parameters.file().name(), .key = parameters.key("expert_count")});
  if (const TensorInfo* tensor = parameters.file().find("blk.0.ffn_gate.0.weight"))
    throw UnsupportedError("model.read_spec",
                           "a tensor for each expert is the older form of this format, which is not implemented; "
                           "convert the model again",
                           {.file = parameters.file().name(), .offset = tensor->offset, .tensor = tensor->name});
  return ExpertsSpec{.count = static_cast<std::int32_t>(count),
                     .used = static_cast<std::int32_t>(parameters.integer("expert_used_count", 1, most)),
                     .gating = ExpertGating::softmax,
                     .renormalize = true};
}

}  // namespace

std::int64_t read_layer_count(HyperParameters& parameters) {
  const std::int64_t layers = parameters.integer("block_count", 1, limits::layers);
  // Each layer has tensors of its own: this bounds what a false count can make us allocate.
  if (std::cmp_greater(layers, parameters.file().tensors().size()))
    parameters.fail("block_count", fmt::format("found {} layers, but the file has only {} tensors", layers,
                                               parameters.file().tensors().size()));
  for (const TensorInfo& tensor : parameters.file().tensors()) {
    constexpr std::string_view prefix = "blk.";
    if (!tensor.name.starts_with(prefix)) continue;
    std::int64_t index = 0;
    for (std::size_t i = prefix.size(); i < tensor.name.size() && index <= limits::layers; ++i) {
      const char c = tensor.name[i];
      if (c < '0' || c > '9') break;
      index = index * 10 + (c - '0');
    }
    if (index >= layers)
      parameters.file().fail(
          tensor, fmt::format("belongs to layer {}, but {} is {}", index, parameters.key("block_count"), layers));
  }
  return layers;
}

AttentionSizes read_attention_sizes(HyperParameters& parameters, std::int64_t layers, std::int64_t dim) {
  AttentionSizes sizes;
  sizes.heads = parameters.per_layer("attention.head_count", layers, 1, limits::heads);
  sizes.kv_heads = parameters.contains("attention.head_count_kv")
                       ? parameters.per_layer("attention.head_count_kv", layers, 1, limits::heads)
                       : sizes.heads;
  for (std::size_t i = 0; i < sizes.heads.size(); ++i)
    if (sizes.heads[i] % sizes.kv_heads[i] != 0)
      parameters.fail("attention.head_count_kv",
                      fmt::format("layer {}: {} query heads are not a multiple of {} KV heads", i, sizes.heads[i],
                                  sizes.kv_heads[i]));
  const std::int64_t heads = sizes.heads.front();
  const bool stated = parameters.contains("attention.key_length") && parameters.contains("attention.value_length");
  if (!stated && dim % heads != 0)
    parameters.fail("attention.head_count", fmt::format("{} heads do not divide the embedding length {}", heads, dim));
  if (!stated && heads > dim)
    parameters.fail("attention.head_count", "found more heads than the embedding has elements");
  sizes.head_dim_k = parameters.integer_or("attention.key_length", dim / heads, 1, limits::head_dim);
  sizes.head_dim_v = parameters.integer_or("attention.value_length", dim / heads, 1, limits::head_dim);
  if (sizes.head_dim_k > limits::head_dim || sizes.head_dim_v > limits::head_dim)
    parameters.fail("embedding_length", fmt::format("found {} for {} heads, allowed are heads of up to {} elements",
                                                    dim, heads, limits::head_dim));
  return sizes;
}

namespace {

/// Llama and its descendants: RMS norm before each part, rotary attention, gated SiLU network.
ModelSpec read_dense(HyperParameters& parameters, const DenseVariant& variant) {
  const std::optional<ExpertsSpec> experts = read_experts(parameters, variant.experts);
  const ModelFile& file = parameters.file();
  ModelSpec spec;
  spec.architecture = parameters.architecture();
  spec.context_length = parameters.integer("context_length", 1, limits::context);
  spec.dim = parameters.integer("embedding_length", 1, limits::dim);
  const std::int64_t layers = read_layer_count(parameters);
  const auto widths = parameters.per_layer("feed_forward_length", layers, 1, limits::ffn_width);
  const AttentionSizes sizes = read_attention_sizes(parameters, layers, spec.dim);
  const NormSpec norm{.kind = NormKind::rms, .epsilon = parameters.epsilon("attention.layer_norm_rms_epsilon")};
  spec.ropes.push_back(read_rope(parameters, variant.rope, sizes.head_dim_k, spec.context_length));
  spec.vocabulary = read_vocabulary_size(parameters);
  spec.final_norm = norm;
  spec.tied_head = file.find("output.weight") == nullptr;
  spec.head_bias = file.find("output.bias") != nullptr;

  spec.layers.reserve(static_cast<std::size_t>(layers));
  for (std::size_t i = 0; i < widths.size(); ++i) {
    const auto has = [&](std::string_view part) { return file.find(fmt::format("blk.{}.{}", i, part)) != nullptr; };
    LayerSpec& layer = spec.layers.emplace_back();
    layer.attention_norm = norm;
    layer.ffn_norm = norm;
    AttentionSpec& attention = layer.attention.emplace();
    attention.heads = static_cast<std::int32_t>(sizes.heads[i]);
    attention.kv_heads = static_cast<std::int32_t>(sizes.kv_heads[i]);
    attention.head_dim_k = static_cast<std::int32_t>(sizes.head_dim_k);
    attention.head_dim_v = static_cast<std::int32_t>(sizes.head_dim_v);
    attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sizes.head_dim_k)));
    attention.q_bias = variant.qkv_bias || has("attn_q.bias");
    attention.k_bias = variant.qkv_bias || has("attn_k.bias");
    attention.v_bias = variant.qkv_bias || has("attn_v.bias");
    attention.output_bias = has("attn_output.bias");
    if (variant.qk_norm) attention.q_norm = attention.k_norm = norm;
    attention.rope = 0;
    layer.ffn = FfnSpec{.width = widths[i],
                        .activation = Activation::silu,
                        .gated = true,
                        .gate_bias = has("ffn_gate.bias"),
                        .up_bias = has("ffn_up.bias"),
                        .down_bias = has("ffn_down.bias"),
                        .experts = experts};
  }
  return spec;
}

template <DenseVariant variant>
ModelSpec read_dense_as(HyperParameters& parameters) {
  return read_dense(parameters, variant);
}

const Architecture& find_architecture(const ModelFile& file) {
  const std::string& name = file.metadata().get_string("general.architecture");
  std::string known;
  for (const Architecture& each : architectures()) {
    if (each.name == name) return each;
    known += (known.empty() ? "" : ", ") + std::string(each.name);
  }
  throw UnsupportedError("model.read_spec",
                         fmt::format("architecture '{}' is not implemented; known are {}", printable(name), known),
                         {.file = file.name(), .key = "general.architecture"});
}

}  // namespace

std::span<const Architecture> architectures() noexcept {
  static constexpr Architecture table[] = {
      {"deepseek2", "DeepSeek V2 and V3, R1, Kimi K2", &read_deepseek2},
      {"gpt-oss", "gpt-oss 20B and 120B", &read_gpt_oss},
      {"granitemoe", "Granite 3 with experts", &read_granitemoe},
      {"llama", "Llama 1-3, Mistral, Mixtral, TinyLlama, SmolLM, Vicuna, Yi",
       &read_dense_as<DenseVariant{.experts = true}>},
      {"qwen2", "Qwen 1.5, 2 and 2.5", &read_dense_as<DenseVariant{.rope = RopeKind::half, .qkv_bias = true}>},
      {"qwen2moe", "Qwen 1.5 and 2 with experts", &read_qwen2moe},
      {"qwen3", "Qwen 3", &read_dense_as<DenseVariant{.rope = RopeKind::half, .qk_norm = true}>},
      {"qwen3moe", "Qwen 3 with experts", &read_qwen3moe},
  };
  return table;
}

SpecReading read_spec_and_rest(const ModelFile& file) {
  const Architecture& architecture = find_architecture(file);
  HyperParameters parameters(file, std::string(architecture.name));
  ModelSpec spec = architecture.read(parameters);
  validate(spec, file.name());
  return {std::move(spec), parameters.unread()};
}

ModelSpec read_spec(const ModelFile& file) { return read_spec_and_rest(file).spec; }

}  // namespace skald::inline v0
