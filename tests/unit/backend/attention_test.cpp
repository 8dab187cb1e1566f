// StoreKvOp and AttentionOp on every backend against a cache kept in plain vectors of double.

#include <utility>

#include <skald/kernels/kv_codes.hpp>

#include "fixture.hpp"

using namespace skald;
using namespace skald_test;

namespace {

struct Shape {
  std::int32_t heads = 4;
  std::int32_t kv_heads = 2;
  std::int32_t group_heads = 1;  // KV heads per group
  std::int32_t dim_k = 16;
  std::int32_t dim_v = 16;
  std::int32_t page_tokens = 16;
  DType dtype = DType::f32;
  bool values_in_keys = false;
};

struct Options {
  NormKind norm = NormKind::none;
  RopeKind rope = RopeKind::none;
  std::int32_t rope_dims = 16;
  std::int32_t window = 0;
  float softcap = 0;
  bool tree = false;
  bool sink = false;
  bool before = false;  // the scores so far lie elsewhere
  ScoreKind score_kind = ScoreKind::sum;
  std::int32_t last_rows = 0;
  AttentionMask mask = AttentionMask::causal;  // with `none` nothing is stored
  bool sinks = false;
  bool slopes = false;
  std::int32_t bias_reach = -1;  // negative: no bias
  bool drop_past = false;        // hands over only the pages that the window reaches
  std::int32_t rope_offset = 0;
};

double stored_number(double value, DType type) {
  if (type == DType::f16) return static_cast<double>(f16_to_f32(f32_to_f16(static_cast<float>(value))));
  if (type == DType::bf16) return static_cast<double>(bf16_to_f32(f32_to_bf16(static_cast<float>(value))));
  return value;
}

/// What pages give back of a vector: numbers rounded one by one, or codes with a scale for each block of 32.
std::vector<double> stored(std::vector<double> x, DType type) {
  const bool eight = type == DType::q8_0;
  if (type == DType::q4_1) {
    for (std::size_t begin = 0; begin < x.size(); begin += 32) {
      const std::size_t end = std::min(begin + 32, x.size());
      double low = end - begin < 32 ? 0 : x[begin];
      double top = low;
      for (std::size_t d = begin; d < end; ++d) {
        low = std::min(low, x[d]);
        top = std::max(top, x[d]);
      }
      low = static_cast<double>(f16_to_f32(skald::detail::f16_below(static_cast<float>(low))));
      const double scale = static_cast<double>(f16_to_f32(skald::detail::f16_above(static_cast<float>((top - low) / 15))));
      for (std::size_t d = begin; d < end; ++d)
        x[d] = low + scale * std::clamp(scale == 0 ? 0.0 : std::nearbyint((x[d] - low) / scale), 0.0, 15.0);
    }
    return x;
  }
  if (!eight && type != DType::q4_0) {
    for (double& v : x) v = stored_number(v, type);
    return x;
  }
  for (std::size_t begin = 0; begin < x.size(); begin += 32) {
    const std::size_t end = std::min(begin + 32, x.size());
    double extreme = 0;
    for (std::size_t d = begin; d < end; ++d) {
      if (std::abs(x[d]) > std::abs(extreme)) extreme = x[d];
    }
    const double scale = stored_number(eight ? std::abs(extreme) / 127 : extreme / -8, DType::f16);
    for (std::size_t d = begin; d < end; ++d) {
      const double code = scale == 0 ? 0.0 : std::nearbyint(x[d] / scale);
      x[d] = scale * (eight ? std::clamp(code, -127.0, 127.0) : std::clamp(code, -8.0, 7.0));
    }
  }
  return x;
}

/// Several sequences in one pool, in the backend and in the oracle.
class Sequences {
 public:
  Sequences(const Subject& subject, const Shape& shape, std::int32_t count, std::int32_t context, unsigned seed)
      : backend_(*subject.backend),
        shape_(shape),
        context_(context),
        random_(seed),
        layout_{.dtype = shape.dtype,
                .page_tokens = shape.page_tokens,
                .heads = shape.group_heads,
                .head_dim_k = shape.dim_k,
                .head_dim_v = shape.dim_v,
                .values_in_keys = shape.values_in_keys},
        groups_(shape.kv_heads / shape.group_heads),
        lengths_(static_cast<std::size_t>(count), 0),
        keys_(static_cast<std::size_t>(count)),
        values_(static_cast<std::size_t>(count)) {
    const auto per_table = static_cast<std::uint32_t>((context + shape.page_tokens - 1) / shape.page_tokens);
    const auto tables = static_cast<std::uint32_t>(count * groups_);
    std::vector<std::uint32_t> numbers(per_table * tables);
    for (std::uint32_t i = 0; i < numbers.size(); ++i) numbers[i] = i;
    std::shuffle(numbers.begin(), numbers.end(), random_);
    for (std::uint32_t t = 0; t < tables; ++t) {
      pages_.emplace_back(numbers.begin() + t * per_table, numbers.begin() + (t + 1) * per_table);
    }
    pool_ = backend_.allocate(numbers.size() * layout_.page_bytes());
    // What was in a page before must not matter, not even if it is not a number.
    std::vector<std::byte> garbage(pool_.bytes(), std::byte{0xFF});
    backend_.write(pool_.address(), garbage);
  }

