#include "text/json_pattern.hpp"

#include <algorithm>

#include "text/utf8.hpp"

namespace skald::inline v0::detail {

JsonPattern::JsonPattern(const JsonNode& node) {
  if (node.is_string()) {  // as older files write it
    literal_ = node.string();
  } else if (const auto regex = node.find("Regex")) {
    try {
      regex_.emplace(regex->string(), Regex::Syntax::oniguruma);
    } catch (const UnsupportedError& error) {
      regex->unsupported(error.message());
    }
    return;
  } else {
    literal_ = node.at("String").string();
  }
  if (literal_.empty()) node.fail("the pattern is empty");
}

std::size_t JsonPattern::next_point(std::string_view text, std::size_t at) noexcept {
  return at + std::max<std::size_t>(1, utf8_step(text.substr(at)).size);
}

}  // namespace skald::inline v0::detail
