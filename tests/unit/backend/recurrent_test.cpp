// Ops with a recurrent state on every backend: against formulas in double written here once more, and cut in pieces.
#include <functional>

#include "fixture.hpp"

using namespace skald;
using namespace skald_test;

namespace {

/// A recurrent op with everything it needs, over 3 sequences of 5, 1 and 9 rows.
class Problem {
 public:
  Problem(BackendInterface& backend, unsigned seed) : backend_(backend), random_(seed) {}

  Matrix matrix(std::int64_t cols, float range = 1.0F) {
    matrices_.push_back(std::make_unique<DeviceMatrix>(backend_, rows, cols, random_, range));
    return matrices_.back()->matrix();
  }
  const float* vector(std::int64_t n, float low, float high) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = uniform(random_, low, high);
    matrices_.push_back(std::make_unique<DeviceMatrix>(backend_, 1, n, 0));
    matrices_.back()->set(values);
    return matrices_.back()->data();
  }
  [[nodiscard]] Dense dense(const Matrix& m) const {
    for (const auto& each : matrices_)
      if (each->matrix().data == m.data) return each->dense();
    throw std::runtime_error("unknown matrix");
  }
  [[nodiscard]] std::vector<double> values(const float* data) const {
    for (const auto& each : matrices_)
      if (each->data() == data) return each->dense().values;
    throw std::runtime_error("unknown vector");
  }

  static constexpr std::int64_t rows = 15;
  static constexpr std::int64_t lengths[3] = {5, 1, 9};

 private:
  BackendInterface& backend_;
  std::mt19937 random_;
  std::vector<std::unique_ptr<DeviceMatrix>> matrices_;
};

/// States of three sequences before and after an op.
class States {
 public:
  States(BackendInterface& backend, std::int64_t elements) : backend_(backend), elements_(elements) {
    for (auto& buffer : memory_) buffer = backend.allocate(static_cast<std::size_t>(elements) * sizeof(float));
  }
  /// Runs `op` over rows [from, to) of each sequence, as far as it has them.
  template <class O>
  void run_rows(O op, const std::vector<Matrix O::*>& matrices, std::int64_t from, std::int64_t to) {
    std::int64_t begin = 0;
    for (std::size_t s = 0; s < 3; begin += Problem::lengths[s++]) {
      const std::int64_t end = std::min(to, Problem::lengths[s]);
      if (from >= end) continue;
      O part = op;
      for (const auto member : matrices) {
        Matrix& m = part.*member;
        if (m.cols == 0) continue;
        m.data += (begin + from) * m.stride;
        m.rows = end - from;
      }
      const Segment segment{0, static_cast<std::int32_t>(end - from), nullptr};
      const StatePlace place = take(s);
      part.state = {&place, offset, &segment, 1};
      run(backend_, {part});
    }
  }
  /// Runs `op` over all sequences at once.
  template <class O>
  void run_together(O op) {
    std::vector<Segment> segments;
    std::vector<StatePlace> places;
    std::int32_t begin = 0;
    for (std::size_t s = 0; s < 3; ++s) {
      segments.push_back({begin, static_cast<std::int32_t>(Problem::lengths[s]), nullptr});
      places.push_back(take(s));
      begin += segments.back().row_count;
    }
    op.state = {places.data(), offset, segments.data(), 3};
    run(backend_, {op});
  }
  [[nodiscard]] std::vector<float> after(std::size_t sequence) const {
    std::vector<float> values(static_cast<std::size_t>(elements_ - offset));
    backend_.read(std::as_writable_bytes(std::span(values)),
                  memory_[sequence * 2 + written_[sequence] - 1].address() + offset * std::int64_t{sizeof(float)});
    return values;
  }
  static constexpr std::int64_t offset = 3;

 private:
  StatePlace take(std::size_t sequence) {
    const std::size_t next = written_[sequence] == 1 ? 1 : 0;
    StatePlace place{};
    if (written_[sequence] > 0)
      place.from = reinterpret_cast<const float*>(memory_[sequence * 2 + written_[sequence] - 1].address());
    place.to = reinterpret_cast<float*>(memory_[sequence * 2 + next].address());
    written_[sequence] = next + 1;
    return place;
  }
  BackendInterface& backend_;
  std::int64_t elements_;
  Buffer memory_[6];
  std::size_t written_[3] = {0, 0, 0};  // 0: never, else 1 + which of the two
};

