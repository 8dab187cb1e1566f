#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace skald::inline v0::detail {

/// The printable code point that byte-level vocabularies write for a byte (GPT-2, `bytes_to_unicode`): itself for
/// printable Latin-1, else U+0100 and up in order.
[[nodiscard]] std::uint32_t byte_level_code_point(unsigned char byte) noexcept;
/// UTF-8 of that code point.
[[nodiscard]] std::string_view byte_level_char(unsigned char byte) noexcept;
/// Bytes that a byte-level token text stands for. Characters that stand for no byte are kept as they are.
[[nodiscard]] std::string byte_level_decode(std::string_view text);

}  // namespace skald::inline v0::detail
