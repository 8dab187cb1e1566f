#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(q8_0, multiply<FormatQ8_0>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
