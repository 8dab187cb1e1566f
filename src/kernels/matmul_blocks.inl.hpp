#pragma once

// One block of the integer product: P panels of sixteen rows by N columns. `ahead` is where to prefetch a block (packed
// panels only). Sums are exact integers; then one fold per output
//   q8_32:   acc = fma(float(isum), scale * token scale, acc), and with minimums acc = fma(float(sum), minimum * token scale, acc)
//   q8_256:  acc = fma(float(sum_j scale_j * isum_j), d * token scale, acc), then acc = fma(-float(sum_j m_j * sum_j), dmin * ...)
// whatever P and N are, and whether the codes come from the packed panel or from an expanded one.

#include "kernels/matmul_acts.inl.hpp"
#include "kernels/matmul_formats.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

/// Four consecutive codes of one column in all lanes.
SKALD_INLINE u8x64 broadcast4(const std::byte* p) noexcept {
  std::int32_t value;
  __builtin_memcpy(&value, p, 4);
  return bytes(set1(value));
}

/// Products of one group of four k: a step of a run.
template <int Bits>
SKALD_INLINE void dot_step([[maybe_unused]] int step, i32x16& acc, [[maybe_unused]] i32x16& partial, u8x64 w, u8x64 a,
                           [[maybe_unused]] i32x16 multiplier) noexcept {
#if defined(SKALD_ISA_avx2) || defined(SKALD_ISA_avx512)
  if constexpr (Bits == 8) {
    acc = in_order(dot2(acc, madd_signed(w ^ bytes(set1(static_cast<std::int32_t>(0x80808080))), a), multiplier));
  } else {
    // Largest int16 sum of a run: (2^Bits - 1) * 127 * 2 per step.
    constexpr int limit = Bits == 4 ? 8 : Bits == 5 ? 4 : 2;
    static_assert(limit * ((1 << Bits) - 1) * 254 <= 32767);
    const i32x16 products = maddubs(w, a);
    if (step % limit == 0) partial = in_order(products);
    else partial = in_order(add16(partial, products));
    if (step % limit == limit - 1) acc = in_order(dot2(acc, partial, multiplier));
  }
#else
  acc = dot4(acc, w, a);
#endif
}

/// The same from runs of groups, with the sums in registers. Width: columns of the group of activations; 0: a.width.
template <class S, int P, int N, int Width>
SKALD_INLINE void fold_runs(const std::byte* w, std::ptrdiff_t panel_stride, const Acts32& a, f32x16 (&acc)[P * N],
                            const std::byte* ahead) noexcept;
template <class S, int P, int N, int Width, bool Joined = false>
SKALD_INLINE void fold_runs(const std::byte* w, std::ptrdiff_t panel_stride, const Acts256& a, f32x16 (&acc)[P * N],
                            const std::byte* ahead) noexcept;

/// Formats whose sums of two sub-blocks fit into the halves of a lane if activations are not wide (narrow_sum), so that one
/// instruction multiplies both by their multipliers: 32 k of four bits with the next 32, or 16 of six bits with the next 16.
template <class F>
inline constexpr bool joins_sums = false;
#if defined(SKALD_ISA_avx512vnni)
template <>
inline constexpr bool joins_sums<FormatQ4_K> = true;
template <>
inline constexpr bool joins_sums<FormatQ6_K> = true;

/// Two sums, or multipliers, as the halves of a lane: the former is the upper one.
SKALD_INLINE i32x16 joined(i32x16 former, i32x16 latter) noexcept {
  return {_mm512_mask_blend_epi16(0xAAAAAAAA, latter.r, shl<16>(former).r)};
}
#else
SKALD_INLINE i32x16 joined(i32x16, i32x16 latter) noexcept { return latter; }  // not used
#endif

/// Whether no column of a block, or of `count` columns in neighbouring blocks, is wide.
SKALD_INLINE bool all_narrow(const std::int32_t* wide, std::int64_t count) noexcept {
  std::int32_t any = 0;
  for (std::int64_t i = 0; i < count; ++i) any |= wide[i];
  return any == 0;
}

#if SKALD_VEC_REGISTERS == 4
// The baseline: plain loops.

