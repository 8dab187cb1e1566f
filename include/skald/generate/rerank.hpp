#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <skald/decoder/embed.hpp>
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

/// How a model with a classifier (a cross-encoder) scores documents.
struct PairwiseOptions {
  /// Of the classifier's labels the one that means relevant. Empty: the only one, or the one that is called "yes" or
  /// "relevant".
  std::optional<std::size_t> label{};
  std::stop_token stop{};
};

struct PairwiseResult {
  std::vector<std::size_t> order{};  ///< indices of the documents, best first; equal ones in the order given
  std::vector<float> scores{};       ///< of every document: its logit, or with several labels their softmax
};

/// Query and document as the model was trained to read them: by the template `tokenizer.chat_template.rerank` of the
/// file ("{query}" and "{document}" are replaced), or else one after the other with the vocabulary's separators.
[[nodiscard]] SKALD_API TextPair rerank_pair(const Model& model, std::string_view query, std::string_view document);
/// Score of one document. @throws UsageError if the label is not told or out of range.
[[nodiscard]] SKALD_API float rerank_score(const Classifier& classifier, std::span<const float> logits,
                                           std::optional<std::size_t> label = {});

/// Orders documents by a classifier over query and document (Nogueira and Cho 2019, arXiv 1901.04085): each is read
/// together with the query, several in one forward pass; a score does not depend on the other documents.
/// @throws UnsupportedError if the model has no classifier; as embed() and rerank_score().
template <class B, class E, class K>
[[nodiscard]] PairwiseResult rerank(const Decoder<B, E, K>& decoder, std::string_view query,
                                    std::span<const std::string> documents, const PairwiseOptions& options = {}) {
  const Model& model = decoder.model();
  std::vector<TextPair> pairs;
  pairs.reserve(documents.size());
  for (const std::string& document : documents) pairs.push_back(rerank_pair(model, query, document));
  EmbedOptions embedding{};
  embedding.pooling = Pooling::rank;
  embedding.stop = options.stop;
  const Embeddings logits = embed(decoder, std::span<const TextPair>(pairs), embedding);
  PairwiseResult result;
  for (std::size_t i = 0; i < documents.size(); ++i) {
    result.order.push_back(i);
    result.scores.push_back(rerank_score(*model.classifier(), logits[i], options.label));
  }
  std::stable_sort(result.order.begin(), result.order.end(),
                   [&](std::size_t a, std::size_t b) { return result.scores[a] > result.scores[b]; });
  return result;
}

}  // namespace skald::inline v0
