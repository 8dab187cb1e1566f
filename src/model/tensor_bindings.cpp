#include <algorithm>
#include <unordered_map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <skald/core/error.hpp>
#include <skald/model/architecture.hpp>

namespace skald::inline v0 {

namespace {

// Collects the bindings of a spec in the order of a forward pass.
class Binder {
 public:
  explicit Binder(const ModelSpec& spec) : spec_(spec) {}

  std::vector<TensorBinding> run() && {
    matrix(Role::token_embedding, "token_embd.weight", spec_.vocabulary, spec_.dim);
    rope_factors();
    for (const LayerSpec& each : spec_.layers) {
      ++layer_;
      prefix_ = fmt::format("blk.{}.", layer_);
      layer(each);
    }
    layer_ = -1;
    prefix_.clear();
    norm(spec_.final_norm, Role::final_norm, Role::final_norm_bias, "output_norm", spec_.dim);
    if (!spec_.tied_head) matrix(Role::head, "output.weight", spec_.vocabulary, spec_.dim);
    vector_if(spec_.head_bias, Role::head_bias, "output.bias", spec_.vocabulary);
    return std::move(bindings_);
  }

 private:
  void matrix(Role role, std::string_view name, std::int64_t rows, std::int64_t cols) {
    bindings_.push_back({role, layer_, prefix_ + std::string(name), {rows, cols}, 1, TensorUse::matrix, true});
  }
  void stack(Role role, std::string_view name, std::int64_t matrices, std::int64_t rows, std::int64_t cols) {
    matrix(role, name, matrices * rows, cols);
    bindings_.back().matrices = matrices;
  }
  void vector_if(bool present, Role role, std::string_view name, std::int64_t elements) {
    if (!present) return;
    bindings_.push_back({role, layer_, prefix_ + std::string(name), {elements}, 1, TensorUse::vector, true});
  }
  void norm(const NormSpec& norm, Role weight, Role bias, std::string_view name, std::int64_t elements) {
    if (norm.kind == NormKind::none) return;
    vector_if(norm.weight, weight, std::string(name) + ".weight", elements);
    vector_if(norm.bias, bias, std::string(name) + ".bias", elements);
  }
  void rope_factors() {
    for (const RopeSpec& rope : spec_.ropes)
      if (!rope.factors.empty()) {
        bindings_.push_back({Role::rope_factors, -1, "rope_freqs.weight", {rope.dims / 2}, 1, TensorUse::host, true});
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
    stack(Role::latent_key, "attn_k_b.weight", heads, latent.rank, attention.head_dim_k - latent.rope_dims);
    stack(Role::latent_value, "attn_v_b.weight", heads, attention.head_dim_v, latent.rank);
    matrix(Role::attention_output, "attn_output.weight", spec_.dim, attention.output_cols());
    vector_if(attention.output_bias, Role::attention_output_bias, "attn_output.bias", spec_.dim);
  }
  void attention(const AttentionSpec& attention) {
    if (attention.latent) return latent_attention(attention);
    matrix(Role::query, "attn_q.weight", attention.q_cols(), spec_.dim);
    vector_if(attention.q_bias, Role::query_bias, "attn_q.bias", attention.q_cols());
    matrix(Role::key, "attn_k.weight", attention.k_cols(), spec_.dim);
    vector_if(attention.k_bias, Role::key_bias, "attn_k.bias", attention.k_cols());
    matrix(Role::value, "attn_v.weight", attention.v_cols(), spec_.dim);
    vector_if(attention.v_bias, Role::value_bias, "attn_v.bias", attention.v_cols());
    // A norm over heads has no bias in any architecture so far.
    vector_if(attention.q_norm.kind != NormKind::none, Role::query_norm, "attn_q_norm.weight", attention.head_dim_k);
    vector_if(attention.k_norm.kind != NormKind::none, Role::key_norm, "attn_k_norm.weight", attention.head_dim_k);
    matrix(Role::attention_output, "attn_output.weight", spec_.dim, attention.output_cols());
    vector_if(attention.output_bias, Role::attention_output_bias, "attn_output.bias", spec_.dim);
    vector_if(attention.sinks, Role::attention_sinks, "attn_sinks.weight", attention.heads);
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
    if (ffn.gated) matrix(Role::ffn_gate, "ffn_gate.weight", ffn.width, spec_.dim);
    vector_if(ffn.gated && ffn.gate_bias, Role::ffn_gate_bias, "ffn_gate.bias", ffn.width);
    matrix(Role::ffn_up, "ffn_up.weight", ffn.width, spec_.dim);
    vector_if(ffn.up_bias, Role::ffn_up_bias, "ffn_up.bias", ffn.width);
    matrix(Role::ffn_down, "ffn_down.weight", spec_.dim, ffn.width);
    vector_if(ffn.down_bias, Role::ffn_down_bias, "ffn_down.bias", spec_.dim);
  }
  void layer(const LayerSpec& layer) {
    if (layer.attention) {
      norm(layer.attention_norm, Role::attention_norm, Role::attention_norm_bias, "attn_norm", spec_.dim);
      attention(*layer.attention);
    }
    if (layer.ffn) {
      // gpt-oss files call it so.
      const std::string_view name = spec_.architecture == "gpt-oss" ? "post_attention_norm" : "ffn_norm";
      norm(layer.ffn_norm, Role::ffn_norm, Role::ffn_norm_bias, name, spec_.dim);
      ffn(*layer.ffn);
    }
  }

  const ModelSpec& spec_;
  std::vector<TensorBinding> bindings_;
  std::string prefix_;
  int layer_ = -1;
};

bool is_float(DType type) { return type == DType::f32 || type == DType::f16 || type == DType::bf16; }

void check_shape(const ModelFile& file, const TensorBinding& binding, const TensorInfo& tensor) {
  const bool matrix = binding.use == TensorUse::matrix;
  // Files list the innermost dimension first, so a matrix reads [columns, rows], a stack [columns, rows, matrices].
  const std::int64_t columns = matrix ? binding.shape[1] : binding.shape[0] / binding.matrices;
  const std::int64_t rows = matrix ? binding.shape[0] / binding.matrices : binding.matrices;
  const std::int64_t matrices = matrix ? binding.matrices : 1;
  if (tensor.dims == std::array<std::int64_t, 4>{columns, rows, matrices, 1}) return;
  if (matrices > 1)
    file.fail(tensor, fmt::format("found shape {}, allowed is [{}, {}, {}]", tensor.shape(), columns, rows,
                                  binding.matrices));
  file.fail(tensor, matrix || rows > 1 ? fmt::format("found shape {}, allowed is [{}, {}]", tensor.shape(), columns, rows)
                           : fmt::format("found shape {}, allowed is [{}]", tensor.shape(), columns));
}

void check_type(const ModelFile& file, const TensorBinding& binding, const TensorInfo& tensor) {
  if (is_float(tensor.type)) return;
  if (binding.use != TensorUse::matrix)
    file.fail(tensor, fmt::format("found type {}, allowed is f32, f16 or bf16", to_string(tensor.type)));
  // q8_1 and q8_k hold activations; no file stores weights in them.
  if (!dtype_info(tensor.type).quantized || tensor.type == DType::q8_1 || tensor.type == DType::q8_k)
    file.fail(tensor, fmt::format("found type {}, allowed is f32, f16, bf16 or a quantized weight format",
                                  to_string(tensor.type)));
}

}  // namespace

std::vector<TensorBinding> tensor_bindings(const ModelSpec& spec) { return Binder(spec).run(); }

BoundTensors bind_tensors(const ModelFile& file, const ModelSpec& spec) {
  BoundTensors result;
  std::vector<bool> used(file.tensors().size());
  for (TensorBinding& binding : tensor_bindings(spec)) {
    const TensorInfo* tensor = file.find(binding.name);
    if (!tensor) {
      if (!binding.required) continue;
      throw FormatError("model.bind_tensors",
                        fmt::format("the required tensor is missing; expected shape [{}] (outermost first)",
                                    fmt::join(binding.shape, ", ")),
                        {.file = file.name(),
                         .tensor = binding.name,
                         .layer = binding.layer < 0 ? std::nullopt : std::optional(binding.layer)});
    }
    check_shape(file, binding, *tensor);
    check_type(file, binding, *tensor);
    used[static_cast<std::size_t>(tensor - file.tensors().data())] = true;
    result.used.push_back({std::move(binding), tensor});
  }
  std::ranges::stable_sort(result.used, {}, &BoundTensor::tensor);
  for (std::size_t i = 0; i < used.size(); ++i)
    if (!used[i]) result.unused.push_back(file.tensors()[i].name);
  return result;
}

}  // namespace skald::inline v0
