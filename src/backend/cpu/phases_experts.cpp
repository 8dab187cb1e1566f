#include <algorithm>
#include <cstring>
#include <numeric>

#include "backend/cpu/expert_choice.hpp"
#include "backend/cpu/phases.hpp"

// A mixture of experts in phases: choose (each token its experts, and its column is prepared once; the last lines sort
// the pairs of a token and an expert by expert), gather the columns of every expert, widen, prepare, narrow, combine. A
// lone token needs no order: every thread chooses and prepares for itself, and what narrows adds to the output at once.
// Both ways take the same operations for every number.

namespace skald::inline v0::cpu {

namespace {

using kernels::MatmulKernel;
using kernels::panel_rows;

/// Columns of one expert that are prepared together.
struct Block {
  std::int32_t expert;
  std::int32_t begin;  ///< first column, counted within the expert's
};

/// Which columns go to which expert. A pair is a token and one of its experts: number token * used + rank.
struct Routes {
  Block* blocks;          ///< [pairs]
  std::int32_t* chosen;   ///< [pairs] experts
  float* shares;          ///< [pairs]
  std::int32_t* place;    ///< [pairs] the pair's row in `inner` and `products`
  std::int32_t* pair;     ///< [pairs] the inverse of `place`
  std::int32_t* first;    ///< [experts + 1] places of an expert's pairs: from first[e] to first[e + 1]
  std::int32_t* active;   ///< [experts] those that have pairs, ascending
  std::int32_t* active_count;
  std::int32_t* block_count;

