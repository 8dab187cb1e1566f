// The part of PagedKv that evicts: shows slots to a policy, then drops, merges and compacts.
#include <algorithm>
#include <cmath>
#include <string>

#include <skald/state/kv_rows.hpp>
#include <skald/state/paged_kv.hpp>

namespace skald::inline v0 {

void PagedKv::show_groups(int layer, std::int64_t sequence_tokens, std::vector<EvictionView>& views) {
  if (!options_.evicts) return;
  const auto page_tokens = pool_->layout().page_tokens;
  page_infos_.clear();
  page_infos_.reserve(most_pages() * groups_.size());  // the views point into it
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    auto& group = groups_[g];
    const auto begin = page_infos_.size();
    for (std::int64_t slot = 0; slot < group.slots; slot += page_tokens)
      page_infos_.push_back({group.positions[static_cast<std::size_t>(slot)],
                             static_cast<std::int32_t>(std::min<std::int64_t>(page_tokens, group.slots - slot))});
    group.next_memory.assign(group.memory.begin(), group.memory.end());
    EvictionView view;
    view.layer = layer;
    view.group = static_cast<int>(g);
    view.page_tokens = page_tokens;
    view.sequence_tokens = sequence_tokens;
    view.pages = std::span<const PageInfo>(page_infos_).subspan(begin);
    view.groups = groups();
    view.positions = group.positions;
    view.memory = group.next_memory;
    view.counts = group.counts;
    view.until = until_;
    view.heads = pool_->layout().heads;
    view.key_dims = pool_->layout().head_dim_k;
    if (options_.scores) {
      if (!group.scored) (void)begin_scores(static_cast<int>(g));  // tokens that nobody has scored count nothing
      view.scores = group.next_scores;
    }
    views.push_back(view);
  }
}

void PagedKv::choose_evictions(const AnyEviction& policy, std::span<const EvictionView> views, int first_group) {
  try {
    for (const auto& view : views) plan_group(groups_[static_cast<std::size_t>(view.group - first_group)], policy, view);
    for (const auto& group : groups_)
      if (options_.gate_width > 0 && group.fates != groups_.front().fates)
        throw UsageError("state.paged_kv", "policy '" + policy.name() + "' has gates, but drops different tokens in "
                                           "different head groups", {.layer = views.front().layer});
  } catch (...) {
    for (auto& group : groups_) release_spares(group);
    throw;
  }
}

void PagedKv::plan_group(Group& group, const AnyEviction& policy, const EvictionView& view) {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  const auto count = static_cast<std::size_t>(group.slots);
  release_spares(group);
  group.fates.assign(count, EvictionChoice::keep);
  group.weights.assign(count, 1.0F);
  scratch_.resize(2 * count);
  EvictionChoice choice(group.fates, group.weights, scratch_);
  std::vector<std::byte> copy;
  const auto read = [&](int head, std::int64_t slot, std::span<float> key) {
    read_kv_key(pool_->layout(), host_page(group.pages[static_cast<std::size_t>(slot / page_tokens)], copy), head,
                static_cast<std::int32_t>(slot % page_tokens), key);
  };
  const FunctionRef<void(int, std::int64_t, std::span<float>)> read_key(read);
  const auto read_sixteen = [&](int head, std::int64_t slot, std::span<float> keys) {
    read_kv_keys(pool_->layout(), host_page(group.pages[static_cast<std::size_t>(slot / page_tokens)], copy), head,
                 static_cast<std::int32_t>(slot % page_tokens), keys);
  };
  const FunctionRef<void(int, std::int64_t, std::span<float>)> read_keys(read_sixteen);
  EvictionView shown = view;
  shown.read_key = &read_key;
  shown.read_keys = &read_keys;
  policy.evict(shown, choice);

  const auto wrong = [&](const std::string& what) {
    throw UsageError("state.paged_kv", "policy '" + policy.name() + "' " + what, {.layer = view.layer});
  };
  if (count > 0 && group.fates.back() != EvictionChoice::keep) wrong("drops the newest token");
  group.changed = group.slots;
  group.survivors = 0;
  group.merge_index.clear();
  bool merges = false;
  group.relinks = true;
  for (std::int64_t slot = 0; slot < group.slots; ++slot) {
    const auto fate = group.fates[static_cast<std::size_t>(slot)];
    if (fate == EvictionChoice::keep) ++group.survivors;
    else group.changed = std::min(group.changed, slot);
    if ((fate == EvictionChoice::keep) !=
        (group.fates[static_cast<std::size_t>(slot / page_tokens * page_tokens)] == EvictionChoice::keep))
      group.relinks = false;
    if (fate == EvictionChoice::keep || fate == EvictionChoice::gone) continue;
    if (fate < 0 || fate >= group.slots || group.fates[static_cast<std::size_t>(fate)] != EvictionChoice::keep)
      wrong("merges slot " + std::to_string(slot) + " into slot " + std::to_string(fate) + ", which does not stay");
    group.changed = std::min<std::int64_t>(group.changed, fate);
    merges = true;
  }
  if (group.changed == group.slots) return;
  if (options_.sinks > 0) {  // their page is written
    for (std::int64_t slot = 0; slot < options_.sinks; ++slot)
      if (slot >= group.slots - 1 || group.fates[static_cast<std::size_t>(slot)] != EvictionChoice::keep)
        wrong("drops one of the " + std::to_string(options_.sinks) + " sinks that it declares");
    group.changed = 0;
    group.relinks = false;
  }
  if (merges) {
    group.relinks = false;
    plan_merges(group);
  }
  if (group.relinks) return;
  find_tail(group);
  const auto moved = group.survivors - (group.slots - group.tail);
  for (auto page = group.changed / page_tokens; page < (moved + page_tokens - 1) / page_tokens; ++page)
    if (pool_->shared(group.pages[static_cast<std::size_t>(page)])) group.spare.push_back(pool_->take());
}

