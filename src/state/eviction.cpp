#include <skald/state/eviction.hpp>

#include <numeric>

#include <skald/core/spec_string.hpp>
#include <skald/state/policies.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::int64_t most = std::int64_t{1} << 30;

BudgetShares shares_of(SpecString& spec) {
  const auto name = spec.text("shares", "uniform");
  if (name == "uniform") return BudgetShares::uniform;
  if (name == "pyramid") return BudgetShares::pyramid;
  if (name == "adaptive") return BudgetShares::adaptive;
  throw UsageError("state.eviction", "shares '" + name + "' is not one of uniform, pyramid, adaptive");
}

AnyEviction recent_pages(SpecString& spec) {
  RecentPages policy;
  policy.sinks = static_cast<int>(spec.integer("sinks", policy.sinks, 0, 1 << 20));
  policy.recent = static_cast<int>(spec.integer("recent", policy.recent, 1, 1 << 20));
  return policy;
}

AnyEviction sinks_and_window(SpecString& spec) {
  SinksAndWindow policy;
  policy.sinks = spec.integer("sinks", policy.sinks, 0, most);
  policy.window = spec.integer("window", policy.window, 1, most);
  return policy;
}

AnyEviction heavy_hitters(SpecString& spec) {
  HeavyHitters policy;
  policy.budget = spec.integer("budget", policy.budget, 1, most);
  policy.recent = static_cast<double>(spec.integer("recent", 50, 0, 100)) / 100.0;
  policy.shares = shares_of(spec);
  return policy;
}

AnyEviction windowed_attention(SpecString& spec) {
  WindowedAttention policy;
  policy.budget = spec.integer("budget", policy.budget, 1, most);
  policy.window = static_cast<std::int32_t>(spec.integer("window", policy.window, 1, 256));
  policy.pool = static_cast<std::int32_t>(spec.integer("pool", policy.pool, 1, 255));
  policy.shares = shares_of(spec);
  return policy;
}

AnyEviction reasoning_path(SpecString& spec) {
  ReasoningPath policy;
  policy.interval = spec.integer("interval", policy.interval, 0, most);
  policy.window = static_cast<std::int32_t>(spec.integer("window", policy.window, 1, 256));
  policy.percent = static_cast<int>(spec.integer("percent", policy.percent, 0, 100));
  return policy;
}

AnyEviction streaming(SpecString& spec) {
  StreamingSinks policy;
  policy.sinks = static_cast<std::int32_t>(spec.integer("sinks", policy.sinks, 1, 255));
  policy.window = spec.integer("window", policy.window, 1, most);
  return policy;
}

AnyEviction discriminative_merge(SpecString& spec) {
  DiscriminativeMerge policy;
  policy.budget = spec.integer("budget", policy.budget, 1, most);
  return policy;
}

struct Named {
  std::string_view name;
  AnyEviction (*make)(SpecString&);
};
constexpr Named policies[] = {
    {"none", [](SpecString&) { return AnyEviction(); }},
    {"recent_pages", recent_pages},
    {"window", sinks_and_window},
    {"h2o", heavy_hitters},
    {"snapkv", windowed_attention},
    {"rpc", reasoning_path},
    {"streaming", streaming},
    {"d2o", discriminative_merge},
};

}  // namespace

