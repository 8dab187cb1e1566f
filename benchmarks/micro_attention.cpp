// Speed of the attention kernels for 32 query heads, 8 KV heads and head dimension 64, beside the peak of fused
// multiply-adds and of reading memory, measured in the same run.
//
//   skald_micro_attention --benchmark_filter=avx512vnni --benchmark_repetitions=5
//
// prefill/ISA/TYPE/LENGTH   one KV head with its 4 query heads over a whole prompt, in tasks of 64 rows: FLOP/s
// decode/ISA/TYPE/LENGTH    one token, all KV heads, keys and values from memory: bytes of keys and values per second

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <skald/core/half.hpp>
#include <skald/core/memory.hpp>
#include <skald/simd/isa.hpp>

#include "kernels/kernel_table.hpp"

namespace {

using skald::DType;
using skald::kernels::AttentionKernel;
using skald::kernels::AttentionTask;

constexpr int query_heads = 4;  // per KV head
constexpr int kv_heads = 8;
constexpr int dims = 64;
constexpr int page_tokens = 64;
constexpr int task_rows = 64;

const AttentionKernel* find_kernel(skald::Isa isa, DType type) {
  int count = 0;
  const AttentionKernel* kernels = nullptr;
  switch (isa) {
    case skald::Isa::baseline: kernels = skald::kernels::baseline::attention_kernels(&count); break;
#if defined(__x86_64__)
    case skald::Isa::avx2: kernels = skald::kernels::avx2::attention_kernels(&count); break;
    case skald::Isa::avx512: kernels = skald::kernels::avx512::attention_kernels(&count); break;
    case skald::Isa::avx512bf16:
    case skald::Isa::avx512vnni: kernels = skald::kernels::avx512vnni::attention_kernels(&count); break;
#else
    default: break;
#endif
  }
  for (int i = 0; i < count; ++i) {
    if (kernels[i].type == type) return kernels + i;
  }
  return nullptr;
}

/// Pages of several layers, filled with small random numbers.
struct Pool {
  skald::KvPageLayout layout;
  skald::AlignedBuffer bytes;
  std::vector<std::vector<std::uint32_t>> tables;  ///< per layer

