#pragma once

// Products with ternary weights by table lookups, for few columns.
//
// A byte of TQ1_0 holds five ternary digits, so five activations go with it, whatever the row. Their signed sums are
// computed once per column: those of the first two for the 9 values of two digits, those of the other three for the 27
// values of three. A product then takes the byte apart into these two numbers with three multiplications, for all rows of
// a panel at once, looks both sums up with byte or word shuffles and adds them: no digit is ever unpacked. (TeLLMe v2:
// table lookups for ternary weights; the split into 9 and 27 is what shuffles can index.)
//
// Sums of a block are integers, at most 256 * 127, and exact in 16 bits. The folds of blocks are those of
// matmul_apart.inl.hpp, so every output has the bits that unpacking gives.

#include "kernels/matmul_apart_formats.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

/// Columns of a batch up to which outputs are looked up: as many as make it faster than unpacking (skald_micro_matmul). The
/// result does not depend on it.
#if SKALD_VEC_REGISTERS == 1
inline constexpr std::int64_t lookup_columns = 8;
#else
inline constexpr std::int64_t lookup_columns = 4;
#endif

/// Words (of four bytes) of a row's block: eight of them hold elements 32 n + m in digit n of byte m, four 160 + 16 n + m,
/// one 240 + 4 n + m.
inline constexpr int ternary_words = 13;

/// The elements of byte 0 of a word, most significant digit first: first + n * stride; those of byte i lie i after them.
struct TernaryPlace {
  int first, stride, digits;
  SKALD_INLINE explicit TernaryPlace(int word) noexcept
      : first(word < 8 ? 4 * word : word < 12 ? 160 + 4 * (word - 8) : 240),
        stride(word < 8 ? 32 : word < 12 ? 16 : 4),
        digits(word < 12 ? 5 : 4) {}
};

/// Digit minus one of the indices of the two kinds of tables; 0 for indices that do not occur.
struct TernaryDigits {
  std::int16_t pair[2][16] = {};
  std::int16_t triple[3][32] = {};
  constexpr TernaryDigits() noexcept {
    for (int i = 0; i < 9; ++i) {
      pair[0][i] = static_cast<std::int16_t>(i / 3 - 1);
      pair[1][i] = static_cast<std::int16_t>(i % 3 - 1);
    }
    for (int i = 0; i < 27; ++i) {
      triple[0][i] = static_cast<std::int16_t>(i / 9 - 1);
      triple[1][i] = static_cast<std::int16_t>(i / 3 % 3 - 1);
      triple[2][i] = static_cast<std::int16_t>(i % 3 - 1);
    }
  }
};
inline constexpr TernaryDigits ternary_digits{};

#if SKALD_VEC_REGISTERS == 1

/// Of the low bytes of the 16-bit halves, then of the high ones: sums of triples of the lower half's byte, of the upper
/// half's; then in the same order pairs.
inline constexpr std::ptrdiff_t word_table_bytes = 6 * 64;

SKALD_INLINE void make_word_tables(const std::int16_t* x, int word, std::byte* to) noexcept {
  const TernaryPlace place(word);
  __m512i digit[3];
  SKALD_UNROLL for (int n = 0; n < 3; ++n) digit[n] = _mm512_loadu_si512(ternary_digits.triple[n]);
  __m512i pair_digit[2];
  SKALD_UNROLL for (int n = 0; n < 2; ++n) {
    pair_digit[n] = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(ternary_digits.pair[n])));
  }
  SKALD_UNROLL for (int high = 0; high < 2; ++high) {
    const std::int16_t *lower_x = x + place.first + high, *upper_x = lower_x + 2;
    SKALD_UNROLL for (int upper = 0; upper < 2; ++upper) {
      const std::int16_t* from = upper ? upper_x : lower_x;
      const auto product = [&](int n) SKALD_INLINE_LAMBDA {
        return _mm512_mullo_epi16(_mm512_set1_epi16(from[(2 + n) * place.stride]), digit[n]);
      };
      __m512i sums = _mm512_add_epi16(product(0), product(1));
      if (place.digits == 5) sums = _mm512_add_epi16(sums, product(2));
      _mm512_storeu_si512(to + 128 * high + 64 * upper, sums);
    }
    const auto product = [&](int n) SKALD_INLINE_LAMBDA {
      const __m512i both = _mm512_mask_set1_epi16(_mm512_set1_epi16(lower_x[n * place.stride]), 0xFFFF0000u,
                                                  upper_x[n * place.stride]);
      return _mm512_mullo_epi16(both, pair_digit[n]);
    };
    _mm512_storeu_si512(to + 256 + 64 * high, _mm512_add_epi16(product(0), product(1)));
  }
}

