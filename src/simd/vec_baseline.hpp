#pragma once

// Part of simd/vec.hpp: 16-byte vectors of the compiler, which GCC and Clang map to SSE2, NEON or plain code.

namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

typedef float f32x4 __attribute__((vector_size(16)));
typedef std::int32_t i32x4 __attribute__((vector_size(16)));
typedef std::uint32_t u32x4 __attribute__((vector_size(16)));

struct f32x16 {
  f32x4 r[4];
};
struct i32x16 {
  i32x4 r[4];
};
struct u8x64 {
  i32x4 r[4];
};
struct mask16 {
  i32x4 r[4];
};

#define SKALD_VEC_EACH(expression)         \
  for (int i = 0; i < 4; ++i) {            \
    expression;                            \
  }                                        \
  static_assert(true)

SKALD_INLINE f32x16 load(const float* p) noexcept {
  f32x16 a;
  __builtin_memcpy(&a, p, 64);
  return a;
}
SKALD_INLINE i32x16 load(const std::int32_t* p) noexcept {
  i32x16 a;
  __builtin_memcpy(&a, p, 64);
  return a;
}
SKALD_INLINE u8x64 load_bytes(const void* p) noexcept {
  u8x64 a;
  __builtin_memcpy(&a, p, 64);
  return a;
}
SKALD_INLINE void store(float* p, f32x16 a) noexcept { __builtin_memcpy(p, &a, 64); }
SKALD_INLINE void store(std::int32_t* p, i32x16 a) noexcept { __builtin_memcpy(p, &a, 64); }
SKALD_INLINE void store_bytes(void* p, u8x64 a) noexcept { __builtin_memcpy(p, &a, 64); }
SKALD_INLINE f32x16 load_n(const float* p, int n) noexcept {
  float values[16] = {};
  for (int i = 0; i < n; ++i) values[i] = p[i];
  return load(values);
}
SKALD_INLINE i32x16 load_n(const std::int32_t* p, int n) noexcept {
  std::int32_t values[16] = {};
  for (int i = 0; i < n; ++i) values[i] = p[i];
  return load(values);
}
SKALD_INLINE void store_n(float* p, f32x16 a, int n) noexcept {
  float values[16];
  store(values, a);
  for (int i = 0; i < n; ++i) p[i] = values[i];
}
SKALD_INLINE void store_n(std::int32_t* p, i32x16 a, int n) noexcept {
  std::int32_t values[16];
  store(values, a);
  for (int i = 0; i < n; ++i) p[i] = values[i];
}
SKALD_INLINE f32x16 set1(float a) noexcept {
  const f32x4 v = {a, a, a, a};
  return {{v, v, v, v}};
}
SKALD_INLINE i32x16 set1(std::int32_t a) noexcept {
  const i32x4 v = {a, a, a, a};
  return {{v, v, v, v}};
}
SKALD_INLINE f32x16 zero_f32() noexcept { return set1(0.0F); }
SKALD_INLINE i32x16 zero_i32() noexcept { return set1(0); }

#define SKALD_VEC_BINARY(type, name, expression)        \
  SKALD_INLINE type name(type a, type b) noexcept {     \
    SKALD_VEC_EACH(a.r[i] = expression);                \
    return a;                                           \
  }
