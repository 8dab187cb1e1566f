#pragma once

// Loops around the block kernels: few columns straight from the packed panels, many columns from expanded panels.

#include "kernels/kernel_table.hpp"
#include "kernels/matmul_blocks.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

/// How far ahead of its reads the direct path prefetches. One sequential stream: processors whose second-level prefetcher
/// follows streams lose half of their bandwidth when several panels are read in turns.
inline constexpr std::ptrdiff_t prefetch_distance = 6144;

#if SKALD_VEC_REGISTERS == 1
inline constexpr int direct_columns = 12, tile_panels = 2;
/// Integer sums and what they are folded into (floats, or integers of the K formats) stay in registers.
template <int BlockK>
inline constexpr int tile_columns = 6;
#elif SKALD_VEC_REGISTERS == 2
inline constexpr int direct_columns = 4, tile_panels = 1;
template <int>
inline constexpr int tile_columns = 4;
#else
inline constexpr int direct_columns = 4, tile_panels = 0;  // no expanded path
template <int>
inline constexpr int tile_columns = 4;
#endif
/// Columns from which on panels are expanded first. The result does not depend on it. Expanding waits for memory, which
/// unpacking again for each group of columns does not; where products are one instruction and unpacking takes few, it
/// costs no more than reading expanded codes. Bytes need no expanding at all.
#if SKALD_VEC_REGISTERS == 1 && !defined(SKALD_ISA_avx512)
template <class F>
inline constexpr std::int64_t expand_from = F::block_k == 32 && F::bits == 8   ? INT64_MAX
                                            : F::block_k == 32 || F::bits == 4 ? 192
                                                                               : 48;
#else
template <class F>
inline constexpr std::int64_t expand_from = 24;
#endif

template <class F>
inline constexpr bool expands = tile_panels > 0 && expand_from<F> != INT64_MAX;

/// Where a chunk of columns goes.
struct Output {
  float* data;  ///< row 0 of the first panel, first column of the chunk
  std::ptrdiff_t stride;
  std::int64_t rows;  ///< rows from there on
};

SKALD_INLINE void write_rows(const Output& out, int panel, int column, f32x16 value) noexcept {
  float* to = out.data + column * out.stride + 16 * panel;
  const std::int64_t left = out.rows - 16 * panel;
  if (left >= 16) store(to, value);
  else if (left > 0) store_n(to, value, static_cast<int>(left));
}

/// Acts of the format: its block size decides.
template <int BlockK>
struct ActsOf;
template <>
struct ActsOf<32> {
  using type = Acts32;
};
template <>
struct ActsOf<256> {
  using type = Acts256;
};

/// What a walk over a panel's blocks fetches meanwhile, in steps of one block.
struct Ahead {
  const std::byte* at;        ///< with the first block
  std::ptrdiff_t step;        ///< from block to block
  std::ptrdiff_t afterwards;  ///< added near the panel's end, where what is read then does not follow
};

/// Walks the blocks of a panel.
template <class F>
struct PanelWalk {
  const std::byte* block;
  std::int64_t left;  ///< blocks
  const std::byte* later;
  std::ptrdiff_t step, afterwards;

  SKALD_INLINE PanelWalk(const std::byte* panel, std::int64_t cols, const std::byte* ahead_at, std::ptrdiff_t ahead_step,
                         std::ptrdiff_t ahead_afterwards) noexcept
      : block(panel), left(cols / F::block_k), later(ahead_at), step(ahead_step), afterwards(ahead_afterwards) {}
  SKALD_INLINE const std::byte* ahead() const noexcept {
    constexpr std::int64_t reach = (prefetch_distance + F::panel_block_bytes - 1) / F::panel_block_bytes;
    return settled(later + (left > reach ? 0 : afterwards));
  }
  SKALD_INLINE void advance() noexcept {
    block += F::panel_block_bytes;
    later += step;
    --left;
  }
};

