#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/core/random.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/model/model.hpp>
#include <skald/text/vocabulary.hpp>
#include <skald/quant/row_codec.hpp>

namespace skald_test {

/// Shape of a random-weight llama model.
struct TinyShape {
  std::int64_t vocabulary = 320;
  std::int64_t dim = 256;
  std::int64_t layers = 2;
  std::int64_t heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t head_dim = 64;
  std::int64_t ffn = 512;
  std::int64_t experts = 0;  // 0: one network per layer
  std::int64_t experts_used = 2;
  std::int64_t context = 2048;
  std::int64_t long_rope_above = 0;  // tokens of context from which on other rotary factors are used; 0: never
  skald::DType type = skald::DType::f32;
  std::uint64_t seed = 1;
};

/// Adds tensors of random values, which depend on the seed and on how many tensors were added before.
struct TinyTensors {
  skald::GgufWriter& writer;
  std::uint64_t seed = 1;
  std::uint64_t count = 0;

  void add(const std::string& name, std::vector<std::int64_t> dims, skald::DType type, float mean, float spread) {
    skald::CounterRandom random(seed, count++, 0);
    std::vector<float> row(static_cast<std::size_t>(dims[0]));
    std::int64_t rows = 1;
    for (std::size_t i = 1; i < dims.size(); ++i) rows *= dims[i];
    std::vector<std::byte> bytes;
    const auto bytes_per_row = skald::row_bytes(type, row.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      for (float& value : row) {
        double sum = 0;  // near enough to normal
        for (int i = 0; i < 4; ++i) sum += random.uniform() - 0.5;
        value = mean + spread * static_cast<float>(sum);
      }
      bytes.resize(bytes.size() + bytes_per_row);
      skald::encode_row(type, row, std::span(bytes).last(bytes_per_row));
    }
    writer.add_tensor(name, type, dims, bytes);
  }
  /// Innermost dimension first. The default spread keeps the size of what is multiplied.
  void matrix(const std::string& name, std::vector<std::int64_t> dims, skald::DType type, float spread = 0.0F) {
    const float usual = 2.0F / std::sqrt(static_cast<float>(dims[0]));
    add(name, std::move(dims), type, 0.0F, spread > 0.0F ? spread : usual);
  }
  void vector(const std::string& name, std::int64_t size) { add(name, {size}, skald::DType::f32, 1.0F, 0.2F); }
};

/// A whole GGUF file of such a model, weights encoded by the library; no tokenizer.
inline std::vector<std::byte> tiny_gguf(const TinyShape& shape) {
  skald::GgufWriter writer;
  const auto set = [&](const std::string& key, auto value) { writer.set(key, skald::MetadataValue(value)); };
  set("general.architecture", std::string("llama"));
  set("llama.context_length", static_cast<std::uint32_t>(shape.context));
  set("llama.embedding_length", static_cast<std::uint32_t>(shape.dim));
  set("llama.block_count", static_cast<std::uint32_t>(shape.layers));
  set("llama.feed_forward_length", static_cast<std::uint32_t>(shape.ffn));
  set("llama.attention.head_count", static_cast<std::uint32_t>(shape.heads));
  set("llama.attention.head_count_kv", static_cast<std::uint32_t>(shape.kv_heads));
  set("llama.attention.key_length", static_cast<std::uint32_t>(shape.head_dim));
  set("llama.attention.value_length", static_cast<std::uint32_t>(shape.head_dim));
  set("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  set("llama.rope.dimension_count", static_cast<std::uint32_t>(shape.head_dim));
  set("llama.vocab_size", static_cast<std::uint32_t>(shape.vocabulary));
  if (shape.experts > 0) {
    set("llama.expert_count", static_cast<std::uint32_t>(shape.experts));
    set("llama.expert_used_count", static_cast<std::uint32_t>(shape.experts_used));
  }

  TinyTensors add{writer, shape.seed};
  if (shape.long_rope_above > 0) {
    set("llama.rope.scaling.original_context_length", static_cast<std::uint32_t>(shape.long_rope_above));
    add.add("rope_factors_short.weight", {shape.head_dim / 2}, skald::DType::f32, 1.0F, 0.0F);
    add.add("rope_factors_long.weight", {shape.head_dim / 2}, skald::DType::f32, 4.0F, 1.0F);
  }
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    add.matrix(name, {cols, rows}, shape.type);
  };
  const auto vector = [&](const std::string& name, std::int64_t cols) { add.vector(name, cols); };
  add.matrix("token_embd.weight", {shape.dim, shape.vocabulary}, shape.type, 1.5F);
  vector("output_norm.weight", shape.dim);
  matrix("output.weight", shape.vocabulary, shape.dim);
  for (std::int64_t l = 0; l < shape.layers; ++l) {
    const std::string layer = "blk." + std::to_string(l) + ".";
    vector(layer + "attn_norm.weight", shape.dim);
    matrix(layer + "attn_q.weight", shape.heads * shape.head_dim, shape.dim);
    matrix(layer + "attn_k.weight", shape.kv_heads * shape.head_dim, shape.dim);
    matrix(layer + "attn_v.weight", shape.kv_heads * shape.head_dim, shape.dim);
    matrix(layer + "attn_output.weight", shape.dim, shape.heads * shape.head_dim);
    vector(layer + "ffn_norm.weight", shape.dim);
    if (shape.experts > 0) {
      const auto stack = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
        add.matrix(name, {cols, rows, shape.experts}, shape.type);
      };
      add.matrix(layer + "ffn_gate_inp.weight", {shape.dim, shape.experts}, skald::DType::f32, 0.1F);
      stack(layer + "ffn_gate_exps.weight", shape.ffn, shape.dim);
      stack(layer + "ffn_up_exps.weight", shape.ffn, shape.dim);
      stack(layer + "ffn_down_exps.weight", shape.dim, shape.ffn);
      continue;
    }
    matrix(layer + "ffn_gate.weight", shape.ffn, shape.dim);
    matrix(layer + "ffn_up.weight", shape.ffn, shape.dim);
    matrix(layer + "ffn_down.weight", shape.dim, shape.ffn);
  }
  return writer.to_bytes();
}

/// A model from the bytes of its file.
inline skald::Model load_tiny(std::vector<std::byte> bytes, skald::LoadOptions options) {
  options.tokenizer = false;
  const auto keep = std::make_shared<std::vector<std::byte>>(std::move(bytes));
  return skald::Model::load(skald::AnyByteSource(skald::CallbackSource(keep->size(),
                                                                       [keep](std::uint64_t offset, std::span<std::byte> out) {
                                                                         std::memcpy(out.data(), keep->data() + offset, out.size());
                                                                       }),
                                                 "tiny"),
                            options);
}

/// Such a model, loaded.
inline skald::Model tiny_model(const TinyShape& shape, skald::LoadOptions options = {}) {
  return load_tiny(tiny_gguf(shape), std::move(options));
}

/// Tokens that look random but are the same every time.
inline std::vector<skald::TokenId> some_tokens(std::int64_t count, std::int64_t vocabulary, std::uint64_t seed = 5) {
  skald::CounterRandom random(seed, 0, 0);
  std::vector<skald::TokenId> tokens;
  for (std::int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<skald::TokenId>(random.next() % static_cast<std::uint32_t>(vocabulary)));
  return tokens;
}

}  // namespace skald_test
