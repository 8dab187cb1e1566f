#pragma once

// Products of the K formats with many columns: the codes of 32 k of two panels are unpacked into sixteen registers and
// stay there while columns pass by, two or three at a time, with their sums in the first-level cache. Nothing is
// expanded in memory, and weights are read as they are packed. Every output is the same sequence of operations as in
// matmul_blocks.inl.hpp. (Formats with blocks of 32 would load and store a sum for every eight products; tiles of
// expanded panels are faster.)

#include "kernels/matmul_drivers.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

/// Groups of columns that pass by a block: unpacking is shared, and their sums must fit into the first-level cache.
inline constexpr int passing_groups = 4;
inline constexpr int pair = 2;  ///< panels
/// Columns at a time: sums that wait for each other less, within what registers hold beside sixteen of codes.
template <class F>
inline constexpr int passing_columns = F::sub_blocks == 16 ? 2 : 3;
/// Columns from which on this is used; both ways give the same bits.
template <class F>
inline constexpr std::int64_t many_from = F::bits == 4 ? 96 : 48;

using Codes = u8x64[pair][8];

/// The codes of groups [8 r, 8 r + 8) of a block of two panels.
template <class F>
SKALD_INLINE void take_codes(const std::byte* block, std::ptrdiff_t panel_stride, int r, Codes& codes) noexcept {
  unroll<pair>([&](auto p) SKALD_INLINE_LAMBDA {
    unroll<8 / F::run_groups>([&](auto i) SKALD_INLINE_LAMBDA {
      u8x64 run[F::run_groups];
      F::run(block + p * panel_stride, r * (8 / F::run_groups) + i, run);
      unroll<F::run_groups>([&](auto k) SKALD_INLINE_LAMBDA {
        codes[p][i * F::run_groups + k] = bytes(in_order(words(run[k])));  // in a register from here on
      });
    });
  });
}

/// sum[(column * pair + panel) * S + i] += products of the i-th of S parts of 32 k. x: codes of the first column.
template <int N, int S>
SKALD_INLINE void add_products(const Codes& codes, const std::byte* x, i32x16 (&sum)[N * pair * S]) noexcept {
  unroll<8>([&](auto j) SKALD_INLINE_LAMBDA {
    unroll<N>([&](auto c) SKALD_INLINE_LAMBDA {
      const u8x64 four = broadcast4(x + 4 * (j * group_columns + c));
      unroll<pair>([&](auto p) SKALD_INLINE_LAMBDA {
        i32x16& s = sum[(c * pair + p) * S + j.value * S / 8];
        s = dot4(s, codes[p][j], four);
      });
    });
  });
}

/// Sums of 32 of a block's 256 k by N columns, in S parts: [(column * pair + panel) * S + part]. negated_sums: of the first
/// column's first part.
template <class F, int N, int S>
SKALD_INLINE void sum_part(const Codes& codes, const std::byte* x, const std::int32_t* negated_sums,
                           i32x16 (&sum)[N * pair * S]) noexcept {
  unroll<N * S>([&](auto i) SKALD_INLINE_LAMBDA {
    constexpr int c = i.value / S, part = i.value % S;
    i32x16 start = zero_i32();
    if constexpr (offsets_start_sums<F>)
      start = shl<F::offset_shift>(set1(negated_sums[part * group_columns + c]));
    unroll<pair>([&](auto p) SKALD_INLINE_LAMBDA { sum[(c * pair + p) * S + part] = start; });
  });
  add_products<N, S>(codes, x, sum);
}

/// 32 of a block's 256 k by the columns of a group: sums times multipliers to `totals` ([column][panel][16]), added to
/// what is there unless First.
template <class F, bool First>
SKALD_INLINE void pass_part(const Codes& codes, const i32x16 (&factor)[pair * (F::sub_blocks / 8)], const std::byte* x,
                            const std::int32_t* negated_sums, std::int32_t* totals) noexcept {
  constexpr int n = passing_columns<F>, subs = F::sub_blocks / 8;
  for (int begin = 0; begin < group_columns; begin += n, totals += 16 * n * pair) {
    i32x16 sum[n * pair * subs];
    sum_part<F, n, subs>(codes, x + 4 * begin, negated_sums + begin, sum);
    unroll<n * pair>([&](auto i) SKALD_INLINE_LAMBDA {
      i32x16 total = sum[i * subs] * factor[i.value % pair * subs];
      if constexpr (subs == 2) total = total + sum[i * subs + 1] * factor[i.value % pair * subs + 1];
      if constexpr (!First) total = total + load(totals + 16 * i);
      store(totals + 16 * i, total);
    });
  }
}

