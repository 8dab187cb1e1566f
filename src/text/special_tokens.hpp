#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

namespace skald::inline v0::detail {

/// Finds tokens that are matched in the text as a whole, before it is split into words.
///
/// Longer tokens win over shorter ones, wherever they begin; among equally long ones the leftmost wins. (So it is
/// the same as cutting out the tokens one by one, longest first.) Work is linear in the text times the length of the
/// longest token that the text can begin.
class SpecialTokens {
 public:
  struct Match {
    std::uint32_t begin, size;
    TokenId token;
  };

  /// Adds a token; `text` must not be empty. Equal texts: the first one stays.
  void add(std::string_view text, TokenId token);
  /// To be called after the last `add`.
  void finish();
  /// Replaces `matches` by the matches in `text`, in order, none overlapping.
  void find(std::string_view text, std::vector<Match>& matches) const;

 private:
  struct Node {
    TokenId token = -1;
    std::uint32_t depth = 0;
    std::uint32_t shorter = 0;  // the longest proper prefix that is a token, or 0
    std::uint32_t first_edge = 0, edge_end = 0;
  };
  struct Edge {
    std::uint32_t from;
    unsigned char byte;
    std::uint32_t to;
  };
  [[nodiscard]] std::uint32_t child(std::uint32_t node, unsigned char byte) const noexcept;
  [[nodiscard]] std::uint32_t longest_at(std::string_view text) const noexcept;

  struct Text {
    std::string_view text;
    TokenId token;
  };
  std::vector<Text> texts_;  // until finish()
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::array<std::uint32_t, 256> roots_{};
};

}  // namespace skald::inline v0::detail
