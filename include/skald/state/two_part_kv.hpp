#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <skald/state/paged_kv.hpp>

namespace skald::inline v0 {

/// A layer whose keys and values lie in two places, each with pages of its own: the older ones in `front`, the newer ones in
/// `back`. Attention reads both (KvLayer::earlier).
class SKALD_API TwoPartKv : public LayerState {
 public:
  [[nodiscard]] PagedKv& front() const noexcept { return *front_; }
  [[nodiscard]] PagedKv& back() const noexcept { return *back_; }
  /// Where the rows of the last append are stored.
  [[nodiscard]] virtual PagedKv& written() const noexcept = 0;
  /// Slots of `front` that these rows see beside those of `written`.
  [[nodiscard]] virtual std::int64_t earlier_slots() const noexcept = 0;

  [[nodiscard]] std::size_t bytes() const noexcept override { return front_->bytes() + back_->bytes(); }
  [[nodiscard]] std::size_t bytes_beyond(const LayerState& other) const override;
  [[nodiscard]] std::size_t policy_bytes() const noexcept override { return front_->policy_bytes() + back_->policy_bytes(); }
  void save(ArchiveWriter& out) const override;
  void clear() noexcept override;

 protected:
  TwoPartKv(std::unique_ptr<PagedKv> front, std::unique_ptr<PagedKv> back)
      : front_(std::move(front)), back_(std::move(back)) {}
  static std::unique_ptr<PagedKv> fork_part(const PagedKv& part);

  std::unique_ptr<PagedKv> front_;
  std::unique_ptr<PagedKv> back_;
};

/// A layer whose back lies in slow memory. Both parts grow with every token.
class SKALD_API SlowBackKv : public TwoPartKv {
 public:
  [[nodiscard]] std::int64_t earlier_slots() const noexcept override { return 0; }
  void commit() noexcept override;
  /// Of fast memory.
  [[nodiscard]] std::size_t bytes() const noexcept override { return front_->bytes(); }
  [[nodiscard]] std::size_t bytes_beyond(const LayerState& other) const override;
  [[nodiscard]] std::size_t slow_bytes() const noexcept override { return back_->bytes(); }

 protected:
  using TwoPartKv::TwoPartKv;
};

/// Quantized keys and values of which the newest stay as they are (KIVI, Liu et al. 2024, arXiv 2402.02750): at each page
/// border the page that lies `residual` tokens back is encoded. Where the border lies depends on the length alone: rows
/// between two page borders, however they are batched, see the same tokens as codes.
class SKALD_API ResidualKv final : public TwoPartKv {
 public:
  /// `coded` and `recent` are empty and have the same groups, heads and dimensions; `recent` has the window residual + 1.
  /// `residual` is a multiple of the page's tokens.
  ResidualKv(std::unique_ptr<PagedKv> coded, std::unique_ptr<PagedKv> recent, std::int64_t residual);

  [[nodiscard]] std::string_view kind() const noexcept override { return "residual_kv"; }
  [[nodiscard]] PagedKv& written() const noexcept override { return *back_; }
  [[nodiscard]] std::int64_t earlier_slots() const noexcept override { return filled_; }
  void append(std::int64_t count) override;
  [[nodiscard]] std::int64_t length() const noexcept override { return back_->length(); }
  void remove_last(std::int64_t count) override;
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override;
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void commit() noexcept override;
  /// Beyond the tokens that can be taken back, only to 0.
  [[nodiscard]] std::int64_t restorable(std::int64_t length) const noexcept override;
  void load(ArchiveReader& in) override;
  void clear() noexcept override;

 private:
  [[nodiscard]] std::int64_t coded_slots(std::int64_t length) const noexcept;
  void trim();
  void encode_page(int group, std::int64_t slot) noexcept;

  std::int64_t residual_;
  std::int64_t filled_ = 0;  // slots of the front that hold codes; further ones are made room for
  std::vector<float> row_;
  std::vector<std::byte> from_, to_;  // pages on their way, if the host cannot see the pool
};

/// The prompt's keys and values in one segment, those of the answer in another (arXiv 2401.05391): forks share the prompt as
/// a whole, its last page too, and only the answer's pages are copied and replaced. Tokens before the prompt's length, or
/// as long as none is told, go to the front.
class SKALD_API SegmentedKv final : public TwoPartKv {
 public:
  /// Both empty, in pages of one layout.
  SegmentedKv(std::unique_ptr<PagedKv> prompt, std::unique_ptr<PagedKv> answer)
      : TwoPartKv(std::move(prompt), std::move(answer)) {}

