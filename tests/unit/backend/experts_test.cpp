// The mixture of experts: against its definition in double precision, and against the ops that it is made of.

#include <array>

#include "backend/cpu/kernel_set.hpp"
#include "fixture.hpp"

#include <skald/simd/isa.hpp>

using namespace skald;
using namespace skald_test;

namespace {

/// Experts of one layer in file format.
struct Experts {
  std::int64_t count;
  std::int64_t width;
  std::int64_t dim;
  FileWeight gate;
  FileWeight up;
  FileWeight down;

  Experts(std::int64_t n, std::int64_t w, std::int64_t d, const std::array<DType, 3>& types, std::mt19937& random)
      : count(n),
        width(w),
        dim(d),
        gate(types[0], n * w, d, random),
        up(types[1], n * w, d, random),
        down(types[2], n * d, w, random) {}
  Experts(std::int64_t n, std::int64_t w, std::int64_t d, DType type, std::mt19937& random)
      : Experts(n, w, d, {type, type, type}, random) {}
};

std::shared_ptr<const Weight> make_stack(BackendInterface& backend, const FileWeight& file, std::int64_t matrices,
                                         WeightLayout layout, bool mapped) {
  const std::size_t row = row_bytes(file.type, static_cast<std::size_t>(file.cols));
  const auto read = [&](std::int64_t first, std::int64_t count, std::span<std::byte> out) {
    REQUIRE(out.size() == row * static_cast<std::size_t>(count));
    std::memcpy(out.data(), file.bytes.data() + row * static_cast<std::size_t>(first), out.size());
  };
  const auto weight = backend.make_weight({.type = file.type,
                                           .rows = file.rows,
                                           .cols = file.cols,
                                           .matrices = matrices,
                                           .mapped = mapped ? std::span<const std::byte>(file.bytes)
                                                            : std::span<const std::byte>{},
                                           .read = read},
                                          layout, {});
  CHECK(weight->matrices() == matrices);
  CHECK(weight->bytes() == static_cast<std::size_t>(matrices) *
                               backend.weight_bytes(file.type, file.rows / matrices, file.cols, layout));
  return weight;
}

/// Experts and work memory of one backend.
struct Setting {
  BackendInterface& backend;
  const Experts& experts;
  std::shared_ptr<const Weight> gate, up, down;

  Setting(BackendInterface& b, const Experts& e, WeightLayout layout = WeightLayout::packed, bool mapped = true)
      : backend(b),
        experts(e),
        gate(make_stack(b, e.gate, e.count, layout, mapped)),
        up(make_stack(b, e.up, e.count, layout, mapped)),
        down(make_stack(b, e.down, e.count, layout, mapped)) {}

