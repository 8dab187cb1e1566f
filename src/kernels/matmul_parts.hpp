#pragma once

// The products of one instruction set, spread over several translation units to compile side by side.

#include "kernels/kernel_table.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

#define SKALD_DECLARE_MULTIPLY(name)                                                                       \
  void multiply_##name(const std::byte* panels, std::int64_t row_count, std::int64_t cols, MatmulColumns columns, \
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

}  // namespace skald::inline v0::kernels::SKALD_ISA
