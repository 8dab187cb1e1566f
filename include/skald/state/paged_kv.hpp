#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <skald/state/kv_pool.hpp>
#include <skald/state/layer_state.hpp>

namespace skald::inline v0 {

/// Keys and values of one layer in pages of a shared pool, one page table per KV-head group: evicting in one group
/// frees that group's memory. Full and shared pages are never written; a fork copies a partial page when it appends.
class SKALD_API PagedKv final : public LayerState {
 public:
  /// `max_tokens` reserves the tables, so that appending up to there allocates nothing.
  PagedKv(std::shared_ptr<KvPool> pool, int groups, std::int64_t max_tokens);
  ~PagedKv() override;

  [[nodiscard]] std::string_view kind() const noexcept override { return "paged_kv"; }
  void append(std::int64_t count) override;
  [[nodiscard]] std::int64_t length() const noexcept override { return tokens_; }
  void remove_last(std::int64_t count) override;
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override;
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void choose_evictions(const AnyEviction& policy, int layer, std::int64_t sequence_tokens) override;
  void apply_evictions() noexcept override;
  [[nodiscard]] std::size_t bytes() const noexcept override;
  void save(ArchiveWriter& out) const override;
  void load(ArchiveReader& in) override;
  void clear() noexcept override;

  [[nodiscard]] const KvPool& pool() const noexcept { return *pool_; }
  [[nodiscard]] int groups() const noexcept { return static_cast<int>(groups_.size()); }
  /// Filled slots of a group, those of the last `append` included.
  [[nodiscard]] std::int64_t slots(int group) const noexcept { return groups_[static_cast<std::size_t>(group)].slots; }
  [[nodiscard]] const std::vector<PageId>& pages(int group) const noexcept {
    return groups_[static_cast<std::size_t>(group)].pages;
  }
  /// Pages that evictions have freed so far.
  [[nodiscard]] std::int64_t evicted_pages() const noexcept { return evicted_pages_; }

 private:
  struct Group {
    std::vector<PageId> pages;
    std::vector<std::int64_t> first_tokens;  // position of each page's first token
    std::int64_t slots = 0;
  };
  PagedKv(const PagedKv& other) = default;
  std::size_t new_pages(const Group& group, std::int64_t count) const;
  void reserve_tables();
  void append_to(Group& group, std::int64_t count, std::int64_t position);
  [[nodiscard]] std::size_t most_pages() const noexcept;
  void load_group(ArchiveReader& in, Group& group, std::int64_t tokens, std::int64_t kept_from);

  std::shared_ptr<KvPool> pool_;
  std::vector<Group> groups_;
  std::int64_t max_tokens_;
  std::int64_t tokens_ = 0;         // of the sequence, evicted ones included
  std::int64_t kept_from_ = 0;      // tokens before this may be missing
  std::int64_t evicted_pages_ = 0;
  std::vector<PageInfo> page_infos_;  // what a policy is shown; kept so that evictions allocate nothing
  std::vector<std::uint8_t> drops_;   // chosen evictions of all groups, one after the other
};

}  // namespace skald::inline v0
