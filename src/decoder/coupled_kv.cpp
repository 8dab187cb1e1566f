#include "decoder/coupled_kv.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include <skald/core/error.hpp>

namespace skald::inline v0::detail {

namespace {

constexpr std::int32_t most_dims = 1024;
constexpr std::size_t most_bytes = 2 * most_dims;

/// A head's codes of one token between their place among the 16-bit elements of a page and bytes one after the other.
template <bool ToPage, class Page, class Row>
void move_codes(const KvPageLayout& layout, bool keys, std::int32_t head, std::int32_t slot, Page* page,
                Row* row) noexcept {
  if (!keys) {
    auto* at = page + layout.values_offset(head) + 2 * layout.value_index(slot, 0);
    const std::size_t bytes = 2 * static_cast<std::size_t>(layout.head_dim_v);
    if constexpr (ToPage) std::memcpy(at, row, bytes);
    else std::memcpy(row, at, bytes);
    return;
  }
  for (std::int32_t word = 0; word < layout.head_dim_k; ++word) {
    auto* at = page + layout.keys_offset(head) + 2 * layout.key_index(slot, word);
    if constexpr (ToPage) std::memcpy(at, row + std::ptrdiff_t{2} * word, 2);
    else std::memcpy(row + std::ptrdiff_t{2} * word, at, 2);
  }
}

}  // namespace

KeyTurn::KeyTurn(const RopeSpec& rope, std::int64_t context) : kind_(rope.kind) {
  if (kind_ == RopeKind::none) return;
  const auto frequencies = rope_frequencies(rope, context).inverse_frequencies;
  pairs_ = frequencies.size();
  table_.reserve(2 * pairs_ * static_cast<std::size_t>(context));
  for (std::int64_t position = 0; position < context; ++position)
    for (const double frequency : frequencies) {
      table_.push_back(static_cast<float>(std::cos(static_cast<double>(position) * frequency)));
      table_.push_back(static_cast<float>(std::sin(static_cast<double>(position) * frequency)));
    }
}

void KeyTurn::apply(float* key, std::int64_t position, float direction) const noexcept {
  const float* row = table_.data() + 2 * pairs_ * static_cast<std::size_t>(position);
  for (std::size_t j = 0; j < pairs_; ++j) {
    float& a = key[kind_ == RopeKind::interleaved ? 2 * j : j];
    float& b = key[kind_ == RopeKind::interleaved ? 2 * j + 1 : j + pairs_];
    const float cos = row[2 * j];
    const float sin = direction * row[2 * j + 1];
    const float turned = a * cos - b * sin;
    b = a * sin + b * cos;
    a = turned;
  }
}

CoupledKv::CoupledKv(std::shared_ptr<const CoupledCodebooks> codebooks, const ModelSpec& spec, AnyBackend backend,
                     std::int64_t context, std::int32_t page_tokens, std::int32_t heads_per_group)
    : codebooks_(std::move(codebooks)), backend_(std::move(backend)) {
  const auto clash = [](const std::string& reason, int layer = -1) {
    ErrorContext place{};
    if (layer >= 0) place.layer = layer;
    throw IncompatibleError("decoder.decoder", "KV format 'coupled' " + reason, place);
  };
  if (!backend_->info().host_visible)
    clash("needs memory that the host can see; backend '" + backend_->info().name + "' has none");
  if (spec.has_encoder()) clash("has no codes for models with an encoder");
  if (codebooks_->layers().size() != spec.layers.size())
    clash("has codebooks for " + std::to_string(codebooks_->layers().size()) + " layers, the model has " +
          std::to_string(spec.layers.size()));
  for (const auto& rope : spec.ropes) turns_.emplace_back(rope, context);
  layers_.resize(spec.layers.size());
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const auto& attention = spec.layers[l].attention;
    if (!attention) continue;
    const auto& books = codebooks_->layers()[l];
    if (attention->latent) clash("has no codes for latent attention", static_cast<int>(l));
    if (books.keys.heads() != attention->kv_heads || books.keys.dims() != attention->stored_dim_k() ||
        books.values.dims() != attention->stored_dim_v())
      clash("has codebooks for " + std::to_string(books.keys.heads()) + " heads of " +
                std::to_string(books.keys.dims()) + " and " + std::to_string(books.values.dims()) +
                " elements, the layer has " + std::to_string(attention->kv_heads) + " of " +
                std::to_string(attention->stored_dim_k()) + " and " + std::to_string(attention->stored_dim_v()),
            static_cast<int>(l));
    if (books.keys.dims() > most_dims || books.values.dims() > most_dims || books.keys.row_bytes() > most_bytes ||
        books.values.row_bytes() > most_bytes)
      clash("is limited to heads of " + std::to_string(most_dims) + " elements", static_cast<int>(l));
    auto& layer = layers_[l];
    layer.all = this;
    layer.keys = &books.keys;
    layer.values = &books.values;
    if (attention->rope >= 0) layer.turn = &turns_[static_cast<std::size_t>(attention->rope)];
    layer.codes = {DType::f16,
                   page_tokens,
                   heads_per_group,
                   static_cast<std::int32_t>(books.keys.row_bytes() / 2),
                   static_cast<std::int32_t>(books.values.row_bytes() / 2),
                   false};
    layer.plain = {DType::f32, page_tokens, heads_per_group, books.keys.dims(), books.values.dims(), false};
  }
}

