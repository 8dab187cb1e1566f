#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/text/vocabulary.hpp>

namespace skald::inline v0::detail {

/// Most bytes of a token where every place of a text is compared with the vocabulary's texts. Real ones have at most a few
/// hundred.
inline constexpr std::size_t longest_piece = 1024;

/// Tokens by their bytes, to find all that a text begins with. About 12 bytes per distinct prefix.
class ByteTrie {
 public:
  using Entry = std::pair<std::string_view, TokenId>;
  /// Empty texts are left out; of equal texts the last one stays.
  void build(std::vector<Entry> entries);

  /// Calls `found(size, token)` for every token that `text` begins with, shortest first.
  template <class Found>
  void prefixes(std::string_view text, Found&& found) const {
    if (text.empty()) return;
    std::uint32_t node = roots_[static_cast<unsigned char>(text[0])];
    for (std::size_t size = 1; node != 0; ++size) {
      if (nodes_[node].token >= 0) found(size, nodes_[node].token);
      if (size == text.size()) return;
      node = child(node, static_cast<unsigned char>(text[size]));
    }
  }
  /// The longest token that `text` begins with, as size and token; {0, -1} if there is none.
  [[nodiscard]] std::pair<std::size_t, TokenId> longest(std::string_view text) const {
    std::pair<std::size_t, TokenId> best{0, -1};
    prefixes(text, [&](std::size_t size, TokenId token) { best = {size, token}; });
    return best;
  }

 private:
  struct Node {
    TokenId token = -1;
    std::uint32_t first_edge = 0, edges = 0;
  };
  struct Edge {
    std::uint32_t to;
    unsigned char byte;
  };
  [[nodiscard]] std::uint32_t child(std::uint32_t node, unsigned char byte) const noexcept;

  std::vector<Node> nodes_;  // node 0 is the root
  std::vector<Edge> edges_;
  std::array<std::uint32_t, 256> roots_{};
};

}  // namespace skald::inline v0::detail
