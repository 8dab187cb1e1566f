#pragma once

#include <bit>
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
#include <skald/core/function_ref.hpp>

namespace skald::inline v0 {

struct DropGates;

/// How scores differ from plain attention probabilities: those of (logit + noise) / temperature are added up, for rows of
/// the prompt at temperature `first`, then linearly up to `last` over `steps` generated tokens. Noise is a Gumbel number of
/// each token and head group, from (seed, layer and group, position), times `noise`.
struct ScoreShape {
  float noise = 0.0F;
  std::uint64_t seed = 0;
  float first = 1.0F;
  float last = 1.0F;
  std::int64_t steps = 0;

  [[nodiscard]] bool plain() const noexcept { return noise == 0.0F && first == 1.0F && last == 1.0F; }
  [[nodiscard]] float temperature(std::int64_t position, std::int64_t prompt_tokens) const noexcept {
    if (position < prompt_tokens) return first;
    const auto step = position - prompt_tokens + 1;
    return steps <= 0 || step >= steps ? last
                                       : first + (last - first) * static_cast<float>(step) / static_cast<float>(steps);
  }
  /// Of a token in a head group, `stream` being layer * 2^20 + group.
  [[nodiscard]] SKALD_API float noise_of(std::uint64_t stream, std::int64_t position) const noexcept;
};

/// What a component needs from the pipeline and does to it; compared when the pipeline is built.
struct ComponentTraits {
  bool needs_scores = false;        ///< wants attention probabilities (ScoreSink)
  bool drops_tokens = false;        ///< removes slots from the cache
  bool reorders_positions = false;  ///< renumbers positions; needs unrotated keys
  bool lossy = false;               ///< changes the logits
  bool merges_tokens = false;       ///< writes averages of tokens over others
  /// With merges_tokens: in attention a slot weighs as many tokens as were merged into it (the logarithm of their number is
  /// added to its logits), so that merging equal tokens changes nothing.
  bool counts_merged = false;
  /// With needs_scores: only the last n tokens before each page border are counted, and the sums begin anew after each;
  /// 0: all tokens, for as long as the sequence lives. At most a page.
  std::int32_t score_window = 0;
  ScoreShape score_shape{};
  std::int64_t budget = 0;         ///< tokens per head group that are never exceeded, on average of the groups; 0: no limit
  /// With reorders_positions: so many tokens at the beginning stay, and their keys are rotated anew at each border so that
  /// they directly precede the oldest other token that is left; distances are then those within the cache.
  std::int32_t sinks = 0;
  /// With `recall`: so many tokens that were dropped are computed again where the policy asks for them, and are seen beside
  /// those that stayed. All head groups then drop the same tokens.
  std::int64_t rebuild = 0;
  std::int32_t rebuild_interval = 1;  ///< tokens after which it is asked anew; divides the page
  std::int32_t memory_floats = 0;  ///< numbers of the policy's own, kept in the sequence for each head group
  bool concurrent = false;         ///< `evict` may be called for several layers at the same time
};

/// One page of a head group, in slot order.
struct PageInfo {
  std::int64_t first_token = 0;  ///< position in the sequence of the page's first token
  std::int32_t tokens = 0;       ///< filled slots
};

/// What a policy sees: the slots of one KV-head group of one layer, oldest first.
struct EvictionView {
  int layer = 0;
  int group = 0;
  std::int32_t page_tokens = 0;
  std::int64_t sequence_tokens = 0;  ///< committed tokens of the sequence, evicted ones included
  std::span<const PageInfo> pages{};
  int layers = 0;                                ///< of the model
  int groups = 0;                                ///< of this layer
  std::int64_t prompt_tokens = 0;                ///< Session::set_prompt_length; 0 if never told
  std::span<const std::int32_t> positions{};     ///< of each slot: its token's position in the sequence
  std::span<const float> scores{};               ///< of each slot: attention received (traits: needs_scores)
  std::span<const std::int32_t> counts{};        ///< of each slot: tokens it stands for (traits: counts_merged)
  /// Of each slot: the first position that no longer sees it (learned gates), else empty.
  std::span<const std::int32_t> until{};
  std::span<float> memory{};                     ///< traits: memory_floats; zero at first, kept with the sequence
  std::int64_t budget = 0;                       ///< what the policy's own `budgets` said, else 0
  int heads = 0;                                 ///< KV heads in the group
  int key_dims = 0;                              ///< elements of a key
  /// Key of a head (within the group) in a slot, as stored, `key_dims` elements.
  const FunctionRef<void(int head, std::int64_t slot, std::span<float> key)>* read_key = nullptr;
  /// Keys of a head in the 16 slots from `slot` on, a multiple of 16: [key_dims][16], what is beyond the last slot unspecified.
  const FunctionRef<void(int head, std::int64_t slot, std::span<float> keys)>* read_keys = nullptr;

