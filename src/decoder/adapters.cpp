// How adapters enter a pass: every LinearOp whose matrices they change gets their deltas, whoever wrote the op.
#include <algorithm>

#include "decoder/core.hpp"

namespace skald::inline v0::detail {

/// Forgets the last pass; the pieces of this one are known.
void DecoderImpl::begin_adapters() {
  pass_has_adapters_ =
      std::ranges::any_of(pieces_, [](const Piece& piece) { return !piece.session->adapters().empty(); });
  delta_lists_ = 0;
  old_delta_memory_.clear();
}

/// Adds the deltas that sessions have for a matrix, for the rows of the op that are theirs.
void DecoderImpl::add_deltas(const LinearOp& op, const Weight* weight, std::vector<DeltaRows>& list) const {
  const auto add = [&](const Session& session, std::int32_t begin, std::int32_t count) {
    for (const auto& [adapter, scale] : session.adapters())
      for (const WeightDelta& delta : adapter.deltas(weight)) {
        list.push_back({delta, begin, count, {}});
        list.back().delta.scale *= scale;
      }
  };
  if (op.rows == nullptr) {
    for (std::size_t s = 0; s < pieces_.size(); ++s)
      add(*pieces_[s].session, segments_[s].row_begin, segments_[s].row_count);
    return;
  }
  // Numbered rows ascend, so those of a piece follow each other.
  std::int32_t at = 0;
  for (std::size_t s = 0; s < pieces_.size(); ++s) {
    const std::int32_t end = segments_[s].row_begin + segments_[s].row_count;
    const std::int32_t begin = at;
    while (at < op.row_count && op.rows[at] < end) ++at;
    if (at > begin) add(*pieces_[s].session, begin, at - begin);
  }
}

void DecoderImpl::enqueue(const Op& op) {
  const auto* linear = pass_has_adapters_ ? std::get_if<LinearOp>(&op) : nullptr;
  if (linear == nullptr) {
    stream_->enqueue(op);
    return;
  }
  if (delta_lists_ == deltas_.size()) deltas_.emplace_back();
  std::vector<DeltaRows>& list = deltas_[delta_lists_];  // keeps its capacity from pass to pass
  list.clear();
  std::array<std::size_t, 4> begin{};  // of each part, and the end
  for (std::size_t p = 0; p < static_cast<std::size_t>(linear->part_count); ++p) {
    begin[p] = list.size();
    add_deltas(*linear, linear->parts[p].weight, list);
    begin[p + 1] = list.size();
  }
  if (list.empty()) {
    stream_->enqueue(op);
    return;
  }
  ++delta_lists_;
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
  stream_->enqueue(DeltaInputOp{linear->x, linear->norm, linear->rows, linear->row_count, list.data(),
                                static_cast<std::int32_t>(list.size())});
  LinearOp changed = *linear;
  for (std::size_t p = 0; p < static_cast<std::size_t>(linear->part_count); ++p) {
    changed.parts[p].deltas = list.data() + begin[p];
    changed.parts[p].delta_count = static_cast<std::int32_t>(begin[p + 1] - begin[p]);
  }
  stream_->enqueue(changed);
}

}  // namespace skald::inline v0::detail
