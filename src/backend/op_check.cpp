#include "backend/op_check.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include <skald/core/error.hpp>

namespace skald::inline v0::detail {

namespace {

using Fault = std::optional<std::string>;

constexpr std::int64_t max_extent = std::int64_t{1} << 40;

Fault matrix_fault(const Matrix& m, std::string_view name) {
  if (m.rows < 0 || m.cols <= 0 || m.rows > max_extent || m.cols > max_extent || m.stride < m.cols ||
      m.stride > max_extent) {
    return fmt::format("{} is {} x {} with stride {}; rows must be >= 0, columns >= 1, the stride >= columns", name,
                       m.rows, m.cols, m.stride);
  }
  return {};
}

Fault same_shape(const Matrix& a, const Matrix& b, std::string_view a_name, std::string_view b_name) {
  if (auto fault = matrix_fault(a, a_name)) return fault;
  if (auto fault = matrix_fault(b, b_name)) return fault;
  if (a.rows != b.rows || a.cols != b.cols) {
    return fmt::format("{} is {} x {} but {} is {} x {}", a_name, a.rows, a.cols, b_name, b.rows, b.cols);
  }
  return {};
}

Fault norm_fault(const Norm& norm, std::string_view name) {
  if (norm.kind > NormKind::layer) return fmt::format("{} has an unknown kind", name);
  if (norm.kind != NormKind::none && !(norm.epsilon >= 0.0F)) return fmt::format("{} has a negative epsilon", name);
  return {};
}

Fault kv_fault(const KvLayer& kv, std::int32_t heads, std::int32_t kv_heads) {
  const KvPageLayout& layout = kv.layout;
  if (heads <= 0 || kv_heads <= 0 || heads % kv_heads != 0) {
    return fmt::format("{} query heads over {} KV heads; the first must be a multiple of the second", heads, kv_heads);
  }
  if (!KvPageLayout::supports(layout.dtype)) {
    return fmt::format("KV pages of {}; there are f32, f16, bf16, q8_0, q4_0, q4_1", to_string(layout.dtype));
  }
  if (layout.page_tokens <= 0 || layout.page_tokens % KvPageLayout::lane_tokens != 0 ||
      attention_chunk % layout.page_tokens != 0) {
    return fmt::format("KV pages of {} slots; must be a multiple of {} that divides {}", layout.page_tokens,
                       KvPageLayout::lane_tokens, attention_chunk);
  }
  if (layout.heads <= 0 || layout.head_dim_k <= 0 || layout.head_dim_v <= 0 || layout.head_dim_k > 65536 ||
      layout.head_dim_v > 65536) {
    return fmt::format("KV pages of {} heads with {} + {} elements", layout.heads, layout.head_dim_k,
                       layout.head_dim_v);
  }
  if (layout.values_in_keys && layout.head_dim_v > layout.head_dim_k) {
    return fmt::format("values of {} elements in keys of {}", layout.head_dim_v, layout.head_dim_k);
  }
  if (std::int64_t{kv.groups} * layout.heads != kv_heads) {
    return fmt::format("{} KV groups of {} heads are not {} KV heads", kv.groups, layout.heads, kv_heads);
  }
  return {};
}

Fault cols_fault(const Matrix& m, std::int64_t heads, std::int64_t head_dim, std::string_view name) {
  if (auto fault = matrix_fault(m, name)) return fault;
  if (m.cols != heads * head_dim) {
    return fmt::format("{} has {} columns; {} heads of {} need {}", name, m.cols, heads, head_dim, heads * head_dim);
  }
  return {};
}

Fault single_fault(const Weight* weight, std::string_view name) {
  if (weight == nullptr || weight->matrices() == 1) return {};
  return fmt::format("{} is a stack of {} matrices", name, weight->matrices());
}

Fault stack_fault(const Weight* weight, std::int64_t matrices, std::int64_t rows, std::int64_t cols,
                  std::string_view name) {
  if (weight == nullptr) return {};
  if (weight->matrices() == matrices && weight->rows() == matrices * rows && weight->cols() == cols) return {};
  return fmt::format("{} is {} matrices of {} x {}; needed {} of {} x {}", name, weight->matrices(),
                     weight->rows() / weight->matrices(), weight->cols(), matrices, rows, cols);
}

Fault state_fault(const StateLayer& state) {
  if (state.offset < 0 || state.offset > max_extent) return fmt::format("a state from element {} on", state.offset);
  if (state.segment_count < 0) return fmt::format("{} segments", state.segment_count);
  return {};
}

struct ShapeCheck {
  Fault operator()(const EmbedOp& op) const {
    if (auto fault = matrix_fault(op.out, "out")) return fault;
    if (auto fault = single_fault(op.table, "table")) return fault;
    if (op.table != nullptr && op.table->cols() != op.out.cols) {
      return fmt::format("the table has {} columns, out {}", op.table->cols(), op.out.cols);
    }
    return {};
  }
  Fault operator()(const UploadOp& op) const { return matrix_fault(op.out, "out"); }
  Fault operator()(const DownloadOp& op) const { return matrix_fault(op.x, "x"); }
  Fault operator()(const NormOp& op) const {
    if (auto fault = norm_fault(op.norm, "norm")) return fault;
    if (auto fault = same_shape(op.x, op.out, "x", "out")) return fault;
    if (op.groups < 1 || op.x.cols % op.groups != 0) return fmt::format("{} groups of {} columns", op.groups, op.x.cols);
    return {};
  }
  Fault operator()(const AddOp& op) const { return same_shape(op.x, op.y, "x", "y"); }
  Fault operator()(const MultiplyOp& op) const { return same_shape(op.x, op.y, "x", "y"); }
  Fault operator()(const LerpOp& op) const {
    if (auto fault = same_shape(op.x, op.y, "x", "y")) return fault;
    return same_shape(op.x, op.weight, "x", "weight");
  }
  Fault operator()(const ConvOp& op) const {
    if (auto fault = same_shape(op.x, op.out, "x", "out")) return fault;
    if (auto fault = state_fault(op.state)) return fault;
    if (op.activation > Activation::sigmoid) return "unknown activation";
    if (op.taps < 2 || op.taps > most_conv_taps) return fmt::format("{} taps; allowed: 2 to {}", op.taps, most_conv_taps);
    return {};
  }
  Fault operator()(const ScanOp& op) const {
    if (auto fault = state_fault(op.state)) return fault;
    for (const auto& [matrix, name] : {std::pair(&op.gate, "gate"), std::pair(&op.out, "out")}) {
      if (auto fault = same_shape(op.x, *matrix, "x", name)) return fault;
    }
    if (op.heads < 1 || op.groups < 1 || op.size < 1 || op.x.cols % op.heads != 0 || op.heads % op.groups != 0) {
      return fmt::format("{} columns in {} heads in {} groups with {} elements of state", op.x.cols, op.heads, op.groups,
                         op.size);
    }
    if (auto fault = cols_fault(op.steps, op.heads, 1, "steps")) return fault;
    if (auto fault = cols_fault(op.b, op.groups, op.size, "b")) return fault;
    if (auto fault = cols_fault(op.c, op.groups, op.size, "c")) return fault;
    if (op.steps.rows != op.x.rows || op.b.rows != op.x.rows || op.c.rows != op.x.rows) {
      return fmt::format("x, steps, b, c have {}, {}, {}, {} rows", op.x.rows, op.steps.rows, op.b.rows, op.c.rows);
    }
    return {};
  }
  Fault operator()(const TokenShiftOp& op) const {
    if (auto fault = matrix_fault(op.x, "x")) return fault;
    if (auto fault = matrix_fault(op.out, "out")) return fault;
    if (auto fault = state_fault(op.state)) return fault;
    if (op.out.rows != op.x.rows || op.out.cols % op.x.cols != 0) {
      return fmt::format("x is {} x {}, out {} x {}", op.x.rows, op.x.cols, op.out.rows, op.out.cols);
    }
    if (op.more.cols == 0) return {};
    return same_shape(op.out, op.more, "out", "more");
  }
  Fault operator()(const WkvOp& op) const {
    if (op.version != 6 && op.version != 7) return fmt::format("version {}; there are 6 and 7", op.version);
    if (auto fault = matrix_fault(op.r, "r")) return fault;
    if (auto fault = state_fault(op.state)) return fault;
    if (auto fault = norm_fault(op.norm, "norm")) return fault;
    if (op.heads < 1 || op.r.cols % op.heads != 0 || op.r.cols / op.heads > most_wkv_size) {
      return fmt::format("{} columns in {} heads; allowed: up to {} for each", op.r.cols, op.heads, most_wkv_size);
    }
    for (const auto& [matrix, name] : {std::pair(&op.k, "k"), std::pair(&op.v, "v"), std::pair(&op.decay, "decay"),
                                       std::pair(&op.out, "out")}) {
      if (auto fault = same_shape(op.r, *matrix, "r", name)) return fault;
    }
    if (op.version == 7) {
      if (auto fault = same_shape(op.r, op.rate, "r", "rate")) return fault;
    }
    if (op.gate.cols == 0) return {};
    return same_shape(op.r, op.gate, "r", "gate");
  }
  Fault operator()(const SoftcapOp& op) const {
    if (!(op.softcap >= 0.0F)) return fmt::format("softcap is {}", op.softcap);
    return matrix_fault(op.x, "x");
  }
  Fault operator()(const HostOp& op) const {
    if (op.units < 0) return fmt::format("{} units", op.units);
    return std::nullopt;
  }
  Fault operator()(const ClampOp& op) const {
    if (!(op.limit >= 0.0F)) return fmt::format("limit is {}", op.limit);
    return matrix_fault(op.x, "x");
  }
  Fault operator()(const RopeTableOp& op) const {
    if (auto fault = matrix_fault(op.out, "out")) return fault;
    if (op.out.cols % 2 != 0) return fmt::format("out has {} columns; must be even", op.out.cols);
    return {};
  }