  [[nodiscard]] ExpertsOp op(const DeviceMatrix& x, const DeviceMatrix& logits, std::int32_t used,
                             const DeviceMatrix& inner, const DeviceMatrix& products, const DeviceMatrix& out) const {
    return {.x = x.matrix(),
            .logits = logits.matrix(),
            .used = used,
            .gate = gate.get(),
            .up = up.get(),
            .down = down.get(),
            .inner = inner.matrix(),
            .products = products.matrix(),
            .out = out.matrix()};
  }
};

StreamLimits expert_limits(std::int64_t tokens, std::int64_t experts, std::int64_t used) {
  return {.tokens = tokens, .max_cols = 768, .experts = experts, .used = used, .expert_cols = 768};
}

/// The chosen experts of a row, found by sorting, and their shares.
std::vector<std::pair<std::int64_t, double>> oracle_choice(const Dense& logits, std::int64_t t, std::int32_t used,
                                                           bool renormalize) {
  std::vector<std::pair<double, std::int64_t>> order;
  double all = 0;
  for (std::int64_t e = 0; e < logits.cols; ++e) {
    order.emplace_back(-logits(t, e), e);
    all += std::exp(logits(t, e));
  }
  std::sort(order.begin(), order.end());
  order.resize(static_cast<std::size_t>(used));
  if (renormalize) {
    all = 0;
    for (const auto& [negated, e] : order) all += std::exp(-negated);
  }
  std::vector<std::pair<std::int64_t, double>> result;
  for (const auto& [negated, e] : order) result.emplace_back(e, std::exp(-negated) / all);
  return result;
}

double dot(const Dense& matrix, std::int64_t row, const std::vector<double>& x) {
  double sum = 0;
  for (std::int64_t k = 0; k < matrix.cols; ++k) sum += matrix(row, k) * x[static_cast<std::size_t>(k)];
  return sum;
}

Dense oracle(const Experts& experts, const Dense& x, const Dense& before, const Dense& logits, const ExpertsOp& op,
             const std::vector<double>& norm_weight) {
  Dense out = before;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    std::vector<double> row(x.values.begin() + t * x.cols, x.values.begin() + (t + 1) * x.cols);
    row = oracle_norm(std::move(row), op.norm.kind, norm_weight, {}, static_cast<double>(op.norm.epsilon));
    for (const auto& [e, share] : oracle_choice(logits, t, op.used, op.renormalize)) {
      std::vector<double> inner;
      for (std::int64_t i = 0; i < experts.width; ++i) {
        inner.push_back(oracle_activation(dot(experts.gate.values, e * experts.width + i, row), op.activation) *
                        dot(experts.up.values, e * experts.width + i, row));
      }
      for (std::int64_t i = 0; i < experts.dim; ++i) {
        out(t, i) += static_cast<double>(op.scale) * share * dot(experts.down.values, e * experts.dim + i, inner);
      }
    }
  }
  return out;
}

AnyBackend cpu_with(Isa isa, int threads) {
  CpuOptions options;
  options.isa = to_string(isa);
  options.threads = threads;
  return make_cpu_backend(options);
}

}  // namespace

TEST_CASE("backend.experts: equals the definition for any number of tokens, experts and options", "[backend]") {
  for (const Subject& subject : subjects()) {
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(11);
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0}) {
      const bool plain = format_ops(type).block_elements == 1;
      // An activation in integers may be rounded the other way: the next test is for those.
      if (!plain && subject.integer_activations) continue;
      if (type == DType::bf16 && subject.bf16_activations()) continue;
      const Experts experts(5, plain ? 21 : 32, plain ? 37 : 96, type, random);
      for (const WeightLayout layout : {WeightLayout::packed, WeightLayout::rows}) {
        const Setting setting(backend, experts, layout, layout == WeightLayout::rows);
        for (const std::int64_t tokens : {0, 1, 2, 7, 90}) {
          for (const std::int32_t used : {1, 2, 5}) {
            const bool odd = (tokens + used) % 2 != 0;
            INFO(subject.name << ", " << to_string(type) << ", layout " << static_cast<int>(layout) << ", " << tokens
                              << " tokens, " << used << " used");
            DeviceMatrix x(backend, tokens, experts.dim, random);
            const DeviceMatrix logits(backend, tokens, experts.count, random, 3.0F);
            const DeviceMatrix inner(backend, tokens * used, experts.width);
            const DeviceMatrix products(backend, tokens * used, experts.dim);
            const DeviceMatrix out(backend, tokens, experts.dim, random);
            const DeviceMatrix weight(backend, 1, experts.dim, random, 1.0F, 0);
            ExpertsOp op = setting.op(x, logits, used, inner, products, odd ? x : out);
            op.norm = {.kind = odd ? NormKind::rms : NormKind::none, .weight = weight.data(), .epsilon = 1e-3F};
            op.renormalize = odd;
            op.scale = odd ? 1.0F : 0.5F;
            op.activation = tokens == 7 ? Activation::gelu_erf : Activation::silu;
            const std::vector<float> factors = weight.floats();
            const Dense expected = oracle(experts, x.dense(), odd ? x.dense() : out.dense(), logits.dense(), op,
                                          {factors.begin(), factors.end()});
            run(backend, {op}, expert_limits(90, 5, 5));
            CHECK(distance(odd ? x.dense() : out.dense(), expected) < 1e-4);
          }
        }
      }
    }
  }
}

