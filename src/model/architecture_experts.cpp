// Readers of architectures whose layers have experts.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <skald/core/error.hpp>

#include "model/architecture_parts.hpp"
#include "model/limits.hpp"

namespace skald::inline v0 {

namespace {

/// What all of them have: sizes, rotary attention with RMS norms, and nothing yet after it.
ModelSpec read_frame(HyperParameters& parameters, RopeKind rope) {
  ModelSpec spec;
  spec.architecture = parameters.architecture();
  spec.context_length = parameters.integer("context_length", 1, limits::context);
  spec.dim = parameters.integer("embedding_length", 1, limits::dim);
  const std::int64_t layers = read_layer_count(parameters);
  const AttentionSizes sizes = read_attention_sizes(parameters, layers, spec.dim);
  const NormSpec norm{.kind = NormKind::rms, .epsilon = parameters.epsilon("attention.layer_norm_rms_epsilon")};
  spec.ropes.push_back(read_rope(parameters, rope, sizes.head_dim_k, spec.context_length));
  spec.vocabulary = read_vocabulary_size(parameters);
  spec.final_norm = norm;
  spec.tied_head = parameters.file().find("output.weight") == nullptr;
  for (std::size_t i = 0; i < static_cast<std::size_t>(layers); ++i) {
    const auto has = [&](std::string_view part) {
      return parameters.file().find(fmt::format("blk.{}.{}", i, part)) != nullptr;
    };
    LayerSpec& layer = spec.layers.emplace_back();
    layer.attention_norm = norm;
    layer.ffn_norm = norm;
    AttentionSpec& attention = layer.attention.emplace();
    attention.heads = static_cast<std::int32_t>(sizes.heads[i]);
    attention.kv_heads = static_cast<std::int32_t>(sizes.kv_heads[i]);
    attention.head_dim_k = static_cast<std::int32_t>(sizes.head_dim_k);
    attention.head_dim_v = static_cast<std::int32_t>(sizes.head_dim_v);
    attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sizes.head_dim_k)));
    attention.q_bias = has("attn_q.bias");
    attention.k_bias = has("attn_k.bias");
    attention.v_bias = has("attn_v.bias");
    attention.output_bias = has("attn_output.bias");
    attention.rope = 0;
  }
  return spec;
}

/// `expert_count` and `expert_used_count`, which these architectures always have.
ExpertsSpec read_counts(HyperParameters& parameters) {
  ExpertsSpec experts;
  experts.count = static_cast<std::int32_t>(parameters.integer("expert_count", 1, limits::experts));
  const std::int64_t most = std::min<std::int64_t>(experts.count, limits::experts_used);
  experts.used = static_cast<std::int32_t>(parameters.integer("expert_used_count", 1, most));
  if (const TensorInfo* tensor = parameters.file().find("blk.0.ffn_gate.0.weight"))
    throw UnsupportedError("model.read_spec",
                           "a tensor for each expert is the older form of this format, which is not implemented; "
                           "convert the model again",
                           {.file = parameters.file().name(), .offset = tensor->offset, .tensor = tensor->name});
  return experts;
}

void set_experts(ModelSpec& spec, const FfnSpec& ffn) {
  for (LayerSpec& layer : spec.layers) layer.ffn = ffn;
}

/// A factor of granite models: absent or 0 means 1.
float read_scale(HyperParameters& parameters, std::string_view name) {
  const double value = parameters.number_or(name, 0.0, 0.0, 1e6);
  return value == 0.0 ? 1.0F : static_cast<float>(value);
}

}  // namespace

ModelSpec read_qwen2moe(HyperParameters& parameters) {
  ModelSpec spec = read_frame(parameters, RopeKind::half);
  FfnSpec ffn;
  ExpertsSpec& experts = ffn.experts.emplace(read_counts(parameters));
  experts.renormalize = false;
  const std::int64_t all = parameters.integer_or("feed_forward_length", 0, 0, limits::ffn_width);
  ffn.width = parameters.integer_or("expert_feed_forward_length", all / experts.used, 1, limits::ffn_width);
  experts.shared_width = parameters.integer_or("expert_shared_feed_forward_length", all, 1, limits::ffn_width);
  experts.shared_gate = true;
  set_experts(spec, ffn);
  return spec;
}

ModelSpec read_qwen3moe(HyperParameters& parameters) {
  ModelSpec spec = read_frame(parameters, RopeKind::half);
  FfnSpec ffn;
  const ExpertsSpec& experts = ffn.experts.emplace(read_counts(parameters));
  const std::int64_t all = parameters.integer_or("feed_forward_length", 0, 0, limits::ffn_width);
  ffn.width = parameters.integer_or("expert_feed_forward_length", all / experts.used, 1, limits::ffn_width);
  set_experts(spec, ffn);
  for (LayerSpec& layer : spec.layers) layer.attention->q_norm = layer.attention->k_norm = spec.final_norm;
  return spec;
}

ModelSpec read_granitemoe(HyperParameters& parameters) {
  ModelSpec spec = read_frame(parameters, RopeKind::interleaved);
  FfnSpec ffn;
  ExpertsSpec& experts = ffn.experts.emplace(read_counts(parameters));
  ffn.width = parameters.integer("feed_forward_length", 1, limits::ffn_width);
  experts.shared_width = parameters.integer_or("expert_shared_feed_forward_length", 0, 0, limits::ffn_width);
  set_experts(spec, ffn);
  spec.embedding_scale = read_scale(parameters, "embedding_scale");
  spec.logit_scale = 1.0F / read_scale(parameters, "logit_scale");
  const float residual = read_scale(parameters, "residual_scale");
  const float attention = static_cast<float>(parameters.number_or("attention.scale", 0.0, 0.0, 1e6));
  const bool rotates = parameters.flag_or("rope.scaling.finetuned", true);
  for (LayerSpec& layer : spec.layers) {
    layer.residual_scale = residual;
    if (attention > 0) layer.attention->scale = attention;
    if (!rotates) layer.attention->rope = -1;
  }
  return spec;
}

}  // namespace skald::inline v0