  Fault operator()(const DeltaInputOp& op) const {
    if (auto fault = matrix_fault(op.x, "x")) return fault;
    if (auto fault = norm_fault(op.norm, "norm")) return fault;
    if (op.delta_count < 0) return fmt::format("{} deltas", op.delta_count);
    if (op.rows == nullptr && op.row_count != 0) return fmt::format("{} row numbers but no array", op.row_count);
    return {};
  }

  Fault operator()(const LinearOp& op) const {
    if (auto fault = matrix_fault(op.x, "x")) return fault;
    if (auto fault = norm_fault(op.norm, "norm")) return fault;
    if (op.part_count < 1 || op.part_count > 3) return fmt::format("{} parts; allowed: 1 to 3", op.part_count);
    if (op.rows == nullptr && op.row_count != 0) return fmt::format("{} row numbers but no array", op.row_count);
    if (op.row_count < 0) return fmt::format("{} row numbers", op.row_count);
    if (op.activation > Activation::sigmoid) return "unknown activation";
    if (op.epilogue > LinearEpilogue::gated) return "unknown epilogue";
    if (op.epilogue == LinearEpilogue::add && op.activation != Activation::none) {
      return "an activation with the epilogue 'add'";
    }
    if (op.epilogue == LinearEpilogue::gated) {
      if (op.part_count != 2) return fmt::format("the epilogue 'gated' with {} parts; needs 2", op.part_count);
      if (op.scale != 1.0F) return "a scale with the epilogue 'gated'";
      const Weight* a = op.parts[0].weight;
      const Weight* b = op.parts[1].weight;
      if (a != nullptr && b != nullptr && a->rows() != b->rows()) {
        return fmt::format("gate has {} rows, up has {}", a->rows(), b->rows());
      }
    }
    const std::int64_t rows = input_rows(op);
    for (std::int32_t i = 0; i < op.part_count; ++i) {
      const LinearPart& part = op.parts[static_cast<std::size_t>(i)];
      if (auto fault = single_fault(part.weight, "weight")) return fault;
      if (part.weight != nullptr && part.weight->cols() != op.x.cols) {
        return fmt::format("weight {} has {} columns, x has {}", i, part.weight->cols(), op.x.cols);
      }
      if (op.epilogue == LinearEpilogue::gated && i == 1) continue;
      if (auto fault = matrix_fault(part.out, "out")) return fault;
      if (part.out.rows != rows) return fmt::format("out {} has {} rows, the input {}", i, part.out.rows, rows);
      if (part.weight != nullptr && part.weight->rows() != part.out.cols) {
        return fmt::format("weight {} has {} rows, out {} columns", i, part.weight->rows(), part.out.cols);
      }
    }
    return {};
  }

