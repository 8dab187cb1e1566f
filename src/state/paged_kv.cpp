#include <skald/state/paged_kv.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include <skald/state/kv_rows.hpp>

namespace skald::inline v0 {

LayerState::~LayerState() = default;

namespace {
constexpr auto never = std::numeric_limits<std::int32_t>::max();
}

PagedKv::PagedKv(std::shared_ptr<KvPool> pool, int groups, const PagedKvOptions& options)
    : pool_(std::move(pool)), groups_(static_cast<std::size_t>(groups)), options_(options) {
  if (options_.window > 0) options_.evicts = options_.scores = false;
  for (auto& group : groups_) group.memory.assign(static_cast<std::size_t>(options_.memory_floats), 0.0F);
  reserve_tables();
}

std::size_t PagedKv::most_pages() const noexcept {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  return static_cast<std::size_t>((options_.max_tokens + page_tokens - 1) / page_tokens);
}

void PagedKv::reserve_tables() {
  const std::size_t most = most_pages();
  const auto slots = static_cast<std::size_t>(options_.max_tokens);
  for (auto& group : groups_) {
    group.pages.reserve(most);
    if (!options_.evicts) continue;
    group.positions.reserve(slots);
    group.next_memory.reserve(group.memory.size());
    group.spare.reserve(most);
    group.sink_keys.reserve(sink_floats());
    group.fates.reserve(slots);
    group.weights.reserve(slots);
    if (options_.counts) {
      group.counts.reserve(slots);
      group.bias.reserve(slots);
    }
    if (!options_.scores) continue;
    if (options_.score_shape.noise != 0.0F) group.noise.reserve(slots);
    for (auto* scores : {&group.scores, &group.next_scores, &group.border_scores}) scores->reserve(slots);
  }
  if (!options_.evicts) return;
  gate_keys_.reserve(slots * static_cast<std::size_t>(options_.gate_width));
  if (options_.gate_width > 0) until_.reserve(slots);
  page_infos_.reserve(most * groups_.size());
  scratch_.reserve(2 * slots);
  old_pages_.reserve(most);
  row_.reserve(static_cast<std::size_t>(pool_->layout().head_dim_k));
}

PagedKv::~PagedKv() { clear(); }

std::size_t PagedKv::sink_floats() const noexcept {
  return static_cast<std::size_t>(options_.sinks) * static_cast<std::size_t>(pool_->layout().heads) *
         static_cast<std::size_t>(pool_->layout().head_dim_k);
}

void PagedKv::clear() noexcept {
  for (auto& group : groups_) {
    release_spares(group);
    for (const PageId page : group.pages) pool_->release(page);
    group.pages.clear();
    group.first = 0;
    group.slots = 0;
    group.positions.clear();
    group.noise.clear();
    group.counts.clear();
    group.bias.clear();
    group.merged = false;
    group.scores.clear();
    group.border_scores.clear();
    group.scored = false;
    group.sink_keys.clear();
    std::fill(group.memory.begin(), group.memory.end(), 0.0F);
  }
  gate_keys_.clear();
  until_.clear();
  tokens_ = 0;
  kept_from_ = 0;
  border_ = 0;
  evicted_pages_ = 0;
  evicted_tokens_ = 0;
  merged_tokens_ = 0;
}

std::int64_t PagedKv::pages_for(const Group& group, std::int64_t slots) const noexcept {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  return (slots - group.first + page_tokens - 1) / page_tokens;
}

std::size_t PagedKv::new_pages(const Group& group, std::int64_t count) const {
  const bool copies = group.slots % pool_->layout().page_tokens != 0 && pool_->shared(group.pages.back());
  return static_cast<std::size_t>(pages_for(group, group.slots + count)) - group.pages.size() + (copies ? 1 : 0);
}

void PagedKv::append(std::int64_t count) {
  if (count <= 0) return;
  std::size_t needed = 0;
  for (const auto& group : groups_) needed += new_pages(group, count);
  if (needed > pool_->free_pages())
    throw OutOfMemoryError("state.paged_kv", std::to_string(needed) + " KV pages are needed, " +
                                                 std::to_string(pool_->free_pages()) + " of " +
                                                 std::to_string(pool_->capacity_pages()) +
                                                 " are free; free a session or raise kv.capacity_tokens");
  std::size_t done = 0;
  try {
    for (auto& group : groups_) {
      append_to(group, count, tokens_);
      ++done;
    }
  } catch (...) {  // another thread took the pages meanwhile
    for (std::size_t i = 0; i < groups_.size(); ++i) shrink(groups_[i], groups_[i].slots - (i < done ? count : 0));
    throw;
  }
  tokens_ += count;
  if (options_.gate_width == 0) return;
  gate_keys_.resize(static_cast<std::size_t>(groups_.front().slots * options_.gate_width));  // reserved
  until_.resize(static_cast<std::size_t>(groups_.front().slots), never);
}

void PagedKv::append_to(Group& group, std::int64_t count, std::int64_t position) {
  if (group.slots % pool_->layout().page_tokens != 0 && pool_->shared(group.pages.back())) {
    const PageId copy = pool_->take();
    pool_->backend().copy(pool_->address(copy), pool_->address(group.pages.back()), pool_->page_bytes());
    pool_->release(group.pages.back());
    group.pages.back() = copy;
  }
  const std::int64_t slots = group.slots + count;
  while (static_cast<std::int64_t>(group.pages.size()) < pages_for(group, slots)) group.pages.push_back(pool_->take());
  if (options_.evicts)
    for (std::int64_t i = 0; i < count; ++i) group.positions.push_back(static_cast<std::int32_t>(position + i));
  const auto before = static_cast<std::size_t>(std::exchange(group.slots, slots));
  draw_noise(group, before);
  if (!options_.counts) return;
  group.counts.resize(static_cast<std::size_t>(slots), 1);
  group.bias.resize(static_cast<std::size_t>(slots), 0.0F);
}

/// The noise of the slots from `from` on. A function of positions alone, so that nothing of it need be saved.
void PagedKv::draw_noise(Group& group, std::size_t from) noexcept {
  if (!options_.scores || options_.score_shape.noise == 0.0F) return;
  const auto stream = options_.noise_stream + static_cast<std::uint64_t>(&group - groups_.data());
  group.noise.resize(group.positions.size());  // reserved
  for (std::size_t slot = from; slot < group.noise.size(); ++slot)
    group.noise[slot] = options_.score_shape.noise_of(stream, group.positions[slot]);
}

/// Forgets the slots from `slots` on, and pages that a failed append has taken.
void PagedKv::shrink(Group& group, std::int64_t slots) noexcept {
  group.slots = slots;
  while (static_cast<std::int64_t>(group.pages.size()) > pages_for(group, slots)) {
    pool_->release(group.pages.back());
    group.pages.pop_back();
  }
  if (options_.evicts) group.positions.resize(static_cast<std::size_t>(slots));
  if (!group.noise.empty()) group.noise.resize(static_cast<std::size_t>(slots));
  if (!options_.counts) return;
  group.counts.resize(static_cast<std::size_t>(slots));
  group.bias.resize(static_cast<std::size_t>(slots));
}

void PagedKv::commit() noexcept {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  for (auto& group : groups_) {
    if (options_.scores) {
      if (group.scored) group.scores.swap(group.next_scores);
      group.scored = false;
      group.scores.resize(static_cast<std::size_t>(group.slots), 0.0F);  // within the reserved capacity
    }
    if (options_.window == 0) continue;
    const auto needed = group.slots - options_.rollback - options_.window + 1;  // the next token sees from here on
    std::size_t behind = 0;
    while (group.first + page_tokens <= needed) {
      pool_->release(group.pages[behind++]);
      group.first += page_tokens;
    }
    group.pages.erase(group.pages.begin(), group.pages.begin() + static_cast<std::ptrdiff_t>(behind));
  }
}

std::int64_t PagedKv::restorable(std::int64_t length) const noexcept {
  if (length >= tokens_) return tokens_;
  if (options_.window > 0) {
    for (const auto& group : groups_)
      if (std::max<std::int64_t>(0, length - options_.window + 1) < group.first) return -1;
    return length;
  }
  if (length < kept_from_) return -1;
  if (!options_.scores) return length;
  if (length >= border_) return border_;
  return kept_from_ == 0 ? 0 : -1;
}

void PagedKv::remove_last(std::int64_t count) {
  for (auto& group : groups_) {
    release_spares(group);
    group.scored = false;
  }
  if (count <= 0) return;
  const auto left = tokens_ - count;
  const bool pending_only =
      !options_.scores || groups_.empty() ||
      groups_.front().slots - count >= static_cast<std::int64_t>(groups_.front().scores.size());
  if (left < 0 || (restorable(left) != left && !(options_.scores && pending_only)))
    throw UsageError("state.paged_kv", "cannot go back by " + std::to_string(count) + " of " +
                                           std::to_string(tokens_) +
                                           " tokens: an eviction or a window has dropped what would be seen again");
  for (auto& group : groups_) {
    shrink(group, group.slots - count);
    if (pending_only) continue;
    if (left == 0) {
      group.scores.clear();
      group.border_scores.clear();
      std::fill(group.memory.begin(), group.memory.end(), 0.0F);
    } else {
      group.scores = group.border_scores;
    }
  }
  tokens_ = left;
  border_ = std::min(border_, left);
  if (options_.gate_width == 0) return;
  gate_keys_.resize(static_cast<std::size_t>(groups_.front().slots * options_.gate_width));
  until_.resize(static_cast<std::size_t>(groups_.front().slots));
  for (auto& position : until_)
    if (position >= left) position = never;  // by a row that is gone
}

void PagedKv::select_last(std::int64_t count, std::span<const std::int32_t> rows) {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  std::vector<std::byte> from(pool_->page_bytes());
  std::vector<std::byte> to(pool_->page_bytes());
  for (auto& group : groups_) {
    const std::int64_t base = group.slots - count;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t source = base + rows[i];
      const std::int64_t target = base + static_cast<std::int64_t>(i);
      if (source == target) continue;
      const auto at = [&](std::int64_t slot) {
        return pool_->address(group.pages[static_cast<std::size_t>((slot - group.first) / page_tokens)]);
      };
      pool_->backend().read(from, at(source));
      pool_->backend().read(to, at(target));
      copy_kv_slot(layout, from.data(), static_cast<std::int32_t>(source % page_tokens), to.data(),
                   static_cast<std::int32_t>(target % page_tokens));
      pool_->backend().write(at(target), to);
    }
  }
  remove_last(count - static_cast<std::int64_t>(rows.size()));
}

