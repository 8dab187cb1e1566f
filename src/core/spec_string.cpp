#include <skald/core/spec_string.hpp>

#include <charconv>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

SpecString::SpecString(std::string_view text) {
  const auto colon = text.find(':');
  name_ = text.substr(0, colon);
  if (colon == std::string_view::npos) return;
  std::string_view rest = text.substr(colon + 1);
  while (!rest.empty()) {
    const auto comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    const auto equals = item.find('=');
    if (equals == std::string_view::npos || equals == 0)
      throw UsageError("core.spec", "'" + std::string(item) + "' in '" + std::string(text) + "' is not key=value");
    if (!values_.emplace(item.substr(0, equals), item.substr(equals + 1)).second)
      throw UsageError("core.spec", "parameter '" + std::string(item.substr(0, equals)) + "' is given twice");
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
  }
}

std::optional<std::string> SpecString::take(std::string_view key) {
  asked_ += (asked_.empty() ? "" : ", ") + std::string(key);
  const auto it = values_.find(key);
  if (it == values_.end()) return std::nullopt;
  auto value = std::move(it->second);
  values_.erase(it);
  return value;
}

std::int64_t SpecString::integer(std::string_view key, std::int64_t fallback, std::int64_t least, std::int64_t most) {
  const auto value = take(key);
  if (!value) return fallback;
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), number);
  if (error != std::errc() || end != value->data() + value->size() || number < least || number > most)
    throw UsageError("core.spec", "parameter '" + std::string(key) + "' of '" + name_ + "' is '" + *value +
                                      "', an integer from " + std::to_string(least) + " to " + std::to_string(most) +
                                      " is allowed");
  return number;
}

std::string SpecString::text(std::string_view key, std::string_view fallback) {
  auto value = take(key);
  return value ? *std::move(value) : std::string(fallback);
}

void SpecString::finish() const {
  if (values_.empty()) return;
  throw UsageError("core.spec", "'" + name_ + "' has no parameter '" + values_.begin()->first + "'; it has: " +
                                    (asked_.empty() ? "none" : asked_));
}

}  // namespace skald::inline v0
