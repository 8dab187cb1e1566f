#include "backend/cpu/expert_choice.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace skald::inline v0::cpu {

namespace {

/// Indices of the largest `used` of n values, from the largest down, of equal ones the lower first.
template <class T>
void choose_largest(const T* values, std::int32_t n, std::int32_t used, std::int32_t* chosen) noexcept {
  std::int32_t count = 0;
  for (std::int32_t e = 0; e < n; ++e) {
    std::int32_t at = count;
    if (count < used) ++count;
    else if (values[e] > values[chosen[count - 1]]) --at;
    else continue;
    for (; at > 0 && values[e] > values[chosen[at - 1]]; --at) chosen[at] = chosen[at - 1];
    chosen[at] = e;
  }
}

/// Makes the scores of experts outside the best groups minus infinity.
void keep_best_groups(const ExpertsOp& op, std::int32_t experts, double* scores, double* sums) noexcept {
  constexpr double lowest = -std::numeric_limits<double>::infinity();
  const std::int32_t each = experts / op.groups;
  for (std::int32_t g = 0; g < op.groups; ++g) {
    double first = lowest;
    double second = lowest;
    for (std::int32_t e = g * each; e < (g + 1) * each; ++e) {
      second = std::max(second, std::min(first, scores[e]));
      first = std::max(first, scores[e]);
    }
    sums[g] = op.group_best == 1 ? first : first + second;
  }
  for (std::int32_t g = 0; g < op.groups; ++g) {
    std::int32_t better = 0;
    for (std::int32_t h = 0; h < op.groups; ++h) {
      if (sums[h] > sums[g] || (sums[h] == sums[g] && h < g)) ++better;
    }
    if (better >= op.groups_used) std::fill_n(scores + g * each, each, lowest);
  }
}

double sigmoid(float logit) noexcept { return 1.0 / (1.0 + std::exp(-static_cast<double>(logit))); }

}  // namespace

void choose_experts(const ExpertsOp& op, std::int64_t token, double* scores, std::int32_t* chosen,
                    float* shares) noexcept {
  const float* logits = op.logits.data + token * op.logits.stride;
  const auto experts = static_cast<std::int32_t>(op.logits.cols);
  const auto power = [&](std::int32_t e, float top) {
    return std::exp(static_cast<double>(logits[e]) - static_cast<double>(top));
  };
  // Without biases and groups the largest logits have the largest scores.
  const bool by_logit = op.selection_bias == nullptr && op.groups == 1 && op.gating != ExpertGating::sigmoid;
  float top = 0.0F;
  double all = 0.0;  // sum of the powers of all experts
  if (by_logit) {
    choose_largest(logits, experts, op.used, chosen);
    top = logits[chosen[0]];
    if (op.gating == ExpertGating::softmax && !op.renormalize) {
      for (std::int32_t e = 0; e < experts; ++e) all += power(e, top);
    }
  } else {
    top = *std::max_element(logits, logits + experts);
    if (op.gating == ExpertGating::softmax) {
      for (std::int32_t e = 0; e < experts; ++e) all += power(e, top);
    }
    for (std::int32_t e = 0; e < experts; ++e) {
      double score = static_cast<double>(logits[e]);
      if (op.gating == ExpertGating::softmax) score = power(e, top) / all;
      if (op.gating == ExpertGating::sigmoid) score = sigmoid(logits[e]);
      if (op.selection_bias != nullptr) score += static_cast<double>(op.selection_bias[e]);
      scores[e] = score;
    }
    if (op.groups > 1) keep_best_groups(op, experts, scores, scores + experts);
    choose_largest(scores, experts, op.used, chosen);
    if (op.gating == ExpertGating::softmax_selected) {
      top = logits[chosen[0]];
      for (std::int32_t r = 1; r < op.used; ++r) top = std::max(top, logits[chosen[r]]);
    }
  }

  const auto weight = [&](std::int32_t e) {
    return op.gating == ExpertGating::sigmoid ? sigmoid(logits[e]) : power(e, top);
  };
  double divisor = op.gating == ExpertGating::sigmoid ? 1.0 : all;
  if (op.renormalize || op.gating == ExpertGating::softmax_selected) {
    // Divided by their sum, the shares of the chosen do not depend on the others.
    const double least = static_cast<double>(least_share_sum) * divisor;
    divisor = 0.0;
    for (std::int32_t r = 0; r < op.used; ++r) divisor += weight(chosen[r]);
    if (op.gating != ExpertGating::softmax_selected) divisor = std::max(divisor, least);
  }
  for (std::int32_t r = 0; r < op.used; ++r) {
    shares[r] = static_cast<float>(static_cast<double>(op.scale) * weight(chosen[r]) / divisor);
  }
}

}  // namespace skald::inline v0::cpu
