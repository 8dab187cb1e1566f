// Every op on every backend against formulas in double precision that are written here once more.

#include <bit>
#include <array>
#include <optional>

#include "fixture.hpp"

using namespace skald;
using namespace skald_test;

namespace {

std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

/// A vector in backend memory.
struct DeviceVector {
  std::vector<double> values;
  DeviceMatrix memory;
  DeviceVector(BackendInterface& backend, std::int64_t n, std::mt19937& random)
      : memory(backend, 1, n, random, 1.0F, 0) {
    values = widen(memory.floats());
  }
  [[nodiscard]] const float* data() const { return memory.data(); }
};

Dense normalized(const Dense& x, const Norm& norm, const std::vector<double>& weight, const std::vector<double>& bias) {
  Dense result = x;
  for (std::int64_t r = 0; r < x.rows; ++r) {
    std::vector<double> row(x.values.begin() + r * x.cols, x.values.begin() + (r + 1) * x.cols);
    row = oracle_norm(std::move(row), norm.kind, weight, bias, static_cast<double>(norm.epsilon));
    std::copy(row.begin(), row.end(), result.values.begin() + r * x.cols);
  }
  return result;
}

/// What a linear product sees of x: the floats, or their integer form.
Dense as_seen(const Subject& subject, DType type, const Dense& x) {
  const ActivationKind kind = format_ops(type).activation;
  if (type == DType::bf16 && subject.bf16_activations()) {
    Dense result = x;
    for (double& value : result.values) {
      // Nearest, ties to even, of the 24 significant bits of a float to 8.
      const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
      value = static_cast<double>(std::bit_cast<float>((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u));
    }
    return result;
  }
  if (!subject.integer_activations || kind == ActivationKind::f32) return x;
  Dense result = x;
  std::vector<float> row(static_cast<std::size_t>(x.cols));
  for (std::int64_t r = 0; r < x.rows; ++r) {
    for (std::int64_t c = 0; c < x.cols; ++c) row[static_cast<std::size_t>(c)] = static_cast<float>(x(r, c));
    ActivationRow(row, kind).decode(row);
    for (std::int64_t c = 0; c < x.cols; ++c) result(r, c) = static_cast<double>(row[static_cast<std::size_t>(c)]);
  }
  return result;
}

Dense product(const Dense& weight, const Dense& x) {
  Dense y(x.rows, weight.rows);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t r = 0; r < weight.rows; ++r) {
      for (std::int64_t k = 0; k < x.cols; ++k) y(i, r) += weight(r, k) * x(i, k);
    }
  }
  return y;
}

constexpr std::array all_activations = {Activation::none,     Activation::silu, Activation::gelu_tanh,
                                        Activation::gelu_erf, Activation::relu, Activation::relu_squared,
                                        Activation::tanh,     Activation::sigmoid};

}  // namespace

TEST_CASE("backend.embed: decodes and scales the rows of the table", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(1);
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_k, DType::q6_k}) {
      INFO(to_string(type));
      const FileWeight file(type, 37, 512, random);
      for (const WeightLayout layout : {WeightLayout::packed, WeightLayout::rows}) {
        const auto weight = file.make(backend, layout);
        const std::vector<std::int32_t> tokens = {36, 0, 5, 5, 16, 15};
        const DeviceMatrix out(backend, 6, 512);
        run(backend, {EmbedOp{.table = weight.get(), .tokens = tokens.data(), .out = out.matrix(), .scale = 2.5F}});
        Dense expected(6, 512);
        for (std::int64_t i = 0; i < 6; ++i) {
          for (std::int64_t c = 0; c < 512; ++c) {
            expected(i, c) =
                static_cast<double>(2.5F * static_cast<float>(file.values(tokens[static_cast<std::size_t>(i)], c)));
          }
        }
        CHECK(distance(out.dense(), expected) == 0);
      }
    }
  }
}

TEST_CASE("backend.upload and download: copy rows between host and backend", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    for (const std::int64_t rows : {0, 1, 9}) {
      std::vector<float> in(static_cast<std::size_t>(rows * 13));
      for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
      std::vector<float> out(in.size());
      const DeviceMatrix matrix(backend, rows, 13);
      run(backend,
          {UploadOp{.host = in.data(), .out = matrix.matrix()}, DownloadOp{.x = matrix.matrix(), .host = out.data()}});
      CHECK(out == in);
      CHECK(matrix.floats() == in);
    }
  }
}

