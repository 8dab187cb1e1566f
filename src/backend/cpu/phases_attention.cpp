#include <algorithm>

#include "backend/cpu/phases.hpp"

namespace skald::inline v0::cpu {

namespace {

using kernels::AttentionKernel;
using kernels::AttentionTask;

static_assert(static_cast<int>(AttentionMask::causal) == 0 && static_cast<int>(AttentionMask::full) == 1 &&
              static_cast<int>(AttentionMask::none) == 2);

const AttentionOp& attention_op(const Phase& phase) noexcept { return *std::get_if<AttentionOp>(phase.op); }

// ---- StoreKvOp: a unit is one KV head (and its query heads) over a block of rows

constexpr std::int64_t store_rows = 16;

bool has_queries(const StoreKvOp& op) noexcept { return op.q.data != nullptr; }

void norm_and_rotate(const Phase& phase, const StoreKvOp& op, const Norm& norm, std::int64_t token,
                     float* head) noexcept {
  const kernels::RowKernels& rows = phase.state->kernels.rows();
  if (norm.kind != NormKind::none) normalize(rows, norm, head, op.kv.layout.head_dim_k, head);
  if (op.rope != RopeKind::none) {
    rows.rope(head + op.rope_offset, op.rope_table.data + token * op.rope_table.stride, static_cast<int>(op.rope), op.rope_dims);
  }
}

void store_token(const Phase& phase, const StoreKvOp& op, const AttentionKernel& kernel, std::int32_t segment,
                 std::int64_t token, std::int32_t kv_head) noexcept {
  const KvPageLayout& layout = op.kv.layout;
  const std::int32_t shared = op.heads / op.kv_heads;
  for (std::int32_t h = kv_head * shared; has_queries(op) && h < (kv_head + 1) * shared; ++h) {
    norm_and_rotate(phase, op, op.q_norm, token, op.q.data + token * op.q.stride + std::int64_t{h} * layout.head_dim_k);
  }
  if (op.k.data == nullptr) return;
  float* key = op.k.data + token * op.k.stride + std::int64_t{kv_head} * layout.head_dim_k;
  norm_and_rotate(phase, op, op.k_norm, token, key);
  const float* value =
      layout.values_in_keys ? nullptr : op.v.data + token * op.v.stride + std::int64_t{kv_head} * layout.head_dim_v;
  const KvTable& table = op.kv.tables[std::int64_t{segment} * op.kv.groups + kv_head / layout.heads];
  const auto slot = static_cast<std::int32_t>(table.length + token - op.segments[segment].row_begin);
  std::byte* page = op.kv.pool + std::size_t{table.pages[(slot - table.first) / layout.page_tokens]} * layout.page_bytes();
  kernel.store(key, value, page, layout, kv_head % layout.heads, slot % layout.page_tokens);
}

void run_store(const PhaseHead& head, std::int64_t unit, Participant& /*me*/) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const StoreKvOp& op = *std::get_if<StoreKvOp>(phase.op);
  const AttentionKernel& kernel = *phase.state->kernels.attention(op.kv.layout.dtype);
  const auto kv_head = static_cast<std::int32_t>(unit % op.kv_heads);
  const std::int64_t begin = unit / op.kv_heads * store_rows;
  const std::int64_t end = std::min(begin + store_rows, op.k.rows);
  // The first segment that ends after `begin`; segments ascend.
  const Segment* last = op.segments + op.segment_count;
  const Segment* segment = std::partition_point(
      op.segments, last, [&](const Segment& s) { return std::int64_t{s.row_begin} + s.row_count <= begin; });
  for (; segment != last && segment->row_begin < end; ++segment) {
    const auto index = static_cast<std::int32_t>(segment - op.segments);
    const std::int64_t stop = std::min(end, std::int64_t{segment->row_begin} + segment->row_count);
    for (std::int64_t token = std::max<std::int64_t>(begin, segment->row_begin); token < stop; ++token) {
      store_token(phase, op, kernel, index, token, kv_head);
    }
  }
}

void plan_store(StreamState& state, const Op& whole, const StoreKvOp& op, std::vector<Phase>& phases) {
  if (op.k.rows == 0 || op.segment_count == 0) return;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.run = run_store;
  phase.units = ceil_div(op.k.rows, store_rows) * op.kv_heads;
  phases.push_back(phase);
}

// ---- AttentionOp

/// Slots [first, last) that any row of a segment may see.
struct SlotRange {
  std::int32_t first, last;
};
SlotRange slots_of(const AttentionOp& op, std::int32_t segment, std::int32_t group) noexcept {
  const KvTable& table = op.kv.tables[std::int64_t{segment} * op.kv.groups + group];
  const std::int32_t rows = op.mask == AttentionMask::none ? 0 : op.segments[segment].row_count;
  const std::int32_t first = op.window > 0 ? std::max(table.first, table.length - op.window + 1) : table.first;
  return {first, std::max(first, table.length + rows)};
}

/// True if any row sees slots in another place.
bool has_earlier(const AttentionOp& op) noexcept {
  if (op.kv.earlier == nullptr) return false;
  const KvTable* tables = op.kv.earlier->tables;
  return std::any_of(tables, tables + std::int64_t{op.segment_count} * op.kv.groups,
                     [](const KvTable& table) { return table.length > 0; });
}

const AttentionSpan& span_of(const Phase& phase, std::int64_t unit) noexcept {
  const AttentionSpan* first = phase.state->spans.data() + phase.attention.span_begin;
  const AttentionSpan* last = first + phase.attention.span_count;
  return *(std::partition_point(first, last, [&](const AttentionSpan& s) { return s.unit_begin <= unit; }) - 1);
}

const AttentionKernel& kernel_of(const Phase& phase) noexcept {
  return *phase.state->kernels.attention(attention_op(phase).kv.layout.dtype);
}

/// Weights or logits that the attention pass leaves and the score pass finds.
void lend_logits(AttentionTask& task, const AttentionOp& op, const AttentionSpan& span, std::int32_t kv_head,
                 std::int32_t first_row) noexcept {
  if (span.logits_offset < 0) return;
  task.shaped = op.sink->noise != nullptr || op.sink->inverse_temperatures != nullptr;
  task.chunk_states = span.logits_slots;
  task.logits_head_stride = span.logits_stride;
  task.logits_row_stride = op.kv.layout.heads * task.heads * span.logits_stride;
  task.logits = op.sink->work + span.logits_offset + first_row * task.logits_row_stride +
                kv_head * task.heads * span.logits_stride;
}

void run_whole(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const AttentionOp& op = attention_op(phase);
  const AttentionSpan& span = span_of(phase, unit);
  const std::int64_t local = unit - span.unit_begin;
  // Blocks of a head read the same keys and values at a time. The last rows see the most slots: they come first.
  const auto kv_head = static_cast<std::int32_t>(local / span.blocks);
  const auto block = static_cast<std::int32_t>(span.blocks - 1 - local % span.blocks);
  const std::int32_t first = block * phase.attention.block_rows;
  const std::int32_t rows = std::min(phase.attention.block_rows, op.segments[span.segment].row_count - first);
  AttentionTask task = make_attention_task(op, span.segment, span.group, kv_head, first, rows);
  lend_logits(task, op, span, kv_head, first);
  if (has_earlier(op)) {
    AttentionOp before = op;
    before.kv = *op.kv.earlier;
    before.mask = AttentionMask::none;
    auto* carry = reinterpret_cast<float*>(me.memory + phase.state->sizes.carry_offset);
    AttentionTask earlier = make_attention_task(before, span.segment, span.group, kv_head, first, rows);
    earlier.visible = nullptr;
    earlier.carry_out = carry;
    phase.state->kernels.attention(before.kv.layout.dtype)->whole(earlier, me.memory + phase.state->sizes.attention_offset);
    task.carry_in = carry;
  }
  kernel_of(phase).whole(task, me.memory + phase.state->sizes.attention_offset);
}

std::byte* partial_of(const Phase& phase, const AttentionSpan& span, std::int32_t kv_head) noexcept {
  return phase.state->partials() + span.partials_offset +
         static_cast<std::size_t>(kv_head) * static_cast<std::size_t>(span.chunks) * phase.attention.partial_stride;
}

void run_chunk(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const AttentionOp& op = attention_op(phase);
  const AttentionSpan& span = span_of(phase, unit);
  const std::int64_t local = unit - span.unit_begin;
  const auto kv_head = static_cast<std::int32_t>(local / span.chunks);
  const auto chunk = static_cast<std::int32_t>(local % span.chunks);
  AttentionTask task = make_attention_task(op, span.segment, span.group, kv_head, 0, op.segments[span.segment].row_count);
  lend_logits(task, op, span, kv_head, 0);
  kernel_of(phase).chunk(
      task, span.first_chunk + chunk,
      partial_of(phase, span, kv_head) + static_cast<std::size_t>(chunk) * phase.attention.partial_stride,
      me.memory + phase.state->sizes.attention_offset);
}

void run_merge(const PhaseHead& head, std::int64_t unit, Participant& /*me*/) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const AttentionOp& op = attention_op(phase);
  const std::int64_t heads = op.kv.layout.heads;
  const AttentionSpan& span = phase.state->spans[phase.attention.span_begin + static_cast<std::size_t>(unit / heads)];
  const auto kv_head = static_cast<std::int32_t>(unit % heads);
  kernel_of(phase).merge(make_attention_task(op, span.segment, span.group, kv_head, 0, op.segments[span.segment].row_count),
                         partial_of(phase, span, kv_head), phase.attention.partial_stride, span.chunks);
}