/// Integer products of a panel block (from its words on) with N columns.
template <int N>
SKALD_INLINE void lookup_block(const std::byte* block, const std::byte* const* tables, const std::byte* ahead,
                               i32x16* sums) noexcept {
  const __m512i nine = _mm512_set1_epi16(9), twenty_seven = _mm512_set1_epi16(27);
  const __m512i high_bytes = _mm512_set1_epi16(static_cast<short>(0xFF00));
  // The upper half of a lane has tables of its own.
  const __m512i upper_pair = _mm512_set1_epi32(0x00100000), upper_triple = _mm512_set1_epi32(0x00200000);
  __m512i low[N], high[N];
  SKALD_UNROLL for (int c = 0; c < N; ++c) low[c] = high[c] = _mm512_setzero_si512();
  for (int word = 0; word < ternary_words; ++word) {
    const __m512i line = _mm512_loadu_si512(block + 64 * word);
    prefetch(ahead + 64 * word);
    const __m512i bytes_of[2] = {_mm512_slli_epi16(line, 8), _mm512_and_si512(line, high_bytes)};
    __m512i pair[2], triple[2];
    SKALD_UNROLL for (int h = 0; h < 2; ++h) {
      // Nine times the fraction: two digits are before the point, the rest behind it.
      pair[h] = _mm512_or_si512(_mm512_mulhi_epu16(bytes_of[h], nine), upper_pair);
      const __m512i rest = _mm512_mullo_epi16(bytes_of[h], nine);
      triple[h] = _mm512_or_si512(_mm512_mulhi_epu16(rest, twenty_seven), upper_triple);
    }
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      const std::byte* t = tables[c] + word * word_table_bytes;
      const auto table = [&](int i) SKALD_INLINE_LAMBDA { return _mm512_loadu_si512(t + 64 * i); };
      low[c] = _mm512_add_epi16(low[c], _mm512_permutexvar_epi16(pair[0], table(4)));
      high[c] = _mm512_add_epi16(high[c], _mm512_permutexvar_epi16(pair[1], table(5)));
      low[c] = _mm512_add_epi16(low[c], _mm512_permutex2var_epi16(table(0), triple[0], table(1)));
      high[c] = _mm512_add_epi16(high[c], _mm512_permutex2var_epi16(table(2), triple[1], table(3)));
    }
  }
  const i32x16 ones = set1(0x00010001);
  SKALD_UNROLL for (int c = 0; c < N; ++c) {
    sums[c] = dot2(zero_i32(), i32x16{_mm512_add_epi16(low[c], high[c])}, ones);
  }
}

#elif SKALD_VEC_REGISTERS == 2

/// For bytes 0 and 1 (a 128-bit lane each), then 2 and 3: sums of pairs, of the first sixteen triples, of the others;
/// of each the low bytes, then the high bytes.
inline constexpr std::ptrdiff_t word_table_bytes = 12 * 32;

SKALD_INLINE void make_word_tables(const std::int16_t* x, int word, std::byte* to) noexcept {
  const TernaryPlace place(word);
  for (int byte = 0; byte < 4; ++byte) {
    const std::int16_t* from = x + place.first + byte;
    const auto product = [&](int n, const std::int16_t* digits) SKALD_INLINE_LAMBDA {
      return _mm256_mullo_epi16(_mm256_set1_epi16(from[n * place.stride]), load256(digits));
    };
    const auto triples = [&](int first) SKALD_INLINE_LAMBDA {
      __m256i sums = _mm256_add_epi16(product(2, ternary_digits.triple[0] + first), product(3, ternary_digits.triple[1] + first));
      if (place.digits == 5) sums = _mm256_add_epi16(sums, product(4, ternary_digits.triple[2] + first));
      return sums;
    };
    std::byte* at = to + byte / 2 * 192 + byte % 2 * 16;
    const auto put = [&](int table, __m256i sums) SKALD_INLINE_LAMBDA {
      const __m256i low = _mm256_and_si256(sums, _mm256_set1_epi16(0xFF)), high = _mm256_srli_epi16(sums, 8);
      const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xD8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 64 * table), _mm256_castsi256_si128(both));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 64 * table + 32), _mm256_extracti128_si256(both, 1));
    };
    put(0, _mm256_add_epi16(product(0, ternary_digits.pair[0]), product(1, ternary_digits.pair[1])));
    put(1, triples(0));
    put(2, triples(16));
  }
}