AnyEviction AnyEviction::from_spec(std::string_view text) {
  if (text.empty()) return {};
  SpecString spec(text);
  std::string names;
  for (const auto& [name, make] : policies) {
    if (name == spec.name()) {
      auto policy = make(spec);
      spec.finish();
      return policy;
    }
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  throw UsageError("state.eviction", "no eviction policy is called '" + spec.name() + "'; there are: " + names);
}

namespace detail {

namespace {

/// Ada-KV: the budget of a layer goes to its head groups in proportion to how many of the layer's largest scores they hold.
void share_adaptively(std::int64_t budget, std::int64_t least, std::span<const EvictionView> layer,
                      std::span<std::int64_t> out) {
  const auto groups = static_cast<std::int64_t>(layer.size());
  std::vector<float> all;
  for (const auto& view : layer) all.insert(all.end(), view.scores.begin(), view.scores.end());
  const auto total = budget * groups;
  std::fill(out.begin(), out.end(), budget);
  if (static_cast<std::int64_t>(all.size()) <= total || budget <= least) return;
  const auto nth = all.begin() + static_cast<std::ptrdiff_t>(total - 1);
  std::nth_element(all.begin(), nth, all.end(), std::greater<>());
  const float bar = *nth;
  std::vector<std::int64_t> hits;
  for (const auto& view : layer)
    hits.push_back(std::count_if(view.scores.begin(), view.scores.end(), [&](float score) { return score >= bar; }));
  const auto sum = std::max<std::int64_t>(1, std::accumulate(hits.begin(), hits.end(), std::int64_t{0}));
  const auto free = total - least * groups;
  for (std::size_t g = 0; g < layer.size(); ++g) out[g] = least + free * hits[g] / sum;
}

/// As long as all groups together need no more than the whole budget, with a page to come, everything may stay.
bool share_plenty(std::int64_t budget, std::span<const EvictionView> views, std::span<std::int64_t> out) {
  std::int64_t needed = 0;
  for (const auto& view : views) needed += view.slots() + view.page_tokens;
  if (needed > budget * static_cast<std::int64_t>(views.size())) return false;
  for (std::size_t i = 0; i < views.size(); ++i) out[i] = std::max(out[i], views[i].slots() + views[i].page_tokens);
  return true;
}

}  // namespace

void share_budgets(BudgetShares shares, std::int64_t budget, std::int64_t least, std::span<const EvictionView> views,
                   std::span<std::int64_t> out) {
  std::fill(out.begin(), out.end(), budget);
  if (shares == BudgetShares::uniform || budget <= least || share_plenty(budget, views, out)) return;
  if (shares == BudgetShares::pyramid) {
    std::size_t layers = 0;
    const auto ranks = layer_ranks(views, layers);
    // What the least takes from the lower layers' shares, the even shares of the least give back.
    for (std::size_t i = 0; i < views.size(); ++i) out[i] = least + pyramid_budget(budget - least, ranks[i], layers);
    return;
  }
  for (std::size_t at = 0; at < views.size();) {
    std::size_t end = at;
    while (end < views.size() && views[end].layer == views[at].layer) ++end;
    share_adaptively(budget, least, views.subspan(at, end - at), out.subspan(at, end - at));
    at = end;
  }
}

void share_by_spread(std::int64_t budget, std::int64_t least, std::span<const EvictionView> views,
                     std::span<std::int64_t> out) {
  std::fill(out.begin(), out.end(), budget);
  if (budget <= least || views.empty() || share_plenty(budget, views, out)) return;
  std::vector<double> spread(views.size());
  double sum = 0;
  for (std::size_t at = 0; at < views.size();) {
    std::size_t end = at;
    double layer = 0;
    for (; end < views.size() && views[end].layer == views[at].layer; ++end) {
      double mass = 0;
      double entropy = 0;
      for (const float score : views[end].scores) mass += score;
      for (const float score : views[end].scores)
        if (score > 0.0F) entropy -= score / mass * std::log(score / mass);
      layer += entropy / std::log(std::max<double>(2.0, static_cast<double>(views[end].scores.size())));
    }
    for (std::size_t i = at; i < end; ++i) spread[i] = layer / static_cast<double>(end - at);
    sum += layer;
    at = end;
  }
  if (sum <= 0) return;
  const auto free = static_cast<double>((budget - least) * static_cast<std::int64_t>(views.size()));
  for (std::size_t i = 0; i < views.size(); ++i)
    out[i] = least + static_cast<std::int64_t>(std::floor(free * spread[i] / sum));
}

}  // namespace detail

}  // namespace skald::inline v0
