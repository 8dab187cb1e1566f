#pragma once

#include <cmath>
#include <concepts>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace skald::inline v0 {

/// Writes JSON as text. A tree of JSON values would allocate when it is destroyed, which ends the process where
/// memory has run out; text does not.
namespace json_text {

inline std::string of(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    if (static_cast<unsigned char>(c) < 0x20) result += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    else result += c;
  }
  return result + '"';
}
inline std::string of(std::same_as<bool> auto value) { return value ? "true" : "false"; }
inline std::string of(std::integral auto value) requires(!std::same_as<decltype(value), bool>) {
  return fmt::format("{}", value);
}
/// Shortest text that reads back as the same number; null for what JSON has no number for.
inline std::string of(std::floating_point auto value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

class Object {
 public:
  template <class T>
  Object& add(std::string_view key, const T& value) {
    return add_raw(key, of(value));
  }
  Object& add_raw(std::string_view key, std::string_view json) {
    if (members_.size() > 1) members_ += ',';
    members_ += of(key) + ':';
    members_ += json;
    return *this;
  }
  [[nodiscard]] std::string text() const { return members_ + '}'; }

 private:
  std::string members_ = "{";
};

/// A list of values, each written by `write`.
template <class Range, class Write>
std::string array(const Range& range, const Write& write) {
  std::string result = "[";
  for (const auto& each : range) {
    if (result.size() > 1) result += ',';
    result += write(each);
  }
  return result + ']';
}

}  // namespace json_text

}  // namespace skald::inline v0
