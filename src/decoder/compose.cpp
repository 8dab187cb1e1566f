// What a decoder is made of: whether its parts go together, and the memory that they need.
#include <algorithm>
#include <cstring>
#include <string>

#include "decoder/core.hpp"

namespace skald::inline v0::detail {

void DecoderImpl::check_composition() const {
  if (options_.attention != "dense")
    throw UsageError("decoder.decoder",
                     "no attention variant is called '" + options_.attention + "'; there are: dense");
  const auto traits = eviction_.traits();
  const auto clash = [&](const std::string& reason) {
    throw IncompatibleError("decoder.decoder", "eviction '" + eviction_.name() + "' " + reason);
  };
  if (traits.needs_scores && !model_.backend()->info().host_visible)
    clash("needs attention scores in memory that the host can see; backend '" + model_.backend()->info().name +
          "' has none");
  if (traits.drops_tokens && std::none_of(model_.spec().layers.begin(), model_.spec().layers.end(),
                                          [](const auto& layer) { return layer.attention.has_value(); }))
    clash("drops tokens, but no layer keeps them: all layers have a state of fixed size");
  if (traits.drops_tokens && options_.kv.codebooks)
    clash("drops or renumbers tokens; KV format 'coupled' keeps keys without their rotation, by position in the sequence");
  if (traits.counts_merged && !model_.backend()->info().host_visible)
    clash("weighs merged tokens by numbers in host memory; backend '" + model_.backend()->info().name +
          "' cannot see it");
  if (eviction_.gates()) {
    if (!model_.backend()->info().host_visible)
      clash("has gates, which need memory that the host can see; backend '" + model_.backend()->info().name + "' has none");
    if (!traits.drops_tokens) clash("has gates, but drops no tokens");
    eviction_.gates()->check(model_.spec().layers.size(), model_.spec().dim);
  }
  if (traits.drops_tokens && !causal_) clash("drops tokens, but the model's tokens see those that come later");
  if (traits.reorders_positions && (!traits.drops_tokens || traits.sinks < 1))
    clash("renumbers positions, but keys are stored rotated: only a declared number of sinks can be rotated anew");
  if (traits.sinks >= options_.kv.page_tokens)
    clash("has " + std::to_string(traits.sinks) + " sinks; they must be fewer than kv.page_tokens " +
          std::to_string(options_.kv.page_tokens));
  for (const auto& layer : model_.spec().layers)
    if (traits.drops_tokens && layer.attention && layer.attention->relative_buckets > 0)
      clash("drops tokens, but the model adds a learned number for each distance of two tokens in memory");
  for (const auto& layer : model_.spec().layers)
    if (traits.reorders_positions && layer.attention && layer.attention->window == 0 &&
        (layer.attention->rope < 0 || layer.attention->latent))
      clash("renumbers positions, which needs a rotary embedding of whole keys in every layer");
  if (traits.score_window < 0 || traits.score_window > options_.kv.page_tokens)
    clash("scores the last " + std::to_string(traits.score_window) + " tokens of a page of kv.page_tokens " +
          std::to_string(options_.kv.page_tokens));
  if (traits.drops_tokens && traits.budget > 0 && traits.budget < 2 * std::int64_t{options_.kv.page_tokens})
    clash("has a budget of " + std::to_string(traits.budget) + " tokens; it needs at least two pages of kv.page_tokens " +
          std::to_string(options_.kv.page_tokens));
  if (traits.memory_floats < 0 || traits.memory_floats > 4096) clash("keeps more than 4096 numbers per head group");
}

/// The runs of KV-head groups of a layer that have one format.
std::vector<KvPart> DecoderImpl::kv_parts(std::size_t layer) const {
  const auto& attention = *model_.spec().layers[layer].attention;
  const auto per_group = options_.kv.heads_per_group;
  const auto clash = [&](const std::string& what) {
    throw IncompatibleError("decoder.decoder", what, {.layer = static_cast<int>(layer)});
  };
  if (per_group < 1 || attention.kv_heads % per_group != 0)
    clash("kv.heads_per_group " + std::to_string(per_group) + " does not divide the " +
          std::to_string(attention.kv_heads) + " KV heads");
  std::vector<KvPart> parts;
  for (std::int32_t head = 0; head < attention.kv_heads; ++head) {
    const auto dtype = format_.dtype(static_cast<std::int32_t>(layer), head);
    if (head % per_group != 0) {
      if (dtype != parts.back().dtype) clash("the heads of a group of kv.heads_per_group cannot have different KV formats");
      continue;
    }
    if (parts.empty() || parts.back().dtype != dtype) parts.push_back({nullptr, head / per_group, 0, dtype});
    ++parts.back().groups;
  }
  return parts;
}

/// Whether layers can read the keys and values that they are told to.
void DecoderImpl::check_sources() const {
  const auto& spec = model_.spec();
  for (std::int32_t layer = 0; layer < spec.layer_count(); ++layer) {
    const auto from = format_.source(layer);
    if (from == layer) continue;
    const auto clash = [&](const std::string& what) {
      throw IncompatibleError("decoder.decoder", "KV format '" + format_.name() + "': layer " + std::to_string(layer) +
                                                     " cannot read the keys and values of layer " +
                                                     std::to_string(from) + ": " + what,
                              {.layer = layer});
    };
    const auto& reader = spec.layers[static_cast<std::size_t>(layer)].attention;
    const auto& owner = spec.layers[static_cast<std::size_t>(from)].attention;
    if (!reader || !owner) clash("one of them has no attention");
    if (from > layer && recurrent_count_ > 0) clash("the model has recurrent layers, which cannot be computed several times");
    if (format_.source(from) != from) clash("that layer has none of its own");
    if (reader->latent || owner->latent) clash("latent attention has keys of its own kind");
    if (reader->kv_heads != owner->kv_heads || reader->head_dim_k != owner->head_dim_k ||
        reader->head_dim_v != owner->head_dim_v || reader->rope != owner->rope)
      clash("heads or rotation differ");
    if (reader->window > 0 || owner->window > 0) clash("one of them has a sliding window");
    if (!reader->causal) clash("its tokens see later ones");
  }
  if (format_.iterations() > 0 && !reads_ahead_)
    throw IncompatibleError("decoder.decoder", "KV format '" + format_.name() + "' has iterations, but no layer reads a later one");
  if (reads_ahead_ && eviction_.traits().drops_tokens)
    throw IncompatibleError("decoder.decoder", "KV format '" + format_.name() + "' lets layers read a later one, and eviction '" +
                                                   eviction_.name() + "' takes the slots of all rows of a pass for filled");
}

void DecoderImpl::make_pools() {
  const auto& spec = model_.spec();
  const std::int64_t page = options_.kv.page_tokens;
  std::int32_t most_heads = 0;
  for (const auto& layer : spec.layers)
    if (layer.attention) most_heads = std::max(most_heads, layer.attention->kv_heads);
  format_.check(spec.layer_count(), most_heads);
  check_sources();
  std::vector<std::pair<KvPageLayout, std::int64_t>> needed;  // layout, pages
  if (options_.kv.codebooks)
    coupled_ = std::make_unique<CoupledKv>(options_.kv.codebooks, spec, model_.backend(), options_.context,
                                           options_.kv.page_tokens, options_.kv.heads_per_group);
  const auto layout_of = [&](const AttentionSpec& attention, DType dtype) {
    for (std::size_t i = 0; coupled_ && i < spec.layers.size(); ++i)
      if (spec.layers[i].attention && &*spec.layers[i].attention == &attention) return coupled_->codes(i);
    const KvPageLayout both{dtype, options_.kv.page_tokens, options_.kv.heads_per_group, attention.stored_dim_k(),
                            attention.stored_dim_v(), attention.latent.has_value()};
    const bool keys_alone = format_.fetched_values() > 0 && !attention.latent;
    return keys_alone ? SlowValues::keys_of(both) : both;
  };
  // Pages for `tokens` tokens.
  const auto add = [&](LayerKv& kv, const AttentionSpec& attention, std::vector<KvPart> parts, std::int64_t tokens) {
    kv.parts = std::move(parts);
    for (const auto& part : kv.parts) {
      kv.groups += part.groups;
      const auto layout = layout_of(attention, part.dtype);
      auto it = std::find_if(needed.begin(), needed.end(), [&](const auto& n) { return n.first == layout; });
      if (it == needed.end()) it = needed.insert(needed.end(), {layout, 0});
      it->second += (tokens + page - 1) / page * part.groups;
    }
  };
  kv_.resize(spec.layers.size());
  source_kv_.resize(spec.layers.size());
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const auto& layer = spec.layers[i];
    if (layer.attention && format_.source(static_cast<std::int32_t>(i)) == static_cast<std::int32_t>(i))
      add(kv_[i], *layer.attention, kv_parts(i),
          options_.kv.capacity_tokens + (format_.segments() ? page * options_.parallel : 0) +
              (eviction_.traits().rebuild + page) * options_.parallel * (eviction_.traits().rebuild > 0));
    if (layer.cross) add(source_kv_[i], *layer.cross, one_kv_part(*layer.cross, i), options_.kv.capacity_tokens);
  }
  for (auto& kv : kv_) kv.segments = format_.segments() && !kv.parts.empty();
  earlier_kv_.resize(kv_.size());
  const auto shapes = encoder_kv_shapes(spec);
  encoder_kv_.resize(shapes.size());
  for (std::size_t i = 0; i < shapes.size(); ++i)
    add(encoder_kv_[i], shapes[i], one_kv_part(shapes[i], spec.layers.size()), options_.context);
  for (const auto& [layout, pages] : needed) {
    if (pages > 0x7FFFFFFF) throw UsageError("decoder.decoder", "kv.capacity_tokens needs more than 2^31 pages");
    pools_.push_back(make_pool(layout, static_cast<std::uint32_t>(pages)));
  }
  const auto place = [&](LayerKv& kv, const AttentionSpec& attention) {
    for (auto& part : kv.parts)
      for (const auto& pool : pools_)
        if (pool->layout() == layout_of(attention, part.dtype)) part.pool = pool;
  };
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    if (spec.layers[i].attention) place(kv_[i], *spec.layers[i].attention);
    if (spec.layers[i].cross) place(source_kv_[i], *spec.layers[i].cross);
  }
  for (std::size_t i = 0; i < shapes.size(); ++i) place(encoder_kv_[i], shapes[i]);
  encoder_shapes_.assign(spec.encoder.size(), 0);
  for (std::size_t i = 0; i < spec.encoder.size(); ++i)
    for (std::size_t k = 0; spec.encoder[i].attention && k < shapes.size(); ++k)
      if (layout_of(shapes[k], DType::f32) == layout_of(*spec.encoder[i].attention, DType::f32) &&
          shapes[k].kv_heads == spec.encoder[i].attention->kv_heads)
        encoder_shapes_[i] = k;
}