/// Where whole pages leave in all, those after the last slot that does keep their content.
void PagedKv::find_tail(Group& group) const noexcept {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  group.tail = group.slots;
  if ((group.slots - group.survivors) % page_tokens != 0) return;
  auto last = group.slots - 1;
  while (group.fates[static_cast<std::size_t>(last)] == EvictionChoice::keep) --last;
  // The first page may change in spite of its survivors.
  const auto tail = std::max((last / page_tokens + 1) * page_tokens, (group.changed / page_tokens + 1) * page_tokens);
  if (tail >= group.slots) return;
  for (auto page = tail / page_tokens; !group.merge_index.empty() && page * page_tokens < group.slots; ++page)
    if (pool_->shared(group.pages[static_cast<std::size_t>(page)])) return;  // tokens may be merged into it
  group.tail = tail;
}

/// Computes the means now, while all slots are in their places.
void PagedKv::plan_merges(Group& group) {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  const auto dims_k = static_cast<std::size_t>(layout.head_dim_k);
  const auto dims_v = static_cast<std::size_t>(layout.stored_dim_v());
  const std::size_t row_floats = static_cast<std::size_t>(layout.heads) * (dims_k + dims_v);
  group.merge_index.assign(static_cast<std::size_t>(group.slots), -1);
  group.merged_rows.clear();
  std::vector<float> row(row_floats);
  std::vector<float> weights;
  std::vector<std::byte> copy;
  const auto add = [&](std::int64_t slot, std::size_t index) {
    const auto* page = host_page(group.pages[static_cast<std::size_t>(slot / page_tokens)], copy);
    const auto at = static_cast<std::int32_t>(slot % page_tokens);
    float* out = row.data();
    for (std::int32_t head = 0; head < layout.heads; ++head) {
      read_kv_key(layout, page, head, at, {out, dims_k});
      read_kv_value(layout, page, head, at, {out + dims_k, dims_v});
      out += dims_k + dims_v;
    }
    const float weight = group.weights[static_cast<std::size_t>(slot)];
    weights[index] += weight;
    for (std::size_t d = 0; d < row_floats; ++d) group.merged_rows[index * row_floats + d] += weight * row[d];
  };
  for (std::int64_t slot = 0; slot < group.slots; ++slot) {
    const auto into = group.fates[static_cast<std::size_t>(slot)];
    if (into < 0) continue;
    auto& index = group.merge_index[static_cast<std::size_t>(into)];
    if (index < 0) {
      index = static_cast<std::int32_t>(weights.size());
      weights.push_back(0.0F);
      group.merged_rows.resize(weights.size() * row_floats, 0.0F);
      add(into, static_cast<std::size_t>(index));
    }
    add(slot, static_cast<std::size_t>(index));
  }
  for (std::size_t i = 0; i < weights.size(); ++i)
    for (std::size_t d = 0; d < row_floats; ++d) group.merged_rows[i * row_floats + d] /= weights[i];
}

