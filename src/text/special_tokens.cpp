#include "text/special_tokens.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <tuple>

namespace skald::inline v0::detail {

void SpecialTokens::add(std::string_view text, TokenId token) { texts_.push_back({text, token}); }

void SpecialTokens::finish() {
  // In sorted order every text extends a path of the one before, so the trie grows along one stack.
  std::ranges::stable_sort(texts_, {}, &Text::text);
  nodes_.assign(1, {});
  edges_.clear();
  std::vector<std::uint32_t> path{0};
  std::string_view last;
  for (const Text& entry : texts_) {
    const auto same = static_cast<std::size_t>(std::ranges::mismatch(last, entry.text).in2 - entry.text.begin());
    path.resize(same + 1);
    for (std::size_t i = same; i < entry.text.size(); ++i) {
      const std::uint32_t parent = path.back();
      const auto node = static_cast<std::uint32_t>(nodes_.size());
      nodes_.push_back({.depth = static_cast<std::uint32_t>(i + 1),
                        .shorter = nodes_[parent].token >= 0 ? parent : nodes_[parent].shorter});
      edges_.push_back({parent, static_cast<unsigned char>(entry.text[i]), node});
      path.push_back(node);
    }
    if (nodes_[path.back()].token < 0) nodes_[path.back()].token = entry.token;
    last = entry.text;
  }
  std::ranges::sort(edges_, {}, [](const Edge& edge) { return std::tuple(edge.from, edge.byte); });
  for (std::uint32_t i = 0; i < edges_.size(); ++i) {
    Node& from = nodes_[edges_[i].from];
    if (from.edge_end == 0) from.first_edge = i;
    from.edge_end = i + 1;
    if (edges_[i].from == 0) roots_[edges_[i].byte] = edges_[i].to;
  }
  texts_.clear();
  texts_.shrink_to_fit();
}

std::uint32_t SpecialTokens::child(std::uint32_t node, unsigned char byte) const noexcept {
  const auto begin = edges_.begin() + nodes_[node].first_edge;
  const auto end = edges_.begin() + nodes_[node].edge_end;
  const auto edge = std::ranges::lower_bound(begin, end, byte, {}, &Edge::byte);
  return edge == end || edge->byte != byte ? 0 : edge->to;
}

std::uint32_t SpecialTokens::longest_at(std::string_view text) const noexcept {
  std::uint32_t longest = 0;
  std::uint32_t node = roots_[static_cast<unsigned char>(text[0])];
  for (std::size_t i = 1; node != 0; ++i) {
    if (nodes_[node].token >= 0) longest = node;
    if (i == text.size()) break;
    node = child(node, static_cast<unsigned char>(text[i]));
  }
  return longest;
}

void SpecialTokens::find(std::string_view text, std::vector<Match>& matches) const {
  matches.clear();
  if (edges_.empty()) return;
  struct Candidate {
    std::uint32_t begin, node;
  };
  // Longest first. A candidate that overlaps a match already taken falls back to its next shorter prefix.
  std::map<std::uint32_t, std::vector<Candidate>, std::greater<>> by_size;
  for (std::uint32_t at = 0; at < text.size(); ++at) {
    if (const std::uint32_t node = longest_at(text.substr(at))) by_size[nodes_[node].depth].push_back({at, node});
  }
  if (by_size.empty()) return;
  std::vector<bool> taken(text.size(), false);
  for (; !by_size.empty(); by_size.erase(by_size.begin())) {
    auto& candidates = by_size.begin()->second;
    std::ranges::sort(candidates, {}, &Candidate::begin);
    for (const Candidate& candidate : candidates) {
      const Node& node = nodes_[candidate.node];
      if (taken[candidate.begin]) continue;
      // Matches so far are at least as long, so one that overlaps without covering the begin covers the last byte.
      if (taken[candidate.begin + node.depth - 1]) {
        if (node.shorter != 0) by_size[nodes_[node.shorter].depth].push_back({candidate.begin, node.shorter});
        continue;
      }
      std::fill_n(taken.begin() + candidate.begin, node.depth, true);
      matches.push_back({candidate.begin, node.depth, node.token});
    }
  }
  std::ranges::sort(matches, {}, &Match::begin);
}

}  // namespace skald::inline v0::detail