/// Puts what a span's scores begin with into their array.
void begin_scores(const AttentionOp& op, const AttentionSpan& span, float* scores) noexcept {
  const std::int64_t at = std::int64_t{span.segment} * op.kv.groups + span.group;
  if (op.sink->before == nullptr || op.sink->before[at] == nullptr) return;
  const std::int32_t length = op.kv.tables[at].length;
  std::copy_n(op.sink->before[at], length, scores);
  std::fill_n(scores + length, op.segments[span.segment].row_count, 0.0F);
}

/// Scores of one segment and group: rows ascending, query heads ascending within a row.
void run_scores(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const AttentionOp& op = attention_op(phase);
  const AttentionSpan& span = phase.state->spans[phase.attention.span_begin + static_cast<std::size_t>(unit)];
  const std::int32_t rows = op.segments[span.segment].row_count;
  const std::int32_t first = op.sink->last_rows > 0 ? std::max(0, rows - op.sink->last_rows) : 0;
  float* scores = op.sink->scores[std::int64_t{span.segment} * op.kv.groups + span.group];
  if (scores == nullptr) return;
  begin_scores(op, span, scores);
  // One row at a time keeps the order over the heads of a group.
  const std::int32_t step = op.kv.layout.heads == 1 ? 16 : 1;
  for (std::int32_t row = first; row < rows; row += step) {
    if (me.stop->check()) return;
    for (std::int32_t h = 0; h < op.kv.layout.heads; ++h) {
      AttentionTask task = make_attention_task(op, span.segment, span.group, h, row, std::min(step, rows - row));
      lend_logits(task, op, span, h, row);
      if (op.sink->noise != nullptr) task.noise = op.sink->noise[std::int64_t{span.segment} * op.kv.groups + span.group];
      if (op.sink->inverse_temperatures != nullptr)
        task.inverse_temperatures = op.sink->inverse_temperatures + op.segments[span.segment].row_begin + row;
      kernel_of(phase).scores(task, static_cast<int>(op.sink->kind), scores,
                              me.memory + phase.state->sizes.attention_offset);
    }
  }
}

