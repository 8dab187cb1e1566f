#include <algorithm>
#include <unordered_map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <skald/core/error.hpp>
#include <skald/model/architecture.hpp>

#include "model/spec_reading.hpp"

namespace skald::inline v0 {

namespace {

// Collects the bindings of a spec in the order of a forward pass.
class Binder {
 public:
  Binder(const ModelSpec& spec, const TensorNames* names) : spec_(spec), names_(names) {}

  std::vector<TensorBinding> run() && {
    matrix(Role::token_embedding, "token_embd.weight", spec_.vocabulary, spec_.dim);
    if (spec_.token_types > 0)
      matrix(Role::token_type_embedding, "token_types.weight", spec_.token_types, spec_.dim);
    if (spec_.learned_positions)
      matrix(Role::position_embedding, "position_embd.weight", spec_.context_length, spec_.dim);
    norm(spec_.embedding_norm, Role::embedding_norm, Role::embedding_norm_bias, "token_embd_norm", spec_.dim);
    rope_factors();
    const TensorNames usual;
    const TensorNames& names = names_ ? *names_ : usual;
    // The encoder's layers are numbered behind the others, which it comes before.
    layers(spec_.encoder, spec_.layer_count(), names.encoder_layers);
    norm(spec_.encoder_norm, Role::encoder_norm, Role::encoder_norm, "enc.output_norm", spec_.dim);
    layers(spec_.layers, 0, names.layers);
    norm(spec_.final_norm, Role::final_norm, Role::final_norm_bias, "output_norm", spec_.dim);
    if (spec_.has_head && !spec_.tied_head) matrix(Role::head, "output.weight", spec_.vocabulary, spec_.dim);
    vector_if(spec_.has_head && spec_.head_bias, Role::head_bias, "output.bias", spec_.vocabulary);
    if (spec_.classifier) classifier(*spec_.classifier);
    return std::move(bindings_);
  }