/// One packed panel by N columns, from `column` on, of a group of Width (0: `width`). Activations are found here, and what
/// to fetch comes as numbers: a structure that is handed on in memory is read in wider pieces than it was written in, which
/// waits until all outputs before have reached the cache.
template <class F, int N, int Width, bool Joined = false>
void direct_chunk(const std::byte* panel, std::int64_t cols, const std::byte* group, int width, int column,
                  const Output& out, const std::byte* ahead, std::ptrdiff_t step, std::ptrdiff_t afterwards) noexcept {
  typename ActsOf<F::block_k>::type acts(group, cols, width, column);
  PanelWalk<F> walk(panel, cols, ahead, step, afterwards);
  if constexpr (HasRuns<F> && SKALD_VEC_REGISTERS <= 2) {
    f32x16 acc[N];
    SKALD_UNROLL for (int c = 0; c < N; ++c) acc[c] = zero_f32();
    if constexpr (Width > 0) acts.width = Width;
    for (; walk.left > 0; walk.advance(), acts.next())
      if constexpr (Joined) fold_runs<F, 1, N, Width, true>(walk.block, 0, acts, acc, walk.ahead());
      else fold_runs<F, 1, N, Width>(walk.block, 0, acts, acc, walk.ahead());
    SKALD_UNROLL for (int c = 0; c < N; ++c) write_rows(out, 0, c, acc[c]);
  } else {
    alignas(64) float acc[N * 16];
    __builtin_memset(acc, 0, sizeof(acc));
    for (; walk.left > 0; walk.advance(), acts.next())
      fold_block<F, 1, N>(walk.block, 0, acts, acc, walk.ahead());
    for (int c = 0; c < N; ++c) write_rows(out, 0, c, load(acc + 16 * c));
  }
}

template <class F>
using DirectChunk = void(const std::byte*, std::int64_t, const std::byte*, int, int, const Output&, const std::byte*,
                         std::ptrdiff_t, std::ptrdiff_t) noexcept;

/// Columns that an instance takes at once from a group of `width`, of which n are left.
struct DirectShape {
  int columns;
  bool whole;  ///< the group has just as many
};
SKALD_INLINE DirectShape direct_shape(std::int64_t n, int width) noexcept {
  const int most = n < direct_columns ? static_cast<int>(n) : direct_columns;
  if (most == 12 || most <= 4) return {most, most == width};
  if (most < 8 && most == width) return {most, true};
  if (most >= 8) return {8, width == 8};
  return {4, false};
}

/// For how many columns the sums of two sub-blocks are joined: for fewer, reading weights takes longer than multiplying; for
/// more, there are not registers enough.
inline constexpr int least_joined = 5, most_joined = 8;

/// Computes the columns of `shape`; narrow: none is wide in any block.
template <class F>
SKALD_INLINE void direct_dispatch(DirectShape shape, [[maybe_unused]] bool narrow, const std::byte* panel,
                                  std::int64_t cols, const std::byte* group, int width, int column, const Output& out,
                                  const Ahead& ahead) noexcept {
  DirectChunk<F>* chunk = nullptr;
  if constexpr (direct_columns >= 12) {
    if (shape.columns == 12) chunk = direct_chunk<F, 12, 12>;
    if (shape.columns == 8) chunk = shape.whole ? direct_chunk<F, 8, 8> : direct_chunk<F, 8, 0>;
    if (shape.columns == 7) chunk = direct_chunk<F, 7, 7>;
    if (shape.columns == 6) chunk = direct_chunk<F, 6, 6>;
    if (shape.columns == 5) chunk = direct_chunk<F, 5, 5>;
  }
  if constexpr (joins_sums<F>) {
    if (narrow) {
      if (shape.columns == 8) chunk = shape.whole ? direct_chunk<F, 8, 8, true> : direct_chunk<F, 8, 0, true>;
      if (shape.columns == 7) chunk = direct_chunk<F, 7, 7, true>;
      if (shape.columns == 6) chunk = direct_chunk<F, 6, 6, true>;
      if (shape.columns == 5) chunk = direct_chunk<F, 5, 5, true>;
    }
  }
  if (shape.columns == 4) chunk = shape.whole ? direct_chunk<F, 4, 4> : direct_chunk<F, 4, 0>;
  if (shape.columns == 3) chunk = shape.whole ? direct_chunk<F, 3, 3> : direct_chunk<F, 3, 0>;
  if (shape.columns == 2) chunk = shape.whole ? direct_chunk<F, 2, 2> : direct_chunk<F, 2, 0>;
  if (shape.columns == 1) chunk = shape.whole ? direct_chunk<F, 1, 1> : direct_chunk<F, 1, 0>;
  chunk(panel, cols, group, width, column, out, ahead.at, ahead.step, ahead.afterwards);
}

