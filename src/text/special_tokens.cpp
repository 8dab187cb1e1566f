#include "text/special_tokens.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <tuple>

namespace skald::inline v0::detail {

void SpecialTokens::add(std::string_view text, TokenId token) {
  texts_.push_back({std::string(text.rbegin(), text.rend()), token});
}

void SpecialTokens::finish() {
  // In sorted order every text extends a path of the one before, so the trie grows along one stack.
  std::ranges::stable_sort(texts_, {}, &Text::reversed);
  nodes_.assign(1, {});
  edges_.clear();
  std::vector<std::uint32_t> path{0};
  std::string_view last;
  for (const Text& entry : texts_) {
    add_path(entry.reversed, last, path, entry.token);
    last = entry.reversed;
  }
  std::ranges::sort(edges_, {}, [](const Edge& edge) { return std::tuple(edge.from, edge.byte); });
  for (std::uint32_t i = 0; i < edges_.size(); ++i) {
    Node& from = nodes_[edges_[i].from];
    if (from.edge_end == 0) from.first_edge = i;
    from.edge_end = i + 1;
    if (edges_[i].from == 0) roots_[edges_[i].byte] = edges_[i].to;
  }
  link();
  texts_.clear();
  texts_.shrink_to_fit();
}

void SpecialTokens::add_path(std::string_view reversed, std::string_view last, std::vector<std::uint32_t>& path,
                             TokenId token) {
  const auto same = static_cast<std::size_t>(std::ranges::mismatch(last, reversed).in2 - reversed.begin());
  path.resize(same + 1);
  for (std::size_t i = same; i < reversed.size(); ++i) {
    const auto node = static_cast<std::uint32_t>(nodes_.size());
    const auto byte = static_cast<unsigned char>(reversed[i]);
    nodes_.push_back({.depth = static_cast<std::uint32_t>(i + 1), .parent = path.back(), .byte = byte});
    edges_.push_back({path.back(), byte, node});
    path.push_back(node);
  }
  if (nodes_[path.back()].token < 0) nodes_[path.back()].token = token;
}

// Fallbacks lead to shallower nodes, so nodes are linked by depth.
void SpecialTokens::link() {
  std::vector<std::uint32_t> by_depth(nodes_.size());
  std::iota(by_depth.begin(), by_depth.end(), 0U);
  std::ranges::stable_sort(by_depth, {}, [&](std::uint32_t node) { return nodes_[node].depth; });
  for (const std::uint32_t i : by_depth) {
    Node& node = nodes_[i];
    if (node.depth > 1) node.fallback = step(nodes_[node.parent].fallback, node.byte);
    node.longest = node.token >= 0 ? i : nodes_[node.fallback].longest;
  }
}

std::uint32_t SpecialTokens::child(std::uint32_t node, unsigned char byte) const noexcept {
  const auto begin = edges_.begin() + nodes_[node].first_edge;
  const auto end = edges_.begin() + nodes_[node].edge_end;
  const auto edge = std::ranges::lower_bound(begin, end, byte, {}, &Edge::byte);
  return edge == end || edge->byte != byte ? 0 : edge->to;
}

// The longest path that ends with this byte after the path of the node.
std::uint32_t SpecialTokens::step(std::uint32_t node, unsigned char byte) const noexcept {
  while (node != 0) {
    if (const std::uint32_t next = child(node, byte)) return next;
    node = nodes_[node].fallback;
  }
  return roots_[byte];
}

void SpecialTokens::find(std::string_view text, std::vector<Match>& matches) const {
  matches.clear();
  if (edges_.empty()) return;
  struct Candidate {
    std::uint32_t begin, node;
  };
  // Longest first. A candidate that overlaps a match already taken falls back to its next shorter prefix.
  std::map<std::uint32_t, std::vector<Candidate>, std::greater<>> by_size;
  std::uint32_t state = 0;
  for (auto at = static_cast<std::uint32_t>(text.size()); at-- > 0;) {
    state = step(state, static_cast<unsigned char>(text[at]));
    if (const std::uint32_t node = nodes_[state].longest) by_size[nodes_[node].depth].push_back({at, node});
  }
  if (by_size.empty()) return;
  std::vector<bool> taken(text.size(), false);
  for (; !by_size.empty(); by_size.erase(by_size.begin())) {
    auto& candidates = by_size.begin()->second;
    std::ranges::reverse(candidates);  // found from right to left
    if (!std::ranges::is_sorted(candidates, {}, &Candidate::begin)) {
      std::ranges::sort(candidates, {}, &Candidate::begin);
    }
    for (const Candidate& candidate : candidates) {
      const Node& node = nodes_[candidate.node];
      if (taken[candidate.begin]) continue;
      // Matches so far are at least as long, so one that overlaps without covering the begin covers the last byte.
      if (taken[candidate.begin + node.depth - 1]) {
        const std::uint32_t shorter = nodes_[node.fallback].longest;
        if (shorter != 0) by_size[nodes_[shorter].depth].push_back({candidate.begin, shorter});
        continue;
      }
      std::fill_n(taken.begin() + candidate.begin, node.depth, true);
      matches.push_back({candidate.begin, node.depth, node.token});
    }
  }
  std::ranges::sort(matches, {}, &Match::begin);
}

void SpecialTokens::find_leftmost(std::string_view text, std::vector<Match>& matches) const {
  matches.clear();
  if (edges_.empty()) return;
  // Read from right to left, so the first place to take is found last.
  std::vector<Match> candidates;
  std::uint32_t state = 0;
  for (auto at = static_cast<std::uint32_t>(text.size()); at-- > 0;) {
    state = step(state, static_cast<unsigned char>(text[at]));
    if (const std::uint32_t node = nodes_[state].longest)
      candidates.push_back({at, nodes_[node].depth, nodes_[node].token});
  }
  std::uint32_t end = 0;
  for (auto candidate = candidates.rbegin(); candidate != candidates.rend(); ++candidate) {
    if (candidate->begin < end) continue;
    matches.push_back(*candidate);
    end = candidate->begin + candidate->size;
  }
}

}  // namespace skald::inline v0::detail
