#pragma once

// What every backend checks about an op before it runs, so that kernels may trust it.

#include <optional>
#include <string>
#include <string_view>

#include <skald/backend/backend.hpp>

namespace skald::inline v0::detail {

/// Why the shapes and options of an op contradict each other, or nothing. Reads no data pointer; weights may be null.
[[nodiscard]] std::optional<std::string> op_shape_fault(const Op& op);

/// @throws UsageError if the shapes are wrong, a pointer that the op needs is null, outputs overlap inputs, or the op
/// is larger than the stream's limits.
void check_op(const Op& op, const StreamLimits& limits, std::string_view where);

/// Checks what the op's host arrays hold: token ids, row numbers, segments, KV tables, visibility.
/// @throws UsageError naming the entry.
void check_host_data(const Op& op, const StreamLimits& limits, std::string_view where);

/// @throws UsageError if a source's shape is not one of its format or its mapped bytes are not as many as its rows.
/// @return bytes of a row.
std::size_t check_weight_source(const WeightSource& source, std::string_view where);

/// Name of an op, e.g. "LinearOp".
[[nodiscard]] std::string_view op_name(const Op& op) noexcept;

/// Number of input rows of a LinearOp.
[[nodiscard]] inline std::int64_t input_rows(const LinearOp& op) noexcept {
  return op.rows != nullptr ? op.row_count : op.x.rows;
}
[[nodiscard]] inline std::int64_t input_rows(const DeltaInputOp& op) noexcept {
  return op.rows != nullptr ? op.row_count : op.x.rows;
}

/// True if a weight has such a part that BackendInterface::narrow_weight may be asked for.
[[nodiscard]] inline bool can_narrow(const Weight& whole, std::int64_t rows, std::int64_t cols) noexcept {
  return whole.matrices() == 1 && rows >= 1 && rows <= whole.rows() && cols >= 1 && cols <= whole.cols() &&
         cols % dtype_info(whole.type()).block_elements == 0;
}

}  // namespace skald::inline v0::detail
