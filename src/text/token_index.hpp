#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <skald/text/vocabulary.hpp>

namespace skald::inline v0::detail {

/// Token of a text. Holds views into the texts it was built from.
class TokenIndex {
 public:
  TokenIndex() = default;
  /// Empty texts are not entered. `on_duplicate(first, second)` is told of equal texts; the first one stays.
  template <class OnDuplicate>
  TokenIndex(const std::vector<std::string>& tokens, OnDuplicate&& on_duplicate) {
    ids_.reserve(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i].empty()) continue;
      longest_ = std::max(longest_, tokens[i].size());
      const auto [entry, added] = ids_.emplace(tokens[i], static_cast<TokenId>(i));
      if (!added) on_duplicate(entry->second, static_cast<TokenId>(i));
    }
  }

  /// The token, or -1.
  [[nodiscard]] TokenId find(std::string_view text) const noexcept {
    if (text.size() > longest_) return -1;
    const auto entry = ids_.find(text);
    return entry == ids_.end() ? -1 : entry->second;
  }

 private:
  std::unordered_map<std::string_view, TokenId> ids_;
  std::size_t longest_ = 0;
};

}  // namespace skald::inline v0::detail
