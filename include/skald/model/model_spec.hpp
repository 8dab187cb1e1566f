#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/backend/ops.hpp>

/// What a network is, as plain data. Nothing here knows about files or memory: readers produce a ModelSpec, the
/// decoder turns it into ops.
namespace skald::inline v0 {

/// A normalization and whether it has parameters of its own.
struct NormSpec {
  NormKind kind = NormKind::none;
  float epsilon = 0.0F;
  bool weight = true;  ///< multiplies by a learned vector
  bool bias = false;   ///< adds a learned vector
  friend bool operator==(const NormSpec&, const NormSpec&) = default;
};

/// How rotary angles are stretched to contexts longer than those of training.
enum class RopeScaling : std::uint8_t {
  none,
  linear,  ///< all angles divided by `factor` (Chen et al. 2023, arXiv 2306.15595)
  yarn,    ///< low frequencies divided by `factor`, high ones kept, a ramp between (Peng et al. 2023, arXiv 2309.00071)
  llama3,  ///< each frequency divided by its entry of `factors` (Llama 3.1; GGUF tensor rope_freqs.weight)
  longrope,  ///< as llama3 by `factors`, in contexts above `original_context` by `long_factors` (arXiv 2402.13753)
};
[[nodiscard]] SKALD_API std::string_view to_string(RopeScaling scaling) noexcept;
[[nodiscard]] SKALD_API std::string_view to_string(RopeKind kind) noexcept;
[[nodiscard]] SKALD_API std::string_view to_string(NormKind kind) noexcept;
[[nodiscard]] SKALD_API std::string_view to_string(Activation activation) noexcept;
[[nodiscard]] SKALD_API std::string_view to_string(ExpertGating gating) noexcept;

/// A rotary position embedding. Layers that share one share its table of angles.
struct RopeSpec {
  RopeKind kind = RopeKind::none;
  std::int32_t dims = 0;       ///< leading elements of a head that rotate; even
  double freq_base = 10000.0;  ///< angle of pair j at position p: p * freq_base^(-2j / dims)
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;                ///< how many times longer the context became
  std::int64_t original_context = 0;  ///< tokens of context in training (yarn, longrope)
  double extrapolation = 1.0;         ///< yarn: share of the ramp that is applied, 1 as published
  double attention_factor = 1.0;      ///< multiplies the magnitude of cos and sin
  double beta_fast = 32.0;            ///< yarn: rotations in the original context above which a frequency is kept
  double beta_slow = 1.0;             ///< yarn: rotations below which it is divided by `factor`
  bool whole_pairs = true;            ///< yarn: the ramp begins and ends at whole pairs
  std::vector<float> factors{};       ///< empty, or dims / 2 divisors of the frequencies, one per pair
  std::vector<float> long_factors{};  ///< longrope: the same for contexts above original_context
  friend bool operator==(const RopeSpec&, const RopeSpec&) = default;
};

/// What a RopeTableOp needs.
struct RopeFrequencies {
  std::vector<double> inverse_frequencies{};  ///< dims / 2 angles per position
  float magnitude = 1.0F;                     ///< multiplies cos and sin
};

/// The frequencies of a rotary embedding after scaling. With `factors`, frequency j is first divided by factors[j].
/// YaRN: f = f_j * ((1 - r) / factor + r), r = extrapolation * ramp(j), where the ramp falls from 1 to 0 between
/// the pairs that turn beta_fast and beta_slow times in `original_context` tokens (with whole_pairs rounded outwards),
/// and the magnitude is attention_factor * (1 + 0.1 ln(factor)).
/// With longrope, `context` (the most tokens of a sequence) chooses between `factors` and `long_factors`.
/// @throws UsageError if dims is odd or not positive, or factors has another length than dims / 2.
[[nodiscard]] SKALD_API RopeFrequencies rope_frequencies(const RopeSpec& rope, std::int64_t context = 0);

/// ALiBi's slope of each head (Press et al. 2021, arXiv 2108.12409): 2^(-max_bias * (h + 1) / n) for the first n heads,
/// n being the largest power of two up to `heads`; for the others 2^(-max_bias * (2 (h - n) + 1) / 2n).
[[nodiscard]] SKALD_API std::vector<float> alibi_slopes(std::int32_t heads, float max_bias);

/// T5's bucket of a relative position (Raffel et al. 2020, arXiv 1910.10683), key's minus query's: half of the buckets (of
/// each direction's, where tokens see later ones) have one distance each, the others grow with its logarithm up to
/// `max_distance`.
[[nodiscard]] SKALD_API std::int32_t relative_bucket(std::int32_t relative, std::int32_t buckets,
                                                     std::int32_t max_distance, bool causal) noexcept;

/// What the norms of queries and keys run over.
enum class QkNormScope : std::uint8_t {
  head,        ///< each head alone, one weight vector for all (Qwen 3, Gemma 3)
  each_head,   ///< each head alone, with weights of its own (StableLM 2 12B, Command R+)
  projection,  ///< all heads together (OLMo 2)
};
[[nodiscard]] SKALD_API std::string_view to_string(QkNormScope scope) noexcept;

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). A token's keys and values are products of one latent row;
/// the cache holds that row, normalized, and one rotated key part that all heads share. The matrices that would make keys
/// and values out of it are applied to queries and results instead ("absorbed"), whatever the batch.
struct LatentSpec {
  std::int32_t rank = 0;        ///< elements of the latent row
  std::int32_t rope_dims = 0;   ///< elements of the rotated part: the last ones of a query head
  NormSpec norm{};              ///< of the latent row
  std::int32_t query_rank = 0;  ///< queries are made from a row of so many elements; 0: from the residual stream
  NormSpec query_norm{};        ///< of that row
  friend bool operator==(const LatentSpec&, const LatentSpec&) = default;
};