void PagedKv::release_spares(Group& group) noexcept {
  for (const PageId page : group.spare) pool_->release(page);
  group.spare.clear();
}

void PagedKv::apply_evictions() noexcept {
  if (!options_.evicts) return;
  for (auto& group : groups_) {
    group.memory.swap(group.next_memory);
    if (group.changed < group.slots) {
      const auto gone = group.slots - group.survivors;
      const auto merged =
          std::count_if(group.fates.begin(), group.fates.end(), [](std::int32_t fate) { return fate >= 0; });
      const auto pages = group.pages.size();
      if (options_.counts && merged > 0) count_merged(group);
      if (group.relinks) relink(group);
      else compact(group);
      if (options_.sinks > 0) rotate_sinks(group);
      evicted_pages_ += static_cast<std::int64_t>(pages - group.pages.size());
      evicted_tokens_ += gone;
      merged_tokens_ += merged;
      kept_from_ = tokens_;
    }
    group.changed = group.slots;
    if (!options_.scores) continue;
    if (options_.scores_anew) std::fill(group.scores.begin(), group.scores.end(), 0.0F);
    group.border_scores.assign(group.scores.begin(), group.scores.end());
  }
  border_ = tokens_;
}

/// Adds what leaves to the slots that it is merged into.
void PagedKv::count_merged(Group& group) noexcept {
  for (std::size_t slot = 0; slot < group.fates.size(); ++slot)
    if (group.fates[slot] >= 0) group.counts[static_cast<std::size_t>(group.fates[slot])] += group.counts[slot];
}

/// Turns counts into what attention adds to logits.
void PagedKv::weigh(Group& group) noexcept {
  group.merged = false;
  group.bias.resize(group.counts.size());  // within the reserved capacity
  for (std::size_t slot = 0; slot < group.counts.size(); ++slot) {
    group.bias[slot] = group.counts[slot] == 1 ? 0.0F : std::log(static_cast<float>(group.counts[slot]));
    group.merged = group.merged || group.counts[slot] > 1;
  }
}

/// What is kept for a slot goes with it.
void PagedKv::move_numbers(Group& group, std::size_t from, std::size_t to) noexcept {
  group.positions[to] = group.positions[from];
  if (options_.scores) group.scores[to] = group.scores[from];
  if (options_.counts) group.counts[to] = group.counts[from];
  if (!group.noise.empty()) group.noise[to] = group.noise[from];
  if (options_.gate_width == 0 || &group != groups_.data()) return;
  until_[to] = until_[from];
  const auto width = static_cast<std::size_t>(options_.gate_width);
  std::copy_n(gate_keys_.data() + from * width, width, gate_keys_.data() + to * width);
}

void PagedKv::resize_numbers(Group& group, std::size_t slots) noexcept {
  group.positions.resize(slots);
  if (options_.scores) group.scores.resize(slots);
  if (!group.noise.empty()) group.noise.resize(slots);
  if (options_.gate_width > 0 && &group == groups_.data()) {
    until_.resize(slots);
    gate_keys_.resize(slots * static_cast<std::size_t>(options_.gate_width));
  }
  if (!options_.counts) return;
  group.counts.resize(slots);
  weigh(group);
}

/// Whole pages leave, nothing moves.
void PagedKv::relink(Group& group) noexcept {
  const auto page_tokens = static_cast<std::int64_t>(pool_->layout().page_tokens);
  std::size_t kept = 0;
  std::size_t kept_slots = 0;
  for (std::size_t i = 0; i < group.pages.size(); ++i) {
    const auto first = static_cast<std::int64_t>(i) * page_tokens;
    if (group.fates[static_cast<std::size_t>(first)] != EvictionChoice::keep) {
      pool_->release(group.pages[i]);
      continue;
    }
    group.pages[kept++] = group.pages[i];
    const auto last = std::min(first + page_tokens, group.slots);
    for (auto slot = static_cast<std::size_t>(first); slot < static_cast<std::size_t>(last); ++slot) {
      move_numbers(group, slot, kept_slots++);
    }
  }
  group.pages.resize(kept);
  resize_numbers(group, kept_slots);
  group.slots = static_cast<std::int64_t>(kept_slots);
}

