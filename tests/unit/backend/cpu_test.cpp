// What only the cpu backend promises: the same bits for any threads, batch, layout and executor.

#include <array>
#include <chrono>
#include <optional>
#include <thread>

#include "executors.hpp"
#include "fixture.hpp"

#include <skald/simd/isa.hpp>

using namespace skald;
using namespace skald_test;

namespace {

AnyBackend cpu(Isa isa, int threads, std::optional<AnyExecutor> executor = {}) {
  CpuOptions options;
  options.isa = to_string(isa);
  options.threads = threads;
  options.executor = std::move(executor);
  return make_cpu_backend(options);
}

/// A small transformer layer: everything a forward pass does, with weights of one format.
class Layer {
 public:
  static constexpr std::int64_t dim = 256;
  static constexpr std::int64_t width = 768;
  static constexpr std::int32_t heads = 8;
  static constexpr std::int32_t kv_heads = 2;
  static constexpr std::int32_t head_dim = 32;
  static constexpr std::int64_t context = 700;
  static constexpr std::int32_t bias_reach = 40;

  /// Attention with sinks, slopes and a bias; or with keys that are the values, too.
  bool distances = false;
  bool values_in_keys = false;

  Layer(AnyBackend backend, DType type, WeightLayout layout = WeightLayout::packed, bool mapped = true)
      : backend_(std::move(backend)) {
    std::mt19937 random(77);
    const std::int64_t kv = kv_heads * head_dim;
    for (const auto& [rows, cols] : std::vector<std::pair<std::int64_t, std::int64_t>>{{vocabulary, dim},
                                                                                       {dim, dim},
                                                                                       {kv, dim},
                                                                                       {kv, dim},
                                                                                       {dim, dim},
                                                                                       {width, dim},
                                                                                       {width, dim},
                                                                                       {dim, width}}) {
      files_.emplace_back(type, rows, cols, random);
    }
    for (const FileWeight& file : files_) weights_.push_back(file.make(*backend_, layout, mapped));
    for (int i = 0; i < 2; ++i) norms_.emplace_back(*backend_, 1, dim, random, 1.0F, 0);
    bias_.emplace_back(*backend_, 1, dim, random, 1.0F, 0);
    extra_.emplace_back(*backend_, 1, heads * (2 + 2 * bias_reach + 1), random, 1.0F, 0);
    for (std::size_t j = 0; j < head_dim / 2; ++j) frequencies_.push_back(std::pow(1e4, -static_cast<double>(j) / 16));
  }

  /// Runs tokens [0, n) in pieces of at most `chunk` rows as one sequence. @return the logits of all rows.
  std::vector<float> forward(std::int64_t n, std::int64_t chunk) {
    Cache cache(*backend_, *this);
    const auto stream = backend_->new_stream(limits(chunk));
    std::vector<float> logits;
    for (std::int64_t begin = 0; begin < n; begin += chunk) {
      const std::vector<float> part = step(*stream, {&cache}, {std::min(chunk, n - begin)});
      logits.insert(logits.end(), part.begin(), part.end());
    }
    return logits;
  }

  /// Runs `count` sequences of different tokens together. @return per sequence the logits of all rows.
  std::vector<std::vector<float>> together(std::int64_t count, std::int64_t n) {
    std::vector<Cache> caches;
    std::vector<Cache*> pointers;
    caches.reserve(static_cast<std::size_t>(count));
    for (std::int64_t s = 0; s < count; ++s) {
      caches.emplace_back(*backend_, *this, static_cast<std::int32_t>(s));
      pointers.push_back(&caches.back());
    }
    StreamLimits most = limits(count * n);
    most.segments = count;
    const auto stream = backend_->new_stream(most);
    const std::vector<float> all =
        step(*stream, pointers, std::vector<std::int64_t>(static_cast<std::size_t>(count), n));
    std::vector<std::vector<float>> result;
    for (std::int64_t s = 0; s < count; ++s) {
      result.emplace_back(all.begin() + s * n * vocabulary, all.begin() + (s + 1) * n * vocabulary);
    }
    return result;
  }
  std::vector<float> alone(std::int32_t sequence, std::int64_t n) {
    Cache cache(*backend_, *this, sequence);
    const auto stream = backend_->new_stream(limits(n));
    return step(*stream, {&cache}, {n});
  }

