#include "decoder/core.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

namespace skald::inline v0::detail {

namespace {

constexpr std::int64_t default_context = 4096;
constexpr std::int64_t most_tokens = std::int64_t{1} << 46;  // of all sessions that the options above allow

[[noreturn]] void refuse(const std::string& message) { throw UsageError("decoder.decoder", message); }

bool same_pages(const KvPageLayout& a, const KvPageLayout& b) { return a == b; }

}  // namespace

DecoderCore::~DecoderCore() = default;

Logits DecoderCore::forward_one(Session& session, std::span<const TokenId> tokens, LogitsWanted wanted,
                                std::stop_token stop, const ProgressCallback& progress) {
  single_.clear();
  single_.add(session, tokens, wanted);
  ForwardOptions options{std::move(stop), progress, nullptr, nullptr};
  return forward(single_, options);
}

Session DecoderCore::new_session(SequenceState state, std::vector<TokenId> known) {
  auto session = make_session(shared_from_this(), std::move(state));
  known.reserve(static_cast<std::size_t>(effective_config().context));
  tokens(session) = std::move(known);
  return session;
}

std::string DecoderCore::state_key() const {
  const auto& config = effective_config();
  std::string key = "model=";
  for (const auto word : model().fingerprint()) key += std::to_string(word) + ".";
  return key + ";architecture=" + config.architecture + ";kv=" + config.kv_format + ";eviction=" + config.eviction +
         ";attention=" + attention_key() + ";page_tokens=" + std::to_string(config.page_tokens) +
         ";heads_per_group=" + std::to_string(config.heads_per_group);
}

std::string DecoderCore::attention_key() const {
  const auto& config = effective_config();
  return config.rope == "long" ? config.attention + ";rope=long" : config.attention;
}

std::shared_ptr<DecoderCore> DecoderCore::create(Model model, std::string_view backend) {
  return create(std::move(model), DecoderOptions{}, backend);
}

std::shared_ptr<DecoderCore> DecoderCore::create(Model model, const DecoderOptions& options,
                                                 std::string_view backend) {
  const bool coupled = options.kv.format == "coupled";
  if (options.kv.format.starts_with("coupled;"))
    throw IncompatibleError("decoder.decoder", "KV format '" + printable(options.kv.format) +
                                                   "': 'coupled' takes no rules. Its codes are read layer by layer, and neither "
                                                   "chunks nor values, residuals or segments are made of codes");
  if (coupled != (options.kv.codebooks != nullptr))
    refuse(coupled ? "kv.format 'coupled' needs kv.codebooks" : "kv.codebooks are for kv.format 'coupled'");
  return make(std::move(model), AnyEviction::from_spec(options.kv.eviction),
              coupled ? AnyKvFormat(KvF32{}) : AnyKvFormat(options.kv.format), options, backend);
}

std::shared_ptr<DecoderCore> DecoderCore::create(Model model, AnyEviction eviction, AnyKvFormat format,
                                                 std::string_view backend) {
  return create(std::move(model), std::move(eviction), format, DecoderOptions{}, backend);
}

std::shared_ptr<DecoderCore> DecoderCore::create(Model model, AnyEviction eviction, AnyKvFormat format,
                                                 const DecoderOptions& options, std::string_view backend) {
  const auto clash = [](const std::string& chosen, const std::string& given) {
    throw IncompatibleError("decoder.decoder", chosen + " names another part than the one given, '" + given + "'");
  };
  const KvOptions unsaid;
  if (options.kv.eviction != unsaid.eviction && AnyEviction::from_spec(options.kv.eviction).name() != eviction.name())
    clash("kv.eviction '" + options.kv.eviction + "'", eviction.name());
  if (options.kv.codebooks != nullptr) clash("kv.codebooks '" + options.kv.codebooks->name() + "'", format.name());
  if (options.kv.format != unsaid.format && AnyKvFormat(options.kv.format).name() != format.name())
    clash("kv.format '" + options.kv.format + "'", format.name());
  return make(std::move(model), std::move(eviction), std::move(format), options, backend);
}

std::shared_ptr<DecoderCore> DecoderCore::make(Model model, AnyEviction eviction, AnyKvFormat format,
                                               const DecoderOptions& options, std::string_view backend) {
  const auto name = model.backend()->info().name;
  if (!backend.empty() && backend != name)
    throw IncompatibleError("decoder.decoder", "the decoder is composed for backend '" + std::string(backend) +
                                                   "', the model was loaded on '" + name + "'");
  return std::make_shared<DecoderImpl>(std::move(model), std::move(eviction), std::move(format), options);
}

DecoderImpl::DecoderImpl(Model model, AnyEviction eviction, AnyKvFormat format, const DecoderOptions& options)
    : model_(std::move(model)), eviction_(std::move(eviction)), format_(std::move(format)), options_(options) {
  const auto& spec = model_.spec();
  if (options_.context == 0) options_.context = std::min(spec.context_length, default_context);
  if (spec.learned_positions && options_.context > spec.context_length)
    refuse("context is " + std::to_string(options_.context) + " tokens, but the model has learned positions for " +
           std::to_string(spec.context_length));
  if (options_.context < 1 || options_.context > (std::int64_t{1} << 30))
    refuse("context is " + std::to_string(options_.context) + " tokens, 1 to 2^30 are allowed");
  if (options_.batch_tokens < 1 || options_.batch_tokens > 65536)
    refuse("batch_tokens is " + std::to_string(options_.batch_tokens) + ", 1 to 65536 are allowed");
  if (options_.parallel < 1 || options_.parallel > 65536)
    refuse("parallel is " + std::to_string(options_.parallel) + ", 1 to 65536 are allowed");
  const auto page = options_.kv.page_tokens;
  if (page < KvPageLayout::lane_tokens || page % KvPageLayout::lane_tokens != 0 || attention_chunk % page != 0)
    refuse("kv.page_tokens is " + std::to_string(page) + ", allowed are 16, 32, 64, 128, 256");
  if (options_.kv.capacity_tokens == 0)
    options_.kv.capacity_tokens = (options_.context + page - 1) / page * page * options_.parallel;
  if (options_.kv.capacity_tokens < 1 || options_.kv.capacity_tokens > most_tokens)
    refuse("kv.capacity_tokens is " + std::to_string(options_.kv.capacity_tokens) + ", 0 to 2^46 are allowed");
  if (options_.kv.rollback_tokens < 0 || options_.kv.rollback_tokens > most_tokens)
    refuse("kv.rollback_tokens is " + std::to_string(options_.kv.rollback_tokens) + ", 0 to 2^46 are allowed");
  options_.batch_tokens = std::min(options_.batch_tokens, options_.context * options_.parallel);
  if (options_.recurrent.checkpoint_interval < 0 || options_.recurrent.checkpoints < 0 ||
      options_.recurrent.checkpoints > (1 << 20))
    refuse("recurrent.checkpoint_interval is " + std::to_string(options_.recurrent.checkpoint_interval) +
           " and recurrent.checkpoints " + std::to_string(options_.recurrent.checkpoints) +
           ", 0 or more (up to 2^20 checkpoints) are allowed");
  causal_ = spec.causal();
  for (const auto& layer : spec.layers) {
    recurrent_layers_.push_back(layer.state_elements(spec.dim) > 0 ? static_cast<int>(recurrent_count_++) : -1);
    if (layer.attention && (layer.attention->alibi > 0.0F || layer.attention->relative_buckets > 0))
      distances_by_slot_ = true;
  }
  for (std::int32_t layer = 0; layer < spec.layer_count(); ++layer)
    reads_ahead_ = reads_ahead_ || format_.source(layer) > layer;
  check_composition();
  make_gates();
  make_pools();
  check_two_parts();
  make_residual_pools();
  make_slow_pools();
  make_summary_pools();
  make_rebuild();
  make_buffers();
  make_positions();
  check_program();
  describe();
}

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
      auto it = std::find_if(needed.begin(), needed.end(), [&](const auto& n) { return same_pages(n.first, layout); });
      if (it == needed.end()) it = needed.insert(needed.end(), {layout, 0});
      it->second += (tokens + page - 1) / page * part.groups;
    }
  };
  kv_.resize(spec.layers.size());
  source_kv_.resize(spec.layers.size());
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const auto& layer = spec.layers[i];
    if (layer.attention && format_.source(static_cast<std::int32_t>(i)) == static_cast<std::int32_t>(i))
      add(kv_[i], *layer.attention, kv_parts(i), options_.kv.capacity_tokens + (format_.segments() ? page * options_.parallel : 0) +
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
    if (pages > 0x7FFFFFFF) refuse("kv.capacity_tokens needs more than 2^31 pages");
    pools_.push_back(make_pool(layout, static_cast<std::uint32_t>(pages)));
  }
  const auto place = [&](LayerKv& kv, const AttentionSpec& attention) {
    for (auto& part : kv.parts)
      for (const auto& pool : pools_)
        if (same_pages(pool->layout(), layout_of(attention, part.dtype))) part.pool = pool;
  };
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    if (spec.layers[i].attention) place(kv_[i], *spec.layers[i].attention);
    if (spec.layers[i].cross) place(source_kv_[i], *spec.layers[i].cross);
  }
  for (std::size_t i = 0; i < shapes.size(); ++i) place(encoder_kv_[i], shapes[i]);
  encoder_shapes_.assign(spec.encoder.size(), 0);
  for (std::size_t i = 0; i < spec.encoder.size(); ++i)
    for (std::size_t k = 0; spec.encoder[i].attention && k < shapes.size(); ++k)
      if (same_pages(layout_of(shapes[k], DType::f32), layout_of(*spec.encoder[i].attention, DType::f32)) &&
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
      stream_limits(spec, rows, options_.context, reads_ahead_ || chunk_reads_ ? std::max<std::int64_t>(rows, options_.parallel) : options_.parallel, types, model_.expert_types());
  limits.earlier = has_two_parts();
  limits.tokens = std::max(limits.tokens, eviction_.traits().rebuild * options_.parallel);
  stream_ = backend.new_stream(limits);
  ensure_logits(options_.parallel);
  row_tokens_.resize(static_cast<std::size_t>(rows));
  positions_.resize(static_cast<std::size_t>(rows));
  if (spec.token_types > 0) row_types_.assign(static_cast<std::size_t>(rows), 0);
  head_rows_.reserve(static_cast<std::size_t>(rows));
  if (const auto traits = eviction_.traits(); traits.drops_tokens && traits.needs_scores) {
    // One row of every session, within reason; a pass with more computes logits again for the scores.
    constexpr std::int64_t enough = std::int64_t{16} << 20;
    std::int64_t heads = 0;
    for (const auto& layer : spec.layers)
      if (layer.attention) heads = std::max<std::int64_t>(heads, layer.attention->heads);
    const auto floats = std::min(enough, heads * (options_.context + 16) / 16 * 16 * options_.parallel);
    score_work_ = backend.allocate(static_cast<std::size_t>(floats) * sizeof(float));
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

void DecoderImpl::ensure_logits(std::int64_t rows, const std::stop_token& stop) {
  if (rows <= logits_capacity_) return;
  logits_ = {};
  logits_capacity_ = 0;
  if (!model_.spec().has_head) return;
  logits_ = model_.backend()->allocate(static_cast<std::size_t>(rows * model_.spec().vocabulary) * sizeof(float));
  // Fresh huge pages cost most of a millisecond each, and one unit of the head meets a hundred of them: taken here, where
  // a stop request is seen between any two.
  constexpr std::size_t huge_page = std::size_t{2} << 20;
  if (logits_.host_visible() && logits_.bytes() > 8 * huge_page)
    for (std::size_t at = 0; at < logits_.bytes(); at += huge_page) {
      throw_if_stopped(stop, "decoder.forward");
      logits_.address()[at] = std::byte{0};
    }
  logits_capacity_ = rows;
  if (!logits_.host_visible())
    host_logits_.resize(static_cast<std::size_t>(rows * model_.spec().vocabulary));
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

DecoderCounters DecoderImpl::counters() const {
  auto result = counters_;
  const auto reads = stream_->kv_reads();
  if (slow_values_) {
    result.value_rows_fetched = slow_values_->rows_fetched();
    result.value_bytes_fetched = slow_values_->bytes_fetched();
  }
  if (chunk_reads_) {
    result.chunks_read = chunk_reads_->chunks_read();
    result.chunk_bytes_read = chunk_reads_->bytes_read();
    result.chunk_bytes_seen = chunk_reads_->bytes_seen();
  }
  for (const auto& pool : slow_pools_) result.slow_page_bytes_used += pool->used_pages() * pool->page_bytes();
  result.kv_bytes_read = reads.bytes;
  result.kv_bytes_shared = reads.shared_bytes;
  result.weight_bytes_read = reads.weight_bytes;
  for (const auto& pool : pools_) {
    result.kv_pages_used += pool->used_pages();
    result.kv_pages_peak += pool->peak_pages();
    result.kv_page_bytes_used += pool->used_pages() * pool->page_bytes();
  }
  return result;
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

void DecoderImpl::check_batch(const Batch& batch) const {
  const auto& spec = model_.spec();
  for (const auto& entry : entries(batch)) {
    auto& session = *entry.session;
    if (!owns(session)) refuse("a session of another decoder is in the batch");
    if (session.state().pending() != 0) refuse("a session has a token tree that was neither accepted nor truncated");
    if (spec.has_encoder() && session.encoded_length() == 0)
      refuse("the model has an encoder and the session no text that it has read: call Session::encode first");
    if (entry.kind == EntryKind::tree && distances_by_slot_)
      throw IncompatibleError("decoder.forward",
                              "a token tree cannot be combined with ALiBi or relative positions: a token's distances "
                              "are those of its depth, its place in memory is another");
    if (!spec.has_head && entry.wanted != LogitsWanted::none)
      refuse("the model has no head that gives logits; ask for its hidden states");
    if (!causal_ && entry.kind == EntryKind::tree) refuse("a token tree needs a model whose tokens see no later ones");
    if (!causal_ && entry.count > options_.batch_tokens)
      refuse("the model's tokens see each other, so the " + std::to_string(entry.count) +
             " given together must fit batch_tokens " + std::to_string(options_.batch_tokens));
    if (session.length() + entry.count > options_.context)
      refuse("a session holds " + std::to_string(session.length()) + " tokens, " + std::to_string(entry.count) +
             " more would exceed the context of " + std::to_string(options_.context));
    if (entry.kind == EntryKind::embeddings) {
      if (entry.embedding_count != entry.count * spec.dim)
        refuse(std::to_string(entry.embedding_count) + " values are given for " + std::to_string(entry.count) +
               " embedding rows of " + std::to_string(spec.dim));
      const auto values = std::span(embeddings(batch)).subspan(static_cast<std::size_t>(entry.embedding_begin),
                                                               static_cast<std::size_t>(entry.embedding_count));
      const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
      if (bad != values.end())
        throw NumericError("decoder.forward", "element " + std::to_string((bad - values.begin()) % spec.dim) +
                                                  " of embedding row " + std::to_string((bad - values.begin()) / spec.dim) +
                                                  " is not finite");
      continue;
    }
    for (std::int64_t i = 0; i < entry.count; ++i) {
      const TokenId token = tokens(batch)[static_cast<std::size_t>(entry.begin + i)];
      if (token < 0 || token >= spec.vocabulary)
        refuse("token id " + std::to_string(token) + " is not inside the vocabulary of " +
               std::to_string(spec.vocabulary));
    }
    if (entry.kind != EntryKind::tree) continue;
    if (reads_ahead_)
      throw IncompatibleError("decoder.forward", "a token tree cannot be combined with KV format '" + format_.name() +
                                                     "': layers read what a later one made of the token before");
    if (recurrent_count_ > 0)
      throw IncompatibleError("decoder.forward",
                              "a token tree cannot be computed by recurrent layers, whose state follows one sequence; give "
                              "the tokens of one path and truncate");
    if (has_slow_memory())
      throw IncompatibleError("decoder.forward", "a token tree cannot be combined with KV format '" + format_.name() +
                                                     "': how a row attends depends on the tokens before it");
    if (format_.residual() > 0)
      throw IncompatibleError("decoder.forward",
                              "a token tree cannot be combined with KV format '" + format_.name() +
                                  "': accepted tokens may pass a page border at which others should have been encoded");
    if (eviction_.traits().drops_tokens)
      throw IncompatibleError("decoder.forward",
                              "a token tree cannot be combined with eviction '" + eviction_.name() +
                                  "': accepted tokens may pass a page border at which pages should have been dropped");
    if (entry.count > options_.batch_tokens)
      refuse("a token tree of " + std::to_string(entry.count) + " tokens exceeds batch_tokens " +
             std::to_string(options_.batch_tokens));
    for (std::int64_t i = 0; i < entry.count; ++i) {
      const auto parent = parents(batch)[static_cast<std::size_t>(entry.parent_begin + i)];
      if (parent < -1 || parent >= i)
        refuse("parent " + std::to_string(parent) + " of tree token " + std::to_string(i) + " does not come before it");
    }
  }
}

Logits DecoderImpl::forward(const Batch& batch, const ForwardOptions& options) {
  check_batch(batch);
  const auto& list = entries(batch);
  entry_rows_.assign(1, 0);
  for (const auto& entry : list)
    entry_rows_.push_back(entry_rows_.back() + (entry.wanted == LogitsWanted::none   ? 0
                                                : entry.wanted == LogitsWanted::last ? 1
                                                                                     : entry.count));
  ensure_logits(entry_rows_.back(), options.stop);
  entry_done_.assign(list.size(), 0);
  hidden_ = options.hidden;
  transfers_ = options.transfers;
  if (hidden_) hidden_->assign(static_cast<std::size_t>(batch.rows() * model_.spec().dim), 0.0F);
  scoring_ = options.scores != nullptr;
  if (scoring_) prepare_scores(batch, *options.scores);
  std::int64_t done = 0;
  while (done < batch.rows()) {
    throw_if_stopped(options.stop, "decoder.forward");
    done += cut(batch, pieces_);
    try {
      run(batch, options);
      choose_evictions(batch);
    } catch (...) {
      drop_ops();
      reset_pieces(batch);
      throw;
    }
    commit_pieces(batch);
    if (options.progress)
      options.progress({"forward", static_cast<std::uint64_t>(done), static_cast<std::uint64_t>(batch.rows())});
  }
  if (scoring_) collect_scores(*options.scores);
  return {logits_.host_visible() ? reinterpret_cast<const float*>(logits_.address()) : host_logits_.data(),
          model_.spec().vocabulary, entry_rows_};
}

/// The next length at which a policy is asked, or begins to count scores.
std::int64_t DecoderImpl::border_after(std::int64_t length) const noexcept {
  const std::int64_t page = options_.kv.page_tokens;
  const std::int64_t border = (length / page + 1) * page;
  const auto window = eviction_.traits().score_window;
  return window > 0 && length < border - window ? border - window : border;
}

/// True if the tokens of a piece that begins at `length` count for the policy's scores.
bool DecoderImpl::scored_from(std::int64_t length) const noexcept {
  const auto traits = eviction_.traits();
  if (!traits.drops_tokens || !traits.needs_scores) return false;
  const std::int64_t page = options_.kv.page_tokens;
  return traits.score_window == 0 || length % page >= page - traits.score_window;
}

/// Takes the next rows of the batch, in order; returns how many. With an eviction policy a piece ends at a page border.
std::int64_t DecoderImpl::cut(const Batch& batch, std::vector<Piece>& pieces) {
  pieces.clear();
  std::int64_t room = options_.batch_tokens;
  const auto& list = entries(batch);
  const auto most_pieces = static_cast<std::size_t>(options_.parallel);  // for which room was made
  for (std::size_t e = 0; e < list.size() && room > 0 && pieces.size() < most_pieces; ++e) {
    const auto& entry = list[e];
    const std::int64_t left = entry.count - entry_done_[e];
    if (left == 0) continue;
    std::int64_t count = std::min(left, room);
    if ((entry.kind == EntryKind::tree || !causal_) && count < left) break;
    if (reads_ahead_ && format_.iterations() == 0) count = 1;
    if (eviction_.traits().drops_tokens && entry.kind != EntryKind::tree)
      count = std::min(count, border_after(entry.session->length()) - entry.session->length());
    if (has_two_parts() && entry.kind != EntryKind::tree) count = std::min(count, rows_until_divided(*entry.session));
    if (config_.checkpoints > 0)
      count = std::min(count, config_.checkpoint_interval - entry.session->length() % config_.checkpoint_interval);
    Piece piece{entry.session, e, entry_done_[e], count, 0, 0, count == left, entry.kind == EntryKind::embeddings};
    if (entry.wanted == LogitsWanted::all) {
      piece.logits_row = entry_rows_[e] + entry_done_[e];
      piece.logits_count = count;
    } else if (entry.wanted == LogitsWanted::last && piece.last) {
      piece.logits_row = entry_rows_[e];
      piece.logits_count = 1;
    }
    pieces.push_back(piece);
    room -= count;
  }
  return options_.batch_tokens - room;
}

void DecoderImpl::run(const Batch& batch, const ForwardOptions& options) {
  std::int64_t rows = 0;
  for (const auto& piece : pieces_) {
    rows += piece.count;
    auto& session = *entries(batch)[piece.entry].session;
    if (entries(batch)[piece.entry].kind == EntryKind::tree)
      pending_tokens(session).reserve(static_cast<std::size_t>(piece.count));
  }
  for (const auto& piece : pieces_) entries(batch)[piece.entry].session->state().append(piece.count);
  prepare_rows(batch);
  prepare_tables(batch);
  begin_adapters();
  emit(rows, [&](const Op& op, int) { enqueue(op); });
  if (hidden_) emit_hidden(batch, rows, [&](const Op& op, int) { stream_->enqueue(op); });
  if (!logits_.host_visible())
    for (const auto& run : head_runs_)
      stream_->enqueue(DownloadOp{logits_matrix(run), host_logits_.data() + run.logits_row * model_.spec().vocabulary});
  stream_->synchronize(options.stop);
  check_finite(batch);
  ++counters_.forward_passes;
  counters_.tokens += static_cast<std::uint64_t>(rows);
  counters_.logits_rows += head_rows_.size();
}

void DecoderImpl::prepare_rows(const Batch& batch) {
  const auto dim = model_.spec().dim;
  segments_.clear();
  visible_.clear();
  head_rows_.clear();
  head_runs_.clear();
  pass_has_embeddings_ = false;
  std::size_t words = 0;
  for (const auto& piece : pieces_)
    if (entries(batch)[piece.entry].kind == EntryKind::tree)
      words += static_cast<std::size_t>(piece.count * ((piece.count + 63) / 64));
  visible_.resize(words);  // before any pointer into it is taken
  std::size_t word = 0;
  std::int64_t row = 0;
  for (const auto& piece : pieces_) {
    const auto& entry = entries(batch)[piece.entry];
    const std::int64_t position = entry.session->length();
    Segment segment{static_cast<std::int32_t>(row), static_cast<std::int32_t>(piece.count), nullptr};
    if (entry.kind == EntryKind::tree) segment.visible = visible_.data() + word;
    const auto width = static_cast<std::size_t>((piece.count + 63) / 64);
    for (std::int64_t i = 0; i < piece.count; ++i, ++row) {
      row_tokens_[static_cast<std::size_t>(row)] =
          std::max(0, tokens(batch)[static_cast<std::size_t>(entry.begin + piece.first + i)]);
      std::int64_t at = position + i;
      if (!row_types_.empty())
        row_types_[static_cast<std::size_t>(row)] =
            model_.spec().token_types > 1 && entry.second_begin >= 0 && piece.first + i >= entry.second_begin ? 1 : 0;
      if (entry.kind == EntryKind::tree) {
        std::uint64_t* bits = visible_.data() + word + static_cast<std::size_t>(i) * width;
        const auto parent = parents(batch)[static_cast<std::size_t>(entry.parent_begin + i)];
        std::fill(bits, bits + width, std::uint64_t{0});
        at = position;
        if (parent >= 0) {
          std::copy_n(visible_.data() + word + static_cast<std::size_t>(parent) * width, width, bits);
          at = positions_[static_cast<std::size_t>(row - i + parent)] + 1;
        }
        bits[i / 64] |= std::uint64_t{1} << (i % 64);
      }
      positions_[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(at);
      if (i >= piece.count - piece.logits_count) head_rows_.push_back(static_cast<std::int32_t>(row));
    }
    if (entry.kind == EntryKind::tree) word += static_cast<std::size_t>(piece.count) * width;
    pass_has_embeddings_ = pass_has_embeddings_ || piece.embeddings;
    if (piece.logits_count > 0) {
      const auto begin = static_cast<std::int64_t>(head_rows_.size()) - piece.logits_count;
      if (!head_runs_.empty() && head_runs_.back().logits_row + head_runs_.back().count == piece.logits_row)
        head_runs_.back().count += piece.logits_count;
      else
        head_runs_.push_back({piece.logits_row, begin, piece.logits_count});
    }
    segments_.push_back(segment);
  }
  if (!pass_has_embeddings_) return;
  row_embeddings_.resize(static_cast<std::size_t>(row * dim));
  row = 0;
  for (const auto& piece : pieces_) {
    const auto& entry = entries(batch)[piece.entry];
    if (entry.kind == EntryKind::embeddings)
      std::copy_n(embeddings(batch).data() + entry.embedding_begin + piece.first * dim, piece.count * dim,
                  row_embeddings_.data() + row * dim);
    row += piece.count;
  }
}

void DecoderImpl::prepare_tables(const Batch& batch) {
  std::size_t count = 0;
  for (const auto& layer : kv_) count += static_cast<std::size_t>(layer.groups) * pieces_.size();
  tables_.resize(count);
  policy_scoring_ = false;
  if (eviction_.traits().needs_scores && eviction_.traits().drops_tokens)
    for (const auto& piece : pieces_) policy_scoring_ = policy_scoring_ || scored_from(piece.session->length());
  if (policy_scoring_) score_template_ = {ScoreKind::sum, 0, nullptr};
  if (scoring_ || policy_scoring_) score_pointers_.resize(count);
  places_.clear();
  for (std::size_t l = 0; l < kv_.size() && recurrent_count_ > 0; ++l)
    for (const auto& piece : pieces_)
      if (const auto* state = entries(batch)[piece.entry].session->state().second(static_cast<int>(l)))
        places_.push_back(static_cast<const RecurrentState*>(state)->place());
  if (model_.spec().has_encoder()) prepare_source_tables();
  if (policy_scoring_) prepare_score_shape(count);
  std::size_t parts = 0;
  for (const auto& layer : kv_) parts += layer.parts.size();
  drop_tables_.resize(gates_.bytes() > 0 ? parts * pieces_.size() : 0);
  std::size_t drop_at = 0;
  std::size_t at = 0;
  std::size_t group_base = 0;
  for (std::size_t l = 0; l < kv_.size(); ++l) {
    for (std::size_t p = 0; p < kv_[l].parts.size(); ++p) {
      const auto& part = kv_[l].parts[p];
      for (const auto& piece : pieces_) {
        auto& state = paged(*entries(batch)[piece.entry].session, l, p);
        for (int g = 0; g < part.groups; ++g, ++at) {
          tables_[at] = {state.pages(g).data(), static_cast<std::int32_t>(state.slots(g) - piece.count),
                         static_cast<std::int32_t>(state.first_slot(g))};
          tables_[at].bias = state.bias(g);
          tables_[at].until = state.until();
          tables_[at].position = static_cast<std::int32_t>(piece.session->length());
          if (slopes_[l] != nullptr && !state.positions(g).empty()) tables_[at].positions = state.positions(g).data();
          if (g == 0 && !drop_tables_.empty())
            drop_tables_[drop_at++] = {state.gate_keys(), state.until(), tables_[at].length, tables_[at].position};
          if (policy_scoring_)
            score_pointers_[at] = scored_from(piece.session->length()) ? state.begin_scores(g) : nullptr;
          if (policy_scoring_ && !score_noise_.empty()) score_noise_[at] = state.noise(g);
          if (scoring_)
            score_pointers_[at] =
                reinterpret_cast<float*>(score_memory_.address()) +
                score_offsets_[piece.entry * score_groups_ + group_base + static_cast<std::size_t>(part.first_group + g)];
        }
      }
    }
    group_base += static_cast<std::size_t>(kv_[l].groups);
  }
  if (reads_ahead_) prepare_row_tables();
  prepare_coupled();
  prepare_rebuild(batch);
  prepare_earlier(batch);
  prepare_slow_values(batch);
  prepare_chunk_reads(batch);
}

void DecoderImpl::prepare_coupled() {
  if (!coupled_) return;
  coupled_->begin(tables_, segments_, positions_.data());
  for (std::size_t l = 0; l < kv_.size(); ++l)
    if (!kv_[l].parts.empty())
      coupled_->add(l, kv_[l].parts.front().pool->base(), kv_[l].groups, first_table(static_cast<int>(l)));
  coupled_->end();
}

StateLayer DecoderImpl::state_layer(int layer, std::int64_t offset) const noexcept {
  const auto first = static_cast<std::size_t>(recurrent_layers_[static_cast<std::size_t>(layer)]) * segments_.size();
  return {places_.data() + first, offset, segments_.data(), static_cast<std::int32_t>(segments_.size())};
}

void DecoderImpl::prepare_row_tables() {
  row_segments_.clear();
  for (const auto& segment : segments_)
    for (std::int32_t i = 0; i < segment.row_count; ++i) row_segments_.push_back({segment.row_begin + i, 1, nullptr});
  for (int time = 0; time < 2; ++time) {
    auto& tables = row_tables_[static_cast<std::size_t>(time)];
    tables.clear();
    std::size_t at = 0;
    for (const auto& layer : kv_)
      for (const auto& part : layer.parts)
        for (const auto& segment : segments_) {
          for (std::int32_t i = 0; i < segment.row_count; ++i)
            for (std::size_t g = 0; g < static_cast<std::size_t>(part.groups); ++g) {
              tables.push_back(tables_[at + g]);
              tables.back().length += time * i;
            }
          at += static_cast<std::size_t>(part.groups);
        }
  }
}

/// Room for the noise of each group, and the temperatures of the rows.
void DecoderImpl::prepare_score_shape(std::size_t groups) {
  const auto shape = eviction_.traits().score_shape;
  if (shape.noise != 0.0F) score_noise_.assign(groups, nullptr);
  if (shape.first == 1.0F && shape.last == 1.0F) return;
  inverse_temperatures_.clear();
  for (const auto& piece : pieces_)
    for (std::int64_t i = 0; i < piece.count; ++i)
      inverse_temperatures_.push_back(
          1.0F / shape.temperature(piece.session->length() + i, piece.session->state().prompt_length()));
}

/// True if the piece completes a page, which is when a policy may drop others.
bool DecoderImpl::evicts_after(const Piece& piece) const noexcept {
  return eviction_.traits().drops_tokens && (piece.session->length() + piece.count) % options_.kv.page_tokens == 0;
}

void DecoderImpl::choose_evictions(const Batch& batch) {
  for (const auto& piece : pieces_)
    if (evicts_after(piece)) entries(batch)[piece.entry].session->state().choose_evictions(eviction_, host_threads());
}

/// Cannot fail: room was made before, policies were asked before.
void DecoderImpl::commit_pieces(const Batch& batch) {
  for (const auto& piece : pieces_) {
    const auto& entry = entries(batch)[piece.entry];
    auto& session = *entry.session;
    const auto* first = tokens(batch).data() + entry.begin + piece.first;
    entry_done_[piece.entry] += piece.count;
    if (entry.kind == EntryKind::tree) {
      pending_tokens(session).assign(first, first + piece.count);
      continue;
    }
    const bool evicts = evicts_after(piece);
    keep_entered(session, segments_[static_cast<std::size_t>(&piece - pieces_.data())]);
    session.state().commit();
    tokens(session).insert(tokens(session).end(), first, first + piece.count);
    if (!evicts) continue;
    count_evictions(session, -1);
    session.state().apply_evictions(host_threads());
    count_evictions(session, 1);
    ++counters_.eviction_rounds;
  }
}

/// Forgets ops of a pass that was not started as a whole.
void DecoderImpl::drop_ops() noexcept {
  try {
    stream_->synchronize(stopped_.get_token());
  } catch (...) {  // as it must: the queue is empty now
  }
}

void DecoderImpl::reset_pieces(const Batch& batch) noexcept {
  for (const auto& piece : pieces_) {
    auto& state = entries(batch)[piece.entry].session->state();
    if (state.pending() != 0) state.rollback();
  }
}

void DecoderImpl::check_finite(const Batch& batch) const {
  if (options_.check_finite == CheckFinite::off) return;
  const auto vocabulary = model_.spec().vocabulary;
  const float* data =
      logits_.host_visible() ? reinterpret_cast<const float*>(logits_.address()) : host_logits_.data();
  for (const auto& piece : pieces_)
    for (std::int64_t i = 0; i < piece.logits_count; ++i) {
      const float* row = data + (piece.logits_row + i) * vocabulary;
      // A sum of zeros times the values is NaN exactly if one of them is not finite; vectorizes without branches.
      float probe[16] = {};
      std::int64_t j = 0;
      for (; j + 16 <= vocabulary; j += 16)
        for (int lane = 0; lane < 16; ++lane) probe[lane] += row[j + lane] * 0.0F;
      for (; j < vocabulary; ++j) probe[0] += row[j] * 0.0F;
      float sum = 0.0F;
      for (const float p : probe) sum += p;
      if (sum == 0.0F) continue;
      const auto* bad = std::find_if(row, row + vocabulary, [](float value) { return !std::isfinite(value); });
      const auto& entry = entries(batch)[piece.entry];
      throw NumericError("decoder.forward",
                         "logit " + std::to_string(bad - row) + " of the token at position " +
                             std::to_string(entry.session->length() + piece.count - piece.logits_count + i) +
                             " is not finite: the weights or the embeddings given are damaged");
    }
}

void DecoderImpl::prepare_scores(const Batch& batch, AttentionScores& scores) {
  if (reads_ahead_)
    throw IncompatibleError("decoder.forward", "attention scores cannot be collected with KV format '" + format_.name() +
                                                   "': layers read a later one, and rows may be computed several times");
  if (eviction_.traits().drops_tokens)
    throw IncompatibleError("decoder.forward", "attention scores cannot be collected by slot while eviction '" +
                                                   eviction_.name() + "' removes slots");
  if (has_two_parts())
    throw IncompatibleError("decoder.forward", "attention scores cannot be collected with KV format '" + format_.name() +
                                                   "', which keeps slots in two places");
  score_groups_ = 0;
  for (const auto& layer : kv_) score_groups_ += static_cast<std::size_t>(layer.groups);
  if (score_groups_ == 0)
    throw IncompatibleError("decoder.forward", "attention scores cannot be collected: no layer has attention");
  score_offsets_.clear();
  scores.values.clear();
  std::size_t floats = 0;
  for (const auto& entry : entries(batch)) {
    if (scores.last_rows > 0 && (entry.count > options_.batch_tokens || batch.rows() > options_.batch_tokens))
      refuse("scores of the last rows need a batch of at most batch_tokens " + std::to_string(options_.batch_tokens));
    const auto slots = static_cast<std::size_t>(entry.session->length() + entry.count);
    auto& layers = scores.values.emplace_back(kv_.size());
    for (std::size_t l = 0; l < kv_.size(); ++l)
      for (int g = 0; g < kv_[l].groups; ++g) {
        layers[l].emplace_back(slots);  // now: afterwards nothing may fail
        score_offsets_.push_back(floats);
        floats += slots;
      }
  }
  score_memory_ = model_.backend()->allocate(std::max<std::size_t>(floats, 1) * sizeof(float));
  score_template_ = {scores.kind, scores.last_rows, nullptr};
}

void DecoderImpl::collect_scores(AttentionScores& scores) {
  const auto* from = score_memory_.address();
  for (auto& layers : scores.values)
    for (auto& groups : layers)
      for (auto& slots : groups) {
        const auto to = std::as_writable_bytes(std::span(slots));
        model_.backend()->read(to, from);
        from += to.size();
      }
  score_memory_ = {};
}

}  // namespace skald::inline v0::detail
