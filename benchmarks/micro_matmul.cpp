// Matrix products by format, shape, instruction set and threads. Each case checks its result against the scalar
// specification before it is timed, and is reported as a share of what this machine reached in the same run: bytes of
// weights per second of the memory bandwidth for few columns (gemv), operations per second of the peak of the instruction
// set for many (gemm).

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <skald/core/executor.hpp>
#include <skald/core/memory.hpp>
#include <skald/kernels/probe.hpp>
#include <skald/quant/activation.hpp>
#include <skald/quant/row_codec.hpp>

#include "kernels/kernel_table.hpp"

namespace {

using namespace skald;
using kernels::MatmulColumns;
using kernels::MatmulKernel;

struct Case {
  DType type;
  std::int64_t rows, cols, count;
  Isa isa;
  int threads;
  bool alone = false;  ///< MatmulKernel::alone: tables of sums instead of unpacking
};

const MatmulKernel* find_kernel(Isa isa, DType type, bool alone = false) {
  int count = 0;
  const MatmulKernel* all = nullptr;
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2: all = kernels::avx2::matmul_kernels(&count); break;
    case Isa::avx512: all = kernels::avx512::matmul_kernels(&count); break;
    case Isa::avx512bf16: all = kernels::avx512bf16::matmul_kernels(&count); break;
    case Isa::avx512vnni: all = kernels::avx512vnni::matmul_kernels(&count); break;
#endif
    default: all = kernels::baseline::matmul_kernels(&count); break;
  }
  for (int i = 0; i < count; ++i)
    if (all[i].type == type && all[i].alone == alone) return all + i;
  return nullptr;
}

AnyExecutor executor_of(int threads) {
  static std::map<int, AnyExecutor> executors;
  return executors.try_emplace(threads, make_tbb_executor(threads)).first->second;
}

struct Peaks {
  double bandwidth, int8, f32;
};

const Peaks& peaks_of(Isa isa, int threads) {
  static std::map<std::pair<Isa, int>, Peaks> measured;
  const auto [at, fresh] = measured.try_emplace({isa, threads});
  if (fresh) {
    const auto executor = executor_of(threads);
    at->second = {measure_bandwidth(executor, {.isa = isa}), measure_int8_peak(executor, {.isa = isa}),
                  measure_f32_peak(executor, {.isa = isa})};
  }
  return at->second;
}

