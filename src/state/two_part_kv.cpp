#include <skald/state/two_part_kv.hpp>

#include <algorithm>
#include <cmath>

#include <skald/state/kv_rows.hpp>

namespace skald::inline v0 {

std::size_t TwoPartKv::bytes_beyond(const LayerState& other) const {
  const auto& with = static_cast<const TwoPartKv&>(other);
  return front_->bytes_beyond(*with.front_) + back_->bytes_beyond(*with.back_);
}

void TwoPartKv::save(ArchiveWriter& out) const {
  front_->save(out);
  back_->save(out);
}

void TwoPartKv::clear() noexcept {
  front_->clear();
  back_->clear();
}

std::unique_ptr<PagedKv> TwoPartKv::fork_part(const PagedKv& part) {
  return std::unique_ptr<PagedKv>(static_cast<PagedKv*>(part.fork().release()));  // NOLINT: a PagedKv forks into one
}

void SlowBackKv::commit() noexcept {
  front_->commit();
  back_->commit();
}

std::size_t SlowBackKv::bytes_beyond(const LayerState& other) const {
  return front_->bytes_beyond(static_cast<const SlowBackKv&>(other).front());
}

ResidualKv::ResidualKv(std::unique_ptr<PagedKv> coded, std::unique_ptr<PagedKv> recent, std::int64_t residual)
    : TwoPartKv(std::move(coded), std::move(recent)), residual_(residual) {
  const auto& layout = back_->pool().layout();
  row_.resize(static_cast<std::size_t>(std::max(layout.head_dim_k, layout.head_dim_v)));
  if (back_->pool().host_visible()) return;
  from_.resize(back_->pool().page_bytes());
  to_.resize(front_->pool().page_bytes());
}

/// Tokens that are codes after so many.
std::int64_t ResidualKv::coded_slots(std::int64_t length) const noexcept {
  const auto page = static_cast<std::int64_t>(back_->pool().layout().page_tokens);
  return std::max<std::int64_t>(0, length / page * page - residual_);
}

void ResidualKv::append(std::int64_t count) {
  const auto more = coded_slots(length() + count) - front_->length();
  front_->append(more);
  try {
    back_->append(count);
  } catch (...) {
    front_->remove_last(more);
    throw;
  }
}

/// Gives back room for codes that the length does not need.
void ResidualKv::trim() {
  front_->remove_last(front_->length() - coded_slots(length()));
  filled_ = std::min(filled_, front_->length());
}

void ResidualKv::remove_last(std::int64_t count) {
  if (count == length()) return clear();
  back_->remove_last(count);
  trim();
}

void ResidualKv::select_last(std::int64_t count, std::span<const std::int32_t> rows) {
  back_->select_last(count, rows);
  trim();
}

std::unique_ptr<LayerState> ResidualKv::fork() const {
  auto copy = std::make_unique<ResidualKv>(fork_part(*front_), fork_part(*back_), residual_);
  copy->filled_ = filled_;
  return copy;
}

void ResidualKv::encode_page(int group, std::int64_t slot) noexcept {
  const auto& recent = back_->pool();
  const auto& coded = front_->pool();
  const auto& layout = recent.layout();
  const auto page_tokens = static_cast<std::int64_t>(layout.page_tokens);
  const auto from_id = back_->pages(group)[static_cast<std::size_t>((slot - back_->first_slot(group)) / page_tokens)];
  const auto to_id = front_->pages(group)[static_cast<std::size_t>(slot / page_tokens)];
  const std::byte* from = recent.address(from_id);
  std::byte* to = coded.address(to_id);
  if (!recent.host_visible()) {
    recent.backend().read(from_, from);
    from = from_.data();
    to = to_.data();
  }
  const std::span key(row_.data(), static_cast<std::size_t>(layout.head_dim_k));
  const std::span value(row_.data(), static_cast<std::size_t>(layout.head_dim_v));
  for (std::int32_t head = 0; head < layout.heads; ++head)
    for (std::int32_t in_page = 0; in_page < layout.page_tokens; ++in_page) {
      read_kv_key(layout, from, head, in_page, key);
      write_kv_key(coded.layout(), to, head, in_page, key);
      if (layout.values_in_keys) continue;
      read_kv_value(layout, from, head, in_page, value);
      write_kv_value(coded.layout(), to, head, in_page, value);
    }
  if (!recent.host_visible()) coded.backend().write(coded.address(to_id), to_);
}

void ResidualKv::commit() noexcept {
  const auto page_tokens = static_cast<std::int64_t>(back_->pool().layout().page_tokens);
  for (; filled_ < front_->length(); filled_ += page_tokens)
    for (int group = 0; group < back_->groups(); ++group) encode_page(group, filled_);
  front_->commit();
  back_->commit();
}

std::int64_t ResidualKv::restorable(std::int64_t length) const noexcept {
  if (length >= this->length()) return this->length();
  return back_->restorable(length) == length ? length : 0;
}

void ResidualKv::load(ArchiveReader& in) {
  try {
    front_->load(in);
    back_->load(in);
    if (front_->length() != coded_slots(length())) in.refuse("residual", "the codes are not those of the length");
    for (int group = 0; group < back_->groups(); ++group)
      if (front_->first_slot(group) != 0 || back_->first_slot(group) > front_->length())
        in.refuse("residual", "tokens between the codes and the newest are missing");
    filled_ = front_->length();
  } catch (...) {
    clear();
    throw;
  }
}

void ResidualKv::clear() noexcept {
  TwoPartKv::clear();
  filled_ = 0;
}

void SegmentedKv::append(std::int64_t count) {
  const bool front = back_->length() == 0 && (prompt_ == 0 || front_->length() < prompt_);
  (front ? *front_ : *back_).append(count);
  in_front_ = front;
}

void SegmentedKv::remove_last(std::int64_t count) {
  const auto answer = std::min(count, back_->length());
  back_->remove_last(answer);
  front_->remove_last(count - answer);
}

std::unique_ptr<LayerState> SegmentedKv::fork() const {
  auto copy = std::make_unique<SegmentedKv>(fork_part(*front_), fork_part(*back_));
  copy->prompt_ = prompt_;
  copy->in_front_ = in_front_;
  return copy;
}

void SegmentedKv::commit() noexcept {
  front_->commit();
  back_->commit();
}

void SegmentedKv::load(ArchiveReader& in) {
  try {
    front_->load(in);
    back_->load(in);
    in_front_ = back_->length() == 0;
  } catch (...) {
    clear();
    throw;
  }
}

RebuiltKv::RebuiltKv(std::unique_ptr<PagedKv> rebuilt, std::unique_ptr<PagedKv> kept, std::int64_t dim)
    : TwoPartKv(std::move(rebuilt), std::move(kept)), dim_(dim) {
  entered_.reserve(static_cast<std::size_t>(back_->options().max_tokens * dim));
  positions_.reserve(static_cast<std::size_t>(front_->options().max_tokens));
}

bool RebuiltKv::holds(std::span<const std::int32_t> positions) const noexcept {
  return (valid_ || positions.empty()) && std::equal(positions.begin(), positions.end(), positions_.begin(), positions_.end());
}

bool RebuiltKv::movable() const noexcept {
  if (!valid_ || !front_->pool().host_visible()) return false;
  for (int group = 0; group < front_->groups(); ++group)
    for (const PageId page : front_->pages(group))
      if (front_->pool().shared(page)) return false;
  return true;
}

void RebuiltKv::missing(std::span<const std::int32_t> positions, std::vector<std::int32_t>& out) const {
  out.clear();
  std::size_t at = 0;
  for (std::size_t i = 0; i < positions.size(); ++i) {
    while (at < positions_.size() && positions_[at] < positions[i]) ++at;
    if (at == positions_.size() || positions_[at] != positions[i]) out.push_back(static_cast<std::int32_t>(i));
  }
}

void RebuiltKv::begin_rebuild(std::span<const std::int32_t> positions, bool moves) {
  const auto& layout = front_->pool().layout();
  const auto row_bytes = kv_slot_bytes(layout);
  moves_.clear();
  std::size_t at = 0;
  for (std::size_t i = 0; moves && i < positions.size(); ++i) {
    while (at < positions_.size() && positions_[at] < positions[i]) ++at;
    if (at < positions_.size() && positions_[at] == positions[i] && at != i)
      moves_.push_back({static_cast<std::int32_t>(at), static_cast<std::int32_t>(i)});
  }
  const auto each_row = [&](std::size_t end, auto&& move) {
    std::byte* row = rows_.data();
    for (int group = 0; group < front_->groups(); ++group)
      for (const auto& ends : moves_) {
        const auto page = front_->pages(group)[static_cast<std::size_t>(ends[end] / layout.page_tokens)];
        move(front_->pool().address(page), ends[end] % layout.page_tokens, row);
        row += row_bytes;
      }
  };
  rows_.resize(row_bytes * moves_.size() * static_cast<std::size_t>(front_->groups()));
  each_row(0, [&](std::byte* page, std::int32_t slot, std::byte* row) { move_kv_slot<false>(layout, page, slot, row); });
  valid_ = false;
  if (!moves) front_->clear();  // pages that forks hold too stay with them
  const auto more = static_cast<std::int64_t>(positions.size()) - front_->length();
  positions_.clear();
  if (more > 0) front_->append(more);
  else front_->remove_last(-more);
  front_->commit();
  each_row(1, [&](std::byte* page, std::int32_t slot, std::byte* row) { move_kv_slot<true>(layout, page, slot, row); });
  positions_.assign(positions.begin(), positions.end());
}

void RebuiltKv::dropped(std::vector<std::int32_t>& out) const {
  out.clear();
  std::int32_t next = 0;
  for (const auto position : back_->positions(0)) {
    for (; next < position; ++next) out.push_back(next);
    next = position + 1;
  }
}

void RebuiltKv::remove_last(std::int64_t count) {
  back_->remove_last(count);
  entered_.resize(std::min(entered_.size(), static_cast<std::size_t>(back_->length() * dim_)));
}

std::unique_ptr<LayerState> RebuiltKv::fork() const {
  auto copy = std::make_unique<RebuiltKv>(fork_part(*front_), fork_part(*back_), dim_);
  copy->positions_.assign(positions_.begin(), positions_.end());
  copy->valid_ = valid_;
  copy->entered_.assign(entered_.begin(), entered_.end());
  return copy;
}

void RebuiltKv::commit() noexcept {
  back_->commit();
  valid_ = true;
}

void RebuiltKv::save(ArchiveWriter& out) const {
  back_->save(out);
  out.array(std::span<const float>(entered_));
}

void RebuiltKv::load(ArchiveReader& in) {
  clear();
  try {
    back_->load(in);
    const auto entered = in.array<float>("entered");
    if (static_cast<std::int64_t>(entered.size()) != back_->length() * dim_)
      in.refuse("entered", "there is not one state for each token");
    for (const float x : entered)
      if (!std::isfinite(x)) in.refuse("entered", "a value is not finite");
    for (int group = 1; group < back_->groups(); ++group)
      if (!std::ranges::equal(back_->positions(group), back_->positions(0)))
        in.refuse("positions", "the head groups have dropped different tokens");
    entered_.assign(entered.begin(), entered.end());
  } catch (...) {
    clear();
    throw;
  }
}

void RebuiltKv::clear() noexcept {
  TwoPartKv::clear();
  positions_.clear();
  valid_ = false;
  entered_.clear();
}

}  // namespace skald::inline v0