/// Learned gates become weights: interaction queries and keys of a row in one product.
void DecoderImpl::make_gates() {
  gate_weights_.resize(model_.spec().layers.size());
  const auto& gates = eviction_.gates();
  if (!gates) return;
  const auto row = static_cast<std::size_t>(model_.spec().dim) * sizeof(float);
  for (std::size_t l = 0; l < gates->layers.size(); ++l) {
    const auto& layer = gates->layers[l];
    const auto& attention = model_.spec().layers[l].attention;
    if (layer.query.empty() || !attention || attention->window > 0) continue;
    if (format_.source(static_cast<int>(l)) != static_cast<int>(l))
      throw IncompatibleError("decoder.decoder",
                              "eviction '" + eviction_.name() + "' has gates for a layer that reads the keys of another",
                              {.layer = static_cast<int>(l)});
    const auto read = [&](std::int64_t first, std::int64_t count, std::span<std::byte> out) {
      for (std::int64_t i = 0; i < count; ++i) {
        const auto at = first + i;
        const auto& from = at < gates->width ? layer.query : layer.key;
        std::memcpy(out.data() + static_cast<std::size_t>(i) * row,
                    from.data() + static_cast<std::size_t>(at % gates->width * model_.spec().dim), row);
      }
    };
    gate_weights_[l] = model_.backend()->make_weight(
        {.type = DType::f32, .rows = 2 * std::int64_t{gates->width}, .cols = model_.spec().dim, .read = read},
        model_.layout(), {});
  }
  gates_ = model_.backend()->allocate(static_cast<std::size_t>(2 * gates->width * options_.batch_tokens) * sizeof(float));
}

