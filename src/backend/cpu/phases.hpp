#pragma once

// What the units of each op's phases do. A Phase is plain data; plan_* functions fill it from an op.

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/cpu/cpu_weight.hpp"
#include "backend/cpu/kernel_set.hpp"
#include "backend/cpu/phase_runner.hpp"

#include <skald/backend/backend.hpp>
#include <skald/core/memory.hpp>

namespace skald::inline v0::cpu {

/// Up to this many columns every participant prepares the activations for itself: a phase of its own would be one unit
/// that the others wait for.
inline constexpr std::int64_t private_columns = 8;

/// From here on every column is prepared by one participant, alone, and each participant only puts them side by side.
inline constexpr std::int64_t divided_columns = 7;

/// Most columns of a unit of one head's product; every participant prepares them for itself.
inline constexpr std::int64_t head_columns = 96;

/// How the work memory of a stream is divided. Offsets are in bytes from the start of a part.
struct WorkSizes {
  static constexpr int max_ids = 8;

  /// Prepared activations: one place per activation format.
  struct Acts {
    int id = 0;
    std::size_t shared_offset = 0;
    std::size_t private_offset = 0;
    std::size_t expert_offset = 0;  ///< shared, all columns of all experts
    std::size_t token_offset = 0;   ///< shared, the columns of all tokens, each alone
  };
  std::array<Acts, max_ids> acts{};
  int acts_count = 0;

  // Of each participant.
  std::size_t rows_offset = 0;  ///< normalized rows
  std::int64_t row_count = 0;   ///< how many of them
  std::int64_t row_stride = 0;  ///< floats
  std::size_t acts_offset = 0;
  std::size_t multiply_offset = 0;
  std::size_t tile_offset = 0;
  std::int64_t tile_floats = 0;
  std::size_t panel_offset = 0;
  std::size_t attention_offset = 0;
  std::size_t carry_offset = 0;  ///< running results of a block of rows, if there are slots in two places
  std::size_t heads_offset = 0;   ///< prepared columns of one head
  std::size_t choice_offset = 0;  ///< scores, and a lone token's experts and shares
  std::size_t participant_bytes = 0;

  // Shared, after the participants' parts.
  std::size_t shared_acts_offset = 0;
  std::size_t partials_offset = 0;
  std::size_t partials_bytes = 0;
  std::size_t expert_acts_offset = 0;
  std::size_t token_acts_offset = 0;
  std::size_t routes_offset = 0;
  std::int64_t routed_pairs = 0;    ///< most pairs of a token and an expert of it
  std::int64_t routed_experts = 0;  ///< most experts
  std::size_t total = 0;

  [[nodiscard]] const Acts* find_acts(int id) const noexcept {
    for (int i = 0; i < acts_count; ++i) {
      if (acts[static_cast<std::size_t>(i)].id == id) return &acts[static_cast<std::size_t>(i)];
    }
    return nullptr;
  }
};

[[nodiscard]] WorkSizes work_sizes(const KernelSet& kernels, const StreamLimits& limits, int participants);

/// Rows of one segment and KV-head group in an attention op.
struct AttentionSpan {
  std::int64_t unit_begin = 0;
  std::size_t partials_offset = 0;
  std::int32_t segment = 0;
  std::int32_t group = 0;
  std::int32_t blocks = 0;       ///< row blocks
  std::int32_t first_chunk = 0;  ///< when split by chunks
  std::int32_t chunks = 0;
  std::int64_t logits_offset = -1;  ///< in ScoreSink::work; negative: they are not kept
  std::int64_t logits_slots = 0;    ///< from a head's first slot to the maxima and sums of its chunks
  std::int64_t logits_stride = 0;   ///< from head to head
};

/// A chunk of keys and values that neighbouring segments have in common.
struct SharedChunk {
  std::int32_t segment = 0;   ///< the first one
  std::int32_t segments = 1;
  std::int32_t group = 0;
  std::int32_t chunk = 0;
};

/// Chunks that follow each other and that the same neighbouring segments have in common.
struct SharedRun {
  std::int64_t unit_begin = 0;
  std::int32_t segment = 0;  ///< the first one
  std::int32_t segments = 1;
  std::int32_t group = 0;
  std::int32_t first_chunk = 0;
  std::int32_t chunks = 1;
  std::int32_t level = 0;  ///< runs that come before it for some of its rows
  std::int32_t rows = 0;
  std::int32_t blocks = 0;  ///< row blocks
};

/// What all phases of a stream share.
struct StreamState {
  const KernelSet& kernels;
  int participants;
  WorkSizes sizes;
  AlignedBuffer memory;
  std::vector<AttentionSpan> spans{};
  std::vector<SharedChunk> shared_chunks{};
  std::vector<SharedRun> shared_runs{};
  std::vector<std::int32_t> shared_levels{};  ///< of each segment and group, while runs are listed
  std::uint64_t kv_bytes_read = 0;    ///< by attention, from pages
  std::uint64_t kv_bytes_shared = 0;  ///< not read, because sequences read them together
  std::uint64_t weight_bytes_read = 0;  ///< by linear maps