template <int N>
SKALD_INLINE void lookup_block(const std::byte* block, const std::byte* const* tables, const std::byte* ahead,
                               i32x16* sums) noexcept {
  const __m256i nine = _mm256_set1_epi16(9), twenty_seven = _mm256_set1_epi16(27);
  const __m256i high_bytes = _mm256_set1_epi16(static_cast<short>(0xFF00));
  // Four rows' bytes 0, their bytes 1 and so on.
  const __m256i by_byte = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2,
                                           6, 10, 14, 3, 7, 11, 15);
  // An index with its top bit set gives zero: each half of a table is asked for the indices of its own.
  const __m256i first_half = _mm256_set1_epi8(0x70), second_half = _mm256_set1_epi8(-16);
  __m256i low[N], high[N];
  SKALD_UNROLL for (int c = 0; c < N; ++c) low[c] = high[c] = _mm256_setzero_si256();
  for (int word = 0; word < ternary_words; ++word) {
    prefetch(ahead + 64 * word);
    const __m256i a = _mm256_shuffle_epi8(load256(block + 64 * word), by_byte);
    const __m256i b = _mm256_shuffle_epi8(load256(block + 64 * word + 32), by_byte);
    // A lane holds one byte of all rows, in the order 0-3, 8-11, 4-7, 12-15.
    const __m256i lines[2] = {_mm256_permute4x64_epi64(_mm256_unpacklo_epi32(a, b), 0xD8),
                              _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(a, b), 0xD8)};
    SKALD_UNROLL for (int h = 0; h < 2; ++h) {
      const __m256i even = _mm256_slli_epi16(lines[h], 8), odd = _mm256_and_si256(lines[h], high_bytes);
      const auto pair_of = [&](__m256i x) SKALD_INLINE_LAMBDA { return _mm256_mulhi_epu16(x, nine); };
      const auto triple_of = [&](__m256i x) SKALD_INLINE_LAMBDA {
        return _mm256_mulhi_epu16(_mm256_mullo_epi16(x, nine), twenty_seven);
      };
      const __m256i pair = _mm256_or_si256(pair_of(even), _mm256_slli_epi16(pair_of(odd), 8));
      const __m256i triple = _mm256_or_si256(triple_of(even), _mm256_slli_epi16(triple_of(odd), 8));
      const __m256i first = _mm256_add_epi8(triple, first_half), second = _mm256_add_epi8(triple, second_half);
      SKALD_UNROLL for (int c = 0; c < N; ++c) {
        const std::byte* t = tables[c] + word * word_table_bytes + 192 * h;
        const auto look = [&](int i, __m256i index) SKALD_INLINE_LAMBDA {
          return _mm256_shuffle_epi8(load256(t + 32 * i), index);
        };
        const __m256i pair_low = look(0, pair), pair_high = look(1, pair);
        const __m256i triple_low = _mm256_or_si256(look(2, first), look(4, second));
        const __m256i triple_high = _mm256_or_si256(look(3, first), look(5, second));
        low[c] = _mm256_add_epi16(low[c], _mm256_unpacklo_epi8(pair_low, pair_high));
        high[c] = _mm256_add_epi16(high[c], _mm256_unpackhi_epi8(pair_low, pair_high));
        low[c] = _mm256_add_epi16(low[c], _mm256_unpacklo_epi8(triple_low, triple_high));
        high[c] = _mm256_add_epi16(high[c], _mm256_unpackhi_epi8(triple_low, triple_high));
      }
    }
  }
  SKALD_UNROLL for (int c = 0; c < N; ++c) {
    const auto both_lanes = [](__m256i x) SKALD_INLINE_LAMBDA {
      return _mm256_cvtepi16_epi32(_mm_add_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
    };
    const __m256i one = both_lanes(low[c]), two = both_lanes(high[c]);  // rows 0-3, 8-11; rows 4-7, 12-15
    sums[c] = {_mm256_permute2x128_si256(one, two, 0x20), _mm256_permute2x128_si256(one, two, 0x31)};
  }
}

#else

