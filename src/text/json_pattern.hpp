#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "text/json_node.hpp"
#include "text/regex.hpp"

namespace skald::inline v0::detail {

/// `{"String": …}` or `{"Regex": …}`.
class JsonPattern {
 public:
  /// Throws `UnsupportedError` for expressions that are not supported, `FormatError` for an empty string.
  explicit JsonPattern(const JsonNode& node);
  explicit JsonPattern(std::string_view regex) : regex_(std::in_place, regex, Regex::Syntax::oniguruma) {}

  /// Calls `found(begin, end)` for all matches from left to right. Empty ones count, but not right after another match.
  template <class Found>
  void matches(std::string_view text, Found&& found) const {
    if (!regex_) {
      for (std::size_t at = 0; (at = text.find(literal_, at)) != std::string_view::npos; at += literal_.size()) {
        found(at, at + literal_.size());
      }
      return;
    }
    Regex::Matcher matcher(text.size(), {200'000, 64});
    std::optional<std::size_t> last;
    for (std::size_t at = 0; at <= text.size();) {
      const auto match = regex_->find(text, at, matcher);
      if (!match) return;
      const auto [begin, end] = *match;
      if (begin == end && last == end) {
        at = next_point(text, at);
        continue;
      }
      found(begin, end);
      at = end;
      last = end;
    }
  }
  /// The string, if the pattern is one.
  [[nodiscard]] const std::string* literal() const noexcept { return regex_ ? nullptr : &literal_; }

 private:
  static std::size_t next_point(std::string_view text, std::size_t at) noexcept;
  std::string literal_;
  std::optional<Regex> regex_;
};

}  // namespace skald::inline v0::detail