std::unique_ptr<LayerState> PagedKv::fork() const {
  std::unique_ptr<PagedKv> copy(new PagedKv(*this));
  for (auto& group : copy->groups_) {  // first of all: the copy's destructor releases them
    group.spare.clear();
    for (const PageId page : group.pages) pool_->retain(page);
  }
  copy->reserve_tables();
  return copy;
}

float* PagedKv::begin_scores(int index) {
  if (!options_.scores) return nullptr;
  auto& group = groups_[static_cast<std::size_t>(index)];
  group.next_scores.assign(group.scores.begin(), group.scores.end());
  group.next_scores.resize(static_cast<std::size_t>(group.slots), 0.0F);
  group.scored = true;
  return group.next_scores.data();
}

std::size_t PagedKv::policy_bytes() const noexcept {
  if (!options_.evicts) return 0;
  const auto of = [](const auto&... lists) { return ((lists.capacity() * sizeof(lists[0])) + ...); };
  std::size_t total = of(gate_keys_, until_, page_infos_, scratch_, old_pages_, row_);
  for (const auto& group : groups_)
    total += of(group.positions, group.scores, group.next_scores, group.border_scores, group.memory, group.next_memory,
                group.sink_keys, group.noise, group.counts, group.bias, group.fates, group.weights, group.spare,
                group.merge_index, group.merged_rows);
  return total;
}

