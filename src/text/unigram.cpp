#include "text/unigram.hpp"

#include <algorithm>

#include "text/utf8.hpp"

namespace skald::inline v0::detail {

void Unigram::build(const std::vector<Entry>& entries, std::size_t vocabulary_size, double unknown_score) {
  scores_.assign(vocabulary_size, 0);
  std::vector<ByteTrie::Entry> texts;
  texts.reserve(entries.size());
  for (const Entry& entry : entries) {
    texts.emplace_back(entry.text, entry.token);
    scores_[static_cast<std::size_t>(entry.token)] = entry.score;
  }
  trie_.build(std::move(texts));
  unknown_score_ = unknown_score;
}

const std::vector<Unigram::Piece>& Unigram::split(std::string_view text, Scratch& scratch,
                                                  const std::vector<bool>* skip) const {
  auto& best = scratch.best;
  best.assign(text.size() + 1, {0, -1, 0});
  const auto offer = [&](std::size_t begin, std::size_t size, TokenId token, double score) {
    auto& end = best[begin + size];
    if (end.size != 0 && score <= end.score) return;
    end = {score, token, static_cast<std::uint32_t>(size)};
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    const double score = best[at].score;
    const std::size_t point = utf8_step(rest).size;
    bool spelled = false;
    trie_.prefixes(rest, [&](std::size_t size, TokenId token) {
      if (skip != nullptr && (*skip)[static_cast<std::size_t>(token)]) return;
      offer(at, size, token, score + scores_[static_cast<std::size_t>(token)]);
      spelled = spelled || size == point;
    });
    if (!spelled) offer(at, point, -1, score + unknown_score_);
    at += point;
  }
  auto& pieces = scratch.pieces;
  pieces.clear();
  for (std::size_t end = text.size(); end > 0;) {
    const auto& last = best[end];
    // Only tokens that begin or end inside a code point leave a place unreached, and none of the paths goes there.
    end -= last.size;
    pieces.push_back({static_cast<std::uint32_t>(end), last.size, last.token});
  }
  std::ranges::reverse(pieces);
  return pieces;
}

}  // namespace skald::inline v0::detail