/// Runs the op whole and in pieces: the same bits; and compares with the oracle.
template <class O>
void check(const Subject& subject, Problem& problem, const O& op, const std::vector<Matrix O::*>& matrices,
           std::int64_t state_elements, const std::function<Dense()>& oracle, double tolerance) {
  BackendInterface& backend = *subject.backend;
  States whole(backend, state_elements + States::offset);
  whole.run_together(op);
  const Dense found = problem.dense(op.out);
  CHECK(distance(found, oracle()) < tolerance);
  for (const std::int64_t piece : {1, 2, 4}) {
    States parts(backend, state_elements + States::offset);
    for (std::int64_t from = 0; from < 9; from += piece) parts.run_rows(op, matrices, from, from + piece);
    CHECK(problem.dense(op.out).values == found.values);
    for (std::size_t s = 0; s < 3; ++s) CHECK(same_bits(parts.after(s), whole.after(s)));
  }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// Calls f(first row, rows) for each sequence.
void for_each_sequence(const std::function<void(std::int64_t, std::int64_t)>& f) {
  std::int64_t begin = 0;
  for (const std::int64_t length : Problem::lengths) {
    f(begin, length);
    begin += length;
  }
}

}  // namespace

TEST_CASE("backend.conv: convolves each sequence with what came before, however it is cut", "[backend]") {
  for (const Subject& subject : subjects())
    for (const std::int64_t cols : {1, 40, 130})
      for (const std::int32_t taps : {2, 4, 7}) {
        INFO(subject.name << ", " << cols << " columns, " << taps << " taps");
        Problem problem(*subject.backend, 3);
        ConvOp op{};
        op.x = problem.matrix(cols);
        op.out = problem.matrix(cols);
        op.taps = taps;
        op.weight = problem.vector(cols * taps, -1, 1);
        op.bias = taps == 2 ? nullptr : problem.vector(cols, -1, 1);
        op.activation = taps == 2 ? Activation::none : Activation::silu;
        const auto oracle = [&] {
          const Dense x = problem.dense(op.x);
          const auto weight = problem.values(op.weight);
          Dense out(Problem::rows, cols);
          for_each_sequence([&](std::int64_t begin, std::int64_t length) {
            for (std::int64_t t = 0; t < length; ++t)
              for (std::int64_t c = 0; c < cols; ++c) {
                double sum = op.bias != nullptr ? problem.values(op.bias)[static_cast<std::size_t>(c)] : 0;
                for (std::int64_t j = 0; j < taps; ++j)
                  if (const auto row = t - taps + 1 + j; row >= 0)
                    sum += weight[static_cast<std::size_t>(c * taps + j)] * x(begin + row, c);
                out(begin + t, c) = oracle_activation(sum, op.activation);
              }
          });
          return out;
        };
        check<ConvOp>(subject, problem, op, {&ConvOp::x, &ConvOp::out}, (taps - 1) * cols, oracle, 1e-5);
      }
}

