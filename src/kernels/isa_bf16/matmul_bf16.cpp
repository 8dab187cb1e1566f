// Products with bf16 weights by bf16 dot products: panels [k / 2][16][2] of elements, activations rounded to bf16 (to
// nearest even) in [k / 2][columns][2]; one chain of acc = dot2(acc, w, x) over ascending pairs of k per output. An odd
// last column is paired with zeros.
#include "kernels/matmul_acts.inl.hpp"
#include "kernels/kernel_table.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

constexpr std::int64_t pairs_of(std::int64_t cols) noexcept { return (cols + 1) / 2; }

struct ActsBF16 {
  static constexpr int id = 3;
  static constexpr std::size_t group_bytes(std::int64_t cols, int width) noexcept {
    return (static_cast<std::size_t>(pairs_of(cols)) * static_cast<std::size_t>(width) * 4 + 63) / 64 * 64;
  }
};

SKALD_INLINE void prepare_token(ActsBF16*, const float* x, std::int64_t cols, std::byte* group, int width,
                                int column) noexcept {
  std::byte* to = group + 4 * column;
  std::int64_t k = 0;
  for (; k + 32 <= cols; k += 32) {
    alignas(64) std::uint32_t pairs[16];
    store_bf16_pairs(pairs, load(x + k), load(x + k + 16));
    for (int i = 0; i < 16; ++i) __builtin_memcpy(to + (k / 2 + i) * 4 * width, pairs + i, 4);
  }
  if (k == cols) return;
  const int left = static_cast<int>(cols - k);
  alignas(64) std::uint32_t pairs[16];
  store_bf16_pairs(pairs, load_n(x + k, left < 16 ? left : 16), left > 16 ? load_n(x + k + 16, left - 16) : zero_f32());
  for (int i = 0; i < (left + 1) / 2; ++i) __builtin_memcpy(to + (k / 2 + i) * 4 * width, pairs + i, 4);
}

std::size_t panel_bytes(std::int64_t cols) noexcept { return static_cast<std::size_t>(pairs_of(cols)) * 64; }

void pack(const std::byte* const* rows, std::int64_t cols, std::byte* panel) noexcept {
  for (int r = 0; r < 16; ++r) {
    const std::byte* row = rows[r];
    std::byte* to = panel + 4 * r;
    for (std::int64_t k = 0; k < cols; k += 2, to += 64) {
      __builtin_memset(to, 0, 4);
      if (row) __builtin_memcpy(to, row + 2 * k, cols - k >= 2 ? 4 : 2);
    }
  }
}

void unpack_row(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept {
  for (std::int64_t k = 0; k < cols; ++k) {
    std::uint16_t element;
    __builtin_memcpy(&element, panel + (k / 2) * 64 + 4 * row + 2 * (k % 2), 2);
    const std::uint32_t wide = static_cast<std::uint32_t>(element) << 16;
    __builtin_memcpy(out + k, &wide, 4);
  }
}

constexpr int panels_together(int n) noexcept { return n <= 4 ? 4 : 2; }

template <int P, int N>
void tile(const std::byte* panels, std::int64_t cols, const std::byte* x, std::ptrdiff_t width, float* out,
          std::ptrdiff_t out_stride, std::int64_t rows) noexcept {
  const auto bytes_per_panel = static_cast<std::ptrdiff_t>(panel_bytes(cols));
  f32x16 acc[P * N];
  SKALD_UNROLL for (int i = 0; i < P * N; ++i) acc[i] = zero_f32();
  const std::byte* w = panels;
  for (std::int64_t pair = pairs_of(cols); pair > 0; --pair, w += 64, x += 4 * width) {
    u8x64 weights[P];
    SKALD_UNROLL for (int p = 0; p < P; ++p) {
      weights[p] = load_bytes(w + p * bytes_per_panel);
      prefetch(w + p * bytes_per_panel + 2048);
    }
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      const u8x64 value = broadcast32(x + 4 * c);
      SKALD_UNROLL for (int p = 0; p < P; ++p) {
        acc[p * N + c] = dot2_bf16(acc[p * N + c], weights[p], value);
      }
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

template <int N = group_columns>
SKALD_INLINE void dispatch(int n, int panel_count, const std::byte* panels, std::int64_t cols, const std::byte* x,
                           std::ptrdiff_t width, float* out, std::ptrdiff_t out_stride, std::int64_t rows) noexcept {
  if constexpr (N > 0) {
    if (n != N) return dispatch<N - 1>(n, panel_count, panels, cols, x, width, out, out_stride, rows);
    constexpr int most = panels_together(N);
    const auto bytes_per_panel = static_cast<std::ptrdiff_t>(panel_bytes(cols));
    int p = 0;
    for (; p + most <= panel_count; p += most)
      tile<most, N>(panels + p * bytes_per_panel, cols, x, width, out + 16 * p, out_stride, rows - 16 * p);
    for (; p < panel_count; ++p)
      tile<1, N>(panels + p * bytes_per_panel, cols, x, width, out + 16 * p, out_stride, rows - 16 * p);
  }
}

std::size_t no_scratch(std::int64_t, std::int64_t) noexcept { return 0; }

void multiply(const std::byte* panels, std::int64_t row_count, std::int64_t cols, const MatmulColumns& columns, float* out,
              std::int64_t out_stride, std::byte*) noexcept {
  const std::int64_t panel_count = (row_count + 15) / 16;
  const std::size_t bytes_per_panel = panel_bytes(cols);
  const std::size_t full_bytes = ActsBF16::group_bytes(cols, group_columns);
  for (std::int64_t p = 0; p < panel_count; p += 4) {
    const int now = panel_count - p < 4 ? static_cast<int>(panel_count - p) : 4;
    for (std::int64_t c = columns.begin; c < columns.end;) {
      const std::int64_t group = c / group_columns;
      const int width = width_of_group(columns.count, group), inside = static_cast<int>(c % group_columns);
      std::int64_t n = columns.end - c;
      if (n > width - inside) n = width - inside;
      dispatch(static_cast<int>(n), now, panels + static_cast<std::size_t>(p) * bytes_per_panel, cols,
               columns.acts + static_cast<std::size_t>(group) * full_bytes + 4 * inside, width,
               out + c * out_stride + 16 * p, out_stride, row_count - 16 * p);
      c += n;
    }
  }
}

constexpr MatmulKernel all_kernels[] = {
    {DType::bf16, group_columns, &panel_bytes, &pack, &unpack_row, &acts_bytes<ActsBF16>, &prepare_acts<ActsBF16>,
     &no_scratch, &multiply, ActsBF16::id},
};

}  // namespace

const MatmulKernel* matmul_kernels(int* count) noexcept {
  *count = static_cast<int>(sizeof(all_kernels) / sizeof(all_kernels[0]));
  return all_kernels;
}

}  // namespace skald::inline v0::kernels::SKALD_ISA
