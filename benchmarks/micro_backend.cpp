// What the cpu backend costs beside its kernels, and what it reaches on the shapes of a 1 B model (Llama 3.2 1B):
// phases per second, decoding in GB/s of weights, prefill in tokens/s. Argument 0: threads.

#include <benchmark/benchmark.h>

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "backend/cpu/phase_runner.hpp"

#include <skald/backend/backend.hpp>
#include <skald/quant/row_codec.hpp>

namespace {

using namespace skald;

void run_nothing(const cpu::PhaseHead& /*phase*/, std::int64_t /*unit*/, cpu::Participant& /*me*/) noexcept {}

/// Phases whose units do nothing: claims, counters, waits.
void phase_overhead(benchmark::State& state) {
  const auto threads = static_cast<int>(state.range(0));
  const AnyExecutor executor = make_tbb_executor(threads);
  cpu::PhaseRunner runner(threads);
  constexpr std::int64_t count = 1000;
  std::vector<cpu::PhaseHead> phases(count);
  std::vector<const cpu::PhaseHead*> heads;
  for (cpu::PhaseHead& phase : phases) {
    phase = {.run = run_nothing, .units = state.range(1)};
    heads.push_back(&phase);
  }
  std::vector<std::byte> memory(64 * 64);
  for (auto _ : state) runner.run(executor, heads.data(), count, memory.data(), 64, {});
  state.counters["phases/s"] = benchmark::Counter(static_cast<double>(count) * static_cast<double>(state.iterations()),
                                                  benchmark::Counter::kIsRate);
}
BENCHMARK(phase_overhead)->ArgsProduct({{1, 2, 4}, {1, 8, 32}})->UseRealTime();

/// One small op per step: what a whole enqueue and synchronize costs.
void small_step(benchmark::State& state) {
  CpuOptions options;
  options.threads = static_cast<int>(state.range(0));
  const AnyBackend backend = make_cpu_backend(options);
  const Buffer buffer = backend->allocate(1 << 20);
  const auto stream = backend->new_stream({.tokens = 1, .max_cols = 2048});
  const Matrix x = buffer.matrix(0, 1, 2048);
  for (auto _ : state) {
    for (int i = 0; i < 100; ++i)
      stream->enqueue(NormOp{.x = x, .norm = {.kind = NormKind::rms, .epsilon = 1e-5F}, .out = x});
    stream->synchronize();
  }
  state.counters["ops/s"] =
      benchmark::Counter(100.0 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK(small_step)->Arg(1)->Arg(4)->UseRealTime();

std::shared_ptr<const Weight> random_weight(BackendInterface& backend, DType type, std::int64_t rows,
                                            std::int64_t cols) {
  std::mt19937 random(1);
  const std::size_t bytes = row_bytes(type, static_cast<std::size_t>(cols));
  std::vector<std::byte> row(bytes);
  std::vector<float> x(static_cast<std::size_t>(cols));
  for (float& v : x) v = std::uniform_real_distribution<float>(-1, 1)(random);
  encode_row(type, x, row);
  const auto read = [&](std::int64_t /*first*/, std::int64_t count, std::span<std::byte> out) {
    for (std::int64_t i = 0; i < count; ++i)
      std::memcpy(out.data() + static_cast<std::size_t>(i) * bytes, row.data(), bytes);
  };
  return backend.make_weight({.type = type, .rows = rows, .cols = cols, .read = read}, WeightLayout::packed, {});
}

/// The matrix products of all layers and the head, for a batch of range(1) tokens.
void layers(benchmark::State& state) {
  CpuOptions options;
  options.threads = static_cast<int>(state.range(0));
  const std::int64_t tokens = state.range(1);
  const auto type = static_cast<DType>(state.range(2));
  const AnyBackend backend = make_cpu_backend(options);
  constexpr std::int64_t dim = 2048, kv = 512, width = 8192, vocabulary = 128256;
  constexpr int depth = 16;
  std::vector<std::shared_ptr<const Weight>> weights;
  std::size_t bytes = 0;
  const auto add = [&](std::int64_t rows, std::int64_t cols) {
    weights.push_back(random_weight(*backend, type, rows, cols));
    bytes += weights.back()->bytes();
  };
  for (int i = 0; i < depth; ++i) {
    for (const auto& [rows, cols] : std::initializer_list<std::pair<std::int64_t, std::int64_t>>{
             {dim, dim}, {kv, dim}, {kv, dim}, {dim, dim}, {width, dim}, {width, dim}, {dim, width}}) {
      add(rows, cols);
    }
  }
  add(vocabulary, dim);
  const auto floats = [](std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); };
  const Buffer buffer = backend->allocate(floats(tokens * (4 * dim + width) + vocabulary));
  std::size_t at = 0;
  const auto matrix = [&](std::int64_t rows, std::int64_t cols) {
    const Matrix m = buffer.matrix(at, rows, cols);
    at += floats(rows * cols);
    return m;
  };
  const Matrix x = matrix(tokens, dim), q = matrix(tokens, dim), k = matrix(tokens, kv), v = matrix(tokens, kv),
               hidden = matrix(tokens, width), logits = matrix(1, vocabulary);
  const auto stream = backend->new_stream({.tokens = tokens, .max_cols = width});
  const Norm norm{.kind = NormKind::rms, .epsilon = 1e-5F};
  const std::int32_t last = static_cast<std::int32_t>(tokens - 1);
  const auto step = [&] {
    for (int i = 0; i < depth; ++i) {
      const auto* w = &weights[static_cast<std::size_t>(7 * i)];
      LinearOp qkv{.x = x, .norm = norm, .part_count = 3};
      qkv.parts = {LinearPart{w[0].get(), nullptr, q}, LinearPart{w[1].get(), nullptr, k},
                   LinearPart{w[2].get(), nullptr, v}};
      stream->enqueue(qkv);
      LinearOp out{.x = q, .epilogue = LinearEpilogue::add};
      out.parts[0] = {w[3].get(), nullptr, x};
      stream->enqueue(out);
      LinearOp gate{
          .x = x, .norm = norm, .part_count = 2, .epilogue = LinearEpilogue::gated, .activation = Activation::silu};
      gate.parts = {LinearPart{w[4].get(), nullptr, hidden}, LinearPart{w[5].get(), nullptr, {}}};
      stream->enqueue(gate);
      LinearOp down{.x = hidden, .epilogue = LinearEpilogue::add};
      down.parts[0] = {w[6].get(), nullptr, x};
      stream->enqueue(down);
    }
    LinearOp head{.x = x, .norm = norm, .rows = &last, .row_count = 1};
    head.parts[0] = {weights.back().get(), nullptr, logits};
    stream->enqueue(head);
    stream->synchronize();
  };
  step();
  for (auto _ : state) step();
  const auto runs = static_cast<double>(state.iterations());
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens) * runs, benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(bytes) * 1e-9 * runs, benchmark::Counter::kIsRate);
}
BENCHMARK(layers)
    ->ArgsProduct({{1, 4}, {1, 4, 512}, {static_cast<int>(DType::q4_0), static_cast<int>(DType::q8_0)}})
    ->ArgNames({"threads", "tokens", "type"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
