#include "backend/reference/reference_ops.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numbers>
#include <vector>

#include <Eigen/Core>

#include "backend/delta.hpp"
#include "backend/op_check.hpp"

#include <skald/core/progress.hpp>
#include <skald/kernels/kv_codes.hpp>

namespace skald::inline v0::reference {

namespace {

constexpr std::string_view where = "backend.reference";

using ConstRow = Eigen::Map<const Eigen::VectorXf>;
using Row = Eigen::Map<Eigen::VectorXf>;
using Eigen::VectorXd;
using Eigen::VectorXf;

ConstRow view(const float* data, std::int64_t n) { return {data, n}; }
Row view(float* data, std::int64_t n) { return {data, n}; }
Row row(const Matrix& m, std::int64_t r) { return {m.data + r * m.stride, m.cols}; }

VectorXd normalize(const VectorXd& x, const Norm& norm) {
  if (norm.kind == NormKind::none) return x;
  const auto n = static_cast<double>(x.size());
  VectorXd y = x;
  if (norm.kind == NormKind::layer) y.array() -= x.sum() / n;
  y /= std::sqrt(y.squaredNorm() / n + static_cast<double>(norm.epsilon));
  if (norm.weight != nullptr) y = y.cwiseProduct(view(norm.weight, x.size()).cast<double>());
  if (norm.kind == NormKind::layer && norm.bias != nullptr) y += view(norm.bias, x.size()).cast<double>();
  return y;
}

void run(const EmbedOp& op, const std::stop_token& stop) {
  const auto& table = static_cast<const ReferenceWeight&>(*op.table);
  for (std::int64_t i = 0; i < op.out.rows; ++i) {
    throw_if_stopped(stop, where);
    row(op.out, i) = op.scale * view(table.row(op.tokens[i]), op.out.cols);
  }
}

void run(const UploadOp& op, const std::stop_token& /*short*/) {
  for (std::int64_t i = 0; i < op.out.rows; ++i) row(op.out, i) = view(op.host + i * op.out.cols, op.out.cols);
}

void run(const DownloadOp& op, const std::stop_token& /*short*/) {
  for (std::int64_t i = 0; i < op.x.rows; ++i) view(op.host + i * op.x.cols, op.x.cols) = row(op.x, i);
}

void run(const NormOp& op, const std::stop_token& stop) {
  for (std::int64_t i = 0; i < op.x.rows; ++i) {
    throw_if_stopped(stop, where);
    const std::int64_t cols = op.x.cols / op.groups;
    for (std::int64_t g = 0; g < op.groups; ++g) {
      Norm norm = op.norm;
      if (norm.weight != nullptr) norm.weight += g * cols;
      if (norm.bias != nullptr) norm.bias += g * cols;
      row(op.out, i).segment(g * cols, cols) =
          normalize(row(op.x, i).segment(g * cols, cols).cast<double>(), norm).cast<float>();
    }
  }
}

void run(const AddOp& op, const std::stop_token& /*short*/) {
  for (std::int64_t i = 0; i < op.x.rows; ++i) row(op.x, i) += op.scale * row(op.y, i);
}

void run(const HostOp& op, const std::stop_token& stop) {
  for (std::int64_t unit = 0; unit < op.units; ++unit) {
    throw_if_stopped(stop, where);
    op.run(op.context, unit);
  }
}

void run(const SoftcapOp& op, const std::stop_token& stop) {
  const double scale = op.scale;
  const double cap = op.softcap;
  for (std::int64_t i = 0; i < op.x.rows; ++i) {
    throw_if_stopped(stop, where);
    for (float& x : row(op.x, i)) {
      const double y = scale * static_cast<double>(x);
      x = static_cast<float>(cap > 0 ? cap * std::tanh(y / cap) : y);
    }
  }
}

void run(const ClampOp& op, const std::stop_token& /*short*/) {
  for (std::int64_t i = 0; i < op.x.rows; ++i) row(op.x, i) = row(op.x, i).cwiseMax(-op.limit).cwiseMin(op.limit);
}

void run(const RopeTableOp& op, const std::stop_token& stop) {
  for (std::int64_t i = 0; i < op.out.rows; ++i) {
    throw_if_stopped(stop, where);
    for (std::int64_t j = 0; j < op.out.cols / 2; ++j) {
      const double angle = static_cast<double>(op.positions[i]) * op.inverse_frequencies[j];
      const double magnitude = op.magnitude;
      row(op.out, i)[2 * j] = static_cast<float>(magnitude * std::cos(angle));
      row(op.out, i)[2 * j + 1] = static_cast<float>(magnitude * std::sin(angle));
    }
  }
}

void run(const DeltaInputOp& op, const std::stop_token& stop) {
  for (std::int32_t d = 0; d < op.delta_count; ++d) {
    const DeltaRows& each = op.deltas[d];
    for (std::int64_t i = 0; i < each.row_count; ++i) {
      throw_if_stopped(stop, where);
      const VectorXf x = normalize(row(op.x, detail::source_row(op, each.row_begin + i)).cast<double>(), op.norm).cast<float>();
      detail::delta_input(each.delta, x.data(), op.x.cols, each.inner.data + i * each.inner.stride);
    }
  }
}

/// W x + bias for row `i` of one part, in double.
VectorXd product(const LinearPart& part, std::int64_t i, const VectorXd& x, const std::stop_token& stop) {
  const auto& weight = static_cast<const ReferenceWeight&>(*part.weight);
  VectorXd y(weight.rows());
  for (std::int64_t r = 0; r < weight.rows(); ++r) {
    if (r % 1024 == 0) throw_if_stopped(stop, where);
    y[r] = view(weight.row(r), weight.cols()).cast<double>().dot(x);
  }
  if (part.bias != nullptr) y += view(part.bias, weight.rows()).cast<double>();
  for (std::int32_t d = 0; d < part.delta_count; ++d) {
    const DeltaRows& each = part.deltas[d];
    const std::int64_t own = i - each.row_begin;
    if (own < 0 || own >= each.row_count) continue;
    std::vector<float> added(static_cast<std::size_t>(weight.rows()), 0.0F);
    detail::delta_output(each.delta, each.inner.data + own * each.inner.stride, 0, weight.rows(), added.data());
    y += view(added.data(), weight.rows()).cast<double>();
  }
  return y;
}

void run(const LinearOp& op, const std::stop_token& stop) {
  const double scale = op.scale;
  for (std::int64_t i = 0; i < detail::input_rows(op); ++i) {
    const std::int64_t source = op.rows != nullptr ? op.rows[i] : i;
    const VectorXd x = normalize(row(op.x, source).cast<double>(), op.norm);
    if (op.epilogue == LinearEpilogue::gated) {
      const VectorXd gate = product(op.parts[0], i, x, stop);
      const VectorXd up = product(op.parts[1], i, x, stop);
      const auto act = [&](double g) { return activate(g, op.activation); };
      row(op.parts[0].out, i) = gate.unaryExpr(act).cwiseProduct(up).cast<float>();
      continue;
    }
    for (std::int32_t p = 0; p < op.part_count; ++p) {
      const LinearPart& part = op.parts[static_cast<std::size_t>(p)];
      const VectorXd y = scale * product(part, i, x, stop);
      if (op.epilogue == LinearEpilogue::add) {
        row(part.out, i) = (row(part.out, i).cast<double>() + y).cast<float>();
      } else {
        row(part.out, i) = y.unaryExpr([&](double v) { return activate(v, op.activation); }).cast<float>();
      }
    }
  }
}

/// Product of matrix `index` of a stack with x, in double.
VectorXd product(const Weight& stack, std::int64_t index, const VectorXd& x, const std::stop_token& stop) {
  throw_if_stopped(stop, where);
  const auto& weight = static_cast<const ReferenceWeight&>(stack);
  const std::int64_t rows = weight.rows() / weight.matrices();
  VectorXd y(rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    y[r] = view(weight.row(index * rows + r), weight.cols()).cast<double>().dot(x);
  }
  return y;
}

double sigmoid(double x) { return activate(x, Activation::sigmoid); }

/// The experts of a token, from the largest score down.
std::vector<std::int64_t> chosen_experts(const ExpertsOp& op, VectorXd scores) {
  if (op.selection_bias != nullptr) scores += view(op.selection_bias, scores.size()).cast<double>();
  const auto largest = [](const std::vector<std::int64_t>& of, const VectorXd& values) {
    return std::max_element(of.begin(), of.end(), [&](auto a, auto b) { return values[a] < values[b]; });
  };
  const auto up_to = [](std::int64_t n) {
    std::vector<std::int64_t> all;
    for (std::int64_t i = 0; i < n; ++i) all.push_back(i);
    return all;
  };
  const std::int64_t each = scores.size() / op.groups;
  VectorXd group_scores(op.groups);
  for (std::int64_t g = 0; op.groups > 1 && g < op.groups; ++g) {
    std::vector<double> of(scores.begin() + g * each, scores.begin() + (g + 1) * each);
    std::partial_sort(of.begin(), of.begin() + 2, of.end(), std::greater<>());
    group_scores[g] = op.group_best == 1 ? of[0] : of[0] + of[1];
  }
  std::vector<std::int64_t> left;
  for (auto groups = up_to(op.groups); left.size() < static_cast<std::size_t>(op.groups_used * each);) {
    const auto best = op.groups > 1 ? largest(groups, group_scores) : groups.begin();
    for (std::int64_t e = *best * each; e < (*best + 1) * each; ++e) left.push_back(e);
    groups.erase(best);
  }
  std::sort(left.begin(), left.end());
  std::vector<std::int64_t> chosen;
  while (chosen.size() < static_cast<std::size_t>(op.used)) {
    const auto best = largest(left, scores);
    chosen.push_back(*best);
    left.erase(best);
  }
  return chosen;
}

/// What an expert's gate and up products become.
double inner_value(const ExpertsOp& op, double gate, double up) {
  if (op.gate_limit == 0.0F) return activate(gate, op.activation) * up;
  const double limit = op.gate_limit;
  const double g = std::min(gate, limit);
  return g * sigmoid(static_cast<double>(op.gate_alpha) * g) * (std::clamp(up, -limit, limit) + 1);
}

void run(const ExpertsOp& op, const std::stop_token& stop) {
  const auto bias = [](const float* of, std::int64_t e, std::int64_t n) -> VectorXd {
    return of == nullptr ? VectorXd::Zero(n) : VectorXd(view(of + e * n, n).cast<double>());
  };
  for (std::int64_t t = 0; t < op.x.rows; ++t) {
    const VectorXd x = normalize(row(op.x, t).cast<double>(), op.norm);
    const VectorXd logits = row(op.logits, t).cast<double>();
    VectorXd shares = (logits.array() - logits.maxCoeff()).exp();
    shares /= shares.sum();
    if (op.gating == ExpertGating::sigmoid) shares = logits.unaryExpr([](double l) { return sigmoid(l); });
    const auto chosen = chosen_experts(op, op.gating == ExpertGating::softmax_selected ? logits : shares);
    double all = 0;
    for (const std::int64_t e : chosen) all += shares[e];
    if (op.gating == ExpertGating::softmax_selected) shares /= all;
    else if (op.renormalize) shares /= std::max(all, static_cast<double>(least_share_sum));
    VectorXd sum = row(op.out, t).cast<double>();
    for (const std::int64_t e : chosen) {
      const VectorXd gate = product(*op.gate, e, x, stop) + bias(op.gate_bias, e, op.inner.cols);
      const VectorXd up = product(*op.up, e, x, stop) + bias(op.up_bias, e, op.inner.cols);
      const VectorXd inner = gate.binaryExpr(up, [&](double g, double u) { return inner_value(op, g, u); });
      const VectorXd result = product(*op.down, e, inner, stop) + bias(op.down_bias, e, op.out.cols);
      sum += static_cast<double>(op.scale) * shares[e] * result;
    }
    row(op.out, t) = sum.cast<float>();
  }
}

void run(const HeadLinearOp& op, const std::stop_token& stop) {
  const std::int64_t cols = op.weight->cols();
  const std::int64_t rows = op.weight->rows() / op.heads;
  for (std::int64_t t = 0; t < op.x.rows; ++t) {
    for (std::int32_t h = 0; h < op.heads; ++h) {
      const float* x = op.x.data + t * op.x.stride + h * op.x_step;
      float* out = op.out.data + t * op.out.stride + h * op.out_step;
      view(out, rows) = product(*op.weight, h, view(x, cols).cast<double>(), stop).cast<float>();
      view(out + rows, op.tail) = view(x + cols, op.tail);
    }
  }
}

void run(const GateRowsOp& op, const std::stop_token& /*short*/) {
  for (std::int64_t i = 0; i < op.x.rows; ++i) {
    const double gate = sigmoid(static_cast<double>(op.logits.data[i * op.logits.stride]));
    row(op.x, i) = (gate * row(op.x, i).cast<double>()).cast<float>();
  }
}

void run(const DropOp& op, const std::stop_token& stop) {
  const std::int64_t width = op.gates.cols / 2;
  for (std::int32_t s = 0; s < op.segment_count; ++s) {
    const DropTable& table = op.tables[s];
    for (std::int32_t i = 0; i < op.segments[s].row_count; ++i) {
      throw_if_stopped(stop, where);
      const auto gates = row(op.gates, op.segments[s].row_begin + i);
      const std::int64_t own = table.length + i;
      std::copy_n(gates.data() + width, width, table.keys + own * width);
      table.until[own] = std::numeric_limits<std::int32_t>::max();
      for (std::int64_t slot = 0; slot < own; ++slot) {
        if (table.until[slot] <= table.position + i) continue;
        double dot = 0;
        for (std::int64_t d = 0; d < width; ++d)
          dot += static_cast<double>(gates[d]) * static_cast<double>(table.keys[slot * width + d]);
        if (dot / std::sqrt(static_cast<double>(width)) + static_cast<double>(op.bias) < 0) table.until[slot] = table.position + i;
      }
    }
  }
}

/// Keys and values of one KV head of one sequence.
class HeadCache {
 public:
  HeadCache(const KvLayer& kv, std::int32_t segment, std::int32_t kv_head)
      : layout_(kv.layout),
        pool_(kv.pool),
        head_(kv_head % kv.layout.heads),
        table_(kv.tables[segment * kv.groups + kv_head / kv.layout.heads]) {
    if (kv.earlier == nullptr) return;
    earlier_ = std::make_shared<const HeadCache>(*kv.earlier, segment, kv_head);
  }

