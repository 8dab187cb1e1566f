// The network as a list of ops: the only place that knows how a ModelSpec is computed.
#include "decoder/core.hpp"

namespace skald::inline v0::detail {

Norm DecoderImpl::norm(const NormSpec& spec, Role weight, Role bias, int layer) const {
  return {spec.kind, spec.weight ? model_.vector(weight, layer) : nullptr,
          spec.bias ? model_.vector(bias, layer) : nullptr, spec.epsilon};
}

Matrix DecoderImpl::logits_matrix(const HeadRun& run) const noexcept {
  const auto vocabulary = model_.spec().vocabulary;
  return logits_.matrix(static_cast<std::size_t>(run.logits_row * vocabulary) * sizeof(float), run.count, vocabulary);
}

void DecoderImpl::emit(std::int64_t rows, OpSink sink) {
  std::int32_t times = 1;
  if (reads_ahead_)
    for (const auto& segment : segments_) times = std::max(times, std::min(segment.row_count, format_.iterations()));
  for (iteration_ = 0; iteration_ < times; ++iteration_) {
    emit_input(rows, sink);
    for (int layer = 0; layer < model_.spec().layer_count(); ++layer) emit_layer(layer, rows, sink);
  }
  emit_head(rows, sink);
}

void DecoderImpl::emit_layer(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec().layer(layer);
  emit_attention(layer, rows, sink);
  if (spec.recurrent) emit_recurrent(layer, rows, sink);
  // Parallel parts both read x, so what the network computes comes before attention is added.
  if (spec.parallel && spec.ffn) emit_ffn_inner(layer, rows, sink);
  emit_attention_output(layer, rows, sink);
  if (spec.recurrent) emit_recurrent_output(layer, rows, sink);
  if (spec.cross) emit_cross(layer, rows, sink);
  if (spec.ffn && spec.ffn->experts) {
    emit_experts(layer, rows, sink);
  } else if (spec.ffn && spec.ffn->token_shift) {
    emit_channel_mix(layer, rows, sink);
  } else if (spec.ffn) {
    if (!spec.parallel) emit_ffn_inner(layer, rows, sink);
    emit_ffn_output(layer, rows, sink);
  }
  if (spec.output_scale != 1.0F) sink(SoftcapOp{x_.matrix(0, rows, model_.spec().dim), spec.output_scale, 0.0F}, layer);
}

void DecoderImpl::emit_input(std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto* table = model_.weight(Role::token_embedding);
  if (!pass_has_embeddings_) {
    sink(EmbedOp{table, row_tokens_.data(), x_.matrix(0, rows, spec.dim), spec.embedding_scale}, -1);
  } else {
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      const std::int64_t begin = segments_[i].row_begin;
      const auto out = x_.matrix(static_cast<std::size_t>(begin * spec.dim) * sizeof(float), segments_[i].row_count,
                                 spec.dim);
      if (pieces_[i].embeddings) sink(UploadOp{row_embeddings_.data() + begin * spec.dim, out}, -1);
      else sink(EmbedOp{table, row_tokens_.data() + begin, out, spec.embedding_scale}, -1);
    }
  }
  const auto x = x_.matrix(0, rows, spec.dim);
  const auto add_rows = [&](Role role, const std::int32_t* indices) {
    const auto work = work_.matrix(0, rows, spec.dim);
    sink(EmbedOp{model_.weight(role), indices, work, 1.0F}, -1);
    sink(AddOp{x, work, 1.0F}, -1);
  };
  if (spec.token_types > 0) add_rows(Role::token_type_embedding, row_types_.data());
  if (spec.learned_positions) add_rows(Role::position_embedding, positions_.data());
  if (spec.embedding_norm.kind != NormKind::none)
    sink(NormOp{x, norm(spec.embedding_norm, Role::embedding_norm, Role::embedding_norm_bias, -1), x}, -1);
  for (std::size_t i = 0; i < spec.ropes.size(); ++i) {
    const auto& frequencies = ropes_[i];
    sink(RopeTableOp{positions_.data(), frequencies.inverse_frequencies.data(), frequencies.magnitude,
                     rope_tables_[i].matrix(0, rows, spec.ropes[i].dims)},
         -1);
  }
}

