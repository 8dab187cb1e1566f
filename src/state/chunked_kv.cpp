#include <skald/state/chunked_kv.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include <skald/core/file.hpp>
#include <skald/core/half.hpp>
#include <skald/state/summarized_kv.hpp>

#include "state/context_codec.hpp"

namespace skald::inline v0 {

namespace {

constexpr const char* where = "state.chunked_kv";

std::uint64_t checksum(std::span<const std::byte> bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const auto byte : bytes) hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3ull;
  return hash;
}

}  // namespace

std::int32_t chunk_tokens_for(std::span<const std::vector<float>> attention, const ChunkedKvOptions& options) {
  double share = 0;
  std::size_t heads = 0;
  for (const auto& slots : attention) {
    if (slots.empty()) continue;
    auto sorted = slots;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const double all = std::accumulate(sorted.begin(), sorted.end(), 0.0);
    double sum = 0;
    std::size_t count = 0;
    while (count < sorted.size() && sum < options.mass * all) sum += static_cast<double>(sorted[count++]);
    share += static_cast<double>(count) / static_cast<double>(sorted.size());
    ++heads;
  }
  // A share of `mass` is even attention; each halving of the share halves the chunks.
  std::int32_t size = options.most_tokens;
  if (heads == 0) return size;
  share /= static_cast<double>(heads) * options.mass;
  for (double at = 0.75; share < at && size / 2 >= options.least_tokens; at /= 2) size /= 2;
  return size;
}

ChunkedKv::ChunkedKv(const SequenceState& state, const std::string& path,
                     std::span<const std::vector<std::vector<float>>> attention, const ChunkedKvOptions& options)
    : options_(options), tokens_(state.length()) {
  if (options.least_tokens < 1 || options.most_tokens < options.least_tokens ||
      !(options.mass > 0.0 && options.mass <= 1.0))
    throw UsageError(where, "chunks of " + std::to_string(options.least_tokens) + " to " +
                                std::to_string(options.most_tokens) + " tokens by a mass of " +
                                std::to_string(options.mass));
  if (state.pending() != 0 || !state.row_wise())
    throw IncompatibleError(where,
                            "chunks need every token's keys and values; an eviction, a sliding window or a recurrent "
                            "layer does not keep them");
  if (!attention.empty() && attention.size() > static_cast<std::size_t>(state.layer_count()))
    throw UsageError(where, "there is attention of more layers than the sequence has");
  std::vector<std::byte> bytes;
  layers_.resize(static_cast<std::size_t>(state.layer_count()));
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const auto* layer = state.layer(static_cast<int>(l));
    if (layer == nullptr) continue;
    if (layer->kind() != "paged_kv")
      throw IncompatibleError(where, "layer state '" + std::string(layer->kind()) + "' is not keys and values",
                              {.layer = static_cast<int>(l)});
    if (static_cast<const PagedKv*>(layer)->pool().layout().values_in_keys)
      throw IncompatibleError(where, "latent attention has its values in the keys", {.layer = static_cast<int>(l)});
    if (static_cast<const PagedKv*>(layer)->options().codes)
      throw IncompatibleError(where, "KV format 'coupled' keeps codes, whose bounds are not those of keys",
                              {.layer = static_cast<int>(l)});
    layers_[l].chunk_tokens = l < attention.size() ? chunk_tokens_for(attention[l], options) : options.most_tokens;
    write_layer(state, l, bytes);
  }
  if (bytes.empty() && tokens_ > 0) throw IncompatibleError(where, "no layer has keys and values");
  write_file_atomically(path, bytes);
  source_ = open_file(path);
}

std::int64_t ChunkedKv::chunk_size(const Layer& layer, std::size_t chunk) const noexcept {
  return std::min<std::int64_t>(layer.chunk_tokens, tokens_ - static_cast<std::int64_t>(chunk) * layer.chunk_tokens);
}