/// Moves the 16 slots from `slot` on to `target` on, a multiple of 16, if they all stay and the host can see them.
bool PagedKv::move_sixteen(const Group& group, std::int64_t slot, std::int64_t target) noexcept {
  const auto& layout = pool_->layout();
  constexpr std::int64_t lanes = KvPageLayout::lane_tokens;
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  if (layout.coded() || !pool_->host_visible() || slot + lanes > group.tail) return false;
  for (auto i = slot; i < slot + lanes; ++i)
    if (group.fates[static_cast<std::size_t>(i)] != EvictionChoice::keep) return false;
  const auto place = [&](std::int64_t first) {
    return KvGroupPlace{pool_->address(old_pages_[static_cast<std::size_t>(first / page_tokens)]),
                        static_cast<std::int32_t>(first % page_tokens)};
  };
  const auto low = place(slot / lanes * lanes);
  const auto high = slot % lanes == 0 ? low : place(slot / lanes * lanes + lanes);
  std::byte* to = pool_->address(group.pages[static_cast<std::size_t>(target / page_tokens)]);
  const auto t = static_cast<std::int32_t>(target % page_tokens);
  if (low.page == to && slot == target) return true;
  const auto skipped = static_cast<std::size_t>(slot % lanes);
  if (layout.element_bytes() == 4) copy_kv_group<std::uint32_t>(layout, low, high, skipped, to, t);
  else copy_kv_group<std::uint16_t>(layout, low, high, skipped, to, t);
  return true;
}

/// Moves the survivors together. A slot's new place is never after its old one, so that ascending order overwrites
/// nothing that is still to be read; pages that others hold are replaced by the spare ones.
void PagedKv::compact(Group& group) noexcept {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  const bool visible = pool_->host_visible();
  if (!visible) {
    from_.resize(pool_->page_bytes());
    to_.resize(pool_->page_bytes());
  }
  old_pages_.assign(group.pages.begin(), group.pages.end());
  const auto first_page = group.changed / page_tokens;
  const auto tail_page = (group.tail + page_tokens - 1) / page_tokens;
  const auto page_count = (group.survivors - (group.slots - group.tail) + page_tokens - 1) / page_tokens;
  std::size_t spare = 0;
  for (auto page = first_page; page < page_count; ++page)
    if (pool_->shared(group.pages[static_cast<std::size_t>(page)]))
      group.pages[static_cast<std::size_t>(page)] = group.spare[spare++];
  const auto open = [&](PageId id, std::vector<std::byte>& staging) -> std::byte* {
    if (visible) return pool_->address(id);
    pool_->backend().read(staging, pool_->address(id));
    return staging.data();
  };
  std::int64_t target = first_page * page_tokens;
  std::int64_t from_page = -1;
  std::int64_t to_page = -1;
  std::byte* from = nullptr;
  std::byte* to = nullptr;
  const auto flush = [&] {
    if (!visible && to_page >= 0)
      pool_->backend().write(pool_->address(group.pages[static_cast<std::size_t>(to_page)]), to_);
  };
  for (auto slot = target; slot < group.tail; ++slot) {
    if (group.fates[static_cast<std::size_t>(slot)] != EvictionChoice::keep) continue;
    if (target % KvPageLayout::lane_tokens == 0 && move_sixteen(group, slot, target)) {
      for (std::int32_t i = 0; i < KvPageLayout::lane_tokens; ++i, ++slot)
        move_numbers(group, static_cast<std::size_t>(slot), static_cast<std::size_t>(target++));
      --slot;
      continue;
    }
    if (slot / page_tokens != from_page) {
      from_page = slot / page_tokens;
      from = open(old_pages_[static_cast<std::size_t>(from_page)], from_);
    }
    if (target / page_tokens != to_page) {
      flush();
      to_page = target / page_tokens;
      to = open(group.pages[static_cast<std::size_t>(to_page)], to_);
    }
    copy_kv_slot(layout, from, static_cast<std::int32_t>(slot % page_tokens), to,
                 static_cast<std::int32_t>(target % page_tokens));
    move_numbers(group, static_cast<std::size_t>(slot), static_cast<std::size_t>(target++));
  }
  flush();
  for (auto slot = group.tail; slot < group.slots; ++slot)
    move_numbers(group, static_cast<std::size_t>(slot), static_cast<std::size_t>(target++));
  for (auto page = first_page; page < tail_page; ++page)
    if (page >= page_count || old_pages_[static_cast<std::size_t>(page)] != group.pages[static_cast<std::size_t>(page)])
      pool_->release(old_pages_[static_cast<std::size_t>(page)]);
  group.pages.erase(group.pages.begin() + page_count, group.pages.begin() + std::min<std::int64_t>(
                                                          tail_page, static_cast<std::int64_t>(group.pages.size())));
  for (; spare < group.spare.size(); ++spare) pool_->release(group.spare[spare]);  // somebody let go meanwhile
  group.spare.clear();
  resize_numbers(group, static_cast<std::size_t>(group.survivors));
  if (!group.merge_index.empty()) {
    std::int64_t place = 0;
    for (std::size_t slot = 0; slot < group.merge_index.size(); ++slot) {
      if (group.merge_index[slot] >= 0) write_merged(group, place, group.merge_index[slot]);
      if (group.fates[slot] == EvictionChoice::keep) ++place;
    }
  }
  group.slots = group.survivors;
}

