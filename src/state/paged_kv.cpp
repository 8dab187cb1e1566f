#include <skald/state/paged_kv.hpp>

#include <algorithm>
#include <string>

namespace skald::inline v0 {

LayerState::~LayerState() = default;

PagedKv::PagedKv(std::shared_ptr<KvPool> pool, int groups, std::int64_t max_tokens)
    : pool_(std::move(pool)), groups_(static_cast<std::size_t>(groups)), max_tokens_(max_tokens) {
  reserve_tables();
}

std::size_t PagedKv::most_pages() const noexcept {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  return static_cast<std::size_t>((max_tokens_ + page_tokens - 1) / page_tokens);
}

void PagedKv::reserve_tables() {
  const std::size_t most = most_pages();
  for (auto& group : groups_) {
    group.pages.reserve(most);
    group.first_tokens.reserve(most);
  }
}

PagedKv::~PagedKv() { clear(); }

void PagedKv::clear() noexcept {
  for (auto& group : groups_) {
    for (const PageId page : group.pages) pool_->release(page);
    group.pages.clear();
    group.first_tokens.clear();
    group.slots = 0;
  }
  tokens_ = 0;
  kept_from_ = 0;
  evicted_pages_ = 0;
}

std::size_t PagedKv::new_pages(const Group& group, std::int64_t count) const {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  const auto total = static_cast<std::size_t>((group.slots + count + page_tokens - 1) / page_tokens);
  const bool copies = group.slots % page_tokens != 0 && pool_->shared(group.pages.back());
  return total - group.pages.size() + (copies ? 1 : 0);
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
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      auto& group = groups_[i];
      const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
      if (i < done) group.slots -= count;
      while (static_cast<std::int64_t>(group.pages.size()) > (group.slots + page_tokens - 1) / page_tokens) {
        pool_->release(group.pages.back());
        group.pages.pop_back();
        group.first_tokens.pop_back();
      }
    }
    throw;
  }
  tokens_ += count;
}

void PagedKv::append_to(Group& group, std::int64_t count, std::int64_t position) {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  if (group.slots % page_tokens != 0 && pool_->shared(group.pages.back())) {
    const PageId copy = pool_->take();
    pool_->backend().copy(pool_->address(copy), pool_->address(group.pages.back()), pool_->page_bytes());
    pool_->release(group.pages.back());
    group.pages.back() = copy;
  }
  const std::int64_t slots = group.slots + count;
  while (static_cast<std::int64_t>(group.pages.size()) * page_tokens < slots) {
    const auto slot = static_cast<std::int64_t>(group.pages.size()) * page_tokens;
    group.pages.push_back(pool_->take());
    group.first_tokens.push_back(position + slot - group.slots);
  }
  group.slots = slots;
}

void PagedKv::remove_last(std::int64_t count) {
  if (count <= 0) return;
  if (count > tokens_ || tokens_ - count < kept_from_)
    throw UsageError("state.paged_kv", "cannot go back by " + std::to_string(count) + " of " +
                                           std::to_string(tokens_) + " tokens: an eviction after token " +
                                           std::to_string(kept_from_) + " cannot be undone");
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  for (auto& group : groups_) {
    group.slots -= count;
    const auto keep = static_cast<std::size_t>((group.slots + page_tokens - 1) / page_tokens);
    while (group.pages.size() > keep) {
      pool_->release(group.pages.back());
      group.pages.pop_back();
      group.first_tokens.pop_back();
    }
  }
  tokens_ -= count;
}

