#include <nlohmann/json.hpp>

#include <skald/model/model_spec.hpp>

namespace skald::inline v0 {

namespace {

using Json = nlohmann::ordered_json;

Json json_of(const NormSpec& norm) {
  Json json{{"kind", to_string(norm.kind)}};
  if (norm.kind == NormKind::none) return json;
  json["epsilon"] = norm.epsilon;
  json["weight"] = norm.weight;
  json["bias"] = norm.bias;
  return json;
}

Json json_of(const RopeSpec& rope) {
  Json json{{"kind", to_string(rope.kind)},       {"dims", rope.dims},     {"freq_base", rope.freq_base},
            {"scaling", to_string(rope.scaling)}, {"factor", rope.factor}, {"attention_factor", rope.attention_factor}};
  if (rope.scaling == RopeScaling::yarn) {
    json["original_context"] = rope.original_context;
    json["extrapolation"] = rope.extrapolation;
    json["beta_fast"] = rope.beta_fast;
    json["beta_slow"] = rope.beta_slow;
  }
  if (!rope.factors.empty()) json["factors"] = rope.factors;
  return json;
}

Json json_of(const AttentionSpec& attention) {
  return {{"heads", attention.heads},
          {"kv_heads", attention.kv_heads},
          {"head_dim_k", attention.head_dim_k},
          {"head_dim_v", attention.head_dim_v},
          {"scale", attention.scale},
          {"softcap", attention.softcap},
          {"window", attention.window},
          {"q_bias", attention.q_bias},
          {"k_bias", attention.k_bias},
          {"v_bias", attention.v_bias},
          {"output_bias", attention.output_bias},
          {"q_norm", json_of(attention.q_norm)},
          {"k_norm", json_of(attention.k_norm)},
          {"rope", attention.rope}};
}

Json json_of(const FfnSpec& ffn) {
  return {{"width", ffn.width},     {"activation", to_string(ffn.activation)},
          {"gated", ffn.gated},     {"gate_bias", ffn.gate_bias},
          {"up_bias", ffn.up_bias}, {"down_bias", ffn.down_bias}};
}

Json json_of(const LayerSpec& layer) {
  Json json{{"attention_norm", json_of(layer.attention_norm)},
            {"attention", nullptr},
            {"ffn_norm", json_of(layer.ffn_norm)},
            {"ffn", nullptr},
            {"residual_scale", layer.residual_scale}};
  if (layer.attention) json["attention"] = json_of(*layer.attention);
  if (layer.ffn) json["ffn"] = json_of(*layer.ffn);
  return json;
}

}  // namespace

std::string to_json(const ModelSpec& spec) {
  Json json{{"architecture", spec.architecture},
            {"vocabulary", spec.vocabulary},
            {"dim", spec.dim},
            {"context_length", spec.context_length},
            {"embedding_scale", spec.embedding_scale},
            {"ropes", Json::array()},
            {"layers", Json::array()},
            {"final_norm", json_of(spec.final_norm)},
            {"tied_head", spec.tied_head},
            {"head_bias", spec.head_bias},
            {"logit_scale", spec.logit_scale},
            {"logit_softcap", spec.logit_softcap}};
  for (const RopeSpec& rope : spec.ropes) json["ropes"].push_back(json_of(rope));
  for (std::size_t first = 0; first < spec.layers.size();) {
    std::size_t last = first;
    while (last + 1 < spec.layers.size() && spec.layers[last + 1] == spec.layers[first]) ++last;
    Json range{{"first", first}, {"last", last}};
    range.update(json_of(spec.layers[first]));
    json["layers"].push_back(std::move(range));
    first = last + 1;
  }
  return json.dump();
}

}  // namespace skald::inline v0
