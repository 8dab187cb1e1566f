#pragma once

// Tiny models that differ in their attention alone.

#include <functional>
#include <string>
#include <utility>

#include <skald/model/decoder_traits.hpp>

#include "support/tiny_model.hpp"

namespace skald_test {

/// A llama model of that shape, loaded with a change of what the file's spec says.
inline skald::Model changed_model(const TinyShape& shape, skald::LoadOptions options,
                                  const std::function<void(skald::ModelSpec&)>& change) {
  options.architectures.push_back({"llama", "changed", [change](skald::HyperParameters& parameters) {
                                     auto spec = skald::read_decoder(parameters, {});
                                     change(spec);
                                     return spec;
                                   }});
  return tiny_model(shape, std::move(options));
}

/// Multi-head latent attention, one dense layer after the other: rank 64, a rotated part of 32.
inline skald::Model tiny_latent_model(const TinyShape& shape, skald::LoadOptions options) {
  skald::GgufWriter writer;
  const auto set = [&](const std::string& key, auto value) { writer.set("deepseek2." + key, skald::MetadataValue(value)); };
  const auto whole = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
  writer.set("general.architecture", skald::MetadataValue(std::string("deepseek2")));
  constexpr std::int64_t rank = 64;
  constexpr std::int64_t rotated = 32;
  set("context_length", whole(shape.context));
  set("embedding_length", whole(shape.dim));
  set("block_count", whole(shape.layers));
  set("leading_dense_block_count", whole(shape.layers));
  set("feed_forward_length", whole(shape.ffn));
  set("attention.head_count", whole(shape.heads));
  set("attention.kv_lora_rank", whole(rank));
  set("attention.key_length_mla", whole(shape.head_dim));
  set("attention.value_length_mla", whole(shape.head_dim));
  set("attention.layer_norm_rms_epsilon", 1e-5F);
  set("rope.dimension_count", whole(rotated));
  set("vocab_size", whole(shape.vocabulary));
  TinyTensors add{writer, shape.seed};
  add.matrix("token_embd.weight", {shape.dim, shape.vocabulary}, shape.type, 1.5F);
  add.vector("output_norm.weight", shape.dim);
  add.matrix("output.weight", {shape.dim, shape.vocabulary}, shape.type);
  for (std::int64_t l = 0; l < shape.layers; ++l) {
    const auto layer = "blk." + std::to_string(l) + ".";
    add.vector(layer + "attn_norm.weight", shape.dim);
    add.matrix(layer + "attn_q.weight", {shape.dim, shape.heads * shape.head_dim}, shape.type);
    add.matrix(layer + "attn_kv_a_mqa.weight", {shape.dim, rank + rotated}, shape.type);
    add.vector(layer + "attn_kv_a_norm.weight", rank);
    // Rows of these are shorter than the blocks of some formats.
    add.matrix(layer + "attn_k_b.weight", {shape.head_dim - rotated, rank, shape.heads}, skald::DType::f16);
    add.matrix(layer + "attn_v_b.weight", {rank, shape.head_dim, shape.heads}, skald::DType::f16);
    add.matrix(layer + "attn_output.weight", {shape.heads * shape.head_dim, shape.dim}, shape.type);
    add.vector(layer + "ffn_norm.weight", shape.dim);
    add.matrix(layer + "ffn_gate.weight", {shape.dim, shape.ffn}, shape.type);
    add.matrix(layer + "ffn_up.weight", {shape.dim, shape.ffn}, shape.type);
    add.matrix(layer + "ffn_down.weight", {shape.ffn, shape.dim}, shape.type);
  }
  return load_tiny(writer.to_bytes(), std::move(options));
}

/// "gqa": grouped heads; "mha": a KV head per query head; "mla": latent rows; "window": a layer with a window of 40 tokens
/// before one without.
inline skald::Model tiny_attention_model(const std::string& kind, TinyShape shape, const skald::LoadOptions& options) {
  if (kind == "mla") return tiny_latent_model(shape, options);
  if (kind == "mha") shape.kv_heads = shape.heads;
  if (kind != "window") return tiny_model(shape, options);
  shape.layers = 2;
  return changed_model(shape, options, [](skald::ModelSpec& spec) { spec.layers[0].attention->window = 40; });
}

}  // namespace skald_test