void CoupledKv::begin(std::span<const KvTable> tables, std::span<const Segment> segments,
                      const std::int32_t* positions) {
  tables_ = tables;
  segments_ = segments;
  positions_ = positions;
  plain_tables_.assign(tables.begin(), tables.end());
  pages_.clear();
  needed_ = 0;
}

void CoupledKv::add(std::size_t index, std::byte* pool, std::int32_t groups, std::size_t first_table) {
  auto& layer = layers_[index];
  layer.pool = pool;
  layer.groups = groups;
  layer.first_table = first_table;
  layer.first_page = pages_.size();
  std::uint32_t plain = 0;
  for (std::size_t s = 0; s < segments_.size(); ++s)
    for (std::int32_t g = 0; g < groups; ++g) {
      const std::size_t t = first_table + s * static_cast<std::size_t>(groups) + static_cast<std::size_t>(g);
      const auto slots = tables_[t].length + segments_[s].row_count - tables_[t].first;
      for (std::int32_t p = 0; p * layer.plain.page_tokens < slots; ++p)
        pages_.push_back({t, static_cast<std::int32_t>(s), g, p, plain++});
    }
  layer.pages = pages_.size() - layer.first_page;
  needed_ = std::max(needed_, layer.pages * layer.plain.page_bytes());
  while (identity_.size() < layer.pages) identity_.push_back(static_cast<std::uint32_t>(identity_.size()));
}

void CoupledKv::end() {
  if (needed_ > scratch_.bytes()) {
    scratch_ = {};
    scratch_ = backend_->allocate(needed_ + needed_ / 2);
  }
  for (const auto& page : pages_)
    if (page.index == 0) plain_tables_[page.table].pages = identity_.data() + page.plain;
}

KvLayer CoupledKv::plain(std::size_t index) const noexcept {
  const auto& layer = layers_[index];
  return {scratch_.address(), layer.plain, layer.groups, plain_tables_.data() + layer.first_table};
}

HostOp CoupledKv::expand(std::size_t layer) noexcept {
  return {&run_expand, &layers_[layer], static_cast<std::int64_t>(layers_[layer].pages)};
}

HostOp CoupledKv::pack(std::size_t layer) noexcept {
  return {&run_pack, &layers_[layer], static_cast<std::int64_t>(layers_[layer].pages)};
}

