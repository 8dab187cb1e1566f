#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_nibble_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

SKALD_DEFINE_MULTIPLY(mxfp4, multiply<FormatMXFP4>)

}  // namespace skald::inline v0::kernels::SKALD_ISA
