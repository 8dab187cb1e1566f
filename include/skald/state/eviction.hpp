#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

/// What a component needs from the pipeline and does to it; compared when the pipeline is built.
struct ComponentTraits {
  bool needs_scores = false;        ///< wants attention probabilities (ScoreSink)
  bool drops_tokens = false;        ///< removes slots from the cache
  bool reorders_positions = false;  ///< renumbers positions; needs unrotated keys
  bool lossy = false;               ///< changes the logits
};

/// One page of a head group, in slot order.
struct PageInfo {
  std::int64_t first_token = 0;  ///< position in the sequence of the page's first token
  std::int32_t tokens = 0;       ///< filled slots
};

/// What a policy sees: the full pages of one KV-head group of one layer.
struct EvictionView {
  int layer = 0;
  int group = 0;
  std::int32_t page_tokens = 0;
  std::int64_t sequence_tokens = 0;  ///< committed tokens of the sequence, evicted ones included
  std::span<const PageInfo> pages{};
};

/// Decides which pages of a KV-head group leave. Called for every layer and group each time the sequence has
/// committed another full page of tokens, so that the result does not depend on how a prompt was chunked. `drop` has
/// one zeroed entry per page; a non-zero entry frees that page. The newest page must stay. A policy is
/// stateless: everything that belongs to a sequence is part of the sequence. Called from one thread at a time.
template <class P>
concept EvictionPolicy = std::copyable<P> && requires(const P& policy, const EvictionView& view,
                                                      std::span<std::uint8_t> drop) {
  { policy.name() } -> std::convertible_to<std::string>;
  { policy.traits() } -> std::same_as<ComponentTraits>;
  policy.evict(view, drop);
};

/// Keeps everything.
struct NoEviction {
  [[nodiscard]] std::string name() const { return "none"; }
  [[nodiscard]] ComponentTraits traits() const noexcept { return {}; }
  void evict(const EvictionView&, std::span<std::uint8_t>) const noexcept {}
};
static_assert(EvictionPolicy<NoEviction>);

/// Keeps the first and the last pages: the sinks and the recent window of StreamingLLM (Xiao et al. 2023,
/// arXiv 2309.17453) at page granularity, positions kept as they are.
struct RecentPages {
  int sinks = 1;   ///< pages kept at the beginning
  int recent = 8;  ///< pages kept at the end
  [[nodiscard]] std::string name() const {
    return "recent_pages:sinks=" + std::to_string(sinks) + ",recent=" + std::to_string(recent);
  }
  [[nodiscard]] ComponentTraits traits() const noexcept { return {.drops_tokens = true, .lossy = true}; }
  void evict(const EvictionView& view, std::span<std::uint8_t> drop) const noexcept {
    const auto count = static_cast<std::int64_t>(view.pages.size());
    for (std::int64_t i = sinks; i < count - recent; ++i) drop[static_cast<std::size_t>(i)] = 1;
  }
};
static_assert(EvictionPolicy<RecentPages>);

/// The type-erased twin of EvictionPolicy.
class SKALD_API AnyEviction {
 public:
  AnyEviction() : AnyEviction(NoEviction{}) {}
  template <class P>
    requires(!std::same_as<P, AnyEviction>) && EvictionPolicy<P>
  AnyEviction(P policy)  // NOLINT(google-explicit-constructor)
      : name_(policy.name()), traits_(policy.traits()),
        evict_([policy = std::move(policy)](const EvictionView& view, std::span<std::uint8_t> drop) {
          policy.evict(view, drop);
        }) {}
  /// By name and parameters: "none", "recent_pages:sinks=1,recent=8". @throws UsageError listing the names.
  static AnyEviction from_spec(std::string_view spec);

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] ComponentTraits traits() const noexcept { return traits_; }
  void evict(const EvictionView& view, std::span<std::uint8_t> drop) const { evict_(view, drop); }

 private:
  std::string name_;
  ComponentTraits traits_;
  std::function<void(const EvictionView&, std::span<std::uint8_t>)> evict_;
};
static_assert(EvictionPolicy<AnyEviction>);

}  // namespace skald::inline v0