  [[nodiscard]] std::int64_t slots() const noexcept { return static_cast<std::int64_t>(positions.size()); }
};

/// What a policy decides about the slots of one view. All stay unless told otherwise.
class EvictionChoice {
 public:
  static constexpr std::int32_t keep = -1;
  static constexpr std::int32_t gone = -2;

  /// `fates` and `weights`: one per slot; `scratch`: memory for a policy's use, two per slot.
  EvictionChoice(std::span<std::int32_t> fates, std::span<float> weights, std::span<std::int32_t> scratch) noexcept
      : fates_(fates), weights_(weights), scratch_(scratch) {}
  [[nodiscard]] std::int64_t slots() const noexcept { return static_cast<std::int64_t>(fates_.size()); }
  /// The slot's key and value leave the cache.
  void drop(std::int64_t slot) noexcept { fates_[static_cast<std::size_t>(slot)] = gone; }
  void restore(std::int64_t slot) noexcept { fates_[static_cast<std::size_t>(slot)] = keep; }
  /// The slot leaves; key and value of `into`, which must stay, become the mean of all that are merged into it, weighted
  /// with set_weight (1 if not set).
  void merge(std::int64_t slot, std::int64_t into) noexcept {
    fates_[static_cast<std::size_t>(slot)] = static_cast<std::int32_t>(into);
  }
  void set_weight(std::int64_t slot, float weight) noexcept { weights_[static_cast<std::size_t>(slot)] = weight; }
  [[nodiscard]] bool kept(std::int64_t slot) const noexcept { return fates_[static_cast<std::size_t>(slot)] == keep; }
  [[nodiscard]] std::span<std::int32_t> fates() const noexcept { return fates_; }
  [[nodiscard]] std::span<const float> weights() const noexcept { return weights_; }
  /// Two numbers per slot to work with.
  [[nodiscard]] std::span<std::int32_t> scratch() const noexcept { return scratch_; }

  /// Of the slots [first, last) keeps the `count` with the largest values; of equal ones the older. All others in the
  /// range are dropped. `value(slot)` gives a float. Needs no memory but scratch().
  template <class Value>
  void keep_largest(std::int64_t first, std::int64_t last, std::int64_t count, Value&& value);

