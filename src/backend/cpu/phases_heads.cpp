#include <algorithm>
#include <cstring>

#include "backend/cpu/phases.hpp"

namespace skald::inline v0::cpu {

namespace {

using kernels::panel_rows;

/// A unit is one head by some columns, which it prepares for itself: a head's matrix is small.
void run_heads(const PhaseHead& header, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(header);
  const HeadLinearOp& op = *std::get_if<HeadLinearOp>(phase.op);
  const HeadsPlan& plan = phase.heads;
  const CpuWeight& weight = *plan.weight;
  const WorkSizes& sizes = phase.state->sizes;
  const std::int64_t head = unit / plan.column_ranges;
  const std::int64_t begin = unit % plan.column_ranges * plan.unit_columns;
  const std::int64_t columns = std::min(plan.unit_columns, op.x.rows - begin);
  const float* x = op.x.data + begin * op.x.stride + head * op.x_step;
  float* out = op.out.data + begin * op.out.stride + head * op.out_step;
  std::byte* acts = me.memory + sizes.heads_offset;
  weight.kernel().prepare(x, op.x.stride, weight.cols(), 0, columns, acts, columns);

  Tile tile{};
  for (std::int64_t panel = 0; panel < weight.matrix_panels() && !me.stop->check(); panel += tile.panels) {
    tile.panel = head * weight.matrix_panels() + panel;
    tile.panels = std::min<std::int64_t>(8, weight.matrix_panels() - panel);
    tile.row = panel * panel_rows;
    tile.rows = std::min(tile.panels * panel_rows, weight.matrix_rows() - tile.row);
    tile.begin = 0;
    tile.end = columns;
    multiply_tile(*phase.state, weight, weight.kernel(), tile, acts, columns, me.memory, out + tile.row, op.out.stride);
  }
  if (op.tail == 0) return;
  for (std::int64_t c = 0; c < columns; ++c) {
    std::memcpy(out + c * op.out.stride + weight.matrix_rows(), x + c * op.x.stride + weight.cols(),
                static_cast<std::size_t>(op.tail) * sizeof(float));
  }
}

}  // namespace

void plan_heads(StreamState& state, const Op& whole, std::vector<Phase>& phases) {
  const HeadLinearOp& op = *std::get_if<HeadLinearOp>(&whole);
  if (op.x.rows == 0) return;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.heads = HeadsPlan{};
  HeadsPlan& plan = phase.heads;
  plan.weight = static_cast<const CpuWeight*>(op.weight);
  const std::int64_t wanted = state.participants > 1 ? std::int64_t{4} * state.participants : 1;
  const std::int64_t ranges = std::max(ceil_div(op.x.rows, head_columns), ceil_div(wanted, op.heads));
  plan.unit_columns = std::min(head_columns, std::max<std::int64_t>(24, ceil_div(op.x.rows, ranges)));
  plan.column_ranges = ceil_div(op.x.rows, plan.unit_columns);
  phase.units = plan.column_ranges * op.heads;
  phase.run = run_heads;
  phases.push_back(phase);
}

}  // namespace skald::inline v0::cpu
