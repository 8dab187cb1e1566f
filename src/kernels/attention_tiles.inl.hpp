#pragma once

// Register tiles of the attention kernels. Included by src/kernels/isa/attention.cpp alone, inside the anonymous
// namespace of its instruction set: nothing here may have external linkage.

/// Queries and 16-lane vectors of the widest tile: what fits in the registers beside one row of operands; and up to
/// how many queries convert keys, or values, in the tile. With AVX-512 conversions take other pipes than multiplications,
/// on some processors all of them.
#if SKALD_VEC_REGISTERS == 1
inline constexpr int tile_queries = 6;
inline constexpr int tile_vectors = 4;
inline constexpr int direct_key_queries = 64;
inline constexpr int direct_value_queries = 16;
#elif SKALD_VEC_REGISTERS == 2
inline constexpr int tile_queries = 6;
inline constexpr int tile_vectors = 1;
inline constexpr int direct_key_queries = 12;
inline constexpr int direct_value_queries = 12;
#else
inline constexpr int tile_queries = 3;
inline constexpr int tile_vectors = 1;
inline constexpr int direct_key_queries = 3;
inline constexpr int direct_value_queries = 3;
#endif

/// Scores are in units of ln 2, so that weights are powers of two: the factor is part of the scale of the queries.
inline constexpr float log2_of_e = 1.44269504F;

/// 2^x for x <= 0, at most 2 units in the last place off; exactly 0 below -126; NaN stays NaN.
SKALD_INLINE f32x16 exp2(f32x16 x) noexcept {
  // x = n + r with |r| <= 1/2, exactly.
#if SKALD_VEC_REGISTERS == 1
  const f32x16 n = nearest(x);
#else
  const f32x16 magic = set1(12582912.0F);  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  const f32x16 shifted = x + magic;
  const f32x16 n = shifted - magic;
#endif
  const f32x16 r = x - n;
  // 1 + r P(r), P of degree 5 with least relative error on the interval: 2^-26.6 with coefficients of single precision.
  f32x16 p = set1(0x1.4c62c0p-13F);
  p = fma(p, r, set1(0x1.5fc786p-10F));
  p = fma(p, r, set1(0x1.3b2176p-7F));
  p = fma(p, r, set1(0x1.c6ada8p-5F));
  p = fma(p, r, set1(0x1.ebfbe6p-3F));
  p = fma(p, r, set1(0x1.62e432p-1F));
  p = fma(p, r, set1(1.0F));
#if SKALD_VEC_REGISTERS == 1
  return times_power_unless_less(p, n, x, set1(-126.0F));
#else
  const f32x16 power = from_bits(shl<23>(bits(shifted)) + set1(0x3F800000));
  return select(less(x, set1(-126.0F)), zero_f32(), p * power);
#endif
}

/// tanh(x) = sign(x) (1 - e) / (1 + e) with e = exp(-2 |x|): absolute error of a few 2^-24.
SKALD_INLINE f32x16 tanh(f32x16 x) noexcept {
  const f32x16 e = exp2(abs(x) * set1(-2.0F * log2_of_e));
  const f32x16 one = set1(1.0F);
  const i32x16 sign = bits(x) & set1(INT32_MIN);
  return from_bits(bits((one - e) / (one + e)) | sign);
}

/// Fetches into the second-level cache: the first level can wait for too few lines to keep the memory busy.
SKALD_INLINE void prefetch_far(const void* p) noexcept { __builtin_prefetch(p, 0, 2); }

/// A piece of the score fold: dimensions [0, dims) of NQ queries with NV groups of 16 keys.
struct ScorePiece {
  const float* q;  ///< [dims][NQ]
  int dims;
  float* scores;  ///< query i, group v: scores + i * score_stride + 16 v
  bool first;     ///< starts from zero, else from what is in `scores`
  const std::byte* next;  ///< memory that is needed after this piece, or null
  std::ptrdiff_t step;    ///< how much of it to fetch with each dimension
};

/// Folds over the head dimension; one key per lane. keys[v] points to [dims][16].
template <class Element, int NQ, int NV>
void score_tile(const ScorePiece& piece, const typename Element::Stored* const* keys) noexcept {
  const typename Element::Stored* k[NV];
  f32x16 acc[NQ][NV];
  SKALD_UNROLL for (int v = 0; v < NV; ++v) {
    k[v] = keys[v];
    SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
      acc[i][v] = piece.first ? zero_f32() : load(piece.scores + i * score_stride + 16 * v);
    }
  }
  const float* q = piece.q;
  // Without anything to fetch, the same line of q is touched again and again.
  const auto* next = piece.next != nullptr ? piece.next : reinterpret_cast<const std::byte*>(q);
  const std::ptrdiff_t step = piece.next != nullptr ? piece.step : 0;
  const int dims = piece.dims;
  for (int d = 0; d < dims; ++d) {
    prefetch_far(next);
    if constexpr (16 * NV * sizeof(typename Element::Stored) > 64) prefetch_far(next + 64);
    next += step;
    f32x16 key[NV];
    SKALD_UNROLL for (int v = 0; v < NV; ++v) {
      key[v] = Element::read(k[v]);
      k[v] += 16;
    }
    SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
      const f32x16 x = set1(q[i]);
      SKALD_UNROLL for (int v = 0; v < NV; ++v) acc[i][v] = fma(x, key[v], acc[i][v]);
    }
    q += NQ;
  }
  float* scores = piece.scores;
  SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
    SKALD_UNROLL for (int v = 0; v < NV; ++v) store(scores + i * score_stride + 16 * v, acc[i][v]);
  }
}