 private:
  std::span<std::int32_t> fates_;
  std::span<float> weights_;
  std::span<std::int32_t> scratch_;
};

/// Decides by token. Called for every layer and group each time the sequence has committed another full page of tokens
/// (and only then), so that the result does not depend on how a prompt was chunked. The newest slot must stay. A policy is
/// stateless: everything that belongs to a sequence is part of the sequence. Called from one thread at a time, unless its
/// traits say that it may be asked about several layers at the same time.
template <class P>
concept TokenEvictionPolicy =
    std::copyable<P> && requires(const P& policy, const EvictionView& view, EvictionChoice& choice) {
      { policy.name() } -> std::convertible_to<std::string>;
      { policy.traits() } -> std::same_as<ComponentTraits>;
      policy.evict(view, choice);
    };

/// Decides by page: `drop` has one zeroed entry per page; a non-zero entry frees that page. The newest page must stay.
template <class P>
concept PageEvictionPolicy = std::copyable<P> && requires(const P& policy, const EvictionView& view,
                                                          std::span<std::uint8_t> drop) {
  { policy.name() } -> std::convertible_to<std::string>;
  { policy.traits() } -> std::same_as<ComponentTraits>;
  policy.evict(view, drop);
};

template <class P>
concept EvictionPolicy = TokenEvictionPolicy<P> || PageEvictionPolicy<P>;

/// A policy that also divides its budget: told all views of a sequence at once, before the single ones, it fills in
/// EvictionView::budget of each.
template <class P>
concept BudgetPolicy = requires(const P& policy, std::span<const EvictionView> views,
                                std::span<std::int64_t> budgets) { policy.budgets(views, budgets); };

/// A policy that brings learned gates for every layer (skald/state/drop_gates.hpp).
template <class P>
concept GatedPolicy = requires(const P& policy) {
  { policy.gates() } -> std::convertible_to<std::shared_ptr<const DropGates>>;
};

/// A policy that asks for dropped tokens again: of the ascending positions `dropped` it writes to `wanted` those that the next
/// tokens need, ascending too, and returns how many. A function of its arguments; `tokens` are the sequence so far.
template <class P>
concept RecallPolicy = requires(const P& policy, std::span<const std::int32_t> tokens,
                                std::span<const std::int32_t> dropped, std::span<std::int32_t> wanted) {
  { policy.recall(tokens, dropped, wanted) } -> std::same_as<std::size_t>;
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
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {.drops_tokens = true, .lossy = true, .concurrent = true};
  }
  void evict(const EvictionView& view, std::span<std::uint8_t> drop) const noexcept {
    const auto count = static_cast<std::int64_t>(view.pages.size());
    for (std::int64_t i = sinks; i < count - recent; ++i) drop[static_cast<std::size_t>(i)] = 1;
  }
};
static_assert(EvictionPolicy<RecentPages>);

/// A policy that can be chosen by name.
struct EvictionInfo {
  std::string_view name;
  std::string_view parameters;  ///< with their defaults
  std::string_view keeps;       ///< what stays in the cache
};