/// Adds the products of groups [begin, end).
template <class S, int N>
SKALD_INLINE void dot_runs(const std::byte* w, int begin, int end, const std::byte* acts, int width,
                           i32x16* sum) noexcept {
  constexpr int size = groups_of_run<S>();
  for (int r = begin / size; r < end / size; ++r) {
    u8x64 codes[size];
    if constexpr (HasRuns<S>) S::run(w, r, codes);
    else codes[0] = S::group(w, r);
    for (int i = 0; i < size; ++i) {
      int g = r;
      if constexpr (HasRuns<S>) g = S::run_group(r, i);
      for (int c = 0; c < N; ++c) sum[c] = dot4(sum[c], codes[i], broadcast4(acts + 4 * (g * width + c)));
    }
  }
}

template <class S, int P, int N>
SKALD_INLINE void fold_block(const std::byte* w, std::ptrdiff_t, const Acts32& a, float* acc,
                             const std::byte*) noexcept {
  static_assert(P == 1);
  i32x16 sum[N];
  for (int c = 0; c < N; ++c) {
    sum[c] = zero_i32();
    if constexpr (S::offset_shift >= 0) sum[c] = shl<S::offset_shift>(set1(a.negated_sums[c]));
  }
  dot_runs<S, N>(w, 0, 8, a.codes, a.width, sum);
  const f32x16 scale = S::scale(w);
  for (int c = 0; c < N; ++c) {
    f32x16 result = fma(to_f32(sum[c]), scale * set1(a.scales[c]), load(acc + 16 * c));
    if constexpr (S::has_minimum)
      result = fnma(to_f32(set1(a.negated_sums[c])), S::minimum(w) * set1(a.scales[c]), result);
    store(acc + 16 * c, result);
  }
}

template <class S, int P, int N>
SKALD_INLINE void fold_block(const std::byte* w, std::ptrdiff_t, const Acts256& a, float* acc,
                             const std::byte*) noexcept {
  static_assert(P == 1);
  constexpr int groups = 64 / S::sub_blocks;
  i32x16 total[N];
  for (int c = 0; c < N; ++c) total[c] = zero_i32();
  for (int sub = 0; sub < S::sub_blocks; ++sub) {
    i32x16 sum[N];
    for (int c = 0; c < N; ++c) sum[c] = zero_i32();
    dot_runs<S, N>(w, sub * groups, (sub + 1) * groups, a.codes, a.width, sum);
    const i32x16 factor = S::sub_scale(w, sub);
    for (int c = 0; c < N; ++c) total[c] += sum[c] * factor;
  }
  const f32x16 scale = S::scale(w);
  for (int c = 0; c < N; ++c) {
    const f32x16 token = set1(a.scales[c]);
    if constexpr (S::offset_shift >= 0) {
      i32x16 offsets = zero_i32();
      for (int i = 0; i < 8; ++i) offsets = dot2(offsets, S::scale_pair(w, i), set1(a.pairs16[i * a.width + c]));
      total[c] -= shl<S::offset_shift>(offsets);
    }
    f32x16 result = fma(to_f32(total[c]), scale * token, load(acc + 16 * c));
    if constexpr (S::has_minimum) {
      i32x16 minimums = zero_i32();
      for (int i = 0; i < 4; ++i) minimums = dot2(minimums, S::minimum_pair(w, i), set1(a.pairs32[i * a.width + c]));
      result = fnma(to_f32(minimums), S::minimum(w) * token, result);
    }
    store(acc + 16 * c, result);
  }
}

#else
/// Order in which the groups of 32 elements are visited: nibbles of one line together.
SKALD_INLINE constexpr int nibble_order(int step) noexcept { return step / 2 + step % 2 * 4; }