TEST_CASE("backend.experts: is made of linear products and sums in the order of the logits", "[backend]") {
  const std::vector<std::array<DType, 3>> mixtures = {{DType::q8_0, DType::q8_0, DType::q8_0},
                                                      {DType::q4_k, DType::q4_k, DType::q6_k},
                                                      {DType::q4_0, DType::q5_k, DType::f16},
                                                      {DType::bf16, DType::bf16, DType::bf16}};
  for (const Subject& subject : subjects()) {
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(12);
    for (const auto& types : mixtures) {
      const Experts experts(6, 512, 256, types, random);
      const Setting setting(backend, experts);
      constexpr std::int64_t tokens = 9;
      constexpr std::int32_t used = 3;
      const DeviceMatrix x(backend, tokens, 256, random);
      const DeviceMatrix logits(backend, tokens, 6, random, 2.0F);
      const DeviceMatrix inner(backend, tokens * used, 512);
      const DeviceMatrix products(backend, tokens * used, 256);
      const DeviceMatrix out(backend, tokens, 256, random);

      // Expert by expert with weights of their own.
      const auto single = [&](const FileWeight& file, std::int64_t rows, std::int64_t e) {
        const std::size_t bytes = file.bytes.size() / static_cast<std::size_t>(experts.count);
        return backend.make_weight({.type = file.type,
                                    .rows = rows,
                                    .cols = file.cols,
                                    .mapped = std::span(file.bytes).subspan(static_cast<std::size_t>(e) * bytes, bytes),
                                    .read = [](std::int64_t, std::int64_t, std::span<std::byte>) {}},
                                   WeightLayout::packed, {});
      };
      DeviceMatrix sum(backend, tokens, 256);
      sum.set(out.floats());
      const Norm norm{.kind = NormKind::rms, .epsilon = 1e-5F};
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (const auto& [e, share] : oracle_choice(logits.dense(), t, used, true)) {
          const auto gate = single(experts.gate, 512, e);
          const auto up = single(experts.up, 512, e);
          const auto down = single(experts.down, 256, e);
          const DeviceMatrix wide(backend, 1, 512);
          const DeviceMatrix narrow(backend, 1, 256);
          LinearOp widen{.x = x.rows(t, 1), .norm = norm, .part_count = 2};
          widen.epilogue = LinearEpilogue::gated;
          widen.activation = Activation::silu;
          widen.parts[0] = {.weight = gate.get(), .out = wide.matrix()};
          widen.parts[1] = {.weight = up.get()};
          LinearOp shrink{.x = wide.matrix()};
          shrink.parts[0] = {.weight = down.get(), .out = narrow.matrix()};
          run(backend, {widen, shrink,
                        AddOp{.x = sum.rows(t, 1), .y = narrow.matrix(), .scale = static_cast<float>(share)}});
        }
      }
      ExpertsOp op = setting.op(x, logits, used, inner, products, out);
      op.norm = norm;
      op.renormalize = true;
      run(backend, {op}, expert_limits(tokens, 6, used));
      INFO(subject.name << ", " << to_string(types[0]) << ", " << to_string(types[1]) << ", " << to_string(types[2]));
      // The reference rounds once, at the end; sums of up to 512 products of large numbers.
      CHECK(distance(out.dense(), sum.dense()) < 2e-4);
      if (subject.integer_activations) CHECK(same_bits(out.floats(), sum.floats()));
    }
  }
}

TEST_CASE("backend.experts: of equal logits the lower expert comes first", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(13);
    const Experts experts(4, 16, 16, DType::f32, random);
    const Setting setting(backend, experts);
    for (const std::int64_t tokens : {1, 3}) {
      const DeviceMatrix x(backend, tokens, 16, random);
      DeviceMatrix logits(backend, tokens, 4);
      std::vector<float> values;
      for (std::int64_t t = 0; t < tokens; ++t) values.insert(values.end(), {0.5F, 1.0F, 1.0F, 1.0F});
      logits.set(values);
      const DeviceMatrix inner(backend, 2 * tokens, 16);
      const DeviceMatrix products(backend, 2 * tokens, 16);
      const DeviceMatrix out(backend, tokens, 16, random);
      const ExpertsOp op = setting.op(x, logits, 2, inner, products, out);
      const Dense expected = oracle(experts, x.dense(), out.dense(), logits.dense(), op, {});
      run(backend, {op}, expert_limits(3, 4, 2));
      CHECK(distance(out.dense(), expected) < 1e-5);
    }
  }
}