float* PagedKv::open_scores(int index, const float*& before) {
  before = nullptr;
  auto& group = groups_[static_cast<std::size_t>(index)];
  if (!options_.scores || group.scores.empty()) return begin_scores(index);
  before = group.scores.data();
  group.next_scores.resize(static_cast<std::size_t>(group.slots));  // reserved
  group.scored = true;
  return group.next_scores.data();
}

std::size_t PagedKv::bytes() const noexcept {
  std::size_t pages = 0;
  for (const auto& group : groups_) pages += group.pages.size();
  return pages * pool_->page_bytes();
}

std::size_t PagedKv::bytes_beyond(const LayerState& other) const {
  const auto& with = static_cast<const PagedKv&>(other);
  if (with.pool_ != pool_) return bytes();
  std::int64_t pages = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    auto theirs = with.groups_[g].pages;
    std::sort(theirs.begin(), theirs.end());
    pages += std::count_if(groups_[g].pages.begin(), groups_[g].pages.end(),
                           [&](PageId page) { return !std::binary_search(theirs.begin(), theirs.end(), page); });
  }
  return static_cast<std::size_t>(pages) * pool_->page_bytes();
}

void PagedKv::save(ArchiveWriter& out) const {
  out.value(tokens_);
  out.value(kept_from_);
  out.value(border_);
  out.value(evicted_pages_);
  out.value(evicted_tokens_);
  out.value(merged_tokens_);
  out.value(static_cast<std::uint32_t>(groups_.size()));
  for (const auto& group : groups_) save_group(out, group);
  out.array(std::span<const float>(gate_keys_));
  out.array(std::span<const std::int32_t>(until_));
}