/// The layer's first entry of tables_ and score_pointers_.
std::size_t DecoderImpl::first_table(int layer) const noexcept {
  std::size_t table = 0;
  for (int l = 0; l < layer; ++l)
    table += static_cast<std::size_t>(kv_[static_cast<std::size_t>(l)].groups) * segments_.size();
  return table;
}

KvLayer DecoderImpl::kv_layer(int layer, const KvPart& part) const noexcept {
  if (layer >= model_.spec().layer_count()) return encoder_layer(layer);
  if (coupled_) return coupled_->plain(static_cast<std::size_t>(layer));
  const auto& recent = kv_[static_cast<std::size_t>(layer)].recent;
  const auto& pool = recent ? *recent : *part.pool;
  return {pool.base(), pool.layout(), part.groups,
          tables_.data() + first_table(layer) + static_cast<std::size_t>(part.first_group) * segments_.size()};
}

namespace {

/// The columns of some heads, `step` elements each.
Matrix heads_of(Matrix x, std::int64_t first, std::int64_t count, std::int64_t step) noexcept {
  if (x.data == nullptr) return x;
  x.data += first * step;
  x.cols = count * step;
  return x;
}

}  // namespace

/// Keys and values to the pages of each part of the layer.
void DecoderImpl::emit_store(const StoreKvOp& store, int layer, OpSink sink) {
  const auto shared = store.heads / store.kv_heads;
  const int owner = format_.source(layer);  // if another one, there are queries alone, to be rotated
  for (const auto& part : layer_kv(owner).parts) {
    auto op = store;
    op.kv = kv_layer(owner, part);
    op.segments = segments_.data();
    op.segment_count = static_cast<std::int32_t>(segments_.size());
    op.kv_heads = part.groups * op.kv.layout.heads;
    op.heads = op.kv_heads * shared;
    const auto first = part.first_group * op.kv.layout.heads;
    op.q = heads_of(store.q, first * shared, op.heads, op.kv.layout.head_dim_k);
    op.k = heads_of(store.k, first, op.kv_heads, op.kv.layout.head_dim_k);
    op.v = heads_of(store.v, first, op.kv_heads, op.kv.layout.head_dim_v);
    if (coupled_) sink(coupled_->expand(static_cast<std::size_t>(layer)), layer);
    sink(op, layer);
    if (slow_values_ && layer < model_.spec().layer_count()) sink(slow_values_->store(static_cast<std::size_t>(layer), store.v), layer);
    if (chunk_reads_ && chunk_reads_->busy()) sink(chunk_reads_->summarize(static_cast<std::size_t>(layer)), layer);
    if (coupled_) sink(coupled_->pack(static_cast<std::size_t>(layer)), layer);
  }
}

/// What an eviction policy asks of the scores beside plain probabilities, and memory to compute them fast.
void DecoderImpl::shape_scores(ScoreSink& sink, std::size_t first_table) {
  if (score_work_.bytes() > 0) {
    sink.work = reinterpret_cast<float*>(score_work_.address());
    sink.work_floats = static_cast<std::int64_t>(score_work_.bytes() / sizeof(float));
  }
  sink.before = score_before_.data() + first_table;
  if (!score_noise_.empty()) sink.noise = score_noise_.data() + first_table;
  if (!inverse_temperatures_.empty()) sink.inverse_temperatures = inverse_temperatures_.data();
}

