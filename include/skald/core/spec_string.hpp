#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// A component chosen by name with parameters, as on the command line: "recent_pages:sinks=1,recent=8".
class SKALD_API SpecString {
 public:
  /// @throws UsageError if the text is not `name[:key=value[,key=value]...]` or a key is repeated.
  explicit SpecString(std::string_view text);

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// Value of an integer parameter in [least, most], or `fallback` if absent. @throws UsageError naming the parameter.
  [[nodiscard]] std::int64_t integer(std::string_view key, std::int64_t fallback, std::int64_t least,
                                     std::int64_t most);
  [[nodiscard]] std::string text(std::string_view key, std::string_view fallback);
  /// @throws UsageError if a parameter was given that nobody asked for; lists those that were.
  void finish() const;

 private:
  std::optional<std::string> take(std::string_view key);
  std::string name_;
  std::map<std::string, std::string, std::less<>> values_;
  std::string asked_;
};

}  // namespace skald::inline v0