/// What the rows of an op look like.
struct Load {
  std::int64_t spans = 0;
  std::int32_t most_rows = 0;
  std::int64_t longest = 0;  ///< most slots that a row sees
  std::int64_t rows = 0;     ///< over all spans
  std::int64_t slots = 0;    ///< over all spans
};

Load measure(const AttentionOp& op) noexcept {
  Load load;
  for (std::int32_t s = 0; s < op.segment_count; ++s) {
    const std::int32_t rows = op.segments[s].row_count;
    if (rows == 0) continue;
    load.most_rows = std::max(load.most_rows, rows);
    for (std::int32_t g = 0; g < op.kv.groups; ++g) {
      ++load.spans;
      load.rows += rows;
      const SlotRange slots = slots_of(op, s, g);
      load.longest = std::max(load.longest, std::int64_t{slots.last} - slots.first);
      load.slots += std::int64_t{slots.last} - slots.first;
    }
  }
  return load;
}

void add_spans(StreamState& state, const AttentionOp& op, AttentionPlan& plan) {
  plan.span_begin = state.spans.size();
  for (std::int32_t s = 0; s < op.segment_count; ++s) {
    if (op.segments[s].row_count == 0) continue;
    for (std::int32_t g = 0; g < op.kv.groups; ++g) state.spans.push_back({.segment = s, .group = g});
  }
  plan.span_count = state.spans.size() - plan.span_begin;
}