  struct Cache {
    Cache(BackendInterface& backend, const Layer& of, std::int32_t sequence = 0) : seed(sequence) {
      layout = {.dtype = DType::f16,
                .page_tokens = 32,
                .heads = 1,
                .head_dim_k = head_dim,
                .head_dim_v = head_dim,
                .values_in_keys = of.values_in_keys};
      const auto per_group = static_cast<std::uint32_t>((context + 31) / 32);
      for (std::uint32_t i = 0; i < 2 * per_group; ++i) pages.push_back(2 * per_group - 1 - i);
      pool = backend.allocate(pages.size() * layout.page_bytes());
      length = 0;
    }
    KvPageLayout layout;
    std::vector<std::uint32_t> pages;
    Buffer pool;
    std::int32_t length;
    std::int32_t seed;
  };

  std::vector<float> step(Stream& stream, const std::vector<Cache*>& caches, const std::vector<std::int64_t>& rows) {
    Step work(*this, caches, rows);
    for (const Op& op : work.ops) stream.enqueue(op);
    stream.synchronize();
    for (std::size_t s = 0; s < caches.size(); ++s) caches[s]->length += static_cast<std::int32_t>(rows[s]);
    return work.logits;
  }

  /// The ops of one step with the arrays they point to.
  struct Step {
    Step(Layer& layer, const std::vector<Cache*>& caches, const std::vector<std::int64_t>& rows) {
      std::int64_t n = 0;
      for (std::size_t s = 0; s < caches.size(); ++s) {
        segments.push_back(
            {.row_begin = static_cast<std::int32_t>(n), .row_count = static_cast<std::int32_t>(rows[s])});
        for (std::int64_t i = 0; i < rows[s]; ++i) {
          const std::int32_t position = caches[s]->length + static_cast<std::int32_t>(i);
          positions.push_back(position);
          tokens.push_back((position * 37 + caches[s]->seed * 11 + 5) % static_cast<std::int32_t>(vocabulary));
        }
        n += rows[s];
      }
      BackendInterface& backend = *layer.backend_;
      const std::int64_t kv = kv_heads * head_dim;
      for (const std::int64_t cols : {dim, dim, kv, kv, dim, width, std::int64_t{head_dim}, vocabulary}) {
        matrices.emplace_back(backend, n, cols, 0);
      }
      logits.resize(static_cast<std::size_t>(n * vocabulary));
      // Sequences of one op share a pool: each attention and store is one op per sequence here.
      fill(layer, caches, n);
    }

    void fill(Layer& layer, const std::vector<Cache*>& caches, std::int64_t n) {
      const auto weight = [&](std::size_t i) { return layer.weights_[i].get(); };
      const auto norm = [&](std::size_t i) {
        return Norm{.kind = NormKind::rms, .weight = layer.norms_[i].data(), .epsilon = 1e-5F};
      };
      const Matrix x = matrices[0].matrix(), q = matrices[1].matrix(), k = matrices[2].matrix(),
                   v = matrices[3].matrix(), attended = matrices[4].matrix(), hidden = matrices[5].matrix(),
                   table = matrices[6].matrix(), out = matrices[7].matrix();
      ops.emplace_back(EmbedOp{.table = weight(0), .tokens = tokens.data(), .out = x, .scale = 1.0F});
      ops.emplace_back(
          RopeTableOp{.positions = positions.data(), .inverse_frequencies = layer.frequencies_.data(), .out = table});
      LinearOp qkv{.x = x, .norm = norm(0), .part_count = 3};
      qkv.parts = {LinearPart{weight(1), layer.bias_[0].data(), q}, LinearPart{weight(2), nullptr, k},
                   LinearPart{weight(3), nullptr, v}};
      ops.emplace_back(qkv);
      for (std::size_t s = 0; s < caches.size(); ++s) {
        for (std::size_t g = 0; g < 2; ++g) {
          tables.push_back({caches[s]->pages.data() + g * caches[s]->pages.size() / 2, caches[s]->length});
        }
      }
      for (std::size_t s = 0; s < caches.size(); ++s) {
        const KvLayer cache{.pool = caches[s]->pool.address(),
                            .layout = caches[s]->layout,
                            .groups = 2,
                            .tables = tables.data() + 2 * s};
        ops.emplace_back(StoreKvOp{.q = q,
                                   .k = k,
                                   .v = v,
                                   .heads = heads,
                                   .kv_heads = kv_heads,
                                   .q_norm = {.kind = NormKind::rms, .epsilon = 1e-6F},
                                   .rope = RopeKind::half,
                                   .rope_dims = head_dim,
                                   .rope_table = table,
                                   .kv = cache,
                                   .segments = segments.data() + s,
                                   .segment_count = 1});
        const float* extra = layer.extra_[0].data();
        ops.emplace_back(AttentionOp{.q = q,
                                     .out = attended,
                                     .heads = heads,
                                     .kv_heads = kv_heads,
                                     .scale = 0.17F,
                                     .sinks = layer.distances ? extra : nullptr,
                                     .slopes = layer.distances ? extra + heads : nullptr,
                                     .bias = layer.distances ? extra + std::ptrdiff_t{2} * heads : nullptr,
                                     .bias_reach = bias_reach,
                                     .kv = cache,
                                     .segments = segments.data() + s,
                                     .segment_count = 1});
      }
      LinearOp project{.x = attended, .epilogue = LinearEpilogue::add, .scale = 0.9F};
      project.parts[0] = {weight(4), nullptr, x};
      ops.emplace_back(project);
      LinearOp gate{
          .x = x, .norm = norm(1), .part_count = 2, .epilogue = LinearEpilogue::gated, .activation = Activation::silu};
      gate.parts[0] = {weight(5), nullptr, hidden};
      gate.parts[1] = {weight(6), nullptr, {}};
      ops.emplace_back(gate);
      LinearOp down{.x = hidden, .epilogue = LinearEpilogue::add};
      down.parts[0] = {weight(7), nullptr, x};
      ops.emplace_back(down);
      for (std::int32_t i = 0; i < n; ++i) rows.push_back(i);
      LinearOp head{.x = x, .norm = norm(0), .rows = rows.data(), .row_count = static_cast<std::int32_t>(n)};
      head.parts[0] = {weight(0), nullptr, out};
      ops.emplace_back(head);
      ops.emplace_back(SoftcapOp{.x = out, .scale = 0.5F, .softcap = 30.0F});
      ops.emplace_back(DownloadOp{.x = out, .host = logits.data()});
    }

