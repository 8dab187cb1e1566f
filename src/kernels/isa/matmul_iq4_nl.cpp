#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_nibble_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(iq4_nl, multiply<FormatIQ4_NL>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