/// Attention over the pages of each part of the layer, with scores if they are asked for.
void DecoderImpl::emit_attend(const AttentionOp& attend, int layer, OpSink sink) {
  if (slow_values_ && layer < model_.spec().layer_count()) return emit_slow_attention(attend, layer, sink);
  if (chunk_reads_ && chunk_reads_->busy()) return emit_chunk_attention(attend, layer, sink);
  const auto shared = attend.heads / attend.kv_heads;
  const int owner = format_.source(layer);
  std::size_t sink_index = 0;
  std::size_t groups_before = 0;
  for (int l = 0; l < std::min(owner, model_.spec().layer_count()); ++l) {
    sink_index += kv_[static_cast<std::size_t>(l)].parts.size();
    groups_before += static_cast<std::size_t>(kv_[static_cast<std::size_t>(l)].groups);
  }
  for (const auto& part : layer_kv(owner).parts) {
    auto op = attend;
    op.kv = kv_layer(owner, part);
    op.segments = segments_.data();
    op.segment_count = static_cast<std::int32_t>(segments_.size());
    if (owner > layer) {  // what a later layer has made of earlier tokens
      op.mask = AttentionMask::none;
      op.segments = row_segments_.data();
      op.segment_count = static_cast<std::int32_t>(row_segments_.size());
      op.kv.tables = row_tables_[iteration_ == 0 ? 0 : 1].data() +
                     (groups_before + static_cast<std::size_t>(part.first_group)) * row_segments_.size();
    }
    if (owner < model_.spec().layer_count()) set_earlier(op, owner);
    op.kv_heads = part.groups * op.kv.layout.heads;
    op.heads = op.kv_heads * shared;
    const auto first = std::int64_t{part.first_group} * op.kv.layout.heads * shared;
    op.q = heads_of(attend.q, first, op.heads, op.kv.layout.head_dim_k);
    op.out = heads_of(attend.out, first, op.heads, op.kv.layout.head_dim_v);
    if (op.sinks != nullptr) op.sinks += first;
    if (op.slopes != nullptr) op.slopes += first;
    if (op.bias != nullptr) op.bias += first * (2 * std::int64_t{op.bias_reach} + 1);
    if (scoring_ || policy_scoring_) {
      auto& sink_of_part = score_sinks_[sink_index++];
      sink_of_part = score_template_;
      const auto table = first_table(owner) + static_cast<std::size_t>(part.first_group) * segments_.size();
      sink_of_part.scores = score_pointers_.data() + table;
      if (policy_scoring_) shape_scores(sink_of_part, table);
      op.sink = &sink_of_part;
    }
    sink(op, layer);
  }
}

void DecoderImpl::emit_attention(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layer(layer);
  if (!layer_spec.attention) return;
  const auto& attention = *layer_spec.attention;
  if (attention.latent) return emit_latent_attention(layer, rows, sink);
  const auto x = x_.matrix(0, rows, spec.dim);
  const auto q = q_.matrix(0, rows, attention.q_cols());
  const auto k = k_.matrix(0, rows, attention.k_cols());
  const auto v = v_.matrix(0, rows, attention.v_cols());
  const auto out = attention_.matrix(0, rows, attention.output_cols());

  LinearOp project{};
  project.x = x;
  project.norm = norm(layer_spec.attention_norm, Role::attention_norm, Role::attention_norm_bias, layer);
  const bool own = format_.source(layer) == layer;
  project.part_count = own ? 3 : 1;
  project.parts = {{{model_.weight(Role::query, layer), model_.vector(Role::query_bias, layer), q},
                    {model_.weight(Role::key, layer), model_.vector(Role::key_bias, layer), k},
                    {model_.weight(Role::value, layer), model_.vector(Role::value_bias, layer), v}}};
  if (kv_[static_cast<std::size_t>(std::min(layer, spec.layer_count() - 1))].rebuilds && layer < spec.layer_count())
    sink(DownloadOp{x, entered_host_[static_cast<std::size_t>(layer)].data()}, layer);
  sink(project, layer);
  if (own) emit_gates(layer, x, project.norm, sink);
  if (attention.clamp > 0.0F) sink(ClampOp{q, attention.clamp}, layer);
  if (attention.clamp > 0.0F && own)
    for (const auto& each : {k, v}) sink(ClampOp{each, attention.clamp}, layer);
  // A norm of the whole projection, or one with a bias, is an op of its own.
  const bool whole = attention.qk_norm_scope != QkNormScope::head;
  const bool each_head = attention.qk_norm_scope == QkNormScope::each_head;
  const auto q_norm = norm(attention.q_norm, Role::query_norm, Role::query_norm_bias, layer);
  const auto k_norm = norm(attention.k_norm, Role::key_norm, Role::key_norm_bias, layer);
  if (whole && q_norm.kind != NormKind::none) sink(NormOp{q, q_norm, q, each_head ? attention.heads : 1}, layer);
  if (whole && own && k_norm.kind != NormKind::none)
    sink(NormOp{k, k_norm, k, each_head ? attention.kv_heads : 1}, layer);

  StoreKvOp store{};
  store.q = q;
  store.k = own ? k : Matrix{nullptr, rows, 0, 0};
  store.v = own ? v : Matrix{nullptr, rows, 0, 0};
  store.heads = attention.heads;
  store.kv_heads = attention.kv_heads;
  if (!whole) {
    store.q_norm = q_norm;
    store.k_norm = k_norm;
  }
  if (attention.rope >= 0) {
    const auto& rope = spec.ropes[static_cast<std::size_t>(attention.rope)];
    store.rope = rope.kind;
    store.rope_dims = rope.dims;
    store.rope_table = rope_tables_[static_cast<std::size_t>(attention.rope)].matrix(0, rows, rope.dims);
  }
  emit_store(store, layer, sink);
  emit_rebuild(project, store, layer, sink);

  AttentionOp attend{};
  attend.q = q;
  attend.out = out;
  attend.heads = attention.heads;
  attend.kv_heads = attention.kv_heads;
  attend.scale = attention.scale;
  attend.softcap = attention.softcap;
  attend.window = attention.window;
  attend.mask = attention.causal ? AttentionMask::causal : AttentionMask::full;
  attend.sinks = model_.vector(Role::attention_sinks, layer);
  attend.slopes = slopes_[static_cast<std::size_t>(layer)];
  attend.bias = relative_[static_cast<std::size_t>(layer)];
  attend.bias_reach = attention.relative_buckets > 0 ? attention.relative_distance : 0;
  emit_attend(attend, layer, sink);
}