  Pool(DType type, int heads, int length, int layers) : layout{type, page_tokens, heads, dims, dims} {
    const auto pages = static_cast<std::uint32_t>((length + page_tokens - 1) / page_tokens);
    bytes = skald::AlignedBuffer(static_cast<std::size_t>(layers) * pages * layout.page_bytes());
    if (layout.coded()) {
      // Codes of 17 or 1, and scales of 0x1.44p-11.
      std::memset(bytes.data(), 0x11, bytes.size());
      fill_tables(layers, pages);
      return;
    }
    std::minstd_rand random(1);
    const std::size_t n = bytes.size() / layout.element_bytes();
    for (std::size_t i = 0; i < n; ++i) {
      const float x = static_cast<float>(random() % 4096) / 2048.0F - 1.0F;
      const std::uint16_t half = type == DType::f16 ? skald::f32_to_f16(x) : skald::f32_to_bf16(x);
      if (type == DType::f32) std::memcpy(bytes.data() + 4 * i, &x, 4);
      else std::memcpy(bytes.data() + 2 * i, &half, 2);
    }
    fill_tables(layers, pages);
  }
  void fill_tables(int layers, std::uint32_t pages) {
    for (int layer = 0; layer < layers; ++layer) {
      std::vector<std::uint32_t>& table = tables.emplace_back(pages);
      for (std::uint32_t page = 0; page < pages; ++page) table[page] = static_cast<std::uint32_t>(layer) * pages + page;
    }
  }
  [[nodiscard]] AttentionTask task(int layer, int head, const float* q, float* out) const {
    AttentionTask t{};
    t.q = q;
    t.q_stride = query_heads * dims;
    t.out = out;
    t.out_stride = query_heads * dims;
    t.heads = query_heads;
    t.scale = 0.125F;
    t.pool = bytes.data();
    t.pages = tables[static_cast<std::size_t>(layer)].data();
    t.layout = layout;
    t.head = head;
    return t;
  }
};

std::vector<float> random_floats(std::size_t n) {
  std::minstd_rand random(2);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(random() % 4096) / 1024.0F - 2.0F;
  return x;
}

void prefill(benchmark::State& state, const AttentionKernel* kernel, int length) {
  const Pool pool(kernel->type, 1, length, 1);
  const std::vector<float> q = random_floats(static_cast<std::size_t>(length) * query_heads * dims);
  std::vector<float> out(q.size());
  std::vector<std::byte> scratch(kernel->scratch_bytes(dims, dims, query_heads, task_rows));
  for (auto _ : state) {
    for (int row = 0; row < length; row += task_rows) {
      AttentionTask t = pool.task(0, 0, q.data() + static_cast<std::ptrdiff_t>(row) * query_heads * dims,
                                  out.data() + static_cast<std::ptrdiff_t>(row) * query_heads * dims);
      t.first_row = row;
      t.rows = task_rows;
      t.segment_rows = length;
      kernel->whole(t, scratch.data());
    }
    benchmark::ClobberMemory();
  }
  const double visible = 0.5 * length * (length + 1.0);
  state.counters["FLOP/s"] = benchmark::Counter(
      4.0 * dims * query_heads * visible * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void decode(benchmark::State& state, const AttentionKernel* kernel, int length) {
  const skald::KvPageLayout one{kernel->type, page_tokens, 1, dims, dims};
  const double layer_bytes = 1.0 * length * kv_heads * static_cast<double>(one.token_bytes());
  const int layers = std::max(2, static_cast<int>(160e6 / layer_bytes));  // more than the caches hold
  const Pool pool(kernel->type, kv_heads, length, layers);
  const std::vector<float> q = random_floats(query_heads * dims);
  std::vector<float> out(q.size());
  std::vector<std::byte> scratch(kernel->scratch_bytes(dims, dims, query_heads, 1));
  int layer = 0;
  for (auto _ : state) {
    for (int head = 0; head < kv_heads; ++head) {
      AttentionTask t = pool.task(layer, head, q.data(), out.data());
      t.rows = t.segment_rows = 1;
      t.slot_base = length - 1;
      kernel->whole(t, scratch.data());
    }
    layer = (layer + 1) % layers;
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(layer_bytes) * state.iterations());
}

#if defined(__x86_64__)
#if defined(__clang__)
#define SKALD_UNROLL _Pragma("unroll")
#else
#define SKALD_UNROLL _Pragma("GCC unroll 12")
#endif
__attribute__((target("avx512f"))) float fma_chains_512(int n) {
  __m512 a[12];
  for (int i = 0; i < 12; ++i) a[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 b = _mm512_set1_ps(0.999F);
  const __m512 c = _mm512_set1_ps(0.001F);
  for (int k = 0; k < n; ++k) {
    SKALD_UNROLL for (int i = 0; i < 12; ++i) a[i] = _mm512_fmadd_ps(a[i], b, c);
  }
  __m512 sum = a[0];
  for (int i = 1; i < 12; ++i) sum = _mm512_add_ps(sum, a[i]);
  float lane[16];
  _mm512_storeu_ps(lane, sum);
  return lane[0] + lane[5];
}
__attribute__((target("avx2,fma"))) float fma_chains_256(int n) {
  __m256 a[12];
  for (int i = 0; i < 12; ++i) a[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 b = _mm256_set1_ps(0.999F);
  const __m256 c = _mm256_set1_ps(0.001F);
  for (int k = 0; k < n; ++k) {
    SKALD_UNROLL for (int i = 0; i < 12; ++i) a[i] = _mm256_fmadd_ps(a[i], b, c);
  }
  __m256 sum = a[0];
  for (int i = 1; i < 12; ++i) sum = _mm256_add_ps(sum, a[i]);
  float lane[8];
  _mm256_storeu_ps(lane, sum);
  return lane[0] + lane[5];
}
void fma_peak(benchmark::State& state, float (*chains)(int), int lanes) {
  constexpr int n = 100000;
  for (auto _ : state) benchmark::DoNotOptimize(chains(n));
  state.counters["FLOP/s"] =
      benchmark::Counter(2.0 * 12 * lanes * n * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
#endif

void read_peak(benchmark::State& state) {
  // Four streams, as the memory's best case.
  skald::AlignedBuffer memory(std::size_t{160} << 20);
  std::memset(memory.data(), 1, memory.size());
  const auto* data = reinterpret_cast<const std::uint64_t*>(memory.data());
  const std::size_t quarter = memory.size() / 32;
  for (auto _ : state) {
    std::uint64_t sum[8] = {};
    for (std::size_t i = 0; i < quarter; i += 8) {
      for (std::size_t s = 0; s < 4; ++s) {
        const std::uint64_t* p = data + s * quarter + i;
        __builtin_prefetch(p + 256);
        for (std::size_t j = 0; j < 8; ++j) sum[j] += p[j];
      }
    }
    benchmark::DoNotOptimize(sum);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(memory.size()) * state.iterations());
}

void register_all() {
  const int many = 4;
  benchmark::RegisterBenchmark("peak/read", read_peak)->Threads(1)->Threads(many)->UseRealTime();
  for (const skald::Isa isa : skald::available_isas()) {
#if defined(__x86_64__)
    if (isa == skald::Isa::avx2) {
      benchmark::RegisterBenchmark("peak/fma/avx2", fma_peak, fma_chains_256, 8)
          ->Threads(1)
          ->Threads(many)
          ->UseRealTime();
    }
    if (isa == skald::Isa::avx512) {
      benchmark::RegisterBenchmark("peak/fma/avx512", fma_peak, fma_chains_512, 16)
          ->Threads(1)
          ->Threads(many)
          ->UseRealTime();
    }
#endif
    for (const DType type : {DType::f16, DType::bf16, DType::f32, DType::q8_0, DType::q4_0}) {
      const AttentionKernel* kernel = find_kernel(isa, type);
      const std::string name = std::string(skald::to_string(isa)) + "/" + std::string(skald::to_string(type)) + "/";
      for (const int length : {512, 2048, 8192}) {
        benchmark::RegisterBenchmark(("prefill/" + name + std::to_string(length)).c_str(), prefill, kernel, length)
            ->Threads(1)
            ->Threads(many)
            ->UseRealTime();
      }
      for (const int length : {1024, 8192, 32768}) {
        benchmark::RegisterBenchmark(("decode/" + name + std::to_string(length)).c_str(), decode, kernel, length)
            ->Threads(1)
            ->Threads(many)
            ->UseRealTime();
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