  Fault operator()(const ExpertsOp& op) const {
    if (auto fault = same_shape(op.x, op.out, "x", "out")) return fault;
    if (auto fault = norm_fault(op.norm, "norm")) return fault;
    for (const auto& [matrix, name] : {std::pair(&op.logits, "logits"), std::pair(&op.inner, "inner"),
                                       std::pair(&op.products, "products")}) {
      if (auto fault = matrix_fault(*matrix, name)) return fault;
    }
    const std::int64_t experts = op.logits.cols;
    if (op.used < 1 || op.used > experts) {
      return fmt::format("{} experts used of {}; allowed: 1 to all", op.used, experts);
    }
    if (op.gating > ExpertGating::sigmoid) return "unknown gating";
    if (op.groups < 1 || experts % op.groups != 0 || op.groups_used < 1 || op.groups_used > op.groups ||
        op.used > experts / op.groups * op.groups_used) {
      return fmt::format("{} of {} groups of {} experts for {} used", op.groups_used, op.groups, experts, op.used);
    }
    if (op.groups > 1 && experts / op.groups < 2) return "groups of one expert";
    if (op.group_best != 1 && op.group_best != 2) return fmt::format("group_best is {}; allowed: 1, 2", op.group_best);
    if (!(op.gate_limit >= 0.0F)) return fmt::format("gate_limit is {}", op.gate_limit);
    if (op.activation > Activation::sigmoid) return "unknown activation";
    if (op.logits.rows != op.x.rows) return fmt::format("logits has {} rows, x has {}", op.logits.rows, op.x.rows);
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    const std::int64_t pairs = std::min(op.x.rows, most) * op.used;
    if (experts > most || pairs > most) {
      return fmt::format("{} tokens with {} of {} experts; too many to count", op.x.rows, op.used, experts);
    }
    if (op.inner.rows != pairs || op.products.rows != pairs || op.products.cols != op.x.cols) {
      return fmt::format("inner is {} x {}, products {} x {}; needed {} rows, products of {} columns", op.inner.rows,
                         op.inner.cols, op.products.rows, op.products.cols, pairs, op.x.cols);
    }
    if (auto fault = stack_fault(op.gate, experts, op.inner.cols, op.x.cols, "gate")) return fault;
    if (auto fault = stack_fault(op.up, experts, op.inner.cols, op.x.cols, "up")) return fault;
    return stack_fault(op.down, experts, op.x.cols, op.inner.cols, "down");
  }

  Fault operator()(const GateRowsOp& op) const {
    if (auto fault = matrix_fault(op.x, "x")) return fault;
    if (auto fault = matrix_fault(op.logits, "logits")) return fault;
    if (op.logits.rows == op.x.rows && op.logits.cols == 1) return {};
    return fmt::format("logits is {} x {}, needed {} x 1", op.logits.rows, op.logits.cols, op.x.rows);
  }

  Fault operator()(const DropOp& op) const {
    if (auto fault = matrix_fault(op.gates, "gates")) return fault;
    if (op.gates.cols % 2 != 0) return fmt::format("{} columns are not queries and keys of a width", op.gates.cols);
    if (op.segment_count < 0) return "a negative number of segments";
    return {};
  }

  Fault operator()(const HeadLinearOp& op) const {
    if (auto fault = matrix_fault(op.x, "x")) return fault;
    if (auto fault = matrix_fault(op.out, "out")) return fault;
    if (op.x.rows != op.out.rows) return fmt::format("x has {} rows, out {}", op.x.rows, op.out.rows);
    if (op.heads < 1 || op.tail < 0) return fmt::format("{} heads with tails of {}", op.heads, op.tail);
    if (op.weight == nullptr) return {};
    if (op.weight->matrices() != op.heads) {
      return fmt::format("weight has {} matrices for {} heads", op.weight->matrices(), op.heads);
    }
    const auto fits = [&](const Matrix& m, std::int64_t step, std::int64_t elements) {
      return step >= elements && m.cols >= elements && (m.cols - elements) / step >= op.heads - 1;
    };
    const std::int64_t rows = op.weight->rows() / op.heads;
    if (!fits(op.x, op.x_step, op.weight->cols() + op.tail)) {
      return fmt::format("x has {} columns for {} heads of {} + {} elements, {} apart", op.x.cols, op.heads,
                         op.weight->cols(), op.tail, op.x_step);
    }
    if (!fits(op.out, op.out_step, rows + op.tail)) {
      return fmt::format("out has {} columns for {} heads of {} + {} elements, {} apart", op.out.cols, op.heads, rows,
                         op.tail, op.out_step);
    }
    return {};
  }

