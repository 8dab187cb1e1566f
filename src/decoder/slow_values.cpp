#include "decoder/slow_values.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include <sys/mman.h>

#include <skald/core/error.hpp>
#include <skald/kernels/kv_codes.hpp>

namespace skald::inline v0::detail {

namespace {

constexpr std::int64_t most_lanes = 32;
constexpr std::int64_t events_per_head = 4;

/// Sixteen elements as floats; written so that compilers make vectors of it.
void read_sixteen(DType type, const std::byte* at, float* out) noexcept {
  if (type == DType::f32) {
    std::memcpy(out, at, 16 * sizeof(float));
    return;
  }
  std::uint16_t bits[16];
  std::memcpy(bits, at, sizeof bits);
  if (type == DType::bf16) {
    for (int i = 0; i < 16; ++i) out[i] = bf16_to_f32(bits[i]);
    return;
  }
  // Exponents move by 112; infinity and NaN, whose exponent is 31, by another 112.
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t magnitude = static_cast<std::uint32_t>(bits[i] & 0x7FFFU) << 13;
    const float value = std::bit_cast<float>(magnitude) * 0x1p112F;
    const std::uint32_t special = magnitude >= 0x0F800000U ? 0x7F800000U : 0U;
    const std::uint32_t sign = static_cast<std::uint32_t>(bits[i] & 0x8000U) << 16;
    out[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | special | sign);
  }
}

}  // namespace

SlowValues::SlowValues(const ModelSpec& spec, AnyBackend backend, std::int64_t count, std::int64_t context)
    : backend_(std::move(backend)), count_(count), context_(context), layers_(spec.layers.size()) {
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    layers_[l].all = this;
    layers_[l].index = l;
    const auto& attention = spec.layers[l].attention;
    if (!attention) continue;
    most_dims_ = std::max<std::int64_t>(most_dims_, attention->stored_dim_v());
    most_heads_ = std::max<std::int64_t>(most_heads_, attention->heads);
  }
  lane_floats_ = lane_floats(most_dims_, count_, context_);
}

std::size_t SlowValues::lane_floats(std::int64_t dims, std::int64_t count, std::int64_t context) noexcept {
  // Weights and their order, and for two heads: slots, weights and values of those chosen.
  const auto chosen = static_cast<std::size_t>(std::min(count, context));
  return 2 * static_cast<std::size_t>((context + 15) / 16 * 16) + 2 * chosen * (2 + static_cast<std::size_t>(dims));
}

std::size_t SlowValues::lane_bytes(const ModelSpec& spec, std::int64_t count, std::int64_t context) noexcept {
  std::int64_t dims = 0;
  for (const auto& layer : spec.layers)
    if (layer.attention) dims = std::max<std::int64_t>(dims, layer.attention->stored_dim_v());
  return static_cast<std::size_t>(most_lanes) * lane_floats(dims, count, context) * sizeof(float);
}

KvPageLayout SlowValues::keys_of(KvPageLayout both) noexcept {
  both.head_dim_v = both.head_dim_k;
  both.values_in_keys = true;
  return both;
}

KvPageLayout SlowValues::values_of(KvPageLayout both) noexcept {
  both.head_dim_k = 0;
  return both;
}

void SlowValues::begin(std::span<const Segment> segments, std::size_t layers, std::vector<TransferEvent>* trace) {
  segments_ = segments;
  trace_ = trace;
  dense_.clear();
  dense_index_.clear();
  rows_.clear();
  pages_.clear();
  needed_ = 0;
  layers_.resize(layers);
  for (auto& layer : layers_) {
    layer.pages = 0;
    layer.keys = nullptr;
  }
}

void SlowValues::add(std::size_t index, const KvPool& keys, const KvPool& values, std::int32_t groups,
                     const KvTable* key_tables, std::span<const KvTable> value_tables) {
  auto& layer = layers_[index];
  if (rows_.empty() && dense_.empty())  // segments are those of all layers
    for (std::size_t s = 0; s < segments_.size(); ++s) {
      const auto length = key_tables[s * static_cast<std::size_t>(groups)].length;
      if (length + segments_[s].row_count <= count_) {
        dense_.push_back(segments_[s]);
        dense_index_.push_back(static_cast<std::int32_t>(s));
        continue;
      }
      for (std::int32_t i = 0; i < segments_[s].row_count; ++i) rows_.push_back({static_cast<std::int32_t>(s), i});
    }
  layer.keys = &keys;
  layer.values = &values;
  layer.both = values.layout();
  layer.both.head_dim_k = keys.layout().head_dim_k;
  layer.groups = groups;
  layer.key_tables = key_tables;
  layer.value_tables.assign(value_tables.begin(), value_tables.end());
  layer.plain_tables.clear();
  layer.first_page = pages_.size();
  std::uint32_t plain = 0;
  for (std::size_t d = 0; d < dense_.size(); ++d)
    for (std::int32_t g = 0; g < groups; ++g) {
      const auto table = static_cast<std::size_t>(dense_index_[d] * groups + g);
      layer.plain_tables.push_back({nullptr, key_tables[table].length, 0});
      const auto slots = key_tables[table].length + dense_[d].row_count;
      for (std::int32_t p = 0; p * layer.both.page_tokens < slots; ++p) pages_.push_back({table, p, plain++});
    }
  layer.pages = pages_.size() - layer.first_page;
  needed_ = std::max(needed_, layer.pages * layer.both.page_bytes());
  while (identity_.size() < layer.pages) identity_.push_back(static_cast<std::uint32_t>(identity_.size()));
}

