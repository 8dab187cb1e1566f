#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <skald/state/eviction.hpp>

/// Eviction policies from the literature, as short components. All are asked at page borders, where they leave room for
/// the page that comes, so that a head group never holds more than its budget of tokens.
namespace skald::inline v0 {

/// How a budget of tokens per head is divided among layers and heads; the sum stays the same.
enum class BudgetShares : std::uint8_t {
  uniform,   ///< the same for all
  pyramid,   ///< falls linearly with depth, from 3/2 to 1/2 (PyramidKV, Cai et al. 2024, arXiv 2406.02069)
  adaptive,  ///< per layer, by the heads' scores: the largest of all heads together stay (Ada-KV, arXiv 2407.11550)
};

namespace detail {

[[nodiscard]] inline std::string to_string(BudgetShares shares) {
  return shares == BudgetShares::pyramid ? "pyramid" : shares == BudgetShares::adaptive ? "adaptive" : "uniform";
}

/// Share of layer `layer` of a pyramid.
[[nodiscard]] inline std::int64_t pyramid_budget(std::int64_t budget, std::size_t index, std::size_t layers) noexcept {
  if (layers < 2) return budget;
  const auto last = static_cast<double>(layers - 1);
  return static_cast<std::int64_t>(std::floor(static_cast<double>(budget) *
                                              (1.5 - static_cast<double>(index) / last)));
}

/// Number of the layer among those that the views show.
[[nodiscard]] inline std::vector<std::size_t> layer_ranks(std::span<const EvictionView> views, std::size_t& layers) {
  std::vector<std::size_t> ranks(views.size());
  layers = 0;
  for (std::size_t i = 0; i < views.size(); ++i) {
    if (i == 0 || views[i].layer != views[i - 1].layer) ++layers;
    ranks[i] = layers - 1;
  }
  return ranks;
}

/// Divides `budget` tokens per head group. `least` is what a group always gets.
SKALD_API void share_budgets(BudgetShares shares, std::int64_t budget, std::int64_t least,
                             std::span<const EvictionView> views, std::span<std::int64_t> out);

/// Divides a budget by how spread out the layers' scores are: in proportion to their mean normalized entropy.
SKALD_API void share_by_spread(std::int64_t budget, std::int64_t least, std::span<const EvictionView> views,
                               std::span<std::int64_t> out);

}  // namespace detail

/// Heavy hitters (H2O, Zhang et al. 2023, arXiv 2306.14048): keeps the newest tokens and those that gathered the most
/// attention so far.
struct HeavyHitters {
  std::int64_t budget = 512;  ///< most tokens per head, at least two pages
  double recent = 0.5;        ///< share of the newest tokens
  BudgetShares shares = BudgetShares::uniform;

  [[nodiscard]] std::string name() const {
    return "h2o:budget=" + std::to_string(budget) + ",recent=" + std::to_string(std::llround(recent * 100)) +
           (shares == BudgetShares::uniform ? "" : ",shares=" + detail::to_string(shares));
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {.needs_scores = true, .drops_tokens = true, .lossy = true, .budget = budget, .concurrent = true};
  }
  void budgets(std::span<const EvictionView> views, std::span<std::int64_t> out) const {
    detail::share_budgets(shares, budget, 2 * (views.empty() ? 0 : views.front().page_tokens), views, out);
  }
  void evict(const EvictionView& view, EvictionChoice& choice) const {
    const auto keep = std::max<std::int64_t>(view.budget - view.page_tokens, 1);
    if (view.slots() <= keep) return;
    const auto newest = std::clamp<std::int64_t>(std::llround(static_cast<double>(keep) * recent), 1, keep);
    choice.keep_largest(0, view.slots() - newest, keep - newest,
                        [&](std::int32_t slot) { return view.scores[static_cast<std::size_t>(slot)]; });
  }
};
static_assert(EvictionPolicy<HeavyHitters> && BudgetPolicy<HeavyHitters>);

/// Key tokens (Keyformer, Adnan et al. 2024, arXiv 2403.09054): as HeavyHitters, but what is added up are probabilities of
/// (logit + Gumbel noise) / temperature, to make up for the probability of those that have left. The temperature is 1 for
/// the prompt (Session::set_prompt_length) and grows to `last` over `steps` generated tokens.
struct KeyTokens {
  std::int64_t budget = 512;   ///< most tokens per head, at least two pages
  double recent = 0.5;         ///< share of the newest tokens
  double noise = 1.0;          ///< factor of the noise; 0: none
  double last = 2.0;           ///< temperature in the end
  std::int64_t steps = 512;
  std::uint64_t seed = 0;
  BudgetShares shares = BudgetShares::uniform;