/// The activations of byte `byte` of word `word`; absent digits have 0.
SKALD_INLINE void activations_of(const std::int16_t* x, int word, int byte, std::int16_t* five) noexcept {
  const TernaryPlace place(word);
  for (int n = 0; n < 5; ++n) five[n] = n < place.digits ? x[place.first + byte + n * place.stride] : std::int16_t{0};
}

SKALD_INLINE void sums_of_pair(const std::int16_t* five, std::int16_t* sums) noexcept {
  for (int i = 0; i < 16; ++i)
    sums[i] = static_cast<std::int16_t>(five[0] * ternary_digits.pair[0][i] + five[1] * ternary_digits.pair[1][i]);
}
SKALD_INLINE void sums_of_triple(const std::int16_t* five, std::int16_t* sums) noexcept {
  for (int i = 0; i < 32; ++i)
    sums[i] = static_cast<std::int16_t>(five[2] * ternary_digits.triple[0][i] + five[3] * ternary_digits.triple[1][i] +
                                        five[4] * ternary_digits.triple[2][i]);
}

/// For each byte sums of pairs, then of triples.
inline constexpr std::ptrdiff_t word_table_bytes = 4 * 96;

SKALD_INLINE void make_word_tables(const std::int16_t* x, int word, std::byte* to) noexcept {
  for (int byte = 0; byte < 4; ++byte) {
    std::int16_t five[5];
    activations_of(x, word, byte, five);
    sums_of_pair(five, reinterpret_cast<std::int16_t*>(to + 96 * byte));
    sums_of_triple(five, reinterpret_cast<std::int16_t*>(to + 96 * byte + 32));
  }
}

template <int N>
SKALD_INLINE void lookup_block(const std::byte* block, const std::byte* const* tables, const std::byte* ahead,
                               i32x16* sums) noexcept {
  std::int32_t totals[N][16] = {};
  for (int word = 0; word < ternary_words; ++word) {
    prefetch(ahead + 64 * word);
    for (int row = 0; row < 16; ++row)
      for (int byte = 0; byte < 4; ++byte) {
        const unsigned value = static_cast<unsigned>(block[64 * word + 4 * row + byte]);
        const unsigned pair = value * 9 >> 8, triple = (value * 9 & 255) * 27 >> 8;
        for (int c = 0; c < N; ++c) {
          const auto* t = reinterpret_cast<const std::int16_t*>(tables[c] + word * word_table_bytes + 96 * byte);
          totals[c][row] += t[pair] + t[16 + triple];
        }
      }
  }
  for (int c = 0; c < N; ++c) sums[c] = load(totals[c]);
}

#endif

/// Those of a column.
SKALD_INLINE std::ptrdiff_t ternary_table_bytes(std::int64_t cols) noexcept {
  return cols / 256 * ternary_words * word_table_bytes;
}

/// Activations as for unpacking; behind them the tables of up to lookup_columns columns.
std::size_t ternary_acts_bytes(std::int64_t cols, std::int64_t count) noexcept {
  const std::int64_t looked_up = count < lookup_columns ? count : lookup_columns;
  return acts_bytes<Acts256>(cols, count) + static_cast<std::size_t>(looked_up * ternary_table_bytes(cols));
}

/// Codes of one column of a block.
SKALD_INLINE void gather_codes(const Acts256& acts, std::int16_t* codes) noexcept {
  std::int8_t bytes_of[256];
  for (int i = 0; i < 64; ++i) __builtin_memcpy(bytes_of + 4 * i, acts.codes + 4 * i * acts.width, 4);
  for (int i = 0; i < 256; ++i) codes[i] = bytes_of[i];
}

void prepare_ternary(const float* x, std::int64_t x_stride, std::int64_t cols, std::int64_t begin, std::int64_t end,
                     std::byte* acts, std::int64_t count) noexcept {
  prepare_acts<Acts256>(x, x_stride, cols, begin, end, acts, count);
  if (count > lookup_columns) return;
  const int width = width_of_group(count, 0);
  for (std::int64_t c = begin; c < end; ++c) {
    Acts256 from(acts, cols, width, static_cast<int>(c));
    std::byte* to = acts + acts_bytes<Acts256>(cols, count) + c * ternary_table_bytes(cols);
    for (std::int64_t b = 0; b < cols / 256; ++b, from.next()) {
      std::int16_t codes[256];
      gather_codes(from, codes);
      for (int word = 0; word < ternary_words; ++word, to += word_table_bytes) make_word_tables(codes, word, to);
    }
  }
}

/// Panels whose blocks take turns, so that tables are read from the second-level cache once for all of them.
inline constexpr int lookup_panels_at_once = 2;

