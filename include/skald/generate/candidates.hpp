#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include <skald/text/vocabulary.hpp>

namespace skald::inline v0 {

/// A token that may come next.
struct Candidate {
  TokenId token = -1;
  float logit = 0.0F;
};

/// The tokens that may come next, with their logits. Starts with the whole vocabulary; samplers change logits and drop
/// candidates. Ties in logits are broken by the lower token id, so every operation is deterministic.
class SKALD_API Candidates {
 public:
  /// All tokens of a row of logits. Keeps its memory from call to call.
  void assign(std::span<const float> logits);

  [[nodiscard]] std::size_t size() const noexcept { return list_.size(); }
  /// Remaining candidates; ordered by token id until something sorts or drops.
  [[nodiscard]] std::span<const Candidate> list() const noexcept { return list_; }
  /// The remaining candidates, for changing logits (not tokens).
  [[nodiscard]] std::span<Candidate> mutable_list() noexcept {
    sorted_ = false;
    return list_;
  }
  /// Adds to the logit of a token; no effect if it was dropped. O(1) while nothing was dropped.
  void add(TokenId token, float bias) noexcept;
  /// Makes a token impossible.
  void forbid(TokenId token) noexcept;
  /// Logit of a token, -infinity if it was dropped.
  [[nodiscard]] float logit(TokenId token) const noexcept;

  /// Keeps the `count` largest logits, sorted in descending order; at least one stays.
  void keep_top(std::size_t count);
  /// Sorts all remaining candidates by descending logit.
  void sort();
  /// Keeps the first `count` of the current order; at least one stays.
  void keep_first(std::size_t count);
  /// Keeps candidates with a logit of at least `threshold`; the largest always stays.
  void keep_above(float threshold);
  /// Largest logit.
  [[nodiscard]] float max_logit() const noexcept;
  /// Softmax over the remaining candidates, in their current order; valid until the next change of the candidates.
  [[nodiscard]] std::span<const float> probabilities();
  /// Uninitialized work memory for a sampler, kept from call to call so that steps allocate nothing; valid until the
  /// next call.
  template <class T>
    requires(std::is_trivially_copyable_v<T> && alignof(T) <= alignof(std::max_align_t))
  [[nodiscard]] std::span<T> workspace(std::size_t count) {
    return {static_cast<T*>(raw_workspace(count, sizeof(T))), count};
  }

 private:
  [[nodiscard]] Candidate* find(TokenId token) noexcept;
  [[nodiscard]] void* raw_workspace(std::size_t count, std::size_t element_bytes);
  std::vector<Candidate> list_;
  std::vector<Candidate> scratch_;
  std::vector<float> probabilities_;
  std::vector<std::max_align_t> workspace_;
  bool complete_ = false;  // list_[i].token == i
  bool sorted_ = false;
};

}  // namespace skald::inline v0
