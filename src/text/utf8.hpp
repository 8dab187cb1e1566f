#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace skald::inline v0::detail {

/// What stands at the start of a byte string.
struct Utf8Step {
  enum class Kind { valid, invalid, truncated };
  std::uint32_t size;  ///< bytes of the code point, or of the maximal ill-formed part; 0 only for an empty string
  Kind kind;           ///< truncated: the string ends inside what may become a code point
};

/// First step of `bytes` (Unicode 15.0, table 3-7: no surrogates, no overlong forms, at most U+10FFFF).
inline Utf8Step utf8_step(std::string_view bytes) noexcept {
  using Kind = Utf8Step::Kind;
  if (bytes.empty()) return {0, Kind::truncated};
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {1, Kind::valid};
  if (lead < 0xc2 || lead > 0xf4) return {1, Kind::invalid};
  const std::uint32_t size = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // Only the second byte has a range that depends on the first.
  const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::uint32_t i = 1; i < size; ++i) {
    if (i == bytes.size()) return {i, Kind::truncated};
    if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xbf)) return {i, Kind::invalid};
  }
  return {size, Kind::valid};
}

/// Offset of the first byte that is not part of valid UTF-8, or `bytes.size()`.
inline std::size_t utf8_valid_prefix(std::string_view bytes) noexcept {
  std::size_t at = 0;
  while (at < bytes.size()) {
    const Utf8Step step = utf8_step(bytes.substr(at));
    if (step.kind != Utf8Step::Kind::valid) break;
    at += step.size;
  }
  return at;
}

/// The code point of a valid step.
inline std::uint32_t utf8_code_point(std::string_view bytes) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i])); };
  switch (utf8_step(bytes).size) {
    case 1: return byte(0);
    case 2: return (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
    case 3: return (byte(0) & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
    default: return (byte(0) & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
  }
}

inline constexpr std::string_view replacement_character = "\xef\xbf\xbd";

}  // namespace skald::inline v0::detail