/// The score fold over coded keys: all dimensions of NQ queries with NV groups of 16 keys. Queries are numbers of 16 bits
/// with one scale each; a block of 32 dimensions is summed in integers, exactly, the blocks in floats.
struct CodePiece {
  const std::int32_t* q;      ///< [16 * blocks][NQ] pairs of dimensions
  const std::int32_t* bases;  ///< [blocks][NQ] what the codes' offset adds to a block's sum
  const float* scales;        ///< [NQ]
  int blocks;
  float* scores;  ///< query i, group v: scores + i * score_stride + 16 v
  const std::byte* next;
};

template <class Element, int NQ, int NV>
void code_tile(const CodePiece& piece, const typename Element::Stored* const* keys) noexcept {
  const typename Element::Stored* k[NV];
  const std::uint16_t* key_scales[NV];
  f32x16 total[NQ][NV];
  SKALD_UNROLL for (int v = 0; v < NV; ++v) {
    k[v] = keys[v];
    key_scales[v] = reinterpret_cast<const std::uint16_t*>(keys[v] + std::ptrdiff_t{16} * Element::pair_bytes *
                                                                         piece.blocks);
    SKALD_UNROLL for (int i = 0; i < NQ; ++i) total[i][v] = zero_f32();
  }
  const std::int32_t* q = piece.q;
  const auto* next = piece.next != nullptr ? piece.next : reinterpret_cast<const std::byte*>(q);
  const std::ptrdiff_t step = piece.next != nullptr ? std::ptrdiff_t{Element::pair_bytes} * NV : 0;
  for (int block = 0; block < piece.blocks; ++block) {
    i32x16 acc[NQ][NV];
    SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
      SKALD_UNROLL for (int v = 0; v < NV; ++v) acc[i][v] = zero_i32();
    }
    for (int pair = 0; pair < 16; ++pair) {
      prefetch_far(next);
      next += step;
      i32x16 key[NV];
      SKALD_UNROLL for (int v = 0; v < NV; ++v) {
        key[v] = Element::pairs(k[v]);
        k[v] += Element::pair_bytes;
      }
      SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
        const i32x16 x = set1(q[i]);
        SKALD_UNROLL for (int v = 0; v < NV; ++v) acc[i][v] = dot2(acc[i][v], key[v], x);
      }
      q += NQ;
    }
    prefetch_far(next);  // the groups' scales, 32 bytes for each block, lie between their codes
    next += step * (32 / Element::pair_bytes);
    SKALD_UNROLL for (int v = 0; v < NV; ++v) {
      const f32x16 scale = load_f16(key_scales[v]);
      key_scales[v] += 16;
      SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
        const i32x16 sum = Element::offset == 0 ? acc[i][v] : acc[i][v] + set1(piece.bases[block * NQ + i]);
        total[i][v] = fma(to_f32(sum), scale, total[i][v]);
        if constexpr (Element::minimums) {
          const f32x16 minimum = load_f16(key_scales[v] + std::ptrdiff_t{16} * (piece.blocks - 1));
          total[i][v] = fma(to_f32(set1(piece.bases[block * NQ + i])), minimum, total[i][v]);
        }
      }
    }
  }
  SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
    const f32x16 scale = set1(piece.scales[i]);
    SKALD_UNROLL for (int v = 0; v < NV; ++v) store(piece.scores + i * score_stride + 16 * v, total[i][v] * scale);
  }
}

/// A piece of the weighted sum: `tokens` consecutive value rows for NQ queries and 16 NV dimensions.
struct ValuePiece {
  const float* p;  ///< query i, token t: p[i * score_stride + t]
  int tokens;
  float* out;  ///< query i: out + i * out_stride; added to
  bool fresh;  ///< sums start from zero, not from what is in `out`
  std::ptrdiff_t out_stride;
  std::ptrdiff_t value_stride;  ///< elements from token to token
  const std::byte* next;        ///< memory that is needed later, or null
  std::ptrdiff_t step;          ///< how much of it to fetch with each token
  int vector;                   ///< number of the first vector of 16 dimensions; coded values only, as what follows
  const float* scales;          ///< of the first token
  std::ptrdiff_t scale_stride;
  const float* minimums;  ///< as scales, if the format has any
};

