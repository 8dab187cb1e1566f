#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(q4_k, multiply<FormatQ4_K>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