void DecoderImpl::make_buffers() {
  const auto& spec = model_.spec();
  std::size_t parts = 0;
  for (const auto& layer : kv_) parts += layer.parts.size();
  score_sinks_.resize(parts);
  auto& backend = *model_.backend();
  sizes_ = activation_sizes(spec);
  const auto rows = options_.batch_tokens;
  const auto make = [&](std::int64_t cols) {
    return backend.allocate(static_cast<std::size_t>(rows * cols) * sizeof(float));
  };
  x_ = make(sizes_.residual);
  q_ = make(sizes_.q);
  k_ = make(sizes_.k);
  v_ = make(sizes_.v);
  attention_ = make(sizes_.attention);
  ffn_ = make(sizes_.ffn);
  if (sizes_.router > 0) router_ = make(sizes_.router);
  if (sizes_.experts > 0) experts_ = make(sizes_.experts);
  if (sizes_.work > 0) work_ = make(sizes_.work);
  if (sizes_.recurrent > 0) recurrent_ = make(sizes_.recurrent);
  for (const auto& rope : spec.ropes) rope_tables_.push_back(make(rope.dims));
  stopped_.request_stop();
  std::vector<DType> types(model_.weight_types().begin(), model_.weight_types().end());
  if (eviction_.gates() && !types.empty()) types.push_back(DType::f32);
  auto limits =
      stream_limits(spec, rows, options_.context,
                    reads_ahead_ || chunk_reads_ ? std::max<std::int64_t>(rows, options_.parallel) : options_.parallel,
                    types, model_.expert_types());
  limits.earlier = has_two_parts();
  limits.tokens = std::max(limits.tokens, eviction_.traits().rebuild * options_.parallel);
  limits.segments = std::max(limits.segments, eviction_.traits().rebuild * options_.parallel);  // runs of rows
  stream_ = backend.new_stream(limits);
  ensure_logits(options_.parallel);
  row_tokens_.resize(static_cast<std::size_t>(rows));
  positions_.resize(static_cast<std::size_t>(rows));
  if (spec.token_types > 0) row_types_.assign(static_cast<std::size_t>(rows), 0);
  head_rows_.reserve(static_cast<std::size_t>(rows));
  if (const auto traits = eviction_.traits(); traits.drops_tokens && traits.needs_scores) {
    std::int64_t heads = 0;
    for (const auto& layer : spec.layers)
      if (layer.attention) heads = std::max<std::int64_t>(heads, layer.attention->heads);
    score_work_ = backend.allocate(static_cast<std::size_t>(score_work(heads, options_.context, options_.parallel)) * sizeof(float));
  }
  if (!eviction_.traits().score_shape.plain()) inverse_temperatures_.reserve(static_cast<std::size_t>(rows));
}