TEST_CASE("backend.experts: logits that are not numbers spoil their own row only", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(14);
    const Experts experts(4, 16, 16, DType::f32, random);
    const Setting setting(backend, experts);
    for (const std::int64_t tokens : {1, 2}) {
      const DeviceMatrix x(backend, tokens, 16, random);
      DeviceMatrix logits(backend, tokens, 4);
      std::vector<float> values(static_cast<std::size_t>(4 * tokens), NAN);
      if (tokens == 2) std::fill_n(values.begin() + 4, 4, 1.0F);
      logits.set(values);
      const DeviceMatrix inner(backend, 3 * tokens, 16);
      const DeviceMatrix products(backend, 3 * tokens, 16);
      const DeviceMatrix out(backend, tokens, 16, random);
      run(backend, {setting.op(x, logits, 3, inner, products, out)}, expert_limits(2, 4, 3));
      const std::vector<float> found = out.floats();
      CHECK(std::isnan(found[0]));
      if (tokens == 2) CHECK(std::isfinite(found[16]));
    }
  }
}

TEST_CASE("backend.experts: a row's bits depend neither on the batch nor on threads nor on the layout", "[backend]") {
  for (const Isa isa : tested_isas()) {
    for (const DType type : {DType::f32, DType::bf16, DType::q8_0, DType::q5_1, DType::q4_k, DType::q6_k}) {
      INFO(to_string(isa) << ", " << to_string(type));
      std::mt19937 random(15);
      const std::int64_t width = type == DType::f32 ? 150 : 256;
      const Experts experts(7, width, 256, type, random);
      constexpr std::int64_t tokens = 150;
      constexpr std::int32_t used = 2;
      std::vector<float> x_values;
      std::vector<float> logit_values;
      for (std::int64_t i = 0; i < tokens * 256; ++i) x_values.push_back(uniform(random));
      for (std::int64_t t = 0; t < tokens; ++t) {
        // Expert 3 takes most tokens, expert 5 none.
        for (int e = 0; e < 7; ++e) logit_values.push_back(uniform(random) + (e == 3 ? 1.5F : e == 5 ? -4.0F : 0.0F));
      }
      const auto compute = [&](int threads, std::int64_t chunk, WeightLayout layout) {
        const AnyBackend backend = cpu_with(isa, threads);
        const Setting setting(*backend, experts, layout, false);
        DeviceMatrix x(*backend, tokens, 256);
        DeviceMatrix logits(*backend, tokens, 7);
        x.set(x_values);
        logits.set(logit_values);
        const DeviceMatrix inner(*backend, chunk * used, width);
        const DeviceMatrix products(*backend, chunk * used, 256);
        std::vector<Op> ops;
        for (std::int64_t begin = 0; begin < tokens; begin += chunk) {
          const std::int64_t count = std::min(chunk, tokens - begin);
          ExpertsOp op = setting.op(x, logits, used, inner, products, x);
          op.x = op.out = x.rows(begin, count);
          op.logits = logits.rows(begin, count);
          op.inner = inner.rows(0, count * used);
          op.products = products.rows(0, count * used);
          op.norm = {.kind = NormKind::rms, .epsilon = 1e-5F};
          op.renormalize = true;
          ops.emplace_back(op);
        }
        run(*backend, ops, expert_limits(chunk, 7, used));
        return x.floats();
      };
      const std::vector<float> expected = compute(1, tokens, WeightLayout::packed);
      CHECK(same_bits(compute(3, tokens, WeightLayout::packed), expected));
      CHECK(same_bits(compute(2, 1, WeightLayout::packed), expected));
      CHECK(same_bits(compute(1, 1, WeightLayout::rows), expected));
      CHECK(same_bits(compute(4, 2, WeightLayout::packed), expected));
      CHECK(same_bits(compute(3, 23, WeightLayout::packed), expected));
      CHECK(same_bits(compute(2, 64, WeightLayout::rows), expected));
    }
  }
}