/// P panels by the twelve columns of a group from expanded panels.
template <class F, int P>
void tile_group(const std::byte* expanded, std::ptrdiff_t panel_stride, std::int64_t cols, const std::byte* group,
                const Output& out) noexcept {
  using E = Expanded<F>;
  constexpr int n = tile_columns<F::block_k>;
  for (int c0 = 0; c0 < group_columns; c0 += n) {
    typename ActsOf<F::block_k>::type acts(group, cols, group_columns, c0);
    acts.width = group_columns;  // a constant in the code of the block
    if constexpr (F::block_k == 32 && SKALD_VEC_REGISTERS == 1) {
      f32x16 acc[P * n];
      SKALD_UNROLL for (int i = 0; i < P * n; ++i) acc[i] = zero_f32();
      for (std::int64_t b = 0; b < cols / F::block_k; ++b, acts.next())
        fold_runs<E, P, n, group_columns>(expanded + b * E::panel_block_bytes, panel_stride, acts, acc, nullptr);
      SKALD_UNROLL for (int p = 0; p < P; ++p) {
        SKALD_UNROLL for (int c = 0; c < n; ++c) write_rows(out, p, c0 + c, acc[p * n + c]);
      }
    } else {
      alignas(64) float acc[P * n * 16];
      __builtin_memset(acc, 0, sizeof(acc));
      for (std::int64_t b = 0; b < cols / F::block_k; ++b, acts.next()) {
        acts.width = group_columns;
        fold_block<E, P, n>(expanded + b * E::panel_block_bytes, panel_stride, acts, acc, nullptr);
      }
      for (int p = 0; p < P; ++p)
        for (int c = 0; c < n; ++c) write_rows(out, p, c0 + c, load(acc + 16 * (p * n + c)));
    }
  }
}

template <class F>
std::size_t scratch_bytes(std::int64_t cols, std::int64_t count) noexcept {
  if (!expands<F> || count < expand_from<F>) return 0;
  return static_cast<std::size_t>(tile_panels) * static_cast<std::size_t>(cols / F::block_k) *
         Expanded<F>::panel_block_bytes;
}

/// Which chunks of columns have no wide block.
template <class F>
class NarrowChunks {
 public:
  SKALD_INLINE bool operator[](int chunk) const noexcept { return chunk < 64 && (narrow_ >> chunk & 1) != 0; }
  /// Looks at `count` columns from `column` on of a group of `width`.
  SKALD_INLINE void look([[maybe_unused]] int chunk, [[maybe_unused]] const std::byte* group,
                         [[maybe_unused]] std::int64_t cols, [[maybe_unused]] int width, [[maybe_unused]] int column,
                         [[maybe_unused]] int count) noexcept {
    if constexpr (joins_sums<F>) {
      if (chunk >= 64 || count < least_joined || count > most_joined) return;
      const Acts256 acts(group, cols, width, column);
      bool narrow = true;
      if (count == width) narrow = all_narrow(acts.wide, cols / 256 * width);
      else
        for (std::int64_t b = 0; b < cols / 256; ++b) narrow = narrow && all_narrow(acts.wide + b * width, count);
      if (narrow) narrow_ |= std::uint64_t{1} << chunk;
    }
  }

 private:
  std::uint64_t narrow_ = 0;
};

