// Readers of architectures with recurrent layers.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <skald/core/error.hpp>

#include "model/architecture_parts.hpp"
#include "model/limits.hpp"

namespace skald::inline v0 {

namespace {

/// What all of them have: sizes, the norm at the end, no layers yet.
struct Frame {
  ModelSpec spec;
  NormSpec norm;
  std::int64_t layers = 0;
};

Frame read_frame(HyperParameters& parameters) {
  Frame frame;
  ModelSpec& spec = frame.spec;
  spec.architecture = parameters.architecture();
  spec.context_length = parameters.integer("context_length", 1, limits::context);
  spec.dim = parameters.integer("embedding_length", 1, limits::dim);
  frame.layers = read_layer_count(parameters);
  spec.vocabulary = read_vocabulary_size(parameters);
  spec.tied_head = parameters.file().find("output.weight") == nullptr;
  return frame;
}

Frame read_rms_frame(HyperParameters& parameters) {
  Frame frame = read_frame(parameters);
  frame.norm = {.kind = NormKind::rms, .epsilon = parameters.epsilon("attention.layer_norm_rms_epsilon")};
  frame.spec.final_norm = frame.norm;
  return frame;
}

std::int32_t small(HyperParameters& parameters, std::string_view key, std::int64_t most) {
  return static_cast<std::int32_t>(parameters.integer(key, 1, most));
}

/// The keys ssm.*; what tensors tell is left to `see_tensors`.
RecurrentSpec read_state_space(HyperParameters& parameters, RecurrentKind kind, const NormSpec& norm) {
  RecurrentSpec mixer;
  mixer.kind = kind;
  mixer.width = parameters.integer("ssm.inner_size", 1, limits::dim);
  mixer.state_size = small(parameters, "ssm.state_size", limits::head_dim);
  mixer.taps = static_cast<std::int32_t>(parameters.integer("ssm.conv_kernel", 2, most_conv_taps));
  const std::int32_t rank = small(parameters, "ssm.time_step_rank", limits::dim);
  if (kind == RecurrentKind::selective_scan) {
    mixer.heads = static_cast<std::int32_t>(mixer.width);
    mixer.step_rank = rank;
    return mixer;
  }
  mixer.heads = rank;
  mixer.groups = small(parameters, "ssm.group_count", limits::heads);
  mixer.norm = norm;
  if (mixer.width % mixer.heads != 0)
    parameters.fail("ssm.time_step_rank", fmt::format("{} heads do not divide the width {}", mixer.heads, mixer.width));
  if (mixer.heads % mixer.groups != 0)
    parameters.fail("ssm.group_count", fmt::format("{} groups do not divide {} heads", mixer.groups, mixer.heads));
  return mixer;
}

/// Makes layer `index` one with this mixer and what its tensors tell.
void add_state_space(HyperParameters& parameters, LayerSpec& layer, std::int64_t index, const RecurrentSpec& mixer,
                     const NormSpec& norm) {
  layer.attention_norm = norm;
  layer.recurrent = mixer;
  layer.recurrent->conv_bias = parameters.has_tensor(index, "ssm_conv1d.bias");
  if (mixer.norm.kind != NormKind::none && !parameters.has_tensor(index, "ssm_norm.weight")) layer.recurrent->norm = {};
}

/// Attention of a hybrid network, without norms of queries and keys.
AttentionSpec read_attention(HyperParameters& parameters, const AttentionSizes& sizes, std::int64_t index) {
  const auto i = static_cast<std::size_t>(index);
  AttentionSpec attention;
  attention.heads = static_cast<std::int32_t>(sizes.heads[i]);
  attention.kv_heads = static_cast<std::int32_t>(sizes.kv_heads[i]);
  attention.head_dim_k = static_cast<std::int32_t>(sizes.head_dim_k);
  attention.head_dim_v = static_cast<std::int32_t>(sizes.head_dim_v);
  attention.q_bias = parameters.has_tensor(index, "attn_q.bias");
  attention.k_bias = parameters.has_tensor(index, "attn_k.bias");
  attention.v_bias = parameters.has_tensor(index, "attn_v.bias");
  attention.output_bias = parameters.has_tensor(index, "attn_output.bias");
  return attention;
}

float attention_scale(HyperParameters& parameters, const AttentionSizes& sizes) {
  const double size = static_cast<double>(std::max<std::int64_t>(1, sizes.head_dim_k));
  return static_cast<float>(read_scale(parameters, "attention.scale", 1.0 / std::sqrt(size)));
}

FfnSpec read_gated(HyperParameters& parameters, std::int64_t index, std::int64_t width) {
  FfnSpec ffn;
  ffn.width = width;
  ffn.gate_bias = parameters.has_tensor(index, "ffn_gate.bias");
  ffn.up_bias = parameters.has_tensor(index, "ffn_up.bias");
  ffn.down_bias = parameters.has_tensor(index, "ffn_down.bias");
  return ffn;
}

/// Keys of attention and feed-forward networks that converters write although there are none.
void ask_for_absent(HyperParameters& parameters) {
  for (const auto* key : {"feed_forward_length", "attention.head_count", "attention.head_count_kv"})
    static_cast<void>(parameters.contains(key));
}

}  // namespace

ModelSpec read_mamba(HyperParameters& parameters) {
  Frame frame = read_rms_frame(parameters);
  ask_for_absent(parameters);
  RecurrentSpec mixer = read_state_space(parameters, RecurrentKind::selective_scan, frame.norm);
  if (parameters.flag_or("ssm.dt_b_c_rms", false)) {
    mixer.step_norm = frame.norm;
    mixer.step_norm.weight = false;
  }
  for (std::int64_t i = 0; i < frame.layers; ++i)
    add_state_space(parameters, frame.spec.layers.emplace_back(), i, mixer, frame.norm);
  return std::move(frame.spec);
}

ModelSpec read_mamba2(HyperParameters& parameters) {
  Frame frame = read_rms_frame(parameters);
  ask_for_absent(parameters);
  const RecurrentSpec mixer = read_state_space(parameters, RecurrentKind::ssd, frame.norm);
  for (std::int64_t i = 0; i < frame.layers; ++i)
    add_state_space(parameters, frame.spec.layers.emplace_back(), i, mixer, frame.norm);
  return std::move(frame.spec);
}

ModelSpec read_jamba(HyperParameters& parameters) {
  Frame frame = read_rms_frame(parameters);
  const AttentionSizes sizes = read_attention_sizes(parameters, frame.layers, frame.spec.dim, 0);
  RecurrentSpec mixer = read_state_space(parameters, RecurrentKind::selective_scan, frame.norm);
  mixer.step_norm = frame.norm;
  const auto widths = parameters.per_layer("feed_forward_length", frame.layers, 1, limits::ffn_width);
  auto experts = read_experts(parameters, true);
  if (experts) experts->renormalize = false;
  const float scale = attention_scale(parameters, sizes);
  for (std::int64_t i = 0; i < frame.layers; ++i) {
    LayerSpec& layer = frame.spec.layers.emplace_back();
    if (sizes.kv_heads[static_cast<std::size_t>(i)] == 0) {
      add_state_space(parameters, layer, i, mixer, frame.norm);
    } else {
      layer.attention_norm = frame.norm;
      layer.attention = read_attention(parameters, sizes, i);
      layer.attention->scale = scale;
    }
    layer.ffn_norm = frame.norm;
    layer.ffn = read_gated(parameters, i, widths[static_cast<std::size_t>(i)]);
    if (parameters.has_tensor(i, "ffn_gate_inp.weight")) layer.ffn->experts = experts;
  }
  return std::move(frame.spec);
}

ModelSpec read_falcon_h1(HyperParameters& parameters) {
  Frame frame = read_rms_frame(parameters);
  const AttentionSizes sizes = read_attention_sizes(parameters, frame.layers, frame.spec.dim);
  frame.spec.ropes.push_back(read_rope(parameters, RopeKind::half, sizes.head_dim_k, frame.spec.context_length));
  const RecurrentSpec mixer = read_state_space(parameters, RecurrentKind::ssd, frame.norm);
  const auto widths = parameters.per_layer("feed_forward_length", frame.layers, 1, limits::ffn_width);
  const float scale = attention_scale(parameters, sizes);
  for (std::int64_t i = 0; i < frame.layers; ++i) {
    LayerSpec& layer = frame.spec.layers.emplace_back();
    add_state_space(parameters, layer, i, mixer, frame.norm);
    layer.attention = read_attention(parameters, sizes, i);
    layer.attention->scale = scale;
    layer.attention->rope = 0;
    layer.ffn_norm = frame.norm;
    layer.ffn = read_gated(parameters, i, widths[static_cast<std::size_t>(i)]);
  }
  return std::move(frame.spec);
}

ModelSpec read_granitehybrid(HyperParameters& parameters) {
  Frame frame = read_rms_frame(parameters);
  ModelSpec& spec = frame.spec;
  const AttentionSizes sizes = read_attention_sizes(parameters, frame.layers, spec.dim, 0);
  const RecurrentSpec mixer = read_state_space(parameters, RecurrentKind::ssd, frame.norm);
  const auto widths = parameters.per_layer("feed_forward_length", frame.layers, 1, limits::ffn_width);
  auto experts = read_experts(parameters, true);
  const std::int64_t shared = parameters.integer_or("expert_shared_feed_forward_length", 0, 0, limits::ffn_width);
  if (experts) experts->shared_width = shared;
  const bool rotates = parameters.flag_or("rope.scaling.finetuned", true) && sizes.head_dim_k > 0;
  static_cast<void>(parameters.contains("rope.freq_base"));
  static_cast<void>(parameters.contains("rope.dimension_count"));
  if (rotates)
    spec.ropes.push_back(read_rope(parameters, RopeKind::interleaved, sizes.head_dim_k, spec.context_length));
  spec.embedding_scale = static_cast<float>(read_scale(parameters, "embedding_scale", 1.0));
  spec.logit_scale = static_cast<float>(1.0 / read_scale(parameters, "logit_scale", 1.0));
  const auto residual = static_cast<float>(read_scale(parameters, "residual_scale", 1.0));
  const float scale = attention_scale(parameters, sizes);
  for (std::int64_t i = 0; i < frame.layers; ++i) {
    LayerSpec& layer = spec.layers.emplace_back();
    layer.residual_scale = residual;
    if (sizes.kv_heads[static_cast<std::size_t>(i)] == 0) {
      add_state_space(parameters, layer, i, mixer, frame.norm);
    } else {
      layer.attention_norm = frame.norm;
      layer.attention = read_attention(parameters, sizes, i);
      layer.attention->scale = scale;
      layer.attention->rope = rotates ? 0 : -1;
    }
    layer.ffn_norm = frame.norm;
    layer.ffn = read_gated(parameters, i, widths[static_cast<std::size_t>(i)]);
    layer.ffn->experts = experts;
  }
  return std::move(spec);
}

ModelSpec read_nemotron_h(HyperParameters& parameters) {
  Frame frame = read_rms_frame(parameters);
  const AttentionSizes sizes = read_attention_sizes(parameters, frame.layers, frame.spec.dim, 0);
  const RecurrentSpec mixer = read_state_space(parameters, RecurrentKind::ssd, frame.norm);
  const auto widths = parameters.per_layer("feed_forward_length", frame.layers, 0, limits::ffn_width);
  const float scale = attention_scale(parameters, sizes);
  for (const auto* key : {"rope.scaling.finetuned", "rope.dimension_count", "rope.freq_base"})
    static_cast<void>(parameters.contains(key));  // nothing rotates
  for (std::int64_t i = 0; i < frame.layers; ++i) {
    LayerSpec& layer = frame.spec.layers.emplace_back();
    const auto at = static_cast<std::size_t>(i);
    if (widths[at] > 0) {
      layer.ffn_norm = frame.norm;
      layer.ffn = read_gated(parameters, i, widths[at]);
      layer.ffn->gated = false;
      layer.ffn->activation = Activation::relu_squared;
    } else if (sizes.kv_heads[at] == 0) {
      add_state_space(parameters, layer, i, mixer, frame.norm);
    } else {
      layer.attention_norm = frame.norm;
      layer.attention = read_attention(parameters, sizes, i);
      layer.attention->scale = scale;
    }
  }
  return std::move(frame.spec);
}

ModelSpec read_lfm2(HyperParameters& parameters) {
  Frame frame = read_rms_frame(parameters);
  const AttentionSizes sizes = read_attention_sizes(parameters, frame.layers, frame.spec.dim, 0);
  if (sizes.head_dim_k > 0)
    frame.spec.ropes.push_back(read_rope(parameters, RopeKind::half, sizes.head_dim_k, frame.spec.context_length));
  const auto widths = parameters.per_layer("feed_forward_length", frame.layers, 1, limits::ffn_width);
  RecurrentSpec mixer;
  mixer.kind = RecurrentKind::short_convolution;
  mixer.width = frame.spec.dim;
  mixer.taps = static_cast<std::int32_t>(parameters.integer("shortconv.l_cache", 2, most_conv_taps));
  for (std::int64_t i = 0; i < frame.layers; ++i) {
    LayerSpec& layer = frame.spec.layers.emplace_back();
    layer.attention_norm = frame.norm;
    if (sizes.kv_heads[static_cast<std::size_t>(i)] == 0) {
      layer.recurrent = mixer;
      layer.recurrent->conv_bias = parameters.has_tensor(i, "shortconv.conv.bias");
    } else {
      layer.attention = read_attention(parameters, sizes, i);
      layer.attention->scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sizes.head_dim_k)));
      layer.attention->rope = 0;
      layer.attention->q_norm = layer.attention->k_norm = frame.norm;
    }
    layer.ffn_norm = frame.norm;
    layer.ffn = read_gated(parameters, i, widths[static_cast<std::size_t>(i)]);
  }
  return std::move(frame.spec);
}

