#include "kernels/probe_kernels.hpp"
#include "simd/vec.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

double dot_bf16(std::int64_t iterations, float* sink) noexcept {
  constexpr int chains = 16;
  f32x16 acc[chains];
  SKALD_UNROLL for (int i = 0; i < chains; ++i) acc[i] = set1(*sink + static_cast<float>(i));
  const u8x64 w = broadcast32(sink), x = broadcast32(sink);
  for (std::int64_t n = 0; n < iterations; ++n)
    unroll<8>([&](auto) SKALD_INLINE_LAMBDA {
      SKALD_UNROLL for (int i = 0; i < chains; ++i) acc[i] = dot2_bf16(acc[i], w, x);
    });
  f32x16 total = zero_f32();
  SKALD_UNROLL for (int i = 0; i < chains; ++i) total += acc[i];
  *sink = reduce_add(total);
  return static_cast<double>(iterations) * 8 * chains * 32 * 2;
}

}  // namespace skald::inline v0::kernels::SKALD_ISA
