#include <skald/model/model_spec.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include <skald/core/error.hpp>

#include "model/limits.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::array<std::string_view, role_count> role_names = {"token_embedding",
                                                                 "head",
                                                                 "head_bias",
                                                                 "final_norm",
                                                                 "final_norm_bias",
                                                                 "rope_factors",
                                                                 "attention_norm",
                                                                 "attention_norm_bias",
                                                                 "query",
                                                                 "query_bias",
                                                                 "key",
                                                                 "key_bias",
                                                                 "value",
                                                                 "value_bias",
                                                                 "query_norm",
                                                                 "key_norm",
                                                                 "attention_output",
                                                                 "attention_output_bias",
                                                                 "ffn_norm",
                                                                 "ffn_norm_bias",
                                                                 "ffn_gate",
                                                                 "ffn_gate_bias",
                                                                 "ffn_up",
                                                                 "ffn_up_bias",
                                                                 "ffn_down",
                                                                 "ffn_down_bias",
                                                                 "expert_router",
                                                                 "expert_gate",
                                                                 "expert_up",
                                                                 "expert_down",
                                                                 "expert_router_bias",
                                                                 "expert_selection_bias",
                                                                 "expert_gate_bias",
                                                                 "expert_up_bias",
                                                                 "expert_down_bias",
                                                                 "shared_router",
                                                                 "shared_gate",
                                                                 "shared_up",
                                                                 "shared_down",
                                                                 "attention_sinks",
                                                                 "query_down",
                                                                 "query_down_norm",
                                                                 "latent_down",
                                                                 "latent_norm",
                                                                 "latent_key",
                                                                 "latent_value",
                                                                 "query_norm_bias",
                                                                 "key_norm_bias",
                                                                 "attention_post_norm",
                                                                 "attention_post_norm_bias",
                                                                 "attention_residual_norm",
                                                                 "attention_residual_norm_bias",
                                                                 "ffn_post_norm",
                                                                 "ffn_post_norm_bias",
                                                                 "ffn_residual_norm",
                                                                 "ffn_residual_norm_bias",
                                                                 "position_embedding",
                                                                 "token_type_embedding",
                                                                 "embedding_norm",
                                                                 "embedding_norm_bias",
                                                                 "rope_long_factors",
                                                                 "recurrent_in",
                                                                 "conv_weight",
                                                                 "conv_bias",
                                                                 "step_input",
                                                                 "step_norm",
                                                                 "b_norm",
                                                                 "c_norm",
                                                                 "step",
                                                                 "step_bias",
                                                                 "scan_decay",
                                                                 "scan_skip",
                                                                 "recurrent_norm",
                                                                 "recurrent_norm_bias",
                                                                 "recurrent_output",
                                                                 "mix_first",
                                                                 "mix_down",
                                                                 "mix_up",
                                                                 "mix",
                                                                 "receptance",
                                                                 "time_key",
                                                                 "time_value",
                                                                 "time_gate",
                                                                 "time_bonus",
                                                                 "decay_base",
                                                                 "decay_down",
                                                                 "decay_up",
                                                                 "rate_base",
                                                                 "rate_down",
                                                                 "rate_up",
                                                                 "first_value_base",
                                                                 "first_value_down",
                                                                 "first_value_up",
                                                                 "gate_down",
                                                                 "gate_up",
                                                                 "key_scale",
                                                                 "rate_scale",
                                                                 "channel_mix",
                                                                 "channel_receptance_mix",
                                                                 "channel_receptance",
                                                                 "relative_bias",
                                                                 "encoder_norm",
                                                                 "cross_norm",
                                                                 "cross_query",
                                                                 "cross_key",
                                                                 "cross_value",
                                                                 "cross_output",
                                                                 "classifier_dense",
                                                                 "classifier_dense_bias",
                                                                 "classifier_output",
                                                                 "classifier_output_bias"};

