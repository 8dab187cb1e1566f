#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <skald/config.hpp>

/// Properties of code points that tokenizers ask for. The Unicode version is that of utf8proc.
namespace skald::inline v0::detail {

using CodePoint = std::uint32_t;

struct DecodedPoint {
  CodePoint value;  ///< U+FFFD for what is not UTF-8
  std::uint32_t size;
};
/// The first code point of `text`, which must not be empty.
[[nodiscard]] DecodedPoint decode_point(std::string_view text) noexcept;
void append_point(std::string& out, CodePoint point);
/// Code points of valid UTF-8.
[[nodiscard]] std::size_t count_points(std::string_view text) noexcept;

/// The property White_Space.
[[nodiscard]] bool is_white_space(CodePoint point) noexcept;
/// General categories P, S, M, Mn, N, and Cc, Cf, Cs or Co.
[[nodiscard]] bool is_punctuation(CodePoint point) noexcept;
[[nodiscard]] bool is_symbol(CodePoint point) noexcept;
[[nodiscard]] bool is_mark(CodePoint point) noexcept;
[[nodiscard]] bool is_nonspacing_mark(CodePoint point) noexcept;
[[nodiscard]] bool is_number(CodePoint point) noexcept;
[[nodiscard]] bool is_other(CodePoint point) noexcept;
/// What regular expressions call \w: letters, marks, decimal digits, connectors, joiners.
[[nodiscard]] bool is_word(CodePoint point) noexcept;
/// The blocks of Chinese characters that BERT puts spaces around.
[[nodiscard]] bool is_chinese(CodePoint point) noexcept;

/// Lower case of one code point (without context); one code point has two of them.
void append_lower(std::string& out, CodePoint point);
/// First code point of the canonical decomposition.
[[nodiscard]] CodePoint base_point(CodePoint point) noexcept;

enum class NormalForm { nfc, nfd, nfkc, nfkd };
/// `text`, which must be valid UTF-8, in that form. Throws `OutOfMemoryError`.
[[nodiscard]] std::string normal_form(std::string_view text, NormalForm form);

/// Size of the extended grapheme cluster that `text` (valid UTF-8, not empty) begins with.
[[nodiscard]] std::size_t grapheme_size(std::string_view text) noexcept;

}  // namespace skald::inline v0::detail
