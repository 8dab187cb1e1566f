// How adapters enter a pass: every LinearOp whose matrices they change gets their deltas, whoever wrote the op.
#include <algorithm>

#include "decoder/core.hpp"

namespace skald::inline v0::detail {

/// Forgets the last pass; the pieces of this one are known.
void DecoderImpl::begin_adapters() {
  pass_has_adapters_ = std::ranges::any_of(pieces_, [](const Piece& piece) { return !piece.session->adapters().empty(); });
  deltas_.clear();
  old_delta_memory_.clear();
}

void DecoderImpl::enqueue(const Op& op) {
  const auto* linear = pass_has_adapters_ ? std::get_if<LinearOp>(&op) : nullptr;
  if (linear == nullptr || linear->rows != nullptr) {
    stream_->enqueue(op);
    return;
  }
  std::vector<DeltaRows> list;
  std::array<std::size_t, 4> begin{};  // of each part, and the end
  for (std::size_t p = 0; p < static_cast<std::size_t>(linear->part_count); ++p) {
    begin[p] = list.size();
    for (std::size_t s = 0; s < pieces_.size(); ++s)
      for (const auto& [adapter, scale] : pieces_[s].session->adapters())
        for (const WeightDelta& delta : adapter.deltas(linear->parts[p].weight)) {
          list.push_back({delta, segments_[s].row_begin, segments_[s].row_count, {}});
          list.back().delta.scale *= scale;
        }
    begin[p + 1] = list.size();
  }
  if (list.empty()) {
    stream_->enqueue(op);
    return;
  }
  std::size_t floats = 0;
  for (const DeltaRows& each : list) floats += static_cast<std::size_t>(each.row_count * each.delta.inner());
  if (delta_memory_.bytes() < floats * sizeof(float)) {
    // Ops that are waiting keep the old memory through old_delta_memory_.
    if (delta_memory_) old_delta_memory_.push_back(delta_memory_);
    delta_memory_ = model_.backend()->allocate(floats * sizeof(float));
  }
  std::size_t at = 0;
  for (DeltaRows& each : list) {
    each.inner = delta_memory_.matrix(at, each.row_count, each.delta.inner());
    at += static_cast<std::size_t>(each.row_count * each.delta.inner()) * sizeof(float);
  }
  deltas_.push_back(std::move(list));
  const std::vector<DeltaRows>& kept = deltas_.back();
  stream_->enqueue(DeltaInputOp{linear->x, linear->norm, kept.data(), static_cast<std::int32_t>(kept.size())});
  LinearOp changed = *linear;
  for (std::size_t p = 0; p < static_cast<std::size_t>(linear->part_count); ++p) {
    changed.parts[p].deltas = kept.data() + begin[p];
    changed.parts[p].delta_count = static_cast<std::int32_t>(begin[p + 1] - begin[p]);
  }
  stream_->enqueue(changed);
}

}  // namespace skald::inline v0::detail