/// Softmax attention of one layer.
struct AttentionSpec {
  std::int32_t heads = 0;       ///< query heads
  std::int32_t kv_heads = 0;    ///< divides heads; 1 with a latent row
  std::int32_t head_dim_k = 0;  ///< elements of a query or key; with a latent row of a query before absorption
  std::int32_t head_dim_v = 0;  ///< elements of a value
  float scale = 1.0F;           ///< multiplies q . k
  float softcap = 0.0F;         ///< s = softcap * tanh(s / softcap) if > 0
  std::int32_t window = 0;      ///< sliding window in tokens, the token itself included; 0: none
  bool q_bias = false;
  bool k_bias = false;
  bool v_bias = false;
  bool output_bias = false;
  NormSpec q_norm{};       ///< of the queries, before rotation
  NormSpec k_norm{};       ///< of the keys, before rotation
  QkNormScope qk_norm_scope = QkNormScope::head;
  std::int32_t rope = -1;  ///< index into ModelSpec::ropes; -1: no rotation
  float clamp = 0.0F;      ///< if > 0, queries, keys and values are cut to [-clamp, clamp] (MPT)
  float alibi = 0.0F;      ///< if > 0, largest slope exponent of ALiBi (arXiv 2108.12409), 8 as published
  bool causal = true;      ///< false: a token sees all tokens that are given together with it

  /// T5's relative positions: a learned number for each bucket of distances and head is added to the logits; 0: none.
  std::int32_t relative_buckets = 0;
  std::int32_t relative_distance = 128;  ///< distances from here on share the last bucket
  bool relative_table = false;           ///< the layer has numbers of its own, else those of its stack's first layer

  std::optional<LatentSpec> latent{};
  bool sinks = false;  ///< one more logit per head in the softmax's denominator, see AttentionOp

  [[nodiscard]] std::int64_t q_cols() const noexcept { return std::int64_t{heads} * head_dim_k; }
  [[nodiscard]] std::int64_t k_cols() const noexcept { return std::int64_t{kv_heads} * stored_dim_k(); }
  [[nodiscard]] std::int64_t v_cols() const noexcept { return latent ? 0 : std::int64_t{kv_heads} * head_dim_v; }
  /// Elements of a key and of a value in the cache; with a latent row the values are a part of the keys.
  [[nodiscard]] std::int32_t stored_dim_k() const noexcept {
    return latent ? latent->rank + latent->rope_dims : head_dim_k;
  }
  [[nodiscard]] std::int32_t stored_dim_v() const noexcept { return latent ? latent->rank : head_dim_v; }
  /// Columns of the attention's result, the input of the output matrix.
  [[nodiscard]] std::int64_t output_cols() const noexcept { return std::int64_t{heads} * head_dim_v; }
  friend bool operator==(const AttentionSpec&, const AttentionSpec&) = default;
};

