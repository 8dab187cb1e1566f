#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <skald/config.hpp>

/// Text as Python's `str` sees it, on UTF-8. A byte that is not part of valid UTF-8 counts as one character.
namespace skald::inline v0::jinja {

struct CodePoint {
  std::int32_t value = 0;  // -1 for an invalid byte
  std::size_t bytes = 1;
};
CodePoint decode(std::string_view text, std::size_t at) noexcept;
void append_utf8(std::string& out, std::int32_t code_point);
std::size_t count_characters(std::string_view text) noexcept;
/// Byte offsets of the characters, and the end.
std::vector<std::size_t> character_offsets(std::string_view text);

bool is_space(std::int32_t code_point) noexcept;
bool is_line_break(std::int32_t code_point) noexcept;
bool is_printable(std::int32_t code_point) noexcept;
bool is_letter(std::int32_t code_point) noexcept;
bool is_digit(std::int32_t code_point) noexcept;
bool is_upper(std::int32_t code_point) noexcept;
bool is_lower(std::int32_t code_point) noexcept;

enum class Side { left, right, both };
/// `strip()`, `lstrip()`, `rstrip()` without argument.
std::string_view strip(std::string_view text, Side side) noexcept;
/// The same with a set of characters.
std::string_view strip(std::string_view text, Side side, std::string_view characters);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
/// `str.title()`: the first letter of every run of letters.
std::string title(std::string_view text);
/// The filter `title`: words are split at whitespace and `-({[<` only.
std::string title_words(std::string_view text);
std::string swap_case(std::string_view text);

/// First occurrence at or after `from`, in linear time; npos if none.
std::size_t find_text(std::string_view text, std::string_view needle, std::size_t from = 0);
/// Takes the first line off `rest`, as `splitlines()` does; false at the end of the text.
bool next_line(std::string_view& rest, std::string_view& line, bool keep_end = false);
std::string escape_html(std::string_view text);

}  // namespace skald::inline v0::jinja
