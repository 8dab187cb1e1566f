#include <algorithm>

#include "backend/cpu/phases.hpp"

namespace skald::inline v0::cpu {

namespace {

using kernels::recurrent_columns;

/// What a unit of a recurrent op works on.
struct Range {
  const Segment& segment;
  const float* from;  ///< the op's part of the state, or null
  float* to;
  std::int64_t first;  ///< column or head
  std::int64_t count;
  std::int64_t row;
};
Range range_of(const Phase& phase, const StateLayer& layer, std::int64_t unit, std::int64_t columns) noexcept {
  const RecurrentPlan& plan = phase.recurrent;
  const std::int64_t segment = unit / plan.ranges;
  const StatePlace& place = layer.places[segment];
  const std::int64_t first = unit % plan.ranges * plan.unit_columns;
  return {layer.segments[segment],
          place.from != nullptr ? place.from + layer.offset : nullptr,
          place.to + layer.offset,
          first,
          std::min(plan.unit_columns, columns - first),
          layer.segments[segment].row_begin};
}
float* element(const Matrix& m, std::int64_t row, std::int64_t col) noexcept { return m.data + row * m.stride + col; }
kernels::InputRows input(const Matrix& m, std::int64_t row, std::int64_t col) noexcept {
  return {m.cols != 0 ? element(m, row, col) : nullptr, m.stride};
}
kernels::OutputRows output(const Matrix& m, std::int64_t row, std::int64_t col) noexcept {
  return {element(m, row, col), m.stride};
}
const float* later(const float* p, std::int64_t offset) noexcept { return p != nullptr ? p + offset : nullptr; }

void run(const Phase& phase, const ConvOp& op, std::int64_t unit) noexcept {
  const Range range = range_of(phase, op.state, unit, op.x.cols);
  if (range.segment.row_count == 0) return;
  kernels::ConvTask task{};
  task.x = input(op.x, range.row, range.first);
  task.out = output(op.out, range.row, range.first);
  task.rows = range.segment.row_count;
  task.cols = range.count;
  task.taps = op.taps;
  task.weight = op.weight + range.first * op.taps;
  task.bias = later(op.bias, range.first);
  task.activation = static_cast<int>(op.activation);
  task.from = later(range.from, range.first);
  task.to = range.to + range.first;
  task.state_stride = op.x.cols;
  phase.state->kernels.recurrent().conv(task);
}

void run(const Phase& phase, const ScanOp& op, std::int64_t unit) noexcept {
  const Range range = range_of(phase, op.state, unit, op.heads);
  if (range.segment.row_count == 0) return;
  const std::int64_t channels = op.x.cols / op.heads;
  const std::int64_t group = range.first / (op.heads / op.groups);
  kernels::ScanTask task{};
  task.x = input(op.x, range.row, range.first * channels);
  task.steps = input(op.steps, range.row, range.first);
  task.b = input(op.b, range.row, group * op.size);
  task.c = input(op.c, range.row, group * op.size);
  task.gate = input(op.gate, range.row, range.first * channels);
  task.out = output(op.out, range.row, range.first * channels);
  task.rows = range.segment.row_count;
  task.heads = range.count;
  task.channels = channels;
  task.size = op.size;
  task.decay = op.decay + range.first * (op.one_decay ? 1 : op.size);
  task.one_decay = op.one_decay;
  task.skip = op.skip + range.first;
  task.step_bias = later(op.step_bias, range.first);
  task.from = later(range.from, range.first * channels * op.size);
  task.to = range.to + range.first * channels * op.size;
  phase.state->kernels.recurrent().scan(task);
}

void run(const Phase& phase, const TokenShiftOp& op, std::int64_t unit) noexcept {
  const Range range = range_of(phase, op.state, unit, op.x.cols);
  const std::int64_t rows = range.segment.row_count;
  if (rows == 0) return;
  kernels::ShiftTask task{};
  task.x = input(op.x, range.row, range.first);
  task.rows = rows;
  task.cols = range.count;
  task.from = later(range.from, range.first);
  for (std::int64_t col = range.first; col < op.out.cols; col += op.x.cols) {
    task.mix = op.mix + col;
    task.more = input(op.more, range.row, col);
    task.out = output(op.out, range.row, col);
    phase.state->kernels.recurrent().shift(task);
  }
  __builtin_memcpy(range.to + range.first, element(op.x, range.row + rows - 1, range.first),
                   static_cast<std::size_t>(range.count) * sizeof(float));
}

void run(const Phase& phase, const WkvOp& op, std::int64_t unit) noexcept {
  const Range range = range_of(phase, op.state, unit, op.heads);
  if (range.segment.row_count == 0) return;
  const std::int64_t size = op.r.cols / op.heads;
  const std::int64_t first = range.first * size;
  kernels::WkvTask task{};
  task.version = op.version;
  task.r = input(op.r, range.row, first);
  task.k = input(op.k, range.row, first);
  task.v = input(op.v, range.row, first);
  task.decay = input(op.decay, range.row, first);
  task.rate = input(op.rate, range.row, first);
  task.gate = input(op.gate, range.row, first);
  task.out = output(op.out, range.row, first);
  task.rows = range.segment.row_count;
  task.size = size;
  task.bonus = op.bonus + first;
  task.key_scale = later(op.key_scale, first);
  task.rate_scale = later(op.rate_scale, first);
  task.norm = static_cast<int>(op.norm.kind);
  task.norm_weight = later(op.norm.weight, first);
  task.norm_bias = later(op.norm.bias, first);
  task.epsilon = op.norm.epsilon;
  task.from = later(range.from, first * size);
  task.to = range.to + first * size;
  phase.state->kernels.recurrent().wkv(task);
}

template <class O>
void run_unit(const PhaseHead& head, std::int64_t unit, Participant& /*me*/) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  run(phase, *std::get_if<O>(phase.op), unit);
}

template <class O>
void plan(StreamState& state, const Op& whole, const O& op, std::int64_t columns, std::int64_t unit_columns,
          std::vector<Phase>& phases) {
  if (op.state.segment_count == 0) return;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.run = run_unit<O>;
  phase.recurrent = RecurrentPlan{unit_columns, ceil_div(columns, unit_columns)};
  phase.units = op.state.segment_count * phase.recurrent.ranges;
  phases.push_back(phase);
}

/// Heads of a unit: of one group, within what a task may have, and about as many channels.
std::int64_t scan_heads(const ScanOp& op) noexcept {
  const std::int64_t per_group = op.heads / op.groups;
  const std::int64_t channels = op.x.cols / op.heads;
  std::int64_t heads = std::min(per_group, std::max<std::int64_t>(1, recurrent_columns / channels));
  while (op.groups > 1 && per_group % heads != 0) --heads;
  return heads;
}

}  // namespace

bool plan_recurrent(StreamState& state, const Op& whole, std::vector<Phase>& phases) {
  if (const auto* op = std::get_if<ConvOp>(&whole)) {
    plan(state, whole, *op, op->x.cols, recurrent_columns, phases);
  } else if (const auto* scan = std::get_if<ScanOp>(&whole)) {
    plan(state, whole, *scan, scan->heads, scan_heads(*scan), phases);
  } else if (const auto* shift = std::get_if<TokenShiftOp>(&whole)) {
    plan(state, whole, *shift, shift->x.cols, recurrent_columns, phases);
  } else if (const auto* wkv = std::get_if<WkvOp>(&whole)) {
    plan(state, whole, *wkv, wkv->heads, 1, phases);
  } else {
    return false;
  }
  return true;
}

}  // namespace skald::inline v0::cpu
