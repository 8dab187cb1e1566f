#include "text/jinja_text.hpp"

#include <algorithm>
#include <utility>

#include <utf8proc.h>

namespace skald::inline v0::jinja {

CodePoint decode(std::string_view text, std::size_t at) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return {static_cast<std::int32_t>(first), 1};
  const std::size_t length = first >= 0xF0 && first < 0xF5 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || at + length > text.size()) return {-1, 1};
  std::int32_t value = static_cast<std::int32_t>(first & (0x7FU >> length));
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return {-1, 1};
    value = (value << 6) | static_cast<std::int32_t>(byte(i) & 0x3FU);
  }
  const bool overlong = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
  if (overlong || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return {-1, 1};
  return {value, length};
}

void append_utf8(std::string& out, std::int32_t code_point) {
  const auto cp = static_cast<std::uint32_t>(code_point);
  if (cp < 0x80) {
    out += static_cast<char>(cp);
  } else if (cp < 0x800) {
    out += static_cast<char>(0xC0U | (cp >> 6));
    out += static_cast<char>(0x80U | (cp & 0x3FU));
  } else if (cp < 0x10000) {
    out += static_cast<char>(0xE0U | (cp >> 12));
    out += static_cast<char>(0x80U | ((cp >> 6) & 0x3FU));
    out += static_cast<char>(0x80U | (cp & 0x3FU));
  } else {
    out += static_cast<char>(0xF0U | (cp >> 18));
    out += static_cast<char>(0x80U | ((cp >> 12) & 0x3FU));
    out += static_cast<char>(0x80U | ((cp >> 6) & 0x3FU));
    out += static_cast<char>(0x80U | (cp & 0x3FU));
  }
}

std::size_t count_characters(std::string_view text) noexcept {
  std::size_t count = 0;
  for (std::size_t at = 0; at < text.size(); at += decode(text, at).bytes) ++count;
  return count;
}

std::vector<std::size_t> character_offsets(std::string_view text) {
  std::vector<std::size_t> offsets;
  for (std::size_t at = 0; at < text.size(); at += decode(text, at).bytes) offsets.push_back(at);
  offsets.push_back(text.size());
  return offsets;
}

bool is_space(std::int32_t c) noexcept {
  return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_line_break(std::int32_t c) noexcept {
  return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool is_printable(std::int32_t c) noexcept {
  if (c < 0) return false;
  if (c < 0x7F) return c >= 0x20;
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
  }
}

bool is_upper(std::int32_t c) noexcept {
  if (c < 0x80) return c >= 'A' && c <= 'Z';
  return utf8proc_category(c) == UTF8PROC_CATEGORY_LU;
}

bool is_lower(std::int32_t c) noexcept {
  if (c < 0x80) return c >= 'a' && c <= 'z';
  return utf8proc_category(c) == UTF8PROC_CATEGORY_LL;
}

bool is_letter(std::int32_t c) noexcept {
  if (c < 0x80) return is_upper(c) || is_lower(c);
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return true;
    default: return false;
  }
}

bool is_digit(std::int32_t c) noexcept {
  if (c < 0x80) return c >= '0' && c <= '9';
  return utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

namespace {

template <typename Test>
std::string_view strip_if(std::string_view text, Side side, Test test) {
  if (side != Side::right) {
    while (!text.empty()) {
      const CodePoint c = decode(text, 0);
      if (!test(c.value, text.substr(0, c.bytes))) break;
      text.remove_prefix(c.bytes);
    }
  }
  if (side == Side::left) return text;
  while (!text.empty()) {
    // Step back over at most three continuation bytes; an invalid end is a character of one byte.
    std::size_t start = text.size() - 1;
    for (std::size_t back = 1; back < 4 && start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0U) == 0x80U;
         ++back)
      --start;
    CodePoint c = decode(text, start);
    if (start + c.bytes != text.size()) {
      start = text.size() - 1;
      c = {-1, 1};
    }
    if (!test(c.value, text.substr(start))) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

// Case mapping of single characters; of the mappings to several characters only the sharp s is done.
void append_upper(std::string& out, std::int32_t c, bool title_case) {
  if (c == 0xDF) {
    out += title_case ? "Ss" : "SS";
  } else if (c < 0x80) {
    out += static_cast<char>(is_lower(c) ? c - 'a' + 'A' : c);
  } else {
    append_utf8(out, title_case ? utf8proc_totitle(c) : utf8proc_toupper(c));
  }
}

void append_lower(std::string& out, std::int32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(is_upper(c) ? c - 'A' + 'a' : c);
  } else {
    append_utf8(out, utf8proc_tolower(c));
  }
}

// Calls map(out, code point) for every character and copies invalid bytes.
template <typename Map>
std::string map_characters(std::string_view text, Map map) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode(text, at);
    if (c.value < 0) {
      out.append(text.substr(at, c.bytes));
    } else {
      map(out, c.value);
    }
    at += c.bytes;
  }
  return out;
}

}  // namespace

