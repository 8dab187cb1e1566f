#pragma once

// Products of the formats below four and a half bits with 256 elements per block. A panel block of sixteen rows is first
// taken apart into a scratch of a few KiB that stays in the first-level cache: scales as floats, multipliers of the
// sub-blocks, one 64-byte line of unsigned 8-bit codes for each four k. Then every column multiplies with that. For many
// columns whole panels are taken apart first. Either way the folds are those of matmul_blocks.inl.hpp for blocks of 256, so
// an output's bits depend on nothing but its row and column; and memory is read as the file's bytes.
//
// The weight is code - offset, the offset is subtracted through the sums of the activations.

#include "kernels/kernel_table.hpp"
#include "kernels/matmul_acts.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

/// Taken-apart block: lines of 64 bytes.
template <int Subs, bool Minimum>
struct ApartLayout {
  static constexpr int subs = Subs;  ///< sub-blocks with a multiplier of their own: 8 or 16
  static constexpr bool has_minimum = Minimum;
  static constexpr int sub_line = Minimum ? 2 : 1, pairs = Subs / 2, pair_line = sub_line + Subs;
  static constexpr int code_line = pair_line + pairs, bytes = 64 * (code_line + 64);
};
inline constexpr int largest_apart_bytes = ApartLayout<16, true>::bytes;

/// How large codes are: how many products of them fit in 16 bits.
enum class CodeRange {
  five,   ///< up to 31
  seven,  ///< up to 126
};

#if defined(SKALD_ISA_avx512) || defined(SKALD_ISA_avx2)
inline constexpr bool apart_in_16_bits = true;
#else
inline constexpr bool apart_in_16_bits = false;
#endif

/// A multiplier of integer sums: int32, or twice the same int16 for pmaddwd.
SKALD_INLINE i32x16 apart_multiplier(i32x16 value) noexcept {
  if constexpr (apart_in_16_bits) return (value & set1(0xFFFF)) | shl<16>(value);
  return value;
}

/// Products of one group of four k.
template <CodeRange Range>
SKALD_INLINE void apart_step([[maybe_unused]] int step, i32x16& acc, [[maybe_unused]] i32x16& partial, u8x64 w, u8x64 a,
                             [[maybe_unused]] i32x16 multiplier) noexcept {
#if defined(SKALD_ISA_avx2) || defined(SKALD_ISA_avx512)
  constexpr int limit = Range == CodeRange::five ? 4 : 1;
  static_assert(limit * (Range == CodeRange::five ? 31 : 126) * 254 <= 32767);
  const i32x16 products = maddubs(w, a);
  partial = step % limit == 0 ? products : add16(partial, products);
  if (step % limit == limit - 1) acc = dot2(acc, partial, multiplier);
#else
  acc = dot4(acc, w, a);
#endif
}