void SlowValues::end() {
  if (needed_ > scratch_.bytes()) {
    scratch_ = {};
    scratch_ = backend_->allocate(needed_ + needed_ / 2);
  }
  std::size_t events = trace_ == nullptr ? 0 : trace_->size();
  for (auto& layer : layers_) {
    if (layer.keys == nullptr) continue;
    std::uint32_t plain = 0;
    for (std::size_t t = 0; t < layer.plain_tables.size(); ++t) {
      auto& table = layer.plain_tables[t];
      table.pages = identity_.data() + plain;
      const auto slots = table.length + dense_[t / static_cast<std::size_t>(layer.groups)].row_count;
      plain += static_cast<std::uint32_t>((slots + layer.both.page_tokens - 1) / layer.both.page_tokens);
    }
    layer.first_event = events;
    events += rows_.size() * static_cast<std::size_t>(most_heads_ * events_per_head);
  }
  if (trace_ != nullptr) trace_->resize(events);
  lane_count_ = std::min<std::int64_t>(static_cast<std::int64_t>(rows_.size()), most_lanes);
  if (const auto floats = static_cast<std::size_t>(lane_count_) * lane_floats_; floats > lanes_.size()) lanes_.resize(floats);
}

HostOp SlowValues::store(std::size_t layer, const Matrix& v) noexcept {
  layers_[layer].v = v;
  return {&run_store, &layers_[layer], static_cast<std::int64_t>(segments_.size())};
}

HostOp SlowValues::expand(std::size_t layer) noexcept {
  return {&run_expand, &layers_[layer], static_cast<std::int64_t>(layers_[layer].pages)};
}

KvLayer SlowValues::plain(std::size_t index) const noexcept {
  const auto& layer = layers_[index];
  return {scratch_.address(), layer.both, layer.groups, layer.plain_tables.data()};
}

HostOp SlowValues::attend(std::size_t layer, const AttentionOp& op) noexcept {
  layers_[layer].op = op;
  return {&run_attend, &layers_[layer], lane_count_};
}

/// The values of a segment's rows to their pages.
void SlowValues::run_store(void* context, std::int64_t unit) noexcept {
  const auto& layer = *static_cast<const Layer*>(context);
  const auto& layout = layer.values->layout();
  const auto& segment = layer.all->segments_[static_cast<std::size_t>(unit)];
  for (std::int32_t g = 0; g < layer.groups; ++g) {
    const auto& table = layer.value_tables[static_cast<std::size_t>(unit * layer.groups + g)];
    for (std::int32_t i = 0; i < segment.row_count; ++i) {
      const std::int32_t slot = table.length + i;
      std::byte* page = layer.values->address(table.pages[slot / layout.page_tokens]);
      const float* v = layer.v.data + (segment.row_begin + i) * layer.v.stride;
      for (std::int32_t h = 0; h < layout.heads; ++h)
        set_kv_value(layout, page + layout.values_offset(h), slot % layout.page_tokens,
                     v + std::int64_t{g * layout.heads + h} * layout.head_dim_v);
    }
  }
}