/// A weight of 16 different rows repeated to fill the shape, and activations.
class Problem {
 public:
  explicit Problem(const Case& c) : case_(c), kernel_(*find_kernel(c.isa, c.type, c.alone)) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto cols = static_cast<std::size_t>(c.cols);
    row_.resize(16 * row_bytes(c.type, cols));
    std::vector<float> values(cols);
    const std::byte* rows[16];
    for (std::size_t r = 0; r < 16; ++r) {
      for (float& value : values) value = normal(random);
      const auto bytes = std::span(row_).subspan(r * row_.size() / 16, row_.size() / 16);
      encode_row(c.type, values, bytes);
      rows[r] = bytes.data();
    }
    panel_bytes_ = kernel_.panel_bytes(c.cols);
    panel_count_ = (c.rows + 15) / 16;
    panels_ = AlignedBuffer(panel_bytes_ * static_cast<std::size_t>(panel_count_));
    std::vector<std::byte> panel(panel_bytes_);
    kernel_.pack(rows, c.cols, panel.data());
    executor_of(c.threads).run(c.threads, [&](int t) {
      for (std::int64_t p = t; p < panel_count_; p += c.threads)
        std::memcpy(panels_.data() + static_cast<std::size_t>(p) * panel_bytes_, panel.data(), panel_bytes_);
    });
    x_.resize(cols * static_cast<std::size_t>(c.count));
    for (float& value : x_) value = normal(random);
    acts_ = AlignedBuffer(kernel_.acts_bytes(c.cols, c.count));
    kernel_.prepare(x_.data(), c.cols, c.cols, 0, c.count, acts_.data(), c.count);
    out_.resize(static_cast<std::size_t>(c.rows * c.count));
    scratch_stride_ = (kernel_.scratch_bytes(c.cols, c.count) + 127) / 64 * 64;
    scratch_ = AlignedBuffer(scratch_stride_ * static_cast<std::size_t>(c.threads));
  }

  void run() {
    // Few columns: long runs of panels; many: pairs of them.
    const std::int64_t unit = case_.count < 24 ? std::clamp<std::int64_t>(panel_count_ / (8 * case_.threads), 4, 64) : 2;
    std::atomic<std::int64_t> next{0};
    executor_of(case_.threads).run(case_.threads, [&](int thread) {
      for (;;) {
        const std::int64_t first = next.fetch_add(unit, std::memory_order_relaxed);
        if (first >= panel_count_) return;
        const std::int64_t rows = std::min(16 * unit, case_.rows - 16 * first);
        kernel_.multiply(panels_.data() + static_cast<std::size_t>(first) * panel_bytes_, rows, case_.cols,
                         MatmulColumns{acts_.data(), case_.count, 0, case_.count}, out_.data() + 16 * first, case_.rows,
                         scratch_.data() + static_cast<std::size_t>(thread) * scratch_stride_);
      }
    });
  }

  /// True if a sample of outputs is what the scalar specification gives, up to the rounding of sums.
  [[nodiscard]] bool correct() const {
    const auto& ops = format_ops(case_.type);
    const auto cols = static_cast<std::size_t>(case_.cols);
    for (std::int64_t c = 0; c < case_.count; c += 7) {
      const std::span x(x_.data() + c * case_.cols, cols);
      std::vector<float> decoded(x.begin(), x.end());
      if (ops.activation != ActivationKind::f32) ActivationRow(x, ops.activation).decode(decoded);
      // This level's bf16 dot products take activations rounded to bf16.
      if (case_.isa == Isa::avx512bf16 && case_.type == DType::bf16)
        for (float& value : decoded) value = bf16_to_f32(f32_to_bf16(value));
      for (std::int64_t r = 0; r < 16; ++r) {
        const double exact = ops.dot_row(row_.data() + static_cast<std::size_t>(r) * row_.size() / 16, decoded.data(), cols);
        for (const std::int64_t row : {r, 16 * ((case_.rows - 1 - r) / 16) + r}) {
          const double got = out_[static_cast<std::size_t>(c * case_.rows + row)];
          if (!(std::abs(got - exact) < 1e-3 * std::sqrt(static_cast<double>(cols)))) return false;
        }
      }
    }
    return true;
  }
  [[nodiscard]] double weight_bytes() const { return static_cast<double>(panel_bytes_) * static_cast<double>(panel_count_); }

 private:
  Case case_;
  const MatmulKernel& kernel_;
  std::vector<std::byte> row_;
  std::vector<float> x_, out_;
  AlignedBuffer panels_, acts_, scratch_;
  std::size_t panel_bytes_ = 0, scratch_stride_ = 0;
  std::int64_t panel_count_ = 0;
};

void run_case(benchmark::State& state, const Case& c) {
  const Peaks peaks = peaks_of(c.isa, c.threads);
  Problem problem(c);
  problem.run();
  if (!problem.correct()) {
    state.SkipWithError("wrong result");
    return;
  }
  for (auto _ : state) problem.run();
  using benchmark::Counter;
  const double runs = static_cast<double>(state.iterations());
  const double bytes = problem.weight_bytes() * runs;
  const double operations = 2.0 * static_cast<double>(c.rows) * static_cast<double>(c.cols) * static_cast<double>(c.count) * runs;
  const bool plain = c.type == DType::f32 || c.type == DType::f16 || c.type == DType::bf16;
  state.counters["GB/s"] = Counter(bytes / 1e9, Counter::kIsRate);
  state.counters["GOP/s"] = Counter(operations / 1e9, Counter::kIsRate);
  state.counters["%bandwidth"] = Counter(100 * bytes / peaks.bandwidth, Counter::kIsRate);
  state.counters["%peak"] = Counter(100 * operations / (plain ? peaks.f32 : peaks.int8), Counter::kIsRate);
}

