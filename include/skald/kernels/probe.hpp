#pragma once

#include <cstddef>

#include <skald/config.hpp>
#include <skald/core/executor.hpp>
#include <skald/simd/isa.hpp>

namespace skald::inline v0 {

/// What this machine can do at best, measured with small loops on the threads of an executor: the denominators of every
/// "percent of peak". Measure in the same run as what is compared with it; other programs on the machine lower both.
struct ProbeOptions {
  Isa isa = default_isa();
  std::size_t bytes = std::size_t{512} << 20;  ///< memory that measure_bandwidth reads; many times the last-level cache
  int repetitions = 8;                         ///< the best one counts
};

/// Bytes per second read from memory, four streams per thread with prefetching, as the matrix-vector kernels read.
/// @throws OutOfMemoryError, UnsupportedError if this processor lacks the instruction set.
[[nodiscard]] SKALD_API double measure_bandwidth(const AnyExecutor& executor, const ProbeOptions& options = {});
/// 8-bit operations per second (a multiplication and an addition are two) of independent dot products in registers.
/// @throws UnsupportedError if this processor lacks the instruction set.
[[nodiscard]] SKALD_API double measure_int8_peak(const AnyExecutor& executor, const ProbeOptions& options = {});
/// Float operations per second (a fused multiply-add is two) of independent chains in registers.
/// @throws UnsupportedError if this processor lacks the instruction set.
[[nodiscard]] SKALD_API double measure_f32_peak(const AnyExecutor& executor, const ProbeOptions& options = {});
/// Operations per second of products with bf16 weights: of bf16 dot products where the instruction set has them, else
/// as measure_f32_peak. @throws UnsupportedError if this processor lacks the instruction set.
[[nodiscard]] SKALD_API double measure_bf16_peak(const AnyExecutor& executor, const ProbeOptions& options = {});

}  // namespace skald::inline v0
