#include "kernels/matmul_parts.hpp"
#include "kernels/matmul_ternary.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_APART(tq1_0, ApartTQ1_0)

SKALD_DECLARE_MULTIPLY(tq1_0_lookup) {
  if (columns.count > lookup_columns) multiply_tq1_0(panels, row_count, cols, columns, out, out_stride, scratch);
  else multiply_ternary(panels, row_count, cols, columns, out, out_stride);
}
std::size_t tq1_0_lookup_acts_bytes(std::int64_t cols, std::int64_t count) noexcept {
  return ternary_acts_bytes(cols, count);
}
void tq1_0_lookup_prepare(const float* x, std::int64_t x_stride, std::int64_t cols, std::int64_t begin, std::int64_t end,
                          std::byte* acts, std::int64_t count) noexcept {
  prepare_ternary(x, x_stride, cols, begin, end, acts, count);
}

}  // namespace skald::inline v0::kernels::SKALD_ISA