template <class S, int P, int N>
SKALD_INLINE void fold_block(const std::byte* w, std::ptrdiff_t panel_stride, const Acts32& a, float* acc,
                             const std::byte* ahead) noexcept {
  if constexpr (S::packed)
    for (int i = 0; i < S::panel_block_bytes; i += 64) prefetch_later(ahead + i);
  i32x16 sum[P * N], partial[P * N];
  const std::ptrdiff_t width = a.width;
#if defined(SKALD_ISA_avx2) || defined(SKALD_ISA_avx512)
  constexpr bool starts_at_zero = S::bits == 8 || S::offset_shift < 0;
#else
  constexpr bool starts_at_zero = S::offset_shift < 0;
#endif
  SKALD_UNROLL for (int c = 0; c < N; ++c) {
    i32x16 start = zero_i32();
    if constexpr (!starts_at_zero) start = shl<S::offset_shift>(set1(a.negated_sums[c]));
    SKALD_UNROLL for (int p = 0; p < P; ++p) sum[p * N + c] = start;
  }
  SKALD_UNROLL for (int step = 0; step < 8; ++step) {
    const int g = nibble_order(step);
    u8x64 codes[P];
    SKALD_UNROLL for (int p = 0; p < P; ++p) codes[p] = S::group(w + p * panel_stride, g);
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      const u8x64 x = broadcast4(a.codes + 4 * (g * width + c));
      SKALD_UNROLL for (int p = 0; p < P; ++p) {
        dot_step<S::bits>(step, sum[p * N + c], partial[p * N + c], codes[p], x, set1(0x00010001));
      }
    }
  }
  SKALD_UNROLL for (int p = 0; p < P; ++p) {
    const f32x16 scale = S::scale(w + p * panel_stride);
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      float* out = acc + 16 * (p * N + c);
      const f32x16 token = set1(a.scales[c]);
      f32x16 result = fma(to_f32(sum[p * N + c]), scale * token, load(out));
      if constexpr (S::has_minimum)
        result = fnma(to_f32(set1(a.negated_sums[c])), S::minimum(w + p * panel_stride) * token, result);
      store(out, result);
    }
  }
}

/// Sums of sub-blocks of 16 start with the offset's part, unless multipliers apply to neighbouring products before they are
/// added up.
template <class S>
inline constexpr bool offsets_start_sums = S::offset_shift >= 0 && S::sub_blocks == 16 && !paired_multiplier;

/// Sums of the activations times the multipliers of sub-blocks of 16: what an offset of one adds to the total.
template <class S>
SKALD_INLINE i32x16 offsets_of(const std::byte* panel, const Acts256& a, std::ptrdiff_t width, int column) noexcept {
  i32x16 offsets = zero_i32();
  SKALD_UNROLL for (int i = 0; i < 8; ++i)
    offsets = dot2(offsets, S::scale_pair(panel, i), set1(a.pairs16[i * width + column]));
  return offsets;
}
template <class S>
SKALD_INLINE i32x16 minimums_of(const std::byte* panel, const Acts256& a, std::ptrdiff_t width, int column) noexcept {
  i32x16 minimums = zero_i32();
  SKALD_UNROLL for (int i = 0; i < 4; ++i)
    minimums = dot2(minimums, S::minimum_pair(panel, i), set1(a.pairs32[i * width + column]));
  return minimums;
}