std::string_view strip(std::string_view text, Side side) noexcept {
  return strip_if(text, side, [](std::int32_t c, std::string_view) { return is_space(c); });
}

std::string_view strip(std::string_view text, Side side, std::string_view characters) {
  std::vector<std::int32_t> set;
  for (std::size_t at = 0; at < characters.size();) {
    const CodePoint c = decode(characters, at);
    set.push_back(c.value);
    at += c.bytes;
  }
  std::sort(set.begin(), set.end());
  return strip_if(text, side, [&](std::int32_t c, std::string_view) {
    return c >= 0 && std::binary_search(set.begin(), set.end(), c);
  });
}

std::string upper(std::string_view text) {
  return map_characters(text, [](std::string& out, std::int32_t c) { append_upper(out, c, false); });
}

std::string lower(std::string_view text) {
  return map_characters(text, [](std::string& out, std::int32_t c) { append_lower(out, c); });
}

std::string capitalize(std::string_view text) {
  bool first = true;
  return map_characters(text, [&](std::string& out, std::int32_t c) {
    if (first) {
      append_upper(out, c, true);
    } else {
      append_lower(out, c);
    }
    first = false;
  });
}

std::string title(std::string_view text) {
  bool inside = false;
  return map_characters(text, [&](std::string& out, std::int32_t c) {
    if (inside) {
      append_lower(out, c);
    } else {
      append_upper(out, c, true);
    }
    inside = is_letter(c);
  });
}

std::string title_words(std::string_view text) {
  bool start = true;
  return map_characters(text, [&](std::string& out, std::int32_t c) {
    const bool separator = is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    if (start && !separator) {
      append_upper(out, c, false);
    } else {
      append_lower(out, c);
    }
    start = separator;
  });
}

std::string swap_case(std::string_view text) {
  return map_characters(text, [](std::string& out, std::int32_t c) {
    if (is_upper(c)) {
      append_lower(out, c);
    } else {
      append_upper(out, c, false);
    }
  });
}

std::size_t find_text(std::string_view text, std::string_view needle, std::size_t from) {
  if (needle.size() <= 4 || from > text.size()) return text.find(needle, from);
  // Knuth, Morris and Pratt: no text makes it quadratic.
  std::vector<std::uint32_t> border(needle.size() + 1, 0);
  for (std::size_t i = 1, k = 0; i < needle.size(); ++i) {
    while (k > 0 && needle[i] != needle[k]) k = border[k];
    if (needle[i] == needle[k]) ++k;
    border[i + 1] = static_cast<std::uint32_t>(k);
  }
  for (std::size_t i = from, k = 0; i < text.size(); ++i) {
    while (k > 0 && text[i] != needle[k]) k = border[k];
    if (text[i] == needle[k]) ++k;
    if (k == needle.size()) return i + 1 - k;
  }
  return std::string_view::npos;
}

bool next_line(std::string_view& rest, std::string_view& line, bool keep_end) {
  if (rest.empty()) return false;
  for (std::size_t at = 0; at < rest.size();) {
    const CodePoint c = decode(rest, at);
    std::size_t next = at + c.bytes;
    if (is_line_break(c.value)) {
      if (c.value == '\r' && next < rest.size() && rest[next] == '\n') ++next;
      line = rest.substr(0, keep_end ? next : at);
      rest.remove_prefix(next);
      return true;
    }
    at = next;
  }
  line = std::exchange(rest, {});
  return true;
}

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&#34;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

}  // namespace skald::inline v0::jinja