TEST_CASE("backend.experts: contradictory, oversized and overlapping ops are refused", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(16);
    const Experts experts(4, 48, 32, DType::f32, random);
    const Setting setting(backend, experts);
    const DeviceMatrix x(backend, 3, 32, random);
    const DeviceMatrix logits(backend, 3, 4, random);
    const DeviceMatrix inner(backend, 6, 48);
    const DeviceMatrix products(backend, 6, 32);
    const DeviceMatrix out(backend, 3, 32, random);
    const ExpertsOp good = setting.op(x, logits, 2, inner, products, out);
    const auto stream = backend.new_stream({.tokens = 3, .max_cols = 48, .experts = 4, .used = 2, .expert_cols = 48});
    CHECK_NOTHROW(stream->enqueue(good));
    const auto refused = [&](const char* what, auto change) {
      INFO(what);
      ExpertsOp op = good;
      change(op);
      CHECK(backend.refuses(op).has_value());
      CHECK_THROWS_AS(stream->enqueue(op), UsageError);
    };
    refused("none used", [](ExpertsOp& op) { op.used = 0; });
    refused("more used than there are", [](ExpertsOp& op) { op.used = 5; });
    refused("inner too short", [](ExpertsOp& op) { op.inner.rows = 5; });
    refused("products too narrow", [](ExpertsOp& op) { op.products.cols = 31; });
    refused("logits of other rows", [](ExpertsOp& op) { op.logits.rows = 2; });
    refused("logits of other experts", [](ExpertsOp& op) { op.logits.cols = 3; });
    refused("another width", [](ExpertsOp& op) { op.inner.cols = 47; });
    refused("gate for down", [](ExpertsOp& op) { op.down = op.gate; });
    refused("out of another shape", [](ExpertsOp& op) { op.out.cols = 31; });
    refused("too many pairs", [](ExpertsOp& op) { op.x.rows = op.out.rows = op.logits.rows = std::int64_t{1} << 40; });
    refused("an unknown gating", [](ExpertsOp& op) { op.gating = static_cast<ExpertGating>(9); });
    refused("groups that do not divide", [](ExpertsOp& op) { op.groups = 3; });
    refused("more groups used than there are", [](ExpertsOp& op) { op.groups_used = 2; });
    refused("a group of no experts", [](ExpertsOp& op) { op.group_best = 0; });
    refused("a group of three best experts", [](ExpertsOp& op) { op.group_best = 3; });
    refused("too few experts in the groups", [](ExpertsOp& op) { op.groups = 4; });
    refused("a negative gate limit", [](ExpertsOp& op) { op.gate_limit = -1.0F; });
    const auto not_queued = [&](const char* what, auto change) {
      INFO(what);
      ExpertsOp op = good;
      change(op);
      CHECK_THROWS_AS(stream->enqueue(op), UsageError);
    };
    not_queued("no gate", [](ExpertsOp& op) { op.gate = nullptr; });
    not_queued("no memory for inner", [](ExpertsOp& op) { op.inner.data = nullptr; });
    not_queued("products over x", [](ExpertsOp& op) { op.products.data = op.x.data; });
    not_queued("out a part of x", [](ExpertsOp& op) { op.out.data = op.x.data + 1; });
    const auto few = backend.new_stream({.tokens = 3, .max_cols = 48, .experts = 4, .used = 1, .expert_cols = 48});
    CHECK_THROWS_AS(few->enqueue(good), UsageError);
    const auto none = backend.new_stream({.tokens = 3, .max_cols = 48});
    CHECK_THROWS_AS(none->enqueue(good), UsageError);

    LinearOp linear{.x = x.matrix()};
    const DeviceMatrix all(backend, 3, 192);
    linear.parts[0] = {.weight = setting.gate.get(), .out = all.matrix()};
    CHECK(backend.refuses(linear).has_value());  // a stack is no matrix
    const std::int32_t token = 0;
    CHECK(backend.refuses(EmbedOp{.table = setting.gate.get(), .tokens = &token, .out = out.rows(0, 1)}).has_value());
    const auto read = [](std::int64_t, std::int64_t, std::span<std::byte>) {};
    for (const std::int64_t matrices : {0, -1, 3}) {
      CHECK_THROWS_AS(
          backend.make_weight({.type = DType::f32, .rows = 8, .cols = 4, .matrices = matrices, .read = read},
                              WeightLayout::packed, {}),
          UsageError);
    }
    CHECK_NOTHROW(stream->synchronize());
  }
}

