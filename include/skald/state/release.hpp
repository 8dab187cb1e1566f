#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <skald/state/eviction.hpp>

namespace skald::inline v0 {

/// Adaptive token release with rebuild (ADORE, Zhang et al. 2024, arXiv 2407.02328): of the tokens, `budget` at most are in the
/// cache; those that were released and are needed again are computed again from the states in which they entered each
/// layer, at most `rebuild` at a time. The published controller is a trained recurrent network; this one is a recurrence without
/// training over the tokens: a released token gains by every later token that is the same as it or as one shortly before it,
/// the more the rarer the token is, and what it has gained fades with every step.
struct AdaptiveRelease {
  std::int64_t budget = 512;
  std::int64_t rebuild = 64;       ///< 0: released tokens stay away
  std::int32_t interval = 1;       ///< tokens between two choices; more makes long prompts faster
  std::int64_t sinks = 4;          ///< tokens at the beginning that are never released
  std::int32_t fade = 10;          ///< percent that a gain loses with each token
  std::int32_t reach = 6;          ///< tokens after an equal one that gain too

  [[nodiscard]] std::string name() const {
    return "adore:budget=" + std::to_string(budget) + ",rebuild=" + std::to_string(rebuild) +
           ",interval=" + std::to_string(interval) + ",sinks=" + std::to_string(sinks) + ",fade=" + std::to_string(fade) +
           ",reach=" + std::to_string(reach);
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    ComponentTraits traits{.drops_tokens = true, .lossy = true, .budget = budget};
    traits.rebuild = rebuild;
    traits.rebuild_interval = interval;
    return traits;
  }
  void evict(const EvictionView& view, EvictionChoice& choice) const {
    const auto newest = std::max<std::int64_t>(budget - rebuild - sinks - view.page_tokens, 1);
    for (auto slot = sinks; slot < view.slots() - newest; ++slot) choice.drop(slot);
  }
  [[nodiscard]] SKALD_API std::size_t recall(std::span<const std::int32_t> tokens, std::span<const std::int32_t> dropped,
                                             std::span<std::int32_t> wanted) const;
};
static_assert(EvictionPolicy<AdaptiveRelease> && RecallPolicy<AdaptiveRelease>);

}  // namespace skald::inline v0