    std::vector<std::int32_t> tokens, positions, rows;
    std::vector<Segment> segments;
    std::vector<KvTable> tables;
    std::vector<DeviceMatrix> matrices;
    std::vector<float> logits;
    std::vector<Op> ops;
  };

  static StreamLimits limits(std::int64_t tokens) {
    return {.tokens = tokens, .max_cols = width, .heads = heads, .head_dim = head_dim, .context = context};
  }
  [[nodiscard]] BackendInterface& backend() { return *backend_; }

 private:
  static constexpr std::int64_t vocabulary = 131;
  AnyBackend backend_;
  std::vector<FileWeight> files_;
  std::vector<std::shared_ptr<const Weight>> weights_;
  std::vector<DeviceMatrix> norms_;
  std::vector<DeviceMatrix> bias_;
  std::vector<DeviceMatrix> extra_;
  std::vector<double> frequencies_;
};

constexpr std::array formats = {DType::f32, DType::f16, DType::q8_0, DType::q4_0, DType::q4_k, DType::q6_k};

}  // namespace

TEST_CASE("backend.cpu: a layer's bits depend neither on threads nor on how a prompt is cut", "[backend]") {
  for (const Isa isa : tested_isas()) {
    for (const DType type : formats) {
      INFO(to_string(isa) << ", " << to_string(type));
      Layer one(cpu(isa, 1), type);
      const std::vector<float> expected = one.forward(300, 300);
      REQUIRE(expected.size() == 300 * 131);
      CHECK(std::all_of(expected.begin(), expected.end(), [](float v) { return std::isfinite(v); }));
      for (const std::int64_t chunk : {64, 7, 1}) {
        INFO("chunks of " << chunk);
        CHECK(same_bits(one.forward(300, chunk), expected));
      }
      for (const int threads : {2, 3, 4}) {
        INFO(threads << " threads");
        Layer many(cpu(isa, threads, AnyExecutor(std::make_shared<ThreadExecutor>(threads))), type);
        CHECK(same_bits(many.forward(300, 300), expected));
        CHECK(same_bits(many.forward(300, 150), expected));
      }
      Layer pool(cpu(isa, 4, make_tbb_executor(4)), type);
      CHECK(same_bits(pool.forward(300, 1), expected));
      CHECK(same_bits(pool.forward(300, 5), expected));
      CHECK(same_bits(pool.forward(300, 77), expected));
    }
  }
}

