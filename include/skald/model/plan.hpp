#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/core/byte_source.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/model_file.hpp>
#include <skald/model/model_spec.hpp>

namespace skald::inline v0 {

/// What a pipeline will be asked to do. The defaults are those of a decoder.
struct PlanOptions {
  AnyBackend backend{};  ///< null: make_cpu_backend()
  WeightLayout layout = WeightLayout::packed;
  std::int64_t context = 0;          ///< tokens of one sequence; 0: the model's context length, at most 4096
  std::int32_t sequences = 4;        ///< sequences that are full at the same time
  DType kv_type = DType::f16;        ///< f32, f16, bf16, q8_0, q4_0 or q4_1
  /// Type of a KV head of a layer, if they are not all of kv_type (AnyKvFormat::dtype).
  std::function<DType(std::int32_t layer, std::int32_t head)> kv_type_of{};
  std::int64_t residual_tokens = 0;  ///< AnyKvFormat::residual: newest tokens of coded heads that are kept beside
  DType residual_type = DType::f16;  ///< what they are stored as
  bool segments = false;             ///< AnyKvFormat::segments
  std::int64_t fetched_values = 0;   ///< AnyKvFormat::fetched_values: if not 0, values lie in slow memory
  std::int64_t read_tokens = 0;      ///< AnyKvFormat::read_tokens: if not 0, keys and values lie in slow memory
  std::function<std::int32_t(std::int32_t layer)> chunk_tokens_of{};  ///< AnyKvFormat::chunk_tokens
  /// AnyKvFormat::source: layers that read another's keys and values have none.
  std::function<std::int32_t(std::int32_t layer)> kv_source_of{};
  /// Pages of a layer that are not as its format says, those of codes; given what they would be.
  std::function<KvPageLayout(std::int32_t layer, const KvPageLayout& usual)> kv_layout_of{};
  std::int64_t rebuilt_tokens = 0;   ///< ComponentTraits::rebuild
  std::int64_t capacity_tokens = 0;  ///< KvOptions::capacity_tokens; 0: context x sequences
  std::int64_t rollback_tokens = 0;  ///< KvOptions::rollback_tokens, of a residual
  std::int32_t page_tokens = 64;     ///< see KvPageLayout
  std::int32_t heads_per_group = 1;  ///< KV heads that share a page; divides the KV heads of every layer
  std::int64_t batch_tokens = 512;   ///< most tokens that go through the network together
  std::int64_t checkpoint_interval = 256;  ///< as RecurrentMemoryOptions
  std::int32_t checkpoints = 2;            ///< as RecurrentMemoryOptions
  std::vector<float> ffn_fraction{};          ///< as LoadOptions::ffn_fraction
  std::vector<Architecture> architectures{};  ///< as LoadOptions::architectures
  std::int64_t logits_rows = 0;      ///< most rows of logits of one batch; 0: one per sequence
};

/// Bytes that a pipeline takes, before any is allocated.
struct MemoryPlan {
  std::uint64_t weights = 0;       ///< matrices in backend memory
  std::uint64_t vectors = 0;       ///< norms and biases in backend memory
  /// KV pages of all sequences, those of encoded inputs included. Of layers with a sliding window that is the window and a
  /// page for each sequence, and one batch.
  std::uint64_t kv = 0;
  /// Values, or keys and values, in slow memory or in a file; with policies that compute tokens again, what these are computed from
  /// (plan_decoder), of whole sequences.
  std::uint64_t slow = 0;
  std::uint64_t policies = 0;      ///< numbers that eviction policies keep for each slot (plan_decoder)
  std::uint64_t techniques = 0;    ///< work memory of KV formats and policies (plan_decoder)
  std::uint64_t recurrent = 0;     ///< recurrent state of all sequences, with its checkpoints
  std::uint64_t activations = 0;   ///< activation buffers of the decoder
  std::uint64_t stream = 0;        ///< work memory of one backend stream
  std::uint64_t tokenizer = 0;     ///< estimate for vocabulary and merges
  std::uint64_t kv_per_token = 0;  ///< KV bytes of one token of one sequence, without rounding to pages