#if SKALD_VEC_REGISTERS == 4
/// One block of a panel by n columns, in plain loops: the baseline's vectors are several instructions each.
template <class L>
__attribute__((noinline)) void fold_apart_plain(const std::byte* w, const Acts256& a, int n, int offset,
                                                float* acc) noexcept {
  constexpr int groups = 64 / L::subs;
  const auto line_of = [&](int index) SKALD_INLINE_LAMBDA { return words(load_bytes(w + 64 * index)); };
  const std::int32_t* sums = L::subs == 8 ? a.pairs32 : a.pairs16;
  const f32x16 scale = from_bits(line_of(0));
  for (int c = 0; c < n; ++c) {
    i32x16 total = zero_i32(), pairs = zero_i32();
    for (int sub = 0; sub < L::subs; ++sub) {
      i32x16 sum = zero_i32();
      for (int g = sub * groups; g < (sub + 1) * groups; ++g) {
        std::int32_t four;
        __builtin_memcpy(&four, a.codes + 4 * (g * a.width + c), 4);
        sum = dot4(sum, load_bytes(w + 64 * (L::code_line + g)), bytes(set1(four)));
      }
      total += sum * line_of(L::sub_line + sub);
    }
    for (int i = 0; i < L::pairs; ++i) pairs = dot2(pairs, line_of(L::pair_line + i), set1(sums[i * a.width + c]));
    if constexpr (!L::has_minimum) total -= pairs * set1(offset);
    const f32x16 token = set1(a.scales[c]);
    f32x16 result = fma(to_f32(total), scale * token, load(acc + 16 * c));
    if constexpr (L::has_minimum) result = fnma(to_f32(pairs), from_bits(line_of(1)) * token, result);
    store(acc + 16 * c, result);
  }
}
template <class L, CodeRange Range, int P, int N>
SKALD_INLINE void fold_apart(const std::byte* w, std::ptrdiff_t, const Acts256& a, int offset, float* acc) noexcept {
  static_assert(P == 1);
  fold_apart_plain<L>(w, a, N, offset, acc);
}
#else
/// One block of P panels by N columns.
template <class L, CodeRange Range, int P, int N>
SKALD_INLINE void fold_apart(const std::byte* w, std::ptrdiff_t panel_stride, const Acts256& a, int offset,
                             float* acc) noexcept {
  constexpr int groups = 64 / L::subs;
  const std::ptrdiff_t width = a.width;
  const auto line_of = [](const std::byte* panel, int index) SKALD_INLINE_LAMBDA {
    return words(load_bytes(panel + 64 * index));
  };
  i32x16 total[P * N];
  SKALD_UNROLL for (int i = 0; i < P * N; ++i) total[i] = zero_i32();
  for (int sub = 0; sub < L::subs; ++sub) {
    const std::byte* codes = w + 64 * (L::code_line + sub * groups);
    const std::byte* x = a.codes + 4 * (sub * groups) * width;
    i32x16 sum[P * N], partial[P * N], factor[P];
    SKALD_UNROLL for (int p = 0; p < P; ++p) factor[p] = line_of(w + p * panel_stride, L::sub_line + sub);
    if constexpr (!apart_in_16_bits) SKALD_UNROLL for (int i = 0; i < P * N; ++i) sum[i] = zero_i32();
    SKALD_UNROLL for (int g = 0; g < groups; ++g) {
      u8x64 weights[P];
      SKALD_UNROLL for (int p = 0; p < P; ++p) weights[p] = load_bytes(codes + p * panel_stride + 64 * g);
      SKALD_UNROLL for (int c = 0; c < N; ++c) {
        std::int32_t four;
        __builtin_memcpy(&four, x + 4 * c, 4);
        const u8x64 activations = bytes(set1(four));
        SKALD_UNROLL for (int p = 0; p < P; ++p) {
          const int i = p * N + c;
          apart_step<Range>(g, apart_in_16_bits ? total[i] : sum[i], partial[i], weights[p], activations, factor[p]);
        }
      }
      x += 4 * width;
      if (!__builtin_constant_p(width)) x = settled(x);
    }
    if constexpr (!apart_in_16_bits)
      SKALD_UNROLL for (int i = 0; i < P * N; ++i) total[i] = total[i] + sum[i] * factor[i / N];
  }
  const std::int32_t* sums = L::subs == 8 ? a.pairs32 : a.pairs16;
  SKALD_UNROLL for (int p = 0; p < P; ++p) {
    const std::byte* panel = w + p * panel_stride;
    const f32x16 scale = from_bits(line_of(panel, 0));
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      i32x16 sum = total[p * N + c], pairs = zero_i32();
      SKALD_UNROLL for (int i = 0; i < L::pairs; ++i) {
        pairs = dot2(pairs, line_of(panel, L::pair_line + i), set1(sums[i * width + c]));
      }
      if constexpr (!L::has_minimum) sum = sum - pairs * set1(offset);
      float* out = acc + 16 * (p * N + c);
      const f32x16 token = set1(a.scales[c]);
      f32x16 result = fma(to_f32(sum), scale * token, load(out));
      if constexpr (L::has_minimum)
        result = fnma(to_f32(pairs), from_bits(line_of(panel, 1)) * token, result);
      store(out, result);
    }
  }
}