/// Columns from `begin` on without expansion.
template <class F>
void multiply_direct(const std::byte* panels, std::int64_t cols, const MatmulColumns& columns, std::int64_t begin,
                     const Output& out) noexcept {
  using A = typename ActsOf<F::block_k>::type;
  const std::int64_t panel_count = (out.rows + 15) / 16;
  const std::size_t bytes_per_panel = panel_bytes<F>(cols), full_bytes = A::group_bytes(cols, group_columns);
  const std::int64_t all = columns.end - begin;
  NarrowChunks<F> narrow;
  for (std::int64_t p = 0; p < panel_count; ++p) {
    const std::byte* panel = panels + static_cast<std::size_t>(p) * bytes_per_panel;
    const std::byte* behind = panel + bytes_per_panel;
    const std::byte* next = p + 1 < panel_count || columns.next == nullptr ? behind : columns.next;
    int chunk = 0;
    for (std::int64_t c = begin; c < columns.end; ++chunk) {
      const std::int64_t group = c / group_columns;
      const int width = width_of_group(columns.count, group), inside = static_cast<int>(c % group_columns);
      std::int64_t n = columns.end - c;
      if (n > width - inside) n = width - inside;
      const DirectShape shape = direct_shape(n, width);
      // A panel that is read once fetches what follows in memory. If it is read again for more columns, each time a part
      // of the next panel is fetched, so that memory works all the time.
      Ahead ahead{panel + prefetch_distance, F::panel_block_bytes, next - behind};
      if (shape.columns < all)
        ahead = {next + static_cast<std::ptrdiff_t>(bytes_per_panel) * (c - begin) / all,
                 F::panel_block_bytes * shape.columns / all, 0};
      const Output to{out.data + c * out.stride + 16 * p, out.stride, out.rows - 16 * p};
      const std::byte* acts = columns.acts + static_cast<std::size_t>(group) * full_bytes;
      if (p == 0) narrow.look(chunk, acts, cols, width, inside, shape.columns);
      direct_dispatch<F>(shape, narrow[chunk], panel, cols, acts, width, inside, to, ahead);
      c += shape.columns;
    }
  }
}

template <class F>
void multiply(const std::byte* panels, std::int64_t row_count, std::int64_t cols, const MatmulColumns& columns, float* out,
              std::int64_t out_stride, std::byte* scratch) noexcept {
  using A = typename ActsOf<F::block_k>::type;
  std::int64_t direct_begin = columns.begin;
  if constexpr (expands<F>) {
    if (columns.end - columns.begin >= expand_from<F>) {
      // Whole groups of twelve; what is left goes the direct way.
      const std::int64_t tiled_end = columns.end / group_columns * group_columns;
      direct_begin = tiled_end;
      const std::size_t bytes_per_panel = panel_bytes<F>(cols), full_bytes = A::group_bytes(cols, group_columns);
      const std::ptrdiff_t expanded_bytes = cols / F::block_k * Expanded<F>::panel_block_bytes;
      for (std::int64_t row = 0; row < row_count; row += 16 * tile_panels) {
        const int now = row_count - row > 16 ? tile_panels : 1;
        for (int p = 0; p < now; ++p)
          Expanded<F>::expand(panels + static_cast<std::size_t>(row / 16 + p) * bytes_per_panel, cols,
                              scratch + p * expanded_bytes);
        // The panels that come next, here or in the caller's next part, are fetched meanwhile, a piece with each group.
        const std::byte* next = panels + static_cast<std::size_t>(row / 16 + now) * bytes_per_panel;
        const std::byte* const next_end = next + static_cast<std::size_t>(now) * bytes_per_panel;
        const std::size_t piece = static_cast<std::size_t>(next_end - next) * group_columns /
                                      static_cast<std::size_t>(tiled_end - columns.begin) + 64;
        for (std::int64_t c = columns.begin; c < tiled_end; c += group_columns) {
          const std::byte* group = columns.acts + static_cast<std::size_t>(c / group_columns) * full_bytes;
          for (const std::byte* end = next + piece; next < end && next < next_end; next += 64) prefetch_later(next);
          const Output to{out + c * out_stride + row, out_stride, row_count - row};
          if (now == tile_panels) tile_group<F, tile_panels>(scratch, expanded_bytes, cols, group, to);
          else tile_group<F, 1>(scratch, expanded_bytes, cols, group, to);
        }
      }
    }
  }
  if (direct_begin < columns.end)
    multiply_direct<F>(panels, cols, columns, direct_begin, Output{out, out_stride, row_count});
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