TEST_CASE("backend.scan: moves the state of each head on, with one decay or many, in groups", "[backend]") {
  struct Shape {
    std::int32_t heads, channels, groups, size;
    bool one;
  };
  for (const Subject& subject : subjects())
    for (const Shape shape :
         {Shape{130, 1, 1, 16, false}, Shape{7, 1, 1, 5, false}, Shape{6, 20, 3, 33, true}, Shape{4, 3, 4, 16, true}}) {
      INFO(subject.name << ", " << shape.heads << " heads of " << shape.channels << ", " << shape.size);
      const std::int64_t width = std::int64_t{shape.heads} * shape.channels;
      Problem problem(*subject.backend, 5);
      ScanOp op{};
      op.x = problem.matrix(width);
      op.steps = problem.matrix(shape.heads, 4.0F);
      op.b = problem.matrix(std::int64_t{shape.groups} * shape.size);
      op.c = problem.matrix(std::int64_t{shape.groups} * shape.size);
      op.gate = problem.matrix(width, 3.0F);
      op.out = problem.matrix(width);
      op.heads = shape.heads;
      op.groups = shape.groups;
      op.size = shape.size;
      op.one_decay = shape.one;
      op.decay = problem.vector(shape.one ? shape.heads : std::int64_t{shape.heads} * shape.size, -2.0F, -0.01F);
      op.skip = problem.vector(shape.heads, -1, 1);
      op.step_bias = shape.size == 5 ? nullptr : problem.vector(shape.heads, -1, 1);
      const auto oracle = [&] {
        const Dense x = problem.dense(op.x), steps = problem.dense(op.steps), b = problem.dense(op.b),
                    c = problem.dense(op.c), gate = problem.dense(op.gate);
        const auto decay = problem.values(op.decay), skip = problem.values(op.skip);
        const auto bias = op.step_bias != nullptr ? problem.values(op.step_bias) : std::vector<double>(skip.size());
        Dense out(Problem::rows, width);
        for_each_sequence([&](std::int64_t begin, std::int64_t length) {
          for (std::int64_t p = 0; p < width; ++p) {
            const auto h = static_cast<std::size_t>(p / shape.channels);
            const auto first = static_cast<std::int64_t>(h) / (shape.heads / shape.groups) * shape.size;
            std::vector<double> s(static_cast<std::size_t>(shape.size));
            for (std::int64_t t = begin; t < begin + length; ++t) {
              const double step = std::log1p(std::exp(steps(t, p / shape.channels) + bias[h]));
              double sum = skip[h] * x(t, p);
              for (std::int64_t n = 0; n < shape.size; ++n) {
                const auto e = static_cast<std::size_t>(n);
                const double a = decay[shape.one ? h : h * static_cast<std::size_t>(shape.size) + e];
                s[e] = std::exp(step * a) * s[e] + step * x(t, p) * b(t, first + n);
                sum += c(t, first + n) * s[e];
              }
              out(t, p) = sum * oracle_activation(gate(t, p), Activation::silu);
            }
          }
        });
        return out;
      };
      check<ScanOp>(subject, problem, op,
                    {&ScanOp::x, &ScanOp::steps, &ScanOp::b, &ScanOp::c, &ScanOp::gate, &ScanOp::out},
                    width * shape.size, oracle, 2e-5);
    }
}

TEST_CASE("backend.token_shift: mixes each row with the one before it", "[backend]") {
  for (const Subject& subject : subjects())
    for (const std::int64_t parts : {1, 5}) {
      INFO(subject.name << ", " << parts << " parts");
      constexpr std::int64_t cols = 75;
      Problem problem(*subject.backend, 7);
      TokenShiftOp op{};
      op.x = problem.matrix(cols);
      op.mix = problem.vector(parts * cols, 0, 1);
      if (parts > 1) op.more = problem.matrix(parts * cols);
      op.out = problem.matrix(parts * cols);
      const auto oracle = [&] {
        const Dense x = problem.dense(op.x);
        const auto mix = problem.values(op.mix);
        Dense out(Problem::rows, parts * cols);
        for_each_sequence([&](std::int64_t begin, std::int64_t length) {
          for (std::int64_t t = begin; t < begin + length; ++t)
            for (std::int64_t i = 0; i < parts * cols; ++i) {
              const double before = t > begin ? x(t - 1, i % cols) : 0;
              const double more = parts > 1 ? problem.dense(op.more)(t, i) : 0;
              out(t, i) = x(t, i % cols) + (before - x(t, i % cols)) * (mix[static_cast<std::size_t>(i)] + more);
            }
        });
        return out;
      };
      check<TokenShiftOp>(subject, problem, op, {&TokenShiftOp::x, &TokenShiftOp::more, &TokenShiftOp::out}, cols,
                          oracle, 1e-5);
    }
}

