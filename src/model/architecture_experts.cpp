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
  return experts;
}

void set_experts(ModelSpec& spec, const FfnSpec& ffn) {
  for (LayerSpec& layer : spec.layers) layer.ffn = ffn;
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

ModelSpec read_olmoe(HyperParameters& parameters) {
  ModelSpec spec = read_frame(parameters, RopeKind::half);
  FfnSpec ffn;
  ExpertsSpec& experts = ffn.experts.emplace(read_counts(parameters));
  experts.renormalize = false;
  ffn.width = parameters.integer("feed_forward_length", 1, limits::ffn_width);
  set_experts(spec, ffn);
  for (LayerSpec& layer : spec.layers) {
    layer.attention->q_norm = layer.attention->k_norm = spec.final_norm;
    layer.attention->qk_norm_scope = QkNormScope::projection;
  }
  return spec;
}

ModelSpec read_granitemoe(HyperParameters& parameters) {
  ModelSpec spec = read_frame(parameters, RopeKind::interleaved);
  FfnSpec ffn;
  ExpertsSpec& experts = ffn.experts.emplace(read_counts(parameters));
  ffn.width = parameters.integer("feed_forward_length", 1, limits::ffn_width);
  experts.shared_width = parameters.integer_or("expert_shared_feed_forward_length", 0, 0, limits::ffn_width);
  set_experts(spec, ffn);
  spec.embedding_scale = static_cast<float>(read_scale(parameters, "embedding_scale", 1.0));
  spec.logit_scale = static_cast<float>(1.0 / read_scale(parameters, "logit_scale", 1.0));
  const auto residual = static_cast<float>(read_scale(parameters, "residual_scale", 1.0));
  const float attention = static_cast<float>(parameters.number_or("attention.scale", 0.0, 0.0, 1e6));
  const bool rotates = parameters.flag_or("rope.scaling.finetuned", true);
  for (LayerSpec& layer : spec.layers) {
    layer.residual_scale = residual;
    if (attention > 0) layer.attention->scale = attention;
    if (!rotates) layer.attention->rope = -1;
  }
  return spec;
}

ModelSpec read_gpt_oss(HyperParameters& parameters) {
  ModelSpec spec = read_frame(parameters, RopeKind::half);
  FfnSpec ffn;
  ExpertsSpec& experts = ffn.experts.emplace(read_counts(parameters));
  const std::int64_t all = parameters.integer_or("feed_forward_length", 0, 0, limits::ffn_width);
  ffn.width = parameters.integer_or("expert_feed_forward_length", all, 1, limits::ffn_width);
  ffn.gate_bias = ffn.up_bias = ffn.down_bias = true;
  experts.gating = ExpertGating::softmax_selected;
  experts.renormalize = false;
  experts.router_bias = true;
  experts.gate_alpha = 1.702F;
  experts.gate_limit = 7.0F;
  set_experts(spec, ffn);
  const auto window = static_cast<std::int32_t>(parameters.integer("attention.sliding_window", 1, limits::context));
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    spec.layers[i].attention->sinks = true;
    if (i % 2 == 0) spec.layers[i].attention->window = window;
  }
  return spec;
}