  [[nodiscard]] std::string_view kind() const noexcept override { return "segmented_kv"; }
  [[nodiscard]] PagedKv& written() const noexcept override { return in_front_ ? *front_ : *back_; }
  [[nodiscard]] std::int64_t earlier_slots() const noexcept override { return in_front_ ? 0 : front_->length(); }
  void set_prompt_length(std::int64_t tokens) noexcept override { prompt_ = tokens; }
  void append(std::int64_t count) override;
  [[nodiscard]] std::int64_t length() const noexcept override { return front_->length() + back_->length(); }
  void remove_last(std::int64_t count) override;
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override {
    written().select_last(count, rows);
  }
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void commit() noexcept override;
  void load(ArchiveReader& in) override;

 private:
  std::int64_t prompt_ = 0;
  bool in_front_ = true;
};

/// Keys and values from which tokens are dropped, in `back`, beside dropped ones that were computed again, in `front`. In slow
/// memory it keeps how every token entered the layer, so that its key and value can be computed again, the same bits.
class SKALD_API RebuiltKv final : public TwoPartKv {
 public:
  /// `dim`: elements of a token's state.
  RebuiltKv(std::unique_ptr<PagedKv> rebuilt, std::unique_ptr<PagedKv> kept, std::int64_t dim);

  [[nodiscard]] std::string_view kind() const noexcept override { return "rebuilt_kv"; }
  [[nodiscard]] PagedKv& written() const noexcept override { return *back_; }
  [[nodiscard]] std::int64_t earlier_slots() const noexcept override { return front_->length(); }
  /// Positions that are in `front`.
  [[nodiscard]] std::span<const std::int32_t> rebuilt() const noexcept { return positions_; }
  /// True if `front` holds just these.
  [[nodiscard]] bool holds(std::span<const std::int32_t> positions) const noexcept;
  /// True if what `front` holds can be moved within its pages.
  [[nodiscard]] bool movable() const noexcept;
  /// Indices of those positions that `front` does not hold.
  void missing(std::span<const std::int32_t> positions, std::vector<std::int32_t>& out) const;
  /// Makes room for these in `front`. With `moves` (only if movable) those that are there go to their new places; the next pass
  /// computes the others. @throws OutOfMemoryError.
  void begin_rebuild(std::span<const std::int32_t> positions, bool moves);
  /// How committed tokens that follow one another, and then those of the pass, entered the layer.
  [[nodiscard]] const float* entered(std::int64_t position) const noexcept { return entered_.data() + position * dim_; }
  void add_entered(std::span<const float> rows) { entered_.insert(entered_.end(), rows.begin(), rows.end()); }
  /// Ascending positions of the tokens that were dropped.
  void dropped(std::vector<std::int32_t>& out) const;

  void append(std::int64_t count) override { back_->append(count); }
  [[nodiscard]] std::int64_t length() const noexcept override { return back_->length(); }
  void remove_last(std::int64_t count) override;
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override { back_->select_last(count, rows); }
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void show_groups(int layer, std::int64_t sequence_tokens, std::vector<EvictionView>& views) override {
    back_->show_groups(layer, sequence_tokens, views);
  }
  void choose_evictions(const AnyEviction& policy, std::span<const EvictionView> views) override {
    back_->choose_evictions(policy, views);
  }
  void apply_evictions() noexcept override { back_->apply_evictions(); }
  void commit() noexcept override;
  [[nodiscard]] std::int64_t restorable(std::int64_t length) const noexcept override { return back_->restorable(length); }
  [[nodiscard]] std::size_t slow_bytes() const noexcept override { return entered_.size() * sizeof(float); }
  void save(ArchiveWriter& out) const override;
  void load(ArchiveReader& in) override;
  void clear() noexcept override;

 private:
  std::int64_t dim_;
  std::vector<std::int32_t> positions_;
  bool valid_ = false;  // the front holds what it says
  std::vector<std::array<std::int32_t, 2>> moves_;  // from slot to slot
  std::vector<std::byte> rows_;                     // on their way
  std::vector<float> entered_;
};

}  // namespace skald::inline v0