#endif

#if SKALD_VEC_REGISTERS == 1
inline constexpr int apart_columns = 12, apart_tile_panels = 2, apart_tile_columns = 6;
#elif SKALD_VEC_REGISTERS == 2
inline constexpr int apart_columns = 4, apart_tile_panels = 1, apart_tile_columns = 4;
#else
inline constexpr int apart_columns = 4, apart_tile_panels = 1, apart_tile_columns = 4;
#endif

SKALD_INLINE void apart_write(float* out, std::int64_t rows, f32x16 value) noexcept {
  if (rows >= 16) store(out, value);
  else if (rows > 0) store_n(out, value, static_cast<int>(rows));
}

/// One taken-apart block by n columns (at most one group) from `a` on, into acc[column][16].
template <class L, CodeRange Range>
SKALD_INLINE void fold_apart_columns(const std::byte* block, const Acts256& a, int n, int offset, float* acc) noexcept {
  for (int c = 0; c < n;) {
    Acts256 from = a;
    from.codes += 4 * c;
    from.scales += c;
    from.pairs32 += c;
    from.pairs16 += c;
    float* to = acc + 16 * c;
    const int left = n - c;
    if constexpr (apart_columns >= 12)
      if (left >= 12) {
        fold_apart<L, Range, 1, 12>(block, 0, from, offset, to);
        return;
      }
    if constexpr (apart_columns >= 8)
      if (left >= 8) {
        fold_apart<L, Range, 1, 8>(block, 0, from, offset, to);
        c += 8;
        continue;
      }
    if (left >= 4) {
      fold_apart<L, Range, 1, 4>(block, 0, from, offset, to);
      c += 4;
    } else if (left == 3) {
      fold_apart<L, Range, 1, 3>(block, 0, from, offset, to);
      c += 3;
    } else if (left == 2) {
      fold_apart<L, Range, 1, 2>(block, 0, from, offset, to);
      c += 2;
    } else {
      fold_apart<L, Range, 1, 1>(block, 0, from, offset, to);
      c += 1;
    }
  }
}

/// Columns that are multiplied block by block as the panels are read; more are multiplied with whole panels taken apart.
inline constexpr std::int64_t apart_direct_columns = group_columns;

template <class L>
std::size_t apart_scratch_bytes(std::int64_t cols, std::int64_t count) noexcept {
  if (count <= apart_direct_columns) return 0;
  return static_cast<std::size_t>(apart_tile_panels) * static_cast<std::size_t>(cols / 256) * L::bytes;
}

/// How a format's panel blocks are taken apart.
struct ApartSource {
  void (*take_apart)(const std::byte* panel_block, std::byte* to) noexcept;
  int panel_block_bytes;
  int offset;
};

template <class L, CodeRange Range>
SKALD_INLINE void multiply_apart_direct(const ApartSource& source, const std::byte* panels, std::int64_t row_count,
                                        std::int64_t cols, const MatmulColumns& columns, float* out,
                                        std::int64_t out_stride) noexcept {
  alignas(64) std::byte block[L::bytes];
  alignas(64) float acc[16 * group_columns];
  const std::int64_t group = columns.begin / group_columns;
  const int n = static_cast<int>(columns.end - columns.begin), width = width_of_group(columns.count, group);
  const std::byte* from = columns.acts + static_cast<std::size_t>(group) * Acts256::group_bytes(cols, group_columns);
  for (std::int64_t row = 0; row < row_count; row += 16) {
    __builtin_memset(acc, 0, static_cast<std::size_t>(n) * 64);
    Acts256 acts(from, cols, width, static_cast<int>(columns.begin % group_columns));
    for (std::int64_t b = 0; b < cols / 256; ++b, panels += source.panel_block_bytes, acts.next()) {
      for (int i = 0; i < source.panel_block_bytes; i += 64) prefetch(panels + 3072 + i);
      source.take_apart(panels, block);
      fold_apart_columns<L, Range>(block, acts, n, source.offset, acc);
    }
    for (int c = 0; c < n; ++c)
      apart_write(out + (columns.begin + c) * out_stride + row, row_count - row, load(acc + 16 * c));
  }
}