template <class S, int P, int N>
SKALD_INLINE void fold_block(const std::byte* w, std::ptrdiff_t panel_stride, const Acts256& a, float* acc,
                             const std::byte* ahead) noexcept {
  constexpr int groups = 64 / S::sub_blocks;
  constexpr bool offset_in_sums = offsets_start_sums<S>;
  const std::ptrdiff_t width = a.width;
  i32x16 total[P * N];
  SKALD_UNROLL for (int i = 0; i < P * N; ++i) total[i] = zero_i32();
  // Taking the multipliers of a packed panel apart needs constant indices; they are needed in a loop.
  alignas(64) std::int32_t factors[S::packed ? P * S::sub_blocks * 16 : 1];
  if constexpr (S::packed)
    SKALD_UNROLL for (int sub = 0; sub < S::sub_blocks; ++sub) {
      SKALD_UNROLL for (int p = 0; p < P; ++p) {
        store(factors + 16 * (p * S::sub_blocks + sub), S::sub_scale(w + p * panel_stride, sub));
      }
    }
  for (int chunk = 0; chunk < S::sub_blocks / S::chunk_subs; ++chunk)
    SKALD_UNROLL for (int in_chunk = 0; in_chunk < S::chunk_subs; ++in_chunk) {
      const int sub = chunk * S::chunk_subs + in_chunk;
      i32x16 sum[P * N], partial[P * N], factor[P];
      // Spread over the block: a burst would fill the queue of outstanding misses.
      if constexpr (S::packed) {
        constexpr int lines = (S::panel_block_bytes + 64 * S::sub_blocks - 1) / (64 * S::sub_blocks);
        SKALD_UNROLL for (int i = 0; i < lines; ++i) prefetch_later(ahead + 64 * (sub * lines + i));
      }
      SKALD_UNROLL for (int p = 0; p < P; ++p) {
        if constexpr (S::packed) factor[p] = load(factors + 16 * (p * S::sub_blocks + sub));
        else factor[p] = S::sub_scale(w + p * panel_stride, sub);
      }
      if constexpr (!paired_multiplier)
        SKALD_UNROLL for (int c = 0; c < N; ++c) {
          i32x16 start = zero_i32();
          if constexpr (offset_in_sums) start = shl<S::offset_shift>(set1(a.negated_sums16[sub * width + c]));
          SKALD_UNROLL for (int p = 0; p < P; ++p) sum[p * N + c] = start;
        }
      SKALD_UNROLL for (int step = 0; step < groups; ++step) {
        const int g = in_chunk * groups + step;
        const std::byte* codes_of_group = a.codes + 4 * (chunk * S::chunk_subs * groups + g) * width;
        u8x64 codes[P];
        SKALD_UNROLL for (int p = 0; p < P; ++p) codes[p] = S::chunk_group(w + p * panel_stride, chunk, g);
        SKALD_UNROLL for (int c = 0; c < N; ++c) {
          const u8x64 x = broadcast4(codes_of_group + 4 * c);
          SKALD_UNROLL for (int p = 0; p < P; ++p) {
            const int i = p * N + c;
            if constexpr (paired_multiplier)
              dot_step<S::bits>(step, total[i], partial[i], codes[p], x, factor[p]);
            else
              dot_step<S::bits>(step, sum[i], partial[i], codes[p], x, factor[p]);
          }
        }
      }
      if constexpr (!paired_multiplier)
        SKALD_UNROLL for (int i = 0; i < P * N; ++i) total[i] = total[i] + sum[i] * factor[i / N];
    }
  SKALD_UNROLL for (int p = 0; p < P; ++p) {
    const std::byte* panel = w + p * panel_stride;
    const f32x16 scale = S::scale(panel);
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      i32x16 sum = total[p * N + c];
      if constexpr (S::offset_shift >= 0 && !offset_in_sums) sum = sum - shl<S::offset_shift>(offsets_of<S>(panel, a, width, c));
      float* out = acc + 16 * (p * N + c);
      const f32x16 token = set1(a.scales[c]);
      f32x16 result = fma(to_f32(sum), scale * token, load(out));
      if constexpr (S::has_minimum)
        result = fnma(to_f32(minimums_of<S>(panel, a, width, c)), S::minimum(panel) * token, result);
      store(out, result);
    }
  }
}

template <class S, int P, int N, int Width>
SKALD_INLINE void fold_runs(const std::byte* w, std::ptrdiff_t panel_stride, const Acts32& a, f32x16 (&acc)[P * N],
                            const std::byte* ahead) noexcept {
  const std::ptrdiff_t width = Width > 0 ? Width : a.width;
  if constexpr (S::packed)
    for (int i = 0; i < S::panel_block_bytes; i += 64) prefetch_later(ahead + i);
  i32x16 sum[P * N], partial[P * N];
  constexpr bool starts_at_zero = (paired_multiplier && S::bits == 8) || S::offset_shift < 0;
  SKALD_UNROLL for (int c = 0; c < N; ++c) {
    i32x16 start = zero_i32();
    if constexpr (!starts_at_zero) start = shl<S::offset_shift>(set1(a.negated_sums[c]));
    SKALD_UNROLL for (int p = 0; p < P; ++p) sum[p * N + c] = start;
  }
  SKALD_UNROLL for (int r = 0; r < 8 / S::run_groups; ++r) {
    u8x64 codes[P][S::run_groups];
    SKALD_UNROLL for (int p = 0; p < P; ++p) S::run(w + p * panel_stride, r, codes[p]);
    SKALD_UNROLL for (int i = 0; i < S::run_groups; ++i) {
      const int g = S::run_group(r, i), step = r * S::run_groups + i;
      SKALD_UNROLL for (int c = 0; c < N; ++c) {
        const u8x64 x = broadcast4(a.codes + 4 * (g * width + c));
        SKALD_UNROLL for (int p = 0; p < P; ++p) {
          dot_step<S::bits>(step, sum[p * N + c], partial[p * N + c], codes[p][i], x, set1(0x00010001));
        }
      }
    }
  }
  SKALD_UNROLL for (int p = 0; p < P; ++p) {
    const f32x16 scale = S::scale(w + p * panel_stride);
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      f32x16& result = acc[p * N + c];
      const f32x16 token = set1(a.scales[c]);
      result = fma(to_f32(sum[p * N + c]), scale * token, result);
      if constexpr (S::has_minimum)
        result = fnma(to_f32(set1(a.negated_sums[c])), S::minimum(w + p * panel_stride) * token, result);
    }
  }
}