  /// Appends `rows[s]` tokens to each sequence and checks what attention makes of them.
  void step(const std::vector<std::int32_t>& rows, const Options& options, double tolerance) {
    std::int32_t tokens = 0;
    for (const std::int32_t n : rows) tokens += n;
    DeviceMatrix q(backend_, tokens, shape_.heads * shape_.dim_k, random_);
    DeviceMatrix k(backend_, tokens, shape_.kv_heads * shape_.dim_k, random_);
    const DeviceMatrix v(backend_, tokens, shape_.kv_heads * shape_.dim_v, random_);
    const DeviceMatrix out(backend_, tokens, shape_.heads * shape_.dim_v);
    const DeviceMatrix q_weight(backend_, 1, shape_.dim_k, random_, 1.0F, 0);
    const DeviceMatrix k_weight(backend_, 1, shape_.dim_k, random_, 1.0F, 0);
    const DeviceMatrix table(backend_, tokens, options.rope_dims, random_);

    std::vector<Segment> segments;
    std::vector<KvTable> tables;
    std::vector<std::vector<std::uint64_t>> masks;
    std::vector<std::vector<std::uint32_t>> tails;
    tails.reserve(rows.size() * static_cast<std::size_t>(groups_));
    const bool stores = options.mask != AttentionMask::none;
    const DeviceMatrix extra(backend_, 3, shape_.heads * (2 * std::max(0, options.bias_reach) + 1), random_, 2.0F, 0);
    std::int32_t begin = 0;
    for (std::size_t s = 0; s < rows.size(); ++s) {
      masks.push_back(options.tree ? random_tree(rows[s]) : std::vector<std::uint64_t>{});
      segments.push_back({.row_begin = begin, .row_count = rows[s]});
      begin += rows[s];
      for (std::int32_t g = 0; g < groups_; ++g) {
        const auto& pages = pages_[s * static_cast<std::size_t>(groups_) + static_cast<std::size_t>(g)];
        const std::int32_t past = options.drop_past ? std::max(0, lengths_[s] - options.window + 1) : 0;
        const std::int32_t dropped = past / shape_.page_tokens;
        tails.emplace_back(pages.begin() + dropped, pages.end());
        tables.push_back({tails.back().data(), lengths_[s], dropped * shape_.page_tokens});
      }
    }
    if (options.tree) {
      for (std::size_t s = 0; s < rows.size(); ++s) segments[s].visible = rows[s] == 0 ? nullptr : masks[s].data();
    }
    const auto count = static_cast<std::int32_t>(segments.size());

    expected_q_ = q.dense();
    expected_k_ = k.dense();
    if (stores) {
      expect_stored(q.dense(), k.dense(), v.dense(), q_weight.dense(), k_weight.dense(), table.dense(), segments,
                    options);
    }
    const std::vector<double> numbers = extra.dense().values;
    const auto third = numbers.size() / 3;
    sinks_.assign(numbers.begin(), numbers.begin() + static_cast<std::ptrdiff_t>(third));
    slopes_.assign(numbers.begin() + static_cast<std::ptrdiff_t>(third),
                   numbers.begin() + static_cast<std::ptrdiff_t>(2 * third));
    bias_.assign(numbers.begin() + static_cast<std::ptrdiff_t>(2 * third), numbers.end());

    const KvLayer kv{.pool = pool_.address(), .layout = layout_, .groups = groups_, .tables = tables.data()};
    std::vector<DeviceMatrix> score_memory;
    std::vector<float*> scores;
    for (std::size_t i = 0; i < tables.size(); ++i) {
      score_memory.emplace_back(backend_, 1, context_, 0);
      score_memory.back().set(std::vector<float>(static_cast<std::size_t>(context_), 0.125F));
      scores.push_back(score_memory.back().matrix().data);
    }
    std::vector<DeviceMatrix> before_memory;
    std::vector<const float*> before;
    for (std::size_t i = 0; options.before && i < tables.size(); ++i) {
      before_memory.emplace_back(backend_, 1, context_, 0);
      before_memory.back().set(std::vector<float>(static_cast<std::size_t>(context_), 0.125F));
      before.push_back(before_memory.back().matrix().data);
      std::vector<float> stale(static_cast<std::size_t>(context_), 0.125F);
      std::fill_n(stale.begin(), tables[i].length + rows[i / static_cast<std::size_t>(groups_)], 99.0F);
      score_memory[i].set(stale);
    }
    const ScoreSink sink{.kind = options.score_kind,
                         .last_rows = options.last_rows,
                         .scores = scores.data(),
                         .before = options.before ? before.data() : nullptr};
    const Norm q_norm{.kind = options.norm, .weight = q_weight.data(), .epsilon = 1e-5F};
    const Norm k_norm{.kind = options.norm, .weight = k_weight.data(), .epsilon = 1e-5F};
    std::vector<Op> ops;
    if (stores) {
      ops.emplace_back(StoreKvOp{.q = q.matrix(),
                                 .k = k.matrix(),
                                 .v = shape_.values_in_keys ? Matrix{} : v.matrix(),
                                 .heads = shape_.heads,
                                 .kv_heads = shape_.kv_heads,
                                 .q_norm = q_norm,
                                 .k_norm = k_norm,
                                 .rope = options.rope,
                                 .rope_dims = options.rope_dims,
                                 .rope_offset = options.rope_offset,
                                 .rope_table = table.matrix(),
                                 .kv = kv,
                                 .segments = segments.data(),
                                 .segment_count = count});
    }
    const float* numbers_at = extra.data();
    ops.emplace_back(AttentionOp{.q = q.matrix(),
                                 .out = out.matrix(),
                                 .heads = shape_.heads,
                                 .kv_heads = shape_.kv_heads,
                                 .scale = 0.3F,
                                 .softcap = options.softcap,
                                 .window = options.window,
                                 .mask = options.mask,
                                 .sinks = options.sinks ? numbers_at : nullptr,
                                 .slopes = options.slopes ? numbers_at + third : nullptr,
                                 .bias = options.bias_reach >= 0 ? numbers_at + 2 * third : nullptr,
                                 .bias_reach = std::max(0, options.bias_reach),
                                 .kv = kv,
                                 .segments = segments.data(),
                                 .segment_count = count,
                                 .sink = options.sink ? &sink : nullptr});
    StreamLimits limits = roomy_limits();
    limits.head_dim = std::max<std::int64_t>(limits.head_dim, shape_.dim_k);
    run(backend_, ops, limits);
    last_out_ = out.floats();
    CHECK(distance(q.dense(), expected_q_) < 1e-5);
    CHECK(distance(k.dense(), expected_k_) < 1e-5);
    check_attention(q.dense(), out.dense(), segments, options, score_memory, tolerance);
    for (std::size_t s = 0; stores && s < rows.size(); ++s) lengths_[s] += rows[s];
  }

