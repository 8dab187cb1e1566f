#pragma once

// Small models with made-up weights, as files in memory: for tests that need to change any part of one.

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/core/random.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/quant/row_codec.hpp>

namespace skald_test {

/// A model file as parts that can be changed before it is written.
struct TinyModel {
  struct Tensor {
    std::string name;
    skald::DType type = skald::DType::f32;
    std::vector<std::int64_t> dims;  // innermost first
    std::vector<std::byte> bytes;
  };
  std::vector<std::pair<std::string, skald::MetadataValue>> metadata;
  std::vector<Tensor> tensors;

  void set(const std::string& key, skald::MetadataValue value) {
    for (auto& [name, old] : metadata)
      if (name == key) {
        old = std::move(value);
        return;
      }
    metadata.emplace_back(key, std::move(value));
  }
  void erase(const std::string& key) {
    std::erase_if(metadata, [&](const auto& pair) { return pair.first == key; });
  }
  void erase_tensor(const std::string& name) {
    std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
  }
  Tensor& tensor(const std::string& name) {
    for (Tensor& each : tensors)
      if (each.name == name) return each;
    throw std::runtime_error("no tensor " + name);
  }
  /// Adds or replaces a tensor of small, reproducible values; rows are encoded in `type`.
  void set_tensor(const std::string& name, std::vector<std::int64_t> dims, skald::DType type = skald::DType::f32,
                  float around = 0.0F) {
    std::size_t rows = 1;
    for (std::size_t i = 1; i < dims.size(); ++i) rows *= static_cast<std::size_t>(dims[i]);
    const auto columns = static_cast<std::size_t>(dims[0]);
    const auto& info = skald::dtype_info(type);
    const std::size_t row_bytes = columns / info.block_elements * info.block_bytes;
    std::vector<std::byte> bytes(rows * row_bytes);
    std::vector<float> values(columns);
    std::uint64_t state = 0x9E3779B97F4A7C15u;
    for (const char c : name) state = (state ^ static_cast<std::uint64_t>(c)) * 0x100000001B3u;
    for (std::size_t r = 0; r < rows; ++r) {
      for (float& value : values) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        value = around + static_cast<float>(static_cast<double>(state >> 40) / (1 << 24) - 0.5);
      }
      if (skald::can_encode(type)) skald::encode_row(type, values, {bytes.data() + r * row_bytes, row_bytes});
    }
    erase_tensor(name);
    tensors.push_back({name, type, std::move(dims), std::move(bytes)});
  }

  [[nodiscard]] std::vector<std::byte> to_bytes() const {
    skald::GgufWriter writer;
    for (const auto& [key, value] : metadata) writer.set(key, value);
    for (const Tensor& each : tensors) writer.add_tensor(each.name, each.type, each.dims, each.bytes);
    return writer.to_bytes();
  }
};

struct TinyOptions {
  std::string architecture = "llama";
  std::uint32_t layers = 2;
  std::uint32_t dim = 32;
  std::uint32_t heads = 4;
  std::uint32_t kv_heads = 2;
  std::uint32_t head_dim = 8;
  std::uint32_t ffn = 64;
  skald::DType type = skald::DType::f32;  // of matrices
  bool tied = false;
  std::uint32_t experts = 0;  // 0: one network per layer
  std::uint32_t experts_used = 2;
};

/// Tokens of a byte-fallback SentencePiece vocabulary: 3 control tokens, 256 bytes, a few letters.
inline void add_tiny_vocabulary(TinyModel& model) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<float> scores(3, 0.0F);
  std::vector<std::int32_t> types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    constexpr char digits[] = "0123456789ABCDEF";
    tokens.push_back(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
    scores.push_back(0.0F);
    types.push_back(6);
  }
  for (const char* text : {"\xE2\x96\x81", "e", "t", "a", "o", "n", "i", "s", "h", "r", "\xE2\x96\x81t", "he", "in"}) {
    tokens.emplace_back(text);
    scores.push_back(-static_cast<float>(tokens.size()));
    types.push_back(1);
  }
  model.set("tokenizer.ggml.model", std::string("llama"));
  model.set("tokenizer.ggml.tokens", skald::MetadataArray{skald::StringArray(tokens)});
  model.set("tokenizer.ggml.scores", skald::MetadataArray{std::move(scores)});
  model.set("tokenizer.ggml.token_type", skald::MetadataArray{std::move(types)});
  model.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
  model.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
  model.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
}
inline constexpr std::int64_t tiny_vocabulary = 3 + 256 + 13;