 private:
  void add(Role role, std::string_view name, std::vector<std::int64_t> shape, TensorUse use) {
    TensorBinding& binding = bindings_.emplace_back();
    binding.role = role;
    binding.layer = layer_;
    binding.name = prefix_ + std::string(name);
    binding.shape = std::move(shape);
    binding.use = use;
    if (!names_) return;
    const auto own = std::ranges::find(names_->roles, role, &std::pair<Role, std::vector<std::string>>::first);
    if (own == names_->roles.end() || own->second.empty()) return;
    for (const std::string& each : own->second) binding.other_names.push_back(prefix_ + each);
    binding.name = std::move(binding.other_names.front());
    binding.other_names.erase(binding.other_names.begin());
  }
  void matrix(Role role, std::string_view name, std::int64_t rows, std::int64_t cols) {
    add(role, name, {rows, cols}, TensorUse::matrix);
  }
  void stack(Role role, std::string_view name, std::int64_t matrices, std::int64_t rows, std::int64_t cols) {
    matrix(role, name, matrices * rows, cols);
    bindings_.back().matrices = matrices;
  }
  void classifier(const ClassifierSpec& classifier) {
    const auto part = [&](Role matrix, Role bias, const std::string& name, std::int64_t rows, std::int64_t cols, bool biased) {
      if (rows == 0) return;
      add(matrix, name + ".weight", {rows, cols}, TensorUse::host_matrix);
      if (biased) add(bias, name + ".bias", {rows}, TensorUse::host);
    };
    part(Role::classifier_dense, Role::classifier_dense_bias, "cls", classifier.dense, spec_.dim, classifier.dense_bias);
    part(Role::classifier_output, Role::classifier_output_bias, "cls.output", classifier.output,
         classifier.dense > 0 ? classifier.dense : spec_.dim, classifier.output_bias);
  }
  void vector_if(bool present, Role role, std::string_view name, std::int64_t elements) {
    if (present) add(role, name, {elements}, TensorUse::vector);
  }
  /// Says that the latest binding may be a part of a tensor that holds several.
  void fused(std::string_view name, std::string_view unless, std::int64_t first, std::int64_t rows) {
    TensorBinding& binding = bindings_.back();
    binding.fused_name = prefix_ + std::string(name);
    binding.fused_unless = prefix_ + std::string(unless);
    binding.first_row = first;
    binding.fused_rows = rows;
  }
  /// Says that the latest binding, a stack, may share a tensor with another.
  void grouped(std::string_view name, std::int64_t rows, std::int64_t first, bool transposed) {
    TensorBinding& binding = bindings_.back();
    binding.grouped_name = prefix_ + std::string(name);
    binding.group_rows = rows;
    binding.group_first = first;
    binding.transposed = transposed;
  }
  /// `vectors` of equal length in one tensor.
  void norm(const NormSpec& norm, Role weight, Role bias, std::string_view name, std::int64_t elements,
            std::int64_t vectors = 1) {
    if (norm.kind == NormKind::none) return;
    vectors_if(norm.weight, weight, std::string(name) + ".weight", vectors, elements / vectors);
    vectors_if(norm.bias, bias, std::string(name) + ".bias", vectors, elements / vectors);
  }
  void rope_factors() {
    for (const RopeSpec& rope : spec_.ropes) {
      if (rope.factors.empty()) continue;
      const bool two = rope.scaling == RopeScaling::longrope;
      add(Role::rope_factors, two ? "rope_factors_short.weight" : "rope_freqs.weight", {rope.dims / 2},
          TensorUse::host);
      if (two) add(Role::rope_long_factors, "rope_factors_long.weight", {rope.dims / 2}, TensorUse::host);
      return;
    }
  }
  void latent_attention(const AttentionSpec& attention) {
    const LatentSpec& latent = *attention.latent;
    const std::int64_t heads = attention.heads;
    if (latent.query_rank > 0) {
      matrix(Role::query_down, "attn_q_a.weight", latent.query_rank, spec_.dim);
      norm(latent.query_norm, Role::query_down_norm, Role::query_down_norm, "attn_q_a_norm", latent.query_rank);
      matrix(Role::query, "attn_q_b.weight", attention.q_cols(), latent.query_rank);
    } else {
      matrix(Role::query, "attn_q.weight", attention.q_cols(), spec_.dim);
    }
    matrix(Role::latent_down, "attn_kv_a_mqa.weight", latent.rank + latent.rope_dims, spec_.dim);
    norm(latent.norm, Role::latent_norm, Role::latent_norm, "attn_kv_a_norm", latent.rank);
    // Older files keep both in one tensor: of each head the keys' rows, one per element of a key, then the values'.
    const std::int64_t plain = attention.head_dim_k - latent.rope_dims;
    stack(Role::latent_key, "attn_k_b.weight", heads, latent.rank, plain);
    grouped("attn_kv_b.weight", plain + attention.head_dim_v, 0, true);
    stack(Role::latent_value, "attn_v_b.weight", heads, attention.head_dim_v, latent.rank);
    grouped("attn_kv_b.weight", plain + attention.head_dim_v, plain, false);
    matrix(Role::attention_output, "attn_output.weight", spec_.dim, attention.output_cols());
    vector_if(attention.output_bias, Role::attention_output_bias, "attn_output.bias", spec_.dim);
  }
  void attention(const AttentionSpec& attention) {
    if (attention.latent) return latent_attention(attention);
    const std::int64_t q = attention.q_cols();
    const std::int64_t k = attention.k_cols();
    const std::int64_t v = attention.v_cols();
    const auto part = [&](bool bias, std::int64_t first) {
      const std::string_view end = bias ? ".bias" : ".weight";
      fused(fmt::format("attn_qkv{}", end), fmt::format("attn_q{}", end), first, q + k + v);
    };
    matrix(Role::query, "attn_q.weight", q, spec_.dim);
    part(false, 0);
    matrix(Role::key, "attn_k.weight", k, spec_.dim);
    part(false, q);
    matrix(Role::value, "attn_v.weight", v, spec_.dim);
    part(false, q + k);
    vector_if(attention.q_bias, Role::query_bias, "attn_q.bias", q);
    if (attention.q_bias) part(true, 0);
    vector_if(attention.k_bias, Role::key_bias, "attn_k.bias", k);
    if (attention.k_bias) part(true, q);
    vector_if(attention.v_bias, Role::value_bias, "attn_v.bias", v);
    if (attention.v_bias) part(true, q + k);
    const bool one_for_all = attention.qk_norm_scope == QkNormScope::head;
    const bool own = attention.qk_norm_scope == QkNormScope::each_head;
    norm(attention.q_norm, Role::query_norm, Role::query_norm_bias, "attn_q_norm",
         one_for_all ? attention.head_dim_k : q, own ? attention.heads : 1);
    norm(attention.k_norm, Role::key_norm, Role::key_norm_bias, "attn_k_norm", one_for_all ? attention.head_dim_k : k,
         own ? attention.kv_heads : 1);
    matrix(Role::attention_output, "attn_output.weight", spec_.dim, attention.output_cols());
    vector_if(attention.output_bias, Role::attention_output_bias, "attn_output.bias", spec_.dim);
    vector_if(attention.sinks, Role::attention_sinks, "attn_sinks.weight", attention.heads);
    vectors_if(attention.relative_table, Role::relative_bias, "attn_rel_b.weight", attention.relative_buckets,
               attention.heads);
  }
  void convolution(const RecurrentSpec& mixer, std::string_view name) {
    vectors(Role::conv_weight, std::string(name) + ".weight", mixer.conv_cols(), mixer.taps);
    vector_if(mixer.conv_bias, Role::conv_bias, std::string(name) + ".bias", mixer.conv_cols());
  }
  void state_space(const RecurrentSpec& mixer) {
    const bool selective = mixer.kind == RecurrentKind::selective_scan;
    matrix(Role::recurrent_in, "ssm_in.weight", mixer.input_rows(), spec_.dim);
    convolution(mixer, "ssm_conv1d");
    if (selective) {
      matrix(Role::step_input, "ssm_x.weight", mixer.step_rank + 2 * std::int64_t{mixer.state_size}, mixer.width);
      norm(mixer.step_norm, Role::step_norm, Role::step_norm, "ssm_dt_norm", mixer.step_rank);
      norm(mixer.step_norm, Role::b_norm, Role::b_norm, "ssm_b_norm", mixer.state_size);
      norm(mixer.step_norm, Role::c_norm, Role::c_norm, "ssm_c_norm", mixer.state_size);
      matrix(Role::step, "ssm_dt.weight", mixer.width, mixer.step_rank);
    }
    vector_if(true, Role::step_bias, "ssm_dt.bias", mixer.heads);
    vectors(Role::scan_decay, "ssm_a", mixer.heads, selective ? mixer.state_size : 1);
    vectors(Role::scan_skip, "ssm_d", mixer.heads, 1);
    if (mixer.norm.kind != NormKind::none)
      vectors(Role::recurrent_norm, "ssm_norm.weight", mixer.groups, mixer.width / mixer.groups);
    matrix(Role::recurrent_output, "ssm_out.weight", spec_.dim, mixer.width);
  }
  void low_rank(Role down, Role up, std::string_view name, std::int64_t rank) {
    matrix(down, fmt::format("time_mix_{}1.weight", name), rank, spec_.dim);
    matrix(up, fmt::format("time_mix_{}2.weight", name), spec_.dim, rank);
  }
  void time_mix(const RecurrentSpec& mixer) {
    const std::int64_t width = mixer.width;
    const auto part = [&](Role role, std::string_view name) {
      matrix(role, fmt::format("time_mix_{}.weight", name), width, width);
    };
    const auto elements = [&](Role role, std::string_view name, std::int64_t rows = 1) {
      vectors(role, fmt::format("time_mix_{}.weight", name), rows, width);
    };
    part(Role::receptance, "receptance");
    part(Role::time_key, "key");
    part(Role::time_value, "value");
    if (mixer.kind == RecurrentKind::rwkv6) {
      elements(Role::mix_first, "lerp_x");
      matrix(Role::mix_down, "time_mix_w1.weight", 5 * std::int64_t{mixer.mix_rank}, width);
      stack(Role::mix_up, "time_mix_w2.weight", 5, width, mixer.mix_rank);
      elements(Role::mix, "lerp_fused", 5);
      part(Role::time_gate, "gate");
      vectors(Role::time_bonus, "time_mix_first.weight", mixer.heads, width / mixer.heads);
      elements(Role::decay_base, "decay");
      low_rank(Role::decay_down, Role::decay_up, "decay_w", mixer.decay_rank);
    } else {
      elements(Role::mix, "lerp_fused", mixer.gate_rank > 0 ? 6 : 5);
      elements(Role::time_bonus, "r_k");
      elements(Role::decay_base, "w0");
      low_rank(Role::decay_down, Role::decay_up, "w", mixer.decay_rank);
      elements(Role::rate_base, "a0");
      low_rank(Role::rate_down, Role::rate_up, "a", mixer.rate_rank);
      if (mixer.value_rank > 0) {
        elements(Role::first_value_base, "v0");
        low_rank(Role::first_value_down, Role::first_value_up, "v", mixer.value_rank);
      }
      if (mixer.gate_rank > 0) low_rank(Role::gate_down, Role::gate_up, "g", mixer.gate_rank);
      elements(Role::key_scale, "k_k");
      elements(Role::rate_scale, "k_a");
    }
    norm(mixer.norm, Role::recurrent_norm, Role::recurrent_norm_bias, "time_mix_ln", width);
    matrix(Role::recurrent_output, "time_mix_output.weight", spec_.dim, width);
  }
  void recurrent(const RecurrentSpec& mixer) {
    if (mixer.rwkv()) return time_mix(mixer);
    if (mixer.kind != RecurrentKind::short_convolution) return state_space(mixer);
    matrix(Role::recurrent_in, "shortconv.in_proj.weight", mixer.input_rows(), spec_.dim);
    convolution(mixer, "shortconv.conv");
    matrix(Role::recurrent_output, "shortconv.out_proj.weight", spec_.dim, mixer.width);
  }
  void channel_mix(const FfnSpec& ffn) {
    vectors(Role::channel_mix, "channel_mix_lerp_k.weight", 1, spec_.dim);
    matrix(Role::ffn_up, "channel_mix_key.weight", ffn.width, spec_.dim);
    matrix(Role::ffn_down, "channel_mix_value.weight", spec_.dim, ffn.width);
    if (!ffn.receptance) return;
    vectors(Role::channel_receptance_mix, "channel_mix_lerp_r.weight", 1, spec_.dim);
    matrix(Role::channel_receptance, "channel_mix_receptance.weight", spec_.dim, spec_.dim);
  }
  /// `count` vectors that lie together; dimensions of one element may stand anywhere in their shape.
  void vectors(Role role, std::string_view name, std::int64_t count, std::int64_t elements) {
    vectors_if(true, role, name, count, elements);
    bindings_.back().loose_shape = true;
  }
  void vectors_if(bool present, Role role, std::string_view name, std::int64_t count, std::int64_t elements) {
    vector_if(present, role, name, count * elements);
    if (present) bindings_.back().matrices = count;
  }
  void experts(const FfnSpec& ffn) {
    const ExpertsSpec& experts = *ffn.experts;
    const std::int64_t count = experts.count;
    matrix(Role::expert_router, "ffn_gate_inp.weight", count, spec_.dim);
    vector_if(experts.router_bias, Role::expert_router_bias, "ffn_gate_inp.bias", count);
    vector_if(experts.selection_bias, Role::expert_selection_bias, "exp_probs_b.bias", count);
    stack(Role::expert_gate, "ffn_gate_exps.weight", count, ffn.width, spec_.dim);
    vectors_if(ffn.gate_bias, Role::expert_gate_bias, "ffn_gate_exps.bias", count, ffn.width);
    stack(Role::expert_up, "ffn_up_exps.weight", count, ffn.width, spec_.dim);
    vectors_if(ffn.up_bias, Role::expert_up_bias, "ffn_up_exps.bias", count, ffn.width);
    stack(Role::expert_down, "ffn_down_exps.weight", count, spec_.dim, ffn.width);
    vectors_if(ffn.down_bias, Role::expert_down_bias, "ffn_down_exps.bias", count, spec_.dim);
    if (experts.shared_width == 0) return;
    if (experts.shared_gate) matrix(Role::shared_router, "ffn_gate_inp_shexp.weight", 1, spec_.dim);
    matrix(Role::shared_gate, "ffn_gate_shexp.weight", experts.shared_width, spec_.dim);
    matrix(Role::shared_up, "ffn_up_shexp.weight", experts.shared_width, spec_.dim);
    matrix(Role::shared_down, "ffn_down_shexp.weight", spec_.dim, experts.shared_width);
  }
  void ffn(const FfnSpec& ffn) {
    if (ffn.experts) return experts(ffn);
    if (ffn.token_shift) return channel_mix(ffn);
    // Of a nested network the file has more rows, and more columns of the matrix that goes back.
    const std::int64_t stored = ffn.stored_width;
    const std::int64_t whole = stored != 0 ? stored : ffn.width;
    const auto rows_of_more = [&] { bindings_.back().file_rows = stored; };
    // Some files keep gate and up in one tensor, gate first, under the name of up.
    const auto half = [&](std::int64_t first) {
      fused("ffn_up.weight", "ffn_gate.weight", first, 2 * whole);
      bindings_.back().fused_must_fit = true;
    };
    const auto bias = [&](bool present, Role role, std::string_view name) {
      vector_if(present, role, name, ffn.width);
      if (present) rows_of_more();
    };
    if (ffn.gated) {
      matrix(Role::ffn_gate, "ffn_gate.weight", ffn.width, spec_.dim);
      rows_of_more();
      half(0);
      bias(ffn.gate_bias, Role::ffn_gate_bias, "ffn_gate.bias");
    }
    matrix(Role::ffn_up, "ffn_up.weight", ffn.width, spec_.dim);
    rows_of_more();
    if (ffn.gated) half(whole);
    bias(ffn.up_bias, Role::ffn_up_bias, "ffn_up.bias");
    matrix(Role::ffn_down, "ffn_down.weight", spec_.dim, ffn.width);
    bindings_.back().file_cols = stored;
    vector_if(ffn.down_bias, Role::ffn_down_bias, "ffn_down.bias", spec_.dim);
  }
  void layers(const std::vector<LayerSpec>& stack, std::int32_t first, const std::string& prefix) {
    for (std::size_t i = 0; i < stack.size(); ++i) {
      layer_ = first + static_cast<std::int32_t>(i);
      prefix_ = fmt::format("{}{}.", prefix, i);
      layer(stack[i]);
    }
    layer_ = -1;
    prefix_.clear();
  }
  void cross(const LayerSpec& layer) {
    norm(layer.cross_norm, Role::cross_norm, Role::cross_norm, "cross_attn_norm", spec_.dim);
    matrix(Role::cross_query, "cross_attn_q.weight", layer.cross->q_cols(), spec_.dim);
    matrix(Role::cross_key, "cross_attn_k.weight", layer.cross->k_cols(), spec_.dim);
    matrix(Role::cross_value, "cross_attn_v.weight", layer.cross->v_cols(), spec_.dim);
    matrix(Role::cross_output, "cross_attn_o.weight", spec_.dim, layer.cross->output_cols());
  }
  void layer(const LayerSpec& layer) {
    if (layer.attention || layer.linear_attention || layer.recurrent) {
      norm(layer.attention_norm, Role::attention_norm, Role::attention_norm_bias, "attn_norm", spec_.dim);
      if (layer.recurrent) recurrent(*layer.recurrent);
      if (layer.attention) attention(*layer.attention);
      if (layer.linear_attention) matrix(Role::attention_output, "attn_output.weight", spec_.dim, spec_.dim);
      norm(layer.attention_post_norm, Role::attention_post_norm, Role::attention_post_norm_bias, "post_attention_norm",
           spec_.dim);
      norm(layer.attention_residual_norm, Role::attention_residual_norm, Role::attention_residual_norm_bias,
           "attn_output_norm", spec_.dim);
    }
    if (layer.cross) cross(layer);
    if (layer.ffn) {
      norm(layer.ffn_norm, Role::ffn_norm, Role::ffn_norm_bias, "ffn_norm", spec_.dim);
      ffn(*layer.ffn);
      norm(layer.ffn_post_norm, Role::ffn_post_norm, Role::ffn_post_norm_bias, "post_ffw_norm", spec_.dim);
      norm(layer.ffn_residual_norm, Role::ffn_residual_norm, Role::ffn_residual_norm_bias, "layer_output_norm",
           spec_.dim);
    }
  }

