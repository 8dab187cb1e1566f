#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/core/progress.hpp>
#include <skald/decoder/batch.hpp>
#include <skald/decoder/options.hpp>
#include <skald/decoder/session.hpp>
#include <skald/model/model.hpp>
#include <skald/state/eviction.hpp>
#include <skald/state/kv_format.hpp>

namespace skald::inline v0 {

/// Attention probabilities of a forward pass: per entry, layer and KV-head group one value per KV slot, collected
/// by the attention kernels themselves.
struct AttentionScores {
  ScoreKind kind = ScoreKind::sum;
  std::int32_t last_rows = 0;  ///< only the last n rows of each entry count; 0: all
  /// Result: values[entry][layer][group][slot]; layers without attention are empty.
  std::vector<std::vector<std::vector<std::vector<float>>>> values{};
};

/// What is done for one head of a row whose values lie in slow memory, in this order; between request and fetched they are on
/// their way.
enum class TransferStep : std::uint8_t { weigh, weighed, request, fetched };
struct TransferEvent {
  std::int32_t layer = 0;
  std::int32_t row = 0;   ///< among the pass's rows that do not fetch everything
  std::int32_t head = 0;  ///< query head
  TransferStep step{};
  std::uint64_t time = 0;  ///< a clock that each event moves on by one; 0: there was none
};

/// Options of one forward pass.
struct ForwardOptions {
  std::stop_token stop{};
  ProgressCallback progress{};        ///< stage "forward", in rows
  AttentionScores* scores = nullptr;  ///< filled if not null
  /// Filled if not null: the hidden states that the head reads, after the final norm, [rows of the batch, dim].
  std::vector<float>* hidden = nullptr;
  /// If not null, what was fetched from slow memory is appended.
  std::vector<TransferEvent>* transfers = nullptr;
};

namespace detail {

/// The compiled part of a decoder.
class SKALD_API DecoderCore : public std::enable_shared_from_this<DecoderCore> {
 public:
  /// `backend` is the name that the model's backend must have; empty: any.
  static std::shared_ptr<DecoderCore> create(Model model, std::string_view backend);
  static std::shared_ptr<DecoderCore> create(Model model, const DecoderOptions& options, std::string_view backend);
  static std::shared_ptr<DecoderCore> create(Model model, AnyEviction eviction, AnyKvFormat format,
                                             std::string_view backend);
  static std::shared_ptr<DecoderCore> create(Model model, AnyEviction eviction, AnyKvFormat format,
                                             const DecoderOptions& options, std::string_view backend);
  virtual ~DecoderCore();
  DecoderCore(const DecoderCore&) = delete;
  DecoderCore& operator=(const DecoderCore&) = delete;

  virtual Session new_session() = 0;
  /// A session that goes on from a state of this decoder, which `tokens` have led to.
  Session new_session(SequenceState state, std::vector<TokenId> tokens);
  /// Everything that must be equal for a state to be of use: model, KV format, techniques, page shape.
  [[nodiscard]] std::string state_key() const;
  /// The part of it that is about attention and rotation.
  [[nodiscard]] std::string attention_key() const;
  virtual Logits forward(const Batch& batch, const ForwardOptions& options) = 0;
  /// As Session::encode.
  virtual void encode(Session& session, std::span<const TokenId> tokens, const std::stop_token& stop,
                      std::vector<float>* hidden) = 0;
  /// A batch of one entry; the batch object is kept, so that a step allocates nothing.
  Logits forward_one(Session& session, std::span<const TokenId> tokens, LogitsWanted wanted, std::stop_token stop,
                     const ProgressCallback& progress);
  [[nodiscard]] virtual const EffectiveConfig& effective_config() const noexcept = 0;
  [[nodiscard]] virtual DecoderCounters counters() const = 0;
  [[nodiscard]] virtual const Model& model() const noexcept = 0;
  [[nodiscard]] virtual std::size_t memory_bytes() const noexcept = 0;
  /// Bytes of KV pages that all sessions together can hold.
  [[nodiscard]] virtual std::size_t kv_capacity_bytes() const noexcept = 0;
  [[nodiscard]] bool owns(const Session& session) const noexcept { return session.core_.get() == this; }

