#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace skald::inline v0::detail {

/// Most levels of arrays and objects in JSON that is not trusted: handling deeper values could use up the stack.
inline constexpr int deepest_json = 64;

/// Where a text first nests deeper than `deepest_json`, before it is parsed; nothing if it does not.
inline std::optional<std::size_t> find_too_deep(std::string_view text) noexcept {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      else if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > deepest_json) return i;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return std::nullopt;
}

}  // namespace skald::inline v0::detail