namespace {

WkvOp wkv_problem(Problem& problem, std::int32_t version, std::int32_t heads, std::int64_t size) {
  const std::int64_t width = heads * size;
  WkvOp op{};
  op.version = version;
  op.heads = heads;
  for (Matrix* each : {&op.r, &op.k, &op.v, &op.decay, &op.out}) *each = problem.matrix(width);
  if (version == 7) op.rate = problem.matrix(width, 3.0F);
  if (size != 24) op.gate = problem.matrix(width);
  for (const float** each : {&op.bonus, &op.key_scale, &op.rate_scale}) *each = problem.vector(width, -1, 1);
  op.norm = {NormKind::layer, problem.vector(width, 0.5F, 1.5F), problem.vector(width, -1, 1), 64e-5F};
  return op;
}

/// One head of one sequence.
void wkv_oracle(const Problem& problem, const WkvOp& op, std::int64_t begin, std::int64_t length, std::int64_t first,
                Dense& out) {
  const std::int64_t size = op.r.cols / op.heads;
  const auto n = static_cast<std::size_t>(size);
  const Dense r = problem.dense(op.r), keys = problem.dense(op.k), v = problem.dense(op.v),
              decay = problem.dense(op.decay);
  const auto slice = [&](const float* data) {
    const auto all = problem.values(data);
    return std::vector<double>(all.begin() + first, all.begin() + first + size);
  };
  const auto bonus = slice(op.bonus), key_scale = slice(op.key_scale), rate_scale = slice(op.rate_scale);
  Dense s(size, size);
  for (std::int64_t t = begin; t < begin + length; ++t) {
    std::vector<double> y(n), more(n), q(n), a(n), k(n), w(n);
    double squares = 0, agreement = 0;
    for (std::size_t j = 0; j < n; ++j) {
      const std::int64_t c = first + static_cast<std::int64_t>(j);
      k[j] = keys(t, c);
      w[j] = op.version == 6 ? std::exp(-std::exp(decay(t, c))) : std::exp(-0.606531 * sigmoid(decay(t, c)));
      if (op.version == 6) continue;
      a[j] = sigmoid(problem.dense(op.rate)(t, c));
      q[j] = k[j] * key_scale[j];
      squares += q[j] * q[j];
      k[j] *= 1 + (a[j] - 1) * rate_scale[j];
      agreement += r(t, c) * k[j] * bonus[j];
    }
    for (std::int64_t i = 0; i < size; ++i) {
      const double value = v(t, first + i);
      double taken = 0;
      for (std::int64_t j = 0; j < size && op.version == 7; ++j)
        taken += q[static_cast<std::size_t>(j)] / std::sqrt(squares) * s(j, i);
      for (std::int64_t j = 0; j < size; ++j) {
        const auto e = static_cast<std::size_t>(j);
        const double receptance = r(t, first + j);
        const double kv = k[e] * value;
        if (op.version == 6) y[static_cast<std::size_t>(i)] += receptance * (bonus[e] * kv + s(j, i));
        s(j, i) = w[e] * s(j, i) + kv - (op.version == 7 ? taken * q[e] / std::sqrt(squares) * a[e] : 0);
        if (op.version == 7) y[static_cast<std::size_t>(i)] += receptance * s(j, i);
      }
      more[static_cast<std::size_t>(i)] = value * agreement;
    }
    y = oracle_norm(y, NormKind::layer, slice(op.norm.weight), slice(op.norm.bias), 64e-5);
    for (std::int64_t i = 0; i < size; ++i) {
      const auto e = static_cast<std::size_t>(i);
      out(t, first + i) = (y[e] + more[e]) * (op.gate.cols != 0 ? problem.dense(op.gate)(t, first + i) : 1);
    }
  }
}

}  // namespace

TEST_CASE("backend.wkv: both versions of RWKV's state over heads of any size", "[backend]") {
  for (const Subject& subject : subjects())
    for (const std::int32_t version : {6, 7})
      for (const std::int64_t size : {5, 24, 64}) {
        INFO(subject.name << ", version " << version << ", heads of " << size);
        constexpr std::int32_t heads = 2;
        Problem problem(*subject.backend, 11);
        const WkvOp op = wkv_problem(problem, version, heads, size);
        const auto oracle = [&] {
          Dense out(Problem::rows, heads * size);
          for_each_sequence([&](std::int64_t begin, std::int64_t length) {
            for (std::int64_t h = 0; h < heads; ++h) wkv_oracle(problem, op, begin, length, h * size, out);
          });
          return out;
        };
        check<WkvOp>(subject, problem, op,
                     {&WkvOp::r, &WkvOp::k, &WkvOp::v, &WkvOp::decay, &WkvOp::rate, &WkvOp::gate, &WkvOp::out},
                     heads * size * size, oracle, 1e-4);
      }
}