  /// What the last step gave.
  [[nodiscard]] const std::vector<float>& last_out() const { return last_out_; }
  [[nodiscard]] const KvPageLayout& layout() const { return layout_; }

  /// Stores `rows` tokens of sequence 0 without queries.
  void store_only(std::int32_t rows) {
    DeviceMatrix k(backend_, rows, shape_.kv_heads * shape_.dim_k, random_);
    const DeviceMatrix v(backend_, rows, shape_.kv_heads * shape_.dim_v, random_);
    const std::vector<Segment> segments{{.row_begin = 0, .row_count = rows}};
    std::vector<KvTable> tables;
    for (std::int32_t g = 0; g < groups_; ++g) {
      tables.push_back({pages_[static_cast<std::size_t>(g)].data(), lengths_[0]});
    }
    expect_stored(Dense(rows, shape_.heads * shape_.dim_k), k.dense(), v.dense(), Dense(1, shape_.dim_k),
                  Dense(1, shape_.dim_k), Dense(rows, 16), segments, Options{});
    const KvLayer kv{.pool = pool_.address(), .layout = layout_, .groups = groups_, .tables = tables.data()};
    run(backend_, {StoreKvOp{.k = k.matrix(),
                             .v = v.matrix(),
                             .heads = shape_.heads,
                             .kv_heads = shape_.kv_heads,
                             .kv = kv,
                             .segments = segments.data(),
                             .segment_count = 1}});
    lengths_[0] += rows;
  }

