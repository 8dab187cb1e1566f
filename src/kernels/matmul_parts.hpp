#pragma once

// The products of one instruction set, spread over several translation units to compile side by side.

#include "kernels/kernel_table.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

#define SKALD_DECLARE_MULTIPLY(name)                                                                       \
  void multiply_##name(const std::byte* panels, std::int64_t row_count, std::int64_t cols, const MatmulColumns& columns, \
                       float* out, std::int64_t out_stride, std::byte* scratch) noexcept
#define SKALD_DEFINE_MULTIPLY(name, function)                                                              \
  SKALD_DECLARE_MULTIPLY(name) { function(panels, row_count, cols, columns, out, out_stride, scratch); }

SKALD_DECLARE_MULTIPLY(f32);
SKALD_DECLARE_MULTIPLY(f16);
SKALD_DECLARE_MULTIPLY(bf16);
SKALD_DECLARE_MULTIPLY(q8_0);
SKALD_DECLARE_MULTIPLY(q4_0);
SKALD_DECLARE_MULTIPLY(q4_1);
SKALD_DECLARE_MULTIPLY(q5_0);
SKALD_DECLARE_MULTIPLY(q5_1);
SKALD_DECLARE_MULTIPLY(q4_k);
SKALD_DECLARE_MULTIPLY(q5_k);
SKALD_DECLARE_MULTIPLY(q6_k);
SKALD_DECLARE_MULTIPLY(iq4_nl);
SKALD_DECLARE_MULTIPLY(mxfp4);
SKALD_DECLARE_MULTIPLY(q3_k);
SKALD_DECLARE_MULTIPLY(iq4_xs);
SKALD_DECLARE_MULTIPLY(tq2_0);

/// Formats whose blocks are taken apart first (matmul_apart_formats.inl.hpp).
#define SKALD_DECLARE_APART(name) \
  SKALD_DECLARE_MULTIPLY(name);   \
  void unpack_row_##name(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept
#define SKALD_DEFINE_APART(name, format)                                                                          \
  SKALD_DECLARE_MULTIPLY(name) {                                                                                  \
    const ApartSource source{&format::take_apart, format::panel_block_bytes, format::offset};                     \
    multiply_apart<format::Layout, format::range>(source, panels, row_count, cols, columns, out, out_stride, scratch); \
  }                                                                                                               \
  void unpack_row_##name(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept {               \
    apart_unpack_row<format>(panel, row, cols, out);                                                              \
  }

SKALD_DECLARE_APART(q2_k);
SKALD_DECLARE_APART(tq1_0);
/// Looks few columns up (matmul_ternary.inl.hpp).
SKALD_DECLARE_MULTIPLY(tq1_0_lookup);
std::size_t tq1_0_lookup_acts_bytes(std::int64_t cols, std::int64_t count) noexcept;
void tq1_0_lookup_prepare(const float* x, std::int64_t x_stride, std::int64_t cols, std::int64_t begin, std::int64_t end,
                          std::byte* acts, std::int64_t count) noexcept;
SKALD_DECLARE_APART(iq2_xxs);
SKALD_DECLARE_APART(iq2_xs);
SKALD_DECLARE_APART(iq2_s);
SKALD_DECLARE_APART(iq3_xxs);
SKALD_DECLARE_APART(iq3_s);
SKALD_DECLARE_APART(iq1_s);
SKALD_DECLARE_APART(iq1_m);

}  // namespace skald::inline v0::kernels::SKALD_ISA
