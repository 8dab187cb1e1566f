#pragma once

#include <cstdint>

#include <skald/model/hyper_parameters.hpp>
#include <skald/model/model_spec.hpp>

/// What tells the published transformers apart, as one plain struct: an architecture is a line of these.
namespace skald::inline v0 {

/// Whether an architecture has an optional tensor.
enum class Presence : std::uint8_t {
  never,
  if_present,  ///< where the file has it
  always,
};

/// When a layer's feed-forward network reads the same x as its attention.
enum class ParallelParts : std::uint8_t {
  never,
  always,
  by_key,          ///< the key use_parallel_residual
  unless_ffn_norm  ///< in layers without a norm of the feed-forward network of its own
};

/// Rotation in layers with a sliding window, where it differs from the other layers.
enum class WindowRope : std::uint8_t {
  same,
  unscaled,    ///< the same base, no scaling (OLMo 3)
  local_base,  ///< base 10000, or the key rope.freq_base_swa; no scaling (Gemma 3)
  only,        ///< rotates as usual, and the layers without a window do not rotate (Cohere 2)
};

/// Stacks of layers that an architecture has.
enum class Stacks : std::uint8_t {
  decoder,          ///< one, of which the network is made
  encoder_decoder,  ///< an encoder and layers that read its result (T5): keys block_count and decoder_block_count
  encoder,          ///< the former's encoder alone; it has no head
};

enum class LogitScale : std::uint8_t { none, multiply, divide };

/// See LayerSpec and AttentionSpec for what the parts mean. The defaults are Llama's.
struct DecoderTraits {
  NormKind norm = NormKind::rms;
  Presence norm_bias = Presence::never;  ///< of the norms of width dim
  bool pre_norm = true;                  ///< norms before the parts
  bool post_norm = false;                ///< norms of what the parts add
  bool residual_norm = false;            ///< norms after the residual sums
  ParallelParts parallel = ParallelParts::never;

  RopeKind rope = RopeKind::interleaved;
  WindowRope window_rope = WindowRope::same;
  std::int32_t no_rope_period = 0;     ///< n > 0: layers n-1, 2n-1, … do not rotate
  bool rope_by_finetuned = false;      ///< no rotation if the key rope.scaling.finetuned is false (Granite)
  std::int32_t window_period = 0;      ///< n > 0: layers but n-1, 2n-1, … have the key attention.sliding_window
  std::int32_t default_window = 0;     ///< if that key is missing; 0: the layers have no window then
  bool alibi = false;                  ///< key attention.max_alibi_bias, 8 if missing
  bool clamp_qkv = false;              ///< key attention.clamp_kqv
  bool causal = true;
  Presence qkv_bias = Presence::if_present;
  Presence qk_norm = Presence::never;
  QkNormScope qk_norm_scope = QkNormScope::head;
  /// Attention is scaled by the root of embedding_length / heads instead of the head's size in models of this many
  /// layers, 0: none (the 27B models of Gemma 2 and 3). The key attention.scale comes before either.
  std::int32_t embedding_scaled_layers = 0;

  Stacks stacks = Stacks::decoder;
  bool relative_positions = false;  ///< key attention.relative_buckets_count, T5's distances up to 128
  bool scaled_attention = true;     ///< false: the products of queries and keys are taken as they are (T5)

  Activation activation = Activation::silu;
  Activation ungated_activation = Activation::none;  ///< of networks without a gate, where it is another one; none: not
  Presence gated = Presence::always;
  bool experts = false;        ///< may have experts instead of one network per layer
  bool missing_parts = false;  ///< layers of 0 heads or of width 0 lack that part (DeciLM)

  bool scale_embedding = false;  ///< by the root of embedding_length (Gemma)
  bool scales = false;           ///< keys embedding_scale and residual_scale (Granite)
  Presence learned_positions = Presence::never;
  bool token_types = false;      ///< where the file has them
  bool embedding_norm = false;
  bool final_norm = true;
  bool head = true;
  LogitScale logit_scale = LogitScale::none;  ///< by the key logit_scale
  double attention_softcap = 0.0;             ///< if above 0, that of the key attn_logit_softcapping, this by default
  double logit_softcap = 0.0;                 ///< if above 0, that of the key final_logit_softcapping, this by default
};

/// The spec of a transformer with the usual keys. @throws as read_spec.
[[nodiscard]] SKALD_API ModelSpec read_decoder(HyperParameters& parameters, const DecoderTraits& traits);

}  // namespace skald::inline v0
