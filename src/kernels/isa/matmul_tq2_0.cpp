#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_low_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(tq2_0, multiply<FormatTQ2_0>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