template <class Enum, std::size_t N>
std::string_view name_of(const std::array<std::string_view, N>& names, Enum value) noexcept {
  const auto index = static_cast<std::size_t>(value);
  return index < N ? names[index] : "unknown";
}

// Checks of one spec; remembers the layer for messages.
class Checker {
 public:
  Checker(const ModelSpec& spec, std::string_view file) : spec_(spec), file_(file) {}

  void run() {
    within("vocabulary", spec_.vocabulary, 1, limits::vocabulary);
    within("dim", spec_.dim, 1, limits::dim);
    within("context_length", spec_.context_length, 1, limits::context);
    positive("embedding_scale", spec_.embedding_scale);
    positive("logit_scale", spec_.logit_scale);
    not_negative("logit_softcap", spec_.logit_softcap);
    norm("final_norm", spec_.final_norm);
    norm("embedding_norm", spec_.embedding_norm);
    within("token_types", spec_.token_types, 0, limits::vocabulary);
    for (const RopeSpec& each : spec_.ropes) rope(each);
    within("layers", static_cast<std::int64_t>(spec_.layers.size()), 1, limits::layers);
    for (std::size_t i = 0; i < spec_.layers.size(); ++i) {
      layer_ = static_cast<int>(i);
      layer(spec_.layers[i]);
    }
    encoder();
    classifier();
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw FormatError("model.spec", message, {.file = std::string(file_), .layer = layer_});
  }
  void within(std::string_view what, std::int64_t value, std::int64_t min, std::int64_t max) const {
    if (value < min || value > max) fail(fmt::format("{} is {}, allowed is {} to {}", what, value, min, max));
  }
  void within_real(std::string_view what, double value, double min, double max) const {
    if (!(value >= min && value <= max)) fail(fmt::format("{} is {}, allowed is {} to {}", what, value, min, max));
  }
  void positive(std::string_view what, float value) const {
    if (!std::isfinite(value) || value <= 0) fail(fmt::format("{} is {}, allowed is a positive number", what, value));
  }
  void not_negative(std::string_view what, float value) const {
    if (!std::isfinite(value) || value < 0)
      fail(fmt::format("{} is {}, allowed is 0 or a positive number", what, value));
  }

  void norm(std::string_view what, const NormSpec& norm) const {
    if (norm.kind == NormKind::none) return;
    if (norm.kind != NormKind::rms && norm.kind != NormKind::layer) fail(fmt::format("{} is of an unknown kind", what));
    if (!(norm.epsilon > 0 && norm.epsilon <= limits::epsilon))
      fail(fmt::format("{} epsilon is {}, allowed is above 0 to {}", what, norm.epsilon, limits::epsilon));
  }

  void rope(const RopeSpec& rope) const {
    if (rope.kind == RopeKind::none) return;
    within("rope dims", rope.dims, 2, limits::head_dim);
    if (rope.dims % 2 != 0) fail(fmt::format("rope dims is {}, allowed is an even number", rope.dims));
    within_real("rope freq_base", rope.freq_base, limits::min_freq_base, limits::max_freq_base);
    within_real("rope factor", rope.factor, limits::min_rope_factor, limits::max_rope_factor);
    within_real("rope attention_factor", rope.attention_factor, limits::min_attention_factor,
                limits::max_attention_factor);
    if (rope.scaling == RopeScaling::yarn) {
      within("rope original_context", rope.original_context, 1, limits::context);
      within_real("rope extrapolation", rope.extrapolation, 0, 1);
      within_real("rope beta_slow", rope.beta_slow, limits::min_beta, limits::max_beta);
      within_real("rope beta_fast", rope.beta_fast, rope.beta_slow, limits::max_beta);
    }
    if (rope.scaling == RopeScaling::llama3 && rope.factors.empty()) fail("rope scaling llama3 has no factors");
    if (rope.scaling == RopeScaling::longrope) {
      within("rope original_context", rope.original_context, 1, limits::context);
      if (rope.factors.empty() || rope.long_factors.empty()) fail("rope scaling longrope lacks factors");
    }
    for (const auto* factors : {&rope.factors, &rope.long_factors}) {
      if (!factors->empty() && factors->size() != static_cast<std::size_t>(rope.dims / 2))
        fail(fmt::format("rope has {} factors, allowed is {}, half of its dims", factors->size(), rope.dims / 2));
      for (const float factor : *factors)
        within_real("rope factors", static_cast<double>(factor), limits::min_rope_factor, limits::max_rope_factor);
    }
  }

