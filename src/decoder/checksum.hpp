#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace skald::inline v0::detail {

/// FNV-1a over 64-bit words and the remaining bytes: finds damage, not forgery.
inline std::uint64_t checksum(std::span<const std::byte> bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  std::size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, 8);
    hash = (hash ^ word) * 0x100000001b3ull;
    hash ^= hash >> 29;
  }
  for (; i < bytes.size(); ++i) hash = (hash ^ static_cast<std::uint64_t>(bytes[i])) * 0x100000001b3ull;
  return hash;
}

}  // namespace skald::inline v0::detail
