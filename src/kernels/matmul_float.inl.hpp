#pragma once

// Products with f32, f16 and bf16 weights: panels [k][16] of elements, activations [k][columns] of floats, one chain of
// acc = fma(w, x, acc) over ascending k per output.

#include "kernels/kernel_table.hpp"
#include "kernels/matmul_acts.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

struct ElementF32 {
  static constexpr int size = 4;
  SKALD_INLINE static f32x16 load16(const std::byte* p) noexcept { return load(reinterpret_cast<const float*>(p)); }
};
struct ElementF16 {
  static constexpr int size = 2;
  SKALD_INLINE static f32x16 load16(const std::byte* p) noexcept {
    return load_f16(reinterpret_cast<const std::uint16_t*>(p));
  }
};
struct ElementBF16 {
  static constexpr int size = 2;
  SKALD_INLINE static f32x16 load16(const std::byte* p) noexcept {
    return load_bf16(reinterpret_cast<const std::uint16_t*>(p));
  }
};

#if SKALD_VEC_REGISTERS == 1
inline constexpr int float_columns = 12;
/// Panels that are computed together with n columns: enough chains to hide the latency of fma, few enough registers.
constexpr int float_panels(int n) noexcept { return n <= 4 ? 4 : 2; }
#elif SKALD_VEC_REGISTERS == 2
inline constexpr int float_columns = 6;
constexpr int float_panels(int n) noexcept { return n == 1 ? 4 : n == 2 ? 2 : 1; }
#else
inline constexpr int float_columns = 4;
constexpr int float_panels(int) noexcept { return 1; }
#endif

template <class E>
std::size_t float_panel_bytes(std::int64_t cols) noexcept {
  return static_cast<std::size_t>(cols) * 16 * E::size;
}

template <class E>
void float_pack(const std::byte* const* rows, std::int64_t cols, std::byte* panel) noexcept {
  for (int r = 0; r < 16; ++r)
    for (std::int64_t k = 0; k < cols; ++k) {
      std::byte* to = panel + (16 * k + r) * E::size;
      if (rows[r]) __builtin_memcpy(to, rows[r] + k * E::size, E::size);
      else __builtin_memset(to, 0, E::size);
    }
}

template <class E>
void float_unpack_row(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept {
  for (std::int64_t k = 0; k < cols; ++k) {
    float values[16];
    store(values, E::load16(panel + 16 * k * E::size));
    out[k] = values[row];
  }
}

template <class E, int P, int N>
void float_chunk(const std::byte* panels, std::int64_t cols, const float* x, std::ptrdiff_t width, float* out,
                 std::ptrdiff_t out_stride, std::int64_t rows) noexcept {
  const auto bytes_per_panel = static_cast<std::ptrdiff_t>(float_panel_bytes<E>(cols));
  f32x16 acc[P * N];
  SKALD_UNROLL for (int i = 0; i < P * N; ++i) acc[i] = zero_f32();
  const std::byte* w = panels;
  for (std::int64_t k = 0; k < cols; ++k, w += 16 * E::size, x += width) {
    f32x16 weights[P];
    SKALD_UNROLL for (int p = 0; p < P; ++p) {
      weights[p] = E::load16(w + p * bytes_per_panel);
      prefetch(w + p * bytes_per_panel + 1536);
    }
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      const f32x16 value = set1(x[c]);
      SKALD_UNROLL for (int p = 0; p < P; ++p) acc[p * N + c] = fma(weights[p], value, acc[p * N + c]);
    }
  }
  SKALD_UNROLL for (int p = 0; p < P; ++p) {
    const std::int64_t left = rows - 16 * p;
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      float* to = out + c * out_stride + 16 * p;
      if (left >= 16) store(to, acc[p * N + c]);
      else if (left > 0) store_n(to, acc[p * N + c], static_cast<int>(left));
    }
  }
}

template <class E, int N = float_columns>
SKALD_INLINE void float_dispatch(int n, int panel_count, const std::byte* panels, std::int64_t cols, const float* x,
                                 std::ptrdiff_t width, float* out, std::ptrdiff_t out_stride, std::int64_t rows) noexcept {
  if constexpr (N > 0) {
    if (n != N)
      return float_dispatch<E, N - 1>(n, panel_count, panels, cols, x, width, out, out_stride, rows);
    constexpr int most = float_panels(N);
    const auto bytes_per_panel = static_cast<std::ptrdiff_t>(float_panel_bytes<E>(cols));
    int p = 0;
    for (; p + most <= panel_count; p += most)
      float_chunk<E, most, N>(panels + p * bytes_per_panel, cols, x, width, out + 16 * p, out_stride, rows - 16 * p);
    if constexpr (most > 1)
      for (; p < panel_count; ++p)
        float_chunk<E, 1, N>(panels + p * bytes_per_panel, cols, x, width, out + 16 * p, out_stride, rows - 16 * p);
  }
}

inline std::size_t no_scratch(std::int64_t, std::int64_t) noexcept { return 0; }

template <class E>
void float_multiply(const std::byte* panels, std::int64_t row_count, std::int64_t cols, MatmulColumns columns,
                    float* out, std::int64_t out_stride, std::byte*) noexcept {
  const std::int64_t panel_count = (row_count + 15) / 16;
  const std::size_t bytes_per_panel = float_panel_bytes<E>(cols);
  const std::size_t full_bytes = ActsF32::group_bytes(cols, group_columns);
  for (std::int64_t p = 0; p < panel_count; p += 4) {
    const int now = panel_count - p < 4 ? static_cast<int>(panel_count - p) : 4;
    for (std::int64_t c = columns.begin; c < columns.end;) {
      const std::int64_t group = c / group_columns;
      const int width = width_of_group(columns.count, group), inside = static_cast<int>(c % group_columns);
      std::int64_t n = columns.end - c;
      if (n > width - inside) n = width - inside;
      if (n > float_columns) n = float_columns;
      const auto* x = reinterpret_cast<const float*>(columns.acts + static_cast<std::size_t>(group) * full_bytes);
      float_dispatch<E>(static_cast<int>(n), now, panels + static_cast<std::size_t>(p) * bytes_per_panel, cols,
                        x + inside, width, out + c * out_stride + 16 * p, out_stride, row_count - 16 * p);
      c += n;
    }
  }
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