 protected:
  DecoderCore() = default;
  // What implementations may touch of their friends.
  using Entry = Batch::Entry;
  using EntryKind = Batch::Kind;
  static const std::vector<Entry>& entries(const Batch& batch) noexcept { return batch.entries_; }
  static const std::vector<TokenId>& tokens(const Batch& batch) noexcept { return batch.tokens_; }
  static const std::vector<float>& embeddings(const Batch& batch) noexcept { return batch.embeddings_; }
  static const std::vector<std::int32_t>& parents(const Batch& batch) noexcept { return batch.parents_; }
  static Session make_session(std::shared_ptr<DecoderCore> core, SequenceState state) {
    return Session(std::move(core), std::move(state));
  }
  static std::shared_ptr<DecoderCore> make(Model model, AnyEviction eviction, AnyKvFormat format,
                                           const DecoderOptions& options, std::string_view backend);
  static std::vector<TokenId>& tokens(Session& session) noexcept { return session.tokens_; }
  static std::vector<TokenId>& pending_tokens(Session& session) noexcept { return session.pending_tokens_; }
  Batch single_;
};

}  // namespace detail

/// Runs batches of tokens through a model on its backend, over sequence states, and returns logits.
///
/// `Decoder(model, options)` chooses every part by name. `Decoder<B, E, K>(model, eviction, kv)` composes statically,
/// with types of one's own; `B` states which backend the model must be on.
/// One thread at a time per decoder and its sessions; decoders that share a model are independent.
template <Backend B = BackendInterface, EvictionPolicy E = AnyEviction, KvFormat K = AnyKvFormat>
class Decoder {
 public:
  /// With the default options.
  /// @throws IncompatibleError naming the parts that clash and why; UnsupportedError; UsageError; OutOfMemoryError.
  explicit Decoder(Model model)
    requires(std::same_as<E, AnyEviction> && std::same_as<K, AnyKvFormat>)
      : core_(detail::DecoderCore::create(std::move(model), backend_name())) {}
  Decoder(Model model, const DecoderOptions& options)
    requires(std::same_as<E, AnyEviction> && std::same_as<K, AnyKvFormat>)
      : core_(detail::DecoderCore::create(std::move(model), options, backend_name())) {}
  /// Components by type. `options.kv.eviction` and `options.kv.format` are left at their defaults, or name the same ones.
  Decoder(Model model, E eviction, K format = K{})
      : core_(detail::DecoderCore::create(std::move(model), AnyEviction(std::move(eviction)), AnyKvFormat(format),
                                          backend_name())) {}
  Decoder(Model model, E eviction, K format, const DecoderOptions& options)
      : core_(detail::DecoderCore::create(std::move(model), AnyEviction(std::move(eviction)), AnyKvFormat(format),
                                          options, backend_name())) {}

  /// An empty session. Sessions keep the decoder's memory alive.
  [[nodiscard]] Session new_session() const { return core_->new_session(); }
  /// The one forward pass. Computes all rows, appends them to their sessions and returns the logits asked for; the
  /// result of a row does not depend on the other entries, on how a prompt is cut into batches, or on the number of
  /// threads. On an exception (also CancelledError) each session is left at its last committed step: rows of earlier
  /// cuts of a long batch stay, later ones are as if never given.
  /// @throws UsageError for token ids out of range, full sessions, foreign sessions; IncompatibleError for token trees
  /// or scores with an eviction that drops tokens; OutOfMemoryError; NumericError; what an eviction policy throws.
  Logits forward(const Batch& batch, const ForwardOptions& options = {}) const {
    return core_->forward(batch, options);
  }
  /// What is really active.
  [[nodiscard]] const EffectiveConfig& effective_config() const noexcept { return core_->effective_config(); }
  [[nodiscard]] DecoderCounters counters() const { return core_->counters(); }
  [[nodiscard]] const Model& model() const noexcept { return core_->model(); }
  /// Bytes of activations and of what they need beside (MemoryPlan::activations), without weights, KV pages and the stream's
  /// work memory.
  [[nodiscard]] std::size_t memory_bytes() const noexcept { return core_->memory_bytes(); }

 private:
  friend class PrefixCache;
  [[nodiscard]] const std::shared_ptr<detail::DecoderCore>& core() const noexcept { return core_; }
  [[nodiscard]] static constexpr std::string_view backend_name() noexcept {
    if constexpr (requires { B::backend_name; }) return B::backend_name;
    else return {};
  }
  std::shared_ptr<detail::DecoderCore> core_;
};

Decoder(Model) -> Decoder<>;
Decoder(Model, DecoderOptions) -> Decoder<>;

}  // namespace skald::inline v0
