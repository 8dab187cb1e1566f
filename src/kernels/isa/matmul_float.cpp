#include "kernels/matmul_float.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(f32, float_multiply<ElementF32>)
SKALD_DEFINE_MULTIPLY(f16, float_multiply<ElementF16>)
SKALD_DEFINE_MULTIPLY(bf16, float_multiply<ElementBF16>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
