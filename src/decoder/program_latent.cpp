// Multi-head latent attention as ops. Keys in the cache are [latent row, rotated part]; a value is the latent row.
#include "decoder/core.hpp"

namespace skald::inline v0::detail {

void DecoderImpl::emit_latent_attention(int layer, std::int64_t rows, OpSink sink) {
  const auto& spec = model_.spec();
  const auto& layer_spec = spec.layer(layer);
  const auto& attention = *layer_spec.attention;
  const auto& latent = *attention.latent;
  const auto x = x_.matrix(0, rows, spec.dim);
  const std::int64_t heads = attention.heads;
  const std::int64_t key_dim = attention.stored_dim_k();
  const auto k = k_.matrix(0, rows, key_dim);
  const auto queries = q_.matrix(0, rows, attention.q_cols());

  LinearOp project{};
  project.x = x;
  project.norm = norm(layer_spec.attention_norm, Role::attention_norm, Role::attention_norm_bias, layer);
  project.part_count = 2;
  project.parts[0] = {model_.weight(Role::latent_down, layer), nullptr, k};
  if (latent.query_rank == 0) {
    project.parts[1] = {model_.weight(Role::query, layer), nullptr, queries};
    sink(project, layer);
  } else {
    const auto narrow = v_.matrix(0, rows, latent.query_rank);
    project.parts[1] = {model_.weight(Role::query_down, layer), nullptr, narrow};
    sink(project, layer);
    LinearOp widen{};
    widen.x = narrow;
    widen.norm = norm(latent.query_norm, Role::query_down_norm, Role::query_down_norm, layer);
    widen.parts[0] = {model_.weight(Role::query, layer), nullptr, queries};
    sink(widen, layer);
  }
  emit_gates(layer, x, project.norm, sink);
  auto row = k;
  row.cols = latent.rank;
  sink(NormOp{row, norm(latent.norm, Role::latent_norm, Role::latent_norm, layer), row}, layer);

  // The queries' products with keys W c are those of W^T q with c.
  HeadLinearOp absorb{};
  absorb.x = queries;
  absorb.x_step = attention.head_dim_k;
  absorb.weight = model_.weight(Role::latent_key, layer);
  absorb.heads = attention.heads;
  absorb.tail = latent.rope_dims;
  absorb.out = attention_.matrix(0, rows, heads * key_dim);
  absorb.out_step = key_dim;
  sink(absorb, layer);

  StoreKvOp store{};
  store.q = absorb.out;
  store.k = k;
  store.heads = attention.heads;
  store.kv_heads = attention.kv_heads;
  store.rope = spec.ropes[static_cast<std::size_t>(attention.rope)].kind;
  store.rope_dims = latent.rope_dims;
  store.rope_offset = latent.rank;
  store.rope_table = rope_tables_[static_cast<std::size_t>(attention.rope)].matrix(0, rows, latent.rope_dims);
  emit_store(store, layer, sink);

  AttentionOp attend{};
  attend.q = absorb.out;
  attend.out = q_.matrix(0, rows, heads * latent.rank);
  attend.heads = attention.heads;
  attend.kv_heads = attention.kv_heads;
  attend.scale = attention.scale;
  attend.softcap = attention.softcap;
  attend.window = attention.window;
  emit_attend(attend, layer, sink);

  HeadLinearOp values{};
  values.x = attend.out;
  values.x_step = latent.rank;
  values.weight = model_.weight(Role::latent_value, layer);
  values.heads = attention.heads;
  values.out = attention_.matrix(0, rows, attention.output_cols());
  values.out_step = attention.head_dim_v;
  sink(values, layer);
}

}  // namespace skald::inline v0::detail
