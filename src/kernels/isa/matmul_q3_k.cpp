#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_low_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(q3_k, multiply<FormatQ3_K>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
