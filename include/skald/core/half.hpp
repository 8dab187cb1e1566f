#pragma once

#include <bit>
#include <cstdint>

#include <skald/config.hpp>

/// IEEE 754 binary16 and bfloat16 as storage types. Conversions to them round to nearest, ties to even;
/// NaN stays NaN; values beyond the range become infinity.
namespace skald::inline v0 {

/// bfloat16 bits to float. Exact.
[[nodiscard]] constexpr float bf16_to_f32(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// float to bfloat16 bits.
[[nodiscard]] constexpr std::uint16_t f32_to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

/// binary16 bits to float. Exact, subnormals included.
[[nodiscard]] constexpr float f16_to_f32(std::uint16_t bits) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1Fu;
  const std::uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {
    // mantissa * 2^-24, exact in float.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

/// float to binary16 bits.
[[nodiscard]] constexpr std::uint16_t f32_to_f16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // 65520 and above
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal or zero
    if (magnitude < 0x33000000u) return sign;  // below 2^-25, or exactly representable as 0
    const std::uint32_t shift = 126u - (magnitude >> 23);  // 14 .. 24
    const std::uint32_t full = (magnitude & 0x7FFFFFu) | 0x800000u;
    const std::uint32_t half_ulp = 1u << (shift - 1u);
    std::uint32_t result = full >> shift;
    const std::uint32_t rest = full & ((1u << shift) - 1u);
    if (rest > half_ulp || (rest == half_ulp && (result & 1u) != 0)) ++result;
    return static_cast<std::uint16_t>(sign | result);
  }
  const std::uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

/// IEEE binary16 stored value.
struct F16 {
  std::uint16_t bits = 0;
  F16() = default;
  constexpr explicit F16(float value) noexcept : bits(f32_to_f16(value)) {}
  constexpr explicit operator float() const noexcept { return f16_to_f32(bits); }
  friend constexpr bool operator==(F16, F16) = default;
};

/// bfloat16 stored value.
struct BF16 {
  std::uint16_t bits = 0;
  BF16() = default;
  constexpr explicit BF16(float value) noexcept : bits(f32_to_bf16(value)) {}
  constexpr explicit operator float() const noexcept { return bf16_to_f32(bits); }
  friend constexpr bool operator==(BF16, BF16) = default;
};

}  // namespace skald::inline v0
