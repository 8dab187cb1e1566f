#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include <skald/config.hpp>
#include <skald/core/dtype.hpp>
#include <skald/core/half.hpp>
#include <skald/quant/activation.hpp>
#include <skald/quant/block_layout.hpp>

namespace skald::inline v0 {

/// A weight format: a row is a sequence of equal blocks, each of `block_elements` values in a trivially copyable Block.
///
///     struct MyFormat {
///       static constexpr std::string_view name = "mine";
///       static constexpr std::size_t block_elements = 64;
///       static constexpr float max_magnitude = 1e4F;       // encode is given nothing larger
///       struct Block { ... };
///       static void encode(const float* x, Block* out, const float* importance);
///       static void decode(const Block* block, float* out);
///     };
///
/// encode reads block_elements finite floats with |x| <= max_magnitude and, if `importance` is not null, as many finite
/// weights >= 0: the error to keep small is the sum of importance[i] * (x[i] - decoded[i])^2. It writes every byte of
/// the block and depends on nothing else. decode writes block_elements floats and accepts any bytes.
template <class F>
concept BlockFormat = std::is_trivially_copyable_v<typename F::Block> &&
    requires(const float* in, float* out, typename F::Block* block, const typename F::Block* stored) {
  { F::name } -> std::convertible_to<std::string_view>;
  { F::block_elements } -> std::convertible_to<std::size_t>;
  { F::max_magnitude } -> std::convertible_to<float>;
  F::encode(in, block, in);
  F::decode(stored, out);
  requires(std::size_t{F::block_elements} > 0);
};

/// A BlockFormat that files name by a DType.
template <class F>
concept StoredBlockFormat = BlockFormat<F> && requires {
  { F::dtype } -> std::convertible_to<DType>;
};

/// A BlockFormat with an integer dot product against int8 activations of kind F::activation. The dot product of a row
/// is the fold `acc = F::fold_q8(block_b, activations, b, acc)` over the blocks in ascending order, from acc = 0.
template <class F>
concept IntegerBlockFormat = BlockFormat<F> &&
    requires(const typename F::Block* stored, const ActivationView& activations, std::size_t index, float acc) {
  { F::activation } -> std::convertible_to<ActivationKind>;
  { F::fold_q8(stored, activations, index, acc) } -> std::convertible_to<float>;
};

namespace quant {

/// Plain floats.
struct F32 {
  static constexpr DType dtype = DType::f32;
  static constexpr std::string_view name = "f32";
  static constexpr std::size_t block_elements = 1;
  static constexpr float max_magnitude = 0x1.FFFFFEp+127F;
  struct Block {
    float value;
  };
  static void encode(const float* x, Block* out, const float* /*importance*/) noexcept { out->value = *x; }
  static void decode(const Block* block, float* out) noexcept { *out = block->value; }
};

/// IEEE binary16, rounded to nearest even.
struct F16 {
  static constexpr DType dtype = DType::f16;
  static constexpr std::string_view name = "f16";
  static constexpr std::size_t block_elements = 1;
  static constexpr float max_magnitude = 0x1.FFDFFEp+15F;  ///< the last float that rounds to 65504
  struct Block {
    std::uint16_t bits;
  };
  static void encode(const float* x, Block* out, const float* /*importance*/) noexcept { out->bits = f32_to_f16(*x); }
  static void decode(const Block* block, float* out) noexcept { *out = f16_to_f32(block->bits); }
};

/// bfloat16, rounded to nearest even.
struct BF16 {
  static constexpr DType dtype = DType::bf16;
  static constexpr std::string_view name = "bf16";
  static constexpr std::size_t block_elements = 1;
  static constexpr float max_magnitude = 0x1.FEFFFEp+127F;  ///< the last float that does not round to infinity
  struct Block {
    std::uint16_t bits;
  };
  static void encode(const float* x, Block* out, const float* /*importance*/) noexcept { out->bits = f32_to_bf16(*x); }
  static void decode(const Block* block, float* out) noexcept { *out = bf16_to_f32(block->bits); }
};

// The quantized formats. Layout and decoding formula: block_layout.hpp. Decoding equals ggml's bit for bit.
//
// fold_q8, the integer dot product of one block with int8 activations, exact to the operation:
//   q8_32 formats, block b (isum = sum over the 32 elements of w_i * a_i, w_i the code with its offset subtracted):
//     acc = fma(float(isum), f(scale) * scales[b], acc)
//     and for q4_1 and q5_1 then acc = fma(float(sums[b]), f(minimum) * scales[b], acc)
//   q4_k, q5_k, super-block b (isum_j over the 32 elements of sub-block j, s_j and m_j its 6-bit scale and minimum):
//     acc = fma(float(sum_j s_j * isum_j), f(scale) * scales[b], acc)
//     acc = fma(-float(sum_j m_j * sums[8 b + j]), f(minimum) * scales[b], acc)
//   q6_k, super-block b (isum_j over the 16 elements of sub-block j, codes minus 32):
//     acc = fma(float(sum_j scales_j * isum_j), f(scale) * scales[b], acc)
// All integer sums fit in 32 bits for any bytes and any codes in [-127, 127] (the largest, of q6_k, is below 2^27), so
// their order does not matter. float(sum) is one rounding, the product of the two scales is one, the fma is one. An
// instruction set without fma rounds product and sum separately and so differs from this in the last bits.

/// 8.5 bits per weight: scale = largest magnitude / 127. Ignores importance.
struct Q8_0 {
  static constexpr DType dtype = DType::q8_0;
  static constexpr std::string_view name = "q8_0";
  static constexpr std::size_t block_elements = 32;
  static constexpr float max_magnitude = 127 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_32;
  using Block = BlockQ8_0;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 4.5 bits per weight, symmetric. Without importance the largest magnitude gets code -8; with it the scale is
/// searched.
struct Q4_0 {
  static constexpr DType dtype = DType::q4_0;
  static constexpr std::string_view name = "q4_0";
  static constexpr std::size_t block_elements = 32;
  static constexpr float max_magnitude = 8 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_32;
  using Block = BlockQ4_0;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 5 bits per weight, scale and minimum from the smallest and largest value; searched if importance is given.
struct Q4_1 {
  static constexpr DType dtype = DType::q4_1;
  static constexpr std::string_view name = "q4_1";
  static constexpr std::size_t block_elements = 32;
  static constexpr float max_magnitude = 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_32;
  using Block = BlockQ4_1;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 5.5 bits per weight, symmetric, largest magnitude at code -16; searched if importance is given.
struct Q5_0 {
  static constexpr DType dtype = DType::q5_0;
  static constexpr std::string_view name = "q5_0";
  static constexpr std::size_t block_elements = 32;
  static constexpr float max_magnitude = 16 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_32;
  using Block = BlockQ5_0;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 6 bits per weight, scale and minimum; searched if importance is given.
struct Q5_1 {
  static constexpr DType dtype = DType::q5_1;
  static constexpr std::string_view name = "q5_1";
  static constexpr std::size_t block_elements = 32;
  static constexpr float max_magnitude = 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_32;
  using Block = BlockQ5_1;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 4.5 bits per weight, scale and minimum per 32. encode searches both for the least squared error.
struct Q4_K {
  static constexpr DType dtype = DType::q4_k;
  static constexpr std::string_view name = "q4_k";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 32 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockQ4_K;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 5.5 bits per weight, as Q4_K with one more bit per code.
struct Q5_K {
  static constexpr DType dtype = DType::q5_k;
  static constexpr std::string_view name = "q5_k";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 32 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockQ5_K;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 6.5625 bits per weight, symmetric, scale per 16. encode searches the scales for the least squared error.
struct Q6_K {
  static constexpr DType dtype = DType::q6_k;
  static constexpr std::string_view name = "q6_k";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 2048 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockQ6_K;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

static_assert(StoredBlockFormat<F32> && StoredBlockFormat<F16> && StoredBlockFormat<BF16>);
static_assert(StoredBlockFormat<Q8_0> && IntegerBlockFormat<Q8_0>);
static_assert(StoredBlockFormat<Q4_0> && IntegerBlockFormat<Q4_0>);
static_assert(StoredBlockFormat<Q4_1> && IntegerBlockFormat<Q4_1>);
static_assert(StoredBlockFormat<Q5_0> && IntegerBlockFormat<Q5_0>);
static_assert(StoredBlockFormat<Q5_1> && IntegerBlockFormat<Q5_1>);
static_assert(StoredBlockFormat<Q4_K> && IntegerBlockFormat<Q4_K>);
static_assert(StoredBlockFormat<Q5_K> && IntegerBlockFormat<Q5_K>);
static_assert(StoredBlockFormat<Q6_K> && IntegerBlockFormat<Q6_K>);

/// Scale and minimum of one sub-block of q4_k or q5_k, each 0..63.
struct SubScale {
  std::uint8_t scale;
  std::uint8_t minimum;
};

/// Unpacks sub-block `index` (0..7) of the 12 packed bytes of q4_k and q5_k.
[[nodiscard]] constexpr SubScale unpack_sub_scale(const std::uint8_t* packed, std::size_t index) noexcept {
  if (index < 4)
    return {static_cast<std::uint8_t>(packed[index] & 63), static_cast<std::uint8_t>(packed[index + 4] & 63)};
  return {static_cast<std::uint8_t>((packed[index + 4] & 15) | ((packed[index - 4] >> 6) << 4)),
          static_cast<std::uint8_t>((packed[index + 4] >> 4) | ((packed[index] >> 6) << 4))};
}

/// The codes of a block as integers, offset not subtracted (q8_0: the signed codes themselves): what repacking reads.
SKALD_API void unpack_codes(const BlockQ8_0& block, std::int8_t* codes) noexcept;   ///< 32 codes, -128..127
SKALD_API void unpack_codes(const BlockQ4_0& block, std::uint8_t* codes) noexcept;  ///< 32 codes, 0..15
SKALD_API void unpack_codes(const BlockQ4_1& block, std::uint8_t* codes) noexcept;  ///< 32 codes, 0..15
SKALD_API void unpack_codes(const BlockQ5_0& block, std::uint8_t* codes) noexcept;  ///< 32 codes, 0..31
SKALD_API void unpack_codes(const BlockQ5_1& block, std::uint8_t* codes) noexcept;  ///< 32 codes, 0..31
SKALD_API void unpack_codes(const BlockQ4_K& block, std::uint8_t* codes) noexcept;  ///< 256 codes, 0..15
SKALD_API void unpack_codes(const BlockQ5_K& block, std::uint8_t* codes) noexcept;  ///< 256 codes, 0..31
SKALD_API void unpack_codes(const BlockQ6_K& block, std::uint8_t* codes) noexcept;  ///< 256 codes, 0..63

}  // namespace quant

}  // namespace skald::inline v0