  [[nodiscard]] std::int32_t length() const { return table_.length; }
  [[nodiscard]] std::int32_t first() const { return table_.first; }
  [[nodiscard]] const KvTable& table() const { return table_; }
  /// Slots in another place have the numbers -earlier() to -1.
  [[nodiscard]] std::int32_t earlier() const { return earlier_ ? earlier_->length() : 0; }
  /// The key and the value of a slot, decoded when they are first asked for.
  [[nodiscard]] const float* key(std::int32_t slot) const {
    if (slot < 0) return earlier_->key(slot + earlier());
    return decoded(keys_, slot, layout_.head_dim_k, [&](std::int32_t d) {
      return kv_key_element(layout_, keys(slot), slot % layout_.page_tokens, d);
    });
  }
  [[nodiscard]] const float* value(std::int32_t slot) const {
    if (slot < 0) return earlier_->value(slot + earlier());
    return decoded(values_, slot, layout_.head_dim_v, [&](std::int32_t d) {
      return kv_value_element(layout_, values(slot), slot % layout_.page_tokens, d);
    });
  }
  void store(std::int32_t slot, const float* k, const float* v) const {
    set_kv_key(layout_, keys(slot), slot % layout_.page_tokens, k);
    if (!layout_.values_in_keys) set_kv_value(layout_, values(slot), slot % layout_.page_tokens, v);
  }