  Routes(std::byte* memory, std::int64_t pairs, std::int64_t experts) noexcept {
    blocks = reinterpret_cast<Block*>(memory);
    chosen = reinterpret_cast<std::int32_t*>(blocks + pairs);
    shares = reinterpret_cast<float*>(chosen + pairs);
    place = reinterpret_cast<std::int32_t*>(shares + pairs);
    pair = place + pairs;
    first = pair + pairs;
    active = first + experts + 1;
    active_count = active + experts;
    block_count = active_count + 1;
  }
  [[nodiscard]] std::int64_t columns(std::int32_t expert) const noexcept { return first[expert + 1] - first[expert]; }
};

const ExpertsOp& experts_op(const Phase& phase) noexcept { return *std::get_if<ExpertsOp>(phase.op); }

Routes routes_of(const Phase& phase) noexcept {
  const WorkSizes& sizes = phase.state->sizes;
  return {phase.state->memory.data() + sizes.routes_offset, sizes.routed_pairs, sizes.routed_experts};
}

/// Counting sort of the pairs by expert, and the blocks of columns to prepare.
void sort_pairs(const Phase& phase) noexcept {
  const ExpertsOp& op = experts_op(phase);
  const Routes routes = routes_of(phase);
  const auto experts = static_cast<std::int32_t>(op.logits.cols);
  const auto pairs = static_cast<std::int32_t>(op.inner.rows);
  const auto block = static_cast<std::int32_t>(phase.experts.column_block);
  std::fill_n(routes.first, experts + 1, 0);
  for (std::int32_t p = 0; p < pairs; ++p) ++routes.first[routes.chosen[p] + 1];
  for (std::int32_t e = 0; e < experts; ++e) routes.first[e + 1] += routes.first[e];
  std::int32_t* next = routes.active;
  std::copy_n(routes.first, experts, next);
  for (std::int32_t p = 0; p < pairs; ++p) {
    routes.place[p] = next[routes.chosen[p]]++;
    routes.pair[routes.place[p]] = p;
  }
  std::int32_t active = 0;
  std::int32_t blocks = 0;
  for (std::int32_t e = 0; e < experts; ++e) {
    const auto columns = static_cast<std::int32_t>(routes.columns(e));
    if (columns > 0) routes.active[active++] = e;
    for (std::int32_t begin = 0; begin < columns; begin += block) routes.blocks[blocks++] = {e, begin};
  }
  *routes.active_count = active;
  *routes.block_count = blocks;
}

/// A participant's memory for choosing: scores, and a lone token's experts and shares.
struct Choice {
  double* scores;
  std::int32_t* chosen;
  float* shares;
  Choice(const Phase& phase, const Participant& me) noexcept
      : scores(reinterpret_cast<double*>(me.memory + phase.state->sizes.choice_offset)),
        chosen(reinterpret_cast<std::int32_t*>(scores + choice_scores(experts_op(phase).logits.cols))),
        shares(reinterpret_cast<float*>(chosen + experts_op(phase).used)) {}
};

void run_sort(const PhaseHead& head, std::int64_t /*unit*/, Participant& /*me*/) noexcept {
  sort_pairs(static_cast<const Phase&>(head));
}

/// Where columns of a weight's activation format are prepared.
std::byte* acts_place(const Phase& phase, const CpuWeight& weight, std::byte* base, bool lone) noexcept {
  const WorkSizes::Acts& place = *phase.state->sizes.find_acts(weight.kernel().activation_id);
  return base + (lone ? place.private_offset : place.expert_offset);
}
/// The first column of an expert: where it would be if every pair had memory of its own.
std::size_t acts_offset(const CpuWeight& weight, std::int64_t first) noexcept {
  return static_cast<std::size_t>(first) * weight.kernel().acts_bytes(weight.cols(), 1);
}

/// Normalizes row `token` of x into the participant's row `index`.
float* normalized_row(const Phase& phase, std::int64_t token, std::int64_t index, std::byte* memory) noexcept {
  const ExpertsOp& op = experts_op(phase);
  const WorkSizes& sizes = phase.state->sizes;
  auto* to = reinterpret_cast<float*>(memory + sizes.rows_offset) + index * sizes.row_stride;
  normalize(phase.state->kernels.rows(), op.norm, op.x.data + token * op.x.stride, op.x.cols, to);
  return to;
}

/// The columns of tokens, each prepared alone for one weight.
std::byte* token_column(const Phase& phase, const CpuWeight& weight, std::int64_t token) noexcept {
  const WorkSizes::Acts& place = *phase.state->sizes.find_acts(weight.kernel().activation_id);
  return phase.state->token_acts() + place.token_offset + acts_offset(weight, token);
}

/// Copies a column that was prepared alone to column `inside` of a group of `width`. Every format of activations is a list
/// of 32-bit words per column, interleaved by column, so this needs to know nothing else of it. Groups are rounded up to
/// 64 bytes: what is copied beyond the last word stays within both.
void gather_column(const MatmulKernel& kernel, std::int64_t cols, const std::byte* column, std::byte* group,
                   std::int64_t inside, std::int64_t width) noexcept {
  const std::size_t stride = 4 * static_cast<std::size_t>(width);
  const std::size_t words = std::min(kernel.acts_bytes(cols, 1) / 4, kernel.acts_bytes(cols, width) / stride);
  std::byte* to = group + 4 * inside;
  for (std::size_t i = 0; i < words; ++i, to += stride) std::memcpy(to, column + 4 * i, 4);
}

/// Puts columns [block.begin, end) of an expert's inputs together.
void gather_inputs(const Phase& phase, const CpuWeight& weight, const Block& block, std::int64_t end) noexcept {
  const Routes routes = routes_of(phase);
  const MatmulKernel& kernel = weight.kernel();
  const std::int64_t first = routes.first[block.expert];
  const std::int64_t columns = routes.columns(block.expert);
  const std::size_t group_bytes = kernel.acts_bytes(weight.cols(), kernel.column_block);
  std::byte* acts = acts_place(phase, weight, phase.state->expert_acts(), false) + acts_offset(weight, first);
  for (std::int64_t c = block.begin; c < end; ++c) {
    const std::int64_t group = c / kernel.column_block;
    const std::int64_t width = std::min<std::int64_t>(kernel.column_block, columns - group * kernel.column_block);
    gather_column(kernel, weight.cols(), token_column(phase, weight, routes.pair[first + c] / experts_op(phase).used),
                  acts + static_cast<std::size_t>(group) * group_bytes, c - group * kernel.column_block, width);
  }
}

bool same_acts(const CpuWeight& a, const CpuWeight& b) noexcept {
  return a.kernel().activation_id == b.kernel().activation_id;
}

void run_choose(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const ExpertsOp& op = experts_op(phase);
  const Routes routes = routes_of(phase);
  const std::int64_t begin = unit * phase.experts.unit_tokens;
  const std::int64_t end = std::min(begin + phase.experts.unit_tokens, op.x.rows);
  const Choice choice(phase, me);
  for (std::int64_t t = begin; t < end; ++t) {
    choose_experts(op, t, choice.scores, routes.chosen + t * op.used, routes.shares + t * op.used);
    const float* x = normalized_row(phase, t, 0, me.memory);
    for (const CpuWeight* weight : {phase.experts.gate, phase.experts.up}) {
      if (weight == phase.experts.up && same_acts(*phase.experts.gate, *phase.experts.up)) continue;
      weight->kernel().prepare(x, 0, weight->cols(), 0, 1, token_column(phase, *weight, t), 1);
    }
  }
  if (phase.units == 1) sort_pairs(phase);
}

template <bool Wide>
void run_prepare_rows(const PhaseHead& head, std::int64_t unit, Participant& /*me*/) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const ExpertsPlan& plan = phase.experts;
  const Routes routes = routes_of(phase);
  if (unit >= *routes.block_count) return;
  const Block block = routes.blocks[unit];
  const std::int64_t columns = routes.columns(block.expert);
  const std::int64_t end = std::min(block.begin + plan.column_block, columns);
  if (!Wide) {
    gather_inputs(phase, *plan.gate, block, end);
    if (!same_acts(*plan.gate, *plan.up)) gather_inputs(phase, *plan.up, block, end);
    return;
  }
  const Matrix& inner = experts_op(phase).inner;
  const std::int64_t first = routes.first[block.expert];
  std::byte* acts = acts_place(phase, *plan.down, phase.state->expert_acts(), false) + acts_offset(*plan.down, first);
  plan.down->kernel().prepare(inner.data + (first + block.begin) * inner.stride, inner.stride, plan.down->cols(),
                              block.begin, end, acts, columns);
}

/// The panels of one unit of an expert.
Tile tile_of(const ExpertsPlan& plan, const CpuWeight& weight, std::int64_t expert, std::int64_t range) noexcept {
  Tile tile{};
  const std::int64_t inside = range * plan.unit_panels;
  tile.panel = expert * weight.matrix_panels() + inside;
  tile.panels = std::min(plan.unit_panels, weight.matrix_panels() - inside);
  tile.row = inside * panel_rows;
  tile.rows = std::min(tile.panels * panel_rows, weight.matrix_rows() - tile.row);
  return tile;
}

/// As many columns at once as the temporary tile holds and the second-level cache keeps.
std::int64_t column_step(const Phase& phase, const CpuWeight& weight, const Tile& tile) noexcept {
  const std::int64_t block = phase.experts.column_block;
  const auto block_bytes = static_cast<std::int64_t>(weight.kernel().acts_bytes(weight.cols(), block));
  constexpr std::int64_t cache_bytes = 3 << 18;
  const std::int64_t in_cache =
      std::max<std::int64_t>(48 / block, cache_bytes / std::max<std::int64_t>(block_bytes, 1));
  const std::int64_t fit = phase.state->sizes.tile_floats / (tile.panels * panel_rows) / block;
  return std::max<std::int64_t>(1, std::min(in_cache, fit)) * block;
}

/// The tile's part of an expert's bias, or null.
const float* bias_of(const float* bias, std::int64_t expert, std::int64_t rows, const Tile& tile) noexcept {
  return bias == nullptr ? nullptr : bias + expert * rows + tile.row;
}
void add_bias(const kernels::RowKernels& rows, const float* bias, const Tile& tile, float* y) noexcept {
  if (bias != nullptr) rows.add(bias, 1.0F, tile.rows, y);
}

/// Rows of `inner` from `place` on: activation(gate) * up of the tile's columns.
void widen(const Phase& phase, std::int64_t expert, const Tile& tile, std::int64_t place, const std::byte* gate_acts,
           const std::byte* up_acts, std::int64_t columns, std::byte* memory) noexcept {
  const ExpertsOp& op = experts_op(phase);
  const StreamState& state = *phase.state;
  float* out = op.inner.data + (place + tile.begin) * op.inner.stride + tile.row;
  auto* temporary = reinterpret_cast<float*>(memory + state.sizes.tile_offset);
  const std::int64_t stride = tile.panels * panel_rows;
  const CpuWeight &gate = *phase.experts.gate, &up = *phase.experts.up;
  multiply_tile(state, gate, gate.kernel(), tile, gate_acts, columns, memory, out, op.inner.stride);
  multiply_tile(state, up, up.kernel(), tile, up_acts, columns, memory, temporary, stride);
  const kernels::RowKernels& rows = state.kernels.rows();
  const float* gate_bias = bias_of(op.gate_bias, expert, op.inner.cols, tile);
  const float* up_bias = bias_of(op.up_bias, expert, op.inner.cols, tile);
  for (std::int64_t c = 0; c < tile.end - tile.begin; ++c) {
    float* gate = out + c * op.inner.stride;
    float* up = temporary + c * stride;
    add_bias(rows, gate_bias, tile, gate);
    add_bias(rows, up_bias, tile, up);
    if (op.gate_limit > 0.0F) rows.clamped_gate(gate, up, op.gate_alpha, op.gate_limit, tile.rows, gate);
    else rows.gated(gate, up, static_cast<int>(op.activation), tile.rows, gate);
  }
}

template <bool Wide>
void run_multiply(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const ExpertsOp& op = experts_op(phase);
  const ExpertsPlan& plan = phase.experts;
  const Routes routes = routes_of(phase);
  const std::int64_t number = unit / plan.panel_ranges;
  if (number >= *routes.active_count) return;
  const std::int32_t expert = routes.active[number];
  const std::int64_t first = routes.first[expert];
  const std::int64_t columns = routes.columns(expert);
  const auto acts_of = [&](const CpuWeight& weight) {
    return acts_place(phase, weight, phase.state->expert_acts(), false) + acts_offset(weight, first);
  };
  const CpuWeight& weight = Wide ? *plan.down : *plan.gate;
  Tile tile = tile_of(plan, weight, expert, unit % plan.panel_ranges);
  const std::int64_t step = column_step(phase, weight, tile);
  for (tile.begin = 0; tile.begin < columns && !me.stop->check(); tile.begin = tile.end) {
    tile.end = std::min(tile.begin + step, columns);
    if (Wide) {
      float* out = op.products.data + (first + tile.begin) * op.products.stride + tile.row;
      multiply_tile(*phase.state, weight, weight.kernel(), tile, acts_of(weight), columns, me.memory, out,
                    op.products.stride);
      const float* bias = bias_of(op.down_bias, expert, op.out.cols, tile);
      for (std::int64_t c = 0; c < tile.end - tile.begin; ++c) {
        add_bias(phase.state->kernels.rows(), bias, tile, out + c * op.products.stride);
      }
    } else {
      widen(phase, expert, tile, first, acts_of(*plan.gate), acts_of(*plan.up), columns, me.memory);
    }
  }
}

void run_combine(const PhaseHead& head, std::int64_t unit, Participant& /*me*/) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const ExpertsOp& op = experts_op(phase);
  const Routes routes = routes_of(phase);
  const std::int64_t begin = unit * phase.experts.unit_tokens;
  const std::int64_t end = std::min(begin + phase.experts.unit_tokens, op.x.rows);
  for (std::int64_t p = begin * op.used; p < end * op.used; ++p) {
    phase.state->kernels.rows().add(op.products.data + routes.place[p] * op.products.stride, routes.shares[p],
                                    op.out.cols, op.out.data + p / op.used * op.out.stride);
  }
}