  [[nodiscard]] std::string name() const {
    const auto percent = [](double x) { return std::to_string(std::llround(x * 100)); };
    return "keyformer:budget=" + std::to_string(budget) + ",recent=" + percent(recent) + ",noise=" + percent(noise) +
           ",temperature=" + percent(last) + ",steps=" + std::to_string(steps) + ",seed=" + std::to_string(seed) +
           (shares == BudgetShares::uniform ? "" : ",shares=" + detail::to_string(shares));
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {.needs_scores = true,
            .drops_tokens = true,
            .lossy = true,
            .score_shape = {.noise = static_cast<float>(noise), .seed = seed, .last = static_cast<float>(last), .steps = steps},
            .budget = budget,
            .concurrent = true};
  }
  void budgets(std::span<const EvictionView> views, std::span<std::int64_t> out) const { like().budgets(views, out); }
  void evict(const EvictionView& view, EvictionChoice& choice) const { like().evict(view, choice); }

 private:
  [[nodiscard]] HeavyHitters like() const noexcept { return {budget, recent, shares}; }
};
static_assert(EvictionPolicy<KeyTokens> && BudgetPolicy<KeyTokens>);

/// Compression by an observation window (SnapKV, Li et al. 2024, arXiv 2404.14469): keeps the newest `window` tokens and
/// those before them that these look at most, after pooling over neighbours. Done at each page border, during a prompt too.
struct WindowedAttention {
  std::int64_t budget = 512;
  std::int32_t window = 16;  ///< observing tokens; at most a page
  std::int32_t pool = 5;     ///< width of the maximum over neighbours, odd
  BudgetShares shares = BudgetShares::uniform;

  [[nodiscard]] std::string name() const {
    return "snapkv:budget=" + std::to_string(budget) + ",window=" + std::to_string(window) +
           ",pool=" + std::to_string(pool) +
           (shares == BudgetShares::uniform ? "" : ",shares=" + detail::to_string(shares));
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {
        .needs_scores = true, .drops_tokens = true, .lossy = true, .score_window = window, .budget = budget, .concurrent = true};
  }
  void budgets(std::span<const EvictionView> views, std::span<std::int64_t> out) const {
    detail::share_budgets(shares, budget, 2 * (views.empty() ? 0 : views.front().page_tokens), views, out);
  }
  void evict(const EvictionView& view, EvictionChoice& choice) const {
    const auto keep = std::max<std::int64_t>(view.budget - view.page_tokens, 1);
    if (view.slots() <= keep) return;
    const auto newest = std::min<std::int64_t>(window, keep);
    const auto end = view.slots() - newest;
    choice.keep_largest(0, end, keep - newest, [&](std::int32_t slot) {
      float best = 0.0F;
      for (std::int64_t i = std::max(0, slot - pool / 2); i <= slot + pool / 2 && i < end; ++i)
        best = std::max(best, view.scores[static_cast<std::size_t>(i)]);
      return best;
    });
  }
};
static_assert(EvictionPolicy<WindowedAttention>);

/// Reasoning-path compression (RPC, Song et al. 2025, arXiv 2505.13866): every `interval` generated tokens keeps, of those
/// generated so far, the share `ratio` that the newest `window` tokens look at most, and these. The prompt stays
/// (Session::set_prompt_length; untold, everything counts as generated).
struct ReasoningPath {
  std::int64_t interval = 256;  ///< generated tokens between compressions, in whole pages; 0: never
  std::int32_t window = 16;     ///< newest tokens that choose; at most a page
  int percent = 25;             ///< of the generated tokens that stay

