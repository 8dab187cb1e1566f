#include "decoder/chunk_reads.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include <sys/mman.h>

#include <skald/kernels/kv_codes.hpp>

namespace skald::inline v0::detail {

namespace {

constexpr std::int64_t most_lanes = 32;
constexpr std::size_t most_hinted = 16;  // rows that tell the system what they will read; prompts read nearly everything anyway
constexpr std::int32_t wide = KvPageLayout::lane_tokens;  // chunks whose bounds are computed together

}  // namespace

KvPageLayout ChunkReads::summaries_of(const KvPageLayout& kv) noexcept {
  return {DType::f32, wide, 2 * kv.heads, kv.head_dim_k, kv.head_dim_k, true};
}

std::size_t ChunkReads::most_memory(std::int64_t tokens, std::int64_t chunk_tokens, std::int64_t page_tokens,
                                    std::int64_t context, std::int64_t tables) noexcept {
  const auto pages = (std::max(tokens, 2 * chunk_tokens) + page_tokens - 1) / page_tokens;
  const auto floats = 3 * ((context / chunk_tokens + wide - 1) / wide * wide) * std::min(most_lanes, tables);
  return static_cast<std::size_t>(tables * pages + tables * pages / 2) * sizeof(std::uint32_t) +
         static_cast<std::size_t>(floats + floats / 2) * sizeof(float);
}

void ChunkReads::begin(std::span<const Segment> segments) {
  segments_ = segments;
  whole_.clear();
  whole_index_.clear();
  rows_.clear();
  row_places_.clear();
  chunks_.clear();
  pages_needed_ = 0;
  lane_floats_ = 0;
  lane_count_ = 0;
}

void ChunkReads::add(std::size_t index, const KvPool& kv, const KvPool& summaries, std::int32_t groups,
                     std::int32_t chunk_tokens, const KvTable* tables, std::span<const KvTable> summary_tables) {
  auto& layer = layers_[index];
  if (rows_.empty() && whole_.empty())  // segments are those of all layers
    for (std::size_t s = 0; s < segments_.size(); ++s) {
      const auto& segment = segments_[s];
      const auto length = tables[s * static_cast<std::size_t>(groups)].length;
      if (length + segment.row_count <= tokens_) {
        whole_.push_back(segment);
        whole_index_.push_back(static_cast<std::int32_t>(s));
        continue;
      }
      for (std::int32_t i = 0; i < segment.row_count; ++i) {
        rows_.push_back({segment.row_begin + i, 1, nullptr});
        row_places_.push_back({static_cast<std::int32_t>(s), length + i + 1});
      }
    }
  layer.kv = &kv;
  layer.summaries = &summaries;
  layer.groups = groups;
  layer.chunk = chunk_tokens;
  layer.tables = tables;
  layer.summary_tables.assign(summary_tables.begin(), summary_tables.end());
  layer.first_chunk = chunks_.size();
  for (std::size_t t = 0; t < segments_.size() * static_cast<std::size_t>(groups); ++t) {
    const auto& segment = segments_[t / static_cast<std::size_t>(groups)];
    for (auto c = tables[t].length / chunk_tokens; c < (tables[t].length + segment.row_count) / chunk_tokens; ++c)
      chunks_.push_back({t, c});
  }
  layer.chunk_count = chunks_.size() - layer.first_chunk;
  const auto& layout = kv.layout();
  const auto slot_bytes = static_cast<std::uint64_t>(layout.token_bytes()) * static_cast<std::uint64_t>(layout.heads);
  layer.whole_tables.clear();
  for (const auto s : whole_index_)
    for (std::int32_t g = 0; g < groups; ++g) {
      layer.whole_tables.push_back(tables[s * groups + g]);
      const auto bytes = static_cast<std::uint64_t>(layer.whole_tables.back().length +
                                                    segments_[static_cast<std::size_t>(s)].row_count) * slot_bytes;
      bytes_read_ += bytes;
      bytes_seen_ += bytes;
    }
  layer.row_tables.clear();
  const auto room = std::max<std::int64_t>(tokens_, 2 * std::int64_t{chunk_tokens});
  layer.row_pages = static_cast<std::int32_t>((room + layout.page_tokens - 1) / layout.page_tokens);
  std::int32_t most_chunks = 0;
  for (const auto& row : row_places_) {
    const std::int32_t before = (row.slots - 1) / chunk_tokens;  // complete chunks; the row's own has at least the row itself
    const std::int32_t own = row.slots - before * chunk_tokens;
    const auto chosen = static_cast<std::int32_t>((tokens_ - own) / chunk_tokens);
    most_chunks = std::max(most_chunks, before);
    for (std::int32_t g = 0; g < groups; ++g) {
      layer.row_tables.push_back({nullptr, chosen * chunk_tokens + own, 0});
      chunks_read_ += static_cast<std::uint64_t>(chosen);
      bytes_read_ += static_cast<std::uint64_t>(layer.row_tables.back().length) * slot_bytes;
      bytes_seen_ += static_cast<std::uint64_t>(row.slots) * slot_bytes;
    }
  }
  pages_needed_ = std::max(pages_needed_, layer.row_tables.size() * static_cast<std::size_t>(layer.row_pages));
  // Bounds of one head, the best of all heads, and their order.
  lane_floats_ = std::max(lane_floats_, 3 * static_cast<std::size_t>((most_chunks + wide - 1) / wide * wide));
  lane_count_ = std::max(lane_count_, std::min(most_lanes, static_cast<std::int64_t>(layer.row_tables.size())));
}

void ChunkReads::end() {
  if (pages_.size() < pages_needed_) pages_.resize(pages_needed_ + pages_needed_ / 2);
  if (const auto floats = static_cast<std::size_t>(lane_count_) * lane_floats_; lanes_.size() < floats)
    lanes_.resize(floats + floats / 2);
  for (auto& layer : layers_)
    for (std::size_t t = 0; t < layer.row_tables.size(); ++t)
      layer.row_tables[t].pages = pages_.data() + t * static_cast<std::size_t>(layer.row_pages);
}

HostOp ChunkReads::summarize(std::size_t layer) noexcept {
  return {&run_summarize, &layers_[layer], static_cast<std::int64_t>(layers_[layer].chunk_count)};
}

HostOp ChunkReads::choose(std::size_t layer, const AttentionOp& op) noexcept {
  layers_[layer].op = op;
  return {&run_choose, &layers_[layer], lane_count_};
}

/// The least and the greatest element of a chunk's keys.
void ChunkReads::run_summarize(void* context, std::int64_t unit) noexcept {
  const auto& layer = *static_cast<const Layer*>(context);
  const auto& chunk = layer.all->chunks_[layer.first_chunk + static_cast<std::size_t>(unit)];
  const auto& layout = layer.kv->layout();
  const auto& out = layer.summaries->layout();
  const auto& table = layer.tables[chunk.table];
  std::byte* to = layer.summaries->address(layer.summary_tables[chunk.table].pages[chunk.index / out.page_tokens]);
  const std::int32_t place = chunk.index % out.page_tokens;
  for (std::int32_t h = 0; h < layout.heads; ++h)
    for (std::int32_t d = 0; d < layout.head_dim_k; ++d) {
      float least = std::numeric_limits<float>::infinity();
      float greatest = -least;
      for (std::int32_t slot = chunk.index * layer.chunk; slot < (chunk.index + 1) * layer.chunk; ++slot) {
        const std::byte* keys = layer.kv->address(table.pages[slot / layout.page_tokens]) + layout.keys_offset(h);
        const float x = kv_key_element(layout, keys, slot % layout.page_tokens, d);
        least = x < least ? x : least;
        greatest = x > greatest ? x : greatest;
      }
      const std::size_t at = out.key_index(place, d) * sizeof(float);
      std::memcpy(to + out.keys_offset(2 * h) + at, &least, sizeof least);
      std::memcpy(to + out.keys_offset(2 * h + 1) + at, &greatest, sizeof greatest);
    }
}

void ChunkReads::run_choose(void* context, std::int64_t unit) noexcept {
  const auto& layer = *static_cast<const Layer*>(context);
  auto& all = *layer.all;
  float* lane = all.lanes_.data() + static_cast<std::size_t>(unit) * all.lane_floats_;
  for (auto t = static_cast<std::size_t>(unit); t < layer.row_tables.size(); t += static_cast<std::size_t>(all.lane_count_))
    all.choose_for(layer, t / static_cast<std::size_t>(layer.groups), static_cast<std::int32_t>(t) % layer.groups, lane);
}

/// How much each chunk promises: the distance of its bound from the best bound, of the query head to which it is nearest. So
/// the chunk that promises most to any head comes first, however long that head's queries are.
void ChunkReads::weigh(const Layer& layer, std::size_t row, std::int32_t group, std::int32_t chunks, float* bounds,
                       float* best) const noexcept {
  const auto& op = layer.op;
  const auto& layout = layer.summaries->layout();
  const std::int32_t heads = layout.heads / 2;
  const std::int32_t shared = op.heads / op.kv_heads;
  const auto& table = layer.summary_tables[static_cast<std::size_t>(row_places_[row].segment * layer.groups + group)];
  std::fill(best, best + chunks, -std::numeric_limits<float>::infinity());
  for (std::int32_t h = 0; h < heads * shared; ++h) {
    const float* q = op.q.data + rows_[row].row_begin * op.q.stride + std::int64_t{group * heads * shared + h} * layout.head_dim_k;
    float top = -std::numeric_limits<float>::infinity();
    for (std::int32_t first = 0; first < chunks; first += wide) {
      const std::byte* page = layer.summaries->address(table.pages[first / wide]);
      const auto* least = reinterpret_cast<const float*>(page + layout.keys_offset(2 * (h / shared)));
      const auto* greatest = reinterpret_cast<const float*>(page + layout.keys_offset(2 * (h / shared) + 1));
      float sums[wide] = {};
      for (std::int32_t d = 0; d < layout.head_dim_k; ++d, least += wide, greatest += wide)
        for (std::int32_t i = 0; i < wide; ++i) {
          const float a = q[d] * least[i];
          const float b = q[d] * greatest[i];
          sums[i] += a < b ? b : a;
        }
      const std::int32_t here = std::min(wide, chunks - first);
      std::copy_n(sums, here, bounds + first);
      for (std::int32_t i = 0; i < here; ++i) top = std::max(top, sums[i] * op.scale);
    }
    for (std::int32_t c = 0; c < chunks; ++c) best[c] = std::max(best[c], bounds[c] * op.scale - top);
  }
}

void ChunkReads::choose_for(const Layer& layer, std::size_t row, std::int32_t group, float* lane) noexcept {
  const auto& place = row_places_[row];
  const auto index = row * static_cast<std::size_t>(layer.groups) + static_cast<std::size_t>(group);
  const auto& mine = layer.row_tables[index];
  const std::int32_t chunks = (place.slots - 1) / layer.chunk;
  const std::int32_t chosen = mine.length / layer.chunk - (mine.length % layer.chunk == 0 ? 1 : 0);
  const std::size_t room = lane_floats_ / 3;
  float* best = lane + room;
  auto* order = reinterpret_cast<std::int32_t*>(lane + 2 * room);
  std::iota(order, order + chunks, 0);
  if (chosen < chunks && chosen > 0) {
    weigh(layer, row, group, chunks, lane, best);
    // Not a number, where queries are damaged: anything, but an order.
    for (std::int32_t c = 0; c < chunks; ++c)
      if (best[c] != best[c]) best[c] = -std::numeric_limits<float>::infinity();
    std::nth_element(order, order + chosen, order + chunks,
                     [&](std::int32_t a, std::int32_t b) { return best[a] != best[b] ? best[a] > best[b] : a > b; });
    std::sort(order, order + chosen);
  }
  const auto& layout = layer.kv->layout();
  const auto& table = layer.tables[static_cast<std::size_t>(place.segment * layer.groups + group)];
  const std::int32_t per_chunk = layer.chunk / layout.page_tokens;
  std::uint32_t* pages = pages_.data() + index * static_cast<std::size_t>(layer.row_pages);
  const auto read = [&](std::int32_t first, std::int32_t count) {
    for (std::int32_t p = first; p < first + count; ++p) {
      *pages++ = table.pages[p];
      if (!layer.kv->in_file() || rows_.size() > most_hinted) continue;
      // A hint: whether it is followed does not matter.
      constexpr std::uintptr_t system_page = 4096;
      const auto address = reinterpret_cast<std::uintptr_t>(layer.kv->address(table.pages[p]));
      const auto from = address / system_page * system_page;
      ::madvise(reinterpret_cast<void*>(from), address + layout.page_bytes() - from, MADV_WILLNEED);
    }
  };
  for (std::int32_t i = 0; i < chosen; ++i) read(order[i] * per_chunk, per_chunk);
  const std::int32_t own = mine.length - chosen * layer.chunk;
  read(chunks * per_chunk, (own + layout.page_tokens - 1) / layout.page_tokens);
}

}  // namespace skald::inline v0::detail