  Fault operator()(const StoreKvOp& op) const {
    if (auto fault = kv_fault(op.kv, op.heads, op.kv_heads)) return fault;
    const KvPageLayout& layout = op.kv.layout;
    const bool queries = op.q.cols != 0 || op.q.rows != 0 || op.q.data != nullptr;
    if (queries) {
      if (auto fault = cols_fault(op.q, op.heads, layout.head_dim_k, "q")) return fault;
    }
    const bool keys = op.k.data != nullptr || op.k.cols != 0;
    if (!keys && !queries) return "there are neither queries nor keys";
    if (keys)
      if (auto fault = cols_fault(op.k, op.kv_heads, layout.head_dim_k, "k")) return fault;
    if (keys && !layout.values_in_keys) {
      if (auto fault = cols_fault(op.v, op.kv_heads, layout.head_dim_v, "v")) return fault;
    }
    if ((queries && op.q.rows != op.k.rows) || (keys && !layout.values_in_keys && op.k.rows != op.v.rows)) {
      return fmt::format("q, k, v have {}, {}, {} rows", op.q.rows, op.k.rows, op.v.rows);
    }
    if (auto fault = norm_fault(op.q_norm, "q_norm")) return fault;
    if (auto fault = norm_fault(op.k_norm, "k_norm")) return fault;
    if (op.segment_count < 0) return fmt::format("{} segments", op.segment_count);
    if (op.rope > RopeKind::half) return "unknown rope kind";
    if (op.rope == RopeKind::none) return {};
    if (op.rope_dims <= 0 || op.rope_dims % 2 != 0 || op.rope_offset < 0 || op.rope_offset > layout.head_dim_k ||
        op.rope_dims > layout.head_dim_k - op.rope_offset) {
      return fmt::format("{} rotary dimensions from {} on of heads of {}; must be even and lie in the head",
                         op.rope_dims, op.rope_offset, layout.head_dim_k);
    }
    if (auto fault = matrix_fault(op.rope_table, "rope_table")) return fault;
    if (op.rope_table.rows != op.k.rows || op.rope_table.cols != op.rope_dims) {
      return fmt::format("rope_table is {} x {}, needed {} x {}", op.rope_table.rows, op.rope_table.cols, op.k.rows,
                         op.rope_dims);
    }
    return {};
  }

  Fault operator()(const AttentionOp& op) const {
    if (auto fault = kv_fault(op.kv, op.heads, op.kv_heads)) return fault;
    if (auto fault = cols_fault(op.q, op.heads, op.kv.layout.head_dim_k, "q")) return fault;
    if (auto fault = cols_fault(op.out, op.heads, op.kv.layout.head_dim_v, "out")) return fault;
    if (op.q.rows != op.out.rows) return fmt::format("q has {} rows, out {}", op.q.rows, op.out.rows);
    if (!(op.softcap >= 0.0F)) return fmt::format("softcap is {}", op.softcap);
    if (op.window < 0) return fmt::format("window is {}", op.window);
    if (op.segment_count < 0) return fmt::format("{} segments", op.segment_count);
    if (op.mask > AttentionMask::none) return "unknown mask";
    if (op.mask == AttentionMask::none && op.window > 0) {
      return fmt::format("a window of {} slots around rows that are not stored", op.window);
    }
    if (op.bias_reach < 0 || op.bias_reach > (1 << 28)) {
      return fmt::format("bias_reach is {}; allowed: 0 to {}", op.bias_reach, 1 << 28);
    }
    return op.kv.earlier == nullptr ? Fault{} : earlier_fault(op);
  }

  static Fault earlier_fault(const AttentionOp& op) {
    const KvLayer& earlier = *op.kv.earlier;
    if (auto fault = kv_fault(earlier, op.heads, op.kv_heads)) return "earlier slots: " + *fault;
    const KvPageLayout& layout = op.kv.layout;
    if (earlier.layout.heads != layout.heads || earlier.layout.head_dim_k != layout.head_dim_k ||
        earlier.layout.head_dim_v != layout.head_dim_v || earlier.layout.values_in_keys != layout.values_in_keys) {
      return "earlier slots have other heads";
    }
    if (earlier.earlier != nullptr) return "earlier slots have earlier ones";
    if (op.mask != AttentionMask::causal || op.window > 0 || op.slopes != nullptr || op.bias != nullptr) {
      return "slots in two places with a mask, a window or a bias that counts distances";
    }
    if (op.sink != nullptr) return "scores of slots in two places";
    return {};
  }
};

[[noreturn]] void fail(std::string_view where, const Op& op, std::string_view message) {
  throw_error(ErrorCode::usage, where, fmt::format("{}: {}", op_name(op), message));
}

bool overlap(const Matrix& a, const Matrix& b) {
  if (a.rows == 0 || b.rows == 0) return false;
  const auto first = [](const Matrix& m) { return reinterpret_cast<std::uintptr_t>(m.data); };
  const auto last = [&](const Matrix& m) {
    return first(m) + static_cast<std::uintptr_t>((m.rows - 1) * m.stride + m.cols) * sizeof(float);
  };
  if (first(a) >= last(b) || first(b) >= last(a)) return false;
  if (a.stride != b.stride || (a.rows == 1 && b.rows == 1)) return true;
  // Column blocks of one wider matrix interleave without sharing elements.
  const auto stride = static_cast<std::uintptr_t>(a.stride) * sizeof(float);
  const std::uintptr_t low = first(a) < first(b) ? first(a) : first(b);
  const std::uintptr_t a_col = (first(a) - low) % stride;
  const std::uintptr_t b_col = (first(b) - low) % stride;
  const auto a_width = static_cast<std::uintptr_t>(a.cols) * sizeof(float);
  const auto b_width = static_cast<std::uintptr_t>(b.cols) * sizeof(float);
  if (a_col + a_width > stride || b_col + b_width > stride) return true;
  return a_col < b_col + b_width && b_col < a_col + a_width;
}

/// Pointers, overlaps and limits.
struct EnqueueCheck {
  const Op& whole;
  const StreamLimits& limits;
  std::string_view where;

