#pragma once

// Random models of every architecture with recurrent layers: the hyper-parameters are written here, the tensors are
// those that the library says it reads.

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <skald/core/random.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/model/model.hpp>
#include <skald/quant/row_codec.hpp>

namespace skald_test {

inline constexpr std::int64_t recurrent_vocabulary = 96;

/// Names of all of them.
inline const std::vector<std::string>& recurrent_architectures() {
  static const std::vector<std::string> names{"mamba", "mamba2", "jamba", "falcon-h1", "lfm2", "rwkv6", "rwkv7"};
  return names;
}

namespace recurrent_detail {

using skald::LayerSpec;
using skald::NormKind;
using skald::NormSpec;
using skald::RecurrentKind;
using skald::RecurrentSpec;

/// What the tensors of one architecture are; the keys are set along with it.
inline skald::ModelSpec recurrent_spec(const std::string& architecture, skald::GgufWriter& writer, std::uint32_t dim) {
  const auto low = static_cast<std::int32_t>(dim <= 64 ? 32 : 256);  // whole blocks of the weights' format
  const auto set = [&](const std::string& key, auto value) {
    writer.set(architecture + "." + key, skald::MetadataValue(value));
  };
  const auto number = [&](const std::string& key, std::uint32_t value) { set(key, value); };
  skald::ModelSpec spec;
  spec.architecture = architecture;
  spec.vocabulary = recurrent_vocabulary;
  spec.dim = dim;
  spec.context_length = 2048;
  number("context_length", 2048);
  number("embedding_length", dim);
  number("vocab_size", static_cast<std::uint32_t>(recurrent_vocabulary));
  const bool rwkv = architecture.substr(0, 4) == "rwkv";
  const NormSpec norm{.kind = rwkv ? NormKind::layer : NormKind::rms, .epsilon = 1e-3F, .bias = rwkv};
  set(rwkv ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", norm.epsilon);
  spec.final_norm = norm;
  if (rwkv) spec.embedding_norm = norm;

  RecurrentSpec mixer;
  mixer.width = std::int64_t{2} * dim;
  mixer.taps = 4;
  mixer.state_size = 16;
  mixer.conv_bias = true;
  mixer.heads = static_cast<std::int32_t>(2 * dim);
  mixer.step_rank = low;
  if (architecture == "mamba2" || architecture == "falcon-h1") {
    mixer.kind = RecurrentKind::ssd;
    mixer.heads = 8;
    mixer.groups = 2;
    mixer.step_rank = 0;
    mixer.norm = norm;
    number("ssm.group_count", 2);
  } else if (architecture == "jamba") {
    mixer.step_norm = norm;
  } else if (architecture == "lfm2" || rwkv) {
    mixer = {};
    mixer.width = dim;
    mixer.kind = rwkv ? RecurrentKind::rwkv6 : RecurrentKind::short_convolution;
    mixer.taps = rwkv ? 0 : 3;
    if (!rwkv) number("shortconv.l_cache", 3);
  }
  if (mixer.state_size > 0) {
    number("ssm.inner_size", 2 * dim);
    number("ssm.conv_kernel", 4);
    number("ssm.state_size", 16);
    number("ssm.time_step_rank", mixer.kind == RecurrentKind::ssd ? 8U : static_cast<std::uint32_t>(low));
  }
  if (rwkv) {
    mixer.heads = 2;
    mixer.norm = {.kind = NormKind::layer, .epsilon = 64e-5F, .bias = true};
    mixer.decay_rank = low;
    number("wkv.head_size", dim / 2);
    if (architecture == "rwkv6") {
      mixer.mix_rank = low;
      number("time_mix_extra_dim", static_cast<std::uint32_t>(low));
      number("time_decay_extra_dim", static_cast<std::uint32_t>(low));
      number("rescale_every_n_layers", 2);
    } else {
      mixer.kind = RecurrentKind::rwkv7;
      mixer.rate_rank = mixer.gate_rank = low;
      number("attention.decay_lora_rank", static_cast<std::uint32_t>(low));
      number("attention.iclr_lora_rank", static_cast<std::uint32_t>(low));
      number("attention.value_residual_mix_lora_rank", static_cast<std::uint32_t>(low));
      number("attention.gate_lora_rank", static_cast<std::uint32_t>(low));
    }
  }
  const bool hybrid = architecture == "jamba" || architecture == "lfm2";
  const bool beside = architecture == "falcon-h1";
  const std::uint32_t layers = 3;
  const auto head = static_cast<std::int32_t>(dim / 4);
  number("block_count", layers);
  if (hybrid || beside) {
    number("attention.head_count", 4);
    const std::vector<std::int32_t> kv =
        beside ? std::vector<std::int32_t>{2, 2, 2} : std::vector<std::int32_t>{0, 2, 0};
    writer.set(architecture + ".attention.head_count_kv", skald::MetadataArray{kv});
    if (architecture != "jamba") spec.ropes.push_back({.kind = skald::RopeKind::half, .dims = head});
  }
  const bool network = hybrid || beside || rwkv;
  if (network) number("feed_forward_length", static_cast<std::uint32_t>(3 * low));
  for (std::uint32_t i = 0; i < layers; ++i) {
    LayerSpec& layer = spec.layers.emplace_back();
    layer.attention_norm = norm;
    if (beside || (hybrid && i == 1)) {
      layer.attention = skald::AttentionSpec{.heads = 4, .kv_heads = 2, .head_dim_k = head, .head_dim_v = head};
      if (architecture == "lfm2") layer.attention->q_norm = layer.attention->k_norm = norm;
    }
    if (!hybrid || i != 1) layer.recurrent = mixer;
    if (mixer.kind == RecurrentKind::rwkv7 && i > 0) layer.recurrent->value_rank = low;
    if (!network) continue;
    layer.ffn_norm = norm;
    layer.ffn = skald::FfnSpec{.width = std::int64_t{3} * low};
    layer.ffn->gated = !rwkv;
    layer.ffn->token_shift = rwkv;
    layer.ffn->receptance = architecture == "rwkv6";
  }
  return spec;
}

}  // namespace recurrent_detail

/// Writes random tensors of a network: all that the library says it reads, matrices in a format of their own.
inline void write_tensors(skald::GgufWriter& writer, const skald::ModelSpec& spec, skald::DType type,
                          std::span<const skald::Architecture> more = {}) {
  std::uint64_t tensor = 0;
  for (const auto& binding : skald::tensor_bindings(spec, more)) {
    skald::CounterRandom random(11, tensor++, 0);
    const bool matrix = binding.use == skald::TensorUse::matrix;
    const std::int64_t cols = matrix ? binding.shape[1] : binding.shape[0] / binding.matrices;
    const std::int64_t rows = matrix ? binding.shape[0] : binding.matrices;
    const skald::DType stored = matrix ? type : skald::DType::f32;
    const bool norm = !matrix && binding.name.find("norm.weight") != std::string::npos;
    const bool decay = binding.role == skald::Role::scan_decay;
    const double spread = matrix ? 2.0 / std::sqrt(static_cast<double>(cols)) : 0.5;
    std::vector<float> row(static_cast<std::size_t>(cols));
    std::vector<std::byte> bytes;
    const auto row_bytes = skald::row_bytes(stored, row.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      for (float& value : row) {
        double sum = 0;
        for (int i = 0; i < 4; ++i) sum += random.uniform() - 0.5;
        value = static_cast<float>(decay ? -0.05 - std::abs(sum) : (norm ? 1.0 : 0.0) + spread * sum);
      }
      bytes.resize(bytes.size() + row_bytes);
      skald::encode_row(stored, row, std::span(bytes).last(row_bytes));
    }
    std::vector<std::int64_t> dims{cols, rows};
    if (matrix && binding.matrices > 1) dims = {cols, rows / binding.matrices, binding.matrices};
    if (!matrix && binding.matrices == 1) dims = {cols};
    writer.add_tensor(binding.name, stored, dims, bytes);
  }
}

/// A whole GGUF file of such a model, matrices in a format whose blocks divide 32, or 256 if `dim` is 256; no
/// tokenizer.
inline std::vector<std::byte> recurrent_gguf(const std::string& architecture, skald::DType type = skald::DType::f32,
                                             std::uint32_t dim = 64,
                                             const std::function<void(skald::GgufWriter&)>& change = {}) {
  skald::GgufWriter writer;
  writer.set("general.architecture", skald::MetadataValue(architecture));
  const auto spec = recurrent_detail::recurrent_spec(architecture, writer, dim);
  if (change) change(writer);
  write_tensors(writer, spec, type);
  return writer.to_bytes();
}

/// A model of these bytes.
inline skald::Model load_bytes(std::vector<std::byte> bytes, const std::string& name, skald::LoadOptions options) {
  options.tokenizer = false;
  const auto keep = std::make_shared<std::vector<std::byte>>(std::move(bytes));
  return skald::Model::load(
      skald::AnyByteSource(skald::CallbackSource(keep->size(),
                                                 [keep](std::uint64_t offset, std::span<std::byte> out) {
                                                   std::memcpy(out.data(), keep->data() + offset, out.size());
                                                 }),
                           name),
      options);
}

/// Such a model, loaded.
inline skald::Model recurrent_model(const std::string& architecture, skald::DType type = skald::DType::f32,
                                    const skald::LoadOptions& options = {}, std::uint32_t dim = 64) {
  return load_bytes(recurrent_gguf(architecture, type, dim), architecture, options);
}

/// A random model of any network.
inline skald::Model model_of(const skald::ModelSpec& spec, skald::DType type = skald::DType::f32,
                             skald::LoadOptions options = {}) {
  options.architectures.push_back({spec.architecture, "any", [spec](skald::HyperParameters&) { return spec; }, {}});
  skald::GgufWriter writer;
  writer.set("general.architecture", skald::MetadataValue(spec.architecture));
  write_tensors(writer, spec, type, options.architectures);
  return load_bytes(writer.to_bytes(), spec.architecture, options);
}

}  // namespace skald_test
