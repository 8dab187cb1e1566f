#include "backend/delta.hpp"

namespace skald::inline v0::detail {

namespace {

/// The order of the sum is part of the result: it must not depend on how many outputs are computed together.
float dot(const float* a, const float* b, std::int64_t n) noexcept {
  constexpr std::int64_t strands = 16;
  float sums[strands] = {};
  std::int64_t i = 0;
  for (; i + strands <= n; i += strands)
    for (std::int64_t s = 0; s < strands; ++s) sums[s] += a[i + s] * b[i + s];
  for (std::int64_t s = 0; i + s < n; ++s) sums[s] += a[i + s] * b[i + s];
  for (std::int64_t half = strands / 2; half > 0; half /= 2)
    for (std::int64_t s = 0; s < half; ++s) sums[s] += sums[s + half];
  return sums[0];
}

}  // namespace

void delta_input(const WeightDelta& delta, const float* x, std::int64_t cols, float* inner) noexcept {
  switch (delta.kind) {
    case DeltaKind::low_rank:
      for (std::int64_t k = 0; k < delta.rank; ++k) inner[k] = dot(delta.first + k * cols, x, cols);
      return;
    case DeltaKind::columns:
      for (std::int64_t k = 0; k < delta.rank; ++k) inner[k] = x[delta.columns[k]];
      return;
    case DeltaKind::kronecker:
      for (std::int64_t t = 0; t < delta.rank; ++t) {
        const float* b = delta.second + t * delta.b_rows * delta.b_cols;
        for (std::int64_t i = 0; i < delta.b_rows; ++i)
          for (std::int64_t q = 0; q < delta.a_cols; ++q)
            *inner++ = dot(b + i * delta.b_cols, x + q * delta.b_cols, delta.b_cols);
      }
      return;
  }
}

void delta_output(const WeightDelta& delta, const float* inner, std::int64_t begin, std::int64_t count,
                  float* y) noexcept {
  const std::int64_t rank = delta.rank;
  if (delta.kind != DeltaKind::kronecker) {
    for (std::int64_t r = 0; r < count; ++r) y[r] += delta.scale * dot(delta.second + (begin + r) * rank, inner, rank);
    return;
  }
  for (std::int64_t r = 0; r < count; ++r) {
    const std::int64_t row = delta.rows != nullptr ? delta.rows[begin + r] : begin + r;
    float sum = 0;
    for (std::int64_t t = 0; t < rank; ++t) {
      const float* a = delta.first + (t * delta.a_rows + row / delta.b_rows) * delta.a_cols;
      sum += dot(a, inner + (t * delta.b_rows + row % delta.b_rows) * delta.a_cols, delta.a_cols);
    }
    y[r] += delta.scale * sum;
  }
}

}  // namespace skald::inline v0::detail