/// Which slots the layer's rows no longer see, by learned gates.
void DecoderImpl::emit_gates(int layer, const Matrix& x, const Norm& norm, OpSink sink) {
  if (static_cast<std::size_t>(layer) >= gate_weights_.size()) return;  // a layer of an encoder, which drops nothing
  const auto& weight = gate_weights_[static_cast<std::size_t>(layer)];
  if (!weight) return;
  const auto& gates = *eviction_.gates();
  LinearOp project{};
  project.x = x;
  project.norm = norm;
  project.part_count = 1;
  project.parts[0] = {weight.get(), nullptr, gates_.matrix(0, x.rows, 2 * std::int64_t{gates.width})};
  sink(project, layer);
  // Parts of a layer hold the same tokens, each with keys of its own.
  std::size_t first = 0;
  for (int l = 0; l < layer; ++l) first += kv_[static_cast<std::size_t>(l)].parts.size();
  for (std::size_t p = 0; p < kv_[static_cast<std::size_t>(layer)].parts.size(); ++p) {
    DropOp drop{};
    drop.gates = project.parts[0].out;
    drop.bias = gates.layers[static_cast<std::size_t>(layer)].bias;
    drop.tables = drop_tables_.empty() ? nullptr : drop_tables_.data() + (first + p) * segments_.size();
    drop.segments = segments_.data();
    drop.segment_count = static_cast<std::int32_t>(segments_.size());
    sink(drop, layer);
  }
}

/// x += scale * post_norm(weight y), then the norm of x.
void DecoderImpl::emit_sum(const ResidualSum& sum, int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto x = x_.matrix(0, rows, spec.dim);
  const bool direct = sum.post_norm.kind == NormKind::none && !sum.input_is_x;
  LinearOp project{};
  project.x = sum.input;
  project.norm = sum.input_norm;
  project.parts[0] = {sum.weight, sum.bias, direct ? x : work_.matrix(0, rows, spec.dim)};
  const float scale = spec.layer(layer).residual_scale;
  if (direct) {
    project.epilogue = LinearEpilogue::add;
    project.scale = scale;
    sink(project, layer);
  } else {
    const auto work = project.parts[0].out;
    sink(project, layer);
    if (sum.post_norm.kind != NormKind::none) sink(NormOp{work, sum.post_norm, work}, layer);
    sink(AddOp{x, work, scale}, layer);
  }
  if (sum.residual_norm.kind != NormKind::none) sink(NormOp{x, sum.residual_norm, x}, layer);
}