  void need(bool present, std::string_view name) const {
    if (!present) fail(where, whole, fmt::format("{} is null", name));
  }
  void limit(std::int64_t value, std::int64_t most, std::string_view name) const {
    if (value > most) fail(where, whole, fmt::format("{} {}; the stream was made for at most {}", value, name, most));
  }
  void matrix(const Matrix& m, std::string_view name) const {
    limit(m.rows, limits.tokens, "rows");
    need(m.data != nullptr || m.rows == 0, name);
  }

  void operator()(const EmbedOp& op) const {
    matrix(op.out, "out");
    need(op.table != nullptr, "table");
    need(op.tokens != nullptr || op.out.rows == 0, "tokens");
  }
  void operator()(const UploadOp& op) const {
    matrix(op.out, "out");
    need(op.host != nullptr || op.out.rows == 0, "host");
  }
  void operator()(const DownloadOp& op) const {
    matrix(op.x, "x");
    need(op.host != nullptr || op.x.rows == 0, "host");
  }
  void operator()(const NormOp& op) const {
    matrix(op.x, "x");
    matrix(op.out, "out");
    const bool in_place = op.x.data == op.out.data && op.x.stride == op.out.stride;
    if (!in_place && overlap(op.x, op.out)) fail(where, whole, "out overlaps x");
  }
  void operator()(const AddOp& op) const {
    matrix(op.x, "x");
    matrix(op.y, "y");
  }
  void operator()(const MultiplyOp& op) const {
    matrix(op.x, "x");
    matrix(op.y, "y");
  }
  void operator()(const HostOp& op) const { need(op.run != nullptr || op.units == 0, "run"); }
  void operator()(const LerpOp& op) const {
    matrix(op.x, "x");
    matrix(op.y, "y");
    matrix(op.weight, "weight");
  }
  void state(const StateLayer& state) const {
    limit(state.segment_count, limits.segments, "segments");
    need(state.segment_count == 0 || state.segments != nullptr, "segments");
    need(state.segment_count == 0 || state.places != nullptr, "places");
  }
  /// Inputs of an op that reads earlier rows again while it writes.
  void apart(const Matrix& out, std::initializer_list<std::pair<const Matrix*, std::string_view>> inputs) const {
    for (const auto& [input, name] : inputs) {
      if (input->cols != 0) matrix(*input, name);
      if (input->cols != 0 && overlap(*input, out)) fail(where, whole, fmt::format("out overlaps {}", name));
    }
    matrix(out, "out");
  }
  void operator()(const ConvOp& op) const {
    apart(op.out, {{&op.x, "x"}});
    need(op.weight != nullptr, "weight");
    state(op.state);
  }
  void operator()(const ScanOp& op) const {
    apart(op.out, {{&op.x, "x"}, {&op.steps, "steps"}, {&op.b, "b"}, {&op.c, "c"}, {&op.gate, "gate"}});
    need(op.decay != nullptr, "decay");
    need(op.skip != nullptr, "skip");
    state(op.state);
  }
  void operator()(const TokenShiftOp& op) const {
    apart(op.out, {{&op.x, "x"}});
    need(op.mix != nullptr, "mix");
    const bool in_place = op.more.data == op.out.data && op.more.stride == op.out.stride;
    if (op.more.cols != 0 && !in_place) apart(op.out, {{&op.more, "more"}});
    state(op.state);
  }
  void operator()(const WkvOp& op) const {
    apart(op.out, {{&op.r, "r"}, {&op.k, "k"}, {&op.v, "v"}, {&op.decay, "decay"}, {&op.gate, "gate"}});
    if (op.version == 7) apart(op.out, {{&op.rate, "rate"}});
    need(op.bonus != nullptr, "bonus");
    need(op.version == 6 || op.key_scale != nullptr, "key_scale");
    need(op.version == 6 || op.rate_scale != nullptr, "rate_scale");
    state(op.state);
  }
  void operator()(const SoftcapOp& op) const { matrix(op.x, "x"); }
  void operator()(const ClampOp& op) const { matrix(op.x, "x"); }
  void operator()(const RopeTableOp& op) const {
    matrix(op.out, "out");
    need(op.positions != nullptr || op.out.rows == 0, "positions");
    need(op.inverse_frequencies != nullptr, "inverse_frequencies");
  }

  void operator()(const LinearOp& op) const {
    matrix(op.x, "x");
    limit(input_rows(op), limits.tokens, "input rows");
    limit(op.x.cols, limits.max_cols, "columns");
    const std::int32_t outs = op.epilogue == LinearEpilogue::gated ? 1 : op.part_count;
    for (std::int32_t i = 0; i < op.part_count; ++i) {
      const LinearPart& part = op.parts[static_cast<std::size_t>(i)];
      need(part.weight != nullptr, "a weight");
      if (i >= outs) continue;
      matrix(part.out, "out");
      if (overlap(op.x, part.out)) fail(where, whole, fmt::format("out {} overlaps x", i));
      for (std::int32_t j = 0; j < i; ++j) {
        if (overlap(op.parts[static_cast<std::size_t>(j)].out, part.out)) {
          fail(where, whole, fmt::format("out {} overlaps out {}", i, j));
        }
      }
    }
  }

