// Counts heap allocations of the whole program.

#include "executors.hpp"
#include "fixture.hpp"
#include "support/allocation_counter.hpp"

#include <skald/simd/isa.hpp>

using namespace skald;
using namespace skald_test;

TEST_CASE("backend.cpu: a step in the steady state allocates nothing", "[backend]") {
  for (const bool serial : {true, false}) {
    for (const std::int64_t rows : {1, 40}) {
      INFO("serial " << serial << ", " << rows << " rows");
      CpuOptions options;
      options.executor = serial ? AnyExecutor(std::make_shared<SerialExecutor>()) : make_tbb_executor(3);
      const AnyBackend backend = make_cpu_backend(options);
      std::mt19937 random(4);
      const FileWeight file(DType::q8_0, 256, 256, random);
      const auto weight = file.make(*backend);
      const KvPageLayout layout{.dtype = DType::f16, .page_tokens = 64, .heads = 1, .head_dim_k = 32, .head_dim_v = 32};
      const Buffer pool = backend->allocate(32 * layout.page_bytes());
      std::vector<std::uint32_t> pages(32);
      for (std::uint32_t i = 0; i < 32; ++i) pages[i] = i;
      const DeviceMatrix x(*backend, rows, 256, random);
      const DeviceMatrix q(*backend, rows, 256, random);
      const DeviceMatrix k(*backend, rows, 32, random);
      const DeviceMatrix v(*backend, rows, 32, random);
      const DeviceMatrix out(*backend, rows, 256, random);
      std::vector<float> host(static_cast<std::size_t>(rows * 256));
      KvTable table{pages.data(), 900};
      const Segment segment{.row_begin = 0, .row_count = static_cast<std::int32_t>(rows)};
      const KvLayer kv{.pool = pool.address(), .layout = layout, .groups = 1, .tables = &table};
      const auto stream = backend->new_stream(roomy_limits());
      const auto step = [&] {
        for (int layer = 0; layer < 4; ++layer) {
          LinearOp linear{.x = x.matrix(), .norm = {.kind = NormKind::rms}};
          linear.parts[0] = {.weight = weight.get(), .out = q.matrix()};
          stream->enqueue(linear);
          stream->enqueue(StoreKvOp{.q = q.matrix(),
                                    .k = k.matrix(),
                                    .v = v.matrix(),
                                    .heads = 8,
                                    .kv_heads = 1,
                                    .kv = kv,
                                    .segments = &segment,
                                    .segment_count = 1});
          stream->enqueue(AttentionOp{.q = q.matrix(),
                                      .out = out.matrix(),
                                      .heads = 8,
                                      .kv_heads = 1,
                                      .scale = 1.0F,
                                      .kv = kv,
                                      .segments = &segment,
                                      .segment_count = 1});
          stream->enqueue(NormOp{.x = out.matrix(), .norm = {.kind = NormKind::layer}, .out = out.matrix()});
        }
        stream->enqueue(DownloadOp{.x = out.matrix(), .host = host.data()});
        stream->synchronize();
      };
      for (int i = 0; i < 50; ++i) step();
      const AllocationCounter counter;
      for (int i = 0; i < 50; ++i) {
        table.length = 900 + i;
        step();
      }
      CHECK(counter.calls() == 0);
    }
  }
}

TEST_CASE("backend.cpu: experts allocate nothing in the steady state", "[backend]") {
  for (const std::int64_t rows : {1, 40}) {
    INFO(rows << " rows");
    CpuOptions options;
    options.threads = 3;
    const AnyBackend backend = make_cpu_backend(options);
    std::mt19937 random(5);
    const FileWeight file(DType::q8_0, 4 * 256, 256, random);
    const auto stack = backend->make_weight({.type = file.type,
                                             .rows = file.rows,
                                             .cols = file.cols,
                                             .matrices = 4,
                                             .mapped = file.bytes,
                                             .read = [](std::int64_t, std::int64_t, std::span<std::byte>) {}},
                                            WeightLayout::packed, {});
    const DeviceMatrix x(*backend, rows, 256, random);
    const DeviceMatrix logits(*backend, rows, 4, random);
    const DeviceMatrix inner(*backend, 2 * rows, 256);
    const DeviceMatrix products(*backend, 2 * rows, 256);
    const auto stream = backend->new_stream({.tokens = rows, .max_cols = 256, .experts = 4, .used = 2, .expert_cols = 256});
    const auto step = [&] {
      stream->enqueue(ExpertsOp{.x = x.matrix(),
                                .norm = {.kind = NormKind::rms, .epsilon = 1e-5F},
                                .logits = logits.matrix(),
                                .used = 2,
                                .gate = stack.get(),
                                .up = stack.get(),
                                .down = stack.get(),
                                .inner = inner.matrix(),
                                .products = products.matrix(),
                                .out = x.matrix()});
      stream->synchronize();
    };
    for (int i = 0; i < 50; ++i) step();
    const AllocationCounter counter;
    for (int i = 0; i < 50; ++i) step();
    CHECK(counter.calls() == 0);
  }
}
