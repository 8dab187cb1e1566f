#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/state/layer_state.hpp>

namespace skald::inline v0 {

/// How a recurrent state keeps what it can go back to.
struct RecurrentOptions {
  std::int64_t elements = 0;             ///< f32 elements of state
  std::int64_t checkpoint_interval = 0;  ///< tokens between checkpoints; 0: none
  std::int32_t checkpoints = 0;          ///< how many of the latest are kept
  std::int64_t max_tokens = 0;           ///< most tokens of the sequence
};

/// A state of fixed size that follows one sequence: that of a scan, a convolution, a token shift. A forward pass reads
/// one buffer and writes another, so that a pass that fails changes nothing. A state cannot take tokens back; it is
/// copied each `checkpoint_interval` tokens, and goes back to such a copy, or to the beginning.
class SKALD_API RecurrentState final : public LayerState {
 public:
  /// @throws OutOfMemoryError.
  RecurrentState(AnyBackend backend, const RecurrentOptions& options);
  RecurrentState(const RecurrentState&) = delete;  // @see fork

  [[nodiscard]] std::string_view kind() const noexcept override { return "recurrent"; }
  void append(std::int64_t count) override;
  [[nodiscard]] std::int64_t length() const noexcept override { return tokens_ + pending_; }
  /// Appended tokens, or back to a length that `restorable` gives. @throws UsageError for others.
  void remove_last(std::int64_t count) override;
  /// @throws UsageError unless `rows` are all of the last `count`: other paths of a tree have states of their own.
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override;
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void commit() noexcept override;
  [[nodiscard]] std::int64_t restorable(std::int64_t length) const noexcept override;
  [[nodiscard]] std::size_t bytes() const noexcept override;
  void save(ArchiveWriter& out) const override;
  void load(ArchiveReader& in) override;
  void clear() noexcept override;

  /// Where the appended tokens' ops read and write. Valid until the next call that changes the state.
  [[nodiscard]] StatePlace place() const noexcept;
  /// Lengths of the checkpoints, ascending.
  [[nodiscard]] std::vector<std::int64_t> checkpoint_lengths() const;

  /// Bytes that a state with these options takes.
  [[nodiscard]] static std::size_t needed_bytes(const RecurrentOptions& options) noexcept;

 private:
  struct Checkpoint {
    std::int64_t length = -1;          // -1: free
    std::shared_ptr<Buffer> memory{};  // shared with forks until written
  };
  [[nodiscard]] std::size_t state_bytes() const noexcept;
  [[nodiscard]] const Checkpoint* find(std::int64_t length) const noexcept;
  void keep() noexcept;

  AnyBackend backend_;
  RecurrentOptions options_;
  Buffer current_;
  Buffer next_;
  std::vector<Checkpoint> checkpoints_;  // free ones first, then in the order of their lengths
  std::int64_t tokens_ = 0;              // that `current_` has seen
  std::int64_t pending_ = 0;             // appended
};

}  // namespace skald::inline v0
