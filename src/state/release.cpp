#include <skald/state/release.hpp>

#include <numeric>
#include <unordered_map>
#include <vector>

namespace skald::inline v0 {

std::size_t AdaptiveRelease::recall(std::span<const std::int32_t> tokens, std::span<const std::int32_t> dropped,
                                    std::span<std::int32_t> wanted) const {
  if (dropped.empty() || wanted.empty()) return 0;
  std::unordered_map<std::int32_t, std::int32_t> counts;
  for (const auto token : tokens) ++counts[token];
  // What each token of the vocabulary is worth now: the recurrence over the tokens that were not released.
  std::unordered_map<std::int32_t, float> worth;
  const float keeps = 1.0F - static_cast<float>(fade) / 100.0F;
  float weight = 1.0F;
  for (auto at = tokens.size(); at-- > static_cast<std::size_t>(dropped.back()) + 1 && weight > 1e-4F; weight *= keeps)
    if (tokens[at] >= 0) worth[tokens[at]] += weight / static_cast<float>(counts[tokens[at]]);
  std::vector<float> gains(tokens.size(), 0.0F);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto found = worth.find(tokens[i]);
    if (found == worth.end()) continue;
    for (std::size_t j = i; j < tokens.size() && j <= i + static_cast<std::size_t>(reach); ++j)
      gains[j] += found->second / static_cast<float>(1 + j - i);
  }
  std::vector<std::int32_t> best(dropped.begin(), dropped.end());
  const auto count = std::min(best.size(), wanted.size());
  std::partial_sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(count), best.end(), [&](std::int32_t a, std::int32_t b) {
    const float x = gains[static_cast<std::size_t>(a)];
    const float y = gains[static_cast<std::size_t>(b)];
    return x != y ? x > y : a > b;
  });
  std::size_t useful = 0;
  while (useful < count && gains[static_cast<std::size_t>(best[useful])] > 0.0F) ++useful;
  std::sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(useful));
  std::copy_n(best.begin(), useful, wanted.begin());
  return useful;
}

}  // namespace skald::inline v0