/// The columns of a group by the first 32 of 64 k, to be joined with the others'.
template <class F>
SKALD_INLINE void pass_former(const Codes& codes, const std::byte* x, const std::int32_t* negated_sums,
                              std::int32_t* formers) noexcept {
  constexpr int n = passing_columns<F>;
  for (int begin = 0; begin < group_columns; begin += n, formers += 16 * n * pair) {
    i32x16 sum[n * pair];
    sum_part<F, n, 1>(codes, x + 4 * begin, negated_sums + begin, sum);
    unroll<n * pair>([&](auto i) SKALD_INLINE_LAMBDA { store(formers + 16 * i, sum[i]); });
  }
}
/// The same as pass_part for two sub-blocks, of which the former was passed already (8 sub-blocks in a block) or not (16).
template <class F, bool First>
SKALD_INLINE void pass_joined(const Codes& codes, const i32x16 (&factor)[pair], const std::byte* x,
                              const std::int32_t* negated_sums, [[maybe_unused]] const std::int32_t* formers,
                              std::int32_t* totals) noexcept {
  constexpr int n = passing_columns<F>, subs = F::sub_blocks / 8;
  for (int begin = 0; begin < group_columns; begin += n) {
    i32x16 sum[n * pair * subs];
    sum_part<F, n, subs>(codes, x + 4 * begin, negated_sums + begin, sum);
    unroll<n * pair>([&](auto i) SKALD_INLINE_LAMBDA {
      const int at = 16 * (begin * pair + i);
      i32x16 both;
      if constexpr (subs == 1) both = joined(load(formers + at), sum[i]);
      else both = joined(sum[2 * i], sum[2 * i + 1]);
      store(totals + at, dot2(First ? zero_i32() : load(totals + at), factor[i.value % pair], both));
    });
  }
}

/// Folds the totals of a block of 256 k of one group.
template <class F>
SKALD_INLINE void fold_group(const std::byte* block, std::ptrdiff_t panel_stride, const Acts256& acts,
                             const std::int32_t* totals, float* acc) noexcept {
  f32x16 scale[pair], minimum[pair];
  i32x16 pairs[pair * 4];
  unroll<pair>([&](auto p) SKALD_INLINE_LAMBDA {
    const std::byte* at = block + p * panel_stride;
    scale[p] = F::scale(at);
    if constexpr (F::has_minimum) {
      minimum[p] = F::minimum(at);
      unroll<4>([&](auto i) SKALD_INLINE_LAMBDA { pairs[p * 4 + i] = F::minimum_pair(at, i); });
    }
  });
  for (int c = 0; c < group_columns; ++c) {
    const f32x16 token = set1(acts.scales[c]);
    unroll<pair>([&](auto p) SKALD_INLINE_LAMBDA {
      const int at = 16 * (c * pair + p);
      f32x16 result = fma(to_f32(load(totals + at)), scale[p] * token, load(acc + at));
      if constexpr (F::has_minimum) {
        i32x16 minimums = zero_i32();
        unroll<4>([&](auto i) SKALD_INLINE_LAMBDA {
          minimums = dot2(minimums, pairs[p * 4 + i], set1(acts.pairs32[i * group_columns + c]));
        });
        result = fnma(to_f32(minimums), minimum[p] * token, result);
      }
      store(acc + at, result);
    });
  }
}

/// One block of 256 k by `count` groups. `acts` are those of the first group at this block.
template <class F>
SKALD_INLINE void pass_block(const std::byte* block, std::ptrdiff_t panel_stride, const Acts256* acts, int count,
                             float* acc) noexcept {
  constexpr int subs = F::sub_blocks / 8, of_group = 16 * pair * group_columns;
  alignas(64) std::int32_t totals[passing_groups * of_group];
  alignas(64) std::int32_t formers[joins_sums<F> && subs == 1 ? passing_groups * of_group : 1];
  [[maybe_unused]] bool narrow[passing_groups] = {};
  if constexpr (joins_sums<F>)
    for (int g = 0; g < count; ++g) narrow[g] = all_narrow(acts[g].wide, group_columns);
  unroll<8>([&](auto r) SKALD_INLINE_LAMBDA {
    Codes codes;
    take_codes<F>(block, panel_stride, r, codes);
    i32x16 factor[pair * subs], factors[pair];
    unroll<pair * subs>([&](auto i) SKALD_INLINE_LAMBDA {
      factor[i] = F::sub_scale(block + i.value / subs * panel_stride, r * subs + i.value % subs);
    });
    if constexpr (joins_sums<F>)
      unroll<pair>([&](auto p) SKALD_INLINE_LAMBDA {
        if constexpr (subs == 2) factors[p] = joined(factor[2 * p], factor[2 * p + 1]);
        else if constexpr (r.value % 2 == 1)
          factors[p] = joined(F::sub_scale(block + p * panel_stride, r - 1), factor[p]);
      });
    for (int g = 0; g < count; ++g) {
      const std::byte* x = acts[g].codes + 32 * r * group_columns;
      const std::int32_t* sums = acts[g].negated_sums16 + r * subs * group_columns;
      std::int32_t* to = totals + g * of_group;
      if constexpr (joins_sums<F>)
        if (narrow[g]) {
          if constexpr (subs == 2) pass_joined<F, r.value == 0>(codes, factors, x, sums, nullptr, to);
          else if constexpr (r.value % 2 == 0) pass_former<F>(codes, x, sums, formers + g * of_group);
          else pass_joined<F, r.value == 1>(codes, factors, x, sums, formers + g * of_group, to);
          continue;
        }
      pass_part<F, r.value == 0>(codes, factor, x, sums, to);
    }
  });
  for (int g = 0; g < count; ++g)
    fold_group<F>(block, panel_stride, acts[g], totals + g * of_group, acc + g * of_group);
}