void PagedKv::save_group(ArchiveWriter& out, const Group& group) const {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  out.value(group.first);
  out.value(group.slots);
  std::vector<std::byte> copy;
  for (std::size_t i = 0; i < group.pages.size(); ++i) {
    const auto slots =
        std::min(page_tokens, group.slots - group.first - static_cast<std::int64_t>(i) * page_tokens);
    const auto* page = host_page(group.pages[i], copy);
    auto* rows = out.reserve(static_cast<std::size_t>(slots) * kv_slot_bytes(layout)).data();
    for (std::int64_t slot = 0; slot < slots; ++slot, rows += kv_slot_bytes(layout))
      move_kv_slot<false>(layout, page, static_cast<std::int32_t>(slot), rows);
  }
  if (!options_.evicts) return;
  out.array(std::span<const std::int32_t>(group.positions));
  out.array(std::span<const float>(group.scores));
  out.array(std::span<const float>(group.border_scores));
  out.array(std::span<const float>(group.memory));
  out.array(std::span<const float>(group.sink_keys));
  out.array(std::span<const std::int32_t>(group.counts));
}

void PagedKv::load_group(ArchiveReader& in, Group& group, std::int64_t tokens, std::int64_t kept_from) {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  const auto first = in.value<std::int64_t>("first");
  const auto slots = in.value<std::int64_t>("slots");
  if (slots < 0 || slots > tokens || (kept_from == 0 && slots != tokens) || (slots == 0 && tokens != 0))
    in.refuse("slots", std::to_string(slots) + " slots for " + std::to_string(tokens) + " tokens");
  // What a window has left behind, but no more than that.
  const auto least = options_.window > 0 ? std::max<std::int64_t>(0, slots - options_.window + 1) : 0;
  if (first < 0 || first % page_tokens != 0 || first > least)
    in.refuse("first", "slots before " + std::to_string(first) + " are missing");
  const auto pages = (slots - first + page_tokens - 1) / page_tokens;
  group.pages.reserve(static_cast<std::size_t>(pages));  // a page that was taken is always entered
  group.first = first;
  std::vector<std::byte> page(pool_->page_bytes());
  for (std::int64_t i = 0; i < pages; ++i) {
    const auto filled = std::min(page_tokens, slots - first - i * page_tokens);
    const auto* rows = in.raw(static_cast<std::size_t>(filled) * kv_slot_bytes(layout), "kv").data();
    std::fill(page.begin(), page.end(), std::byte{0});
    for (std::int64_t slot = 0; slot < filled; ++slot, rows += kv_slot_bytes(layout))
      move_kv_slot<true>(layout, page.data(), static_cast<std::int32_t>(slot), rows);
    group.pages.push_back(pool_->take());
    pool_->backend().write(pool_->address(group.pages.back()), page);
  }
  group.slots = slots;
  if (options_.evicts) load_statistics(in, group, tokens);
}