TEST_CASE("backend.norm: normalizes rows of any width, in place or not", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(2);
    for (const NormKind kind : {NormKind::none, NormKind::rms, NormKind::layer}) {
      for (const std::int64_t cols : {1, 2, 7, 16, 31, 64, 100, 257, 2048}) {
        for (const bool weighted : {false, true}) {
          INFO(static_cast<int>(kind) << ", " << cols << " columns, weighted: " << weighted);
          DeviceMatrix x(backend, 5, cols, random, 3.0F);
          const DeviceVector weight(backend, cols, random);
          const DeviceVector bias(backend, cols, random);
          const Norm norm{.kind = kind,
                          .weight = weighted ? weight.data() : nullptr,
                          .bias = weighted ? bias.data() : nullptr,
                          .epsilon = 1e-5F};
          const Dense expected = normalized(x.dense(), norm, weighted ? weight.values : std::vector<double>{},
                                            weighted ? bias.values : std::vector<double>{});
          const DeviceMatrix out(backend, 5, cols);
          run(backend, {NormOp{.x = x.matrix(), .norm = norm, .out = out.matrix()},
                        NormOp{.x = x.matrix(), .norm = norm, .out = x.matrix()}});
          CHECK(distance(out.dense(), expected) < 1e-5);
          CHECK(same_bits(out.floats(), x.floats()));
        }
      }
    }
  }
}

TEST_CASE("backend.norm: a row of zeros stays finite", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    DeviceMatrix x(*subject.backend, 1, 40);
    x.set(std::vector<float>(40, 0.0F));
    run(*subject.backend,
        {NormOp{.x = x.matrix(), .norm = {.kind = NormKind::rms, .epsilon = 1e-6F}, .out = x.matrix()}});
    CHECK(x.floats() == std::vector<float>(40, 0.0F));
  }
}

TEST_CASE("backend.linear: multiplies with every weight format and layout", "[backend]") {
  for (const Subject& subject : subjects()) {
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(3);
    for (const DType type : block_formats()) {
      for (const WeightLayout layout : {WeightLayout::packed, WeightLayout::rows}) {
        if (backend.refuses_weight(type, layout)) continue;
        for (const std::int64_t tokens : {1, 3, 4, 13, 50}) {
          INFO(subject.name << ", " << to_string(type) << ", layout " << static_cast<int>(layout) << ", " << tokens);
          const bool plain = format_ops(type).block_elements == 1;
          const std::int64_t cols = plain ? 75 : 512;
          const FileWeight file(type, 53, cols, random);
          const auto weight = file.make(backend, layout, tokens % 2 == 0);
          CHECK(weight->bytes() == backend.weight_bytes(type, 53, cols, layout));
          const DeviceMatrix x(backend, tokens, cols, random);
          const DeviceMatrix out(backend, tokens, 53);
          LinearOp op{.x = x.matrix()};
          op.parts[0] = {.weight = weight.get(), .out = out.matrix()};
          run(backend, {op});
          const Dense expected = product(file.values, as_seen(subject, type, x.dense()));
          CHECK(distance(out.dense(), expected) < 2e-5);
        }
      }
    }
  }
}

