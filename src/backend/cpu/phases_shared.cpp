// Attention of several sequences over pages that they have in common: a chunk of keys and values is read once for all of them,
// their queries stacked (Hydragen, Juravsky et al. 2024, arXiv 2402.05099; RelayAttention, Zhu et al. 2024, arXiv
// 2402.14808). Found from the page tables alone, chunk by chunk, so trees of prefixes need nothing more. Each row's chunks are
// computed and merged as they are without sharing: the same bits.
#include <algorithm>

#include "backend/cpu/phases.hpp"

namespace skald::inline v0::cpu {

namespace {

using kernels::AttentionKernel;
using kernels::AttentionTask;

const AttentionOp& attention_op(const Phase& phase) noexcept { return *std::get_if<AttentionOp>(phase.op); }

const AttentionKernel& kernel_of(const Phase& phase) noexcept {
  return *phase.state->kernels.attention(attention_op(phase).kv.layout.dtype);
}

const KvTable& table_of(const AttentionOp& op, std::int32_t segment, std::int32_t group) noexcept {
  return op.kv.tables[std::int64_t{segment} * op.kv.groups + group];
}

std::int32_t chunks_of(const AttentionOp& op, std::int32_t segment, std::int32_t group) noexcept {
  return (table_of(op, segment, group).length + op.segments[segment].row_count - 1) / attention_chunk + 1;
}

/// True if both segments hold the whole chunk before their own rows, in the same pages.
bool same_chunk(const AttentionOp& op, std::int32_t a, std::int32_t b, std::int32_t group, std::int32_t chunk) noexcept {
  const KvTable& x = table_of(op, a, group);
  const KvTable& y = table_of(op, b, group);
  if (std::int64_t{chunk + 1} * attention_chunk > std::min(x.length, y.length)) return false;
  const std::int32_t pages = attention_chunk / op.kv.layout.page_tokens;
  return std::equal(x.pages + std::int64_t{chunk} * pages, x.pages + std::int64_t{chunk + 1} * pages,
                    y.pages + std::int64_t{chunk} * pages);
}

std::size_t row_bytes(const AttentionOp& op, const AttentionKernel& kernel) noexcept {
  AttentionTask task{};
  task.rows = 1;
  task.heads = op.heads / op.kv_heads;
  task.layout = op.kv.layout;
  return kernel.partial_bytes(task);
}

/// Partial results of a row in a KV head's first chunk; the next chunk's lie `stride` bytes on.
std::byte* partial_of(const Phase& phase, std::int32_t group, std::int32_t kv_head, std::int64_t row) noexcept {
  const AttentionOp& op = attention_op(phase);
  const std::int64_t head = std::int64_t{group} * op.kv.layout.heads + kv_head;
  return phase.state->partials() +
         static_cast<std::size_t>(head * phase.attention.chunks) * phase.attention.partial_stride +
         static_cast<std::size_t>(row) * row_bytes(op, kernel_of(phase));
}

void run_shared(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const AttentionOp& op = attention_op(phase);
  // Units that follow each other are chunks of one head that do: the kernel fetches the next one's keys.
  const std::int64_t parts = phase.units / op.kv.layout.heads;
  const SharedChunk& part = phase.state->shared_chunks[phase.attention.span_begin + static_cast<std::size_t>(unit % parts)];
  const auto kv_head = static_cast<std::int32_t>(unit / parts);
  AttentionTask task = make_attention_task(op, part.segment, part.group, kv_head, 0, op.segments[part.segment].row_count);
  if (part.segments > 1) {  // rows follow one another; all of them see all of the chunk
    const Segment& last = op.segments[part.segment + part.segments - 1];
    task.rows = last.row_begin + last.row_count - op.segments[part.segment].row_begin;
    task.segment_rows = task.rows;
    task.slot_base = (part.chunk + 1) * attention_chunk;
    task.visible = nullptr;
  }
  kernel_of(phase).chunk(task, part.chunk,
                         partial_of(phase, part.group, kv_head, op.segments[part.segment].row_begin) +
                             static_cast<std::size_t>(part.chunk) * phase.attention.partial_stride,
                         me.memory + phase.state->sizes.attention_offset);
}

void run_shared_merge(const PhaseHead& head, std::int64_t unit, Participant& /*me*/) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const AttentionOp& op = attention_op(phase);
  const auto kv_head = static_cast<std::int32_t>(unit % op.kv.layout.heads);
  const auto group = static_cast<std::int32_t>(unit / op.kv.layout.heads % op.kv.groups);
  const auto segment = static_cast<std::int32_t>(unit / op.kv.layout.heads / op.kv.groups);
  if (op.segments[segment].row_count == 0) return;
  kernel_of(phase).merge(make_attention_task(op, segment, group, kv_head, 0, op.segments[segment].row_count),
                         partial_of(phase, group, kv_head, op.segments[segment].row_begin),
                         phase.attention.partial_stride, chunks_of(op, segment, group));
}

/// The rows of a run see its chunks, and those of runs before it, one after the other, as they would alone.
void run_shared_run(const PhaseHead& head, std::int64_t unit, Participant& me) noexcept {
  const auto& phase = static_cast<const Phase&>(head);
  const AttentionOp& op = attention_op(phase);
  const SharedRun* runs = phase.state->shared_runs.data() + phase.attention.span_begin;
  const SharedRun& run = *(std::partition_point(runs, runs + phase.attention.span_count,
                                                [&](const SharedRun& r) { return r.unit_begin <= unit; }) - 1);
  const std::int64_t local = unit - run.unit_begin;
  const auto kv_head = static_cast<std::int32_t>(local / run.blocks);  // blocks of a head read the same memory at a time
  const auto first = static_cast<std::int32_t>(local % run.blocks) * phase.attention.block_rows;
  const std::int32_t rows = std::min(phase.attention.block_rows, run.rows - first);
  AttentionTask task = make_attention_task(op, run.segment, run.group, kv_head, first, rows);
  auto* carry = reinterpret_cast<float*>(
      partial_of(phase, run.group, kv_head, std::int64_t{op.segments[run.segment].row_begin} + first));
  task.first = run.first_chunk * attention_chunk;
  task.pages += task.first / op.kv.layout.page_tokens;
  if (run.first_chunk > 0) task.carry_in = carry;
  if (run.first_chunk + run.chunks < chunks_of(op, run.segment, run.group)) {
    task.mask = static_cast<int>(AttentionMask::none);  // all rows see all of it
    task.slot_base = (run.first_chunk + run.chunks) * attention_chunk;
    task.visible = nullptr;
    task.carry_out = carry;
  }
  kernel_of(phase).whole(task, me.memory + phase.state->sizes.attention_offset);
}

/// Makes runs of the chunks from `first` on, which are listed by group, segment and chunk; ordered by level.
void list_runs(StreamState& state, const AttentionOp& op, std::size_t first) {
  auto& runs = state.shared_runs;
  const auto begin = static_cast<std::ptrdiff_t>(runs.size());
  for (std::size_t i = first; i < state.shared_chunks.size(); ++i) {
    const SharedChunk& part = state.shared_chunks[i];
    if (static_cast<std::ptrdiff_t>(runs.size()) > begin && runs.back().segment == part.segment &&
        runs.back().segments == part.segments && runs.back().group == part.group &&
        runs.back().first_chunk + runs.back().chunks == part.chunk) {
      ++runs.back().chunks;
      continue;
    }
    const Segment& last = op.segments[part.segment + part.segments - 1];
    runs.push_back({.segment = part.segment,
                    .segments = part.segments,
                    .group = part.group,
                    .first_chunk = part.chunk,
                    .rows = last.row_begin + last.row_count - op.segments[part.segment].row_begin});
  }
  std::sort(runs.begin() + begin, runs.end(),
            [](const SharedRun& a, const SharedRun& b) { return a.first_chunk < b.first_chunk; });
  auto& levels = state.shared_levels;
  levels.assign(static_cast<std::size_t>(op.segment_count) * static_cast<std::size_t>(op.kv.groups), 0);
  for (auto run = runs.begin() + begin; run != runs.end(); ++run) {
    const auto of = [&](std::int32_t s) -> std::int32_t& {
      return levels[static_cast<std::size_t>(run->segment + s) * static_cast<std::size_t>(op.kv.groups) +
                    static_cast<std::size_t>(run->group)];
    };
    for (std::int32_t s = 0; s < run->segments; ++s) run->level = std::max(run->level, of(s));
    for (std::int32_t s = 0; s < run->segments; ++s) of(s) = run->level + 1;
  }
  std::sort(runs.begin() + begin, runs.end(), [](const SharedRun& a, const SharedRun& b) {
    if (a.level != b.level) return a.level < b.level;
    if (a.group != b.group) return a.group < b.group;
    return a.segment < b.segment;
  });
}

/// Phases of the runs of each level. @return false if the threads would not all be busy while most of the work is done.
bool plan_runs(StreamState& state, const AttentionOp& op, Phase& phase, std::vector<Phase>& phases) {
  constexpr std::int32_t most_queries = 128;   // that share a conversion in the kernel
  constexpr std::int32_t least_queries = 64;
  constexpr std::size_t most_levels = 8;
  const std::int32_t shared = op.heads / op.kv_heads;
  const auto begin = state.shared_runs.size();
  const auto phases_before = phases.size();
  list_runs(state, op, phase.attention.span_begin);
  phase.run = run_shared_run;
  phase.attention.chunks = 1;  // of a row's chunks only the sum is kept
  std::int64_t most_work = 0;
  bool busy = true;
  for (std::size_t at = begin; at < state.shared_runs.size();) {
    SharedRun* const first = state.shared_runs.data() + at;
    std::size_t count = 0;
    std::int64_t work = 0;
    while (at < state.shared_runs.size() && state.shared_runs[at].level == first->level) {
      work += std::int64_t{state.shared_runs[at].rows} * state.shared_runs[at].chunks;
      ++at;
      ++count;
    }
    phase.attention.span_begin = static_cast<std::size_t>(first - state.shared_runs.data());
    phase.attention.span_count = count;
    phase.attention.block_rows = std::max(1, most_queries / shared);
    const auto divide = [&] {
      phase.units = 0;
      for (std::size_t i = 0; i < count; ++i) {
        first[i].unit_begin = phase.units;
        first[i].blocks = static_cast<std::int32_t>(ceil_div(first[i].rows, phase.attention.block_rows));
        phase.units += std::int64_t{first[i].blocks} * op.kv.layout.heads;
      }
    };
    divide();
    while (phase.units < std::int64_t{4} * state.participants && phase.attention.block_rows * shared > least_queries) {
      phase.attention.block_rows /= 2;
      divide();
    }
    if (work > most_work) busy = state.participants == 1 || phase.units >= std::int64_t{2} * state.participants;
    most_work = std::max(most_work, work);
    phases.push_back(phase);
  }
  if (busy && phases.size() - phases_before <= most_levels) return true;
  phases.resize(phases_before);
  state.shared_runs.resize(begin);
  return false;
}

/// Lists what is to be computed: each chunk of each run of neighbours that have it in common. @return chunks that are read
/// less often than without sharing.
std::int64_t list_chunks(StreamState& state, const AttentionOp& op) {
  std::int64_t saved = 0;
  for (std::int32_t g = 0; g < op.kv.groups; ++g) {
    for (std::int32_t s = 0; s < op.segment_count; ++s) {
      if (op.segments[s].row_count == 0) continue;
      const std::int32_t chunks = chunks_of(op, s, g);
      for (std::int32_t c = 0; c < chunks; ++c) {
        if (s > 0 && op.segments[s - 1].row_count > 0 && same_chunk(op, s - 1, s, g, c)) {
          ++saved;  // taken along by a neighbour before
          continue;
        }
        std::int32_t count = 1;
        while (s + count < op.segment_count && op.segments[s + count].row_count > 0 &&
               same_chunk(op, s, s + count, g, c)) {
          ++count;
        }
        state.shared_chunks.push_back({.segment = s, .segments = count, .group = g, .chunk = c});
      }
    }
  }
  return saved;
}

bool eligible(const StreamState& state, const AttentionOp& op) noexcept {
  if (op.segment_count < 2 || op.window > 0 || op.mask != AttentionMask::causal || op.slopes != nullptr ||
      op.bias != nullptr || state.sizes.partials_bytes == 0) {
    return false;
  }
  std::int64_t next = op.segments[0].row_begin;
  for (std::int32_t s = 0; s < op.segment_count; ++s) {
    if (op.segments[s].row_begin != next || op.segments[s].row_count > 8) return false;
    next += op.segments[s].row_count;
    for (std::int32_t g = 0; g < op.kv.groups; ++g) {
      const KvTable& table = table_of(op, s, g);
      if (table.first != 0 || table.bias != nullptr || table.until != nullptr) return false;
    }
  }
  // Cheap and mostly decisive: some neighbours have their first chunk in common.
  for (std::int32_t s = 1; s < op.segment_count; ++s) {
    if (op.segments[s - 1].row_count > 0 && op.segments[s].row_count > 0 && same_chunk(op, s - 1, s, 0, 0)) return true;
  }
  return false;
}

}  // namespace

