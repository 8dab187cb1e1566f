#include "kernels/matmul_apart_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_APART(iq3_s, ApartIQ3_S)
SKALD_DEFINE_APART(iq1_s, ApartIQ1_S)

}  // namespace skald::inline v0::kernels::SKALD_ISA