TEST_CASE("backend.linear: applies norm, bias, scale, activation and epilogue", "[backend]") {
  for (const Subject& subject : subjects()) {
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(4);
    const std::int64_t cols = 96;
    const FileWeight file_a(DType::f32, 40, cols, random);
    const FileWeight file_b(DType::f32, 40, cols, random);
    const auto a = file_a.make(backend);
    const auto b = file_b.make(backend);
    const DeviceVector norm_weight(backend, cols, random);
    const DeviceVector norm_bias(backend, cols, random);
    const DeviceVector bias_a(backend, 40, random);
    const DeviceVector bias_b(backend, 40, random);
    for (const std::int64_t tokens : {1, 2, 5, 37}) {
      for (const Activation activation : all_activations) {
        for (const LinearEpilogue epilogue : {LinearEpilogue::store, LinearEpilogue::add, LinearEpilogue::gated}) {
          for (const NormKind kind : {NormKind::none, NormKind::rms, NormKind::layer}) {
            for (const bool biased : {false, true}) {
              if (epilogue == LinearEpilogue::add && activation != Activation::none) continue;
              INFO(subject.name << ", " << tokens << " tokens, activation " << static_cast<int>(activation)
                                << ", epilogue " << static_cast<int>(epilogue) << ", norm " << static_cast<int>(kind)
                                << ", bias " << biased);
              const Norm norm{.kind = kind, .weight = norm_weight.data(), .bias = norm_bias.data(), .epsilon = 1e-6F};
              const DeviceMatrix x(backend, tokens, cols, random);
              const DeviceMatrix out(backend, tokens, 40, random);
              const Dense before = out.dense();
              LinearOp op{.x = x.matrix(), .norm = norm};
              op.epilogue = epilogue;
              op.activation = activation;
              op.scale = epilogue == LinearEpilogue::gated ? 1.0F : 0.75F;
              op.part_count = epilogue == LinearEpilogue::gated ? 2 : 1;
              op.parts[0] = {.weight = a.get(), .bias = biased ? bias_a.data() : nullptr, .out = out.matrix()};
              op.parts[1] = {.weight = b.get(), .bias = biased ? bias_b.data() : nullptr};
              run(backend, {op});

              const Dense input = normalized(x.dense(), norm, norm_weight.values, norm_bias.values);
              const Dense product_a = product(file_a.values, input);
              const Dense product_b = product(file_b.values, input);
              Dense expected(tokens, 40);
              for (std::int64_t i = 0; i < tokens; ++i) {
                for (std::int64_t r = 0; r < 40; ++r) {
                  const auto n = static_cast<std::size_t>(r);
                  const double pa = product_a(i, r) + (biased ? bias_a.values[n] : 0);
                  const double pb = product_b(i, r) + (biased ? bias_b.values[n] : 0);
                  if (epilogue == LinearEpilogue::store) expected(i, r) = oracle_activation(0.75 * pa, activation);
                  if (epilogue == LinearEpilogue::add) expected(i, r) = before(i, r) + 0.75 * pa;
                  if (epilogue == LinearEpilogue::gated) expected(i, r) = oracle_activation(pa, activation) * pb;
                }
              }
              // Squares and products of sums of 96 terms in float.
              CHECK(distance(out.dense(), expected) < 5e-5);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("backend.linear: takes chosen rows and up to three matrices of different formats", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(5);
    const std::array<DType, 3> types = {DType::q4_0, DType::q6_k, DType::f16};
    const std::array<std::int64_t, 3> rows = {64, 19, 130};
    const DeviceMatrix x(backend, 33, 256, random);
    for (const std::vector<std::int32_t>& chosen :
         {std::vector<std::int32_t>{}, {32}, {4, 4, 0}, {31, 30, 3, 2, 1, 0, 7, 8, 9, 10, 11}}) {
      LinearOp op{.x = x.matrix()};
      static constexpr std::int32_t none = 0;
      op.rows = chosen.empty() ? &none : chosen.data();
      op.row_count = static_cast<std::int32_t>(chosen.size());
      op.part_count = 3;
      std::vector<FileWeight> files;
      std::vector<std::shared_ptr<const Weight>> weights;
      std::vector<DeviceMatrix> outs;
      const auto count = static_cast<std::int64_t>(chosen.size());
      for (std::size_t p = 0; p < 3; ++p) {
        files.emplace_back(types[p], rows[p], 256, random);
        weights.push_back(files[p].make(backend));
        outs.emplace_back(backend, count, rows[p]);
        op.parts[p] = {.weight = weights[p].get(), .out = outs[p].matrix()};
      }
      run(backend, {op});
      Dense input(count, 256);
      for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t k = 0; k < 256; ++k) input(i, k) = x.dense()(chosen[static_cast<std::size_t>(i)], k);
      }
      for (std::size_t p = 0; p < 3; ++p) {
        CHECK(distance(outs[p].dense(), product(files[p].values, as_seen(subject, types[p], input))) < 2e-5);
      }
    }
  }
}

TEST_CASE("backend.add and softcap: work on every width", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(6);
    for (const std::int64_t cols : {1, 5, 16, 33, 200}) {
      DeviceMatrix x(backend, 4, cols, random, 40.0F);
      const DeviceMatrix y(backend, 4, cols, random, 2.0F, 0);
      Dense expected = x.dense();
      const Dense dense_y = y.dense();
      for (std::size_t i = 0; i < expected.values.size(); ++i) expected.values[i] += 0.5 * dense_y.values[i];
      run(backend, {AddOp{.x = x.matrix(), .y = y.matrix(), .scale = 0.5F}});
      CHECK(distance(x.dense(), expected) < 1e-6);
      Dense capped = x.dense();
      Dense scaled = capped;
      for (double& v : capped.values) v = 30 * std::tanh(0.5 * v / 30);
      run(backend, {SoftcapOp{.x = x.matrix(), .scale = 0.5F, .softcap = 30.0F}});
      CHECK(distance(x.dense(), capped) < 1e-6);
      scaled = x.dense();
      for (double& v : scaled.values) v *= 0.25;
      run(backend, {SoftcapOp{.x = x.matrix(), .scale = 0.25F}});
      CHECK(distance(x.dense(), scaled) == 0);
      Dense clamped = x.dense();
      for (double& v : clamped.values) v = std::clamp(v, -0.125, 0.125);
      run(backend, {ClampOp{.x = x.matrix(), .limit = 0.125F}});
      CHECK(distance(x.dense(), clamped) == 0);
      CHECK(backend.refuses(ClampOp{.x = x.matrix(), .limit = -1.0F}));
    }
  }
}

TEST_CASE("backend.rope table: forms angles in double precision", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    const std::vector<std::int32_t> positions = {0, 1, 131071, 7, 1048575};
    std::vector<double> frequencies(24);
    for (std::size_t j = 0; j < frequencies.size(); ++j) {
      frequencies[j] = std::pow(500000.0, -static_cast<double>(j) / 24.0);
    }
    const DeviceMatrix out(backend, 5, 48);
    run(backend, {RopeTableOp{.positions = positions.data(),
                              .inverse_frequencies = frequencies.data(),
                              .magnitude = 1.25F,
                              .out = out.matrix()}});
    Dense expected(5, 48);
    for (std::int64_t i = 0; i < 5; ++i) {
      for (std::int64_t j = 0; j < 24; ++j) {
        const double angle = positions[static_cast<std::size_t>(i)] * frequencies[static_cast<std::size_t>(j)];
        expected(i, 2 * j) = 1.25 * std::cos(angle);
        expected(i, 2 * j + 1) = 1.25 * std::sin(angle);
      }
    }
    CHECK(distance(out.dense(), expected) < 1e-7);
  }
}

TEST_CASE("backend.stream: refuses contradictory, oversized and foreign ops with the reason", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(7);
    const FileWeight file(DType::f32, 32, 64, random);
    const auto weight = file.make(backend);
    const DeviceMatrix x(backend, 8, 64, random);
    const DeviceMatrix out(backend, 8, 32, random);
    const auto stream = backend.new_stream({.tokens = 8, .max_cols = 64, .heads = 4, .head_dim = 16, .context = 64});
    LinearOp good{.x = x.matrix()};
    good.parts[0] = {.weight = weight.get(), .out = out.matrix()};
    CHECK_NOTHROW(stream->enqueue(good));

    LinearOp op = good;
    op.parts[0].out.cols = 31;
    CHECK(backend.refuses(op).has_value());
    CHECK_THROWS_AS(stream->enqueue(op), UsageError);
    op = good;
    op.part_count = 4;
    CHECK(backend.refuses(op).has_value());
    op = good;
    op.epilogue = LinearEpilogue::gated;
    CHECK(backend.refuses(op).has_value());
    op = good;
    op.parts[0].out = x.rows(0, 8);
    op.parts[0].out.cols = 32;
    CHECK_THROWS_AS(stream->enqueue(op), UsageError);
    op = good;
    op.parts[0].weight = nullptr;
    CHECK_FALSE(backend.refuses(op).has_value());
    CHECK_THROWS_AS(stream->enqueue(op), UsageError);

    const auto small = backend.new_stream({.tokens = 4, .max_cols = 64});
    CHECK_THROWS_AS(small->enqueue(good), UsageError);
    const auto narrow = backend.new_stream({.tokens = 8, .max_cols = 32});
    CHECK_THROWS_AS(narrow->enqueue(good), UsageError);

    struct Foreign final : Weight {
      Foreign() : Weight(DType::f32, 32, 64) {}
      [[nodiscard]] std::size_t bytes() const noexcept override { return 0; }
      [[nodiscard]] std::string_view layout() const noexcept override { return "foreign"; }
    } foreign;
    op = good;
    op.parts[0].weight = &foreign;
    CHECK_THROWS_AS(stream->enqueue(op), UsageError);
    CHECK_NOTHROW(stream->synchronize());
  }
}

TEST_CASE("backend.stream: refuses bad host data before any op runs into it, and stays usable", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(8);
    const FileWeight file(DType::f32, 32, 64, random);
    const auto weight = file.make(backend);
    const DeviceMatrix out(backend, 2, 64);
    const auto stream = backend.new_stream(roomy_limits());
    for (const std::int32_t bad : {-1, 32}) {
      const std::array<std::int32_t, 2> tokens = {0, bad};
      stream->enqueue(EmbedOp{.table = weight.get(), .tokens = tokens.data(), .out = out.matrix()});
      CHECK_THROWS_AS(stream->synchronize(), UsageError);
    }
    const std::array<std::int32_t, 2> tokens = {0, 31};
    stream->enqueue(EmbedOp{.table = weight.get(), .tokens = tokens.data(), .out = out.matrix()});
    CHECK_NOTHROW(stream->synchronize());
    CHECK(out.dense()(1, 63) == file.values(31, 63));
  }
}