  void attention(const AttentionSpec& attention) const {
    within("attention heads", attention.heads, 1, limits::heads);
    within("attention kv_heads", attention.kv_heads, 1, attention.heads);
    if (attention.heads % attention.kv_heads != 0)
      fail(fmt::format("{} attention heads are not a multiple of {} KV heads", attention.heads, attention.kv_heads));
    within("attention head_dim_k", attention.head_dim_k, 1, limits::head_dim);
    within("attention head_dim_v", attention.head_dim_v, 1, limits::head_dim);
    positive("attention scale", attention.scale);
    not_negative("attention softcap", attention.softcap);
    within("attention window", attention.window, 0, limits::context);
    if (attention.latent) latent(attention);
    not_negative("attention clamp", attention.clamp);
    within_real("attention alibi", static_cast<double>(attention.alibi), 0, limits::max_alibi);
    norm("q_norm", attention.q_norm);
    norm("k_norm", attention.k_norm);
    within("attention rope", attention.rope, -1, static_cast<std::int64_t>(spec_.ropes.size()) - 1);
    if (attention.rope >= 0) {
      const RopeSpec& rope = spec_.ropes[static_cast<std::size_t>(attention.rope)];
      if (rope.kind != RopeKind::none && rope.dims > attention.head_dim_k)
        fail(fmt::format("rope dims is {}, allowed is up to the head size {}", rope.dims, attention.head_dim_k));
    }
  }

  void latent(const AttentionSpec& attention) const {
    const LatentSpec& latent = *attention.latent;
    within("latent rank", latent.rank, 1, limits::head_dim);
    within("latent rope_dims", latent.rope_dims, 2, attention.head_dim_k - 1);
    within("latent query_rank", latent.query_rank, 0, limits::dim);
    within("attention kv_heads", attention.kv_heads, 1, 1);
    norm("latent norm", latent.norm);
    norm("latent query_norm", latent.query_norm);
    if (attention.rope < 0 || attention.rope >= static_cast<std::int32_t>(spec_.ropes.size()) ||
        spec_.ropes[static_cast<std::size_t>(attention.rope)].dims != latent.rope_dims)
      fail("the rotary embedding of latent attention has other dims than its rotated part");
    if (attention.q_bias || attention.k_bias || attention.v_bias || attention.q_norm.kind != NormKind::none ||
        attention.k_norm.kind != NormKind::none)
      fail("latent attention with biases or norms of heads is not implemented");
  }