namespace {

/// The chosen experts and shares of one row for any gating, by sorting.
std::vector<std::pair<std::int64_t, double>> oracle_gating(const ExpertsOp& op, const Dense& logits, std::int64_t t,
                                                           const std::vector<float>& bias) {
  const std::int64_t n = logits.cols;
  std::vector<double> value;
  double all = 0;
  for (std::int64_t e = 0; e < n; ++e) all += std::exp(logits(t, e));
  for (std::int64_t e = 0; e < n; ++e) {
    value.push_back(op.gating == ExpertGating::sigmoid   ? 1 / (1 + std::exp(-logits(t, e)))
                    : op.gating == ExpertGating::softmax ? std::exp(logits(t, e)) / all
                                                         : logits(t, e));
  }
  std::vector<double> score = value;
  for (std::size_t e = 0; e < bias.size(); ++e) score[e] += static_cast<double>(bias[e]);
  const std::int64_t each = n / op.groups;
  std::vector<std::pair<double, std::int64_t>> groups;
  for (std::int64_t g = 0; g < op.groups; ++g) {
    std::vector<double> of(score.begin() + g * each, score.begin() + (g + 1) * each);
    std::sort(of.rbegin(), of.rend());
    groups.emplace_back(op.groups > 1 ? -(op.group_best == 1 ? of[0] : of[0] + of[1]) : 0.0, g);
  }
  std::sort(groups.begin(), groups.end());
  groups.resize(static_cast<std::size_t>(op.groups_used));
  std::vector<std::pair<double, std::int64_t>> order;
  for (const auto& [negated, g] : groups) {
    for (std::int64_t e = g * each; e < (g + 1) * each; ++e) order.emplace_back(-score[static_cast<std::size_t>(e)], e);
  }
  std::sort(order.begin(), order.end());
  order.resize(static_cast<std::size_t>(op.used));
  std::vector<std::pair<std::int64_t, double>> result;
  double sum = 0;
  for (const auto& [negated, e] : order) {
    const double v = value[static_cast<std::size_t>(e)];
    result.emplace_back(e, op.gating == ExpertGating::softmax_selected ? std::exp(v) : v);
    sum += result.back().second;
  }
  const bool divide = op.renormalize || op.gating == ExpertGating::softmax_selected;
  for (auto& [e, share] : result) share *= static_cast<double>(op.scale) / (divide ? sum : 1.0);
  return result;
}

}  // namespace