  void operator()(const DeltaInputOp& op) const {
    matrix(op.x, "x");
    limit(input_rows(op), limits.tokens, "input rows");
    limit(op.x.cols, limits.max_cols, "columns");
    need(op.deltas != nullptr || op.delta_count == 0, "deltas");
  }

  void operator()(const ExpertsOp& op) const {
    matrix(op.x, "x");
    matrix(op.logits, "logits");
    matrix(op.out, "out");
    limit(op.logits.cols, limits.experts, "experts");
    limit(op.used, limits.used, "experts per token");
    limit(op.x.cols, limits.expert_cols, "columns");
    limit(op.inner.cols, limits.expert_cols, "columns of inner");
    need(op.inner.data != nullptr || op.x.rows == 0, "inner");
    need(op.products.data != nullptr || op.x.rows == 0, "products");
    need(op.gate != nullptr, "gate");
    need(op.up != nullptr, "up");
    need(op.down != nullptr, "down");
    const bool in_place = op.x.data == op.out.data && op.x.stride == op.out.stride;
    if (!in_place && overlap(op.x, op.out)) fail(where, whole, "out overlaps x");
    for (const Matrix* input : {&op.x, &op.logits, &op.out}) {
      if (overlap(*input, op.inner) || overlap(*input, op.products)) {
        fail(where, whole, "inner or products overlaps x, logits or out");
      }
    }
    if (overlap(op.inner, op.products)) fail(where, whole, "inner overlaps products");
    if (overlap(op.logits, op.out)) fail(where, whole, "out overlaps logits");
  }

  void operator()(const GateRowsOp& op) const {
    matrix(op.x, "x");
    matrix(op.logits, "logits");
    if (overlap(op.x, op.logits)) fail(where, whole, "logits overlaps x");
  }

  void operator()(const DropOp& op) const {
    matrix(op.gates, "gates");
    limit(op.segment_count, limits.segments, "segments");
    need(op.segment_count == 0 || (op.segments != nullptr && op.tables != nullptr), "segments and tables");
  }

  void operator()(const HeadLinearOp& op) const {
    matrix(op.x, "x");
    matrix(op.out, "out");
    need(op.weight != nullptr, "weight");
    limit(op.weight->cols(), limits.head_cols, "columns of a head");
    if (overlap(op.x, op.out)) fail(where, whole, "out overlaps x");
  }

  void kv(const KvLayer& kv, std::int32_t heads, std::int32_t segments, const Segment* array) const {
    limit(heads, limits.heads, "heads");
    limit(kv.layout.head_dim_k, limits.head_dim, "elements per key");
    limit(kv.layout.head_dim_v, limits.head_dim, "elements per value");
    limit(segments, limits.segments, "segments");
    need(segments == 0 || array != nullptr, "segments");
    need(segments == 0 || kv.tables != nullptr, "tables");
    need(segments == 0 || kv.pool != nullptr, "pool");
  }
  void operator()(const StoreKvOp& op) const {
    const bool keys = op.k.cols != 0;
    const bool values = keys && !op.kv.layout.values_in_keys;
    matrix(op.q, "q");
    if (keys) matrix(op.k, "k");
    if (values) matrix(op.v, "v");
    if (op.rope != RopeKind::none) matrix(op.rope_table, "rope_table");
    if ((keys && overlap(op.q, op.k)) || (values && (overlap(op.q, op.v) || overlap(op.k, op.v)))) {
      fail(where, whole, "q, k, v overlap");
    }
    kv(op.kv, op.heads, op.segment_count, op.segments);
  }
  void operator()(const AttentionOp& op) const {
    matrix(op.q, "q");
    matrix(op.out, "out");
    if (overlap(op.q, op.out)) fail(where, whole, "out overlaps q");
    kv(op.kv, op.heads, op.segment_count, op.segments);
    if (op.kv.earlier != nullptr) {
      if (!limits.earlier) fail(where, whole, "the stream was not made for slots in two places");
      kv(*op.kv.earlier, op.heads, op.segment_count, op.segments);
    }
    if (op.sink == nullptr) return;
    need(op.sink->scores != nullptr || op.segment_count == 0, "scores");
    need(op.sink->work != nullptr || op.sink->work_floats == 0, "work memory of the score sink");
    if (op.sink->kind > ScoreKind::max || op.sink->last_rows < 0) fail(where, whole, "bad score sink");
  }
};

/// Contents of host arrays.
struct HostCheck {
  const Op& whole;
  const StreamLimits& limits;
  std::string_view where;

  template <class T>
  void operator()(const T& /*no host array to check*/) const {}