void PagedKv::select_last(std::int64_t count, std::span<const std::int32_t> rows) {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  const std::size_t element = layout.element_bytes();
  std::vector<std::byte> from(pool_->page_bytes());
  std::vector<std::byte> to(pool_->page_bytes());
  for (auto& group : groups_) {
    const std::int64_t base = group.slots - count;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t source = base + rows[i];
      const std::int64_t target = base + static_cast<std::int64_t>(i);
      if (source == target) continue;
      const auto at = [&](std::int64_t slot) {
        return pool_->address(group.pages[static_cast<std::size_t>(slot / page_tokens)]);
      };
      pool_->backend().read(from, at(source));
      pool_->backend().read(to, at(target));
      const auto s = static_cast<std::int32_t>(source % page_tokens);
      const auto t = static_cast<std::int32_t>(target % page_tokens);
      for (std::int32_t head = 0; head < layout.heads; ++head) {
        for (std::int32_t d = 0; d < layout.head_dim_k; ++d)
          std::memcpy(to.data() + layout.keys_offset(head) + layout.key_index(t, d) * element,
                      from.data() + layout.keys_offset(head) + layout.key_index(s, d) * element, element);
        for (std::int32_t d = 0; d < layout.stored_dim_v(); ++d)
          std::memcpy(to.data() + layout.values_offset(head) + layout.value_index(t, d) * element,
                      from.data() + layout.values_offset(head) + layout.value_index(s, d) * element, element);
      }
      pool_->backend().write(at(target), to);
    }
  }
  remove_last(count - static_cast<std::int64_t>(rows.size()));
}

std::unique_ptr<LayerState> PagedKv::fork() const {
  std::unique_ptr<PagedKv> copy(new PagedKv(*this));
  for (auto& group : copy->groups_)  // first of all: the copy's destructor releases them
    for (const PageId page : group.pages) pool_->retain(page);
  copy->reserve_tables();
  return copy;
}

void PagedKv::choose_evictions(const AnyEviction& policy, int layer, std::int64_t sequence_tokens) {
  const auto page_tokens = pool_->layout().page_tokens;
  page_infos_.reserve(most_pages());
  drops_.reserve(most_pages() * groups_.size());
  drops_.clear();
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const auto& group = groups_[g];
    page_infos_.clear();
    for (const auto first : group.first_tokens) {
      const auto left = group.slots - static_cast<std::int64_t>(page_infos_.size()) * page_tokens;
      page_infos_.push_back({first, static_cast<std::int32_t>(std::min<std::int64_t>(left, page_tokens))});
    }
    const std::size_t begin = drops_.size();
    drops_.resize(begin + page_infos_.size(), 0);
    const auto drop = std::span(drops_).subspan(begin);
    policy.evict({layer, static_cast<int>(g), page_tokens, sequence_tokens, page_infos_}, drop);
    if (!drop.empty() && drop.back() != 0)
      throw UsageError("state.paged_kv", "policy '" + policy.name() + "' drops the newest page",
                       {.layer = layer});
  }
}

void PagedKv::apply_evictions() noexcept {
  const auto page_tokens = pool_->layout().page_tokens;
  auto drop = drops_.begin();
  for (auto& group : groups_) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < group.pages.size(); ++i) {
      if (*drop++ != 0) {
        pool_->release(group.pages[i]);
        group.slots -= page_tokens;  // never the newest page: a full one
        ++evicted_pages_;
        kept_from_ = tokens_;
      } else {
        group.pages[kept] = group.pages[i];
        group.first_tokens[kept++] = group.first_tokens[i];
      }
    }
    group.pages.resize(kept);
    group.first_tokens.resize(kept);
  }
}

std::size_t PagedKv::bytes() const noexcept {
  std::size_t pages = 0;
  for (const auto& group : groups_) pages += group.pages.size();
  return pages * pool_->page_bytes();
}

namespace {

/// Copies the filled slots of a page between page layout and rows of [head][key..., value...].
template <bool ToPage>
void transfer(const KvPageLayout& layout, std::byte* page, std::int64_t slots, std::byte* rows) {
  const std::size_t element = layout.element_bytes();
  const auto move = [&](std::size_t page_offset, std::byte*& row) {
    if constexpr (ToPage) std::memcpy(page + page_offset, row, element);
    else std::memcpy(row, page + page_offset, element);
    row += element;
  };
  for (std::int32_t slot = 0; slot < slots; ++slot)
    for (std::int32_t head = 0; head < layout.heads; ++head) {
      for (std::int32_t d = 0; d < layout.head_dim_k; ++d)
        move(layout.keys_offset(head) + layout.key_index(slot, d) * element, rows);
      for (std::int32_t d = 0; d < layout.stored_dim_v(); ++d)
        move(layout.values_offset(head) + layout.value_index(slot, d) * element, rows);
    }
}

std::size_t slot_bytes(const KvPageLayout& layout) {
  return static_cast<std::size_t>(layout.heads) * static_cast<std::size_t>(layout.head_dim_k + layout.stored_dim_v()) *
         layout.element_bytes();
}

}  // namespace