  void layer(const LayerSpec& layer) const {
    norm("attention_norm", layer.attention_norm);
    norm("attention_post_norm", layer.attention_post_norm);
    norm("attention_residual_norm", layer.attention_residual_norm);
    norm("ffn_norm", layer.ffn_norm);
    norm("ffn_post_norm", layer.ffn_post_norm);
    norm("ffn_residual_norm", layer.ffn_residual_norm);
    positive("residual_scale", layer.residual_scale);
    positive("output_scale", layer.output_scale);
    if (layer.attention && layer.linear_attention) fail("a layer has attention and a linear layer in its place");
    if (layer.parallel && layer.attention_residual_norm.kind != NormKind::none)
      fail("a parallel layer has no norm between attention and the feed-forward network");
    if (layer.parallel && layer.ffn && layer.ffn->experts) fail("experts parallel to attention are not implemented");
    if (layer.attention) attention(*layer.attention);
    if (layer.recurrent) recurrent(layer);
    if (!layer.ffn) return;
    if (layer.ffn->token_shift && (layer.ffn->gated || layer.ffn->experts || layer.parallel ||
                                   layer.ffn_post_norm.kind != NormKind::none || layer.ffn->stored_width != 0))
      fail("a feed-forward network with token shift has no gate, no experts, no post norm, no share of its width and is not "
           "parallel to the mixer");
    if (layer.ffn->receptance && !layer.ffn->token_shift) fail("a receptance without token shift");
    within("FFN width", layer.ffn->width, 1, limits::ffn_width);
    if (layer.ffn->stored_width != 0)
      within("FFN stored_width", layer.ffn->stored_width, layer.ffn->width, limits::ffn_width);
    if (layer.ffn->experts) experts(*layer.ffn);
  }

  void recurrent(const LayerSpec& layer) const {
    const RecurrentSpec& mixer = *layer.recurrent;
    if (mixer.kind > RecurrentKind::rwkv7) fail("the recurrent mixer is of an unknown kind");
    if (layer.linear_attention || layer.attention_post_norm.kind != NormKind::none ||
        layer.attention_residual_norm.kind != NormKind::none)
      fail("a recurrent layer has no linear layer and no norm after the mixer");
    if (layer.attention && !layer.attention->causal) fail("a recurrent mixer beside attention that is not causal");
    norm("step_norm", mixer.step_norm);
    norm("recurrent norm", mixer.norm);
    const bool scans = mixer.kind == RecurrentKind::selective_scan || mixer.kind == RecurrentKind::ssd;
    within("recurrent width", mixer.width, 1, limits::dim);
    if (!scans) within("recurrent width", mixer.width, spec_.dim, spec_.dim);
    if (mixer.kind != RecurrentKind::short_convolution) within("recurrent heads", mixer.heads, 1, mixer.width);
    if (mixer.heads > 0 && mixer.width % mixer.heads != 0)
      fail(fmt::format("{} recurrent heads do not divide the width {}", mixer.heads, mixer.width));
    if (!mixer.rwkv()) within("convolution taps", mixer.taps, 2, most_conv_taps);
    if (scans) {
      within("state_size", mixer.state_size, 1, limits::head_dim);
      within("recurrent groups", mixer.groups, 1, mixer.heads);
      if (mixer.heads % mixer.groups != 0 || mixer.width % mixer.groups != 0)
        fail(fmt::format("{} recurrent groups do not divide {} heads", mixer.groups, mixer.heads));
    }
    if (mixer.kind == RecurrentKind::selective_scan) {
      within("recurrent heads", mixer.heads, mixer.width, mixer.width);
      within("step_rank", mixer.step_rank, 1, limits::dim);
    }
    if (!mixer.rwkv()) return;
    within("elements of a recurrent head", mixer.width / mixer.heads, 1, most_wkv_size);
    within("decay_rank", mixer.decay_rank, 1, limits::dim);
    const bool six = mixer.kind == RecurrentKind::rwkv6;
    within("mix_rank", mixer.mix_rank, six ? 1 : 0, six ? limits::dim : 0);
    within("rate_rank", mixer.rate_rank, six ? 0 : 1, six ? 0 : limits::dim);
    within("value_rank", mixer.value_rank, 0, six ? 0 : limits::dim);
    within("gate_rank", mixer.gate_rank, 0, six ? 0 : limits::dim);
  }