/// Folds over tokens; one dimension per lane.
template <class Element, int NQ, int NV>
void value_tile(const ValuePiece& piece, const typename Element::Stored* values) noexcept {
  f32x16 acc[NQ][NV];
  SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
    SKALD_UNROLL for (int v = 0; v < NV; ++v) {
      acc[i][v] = piece.fresh ? zero_f32() : load(piece.out + i * piece.out_stride + 16 * v);
    }
  }
  const float* p = piece.p;
  [[maybe_unused]] const float* scales = piece.scales;
  [[maybe_unused]] const float* minimums = piece.minimums;
  const std::ptrdiff_t stride = piece.value_stride;
  const auto* next = piece.next != nullptr ? piece.next : reinterpret_cast<const std::byte*>(p);
  const std::ptrdiff_t step = piece.next != nullptr ? piece.step : 0;
  const int tokens = piece.tokens;
  for (int t = 0; t < tokens; ++t) {
    prefetch_far(next);
    if constexpr (Element::converts && 16 * NV * sizeof(typename Element::Stored) > 64) prefetch_far(next + 64);
    next += step;
    f32x16 value[NV];
    if constexpr (Element::coded) {
      SKALD_UNROLL for (int v = 0; v < NV; ++v) {
        const f32x16 scale = set1(scales[(piece.vector + v) / 2]);
        if constexpr (Element::minimums)
          value[v] = fma(to_f32(Element::value(values, piece.vector + v)), scale, set1(minimums[(piece.vector + v) / 2]));
        else
          value[v] = to_f32(Element::value(values, piece.vector + v)) * scale;
      }
      scales += piece.scale_stride;
      if constexpr (Element::minimums) minimums += piece.scale_stride;
    } else {
      SKALD_UNROLL for (int v = 0; v < NV; ++v) value[v] = Element::read(values + 16 * v);
    }
    SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
      const f32x16 weight = set1(p[i * score_stride]);
      SKALD_UNROLL for (int v = 0; v < NV; ++v) acc[i][v] = fma(weight, value[v], acc[i][v]);
    }
    ++p;
    values += stride;
  }
  float* out = piece.out;
  const std::ptrdiff_t out_stride = piece.out_stride;
  SKALD_UNROLL for (int i = 0; i < NQ; ++i) {
    SKALD_UNROLL for (int v = 0; v < NV; ++v) store(out + i * out_stride + 16 * v, acc[i][v]);
  }
}

/// Queries in the next tile when n are left. A tile's shape has no influence on its results.
SKALD_INLINE int next_tile(int n) noexcept {
  if (tile_queries == 3) return n == 4 ? 2 : n < 3 ? n : 3;
  if (n >= 9 || n == 6) return 6;
  if (n >= 7 || n == 4) return 4;
  return n == 5 ? 3 : n;
}
SKALD_INLINE int next_vectors(int n) noexcept {
  if (tile_vectors == 1) return 1;
  return n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

/// Calls f.template operator()<NQ, NV>() for the shape.
template <class F>
SKALD_INLINE void with_shape(int queries, int vectors, F f) noexcept {
#define SKALD_SHAPE(nq, nv)             \
  if (queries == nq && vectors == nv) { \
    f.template call<nq, nv>();          \
    return;                             \
  }
#if SKALD_VEC_REGISTERS == 1
#define SKALD_SHAPES(nq) SKALD_SHAPE(nq, 4) SKALD_SHAPE(nq, 2) SKALD_SHAPE(nq, 1)
  SKALD_SHAPES(6)
  SKALD_SHAPES(4)
#elif SKALD_VEC_REGISTERS == 2
#define SKALD_SHAPES(nq) SKALD_SHAPE(nq, 1)
  SKALD_SHAPES(6)
  SKALD_SHAPES(4)
#else
#define SKALD_SHAPES(nq) SKALD_SHAPE(nq, 1)
#endif
  SKALD_SHAPES(3) SKALD_SHAPES(2) SKALD_SHAPES(1)
#undef SKALD_SHAPES
#undef SKALD_SHAPE
}

template <class Element>
struct ScoreCall {
  const ScorePiece& piece;
  const typename Element::Stored* const* keys;
  template <int NQ, int NV>
  SKALD_INLINE void call() const noexcept {
    score_tile<Element, NQ, NV>(piece, keys);
  }
};
/// Two vectors at most: there are integer and float sums in registers.
inline constexpr int most_code_vectors = 2;
template <class Element>
struct CodeCall {
  const CodePiece& piece;
  const typename Element::Stored* const* keys;
  template <int NQ, int NV>
  SKALD_INLINE void call() const noexcept {
    if constexpr (NV <= most_code_vectors) code_tile<Element, NQ, NV>(piece, keys);
  }
};
template <class Element>
struct ValueCall {
  const ValuePiece& piece;
  const typename Element::Stored* values;
  template <int NQ, int NV>
  SKALD_INLINE void call() const noexcept {
    value_tile<Element, NQ, NV>(piece, values);
  }
};