  [[nodiscard]] std::string name() const {
    return "rpc:interval=" + std::to_string(interval) + ",window=" + std::to_string(window) +
           ",percent=" + std::to_string(percent);
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {.needs_scores = true, .drops_tokens = true, .lossy = true, .score_window = window, .concurrent = true};
  }
  void evict(const EvictionView& view, EvictionChoice& choice) const {
    const auto generated = view.sequence_tokens - view.prompt_tokens;
    const auto pages = std::max<std::int64_t>(1, interval / view.page_tokens);
    if (interval == 0 || view.sequence_tokens / view.page_tokens % pages != 0 || generated <= window) return;
    // The prompt's slots come first and all are there.
    const auto begin = std::min(view.prompt_tokens, view.slots());
    const auto keep = std::max<std::int64_t>(window, (generated * percent + 99) / 100);
    if (view.slots() - begin <= keep) return;
    choice.keep_largest(begin, view.slots() - window, keep - window,
                        [&](std::int32_t slot) { return view.scores[static_cast<std::size_t>(slot)]; });
  }
};
static_assert(EvictionPolicy<ReasoningPath>);

/// Sinks and a window, by token, positions kept as they are (Xiao et al. 2023, arXiv 2309.17453, without renumbering).
struct SinksAndWindow {
  std::int64_t sinks = 4;
  std::int64_t window = 512;  ///< most tokens per head beside the sinks
  [[nodiscard]] std::string name() const {
    return "window:sinks=" + std::to_string(sinks) + ",window=" + std::to_string(window);
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {.drops_tokens = true, .lossy = true, .budget = sinks + window, .concurrent = true};
  }
  void evict(const EvictionView& view, EvictionChoice& choice) const {
    const auto newest = std::max<std::int64_t>(window - view.page_tokens, 1);
    for (auto slot = sinks; slot < view.slots() - newest; ++slot) choice.drop(slot);
  }
};
static_assert(EvictionPolicy<SinksAndWindow>);

/// Streaming without end (Xiao et al. 2023, arXiv 2309.17453): the first tokens and a window, with positions as in the cache.
/// Rotations depend on distances only, so the window's keys stay as they are and the sinks are rotated to follow it.
struct StreamingSinks {
  std::int32_t sinks = 4;     ///< at least 1, less than a page
  std::int64_t window = 512;  ///< most tokens per head beside the sinks
  [[nodiscard]] std::string name() const {
    return "streaming:sinks=" + std::to_string(sinks) + ",window=" + std::to_string(window);
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {.drops_tokens = true, .reorders_positions = true, .lossy = true, .budget = sinks + window, .sinks = sinks, .concurrent = true};
  }
  void evict(const EvictionView& view, EvictionChoice& choice) const {
    const auto newest = std::max<std::int64_t>(window - view.page_tokens, 1);
    for (std::int64_t slot = sinks; slot < view.slots() - newest; ++slot) choice.drop(slot);
  }
};
static_assert(EvictionPolicy<StreamingSinks>);

/// Two-level discriminative operations (D2O, Wan et al. 2024, arXiv 2406.13035): layers whose attention is spread out get more
/// of the budget; a token that leaves is merged into the kept one with the most similar key (cosine), if that is at least as
/// similar as a threshold that follows the similarities seen so far, else dropped. The merge is a mean weighted by exp of the
/// similarity times the number of tokens that a slot stands for; that number also weighs in attention (as in ToMe's
/// proportional attention, arXiv 2210.09461), so that a token that is equal to a kept one leaves without a trace.
struct DiscriminativeMerge {
  std::int64_t budget = 512;
  double recent = 0.5;    ///< share of the newest tokens
  double follow = 0.3;    ///< share of a new mean similarity in the threshold

  [[nodiscard]] std::string name() const {
    return "d2o:budget=" + std::to_string(budget) + (recent == 0.5 ? "" : ",recent=" + std::to_string(recent)) +
           (follow == 0.3 ? "" : ",follow=" + std::to_string(follow));
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {.needs_scores = true, .drops_tokens = true, .lossy = true, .merges_tokens = true, .counts_merged = true,
            .budget = budget, .memory_floats = 2, .concurrent = true};
  }
  void budgets(std::span<const EvictionView> views, std::span<std::int64_t> out) const {
    detail::share_by_spread(budget, 2 * (views.empty() ? 0 : views.front().page_tokens), views, out);
  }
  void evict(const EvictionView& view, EvictionChoice& choice) const {
    const auto keep = std::max<std::int64_t>(view.budget - view.page_tokens, 1);
    if (view.slots() <= keep) return;
    const auto newest = std::clamp<std::int64_t>(std::llround(static_cast<double>(keep) * recent), 1, keep);
    choice.keep_largest(0, view.slots() - newest, keep - newest,
                        [&](std::int32_t slot) { return view.scores[static_cast<std::size_t>(slot)]; });
    merge_similar(view, choice);
  }

 private:
  SKALD_API void merge_similar(const EvictionView& view, EvictionChoice& choice) const;
};
static_assert(EvictionPolicy<DiscriminativeMerge> && BudgetPolicy<DiscriminativeMerge>);

}  // namespace skald::inline v0