void ChunkedKv::write_layer(const SequenceState& state, std::size_t index, std::vector<std::byte>& out) {
  auto& layer = layers_[index];
  const auto& kv = static_cast<const PagedKv&>(*state.layer(static_cast<int>(index)));
  const auto& layout = kv.pool().layout();
  const auto tokens = static_cast<std::size_t>(tokens_);
  layer.heads = kv.groups() * layout.heads;
  layer.dims_k = layout.head_dim_k;
  layer.dims_v = layout.stored_dim_v();
  layer.halves = layout.dtype == DType::f16;
  layer.offset = out.size();
  layer.chunks =
      (tokens + static_cast<std::size_t>(layer.chunk_tokens) - 1) / static_cast<std::size_t>(layer.chunk_tokens);
  const auto k = static_cast<std::size_t>(layer.dims_k);
  const auto v = static_cast<std::size_t>(layer.dims_v);
  std::vector<float> keys(static_cast<std::size_t>(layer.heads) * k * tokens);
  std::vector<float> values(static_cast<std::size_t>(layer.heads) * v * tokens);
  detail::read_part(kv, true, 0, tokens_, keys);
  detail::read_part(kv, false, 0, tokens_, values);
  for (std::size_t h = 0; h < static_cast<std::size_t>(layer.heads); ++h)
    for (std::size_t c = 0; c < layer.chunks; ++c) {
      const std::size_t first = c * static_cast<std::size_t>(layer.chunk_tokens);
      const std::size_t end = first + static_cast<std::size_t>(chunk_size(layer, c));
      for (std::size_t d = 0; d < k; ++d) {
        const auto row = std::span(keys).subspan((h * k + d) * tokens + first, end - first);
        const auto [least, greatest] = std::minmax_element(row.begin(), row.end());
        layer.least.push_back(*least);
        layer.greatest.push_back(*greatest);
      }
      const std::size_t begin = out.size();
      const auto put = [&](float x) {
        const std::uint16_t half = f32_to_f16(x);
        const auto* from =
            layer.halves ? reinterpret_cast<const std::byte*>(&half) : reinterpret_cast<const std::byte*>(&x);
        out.insert(out.end(), from, from + (layer.halves ? 2 : 4));
      };
      for (std::size_t t = first; t < end; ++t) {
        for (std::size_t d = 0; d < k; ++d) put(keys[(h * k + d) * tokens + t]);
        for (std::size_t d = 0; d < v; ++d) put(values[(h * v + d) * tokens + t]);
      }
      layer.checksums.push_back(checksum(std::span<const std::byte>(out).subspan(begin)));
    }
}

std::uint64_t ChunkedKv::head_bytes(std::size_t index) const noexcept {
  const auto& layer = layers_[index];
  return static_cast<std::uint64_t>(tokens_) * static_cast<std::uint64_t>(layer.dims_k + layer.dims_v) *
         (layer.halves ? 2 : 4);
}

std::size_t ChunkedKv::abstract_bytes() const noexcept {
  std::size_t sum = 0;
  for (const auto& layer : layers_) sum += (layer.least.size() + layer.greatest.size()) * sizeof(float);
  return sum;
}

float ChunkedKv::bound(std::size_t index, std::int32_t head, std::size_t chunk, std::span<const float> query) const {
  const auto& layer = layers_.at(index);
  if (head < 0 || head >= layer.heads || chunk >= layer.chunks ||
      query.size() != static_cast<std::size_t>(layer.dims_k))
    throw UsageError(where, "there is no such head or chunk, or the query has another size");
  const std::size_t at = (static_cast<std::size_t>(head) * layer.chunks + chunk) * query.size();
  return chunk_bound(query, layer.least.data() + at, layer.greatest.data() + at);
}