/// Gives every span whose scores are asked for a place for its logits, if the sink's memory is enough for all.
void keep_logits(StreamState& state, const AttentionOp& op, const AttentionPlan& plan) noexcept {
  if (op.sink == nullptr || op.sink->work == nullptr) return;
  for (int pass = 0; pass < 2; ++pass) {
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < plan.span_count; ++i) {
      AttentionSpan& span = state.spans[plan.span_begin + i];
      if (op.sink->scores[std::int64_t{span.segment} * op.kv.groups + span.group] == nullptr) continue;
      const std::int64_t slots = slots_of(op, span.segment, span.group).last;
      const std::int64_t stride = score_work_floats(slots);
      if (pass == 1) {
        span.logits_offset = offset;
        span.logits_slots = (slots + 15) / 16 * 16;
        span.logits_stride = stride;
      }
      offset += op.segments[span.segment].row_count * std::int64_t{op.heads / op.kv_heads} * op.kv.layout.heads * stride;
    }
    if (offset > op.sink->work_floats) return;
  }
}

/// Lays out units of one KV head and chunk. @return false if the partial results would not fit.
bool divide_by_chunks(StreamState& state, const AttentionOp& op, const AttentionKernel& kernel, Phase& phase) {
  AttentionPlan& plan = phase.attention;
  std::size_t offset = 0;
  std::int64_t units = 0;
  std::size_t stride = 0;
  for (std::size_t i = 0; i < plan.span_count; ++i) {
    const AttentionSpan& span = state.spans[plan.span_begin + i];
    const AttentionTask task = make_attention_task(op, span.segment, span.group, 0, 0, op.segments[span.segment].row_count);
    stride = std::max(stride, (kernel.partial_bytes(task) + 63) / 64 * 64);
  }
  for (std::size_t i = 0; i < plan.span_count; ++i) {
    AttentionSpan& span = state.spans[plan.span_begin + i];
    const SlotRange slots = slots_of(op, span.segment, span.group);
    span.first_chunk = slots.first / attention_chunk;
    span.chunks = slots.first == slots.last ? 0 : (slots.last - 1) / attention_chunk + 1 - span.first_chunk;
    span.unit_begin = units;
    span.partials_offset = offset;
    const std::int64_t mine = std::int64_t{span.chunks} * op.kv.layout.heads;
    units += mine;
    offset += static_cast<std::size_t>(mine) * stride;
  }
  if (offset > state.sizes.partials_bytes) return false;
  plan.partial_stride = stride;
  phase.units = units;
  return true;
}

/// Lays out units of one KV head and block of rows.
void divide_by_rows(StreamState& state, const AttentionOp& op, const Load& load, Phase& phase) {
  // A unit must end soon after a stop request, and there should be several per thread.
  constexpr std::int64_t most_products = std::int64_t{1} << 30;
  const std::int64_t per_row =
      load.longest * (op.kv.layout.head_dim_k + op.kv.layout.head_dim_v) * (op.heads / op.kv_heads);
  // As many rows as share a conversion in the kernel; more would only make the last units longer.
  constexpr std::int32_t shared_queries = 128;
  AttentionPlan& plan = phase.attention;
  plan.block_rows = std::clamp(shared_queries / (op.heads / op.kv_heads), 8, most_block_rows);
  while (plan.block_rows > 1 && plan.block_rows * per_row > most_products) plan.block_rows /= 2;
  while (plan.block_rows > 8 &&
         load.rows * op.kv.layout.heads / plan.block_rows < std::int64_t{4} * state.participants) {
    plan.block_rows /= 2;
  }
  std::int64_t units = 0;
  for (std::size_t i = 0; i < plan.span_count; ++i) {
    AttentionSpan& span = state.spans[plan.span_begin + i];
    span.blocks = static_cast<std::int32_t>(ceil_div(op.segments[span.segment].row_count, plan.block_rows));
    span.unit_begin = units;
    units += std::int64_t{span.blocks} * op.kv.layout.heads;
  }
  phase.units = units;
}

