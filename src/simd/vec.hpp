#pragma once

// Sixteen lanes of 32 bits, whatever the instruction set: one zmm, two ymm or four 16-byte vectors. Kernels are written
// once over these types; reductions and tails then do the same operations in the same order on every instruction set.
//
// Only for translation units in src/kernels/isa/ (SKALD_ISA names the instruction set). Everything is always inlined and
// has internal linkage, so that no symbol of one instruction set can be linked into another.
//
// f32x16   floats            i32x16   int32            u8x64   bytes, four to each 32-bit lane
//   load, store        unaligned          load_n, store_n    the first n of 16 lanes; other lanes are zero / untouched
//   set1, zero         + - * / (i32: + - * & | ^)            min, max, abs, sqrt, fma(a, b, c) = a * b + c, fnma = c - a * b
//   load_f16, load_bf16, store_f16, store_bf16 (and the _n forms); load_u8, load_i8: 16 bytes, one to a lane;
//   load_i8_pairs: 32 bytes, two to a lane, as int16
//   to_f32 (i32 to f32), round_to_i32 (nearest even), bits / from_bits, shl<N>, shr<N> (logical), sra<N>, shift_right(a, n)
//   greater(a, b), less(a, b) -> mask16; select(mask, a, b)
//   reduce_add, reduce_max: always the tree lane i with lane i + 8, i + 4, i + 2, i + 1
//
// min(a, b) and max(a, b) give b if either is NaN. The baseline has no fma: it rounds the product and the sum.

#if !defined(SKALD_ISA)
#error "vec.hpp is for the kernels of one instruction set: compile it with SKALD_ISA"
#endif

#include <cstddef>
#include <cstdint>

#if defined(SKALD_ISA_avx2) || defined(SKALD_ISA_avx512) || defined(SKALD_ISA_avx512vnni) || \
    defined(SKALD_ISA_avx512bf16)
// GCC 12 and 13 warn about the undefined operands that their own intrinsics pass on (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#define SKALD_INLINE inline __attribute__((always_inline))

#if defined(SKALD_ISA_avx512) || defined(SKALD_ISA_avx512vnni) || defined(SKALD_ISA_avx512bf16)
#define SKALD_VEC_REGISTERS 1  // machine registers per sixteen lanes
#include "simd/vec_avx512.hpp"
#elif defined(SKALD_ISA_avx2)
#define SKALD_VEC_REGISTERS 2
#include "simd/vec_avx2.hpp"
#else
#define SKALD_VEC_REGISTERS 4
#include "simd/vec_baseline.hpp"
#endif

// What follows from the primitives.
namespace skald::inline v0::kernels::SKALD_ISA {
namespace {

inline constexpr int lanes = 16;

SKALD_INLINE f32x16& operator+=(f32x16& a, f32x16 b) noexcept { return a = a + b; }
SKALD_INLINE f32x16& operator-=(f32x16& a, f32x16 b) noexcept { return a = a - b; }
SKALD_INLINE f32x16& operator*=(f32x16& a, f32x16 b) noexcept { return a = a * b; }
SKALD_INLINE i32x16& operator+=(i32x16& a, i32x16 b) noexcept { return a = a + b; }
SKALD_INLINE i32x16& operator-=(i32x16& a, i32x16 b) noexcept { return a = a - b; }
SKALD_INLINE f32x16 operator-(f32x16 a) noexcept { return from_bits(bits(a) ^ set1(INT32_MIN)); }

SKALD_INLINE f32x16 load_bf16_n(const std::uint16_t* p, int n) noexcept {
  std::uint16_t values[16] = {};
  for (int i = 0; i < n; ++i) values[i] = p[i];
  return load_bf16(values);
}
SKALD_INLINE f32x16 load_f16_n(const std::uint16_t* p, int n) noexcept {
  std::uint16_t values[16] = {};
  for (int i = 0; i < n; ++i) values[i] = p[i];
  return load_f16(values);
}
SKALD_INLINE void store_f16_n(std::uint16_t* p, f32x16 a, int n) noexcept {
  std::uint16_t values[16];
  store_f16(values, a);
  for (int i = 0; i < n; ++i) p[i] = values[i];
}
SKALD_INLINE void store_bf16_n(std::uint16_t* p, f32x16 a, int n) noexcept {
  std::uint16_t values[16];
  store_bf16(values, a);
  for (int i = 0; i < n; ++i) p[i] = values[i];
}

SKALD_INLINE void prefetch(const void* p) noexcept { __builtin_prefetch(p, 0, 3); }
/// Into the second-level cache.
SKALD_INLINE void prefetch_later(const void* p) noexcept { __builtin_prefetch(p, 0, 2); }

/// A pointer whose origin the compiler does not know: it would else compute all addresses of straight code beforehand and
/// hold them in vector registers and in memory.
SKALD_INLINE const std::byte* settled(const std::byte* p) noexcept {
  asm("" : "+r"(p));
  return p;
}

/// Compile-time index for unroll().
template <int I>
struct Index {
  static constexpr int value = I;
  constexpr operator int() const noexcept { return I; }  // NOLINT(google-explicit-constructor)
};
template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};
template <class F, int... I>
SKALD_INLINE void unroll(F&& f, Indices<I...>) noexcept {
  (f(Index<I>{}), ...);
}
/// Calls f(Index<0>{}), …, f(Index<N - 1>{}): a loop whose index is a constant expression. Mark the lambda with
/// SKALD_INLINE_LAMBDA.
template <int N, class F>
SKALD_INLINE void unroll(F&& f) noexcept {
  unroll(f, typename MakeIndices<N>::type{});
}
#define SKALD_INLINE_LAMBDA __attribute__((always_inline))

/// Before a loop whose index is to become a constant in every turn, so that arrays indexed with it stay in registers. For
/// the compiler far cheaper than unroll(), each turn of which is a function to inline.
#if defined(__clang__)
#define SKALD_UNROLL _Pragma("unroll")
#else
#define SKALD_UNROLL _Pragma("GCC unroll 64")
#endif

}  // namespace
}  // namespace skald::inline v0::kernels::SKALD_ISA