void SlowValues::run_expand(void* context, std::int64_t unit) noexcept {
  const auto& layer = *static_cast<const Layer*>(context);
  auto& all = *layer.all;
  const auto& page = all.pages_[layer.first_page + static_cast<std::size_t>(unit)];
  const auto& key_table = layer.key_tables[page.table];
  const auto& value_table = layer.value_tables[page.table];
  const std::byte* keys = layer.keys->address(key_table.pages[page.index]);
  const std::byte* values = layer.values->address(value_table.pages[page.index]);
  std::byte* plain = all.scratch_.address() + std::size_t{page.plain} * layer.both.page_bytes();
  const auto tokens = static_cast<std::size_t>(layer.both.page_tokens);
  const auto& value_layout = layer.values->layout();
  for (std::int32_t h = 0; h < layer.both.heads; ++h) {
    std::memcpy(plain + layer.both.keys_offset(h), keys + layer.keys->layout().keys_offset(h),
                tokens * layer.both.vector_bytes(layer.both.head_dim_k));
    std::memcpy(plain + layer.both.values_offset(h), values + value_layout.values_offset(h),
                tokens * layer.both.vector_bytes(layer.both.head_dim_v));
  }
  const auto s = page.table / static_cast<std::size_t>(layer.groups);
  const auto slots = key_table.length + all.segments_[s].row_count;
  const auto here = std::min(layer.both.page_tokens, slots - page.index * layer.both.page_tokens);
  const auto rows = static_cast<std::uint64_t>(here * layer.both.heads);
  all.rows_fetched_.fetch_add(rows, std::memory_order_relaxed);
  all.bytes_fetched_.fetch_add(rows * layer.both.vector_bytes(layer.both.head_dim_v), std::memory_order_relaxed);
}

void SlowValues::run_attend(void* context, std::int64_t unit) noexcept {
  auto& layer = *static_cast<Layer*>(context);
  auto& all = *layer.all;
  float* lane = all.lanes_.data() + static_cast<std::size_t>(unit) * all.lane_floats_;
  for (auto row = static_cast<std::size_t>(unit); row < all.rows_.size(); row += static_cast<std::size_t>(all.lane_count_))
    all.attend_row(layer, row, lane);
}

void SlowValues::note(const Layer& layer, std::size_t row, std::int32_t head, TransferStep step) noexcept {
  if (trace_ == nullptr) return;
  const auto at = layer.first_event + (row * static_cast<std::size_t>(most_heads_) + static_cast<std::size_t>(head)) *
                                          static_cast<std::size_t>(events_per_head) + static_cast<std::size_t>(step);
  (*trace_)[at] = {static_cast<std::int32_t>(layer.index), static_cast<std::int32_t>(row), head, step,
                   1 + clock_.fetch_add(1, std::memory_order_relaxed)};
}

/// All heads of a row. The values of a head are asked for as soon as they are known, and used after the next head's weights.
void SlowValues::attend_row(Layer& layer, std::size_t index, float* lane) noexcept {
  const Row& row = rows_[index];
  const auto slots_room = static_cast<std::size_t>((context_ + 15) / 16 * 16);
  const auto room = static_cast<std::size_t>(std::min(count_, context_));
  float* weights = lane;
  auto* order = reinterpret_cast<std::int32_t*>(lane + slots_room);
  float* rest = lane + 2 * slots_room;
  Chosen chosen[2];
  for (auto& each : chosen) {
    each.slots = reinterpret_cast<std::int32_t*>(rest);
    each.weights = rest + room;
    each.values = rest + 2 * room;
    rest += room * (2 + static_cast<std::size_t>(most_dims_));
  }
  const std::int64_t slots = layer.key_tables[row.segment * layer.groups].length + row.row + 1;
  for (std::int32_t head = 0; head <= layer.op.heads; ++head) {
    if (head < layer.op.heads) {
      note(layer, index, head, TransferStep::weigh);
      weigh(layer, row, head, weights);
      choose(weights, slots, order, chosen[head % 2]);
      note(layer, index, head, TransferStep::weighed);
    }
    if (head > 0) {
      multiply(layer, row, head - 1, chosen[(head - 1) % 2]);
      note(layer, index, head - 1, TransferStep::fetched);
    }
    if (head == layer.op.heads) break;
    note(layer, index, head, TransferStep::request);
    request(layer, row, head, chosen[head % 2]);
  }
}

/// Softmax weights of all slots that the row sees.
void SlowValues::weigh(const Layer& layer, const Row& row, std::int32_t head, float* weights) const noexcept {
  const auto& op = layer.op;
  const auto& layout = layer.keys->layout();
  const std::int32_t kv_head = head / (op.heads / op.kv_heads);
  const auto& table = layer.key_tables[row.segment * layer.groups + kv_head / layout.heads];
  const float* q = op.q.data + (segments_[static_cast<std::size_t>(row.segment)].row_begin + row.row) * op.q.stride +
                   std::int64_t{head} * layout.head_dim_k;
  const std::int32_t slots = table.length + row.row + 1;
  const std::size_t offset = layout.keys_offset(kv_head % layout.heads);
  float top = op.sinks != nullptr ? op.sinks[head] : -std::numeric_limits<float>::infinity();
  for (std::int32_t slot = 0; slot < slots; slot += 16) {
    const std::byte* keys = layer.keys->address(table.pages[slot / layout.page_tokens]) + offset +
                            layout.key_index(slot % layout.page_tokens, 0) * layout.element_bytes();
    float sums[16] = {};
    for (std::int32_t d = 0; d < layout.head_dim_k; ++d, keys += 16 * layout.element_bytes()) {
      float key[16];
      read_sixteen(layout.dtype, keys, key);
      for (int i = 0; i < 16; ++i) sums[i] += q[d] * key[i];
    }
    for (std::int32_t i = 0; i < 16 && slot + i < slots; ++i) {
      float score = sums[i] * op.scale;
      if (op.softcap > 0.0F) score = op.softcap * std::tanh(score / op.softcap);
      weights[slot + i] = score;
      top = std::max(top, score);
    }
  }
  double sum = op.sinks != nullptr ? std::exp(static_cast<double>(op.sinks[head] - top)) : 0.0;
  for (std::int32_t slot = 0; slot < slots; ++slot) {
    weights[slot] = std::exp(weights[slot] - top);
    sum += static_cast<double>(weights[slot]);
  }
  const auto inverse = static_cast<float>(1.0 / sum);
  for (std::int32_t slot = 0; slot < slots; ++slot) weights[slot] *= inverse;
}

