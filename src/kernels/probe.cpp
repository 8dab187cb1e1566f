#include <skald/kernels/probe.hpp>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/core/memory.hpp>

#include "kernels/probe_kernels.hpp"

namespace skald::inline v0 {

namespace {

const kernels::ProbeKernels& probes_of(Isa isa) {
  const auto available = available_isas();
  if (std::find(available.begin(), available.end(), isa) == available.end())
    throw UnsupportedError("kernels.probe", "this processor does not support " + std::string(to_string(isa)));
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2: return *kernels::avx2::probe_kernels();
#endif
#if defined(__x86_64__) && !defined(SKALD_NO_AVX512)
    case Isa::avx512: return *kernels::avx512::probe_kernels();
    case Isa::avx512bf16:
    case Isa::avx512vnni: return *kernels::avx512vnni::probe_kernels();
#endif
    default: return *kernels::baseline::probe_kernels();
  }
}

template <class F>
double seconds_of(F&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// A result on a cache line of its own.
template <class T>
struct alignas(64) Padded {
  T value{};
};

/// Best rate of `run(iterations)` on every thread, with about 50 ms per repetition.
template <class T, class F>
double best_rate(const AnyExecutor& executor, const ProbeOptions& options, F&& run) {
  const int threads = executor.concurrency();
  std::vector<Padded<T>> sinks(static_cast<std::size_t>(threads));
  Padded<T> trial;
  std::int64_t iterations = 1000;
  while (seconds_of([&] { run(iterations, &trial.value); }) < 0.02) iterations *= 2;
  double best = 0;
  for (int repetition = 0; repetition < std::max(1, options.repetitions); ++repetition) {
    std::vector<Padded<double>> operations(sinks.size());
    const double seconds = seconds_of([&] {
      executor.run(threads, [&](int i) {
        const auto index = static_cast<std::size_t>(i);
        operations[index].value = run(2 * iterations, &sinks[index].value);
      });
    });
    double total = 0;
    for (const auto& part : operations) total += part.value;
    best = std::max(best, total / seconds);
  }
  return best;
}

}  // namespace

double measure_bandwidth(const AnyExecutor& executor, const ProbeOptions& options) {
  const auto& probes = probes_of(options.isa);
  const int threads = executor.concurrency();
  // Small shares, so that a slow thread does not hold up the rest.
  const std::size_t shares = 16 * static_cast<std::size_t>(threads);
  const std::size_t share = std::max<std::size_t>(options.bytes / shares / 4096, 1) * 4096;
  AlignedBuffer memory(share * shares);
  const auto for_each_share = [&](auto&& work) {
    executor.run(static_cast<int>(shares), [&](int i) { work(static_cast<std::size_t>(i)); });
  };
  for_each_share([&](std::size_t i) { std::memset(memory.data() + i * share, 1, share); });
  std::vector<Padded<std::int32_t>> sinks(shares);
  double best = 0;
  for (int repetition = 0; repetition < std::max(1, options.repetitions); ++repetition) {
    const double seconds = seconds_of(
        [&] { for_each_share([&](std::size_t i) { sinks[i].value += probes.read(memory.data() + i * share, share); }); });
    best = std::max(best, static_cast<double>(share * shares) / seconds);
  }
  return best;
}

double measure_int8_peak(const AnyExecutor& executor, const ProbeOptions& options) {
  return best_rate<std::int32_t>(executor, options, probes_of(options.isa).dot_int8);
}

double measure_f32_peak(const AnyExecutor& executor, const ProbeOptions& options) {
  return best_rate<float>(executor, options, probes_of(options.isa).fma_f32);
}

double measure_bf16_peak(const AnyExecutor& executor, const ProbeOptions& options) {
#if defined(__x86_64__) && !defined(SKALD_NO_AVX512)
  if (options.isa == Isa::avx512bf16) {
    static_cast<void>(probes_of(options.isa));
    return best_rate<float>(executor, options, kernels::avx512bf16::dot_bf16);
  }
#endif
  return measure_f32_peak(executor, options);
}

}  // namespace skald::inline v0
