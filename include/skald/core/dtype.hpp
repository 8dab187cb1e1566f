#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// Element or block format of stored numbers. The numeric values are the type ids of the GGUF specification
/// (github.com/ggml-org/ggml, docs/gguf.md), so that a reader casts after a range check.
enum class DType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
};

/// What a DType is. A row of n elements takes n / block_elements * block_bytes bytes.
struct DTypeInfo {
  std::string_view name;         ///< lower case, as on the command line: "q4_k"
  std::uint32_t block_elements;  ///< elements in one block; 1 for plain types
  std::uint32_t block_bytes;     ///< bytes of one block
  bool quantized;                ///< true for block formats
};

/// Description of a type, or nullptr for an id that is not one.
[[nodiscard]] SKALD_API const DTypeInfo* find_dtype(DType type) noexcept;
/// Description of a type. @throws UnsupportedError for an id that is not one.
[[nodiscard]] SKALD_API const DTypeInfo& dtype_info(DType type);
/// Type of a name in either case ("Q4_K", "q4_k"), or nothing.
[[nodiscard]] SKALD_API std::optional<DType> dtype_from_name(std::string_view name) noexcept;
/// Name of a type, "unknown" for an id that is not one.
[[nodiscard]] SKALD_API std::string_view to_string(DType type) noexcept;
/// Bytes of a row. @throws UsageError if `elements` is not a multiple of the block.
[[nodiscard]] SKALD_API std::size_t row_bytes(DType type, std::size_t elements);

}  // namespace skald::inline v0
