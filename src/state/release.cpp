#include <skald/state/release.hpp>

#include <bit>
#include <vector>

namespace skald::inline v0 {

namespace {

/// The tokens of the vocabulary that count now, few of many: looked up for every token of a long sequence.
class FewTokens {
 public:
  explicit FewTokens(std::size_t most) : places_(std::bit_ceil(4 * most + 4), Place{}) {}
  struct Place {
    std::int32_t token = -1;
    std::int32_t count = 0;
    float worth = 0.0F;
  };
  /// Where the token is, or is to go: then its place holds -1.
  [[nodiscard]] Place& find(std::int32_t token) noexcept {
    const std::size_t mask = places_.size() - 1;
    std::size_t at = (static_cast<std::uint32_t>(token) * 2654435761U >> 7) & mask;
    while (places_[at].token != token && places_[at].token != -1) at = (at + 1) & mask;
    return places_[at];
  }

 private:
  std::vector<Place> places_;
};

}  // namespace

std::size_t AdaptiveRelease::recall(std::span<const std::int32_t> tokens, std::span<const std::int32_t> dropped,
                                    std::span<std::int32_t> wanted) const {
  if (dropped.empty() || wanted.empty()) return 0;
  // What each token of the vocabulary is worth now: the recurrence over the tokens that were not released.
  const float keeps = 1.0F - static_cast<float>(fade) / 100.0F;
  std::vector<float> weights;
  const auto kept_from = static_cast<std::size_t>(dropped.back()) + 1;
  for (float weight = 1.0F; kept_from + weights.size() < tokens.size() && weight > 1e-4F; weight *= keeps)
    weights.push_back(weight);
  FewTokens few(weights.size());
  const auto newest = tokens.last(weights.size());
  for (const auto token : newest)
    if (token >= 0) few.find(token).token = token;
  std::vector<std::size_t> equal;  // places of tokens that count
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) continue;
    auto& place = few.find(tokens[i]);
    if (place.token < 0) continue;
    ++place.count;
    equal.push_back(i);
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto token = newest[weights.size() - 1 - i];
    if (token < 0) continue;
    auto& place = few.find(token);
    place.worth += weights[i] / static_cast<float>(place.count);
  }
  std::vector<float> gains(tokens.size(), 0.0F);
  for (const auto i : equal) {
    const float worth = few.find(tokens[i]).worth;
    for (std::size_t j = i; j < tokens.size() && j <= i + static_cast<std::size_t>(reach); ++j)
      gains[j] += worth / static_cast<float>(1 + j - i);
  }
  std::vector<std::int32_t> best;
  for (const auto position : dropped)
    if (gains[static_cast<std::size_t>(position)] > 0.0F) best.push_back(position);
  const auto count = std::min(best.size(), wanted.size());
  const auto end = best.begin() + static_cast<std::ptrdiff_t>(count);
  std::partial_sort(best.begin(), end, best.end(), [&](std::int32_t a, std::int32_t b) {
    const float x = gains[static_cast<std::size_t>(a)];
    const float y = gains[static_cast<std::size_t>(b)];
    return x != y ? x > y : a > b;
  });
  std::sort(best.begin(), end);
  std::copy(best.begin(), end, wanted.begin());
  return count;
}

}  // namespace skald::inline v0