  const ModelSpec& spec_;
  const TensorNames* names_;
  std::vector<TensorBinding> bindings_;
  std::string prefix_;
  int layer_ = -1;
};

bool stores_floats(DType type) { return type == DType::f32 || type == DType::f16 || type == DType::bf16; }

/// Finds the tensor of a binding, whole or as a part of one; a null tensor if the file has none.
BoundTensor find_tensor(const ModelFile& file, TensorBinding binding) {
  BoundTensor bound;
  bound.rows = binding.shape[0];
  if (!binding.fused_name.empty() && !file.find(binding.fused_unless)) {
    const TensorInfo* common = file.find(binding.fused_name);
    // The name may also be that of a tensor for one part alone; then the size tells.
    const std::size_t outer = is_matrix(binding.use) ? 1 : 0;
    if (common && (!binding.fused_must_fit || common->dims[outer] == binding.fused_rows)) {
      bound.tensor = common;
      bound.first_row = binding.first_row;
      bound.part = true;
    }
  }
  if (!bound.tensor) bound.tensor = file.find(binding.name);
  for (auto name = binding.other_names.begin(); !bound.tensor && name != binding.other_names.end(); ++name)
    bound.tensor = file.find(*name);
  if (!bound.tensor && !binding.grouped_name.empty()) {
    bound.tensor = file.find(binding.grouped_name);
    bound.grouped = bound.tensor != nullptr;
    if (bound.grouped) bound.first_row = binding.group_first;
  }
  bound.binding = std::move(binding);
  return bound;
}

void check_shape(const ModelFile& file, const BoundTensor& bound) {
  const TensorBinding& binding = bound.binding;
  const TensorInfo& tensor = *bound.tensor;
  const bool matrix = is_matrix(binding.use);
  if (bound.grouped) {
    const std::int64_t cols = binding.transposed ? binding.shape[0] / binding.matrices : binding.shape[1];
    const std::int64_t all = binding.matrices * binding.group_rows;
    if (tensor.dims != std::array<std::int64_t, 4>{cols, all, 1, 1})
      file.fail(tensor, fmt::format("found shape {}, allowed is [{}, {}]", tensor.shape(), cols, all));
    return;
  }
  // Files list the innermost dimension first, so a matrix reads [columns, rows], a stack [columns, rows, matrices].
  const std::int64_t stored = binding.file_rows != 0 ? binding.file_rows : binding.shape[0];
  const std::int64_t outer = bound.part ? binding.fused_rows : stored;
  const std::int64_t inner = matrix ? (binding.file_cols != 0 ? binding.file_cols : binding.shape[1]) : 0;
  const std::int64_t columns = matrix ? inner : outer / binding.matrices;
  const std::int64_t rows = matrix ? outer / binding.matrices : binding.matrices;
  const std::int64_t matrices = matrix ? binding.matrices : 1;
  if (tensor.dims == std::array<std::int64_t, 4>{columns, rows, matrices, 1}) return;
  if (binding.loose_shape) {
    const auto longer = [](const auto& dims) {
      std::vector<std::int64_t> result;
      for (const std::int64_t each : dims)
        if (each != 1) result.push_back(each);
      return result;
    };
    if (longer(tensor.dims) == longer(std::array{columns, rows})) return;
  }
  if (matrices > 1)
    file.fail(tensor, fmt::format("found shape {}, allowed is [{}, {}, {}]", tensor.shape(), columns, rows,
                                  binding.matrices));
  file.fail(tensor, matrix || rows > 1 ? fmt::format("found shape {}, allowed is [{}, {}]", tensor.shape(), columns, rows)
                           : fmt::format("found shape {}, allowed is [{}]", tensor.shape(), columns));
}

void check_type(const ModelFile& file, const TensorBinding& binding, const TensorInfo& tensor) {
  if (stores_floats(tensor.type)) return;
  if (!is_matrix(binding.use))
    file.fail(tensor, fmt::format("found type {}, allowed is f32, f16 or bf16", to_string(tensor.type)));
  // q8_1 and q8_k hold activations; no file stores weights in them.
  if (!dtype_info(tensor.type).quantized || tensor.type == DType::q8_1 || tensor.type == DType::q8_k)
    file.fail(tensor, fmt::format("found type {}, allowed is f32, f16, bf16 or a quantized weight format",
                                  to_string(tensor.type)));
}

}  // namespace

std::uint64_t BoundTensor::bytes() const {
  const bool matrix = is_matrix(binding.use);
  const auto columns = static_cast<std::size_t>(matrix ? tensor->columns() : 1);
  if (grouped) return static_cast<std::uint64_t>(binding.matrices * group_count()) * row_bytes(tensor->type, columns);
  return static_cast<std::uint64_t>(rows) * row_bytes(tensor->type, columns);
}

std::vector<TensorBinding> tensor_bindings(const ModelSpec& spec, std::span<const Architecture> more) {
  const std::optional<Architecture> architecture = find_architecture(spec.architecture, more);
  return Binder(spec, architecture ? &architecture->names : nullptr).run();
}

BoundTensors bind_tensors(const ModelFile& file, const ModelSpec& spec, std::span<const Architecture> more) {
  BoundTensors result;
  std::vector<bool> used(file.tensors().size());
  for (TensorBinding& binding : tensor_bindings(spec, more)) {
    BoundTensor bound = find_tensor(file, std::move(binding));
    const TensorBinding& wanted = bound.binding;
    if (!bound.tensor) {
      if (!wanted.required) continue;
      throw FormatError("model.bind_tensors",
                        fmt::format("the required tensor is missing; expected shape [{}] (outermost first)",
                                    fmt::join(wanted.shape, ", ")),
                        {.file = file.name(),
                         .tensor = wanted.name,
                         .layer = wanted.layer < 0 ? std::nullopt : std::optional(wanted.layer)});
    }
    check_shape(file, bound);
    check_type(file, wanted, *bound.tensor);
    if (is_matrix(wanted.use) && wanted.shape[1] % dtype_info(bound.tensor->type).block_elements != 0)
      file.fail(*bound.tensor, fmt::format("{} columns of it are asked for, allowed is a multiple of the {} elements of "
                                           "a block", wanted.shape[1], dtype_info(bound.tensor->type).block_elements));
    used[static_cast<std::size_t>(bound.tensor - file.tensors().data())] = true;
    result.used.push_back(std::move(bound));
  }
  std::ranges::stable_sort(result.used, [](const BoundTensor& a, const BoundTensor& b) {
    return a.tensor != b.tensor ? a.tensor < b.tensor : a.first_row < b.first_row;
  });
  for (std::size_t i = 0; i < used.size(); ++i) {
    if (used[i]) continue;
    const TensorInfo& tensor = file.tensors()[i];
    // Other tensors may be extras; a norm that is left out gives wrong numbers.
    if (tensor.name.find("norm") != std::string::npos)
      throw UnsupportedError("model.bind_tensors",
                             fmt::format("architecture '{}' has no such norm here, and without it the results would be wrong",
                                         spec.architecture),
                             {.file = file.name(), .offset = tensor.offset, .tensor = tensor.name});
    result.unused.push_back(tensor.name);
  }
  return result;
}

}  // namespace skald::inline v0