TEST_CASE("backend.experts: every gating, group limit, bias and clamped gate equals the definition", "[backend]") {
  for (const Subject& subject : subjects()) {
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(17);
    constexpr std::int64_t count = 8;
    constexpr std::int32_t used = 3;
    const Experts experts(count, 21, 37, DType::f32, random);
    const Setting setting(backend, experts);
    const DeviceMatrix selection(backend, 1, count, random, 0.5F, 0);
    const DeviceMatrix gate_bias(backend, count, 21, random, 1.0F, 0);
    const DeviceMatrix up_bias(backend, count, 21, random, 1.0F, 0);
    const DeviceMatrix down_bias(backend, count, 37, random, 1.0F, 0);
    for (const ExpertGating gating : {ExpertGating::softmax, ExpertGating::softmax_selected, ExpertGating::sigmoid}) {
      for (const int options : {0, 1, 2, 3, 4, 5, 6, 7, 12, 14}) {
        for (const std::int64_t tokens : {1, 5, 60}) {
          INFO(subject.name << ", gating " << static_cast<int>(gating) << ", options " << options << ", tokens " << tokens);
          const DeviceMatrix x(backend, tokens, 37, random, 2.0F);
          const DeviceMatrix logits(backend, tokens, count, random, 2.0F);
          const DeviceMatrix inner(backend, tokens * used, 21);
          const DeviceMatrix products(backend, tokens * used, 37);
          const DeviceMatrix out(backend, tokens, 37, random);
          ExpertsOp op = setting.op(x, logits, used, inner, products, out);
          op.gating = gating;
          op.scale = 1.5F;
          op.renormalize = (options & 1) != 0;
          if ((options & 2) != 0) op.selection_bias = selection.data();
          if ((options & 4) != 0) {
            op.groups = 4;
            op.groups_used = 2;
            op.group_best = (options & 8) != 0 ? 1 : 2;
            op.gate_bias = gate_bias.data();
            op.up_bias = up_bias.data();
            op.down_bias = down_bias.data();
            op.gate_alpha = 1.702F;
            op.gate_limit = 2.0F;
          }
          Dense expected = out.dense();
          const Dense rows = x.dense();
          const auto biases = [&](const DeviceMatrix& of, std::int64_t e, std::int64_t i) {
            return (options & 4) != 0 ? static_cast<double>(of.floats()[static_cast<std::size_t>(e * of.matrix().cols + i)])
                                      : 0.0;
          };
          for (std::int64_t t = 0; t < tokens; ++t) {
            const std::vector<double> y(rows.values.begin() + t * 37, rows.values.begin() + (t + 1) * 37);
            const auto bias = (options & 2) != 0 ? selection.floats() : std::vector<float>{};
            for (const auto& [e, share] : oracle_gating(op, logits.dense(), t, bias)) {
              std::vector<double> middle;
              for (std::int64_t i = 0; i < 21; ++i) {
                const double g = dot(experts.gate.values, e * 21 + i, y) + biases(gate_bias, e, i);
                const double u = dot(experts.up.values, e * 21 + i, y) + biases(up_bias, e, i);
                if ((options & 4) == 0) {
                  middle.push_back(g / (1 + std::exp(-g)) * u);
                  continue;
                }
                const double cut = std::min(g, 2.0);
                middle.push_back(cut / (1 + std::exp(-static_cast<double>(1.702F) * cut)) *
                                 (std::max(-2.0, std::min(2.0, u)) + 1));
              }
              for (std::int64_t i = 0; i < 37; ++i) {
                expected(t, i) += share * (dot(experts.down.values, e * 37 + i, middle) + biases(down_bias, e, i));
              }
            }
          }
          run(backend, {op}, expert_limits(60, count, used));
          CHECK(distance(out.dense(), expected) < 2e-4);
        }
      }
    }
  }
}

TEST_CASE("backend.experts: the gate of rows multiplies each row by the sigmoid of its logit", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    std::mt19937 random(18);
    const DeviceMatrix x(backend, 70, 37, random);
    const DeviceMatrix logits(backend, 70, 1, random, 4.0F);
    Dense expected = x.dense();
    for (std::int64_t t = 0; t < 70; ++t) {
      for (std::int64_t i = 0; i < 37; ++i) expected(t, i) /= 1 + std::exp(-logits.dense()(t, 0));
    }
    run(backend, {GateRowsOp{x.matrix(), logits.matrix()}}, expert_limits(70, 1, 1));
    CHECK(distance(x.dense(), expected) < 1e-6);
    CHECK(backend.refuses(GateRowsOp{x.matrix(), x.matrix()}).has_value());
    CHECK(backend.refuses(GateRowsOp{x.matrix(), logits.rows(0, 69)}).has_value());
  }
}

TEST_CASE("kernels.matmul: activations of several columns take no more bytes than as many alone", "[backend]") {
  for (const Isa isa : tested_isas()) {
    const cpu::KernelSet kernels(isa);
    for (const auto& kernel : kernels.all_matmul()) {
      INFO(to_string(isa) << ", " << to_string(kernel.type));
      for (const std::int64_t cols : {256, 768}) {
        CHECK(kernel.acts_bytes(cols, 1) % 64 == 0);
        for (std::int64_t n = 1; n < 100; ++n) {
          CHECK(kernel.acts_bytes(cols, n) <= static_cast<std::size_t>(n) * kernel.acts_bytes(cols, 1));
        }
      }
    }
  }
}