SKALD_VEC_BINARY(f32x16, operator+, a.r[i] + b.r[i])
SKALD_VEC_BINARY(f32x16, operator-, a.r[i] - b.r[i])
SKALD_VEC_BINARY(f32x16, operator*, a.r[i] * b.r[i])
SKALD_VEC_BINARY(f32x16, operator/, a.r[i] / b.r[i])
SKALD_VEC_BINARY(f32x16, min, a.r[i] < b.r[i] ? a.r[i] : b.r[i])
SKALD_VEC_BINARY(f32x16, max, a.r[i] > b.r[i] ? a.r[i] : b.r[i])
// Unsigned arithmetic wraps as the instructions of the other sets do.
SKALD_VEC_BINARY(i32x16, operator+, (i32x4)((u32x4)a.r[i] + (u32x4)b.r[i]))
SKALD_VEC_BINARY(i32x16, operator-, (i32x4)((u32x4)a.r[i] - (u32x4)b.r[i]))
SKALD_VEC_BINARY(i32x16, operator*, (i32x4)((u32x4)a.r[i] * (u32x4)b.r[i]))
SKALD_VEC_BINARY(i32x16, operator&, a.r[i] & b.r[i])
SKALD_VEC_BINARY(i32x16, operator|, a.r[i] | b.r[i])
SKALD_VEC_BINARY(i32x16, operator^, a.r[i] ^ b.r[i])
SKALD_VEC_BINARY(i32x16, min, a.r[i] < b.r[i] ? a.r[i] : b.r[i])
SKALD_VEC_BINARY(i32x16, max, a.r[i] > b.r[i] ? a.r[i] : b.r[i])
SKALD_VEC_BINARY(u8x64, operator&, a.r[i] & b.r[i])
SKALD_VEC_BINARY(u8x64, operator|, a.r[i] | b.r[i])
SKALD_VEC_BINARY(u8x64, operator^, a.r[i] ^ b.r[i])
#undef SKALD_VEC_BINARY

SKALD_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) noexcept { return a * b + c; }
SKALD_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) noexcept { return c - a * b; }
SKALD_INLINE f32x16 sqrt(f32x16 a) noexcept {
  for (int i = 0; i < 16; ++i) a.r[i / 4][i % 4] = __builtin_sqrtf(a.r[i / 4][i % 4]);
  return a;
}

template <int N>
SKALD_INLINE i32x16 shl(i32x16 a) noexcept {
  SKALD_VEC_EACH(a.r[i] = (i32x4)((u32x4)a.r[i] << N));
  return a;
}
template <int N>
SKALD_INLINE i32x16 shr(i32x16 a) noexcept {
  SKALD_VEC_EACH(a.r[i] = (i32x4)((u32x4)a.r[i] >> N));
  return a;
}
template <int N>
SKALD_INLINE i32x16 sra(i32x16 a) noexcept {
  SKALD_VEC_EACH(a.r[i] = a.r[i] >> N);
  return a;
}

SKALD_INLINE i32x16 shift_right(i32x16 a, int n) noexcept {
  SKALD_VEC_EACH(a.r[i] = (i32x4)((u32x4)a.r[i] >> static_cast<std::uint32_t>(n)));
  return a;
}

SKALD_INLINE i32x16 bits(f32x16 a) noexcept {
  i32x16 b;
  SKALD_VEC_EACH(b.r[i] = (i32x4)a.r[i]);
  return b;
}
SKALD_INLINE f32x16 from_bits(i32x16 a) noexcept {
  f32x16 b;
  SKALD_VEC_EACH(b.r[i] = (f32x4)a.r[i]);
  return b;
}
SKALD_INLINE f32x16 to_f32(i32x16 a) noexcept {
  f32x16 b;
  SKALD_VEC_EACH(b.r[i] = __builtin_convertvector(a.r[i], f32x4));
  return b;
}
SKALD_INLINE mask16 greater(f32x16 a, f32x16 b) noexcept {
  mask16 m;
  SKALD_VEC_EACH(m.r[i] = a.r[i] > b.r[i]);
  return m;
}
SKALD_INLINE mask16 less(f32x16 a, f32x16 b) noexcept { return greater(b, a); }
SKALD_INLINE mask16 greater(i32x16 a, i32x16 b) noexcept {
  mask16 m;
  SKALD_VEC_EACH(m.r[i] = a.r[i] > b.r[i]);
  return m;
}
SKALD_INLINE i32x16 select(mask16 m, i32x16 a, i32x16 b) noexcept {
  SKALD_VEC_EACH(a.r[i] = (a.r[i] & m.r[i]) | (b.r[i] & ~m.r[i]));
  return a;
}
SKALD_INLINE f32x16 select(mask16 m, f32x16 a, f32x16 b) noexcept {
  return from_bits(select(m, bits(a), bits(b)));
}
SKALD_INLINE f32x16 abs(f32x16 a) noexcept { return from_bits(bits(a) & set1(INT32_MAX)); }
/// Nearest even for magnitudes below 2^22 through the addition of 1.5 * 2^23; larger ones truncate.
SKALD_INLINE i32x16 round_to_i32(f32x16 a) noexcept {
  const f32x16 magic = set1(12582912.0F);
  const f32x16 rounded = select(less(abs(a), set1(4194304.0F)), (a + magic) - magic, a);
  i32x16 b;
  SKALD_VEC_EACH(b.r[i] = __builtin_convertvector(rounded.r[i], i32x4));
  return b;
}