void DecoderImpl::emit_attention_output(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layer(layer);
  if (!layer_spec.attention && !layer_spec.linear_attention) return;
  ResidualSum sum{};
  if (layer_spec.attention) {
    sum.input = attention_.matrix(0, rows, layer_spec.attention->output_cols());
  } else {
    sum.input = x_.matrix(0, rows, spec.dim);
    sum.input_norm = norm(layer_spec.attention_norm, Role::attention_norm, Role::attention_norm_bias, layer);
    sum.input_is_x = true;
  }
  sum.weight = model_.weight(Role::attention_output, layer);
  sum.bias = model_.vector(Role::attention_output_bias, layer);
  sum.post_norm =
      norm(layer_spec.attention_post_norm, Role::attention_post_norm, Role::attention_post_norm_bias, layer);
  sum.residual_norm = norm(layer_spec.attention_residual_norm, Role::attention_residual_norm,
                           Role::attention_residual_norm_bias, layer);
  emit_sum(sum, layer, rows, sink);
}

void DecoderImpl::emit_ffn_inner(int layer, std::int64_t rows, OpSink sink) {
  const auto& layer_spec = model_.spec().layer(layer);
  const auto& ffn = *layer_spec.ffn;
  const auto inner = ffn_.matrix(0, rows, ffn.width);
  const LinearPart up{model_.weight(Role::ffn_up, layer), model_.vector(Role::ffn_up_bias, layer), inner};

  LinearOp widen{};
  widen.x = x_.matrix(0, rows, model_.spec().dim);
  widen.norm = norm(layer_spec.ffn_norm, Role::ffn_norm, Role::ffn_norm_bias, layer);
  widen.activation = ffn.activation;
  if (ffn.gated) {
    widen.part_count = 2;
    widen.parts[0] = {model_.weight(Role::ffn_gate, layer), model_.vector(Role::ffn_gate_bias, layer), inner};
    widen.parts[1] = up;
    widen.epilogue = LinearEpilogue::gated;
  } else {
    widen.parts[0] = up;
  }
  sink(widen, layer);
}

void DecoderImpl::emit_ffn_output(int layer, std::int64_t rows, OpSink sink) {
  const auto& layer_spec = model_.spec().layer(layer);
  ResidualSum sum{};
  sum.input = ffn_.matrix(0, rows, layer_spec.ffn->width);
  sum.weight = model_.weight(Role::ffn_down, layer);
  sum.bias = model_.vector(Role::ffn_down_bias, layer);
  sum.post_norm = norm(layer_spec.ffn_post_norm, Role::ffn_post_norm, Role::ffn_post_norm_bias, layer);
  sum.residual_norm =
      norm(layer_spec.ffn_residual_norm, Role::ffn_residual_norm, Role::ffn_residual_norm_bias, layer);
  emit_sum(sum, layer, rows, sink);
}