/// The slots of the largest weights, of equal ones the older, in ascending order.
void SlowValues::choose(float* weights, std::int64_t slots, std::int32_t* order, Chosen& chosen) const noexcept {
  chosen.count = std::min(slots, count_);
  std::iota(order, order + slots, 0);
  if (chosen.count < slots)
    std::nth_element(order, order + chosen.count, order + slots, [&](std::int32_t a, std::int32_t b) {
      // NaN before all numbers: it must reach the result.
      const float x = std::isnan(weights[a]) ? 2.0F : weights[a];
      const float y = std::isnan(weights[b]) ? 2.0F : weights[b];
      return x != y ? x > y : a < b;
    });
  std::sort(order, order + chosen.count);
  for (std::int64_t i = 0; i < chosen.count; ++i) {
    chosen.slots[i] = order[i];
    chosen.weights[i] = weights[order[i]];
  }
}

const std::byte* SlowValues::value_at(const Layer& layer, const Row& row, std::int32_t head,
                                      std::int32_t slot) const noexcept {
  const auto& layout = layer.values->layout();
  const std::int32_t kv_head = head / (layer.op.heads / layer.op.kv_heads);
  const auto& table = layer.value_tables[static_cast<std::size_t>(row.segment * layer.groups + kv_head / layout.heads)];
  return layer.values->address(table.pages[slot / layout.page_tokens]) + layout.values_offset(kv_head % layout.heads) +
         layout.value_index(slot % layout.page_tokens, 0) * layout.element_bytes();
}

/// Begins to bring the rows near, without waiting for them.
void SlowValues::request(const Layer& layer, const Row& row, std::int32_t head, const Chosen& chosen) noexcept {
  constexpr std::uintptr_t page = 4096;
  std::uintptr_t last = 0;
  for (std::int64_t i = 0; i < chosen.count; ++i) {
    const std::byte* at = value_at(layer, row, head, chosen.slots[i]);
    __builtin_prefetch(at);
    const auto address = reinterpret_cast<std::uintptr_t>(at) / page * page;
    if (!layer.values->in_file() || address == last) continue;
    ::madvise(reinterpret_cast<void*>(address), 2 * page, MADV_WILLNEED);  // a hint: whether it is followed does not matter
    last = address;
  }
}

void SlowValues::multiply(const Layer& layer, const Row& row, std::int32_t head, const Chosen& chosen) noexcept {
  const auto& layout = layer.values->layout();
  const auto dims = static_cast<std::size_t>(layout.head_dim_v);
  const std::size_t bytes = layout.vector_bytes(layout.head_dim_v);
  for (std::int64_t i = 0; i < chosen.count; ++i) {
    const std::byte* at = value_at(layer, row, head, chosen.slots[i]);
    float* to = chosen.values + static_cast<std::size_t>(i) * dims;
    for (std::size_t d = 0; d < dims; ++d) to[d] = kv_element(layout.dtype, at + d * layout.element_bytes());
  }
  rows_fetched_.fetch_add(static_cast<std::uint64_t>(chosen.count), std::memory_order_relaxed);
  bytes_fetched_.fetch_add(static_cast<std::uint64_t>(chosen.count) * bytes, std::memory_order_relaxed);
  const auto& op = layer.op;
  float* out = op.out.data + (segments_[static_cast<std::size_t>(row.segment)].row_begin + row.row) * op.out.stride +
               std::int64_t{head} * layout.head_dim_v;
  std::fill(out, out + dims, 0.0F);
  for (std::int64_t i = 0; i < chosen.count; ++i)
    for (std::size_t d = 0; d < dims; ++d) out[d] += chosen.weights[i] * chosen.values[static_cast<std::size_t>(i) * dims + d];
}

}  // namespace skald::inline v0::detail
