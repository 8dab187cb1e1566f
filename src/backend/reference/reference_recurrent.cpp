// Recurrent ops: one sequence, one channel, one token at a time. A state is rounded to f32 after each token, so that it
// does not matter where a sequence is cut.
#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/reference/reference_ops.hpp"

#include <skald/core/progress.hpp>

namespace skald::inline v0::reference {

namespace {

constexpr std::string_view where = "backend.reference";

double at(const Matrix& m, std::int64_t row, std::int64_t col) {
  return static_cast<double>(m.data[row * m.stride + col]);
}
float& set(const Matrix& m, std::int64_t row, std::int64_t col) { return m.data[row * m.stride + col]; }
double softplus(double x) { return x > 30 ? x : std::log1p(std::exp(x)); }

/// The part of a segment's state that an op begins with, to be written as it goes.
float* begin_state(const StateLayer& layer, std::int32_t segment, std::int64_t elements) {
  const StatePlace& place = layer.places[segment];
  float* to = place.to + layer.offset;
  for (std::int64_t i = 0; i < elements; ++i) to[i] = place.from != nullptr ? place.from[layer.offset + i] : 0.0F;
  return to;
}

}  // namespace

void run(const ConvOp& op, const std::stop_token& stop) {
  const std::int64_t before = op.taps - 1;
  for (std::int32_t s = 0; s < op.state.segment_count; ++s) {
    throw_if_stopped(stop, where);
    const Segment& segment = op.state.segments[s];
    if (segment.row_count == 0) continue;
    float* state = begin_state(op.state, s, before * op.x.cols);
    for (std::int64_t c = 0; c < op.x.cols; ++c) {
      std::vector<float> column;
      for (std::int64_t i = 0; i < before; ++i) column.push_back(state[i * op.x.cols + c]);
      for (std::int64_t i = 0; i < segment.row_count; ++i) column.push_back(set(op.x, segment.row_begin + i, c));
      for (std::int64_t i = 0; i < segment.row_count; ++i) {
        double sum = 0;
        for (std::int64_t j = 0; j < op.taps; ++j)
          sum += static_cast<double>(op.weight[c * op.taps + j]) *
                 static_cast<double>(column[static_cast<std::size_t>(i + j)]);
        if (op.bias != nullptr) sum += static_cast<double>(op.bias[c]);
        set(op.out, segment.row_begin + i, c) = static_cast<float>(activate(sum, op.activation));
      }
      for (std::int64_t i = 0; i < before; ++i)
        state[i * op.x.cols + c] = column[static_cast<std::size_t>(segment.row_count + i)];
    }
  }
}

void run(const ScanOp& op, const std::stop_token& stop) {
  const std::int64_t size = op.size;
  const std::int64_t channels = op.x.cols / op.heads;
  for (std::int32_t s = 0; s < op.state.segment_count; ++s) {
    const Segment& segment = op.state.segments[s];
    if (segment.row_count == 0) continue;
    float* states = begin_state(op.state, s, op.x.cols * size);
    for (std::int64_t t = segment.row_begin; t < segment.row_begin + segment.row_count; ++t) {
      throw_if_stopped(stop, where);
      for (std::int64_t h = 0; h < op.heads; ++h) {
        const std::int64_t group = h / (op.heads / op.groups);
        const double bias = op.step_bias != nullptr ? static_cast<double>(op.step_bias[h]) : 0.0;
        const double step = softplus(at(op.steps, t, h) + bias);
        for (std::int64_t p = h * channels; p < (h + 1) * channels; ++p) {
          const double x = at(op.x, t, p);
          double sum = 0;
          for (std::int64_t n = 0; n < size; ++n) {
            const auto decay = static_cast<double>(op.one_decay ? op.decay[h] : op.decay[h * size + n]);
            float& state = states[p * size + n];
            state = static_cast<float>(std::exp(step * decay) * static_cast<double>(state) +
                                       step * x * at(op.b, t, group * size + n));
            sum += at(op.c, t, group * size + n) * static_cast<double>(state);
          }
          sum += static_cast<double>(op.skip[h]) * x;
          set(op.out, t, p) = static_cast<float>(sum * activate(at(op.gate, t, p), Activation::silu));
        }
      }
    }
  }
}

void run(const TokenShiftOp& op, const std::stop_token& stop) {
  for (std::int32_t s = 0; s < op.state.segment_count; ++s) {
    throw_if_stopped(stop, where);
    const Segment& segment = op.state.segments[s];
    if (segment.row_count == 0) continue;
    float* state = begin_state(op.state, s, op.x.cols);
    for (std::int64_t t = segment.row_begin; t < segment.row_begin + segment.row_count; ++t) {
      for (std::int64_t i = 0; i < op.out.cols; ++i) {
        const std::int64_t c = i % op.x.cols;
        const double x = at(op.x, t, c);
        const double weight = static_cast<double>(op.mix[i]) + (op.more.cols != 0 ? at(op.more, t, i) : 0.0);
        set(op.out, t, i) = static_cast<float>(x + (static_cast<double>(state[c]) - x) * weight);
      }
      for (std::int64_t c = 0; c < op.x.cols; ++c) state[c] = set(op.x, t, c);
    }
  }
}

namespace {

/// One token of one head of RWKV: reads row t, updates `state`, gives y and what is added to its norm.
struct WkvHead {
  const WkvOp& op;
  std::int64_t size;
  std::int64_t first;  // column of the head's first element
  float* state;