void DecoderImpl::emit_experts(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layer(layer);
  const auto& ffn = *layer_spec.ffn;
  const auto& chosen = *ffn.experts;
  const auto x = x_.matrix(0, rows, spec.dim);
  const auto logits = router_.matrix(0, rows, chosen.count);

  LinearOp route{};
  route.x = x;
  route.norm = norm(layer_spec.ffn_norm, Role::ffn_norm, Role::ffn_norm_bias, layer);
  route.parts[0] = {model_.weight(Role::expert_router, layer), model_.vector(Role::expert_router_bias, layer), logits};
  sink(route, layer);
  // What reads x comes before what adds to it.
  const auto inner_rows = rows * chosen.used;
  const auto shared = ffn_.matrix(static_cast<std::size_t>(inner_rows * ffn.width) * sizeof(float), rows,
                                  chosen.shared_width);
  if (chosen.shared_width > 0) emit_shared_inner(layer, route.norm, x, shared, sink);

  ExpertsOp experts{};
  experts.x = x;
  experts.norm = route.norm;
  experts.logits = logits;
  experts.used = chosen.used;
  experts.gating = chosen.gating;
  experts.renormalize = chosen.renormalize;
  experts.scale = chosen.scale * layer_spec.residual_scale;
  experts.gate = model_.weight(Role::expert_gate, layer);
  experts.up = model_.weight(Role::expert_up, layer);
  experts.down = model_.weight(Role::expert_down, layer);
  experts.activation = ffn.activation;
  experts.inner = ffn_.matrix(0, inner_rows, ffn.width);
  experts.products = experts_.matrix(0, inner_rows, spec.dim);
  experts.out = x;
  experts.selection_bias = model_.vector(Role::expert_selection_bias, layer);
  experts.groups = chosen.groups;
  experts.groups_used = chosen.groups_used;
  experts.group_best = chosen.group_best;
  experts.gate_bias = model_.vector(Role::expert_gate_bias, layer);
  experts.up_bias = model_.vector(Role::expert_up_bias, layer);
  experts.down_bias = model_.vector(Role::expert_down_bias, layer);
  experts.gate_alpha = chosen.gate_alpha;
  experts.gate_limit = chosen.gate_limit;
  sink(experts, layer);

  if (chosen.shared_width == 0) return;
  LinearOp narrow{};
  narrow.x = shared;
  narrow.parts[0] = {model_.weight(Role::shared_down, layer), nullptr, x};
  narrow.epilogue = LinearEpilogue::add;
  narrow.scale = layer_spec.residual_scale;
  sink(narrow, layer);
}

/// The inner row of the network that all tokens share, with its gate applied.
void DecoderImpl::emit_shared_inner(int layer, const Norm& norm, const Matrix& x, const Matrix& inner, OpSink sink) {
  const auto& ffn = *model_.spec().layer(layer).ffn;
  LinearOp widen{};
  widen.x = x;
  widen.norm = norm;
  widen.part_count = 2;
  widen.parts[0] = {model_.weight(Role::shared_gate, layer), nullptr, inner};
  widen.parts[1] = {model_.weight(Role::shared_up, layer), nullptr, inner};
  widen.epilogue = LinearEpilogue::gated;
  widen.activation = ffn.activation;
  sink(widen, layer);
  if (!ffn.experts->shared_gate) return;
  const auto logits = router_.matrix(static_cast<std::size_t>(x.rows * ffn.experts->count) * sizeof(float), x.rows, 1);
  LinearOp gate{};
  gate.x = x;
  gate.norm = norm;
  gate.parts[0] = {model_.weight(Role::shared_router, layer), nullptr, logits};
  sink(gate, layer);
  sink(GateRowsOp{inner, logits}, layer);
}

void DecoderImpl::emit_head(std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  for (const auto& run : head_runs_) {
    const auto logits = logits_matrix(run);
    LinearOp head{};
    head.x = x_.matrix(0, rows, spec.dim);
    head.norm = norm(spec.final_norm, Role::final_norm, Role::final_norm_bias, -1);
    head.rows = head_rows_.data() + run.begin;
    head.row_count = static_cast<std::int32_t>(run.count);
    head.parts[0] = {model_.weight(Role::head), model_.vector(Role::head_bias), logits};
    if (spec.logit_softcap <= 0.0F) head.scale = spec.logit_scale;
    sink(head, -1);
    if (spec.logit_softcap > 0.0F) sink(SoftcapOp{logits, spec.logit_scale, spec.logit_softcap}, -1);
  }
}

/// Hidden states to the host, each piece to its rows of the batch.
void DecoderImpl::emit_hidden(const Batch& batch, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto x = x_.matrix(0, rows, spec.dim);
  if (spec.final_norm.kind != NormKind::none)
    sink(NormOp{x, norm(spec.final_norm, Role::final_norm, Role::final_norm_bias, -1), x}, -1);
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const std::int64_t row = entries(batch)[pieces_[i].entry].begin + pieces_[i].first;
    const auto offset = static_cast<std::size_t>(segments_[i].row_begin * spec.dim) * sizeof(float);
    sink(DownloadOp{x_.matrix(offset, segments_[i].row_count, spec.dim), hidden_->data() + row * spec.dim}, -1);
  }
}

}  // namespace skald::inline v0::detail