/// Whether a run's groups are taken apart when each is multiplied instead of all at its beginning: reads lines again, but
/// where registers are short, codes would wait in memory.
template <int N>
inline constexpr bool codes_one_by_one = SKALD_VEC_REGISTERS == 1 ? N > 8 : N > 2;

template <class S, int P, int N, int Width, bool Joined>
SKALD_INLINE void fold_runs(const std::byte* w, std::ptrdiff_t panel_stride, const Acts256& a, f32x16 (&acc)[P * N],
                            const std::byte* ahead) noexcept {
  const std::ptrdiff_t width = Width > 0 ? Width : a.width;
  constexpr int groups = 64 / S::sub_blocks, lines = (S::panel_block_bytes + 63) / 64, run_count = 64 / S::run_groups;
  constexpr bool offset_in_sums = offsets_start_sums<S>;
  const std::byte* activations = a.codes;
  static_assert(!Joined || (joins_sums<S> && !paired_multiplier));
  i32x16 total[P * N];
  [[maybe_unused]] i32x16 former[P * N], former_factor[P];
  SKALD_UNROLL for (int i = 0; i < P * N; ++i) total[i] = zero_i32();
  SKALD_UNROLL for (int sub = 0; sub < S::sub_blocks; ++sub) {
    i32x16 sum[P * N], partial[P * N], factor[P];
    SKALD_UNROLL for (int p = 0; p < P; ++p) factor[p] = S::sub_scale(w + p * panel_stride, sub);
    if constexpr (!paired_multiplier)
      SKALD_UNROLL for (int c = 0; c < N; ++c) {
        i32x16 start = zero_i32();
        if constexpr (offset_in_sums) start = shl<S::offset_shift>(set1(a.negated_sums16[sub * width + c]));
        SKALD_UNROLL for (int p = 0; p < P; ++p) sum[p * N + c] = start;
      }
    SKALD_UNROLL for (int r = 0; r < groups / S::run_groups; ++r) {
      const int run = sub * (groups / S::run_groups) + r;
      SKALD_UNROLL for (int i = 0; i < S::run_groups; ++i) {
        const int step = r * S::run_groups + i;
        u8x64 codes[P];
        SKALD_UNROLL for (int p = 0; p < P; ++p) codes[p] = group_of_run<S>(w + p * panel_stride, run, i);
        if constexpr (codes_one_by_one<N>) w = settled(w);
        SKALD_UNROLL for (int c = 0; c < N; ++c) {
          const u8x64 x = broadcast4(activations + 4 * c);
          SKALD_UNROLL for (int p = 0; p < P; ++p) {
            const int k = p * N + c;
            dot_step<S::bits>(step, paired_multiplier ? total[k] : sum[k], partial[k], codes[p], x, factor[p]);
          }
        }
        activations += 4 * width;
        if constexpr (Width == 0) activations = settled(activations);
      }
      const int first_line = lines * run / run_count, end_line = lines * (run + 1) / run_count;
      // As many turns for each run: Clang unrolls from the innermost loop on, when the run is not a constant yet.
      SKALD_UNROLL for (int i = 0; i < (lines + run_count - 1) / run_count; ++i)
        if (first_line + i < end_line) prefetch_with(ahead + 64 * (first_line + i), paired_multiplier ? total[0] : sum[0]);
    }
    if constexpr (Joined) {
      if (sub % 2 == 0) {
        SKALD_UNROLL for (int p = 0; p < P; ++p) former_factor[p] = factor[p];
        SKALD_UNROLL for (int i = 0; i < P * N; ++i) former[i] = in_order(sum[i]);
      } else {
        SKALD_UNROLL for (int p = 0; p < P; ++p) factor[p] = joined(former_factor[p], factor[p]);
        SKALD_UNROLL for (int i = 0; i < P * N; ++i)
          total[i] = in_order(dot2(total[i], joined(former[i], sum[i]), factor[i / N]));
      }
    } else if constexpr (!paired_multiplier) {
      SKALD_UNROLL for (int i = 0; i < P * N; ++i) total[i] = in_order(total[i] + sum[i] * factor[i / N]);
    }
  }
  SKALD_UNROLL for (int p = 0; p < P; ++p) {
    const std::byte* panel = w + p * panel_stride;
    const f32x16 scale = S::scale(panel);
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      i32x16 sum = total[p * N + c];
      if constexpr (S::offset_shift >= 0 && !offset_in_sums) sum = sum - shl<S::offset_shift>(offsets_of<S>(panel, a, width, c));
      f32x16& result = acc[p * N + c];
      const f32x16 token = set1(a.scales[c]);
      result = fma(to_f32(sum), scale * token, result);
      if constexpr (S::has_minimum)
        result = fnma(to_f32(minimums_of<S>(panel, a, width, c)), S::minimum(panel) * token, result);
    }
  }
}

