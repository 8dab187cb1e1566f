#include "state/context_codec.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>

#include <skald/core/half.hpp>
#include <skald/state/kv_rows.hpp>

namespace skald::inline v0::detail {

namespace {

constexpr float pull_unit = 16.0F;
/// An anchor's error reaches its whole group: it gets half the step.
constexpr float anchor_share = 0.5F;
constexpr float most_steps = 1e6F;
constexpr int most_tables = 64;  // half octaves between zero and most_steps are fewer

bool is_anchor(std::int64_t token, const ContextCut& cut) noexcept {
  return token % cut.chunk_tokens % cut.group_tokens == 0;
}

std::int64_t anchors_of(std::int64_t count, const ContextCut& cut) noexcept {
  return (count + cut.group_tokens - 1) / cut.group_tokens;
}

std::int32_t steps_of(float distance, float step) noexcept {
  return static_cast<std::int32_t>(std::nearbyint(std::clamp(distance / step, -most_steps, most_steps)));
}

/// Codes of a channel, in the order in which they are packed: anchors first if there are any.
struct ChannelOrder {
  std::vector<std::int32_t> anchors{}, others{};
  void take(std::span<const std::int32_t> codes, const ContextCut& cut, bool pulled) {
    anchors.clear();
    others.clear();
    for (std::size_t t = 0; t < codes.size(); ++t)
      (pulled && t % static_cast<std::size_t>(cut.group_tokens) == 0 ? anchors : others).push_back(codes[t]);
  }
};

/// Channels whose codes are of similar size share a table: a class is half an octave of the mean size.
int class_of(double sum, std::int64_t count) {
  const double mean = count == 0 ? 0.0 : sum / static_cast<double>(count);
  return static_cast<int>(std::lround(2.0 * std::log2(mean + 0.02)));
}

}  // namespace

void ContextPart::fit(std::span<const float> values, std::int64_t tokens, const ContextCut& cut) {
  const auto count = static_cast<std::size_t>(tokens);
  means.assign(channels(), 0.0F);
  pulls.assign(channels(), 0);
  for (std::size_t c = 0; c < channels(); ++c) {
    const auto row = values.subspan(c * count, count);
    double sum = 0.0;
    for (const float v : row) sum += static_cast<double>(v);
    const double mean = count == 0 ? 0.0 : sum / static_cast<double>(count);
    if (!std::isfinite(mean)) throw NumericError("decoder.context_file", "a key or value is not finite");
    means[c] = static_cast<float>(mean);
    double product = 0.0;
    double square = 0.0;
    double anchor = 0.0;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const double distance = static_cast<double>(row[static_cast<std::size_t>(t)]) - mean;
      if (is_anchor(t, cut)) {
        anchor = distance;
      } else {
        product += distance * anchor;
        square += anchor * anchor;
      }
    }
    const double pull = square > 0.0 ? std::clamp(product / square, 0.0, 1.0) : 0.0;
    pulls[c] = static_cast<std::uint8_t>(std::lround(pull * static_cast<double>(pull_unit)));
    // Below that, what the anchors cost more than they spare.
    if (pulls[c] < 6) pulls[c] = 0;
  }
}

