#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/phases.hpp"

#include <skald/quant/row_codec.hpp>

namespace skald::inline v0::cpu {

namespace {

/// Rows and columns of one unit.
struct Piece {
  std::int64_t row, last_row;
  std::int64_t col, cols;
};
Piece piece_of(const Phase& phase, std::int64_t unit, const Matrix& m) noexcept {
  const RowsPlan& plan = phase.rows;
  const std::int64_t row = unit / plan.pieces * plan.unit_rows;
  const std::int64_t col = unit % plan.pieces * plan.unit_cols;
  return {row, std::min(row + plan.unit_rows, m.rows), col, std::min(plan.unit_cols, m.cols - col)};
}

template <class O>
const O& op_of(const Phase& phase) noexcept {
  return *std::get_if<O>(phase.op);
}

std::size_t float_bytes(std::int64_t n) noexcept { return static_cast<std::size_t>(n) * sizeof(float); }

void unit(const Phase& phase, const EmbedOp& op, const Piece& piece) noexcept {
  const auto& table = static_cast<const CpuWeight&>(*op.table);
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    float* out = op.out.data + i * op.out.stride;
    const std::int64_t token = op.tokens[i];
    if (table.packed()) {
      table.kernel().unpack_row(table.panel(token / kernels::panel_rows), static_cast<int>(token % kernels::panel_rows),
                                table.cols(), out);
    } else {
      format_ops(table.type()).decode_row(table.row(token), out, static_cast<std::size_t>(table.cols()));
    }
    if (op.scale != 1.0F) phase.state->kernels.rows().softcap(out, op.scale, 0.0F, op.out.cols, out);
  }
}

void unit(const Phase& /*phase*/, const UploadOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    std::memcpy(op.out.data + i * op.out.stride + piece.col, op.host + i * op.out.cols + piece.col,
                float_bytes(piece.cols));
  }
}

void unit(const Phase& /*phase*/, const DownloadOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    std::memcpy(op.host + i * op.x.cols + piece.col, op.x.data + i * op.x.stride + piece.col, float_bytes(piece.cols));
  }
}

void unit(const Phase& phase, const NormOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    const std::int64_t cols = op.x.cols / op.groups;
    for (std::int64_t g = 0; g < op.groups; ++g) {
      Norm norm = op.norm;
      if (norm.weight != nullptr) norm.weight += g * cols;
      if (norm.bias != nullptr) norm.bias += g * cols;
      normalize(phase.state->kernels.rows(), norm, op.x.data + i * op.x.stride + g * cols, cols,
                op.out.data + i * op.out.stride + g * cols);
    }
  }
}

void unit(const Phase& phase, const AddOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    phase.state->kernels.rows().add(op.y.data + i * op.y.stride + piece.col, op.scale, piece.cols,
                                    op.x.data + i * op.x.stride + piece.col);
  }
}

void unit(const Phase& phase, const SoftcapOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    float* x = op.x.data + i * op.x.stride + piece.col;
    phase.state->kernels.rows().softcap(x, op.scale, op.softcap, piece.cols, x);
  }
}

void unit(const Phase& phase, const GateRowsOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    const double logit = op.logits.data[i * op.logits.stride];
    float* x = op.x.data + i * op.x.stride;
    phase.state->kernels.rows().softcap(x, static_cast<float>(1.0 / (1.0 + std::exp(-logit))), 0.0F, op.x.cols, x);
  }
}

void unit(const Phase& /*phase*/, const ClampOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    float* x = op.x.data + i * op.x.stride + piece.col;
    for (std::int64_t j = 0; j < piece.cols; ++j) x[j] = std::clamp(x[j], -op.limit, op.limit);
  }
}

void unit(const Phase& phase, const MultiplyOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    phase.state->kernels.recurrent().multiply(op.y.data + i * op.y.stride + piece.col, piece.cols,
                                              op.x.data + i * op.x.stride + piece.col);
  }
}

void unit(const Phase& phase, const LerpOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    phase.state->kernels.recurrent().lerp(op.y.data + i * op.y.stride + piece.col,
                                          op.weight.data + i * op.weight.stride + piece.col, piece.cols,
                                          op.x.data + i * op.x.stride + piece.col);
  }
}

void unit(const Phase& /*phase*/, const RopeTableOp& op, const Piece& piece) noexcept {
  for (std::int64_t i = piece.row; i < piece.last_row; ++i) {
    float* out = op.out.data + i * op.out.stride;
    for (std::int64_t j = 0; j < op.out.cols / 2; ++j) {
      const double angle = static_cast<double>(op.positions[i]) * op.inverse_frequencies[j];
      const double magnitude = op.magnitude;
      out[2 * j] = static_cast<float>(magnitude * std::cos(angle));
      out[2 * j + 1] = static_cast<float>(magnitude * std::sin(angle));
    }
  }
}

const Matrix& main_matrix(const EmbedOp& op) noexcept { return op.out; }
const Matrix& main_matrix(const UploadOp& op) noexcept { return op.out; }
const Matrix& main_matrix(const DownloadOp& op) noexcept { return op.x; }
const Matrix& main_matrix(const NormOp& op) noexcept { return op.x; }
const Matrix& main_matrix(const AddOp& op) noexcept { return op.x; }
const Matrix& main_matrix(const SoftcapOp& op) noexcept { return op.x; }
const Matrix& main_matrix(const ClampOp& op) noexcept { return op.x; }
const Matrix& main_matrix(const MultiplyOp& op) noexcept { return op.x; }
const Matrix& main_matrix(const LerpOp& op) noexcept { return op.x; }
const Matrix& main_matrix(const RopeTableOp& op) noexcept { return op.out; }
const Matrix& main_matrix(const GateRowsOp& op) noexcept { return op.x; }

