#include <algorithm>

#include "backend/cpu/expert_choice.hpp"
#include "backend/cpu/phases.hpp"

namespace skald::inline v0::cpu {

namespace {

using kernels::MatmulKernel;

std::size_t aligned(std::size_t bytes) noexcept { return (bytes + 63) / 64 * 64; }
std::size_t positive(std::int64_t n) noexcept { return static_cast<std::size_t>(std::max<std::int64_t>(0, n)); }

bool wanted(const StreamLimits& limits, DType type) noexcept {
  return limits.weight_types.empty() ||
         std::find(limits.weight_types.begin(), limits.weight_types.end(), type) != limits.weight_types.end();
}

/// Whether experts may be of a weight format with these activations.
bool expert_format(const StreamLimits& limits, const KernelSet& kernels, int activation_id) noexcept {
  for (const MatmulKernel& kernel : kernels.all_matmul()) {
    if (kernel.activation_id != activation_id || kernel.alone || !wanted(limits, kernel.type)) continue;
    if (limits.expert_types.empty() ||
        std::find(limits.expert_types.begin(), limits.expert_types.end(), kernel.type) != limits.expert_types.end()) {
      return true;
    }
  }
  return false;
}

/// Most bytes over the batch sizes that a stream may meet: small ones, and the largest.
template <class F>
std::size_t most_over_counts(std::int64_t tokens, const F& bytes) {
  std::size_t most = 0;
  for (std::int64_t n = 1; n <= std::min<std::int64_t>(tokens, 64); ++n) most = std::max(most, bytes(n));
  return tokens > 0 ? std::max(most, bytes(tokens)) : most;
}

struct Matmuls {
  std::size_t private_acts = 0;
  std::size_t shared_acts = 0;
  std::size_t expert_acts = 0;
  std::size_t token_acts = 0;
  std::size_t heads = 0;
  std::size_t multiply = 0;
  std::size_t panel = 0;
  int column_block = 1;
};

Matmuls measure_matmuls(const KernelSet& kernels, const StreamLimits& limits, WorkSizes& sizes) {
  Matmuls most;
  // Whole blocks of any format.
  const std::int64_t cols = round_up(std::max<std::int64_t>(limits.max_cols, 1), 256);
  for (const MatmulKernel& kernel : kernels.all_matmul()) {
    if (!wanted(limits, kernel.type)) continue;
    most.column_block = std::max(most.column_block, kernel.column_block);
    most.panel = std::max(most.panel, kernel.panel_bytes(cols));
    most.multiply = std::max(
        most.multiply, most_over_counts(limits.tokens, [&](std::int64_t n) { return kernel.scratch_bytes(cols, n); }));
    if (limits.head_cols > 0) {
      most.heads = std::max(most.heads, most_over_counts(std::min(limits.tokens, head_columns), [&](std::int64_t n) {
                              return kernel.acts_bytes(round_up(limits.head_cols, 256), n);
                            }));
    }
    if (sizes.find_acts(kernel.activation_id) != nullptr || sizes.acts_count == WorkSizes::max_ids) continue;
    WorkSizes::Acts& place = sizes.acts[static_cast<std::size_t>(sizes.acts_count++)];
    place = {kernel.activation_id, most.shared_acts, most.private_acts, most.expert_acts, 0};
    const auto acts = [&](std::int64_t n) { return kernel.acts_bytes(cols, n); };
    // A lone token's experts have a column each.
    std::size_t lone = 0;
    if (limits.used > 0 && expert_format(limits, kernels, kernel.activation_id)) {
      const std::size_t column = kernel.acts_bytes(round_up(limits.expert_cols, 256), 1);
      lone = positive(limits.used) * column;
      place.token_offset = most.token_acts;
      if (limits.tokens > 1) most.token_acts += positive(limits.tokens) * column;
    }
    most.private_acts +=
        aligned(std::max(lone, most_over_counts(std::min(limits.tokens, private_columns), acts)));
    // The columns of an expert begin where its first pair would if each had memory of its own.
    if (limits.tokens > 1) most.expert_acts += positive(limits.tokens) * lone;
    // Few columns are prepared alone.
    std::size_t shared = 0;
    if (limits.tokens >= divided_columns) shared = positive(std::min(limits.tokens, private_columns)) * acts(1);
    if (limits.tokens > private_columns) shared = std::max(shared, most_over_counts(limits.tokens, acts));
    most.shared_acts += aligned(shared);
  }
  return most;
}

struct Attentions {
  std::size_t scratch = 0;
  std::size_t partials = 0;
  std::size_t carry = 0;
};

Attentions measure_attention(const KernelSet& kernels, const StreamLimits& limits, int participants) {
  Attentions most;
  if (limits.heads <= 0 || limits.head_dim <= 0) return most;
  const auto dim = static_cast<std::int32_t>(limits.head_dim);
  for (const kernels::AttentionKernel& kernel : kernels.all_attention()) {
    for (std::int32_t heads = 1; heads <= limits.heads; ++heads) {
      most.scratch = std::max(most.scratch, most_over_counts(limits.tokens, [&](std::int64_t rows) {
                                return kernel.scratch_bytes(dim, dim, heads, static_cast<std::int32_t>(rows));
                              }));
    }
    kernels::AttentionTask task{};
    task.rows = 1;
    task.heads = 1;
    task.layout.head_dim_k = dim;
    task.layout.head_dim_v = dim;
    if (limits.earlier)
      most.carry = std::max(most.carry, positive(std::min<std::int64_t>(limits.tokens, most_block_rows)) *
                                            positive(limits.heads) * kernel.partial_bytes(task));
    // One row of one sequence over the whole context, or as much of several.
    const std::size_t chunks = positive(limits.context) / attention_chunk + 1;
    const std::size_t one = chunks * positive(limits.heads) * aligned(kernel.partial_bytes(task));
    // Several sequences that share a prefix, within reason.
    constexpr std::size_t enough = std::size_t{32} << 20;
    const std::size_t all = one * positive(std::max<std::int64_t>(1, limits.segments));
    most.partials = std::max({most.partials, one, std::min(all, enough)});
  }
  if ((participants <= 1 && limits.segments <= 1) || limits.context <= attention_chunk) most.partials = 0;
  return most;
}

}  // namespace

WorkSizes work_sizes(const KernelSet& kernels, const StreamLimits& limits, int participants) {
  WorkSizes sizes;
  const Matmuls matmuls = measure_matmuls(kernels, limits, sizes);
  const Attentions attention = measure_attention(kernels, limits, participants);

  std::size_t at = 0;
  const auto place = [&](std::size_t bytes) {
    const std::size_t begin = at;
    at += aligned(bytes);
    return begin;
  };
  if (limits.max_cols > 0) {
    sizes.row_stride = round_up(limits.max_cols, 16);
    sizes.row_count = std::min<std::int64_t>(std::max<std::int64_t>(private_columns, matmuls.column_block),
                                             std::max<std::int64_t>(limits.tokens, 1));
    sizes.rows_offset = place(positive(sizes.row_count * sizes.row_stride) * sizeof(float));
    sizes.acts_offset = place(matmuls.private_acts);
    sizes.multiply_offset = place(matmuls.multiply);
    // Eight panels by as many columns as there may be, within what the second-level cache can hold beside the rest.
    const std::int64_t block = matmuls.column_block;
    const std::int64_t columns =
        std::min(round_up(std::max<std::int64_t>(limits.tokens, 1), block), 512 / block * block);
    sizes.tile_floats = std::max<std::int64_t>(8 * kernels::panel_rows * block,
                                               std::min<std::int64_t>(8 * kernels::panel_rows * columns, 32768));
    sizes.tile_offset = place(positive(sizes.tile_floats) * sizeof(float));
    sizes.panel_offset = place(matmuls.panel);
    sizes.heads_offset = place(matmuls.heads);
  }
  sizes.attention_offset = place(attention.scratch);
  sizes.carry_offset = place(attention.carry);
  sizes.choice_offset = place(positive(choice_scores(limits.experts)) * sizeof(double) +
                              positive(limits.used) * (sizeof(std::int32_t) + sizeof(float)));
  sizes.participant_bytes = at;

  at *= positive(participants);
  sizes.shared_acts_offset = place(limits.max_cols > 0 ? matmuls.shared_acts : 0);
  sizes.partials_bytes = attention.partials;
  sizes.partials_offset = place(attention.partials);
  if (limits.tokens > 1 && limits.used > 0) {
    sizes.routed_pairs = limits.tokens * limits.used;
    sizes.routed_experts = limits.experts;
    sizes.expert_acts_offset = place(matmuls.expert_acts);
    sizes.token_acts_offset = place(matmuls.token_acts);
    sizes.routes_offset = place(route_bytes(sizes.routed_pairs, sizes.routed_experts));
  }
  sizes.total = at;
  return sizes;
}

}  // namespace skald::inline v0::cpu