 private:
  using Decoded = std::vector<std::vector<float>>;  ///< by slot from the first one on; empty: not decoded yet
  template <class Read>
  [[nodiscard]] const float* decoded(Decoded& all, std::int32_t slot, std::int32_t dims, Read&& read) const {
    const auto index = static_cast<std::size_t>(slot - table_.first);
    if (index >= all.size()) all.resize(index + 1);
    std::vector<float>& one = all[index];
    for (std::int32_t d = static_cast<std::int32_t>(one.size()); d < dims; ++d) one.push_back(read(d));
    return one.data();
  }

  [[nodiscard]] std::byte* page(std::int32_t slot) const {
    return pool_ + std::size_t{table_.pages[(slot - table_.first) / layout_.page_tokens]} * layout_.page_bytes();
  }
  [[nodiscard]] std::byte* keys(std::int32_t slot) const { return page(slot) + layout_.keys_offset(head_); }
  [[nodiscard]] std::byte* values(std::int32_t slot) const { return page(slot) + layout_.values_offset(head_); }

  KvPageLayout layout_;
  std::byte* pool_;
  std::int32_t head_;
  KvTable table_;
  std::shared_ptr<const HeadCache> earlier_;
  mutable Decoded keys_{}, values_{};
};

void rotate(float* x, const float* table, RopeKind kind, std::int32_t dims) {
  for (std::int32_t j = 0; j < dims / 2; ++j) {
    float& a = kind == RopeKind::interleaved ? x[2 * j] : x[j];
    float& b = kind == RopeKind::interleaved ? x[2 * j + 1] : x[j + dims / 2];
    const double c = table[2 * j];
    const double s = table[2 * j + 1];
    const double x0 = a;
    const double x1 = b;
    a = static_cast<float>(x0 * c - x1 * s);
    b = static_cast<float>(x0 * s + x1 * c);
  }
}

void norm_and_rotate(const StoreKvOp& op, float* head, const Norm& norm, std::int64_t token) {
  auto x = view(head, op.kv.layout.head_dim_k);
  if (norm.kind != NormKind::none) x = normalize(x.cast<double>(), norm).cast<float>();
  if (op.rope != RopeKind::none) {
    rotate(head + op.rope_offset, row(op.rope_table, token).data(), op.rope, op.rope_dims);
  }
}

void run(const StoreKvOp& op, const std::stop_token& stop) {
  const std::int32_t dk = op.kv.layout.head_dim_k;
  const std::int32_t dv = op.kv.layout.head_dim_v;
  for (std::int32_t s = 0; s < op.segment_count; ++s) {
    const Segment& segment = op.segments[s];
    for (std::int32_t i = 0; i < segment.row_count; ++i) {
      throw_if_stopped(stop, where);
      const std::int64_t token = segment.row_begin + i;
      for (std::int32_t h = 0; op.q.data != nullptr && h < op.heads; ++h) {
        norm_and_rotate(op, row(op.q, token).data() + h * dk, op.q_norm, token);
      }
      for (std::int32_t h = 0; op.k.data != nullptr && h < op.kv_heads; ++h) {
        float* key = row(op.k, token).data() + h * dk;
        norm_and_rotate(op, key, op.k_norm, token);
        const HeadCache cache(op.kv, s, h);
        const float* value = op.kv.layout.values_in_keys ? nullptr : row(op.v, token).data() + h * dv;
        cache.store(cache.length() + i, key, value);
      }
    }
  }
}

/// Slots that row i of a segment sees, ascending.
std::vector<std::int32_t> visible_slots(const AttentionOp& op, const Segment& segment, const HeadCache& cache,
                                        std::int32_t i) {
  std::vector<std::int32_t> slots;
  const std::int32_t length = cache.length();
  const std::int32_t own = length + i;
  const std::int64_t words = (segment.row_count + 63) / 64;
  const std::int32_t end = op.mask == AttentionMask::causal ? own + 1
                           : op.mask == AttentionMask::full ? length + segment.row_count
                                                            : length;
  for (std::int32_t slot = -cache.earlier(); slot < 0; ++slot) slots.push_back(slot);
  for (std::int32_t slot = cache.first(); slot < end; ++slot) {
    if (op.window > 0 && own - slot >= op.window) continue;
    const std::int32_t j = slot - length;
    if (cache.table().until != nullptr && slot != own && cache.table().until[slot] <= cache.table().position + i) continue;
    if (j >= 0 && segment.visible != nullptr && ((segment.visible[i * words + j / 64] >> (j % 64)) & 1U) == 0) continue;
    slots.push_back(slot);
  }
  return slots;
}

/// What is added to the score of a slot that lies `distance` after the row's own.
double distance_score(const AttentionOp& op, std::int32_t head, std::int32_t distance) {
  double sum = 0;
  if (op.slopes != nullptr) sum += static_cast<double>(op.slopes[head]) * distance;
  if (op.bias != nullptr) {
    const std::int64_t index = std::clamp(distance, -op.bias_reach, op.bias_reach) + op.bias_reach;
    sum += static_cast<double>(op.bias[head * (2 * std::int64_t{op.bias_reach} + 1) + index]);
  }
  return sum;
}

/// What the score pass changes in the logits.
struct ScoreShape {
  const float* noise = nullptr;
  double inverse_temperature = 1;
};

/// Attention probabilities over `slots` of query head `head` in the row whose own slot is `own`.
VectorXd probabilities(const AttentionOp& op, const HeadCache& cache, const float* q, std::int32_t head,
                       std::int32_t own, const std::vector<std::int32_t>& slots, const ScoreShape& shape = {}) {
  const KvTable& table = cache.table();
  const auto distance = [&](std::int32_t slot) {
    return table.positions == nullptr ? slot - own : table.positions[slot] - (table.position + own - table.length);
  };
  const bool sink = op.sinks != nullptr;
  const auto count = static_cast<Eigen::Index>(slots.size());
  VectorXd p(count + (sink ? 1 : 0));
  if (p.size() == 0) return p;
  for (std::size_t n = 0; n < slots.size(); ++n) {
    double dot = 0;
    const float* key = cache.key(slots[n]);
    for (std::int32_t d = 0; d < op.kv.layout.head_dim_k; ++d) dot += static_cast<double>(q[d]) * static_cast<double>(key[d]);
    dot *= static_cast<double>(op.scale);
    const double cap = op.softcap;
    if (cap > 0) dot = cap * std::tanh(dot / cap);
    dot += distance_score(op, head, distance(slots[n]));
    if (table.bias != nullptr) dot += static_cast<double>(table.bias[slots[n]]);
    if (shape.noise != nullptr) dot += static_cast<double>(shape.noise[slots[n]]);
    p[static_cast<Eigen::Index>(n)] = dot * shape.inverse_temperature;
  }
  if (sink) p[count] = static_cast<double>(op.sinks[head]) * shape.inverse_temperature;
  p = (p.array() - p.maxCoeff()).exp();
  return (p / p.sum()).head(count);
}

void add_scores(const ScoreSink& sink, float* scores, const std::vector<std::int32_t>& slots, const VectorXd& p) {
  for (std::size_t n = 0; n < slots.size(); ++n) {
    const auto value = static_cast<float>(p[static_cast<Eigen::Index>(n)]);
    float& score = scores[slots[n]];
    score = sink.kind == ScoreKind::sum ? score + value : std::max(score, value);
  }
}

/// Puts what scores begin with into their arrays.
void begin_scores(const AttentionOp& op) {
  for (std::int32_t i = 0; op.sink->before != nullptr && i < op.segment_count * op.kv.groups; ++i) {
    const float* before = op.sink->before[i];
    float* scores = op.sink->scores[i];
    if (before == nullptr || scores == nullptr || op.segments[i / op.kv.groups].row_count == 0) continue;
    std::copy_n(before, op.kv.tables[i].length, scores);
    std::fill_n(scores + op.kv.tables[i].length, op.segments[i / op.kv.groups].row_count, 0.0F);
  }
}

void run(const AttentionOp& op, const std::stop_token& stop) {
  const std::int32_t dk = op.kv.layout.head_dim_k;
  const std::int32_t dv = op.kv.layout.head_dim_v;
  const std::int32_t shared = op.heads / op.kv_heads;
  if (op.sink != nullptr) begin_scores(op);
  for (std::int32_t s = 0; s < op.segment_count; ++s) {
    const Segment& segment = op.segments[s];
    std::vector<HeadCache> caches;
    for (std::int32_t h = 0; h < op.kv_heads; ++h) caches.emplace_back(op.kv, s, h);
    for (std::int32_t i = 0; i < segment.row_count; ++i) {
      const std::int64_t token = segment.row_begin + i;
      for (std::int32_t h = 0; h < op.heads; ++h) {
        throw_if_stopped(stop, where);
        const std::int32_t kv_head = h / shared;
        const HeadCache& cache = caches[static_cast<std::size_t>(kv_head)];
        const auto slots = visible_slots(op, segment, cache, i);
        const VectorXd p = probabilities(op, cache, row(op.q, token).data() + h * dk, h, cache.length() + i, slots);
        std::vector<double> sums(static_cast<std::size_t>(dv));
        for (std::size_t n = 0; n < slots.size(); ++n) {
          const float* value = cache.value(slots[n]);
          const double weight = p[static_cast<Eigen::Index>(n)];
          for (std::size_t d = 0; d < sums.size(); ++d) sums[d] += weight * static_cast<double>(value[d]);
        }
        for (std::size_t d = 0; d < sums.size(); ++d) {
          row(op.out, token)[h * dv + static_cast<std::int32_t>(d)] = static_cast<float>(sums[d]);
        }
        if (op.sink == nullptr) continue;
        if (op.sink->last_rows > 0 && i < segment.row_count - op.sink->last_rows) continue;
        const std::int32_t group = kv_head / op.kv.layout.heads;
        float* scores = op.sink->scores[s * op.kv.groups + group];
        if (scores == nullptr) continue;
        if (op.sink->noise == nullptr && op.sink->inverse_temperatures == nullptr) {
          add_scores(*op.sink, scores, slots, p);
          continue;
        }
        ScoreShape shape;
        if (op.sink->noise != nullptr) shape.noise = op.sink->noise[s * op.kv.groups + group];
        if (op.sink->inverse_temperatures != nullptr) shape.inverse_temperature = op.sink->inverse_temperatures[token];
        add_scores(*op.sink, scores, slots,
                   probabilities(op, cache, row(op.q, token).data() + h * dk, h, cache.length() + i, slots, shape));
      }
    }
  }
}

}  // namespace

double activate(double x, Activation kind) noexcept {
  switch (kind) {
    case Activation::none: return x;
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::numbers::sqrt2 * std::numbers::inv_sqrtpi * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf: return 0.5 * x * std::erfc(-x / std::numbers::sqrt2);
    case Activation::relu: return std::max(x, 0.0);
    case Activation::relu_squared: return x > 0 ? x * x : 0.0;
    case Activation::tanh: return std::tanh(x);
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
  }
  return x;
}

void run_op(const Op& op, const std::stop_token& stop) {
  std::visit([&](const auto& o) { run(o, stop); }, op);
}

}  // namespace skald::inline v0::reference