 private:
  std::vector<std::uint64_t> random_tree(std::int32_t n) {
    const std::int32_t words = (n + 63) / 64;
    std::vector<std::uint64_t> bits(static_cast<std::size_t>(n * words));
    for (std::int32_t i = 0; i < n; ++i) {
      for (std::int32_t j = 0; j <= i; ++j) {
        if (j == i || random_() % 3 == 0)
          bits[static_cast<std::size_t>(i * words + j / 64)] |= std::uint64_t{1} << (j % 64);
      }
    }
    return bits;
  }

  std::vector<double> head_after(const Dense& x, std::int64_t token, std::int32_t head, const Dense& weight,
                                 const Dense& table, const Options& options) const {
    std::vector<double> e(x.values.begin() + token * x.cols + head * shape_.dim_k,
                          x.values.begin() + token * x.cols + (head + 1) * shape_.dim_k);
    e = oracle_norm(std::move(e), options.norm, weight.values, {}, static_cast<double>(1e-5F));
    if (options.rope == RopeKind::none) return e;
    const std::vector<double> before = e;
    const auto half = static_cast<std::size_t>(options.rope_dims / 2);
    for (std::size_t j = 0; j < half; ++j) {
      const auto offset = static_cast<std::size_t>(options.rope_offset);
      const std::size_t a = offset + (options.rope == RopeKind::interleaved ? 2 * j : j);
      const std::size_t b = offset + (options.rope == RopeKind::interleaved ? 2 * j + 1 : j + half);
      const double c = table(token, static_cast<std::int64_t>(2 * j));
      const double s = table(token, static_cast<std::int64_t>(2 * j + 1));
      e[a] = before[a] * c - before[b] * s;
      e[b] = before[a] * s + before[b] * c;
    }
    return e;
  }

  void expect_stored(const Dense& q, const Dense& k, const Dense& v, const Dense& q_weight, const Dense& k_weight,
                     const Dense& table, const std::vector<Segment>& segments, const Options& options) {
    expected_q_ = q;
    expected_k_ = k;
    for (std::size_t s = 0; s < segments.size(); ++s) {
      for (std::int32_t i = 0; i < segments[s].row_count; ++i) {
        const std::int64_t token = segments[s].row_begin + i;
        for (std::int32_t h = 0; h < shape_.heads; ++h) {
          const auto e = head_after(q, token, h, q_weight, table, options);
          std::copy(e.begin(), e.end(), expected_q_.values.begin() + token * q.cols + h * shape_.dim_k);
        }
        std::vector<double> key_row;
        for (std::int32_t h = 0; h < shape_.kv_heads; ++h) {
          const auto e = head_after(k, token, h, k_weight, table, options);
          std::copy(e.begin(), e.end(), expected_k_.values.begin() + token * k.cols + h * shape_.dim_k);
          for (const double x : stored(e, shape_.dtype)) key_row.push_back(x);
        }
        std::vector<double> value_row;
        for (std::int32_t h = 0; h < shape_.kv_heads; ++h) {
          const double* from = &v.values[static_cast<std::size_t>(token * v.cols + h * shape_.dim_v)];
          if (shape_.values_in_keys) from = key_row.data() + std::ptrdiff_t{h} * shape_.dim_k;
          std::vector<double> e(from, from + shape_.dim_v);
          if (!shape_.values_in_keys) e = stored(std::move(e), shape_.dtype);
          value_row.insert(value_row.end(), e.begin(), e.end());
        }
        keys_[s].push_back(key_row);
        values_[s].push_back(value_row);
      }
    }
  }