  void operator()(const EmbedOp& op) const {
    for (std::int64_t i = 0; i < op.out.rows; ++i) {
      if (op.tokens[i] < 0 || op.tokens[i] >= op.table->rows()) {
        fail(where, whole, fmt::format("token {} at row {}; the table has {} rows", op.tokens[i], i, op.table->rows()));
      }
    }
  }
  void operator()(const LinearOp& op) const {
    row_numbers(op.rows, op.row_count, op.x.rows);
    for (std::int32_t p = 0; p < op.part_count; ++p) {
      const LinearPart& part = op.parts[static_cast<std::size_t>(p)];
      deltas(part.deltas, part.delta_count, input_rows(op), op.x.cols, part.weight->rows());
    }
  }
  void operator()(const DeltaInputOp& op) const {
    row_numbers(op.rows, op.row_count, op.x.rows);
    deltas(op.deltas, op.delta_count, input_rows(op), op.x.cols, 0);
  }
  void row_numbers(const std::int32_t* list, std::int32_t count, std::int64_t rows) const {
    for (std::int32_t i = 0; list != nullptr && i < count; ++i) {
      if (list[i] < 0 || list[i] >= rows) {
        fail(where, whole, fmt::format("row number {} at {}; x has {} rows", list[i], i, rows));
      }
    }
  }
  /// `outputs` 0: not checked.
  void deltas(const DeltaRows* list, std::int32_t count, std::int64_t rows, std::int64_t inputs,
              std::int64_t outputs) const {
    for (std::int32_t i = 0; i < count; ++i) {
      const DeltaRows& each = list[i];
      const WeightDelta& delta = each.delta;
      const bool kronecker = delta.kind == DeltaKind::kronecker;
      if (each.row_begin < 0 || each.row_count < 0 || std::int64_t{each.row_begin} + each.row_count > rows) {
        fail(where, whole, fmt::format("delta {} has rows [{}, +{}) of {}", i, each.row_begin, each.row_count, rows));
      }
      if (delta.kind > DeltaKind::kronecker || delta.rank < 1 || delta.second == nullptr ||
          (delta.kind == DeltaKind::columns ? delta.columns == nullptr : delta.first == nullptr)) {
        fail(where, whole, fmt::format("delta {} has rank {} or lacks a factor", i, delta.rank));
      }
      if (kronecker && (std::int64_t{delta.a_cols} * delta.b_cols != inputs ||
                        (outputs != 0 && std::int64_t{delta.a_rows} * delta.b_rows < outputs))) {
        fail(where, whole,
             fmt::format("delta {}: its factors are no matrix of {} inputs and {} outputs", i, inputs, outputs));
      }
      if (each.inner.data == nullptr || each.inner.rows < each.row_count || each.inner.cols != delta.inner()) {
        fail(where, whole,
             fmt::format("delta {} has no room for its {} x {} inner numbers", i, each.row_count, delta.inner()));
      }
    }
  }
  void operator()(const DropOp& op) const {
    for (std::int32_t s = 0; s < op.segment_count; ++s) {
      const Segment& segment = op.segments[s];
      const DropTable& table = op.tables[s];
      if (segment.row_begin < 0 || segment.row_count < 0 || segment.visible != nullptr ||
          std::int64_t{segment.row_begin} + segment.row_count > op.gates.rows) {
        fail(where, whole, fmt::format("segment {} has rows [{}, +{}) of {}", s, segment.row_begin, segment.row_count,
                                       op.gates.rows));
      }
      if (segment.row_count > 0 && (table.keys == nullptr || table.until == nullptr || table.length < 0)) {
        fail(where, whole, fmt::format("segment {}: {} slots without keys", s, table.length));
      }
    }
  }
  void operator()(const StoreKvOp& op) const { segments(op.k.rows, op.kv, op.segments, op.segment_count, true); }
  void operator()(const AttentionOp& op) const {
    segments(op.q.rows, op.kv, op.segments, op.segment_count, op.mask != AttentionMask::none);
    if (op.kv.earlier != nullptr) return earlier_slots(op);
    for (std::int32_t s = 0; s < op.segment_count; ++s) {
      if (op.mask != AttentionMask::causal && op.segments[s].visible != nullptr) {
        fail(where, whole, fmt::format("segment {} has a visibility matrix; only the causal mask can", s));
      }
      if (op.mask == AttentionMask::none) continue;
      for (std::int32_t g = 0; g < op.kv.groups && op.segments[s].row_count > 0; ++g) {
        const KvTable& table = op.kv.tables[std::int64_t{s} * op.kv.groups + g];
        if (table.first > 0 && (op.window == 0 || table.first > table.length + 1 - op.window)) {
          fail(where, whole,
               fmt::format("segment {} group {}: the slots before {} are gone, but the row in slot {} sees {}", s, g,
                           table.first, table.length,
                           op.window == 0 ? "all" : fmt::format("the last {}", op.window)));
        }
      }
    }
  }

  void earlier_slots(const AttentionOp& op) const {
    segments(op.q.rows, *op.kv.earlier, op.segments, op.segment_count, false);
    for (std::int32_t i = 0; i < op.segment_count * op.kv.groups; ++i) {
      const KvTable& own = op.kv.tables[i];
      const KvTable& earlier = op.kv.earlier->tables[i];
      for (const KvTable* table : {&own, &earlier}) {
        if (table->bias != nullptr || table->positions != nullptr || table->until != nullptr)
          fail(where, whole, fmt::format("table {}: numbers of slots in two places", i));
      }
      if (earlier.first != 0) fail(where, whole, fmt::format("table {}: the first earlier slots are gone", i));
    }
  }

  void operator()(const ConvOp& op) const { states(op.x.rows, op.state); }
  void operator()(const ScanOp& op) const { states(op.x.rows, op.state); }
  void operator()(const TokenShiftOp& op) const { states(op.x.rows, op.state); }
  void operator()(const WkvOp& op) const { states(op.r.rows, op.state); }

  void states(std::int64_t rows, const StateLayer& state) const {
    std::int64_t next = 0;
    for (std::int32_t s = 0; s < state.segment_count; ++s) {
      const Segment& segment = state.segments[s];
      if (segment.row_begin < next || segment.row_count < 0 ||
          std::int64_t{segment.row_begin} + segment.row_count > rows) {
        fail(where, whole,
             fmt::format("segment {} has rows [{}, +{}) of {}; segments must ascend without overlap", s,
                         segment.row_begin, segment.row_count, rows));
      }
      next = std::int64_t{segment.row_begin} + segment.row_count;
      if (segment.visible != nullptr) fail(where, whole, fmt::format("segment {} is a tree; a state is that of one sequence", s));
      if (state.places[s].to == nullptr || state.places[s].to == state.places[s].from) {
        fail(where, whole, fmt::format("segment {} needs a place for its state apart from where it was", s));
      }
    }
  }

