#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <skald/model/safetensors/reader.hpp>

namespace skald::inline v0::safetensors {

struct TypeInfo {
  std::string_view name;
  std::size_t bytes;
};
/// Indexed by SafetensorsType.
inline constexpr std::array<TypeInfo, 15> types = {{{"BOOL", 1},
                                                    {"U8", 1},
                                                    {"I8", 1},
                                                    {"F8_E5M2", 1},
                                                    {"F8_E4M3", 1},
                                                    {"I16", 2},
                                                    {"U16", 2},
                                                    {"F16", 2},
                                                    {"BF16", 2},
                                                    {"I32", 4},
                                                    {"U32", 4},
                                                    {"F32", 4},
                                                    {"I64", 8},
                                                    {"U64", 8},
                                                    {"F64", 8}}};
inline constexpr std::string_view metadata_key = "__metadata__";
inline constexpr std::uint64_t prefix_bytes = 8;  // the header's length

/// Bytes of a shape, or nothing if an extent is negative or the product does not fit.
[[nodiscard]] inline std::optional<std::uint64_t> shape_bytes(SafetensorsType type,
                                                              std::span<const std::int64_t> shape) noexcept {
  std::int64_t elements = 1;
  std::int64_t bytes = 0;
  for (const std::int64_t extent : shape)
    if (extent < 0 || __builtin_mul_overflow(elements, extent, &elements)) return {};
  if (__builtin_mul_overflow(elements, static_cast<std::int64_t>(types[static_cast<std::size_t>(type)].bytes), &bytes))
    return {};
  return static_cast<std::uint64_t>(bytes);
}

/// The header of one file.
struct Header {
  std::vector<SafetensorsTensor> tensors;  // in the order of their data, offsets absolute
  std::vector<std::pair<std::string, std::string>> metadata;
};
[[nodiscard]] Header read_header(const AnyByteSource& source, const SafetensorsOptions& options);

}  // namespace skald::inline v0::safetensors