bool plan_shared_attention(StreamState& state, const Op& whole, const AttentionOp& op, std::vector<Phase>& phases) {
  if (!eligible(state, op)) return false;
  Phase phase;
  phase.state = &state;
  phase.op = &whole;
  phase.attention = AttentionPlan{};
  phase.attention.span_begin = state.shared_chunks.size();
  for (std::int32_t s = 0; s < op.segment_count; ++s) {
    if (op.segments[s].row_count == 0) continue;
    for (std::int32_t g = 0; g < op.kv.groups; ++g) {
      phase.attention.chunks = std::max(phase.attention.chunks, chunks_of(op, s, g));
    }
  }
  const AttentionKernel& kernel = *state.kernels.attention(op.kv.layout.dtype);
  phase.attention.partial_stride = static_cast<std::size_t>(op.q.rows) * row_bytes(op, kernel);
  const std::size_t needed = phase.attention.partial_stride * static_cast<std::size_t>(phase.attention.chunks) *
                             static_cast<std::size_t>(op.kv_heads);
  if (needed > state.sizes.partials_bytes) return false;
  const std::int64_t saved = list_chunks(state, op);
  const auto units = static_cast<std::int64_t>(state.shared_chunks.size() - phase.attention.span_begin);
  if (saved * 8 < units) {  // not worth the partial results
    state.shared_chunks.resize(phase.attention.span_begin);
    return false;
  }
  std::int64_t slots = 0;
  for (std::size_t i = phase.attention.span_begin; i < state.shared_chunks.size(); ++i) {
    const SharedChunk& part = state.shared_chunks[i];
    const std::int32_t last = table_of(op, part.segment, part.group).length + op.segments[part.segment].row_count;
    slots += std::min(last - part.chunk * attention_chunk, attention_chunk);
  }
  const auto slot_bytes = static_cast<std::uint64_t>(op.kv.layout.heads) * op.kv.layout.token_bytes();
  state.kv_bytes_read += static_cast<std::uint64_t>(slots) * slot_bytes;
  state.kv_bytes_shared += static_cast<std::uint64_t>(saved) * attention_chunk * slot_bytes;
  if (Phase runs = phase; plan_runs(state, op, runs, phases)) return true;
  phase.run = run_shared;
  phase.units = units * op.kv.layout.heads;
  phases.push_back(phase);
  phase.run = run_shared_merge;
  phase.units = std::int64_t{op.segment_count} * op.kv.groups * op.kv.layout.heads;
  phases.push_back(phase);
  return true;
}

}  // namespace skald::inline v0::cpu