enum class RecurrentKind : std::uint8_t {
  selective_scan,     ///< Mamba (arXiv 2312.00752)
  ssd,                ///< Mamba-2 (arXiv 2405.21060)
  short_convolution,  ///< gated short convolution (LFM 2)
  rwkv6,              ///< time mixing of RWKV-6 (arXiv 2404.05892)
  rwkv7,              ///< time mixing of RWKV-7 (arXiv 2503.14456)
};
[[nodiscard]] SKALD_API std::string_view to_string(RecurrentKind kind) noexcept;

/// A token mixer with a state of fixed size. @see ConvOp, ScanOp, TokenShiftOp, WkvOp
struct RecurrentSpec {
  RecurrentKind kind = RecurrentKind::selective_scan;
  std::int64_t width = 0;       ///< channels; those of the network for short_convolution and RWKV
  std::int32_t heads = 0;       ///< divides width; as many as channels for selective_scan, 0 for short_convolution
  std::int32_t groups = 1;      ///< ssd: sets of b and c; divides heads
  std::int32_t state_size = 0;  ///< selective_scan, ssd: elements of state per channel
  std::int32_t taps = 0;        ///< of the convolution; not RWKV
  bool conv_bias = false;
  std::int32_t step_rank = 0;   ///< selective_scan: of the steps' matrix
  NormSpec step_norm{};         ///< selective_scan: of the steps' row, b and c, each alone
  NormSpec norm{};              ///< ssd: of each group of the gated result; RWKV: of each head
  std::int32_t mix_rank = 0;    ///< rwkv6: of what is added to the token shift
  std::int32_t decay_rank = 0;  ///< RWKV
  std::int32_t rate_rank = 0;   ///< rwkv7
  std::int32_t value_rank = 0;  ///< rwkv7: of the share of the first such layer's values; 0: this is that layer
  std::int32_t gate_rank = 0;   ///< rwkv7; 0: no gate

  /// Columns that the convolution runs over.
  [[nodiscard]] std::int64_t conv_cols() const noexcept {
    return kind == RecurrentKind::ssd ? width + 2 * std::int64_t{groups} * state_size : width;
  }
  /// Rows of the matrix that makes the mixer's inputs; not RWKV.
  [[nodiscard]] std::int64_t input_rows() const noexcept {
    if (kind == RecurrentKind::ssd) return width + conv_cols() + heads;
    return kind == RecurrentKind::short_convolution ? 3 * width : 2 * width;
  }
  [[nodiscard]] bool rwkv() const noexcept { return kind >= RecurrentKind::rwkv6; }
  /// Elements of state of the convolution or the token shift, which come first.
  [[nodiscard]] std::int64_t shift_elements() const noexcept { return rwkv() ? width : (taps - 1) * conv_cols(); }
  /// Elements of state of the scan, which follow.
  [[nodiscard]] std::int64_t scan_elements() const noexcept {
    if (rwkv()) return width * (width / heads);
    return kind == RecurrentKind::short_convolution ? 0 : width * state_size;
  }
  friend bool operator==(const RecurrentSpec&, const RecurrentSpec&) = default;
};

/// A router and the networks that it chooses from. @see ExpertsOp
struct ExpertsSpec {
  std::int32_t count = 0;
  std::int32_t used = 0;  ///< per token
  ExpertGating gating = ExpertGating::softmax;
  bool renormalize = true;  ///< the shares of the chosen experts add up to 1
  float scale = 1.0F;       ///< multiplies every share
  bool router_bias = false;
  bool selection_bias = false;   ///< added to the scores for choosing only
  std::int32_t groups = 1;       ///< equal groups of experts
  std::int32_t groups_used = 1;  ///< of which a token uses experts
  std::int32_t group_best = 2;   ///< a group counts as much as this many (1 or 2) of its best experts
  float gate_alpha = 0.0F;       ///< the clamped gate of ExpertsOp, if gate_limit > 0
  float gate_limit = 0.0F;
  std::int64_t shared_width = 0;  ///< of a network that every token uses beside its experts; 0: none
  bool shared_gate = false;       ///< the shared network's result is multiplied by sigmoid(gate . x)
  friend bool operator==(const ExpertsSpec&, const ExpertsSpec&) = default;
};