  [[nodiscard]] std::byte* shared_acts() noexcept { return memory.data() + sizes.shared_acts_offset; }
  [[nodiscard]] std::byte* expert_acts() noexcept { return memory.data() + sizes.expert_acts_offset; }
  [[nodiscard]] std::byte* token_acts() noexcept { return memory.data() + sizes.token_acts_offset; }
  [[nodiscard]] std::byte* partials() noexcept { return memory.data() + sizes.partials_offset; }
};

struct LinearPartPlan {
  const CpuWeight* weight = nullptr;
  std::size_t acts_offset = 0;
  std::int64_t unit_begin = 0;
  std::int64_t panel_ranges = 0;
};
struct LinearPlan {
  std::int64_t columns = 0;
  std::int64_t unit_panels = 0;
  std::int64_t unit_columns = 0;
  std::int64_t column_block = 1;
  std::array<LinearPartPlan, 3> parts{};
  int part_count = 0;  ///< parts with units of their own: 1 for `gated`
  bool private_acts = false;  ///< every participant has a copy of the prepared columns
  bool divided = false;       ///< and they were prepared by a phase of their own
};
struct RowsPlan {
  std::int64_t unit_rows = 0;
  std::int64_t unit_cols = 0;
  std::int64_t pieces = 1;  ///< pieces of a row
};
/// Most rows of a unit of attention.
inline constexpr std::int32_t most_block_rows = 64;

struct AttentionPlan {
  std::size_t span_begin = 0;
  std::size_t span_count = 0;
  std::int32_t block_rows = 0;
  std::size_t partial_stride = 0;
  std::int32_t chunks = 0;  ///< most chunks of a segment, when neighbours share them
};

struct ExpertsPlan {
  const CpuWeight* gate = nullptr;
  const CpuWeight* up = nullptr;
  const CpuWeight* down = nullptr;
  std::int64_t unit_tokens = 0;
  std::int64_t unit_panels = 0;
  std::int64_t panel_ranges = 0;  ///< units of one expert
  std::int64_t column_block = 1;
};

struct HeadsPlan {
  const CpuWeight* weight = nullptr;
  std::int64_t unit_columns = 0;
  std::int64_t column_ranges = 0;  ///< units of one head
};

/// Units are a segment by some columns (or heads).
struct RecurrentPlan {
  std::int64_t unit_columns = 0;
  std::int64_t ranges = 0;  ///< units of one segment
};

struct Phase : PhaseHead {
  StreamState* state = nullptr;
  const Op* op = nullptr;
  union {
    LinearPlan linear;
    RowsPlan rows;
    AttentionPlan attention;
    ExpertsPlan experts;
    HeadsPlan heads;
    RecurrentPlan recurrent;
  };
  Phase() noexcept : linear{} {}
};

/// Appends the phases of an op whose shapes and host data were checked.
void plan_linear(StreamState& state, const Op& op, std::vector<Phase>& phases);
void plan_delta_input(StreamState& state, const Op& op, std::vector<Phase>& phases);
void plan_rows(StreamState& state, const Op& op, std::vector<Phase>& phases);
/// Rows [first_row, first_row + rows) of a segment and one KV head of a group.
[[nodiscard]] kernels::AttentionTask make_attention_task(const AttentionOp& op, std::int32_t segment_index,
                                                         std::int32_t group, std::int32_t head, std::int32_t first_row,
                                                         std::int32_t rows) noexcept;
/// Phases that read what neighbouring segments have in common once. @return false if there is too little of that.
bool plan_shared_attention(StreamState& state, const Op& whole, const AttentionOp& op, std::vector<Phase>& phases);
void plan_attention(StreamState& state, const Op& op, std::vector<Phase>& phases);
void plan_experts(StreamState& state, const Op& op, std::vector<Phase>& phases);
void plan_heads(StreamState& state, const Op& op, std::vector<Phase>& phases);
/// @return false if the op has no recurrent state.
bool plan_recurrent(StreamState& state, const Op& op, std::vector<Phase>& phases);

/// A part of a product: panels of a weight by columns of prepared activations.
struct Tile {
  std::int64_t panel, panels;  ///< first panel, number of panels
  std::int64_t row, rows;      ///< rows in them, counted within the matrix
  std::int64_t begin, end;     ///< columns
  const std::byte* next = nullptr;  ///< weights that will be read afterwards, if not those behind the panels
};
/// out[c * stride + r] = products of the tile; `out` is the tile's first element, `acts` holds `count` columns as `kernel`
/// (the weight's, or its linear_kernel) prepared them, `memory` is the participant's.
void multiply_tile(const StreamState& state, const CpuWeight& weight, const kernels::MatmulKernel& kernel, const Tile& tile,
                   const std::byte* acts, std::int64_t count, std::byte* memory, float* out, std::int64_t stride) noexcept;

/// Bytes of the tables that say which columns go to which expert.
[[nodiscard]] std::size_t route_bytes(std::int64_t pairs, std::int64_t experts) noexcept;

[[nodiscard]] inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept { return (a + b - 1) / b; }
[[nodiscard]] inline std::int64_t round_up(std::int64_t a, std::int64_t b) noexcept { return ceil_div(a, b) * b; }

/// y = norm(x) for one row; they may be the same memory.
inline void normalize(const kernels::RowKernels& rows, const Norm& norm, const float* x, std::int64_t n,
                      float* y) noexcept {
  if (norm.kind == NormKind::rms) {
    rows.rms_norm(x, norm.weight, norm.epsilon, n, y);
  } else if (norm.kind == NormKind::layer) {
    rows.layer_norm(x, norm.weight, norm.bias, norm.epsilon, n, y);
  } else if (x != y) {
    __builtin_memcpy(y, x, static_cast<std::size_t>(n) * sizeof(float));
  }
}

}  // namespace skald::inline v0::cpu