void PagedKv::load_statistics(ArchiveReader& in, Group& group, std::int64_t tokens) {
  group.positions = in.array<std::int32_t>("positions");
  if (static_cast<std::int64_t>(group.positions.size()) != group.slots)
    in.refuse("positions", "there is not one for each slot");
  std::int64_t least = 0;
  for (const auto position : group.positions) {
    if (position < least || position >= tokens) in.refuse("positions", "they do not ascend within the sequence");
    least = std::int64_t{position} + 1;
  }
  if (tokens > 0 && group.positions.back() != tokens - 1) in.refuse("positions", "the newest token is missing");
  const auto finite = [&](std::vector<float> values, std::string_view field) {
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
      in.refuse(field, "a value is not finite");
    return values;
  };
  group.scores = finite(in.array<float>("scores"), "scores");
  group.border_scores = finite(in.array<float>("border_scores"), "border_scores");
  const auto expected = options_.scores ? static_cast<std::size_t>(group.slots) : 0;
  const auto since = tokens - border_;  // no eviction since the border
  if (group.scores.size() != expected) in.refuse("scores", "there is not one for each slot");
  if (options_.scores && static_cast<std::int64_t>(group.border_scores.size()) != group.slots - since)
    in.refuse("border_scores", "there is not one for each slot at the border");
  if (options_.scores && options_.score_shape.noise != 0.0F) group.noise.reserve(group.positions.size());
  draw_noise(group, 0);
  auto memory = finite(in.array<float>("memory"), "memory");
  if (memory.size() != group.memory.size()) in.refuse("memory", "this policy keeps another number of values");
  group.memory = std::move(memory);
  group.sink_keys = finite(in.array<float>("sink_keys"), "sink_keys");
  if (!group.sink_keys.empty() && group.sink_keys.size() != sink_floats())
    in.refuse("sink_keys", "this policy keeps another number of sinks");
  group.counts = in.array<std::int32_t>("counts");
  if (group.counts.size() != (options_.counts ? static_cast<std::size_t>(group.slots) : 0))
    in.refuse("counts", "there is not one for each slot");
  std::int64_t stands_for = 0;
  for (const auto count : group.counts) {
    if (count < 1) in.refuse("counts", "a slot stands for no token");
    stands_for += count;
  }
  if (stands_for > tokens) in.refuse("counts", "the slots stand for more tokens than there are");
  group.bias.reserve(group.counts.size());
  weigh(group);
}