/// Feed-forward network of one layer: down(activation(gate(x)) * up(x)) if gated, else down(activation(up(x))). With
/// experts, each of them is such a network and has the biases; they are gated. A shared network has no biases.
struct FfnSpec {
  std::int64_t width = 0;  ///< with experts: of each
  /// If not 0, the file's matrices have this width, and the network is the nested one of their first `width` elements.
  std::int64_t stored_width = 0;
  Activation activation = Activation::silu;
  bool gated = true;
  bool gate_bias = false;
  bool up_bias = false;
  bool down_bias = false;
  std::optional<ExpertsSpec> experts{};
  bool token_shift = false;  ///< up reads a row mixed with the one before (RWKV's channel mixing); not gated
  bool receptance = false;   ///< then the result is multiplied by sigmoid(receptance(another such mixture)) (RWKV-6)
  friend bool operator==(const FfnSpec&, const FfnSpec&) = default;
};

/// One layer. Sequential:
///   x += attention_post_norm(attention(attention_norm(x)));  x = attention_residual_norm(x);
///   x += ffn_post_norm(ffn(ffn_norm(x)));                    x = ffn_residual_norm(x);
/// where every norm may be absent and either part may be missing. Parallel: both parts read the same x.
struct LayerSpec {
  NormSpec attention_norm{};
  std::optional<AttentionSpec> attention{};
  /// In the place of attention one matrix [dim, dim], Role::attention_output (Puzzle, arXiv 2411.19146).
  bool linear_attention = false;
  std::optional<RecurrentSpec> recurrent{};  ///< in the place of attention or beside it (Falcon H1), with the same norm
  NormSpec attention_post_norm{};      ///< of what attention adds to x (Gemma 2)
  NormSpec attention_residual_norm{};  ///< of x after that (BERT)
  NormSpec ffn_norm{};
  std::optional<FfnSpec> ffn{};
  NormSpec ffn_post_norm{};      ///< of what the feed-forward network adds to x
  NormSpec ffn_residual_norm{};  ///< of x after that
  bool parallel = false;         ///< attention and feed-forward network read the same x (GPT-NeoX, Command R)
  float residual_scale = 1.0F;  ///< multiplies what either part adds to x
  float output_scale = 1.0F;    ///< multiplies x in the end (RWKV-6)
  /// Elements of recurrent state of a network of width `dim`: those of the mixer, then those of the network's token shift.
  [[nodiscard]] std::int64_t state_elements(std::int64_t dim) const noexcept {
    return (recurrent ? recurrent->shift_elements() + recurrent->scan_elements() : 0) +
           (ffn && ffn->token_shift ? dim : 0);
  }
  /// Between attention and the feed-forward network: x += cross(cross_norm(x)), where keys and values are made from the
  /// result of the encoder (T5). Its kv_heads and head sizes are those of the encoder's input in memory.
  NormSpec cross_norm{};
  std::optional<AttentionSpec> cross{};
  friend bool operator==(const LayerSpec&, const LayerSpec&) = default;
};

/// How the hidden states of a text become one vector. The numbers are those of the GGUF key pooling_type.
enum class Pooling : std::uint8_t {
  none,  ///< not at all
  mean,  ///< mean over the tokens
  cls,   ///< first token
  last,  ///< last token
  rank,  ///< logits of a classifier over the first token, or the last one if no token sees a later one
};
[[nodiscard]] SKALD_API std::string_view to_string(Pooling pooling) noexcept;

/// A classifier of the hidden state of one token, with or without a layer before the output:
/// logits = W tanh(D x + d) + b, or W x + b, or tanh(D x + d).
struct ClassifierSpec {
  std::int64_t dense = 0;  ///< rows of D; 0: there is none
  bool dense_bias = false;
  std::int64_t output = 0;  ///< rows of W; 0: there is none
  bool output_bias = false;
  std::vector<std::string> labels{};  ///< names of the logits; empty: not told

  /// Number of logits.
  [[nodiscard]] std::int64_t count() const noexcept { return output > 0 ? output : dense; }
  friend bool operator==(const ClassifierSpec&, const ClassifierSpec&) = default;
};

