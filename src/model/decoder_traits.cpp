#include <skald/model/decoder_traits.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <skald/core/error.hpp>

#include "model/architecture_parts.hpp"
#include "model/limits.hpp"

namespace skald::inline v0 {

namespace {

// Reads one network; every member function reads a part of it.
class DecoderReader {
 public:
  DecoderReader(HyperParameters& parameters, const DecoderTraits& traits)
      : parameters_(parameters), file_(parameters.file()), traits_(traits) {}

  ModelSpec run() && {
    const std::optional<ExpertsSpec> experts = read_experts(parameters_, traits_.experts);
    spec_.architecture = parameters_.architecture();
    spec_.context_length = parameters_.integer("context_length", 1, limits::context);
    spec_.dim = parameters_.integer("embedding_length", 1, limits::dim);
    layers_ = read_layer_count(parameters_);
    const bool rms = traits_.norm == NormKind::rms;
    epsilon_ = parameters_.epsilon(rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon");
    spec_.vocabulary = read_vocabulary_size(parameters_);
    const bool both = traits_.stacks == Stacks::encoder_decoder;
    encoder_ = traits_.stacks != Stacks::decoder;
    if (encoder_) prefix_ = "enc.blk.";
    if (both) {
      stack(spec_.encoder, experts);
      spec_.encoder_norm = {.kind = traits_.norm, .epsilon = epsilon_};
      spec_.decoder_start =
          static_cast<std::int32_t>(parameters_.integer_or("decoder_start_token_id", -1, -1, spec_.vocabulary - 1));
      layers_ = parameters_.integer_or("decoder_block_count", layers_, 1, limits::layers);
      if (std::cmp_greater(layers_, file_.tensors().size()))
        parameters_.fail("decoder_block_count", fmt::format("found {} layers, but the file has only {} tensors",
                                                            layers_, file_.tensors().size()));
      prefix_ = "dec.blk.";
      encoder_ = false;
    }
    ends();
    stack(spec_.layers, experts);
    if (both)
      for (LayerSpec& layer : spec_.layers) cross(layer);
    return std::move(spec_);
  }

 private:
  /// Reads `layers_` layers.
  void stack(std::vector<LayerSpec>& layers, const std::optional<ExpertsSpec>& experts) {
    const std::int64_t least = traits_.missing_parts ? 0 : 1;
    const auto widths = parameters_.per_layer("feed_forward_length", layers_, least, limits::ffn_width);
    sizes_ = read_attention_sizes(parameters_, layers_, spec_.dim, least);
    windows();
    ropes();
    const auto scale = attention_scale();
    layers.reserve(static_cast<std::size_t>(layers_));
    for (layer_ = 0; layer_ < layers_; ++layer_) {
      LayerSpec& layer = layers.emplace_back();
      attention(layer, scale);
      if (const std::int64_t width = at(widths); width > 0) ffn(layer, width, experts);
      layer.parallel = parallel();
      layer.residual_scale = residual_scale_;
    }
  }

  /// Attention to the result of the encoder: as that to the tokens before, but without positions.
  void cross(LayerSpec& layer) const {
    if (!layer.attention) return;
    layer.cross_norm = {.kind = traits_.norm, .epsilon = epsilon_};
    layer.cross = AttentionSpec{.heads = layer.attention->heads,
                                .kv_heads = layer.attention->kv_heads,
                                .head_dim_k = layer.attention->head_dim_k,
                                .head_dim_v = layer.attention->head_dim_v,
                                .scale = layer.attention->scale,
                                .causal = false};
  }

  [[nodiscard]] bool has(std::string_view tensor) const {
    return file_.find(fmt::format("{}{}.{}", prefix_, layer_, tensor)) != nullptr;
  }
  [[nodiscard]] bool present(Presence presence, std::string_view tensor) const {
    return presence == Presence::always || (presence == Presence::if_present && has(tensor));
  }
  [[nodiscard]] std::int64_t at(const std::vector<std::int64_t>& values) const {
    return values[static_cast<std::size_t>(layer_)];
  }
  /// A norm of width dim; `tensor` is its name in the layer without `.bias`.
  [[nodiscard]] NormSpec norm(bool wanted, std::string_view tensor) const {
    if (!wanted) return {};
    const bool bias = present(traits_.norm_bias, std::string(tensor) + ".bias");
    return {.kind = traits_.norm, .epsilon = epsilon_, .bias = bias};
  }

  [[nodiscard]] float attention_scale() {
    if (!traits_.scaled_attention) return 1.0F;
    auto size = static_cast<double>(std::max<std::int64_t>(1, sizes_.head_dim_k));
    if (traits_.embedding_scaled_layers > 0 && layers_ == traits_.embedding_scaled_layers && sizes_.heads[0] > 0)
      size = static_cast<double>(std::max<std::int64_t>(1, spec_.dim / sizes_.heads[0]));
    return static_cast<float>(read_scale(parameters_, "attention.scale", 1.0 / std::sqrt(size)));
  }

  void ropes() {
    if (traits_.rope == RopeKind::none || sizes_.head_dim_k == 0) return;
    if (traits_.rope_by_finetuned && !parameters_.flag_or("rope.scaling.finetuned", true)) return;
    const RopeSpec& rope =
        spec_.ropes.emplace_back(read_rope(parameters_, traits_.rope, sizes_.head_dim_k, spec_.context_length));
    if (traits_.window_rope == WindowRope::same || traits_.window_rope == WindowRope::only) return;
    if (std::ranges::all_of(windows_, [](std::int32_t window) { return window == 0; })) return;
    RopeSpec window{.kind = rope.kind, .dims = rope.dims, .freq_base = rope.freq_base};
    if (traits_.window_rope == WindowRope::local_base)
      window.freq_base =
          parameters_.number_or("rope.freq_base_swa", 10000.0, limits::min_freq_base, limits::max_freq_base);
    spec_.ropes.push_back(std::move(window));
  }

  /// What comes before and after the layers.
  void ends() {
    if (traits_.scale_embedding) spec_.embedding_scale = std::sqrt(static_cast<float>(spec_.dim));
    if (traits_.scales) {
      spec_.embedding_scale = static_cast<float>(read_scale(parameters_, "embedding_scale", 1.0));
      residual_scale_ = static_cast<float>(read_scale(parameters_, "residual_scale", 1.0));
    }
    spec_.learned_positions = traits_.learned_positions == Presence::always ||
                              (traits_.learned_positions == Presence::if_present && file_.find("position_embd.weight"));
    if (const TensorInfo* types = traits_.token_types ? file_.find("token_types.weight") : nullptr) {
      if (types->dims[1] > limits::vocabulary)
        file_.fail(*types, fmt::format("found {} rows, allowed is up to {}", types->dims[1], limits::vocabulary));
      spec_.token_types = static_cast<std::int32_t>(types->dims[1]);
    }
    const auto outer_norm = [&](bool wanted, const char* bias) {
      if (!wanted) return NormSpec{};
      const bool biased = traits_.norm_bias == Presence::always ||
                          (traits_.norm_bias == Presence::if_present && file_.find(bias) != nullptr);
      return NormSpec{.kind = traits_.norm, .epsilon = epsilon_, .bias = biased};
    };
    spec_.embedding_norm = outer_norm(traits_.embedding_norm, "token_embd_norm.bias");
    spec_.final_norm = outer_norm(traits_.final_norm, "output_norm.bias");
    spec_.pooling = static_cast<Pooling>(parameters_.integer_or("pooling_type", 0, 0, 4));
    spec_.has_head = traits_.head;
    if (!traits_.head) return;
    spec_.tied_head = file_.find("output.weight") == nullptr;
    spec_.head_bias = file_.find("output.bias") != nullptr;
    if (traits_.logit_scale != LogitScale::none) {
      const double factor = read_scale(parameters_, "logit_scale", 1.0);
      spec_.logit_scale = static_cast<float>(traits_.logit_scale == LogitScale::divide ? 1.0 / factor : factor);
    }
    if (traits_.logit_softcap > 0)
      spec_.logit_softcap =
          static_cast<float>(parameters_.number_or("final_logit_softcapping", traits_.logit_softcap, 0, limits::max_scale));
    if (traits_.attention_softcap > 0)
      softcap_ = static_cast<float>(
          parameters_.number_or("attn_logit_softcapping", traits_.attention_softcap, 0, limits::max_scale));
  }

  /// The windows of all layers.
  void windows() {
    windows_.assign(static_cast<std::size_t>(layers_), 0);
    if (traits_.window_period <= 0) return;
    const std::int64_t window =
        parameters_.integer_or("attention.sliding_window", traits_.default_window, 0, limits::context);
    constexpr std::string_view key = "attention.sliding_window_pattern";
    std::int64_t period = traits_.window_period;
    std::vector<bool> pattern;
    if (parameters_.contains(key)) {
      // A flag for each layer, or the period.
      const auto* entry = parameters_.metadata().find(parameters_.key(key));
      if (std::holds_alternative<MetadataArray>(entry->value)) pattern = parameters_.flags_or_none(key, layers_);
      else period = parameters_.integer(key, 1, limits::layers);
    }
    for (std::size_t i = 0; i < windows_.size(); ++i) {
      const auto index = static_cast<std::int64_t>(i);
      const bool windowed = pattern.empty() ? index % period != period - 1 : static_cast<bool>(pattern[i]);
      if (windowed) windows_[i] = static_cast<std::int32_t>(window);
    }
  }

  [[nodiscard]] std::int32_t rope_index(bool windowed) const {
    if (spec_.ropes.empty()) return -1;
    const std::int32_t period = traits_.no_rope_period;
    if (period > 0 && layer_ % period == period - 1) return -1;
    if (traits_.window_rope == WindowRope::only) return windowed ? 0 : -1;
    return windowed && spec_.ropes.size() > 1 ? 1 : 0;
  }

  void attention(LayerSpec& layer, float scale) {
    const std::int64_t heads = at(sizes_.heads);
    if (heads == 0) return;
    layer.attention_norm = norm(traits_.pre_norm, "attn_norm");
    layer.attention_post_norm = norm(traits_.post_norm, "post_attention_norm");
    layer.attention_residual_norm = norm(traits_.residual_norm, "attn_output_norm");
    if (at(sizes_.kv_heads) == 0) {
      layer.linear_attention = true;
      return;
    }
    AttentionSpec& attention = layer.attention.emplace();
    attention.heads = static_cast<std::int32_t>(heads);
    attention.kv_heads = static_cast<std::int32_t>(at(sizes_.kv_heads));
    attention.head_dim_k = static_cast<std::int32_t>(sizes_.head_dim_k);
    attention.head_dim_v = static_cast<std::int32_t>(sizes_.head_dim_v);
    attention.scale = scale;
    attention.softcap = softcap_;
    attention.window = windows_[static_cast<std::size_t>(layer_)];
    const auto bias = [&](std::string_view own) {
      return present(traits_.qkv_bias, own) || present(traits_.qkv_bias, "attn_qkv.bias");
    };
    attention.q_bias = bias("attn_q.bias");
    attention.k_bias = bias("attn_k.bias");
    attention.v_bias = bias("attn_v.bias");
    attention.output_bias = has("attn_output.bias");
    if (present(traits_.qk_norm, "attn_q_norm.weight")) {
      attention.qk_norm_scope = traits_.qk_norm_scope;
      attention.q_norm = {.kind = traits_.norm, .epsilon = epsilon_, .bias = has("attn_q_norm.bias")};
      attention.k_norm = {.kind = traits_.norm, .epsilon = epsilon_, .bias = has("attn_k_norm.bias")};
    }
    attention.rope = rope_index(attention.window > 0);
    if (traits_.clamp_qkv)
      attention.clamp = static_cast<float>(parameters_.number_or("attention.clamp_kqv", 0.0, 0, limits::max_scale));
    if (traits_.alibi)
      attention.alibi =
          static_cast<float>(parameters_.number_or("attention.max_alibi_bias", 8.0, 0, limits::max_alibi));
    attention.causal = parameters_.flag_or("attention.causal", true) && traits_.causal && !encoder_;
    if (traits_.relative_positions) {
      attention.relative_buckets = static_cast<std::int32_t>(
          parameters_.integer("attention.relative_buckets_count", 4, limits::relative_buckets));
      attention.relative_table = layer_ == 0 || has("attn_rel_b.weight");
    }
  }

  void ffn(LayerSpec& layer, std::int64_t width, const std::optional<ExpertsSpec>& experts) const {
    const bool gated = present(traits_.gated, "ffn_gate.weight");
    layer.ffn_norm = norm(traits_.pre_norm, "ffn_norm");
    layer.ffn_post_norm = norm(traits_.post_norm, "post_ffw_norm");
    layer.ffn_residual_norm = norm(traits_.residual_norm, "layer_output_norm");
    layer.ffn = FfnSpec{.width = width,
                        .activation = gated || traits_.ungated_activation == Activation::none
                                          ? traits_.activation
                                          : traits_.ungated_activation,
                        .gated = gated,
                        .gate_bias = has("ffn_gate.bias"),
                        .up_bias = has("ffn_up.bias"),
                        .down_bias = has("ffn_down.bias"),
                        .experts = experts};
  }

  [[nodiscard]] bool parallel() {
    switch (traits_.parallel) {
      case ParallelParts::never: return false;
      case ParallelParts::always: return true;
      case ParallelParts::by_key: return parameters_.flag_or("use_parallel_residual", true);
      case ParallelParts::unless_ffn_norm: return !has("ffn_norm.weight");
    }
    return false;
  }

  HyperParameters& parameters_;
  const ModelFile& file_;
  const DecoderTraits& traits_;
  ModelSpec spec_;
  AttentionSizes sizes_;
  std::vector<std::int32_t> windows_;
  std::string prefix_ = "blk.";  // of the names of the layers' tensors
  bool encoder_ = false;         // the layers are those of an encoder
  std::int64_t layers_ = 0;
  std::int64_t layer_ = 0;
  float epsilon_ = 0.0F;
  float softcap_ = 0.0F;
  float residual_scale_ = 1.0F;
};

}  // namespace

AttentionSizes read_attention_sizes(HyperParameters& parameters, std::int64_t layers, std::int64_t dim,
                                    std::int64_t least) {
  AttentionSizes sizes;
  sizes.heads = parameters.per_layer("attention.head_count", layers, least, limits::heads);
  sizes.kv_heads = parameters.contains("attention.head_count_kv")
                       ? parameters.per_layer("attention.head_count_kv", layers, least, limits::heads)
                       : sizes.heads;
  for (std::size_t i = 0; i < sizes.heads.size(); ++i)
    if (sizes.kv_heads[i] != 0 && (sizes.heads[i] % sizes.kv_heads[i] != 0 || sizes.heads[i] == 0))
      parameters.fail("attention.head_count_kv",
                      fmt::format("layer {}: {} query heads are not a multiple of {} KV heads", i, sizes.heads[i],
                                  sizes.kv_heads[i]));
  const auto first = std::ranges::find_if(sizes.heads, [](std::int64_t count) { return count > 0; });
  if (first == sizes.heads.end()) return sizes;
  const std::int64_t heads = *first;
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

double read_scale(HyperParameters& parameters, std::string_view name, double otherwise) {
  const double value = parameters.number_or(name, 0.0, 0.0, limits::max_scale);
  if (value == 0.0) return otherwise;
  if (value < limits::min_scale)
    parameters.fail(name, fmt::format("found {}, allowed is 0 or {} to {}", value, limits::min_scale, limits::max_scale));
  return value;
}

ModelSpec read_decoder(HyperParameters& parameters, const DecoderTraits& traits) {
  return DecoderReader(parameters, traits).run();
}

}  // namespace skald::inline v0