void PagedKv::save(ArchiveWriter& out) const {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  out.value(tokens_);
  out.value(kept_from_);
  out.value(evicted_pages_);
  out.value(static_cast<std::uint32_t>(groups_.size()));
  std::vector<std::byte> page(pool_->page_bytes());
  for (const auto& group : groups_) {
    out.value(group.slots);
    out.array(std::span<const std::int64_t>(group.first_tokens));
    for (std::size_t i = 0; i < group.pages.size(); ++i) {
      const auto slots = std::min(page_tokens, group.slots - static_cast<std::int64_t>(i) * page_tokens);
      pool_->backend().read(page, pool_->address(group.pages[i]));
      const auto rows = out.reserve(static_cast<std::size_t>(slots) * slot_bytes(layout));
      transfer<false>(layout, page.data(), slots, rows.data());
    }
  }
}

void PagedKv::load_group(ArchiveReader& in, Group& group, std::int64_t tokens, std::int64_t kept_from) {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  const auto slots = in.value<std::int64_t>("slots");
  if (slots < 0 || slots > tokens || (kept_from == 0 && slots != tokens))
    in.refuse("slots", std::to_string(slots) + " slots for " + std::to_string(tokens) + " tokens");
  auto first_tokens = in.array<std::int64_t>("first_tokens");
  const auto pages = slots / page_tokens + (slots % page_tokens != 0 ? 1 : 0);
  if (static_cast<std::int64_t>(first_tokens.size()) != pages)
    in.refuse("first_tokens", "the number of slots contradicts the page table");
  std::int64_t least = 0;  // pages are in ascending order and do not overlap; the last one ends the sequence
  for (std::int64_t i = 0; i < pages; ++i) {
    const auto first = first_tokens[static_cast<std::size_t>(i)];
    const auto filled = std::min(page_tokens, slots - i * page_tokens);
    if (first < least || first > tokens - filled || (i + 1 == pages && first != tokens - filled))
      in.refuse("first_tokens", "the page table contradicts the number of tokens");
    least = first + filled;
  }
  if (pages == 0 && tokens != 0) in.refuse("first_tokens", "the newest page is missing");
  group.pages.reserve(static_cast<std::size_t>(pages));  // a page that was taken is always entered
  group.first_tokens = std::move(first_tokens);
  std::vector<std::byte> page(pool_->page_bytes());
  std::vector<std::byte> copy(static_cast<std::size_t>(page_tokens) * slot_bytes(layout));
  for (std::int64_t i = 0; i < pages; ++i) {
    const auto filled = std::min(page_tokens, slots - i * page_tokens);
    const auto rows = in.raw(static_cast<std::size_t>(filled) * slot_bytes(layout), "kv");
    std::copy(rows.begin(), rows.end(), copy.begin());
    std::fill(page.begin(), page.end(), std::byte{0});
    transfer<true>(layout, page.data(), filled, copy.data());
    group.pages.push_back(pool_->take());
    pool_->backend().write(pool_->address(group.pages.back()), page);
  }
  group.slots = slots;
}

void PagedKv::load(ArchiveReader& in) {
  clear();
  try {
    const auto tokens = in.value<std::int64_t>("tokens");
    const auto kept_from = in.value<std::int64_t>("kept_from");
    const auto evicted = in.value<std::int64_t>("evicted_pages");
    const auto groups = in.value<std::uint32_t>("groups");
    if (groups != groups_.size())
      in.refuse("groups", std::to_string(groups) + " KV-head groups, this decoder has " +
                              std::to_string(groups_.size()));
    if (tokens < 0 || tokens > max_tokens_ || kept_from < 0 || kept_from > tokens || evicted < 0)
      in.refuse("tokens", "negative or contradictory counts");
    for (auto& group : groups_) load_group(in, group, tokens, kept_from);
    tokens_ = tokens;
    kept_from_ = kept_from;
    evicted_pages_ = evicted;
    reserve_tables();
  } catch (...) {
    clear();
    throw;
  }
}

}  // namespace skald::inline v0
