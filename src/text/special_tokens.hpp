#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <skald/text/vocabulary.hpp>

namespace skald::inline v0::detail {

/// Finds tokens that are matched in the text as a whole, before it is split into words.
///
/// Longer tokens win over shorter ones, wherever they begin; among equally long ones the leftmost wins. (So it is
/// the same as cutting out the tokens one by one, longest first.) One pass over the text with an automaton (Aho and
/// Corasick 1975) finds the candidates, so work is linear in the text, however many and long the tokens are.
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
  /// The same by another rule: from left to right, the longest token that begins at a place wins.
  void find_leftmost(std::string_view text, std::vector<Match>& matches) const;

 private:
  // Node of the trie of all texts read backwards; node 0 is the root. Going through a text from right to left, the
  // node says which tokens begin here.
  struct Node {
    TokenId token = -1;
    std::uint32_t depth = 0;
    std::uint32_t parent = 0;
    std::uint32_t fallback = 0;  // the longest proper suffix of this path that is a path too
    std::uint32_t longest = 0;   // this node if it is a token, else that of the fallback; 0 if there is none
    std::uint32_t first_edge = 0, edge_end = 0;
    unsigned char byte = 0;
  };
  struct Edge {
    std::uint32_t from;
    unsigned char byte;
    std::uint32_t to;
  };
  [[nodiscard]] std::uint32_t child(std::uint32_t node, unsigned char byte) const noexcept;
  [[nodiscard]] std::uint32_t step(std::uint32_t node, unsigned char byte) const noexcept;
  void add_path(std::string_view reversed, std::string_view last, std::vector<std::uint32_t>& path, TokenId token);
  void link();

  struct Text {
    std::string reversed;
    TokenId token;
  };
  std::vector<Text> texts_;  // until finish()
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::array<std::uint32_t, 256> roots_{};
};

}  // namespace skald::inline v0::detail
