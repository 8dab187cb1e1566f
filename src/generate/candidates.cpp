#include <skald/generate/candidates.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace skald::inline v0 {

namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

bool before(const Candidate& a, const Candidate& b) noexcept {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

}  // namespace

void Candidates::assign(std::span<const float> logits) {
  list_.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) list_[i] = {static_cast<TokenId>(i), logits[i]};
  complete_ = true;
  sorted_ = false;
}

Candidate* Candidates::find(TokenId token) noexcept {
  if (complete_) {
    if (token < 0 || static_cast<std::size_t>(token) >= list_.size()) return nullptr;
    return &list_[static_cast<std::size_t>(token)];
  }
  for (auto& candidate : list_)
    if (candidate.token == token) return &candidate;
  return nullptr;
}

void Candidates::add(TokenId token, float bias) noexcept {
  if (auto* candidate = find(token)) {
    candidate->logit += bias;
    sorted_ = false;
  }
}

void Candidates::forbid(TokenId token) noexcept { add(token, minus_infinity); }

float Candidates::logit(TokenId token) const noexcept {
  const auto* candidate = const_cast<Candidates*>(this)->find(token);
  return candidate ? candidate->logit : minus_infinity;
}

void Candidates::keep_top(std::size_t count) {
  count = std::max<std::size_t>(count, 1);
  if (count >= list_.size()) return sort();
  // Almost no candidate of a large vocabulary is near the top: collect those above a rising threshold.
  const std::size_t room = std::max<std::size_t>(4 * count, 1024);
  scratch_.clear();
  scratch_.reserve(room + 1);
  float threshold = minus_infinity;
  const auto tighten = [&] {
    std::nth_element(scratch_.begin(), scratch_.begin() + static_cast<std::ptrdiff_t>(count - 1), scratch_.end(), before);
    scratch_.resize(count);
    threshold = scratch_.back().logit;
  };
  for (const auto& candidate : list_) {
    if (candidate.logit < threshold) continue;
    scratch_.push_back(candidate);
    if (scratch_.size() >= room) tighten();
  }
  if (scratch_.size() > count) tighten();
  std::swap(list_, scratch_);
  complete_ = false;
  sorted_ = false;
  sort();
}

void Candidates::sort() {
  if (sorted_) return;
  std::sort(list_.begin(), list_.end(), before);
  sorted_ = true;
  complete_ = false;
}

void Candidates::keep_first(std::size_t count) {
  count = std::max<std::size_t>(count, 1);
  if (count >= list_.size()) return;
  list_.resize(count);
  complete_ = false;
}

void Candidates::keep_above(float threshold) {
  const float limit = std::min(threshold, max_logit());
  const auto end = std::remove_if(list_.begin(), list_.end(), [&](const Candidate& c) { return !(c.logit >= limit); });
  if (end == list_.end() || end == list_.begin()) return;
  list_.erase(end, list_.end());
  complete_ = false;
}

float Candidates::max_logit() const noexcept {
  float most = minus_infinity;
  for (const auto& candidate : list_) most = std::max(most, candidate.logit);
  return most;
}

void* Candidates::raw_workspace(std::size_t count, std::size_t element_bytes) {
  // Large enough at once for the history of a usual session, which grows by a token per step.
  constexpr std::size_t least = (std::size_t{1} << 16) / sizeof(std::max_align_t);
  const std::size_t units = (count * element_bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t);
  if (units > workspace_.size()) workspace_.resize(std::max({units, least, 2 * workspace_.size()}));
  return workspace_.data();
}

std::span<const float> Candidates::probabilities() {
  probabilities_.resize(list_.size());
  const float most = max_logit();
  if (most == minus_infinity) {  // everything was forbidden
    std::fill(probabilities_.begin(), probabilities_.end(), 0.0F);
    return probabilities_;
  }
  double sum = 0.0;
  for (std::size_t i = 0; i < list_.size(); ++i) {
    probabilities_[i] = std::exp(list_[i].logit - most);
    sum += probabilities_[i];
  }
  const auto scale = static_cast<float>(1.0 / sum);
  for (float& p : probabilities_) p *= scale;
  return probabilities_;
}

}  // namespace skald::inline v0
