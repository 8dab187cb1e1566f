// Row-wise elementary functions. Every element takes the same operations in full vectors and in tails, so that a
// result does not depend on where in a row, or in which piece of a row, its element lies. Sums use sixteen lanes in
// four strands, joined by one fixed tree.

#include "kernels/kernel_table.hpp"
#include "simd/vec.hpp"

namespace skald::inline v0 {
namespace kernels {
namespace SKALD_ISA {
namespace {

/// Values of skald::Activation; the backend asserts that they agree.
enum Kind {
  kind_none,
  kind_silu,
  kind_gelu_tanh,
  kind_gelu_erf,
  kind_relu,
  kind_relu_squared,
  kind_tanh,
  kind_sigmoid
};

#include "kernels/vector_math.inl.hpp"

template <int K>
SKALD_INLINE f32x16 act(f32x16 x) noexcept {
  if constexpr (K == kind_silu) {
    return silu(x);
  } else if constexpr (K == kind_gelu_tanh) {
    const f32x16 cube = x * x * x;
    const f32x16 inner = set1(0.797884561F) * fma(set1(0.044715F), cube, x);
    return set1(0.5F) * x * (set1(1.0F) + vtanh(inner));
  } else if constexpr (K == kind_gelu_erf) {
    float values[lanes];
    store(values, x);
    for (float& v : values) v = 0.5F * v * __builtin_erfcf(v * -0.707106781F);
    return load(values);
  } else if constexpr (K == kind_relu) {
    return max(zero_f32(), x);
  } else if constexpr (K == kind_relu_squared) {
    const f32x16 y = max(zero_f32(), x);
    return y * y;
  } else if constexpr (K == kind_tanh) {
    return vtanh(x);
  } else if constexpr (K == kind_sigmoid) {
    return sigmoid(x);
  } else {
    return x;
  }
}

template <int K>
void activate_as(const float* x, std::int64_t n, float* y) noexcept {
  for_each_vector(n, [&](std::int64_t i, int count)
                         SKALD_INLINE_LAMBDA { store_some(y + i, act<K>(load_some(x + i, count)), count); });
}
template <int K>
void gated_as(const float* gate, const float* up, std::int64_t n, float* y) noexcept {
  for_each_vector(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    store_some(y + i, act<K>(load_some(gate + i, count)) * load_some(up + i, count), count);
  });
}

void activate(const float* x, int kind, std::int64_t n, float* y) noexcept {
  switch (kind) {
    case kind_silu: return activate_as<kind_silu>(x, n, y);
    case kind_gelu_tanh: return activate_as<kind_gelu_tanh>(x, n, y);
    case kind_gelu_erf: return activate_as<kind_gelu_erf>(x, n, y);
    case kind_relu: return activate_as<kind_relu>(x, n, y);
    case kind_relu_squared: return activate_as<kind_relu_squared>(x, n, y);
    case kind_tanh: return activate_as<kind_tanh>(x, n, y);
    case kind_sigmoid: return activate_as<kind_sigmoid>(x, n, y);
    default: return activate_as<kind_none>(x, n, y);
  }
}
void gated(const float* gate, const float* up, int kind, std::int64_t n, float* y) noexcept {
  switch (kind) {
    case kind_silu: return gated_as<kind_silu>(gate, up, n, y);
    case kind_gelu_tanh: return gated_as<kind_gelu_tanh>(gate, up, n, y);
    case kind_gelu_erf: return gated_as<kind_gelu_erf>(gate, up, n, y);
    case kind_relu: return gated_as<kind_relu>(gate, up, n, y);
    case kind_relu_squared: return gated_as<kind_relu_squared>(gate, up, n, y);
    case kind_tanh: return gated_as<kind_tanh>(gate, up, n, y);
    case kind_sigmoid: return gated_as<kind_sigmoid>(gate, up, n, y);
    default: return gated_as<kind_none>(gate, up, n, y);
  }
}

void rms_norm(const float* x, const float* weight, float epsilon, std::int64_t n, float* y) noexcept {
  const float squares = sum(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    const f32x16 v = load_some(x + i, count);
    return v * v;
  });
  const f32x16 factor = set1(1.0F / __builtin_sqrtf(squares / static_cast<float>(n) + epsilon));
  for_each_vector(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    f32x16 v = load_some(x + i, count) * factor;
    if (weight != nullptr) v = v * load_some(weight + i, count);
    store_some(y + i, v, count);
  });
}

void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, std::int64_t n,
                float* y) noexcept {
  const float total = sum(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA { return load_some(x + i, count); });
  const f32x16 mean = set1(total / static_cast<float>(n));
  const f32x16 ones = set1(1.0F);
  float ones_memory[lanes];
  store(ones_memory, ones);
  const float squares = sum(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    const f32x16 v = (load_some(x + i, count) - mean) * load_some(ones_memory, count);
    return v * v;
  });
  const f32x16 factor = set1(1.0F / __builtin_sqrtf(squares / static_cast<float>(n) + epsilon));
  for_each_vector(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    f32x16 v = (load_some(x + i, count) - mean) * factor;
    if (weight != nullptr) v = v * load_some(weight + i, count);
    if (bias != nullptr) v = v + load_some(bias + i, count);
    store_some(y + i, v, count);
  });
}