/// What layers know of positions: rotation for this context, the slopes of ALiBi, relative positions.
void DecoderImpl::make_positions() {
  const auto& spec = model_.spec();
  make_relative_biases();
  for (const auto& rope : spec.ropes)
    ropes_.push_back(rope.kind == RopeKind::none ? RopeFrequencies{} : rope_frequencies(rope, options_.context));
  slopes_.assign(static_cast<std::size_t>(spec.all_layer_count()), nullptr);
  std::vector<float> values;
  std::vector<std::size_t> begin(spec.layers.size());
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const auto& attention = spec.layers[i].attention;
    if (!attention || attention->alibi <= 0.0F) continue;
    begin[i] = values.size();
    const auto slopes = alibi_slopes(attention->heads, attention->alibi);
    values.insert(values.end(), slopes.begin(), slopes.end());
  }
  if (values.empty()) return;
  slope_memory_ = model_.backend()->allocate(values.size() * sizeof(float));
  model_.backend()->write(slope_memory_.address(), std::as_bytes(std::span(values)));
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const auto& attention = spec.layers[i].attention;
    if (attention && attention->alibi > 0.0F)
      slopes_[i] = reinterpret_cast<const float*>(slope_memory_.address()) + begin[i];
  }
}

void DecoderImpl::check_program() {
  // One row of one sequence that has no pages: shapes, formats and options are real, data is not touched.
  segments_.assign(1, Segment{0, 1, nullptr});
  std::size_t groups = 0;
  for (const auto& layer : kv_) groups += static_cast<std::size_t>(layer.groups);
  tables_.assign(groups, KvTable{});
  earlier_tables_ = tables_;
  if (reads_ahead_) {
    row_segments_ = segments_;
    for (auto& tables : row_tables_) tables = tables_;
  }
  places_.assign(static_cast<std::size_t>(recurrent_count_), StatePlace{});
  groups = 0;
  for (const auto& layer : source_kv_) groups += static_cast<std::size_t>(layer.groups);
  source_tables_.assign(groups, KvTable{});
  groups = 0;
  for (const auto& shape : encoder_kv_) groups += static_cast<std::size_t>(shape.groups);
  encoder_tables_.assign(groups, KvTable{});
  prepare_coupled();
  head_rows_.assign(1, 0);
  head_runs_.clear();
  if (model_.spec().has_head) head_runs_.assign(1, HeadRun{0, 0, 1});
  const auto check = [&](const Op& op, int layer) {
    if (auto reason = model_.backend()->refuses(op)) {
      ErrorContext context{};
      if (layer >= 0) context.layer = layer;
      throw IncompatibleError("decoder.decoder",
                              "backend '" + model_.backend()->info().name + "' cannot run this model: " + *reason, context);
    }
  };
  emit(1, check);
  if (!model_.spec().has_encoder()) return;
  emit_encoder(1, check);
  emit_source(1, check);
}