  /// Relative positions of a stack, whose first layer with attention must have the table.
  void relative_positions(const std::vector<LayerSpec>& layers) {
    const AttentionSpec* first = nullptr;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto& attention = layers[i].attention;
      if (!attention || attention->relative_buckets == 0) continue;
      layer_ = static_cast<int>(i);
      within("relative_buckets", attention->relative_buckets, attention->causal ? 2 : 4, limits::relative_buckets);
      within("relative_distance", attention->relative_distance, attention->relative_buckets, limits::relative_distance);
      if (!first) first = &*attention;
      if (i > 0 && !attention->relative_table &&
          (!layers[0].attention || !layers[0].attention->relative_table || first->heads != attention->heads ||
           first->relative_buckets != attention->relative_buckets))
        fail("relative positions without a table, or with the table of a layer of other sizes");
      if (i == 0 && !attention->relative_table) fail("the first layer's relative positions have no table");
    }
    layer_.reset();
  }

  void encoder() {
    relative_positions(spec_.layers);
    relative_positions(spec_.encoder);
    norm("encoder_norm", spec_.encoder_norm);
    within("decoder_start", spec_.decoder_start, -1, spec_.vocabulary - 1);
    within("encoder layers", static_cast<std::int64_t>(spec_.encoder.size()), 0, limits::layers);
    for (std::size_t i = 0; i < spec_.encoder.size(); ++i) {
      layer_ = static_cast<int>(i);
      const LayerSpec& each = spec_.encoder[i];
      if (each.cross) fail("a layer of the encoder has cross-attention");
      if (each.attention && (each.attention->latent || each.attention->causal || each.attention->window > 0))
        fail("attention of the encoder is causal, has a window or a latent row");
      if ((each.ffn && each.ffn->experts) || each.state_elements(spec_.dim) > 0)
        fail("experts or recurrent layers in the encoder are not implemented");
      layer(each);
    }
    for (std::size_t i = 0; i < spec_.layers.size(); ++i) {
      layer_ = static_cast<int>(i);
      const LayerSpec& each = spec_.layers[i];
      norm("cross_norm", each.cross_norm);
      if (!each.cross) continue;
      if (spec_.encoder.empty()) fail("cross-attention in a network without an encoder");
      if (each.parallel) fail("cross-attention in a layer of parallel parts is not implemented");
      const AttentionSpec& cross = *each.cross;
      attention(cross);
      if (cross.latent || cross.rope >= 0 || cross.window > 0 || cross.alibi > 0 || cross.relative_buckets > 0 ||
          cross.sinks || cross.q_norm.kind != NormKind::none || cross.k_norm.kind != NormKind::none || cross.q_bias ||
          cross.k_bias || cross.v_bias || cross.output_bias || cross.clamp > 0)
        fail("cross-attention with positions, a window, biases or norms of heads is not implemented");
    }
    layer_.reset();
  }

  void classifier() const {
    if (!spec_.classifier) return;
    const ClassifierSpec& classifier = *spec_.classifier;
    within("classifier rows", classifier.dense, 0, limits::dim);
    within("classifier labels", classifier.output, 0, limits::dim);
    within("classifier labels", classifier.count(), 1, limits::dim);
    if ((classifier.dense_bias && classifier.dense == 0) || (classifier.output_bias && classifier.output == 0))
      fail("the classifier has a bias of a matrix that is not there");
    if (!classifier.labels.empty() && static_cast<std::int64_t>(classifier.labels.size()) != classifier.count())
      fail(fmt::format("{} names for the {} labels of the classifier", classifier.labels.size(), classifier.count()));
  }

  void experts(const FfnSpec& ffn) const {
    const ExpertsSpec& experts = *ffn.experts;
    within("experts", experts.count, 1, limits::experts);
    within("experts used", experts.used, 1, std::min<std::int64_t>(experts.count, limits::experts_used));
    positive("expert scale", experts.scale);
    if (experts.gating > ExpertGating::sigmoid) fail("the experts' gating is of an unknown kind");
    within("expert groups", experts.groups, 1, experts.count);
    if (experts.count % experts.groups != 0 || (experts.groups > 1 && experts.count / experts.groups < 2))
      fail(fmt::format("{} expert groups, allowed are equal groups of at least 2 of the {} experts", experts.groups,
                       experts.count));
    within("expert groups used", experts.groups_used, 1, experts.groups);
    within("best experts of a group", experts.group_best, 1, 2);
    within("experts used", experts.used, 1, experts.count / experts.groups * experts.groups_used);
    not_negative("expert gate_limit", experts.gate_limit);
    not_negative("expert gate_alpha", experts.gate_alpha);
    within("shared expert width", experts.shared_width, 0, limits::ffn_width);
    if (experts.shared_gate && experts.shared_width == 0) fail("a gate of a shared expert that is not there");
    if (!ffn.gated) fail("experts without a gate are not implemented");
  }

  const ModelSpec& spec_;
  std::string_view file_;
  std::optional<int> layer_{};
};