/// A whole network: embedding, layers, final norm, head.
struct ModelSpec {
  std::string architecture{};  ///< "llama", "qwen2", …
  std::int64_t vocabulary = 0;
  std::int64_t dim = 0;             ///< width of the residual stream
  std::int64_t context_length = 0;  ///< tokens the model was made for
  float embedding_scale = 1.0F;     ///< multiplies the embedding rows
  bool learned_positions = false;   ///< adds a learned vector for each of the context_length positions
  std::int32_t token_types = 0;     ///< rows of a table of token types, of which row 0 is added (BERT); 0: none
  NormSpec embedding_norm{};        ///< of the sum of the embeddings (BLOOM, BERT)
  std::vector<RopeSpec> ropes{};
  std::vector<LayerSpec> layers{};
  NormSpec final_norm{};
  /// A second stack of layers over an input of its own, which `layers` then read (T5); empty: there is none. It shares the
  /// embeddings.
  std::vector<LayerSpec> encoder{};
  NormSpec encoder_norm{};           ///< of the encoder's result
  std::int32_t decoder_start = -1;   ///< token that every answer begins with; -1: not told
  Pooling pooling = Pooling::none;  ///< what the model was trained for
  std::optional<ClassifierSpec> classifier{};
  bool has_head = true;    ///< false: the network ends with its hidden states (BERT)
  bool tied_head = false;  ///< the head is the embedding table
  bool head_bias = false;
  float logit_scale = 1.0F;    ///< multiplies the logits
  float logit_softcap = 0.0F;  ///< after scaling: l = softcap * tanh(l / softcap) if > 0

  [[nodiscard]] std::int32_t layer_count() const noexcept { return static_cast<std::int32_t>(layers.size()); }
  /// True if a layer has a recurrent state.
  [[nodiscard]] bool recurrent() const noexcept {
    for (const LayerSpec& layer : layers)
      if (layer.state_elements(dim) > 0) return true;
    return false;
  }
  [[nodiscard]] bool has_encoder() const noexcept { return !encoder.empty(); }
  /// Layer of either stack: the encoder's have the numbers from layer_count() on. Unchecked.
  [[nodiscard]] const LayerSpec& layer(int index) const noexcept {
    const auto i = static_cast<std::size_t>(index);
    return i < layers.size() ? layers[i] : encoder[i - layers.size()];
  }
  /// Layers of both stacks.
  [[nodiscard]] std::int32_t all_layer_count() const noexcept {
    return static_cast<std::int32_t>(layers.size() + encoder.size());
  }
  /// True if no token sees a later one: tokens may come one after the other.
  [[nodiscard]] bool causal() const noexcept {
    for (const LayerSpec& layer : layers)
      if (layer.attention && !layer.attention->causal) return false;
    return true;
  }
  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;
};

/// Makes a network the nested one with a share of the width of its layers' feed-forward networks (MatFormer, Devvrit
/// et al. 2023, arXiv 2310.07707). `fractions` has one share for all layers or one for each, above 0 to 1; widths are
/// rounded to the nearest whole element, at least 1. Layers with experts or without a network stay as they are only
/// where their share is 1 or they have no network. @throws UsageError.
SKALD_API void take_nested_ffn(ModelSpec& spec, std::span<const float> fractions);

/// Checks everything in a spec against everything else: counts, divisibility, ranges, finiteness, indices.
/// @throws FormatError (with `file` and the layer) for the first contradiction.
SKALD_API void validate(const ModelSpec& spec, std::string_view file = {});

/// The spec as one JSON object; equal neighbouring layers are written once with their range.
[[nodiscard]] SKALD_API std::string to_json(const ModelSpec& spec);