/// A whole valid model.
inline TinyModel tiny_model(const TinyOptions& options = {}) {
  TinyModel model;
  const std::string& a = options.architecture;
  model.set("general.architecture", a);
  model.set("general.name", std::string("tiny"));
  model.set(a + ".block_count", options.layers);
  model.set(a + ".context_length", std::uint32_t{512});
  model.set(a + ".embedding_length", options.dim);
  model.set(a + ".feed_forward_length", options.ffn);
  model.set(a + ".attention.head_count", options.heads);
  model.set(a + ".attention.head_count_kv", options.kv_heads);
  model.set(a + ".attention.key_length", options.head_dim);
  model.set(a + ".attention.value_length", options.head_dim);
  model.set(a + ".attention.layer_norm_rms_epsilon", 1e-5F);
  model.set(a + ".rope.dimension_count", options.head_dim);
  model.set(a + ".rope.freq_base", 10000.0F);
  model.set(a + ".vocab_size", static_cast<std::uint32_t>(tiny_vocabulary));
  if (options.experts > 0) {
    model.set(a + ".expert_count", options.experts);
    model.set(a + ".expert_used_count", options.experts_used);
  }
  add_tiny_vocabulary(model);

  const std::int64_t dim = options.dim;
  const std::int64_t q = std::int64_t{options.heads} * options.head_dim;
  const std::int64_t kv = std::int64_t{options.kv_heads} * options.head_dim;
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t columns) {
    model.set_tensor(name, {columns, rows}, options.type);
  };
  const auto norm = [&](const std::string& name, std::int64_t size) {
    model.set_tensor(name, {size}, skald::DType::f32, 1.0F);
  };
  matrix("token_embd.weight", tiny_vocabulary, dim);
  for (std::uint32_t i = 0; i < options.layers; ++i) {
    const std::string p = "blk." + std::to_string(i) + ".";
    norm(p + "attn_norm.weight", dim);
    matrix(p + "attn_q.weight", q, dim);
    matrix(p + "attn_k.weight", kv, dim);
    matrix(p + "attn_v.weight", kv, dim);
    matrix(p + "attn_output.weight", dim, q);
    if (a == "qwen2") {
      norm(p + "attn_q.bias", q);
      norm(p + "attn_k.bias", kv);
      norm(p + "attn_v.bias", kv);
    }
    if (a == "qwen3") {
      norm(p + "attn_q_norm.weight", options.head_dim);
      norm(p + "attn_k_norm.weight", options.head_dim);
    }
    norm(p + "ffn_norm.weight", dim);
    if (options.experts > 0) {
      matrix(p + "ffn_gate_inp.weight", options.experts, dim);
      model.set_tensor(p + "ffn_gate_exps.weight", {dim, options.ffn, options.experts}, options.type);
      model.set_tensor(p + "ffn_up_exps.weight", {dim, options.ffn, options.experts}, options.type);
      model.set_tensor(p + "ffn_down_exps.weight", {options.ffn, dim, options.experts}, options.type);
      continue;
    }
    matrix(p + "ffn_gate.weight", options.ffn, dim);
    matrix(p + "ffn_up.weight", options.ffn, dim);
    matrix(p + "ffn_down.weight", dim, options.ffn);
  }
  norm("output_norm.weight", dim);
  if (!options.tied) matrix("output.weight", tiny_vocabulary, dim);
  return model;
}

/// A source in memory that owns its bytes.
inline skald::AnyByteSource owning_source(std::vector<std::byte> bytes, std::string name = "tiny.gguf") {
  struct Owned {
    std::shared_ptr<const std::vector<std::byte>> bytes;
    [[nodiscard]] std::uint64_t size() const { return bytes->size(); }
    void read(std::uint64_t offset, std::span<std::byte> out) const {
      std::memcpy(out.data(), bytes->data() + offset, out.size());
    }
    [[nodiscard]] std::span<const std::byte> view(std::uint64_t offset, std::size_t length) const {
      return std::span(*bytes).subspan(static_cast<std::size_t>(offset), length);
    }
  };
  return {Owned{std::make_shared<const std::vector<std::byte>>(std::move(bytes))}, std::move(name)};
}
inline skald::AnyByteSource source_of(const TinyModel& model) { return owning_source(model.to_bytes()); }

}  // namespace skald_test
