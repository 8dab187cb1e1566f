#include <skald/state/split_kv.hpp>

#include <algorithm>

namespace skald::inline v0 {

void SplitKv::append(std::int64_t count) {
  std::size_t done = 0;
  try {
    for (; done < parts_.size(); ++done) parts_[done]->append(count);
  } catch (...) {
    for (std::size_t i = 0; i < done; ++i) parts_[i]->remove_last(count);
    throw;
  }
}

void SplitKv::remove_last(std::int64_t count) {
  for (auto& part : parts_) part->remove_last(count);
}

void SplitKv::select_last(std::int64_t count, std::span<const std::int32_t> rows) {
  const auto before = length() - count;
  try {
    for (auto& part : parts_) part->select_last(count, rows);
  } catch (...) {  // the caller drops the rows anyway
    for (auto& part : parts_) part->remove_last(part->length() - before);
    throw;
  }
}

std::unique_ptr<LayerState> SplitKv::fork() const {
  std::vector<std::unique_ptr<PagedKv>> parts;
  for (const auto& part : parts_)
    parts.emplace_back(static_cast<PagedKv*>(part->fork().release()));  // NOLINT: a PagedKv forks into one
  return std::make_unique<SplitKv>(std::move(parts));
}

void SplitKv::show_groups(int layer, std::int64_t sequence_tokens, std::vector<EvictionView>& views) {
  const auto begin = views.size();
  int groups = 0;
  for (const auto& part : parts_) {
    const auto first = views.size();
    part->show_groups(layer, sequence_tokens, views);
    for (auto i = first; i < views.size(); ++i) views[i].group += groups;
    groups += part->groups();
  }
  for (auto i = begin; i < views.size(); ++i) views[i].groups = groups;
}

void SplitKv::choose_evictions(const AnyEviction& policy, std::span<const EvictionView> views) {
  std::size_t at = 0;
  int groups = 0;
  std::vector<EvictionView> own;
  for (auto& part : parts_) {
    own.clear();
    for (; at < views.size() && views[at].group < groups + part->groups(); ++at) own.push_back(views[at]);
    part->choose_evictions(policy, own, groups);
    groups += part->groups();
  }
}

void SplitKv::apply_evictions() noexcept {
  for (auto& part : parts_) part->apply_evictions();
}

void SplitKv::commit() noexcept {
  for (auto& part : parts_) part->commit();
}

std::int64_t SplitKv::restorable(std::int64_t length) const noexcept {
  for (bool again = true; again && length >= 0;) {  // until all agree
    again = false;
    for (const auto& part : parts_) {
      const auto at = length < 0 ? length : part->restorable(length);
      again = again || at != length;
      length = at;
    }
  }
  return length;
}

std::size_t SplitKv::bytes_beyond(const LayerState& other) const {
  const auto& split = static_cast<const SplitKv&>(other);
  std::size_t total = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) total += parts_[i]->bytes_beyond(*split.parts_[i]);
  return total;
}

std::size_t SplitKv::policy_bytes() const noexcept {
  std::size_t total = 0;
  for (const auto& part : parts_) total += part->policy_bytes();
  return total;
}

std::size_t SplitKv::bytes() const noexcept {
  std::size_t total = 0;
  for (const auto& part : parts_) total += part->bytes();
  return total;
}

void SplitKv::save(ArchiveWriter& out) const {
  for (const auto& part : parts_) part->save(out);
}

void SplitKv::load(ArchiveReader& in) {
  try {
    for (auto& part : parts_) part->load(in);
    for (const auto& part : parts_)
      if (part->length() != length()) in.refuse("length", "the head groups hold different numbers of tokens");
  } catch (...) {
    clear();
    throw;
  }
}

void SplitKv::clear() noexcept {
  for (auto& part : parts_) part->clear();
}

bool SplitKv::row_wise() const noexcept {
  return std::all_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->row_wise(); });
}

void SplitKv::save_rows(ArchiveWriter& out, std::int64_t from) const {
  for (const auto& part : parts_) part->save_rows(out, from);
}

void SplitKv::load_rows(ArchiveReader& in, std::int64_t count) {
  for (auto& part : parts_) part->load_rows(in, count);
}

void SplitKv::share_rows(const LayerState& other, std::int64_t tokens) noexcept {
  const auto& split = static_cast<const SplitKv&>(other);
  for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i]->share_rows(*split.parts_[i], tokens);
}

}  // namespace skald::inline v0