/// Rank r is row r of `inner`; all ranks share one column of x.
void run_lone_widen(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const ExpertsPlan& plan = phase.experts;
  const Choice choice(phase, me);
  std::byte* base = me.memory + phase.state->sizes.acts_offset;
  if (me.prepared != me.phase) {
    choose_experts(experts_op(phase), 0, choice.scores, choice.chosen, choice.shares);
    const float* x = normalized_row(phase, 0, 0, me.memory);
    for (const CpuWeight* weight : {plan.gate, plan.up}) {
      if (weight == plan.up && same_acts(*plan.gate, *plan.up)) continue;
      weight->kernel().prepare(x, 0, weight->cols(), 0, 1, acts_place(phase, *weight, base, true), 1);
    }
    me.prepared = me.phase;
  }
  const std::int64_t rank = unit / plan.panel_ranges;
  Tile tile = tile_of(plan, *plan.gate, choice.chosen[rank], unit % plan.panel_ranges);
  tile.end = 1;
  widen(phase, choice.chosen[rank], tile, rank, acts_place(phase, *plan.gate, base, true), acts_place(phase, *plan.up, base, true), 1,
        me.memory);
}

void run_lone_narrow(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const ExpertsOp& op = experts_op(phase);
  const ExpertsPlan& plan = phase.experts;
  const CpuWeight& down = *plan.down;
  const Choice choice(phase, me);
  std::byte* acts = acts_place(phase, down, me.memory + phase.state->sizes.acts_offset, true);
  if (me.prepared != me.phase) {
    choose_experts(op, 0, choice.scores, choice.chosen, choice.shares);
    for (std::int32_t r = 0; r < op.used; ++r) {
      down.kernel().prepare(op.inner.data + r * op.inner.stride, 0, down.cols(), 0, 1, acts + acts_offset(down, r), 1);
    }
    me.prepared = me.phase;
  }
  auto* product = reinterpret_cast<float*>(me.memory + phase.state->sizes.tile_offset);
  for (std::int32_t r = 0; r < op.used; ++r) {
    Tile tile = tile_of(plan, down, choice.chosen[r], unit);
    tile.end = 1;
    multiply_tile(*phase.state, down, down.kernel(), tile, acts + acts_offset(down, r), 1, me.memory, product, 0);
    add_bias(phase.state->kernels.rows(), bias_of(op.down_bias, choice.chosen[r], op.out.cols, tile), tile, product);
    phase.state->kernels.rows().add(product, choice.shares[r], tile.rows, op.out.data + tile.row);
  }
}

