#include "kernels/matmul_apart_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_APART(iq1_m, ApartIQ1_M)

}  // namespace skald::inline v0::kernels::SKALD_ISA