void CoupledKv::expand_slot(const Layer& layer, const Page& page, std::int32_t in_page,
                            std::int64_t position) const noexcept {
  const std::byte* codes = layer.pool + std::size_t{tables_[page.table].pages[page.index]} * layer.codes.page_bytes();
  std::byte* plain = scratch_.address() + std::size_t{page.plain} * layer.plain.page_bytes();
  std::byte row[most_bytes];
  float x[most_dims];
  for (std::int32_t h = 0; h < layer.plain.heads; ++h) {
    const std::int32_t head = page.group * layer.plain.heads + h;
    move_codes<false>(layer.codes, true, h, in_page, codes, row);
    layer.keys->decode(head, row, x);
    if (layer.turn != nullptr) layer.turn->turn(x, position);
    auto* keys = reinterpret_cast<float*>(plain + layer.plain.keys_offset(h));
    for (std::int32_t d = 0; d < layer.plain.head_dim_k; ++d) keys[layer.plain.key_index(in_page, d)] = x[d];
    move_codes<false>(layer.codes, false, h, in_page, codes, row);
    layer.values->decode(head, row, x);
    auto* values = reinterpret_cast<float*>(plain + layer.plain.values_offset(h));
    for (std::int32_t d = 0; d < layer.plain.head_dim_v; ++d) values[layer.plain.value_index(in_page, d)] = x[d];
  }
}

void CoupledKv::pack_slot(const Layer& layer, const Page& page, std::int32_t in_page,
                          std::int64_t position) const noexcept {
  std::byte* codes = layer.pool + std::size_t{tables_[page.table].pages[page.index]} * layer.codes.page_bytes();
  const std::byte* plain = scratch_.address() + std::size_t{page.plain} * layer.plain.page_bytes();
  std::byte row[most_bytes];
  float x[most_dims];
  for (std::int32_t h = 0; h < layer.plain.heads; ++h) {
    const std::int32_t head = page.group * layer.plain.heads + h;
    const auto* keys = reinterpret_cast<const float*>(plain + layer.plain.keys_offset(h));
    for (std::int32_t d = 0; d < layer.plain.head_dim_k; ++d) x[d] = keys[layer.plain.key_index(in_page, d)];
    if (layer.turn != nullptr) layer.turn->turn_back(x, position);
    layer.keys->encode(head, x, row);
    move_codes<true>(layer.codes, true, h, in_page, codes, row);
    const auto* values = reinterpret_cast<const float*>(plain + layer.plain.values_offset(h));
    for (std::int32_t d = 0; d < layer.plain.head_dim_v; ++d) x[d] = values[layer.plain.value_index(in_page, d)];
    layer.values->encode(head, x, row);
    move_codes<true>(layer.codes, false, h, in_page, codes, row);
  }
}

void CoupledKv::run_expand(void* context, std::int64_t unit) noexcept {
  const auto& layer = *static_cast<const Layer*>(context);
  const auto& all = *layer.all;
  const auto& page = all.pages_[layer.first_page + static_cast<std::size_t>(unit)];
  const auto& table = all.tables_[page.table];
  const std::int32_t begin = table.first + page.index * layer.plain.page_tokens;
  for (std::int32_t slot = begin; slot < std::min(begin + layer.plain.page_tokens, table.length); ++slot)
    all.expand_slot(layer, page, slot - begin, slot);
}

void CoupledKv::run_pack(void* context, std::int64_t unit) noexcept {
  const auto& layer = *static_cast<const Layer*>(context);
  const auto& all = *layer.all;
  const auto& page = all.pages_[layer.first_page + static_cast<std::size_t>(unit)];
  const auto& table = all.tables_[page.table];
  const auto& segment = all.segments_[static_cast<std::size_t>(page.segment)];
  const std::int32_t begin = table.first + page.index * layer.plain.page_tokens;
  const std::int32_t end = std::min(begin + layer.plain.page_tokens, table.length + segment.row_count);
  for (std::int32_t slot = std::max(begin, table.length); slot < end; ++slot) {
    const std::int64_t position = all.positions_[segment.row_begin + slot - table.length];
    all.pack_slot(layer, page, slot - begin, position);
    all.expand_slot(layer, page, slot - begin, position);
  }
}

}  // namespace skald::inline v0::detail