void add_case(const Case& c) {
  const auto name = fmt::format("{}/{}{}/{}x{}x{}/{}/{}", c.count < 24 ? "gemv" : "gemm", to_string(c.type),
                                c.alone ? "-lookup" : "", c.rows, c.cols, c.count, to_string(c.isa), c.threads);
  benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& state) { run_case(state, c); })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

void run_prepare(benchmark::State& state, Isa isa, DType type, bool alone) {
  const MatmulKernel& kernel = *find_kernel(isa, type, alone);
  const std::int64_t cols = 2048, count = state.range(0);
  std::vector<float> x(static_cast<std::size_t>(cols * count));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);
  AlignedBuffer acts(kernel.acts_bytes(cols, count));
  for (auto _ : state) {
    kernel.prepare(x.data(), cols, cols, 0, count, acts.data(), count);
    benchmark::ClobberMemory();
  }
  state.counters["ns/column"] = benchmark::Counter(static_cast<double>(state.iterations() * count) / 1e9,
                                                   benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = available_threads();
  for (const Isa isa : available_isas())
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0,
                             DType::q5_1, DType::q4_k, DType::q5_k, DType::q6_k}) {
      if (find_kernel(isa, type) == nullptr) continue;  // this level adds nothing for the type
      for (const int t : {1, threads}) {
        // Far larger than the last-level cache, like a vocabulary projection.
        for (const std::int64_t count : {1, 2, 4, 8}) add_case({type, 131072, 2048, count, isa, t});
        // In the second-level cache of one core: the speed of the kernel without memory.
        if (t == 1) add_case({type, 256, 2048, 1, isa, t});
        for (const std::int64_t count : {12, 64, 512}) add_case({type, 2048, 2048, count, isa, t});
        add_case({type, 2048, 8192, 512, isa, t});
      }
      if (type == DType::f32 || type == DType::q8_0 || type == DType::q4_k)
        benchmark::RegisterBenchmark(fmt::format("prepare/{}/{}", to_string(type), to_string(isa)).c_str(),
                                     [=](benchmark::State& state) { run_prepare(state, isa, type, false); })
            ->Arg(1)
            ->Arg(512);
    }
  // Ternary weights, unpacked and looked up, beside int8: a layer's matrix, and one that no cache holds.
  for (const Isa isa : available_isas()) {
    for (const auto& [type, alone] : {std::pair{DType::q8_0, false}, {DType::tq2_0, false}, {DType::tq1_0, false}, {DType::tq1_0, true}}) {
      if (find_kernel(isa, type, alone) == nullptr) continue;
      for (const int t : {1, threads}) {
        for (const std::int64_t count : {1, 2, 3, 4, 6, 8, 10}) add_case({type, 8192, 2048, count, isa, t, alone});
        add_case({type, 131072, 2048, 1, isa, t, alone});
        add_case({type, 256, 2048, 1, isa, t, alone});
      }
    }
    if (find_kernel(isa, DType::tq1_0, true) != nullptr)
      benchmark::RegisterBenchmark(fmt::format("prepare/tq1_0-lookup/{}", to_string(isa)).c_str(),
                                   [=](benchmark::State& state) { run_prepare(state, isa, DType::tq1_0, true); })
          ->Arg(1);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const Isa isa : available_isas()) {
    const Peaks peaks = peaks_of(isa, threads);
    benchmark::AddCustomContext(fmt::format("peaks, {}, {} threads", to_string(isa), threads),
                                fmt::format("{:.1f} GB/s, {:.0f} int8 GOP/s, {:.0f} f32 GFLOP/s", peaks.bandwidth / 1e9,
                                            peaks.int8 / 1e9, peaks.f32 / 1e9));
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
