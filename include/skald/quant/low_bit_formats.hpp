#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <skald/config.hpp>
#include <skald/core/dtype.hpp>
#include <skald/quant/activation.hpp>
#include <skald/quant/block_layout.hpp>

/// The formats below four and a half bits, the codebook formats and the plain numbers besides floats. Layouts and decoding
/// formulas: block_layout.hpp. Decoding equals ggml's bit for bit.
///
/// fold_q8 as block_format.hpp describes it; w_i are the integer weights, s_j the integer scales of the sub-blocks:
///   iq4_nl, mxfp4, block b:  acc = fma(float(sum_i w_i a_i), u * scales[b], acc)
///   q2_k, super-block b:     acc = fma(float(sum_j s_j isum_j), f(scale) * scales[b], acc)
///                            acc = fma(-float(sum_j m_j asum_j), f(minimum) * scales[b], acc), asum_j of 16 activations
///   all others:              acc = fma(float(sum_j s_j isum_j), u * scales[b], acc)
/// with u = f(scale) times a power of two (iq2: 1/8, iq3_xxs: 1/4, iq1: 1/8, mxfp4: its power of two, others: 1), s_j = 2 s + 1 in the
/// iq1, iq2 and iq3 formats, 1 in the ternary ones, and w_i = +-g (iq2, iq3) or 8 (g + shift) (iq1).
namespace skald::inline v0::quant {

/// 2.625 bits per weight, scale and minimum per 16. encode searches both for the least squared error.
struct Q2_K {
  static constexpr DType dtype = DType::q2_k;
  static constexpr std::string_view name = "q2_k";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 15 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockQ2_K;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 3.4375 bits per weight, symmetric, scale per 16. encode searches the scales for the least squared error.
struct Q3_K {
  static constexpr DType dtype = DType::q3_k;
  static constexpr std::string_view name = "q3_k";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 96 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockQ3_K;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 4.5 bits per weight from sixteen uneven values. encode searches the scale.
struct IQ4_NL {
  static constexpr DType dtype = DType::iq4_nl;
  static constexpr std::string_view name = "iq4_nl";
  static constexpr std::size_t block_elements = 32;
  static constexpr float max_magnitude = 113 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_32;
  using Block = BlockIQ4_NL;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 4.25 bits per weight: the values of IQ4_NL, scale per 32. encode searches the scales.
struct IQ4_XS {
  static constexpr DType dtype = DType::iq4_xs;
  static constexpr std::string_view name = "iq4_xs";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 31 * 113 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockIQ4_XS;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 4.25 bits per weight: 4-bit floats, a power of two per 32. encode takes the best power.
struct MXFP4 {
  static constexpr DType dtype = DType::mxfp4;
  static constexpr std::string_view name = "mxfp4";
  static constexpr std::size_t block_elements = 32;
  static constexpr float max_magnitude = 0x1.8p127F;
  static constexpr ActivationKind activation = ActivationKind::q8_32;
  using Block = BlockMXFP4;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 1.6875 bits per weight, ternary. encode searches the scale.
struct TQ1_0 {
  static constexpr DType dtype = DType::tq1_0;
  static constexpr std::string_view name = "tq1_0";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockTQ1_0;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 2.0625 bits per weight, ternary. encode searches the scale.
struct TQ2_0 {
  static constexpr DType dtype = DType::tq2_0;
  static constexpr std::string_view name = "tq2_0";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockTQ2_0;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 2.0625 bits per weight. encode takes the nearest entries and searches the scales per 32.
struct IQ2_XXS {
  static constexpr DType dtype = DType::iq2_xxs;
  static constexpr std::string_view name = "iq2_xxs";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 160 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockIQ2_XXS;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 2.3125 bits per weight. encode takes the nearest entries and searches the scales per 16.
struct IQ2_XS {
  static constexpr DType dtype = DType::iq2_xs;
  static constexpr std::string_view name = "iq2_xs";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 160 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockIQ2_XS;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 2.5625 bits per weight. encode takes the nearest entries and searches the scales per 16.
struct IQ2_S {
  static constexpr DType dtype = DType::iq2_s;
  static constexpr std::string_view name = "iq2_s";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 160 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockIQ2_S;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 3.0625 bits per weight. encode takes the nearest entries and searches the scales per 32.
struct IQ3_XXS {
  static constexpr DType dtype = DType::iq3_xxs;
  static constexpr std::string_view name = "iq3_xxs";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 450 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockIQ3_XXS;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 3.4375 bits per weight. encode takes the nearest entries and searches the scales per 32.
struct IQ3_S {
  static constexpr DType dtype = DType::iq3_s;
  static constexpr std::string_view name = "iq3_s";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 450 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockIQ3_S;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 1.5625 bits per weight. encode takes the nearest entries and searches the scales per 32.
struct IQ1_S {
  static constexpr DType dtype = DType::iq1_s;
  static constexpr std::string_view name = "iq1_s";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 13 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockIQ1_S;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// 1.75 bits per weight. encode takes the nearest entries and searches the scales per 16.
struct IQ1_M {
  static constexpr DType dtype = DType::iq1_m;
  static constexpr std::string_view name = "iq1_m";
  static constexpr std::size_t block_elements = 256;
  static constexpr float max_magnitude = 13 * 65504.0F;
  static constexpr ActivationKind activation = ActivationKind::q8_256;
  using Block = BlockIQ1_M;
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  SKALD_API static void decode(const Block* block, float* out) noexcept;
  SKALD_API static float fold_q8(const Block* block, const ActivationView& a, std::size_t index, float acc) noexcept;
};

/// IEEE binary64; decoding rounds to the nearest float, to an infinity where that is beyond them.
struct F64 {
  static constexpr DType dtype = DType::f64;
  static constexpr std::string_view name = "f64";
  static constexpr std::size_t block_elements = 1;
  static constexpr float max_magnitude = 0x1.FFFFFEp+127F;
  struct Block {
    double value;
  };
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  static void decode(const Block* block, float* out) noexcept { *out = static_cast<float>(block->value); }
};

/// Integers of 8 bits; encoding rounds to the nearest, ties to even.
struct I8 {
  static constexpr DType dtype = DType::i8;
  static constexpr std::string_view name = "i8";
  static constexpr std::size_t block_elements = 1;
  static constexpr float max_magnitude = 127.0F;
  struct Block {
    std::int8_t value;
  };
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  static void decode(const Block* block, float* out) noexcept { *out = static_cast<float>(block->value); }
};

/// Integers of 16 bits; encoding rounds to the nearest, ties to even.
struct I16 {
  static constexpr DType dtype = DType::i16;
  static constexpr std::string_view name = "i16";
  static constexpr std::size_t block_elements = 1;
  static constexpr float max_magnitude = 32767.0F;
  struct Block {
    std::int16_t value;
  };
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  static void decode(const Block* block, float* out) noexcept { *out = static_cast<float>(block->value); }
};

/// Integers of 32 bits; encoding rounds to the nearest, ties to even.
struct I32 {
  static constexpr DType dtype = DType::i32;
  static constexpr std::string_view name = "i32";
  static constexpr std::size_t block_elements = 1;
  static constexpr float max_magnitude = 2147483520.0F;
  struct Block {
    std::int32_t value;
  };
  SKALD_API static void encode(const float* x, Block* out, const float* importance) noexcept;
  static void decode(const Block* block, float* out) noexcept { *out = static_cast<float>(block->value); }
};

}  // namespace skald::inline v0::quant