TEST_CASE("backend.norm: groups of columns are normalized each alone", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    Problem problem(*subject.backend, 13);
    NormOp op{};
    op.x = problem.matrix(60);
    op.out = problem.matrix(60);
    op.groups = 3;
    op.norm = {NormKind::rms, problem.vector(60, 0.5F, 1.5F), nullptr, 1e-3F};
    run(*subject.backend, {op});
    const Dense x = problem.dense(op.x);
    const auto weight = problem.values(op.norm.weight);
    Dense expected(Problem::rows, 60);
    for (std::int64_t t = 0; t < Problem::rows; ++t)
      for (std::int64_t c = 0; c < 60; ++c) {
        double squares = 0;
        for (std::int64_t i = c / 20 * 20; i < c / 20 * 20 + 20; ++i) squares += x(t, i) * x(t, i) / 20;
        expected(t, c) = x(t, c) / std::sqrt(squares + 1e-3) * weight[static_cast<std::size_t>(c)];
      }
    CHECK(distance(problem.dense(op.out), expected) < 1e-5);
  }
}

TEST_CASE("backend.multiply and lerp: work element by element", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    Problem problem(*subject.backend, 17);
    const MultiplyOp multiply{problem.matrix(37), problem.matrix(37)};
    const LerpOp lerp{problem.matrix(37), multiply.y, problem.matrix(37)};
    const Dense x = problem.dense(multiply.x), y = problem.dense(multiply.y), z = problem.dense(lerp.x),
                w = problem.dense(lerp.weight);
    run(*subject.backend, {multiply, lerp});
    Dense products(Problem::rows, 37), mixtures(Problem::rows, 37);
    for (std::size_t i = 0; i < x.values.size(); ++i) {
      products.values[i] = x.values[i] * y.values[i];
      mixtures.values[i] = z.values[i] + (y.values[i] - z.values[i]) * w.values[i];
    }
    CHECK(distance(problem.dense(multiply.x), products) < 1e-6);
    CHECK(distance(problem.dense(lerp.x), mixtures) < 1e-6);
  }
}

TEST_CASE("backend.recurrent: refuses shapes that contradict each other, trees and states in place", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    Problem problem(backend, 19);
    ConvOp conv{};
    conv.x = problem.matrix(8);
    conv.out = problem.matrix(8);
    conv.taps = 3;
    conv.weight = problem.vector(24, -1, 1);
    const auto state = backend.allocate(1024);
    auto* memory = reinterpret_cast<float*>(state.address());
    StatePlace place{nullptr, memory};
    Segment segment{0, 15, nullptr};
    conv.state = {&place, 0, &segment, 1};
    run(backend, {conv});
    const auto refused = [&](const Op& op) {
      const auto stream = backend.new_stream(roomy_limits());
      CHECK_THROWS_AS((stream->enqueue(op), stream->synchronize()), UsageError);
    };
    ConvOp bad = conv;
    bad.taps = 1;
    refused(bad);
    bad = conv;
    bad.taps = most_conv_taps + 1;
    refused(bad);
    bad = conv;
    bad.out = bad.x;
    refused(bad);
    bad = conv;
    bad.weight = nullptr;
    refused(bad);
    place.from = memory;
    refused(conv);
    place.from = nullptr;
    place.to = nullptr;
    refused(conv);
    place.to = memory;
    segment.row_count = 16;
    refused(conv);
    segment.row_count = 15;
    const std::vector<std::uint64_t> visible(15, 0x7FFF);
    segment.visible = visible.data();
    refused(conv);
    segment.visible = nullptr;
    auto wkv = wkv_problem(problem, 7, 2, 5);
    wkv.state = conv.state;
    wkv.heads = 3;
    refused(wkv);
    wkv.heads = 2;
    wkv.version = 5;
    refused(wkv);
    wkv.version = 7;
    wkv.key_scale = nullptr;
    refused(wkv);
    ScanOp scan{};
    scan.x = scan.gate = problem.matrix(6);
    scan.out = problem.matrix(6);
    scan.steps = problem.matrix(4);
    scan.b = scan.c = problem.matrix(8);
    scan.heads = 4;  // do not divide the columns
    scan.size = 8;
    scan.decay = scan.skip = conv.weight;
    scan.state = conv.state;
    refused(scan);
  }
}