void PagedKv::load(ArchiveReader& in) {
  clear();
  try {
    const auto tokens = in.value<std::int64_t>("tokens");
    const auto kept_from = in.value<std::int64_t>("kept_from");
    const auto border = in.value<std::int64_t>("border");
    const auto evicted = in.value<std::int64_t>("evicted_pages");
    const auto evicted_tokens = in.value<std::int64_t>("evicted_tokens");
    const auto merged_tokens = in.value<std::int64_t>("merged_tokens");
    const auto groups = in.value<std::uint32_t>("groups");
    if (groups != groups_.size())
      in.refuse("groups", std::to_string(groups) + " KV-head groups, this decoder has " +
                              std::to_string(groups_.size()));
    if (tokens < 0 || tokens > options_.max_tokens || kept_from < 0 || kept_from > tokens ||
        (kept_from > 0 && !options_.evicts) || border < kept_from ||
        border > tokens || evicted < 0 || evicted_tokens < 0 || merged_tokens < 0)
      in.refuse("tokens", "negative or contradictory counts");
    border_ = border;
    for (auto& group : groups_) load_group(in, group, tokens, kept_from);
    gate_keys_ = in.array<float>("gate_keys");
    until_ = in.array<std::int32_t>("until");
    const auto gated = options_.gate_width > 0 ? static_cast<std::size_t>(groups_.front().slots) : 0;
    if (until_.size() != gated || gate_keys_.size() != gated * static_cast<std::size_t>(options_.gate_width))
      in.refuse("gate_keys", "there is not one for each slot");
    if (!std::all_of(gate_keys_.begin(), gate_keys_.end(), [](float x) { return std::isfinite(x); }))
      in.refuse("gate_keys", "a value is not finite");
    for (std::size_t slot = 0; slot < until_.size(); ++slot)
      if (until_[slot] != never && (until_[slot] <= groups_.front().positions[slot] || until_[slot] >= tokens))
        in.refuse("until", "a slot was dropped by no later token");
    for (const auto& group : groups_)
      if (gated > 0 && group.positions != groups_.front().positions) in.refuse("positions", "the head groups differ");
    tokens_ = tokens;
    kept_from_ = kept_from;
    evicted_pages_ = evicted;
    evicted_tokens_ = evicted_tokens;
    merged_tokens_ = merged_tokens;
    reserve_tables();
  } catch (...) {
    clear();
    throw;
  }
}

const std::byte* PagedKv::host_page(PageId page, std::vector<std::byte>& copy) const {
  if (pool_->host_visible()) return pool_->address(page);
  copy.resize(pool_->page_bytes());
  pool_->backend().read(copy, pool_->address(page));
  return copy.data();
}

void PagedKv::save_rows(ArchiveWriter& out, std::int64_t from) const {
  const auto& layout = pool_->layout();
  std::vector<std::byte> copy;
  for (const auto& group : groups_) {
    auto* rows = out.reserve(static_cast<std::size_t>(group.slots - from) * kv_slot_bytes(layout)).data();
    for (auto slot = from; slot < group.slots; ++slot, rows += kv_slot_bytes(layout)) {
      const auto* page = host_page(group.pages[static_cast<std::size_t>(slot / layout.page_tokens)], copy);
      move_kv_slot<false>(layout, page, static_cast<std::int32_t>(slot % layout.page_tokens), rows);
    }
  }
}

void PagedKv::load_rows(ArchiveReader& in, std::int64_t count) {
  const auto& layout = pool_->layout();
  std::vector<std::byte> copy(pool_->page_bytes());
  for (auto& group : groups_) {
    const auto* rows = in.raw(static_cast<std::size_t>(count) * kv_slot_bytes(layout), "rows").data();
    for (auto slot = group.slots - count; slot < group.slots;) {
      const auto id = group.pages[static_cast<std::size_t>(slot / layout.page_tokens)];
      const auto end = std::min(group.slots, (slot / layout.page_tokens + 1) * layout.page_tokens);
      std::byte* page = pool_->address(id);
      if (!pool_->host_visible()) {
        pool_->backend().read(copy, pool_->address(id));
        page = copy.data();
      }
      for (; slot < end; ++slot, rows += kv_slot_bytes(layout))
        move_kv_slot<true>(layout, page, static_cast<std::int32_t>(slot % layout.page_tokens), rows);
      if (!pool_->host_visible()) pool_->backend().write(pool_->address(id), copy);
    }
  }
}

void PagedKv::share_rows(const LayerState& other, std::int64_t tokens) noexcept {
  const auto& from = static_cast<const PagedKv&>(other);
  if (!row_wise() || from.pool_ != pool_) return;
  const auto pages = static_cast<std::size_t>(tokens / pool_->layout().page_tokens);
  for (std::size_t g = 0; g < groups_.size(); ++g)
    for (std::size_t i = 0; i < pages && i < groups_[g].pages.size() && i < from.groups_[g].pages.size(); ++i) {
      if (groups_[g].pages[i] == from.groups_[g].pages[i]) continue;
      pool_->retain(from.groups_[g].pages[i]);
      pool_->release(groups_[g].pages[i]);
      groups_[g].pages[i] = from.groups_[g].pages[i];
    }
}

}  // namespace skald::inline v0