  [[nodiscard]] double s(std::int64_t j, std::int64_t i) const { return static_cast<double>(state[j * size + i]); }

  void six(std::int64_t t, std::vector<double>& y) const {
    for (std::int64_t j = 0; j < size; ++j) {
      const double r = at(op.r, t, first + j);
      const double k = at(op.k, t, first + j);
      const double w = std::exp(-std::exp(at(op.decay, t, first + j)));
      for (std::int64_t i = 0; i < size; ++i) {
        const double kv = k * at(op.v, t, first + i);
        y[static_cast<std::size_t>(i)] += r * (static_cast<double>(op.bonus[first + j]) * kv + s(j, i));
        state[j * size + i] = static_cast<float>(w * s(j, i) + kv);
      }
    }
  }

  void seven(std::int64_t t, std::vector<double>& y, std::vector<double>& more) const {
    const auto n = static_cast<std::size_t>(size);
    std::vector<double> q(n), a(n), k(n), taken(n);
    double squares = 0;
    double agreement = 0;
    for (std::int64_t j = 0; j < size; ++j) {
      const auto e = static_cast<std::size_t>(j);
      const double key = at(op.k, t, first + j);
      a[e] = activate(at(op.rate, t, first + j), Activation::sigmoid);
      q[e] = key * static_cast<double>(op.key_scale[first + j]);
      k[e] = key * (1 + (a[e] - 1) * static_cast<double>(op.rate_scale[first + j]));
      squares += q[e] * q[e];
      agreement += at(op.r, t, first + j) * k[e] * static_cast<double>(op.bonus[first + j]);
    }
    for (double& value : q) value /= std::max(std::sqrt(squares), 1e-12);
    for (std::int64_t i = 0; i < size; ++i)
      for (std::int64_t j = 0; j < size; ++j)
        taken[static_cast<std::size_t>(i)] += q[static_cast<std::size_t>(j)] * s(j, i);
    for (std::int64_t i = 0; i < size; ++i) {
      const double v = at(op.v, t, first + i);
      for (std::int64_t j = 0; j < size; ++j) {
        const auto e = static_cast<std::size_t>(j);
        const double w = std::exp(-0.606531 * activate(at(op.decay, t, first + j), Activation::sigmoid));
        state[j * size + i] =
            static_cast<float>(w * s(j, i) - taken[static_cast<std::size_t>(i)] * q[e] * a[e] + k[e] * v);
        y[static_cast<std::size_t>(i)] += at(op.r, t, first + j) * s(j, i);
      }
      more[static_cast<std::size_t>(i)] = v * agreement;
    }
  }
};

/// norm(y), elements of which are those of a head that begins with column `first`.
void normalize_head(const Norm& norm, std::int64_t first, std::vector<double>& y) {
  if (norm.kind == NormKind::none) return;
  const auto n = static_cast<double>(y.size());
  double mean = 0;
  if (norm.kind == NormKind::layer) {
    for (const double value : y) mean += value / n;
  }
  double variance = 0;
  for (const double value : y) variance += (value - mean) * (value - mean) / n;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::int64_t c = first + static_cast<std::int64_t>(i);
    y[i] = (y[i] - mean) / std::sqrt(variance + static_cast<double>(norm.epsilon));
    if (norm.weight != nullptr) y[i] *= static_cast<double>(norm.weight[c]);
    if (norm.kind == NormKind::layer && norm.bias != nullptr) y[i] += static_cast<double>(norm.bias[c]);
  }
}

}  // namespace

void run(const WkvOp& op, const std::stop_token& stop) {
  const std::int64_t size = op.r.cols / op.heads;
  for (std::int32_t s = 0; s < op.state.segment_count; ++s) {
    const Segment& segment = op.state.segments[s];
    if (segment.row_count == 0) continue;
    float* states = begin_state(op.state, s, op.r.cols * size);
    for (std::int64_t t = segment.row_begin; t < segment.row_begin + segment.row_count; ++t) {
      throw_if_stopped(stop, where);
      for (std::int64_t h = 0; h < op.heads; ++h) {
        const WkvHead head{op, size, h * size, states + h * size * size};
        std::vector<double> y(static_cast<std::size_t>(size));
        std::vector<double> more(y.size());
        if (op.version == 6) head.six(t, y);
        else head.seven(t, y, more);
        normalize_head(op.norm, h * size, y);
        for (std::int64_t i = 0; i < size; ++i) {
          const auto e = static_cast<std::size_t>(i);
          const double gate = op.gate.cols != 0 ? at(op.gate, t, h * size + i) : 1.0;
          set(op.out, t, h * size + i) = static_cast<float>((y[e] + more[e]) * gate);
        }
      }
    }
  }
}

void run(const MultiplyOp& op, const std::stop_token& /*short*/) {
  for (std::int64_t t = 0; t < op.x.rows; ++t)
    for (std::int64_t c = 0; c < op.x.cols; ++c) set(op.x, t, c) = static_cast<float>(at(op.x, t, c) * at(op.y, t, c));
}

void run(const LerpOp& op, const std::stop_token& /*short*/) {
  for (std::int64_t t = 0; t < op.x.rows; ++t)
    for (std::int64_t c = 0; c < op.x.cols; ++c)
      set(op.x, t, c) = static_cast<float>(at(op.x, t, c) + (at(op.y, t, c) - at(op.x, t, c)) * at(op.weight, t, c));
}

}  // namespace skald::inline v0::reference