TEST_CASE("backend.cpu: attention's variants depend neither on threads nor on how a prompt is cut", "[backend]") {
  for (const Isa isa : tested_isas()) {
    for (const bool distances : {false, true}) {
      INFO(to_string(isa) << ", distances " << distances);
      Layer one(cpu(isa, 1), DType::f32);
      one.distances = distances;
      one.values_in_keys = !distances;
      const std::vector<float> expected = one.forward(600, 300);
      CHECK(std::all_of(expected.begin(), expected.end(), [](float v) { return std::isfinite(v); }));
      CHECK(same_bits(one.forward(600, 77), expected));
      Layer many(cpu(isa, 3, AnyExecutor(std::make_shared<ThreadExecutor>(3))), DType::f32);
      many.distances = distances;
      many.values_in_keys = !distances;
      CHECK(same_bits(many.forward(600, 600), expected));
      CHECK(same_bits(many.forward(600, 1), expected));
      CHECK(same_bits(many.forward(600, 7), expected));
      const auto together = many.together(5, 3);
      for (std::int32_t s = 0; s < 5; ++s) {
        CHECK(same_bits(together[static_cast<std::size_t>(s)], one.alone(s, 3)));
      }
    }
  }
}

TEST_CASE("backend.cpu: sequences run together give the bits of each alone", "[backend]") {
  for (const Isa isa : tested_isas()) {
    for (const DType type : {DType::f32, DType::q4_0, DType::q4_k}) {
      INFO(to_string(isa) << ", " << to_string(type));
      Layer layer(cpu(isa, 3), type);
      for (const std::int64_t rows : {1, 5}) {
        const auto all = layer.together(8, rows);
        for (std::int32_t s = 0; s < 8; ++s) CHECK(same_bits(all[static_cast<std::size_t>(s)], layer.alone(s, rows)));
      }
    }
  }
}

TEST_CASE("backend.cpu: rows in file order give the bits of packed panels", "[backend]") {
  for (const Isa isa : tested_isas()) {
    for (const DType type : formats) {
      INFO(to_string(isa) << ", " << to_string(type));
      Layer packed(cpu(isa, 2), type);
      Layer mapped(cpu(isa, 2), type, WeightLayout::rows, true);
      Layer read(cpu(isa, 2), type, WeightLayout::rows, false);
      for (const std::int64_t chunk : {1, 30}) {
        const std::vector<float> expected = packed.forward(60, chunk);
        CHECK(same_bits(mapped.forward(60, chunk), expected));
        CHECK(same_bits(read.forward(60, chunk), expected));
      }
    }
  }
}

TEST_CASE("backend.cpu: any executor gives the same bits", "[backend]") {
  const Isa isa = available_isas().back();
  Layer expected(cpu(isa, 1, AnyExecutor(std::make_shared<SerialExecutor>())), DType::q8_0);
  const std::vector<float> bits = expected.forward(70, 64);
  const std::vector<AnyExecutor> executors = {std::make_shared<ReverseExecutor>(), std::make_shared<LonelyExecutor>(),
                                              std::make_shared<IdleExecutor>(), std::make_shared<LateExecutor>(4),
                                              std::make_shared<ThreadExecutor>(9)};
  for (std::size_t e = 0; e < executors.size(); ++e) {
    INFO("executor " << e);
    Layer layer(cpu(isa, 0, executors[e]), DType::q8_0);
    CHECK(same_bits(layer.forward(70, 64), bits));
    CHECK(same_bits(layer.forward(70, 3), bits));
  }
}

TEST_CASE("backend.cpu: long contexts are split by chunks without changing a bit", "[backend]") {
  for (const Isa isa : tested_isas()) {
    INFO(to_string(isa));
    Layer one(cpu(isa, 1), DType::q8_0);
    Layer four(cpu(isa, 4, AnyExecutor(std::make_shared<ThreadExecutor>(4))), DType::q8_0);
    CHECK(same_bits(one.forward(690, 115), four.forward(690, 6)));
  }
}

TEST_CASE("backend.cpu: a stop request ends a long queue early and leaves the stream usable", "[backend]") {
  std::mt19937 random(9);
  const AnyBackend backend = cpu(available_isas().back(), 2);
  const FileWeight file(DType::q8_0, 2048, 2048, random);
  const auto weight = file.make(*backend);
  const DeviceMatrix x(*backend, 512, 2048, random);
  const DeviceMatrix out(*backend, 512, 2048);
  const DeviceMatrix last(*backend, 512, 2048);
  const std::vector<float> before = last.floats();
  const auto stream = backend->new_stream(roomy_limits());
  LinearOp op{.x = x.matrix()};
  op.parts[0] = {.weight = weight.get(), .out = out.matrix()};
  // Minutes of work.
  for (int i = 0; i < 20000; ++i) stream->enqueue(op);
  op.parts[0].out = last.matrix();
  stream->enqueue(op);
  std::stop_source stop;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    stop.request_stop();
  });
  CHECK_THROWS_AS(stream->synchronize(stop.get_token()), CancelledError);
  other.join();
  CHECK(same_bits(last.floats(), before));
  stream->enqueue(op);
  CHECK_NOTHROW(stream->synchronize());
  CHECK_FALSE(same_bits(last.floats(), before));
}

