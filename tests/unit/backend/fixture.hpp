#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

#include <skald/backend/backend.hpp>
#include <skald/core/error.hpp>
#include <skald/core/half.hpp>
#include <skald/quant/row_codec.hpp>
#include <skald/simd/isa.hpp>

namespace skald_test {

using namespace skald;

/// A backend under test.
struct Subject {
  std::string name;
  AnyBackend backend;
  /// True if linear products take activations in the format's own integer form.
  bool integer_activations = false;
  /// True if products with bf16 weights round activations to bf16.
  [[nodiscard]] bool bf16_activations() const { return backend->info().isa == "avx512bf16"; }
};

/// The instruction sets of this machine. Under the thread sanitizer the best one alone: it slows tests down so much that all
/// of them would take an hour, and threads meet in the code around the kernels, which is the same for all.
std::vector<Isa> tested_isas();

/// The reference backend and the cpu backend on every instruction set.
std::vector<Subject> subjects();

/// Row-major numbers in double, as the oracle sees them.
struct Dense {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values{};
  Dense(std::int64_t r, std::int64_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
  double& operator()(std::int64_t r, std::int64_t c) { return values[static_cast<std::size_t>(r * cols + c)]; }
  double operator()(std::int64_t r, std::int64_t c) const { return values[static_cast<std::size_t>(r * cols + c)]; }
};

inline float uniform(std::mt19937& random, float low = -1.0F, float high = 1.0F) {
  return std::uniform_real_distribution<float>(low, high)(random);
}

/// A matrix in backend memory with its copy for the oracle. Rows are padded; the padding must stay untouched.
class DeviceMatrix {
 public:
  static constexpr float padding = -7777.0F;

  DeviceMatrix(BackendInterface& backend, std::int64_t rows, std::int64_t cols, std::int64_t pad = 3)
      : backend_(backend),
        rows_(rows),
        cols_(cols),
        stride_(cols + pad),
        buffer_(backend.allocate(std::max<std::size_t>(1, static_cast<std::size_t>(rows * stride_) * sizeof(float)))) {
    std::vector<float> values(static_cast<std::size_t>(rows_ * stride_), padding);
    put(values);
  }
  DeviceMatrix(BackendInterface& backend, std::int64_t rows, std::int64_t cols, std::mt19937& random,
               float range = 1.0F, std::int64_t pad = 3)
      : DeviceMatrix(backend, rows, cols, pad) {
    std::vector<float> values(static_cast<std::size_t>(rows_ * stride_), padding);
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < cols_; ++c) {
        values[static_cast<std::size_t>(r * stride_ + c)] = uniform(random, -range, range);
      }
    }
    put(values);
  }

  [[nodiscard]] Matrix matrix() const { return {reinterpret_cast<float*>(buffer_.address()), rows_, cols_, stride_}; }
  /// Rows [first, first + count).
  [[nodiscard]] Matrix rows(std::int64_t first, std::int64_t count) const {
    Matrix m = matrix();
    m.data += first * stride_;
    m.rows = count;
    return m;
  }
  [[nodiscard]] const float* data() const { return matrix().data; }

