// What a session remembers in each layer, and layers whose keys and values lie in two places.
#include <algorithm>
#include <string>

#include "decoder/core.hpp"

namespace skald::inline v0::detail {

RecurrentOptions DecoderImpl::recurrent_options(std::size_t layer) const {
  const auto& spec = model_.spec();
  return {.elements = spec.layers[layer].state_elements(spec.dim),
          .checkpoint_interval = options_.recurrent.checkpoint_interval,
          .checkpoints = options_.recurrent.checkpoints,
          .max_tokens = options_.context};
}

PagedKvOptions DecoderImpl::layer_options(std::size_t layer, const KvPart& part) const {
  const auto traits = eviction_.traits();
  PagedKvOptions options;
  options.max_tokens = options_.context;
  options.window = model_.spec().layers[layer].attention->window;
  options.rollback = options_.kv.rollback_tokens;
  options.evicts = traits.drops_tokens;
  options.scores = traits.drops_tokens && traits.needs_scores;
  options.scores_anew = traits.score_window > 0;
  if (gate_weights_[layer]) options.gate_width = eviction_.gates()->width;
  options.score_shape = traits.score_shape;
  options.noise_stream = (static_cast<std::uint64_t>(layer) << 20) + static_cast<std::uint64_t>(part.first_group);
  options.codes = coupled_ != nullptr;
  options.counts = traits.drops_tokens && traits.counts_merged;
  options.memory_floats = traits.memory_floats;
  const auto& attention = *model_.spec().layers[layer].attention;
  if (traits.drops_tokens && traits.reorders_positions && options.window == 0 && attention.rope >= 0) {
    options.sinks = traits.sinks;
    options.rotation = std::make_shared<const KeyRotation>(
        KeyRotation{ropes_[static_cast<std::size_t>(attention.rope)].inverse_frequencies,
                    model_.spec().ropes[static_cast<std::size_t>(attention.rope)].kind == RopeKind::interleaved});
  }
  return options;
}

Session DecoderImpl::new_session() {
  std::vector<std::unique_ptr<LayerState>> layers(kv_.size() * (recurrent_count_ > 0 ? 2 : 1));
  for (std::size_t i = 0; i < kv_.size(); ++i) {
    std::vector<std::unique_ptr<PagedKv>> parts;
    for (const auto& part : kv_[i].parts)
      parts.push_back(std::make_unique<PagedKv>(part.pool, part.groups, layer_options(i, part)));
    if (kv_[i].two_parts()) layers[i] = two_part_state(i, std::move(parts.front()));
    else if (parts.size() == 1) layers[i] = std::move(parts.front());
    else if (!parts.empty()) layers[i] = std::make_unique<SplitKv>(std::move(parts));
    if (recurrent_layers_[i] >= 0)
      layers[kv_.size() + i] = std::make_unique<RecurrentState>(model_.backend(), recurrent_options(i));
  }
  auto session = make_session(shared_from_this(), SequenceState(std::move(layers), static_cast<int>(kv_.size()), new_source(options_.context)));
  tokens(session).reserve(static_cast<std::size_t>(options_.context));
  return session;
}

/// What a session holds of one part of a layer.
PagedKv& DecoderImpl::paged(const Session& session, std::size_t layer, std::size_t part) const noexcept {
  auto& state = *session.state().layer(static_cast<int>(layer));
  if (kv_[layer].two_parts()) return static_cast<TwoPartKv&>(state).written();
  if (kv_[layer].parts.size() == 1) return static_cast<PagedKv&>(state);
  return static_cast<SplitKv&>(state).part(static_cast<int>(part));
}

/// Adds what a session's layers have evicted so far, `sign` times.
void DecoderImpl::count_evictions(const Session& session, std::int64_t sign) noexcept {
  for (std::size_t l = 0; l < kv_.size(); ++l)
    for (std::size_t p = 0; p < kv_[l].parts.size(); ++p) {
      const auto& kv = paged(session, l, p);
      counters_.evicted_pages += static_cast<std::uint64_t>(sign * kv.evicted_pages());
      counters_.evicted_tokens += static_cast<std::uint64_t>(sign * kv.evicted_tokens());
      counters_.merged_tokens += static_cast<std::uint64_t>(sign * kv.merged_tokens());
    }
}

/// Whether a residual or segments go with the model and the other components.
void DecoderImpl::check_two_parts() const {
  if (!options_.kv.slow_directory.empty() && !has_slow_memory())
    throw UsageError("decoder.decoder",
                     "kv.slow_directory is for formats with slow memory, as 'f16;values=128' and 'f16;chunks=256'");
  if (eviction_.traits().rebuild > 0) check_rebuild();
  if (format_.residual() == 0 && !format_.segments() && !has_slow_memory()) return;
  const auto clash = [&](const std::string& what, int layer = -1) {
    ErrorContext place{};
    if (layer >= 0) place.layer = layer;
    throw IncompatibleError("decoder.decoder", "KV format '" + format_.name() + "' " + what, place);
  };
  if ((format_.residual() > 0) + format_.segments() + (format_.fetched_values() > 0) + (format_.read_tokens() > 0) > 1)
    clash("has several of residual, segments, values apart and chunks: what a layer keeps can lie in two places, not more");
  if (coupled_) clash("cannot be combined with codebooks of coupled channels, whose codes are read layer by layer");
  if (has_slow_memory() && !model_.backend()->info().host_visible)
    clash("needs memory that the host can see; backend '" + model_.backend()->info().name + "' has none");
  if (format_.residual() % options_.kv.page_tokens != 0)
    clash("keeps tokens until whole pages can be encoded: the residual must be a multiple of kv.page_tokens " +
          std::to_string(options_.kv.page_tokens));
  if (eviction_.traits().drops_tokens)
    clash("divides tokens by their position in the sequence, and eviction '" + eviction_.name() + "' drops or moves them");
  if (reads_ahead_) clash("lets layers read a later one, whose tokens must lie in one place");
  if (!causal_) clash("divides tokens into earlier and later ones, and the model's tokens see those that come later");
  if (model_.spec().has_encoder()) clash("is not there for models with an encoder");
  if (distances_by_slot_) clash("has slots in two places, and the model counts distances by slot");
  bool any = false;
  for (std::size_t i = 0; i < kv_.size(); ++i) {
    const auto layer = static_cast<int>(i);
    if (kv_[i].parts.empty()) continue;
    const auto coded = [](const KvPart& part) { return KvPageLayout{.dtype = part.dtype}.coded(); };
    if (format_.residual() > 0 && std::none_of(kv_[i].parts.begin(), kv_[i].parts.end(), coded)) continue;
    any = true;
    const auto& attention = *model_.spec().layers[i].attention;
    if (format_.fetched_values() > 0 && (attention.latent || coded(kv_[i].parts.front())))
      clash(attention.latent ? "has values apart from keys, but with latent attention they are parts of them"
                             : "reads keys alone, which must not be coded",
            layer);
    if (format_.read_tokens() > 0) {
      const auto chunk = chunk_tokens(i);
      if (chunk % options_.kv.page_tokens != 0)
        clash("has chunks of " + std::to_string(chunk) + " tokens, which are not whole pages of kv.page_tokens " +
                  std::to_string(options_.kv.page_tokens),
              layer);
      if (format_.read_tokens() < 2 * chunk)
        clash("reads less than two chunks of " + std::to_string(chunk) + " tokens, the newest of which is always read", layer);
    }
    for (int other = 0; has_slow_memory() && other < model_.spec().layer_count(); ++other)
      if (other != layer && format_.source(other) == layer) clash("keeps slow memory for a layer that others read", layer);
    if (kv_[i].parts.size() > 1) clash("has heads of different formats in a layer that lies in two places", layer);
    if (model_.spec().layers[i].attention->window > 0)
      clash("cannot be used in a layer with a sliding window, which keeps the newest tokens alone", layer);
  }
  if (!any && format_.residual() > 0 && !pools_.empty())
    clash("keeps a residual, but no layer stores codes");
}

/// Pools of the tokens that are not codes yet.
void DecoderImpl::make_residual_pools() {
  if (format_.residual() == 0) return;
  std::vector<std::pair<KvPageLayout, std::int64_t>> needed;
  const auto most = (options_.kv.capacity_tokens + options_.kv.page_tokens - 1) / options_.kv.page_tokens;
  const auto pages = residual_pages(format_.residual(), options_.kv.rollback_tokens, options_.kv.page_tokens);
  const auto layout_of = [&](const LayerKv& kv) {
    auto layout = kv.parts.front().pool->layout();
    layout.dtype = format_.residual_dtype();
    return layout;
  };
  const auto wants = [&](const LayerKv& kv) { return !kv.parts.empty() && kv.parts.front().pool->layout().coded(); };
  for (const auto& kv : kv_) {
    if (!wants(kv)) continue;
    auto it = std::find_if(needed.begin(), needed.end(), [&](const auto& n) { return n.first == layout_of(kv); });
    if (it == needed.end()) it = needed.insert(needed.end(), {layout_of(kv), 0});
    // Sessions that are not full yet may be more than expected. Address space, not memory.
    it->second += std::min(most, 4 * options_.parallel * pages) * kv.groups;
  }
  for (const auto& [layout, count] : needed)
    pools_.push_back(std::make_shared<KvPool>(model_.backend(), layout, static_cast<std::uint32_t>(count)));
  for (auto& kv : kv_)
    for (std::size_t i = pools_.size() - needed.size(); i < pools_.size(); ++i)
      if (wants(kv) && pools_[i]->layout() == layout_of(kv)) kv.recent = pools_[i];
}

std::unique_ptr<LayerState> DecoderImpl::two_part_state(std::size_t layer, std::unique_ptr<PagedKv> part) const {
  const auto& kv = kv_[layer];
  auto options = layer_options(layer, kv.parts.front());
  if (kv.rebuilds) {
    auto rebuilt = options;
    rebuilt.evicts = false;
    rebuilt.memory_floats = 0;
    rebuilt.max_tokens = eviction_.traits().rebuild;
    return std::make_unique<RebuiltKv>(std::make_unique<PagedKv>(kv.parts.front().pool, kv.groups, rebuilt), std::move(part),
                                       model_.spec().dim);
  }
  if (kv.values)
    return std::make_unique<KeysFirstKv>(std::move(part), std::make_unique<PagedKv>(kv.values, kv.groups, options));
  if (kv.summaries) {
    const auto chunk = chunk_tokens(layer);
    options.max_tokens = options.max_tokens / chunk + 1;
    return std::make_unique<SummarizedKv>(std::make_unique<PagedKv>(kv.summaries, kv.groups, options), std::move(part), chunk);
  }
  if (kv.segments)
    return std::make_unique<SegmentedKv>(std::move(part), std::make_unique<PagedKv>(kv.parts.front().pool, kv.groups, options));
  options.window = format_.residual() + 1;
  return std::make_unique<ResidualKv>(std::move(part), std::make_unique<PagedKv>(kv.recent, kv.groups, options),
                                      format_.residual());
}

/// Tables of the slots that lie in the other place, one for each of tables_.
void DecoderImpl::prepare_earlier(const Batch& batch) {
  if (!has_two_parts() || slow_values_ || chunk_reads_) return;
  earlier_tables_.assign(tables_.size(), KvTable{});
  std::size_t at = 0;
  for (std::size_t l = 0; l < kv_.size(); ++l) {
    if (!kv_[l].two_parts()) {
      at += static_cast<std::size_t>(kv_[l].groups) * pieces_.size();
      continue;
    }
    for (const auto& piece : pieces_) {
      auto& state = static_cast<TwoPartKv&>(*entries(batch)[piece.entry].session->state().layer(static_cast<int>(l)));
      const auto slots = static_cast<std::int32_t>(state.earlier_slots());
      for (int g = 0; g < kv_[l].groups; ++g, ++at) {
        earlier_tables_[at] = {state.front().pages(g).data(), slots, 0};
        if (!kv_[l].recent || slots <= tables_[at].first) continue;
        // Tokens that are codes by now and can be taken back still.
        tables_[at].pages += (slots - tables_[at].first) / options_.kv.page_tokens;
        tables_[at].first = slots;
      }
    }
  }
}

/// Where the pages of a layer in two places are; the rows go to `op.kv`.
void DecoderImpl::set_earlier(AttentionOp& op, int layer) {
  const auto& kv = kv_[static_cast<std::size_t>(layer)];
  if (!kv.two_parts() || kv.values || kv.summaries) return;
  auto& earlier = earlier_kv_[static_cast<std::size_t>(layer)];
  const auto& pool = *kv.parts.front().pool;
  earlier = {pool.base(), pool.layout(), kv.groups, earlier_tables_.data() + first_table(layer)};
  op.kv.earlier = &earlier;
}

/// Rows of a piece that begins at `length` tokens of a session whose keys and values are divided there.
std::int64_t DecoderImpl::rows_until_divided(const Session& session) const noexcept {
  const std::int64_t page = options_.kv.page_tokens;
  const auto length = session.length();
  if (format_.residual() > 0) return std::max(format_.residual() + page, (length / page + 1) * page) - length;
  if (const auto every = eviction_.traits().rebuild_interval; eviction_.traits().rebuild > 0)
    return wants_rebuild(session) ? every - length % every : options_.batch_tokens;
  if (const auto all = std::max(format_.fetched_values(), format_.read_tokens()); all > 0)
    return length < all ? all - length : options_.batch_tokens;
  const auto prompt = session.state().prompt_length();
  return format_.segments() && length < prompt ? prompt - length : options_.batch_tokens;
}

/// Slow memory for values.
void DecoderImpl::make_slow_pools() {
  const auto count = format_.fetched_values();
  if (count == 0 || pools_.empty()) return;
  slow_values_ = std::make_unique<SlowValues>(model_.spec(), model_.backend(), count, options_.context);
  const bool in_file = !options_.kv.slow_directory.empty();
  for (std::size_t i = 0; i < kv_.size(); ++i) {
    if (kv_[i].parts.empty()) continue;
    const auto& keys = *kv_[i].parts.front().pool;
    auto layout = keys.layout();
    layout.values_in_keys = false;
    layout.head_dim_v = model_.spec().layers[i].attention->stored_dim_v();
    layout = SlowValues::values_of(layout);
    const auto it = std::find_if(slow_pools_.begin(), slow_pools_.end(), [&](const auto& pool) { return pool->layout() == layout; });
    if (it != slow_pools_.end()) {
      kv_[i].values = *it;
      continue;
    }
    // As many as there are pages of keys, which layers of this shape share.
    const auto pages = keys.capacity_pages();
    const auto bytes = layout.page_bytes() * pages;
    kv_[i].values = std::make_shared<KvPool>(model_.backend(), layout, pages,
                                             in_file ? make_file_memory(options_.kv.slow_directory, bytes)
                                                     : model_.backend()->allocate(bytes),
                                             in_file);
    slow_pools_.push_back(kv_[i].values);
  }
}

void DecoderImpl::prepare_slow_values(const Batch& batch) {
  if (!slow_values_) return;
  slow_values_->begin(segments_, kv_.size(), transfers_);
  auto& tables = value_tables_;
  for (std::size_t l = 0; l < kv_.size(); ++l) {
    if (kv_[l].parts.empty()) continue;
    tables.clear();
    for (const auto& piece : pieces_) {
      auto& state = static_cast<TwoPartKv&>(*entries(batch)[piece.entry].session->state().layer(static_cast<int>(l)));
      for (int g = 0; g < kv_[l].groups; ++g)
        tables.push_back({state.back().pages(g).data(), static_cast<std::int32_t>(state.back().slots(g) - piece.count), 0});
    }
    slow_values_->add(l, *kv_[l].parts.front().pool, *kv_[l].values, kv_[l].groups, tables_.data() + first_table(static_cast<int>(l)), tables);
  }
  slow_values_->end();
}

void DecoderImpl::emit_slow_attention(AttentionOp op, int layer, OpSink sink) {
  const auto index = static_cast<std::size_t>(layer);
  if (const auto dense = slow_values_->dense_segments(); !dense.empty()) {
    op.kv = slow_values_->plain(index);
    op.segments = dense.data();
    op.segment_count = static_cast<std::int32_t>(dense.size());
    sink(slow_values_->expand(index), layer);
    sink(op, layer);
  }
  sink(slow_values_->attend(index, op), layer);
}

/// Tokens of a layer's chunks.
std::int32_t DecoderImpl::chunk_tokens(std::size_t layer) const noexcept {
  const auto size = format_.chunk_tokens(static_cast<std::int32_t>(layer));
  return size > 0 ? size : options_.kv.page_tokens;
}

/// A pool of keys and values, in a file if chunks are read from one.
std::shared_ptr<KvPool> DecoderImpl::make_pool(const KvPageLayout& layout, std::uint32_t pages) const {
  const auto& directory = options_.kv.slow_directory;
  if (format_.read_tokens() == 0 || directory.empty()) return std::make_shared<KvPool>(model_.backend(), layout, pages);
  return std::make_shared<KvPool>(model_.backend(), layout, pages, make_file_memory(directory, layout.page_bytes() * pages), true);
}

/// The pools made so far lie in slow memory; those of summaries do not.
void DecoderImpl::make_summary_pools() {
  if (format_.read_tokens() == 0 || pools_.empty()) return;
  slow_pools_ = std::move(pools_);
  pools_.clear();
  chunk_reads_ = std::make_unique<ChunkReads>(format_.read_tokens(), kv_.size());
  std::vector<std::pair<KvPageLayout, std::int64_t>> needed;
  for (std::size_t i = 0; i < kv_.size(); ++i) {
    if (kv_[i].parts.empty()) continue;
    const auto layout = ChunkReads::summaries_of(kv_[i].parts.front().pool->layout());
    auto it = std::find_if(needed.begin(), needed.end(), [&](const auto& n) { return n.first == layout; });
    if (it == needed.end()) it = needed.insert(needed.end(), {layout, 0});
    // A session that has a page of summaries of its own has at least a page of keys and values of its own. Address space.
    it->second += (options_.kv.capacity_tokens + options_.kv.page_tokens - 1) / options_.kv.page_tokens * kv_[i].groups;
  }
  for (const auto& [layout, pages] : needed)
    pools_.push_back(std::make_shared<KvPool>(model_.backend(), layout, static_cast<std::uint32_t>(pages)));
  for (auto& kv : kv_)
    for (const auto& pool : pools_)
      if (!kv.parts.empty() && pool->layout() == ChunkReads::summaries_of(kv.parts.front().pool->layout())) kv.summaries = pool;
}

void DecoderImpl::prepare_chunk_reads(const Batch& batch) {
  if (!chunk_reads_) return;
  chunk_reads_->begin(segments_);
  for (std::size_t l = 0; l < kv_.size(); ++l) {
    if (kv_[l].parts.empty()) continue;
    value_tables_.clear();
    for (const auto& piece : pieces_) {
      auto& state = static_cast<TwoPartKv&>(*entries(batch)[piece.entry].session->state().layer(static_cast<int>(l)));
      for (int g = 0; g < kv_[l].groups; ++g)
        value_tables_.push_back({state.front().pages(g).data(), static_cast<std::int32_t>(state.front().slots(g)), 0});
    }
    chunk_reads_->add(l, *kv_[l].parts.front().pool, *kv_[l].summaries, kv_[l].groups, chunk_tokens(l),
                      tables_.data() + first_table(static_cast<int>(l)), value_tables_);
  }
  chunk_reads_->end();
}

void DecoderImpl::emit_chunk_attention(AttentionOp op, int layer, OpSink sink) {
  const auto index = static_cast<std::size_t>(layer);
  op.kv = kv_layer(layer, kv_[index].parts.front());
  if (const auto all = chunk_reads_->whole_segments(); !all.empty()) {
    op.kv.tables = chunk_reads_->whole_tables(index);
    op.segments = all.data();
    op.segment_count = static_cast<std::int32_t>(all.size());
    sink(op, layer);
  }
  const auto rows = chunk_reads_->row_segments();
  if (rows.empty()) return;
  op.kv.tables = chunk_reads_->row_tables(index);
  op.segments = rows.data();
  op.segment_count = static_cast<std::int32_t>(rows.size());
  op.mask = AttentionMask::none;  // what a row sees are the slots of its table
  sink(chunk_reads_->choose(index, op), layer);
  sink(op, layer);
}

}  // namespace skald::inline v0::detail