/// Keys and values that a pass over all spans reads, each span once.
void count_reads(StreamState& state, const AttentionOp& op, const Load& load) noexcept {
  state.kv_bytes_read += static_cast<std::uint64_t>(load.slots * op.kv.layout.heads) *
                         (op.kv.layout.head_bytes() / static_cast<std::size_t>(op.kv.layout.page_tokens));
  if (op.kv.earlier == nullptr) return;
  std::int64_t earlier = 0;
  for (std::int32_t s = 0; s < op.segment_count; ++s)
    for (std::int32_t g = 0; g < op.kv.groups && op.segments[s].row_count > 0; ++g)
      earlier += op.kv.earlier->tables[std::int64_t{s} * op.kv.groups + g].length;
  state.kv_bytes_read += static_cast<std::uint64_t>(earlier * op.kv.layout.heads) * op.kv.earlier->layout.token_bytes();
}

void plan_heads(StreamState& state, const Op& whole, const AttentionOp& op, std::vector<Phase>& phases) {
  const Load load = measure(op);
  if (load.spans == 0) return;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.attention = AttentionPlan{};
  add_spans(state, op, phase.attention);
  const AttentionKernel& kernel = *state.kernels.attention(op.kv.layout.dtype);
  const bool few = load.spans * op.kv.layout.heads < std::int64_t{4} * state.participants;
  const bool earlier = has_earlier(op);
  const bool split = !earlier && state.participants > 1 && few && load.most_rows <= 8 && load.longest > attention_chunk;
  const bool shared = !earlier && plan_shared_attention(state, whole, op, phases);
  if (!shared) keep_logits(state, op, phase.attention);
  if (shared) {
    // The rows are done; what is left are the scores.
  } else if (split && divide_by_chunks(state, op, kernel, phase)) {
    count_reads(state, op, load);
    phase.run = run_chunk;
    phases.push_back(phase);
    phase.run = run_merge;
    phase.units = load.spans * op.kv.layout.heads;
    phases.push_back(phase);
  } else {
    count_reads(state, op, load);
    divide_by_rows(state, op, load, phase);
    phase.run = run_whole;
    phases.push_back(phase);
  }
  if (op.sink == nullptr) return;
  phase.run = run_scores;
  phase.units = load.spans;
  phases.push_back(phase);
}

}  // namespace

kernels::AttentionTask make_attention_task(const AttentionOp& op, std::int32_t segment_index, std::int32_t group, std::int32_t head,
                        std::int32_t first_row, std::int32_t rows) noexcept {
  const Segment& segment = op.segments[segment_index];
  const KvPageLayout& layout = op.kv.layout;
  const KvTable& table = op.kv.tables[std::int64_t{segment_index} * op.kv.groups + group];
  const std::int32_t shared = op.heads / op.kv_heads;
  const std::int64_t first_head = (std::int64_t{group} * layout.heads + head) * shared;
  const std::int64_t row = std::int64_t{segment.row_begin} + first_row;
  return {.q = op.q.data + row * op.q.stride + first_head * layout.head_dim_k,
          .q_stride = op.q.stride,
          .out = op.out.data + row * op.out.stride + first_head * layout.head_dim_v,
          .out_stride = op.out.stride,
          .rows = rows,
          .heads = shared,
          .first_row = first_row,
          .segment_rows = segment.row_count,
          .slot_base = table.length,
          .visible = segment.visible,
          .window = op.window,
          .scale = op.scale,
          .softcap = op.softcap,
          .pool = op.kv.pool,
          .pages = table.pages,
          .layout = layout,
          .head = head,
          .first = table.first,
          .mask = static_cast<int>(op.mask),
          .sinks = op.sinks == nullptr ? nullptr : op.sinks + first_head,
          .slopes = op.slopes == nullptr ? nullptr : op.slopes + first_head,
          .bias = op.bias == nullptr ? nullptr : op.bias + first_head * (2 * std::int64_t{op.bias_reach} + 1),
          .bias_reach = op.bias_reach,
          .slot_bias = table.bias,
          .positions = table.positions,
          .until = table.until,
          .position = table.position,
          .noise = nullptr,
          .inverse_temperatures = nullptr,
          .logits = nullptr,
          .logits_row_stride = 0,
          .logits_head_stride = 0};
}

void plan_attention(StreamState& state, const Op& whole, std::vector<Phase>& phases) {
  if (const auto* op = std::get_if<StoreKvOp>(&whole)) plan_store(state, whole, *op, phases);
  if (const auto* op = std::get_if<AttentionOp>(&whole)) plan_heads(state, whole, *op, phases);
}

}  // namespace skald::inline v0::cpu