  void check_attention(const Dense& q, const Dense& out, const std::vector<Segment>& segments, const Options& options,
                       const std::vector<DeviceMatrix>& scores, double tolerance) const {
    Dense expected(out.rows, out.cols);
    for (std::size_t s = 0; s < segments.size(); ++s) {
      Dense score(groups_, context_);
      std::fill(score.values.begin(), score.values.end(), 0.125);
      for (std::int32_t i = 0; options.before && i < segments[s].row_count; ++i)
        for (std::int32_t g = 0; g < groups_; ++g) score(g, lengths_[s] + i) = 0;
      for (std::int32_t i = 0; i < segments[s].row_count; ++i) {
        for (std::int32_t h = 0; h < shape_.heads; ++h) {
          const auto p = probabilities(q, s, segments[s], i, h, options);
          const std::int32_t kv_head = h / (shape_.heads / shape_.kv_heads);
          const bool counts = options.last_rows == 0 || i >= segments[s].row_count - options.last_rows;
          double* const sums = &expected(segments[s].row_begin + i, h * shape_.dim_v);
          for (const auto& [slot, weight] : p) {
            const double* const value = values_[s][static_cast<std::size_t>(slot)].data() + kv_head * shape_.dim_v;
            for (std::int32_t d = 0; d < shape_.dim_v; ++d) sums[d] += weight * value[d];
            double& sum = score(kv_head / shape_.group_heads, slot);
            if (counts) sum = options.score_kind == ScoreKind::sum ? sum + weight : std::max(sum, weight);
          }
        }
      }
      if (!options.sink) continue;
      for (std::int32_t g = 0; g < groups_; ++g) {
        Dense mine(1, context_);
        std::copy_n(score.values.begin() + g * context_, context_, mine.values.begin());
        CHECK(distance(scores[s * static_cast<std::size_t>(groups_) + static_cast<std::size_t>(g)].dense(), mine) <
              tolerance);
      }
    }
    CHECK(distance(out, expected) < tolerance);
  }

  /// The slots that a row sees, each with its probability.
  std::vector<std::pair<std::int32_t, double>> probabilities(const Dense& q, std::size_t s, const Segment& segment, std::int32_t i,
                                                             std::int32_t h, const Options& options) const {
    const std::int32_t own = lengths_[s] + i;
    const std::int32_t kv_head = h / (shape_.heads / shape_.kv_heads);
    std::vector<std::pair<std::int32_t, double>> p;
    double top = -INFINITY;
    const std::int32_t end = options.mask == AttentionMask::causal ? own + 1
                             : options.mask == AttentionMask::full ? lengths_[s] + segment.row_count
                                                                   : lengths_[s];
    const double* const query = &q.values[static_cast<std::size_t>((segment.row_begin + i) * q.cols + h * shape_.dim_k)];
    p.reserve(static_cast<std::size_t>(std::max(0, end)));
    for (std::int32_t slot = 0; slot < end; ++slot) {
      if (options.window > 0 && slot <= own - options.window) continue;
      const std::int32_t j = slot - lengths_[s];
      const std::int32_t words = (segment.row_count + 63) / 64;
      if (segment.visible != nullptr && j >= 0 && ((segment.visible[i * words + j / 64] >> (j % 64)) & 1U) == 0)
        continue;
      double dot = 0;
      const double* const key = keys_[s][static_cast<std::size_t>(slot)].data() + kv_head * shape_.dim_k;
      for (std::int32_t d = 0; d < shape_.dim_k; ++d) dot += query[d] * key[d];
      dot *= static_cast<double>(0.3F);
      if (options.softcap > 0)
        dot = static_cast<double>(options.softcap) * std::tanh(dot / static_cast<double>(options.softcap));
      if (options.slopes) dot += slopes_[static_cast<std::size_t>(h)] * (slot - own);
      if (options.bias_reach >= 0) {
        const std::int32_t reach = options.bias_reach;
        dot += bias_[static_cast<std::size_t>(h * (2 * reach + 1) + std::clamp(slot - own, -reach, reach) + reach)];
      }
      p.emplace_back(slot, dot);
      top = std::max(top, dot);
    }
    double sum = 0;
    if (options.sinks) {
      const double sink = sinks_[static_cast<std::size_t>(h)];
      top = std::max(top, sink);
      sum = std::exp(sink - top);
    }
    for (auto& [slot, x] : p) sum += x = std::exp(x - top);
    for (auto& [slot, x] : p) x /= sum;
    return p;
  }