namespace {

ExpertGating read_gating(HyperParameters& parameters) {
  // Files of the first models do not say it; their gating is the softmax.
  switch (parameters.integer_or("expert_gating_func", 1, 0, 3)) {
    case 2: return ExpertGating::sigmoid;
    case 3: return ExpertGating::softmax_selected;
    default: return ExpertGating::softmax;
  }
}

/// The latent attention of all layers, from keys alone.
AttentionSpec read_latent_attention(HyperParameters& parameters, ModelSpec& spec, const NormSpec& norm) {
  AttentionSpec attention;
  LatentSpec& latent = attention.latent.emplace();
  attention.heads = static_cast<std::int32_t>(parameters.integer("attention.head_count", 1, limits::heads));
  attention.kv_heads = 1;
  static_cast<void>(parameters.contains("attention.head_count_kv"));  // 1, or as many as heads in older files
  latent.norm = norm;
  latent.rank = static_cast<std::int32_t>(parameters.integer("attention.kv_lora_rank", 1, limits::head_dim / 2));
  latent.query_rank = static_cast<std::int32_t>(parameters.integer_or("attention.q_lora_rank", 0, 0, limits::dim));
  if (latent.query_rank > 0) latent.query_norm = norm;
  const bool split = parameters.contains("attention.key_length_mla");
  const auto length = [&](const char* own, const char* older) {
    return static_cast<std::int32_t>(parameters.integer(split ? own : older, 1, limits::head_dim));
  };
  attention.head_dim_k = length("attention.key_length_mla", "attention.key_length");
  attention.head_dim_v = length("attention.value_length_mla", "attention.value_length");
  RopeSpec rope = read_rope(parameters, RopeKind::interleaved, attention.head_dim_k, spec.context_length);
  latent.rope_dims = rope.dims;
  if (split) {
    const std::int64_t row = latent.rank + latent.rope_dims;
    static_cast<void>(parameters.integer_or("attention.key_length", row, row, row));
    static_cast<void>(parameters.integer_or("attention.value_length", latent.rank, latent.rank, latent.rank));
  }
  // The magnitude that YaRN gives queries and keys goes into the scale, with a factor of its own, and not into the
  // rotated part alone.
  const double stretch = rope.scaling == RopeScaling::none ? 0.0 : std::log(rope.factor);
  const double multiplier = parameters.number_or("rope.scaling.yarn_log_multiplier", 0.0, 0.0, 100.0);
  const double magnitude = rope.attention_factor * (1.0 + multiplier * stretch);
  attention.scale = static_cast<float>(magnitude * magnitude / std::sqrt(static_cast<double>(attention.head_dim_k)));
  rope.attention_factor = 1.0 / (1.0 + 0.1 * stretch);
  spec.ropes.push_back(rope);
  attention.rope = 0;
  return attention;
}

}  // namespace

ModelSpec read_deepseek2(HyperParameters& parameters) {
  ModelSpec spec;
  spec.architecture = parameters.architecture();
  spec.context_length = parameters.integer("context_length", 1, limits::context);
  spec.dim = parameters.integer("embedding_length", 1, limits::dim);
  const std::int64_t layers = read_layer_count(parameters);
  const NormSpec norm{.kind = NormKind::rms, .epsilon = parameters.epsilon("attention.layer_norm_rms_epsilon")};
  const AttentionSpec attention = read_latent_attention(parameters, spec, norm);
  spec.vocabulary = read_vocabulary_size(parameters);
  spec.final_norm = norm;
  spec.tied_head = parameters.file().find("output.weight") == nullptr;

  const std::int64_t dense = parameters.integer_or("leading_dense_block_count", 0, 0, layers);
  FfnSpec ffn;
  if (dense > 0) ffn.width = parameters.integer("feed_forward_length", 1, limits::ffn_width);
  else static_cast<void>(parameters.contains("feed_forward_length"));
  FfnSpec mixture;
  if (dense < layers) {
    ExpertsSpec& experts = mixture.experts.emplace(read_counts(parameters));
    mixture.width = parameters.integer("expert_feed_forward_length", 1, limits::ffn_width);
    experts.shared_width = mixture.width * parameters.integer_or("expert_shared_count", 0, 0, limits::experts);
    experts.gating = read_gating(parameters);
    experts.renormalize = parameters.flag_or("expert_weights_norm", false);
    experts.scale = read_scale(parameters, "expert_weights_scale", 1.0);
    experts.groups = static_cast<std::int32_t>(parameters.integer_or("expert_group_count", 1, 0, experts.count));
    experts.groups_used = static_cast<std::int32_t>(parameters.integer_or("expert_group_used_count", 1, 0, experts.count));
    // Files that do not say it are read as other engines read them.
    experts.group_best = static_cast<std::int32_t>(parameters.integer_or("expert_group_best_count", 2, 1, 2));
    if (experts.groups <= 1) experts.groups = experts.groups_used = 1;
  }
  for (std::int64_t i = 0; i < layers; ++i) {
    LayerSpec& layer = spec.layers.emplace_back();
    layer.attention_norm = norm;
    layer.ffn_norm = norm;
    layer.attention = attention;
    layer.ffn = i < dense ? ffn : mixture;
    if (i >= dense)
      layer.ffn->experts->selection_bias =
          parameters.file().find(fmt::format("blk.{}.exp_probs_b.bias", i)) != nullptr;
  }
  return spec;
}

}  // namespace skald::inline v0