/// P panels taken apart by one group of columns.
template <class L, CodeRange Range, int P>
SKALD_INLINE void multiply_apart_group(const std::byte* apart, std::ptrdiff_t panel_stride, std::int64_t cols,
                                       const std::byte* group, int width, int offset, float* out,
                                       std::int64_t out_stride, std::int64_t rows) noexcept {
  alignas(64) float acc[16 * P * apart_tile_columns];
  for (int c0 = 0; c0 < group_columns; c0 += apart_tile_columns) {
    __builtin_memset(acc, 0, sizeof(acc));
    Acts256 acts(group, cols, width, c0);
    const std::byte* block = apart;
    for (std::int64_t b = 0; b < cols / 256; ++b, block += L::bytes, acts.next()) {
      acts.width = group_columns;  // a constant in the code of the block
      fold_apart<L, Range, P, apart_tile_columns>(block, panel_stride, acts, offset, acc);
    }
    for (int p = 0; p < P; ++p)
      for (int c = 0; c < apart_tile_columns; ++c)
        apart_write(out + (c0 + c) * out_stride + 16 * p, rows - 16 * p, load(acc + 16 * (p * apart_tile_columns + c)));
  }
}

template <class L, CodeRange Range>
void multiply_apart(const ApartSource& source, const std::byte* panels, std::int64_t row_count, std::int64_t cols,
                    const MatmulColumns& columns, float* out, std::int64_t out_stride, std::byte* scratch) noexcept {
  if (columns.begin >= columns.end) return;
  if (columns.end - columns.begin <= apart_direct_columns) {
    multiply_apart_direct<L, Range>(source, panels, row_count, cols, columns, out, out_stride);
    return;
  }
  const std::ptrdiff_t blocks = cols / 256, panel_stride = blocks * L::bytes;
  const std::size_t group_bytes = Acts256::group_bytes(cols, group_columns);
  for (std::int64_t row = 0; row < row_count; row += 16 * apart_tile_panels) {
    const int now = row_count - row > 16 ? apart_tile_panels : 1;
    for (std::ptrdiff_t b = 0; b < now * blocks; ++b, panels += source.panel_block_bytes)
      source.take_apart(panels, scratch + b * L::bytes);
    const std::int64_t rows = row_count - row;
    for (std::int64_t c = columns.begin; c < columns.end; c += group_columns) {
      const std::byte* group = columns.acts + static_cast<std::size_t>(c / group_columns) * group_bytes;
      const int width = width_of_group(columns.count, c / group_columns);
      float* to = out + c * out_stride + row;
      if (columns.end - c >= group_columns) {
        if (now == 1)
          multiply_apart_group<L, Range, 1>(scratch, panel_stride, cols, group, width, source.offset, to, out_stride, rows);
        else if constexpr (apart_tile_panels > 1)
          multiply_apart_group<L, Range, apart_tile_panels>(scratch, panel_stride, cols, group, width, source.offset, to,
                                                            out_stride, rows);
        continue;
      }
      const int n = static_cast<int>(columns.end - c);
      for (int p = 0; p < now; ++p) {
        alignas(64) float acc[16 * group_columns];
        __builtin_memset(acc, 0, static_cast<std::size_t>(n) * 64);
        Acts256 acts(group, cols, width, 0);
        for (std::ptrdiff_t b = 0; b < blocks; ++b, acts.next())
          fold_apart_columns<L, Range>(scratch + p * panel_stride + b * L::bytes, acts, n, source.offset, acc);
        for (int i = 0; i < n; ++i)
          apart_write(to + i * out_stride + 16 * p, rows - 16 * p, load(acc + 16 * i));
      }
    }
  }
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
