#pragma once

// What readers of several architectures share.

#include <cstdint>
#include <vector>

#include "model/hyper_parameters.hpp"

namespace skald::inline v0 {

struct AttentionSizes {
  std::vector<std::int64_t> heads;
  std::vector<std::int64_t> kv_heads;
  std::int64_t head_dim_k = 0;
  std::int64_t head_dim_v = 0;
};

/// The number of layers, checked against the tensors of the file.
[[nodiscard]] std::int64_t read_layer_count(HyperParameters& parameters);

/// Heads of every layer and their sizes.
[[nodiscard]] AttentionSizes read_attention_sizes(HyperParameters& parameters, std::int64_t layers, std::int64_t dim);

// Mixtures of experts.
[[nodiscard]] ModelSpec read_qwen2moe(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_qwen3moe(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_gpt_oss(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_deepseek2(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_granitemoe(HyperParameters& parameters);

}  // namespace skald::inline v0
