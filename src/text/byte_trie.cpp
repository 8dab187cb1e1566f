#include "text/byte_trie.hpp"

#include <algorithm>

namespace skald::inline v0::detail {

void ByteTrie::build(std::vector<Entry> entries) {
  std::erase_if(entries, [](const Entry& entry) { return entry.first.empty(); });
  std::ranges::stable_sort(entries, {}, &Entry::first);
  nodes_.assign(1, {});
  edges_.clear();
  roots_ = {};
  // Breadth first: a node's entries are neighbours in sorted order and share its path.
  struct Range {
    std::uint32_t node;
    std::size_t begin, end, depth;
  };
  std::vector<Range> level{{0, 0, entries.size(), 0}};
  for (std::vector<Range> next; !level.empty(); level.swap(next)) {
    next.clear();
    for (const Range& range : level) {
      std::size_t i = range.begin;
      for (; i < range.end && entries[i].first.size() == range.depth; ++i) {
        nodes_[range.node].token = entries[i].second;
      }
      nodes_[range.node].first_edge = static_cast<std::uint32_t>(edges_.size());
      while (i < range.end) {
        const auto byte = static_cast<unsigned char>(entries[i].first[range.depth]);
        const std::size_t begin = i;
        while (i < range.end && static_cast<unsigned char>(entries[i].first[range.depth]) == byte) ++i;
        const auto node = static_cast<std::uint32_t>(nodes_.size());
        nodes_.emplace_back();
        edges_.push_back({node, byte});
        ++nodes_[range.node].edges;
        if (range.node == 0) roots_[byte] = node;
        next.push_back({node, begin, i, range.depth + 1});
      }
    }
  }
}

std::uint32_t ByteTrie::child(std::uint32_t node, unsigned char byte) const noexcept {
  const auto begin = edges_.begin() + nodes_[node].first_edge;
  const auto end = begin + nodes_[node].edges;
  const auto edge = std::lower_bound(begin, end, byte, [](const Edge& e, unsigned char b) { return e.byte < b; });
  return edge == end || edge->byte != byte ? 0 : edge->to;
}

}  // namespace skald::inline v0::detail
