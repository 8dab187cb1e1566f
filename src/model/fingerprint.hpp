#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace skald::inline v0 {

/// Two independent 64-bit multiplicative hashes over the same bytes. For telling models apart, not against forgery.
class Fingerprint {
 public:
  void add(std::span<const std::byte> bytes) noexcept {
    add(static_cast<std::uint64_t>(bytes.size()));  // so that neighbouring fields cannot be shifted into each other
    for (const std::byte byte : bytes) mix(static_cast<std::uint64_t>(byte));
  }
  void add(std::string_view text) noexcept { add(std::as_bytes(std::span(text.data(), text.size()))); }
  void add(std::uint64_t value) noexcept {
    for (int shift = 0; shift < 64; shift += 8) mix((value >> shift) & 0xFF);
  }
  [[nodiscard]] std::array<std::uint64_t, 2> value() const noexcept { return {finish(a_), finish(b_)}; }

 private:
  void mix(std::uint64_t byte) noexcept {
    a_ = (a_ ^ byte) * 0x100000001B3u;           // FNV-1a
    b_ = (b_ + byte + 1) * 0x9E3779B97F4A7C15u;  // golden ratio
    b_ ^= b_ >> 29;
  }
  static std::uint64_t finish(std::uint64_t x) noexcept {
    x = (x ^ (x >> 31)) * 0xBF58476D1CE4E5B9u;
    return x ^ (x >> 30);
  }
  std::uint64_t a_ = 0xCBF29CE484222325u;
  std::uint64_t b_ = 0x6A09E667F3BCC909u;
};

}  // namespace skald::inline v0
