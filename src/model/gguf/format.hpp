#pragma once

// Constants of the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and limits of this implementation.

#include <bit>
#include <cstdint>
#include <string_view>

namespace skald::inline v0::gguf {

static_assert(std::endian::native == std::endian::little, "GGUF values are read and written in place");

inline constexpr std::uint32_t magic = 0x46554747;  // "GGUF"
inline constexpr std::uint32_t oldest_version = 2;
inline constexpr std::uint32_t newest_version = 3;
inline constexpr std::uint32_t default_alignment = 32;
inline constexpr std::uint32_t min_alignment = 8;
inline constexpr std::uint32_t max_alignment = 65536;
inline constexpr std::string_view alignment_key = "general.alignment";
inline constexpr std::string_view split_count_key = "split.count";
inline constexpr std::string_view split_no_key = "split.no";
inline constexpr std::string_view split_tensors_key = "split.tensors.count";

inline constexpr std::uint64_t max_keys = 65536;
inline constexpr std::uint64_t max_tensors = 65536;
inline constexpr std::uint64_t max_key_bytes = 65535;
inline constexpr std::uint64_t max_name_bytes = 64;
inline constexpr std::uint32_t max_rank = 4;
inline constexpr unsigned max_nesting = 4;
// Arrays inside arrays take more memory than file; nobody writes more than a handful.
inline constexpr std::uint64_t max_nested_arrays = 65536;

inline constexpr bool valid_alignment(std::uint64_t alignment) noexcept {
  return std::has_single_bit(alignment) && alignment >= min_alignment && alignment <= max_alignment;
}

enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// True if all of `text` is well-formed UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
[[nodiscard]] bool valid_utf8(std::string_view text) noexcept;

}  // namespace skald::inline v0::gguf