TEST_CASE("backend.cpu: an executor's exception arrives and the stream stays usable", "[backend]") {
  const auto broken = std::make_shared<BrokenExecutor>();
  broken->broken = false;
  Layer layer(cpu(available_isas().back(), 0, AnyExecutor(broken)), DType::q8_0);
  const std::vector<float> expected = layer.forward(20, 20);
  const auto stream = layer.backend().new_stream(Layer::limits(20));
  Layer::Cache cache(layer.backend(), layer);
  broken->broken = true;
  for (const bool after : {false, true}) {
    broken->after = after;
    CHECK_THROWS_AS(layer.step(*stream, {&cache}, {20}), std::runtime_error);
  }
  broken->broken = false;
  CHECK(same_bits(layer.step(*stream, {&cache}, {20}), expected));
}

TEST_CASE("backend.cpu: refuses what it lacks, and weights of another instruction set", "[backend]") {
  CHECK_THROWS_AS(cpu(available_isas().front(), 1)
                      ->make_weight({.type = DType::q8_k, .rows = 1, .cols = 256, .read = [](auto, auto, auto) {}},
                                    WeightLayout::packed, {}),
                  UnsupportedError);
  CpuOptions options;
  options.isa = "sse9";
  CHECK_THROWS_AS(make_cpu_backend(options), UnsupportedError);
  const AnyBackend last = cpu(available_isas().back(), 1);
  AttentionOp attention{.heads = 1, .kv_heads = 1};
  attention.kv.layout = {.dtype = DType::q8_0, .heads = 1, .head_dim_k = 16, .head_dim_v = 16};
  attention.kv.groups = 1;
  CHECK(last->refuses(attention).has_value());
  if (available_isas().size() < 2) return;
  std::mt19937 random(1);
  const FileWeight file(DType::f32, 16, 16, random);
  const auto foreign = file.make(*cpu(available_isas().front(), 1));
  const DeviceMatrix x(*last, 1, 16, random);
  const DeviceMatrix out(*last, 1, 16);
  LinearOp op{.x = x.matrix()};
  op.parts[0] = {.weight = foreign.get(), .out = out.matrix()};
  CHECK_THROWS_AS(last->new_stream(roomy_limits())->enqueue(op), UsageError);
}

TEST_CASE("backend.cpu: a stream made for some weight formats takes less memory and refuses others", "[backend]") {
  const AnyBackend backend = cpu(available_isas().back(), 2);
  StreamLimits limits = roomy_limits();
  const std::size_t any = backend->stream_bytes(limits);
  const std::array types = {DType::q8_0};
  limits.weight_types = types;
  CHECK(backend->stream_bytes(limits) < any);
  const auto stream = backend->new_stream(limits);
  std::mt19937 random(1);
  const DeviceMatrix x(*backend, 20, 256, random);
  const DeviceMatrix out(*backend, 20, 48);
  for (const DType type : {DType::q8_0, DType::f32}) {
    const FileWeight file(type, 48, 256, random);
    const auto weight = file.make(*backend);
    LinearOp op{.x = x.matrix()};
    op.parts[0] = {.weight = weight.get(), .out = out.matrix()};
    if (type == DType::q8_0) {
      CHECK_NOTHROW(stream->enqueue(op));
      CHECK_NOTHROW(stream->synchronize());
    } else {
      CHECK_THROWS_AS(stream->enqueue(op), UsageError);
    }
  }
}

TEST_CASE("backend.make_backend: finds backends by name and options", "[backend]") {
  CHECK(make_backend("reference")->info().name == "reference");
  const AnyBackend backend = make_backend("cpu:isa=baseline,threads=2,huge_pages=off");
  CHECK(backend->info().name == "cpu");
  CHECK(backend->info().isa == "baseline");
  CHECK(backend->info().threads <= 2);
  CHECK_FALSE(backend->info().huge_pages);
  CHECK(make_backend("cpu")->info().huge_pages);
  for (const char* bad : {"", "gpu", "cpu:threads=-1", "cpu:threads=x", "cpu:huge_pages=maybe", "cpu:speed=9",
                          "reference:threads=2", "cpu:isa"}) {
    INFO(bad);
    CHECK_THROWS_AS(make_backend(bad), UsageError);
  }
  CHECK_THROWS_AS(make_backend("cpu:isa=sse9"), UnsupportedError);
}
