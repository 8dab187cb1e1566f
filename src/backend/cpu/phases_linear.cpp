#include <algorithm>
#include <numeric>

#include "backend/cpu/phases.hpp"
#include "backend/delta.hpp"
#include "backend/op_check.hpp"

namespace skald::inline v0::cpu {

namespace {

using kernels::MatmulColumns;
using kernels::MatmulKernel;
using kernels::panel_rows;

/// What a core has fetched between two looks at whether it still waits.
constexpr std::int64_t warm_bytes = 1024;

const LinearOp& linear_op(const Phase& phase) noexcept { return *std::get_if<LinearOp>(phase.op); }

/// True if a part before `p` has the same activations.
bool acts_seen(const LinearPlan& plan, std::size_t p) noexcept {
  const int id = plan.parts[p].weight->linear_kernel().activation_id;
  return std::any_of(plan.parts.begin(), plan.parts.begin() + static_cast<std::ptrdiff_t>(p),
                     [id](const LinearPartPlan& part) { return part.weight->linear_kernel().activation_id == id; });
}

/// Normalizes and prepares columns [begin, end) of an op into `acts`, made for all its columns.
void prepare_columns(const Phase& phase, std::int64_t begin, std::int64_t end, std::byte* acts, bool shared,
                     std::byte* memory) noexcept {
  const LinearOp& op = linear_op(phase);
  const WorkSizes& sizes = phase.state->sizes;
  auto* rows = reinterpret_cast<float*>(memory + sizes.rows_offset);
  const std::int64_t cols = op.x.cols;
  const bool direct = op.rows == nullptr && op.norm.kind == NormKind::none;
  for (int p = 0; p < op.part_count; ++p) {
    const MatmulKernel& kernel = phase.linear.parts[static_cast<std::size_t>(p)].weight->linear_kernel();
    if (acts_seen(phase.linear, static_cast<std::size_t>(p))) continue;
    const WorkSizes::Acts& place = *sizes.find_acts(kernel.activation_id);
    std::byte* to = acts + (shared ? place.shared_offset : place.private_offset);
    if (direct) {
      kernel.prepare(op.x.data + begin * op.x.stride, op.x.stride, cols, begin, end, to, phase.linear.columns);
      continue;
    }
    const std::int64_t step = std::max<std::int64_t>(sizes.row_count / kernel.column_block, 1) * kernel.column_block;
    for (std::int64_t t = begin; t < end; t += step) {
      const std::int64_t last = std::min(end, t + step);
      for (std::int64_t i = t; i < last; ++i) {
        const std::int64_t source = op.rows != nullptr ? op.rows[i] : i;
        normalize(phase.state->kernels.rows(), op.norm, op.x.data + source * op.x.stride, cols,
                  rows + (i - t) * sizes.row_stride);
      }
      kernel.prepare(rows, sizes.row_stride, cols, t, last, to, phase.linear.columns);
    }
  }
}

/// Column `column` of a part, prepared alone.
std::byte* lone_column(const Phase& phase, const CpuWeight& weight, std::int64_t column) noexcept {
  const MatmulKernel& kernel = weight.linear_kernel();
  return phase.state->shared_acts() + phase.state->sizes.find_acts(kernel.activation_id)->shared_offset +
         static_cast<std::size_t>(column) * kernel.acts_bytes(weight.cols(), 1);
}

void run_prepare_lone(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const LinearOp& op = linear_op(phase);
  const float* x = op.x.data + (op.rows != nullptr ? op.rows[unit] : unit) * op.x.stride;
  if (op.norm.kind != NormKind::none) {
    auto* row = reinterpret_cast<float*>(me.memory + phase.state->sizes.rows_offset);
    normalize(phase.state->kernels.rows(), op.norm, x, op.x.cols, row);
    x = row;
  }
  for (std::size_t p = 0; p < static_cast<std::size_t>(op.part_count); ++p) {
    const CpuWeight& weight = *phase.linear.parts[p].weight;
    if (!acts_seen(phase.linear, p))
      weight.linear_kernel().prepare(x, 0, op.x.cols, 0, 1, lone_column(phase, weight, unit), 1);
  }
}

/// Puts columns that were prepared alone side by side. Activations are a list of 32-bit words for each column, interleaved
/// by column, so this needs to know nothing else of them. What is copied beyond the last word stays within both.
void gather_columns(const Phase& phase, const LinearPartPlan& part, std::byte* acts) noexcept {
  const CpuWeight& weight = *part.weight;
  const MatmulKernel& kernel = weight.linear_kernel();
  const auto width = static_cast<std::size_t>(phase.linear.columns);
  const std::size_t from_stride = kernel.acts_bytes(weight.cols(), 1) / 4;
  const std::size_t words = std::min(from_stride, kernel.acts_bytes(weight.cols(), phase.linear.columns) / (4 * width));
  const auto* from = reinterpret_cast<const std::uint32_t*>(lone_column(phase, weight, 0));
  auto* to = reinterpret_cast<std::uint32_t*>(acts + part.acts_offset);
  constexpr std::size_t step = 64;  // keeps the lines of `to` near while all columns are written
  for (std::size_t first = 0; first < words; first += step) {
    const std::size_t end = std::min(words, first + step);
    for (std::size_t c = 0; c < width; ++c)
      for (std::size_t i = first; i < end; ++i) to[i * width + c] = from[c * from_stride + i];
  }
}

void run_prepare(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const std::int64_t begin = unit * phase.linear.unit_columns;
  const std::int64_t end = std::min(begin + phase.linear.unit_columns, phase.linear.columns);
  prepare_columns(phase, begin, end, phase.state->shared_acts(), true, me.memory);
}

void multiply(const Phase& phase, const LinearPartPlan& part, const Tile& tile, const std::byte* acts,
              std::byte* memory, float* out, std::int64_t stride) noexcept {
  multiply_tile(*phase.state, *part.weight, part.weight->linear_kernel(), tile, acts + part.acts_offset, phase.linear.columns,
                memory, out, stride);
}

/// Bias and deltas of column `column` of the op.
void add_bias(const kernels::RowKernels& rows, const LinearPart& part, const Tile& tile, std::int64_t column,
              float* y) noexcept {
  if (part.bias != nullptr) rows.add(part.bias + tile.row, 1.0F, tile.rows, y);
  for (std::int32_t d = 0; d < part.delta_count; ++d) {
    const DeltaRows& each = part.deltas[d];
    const std::int64_t own = column - each.row_begin;
    if (own < 0 || own >= each.row_count) continue;
    detail::delta_output(each.delta, each.inner.data + own * each.inner.stride, tile.row, tile.rows, y);
  }
}

/// The unit of part `index` for one tile, with its epilogue.
void run_tile(const Phase& phase, std::size_t index, const Tile& tile, const std::byte* acts,
              std::byte* memory) noexcept {
  const LinearOp& op = linear_op(phase);
  const kernels::RowKernels& rows = phase.state->kernels.rows();
  const LinearPart& part = op.parts[index];
  const LinearPartPlan& plan = phase.linear.parts[index];
  const std::int64_t stride = part.out.stride;
  float* out = part.out.data + tile.begin * stride + tile.row;
  auto* temporary = reinterpret_cast<float*>(memory + phase.state->sizes.tile_offset);
  const std::int64_t temporary_stride = tile.panels * panel_rows;
  const std::int64_t columns = tile.end - tile.begin;

  switch (op.epilogue) {
    case LinearEpilogue::store:
      multiply(phase, plan, tile, acts, memory, out, stride);
      for (std::int64_t c = 0; c < columns; ++c) {
        float* y = out + c * stride;
        add_bias(rows, part, tile, tile.begin + c, y);
        if (op.scale != 1.0F) rows.softcap(y, op.scale, 0.0F, tile.rows, y);
        if (op.activation != Activation::none) rows.activate(y, static_cast<int>(op.activation), tile.rows, y);
      }
      return;
    case LinearEpilogue::add:
      multiply(phase, plan, tile, acts, memory, temporary, temporary_stride);
      for (std::int64_t c = 0; c < columns; ++c) {
        float* y = temporary + c * temporary_stride;
        add_bias(rows, part, tile, tile.begin + c, y);
        rows.add(y, op.scale, tile.rows, out + c * stride);
      }
      return;
    case LinearEpilogue::gated: {
      const LinearPartPlan& second = phase.linear.parts[1];
      Tile gate_tile = tile;
      if (second.weight->packed()) gate_tile.next = second.weight->panel(tile.panel);
      multiply(phase, plan, gate_tile, acts, memory, out, stride);
      Tile up_tile = tile;
      // The next unit's.
      const std::int64_t after = tile.panel + tile.panels;
      if (plan.weight->packed() && after < plan.weight->panels()) up_tile.next = plan.weight->panel(after);
      multiply(phase, second, up_tile, acts, memory, temporary, temporary_stride);
      for (std::int64_t c = 0; c < columns; ++c) {
        float* gate = out + c * stride;
        float* up = temporary + c * temporary_stride;
        add_bias(rows, part, tile, tile.begin + c, gate);
        add_bias(rows, op.parts[1], tile, tile.begin + c, up);
        rows.gated(gate, up, static_cast<int>(op.activation), tile.rows, gate);
      }
      return;
    }
  }
}

/// The part that a unit belongs to.
std::size_t part_of(const LinearPlan& plan, std::int64_t unit) noexcept {
  std::size_t index = 0;
  while (index + 1 < static_cast<std::size_t>(plan.part_count) && unit >= plan.parts[index + 1].unit_begin) ++index;
  return index;
}

/// Fetches a piece of a unit's weights into the second-level cache.
bool warm_multiply(const PhaseHead& head, std::int64_t unit, std::int64_t piece) noexcept {
  const LinearPlan& plan = static_cast<const Phase&>(head).linear;
  const std::size_t first = part_of(plan, unit);
  const std::int64_t panel = (unit - plan.parts[first].unit_begin) % plan.parts[first].panel_ranges * plan.unit_panels;
  const std::size_t last = linear_op(static_cast<const Phase&>(head)).epilogue == LinearEpilogue::gated ? first + 1 : first;
  std::int64_t offset = piece * warm_bytes;
  for (std::size_t part = first; part <= last; ++part) {
    const CpuWeight& weight = *plan.parts[part].weight;
    if (!weight.packed()) return false;
    const std::int64_t bytes =
        std::min(plan.unit_panels, weight.panels() - panel) * static_cast<std::int64_t>(weight.panel_bytes());
    if (offset < bytes) {
      const std::byte* from = weight.panel(panel) + offset;
      for (std::int64_t i = 0; i < std::min(warm_bytes, bytes - offset); i += 64) __builtin_prefetch(from + i, 0, 2);
      return true;
    }
    offset -= round_up(bytes, warm_bytes);
  }
  return false;
}

void run_multiply(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const LinearPlan& plan = phase.linear;
  std::byte* acts = phase.state->shared_acts();
  if (plan.private_acts) {
    acts = me.memory + phase.state->sizes.acts_offset;
    if (me.prepared != me.phase) {
      if (plan.divided) {
        for (std::size_t p = 0; p < static_cast<std::size_t>(linear_op(phase).part_count); ++p)
          if (!acts_seen(plan, p)) gather_columns(phase, plan.parts[p], acts);
      } else {
        prepare_columns(phase, 0, plan.columns, acts, false, me.memory);
      }
      me.prepared = me.phase;
    }
  }
  const std::size_t index = part_of(plan, unit);
  const LinearPartPlan& part = plan.parts[index];
  const std::int64_t local = unit - part.unit_begin;
  Tile tile{};
  // Units that follow each other share their columns, so that these stay in the cache.
  tile.panel = local % part.panel_ranges * plan.unit_panels;
  tile.panels = std::min(plan.unit_panels, part.weight->panels() - tile.panel);
  tile.row = tile.panel * panel_rows;
  tile.rows = std::min(tile.panels * panel_rows, part.weight->rows() - tile.row);
  if (tile.panel + tile.panels == part.weight->panels() && index + 1 < static_cast<std::size_t>(plan.part_count) &&
      plan.parts[index + 1].weight->packed()) {
    tile.next = plan.parts[index + 1].weight->panel(0);
  }
  const std::int64_t begin = local / part.panel_ranges * plan.unit_columns;
  const std::int64_t end = std::min(begin + plan.unit_columns, plan.columns);
  // As many columns at once as the temporary tile holds.
  const std::int64_t fit = phase.state->sizes.tile_floats / (tile.panels * panel_rows);
  const std::int64_t step = std::max<std::int64_t>(1, fit / plan.column_block) * plan.column_block;
  for (tile.begin = begin; tile.begin < end; tile.begin = tile.end) {
    tile.end = std::min(tile.begin + step, end);
    run_tile(phase, index, tile, acts, me.memory);
  }
}

/// One row of one delta.
void run_delta_input(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const DeltaInputOp& op = *std::get_if<DeltaInputOp>(phase.op);
  const DeltaRows* each = op.deltas;
  while (unit >= each->row_count) unit -= (each++)->row_count;
  const float* x = op.x.data + detail::source_row(op, each->row_begin + unit) * op.x.stride;
  if (op.norm.kind != NormKind::none) {
    auto* normalized = reinterpret_cast<float*>(me.memory + phase.state->sizes.rows_offset);
    normalize(phase.state->kernels.rows(), op.norm, x, op.x.cols, normalized);
    x = normalized;
  }
  detail::delta_input(each->delta, x, op.x.cols, each->inner.data + unit * each->inner.stride);
}

/// Chooses the units' shape: enough of them for every thread, big enough to be worth a claim, and such that the
/// activations of one unit stay in the second-level cache and a stop request is met soon.
void shape_units(LinearPlan& plan, std::int64_t panels, std::int64_t panel_bytes, std::int64_t act_bytes_per_column,
                 int participants) noexcept {
  const std::int64_t wanted = participants > 1 ? std::int64_t{8} * participants : 1;
  if (plan.columns < 24) {
    // About ten microseconds at the speed of memory. Who has the last unit keeps the others waiting, but these have their
    // next weights fetched meanwhile, while memory pauses where a unit begins.
    constexpr std::int64_t unit_bytes = 192 << 10;
    const std::int64_t few = participants > 1 ? std::int64_t{6} * participants : 1;
    plan.unit_panels = std::clamp<std::int64_t>(std::min(panels / few, unit_bytes / std::max<std::int64_t>(1, panel_bytes)), 1, 8);
    if (plan.unit_panels > 4 && plan.unit_panels < 8) plan.unit_panels = 4;
    plan.unit_columns = plan.columns;
    return;
  }
  // Weights are expanded two panels at a time, and again for each range of columns.
  plan.unit_panels = std::clamp<std::int64_t>(panels / wanted / 2 * 2, 2, 4);
  constexpr std::int64_t cache_bytes = 3 << 18;
  const std::int64_t in_cache =
      std::max<std::int64_t>(132, cache_bytes / std::max<std::int64_t>(act_bytes_per_column, 1));
  const std::int64_t ranges =
      std::max(ceil_div(plan.columns, in_cache), ceil_div(wanted, ceil_div(panels, plan.unit_panels)));
  plan.unit_columns = std::max<std::int64_t>(24, ceil_div(plan.columns, ranges));
  plan.unit_columns = round_up(plan.unit_columns, plan.column_block);
}

}  // namespace

void multiply_tile(const StreamState& state, const CpuWeight& weight, const MatmulKernel& kernel, const Tile& tile,
                   const std::byte* acts, std::int64_t count, std::byte* memory, float* out, std::int64_t stride) noexcept {
  const MatmulColumns columns{acts, count, tile.begin, tile.end, tile.next};
  // The kernel writes column c to out + c * stride.
  float* base = out - tile.begin * stride;
  std::byte* scratch = memory + state.sizes.multiply_offset;
  if (weight.packed() && weight.gaps()) {
    for (std::int64_t p = 0; p < tile.panels; ++p)
      kernel.multiply(weight.panel(tile.panel + p), std::min<std::int64_t>(panel_rows, tile.rows - p * panel_rows),
                      weight.cols(), columns, base + p * panel_rows, stride, scratch);
    return;
  }
  if (weight.packed()) {
    kernel.multiply(weight.panel(tile.panel), tile.rows, weight.cols(), columns, base, stride, scratch);
    return;
  }
  std::byte* panel = memory + state.sizes.panel_offset;
  for (std::int64_t p = 0; p < tile.panels; ++p) {
    weight.pack(tile.panel + p, panel);
    const std::int64_t rows = std::min<std::int64_t>(panel_rows, tile.rows - p * panel_rows);
    kernel.multiply(panel, rows, weight.cols(), columns, base + p * panel_rows, stride, scratch);
  }
}

void plan_delta_input(StreamState& state, const Op& whole, std::vector<Phase>& phases) {
  const DeltaInputOp& op = *std::get_if<DeltaInputOp>(&whole);
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.run = run_delta_input;
  for (std::int32_t d = 0; d < op.delta_count; ++d) phase.units += op.deltas[d].row_count;
  if (phase.units > 0) phases.push_back(phase);
}

void plan_linear(StreamState& state, const Op& whole, std::vector<Phase>& phases) {
  const LinearOp& op = *std::get_if<LinearOp>(&whole);
  const std::int64_t columns = detail::input_rows(op);
  if (columns == 0) return;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  LinearPlan& plan = phase.linear;
  plan.columns = columns;
  plan.private_acts = columns <= private_columns;
  plan.divided = plan.private_acts && columns >= divided_columns && state.participants > 1;
  plan.part_count = op.epilogue == LinearEpilogue::gated ? 1 : op.part_count;
  std::int64_t panels = 0;
  std::int64_t panel_bytes = 0;
  std::int64_t act_bytes = 0;
  for (int p = 0; p < op.part_count; ++p) {
    LinearPartPlan& part = plan.parts[static_cast<std::size_t>(p)];
    part.weight = static_cast<const CpuWeight*>(op.parts[static_cast<std::size_t>(p)].weight);
    state.weight_bytes_read += part.weight->bytes();
    const MatmulKernel& kernel = part.weight->linear_kernel();
    if (kernel.alone) plan.divided = false;  // more than words of each column
    const WorkSizes::Acts& place = *state.sizes.find_acts(kernel.activation_id);
    part.acts_offset = plan.private_acts ? place.private_offset : place.shared_offset;
    plan.column_block = std::lcm(plan.column_block, std::int64_t{kernel.column_block});
    const auto block = std::int64_t{kernel.column_block};
    act_bytes = std::max(act_bytes, static_cast<std::int64_t>(kernel.acts_bytes(op.x.cols, block)) / block);
    const auto bytes = static_cast<std::int64_t>(part.weight->panel_bytes());
    if (p < plan.part_count) {
      panels += part.weight->panels();
      panel_bytes = std::max(panel_bytes, bytes);
    } else {
      panel_bytes += bytes;  // the units of a gate read both matrices
    }
  }
  shape_units(plan, panels, panel_bytes, act_bytes, state.participants);
  const std::int64_t column_ranges = ceil_div(columns, plan.unit_columns);

  if (!plan.private_acts || plan.divided) {
    Phase prepare = phase;
    prepare.run = plan.divided ? run_prepare_lone : run_prepare;
    prepare.linear.unit_columns = plan.divided ? 1 : plan.column_block;
    prepare.units = ceil_div(columns, prepare.linear.unit_columns);
    phases.push_back(prepare);
  }
  phase.run = run_multiply;
  if (plan.private_acts) phase.warm = warm_multiply;
  for (int p = 0; p < plan.part_count; ++p) {
    LinearPartPlan& part = plan.parts[static_cast<std::size_t>(p)];
    part.unit_begin = phase.units;
    part.panel_ranges = ceil_div(part.weight->panels(), plan.unit_panels);
    phase.units += part.panel_ranges * column_ranges;
  }
  phases.push_back(phase);
}

}  // namespace skald::inline v0::cpu