/// The type-erased twin of EvictionPolicy.
class SKALD_API AnyEviction {
 public:
  AnyEviction() : AnyEviction(NoEviction{}) {}
  template <class P>
    requires(!std::same_as<P, AnyEviction>) && EvictionPolicy<P>
  AnyEviction(P policy)  // NOLINT(google-explicit-constructor)
      : name_(policy.name()), traits_(policy.traits()) {
    if constexpr (GatedPolicy<P>) gates_ = policy.gates();
    if constexpr (RecallPolicy<P>)
      recall_ = [policy](std::span<const std::int32_t> tokens, std::span<const std::int32_t> dropped,
                         std::span<std::int32_t> wanted) { return policy.recall(tokens, dropped, wanted); };
    if constexpr (BudgetPolicy<P>)
      budgets_ = [policy](std::span<const EvictionView> views, std::span<std::int64_t> budgets) {
        policy.budgets(views, budgets);
      };
    if constexpr (TokenEvictionPolicy<P>)
      evict_ = [policy = std::move(policy)](const EvictionView& view, EvictionChoice& choice) {
        policy.evict(view, choice);
      };
    else
      evict_ = [policy = std::move(policy)](const EvictionView& view, EvictionChoice& choice) {
        // The scratch memory has room for a byte per page.
        const std::span drop(reinterpret_cast<std::uint8_t*>(choice.scratch().data()), view.pages.size());
        for (auto& flag : drop) flag = 0;
        policy.evict(view, drop);
        std::int64_t slot = 0;
        for (std::size_t page = 0; page < drop.size(); ++page)
          for (std::int32_t i = 0; i < view.pages[page].tokens; ++i, ++slot)
            if (drop[page] != 0) choice.drop(slot);
      };
  }
  /// By name and parameters: "none", "recent_pages:sinks=1,recent=8", "h2o:budget=512" (docs/kv-cache.md lists all).
  /// @throws UsageError listing the names.
  static AnyEviction from_spec(std::string_view spec);
  /// All policies that from_spec knows.
  [[nodiscard]] static std::span<const EvictionInfo> registered() noexcept;

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] ComponentTraits traits() const noexcept { return traits_; }
  void evict(const EvictionView& view, EvictionChoice& choice) const { evict_(view, choice); }
  /// Learned gates that decide which tokens rows no longer see, or null.
  [[nodiscard]] const std::shared_ptr<const DropGates>& gates() const noexcept { return gates_; }
  /// As RecallPolicy; nothing if the policy asks for none.
  std::size_t recall(std::span<const std::int32_t> tokens, std::span<const std::int32_t> dropped,
                     std::span<std::int32_t> wanted) const {
    return recall_ ? recall_(tokens, dropped, wanted) : 0;
  }
  [[nodiscard]] bool has_budgets() const noexcept { return static_cast<bool>(budgets_); }
  void budgets(std::span<const EvictionView> views, std::span<std::int64_t> out) const {
    if (budgets_) budgets_(views, out);
  }

 private:
  std::string name_;
  ComponentTraits traits_;
  std::shared_ptr<const DropGates> gates_;
  std::function<void(const EvictionView&, EvictionChoice&)> evict_;
  std::function<void(std::span<const EvictionView>, std::span<std::int64_t>)> budgets_;
  std::function<std::size_t(std::span<const std::int32_t>, std::span<const std::int32_t>, std::span<std::int32_t>)> recall_;
};
static_assert(EvictionPolicy<AnyEviction>);

template <class Value>
void EvictionChoice::keep_largest(std::int64_t first, std::int64_t last, std::int64_t count, Value&& value) {
  if (count >= last - first) return;
  // A heap of the `count` best so far, the worst on top: the older slot wins among equals.
  const auto heap = scratch_;
  const auto values = scratch_.subspan(fates_.size());  // each asked for once
  for (std::int64_t slot = first; slot < last; ++slot)
    values[static_cast<std::size_t>(slot)] = std::bit_cast<std::int32_t>(static_cast<float>(value(static_cast<std::int32_t>(slot))));
  const auto worse = [&](std::int32_t a, std::int32_t b) {
    const float x = std::bit_cast<float>(values[static_cast<std::size_t>(a)]);
    const float y = std::bit_cast<float>(values[static_cast<std::size_t>(b)]);
    return x != y ? x < y : a > b;
  };
  std::int64_t size = 0;
  const auto at = [&](std::int64_t i) -> std::int32_t& { return heap[static_cast<std::size_t>(i)]; };
  const auto sink = [&](std::int64_t i) {
    for (;;) {
      std::int64_t least = i;
      for (const auto child : {2 * i + 1, 2 * i + 2})
        if (child < size && worse(at(child), at(least))) least = child;
      if (least == i) return;
      std::swap(at(i), at(least));
      i = least;
    }
  };
  for (std::int64_t slot = first; slot < last; ++slot) {
    const auto s = static_cast<std::int32_t>(slot);
    if (size < count) {
      at(size) = s;
      for (std::int64_t i = size++; i > 0 && worse(at(i), at((i - 1) / 2)); i = (i - 1) / 2)
        std::swap(at(i), at((i - 1) / 2));
    } else if (count > 0 && worse(at(0), s)) {
      drop(at(0));
      at(0) = s;
      sink(0);
    } else {
      drop(slot);
    }
  }
}

}  // namespace skald::inline v0
