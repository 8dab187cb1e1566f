#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <skald/decoder/session.hpp>
#include <skald/generate/score.hpp>

namespace skald::inline v0 {

/// How a list is put before the model. Candidate i of a window is written before_id + identifiers[i] + after_id + its
/// text + after_item; then comes `question`, after which the model would name the best candidate's identifier.
struct ListwiseOptions {
  /// One token each, all different, in the order in which they are given out; as many as a window can hold.
  std::vector<std::string> identifiers{"A", "B", "C", "D", "E", "F", "G", "H", "I", "J",
                                       "K", "L", "M", "N", "O", "P", "Q", "R", "S", "T"};
  std::string before_id = "[";
  std::string after_id = "] ";
  std::string after_item = "\n";
  std::string question = "\nThe most relevant is [";
  std::int64_t window = 0;  ///< candidates that are compared together; 0: as many as there are identifiers
  std::int64_t step = 0;    ///< by which the window moves; 0: half of it
  std::stop_token stop{};
};

/// One window: the candidates in the order in which they stood, and what the model says about their identifiers.
struct ListwiseWindow {
  std::vector<std::size_t> candidates{};
  LabelScores scores{};
};

struct ListwiseResult {
  std::vector<std::size_t> order{};  ///< indices of the candidates, best first
  std::vector<ListwiseWindow> windows{};
};

/// Orders candidates by the logits of their identifiers as the first token of an answer that is never generated (FIRST,
/// Reddy et al. 2024, arXiv 2406.15657): one prefill for a window, no decoding. Longer lists are sorted by a window
/// that moves from the end to the beginning, so that the best candidates rise. What comes before the lists,
/// instructions and query, is given as tokens, computed once and shared by the windows. `session` must be empty; it
/// holds `prefix` in the end, and nothing of the windows: a second call that is given the session with the same prefix
/// computes only its lists.
/// @throws UsageError for identifiers that are not single, different tokens, a window or step out of range, a session
/// that holds something else; as Decoder::forward.
[[nodiscard]] SKALD_API ListwiseResult rerank(Session& session, std::span<const TokenId> prefix,
                                              std::span<const std::string> candidates,
                                              const ListwiseOptions& options = {});

}  // namespace skald::inline v0