  BackendInterface& backend_;
  Shape shape_;
  std::int32_t context_;
  std::mt19937 random_;
  KvPageLayout layout_;
  std::int32_t groups_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::vector<std::vector<double>>> keys_;
  std::vector<std::vector<std::vector<double>>> values_;
  std::vector<std::vector<std::uint32_t>> pages_;
  Buffer pool_;
  Dense expected_q_{0, 0};
  Dense expected_k_{0, 0};
  std::vector<double> sinks_, slopes_, bias_;  // of the step
  std::vector<float> last_out_;
};

double tolerance_for(const Shape& shape) {
  // A key that lies between two stored values may round the other way in float than in the oracle's double.
  switch (shape.dtype) {
    case DType::f32: return 1e-5;
    case DType::f16: return 5e-4;
    case DType::q4_0: return 4e-2;  // a step is an eighth of the block's largest
    default: return 4e-3;
  }
}

}  // namespace

TEST_CASE("backend.attention: equals the definition for every KV format, head grouping and page size", "[backend]") {
  for (const Subject& subject : subjects()) {
    unsigned seed = 100;
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1}) {
      for (const std::int32_t page_tokens : {16, 64, 256}) {
        for (const Shape& base :
             {Shape{.heads = 4, .kv_heads = 4, .group_heads = 2}, Shape{.heads = 6, .kv_heads = 2, .group_heads = 1},
              Shape{.heads = 5, .kv_heads = 1, .group_heads = 1, .dim_k = 20, .dim_v = 12},
              Shape{.heads = 8, .kv_heads = 4, .group_heads = 4, .dim_k = 64, .dim_v = 64}}) {
          Shape shape = base;
          shape.dtype = dtype;
          shape.page_tokens = page_tokens;
          INFO(subject.name << ", " << to_string(dtype) << ", pages of " << page_tokens << ", " << shape.heads << "/"
                            << shape.kv_heads);
          Sequences sequences(subject, shape, 3, 640, ++seed);
          const Options options{.rope_dims = 4};
          sequences.step({1, 7, 40}, options, tolerance_for(shape));
          sequences.step({1, 1, 1}, options, tolerance_for(shape));
          sequences.step({0, 270, 3}, options, tolerance_for(shape));
          sequences.step({5, 1, 1}, options, tolerance_for(shape));
        }
      }
    }
  }
}