void add(const float* x, float scale, std::int64_t n, float* y) noexcept {
  const f32x16 factor = set1(scale);
  for_each_vector(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    store_some(y + i, load_some(y + i, count) + factor * load_some(x + i, count), count);
  });
}

void softcap(const float* x, float scale, float cap, std::int64_t n, float* y) noexcept {
  const f32x16 factor = set1(scale);
  const f32x16 caps = set1(cap);
  if (cap == 0.0F) {
    for_each_vector(n, [&](std::int64_t i, int count)
                           SKALD_INLINE_LAMBDA { store_some(y + i, factor * load_some(x + i, count), count); });
    return;
  }
  for_each_vector(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    store_some(y + i, caps * vtanh(factor * load_some(x + i, count) / caps), count);
  });
}

void clamped_gate(const float* gate, const float* up, float alpha, float limit, std::int64_t n, float* y) noexcept {
  const f32x16 one = set1(1.0F);
  const f32x16 top = set1(limit);
  const f32x16 bottom = set1(-limit);
  const f32x16 slope = set1(-alpha);
  for_each_vector(n, [&](std::int64_t i, int count) SKALD_INLINE_LAMBDA {
    // These keep a NaN in their second argument.
    const f32x16 g = min(top, load_some(gate + i, count));
    const f32x16 u = max(bottom, min(top, load_some(up + i, count)));
    store_some(y + i, g / (one + vexp(slope * g)) * (u + one), count);
  });
}

/// Products and differences are rounded one by one (no contraction), so it does not matter how the compiler groups
/// the elements into vectors.
void rope(float* x, const float* table, int kind, std::int64_t dims) noexcept {
  if (kind == 1) {  // interleaved
    for (std::int64_t j = 0; j < dims; j += 2) {
      const float a = x[j];
      const float b = x[j + 1];
      x[j] = a * table[j] - b * table[j + 1];
      x[j + 1] = a * table[j + 1] + b * table[j];
    }
    return;
  }
  const std::int64_t half = dims / 2;
  for (std::int64_t j = 0; j < half; ++j) {
    const float a = x[j];
    const float b = x[j + half];
    x[j] = a * table[2 * j] - b * table[2 * j + 1];
    x[j + half] = a * table[2 * j + 1] + b * table[2 * j];
  }
}

/// Rows whose products fit in the registers.
inline constexpr int rows_at_once = SKALD_VEC_REGISTERS == 1 ? 8 : SKALD_VEC_REGISTERS == 2 ? 4 : 2;

void compare_keys(const float* rows, std::int64_t tiles, const float* keys, std::int64_t dims, const float* penalties,
                  std::int32_t first, float* best, std::int32_t* slots) noexcept {
  static constexpr std::int32_t counting[lanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  constexpr int width = RowKernels::compared_rows;
  f32x16 squares = zero_f32();
  for (std::int64_t d = 0; d < dims; ++d) squares = fma(load(keys + lanes * d), load(keys + lanes * d), squares);
  const f32x16 scales = set1(1.0F) / sqrt(squares + set1(1e-30F));
  const f32x16 penalty = load(penalties);
  const i32x16 mine = load(counting) + set1(first);
  for (std::int64_t tile = 0; tile < tiles; ++tile, rows += width * dims) {
    for (int from = 0; from < width; from += rows_at_once) {
      f32x16 sums[rows_at_once];
      for (auto& sum : sums) sum = zero_f32();
      const float* x = rows + from;
      for (std::int64_t d = 0; d < dims; ++d, x += width) {
        const f32x16 key = load(keys + lanes * d);
        for (int i = 0; i < rows_at_once; ++i) sums[i] = fma(set1(x[i]), key, sums[i]);
      }
      for (int i = 0; i < rows_at_once; ++i, best += lanes, slots += lanes) {
        const f32x16 similarity = fma(sums[i], scales, penalty);
        const auto better = greater(similarity, load(best));
        store(best, select(better, similarity, load(best)));
        store(slots, select(better, mine, load(slots)));
      }
    }
  }
}

constexpr RowKernels table{rms_norm, layer_norm, activate, gated, add, softcap, clamped_gate, rope, compare_keys};

}  // namespace

const RowKernels* row_kernels() noexcept { return &table; }

}  // namespace SKALD_ISA
}  // namespace kernels
}  // namespace skald::inline v0
