#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(q5_k, multiply<FormatQ5_K>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