// The pair index at which a frequency turns `rotations` times in the original context.
double yarn_pair(const RopeSpec& rope, double rotations) {
  constexpr double two_pi = 6.283185307179586476925286766559;
  return rope.dims * std::log(static_cast<double>(rope.original_context) / (rotations * two_pi)) /
         (2 * std::log(rope.freq_base));
}

}  // namespace

std::string_view to_string(RopeScaling scaling) noexcept {
  return name_of(std::array<std::string_view, 5>{"none", "linear", "yarn", "llama3", "longrope"}, scaling);
}
std::string_view to_string(RopeKind kind) noexcept {
  return name_of(std::array<std::string_view, 3>{"none", "interleaved", "half"}, kind);
}
std::string_view to_string(NormKind kind) noexcept {
  return name_of(std::array<std::string_view, 3>{"none", "rms", "layer"}, kind);
}
std::string_view to_string(Activation activation) noexcept {
  return name_of(std::array<std::string_view, 8>{"none", "silu", "gelu_tanh", "gelu_erf", "relu", "relu_squared", "tanh",
                                                  "sigmoid"},
                 activation);
}
std::string_view to_string(ExpertGating gating) noexcept {
  return name_of(std::array<std::string_view, 3>{"softmax", "softmax_selected", "sigmoid"}, gating);
}
std::string_view to_string(RecurrentKind kind) noexcept {
  return name_of(std::array<std::string_view, 5>{"selective_scan", "ssd", "short_convolution", "rwkv6", "rwkv7"}, kind);
}
std::string_view to_string(Pooling pooling) noexcept {
  return name_of(std::array<std::string_view, 5>{"none", "mean", "cls", "last", "rank"}, pooling);
}
std::string_view to_string(QkNormScope scope) noexcept {
  return name_of(std::array<std::string_view, 3>{"head", "each_head", "projection"}, scope);
}
std::string_view to_string(Role role) noexcept { return name_of(role_names, role); }

RopeFrequencies rope_frequencies(const RopeSpec& rope, std::int64_t context) {
  if (rope.dims <= 0 || rope.dims % 2 != 0)
    throw UsageError("model.rope_frequencies", fmt::format("dims is {}, allowed is a positive even number", rope.dims));
  const int pairs = rope.dims / 2;
  const bool far = rope.scaling == RopeScaling::longrope && context > rope.original_context;
  const std::vector<float>& factors = far ? rope.long_factors : rope.factors;
  if (!factors.empty() && factors.size() != static_cast<std::size_t>(pairs))
    throw UsageError("model.rope_frequencies",
                     fmt::format("{} factors for {} pairs of dimensions", factors.size(), pairs));

  const bool scaled = rope.scaling == RopeScaling::linear || rope.scaling == RopeScaling::yarn;
  const double interpolation = scaled ? 1.0 / rope.factor : 1.0;
  const bool ramped = rope.scaling == RopeScaling::yarn && rope.extrapolation != 0.0;
  double low = 0.0;
  double high = 0.0;
  if (ramped) {
    low = yarn_pair(rope, rope.beta_fast);
    high = yarn_pair(rope, rope.beta_slow);
    low = std::max(0.0, rope.whole_pairs ? std::floor(low) : low);
    high = std::min(rope.dims - 1.0, rope.whole_pairs ? std::ceil(high) : high);
  }

  RopeFrequencies result;
  result.inverse_frequencies.reserve(static_cast<std::size_t>(pairs));
  for (int j = 0; j < pairs; ++j) {
    double frequency = std::pow(rope.freq_base, -2.0 * j / rope.dims);
    if (!factors.empty()) frequency /= static_cast<double>(factors[static_cast<std::size_t>(j)]);
    double share = 0.0;  // of the unscaled frequency
    // The smallest width keeps a ramp whose borders coincide a step, as in the published code.
    if (ramped) share = rope.extrapolation * (1.0 - std::clamp((j - low) / std::max(0.001, high - low), 0.0, 1.0));
    result.inverse_frequencies.push_back(frequency * (interpolation * (1.0 - share) + share));
  }
  const double stretch = ramped ? 1.0 + 0.1 * std::log(rope.factor) : 1.0;
  result.magnitude = static_cast<float>(rope.attention_factor * stretch);
  return result;
}

