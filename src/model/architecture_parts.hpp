#pragma once

// What readers of several architectures share.

#include <cstdint>
#include <vector>

#include <skald/model/hyper_parameters.hpp>

namespace skald::inline v0 {

struct AttentionSizes {
  std::vector<std::int64_t> heads;
  std::vector<std::int64_t> kv_heads;
  std::int64_t head_dim_k = 0;
  std::int64_t head_dim_v = 0;
};

/// Heads of every layer, at least `least`, and their sizes.
[[nodiscard]] AttentionSizes read_attention_sizes(HyperParameters& parameters, std::int64_t layers, std::int64_t dim,
                                                  std::int64_t least = 1);

/// A factor: absent or 0 means `otherwise`.
[[nodiscard]] double read_scale(HyperParameters& parameters, std::string_view name, double otherwise);

/// Experts of a network, nothing if it has none. `known`: the architecture may have them.
[[nodiscard]] std::optional<ExpertsSpec> read_experts(HyperParameters& parameters, bool known);

// Mixtures of experts.
[[nodiscard]] ModelSpec read_qwen2moe(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_qwen3moe(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_olmoe(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_gpt_oss(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_deepseek2(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_granitemoe(HyperParameters& parameters);


// Networks with recurrent layers.
[[nodiscard]] ModelSpec read_mamba(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_mamba2(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_jamba(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_falcon_h1(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_granitehybrid(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_nemotron_h(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_lfm2(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_rwkv6(HyperParameters& parameters);
[[nodiscard]] ModelSpec read_rwkv7(HyperParameters& parameters);

}  // namespace skald::inline v0