TEST_CASE("backend.attention: heeds norm, rotation, window, soft cap and visibility in any combination", "[backend]") {
  for (const Subject& subject : subjects()) {
    unsigned seed = 200;
    const Shape shape{.heads = 4, .kv_heads = 2, .group_heads = 1, .dim_k = 32, .dim_v = 16};
    for (const NormKind norm : {NormKind::none, NormKind::rms, NormKind::layer}) {
      for (const RopeKind rope : {RopeKind::none, RopeKind::interleaved, RopeKind::half}) {
        for (const std::int32_t window : {0, 1, 20}) {
          for (const float softcap : {0.0F, 5.0F}) {
            for (const bool tree : {false, true}) {
              INFO(subject.name << ", norm " << static_cast<int>(norm) << ", rope " << static_cast<int>(rope)
                                << ", window " << window << ", softcap " << softcap << ", tree " << tree);
              Sequences sequences(subject, shape, 2, 400, ++seed);
              Options options{.norm = norm, .rope = rope, .rope_dims = seed % 2 == 0 ? 32 : 12};
              options.window = window;
              options.softcap = softcap;
              sequences.step({30, 250}, options, 1e-5);
              options.tree = tree;
              sequences.step({9, 70}, options, 1e-5);
              sequences.step({1, 1}, options, 1e-5);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("backend.attention: masks, sinks, slopes and position biases in any combination", "[backend]") {
  for (const Subject& subject : subjects()) {
    unsigned seed = 400;
    const Shape shape{.heads = 6, .kv_heads = 2, .group_heads = 1, .dim_k = 24, .dim_v = 16};
    for (const AttentionMask mask : {AttentionMask::causal, AttentionMask::full, AttentionMask::none}) {
      for (const bool sinks : {false, true}) {
        for (const bool slopes : {false, true}) {
          for (const std::int32_t bias_reach : {-1, 0, 7, 300}) {
            for (const std::int32_t window : {0, 25}) {
              if (mask == AttentionMask::none && window > 0) continue;
              INFO(subject.name << ", mask " << static_cast<int>(mask) << ", sinks " << sinks << ", slopes " << slopes
                                << ", bias " << bias_reach << ", window " << window);
              Sequences sequences(subject, shape, 2, 400, ++seed);
              Options options{.rope_dims = 4, .window = window, .sink = seed % 3 == 0};
              options.sinks = sinks;
              options.slopes = slopes;
              options.bias_reach = bias_reach;
              sequences.step({3, 270}, options, slopes ? 1e-4 : 2e-5);
              options.mask = mask;
              options.softcap = seed % 2 == 0 ? 3.0F : 0.0F;
              // Slopes make logits of some hundreds: their last place counts.
              sequences.step({40, 9}, options, slopes ? 1e-4 : 2e-5);
              sequences.step({1, 1}, options, slopes ? 1e-4 : 2e-5);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("backend.attention: rows that see nothing give zeros", "[backend]") {
  for (const Subject& subject : subjects()) {
    for (const bool sinks : {false, true}) {
      INFO(subject.name << ", sinks " << sinks);
      Sequences sequences(subject, Shape{}, 2, 400, 7);
      Options options{};
      options.sinks = sinks;
      options.mask = AttentionMask::none;
      sequences.step({2, 1}, options, 1e-5);
      CHECK(sequences.last_out() == std::vector<float>(sequences.last_out().size(), 0.0F));
    }
  }
}

TEST_CASE("backend.attention: reads what was stored without queries (cross-attention)", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    Sequences sequences(subject, Shape{.heads = 4, .kv_heads = 4}, 1, 700, 8);
    sequences.store_only(33);
    sequences.store_only(490);
    Options options{};
    options.mask = AttentionMask::none;
    sequences.step({5}, options, 1e-5);
    sequences.step({1}, options, 1e-5);
  }
}

TEST_CASE("backend.attention: without the slots before a window gives the same bits as with them", "[backend]") {
  for (const Subject& subject : subjects()) {
    unsigned seed = 500;
    for (const std::int32_t page_tokens : {16, 64}) {
      for (const std::int32_t window : {1, 40, 300}) {
        for (const bool full : {false, true}) {
          INFO(subject.name << ", pages of " << page_tokens << ", window " << window << ", full " << full);
          const Shape shape{.heads = 4, .kv_heads = 2, .page_tokens = page_tokens, .dtype = DType::f16};
          Options options{.window = window};
          options.mask = full ? AttentionMask::full : AttentionMask::causal;
          options.sink = seed % 2 == 0;
          Sequences with(subject, shape, 2, 1200, ++seed);
          Sequences without(subject, shape, 2, 1200, seed);
          for (const auto& rows : std::vector<std::vector<std::int32_t>>{{7, 400}, {330, 9}, {1, 1}, {3, 300}}) {
            options.drop_past = false;
            with.step(rows, options, 5e-4);
            options.drop_past = true;
            without.step(rows, options, 5e-4);
            CHECK(same_bits(with.last_out(), without.last_out()));
          }
        }
      }
    }
  }
}

TEST_CASE("backend.attention: values that are the leading elements of the keys", "[backend]") {
  for (const Subject& subject : subjects()) {
    unsigned seed = 600;
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1}) {
      for (const Shape& base :
           {Shape{.heads = 16, .kv_heads = 1, .dim_k = 72, .dim_v = 64},
            Shape{.heads = 3, .kv_heads = 1, .dim_k = 40, .dim_v = 33, .page_tokens = 64},
            Shape{.heads = 4, .kv_heads = 2, .group_heads = 2, .dim_k = 16, .dim_v = 16},
            Shape{.heads = 20, .kv_heads = 1, .dim_k = 576, .dim_v = 512, .page_tokens = 64}}) {
        Shape shape = base;
        shape.dtype = dtype;
        shape.values_in_keys = true;
        INFO(subject.name << ", " << to_string(dtype) << ", " << shape.dim_k << "/" << shape.dim_v);
        Sequences sequences(subject, shape, 2, 400, ++seed);
        CHECK(sequences.layout().head_bytes() ==
              static_cast<std::size_t>(shape.page_tokens) * sequences.layout().vector_bytes(shape.dim_k));
        Options options{.rope = RopeKind::interleaved, .rope_dims = 6, .sink = true};
        options.rope_offset = shape.dim_k - 8;
        // The definition takes long for wide heads: one format of them goes beyond a chunk of 256 slots.
        const int rows = shape.dim_k > 500 && dtype != DType::f16 ? 20 : 270;
        sequences.step({5, rows}, options, tolerance_for(shape));
        sequences.step({1, 1}, options, tolerance_for(shape));
        options.window = rows > 60 ? 60 : 12;
        sequences.step({17, 3}, options, tolerance_for(shape));
      }
    }
  }
}

TEST_CASE("backend.attention: refuses masks, windows and page tables that contradict each other", "[backend]") {
  for (const Subject& subject : subjects()) {
    INFO(subject.name);
    BackendInterface& backend = *subject.backend;
    const DeviceMatrix q(backend, 2, 16);
    const DeviceMatrix out(backend, 2, 16);
    std::vector<std::uint32_t> pages{0, 1, 2, 3};
    KvTable table{.pages = pages.data(), .length = 40};
    Segment segment{.row_begin = 0, .row_count = 2};
    const KvPageLayout layout{.dtype = DType::f32, .page_tokens = 16, .heads = 1, .head_dim_k = 16, .head_dim_v = 16};
    const Buffer pool = backend.allocate(4 * layout.page_bytes());
    AttentionOp op{.q = q.matrix(), .out = out.matrix(), .heads = 1, .kv_heads = 1};
    op.kv = {.pool = pool.address(), .layout = layout, .groups = 1, .tables = &table};
    op.segments = &segment;
    op.segment_count = 1;
    const auto refused = [&](const AttentionOp& bad) {
      if (backend.refuses(bad)) return true;
      const auto stream = backend.new_stream(roomy_limits());
      stream->enqueue(bad);
      try {
        stream->synchronize();
      } catch (const UsageError&) {
        return true;
      }
      return false;
    };
    REQUIRE_FALSE(refused(op));
    const std::uint64_t visible[] = {1, 3};
    segment.visible = visible;
    CHECK_FALSE(refused(op));
    op.mask = AttentionMask::full;
    CHECK(refused(op));
    segment.visible = nullptr;
    CHECK_FALSE(refused(op));
    op.mask = static_cast<AttentionMask>(3);
    CHECK(refused(op));
    op.mask = AttentionMask::none;
    CHECK_FALSE(refused(op));
    op.window = 8;
    CHECK(refused(op));
    op.mask = AttentionMask::causal;
    CHECK_FALSE(refused(op));
    table.first = 32;  // of slots [33, 41]
    CHECK_FALSE(refused(op));
    op.window = 9;
    CHECK_FALSE(refused(op));
    op.window = 10;  // slot 31 is gone
    CHECK(refused(op));
    op.window = 0;
    CHECK(refused(op));
    op.window = 8;
    for (const std::int32_t first : {-16, 8, 48}) {
      table.first = first;
      CHECK(refused(op));
    }
    table.first = 0;
    op.bias_reach = -1;
    CHECK(refused(op));
    op.bias_reach = 0;
    op.kv.layout.values_in_keys = true;
    CHECK_FALSE(refused(op));
    op.kv.layout.head_dim_k = 8;
    op.q.cols = 8;
    CHECK(refused(op));
  }
}

TEST_CASE("backend.attention: hands probabilities to a score sink", "[backend]") {
  for (const Subject& subject : subjects()) {
    unsigned seed = 300;
    for (const ScoreKind kind : {ScoreKind::sum, ScoreKind::max}) {
      for (const std::int32_t last_rows : {0, 1, 5}) {
        for (const std::int32_t group_heads : {1, 2, 4}) {
          for (const std::int32_t window : {0, 33}) {
            INFO(subject.name << ", kind " << static_cast<int>(kind) << ", last " << last_rows << ", group of "
                              << group_heads << ", window " << window);
            const Shape shape{.heads = 8, .kv_heads = 4, .group_heads = group_heads};
            Sequences sequences(subject, shape, 2, 600, ++seed);
            const Options options{.window = window,
                                  .softcap = seed % 2 == 0 ? 0.0F : 4.0F,
                                  .sink = true,
                                  .before = seed % 3 == 0,
                                  .score_kind = kind,
                                  .last_rows = last_rows};
            sequences.step({3, 300}, options, 2e-5);
            sequences.step({1, 1}, options, 2e-5);
            sequences.step({80, 12}, options, 2e-5);
          }
        }
      }
    }
  }
}
