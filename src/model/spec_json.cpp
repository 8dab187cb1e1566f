#include <skald/model/model_spec.hpp>

#include "model/json_text.hpp"

namespace skald::inline v0 {

namespace {

using json_text::Object;

std::string json_of(const NormSpec& norm) {
  Object json;
  json.add("kind", to_string(norm.kind));
  if (norm.kind != NormKind::none) json.add("epsilon", norm.epsilon).add("weight", norm.weight).add("bias", norm.bias);
  return json.text();
}

std::string json_of(const RopeSpec& rope) {
  Object json;
  json.add("kind", to_string(rope.kind))
      .add("dims", rope.dims)
      .add("freq_base", rope.freq_base)
      .add("scaling", to_string(rope.scaling))
      .add("factor", rope.factor)
      .add("attention_factor", rope.attention_factor);
  if (rope.scaling == RopeScaling::yarn)
    json.add("original_context", rope.original_context)
        .add("extrapolation", rope.extrapolation)
        .add("beta_fast", rope.beta_fast)
        .add("beta_slow", rope.beta_slow);
  if (!rope.whole_pairs) json.add("whole_pairs", false);
  if (!rope.factors.empty())
    json.add_raw("factors", json_text::array(rope.factors, [](float factor) { return json_text::of(factor); }));
  if (rope.scaling == RopeScaling::longrope)
    json.add("original_context", rope.original_context)
        .add_raw("long_factors",
                 json_text::array(rope.long_factors, [](float factor) { return json_text::of(factor); }));
  return json.text();
}

std::string json_of(const LatentSpec& latent) {
  return Object()
      .add("rank", latent.rank)
      .add("rope_dims", latent.rope_dims)
      .add_raw("norm", json_of(latent.norm))
      .add("query_rank", latent.query_rank)
      .add_raw("query_norm", json_of(latent.query_norm))
      .text();
}

std::string json_of(const AttentionSpec& attention) {
  Object json;
  json.add("heads", attention.heads)
      .add("kv_heads", attention.kv_heads)
      .add("head_dim_k", attention.head_dim_k)
      .add("head_dim_v", attention.head_dim_v)
      .add("scale", attention.scale)
      .add("softcap", attention.softcap)
      .add("window", attention.window)
      .add("q_bias", attention.q_bias)
      .add("k_bias", attention.k_bias)
      .add("v_bias", attention.v_bias)
      .add("output_bias", attention.output_bias)
      .add_raw("q_norm", json_of(attention.q_norm))
      .add_raw("k_norm", json_of(attention.k_norm))
      .add("qk_norm_scope", to_string(attention.qk_norm_scope))
      .add("rope", attention.rope)
      .add("sinks", attention.sinks)
      .add("clamp", attention.clamp)
      .add("alibi", attention.alibi)
      .add("causal", attention.causal);
  if (attention.relative_buckets > 0)
    json.add("relative_buckets", attention.relative_buckets)
        .add("relative_distance", attention.relative_distance)
        .add("relative_table", attention.relative_table);
  if (attention.latent) json.add_raw("latent", json_of(*attention.latent));
  return json.text();
}

std::string json_of(const ExpertsSpec& experts) {
  return Object()
      .add("count", experts.count)
      .add("used", experts.used)
      .add("gating", to_string(experts.gating))
      .add("renormalize", experts.renormalize)
      .add("scale", experts.scale)
      .add("router_bias", experts.router_bias)
      .add("selection_bias", experts.selection_bias)
      .add("groups", experts.groups)
      .add("groups_used", experts.groups_used)
      .add("group_best", experts.group_best)
      .add("gate_alpha", experts.gate_alpha)
      .add("gate_limit", experts.gate_limit)
      .add("shared_width", experts.shared_width)
      .add("shared_gate", experts.shared_gate)
      .text();
}

std::string json_of(const FfnSpec& ffn) {
  Object json;
  json.add("width", ffn.width)
      .add("activation", to_string(ffn.activation))
      .add("gated", ffn.gated)
      .add("gate_bias", ffn.gate_bias)
      .add("up_bias", ffn.up_bias)
      .add("down_bias", ffn.down_bias);
  if (ffn.stored_width != 0) json.add("stored_width", ffn.stored_width);
  if (ffn.token_shift) json.add("token_shift", true).add("receptance", ffn.receptance);
  if (ffn.experts) json.add_raw("experts", json_of(*ffn.experts));
  return json.text();
}

std::string json_of(const RecurrentSpec& mixer) {
  return Object()
      .add("kind", to_string(mixer.kind))
      .add("width", mixer.width)
      .add("heads", mixer.heads)
      .add("groups", mixer.groups)
      .add("state_size", mixer.state_size)
      .add("taps", mixer.taps)
      .add("conv_bias", mixer.conv_bias)
      .add("step_rank", mixer.step_rank)
      .add_raw("step_norm", json_of(mixer.step_norm))
      .add_raw("norm", json_of(mixer.norm))
      .add("mix_rank", mixer.mix_rank)
      .add("decay_rank", mixer.decay_rank)
      .add("rate_rank", mixer.rate_rank)
      .add("value_rank", mixer.value_rank)
      .add("gate_rank", mixer.gate_rank)
      .text();
}

std::string json_of(const LayerSpec& layer, std::size_t first, std::size_t last) {
  Object json;
  json.add("first", first)
      .add("last", last)
      .add_raw("attention_norm", json_of(layer.attention_norm))
      .add_raw("attention", layer.attention ? json_of(*layer.attention) : "null")
      .add("linear_attention", layer.linear_attention)
      .add_raw("attention_post_norm", json_of(layer.attention_post_norm))
      .add_raw("attention_residual_norm", json_of(layer.attention_residual_norm))
      .add_raw("ffn_norm", json_of(layer.ffn_norm))
      .add_raw("ffn", layer.ffn ? json_of(*layer.ffn) : "null")
      .add_raw("ffn_post_norm", json_of(layer.ffn_post_norm))
      .add_raw("ffn_residual_norm", json_of(layer.ffn_residual_norm))
      .add("parallel", layer.parallel)
      .add("residual_scale", layer.residual_scale);
  if (layer.recurrent) json.add_raw("recurrent", json_of(*layer.recurrent));
  if (layer.output_scale != 1.0F) json.add("output_scale", layer.output_scale);
  if (layer.cross) json.add_raw("cross_norm", json_of(layer.cross_norm)).add_raw("cross", json_of(*layer.cross));
  return json.text();
}

std::string json_of(const std::vector<LayerSpec>& layers) {
  std::string result = "[";
  for (std::size_t first = 0; first < layers.size();) {
    std::size_t last = first;
    while (last + 1 < layers.size() && layers[last + 1] == layers[first]) ++last;
    if (first > 0) result += ',';
    result += json_of(layers[first], first, last);
    first = last + 1;
  }
  return result + ']';
}

}  // namespace

std::string to_json(const ModelSpec& spec) {
  Object json;
  json.add("architecture", spec.architecture)
      .add("vocabulary", spec.vocabulary)
      .add("dim", spec.dim)
      .add("context_length", spec.context_length)
      .add("embedding_scale", spec.embedding_scale)
      .add("learned_positions", spec.learned_positions)
      .add("token_types", spec.token_types)
      .add_raw("embedding_norm", json_of(spec.embedding_norm))
      .add_raw("ropes", json_text::array(spec.ropes, [](const RopeSpec& rope) { return json_of(rope); }))
      .add_raw("layers", json_of(spec.layers))
      .add_raw("final_norm", json_of(spec.final_norm))
      .add("pooling", to_string(spec.pooling))
      .add("has_head", spec.has_head)
      .add("tied_head", spec.tied_head)
      .add("head_bias", spec.head_bias)
      .add("logit_scale", spec.logit_scale)
      .add("logit_softcap", spec.logit_softcap);
  if (spec.has_encoder())
    json.add_raw("encoder", json_of(spec.encoder))
        .add_raw("encoder_norm", json_of(spec.encoder_norm))
        .add("decoder_start", spec.decoder_start);
  if (spec.classifier)
    json.add_raw("classifier",
                 Object()
                     .add("dense", spec.classifier->dense)
                     .add("output", spec.classifier->output)
                     .add_raw("labels", json_text::array(spec.classifier->labels,
                                                         [](const std::string& label) { return json_text::of(label); }))
                     .text());
  return json.text();
}

}  // namespace skald::inline v0
