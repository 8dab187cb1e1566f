#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <skald/state/layer_state.hpp>

namespace skald::inline v0 {

/// Everything one sequence remembers: one LayerState per layer that has one, all of the same length. The length moves
/// in steps: `append` makes room for tokens, a forward pass writes them, `commit` makes them part of the sequence.
class SKALD_API SequenceState {
 public:
  SequenceState() = default;
  /// Null entries are layers without state. The first `layers` states, if negative all, are those that `layer` gives; more of
  /// them are second states of these layers in the same order, which `second`
  /// gives. `source` is what the layers remember of an encoded input, see `source_layer`.
  explicit SequenceState(std::vector<std::unique_ptr<LayerState>> states, int layers = -1,
                         std::vector<std::unique_ptr<LayerState>> source = {})
      : layers_(std::move(states)),
        layer_count_(layers < 0 ? static_cast<int>(layers_.size()) : layers),
        source_(std::move(source)) {}
  SequenceState(SequenceState&&) noexcept = default;
  SequenceState& operator=(SequenceState&&) noexcept = default;

  /// Committed tokens.
  [[nodiscard]] std::int64_t length() const noexcept { return length_; }
  /// Makes room for `count` tokens in every layer, or in none. @throws OutOfMemoryError.
  void append(std::int64_t count);
  /// Takes the appended tokens into the sequence.
  void commit() noexcept;
  /// Of the appended tokens takes those at the ascending indices `rows` into the sequence and drops the others.
  /// @throws UsageError if the indices are not ascending or not inside; OutOfMemoryError or std::bad_alloc: then all
  /// appended tokens are dropped.
  void commit_selected(std::span<const std::int32_t> rows);
  /// Appended tokens that are not committed.
  [[nodiscard]] std::int64_t pending() const noexcept { return pending_; }
  /// Drops appended tokens that were not committed.
  void rollback();
  /// Keeps the first `length` tokens. @throws UsageError if `length` is larger than length() or tokens are gone that
  /// would be needed again.
  void truncate(std::int64_t length);
  /// The largest length up to `length` that `truncate` can restore exactly, negative if there is none. It is smaller than
  /// `length` where statistics of an eviction policy are known at page borders only: the tokens in between are then to be
  /// computed again.
  [[nodiscard]] std::int64_t restorable(std::int64_t length) const noexcept;
  /// Tokens at the beginning that a policy is to take for the prompt; 0: not told.
  [[nodiscard]] std::int64_t prompt_length() const noexcept { return prompt_; }
  void set_prompt_length(std::int64_t tokens) noexcept { prompt_ = tokens < 0 ? 0 : tokens; }
  /// True if what is remembered is not what the tokens give, but was predicted or stored with a loss. Forks and saved sequences
  /// are as well.
  [[nodiscard]] bool approximate() const noexcept { return approximate_; }
  void set_approximate() noexcept { approximate_ = true; }
  /// A second sequence with the same contents; memory is shared until one of them writes. @throws UsageError while
  /// tokens are appended but not committed.
  [[nodiscard]] SequenceState fork() const;
  /// Lets a policy drop pages, those appended but not committed included; called at page borders. Nothing has changed
  /// if the policy throws.
  void evict(const AnyEviction& policy) {
    choose_evictions(policy);
    apply_evictions();
  }
  /// Runs work(0) to work(units - 1), which do not throw, on any threads and at the same time.
  using Spread = FunctionRef<void(std::int64_t units, FunctionRef<void(std::int64_t)> work)>;
  /// The two halves of `evict`, for a caller with something to do between asking and dropping (committing, say). With
  /// `spread`, policies that allow it are asked about layers at the same time.
  void choose_evictions(const AnyEviction& policy, const Spread* spread = nullptr);
  void apply_evictions(const Spread* spread = nullptr) noexcept;
  /// Bytes of backend memory held; memory shared with forks counts in full.
  [[nodiscard]] std::size_t bytes() const noexcept;
  /// Those of them that `other`, of the same decoder, does not hold too.
  [[nodiscard]] std::size_t bytes_beyond(const SequenceState& other) const;
  /// As LayerState::policy_bytes, of all layers.
  [[nodiscard]] std::size_t policy_bytes() const noexcept;
  /// As LayerState::slow_bytes, of all layers.
  [[nodiscard]] std::size_t slow_bytes() const noexcept;
  void save(ArchiveWriter& out) const;
  /// Replaces the contents. @throws FormatError, OutOfMemoryError; the sequence is then empty.
  void load(ArchiveReader& in);
  void clear() noexcept;
  /// As LayerState::row_wise, of all layers.
  [[nodiscard]] bool row_wise() const noexcept;
  /// Writes what the tokens from `from` on add. Row-wise sequences only.
  void save_rows(ArchiveWriter& out, std::int64_t from) const;
  /// Appends tokens from what `save_rows` wrote. @throws FormatError, OutOfMemoryError; the sequence is then unchanged.
  void load_rows(ArchiveReader& in);
  /// Holds the first `tokens` tokens in common memory with `other`, which must have been computed from the same ones.
  void share_rows(const SequenceState& other, std::int64_t tokens) noexcept;

  [[nodiscard]] int layer_count() const noexcept { return layer_count_; }
  /// State of a layer, or null if the layer has none.
  [[nodiscard]] LayerState* layer(int index) const noexcept { return layers_[static_cast<std::size_t>(index)].get(); }
  /// A layer's second state (a recurrent one beside pages), or null.
  [[nodiscard]] LayerState* second(int index) const noexcept {
    const auto at = static_cast<std::size_t>(layer_count_ + index);
    return at < layers_.size() ? layers_[at].get() : nullptr;
  }

  /// What a layer remembers of the input that an encoder has read, or null. It is made as a whole and does not change with
  /// the sequence: truncating keeps it, forks share it.
  [[nodiscard]] LayerState* source_layer(int index) const noexcept {
    return source_.empty() ? nullptr : source_[static_cast<std::size_t>(index)].get();
  }
  /// Tokens of that input; 0: none was encoded.
  [[nodiscard]] std::int64_t source_length() const noexcept;
  /// Replaces it; as many states as before.
  void set_source(std::vector<std::unique_ptr<LayerState>> source) noexcept { source_ = std::move(source); }

 private:
  std::vector<std::unique_ptr<LayerState>> layers_;
  int layer_count_ = 0;
  std::vector<std::unique_ptr<LayerState>> source_;
  std::int64_t length_ = 0;
  std::int64_t pending_ = 0;
  std::int64_t prompt_ = 0;
  bool approximate_ = false;
  std::vector<EvictionView> views_;  // of all layers, kept so that evictions allocate nothing
  std::vector<std::exception_ptr> failures_;  // of each layer
  std::vector<std::int64_t> budgets_;
};

}  // namespace skald::inline v0
