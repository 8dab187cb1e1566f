#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_low_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(iq4_xs, multiply<FormatIQ4_XS>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
