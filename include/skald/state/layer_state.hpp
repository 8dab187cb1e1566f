#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <skald/state/archive.hpp>
#include <skald/state/eviction.hpp>

namespace skald::inline v0 {

/// What a sequence remembers in one layer. Every kind (paged KV, latent KV, recurrent state, ...) can do all of
/// these, so that speculation, prefix reuse, pre-emption and beam search work on any model. Lengths count tokens of
/// the sequence. Not thread-safe; states of different sequences are independent.
class SKALD_API LayerState {
 public:
  virtual ~LayerState();
  LayerState& operator=(const LayerState&) = delete;

  /// Kind name, e.g. "paged_kv".
  [[nodiscard]] virtual std::string_view kind() const noexcept = 0;
  /// Tokens at the beginning that are the prompt, 0 if nobody has told; before every append.
  virtual void set_prompt_length(std::int64_t /*tokens*/) noexcept {}
  /// Makes room for `count` further tokens, which the next forward pass writes. All or nothing.
  /// @throws OutOfMemoryError.
  virtual void append(std::int64_t count) = 0;
  /// Tokens, appended ones included.
  [[nodiscard]] virtual std::int64_t length() const noexcept = 0;
  /// Forgets the last `count` tokens, appended or committed.
  /// @throws UsageError if that would need tokens that are gone.
  virtual void remove_last(std::int64_t count) = 0;
  /// Of the last `count` tokens keeps those at the ascending indices `rows`, which become the last ones (the accepted
  /// path of a token tree). All or nothing.
  virtual void select_last(std::int64_t count, std::span<const std::int32_t> rows) = 0;
  /// A second state with the same contents; memory is shared until one of them writes.
  [[nodiscard]] virtual std::unique_ptr<LayerState> fork() const = 0;
  /// Appends a view of every head group that a policy may evict from; the views are valid until the state changes.
  virtual void show_groups(int /*layer*/, std::int64_t /*sequence_tokens*/, std::vector<EvictionView>& /*views*/) {}
  /// Asks a policy at a page border what to drop, given the views that show_groups appended, and keeps the answer for
  /// `apply_evictions`; changes nothing else, so that a policy that throws leaves the state as it was.
  virtual void choose_evictions(const AnyEviction& /*policy*/, std::span<const EvictionView> /*views*/) {}
  /// Drops what the last `choose_evictions` has chosen; nothing may have changed since.
  virtual void apply_evictions() noexcept {}
  /// The appended tokens are part of the sequence now.
  virtual void commit() noexcept {}
  /// The largest length up to `length` to which remove_last can go back exactly, negative if there is none.
  [[nodiscard]] virtual std::int64_t restorable(std::int64_t length) const noexcept { return length; }
  /// Bytes of backend memory that this state holds; shared memory counts in full.
  [[nodiscard]] virtual std::size_t bytes() const noexcept = 0;
  /// Those of them that `other`, a state of the same layer, does not hold too.
  [[nodiscard]] virtual std::size_t bytes_beyond(const LayerState& /*other*/) const { return bytes(); }
  /// Bytes of numbers that an eviction policy has reserved beside keys and values.
  [[nodiscard]] virtual std::size_t policy_bytes() const noexcept { return 0; }
  /// Bytes of slow memory (host memory apart, or a file) beside those.
  [[nodiscard]] virtual std::size_t slow_bytes() const noexcept { return 0; }
  /// Writes everything that is needed to go on.
  virtual void save(ArchiveWriter& out) const = 0;
  /// Replaces the contents. @throws FormatError, OutOfMemoryError; the state is then empty.
  virtual void load(ArchiveReader& in) = 0;
  virtual void clear() noexcept = 0;
  /// True if every token has a row that depends on no later one and is still there: then rows can be written and read apart
  /// from the rest, and be shared with other sequences that begin with the same tokens.
  [[nodiscard]] virtual bool row_wise() const noexcept { return false; }
  /// Writes the rows of the tokens from `from` on. Row-wise states only.
  virtual void save_rows(ArchiveWriter& /*out*/, std::int64_t /*from*/) const {}
  /// Fills the rows that the last append made room for. @throws FormatError.
  virtual void load_rows(ArchiveReader& /*in*/, std::int64_t /*count*/) {}
  /// Holds the first `tokens` tokens in common memory with `other`, which has the same ones, as far as whole pages go.
  virtual void share_rows(const LayerState& /*other*/, std::int64_t /*tokens*/) noexcept {}

 protected:
  LayerState() = default;
  LayerState(const LayerState&) = default;
};

}  // namespace skald::inline v0
