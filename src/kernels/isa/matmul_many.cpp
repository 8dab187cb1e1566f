#include "kernels/matmul_parts.hpp"

#if defined(SKALD_ISA_avx512vnni)
#include "kernels/matmul_stationary.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

#define SKALD_DEFINE_MANY(name, format)                                                                      \
  SKALD_DECLARE_MULTIPLY(name##_many) {                                                                      \
    multiply_many<format>(&multiply_##name, panels, row_count, cols, columns, out, out_stride, scratch);     \
  }
SKALD_DEFINE_MANY(q4_k, FormatQ4_K)
SKALD_DEFINE_MANY(q5_k, FormatQ5_K)
SKALD_DEFINE_MANY(q6_k, FormatQ6_K)

}  // namespace skald::inline v0::kernels::SKALD_ISA
#endif
