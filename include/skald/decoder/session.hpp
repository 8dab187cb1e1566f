#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include <skald/core/progress.hpp>
#include <skald/model/adapter.hpp>
#include <skald/state/sequence.hpp>
#include <skald/text/vocabulary.hpp>

namespace skald::inline v0 {

class Model;
class Logits;
class PrefixCache;
namespace detail {
class DecoderCore;
struct ContextAccess;
}

/// Which rows of an entry get logits.
enum class LogitsWanted : std::uint8_t { none, last, all };

/// One conversation's memory in a decoder: its tokens and its state in every layer. Move-only; must not outlive
/// nothing: it keeps its decoder's memory alive. One thread at a time per decoder and its sessions.
class SKALD_API Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  /// Tokens in memory.
  [[nodiscard]] std::int64_t length() const noexcept { return state_.length(); }
  /// The tokens in memory; entries given as embeddings are -1.
  [[nodiscard]] std::span<const TokenId> tokens() const noexcept { return tokens_; }
  /// Most tokens this session can hold.
  [[nodiscard]] std::int64_t context() const noexcept;
  [[nodiscard]] const Model& model() const noexcept;
  /// Names the session's stream of random numbers: equal seeds, ids and positions draw equal numbers.
  [[nodiscard]] std::uint64_t random_stream() const noexcept { return random_stream_; }
  void set_random_stream(std::uint64_t id) noexcept { random_stream_ = id; }

  /// Adapters of all further passes of this session; each adds its change, in this order. Base weights are not touched,
  /// and rows of other sessions in the same batch get what they would get alone. What is in memory was computed under the
  /// adapters of its time, so they can be changed only while the session is empty.
  /// @throws UsageError if it is not empty, IncompatibleError for an adapter of another model, NumericError for a scale
  /// that is not finite.
  void set_adapters(std::vector<ScaledAdapter> adapters);
  [[nodiscard]] std::span<const ScaledAdapter> adapters() const noexcept { return adapters_; }
  /// Identifies the adapters and their scales; zeros without adapters. A prefix may be reused only where it is equal.
  [[nodiscard]] std::array<std::uint64_t, 2> adapter_fingerprint() const noexcept;

  /// Runs tokens through the network; shorthand for a batch of one entry. @see Decoder::forward
  Logits forward(std::span<const TokenId> tokens, LogitsWanted wanted = LogitsWanted::last, std::stop_token stop = {},
                 const ProgressCallback& progress = {});

  /// Reads a text with the model's encoder, which the tokens that follow then attend to (T5). What layers make of it is
  /// kept with the session: truncating keeps it, forks share it, snapshots have it, clear() forgets it. The result does not
  /// depend on other sessions. `hidden`, if not null, is filled with the encoder's result, [tokens, dim].
  /// @throws IncompatibleError if the model has no encoder; UsageError if there are no tokens, more than the context or
  /// batch_tokens (they see each other), ids out of range, or if the session holds tokens that were computed for another
  /// input; OutOfMemoryError; CancelledError. The session is then as before.
  void encode(std::span<const TokenId> tokens, std::stop_token stop = {}, std::vector<float>* hidden = nullptr);
  /// Tokens of the encoded text; 0: none.
  [[nodiscard]] std::int64_t encoded_length() const noexcept { return state_.source_length(); }

  /// Keeps the first `length` tokens. Under a policy that counts attention this computes the tokens since the last page
  /// border again, or all if nothing was dropped yet. @throws UsageError if that needs what an eviction or a sliding
  /// window has dropped.
  void truncate(std::int64_t length);
  /// True if truncate(length) would not be refused for want of dropped tokens.
  [[nodiscard]] bool can_truncate(std::int64_t length) const noexcept;
  /// Tells eviction policies that treat prompt and answer differently where the prompt ends.
  void set_prompt_length(std::int64_t tokens) noexcept { state_.set_prompt_length(tokens); }
  /// After a forward pass over a token tree: takes the rows of one path (ascending indices into the tree's entry) into
  /// the sequence and drops the others. Until then the tree's tokens are not part of the session.
  void accept(std::span<const std::int32_t> rows);
  /// A second session with the same contents; pages are shared until one of them writes.
  [[nodiscard]] Session fork() const;
  /// Forgets everything.
  void clear() noexcept;
  /// Bytes of KV memory held, that of an encoded text included; pages shared with forks count in full.
  [[nodiscard]] std::size_t bytes() const noexcept { return state_.bytes(); }

  /// Bytes held in slow memory beside those. @see AnyKvFormat::fetched_values
  [[nodiscard]] std::size_t slow_bytes() const noexcept { return state_.slow_bytes(); }

  /// Everything that is needed to go on, as bytes: self-describing, with a checksum.
  [[nodiscard]] std::vector<std::byte> snapshot() const;
  /// Replaces the contents by a snapshot; on an error the session is unchanged. @throws FormatError for damaged data,
  /// IncompatibleError naming the field that differs (model, KV format, ...), OutOfMemoryError.
  void restore(std::span<const std::byte> snapshot);
  /// Snapshot to a file; the file holds the whole old or the whole new contents at any moment. @throws IoError.
  void save(const std::string& path) const;
  /// @throws IoError and as `restore`.
  void load(const std::string& path);

  /// The memory itself, for components.
  [[nodiscard]] SequenceState& state() noexcept { return state_; }
  [[nodiscard]] const SequenceState& state() const noexcept { return state_; }

 private:
  friend class detail::DecoderCore;
  friend class PrefixCache;  // begins sessions under adapters with what it knows
  friend struct detail::ContextAccess;
  Session(std::shared_ptr<detail::DecoderCore> core, SequenceState state);
  void restore_named(std::span<const std::byte> snapshot, const std::string& name);

  std::shared_ptr<detail::DecoderCore> core_;
  SequenceState state_;
  std::vector<TokenId> tokens_;
  std::vector<TokenId> pending_tokens_;  // of a token tree that was not accepted yet
  std::uint64_t random_stream_ = 0;
  std::vector<ScaledAdapter> adapters_;
};

}  // namespace skald::inline v0