namespace {

/// What both versions of RWKV have; the ranks are set by the callers.
Frame read_rwkv_frame(HyperParameters& parameters, RecurrentSpec& mixer) {
  Frame frame = read_frame(parameters);
  frame.spec.tied_head = false;
  frame.norm = {.kind = NormKind::layer, .epsilon = parameters.epsilon("attention.layer_norm_epsilon"), .bias = true};
  frame.spec.embedding_norm = frame.spec.final_norm = frame.norm;
  for (const auto* key : {"attention.head_count", "attention.head_count_kv", "token_shift_count"})
    static_cast<void>(parameters.contains(key));
  const std::int64_t size = parameters.integer("wkv.head_size", 1, most_wkv_size);
  if (frame.spec.dim % size != 0)
    parameters.fail("wkv.head_size",
                    fmt::format("found {}, which does not divide the embedding length {}", size, frame.spec.dim));
  mixer.width = frame.spec.dim;
  mixer.heads = static_cast<std::int32_t>(frame.spec.dim / size);
  // A constant of the published code: 1e-5 for each of 64 elements of a head.
  mixer.norm = {.kind = NormKind::layer, .epsilon = 64e-5F, .bias = true};
  return frame;
}

void add_rwkv_layer(Frame& frame, const RecurrentSpec& mixer, std::int64_t width) {
  LayerSpec& layer = frame.spec.layers.emplace_back();
  layer.attention_norm = layer.ffn_norm = frame.norm;
  layer.recurrent = mixer;
  FfnSpec& ffn = layer.ffn.emplace();
  ffn.width = width;
  ffn.gated = false;
  ffn.activation = Activation::relu_squared;
  ffn.token_shift = true;
  ffn.receptance = mixer.kind == RecurrentKind::rwkv6;
}

}  // namespace