  [[nodiscard]] std::vector<float> raw() const {
    std::vector<float> values(static_cast<std::size_t>(rows_ * stride_));
    backend_.read(std::as_writable_bytes(std::span(values)), buffer_.address());
    return values;
  }
  /// The rows without padding, as floats.
  [[nodiscard]] std::vector<float> floats() const {
    const std::vector<float> values = raw();
    std::vector<float> result;
    bool untouched = true;
    for (std::int64_t r = 0; r < rows_; ++r) {
      const auto begin = values.begin() + r * stride_;
      result.insert(result.end(), begin, begin + cols_);
      untouched = untouched && std::all_of(begin + cols_, begin + stride_, [](float v) { return v == padding; });
    }
    REQUIRE(untouched);
    return result;
  }
  [[nodiscard]] Dense dense() const {
    Dense result(rows_, cols_);
    const std::vector<float> values = floats();
    std::copy(values.begin(), values.end(), result.values.begin());
    return result;
  }
  void set(const std::vector<float>& dense) {
    std::vector<float> values(static_cast<std::size_t>(rows_ * stride_), padding);
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < cols_; ++c) {
        values[static_cast<std::size_t>(r * stride_ + c)] = dense[static_cast<std::size_t>(r * cols_ + c)];
      }
    }
    put(values);
  }

 private:
  void put(const std::vector<float>& values) { backend_.write(buffer_.address(), std::as_bytes(std::span(values))); }
  BackendInterface& backend_;
  std::int64_t rows_;
  std::int64_t cols_;
  std::int64_t stride_;
  Buffer buffer_;
};

/// Rows of a weight in file format with their decoded values.
struct FileWeight {
  DType type;
  std::int64_t rows;
  std::int64_t cols;
  std::vector<std::byte> bytes{};
  Dense values;

  FileWeight(DType t, std::int64_t r, std::int64_t c, std::mt19937& random) : type(t), rows(r), cols(c), values(r, c) {
    const std::size_t row = row_bytes(t, static_cast<std::size_t>(c));
    bytes.resize(row * static_cast<std::size_t>(r));
    std::vector<float> x(static_cast<std::size_t>(c));
    for (std::int64_t i = 0; i < r; ++i) {
      for (float& v : x) v = uniform(random);
      const std::span<std::byte> out(bytes.data() + static_cast<std::size_t>(i) * row, row);
      encode_row(t, x, out);
      decode_row(t, out, x);
      for (std::int64_t k = 0; k < c; ++k) values(i, k) = static_cast<double>(x[static_cast<std::size_t>(k)]);
    }
  }
  [[nodiscard]] std::shared_ptr<const Weight> make(BackendInterface& backend,
                                                   WeightLayout layout = WeightLayout::packed,
                                                   bool mapped = true) const {
    const auto read = [this](std::int64_t first, std::int64_t count, std::span<std::byte> out) {
      const std::size_t row = row_bytes(type, static_cast<std::size_t>(cols));
      REQUIRE(out.size() == row * static_cast<std::size_t>(count));
      std::memcpy(out.data(), bytes.data() + row * static_cast<std::size_t>(first), out.size());
    };
    return backend.make_weight({.type = type,
                                .rows = rows,
                                .cols = cols,
                                .mapped = mapped ? std::span<const std::byte>(bytes) : std::span<const std::byte>{},
                                .read = read},
                               layout, {});
  }
};

inline StreamLimits roomy_limits() {
  return {.tokens = 512, .max_cols = 4096, .heads = 32, .head_dim = 128, .context = 4096, .segments = 16};
}

inline void run(BackendInterface& backend, const std::vector<Op>& ops, const StreamLimits& limits = roomy_limits()) {
  const auto stream = backend.new_stream(limits);
  for (const Op& op : ops) {
    INFO(backend.refuses(op).value_or(""));
    REQUIRE_FALSE(backend.refuses(op).has_value());
    stream->enqueue(op);
  }
  stream->synchronize();
}

/// Largest |a - b| / (1 + |b|).
inline double distance(const Dense& a, const Dense& b) {
  REQUIRE(a.values.size() == b.values.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    if (!std::isfinite(a.values[i])) return INFINITY;
    worst = std::max(worst, std::abs(a.values[i] - b.values[i]) / (1 + std::abs(b.values[i])));
  }
  return worst;
}

/// True if the two hold the same bits.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// The oracle's own formulas, in double.
std::vector<double> oracle_norm(std::vector<double> x, NormKind kind, const std::vector<double>& weight,
                                const std::vector<double>& bias, double epsilon);
double oracle_activation(double x, Activation kind);

}  // namespace skald_test