template <class O>
void run_rows(const PhaseHead& head, std::int64_t number, Participant& /*me*/) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const O& op = op_of<O>(phase);
  unit(phase, op, piece_of(phase, number, main_matrix(op)));
}

/// @param elements about how many make a unit worth a claim. @param whole_rows rows must not be cut.
template <class O>
void plan(StreamState& state, const Op& whole, const O& op, std::int64_t elements, bool whole_rows,
          std::vector<Phase>& phases) {
  const Matrix& m = main_matrix(op);
  if (m.rows == 0) return;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.run = run_rows<O>;
  phase.rows = RowsPlan{};
  phase.rows.unit_rows = std::max<std::int64_t>(1, elements / m.cols);
  phase.rows.unit_cols = whole_rows ? m.cols : std::min(m.cols, elements);
  phase.rows.pieces = ceil_div(m.cols, phase.rows.unit_cols);
  phase.units = ceil_div(m.rows, phase.rows.unit_rows) * phase.rows.pieces;
  phases.push_back(phase);
}

// ---- DropOp: a unit is a block of slots of one segment; slots do not depend on each other

constexpr std::int32_t drop_slots = 512;

/// In eight sums, so that compilers can use vectors.
float dot_of(const float* a, const float* b, std::int64_t n) noexcept {
  float sums[8] = {};
  std::int64_t d = 0;
  for (; d + 8 <= n; d += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += a[d + lane] * b[d + lane];
  float sum = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
  for (; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

void run_drop(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const DropOp& op = op_of<DropOp>(phase);
  const std::int64_t width = op.gates.cols / 2;
  const float bar = -op.bias * std::sqrt(static_cast<float>(width));
  const auto s = static_cast<std::int32_t>(unit / phase.rows.pieces);
  const Segment& segment = op.segments[s];
  const DropTable& table = op.tables[s];
  const auto first = static_cast<std::int32_t>(unit % phase.rows.pieces) * drop_slots;
  const std::int32_t last = std::min(first + drop_slots, table.length + segment.row_count);
  const auto gates_of = [&](std::int32_t row) { return op.gates.data + (segment.row_begin + row) * op.gates.stride; };
  for (std::int32_t slot = first; slot < last; ++slot) {
    if (slot % 16 == 0 && me.stop->check()) return;
    float* key = table.keys + slot * width;
    std::int32_t row = 0;
    if (slot >= table.length) {
      row = slot - table.length;
      std::memcpy(key, gates_of(row++) + width, float_bytes(width));
      table.until[slot] = std::numeric_limits<std::int32_t>::max();
    }
    if (table.until[slot] <= table.position) continue;
    for (; row < segment.row_count; ++row) {
      if (!(dot_of(gates_of(row), key, width) < bar)) continue;
      table.until[slot] = table.position + row;
      break;
    }
  }
}

void plan_drop(StreamState& state, const Op& whole, const DropOp& op, std::vector<Phase>& phases) {
  std::int32_t longest = 0;
  for (std::int32_t s = 0; s < op.segment_count; ++s)
    longest = std::max(longest, op.tables[s].length + op.segments[s].row_count);
  if (longest == 0) return;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.run = run_drop;
  phase.rows = RowsPlan{};
  phase.rows.pieces = ceil_div(longest, drop_slots);
  phase.units = phase.rows.pieces * op.segment_count;
  phases.push_back(phase);
}

}  // namespace

void plan_rows(StreamState& state, const Op& whole, std::vector<Phase>& phases) {
  constexpr std::int64_t light = 16384;  // copies and sums
  constexpr std::int64_t medium = 4096;  // norms, functions
  constexpr std::int64_t heavy = 256;    // sines
  if (const auto* op = std::get_if<EmbedOp>(&whole)) plan(state, whole, *op, medium, true, phases);
  if (const auto* op = std::get_if<UploadOp>(&whole)) plan(state, whole, *op, light, false, phases);
  if (const auto* op = std::get_if<DownloadOp>(&whole)) plan(state, whole, *op, light, false, phases);
  if (const auto* op = std::get_if<NormOp>(&whole)) plan(state, whole, *op, medium, true, phases);
  if (const auto* op = std::get_if<AddOp>(&whole)) plan(state, whole, *op, light, false, phases);
  if (const auto* op = std::get_if<SoftcapOp>(&whole)) plan(state, whole, *op, medium, false, phases);
  if (const auto* op = std::get_if<ClampOp>(&whole)) plan(state, whole, *op, light, false, phases);
  if (const auto* op = std::get_if<MultiplyOp>(&whole)) plan(state, whole, *op, light, false, phases);
  if (const auto* op = std::get_if<LerpOp>(&whole)) plan(state, whole, *op, light, false, phases);
  if (const auto* op = std::get_if<RopeTableOp>(&whole)) plan(state, whole, *op, heavy, true, phases);
  if (const auto* op = std::get_if<DropOp>(&whole)) plan_drop(state, whole, *op, phases);
  if (const auto* op = std::get_if<GateRowsOp>(&whole)) plan(state, whole, *op, light, true, phases);
}

}  // namespace skald::inline v0::cpu
