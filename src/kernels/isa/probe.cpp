#include "kernels/probe_kernels.hpp"
#include "kernels/matmul_blocks.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

namespace {

// Chains in flight: twelve hide the latency and fit every register file.
constexpr int chains = SKALD_VEC_REGISTERS == 1 ? 12 : SKALD_VEC_REGISTERS == 2 ? 6 : 2;

std::int32_t read_memory(const std::byte* data, std::size_t bytes) noexcept {
  const std::size_t quarter = bytes / 4;
  i32x16 sum[4] = {zero_i32(), zero_i32(), zero_i32(), zero_i32()};
  for (std::size_t at = 0; at < quarter; at += 256)
    SKALD_UNROLL for (int s = 0; s < 4; ++s) {
      const std::byte* p = data + s * quarter + at;
      SKALD_UNROLL for (int i = 0; i < 4; ++i) {
        prefetch(p + 64 * i + 1536);
        sum[s] += words(load_bytes(p + 64 * i));
      }
    }
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/// Makes a value unknown to the compiler, so that it cannot share or hoist what is computed from it.
SKALD_INLINE void hide(u8x64& a) noexcept {
#if SKALD_VEC_REGISTERS == 1
  __asm__("" : "+v"(a.r));
#elif SKALD_VEC_REGISTERS == 2
  __asm__("" : "+x"(a.lo), "+x"(a.hi));
#else
  __asm__("" : "+m"(a));
#endif
}

SKALD_INLINE void hide(f32x16& a) noexcept {
#if SKALD_VEC_REGISTERS == 1
  __asm__("" : "+v"(a.r));
#elif SKALD_VEC_REGISTERS == 2
  __asm__("" : "+x"(a.lo), "+x"(a.hi));
#else
  __asm__("" : "+m"(a));
#endif
}

double dot_int8(std::int64_t iterations, std::int32_t* sink) noexcept {
  i32x16 acc[chains], partial[chains];
  SKALD_UNROLL for (int i = 0; i < chains; ++i) acc[i] = set1(*sink);
  u8x64 w = bytes(set1(*sink & 0x01010101));
  const u8x64 a = bytes(set1(*sink & 0x03030303));
  for (std::int64_t n = 0; n < iterations; ++n)
    SKALD_UNROLL for (int step = 0; step < 8; ++step) {
      SKALD_UNROLL for (int i = 0; i < chains; ++i) {
        hide(w);
        dot_step<4>(step, acc[i], partial[i], w, a, set1(0x00010001));
      }
    }
  i32x16 total = zero_i32();
  SKALD_UNROLL for (int i = 0; i < chains; ++i) total += acc[i];
  *sink = reduce_add(total);
  return static_cast<double>(iterations) * 8 * chains * 64 * 2;
}

double fma_f32(std::int64_t iterations, float* sink) noexcept {
  f32x16 acc[chains];
  SKALD_UNROLL for (int i = 0; i < chains; ++i) {
    acc[i] = set1(*sink + static_cast<float>(i));
    hide(acc[i]);  // or the compiler sees that the halves of wide registers are equal, and computes one
  }
  const f32x16 w = set1(0.5F + *sink), x = set1(1.0F + *sink);
  for (std::int64_t n = 0; n < iterations; ++n)
    unroll<8>([&](auto) SKALD_INLINE_LAMBDA {
      SKALD_UNROLL for (int i = 0; i < chains; ++i) acc[i] = fma(acc[i], w, x);
    });
  f32x16 total = zero_f32();
  SKALD_UNROLL for (int i = 0; i < chains; ++i) total += acc[i];
  *sink = reduce_add(total);
  return static_cast<double>(iterations) * 8 * chains * 16 * 2;
}

constexpr ProbeKernels probes{&read_memory, &dot_int8, &fma_f32};

}  // namespace

const ProbeKernels* probe_kernels() noexcept { return &probes; }

}  // namespace skald::inline v0::kernels::SKALD_ISA