ModelSpec read_rwkv6(HyperParameters& parameters) {
  RecurrentSpec mixer;
  mixer.kind = RecurrentKind::rwkv6;
  Frame frame = read_rwkv_frame(parameters, mixer);
  mixer.mix_rank = small(parameters, "time_mix_extra_dim", limits::dim);
  mixer.decay_rank = small(parameters, "time_decay_extra_dim", limits::dim);
  const std::int64_t halved = parameters.integer_or("rescale_every_n_layers", 0, 0, limits::layers);
  const auto widths = parameters.per_layer("feed_forward_length", frame.layers, 1, limits::ffn_width);
  for (std::int64_t i = 0; i < frame.layers; ++i) {
    add_rwkv_layer(frame, mixer, widths[static_cast<std::size_t>(i)]);
    if (halved > 0 && (i + 1) % halved == 0) frame.spec.layers.back().output_scale = 0.5F;
  }
  return std::move(frame.spec);
}

ModelSpec read_rwkv7(HyperParameters& parameters) {
  RecurrentSpec mixer;
  mixer.kind = RecurrentKind::rwkv7;
  Frame frame = read_rwkv_frame(parameters, mixer);
  mixer.decay_rank = small(parameters, "attention.decay_lora_rank", limits::dim);
  mixer.rate_rank = small(parameters, "attention.iclr_lora_rank", limits::dim);
  const std::int32_t values = small(parameters, "attention.value_residual_mix_lora_rank", limits::dim);
  mixer.gate_rank = static_cast<std::int32_t>(parameters.integer_or("attention.gate_lora_rank", 0, 0, limits::dim));
  const auto widths = parameters.per_layer("feed_forward_length", frame.layers, 1, limits::ffn_width);
  for (std::int64_t i = 0; i < frame.layers; ++i) {
    // The first layer's values are what the others mix in; its own matrices for that are in the file and unused.
    mixer.value_rank = i > 0 ? values : 0;
    add_rwkv_layer(frame, mixer, widths[static_cast<std::size_t>(i)]);
  }
  return std::move(frame.spec);
}

}  // namespace skald::inline v0