TEST_CASE("backend.stream: a stop request cancels and leaves an empty, usable queue", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    DeviceMatrix x(backend, 3, 8);
    x.set(std::vector<float>(24, 1.0F));
    const auto stream = backend.new_stream(roomy_limits());
    std::stop_source stop;
    stop.request_stop();
    stream->enqueue(SoftcapOp{.x = x.matrix(), .scale = 2.0F});
    CHECK_THROWS_AS(stream->synchronize(stop.get_token()), CancelledError);
    CHECK_NOTHROW(stream->synchronize());
    CHECK(x.floats() == std::vector<float>(24, 1.0F));
    stream->enqueue(SoftcapOp{.x = x.matrix(), .scale = 2.0F});
    CHECK_NOTHROW(stream->synchronize());
    CHECK(x.floats() == std::vector<float>(24, 2.0F));
  }
}

TEST_CASE("backend.weights: a bad source is refused, a failing reader's exception arrives", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    const auto read = [](std::int64_t, std::int64_t, std::span<std::byte>) {};
    const auto make = [&](DType type, std::int64_t rows, std::int64_t cols) {
      return backend.make_weight({.type = type, .rows = rows, .cols = cols, .read = read}, WeightLayout::packed, {});
    };
    CHECK_THROWS_AS(make(DType::f32, 0, 4), Error);
    CHECK_THROWS_AS(make(DType::f32, 4, -1), Error);
    CHECK_THROWS_AS(make(DType::q8_0, 4, 33), Error);
    CHECK_THROWS_AS(make(DType::i64, 4, 32), UnsupportedError);
    CHECK_THROWS_AS(make(DType::f32, std::int64_t{1} << 62, 1 << 20), Error);
    CHECK(backend.refuses_weight(DType::i64, WeightLayout::packed).has_value());
    const std::vector<std::byte> mapped(15);
    CHECK_THROWS_AS(backend.make_weight({.type = DType::f32, .rows = 1, .cols = 4, .mapped = mapped, .read = read},
                                        WeightLayout::packed, {}),
                    UsageError);
    const auto fail = [](std::int64_t first, std::int64_t, std::span<std::byte>) {
      if (first > 0) throw IoError("test", "disk on fire");
    };
    CHECK_THROWS_AS(
        backend.make_weight({.type = DType::f32, .rows = 200000, .cols = 4, .read = fail}, WeightLayout::packed, {}),
        IoError);
    std::stop_source stop;
    stop.request_stop();
    CHECK_THROWS_AS(backend.make_weight({.type = DType::f32, .rows = 200000, .cols = 4, .read = read},
                                        WeightLayout::packed, stop.get_token()),
                    CancelledError);
  }
}

TEST_CASE("backend.memory: is zeroed, aligned, and copies in all directions", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    const Buffer a = backend.allocate(1000);
    const Buffer b = backend.allocate(1000);
    CHECK(reinterpret_cast<std::uintptr_t>(a.address()) % 64 == 0);
    CHECK(a.bytes() == 1000);
    std::vector<std::byte> host(1000, std::byte{1});
    backend.read(host, a.address());
    CHECK(host == std::vector<std::byte>(1000));
    for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<std::byte>(i);
    backend.write(a.address(), host);
    backend.copy(b.address() + 10, a.address(), 900);
    std::vector<std::byte> back(900);
    backend.read(back, b.address() + 10);
    CHECK(std::equal(back.begin(), back.end(), host.begin()));
    CHECK(backend.info().host_visible == a.host_visible());
  }
}