/// What a tensor is for. The order is part of nothing; names are those of to_string.
enum class Role : std::uint8_t {
  token_embedding,        ///< [vocabulary, dim]
  head,                   ///< [vocabulary, dim]
  head_bias,              ///< [vocabulary]
  final_norm,             ///< [dim]
  final_norm_bias,        ///< [dim]
  rope_factors,           ///< [dims / 2], read into RopeSpec::factors
  attention_norm,         ///< [dim]
  attention_norm_bias,    ///< [dim]
  query,                  ///< [q_cols, dim]
  query_bias,             ///< [q_cols]
  key,                    ///< [k_cols, dim]
  key_bias,               ///< [k_cols]
  value,                  ///< [v_cols, dim]
  value_bias,             ///< [v_cols]
  query_norm,             ///< [head_dim_k] or, over the whole projection or for each head, [q_cols]
  key_norm,               ///< [head_dim_k] or [k_cols]
  attention_output,       ///< [dim, output_cols]
  attention_output_bias,  ///< [dim]
  ffn_norm,               ///< [dim]
  ffn_norm_bias,          ///< [dim]
  ffn_gate,               ///< [width, dim]
  ffn_gate_bias,          ///< [width]
  ffn_up,                 ///< [width, dim]
  ffn_up_bias,            ///< [width]
  ffn_down,               ///< [dim, width]
  ffn_down_bias,          ///< [dim]
  expert_router,          ///< [experts, dim]
  expert_gate,            ///< experts matrices [width, dim]
  expert_up,              ///< experts matrices [width, dim]
  expert_down,            ///< experts matrices [dim, width]
  expert_router_bias,     ///< [experts]
  expert_selection_bias,  ///< [experts]
  expert_gate_bias,       ///< [experts x width]
  expert_up_bias,         ///< [experts x width]
  expert_down_bias,       ///< [experts x dim]
  shared_router,          ///< [1, dim]
  shared_gate,            ///< [shared_width, dim]
  shared_up,              ///< [shared_width, dim]
  shared_down,            ///< [dim, shared_width]
  attention_sinks,        ///< [heads]
  query_down,             ///< [query_rank, dim]
  query_down_norm,        ///< [query_rank]
  latent_down,            ///< [rank + rope_dims, dim]
  latent_norm,            ///< [rank]
  latent_key,             ///< heads matrices [rank, head_dim_k - rope_dims]
  latent_value,           ///< heads matrices [head_dim_v, rank]
  query_norm_bias,        ///< as query_norm
  key_norm_bias,          ///< as key_norm
  attention_post_norm,           ///< [dim]
  attention_post_norm_bias,      ///< [dim]
  attention_residual_norm,       ///< [dim]
  attention_residual_norm_bias,  ///< [dim]
  ffn_post_norm,                 ///< [dim]
  ffn_post_norm_bias,            ///< [dim]
  ffn_residual_norm,             ///< [dim]
  ffn_residual_norm_bias,        ///< [dim]
  position_embedding,            ///< [context_length, dim]
  token_type_embedding,          ///< [token_types, dim]
  embedding_norm,                ///< [dim]
  embedding_norm_bias,           ///< [dim]
  rope_long_factors,             ///< [dims / 2], read into RopeSpec::long_factors
  recurrent_in,           ///< [input_rows, dim]
  conv_weight,            ///< [conv_cols x taps]
  conv_bias,              ///< [conv_cols]
  step_input,             ///< [step_rank + 2 state_size, width]
  step_norm,              ///< [step_rank]
  b_norm,                 ///< [state_size]
  c_norm,                 ///< [state_size]
  step,                   ///< [width, step_rank]
  step_bias,              ///< [heads]
  scan_decay,             ///< [heads x state_size] or [heads]
  scan_skip,              ///< [heads]
  recurrent_norm,         ///< [width]
  recurrent_norm_bias,    ///< [width]
  recurrent_output,       ///< [dim, width]
  mix_first,              ///< [width], rwkv6: of the row that makes `mix_up`'s
  mix_down,               ///< [5 mix_rank, width]
  mix_up,                 ///< 5 matrices [width, mix_rank]
  mix,                    ///< [5 (rwkv7: 6) width]
  receptance,             ///< [width, dim]
  time_key,               ///< [width, dim]
  time_value,             ///< [width, dim]
  time_gate,              ///< [width, dim], rwkv6
  time_bonus,             ///< [width]
  decay_base,             ///< [width]
  decay_down,             ///< [decay_rank, dim]
  decay_up,               ///< [width, decay_rank]
  rate_base,              ///< [width]
  rate_down,              ///< [rate_rank, dim]
  rate_up,                ///< [width, rate_rank]
  first_value_base,       ///< [width]
  first_value_down,       ///< [value_rank, dim]
  first_value_up,         ///< [width, value_rank]
  gate_down,              ///< [gate_rank, dim]
  gate_up,                ///< [width, gate_rank]
  key_scale,              ///< [width]
  rate_scale,             ///< [width]
  channel_mix,            ///< [dim]
  channel_receptance_mix, ///< [dim]
  channel_receptance,     ///< [dim, dim]
  relative_bias,                 ///< [relative_buckets x heads]
  encoder_norm,                  ///< [dim]
  cross_norm,                    ///< [dim]
  cross_query,                   ///< [q_cols, dim]
  cross_key,                     ///< [k_cols, dim]
  cross_value,                   ///< [v_cols, dim]
  cross_output,                  ///< [dim, output_cols]
  classifier_dense,              ///< [classifier->dense, dim]
  classifier_dense_bias,         ///< [classifier->dense]
  classifier_output,             ///< [classifier->output, dim or classifier->dense]
  classifier_output_bias,        ///< [classifier->output]
};
inline constexpr std::int32_t role_count = 111;
[[nodiscard]] SKALD_API std::string_view to_string(Role role) noexcept;

}  // namespace skald::inline v0
