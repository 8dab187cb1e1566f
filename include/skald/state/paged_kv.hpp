#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <skald/state/kv_pool.hpp>
#include <skald/state/layer_state.hpp>

namespace skald::inline v0 {

/// How keys are rotated: by `position` times each of the frequencies.
struct KeyRotation {
  std::vector<double> inverse_frequencies{};  ///< empty: not at all
  bool interleaved = false;                   ///< pairs are neighbours, else half the rotated elements apart
};

/// What a PagedKv is for.
struct PagedKvOptions {
  std::int64_t max_tokens = 0;  ///< reserves the tables, so that appending up to there allocates nothing
  /// Sliding window: a token sees the last `window` slots, its own included; pages wholly behind the window are freed when
  /// tokens are committed. 0: everything stays. Evictions leave such a layer alone: it is bounded already.
  std::int64_t window = 0;
  std::int64_t rollback = 0;     ///< committed tokens that can be taken back in spite of the window
  bool evicts = false;           ///< keeps each slot's position for an eviction policy
  bool scores = false;           ///< keeps each slot's score
  bool scores_anew = false;      ///< scores begin at zero after each border
  ScoreShape score_shape{};      ///< whose noise is kept for each slot
  std::uint64_t noise_stream = 0;  ///< of group 0
  std::int32_t gate_width = 0;   ///< elements of the gate key kept for each slot; all groups then drop the same slots
  bool codes = false;            ///< what lies in the pages are codes of a codebook that is known elsewhere
  bool counts = false;           ///< slots weigh in attention as many tokens as were merged into them
  std::int32_t memory_floats = 0;  ///< a policy's own numbers per head group
  /// So many first tokens get their keys rotated, at each border, to directly precede the oldest token after them.
  std::int32_t sinks = 0;
  std::shared_ptr<const KeyRotation> rotation{};  ///< needed with sinks
};

/// Keys and values of one layer in pages of a shared pool, one page table per KV-head group: evicting in one group
/// frees that group's memory. Shared pages are never written: a fork copies a partial page when it appends, and all that
/// change when it evicts single tokens.
class SKALD_API PagedKv final : public LayerState {
 public:
  PagedKv(std::shared_ptr<KvPool> pool, int groups, const PagedKvOptions& options);
  PagedKv(std::shared_ptr<KvPool> pool, int groups, std::int64_t max_tokens)
      : PagedKv(std::move(pool), groups, PagedKvOptions{.max_tokens = max_tokens, .evicts = true}) {}
  ~PagedKv() override;

  [[nodiscard]] std::string_view kind() const noexcept override { return "paged_kv"; }
  void append(std::int64_t count) override;
  [[nodiscard]] std::int64_t length() const noexcept override { return tokens_; }
  void remove_last(std::int64_t count) override;
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override;
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void show_groups(int layer, std::int64_t sequence_tokens, std::vector<EvictionView>& views) override;
  void choose_evictions(const AnyEviction& policy, std::span<const EvictionView> views) override {
    choose_evictions(policy, views, 0);
  }
  /// The same for views in which this state's groups are numbered from `first_group` on.
  void choose_evictions(const AnyEviction& policy, std::span<const EvictionView> views, int first_group);
  void apply_evictions() noexcept override;
  void commit() noexcept override;
  [[nodiscard]] std::int64_t restorable(std::int64_t length) const noexcept override;
  [[nodiscard]] std::size_t bytes() const noexcept override;
  [[nodiscard]] std::size_t bytes_beyond(const LayerState& other) const override;
  [[nodiscard]] std::size_t policy_bytes() const noexcept override;
  void save(ArchiveWriter& out) const override;
  void load(ArchiveReader& in) override;
  void clear() noexcept override;
  [[nodiscard]] bool row_wise() const noexcept override { return !options_.evicts && options_.window == 0; }
  void save_rows(ArchiveWriter& out, std::int64_t from) const override;
  void load_rows(ArchiveReader& in, std::int64_t count) override;
  void share_rows(const LayerState& other, std::int64_t tokens) noexcept override;

  [[nodiscard]] const KvPool& pool() const noexcept { return *pool_; }
  [[nodiscard]] int groups() const noexcept { return static_cast<int>(groups_.size()); }
  [[nodiscard]] const PagedKvOptions& options() const noexcept { return options_; }
  /// Slots of a group, those of the last `append` included, and those that a window has left behind.
  [[nodiscard]] std::int64_t slots(int group) const noexcept { return groups_[static_cast<std::size_t>(group)].slots; }
  /// The first slot that is still there: that of the first page.
  [[nodiscard]] std::int64_t first_slot(int group) const noexcept {
    return groups_[static_cast<std::size_t>(group)].first;
  }
  [[nodiscard]] const std::vector<PageId>& pages(int group) const noexcept {
    return groups_[static_cast<std::size_t>(group)].pages;
  }
  /// Position in the sequence of each slot's token, where evictions are on.
  [[nodiscard]] std::span<const std::int32_t> positions(int group) const noexcept {
    return groups_[static_cast<std::size_t>(group)].positions;
  }
  /// Score of each slot, where they are kept.
  [[nodiscard]] std::span<const float> scores(int group) const noexcept {
    return groups_[static_cast<std::size_t>(group)].scores;
  }
  /// What attention adds to the logits of each slot, the logarithm of the number of tokens merged into it; null where
  /// nothing was merged or merging does not count.
  [[nodiscard]] const float* bias(int group) const noexcept {
    const auto& each = groups_[static_cast<std::size_t>(group)];
    return each.merged ? each.bias.data() : nullptr;
  }
  /// With gates: [slots][gate_width] keys and, of each slot, the first position that no longer sees it; DropOp writes them.
  [[nodiscard]] float* gate_keys() noexcept { return gate_keys_.data(); }
  [[nodiscard]] std::int32_t* until() noexcept { return until_.empty() ? nullptr : until_.data(); }
  /// Of each slot: the noise of its score; null where there is none.
  [[nodiscard]] const float* noise(int group) const noexcept {
    const auto& each = groups_[static_cast<std::size_t>(group)];
    return each.noise.empty() ? nullptr : each.noise.data();
  }
  /// Where the kernels are to add the scores of the tokens appended last: one float per slot, which begin with the scores
  /// so far. They count with `commit`; until then they can be dropped. Null where no scores are kept.
  [[nodiscard]] float* begin_scores(int group);
  /// The same, but the scores so far are for the kernels to copy, from `before`, which is null if there are none to copy.
  [[nodiscard]] float* open_scores(int group, const float*& before);
  /// Pages that evictions have freed so far.
  [[nodiscard]] std::int64_t evicted_pages() const noexcept { return evicted_pages_; }
  /// Tokens that evictions have dropped or merged, summed over the groups.
  [[nodiscard]] std::int64_t evicted_tokens() const noexcept { return evicted_tokens_; }
  [[nodiscard]] std::int64_t merged_tokens() const noexcept { return merged_tokens_; }

