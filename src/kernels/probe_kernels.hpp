#pragma once

// The loops of the probes, compiled once per instruction set.

#include <cstddef>
#include <cstdint>

#include <skald/config.hpp>

namespace skald::inline v0::kernels {

struct ProbeKernels {
  /// Reads `bytes` (a multiple of 1024) in four streams; the result depends on all of them.
  std::int32_t (*read)(const std::byte* data, std::size_t bytes) noexcept;
  /// Both run `iterations` times and return how many operations that was.
  double (*dot_int8)(std::int64_t iterations, std::int32_t* sink) noexcept;
  double (*fma_f32)(std::int64_t iterations, float* sink) noexcept;
};

#define SKALD_DECLARE_PROBES(isa) \
  namespace isa {                 \
  const ProbeKernels* probe_kernels() noexcept; \
  }
SKALD_DECLARE_PROBES(baseline)
SKALD_DECLARE_PROBES(avx2)
SKALD_DECLARE_PROBES(avx512)
SKALD_DECLARE_PROBES(avx512vnni)
#undef SKALD_DECLARE_PROBES
namespace avx512bf16 {
double dot_bf16(std::int64_t iterations, float* sink) noexcept;
}

}  // namespace skald::inline v0::kernels