  /// `stored`: the rows have slots of their own.
  void segments(std::int64_t rows, const KvLayer& kv, const Segment* segments, std::int32_t count, bool stored) const {
    std::int64_t next = 0;
    for (std::int32_t s = 0; s < count; ++s) {
      const Segment& segment = segments[s];
      if (segment.row_begin < next || segment.row_count < 0 ||
          std::int64_t{segment.row_begin} + segment.row_count > rows) {
        fail(where, whole,
             fmt::format("segment {} has rows [{}, +{}) of {}; segments must ascend without overlap", s,
                         segment.row_begin, segment.row_count, rows));
      }
      next = std::int64_t{segment.row_begin} + segment.row_count;
      for (std::int32_t g = 0; g < kv.groups; ++g) {
        const KvTable& table = kv.tables[std::int64_t{s} * kv.groups + g];
        const std::int32_t more = stored ? segment.row_count : 0;
        if (table.length < 0 || std::int64_t{table.length} + more > limits.context ||
            (table.pages == nullptr && segment.row_count > 0 && table.length - table.first + more > 0)) {
          fail(where, whole,
               fmt::format("segment {} group {}: {} + {} slots; the stream was made for {}", s, g, table.length,
                           more, limits.context));
        }
        if (table.first < 0 || table.first % kv.layout.page_tokens != 0 || table.first > table.length) {
          fail(where, whole,
               fmt::format("segment {} group {}: the first of {} slots is {}; must be a multiple of {}", s, g,
                           table.length, table.first, kv.layout.page_tokens));
        }
      }
      if (segment.visible != nullptr) visibility(segment, s);
      for (std::int32_t g = 0; g < kv.groups; ++g) {
        const KvTable& table = kv.tables[std::int64_t{s} * kv.groups + g];
        if (table.first > 0 && (table.bias != nullptr || table.positions != nullptr || table.until != nullptr)) {
          fail(where, whole, fmt::format("segment {} group {}: numbers of slots of which the first are gone", s, g));
        }
      }
    }
  }
  void visibility(const Segment& segment, std::int32_t s) const {
    const std::int32_t words = (segment.row_count + 63) / 64;
    for (std::int32_t i = 0; i < segment.row_count; ++i) {
      const std::uint64_t* row = segment.visible + static_cast<std::ptrdiff_t>(i) * words;
      bool good = ((row[i / 64] >> (i % 64)) & 1U) != 0;
      if (i % 64 != 63) good = good && (row[i / 64] >> (i % 64 + 1)) == 0;
      for (std::int32_t w = i / 64 + 1; w < words; ++w) good = good && row[w] == 0;
      if (!good) {
        fail(where, whole, fmt::format("segment {}: row {} must see itself and no later row", s, i));
      }
    }
  }
};

}  // namespace

std::string_view op_name(const Op& op) noexcept {
  static constexpr std::array<std::string_view, std::variant_size_v<Op>> names = {
      "EmbedOp",     "UploadOp", "NormOp",    "LinearOp",   "RopeTableOp", "StoreKvOp",
      "AttentionOp", "AddOp",    "SoftcapOp", "DownloadOp", "ExpertsOp", "GateRowsOp",
      "HeadLinearOp", "ClampOp", "DeltaInputOp", "ConvOp", "ScanOp", "TokenShiftOp", "WkvOp", "MultiplyOp", "LerpOp",
      "HostOp", "DropOp"};
  return op.valueless_by_exception() ? "nothing" : names[op.index()];
}

std::optional<std::string> op_shape_fault(const Op& op) {
  auto fault = std::visit(ShapeCheck{}, op);
  if (fault) return fmt::format("{}: {}", op_name(op), *fault);
  return fault;
}

void check_op(const Op& op, const StreamLimits& limits, std::string_view where) {
  if (const auto fault = op_shape_fault(op)) throw_error(ErrorCode::usage, where, *fault);
  std::visit(EnqueueCheck{op, limits, where}, op);
}

void check_host_data(const Op& op, const StreamLimits& limits, std::string_view where) {
  std::visit(HostCheck{op, limits, where}, op);
}

std::size_t check_weight_source(const WeightSource& source, std::string_view where) {
  if (source.rows <= 0 || source.cols <= 0 || source.rows > max_extent || source.cols > max_extent) {
    throw_error(ErrorCode::usage, where, fmt::format("a weight of {} x {}", source.rows, source.cols));
  }
  if (source.matrices <= 0 || source.rows % source.matrices != 0) {
    throw_error(ErrorCode::usage, where, fmt::format("{} rows in {} matrices", source.rows, source.matrices));
  }
  const std::size_t bytes = row_bytes(source.type, static_cast<std::size_t>(source.cols));
  if (bytes > std::numeric_limits<std::size_t>::max() / 2 / static_cast<std::size_t>(source.rows)) {
    throw_error(ErrorCode::usage, where, fmt::format("a weight of {} rows of {} bytes", source.rows, bytes));
  }
  if (!source.mapped.empty() && source.mapped.size() != bytes * static_cast<std::size_t>(source.rows)) {
    throw_error(ErrorCode::usage, where,
                fmt::format("{} mapped bytes for {} rows of {} bytes", source.mapped.size(), source.rows, bytes));
  }
  return bytes;
}

}  // namespace skald::inline v0::detail