// Widening and narrowing by interleaving: element by element, compilers insert and extract one lane at a time.
typedef std::uint16_t u16x8 __attribute__((vector_size(16)));
typedef std::uint8_t u8x16 __attribute__((vector_size(16)));
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
/// The eight elements of `a` as eight numbers of 32 bits, with `a` in their low or (high) upper halves.
template <bool High>
SKALD_INLINE void widen(u16x8 a, i32x4& first, i32x4& second) noexcept {
  const u16x8 zero = {};
  if constexpr (High) {
    first = (i32x4)__builtin_shufflevector(zero, a, 0, 8, 1, 9, 2, 10, 3, 11);
    second = (i32x4)__builtin_shufflevector(zero, a, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    first = (i32x4)__builtin_shufflevector(a, zero, 0, 8, 1, 9, 2, 10, 3, 11);
    second = (i32x4)__builtin_shufflevector(a, zero, 4, 12, 5, 13, 6, 14, 7, 15);
  }
}
/// Bytes as the upper halves of 16-bit numbers.
SKALD_INLINE void widen_bytes(u8x16 a, u16x8& first, u16x8& second) noexcept {
  const u8x16 zero = {};
  first = (u16x8)__builtin_shufflevector(zero, a, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  second = (u16x8)__builtin_shufflevector(zero, a, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#else
template <bool High>
SKALD_INLINE void widen(u16x8 a, i32x4& first, i32x4& second) noexcept {
  for (int i = 0; i < 4; ++i) {
    first[i] = static_cast<std::int32_t>(std::uint32_t{a[i]} << (High ? 16 : 0));
    second[i] = static_cast<std::int32_t>(std::uint32_t{a[i + 4]} << (High ? 16 : 0));
  }
}
SKALD_INLINE void widen_bytes(u8x16 a, u16x8& first, u16x8& second) noexcept {
  for (int i = 0; i < 8; ++i) {
    first[i] = static_cast<std::uint16_t>(a[i] << 8);
    second[i] = static_cast<std::uint16_t>(a[i + 8] << 8);
  }
}
#endif
template <bool High>
SKALD_INLINE i32x16 load_wide(const std::uint16_t* p) noexcept {
  u16x8 a[2];
  __builtin_memcpy(a, p, 32);
  i32x16 wide;
  widen<High>(a[0], wide.r[0], wide.r[1]);
  widen<High>(a[1], wide.r[2], wide.r[3]);
  return wide;
}
SKALD_INLINE i32x16 load_u16(const std::uint16_t* p) noexcept { return load_wide<false>(p); }
SKALD_INLINE i32x16 load_i8(const std::int8_t* p) noexcept {
  u8x16 a;
  __builtin_memcpy(&a, p, 16);
  u16x8 half[2];
  widen_bytes(a, half[0], half[1]);
  i32x16 wide;
  widen<true>(half[0], wide.r[0], wide.r[1]);
  widen<true>(half[1], wide.r[2], wide.r[3]);
  return sra<24>(wide);
}
SKALD_INLINE i32x16 load_u8(const std::uint8_t* p) noexcept {
  return load_i8(reinterpret_cast<const std::int8_t*>(p)) & set1(0xFF);
}
SKALD_INLINE i32x16 load_i8_pairs(const std::uint8_t* p) noexcept {
  i32x16 wide;
  for (int i = 0; i < 2; ++i) {
    u8x16 a;
    __builtin_memcpy(&a, p + 16 * i, 16);
    u16x8 half[2];
    widen_bytes(a, half[0], half[1]);
    typedef std::int16_t i16x8 __attribute__((vector_size(16)));
    wide.r[2 * i] = (i32x4)((i16x8)half[0] >> 8);
    wide.r[2 * i + 1] = (i32x4)((i16x8)half[1] >> 8);
  }
  return wide;
}
SKALD_INLINE void store_u16(std::uint16_t* p, i32x16 a) noexcept {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::uint16_t>(a.r[i / 4][i % 4]);
}
SKALD_INLINE f32x16 load_f16(const std::uint16_t* p) noexcept {
  const i32x16 h = load_u16(p);
  const i32x16 sign = shl<16>(h & set1(0x8000));
  const i32x16 rest = h & set1(0x7FFF);
  const i32x16 normal = shl<13>(rest) + set1(112 << 23);
  const i32x16 special = shl<13>(rest) | set1(0x7F800000);
  const i32x16 small = bits(to_f32(rest) * set1(0x1p-24F));  // subnormals: mantissa * 2^-24, exact
  i32x16 magnitude = select(greater(set1(0x400), rest), small, normal);
  magnitude = select(greater(rest, set1(0x7BFF)), special, magnitude);
  return from_bits(magnitude | sign);
}
SKALD_INLINE f32x16 load_bf16(const std::uint16_t* p) noexcept { return from_bits(load_wide<true>(p)); }
/// The rule of f32_to_f16 in core/half.hpp, lane-wise.
SKALD_INLINE void store_f16(std::uint16_t* p, f32x16 a) noexcept {
  const i32x16 b = bits(a);
  const i32x16 sign = shr<16>(b & set1(INT32_MIN));
  const i32x16 magnitude = b & set1(INT32_MAX);
  // Normal: round the mantissa to ten bits and change the exponent's bias.
  i32x16 result = shr<13>(magnitude + set1(0xFFF) + (shr<13>(magnitude) & set1(1)) - set1(112 << 23));
  // Below 2^-14: adding 0.5 leaves the value in units of 2^-24, rounded, in the low mantissa bits.
  const i32x16 small = bits(from_bits(magnitude) + set1(0.5F)) - set1(0x3F000000);
  result = select(greater(set1(0x38800000), magnitude), small, result);
  result = select(greater(magnitude, set1(0x477FEFFF)), set1(0x7C00), result);
  const i32x16 nan = set1(0x7E00) | (shr<13>(magnitude) & set1(0x3FF));
  result = select(greater(magnitude, set1(0x7F800000)), nan, result);
  store_u16(p, result | sign);
}
SKALD_INLINE void store_bf16(std::uint16_t* p, f32x16 a) noexcept {
  const i32x16 b = bits(a);
  const i32x16 rounded = b + set1(0x7FFF) + (shr<16>(b) & set1(1));
  const mask16 nan = greater(b & set1(INT32_MAX), set1(0x7F800000));
  store_u16(p, shr<16>(select(nan, b | set1(0x400000), rounded)));
}

SKALD_INLINE float reduce_add(f32x16 a) noexcept {
  const f32x4 s = (a.r[0] + a.r[2]) + (a.r[1] + a.r[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
SKALD_INLINE float reduce_max(f32x16 a) noexcept {
  const f32x4 m = a.r[0] > a.r[2] ? a.r[0] : a.r[2];
  const f32x4 n = a.r[1] > a.r[3] ? a.r[1] : a.r[3];
  const f32x4 s = m > n ? m : n;
  const float x = s[0] > s[2] ? s[0] : s[2];
  const float y = s[1] > s[3] ? s[1] : s[3];
  return x > y ? x : y;
}
SKALD_INLINE std::int32_t reduce_max(i32x16 a) noexcept {
  std::int32_t top = a.r[0][0];
  for (int i = 1; i < 16; ++i) top = a.r[i / 4][i % 4] > top ? a.r[i / 4][i % 4] : top;
  return top;
}
SKALD_INLINE std::int32_t reduce_add(i32x16 a) noexcept {
  std::uint32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += static_cast<std::uint32_t>(a.r[i / 4][i % 4]);
  return static_cast<std::int32_t>(sum);
}

/// Narrows to int8 with saturation, sixteen bytes.
SKALD_INLINE void store_i8(std::int8_t* p, i32x16 a) noexcept {
  a = min(max(a, set1(-128)), set1(127));
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(a.r[i / 4][i % 4]);
}

SKALD_INLINE u8x64 bytes(i32x16 a) noexcept { return {{a.r[0], a.r[1], a.r[2], a.r[3]}}; }
SKALD_INLINE i32x16 words(u8x64 a) noexcept { return {{a.r[0], a.r[1], a.r[2], a.r[3]}}; }

/// Byte K of each lane, unsigned or signed.
template <int K>
SKALD_INLINE i32x16 byte_unsigned(i32x16 a) noexcept {
  return shr<24>(shl<24 - 8 * K>(a));
}
template <int K>
SKALD_INLINE i32x16 byte_signed(i32x16 a) noexcept {
  return sra<24>(shl<24 - 8 * K>(a));
}
/// Product of numbers whose values fit in 16 bits, exact: what SSE2 can do without a 32-bit multiplication.
SKALD_INLINE i32x16 multiply_small(i32x16 a, i32x16 b) noexcept {
#if defined(__SSE2__)
  typedef short i16x8 __attribute__((vector_size(16)));
  SKALD_VEC_EACH(a.r[i] = (i32x4)__builtin_ia32_pmaddwd128((i16x8)(a.r[i] & 0xFFFF), (i16x8)b.r[i]));
  return a;
#else
  return a * b;
#endif
}
/// acc + the four products of unsigned bytes w and signed bytes a of each lane.
SKALD_INLINE i32x16 dot4(i32x16 acc, u8x64 w, u8x64 a) noexcept {
  const i32x16 x = words(w), y = words(a);
  acc = acc + multiply_small(byte_unsigned<0>(x), byte_signed<0>(y));
  acc = acc + multiply_small(byte_unsigned<1>(x), byte_signed<1>(y));
  acc = acc + multiply_small(byte_unsigned<2>(x), byte_signed<2>(y));
  return acc + multiply_small(byte_unsigned<3>(x), byte_signed<3>(y));
}
/// acc + a.lo * b.lo + a.hi * b.hi over the two int16 of each lane.
SKALD_INLINE i32x16 dot2(i32x16 acc, i32x16 a, i32x16 b) noexcept {
#if defined(__SSE2__)
  typedef short i16x8 __attribute__((vector_size(16)));
  SKALD_VEC_EACH(acc.r[i] = (i32x4)((u32x4)acc.r[i] +
                                    (u32x4)__builtin_ia32_pmaddwd128((i16x8)a.r[i], (i16x8)b.r[i])));
  return acc;
#else
  acc = acc + sra<16>(shl<16>(a)) * sra<16>(shl<16>(b));
  return acc + sra<16>(a) * sra<16>(b);
#endif
}
/// int16 arithmetic on the pairs of each lane.
SKALD_INLINE i32x16 shl8_16(i32x16 a) noexcept { return shl<8>(a) & set1(static_cast<std::int32_t>(0xFF00FF00)); }
SKALD_INLINE i32x16 sra8_16(i32x16 a) noexcept {
  return shl<16>(sra<24>(a)) | (sra<24>(shl<16>(a)) & set1(0xFFFF));
}
#undef SKALD_VEC_EACH

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
