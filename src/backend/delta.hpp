#pragma once

#include <cstdint>

#include <skald/backend/ops.hpp>

namespace skald::inline v0::detail {

/// The row of x that row `i` of the input is.
[[nodiscard]] inline std::int64_t source_row(const DeltaInputOp& op, std::int64_t i) noexcept {
  return op.rows != nullptr ? op.rows[i] : i;
}

/// inner = what of a delta depends on the input alone: first * x (low rank), x[columns] (columns), or for each term the
/// rows of x, cut into a_cols of b_cols elements, times second_t transposed (kronecker; (A (x) B) x without forming
/// it). Sums are f32 in sixteen fixed strands.
void delta_input(const WeightDelta& delta, const float* x, std::int64_t cols, float* inner) noexcept;

/// y[r - begin] += scale * output r of the delta, for r in [begin, begin + count), in a fixed order.
void delta_output(const WeightDelta& delta, const float* inner, std::int64_t begin, std::int64_t count,
                  float* y) noexcept;

}  // namespace skald::inline v0::detail