void DecoderImpl::describe() {
  const auto info = model_.backend()->info();
  config_.model = model_.info().file;
  config_.architecture = model_.spec().architecture;
  config_.backend = info.name;
  config_.device = info.device;
  config_.isa = info.isa;
  config_.threads = info.threads;
  config_.huge_pages = info.huge_pages;
  config_.weight_layout = model_.layout() == WeightLayout::packed ? "packed" : "rows";
  config_.kv_format = pools_.empty() ? "none" : coupled_ ? options_.kv.codebooks->name() : format_.name();
  config_.eviction = eviction_.name();
  config_.attention = options_.attention;
  for (const auto& rope : model_.spec().ropes)
    if (rope.scaling == RopeScaling::longrope) config_.rope = options_.context > rope.original_context ? "long" : "short";
  config_.page_tokens = options_.kv.page_tokens;
  config_.heads_per_group = options_.kv.heads_per_group;
  config_.capacity_tokens = options_.kv.capacity_tokens;
  config_.context = options_.context;
  config_.batch_tokens = options_.batch_tokens;
  config_.parallel = options_.parallel;
  if (recurrent_count_ == 0) return;
  config_.checkpoint_interval = options_.recurrent.checkpoint_interval;
  config_.checkpoints = config_.checkpoint_interval > 0 ? options_.recurrent.checkpoints : 0;
  config_.recurrent_bytes = recurrent_bytes(model_.spec(), config_.checkpoint_interval, config_.checkpoints);
}

std::size_t DecoderImpl::memory_bytes() const noexcept {
  std::size_t bytes = x_.bytes() + q_.bytes() + k_.bytes() + v_.bytes() + attention_.bytes() + ffn_.bytes() +
                      score_work_.bytes() + gates_.bytes() + router_.bytes() + experts_.bytes() + work_.bytes() +
                      recurrent_.bytes() + logits_.bytes() + slope_memory_.bytes() + relative_memory_.bytes() +
                      rebuild_x_.bytes() + rebuild_k_.bytes() + rebuild_v_.bytes() + delta_memory_.bytes() +
                      host_logits_.size() * sizeof(float);
  for (const auto* tables : {&rope_tables_, &rebuild_ropes_})
    for (const auto& table : *tables) bytes += table.bytes();
  for (const auto* rows : {&rebuild_host_, &entered_host_})
    for (const auto& layer : *rows) bytes += layer.size() * sizeof(float);
  return bytes + (coupled_ ? coupled_->memory_bytes() : 0) + (slow_values_ ? slow_values_->memory_bytes() : 0) +
         (chunk_reads_ ? chunk_reads_->memory_bytes() : 0);
}

std::size_t DecoderImpl::kv_capacity_bytes() const noexcept {
  std::size_t bytes = 0;
  for (const auto& pool : pools_) bytes += pool->capacity_pages() * pool->page_bytes();
  return bytes + static_cast<std::size_t>(config_.recurrent_bytes) * static_cast<std::size_t>(options_.parallel);
}

}  // namespace skald::inline v0::detail
