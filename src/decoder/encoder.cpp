// Networks with an encoder: reading a text, what layers keep of it, and the attention to it.
#include <string>

#include "decoder/core.hpp"

namespace skald::inline v0::detail {

namespace {

constexpr std::string_view where = "decoder.encode";

}  // namespace

void DecoderImpl::check_encode(const Session& session, std::span<const TokenId> tokens) const {
  const auto& spec = model_.spec();
  const auto refuse = [](const std::string& message) { throw UsageError(where, message); };
  if (!owns(session)) refuse("the session belongs to another decoder");
  if (!spec.has_encoder())
    throw IncompatibleError(where, "architecture '" + spec.architecture +
                                       "' has no encoder: give the tokens to forward() instead");
  if (session.state().pending() != 0) refuse("the session has a token tree that was neither accepted nor truncated");
  if (session.length() != 0)
    refuse("the session holds " + std::to_string(session.length()) +
           " tokens that were computed for another input: clear() or truncate(0) it first");
  const auto most = std::min(options_.batch_tokens, options_.context);
  if (tokens.empty() || static_cast<std::int64_t>(tokens.size()) > most)
    refuse(std::to_string(tokens.size()) + " tokens are given, 1 to " + std::to_string(most) +
           " are allowed (they see each other, so batch_tokens and context bound them)");
  for (const TokenId token : tokens)
    if (token < 0 || token >= spec.vocabulary)
      refuse("token id " + std::to_string(token) + " is not inside the vocabulary of " +
             std::to_string(spec.vocabulary));
}

std::vector<std::unique_ptr<LayerState>> DecoderImpl::new_source(std::int64_t most_tokens) const {
  std::vector<std::unique_ptr<LayerState>> source;
  if (!model_.spec().has_encoder()) return source;
  source.resize(source_kv_.size());
  for (std::size_t i = 0; i < source_kv_.size(); ++i)
    for (const auto& part : source_kv_[i].parts)  // there is one at most
      source[i] = std::make_unique<PagedKv>(part.pool, part.groups, PagedKvOptions{.max_tokens = most_tokens});
  return source;
}

void DecoderImpl::encode(Session& session, std::span<const TokenId> tokens, const std::stop_token& stop,
                         std::vector<float>* hidden) {
  check_encode(session, tokens);
  throw_if_stopped(stop, where);
  const auto& spec = model_.spec();
  const auto count = static_cast<std::int64_t>(tokens.size());
  auto source = new_source(count);
  for (auto& layer : source)
    if (layer) layer->append(count);
  // Pages for one layer of the encoder, which all its layers of that shape use.
  std::vector<std::unique_ptr<PagedKv>> pages;
  for (const auto& place : encoder_kv_) {
    const auto& part = place.parts.front();
    pages.push_back(std::make_unique<PagedKv>(part.pool, part.groups, PagedKvOptions{.max_tokens = count}));
    pages.back()->append(count);
  }

  pieces_.assign(1, Piece{&session, 0, 0, count, 0, 0, true, false});
  begin_adapters();
  segments_.assign(1, Segment{0, static_cast<std::int32_t>(count), nullptr});
  pass_has_embeddings_ = false;
  scoring_ = policy_scoring_ = false;
  for (std::int64_t i = 0; i < count; ++i) {
    row_tokens_[static_cast<std::size_t>(i)] = tokens[static_cast<std::size_t>(i)];
    positions_[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  }
  encoder_tables_.clear();
  for (const auto& each : pages)
    for (int g = 0; g < each->groups(); ++g) encoder_tables_.push_back({each->pages(g).data(), 0, 0});
  source_tables_.clear();
  for (auto& layer : source) {
    if (!layer) continue;
    const auto& kv = static_cast<const PagedKv&>(*layer);
    for (int g = 0; g < kv.groups(); ++g) source_tables_.push_back({kv.pages(g).data(), 0, 0});
  }
  try {
    const auto send = [&](const Op& op, int) { enqueue(op); };
    emit_encoder(count, send);
    emit_source(count, send);
    if (hidden) {
      hidden->assign(static_cast<std::size_t>(count * spec.dim), 0.0F);
      const auto x = x_.matrix(0, count, spec.dim);
      stream_->enqueue(NormOp{x, norm(spec.encoder_norm, Role::encoder_norm, Role::encoder_norm, -1), x});
      stream_->enqueue(DownloadOp{x, hidden->data()});
    }
    stream_->synchronize(stop);
  } catch (...) {
    drop_ops();
    throw;
  }
  for (auto& layer : source)
    if (layer) layer->commit();
  session.state().set_source(std::move(source));
  ++counters_.encoder_passes;
  counters_.encoded_tokens += static_cast<std::uint64_t>(count);
}

void DecoderImpl::emit_encoder(std::int64_t rows, OpSink sink) {
  emit_input(rows, sink);
  const int first = model_.spec().layer_count();
  for (int layer = first; layer < model_.spec().all_layer_count(); ++layer) emit_layer(layer, rows, sink);
}

/// What every layer keeps of the encoder's result.
void DecoderImpl::emit_source(std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  for (int layer = 0; layer < spec.layer_count(); ++layer) {
    const auto& cross = spec.layer(layer).cross;
    if (!cross) continue;
    LinearOp project{};
    project.x = x_.matrix(0, rows, spec.dim);
    project.norm = norm(spec.encoder_norm, Role::encoder_norm, Role::encoder_norm, -1);
    project.part_count = 2;
    project.parts[0] = {model_.weight(Role::cross_key, layer), nullptr, k_.matrix(0, rows, cross->k_cols())};
    project.parts[1] = {model_.weight(Role::cross_value, layer), nullptr, v_.matrix(0, rows, cross->v_cols())};
    sink(project, layer);
    StoreKvOp store{};
    store.k = project.parts[0].out;
    store.v = project.parts[1].out;
    store.heads = cross->heads;
    store.kv_heads = cross->kv_heads;
    store.kv = source_layer(layer);
    store.segments = segments_.data();
    store.segment_count = static_cast<std::int32_t>(segments_.size());
    sink(store, layer);
  }
}

KvLayer DecoderImpl::source_layer(int layer) const noexcept {
  std::size_t table = 0;
  for (int l = 0; l < layer; ++l)
    table += static_cast<std::size_t>(source_kv_[static_cast<std::size_t>(l)].groups) * segments_.size();
  const auto& part = source_kv_[static_cast<std::size_t>(layer)].parts.front();
  return {part.pool->base(), part.pool->layout(), part.groups, source_tables_.data() + table};
}

/// Where a layer of either stack keeps its keys and values.
const LayerKv& DecoderImpl::layer_kv(int layer) const noexcept {
  const auto index = static_cast<std::size_t>(layer);
  return index < kv_.size() ? kv_[index] : encoder_kv_[encoder_shapes_[index - kv_.size()]];
}

/// All heads in the format that no rule is about: rules are about the tokens of a sequence.
std::vector<KvPart> DecoderImpl::one_kv_part(const AttentionSpec& attention, std::size_t layer) const {
  const auto per_group = options_.kv.heads_per_group;
  if (per_group < 1 || attention.kv_heads % per_group != 0)
    throw IncompatibleError("decoder.decoder",
                            "kv.heads_per_group " + std::to_string(per_group) + " does not divide the " +
                                std::to_string(attention.kv_heads) + " KV heads",
                            {.layer = static_cast<int>(layer)});
  return {KvPart{nullptr, 0, attention.kv_heads / per_group, format_.dtype()}};
}

/// The pages that the encoder's layers of one shape use one after the other.
KvLayer DecoderImpl::encoder_layer(int layer) const noexcept {
  const auto shape = encoder_shapes_[static_cast<std::size_t>(layer - model_.spec().layer_count())];
  std::size_t table = 0;
  for (std::size_t i = 0; i < shape; ++i) table += static_cast<std::size_t>(encoder_kv_[i].groups);
  const auto& part = encoder_kv_[shape].parts.front();
  return {part.pool->base(), part.pool->layout(), part.groups, encoder_tables_.data() + table};
}

/// x += cross(cross_norm(x)).
void DecoderImpl::emit_cross(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layer(layer);
  const auto& cross = *layer_spec.cross;
  LinearOp project{};
  project.x = x_.matrix(0, rows, spec.dim);
  project.norm = norm(layer_spec.cross_norm, Role::cross_norm, Role::cross_norm, layer);
  project.parts[0] = {model_.weight(Role::cross_query, layer), nullptr, q_.matrix(0, rows, cross.q_cols())};
  sink(project, layer);
  AttentionOp attend{};
  attend.q = project.parts[0].out;
  attend.out = attention_.matrix(0, rows, cross.output_cols());
  attend.heads = cross.heads;
  attend.kv_heads = cross.kv_heads;
  attend.scale = cross.scale;
  attend.softcap = cross.softcap;
  attend.mask = AttentionMask::none;
  attend.kv = source_layer(layer);
  attend.segments = segments_.data();
  attend.segment_count = static_cast<std::int32_t>(segments_.size());
  sink(attend, layer);
  ResidualSum sum{};
  sum.input = attend.out;
  sum.weight = model_.weight(Role::cross_output, layer);
  emit_sum(sum, layer, rows, sink);
}

/// Appends, for each layer, the tables of the pieces' encoded inputs.
void DecoderImpl::prepare_source_tables() {
  source_tables_.clear();
  for (int l = 0; l < model_.spec().layer_count(); ++l) {
    if (source_kv_[static_cast<std::size_t>(l)].parts.empty()) continue;
    for (const auto& piece : pieces_) {
      const auto& kv = static_cast<const PagedKv&>(*piece.session->state().source_layer(l));
      for (int g = 0; g < kv.groups(); ++g)
        source_tables_.push_back({kv.pages(g).data(), static_cast<std::int32_t>(kv.slots(g)), 0});
    }
  }
}

/// Relative positions as numbers for each head and distance.
void DecoderImpl::make_relative_biases() {
  const auto& spec = model_.spec();
  const auto layers = static_cast<std::size_t>(spec.all_layer_count());
  relative_.assign(layers, nullptr);
  std::vector<float> values;
  std::vector<std::size_t> begin(layers);
  for (std::size_t i = 0; i < layers; ++i) {
    const auto& attention = spec.layer(static_cast<int>(i)).attention;
    if (!attention || attention->relative_buckets == 0) continue;
    const auto first = i < spec.layers.size() ? 0 : spec.layers.size();  // of its stack
    if (!attention->relative_table) {
      begin[i] = begin[first];
      continue;
    }
    begin[i] = values.size();
    std::vector<float> table(static_cast<std::size_t>(attention->relative_buckets * attention->heads));
    model_.backend()->read(std::as_writable_bytes(std::span(table)),
                           reinterpret_cast<const std::byte*>(model_.vector(Role::relative_bias, static_cast<int>(i))));
    const auto reach = attention->relative_distance;
    for (std::int32_t head = 0; head < attention->heads; ++head)
      for (std::int32_t distance = -reach; distance <= reach; ++distance)
        values.push_back(table[static_cast<std::size_t>(
            relative_bucket(distance, attention->relative_buckets, reach, attention->causal) * attention->heads + head)]);
  }
  if (values.empty()) return;
  relative_memory_ = model_.backend()->allocate(values.size() * sizeof(float));
  model_.backend()->write(relative_memory_.address(), std::as_bytes(std::span(values)));
  for (std::size_t i = 0; i < layers; ++i) {
    const auto& attention = spec.layer(static_cast<int>(i)).attention;
    if (attention && attention->relative_buckets > 0)
      relative_[i] = reinterpret_cast<const float*>(relative_memory_.address()) + begin[i];
  }
}

}  // namespace skald::inline v0::detail