/// Two panels by the columns of `count` groups. `ahead_bytes` from `ahead` on are fetched meanwhile.
template <class F>
void pass_groups(const std::byte* panel, std::ptrdiff_t panel_stride, std::int64_t cols, const std::byte* groups,
                 int count, const Output& out, const std::byte* ahead, std::size_t ahead_bytes) noexcept {
  using A = Acts256;
  alignas(64) float acc[passing_groups * group_columns * pair * 16];
  __builtin_memset(acc, 0, static_cast<std::size_t>(count * group_columns * pair * 16) * sizeof(float));
  const std::size_t group_bytes = A::group_bytes(cols, group_columns);
  A acts[passing_groups] = {{groups, cols, group_columns, 0},
                            {groups + (count > 1 ? group_bytes : 0), cols, group_columns, 0},
                            {groups + (count > 2 ? 2 * group_bytes : 0), cols, group_columns, 0},
                            {groups + (count > 3 ? 3 * group_bytes : 0), cols, group_columns, 0}};
  const std::int64_t blocks = cols / 256;
  const std::size_t ahead_step = ahead_bytes / static_cast<std::size_t>(blocks) + 1;
  const std::byte *next = ahead, *until = ahead;
  for (std::int64_t b = 0; b < blocks; ++b, panel += F::panel_block_bytes) {
    for (until += ahead_step; next < until; next += 64) prefetch_later(next);
    pass_block<F>(panel, panel_stride, acts, count, acc);
    for (int g = 0; g < count; ++g) acts[g].next();
    // Outputs are as far apart as columns, and a store that waits for memory holds up all that come after it.
    if (b == blocks / 2)
      for (int c = 0; c < count * group_columns; ++c)
        for (int p = 0; p < pair; ++p)
          asm volatile("prefetchw %0" : : "m"(*reinterpret_cast<const char*>(out.data + c * out.stride + 16 * p)));
  }
  for (int c = 0; c < count * group_columns; ++c)
    for (int p = 0; p < pair; ++p) write_rows(out, p, c, load(acc + 16 * (c * pair + p)));
}

/// `few` computes the same for any shape; here it does what is left of pairs of panels and of groups of columns.
template <class F>
void multiply_many(decltype(MatmulKernel::multiply) few, const std::byte* panels, std::int64_t row_count,
                   std::int64_t cols, const MatmulColumns& columns, float* out, std::int64_t out_stride,
                   std::byte* scratch) noexcept {
  if (columns.end - columns.begin < many_from<F> || row_count <= 16) {
    few(panels, row_count, cols, columns, out, out_stride, scratch);
    return;
  }
  const std::size_t bytes_per_panel = panel_bytes<F>(cols);
  const std::size_t group_bytes = Acts256::group_bytes(cols, group_columns);
  const std::int64_t whole_end = columns.end / group_columns * group_columns, step = passing_groups * group_columns;
  const std::int64_t panel_count = (row_count + 15) / 16, paired = panel_count / pair * pair;
  for (std::int64_t p = 0; p < paired; p += pair) {
    const std::byte* panel = panels + static_cast<std::size_t>(p) * bytes_per_panel;
    // What comes next, here or in the caller's next part, is fetched meanwhile.
    const std::byte* next = panel + pair * bytes_per_panel;
    if (p + pair >= panel_count && columns.next != nullptr) next = columns.next;
    const std::size_t ahead = pair * bytes_per_panel * step / static_cast<std::size_t>(whole_end - columns.begin);
    for (std::int64_t c = columns.begin; c < whole_end; c += step, next += ahead) {
      const std::int64_t left = (whole_end - c) / group_columns;
      pass_groups<F>(panel, static_cast<std::ptrdiff_t>(bytes_per_panel), cols,
                     columns.acts + static_cast<std::size_t>(c / group_columns) * group_bytes,
                     left < passing_groups ? static_cast<int>(left) : passing_groups,
                     Output{out + c * out_stride + 16 * p, out_stride, row_count - 16 * p}, next, ahead);
    }
  }
  const std::int64_t rows = paired < panel_count ? 16 * paired : row_count;
  if (whole_end < columns.end) {
    const MatmulColumns rest{columns.acts, columns.count, whole_end, columns.end, columns.next};
    few(panels, rows, cols, rest, out, out_stride, scratch);
  }
  if (rows < row_count)
    few(panels + static_cast<std::size_t>(paired) * bytes_per_panel, row_count - rows, cols, columns, out + rows,
        out_stride, scratch);
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