 private:
  struct Group {
    std::vector<PageId> pages;  // of the slots from `first` on
    std::int64_t first = 0;     // a multiple of the page's tokens
    std::int64_t slots = 0;
    std::vector<std::int32_t> positions;  // if evicts
    std::vector<float> scores, next_scores, border_scores;  // now, after the pass that runs, at the last border
    std::vector<float> memory, next_memory;
    std::vector<float> sink_keys;  // [sink][head][key], as at their own positions; empty: nothing has moved yet
    std::vector<float> noise;  // if options_.score_shape has any
    std::vector<std::int32_t> counts;  // if options_.counts: tokens that each slot stands for
    std::vector<float> bias;           // their logarithms
    bool merged = false;               // one of them is larger than 1
    bool scored = false;       // next_scores count with the next commit
    // A chosen eviction.
    std::vector<std::int32_t> fates;
    std::vector<float> weights;
    std::vector<PageId> spare;  // pages taken in place of shared ones
    std::vector<std::int32_t> merge_index;  // of each slot: its row in merged_rows, or -1; empty: nothing merges
    std::vector<float> merged_rows;         // [target][head][key..., value...]
    std::int64_t survivors = 0;
    std::int64_t changed = 0;   // first slot that changes; `slots` if none
    bool relinks = false;       // whole pages leave: nothing is copied
    std::int64_t tail = 0;      // slots from here on, a page border, stay with their pages
  };
  PagedKv(const PagedKv& other) = default;
  [[nodiscard]] std::int64_t pages_for(const Group& group, std::int64_t slots) const noexcept;
  std::size_t new_pages(const Group& group, std::int64_t count) const;
  void reserve_tables();
  void append_to(Group& group, std::int64_t count, std::int64_t position);
  void shrink(Group& group, std::int64_t slots) noexcept;
  [[nodiscard]] std::size_t most_pages() const noexcept;
  [[nodiscard]] std::size_t sink_floats() const noexcept;
  void plan_group(Group& group, const AnyEviction& policy, const EvictionView& view);
  void plan_merges(Group& group);
  void relink(Group& group) noexcept;
  void find_tail(Group& group) const noexcept;
  void compact(Group& group) noexcept;
  [[nodiscard]] bool move_sixteen(const Group& group, std::int64_t slot, std::int64_t target) noexcept;
  void rotate_sinks(Group& group) noexcept;
  void count_merged(Group& group) noexcept;
  void draw_noise(Group& group, std::size_t from) noexcept;
  void move_numbers(Group& group, std::size_t from, std::size_t to) noexcept;
  void resize_numbers(Group& group, std::size_t slots) noexcept;
  void weigh(Group& group) noexcept;
  void write_merged(Group& group, std::int64_t slot, std::int64_t index) noexcept;
  [[nodiscard]] const std::byte* host_page(PageId page, std::vector<std::byte>& copy) const;
  void release_spares(Group& group) noexcept;
  void save_group(ArchiveWriter& out, const Group& group) const;
  void load_group(ArchiveReader& in, Group& group, std::int64_t tokens, std::int64_t kept_from);
  void load_statistics(ArchiveReader& in, Group& group, std::int64_t tokens);

  std::shared_ptr<KvPool> pool_;
  std::vector<Group> groups_;
  PagedKvOptions options_;
  std::int64_t tokens_ = 0;          // of the sequence, evicted ones included
  std::int64_t kept_from_ = 0;       // tokens before this may be missing
  std::int64_t border_ = 0;          // length at the last eviction border, where statistics can be restored
  std::int64_t evicted_pages_ = 0;
  std::int64_t evicted_tokens_ = 0;
  std::int64_t merged_tokens_ = 0;
  std::vector<float> gate_keys_;     // of group 0's slots, as those of all
  std::vector<std::int32_t> until_;
  // Kept so that evictions allocate nothing.
  std::vector<PageInfo> page_infos_;
  std::vector<std::int32_t> scratch_;
  std::vector<PageId> old_pages_;
  std::vector<float> row_;
  std::vector<std::byte> from_, to_;  // pages on their way, if the host cannot see the pool
};

}  // namespace skald::inline v0