std::vector<std::int32_t> ContextPart::add_level(std::span<const float> values, std::int64_t tokens,
                                                 const ContextCut& cut, float step) {
  const auto count = static_cast<std::size_t>(tokens);
  const auto width = static_cast<std::size_t>(dims);
  Level level;
  level.steps.resize(static_cast<std::size_t>(heads));
  for (std::size_t h = 0; h < level.steps.size(); ++h) {
    double square = 0.0;
    for (std::size_t c = h * width; c < (h + 1) * width; ++c)
      for (const float v : values.subspan(c * count, count)) square += std::pow(static_cast<double>(v - means[c]), 2);
    const double spread = std::sqrt(square / std::max(1.0, static_cast<double>(width * count)));
    const auto size = static_cast<float>(spread * static_cast<double>(step));
    if (!std::isfinite(size)) throw NumericError("decoder.context_file", "a key or value is not finite");
    level.steps[h] = std::max(size, 1e-30F);
  }
  std::vector<std::int32_t> codes(values.size());
  struct Counts {
    std::map<std::int32_t, std::uint64_t> symbols{};
  };
  std::map<int, Counts> classes;
  std::vector<std::array<int, 2>> chosen(channels());
  for (std::size_t c = 0; c < channels(); ++c) {
    const auto row = values.subspan(c * count, count);
    auto* out = codes.data() + c * count;
    const float size = level.steps[c / width];
    const float pull = static_cast<float>(pulls[c]) / pull_unit;
    const float anchor_size = pulls[c] > 0 ? size * anchor_share : size;
    float from = means[c];
    double sums[2] = {0.0, 0.0};
    std::int64_t counts[2] = {0, 0};
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto at = static_cast<std::size_t>(t);
      const bool anchor = pulls[c] > 0 && is_anchor(t, cut);
      if (anchor) {
        out[at] = steps_of(row[at] - means[c], anchor_size);
        from = means[c] + pull * (static_cast<float>(out[at]) * anchor_size);
      } else {
        out[at] = steps_of(row[at] - from, size);
      }
      sums[anchor ? 1 : 0] += std::abs(static_cast<double>(out[at]));
      ++counts[anchor ? 1 : 0];
    }
    chosen[c] = {class_of(sums[0], counts[0]), class_of(sums[1], counts[1])};
    if (pulls[c] == 0) chosen[c][1] = chosen[c][0];
    for (std::int64_t t = 0; t < tokens; ++t)
      ++classes[chosen[c][pulls[c] > 0 && is_anchor(t, cut) ? 1 : 0]].symbols[out[static_cast<std::size_t>(t)]];
    (void)classes[chosen[c][0]];
    (void)classes[chosen[c][1]];
  }
  std::map<int, std::uint8_t> index;
  for (const auto& [number, counts] : classes) {
    index.emplace(number, static_cast<std::uint8_t>(level.tables.size()));
    if (counts.symbols.empty()) {
      level.tables.emplace_back();
      continue;
    }
    const auto first = std::max(counts.symbols.begin()->first, -16000);
    const auto last = std::min(counts.symbols.rbegin()->first, 16000);
    std::vector<std::uint64_t> dense(static_cast<std::size_t>(std::max(last - first + 1, 0)));
    std::uint64_t others = 0;
    for (const auto& [symbol, times] : counts.symbols)
      (symbol >= first && symbol <= last ? dense[static_cast<std::size_t>(symbol - first)] : others) += times;
    level.tables.emplace_back(first, dense, others);
  }
  for (const auto& [plain, anchor] : chosen) {
    level.classes.push_back(index.at(plain));
    level.anchor_classes.push_back(index.at(anchor));
  }
  levels.push_back(std::move(level));
  return codes;
}

std::vector<std::byte> ContextPart::pack(std::size_t at, std::span<const std::int32_t> codes, std::int64_t stride,
                                         std::int64_t first, std::int64_t count, const ContextCut& cut) const {
  const auto& level = levels[at];
  std::vector<ChannelOrder> orders(channels());
  std::vector<SymbolRun> runs;
  for (std::size_t c = 0; c < channels(); ++c) {
    orders[c].take(codes.subspan(c * static_cast<std::size_t>(stride) + static_cast<std::size_t>(first),
                                 static_cast<std::size_t>(count)),
                   cut, pulls[c] > 0);
    runs.push_back({&level.tables[level.anchor_classes[c]], orders[c].anchors});
    runs.push_back({&level.tables[level.classes[c]], orders[c].others});
  }
  return encode_symbols(runs);
}

void ContextPart::prepare(std::size_t level) {
  for (auto& table : levels[level].tables) table.prepare();
}

void ContextPart::unpack(std::size_t at, ArchiveReader& in, std::int64_t count, const ContextCut& cut,
                         std::span<std::int32_t> codes) const {
  const auto& level = levels[at];
  SymbolReader reader(in);
  const auto tokens = static_cast<std::size_t>(count);
  const auto group = static_cast<std::size_t>(cut.group_tokens);
  std::vector<std::int32_t> anchors(static_cast<std::size_t>(anchors_of(count, cut)));
  std::vector<std::int32_t> others(tokens - anchors.size());
  for (std::size_t c = 0; c < channels(); ++c) {
    const auto row = codes.subspan(c * tokens, tokens);
    const auto& table = level.tables[level.classes[c]];
    if (pulls[c] == 0) {
      if (!reader.read(table, row)) in.refuse("codes", "the codes end too early");
      continue;
    }
    if (!reader.read(level.tables[level.anchor_classes[c]], anchors) || !reader.read(table, others))
      in.refuse("codes", "the codes end too early");
    for (std::size_t g = 0, from = 0; g < anchors.size(); ++g) {
      row[g * group] = anchors[g];
      const auto more = std::min(group, tokens - g * group) - 1;
      std::copy_n(others.begin() + static_cast<std::ptrdiff_t>(from), more,
                  row.begin() + static_cast<std::ptrdiff_t>(g * group + 1));
      from += more;
    }
  }
  if (!reader.complete()) in.refuse("codes", "codes are left over");
}