std::vector<float> alibi_slopes(std::int32_t heads, float max_bias) {
  std::int32_t power = 1;
  while (power <= heads / 2) power *= 2;
  std::vector<float> slopes;
  for (std::int32_t h = 0; h < heads; ++h) {
    const double step = h < power ? h + 1.0 : (2.0 * (h - power) + 1.0) / 2.0;
    slopes.push_back(static_cast<float>(std::exp2(-static_cast<double>(max_bias) * step / power)));
  }
  return slopes;
}

std::int32_t relative_bucket(std::int32_t relative, std::int32_t buckets, std::int32_t max_distance,
                             bool causal) noexcept {
  std::int32_t base = 0;
  std::int32_t distance = relative < 0 ? -relative : 0;
  if (!causal) {
    buckets /= 2;
    base = relative > 0 ? buckets : 0;
    distance = relative < 0 ? -relative : relative;
  }
  const std::int32_t exact = buckets / 2;
  if (distance < exact) return base + distance;
  // In single precision, as in the published code: at borders the rounding decides.
  const auto ratio = [&](std::int32_t of) { return std::log(static_cast<float>(of) / static_cast<float>(exact)); };
  const float share = ratio(distance) / ratio(max_distance);
  return base + std::min(buckets - 1, exact + static_cast<std::int32_t>(share * static_cast<float>(buckets - exact)));
}

void take_nested_ffn(ModelSpec& spec, std::span<const float> fractions) {
  if (fractions.empty()) return;
  if (spec.has_encoder()) throw UsageError("model.nested", "networks with an encoder have no nested networks");
  if (fractions.size() != 1 && fractions.size() != spec.layers.size())
    throw UsageError("model.nested", fmt::format("{} shares of the width are given, allowed is one, or one for each of "
                                                 "the {} layers", fractions.size(), spec.layers.size()));
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const float share = fractions[fractions.size() == 1 ? 0 : i];
    const ErrorContext context{.layer = static_cast<int>(i)};
    if (!(share > 0.0F && share <= 1.0F))
      throw UsageError("model.nested", fmt::format("the share of the width is {}, allowed is above 0 to 1", share),
                       context);
    auto& ffn = spec.layers[i].ffn;
    if (!ffn || share == 1.0F) continue;
    if (ffn->experts) throw UsageError("model.nested", "layers with experts have no nested networks", context);
    const std::int64_t whole = ffn->width;
    const auto width = std::llround(static_cast<double>(share) * static_cast<double>(whole));
    ffn->width = std::clamp<std::int64_t>(width, 1, whole);
    if (ffn->width < whole) ffn->stored_width = whole;
  }
}

void validate(const ModelSpec& spec, std::string_view file) { Checker(spec, file).run(); }

}  // namespace skald::inline v0