/// P panels by N columns from `first` on; `afterwards` is what comes behind the last panel, from its end.
template <int N, int P>
SKALD_INLINE void lookup_rows(const std::byte* panels, std::int64_t rows, std::int64_t cols, const MatmulColumns& columns,
                              std::int64_t first, float* out, std::int64_t out_stride, std::ptrdiff_t afterwards) noexcept {
  constexpr std::ptrdiff_t distance = 4096;
  constexpr int block_bytes = ApartTQ1_0::panel_block_bytes;
  const std::ptrdiff_t panel_bytes = cols / 256 * block_bytes, table_bytes = ternary_table_bytes(cols);
  Acts256 acts(columns.acts, cols, width_of_group(columns.count, 0), static_cast<int>(first));
  const std::byte* tables[N];
  f32x16 total[P * N];
  SKALD_UNROLL for (int c = 0; c < N; ++c) {
    tables[c] = columns.acts + acts_bytes<Acts256>(cols, columns.count) + (first + c) * table_bytes;
  }
  SKALD_UNROLL for (int i = 0; i < P * N; ++i) total[i] = zero_f32();
  for (std::ptrdiff_t at = 0; at < panel_bytes; at += block_bytes, acts.next()) {
    // Behind these panels come the next ones, which take turns too.
    const std::ptrdiff_t left = panel_bytes - at;
    const std::ptrdiff_t ahead = left > distance ? distance : distance + (P - 1) * panel_bytes + afterwards;
    SKALD_UNROLL for (int p = 0; p < P; ++p) {
      const std::byte* block = panels + p * panel_bytes + at;
      i32x16 sums[N];
      lookup_block<N>(block + 32, tables, block + ahead, sums);
      const f32x16 scale = half_field(block, 0);
      SKALD_UNROLL for (int c = 0; c < N; ++c) {
        total[p * N + c] = fma(to_f32(sums[c]), scale * set1(acts.scales[c]), total[p * N + c]);
      }
    }
    SKALD_UNROLL for (int c = 0; c < N; ++c) tables[c] += ternary_words * word_table_bytes;
  }
  SKALD_UNROLL for (int p = 0; p < P; ++p) {
    SKALD_UNROLL for (int c = 0; c < N; ++c) {
      apart_write(out + (first + c) * out_stride + 16 * p, rows - 16 * p, total[p * N + c]);
    }
  }
}

/// P panels by columns [first, end), four at a time.
template <int P>
void lookup_part(const std::byte* panels, std::int64_t rows, std::int64_t cols, const MatmulColumns& columns, float* out,
                 std::int64_t out_stride, std::ptrdiff_t afterwards) noexcept {
  for (std::int64_t c = columns.begin; c < columns.end;) {
    const std::int64_t left = columns.end - c;
    const std::ptrdiff_t then = left > 4 ? -P * (cols / 256) * ApartTQ1_0::panel_block_bytes : afterwards;
    if (left >= 4) lookup_rows<4, P>(panels, rows, cols, columns, c, out, out_stride, then);
    else if (left == 3) lookup_rows<3, P>(panels, rows, cols, columns, c, out, out_stride, then);
    else if (left == 2) lookup_rows<2, P>(panels, rows, cols, columns, c, out, out_stride, then);
    else lookup_rows<1, P>(panels, rows, cols, columns, c, out, out_stride, then);
    c += left < 4 ? left : 4;
  }
}

void multiply_ternary(const std::byte* panels, std::int64_t row_count, std::int64_t cols, const MatmulColumns& columns,
                      float* out, std::int64_t out_stride) noexcept {
  const std::ptrdiff_t panel_bytes = cols / 256 * ApartTQ1_0::panel_block_bytes;
  for (std::int64_t row = 0; row < row_count;) {
    const std::int64_t left = row_count - row;
    const int now = left > 16 * (lookup_panels_at_once - 1) ? lookup_panels_at_once : 1;
    const std::byte* const end = panels + now * panel_bytes;
    const std::ptrdiff_t afterwards = left > 16 * now || columns.next == nullptr ? 0 : columns.next - end;
    if (now > 1) lookup_part<lookup_panels_at_once>(panels, left, cols, columns, out + row, out_stride, afterwards);
    else lookup_part<1>(panels, left, cols, columns, out + row, out_stride, afterwards);
    panels = end;
    row += 16 * now;
  }
}

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