void ContextPart::decode(std::size_t at, std::span<const std::int32_t> codes, std::int64_t count, const ContextCut& cut,
                         std::span<float> values) const {
  const auto& level = levels[at];
  const auto tokens = static_cast<std::size_t>(count);
  const auto group = static_cast<std::size_t>(cut.group_tokens);
  for (std::size_t c = 0; c < channels(); ++c) {
    const auto* in = codes.data() + c * tokens;
    auto* out = values.data() + c * tokens;
    const float mean = means[c];
    const float size = level.steps[c / static_cast<std::size_t>(dims)];
    if (pulls[c] == 0) {
      for (std::size_t t = 0; t < tokens; ++t) out[t] = mean + static_cast<float>(in[t]) * size;
      continue;
    }
    const float pull = static_cast<float>(pulls[c]) / pull_unit;
    for (std::size_t g = 0; g < tokens; g += group) {
      const float distance = static_cast<float>(in[g]) * (size * anchor_share);
      out[g] = mean + distance;
      const float from = mean + pull * distance;
      for (std::size_t t = g + 1; t < std::min(g + group, tokens); ++t)
        out[t] = from + static_cast<float>(in[t]) * size;
    }
  }
}

void ContextPart::save(ArchiveWriter& out) const {
  for (const float mean : means) out.value(mean);
  for (const auto pull : pulls) out.value(pull);
  for (const auto& level : levels) {
    for (const float step : level.steps) out.value(step);
    out.value(static_cast<std::uint8_t>(level.tables.size()));
    for (const auto& table : level.tables) table.save(out);
    for (const auto number : level.classes) out.value(number);
    for (const auto number : level.anchor_classes) out.value(number);
  }
}

ContextPart ContextPart::load(ArchiveReader& in, std::int32_t heads, std::int32_t dims, std::size_t levels) {
  ContextPart part;
  part.heads = heads;
  part.dims = dims;
  const auto finite = [&](std::string_view field) {
    const auto value = in.value<float>(field);
    if (!std::isfinite(value)) in.refuse(field, "a value is not finite");
    return value;
  };
  const auto number = [&](std::string_view field, std::size_t below) {
    const auto value = in.value<std::uint8_t>(field);
    if (value >= below) in.refuse(field, std::to_string(value) + " is not below " + std::to_string(below));
    return value;
  };
  // Element by element, so that nothing is allocated that the data does not have.
  for (std::size_t c = 0; c < part.channels(); ++c) part.means.push_back(finite("mean"));
  for (std::size_t c = 0; c < part.channels(); ++c) part.pulls.push_back(number("pull", 17));
  for (std::size_t l = 0; l < levels; ++l) {
    auto& level = part.levels.emplace_back();
    for (std::int32_t h = 0; h < heads; ++h) {
      level.steps.push_back(finite("step"));
      if (level.steps.back() <= 0.0F) in.refuse("step", "a step is not positive");
    }
    const auto tables = in.value<std::uint8_t>("tables");
    if (tables > most_tables) in.refuse("tables", std::to_string(tables) + " tables");
    for (int t = 0; t < tables; ++t) level.tables.push_back(SymbolTable::load(in));
    for (std::size_t c = 0; c < part.channels(); ++c) level.classes.push_back(number("class", tables));
    for (std::size_t c = 0; c < part.channels(); ++c) level.anchor_classes.push_back(number("class", tables));
  }
  return part;
}