/// Panels of a unit: enough units for every thread, each worth a claim; many columns expand two panels at a time.
std::int64_t panels_of_unit(std::int64_t panels, std::int64_t columns, int participants) noexcept {
  const std::int64_t wanted = participants > 1 ? std::int64_t{8} * participants : 1;
  if (columns >= 24) return std::clamp<std::int64_t>(panels / wanted / 2 * 2, 2, 4);
  const std::int64_t each = std::clamp<std::int64_t>(panels / wanted, 1, 8);
  return each > 4 && each < 8 ? 4 : each;
}

void push(std::vector<Phase>& phases, Phase phase, std::int64_t units,
          void (*run)(const PhaseHead&, std::int64_t, Participant&) noexcept) {
  phase.units = units;
  phase.run = run;
  phases.push_back(phase);
}

}  // namespace

std::size_t route_bytes(std::int64_t pairs, std::int64_t experts) noexcept {
  constexpr std::size_t number = sizeof(std::int32_t);
  const std::size_t of_pairs = static_cast<std::size_t>(pairs) * (sizeof(Block) + 4 * number);
  return of_pairs + static_cast<std::size_t>(experts) * 2 * number + 3 * number;
}

void plan_experts(StreamState& state, const Op& whole, std::vector<Phase>& phases) {
  const ExpertsOp& op = *std::get_if<ExpertsOp>(&whole);
  const std::int64_t tokens = op.x.rows;
  if (tokens == 0) return;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.experts = ExpertsPlan{};
  ExpertsPlan& plan = phase.experts;
  plan.gate = static_cast<const CpuWeight*>(op.gate);
  plan.up = static_cast<const CpuWeight*>(op.up);
  plan.down = static_cast<const CpuWeight*>(op.down);
  for (const CpuWeight* weight : {plan.gate, plan.up, plan.down}) {
    plan.column_block = std::lcm(plan.column_block, std::int64_t{weight->kernel().column_block});
  }
  const std::int64_t wide = plan.gate->matrix_panels();
  const std::int64_t narrow = plan.down->matrix_panels();
  const auto cut = [&](std::int64_t panels, std::int64_t experts, std::int64_t columns) {
    plan.unit_panels = panels_of_unit(panels * experts, columns, state.participants);
    plan.panel_ranges = ceil_div(panels, plan.unit_panels);
  };
  if (tokens == 1) {
    cut(wide, op.used, 1);
    push(phases, phase, plan.panel_ranges * op.used, run_lone_widen);
    cut(narrow, 1, 1);
    push(phases, phase, plan.panel_ranges, run_lone_narrow);
    return;
  }
  const std::int64_t pairs = tokens * op.used;
  const std::int64_t active = std::min(op.logits.cols, pairs);  // at most
  const std::int64_t blocks = std::min(pairs, pairs / plan.column_block + active);
  plan.unit_tokens = std::max<std::int64_t>(1, 8192 / (op.logits.cols + op.x.cols));
  const std::int64_t choices = ceil_div(tokens, plan.unit_tokens);
  push(phases, phase, choices, run_choose);
  if (choices > 1) push(phases, phase, 1, run_sort);
  push(phases, phase, blocks, run_prepare_rows<false>);
  cut(wide, active, pairs / active);
  push(phases, phase, plan.panel_ranges * active, run_multiply<false>);
  push(phases, phase, blocks, run_prepare_rows<true>);
  cut(narrow, active, pairs / active);
  push(phases, phase, plan.panel_ranges * active, run_multiply<true>);
  plan.unit_tokens = std::max<std::int64_t>(1, 16384 / (op.out.cols * op.used));
  push(phases, phase, ceil_div(tokens, plan.unit_tokens), run_combine);
}

}  // namespace skald::inline v0::cpu