#endif

/// A format's panel block with everything unpacked, for products with many columns: scale and minimum as floats, the
/// multipliers and pairs of the K formats, then one 64-byte line of codes for each four k.
template <class F>
struct Expanded : F {
  static constexpr bool packed = false;
  static constexpr int chunk_subs = 1;
  static constexpr int multipliers = F::block_k == 256 ? F::sub_blocks : 0;
  static constexpr int pairs = F::block_k == 32 ? 0 : F::has_minimum ? 4 : 8;
  static constexpr int first_code_line = (F::has_minimum ? 2 : 1) + multipliers + pairs;
  static constexpr int panel_block_bytes = 64 * (first_code_line + F::block_k / 4);

  SKALD_INLINE static const float* floats(const std::byte* p) noexcept { return reinterpret_cast<const float*>(p); }
  SKALD_INLINE static f32x16 scale(const std::byte* p) noexcept { return load(floats(p)); }
  SKALD_INLINE static f32x16 minimum(const std::byte* p) noexcept { return load(floats(p) + 16); }
  SKALD_INLINE static i32x16 sub_scale(const std::byte* p, int j) noexcept { return line(p, (F::has_minimum ? 2 : 1) + j); }
  SKALD_INLINE static i32x16 minimum_pair(const std::byte* p, int i) noexcept { return line(p, 2 + multipliers + i); }
  SKALD_INLINE static i32x16 scale_pair(const std::byte* p, int i) noexcept { return line(p, 1 + multipliers + i); }
  SKALD_INLINE static u8x64 group(const std::byte* p, int j) noexcept { return load_bytes(p + 64 * (first_code_line + j)); }

  static constexpr int run_groups = 1;
  SKALD_INLINE static constexpr int run_group(int r, int) noexcept { return r; }
  SKALD_INLINE static void run(const std::byte* p, int r, u8x64* codes) noexcept { codes[0] = group(p, r); }
  SKALD_INLINE static u8x64 chunk_group(const std::byte* p, int chunk, int g) noexcept {
    return group(p, chunk * (64 / F::sub_blocks) + g);
  }

  static void expand(const std::byte* panel, std::int64_t cols, std::byte* to) noexcept {
    for (std::int64_t b = 0; b < cols / F::block_k; ++b, panel += F::panel_block_bytes, to += panel_block_bytes) {
      store(reinterpret_cast<float*>(to), F::scale(panel));
      if constexpr (F::has_minimum) store(reinterpret_cast<float*>(to) + 16, F::minimum(panel));
      if constexpr (F::block_k == 256) {
        std::byte* lines = to + (F::has_minimum ? 128 : 64);
        SKALD_UNROLL for (int j = 0; j < multipliers; ++j) store_bytes(lines + 64 * j, bytes(F::sub_scale(panel, j)));
        lines += 64 * multipliers;
        SKALD_UNROLL for (int i = 0; i < pairs; ++i) {
          if constexpr (F::has_minimum) store_bytes(lines + 64 * i, bytes(F::minimum_pair(panel, i)));
          else store_bytes(lines + 64 * i, bytes(F::scale_pair(panel, i)));
        }
      }
      std::byte* codes = to + 64 * first_code_line;
      if constexpr (HasRuns<F>)
        SKALD_UNROLL for (int r = 0; r < F::block_k / 4 / F::run_groups; ++r) {
          u8x64 run[F::run_groups];
          F::run(panel, r, run);
          SKALD_UNROLL for (int i = 0; i < F::run_groups; ++i) store_bytes(codes + 64 * F::run_group(r, i), run[i]);
        }
      else
        SKALD_UNROLL for (int j = 0; j < F::block_k / 4; ++j) store_bytes(codes + 64 * j, F::group(panel, j));
    }
  }
};

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