namespace {

/// Calls f(group, page, first slot in the page, first column, slots) for the pages that hold some slots.
template <class F>
void for_each_page(const PagedKv& kv, std::int64_t first, std::int64_t count, const F& f) {
  const auto page_tokens = static_cast<std::int64_t>(kv.pool().layout().page_tokens);
  for (int g = 0; g < kv.groups(); ++g)
    for (std::int64_t slot = first; slot < first + count;) {
      const auto in_page = slot % page_tokens;
      const auto slots = std::min(page_tokens - in_page, first + count - slot);
      f(g, kv.pages(g)[static_cast<std::size_t>((slot - kv.first_slot(g)) / page_tokens)],
        static_cast<std::int32_t>(in_page), static_cast<std::size_t>(slot - first), static_cast<std::int32_t>(slots));
      slot += slots;
    }
}

template <class Stored, class Convert>
void store_rows(const KvPageLayout& layout, std::byte* page, bool keys, std::int32_t head, std::int32_t first,
                std::int32_t slots, const float* from, std::size_t stride, const Convert& convert) {
  auto* to = reinterpret_cast<Stored*>(page + (keys ? layout.keys_offset(head) : layout.values_offset(head)));
  const auto dims = keys ? layout.head_dim_k : layout.stored_dim_v();
  if (keys) {
    for (std::int32_t d = 0; d < dims; ++d)
      for (std::int32_t s = 0; s < slots; ++s)
        to[layout.key_index(first + s, d)] =
            convert(from[static_cast<std::size_t>(d) * stride + static_cast<std::size_t>(s)]);
    return;
  }
  for (std::int32_t s = 0; s < slots; ++s)
    for (std::int32_t d = 0; d < dims; ++d)
      to[layout.value_index(first + s, d)] =
          convert(from[static_cast<std::size_t>(d) * stride + static_cast<std::size_t>(s)]);
}

void store_head(const KvPageLayout& layout, std::byte* page, bool keys, std::int32_t head, std::int32_t first,
                std::int32_t slots, const float* from, std::size_t stride) {
  if (layout.dtype == DType::f32)
    return store_rows<float>(layout, page, keys, head, first, slots, from, stride, [](float v) { return v; });
  if (layout.dtype == DType::f16)
    return store_rows<std::uint16_t>(layout, page, keys, head, first, slots, from, stride, f32_to_f16);
  if (layout.dtype == DType::bf16)
    return store_rows<std::uint16_t>(layout, page, keys, head, first, slots, from, stride, f32_to_bf16);
  std::vector<float> row(static_cast<std::size_t>(keys ? layout.head_dim_k : layout.stored_dim_v()));
  for (std::int32_t s = 0; s < slots; ++s) {
    for (std::size_t d = 0; d < row.size(); ++d) row[d] = from[d * stride + static_cast<std::size_t>(s)];
    if (keys) write_kv_key(layout, page, head, first + s, row);
    else write_kv_value(layout, page, head, first + s, row);
  }
}

}  // namespace

void read_part(const PagedKv& kv, bool keys, std::int64_t first, std::int64_t count, std::span<float> values) {
  const auto& layout = kv.pool().layout();
  const auto dims = static_cast<std::size_t>(keys ? layout.head_dim_k : layout.stored_dim_v());
  std::vector<std::byte> copy;
  std::vector<float> row(dims);
  for_each_page(kv, first, count, [&](int g, PageId id, std::int32_t at, std::size_t column, std::int32_t slots) {
    const std::byte* page = kv.pool().address(id);
    if (!kv.pool().host_visible()) {
      copy.resize(kv.pool().page_bytes());
      kv.pool().backend().read(copy, page);
      page = copy.data();
    }
    for (std::int32_t h = 0; h < layout.heads; ++h) {
      auto* out = values.data() +
                  static_cast<std::size_t>(g * layout.heads + h) * dims * static_cast<std::size_t>(count) + column;
      for (std::int32_t s = 0; s < slots; ++s) {
        if (keys) read_kv_key(layout, page, h, at + s, row);
        else read_kv_value(layout, page, h, at + s, row);
        for (std::size_t d = 0; d < dims; ++d)
          out[d * static_cast<std::size_t>(count) + static_cast<std::size_t>(s)] = row[d];
      }
    }
  });
}

void write_part(PagedKv& kv, bool keys, std::int64_t first, std::int64_t count, std::span<const float> values) {
  const auto& layout = kv.pool().layout();
  const auto dims = static_cast<std::size_t>(keys ? layout.head_dim_k : layout.stored_dim_v());
  std::vector<std::byte> copy;
  for_each_page(kv, first, count, [&](int g, PageId id, std::int32_t at, std::size_t column, std::int32_t slots) {
    std::byte* page = kv.pool().address(id);
    const bool visible = kv.pool().host_visible();
    if (!visible) {
      copy.resize(kv.pool().page_bytes());
      kv.pool().backend().read(copy, page);
      page = copy.data();
    }
    for (std::int32_t h = 0; h < layout.heads; ++h)
      store_head(layout, page, keys, h, at, slots,
                 values.data() +
                     static_cast<std::size_t>(g * layout.heads + h) * dims * static_cast<std::size_t>(count) + column,
                 static_cast<std::size_t>(count));
    if (!visible) kv.pool().backend().write(kv.pool().address(id), copy);
  });
}

}  // namespace skald::inline v0::detail