/// Rotates the sinks' keys from their own positions to those that directly precede the oldest token after them. Always
/// from the keys as they were at first, so that errors do not add up.
void PagedKv::rotate_sinks(Group& group) noexcept {
  const auto& layout = pool_->layout();
  const auto dims = static_cast<std::size_t>(layout.head_dim_k);
  const auto& frequencies = options_.rotation->inverse_frequencies;
  const std::size_t half = frequencies.size();
  const PageId id = group.pages.front();
  std::byte* page = pool_->address(id);
  if (!pool_->host_visible()) {
    pool_->backend().read(to_, page);
    page = to_.data();
  }
  if (group.sink_keys.empty()) {
    group.sink_keys.resize(sink_floats());  // reserved
    float* out = group.sink_keys.data();
    for (std::int32_t sink = 0; sink < options_.sinks; ++sink)
      for (std::int32_t head = 0; head < layout.heads; ++head, out += dims)
        read_kv_key(layout, page, head, sink, {out, dims});
  }
  const std::int64_t oldest = group.positions[static_cast<std::size_t>(options_.sinks)];
  const float* key = group.sink_keys.data();
  for (std::int32_t sink = 0; sink < options_.sinks; ++sink) {
    const auto by = oldest - options_.sinks + sink - group.positions[static_cast<std::size_t>(sink)];
    for (std::int32_t head = 0; head < layout.heads; ++head, key += dims) {
      row_.assign(key, key + dims);  // reserved
      for (std::size_t j = 0; j < half; ++j) {
        const std::size_t a = options_.rotation->interleaved ? 2 * j : j;
        const std::size_t b = options_.rotation->interleaved ? 2 * j + 1 : j + half;
        const double angle = static_cast<double>(by) * frequencies[j];
        const double c = std::cos(angle);
        const double s = std::sin(angle);
        row_[a] = static_cast<float>(key[a] * c - key[b] * s);
        row_[b] = static_cast<float>(key[a] * s + key[b] * c);
      }
      write_kv_key(layout, page, head, sink, row_);
    }
  }
  if (!pool_->host_visible()) pool_->backend().write(pool_->address(id), to_);
}

void PagedKv::write_merged(Group& group, std::int64_t slot, std::int64_t index) noexcept {
  const auto& layout = pool_->layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  const auto dims_k = static_cast<std::size_t>(layout.head_dim_k);
  const auto dims_v = static_cast<std::size_t>(layout.stored_dim_v());
  const std::size_t stride = dims_k + dims_v;
  const auto id = group.pages[static_cast<std::size_t>(slot / page_tokens)];
  std::byte* page = pool_->address(id);
  if (!pool_->host_visible()) {
    pool_->backend().read(to_, pool_->address(id));
    page = to_.data();
  }
  const auto at = static_cast<std::int32_t>(slot % page_tokens);
  const float* row = group.merged_rows.data() + static_cast<std::size_t>(index * layout.heads) * stride;
  for (std::int32_t head = 0; head < layout.heads; ++head, row += stride) {
    write_kv_key(layout, page, head, at, {row, dims_k});
    if (!layout.values_in_keys) write_kv_value(layout, page, head, at, {row + dims_k, dims_v});
  }
  if (!pool_->host_visible()) pool_->backend().write(pool_->address(id), to_);
}

}  // namespace skald::inline v0
