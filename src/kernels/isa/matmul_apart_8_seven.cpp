#include "kernels/matmul_apart_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_APART(iq2_xxs, ApartIQ2_XXS)
SKALD_DEFINE_APART(iq3_xxs, ApartIQ3_XXS)

}  // namespace skald::inline v0::kernels::SKALD_ISA
