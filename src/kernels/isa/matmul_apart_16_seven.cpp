#include "kernels/matmul_apart_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_APART(iq2_xs, ApartIQ2_XS)
SKALD_DEFINE_APART(iq2_s, ApartIQ2_S)

}  // namespace skald::inline v0::kernels::SKALD_ISA
