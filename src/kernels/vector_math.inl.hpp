#pragma once

// Functions of sixteen lanes. Included by sources of src/kernels/isa/ inside the anonymous namespace of their instruction
// set: nothing here may have external linkage. Every element takes the same operations in full vectors and in tails.

/// Calls f(offset, lanes) for the pieces of a row.
template <class F>
SKALD_INLINE void for_each_vector(std::int64_t n, F&& f) noexcept {
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(i, lanes);
  if (i < n) f(i, static_cast<int>(n - i));
}
SKALD_INLINE f32x16 load_some(const float* p, int count) noexcept {
  return count == lanes ? load(p) : load_n(p, count);
}
SKALD_INLINE void store_some(float* p, f32x16 a, int count) noexcept {
  if (count == lanes) {
    store(p, a);
  } else {
    store_n(p, a, count);
  }
}

/// x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first with so few bits that n times it is exact.
struct Reduced {
  i32x16 n;
  f32x16 tail;  ///< exp(r) - 1
};
SKALD_INLINE Reduced reduce_exp(f32x16 x) noexcept {
  const i32x16 n = round_to_i32(x * set1(1.44269504F));
  const f32x16 nf = to_f32(n);
  const f32x16 r = fnma(nf, set1(-2.12194440e-4F), fnma(nf, set1(0.693359375F), x));
  // Taylor to r^7: the next term is below 2^-27 of the sum.
  f32x16 p = set1(1.0F / 5040);
  p = fma(p, r, set1(1.0F / 720));
  p = fma(p, r, set1(1.0F / 120));
  p = fma(p, r, set1(1.0F / 24));
  p = fma(p, r, set1(1.0F / 6));
  p = fma(p, r, set1(0.5F));
  return {n, fma(p * r, r, r)};
}
SKALD_INLINE f32x16 power_of_two(i32x16 n) noexcept { return from_bits(shl<23>(n + set1(127))); }

/// exp(x), about one ulp; 0 and infinity outside the range, NaN for NaN.
SKALD_INLINE f32x16 vexp(f32x16 x) noexcept {
  x = max(set1(-105.0F), min(set1(90.0F), x));  // these keep a NaN in their second argument
  const Reduced e = reduce_exp(x);
  // In two steps, for the exponents that one float cannot hold.
  const i32x16 half = sra<1>(e.n);
  return (set1(1.0F) + e.tail) * power_of_two(half) * power_of_two(e.n - half);
}

/// tanh(x) = m / (m + 2) with m = exp(2 |x|) - 1, which keeps small x exact to about two ulp.
SKALD_INLINE f32x16 vtanh(f32x16 x) noexcept {
  const f32x16 magnitude = min(set1(10.0F), abs(x));
  const Reduced e = reduce_exp(magnitude + magnitude);
  const f32x16 scale = power_of_two(e.n);
  const f32x16 m = fma(scale, e.tail, scale - set1(1.0F));
  const f32x16 y = m / (m + set1(2.0F));
  return from_bits(bits(y) | (bits(x) & set1(INT32_MIN)));
}

SKALD_INLINE f32x16 sigmoid(f32x16 x) noexcept { return set1(1.0F) / (set1(1.0F) + vexp(-x)); }
SKALD_INLINE f32x16 silu(f32x16 x) noexcept { return x / (set1(1.0F) + vexp(-x)); }

/// log(1 + exp(x)) = max(x, 0) + log(1 + u) with u = exp(-|x|), and log(1 + u) = 2 artanh(u / (2 + u)), a series in an
/// argument up to 1/3 whose next term is below 2^-29.
SKALD_INLINE f32x16 softplus(f32x16 x) noexcept {
  const f32x16 u = vexp(-abs(x));
  const f32x16 r = u / (u + set1(2.0F));
  const f32x16 square = r * r;
  f32x16 p = set1(1.0F / 15);
  p = fma(p, square, set1(1.0F / 13));
  p = fma(p, square, set1(1.0F / 11));
  p = fma(p, square, set1(1.0F / 9));
  p = fma(p, square, set1(1.0F / 7));
  p = fma(p, square, set1(1.0F / 5));
  p = fma(p, square, set1(1.0F / 3));
  p = fma(p, square, set1(1.0F));
  return max(zero_f32(), x) + (r + r) * p;
}

/// Sum of f over a row; f(offset, lanes) gives zero in lanes beyond the row.
template <class F>
SKALD_INLINE float sum(std::int64_t n, F&& f) noexcept {
  f32x16 strands[4] = {zero_f32(), zero_f32(), zero_f32(), zero_f32()};
  std::int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    unroll<4>([&](auto s) SKALD_INLINE_LAMBDA { strands[s] += f(i + s * lanes, lanes); });
  }
  for_each_vector(n - i, [&](std::int64_t j, int count) SKALD_INLINE_LAMBDA { strands[0] += f(i + j, count); });
  return reduce_add((strands[0] + strands[1]) + (strands[2] + strands[3]));
}
