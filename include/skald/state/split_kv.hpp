#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <skald/state/paged_kv.hpp>

namespace skald::inline v0 {

/// A layer whose KV-head groups are stored in different formats: one PagedKv for each run of groups that have one in
/// common. Everything is done to all of them.
class SKALD_API SplitKv final : public LayerState {
 public:
  explicit SplitKv(std::vector<std::unique_ptr<PagedKv>> parts) : parts_(std::move(parts)) {}

  [[nodiscard]] std::string_view kind() const noexcept override { return "split_kv"; }
  [[nodiscard]] int parts() const noexcept { return static_cast<int>(parts_.size()); }
  [[nodiscard]] PagedKv& part(int index) const noexcept { return *parts_[static_cast<std::size_t>(index)]; }

  void append(std::int64_t count) override;
  [[nodiscard]] std::int64_t length() const noexcept override { return parts_.front()->length(); }
  void remove_last(std::int64_t count) override;
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override;
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void show_groups(int layer, std::int64_t sequence_tokens, std::vector<EvictionView>& views) override;
  void choose_evictions(const AnyEviction& policy, std::span<const EvictionView> views) override;
  void apply_evictions() noexcept override;
  void commit() noexcept override;
  [[nodiscard]] std::int64_t restorable(std::int64_t length) const noexcept override;
  [[nodiscard]] std::size_t bytes() const noexcept override;
  [[nodiscard]] std::size_t bytes_beyond(const LayerState& other) const override;
  [[nodiscard]] std::size_t policy_bytes() const noexcept override;
  void save(ArchiveWriter& out) const override;
  void load(ArchiveReader& in) override;
  void clear() noexcept override;
  [[nodiscard]] bool row_wise() const noexcept override;
  void save_rows(ArchiveWriter& out, std::int64_t from) const override;
  void load_rows(ArchiveReader& in, std::int64_t count) override;
  void share_rows(const LayerState& other, std::int64_t tokens) noexcept override;

 private:
  std::vector<std::unique_ptr<PagedKv>> parts_;
};

}  // namespace skald::inline v0