  [[nodiscard]] std::uint64_t total() const noexcept {
    return weights + vectors + kv + slow + policies + techniques + recurrent + activations + stream + tokenizer;
  }
  /// One JSON object: the fields above and "total".
  [[nodiscard]] SKALD_API std::string to_json() const;
};

/// Widths of the activations of one batch, in f32 elements per row: the largest over the layers. Buffers of a
/// decoder have these sizes times the rows of a batch.
struct ActivationSizes {
  std::int64_t residual = 0;   ///< x
  std::int64_t q = 0;          ///< queries
  std::int64_t k = 0;          ///< keys
  std::int64_t v = 0;          ///< values
  std::int64_t attention = 0;  ///< result of attention
  std::int64_t ffn = 0;        ///< inner width of the FFN, of all experts that a token uses together
  std::int64_t router = 0;     ///< logits of the experts
  std::int64_t experts = 0;    ///< results of the experts that a token uses
  std::int64_t work = 0;       ///< what is computed before it is added to x
  std::int64_t recurrent = 0;  ///< what recurrent layers compute
  std::int64_t rope = 0;       ///< rotary tables, all kinds together
  std::int64_t logits = 0;     ///< per row of logits
};
[[nodiscard]] SKALD_API ActivationSizes activation_sizes(const ModelSpec& spec);

/// Elements per row that every recurrent layer leaves alone: the values of the first RWKV-7 layer, which others mix in.
[[nodiscard]] SKALD_API std::int64_t first_value_columns(const ModelSpec& spec) noexcept;

/// Bytes of recurrent state of one sequence: for each layer that has one two copies, so that a pass can fail, and the
/// checkpoints, each rounded up to 64 bytes.
[[nodiscard]] SKALD_API std::uint64_t recurrent_bytes(const ModelSpec& spec, std::int64_t checkpoint_interval,
                                                      std::int32_t checkpoints);

/// Most pages of a head group that a sequence needs for the newest `residual` tokens and those that can be taken back, beside
/// the coded ones.
[[nodiscard]] constexpr std::int64_t residual_pages(std::int64_t residual, std::int64_t rollback,
                                                    std::int64_t page_tokens) noexcept {
  return residual / page_tokens + (rollback + page_tokens - 1) / page_tokens + 1;
}

/// Different shapes of keys and values in the encoder's attention. An input that is encoded has pages of each shape for
/// one layer, which the layers use one after the other; nothing of them is kept.
[[nodiscard]] SKALD_API std::vector<AttentionSpec> encoder_kv_shapes(const ModelSpec& spec);

/// Bytes of the decoder's activation buffers: each buffer of ActivationSizes is rows x width f32, rounded up to 64
/// bytes; `logits` has logits_rows rows, the others batch_tokens.
[[nodiscard]] SKALD_API std::size_t activation_bytes(const ModelSpec& spec, std::int64_t batch_tokens,
                                                     std::int64_t logits_rows);

/// Largest sizes that a stream must handle for a pipeline. `weight_types` are the formats that it multiplies with
/// (Model::weight_types; empty: any), `expert_types` those of experts (empty: any of them); the result refers to both.
[[nodiscard]] SKALD_API StreamLimits stream_limits(const ModelSpec& spec, std::int64_t batch_tokens,
                                                   std::int64_t context, std::int64_t sequences,
                                                   std::span<const DType> weight_types = {},
                                                   std::span<const DType> expert_types = {});

/// The plan of a model, from metadata and the tensor table alone.
/// @throws as read_spec; UsageError for options out of range; UnsupportedError if the backend refuses a tensor's
/// format.
[[nodiscard]] SKALD_API MemoryPlan plan(const ModelFile& file, const PlanOptions& options = {});
/// @throws as open_gguf and above.
[[nodiscard]] SKALD_API MemoryPlan plan(const std::string& path, const PlanOptions& options = {});
/// For a network that exists only as a spec: all matrices in the format `weights`, vectors in f32.
[[nodiscard]] SKALD_API MemoryPlan plan(const ModelSpec& spec, DType weights, const PlanOptions& options = {});

}  // namespace skald::inline v0