std::vector<std::size_t> ChunkedKv::select(std::size_t index, std::int32_t head, std::span<const float> query,
                                           std::int64_t budget) const {
  const auto& layer = layers_.at(index);
  std::vector<std::pair<float, std::size_t>> ranked;
  for (std::size_t c = 0; c < layer.chunks; ++c) ranked.emplace_back(bound(index, head, c, query), c);
  if (ranked.empty()) return {};
  std::vector<std::size_t> chosen{ranked.back().second};
  std::int64_t held = chunk_size(layer, chosen.front());
  ranked.pop_back();
  std::sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second > b.second);
  });
  for (const auto& [score, chunk] : ranked) {
    if (held + chunk_size(layer, chunk) > budget) break;
    held += chunk_size(layer, chunk);
    chosen.push_back(chunk);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

std::vector<float> ChunkedKv::read(std::size_t index, std::int32_t head, std::size_t chunk) {
  const auto& layer = layers_.at(index);
  if (head < 0 || head >= layer.heads || chunk >= layer.chunks)
    throw UsageError(where, "there is no such head or chunk");
  const std::uint64_t row = static_cast<std::uint64_t>(layer.dims_k + layer.dims_v) * (layer.halves ? 2 : 4);
  const auto offset = layer.offset + static_cast<std::uint64_t>(head) * head_bytes(index) +
                      static_cast<std::uint64_t>(chunk) * static_cast<std::uint64_t>(layer.chunk_tokens) * row;
  std::vector<std::byte> bytes(static_cast<std::size_t>(static_cast<std::uint64_t>(chunk_size(layer, chunk)) * row));
  source_.read(offset, bytes);
  if (checksum(bytes) != layer.checksums[static_cast<std::size_t>(head) * layer.chunks + chunk])
    throw FormatError(where, "the file has changed since it was written", {.file = source_.name(), .offset = offset});
  counters_.bytes_read += bytes.size();
  ++counters_.chunks_read;
  std::vector<float> values(bytes.size() / (layer.halves ? 2 : 4));
  if (!layer.halves) {
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, bytes.data() + 2 * i, 2);
    values[i] = f16_to_f32(half);
  }
  return values;
}

const std::vector<float>& ChunkedKv::get(std::size_t index, std::int32_t head, std::size_t chunk) {
  const auto& layer = layers_[index];
  const Key key{index, static_cast<std::size_t>(head) * layer.chunks + chunk};
  if (const auto found = memory_.find(key); found != memory_.end()) {
    order_.splice(order_.begin(), order_, found->second.second);
    counters_.bytes_asked += found->second.first.size() * (layer.halves ? 2 : 4);
    return found->second.first;
  }
  auto values = read(index, head, chunk);
  counters_.bytes_asked += values.size() * (layer.halves ? 2 : 4);
  const std::size_t bytes = values.size() * sizeof(float);
  if (bytes > options_.memory_bytes) {
    passing_ = std::move(values);
    return passing_;
  }
  while (held_ + bytes > options_.memory_bytes) {
    const auto last = memory_.find(order_.back());
    held_ -= last->second.first.size() * sizeof(float);
    memory_.erase(last);
    order_.pop_back();
  }
  held_ += bytes;
  order_.push_front(key);
  return memory_.emplace(key, std::pair(std::move(values), order_.begin())).first->second.first;
}

void ChunkedKv::attend(std::size_t index, std::int32_t head, std::span<const float> query, float scale,
                       std::span<const std::size_t> chunks, std::span<float> out) {
  const auto& layer = layers_.at(index);
  if (head < 0 || head >= layer.heads || query.size() != static_cast<std::size_t>(layer.dims_k) ||
      out.size() != static_cast<std::size_t>(layer.dims_v) || !std::is_sorted(chunks.begin(), chunks.end()))
    throw UsageError(where, "the head, the sizes or the order of the chunks are wrong");
  ++counters_.steps;
  // Token by token, whatever the chunks: the running greatest score, sum and weighted values.
  float most = -std::numeric_limits<float>::infinity();
  float total = 0.0F;
  std::fill(out.begin(), out.end(), 0.0F);
  const std::size_t width = query.size() + out.size();
  for (const auto chunk : chunks) {
    const auto& rows = get(index, head, chunk);
    for (std::size_t at = 0; at < rows.size(); at += width) {
      float score = 0.0F;
      for (std::size_t d = 0; d < query.size(); ++d) score += query[d] * rows[at + d];
      score *= scale;
      if (score > most) {
        const float shrink = std::exp(most - score);
        total *= shrink;
        for (float& x : out) x *= shrink;
        most = score;
      }
      const float weight = std::exp(score - most);
      total += weight;
      for (std::size_t d = 0; d < out.size(); ++d) out[d] += weight * rows[at + query.size() + d];
    }
  }
  for (float& x : out) x = total > 0.0F ? x / total : 0.0F;
}

}  // namespace skald::inline v0
