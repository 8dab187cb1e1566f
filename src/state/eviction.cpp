#include <skald/state/eviction.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include <skald/core/random.hpp>
#include <skald/core/spec_string.hpp>
#include <skald/state/drop_gates.hpp>
#include <skald/state/policies.hpp>
#include <skald/state/release.hpp>

namespace skald::inline v0 {

float ScoreShape::noise_of(std::uint64_t stream, std::int64_t position) const noexcept {
  CounterRandom random(seed, stream, static_cast<std::uint64_t>(position));
  const double uniform = random.uniform() + 0x1p-54;  // inside (0, 1)
  return noise * static_cast<float>(-std::log(-std::log(uniform)));
}

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
  if (policy.pool % 2 == 0)
    throw UsageError("state.eviction", "pool is " + std::to_string(policy.pool) + ", a token and as many on both sides: it must be odd");
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

AnyEviction key_tokens(SpecString& spec) {
  KeyTokens policy;
  policy.budget = spec.integer("budget", policy.budget, 1, most);
  policy.recent = static_cast<double>(spec.integer("recent", 50, 0, 100)) / 100.0;
  policy.noise = static_cast<double>(spec.integer("noise", 100, 0, 10000)) / 100.0;
  policy.last = static_cast<double>(spec.integer("temperature", 200, 1, 100000)) / 100.0;
  policy.steps = spec.integer("steps", policy.steps, 0, most);
  policy.seed = static_cast<std::uint64_t>(spec.integer("seed", 0, 0, most));
  policy.shares = shares_of(spec);
  return policy;
}

AnyEviction learned_gates(SpecString& spec) {
  const auto file = spec.text("file", "");
  const auto checksum = spec.text("checksum", "");
  if (file.empty()) throw UsageError("state.eviction", "'dcp' needs a file of gates: dcp:file=PATH");
  const LearnedGates policy{std::make_shared<const DropGates>(DropGates::load(file)), file};
  const auto found = std::to_string(policy.weights->checksum() >> 32);
  if (!checksum.empty() && checksum != found)
    throw UsageError("state.eviction", "the gates in '" + file + "' have checksum " + found + ", not " + checksum);
  return policy;
}

AnyEviction adaptive_release(SpecString& spec) {
  AdaptiveRelease policy;
  policy.budget = spec.integer("budget", policy.budget, 1, most);
  policy.rebuild = spec.integer("rebuild", policy.rebuild, 0, most);
  policy.interval = static_cast<std::int32_t>(spec.integer("interval", policy.interval, 1, 256));
  policy.sinks = spec.integer("sinks", policy.sinks, 0, most);
  policy.fade = static_cast<std::int32_t>(spec.integer("fade", policy.fade, 0, 100));
  policy.reach = static_cast<std::int32_t>(spec.integer("reach", policy.reach, 0, 256));
  return policy;
}

constexpr EvictionInfo infos[] = {
    {"none", "", "everything"},
    {"recent_pages", "sinks=1,recent=8", "the first and the last pages"},
    {"window", "sinks=4,window=512", "the first tokens and the newest"},
    {"h2o", "budget=512,recent=50,shares=uniform", "the newest tokens and those that gathered the most attention"},
    {"keyformer", "budget=512,recent=50,noise=100,temperature=200,steps=512,seed=0,shares=uniform",
     "as h2o, by noisy logits at a growing temperature"},
    {"snapkv", "budget=512,window=16,pool=5,shares=uniform", "the newest tokens and those that they look at"},
    {"rpc", "interval=256,window=16,percent=25", "the prompt and the best part of what was generated"},
    {"streaming", "sinks=4,window=512", "as window, with the distances of the cache"},
    {"d2o", "budget=512", "as h2o, similar tokens merged"},
    {"dcp", "file=PATH", "what learned gates have not closed"},
    {"adore", "budget=512,rebuild=64,interval=1,sinks=4,fade=10,reach=6",
     "the first and the newest tokens; computes released ones again that later tokens repeat"},
};
using Make = AnyEviction (*)(SpecString&);
constexpr Make makers[] = {[](SpecString&) { return AnyEviction(); },
                           recent_pages,
                           sinks_and_window,
                           heavy_hitters,
                           key_tokens,
                           windowed_attention,
                           reasoning_path,
                           streaming,
                           discriminative_merge,
                           learned_gates,
                           adaptive_release};
static_assert(std::size(infos) == std::size(makers));

}  // namespace

AnyEviction AnyEviction::from_spec(std::string_view text) {
  if (text.empty()) return {};
  SpecString spec(text);
  std::string names;
  for (std::size_t i = 0; i < std::size(infos); ++i) {
    if (infos[i].name == spec.name()) {
      auto policy = makers[i](spec);
      spec.finish();
      return policy;
    }
    names += (names.empty() ? "" : ", ") + std::string(infos[i].name);
  }
  throw UsageError("state.eviction", "no eviction policy is called '" + spec.name() + "'; there are: " + names);
}

std::span<const EvictionInfo> AnyEviction::registered() noexcept { return infos; }

namespace detail {

namespace {

/// Ada-KV: the budget of a layer goes to its head groups in proportion to how many of the layer's largest scores they hold.
/// Budgets are those of a page border, where a page is free: as many scores count as tokens stay then. (With as many as the
/// whole budget all would count, for a layer never holds more, and all groups would get the same.)
void share_adaptively(std::int64_t budget, std::int64_t least, std::span<const EvictionView> layer,
                      std::span<std::int64_t> out) {
  const auto groups = static_cast<std::int64_t>(layer.size());
  const auto page = static_cast<std::int64_t>(layer.front().page_tokens);
  std::vector<float> all;
  for (const auto& view : layer) all.insert(all.end(), view.scores.begin(), view.scores.end());
  const auto total = budget * groups;
  const auto stay = total - page * groups;
  std::fill(out.begin(), out.end(), budget);
  if (budget <= least || stay <= 0) return;
  if (static_cast<std::int64_t>(all.size()) <= stay) {  // nobody has to give, however uneven they are
    for (std::size_t g = 0; g < layer.size(); ++g) out[g] = layer[g].slots() + page;
    return;
  }
  const auto nth = all.begin() + static_cast<std::ptrdiff_t>(stay - 1);
  std::nth_element(all.begin(), nth, all.end(), std::greater<>());
  const float bar = *nth;
  // How many stay of each group; of equal scores at the bar each group keeps its share.
  const auto count = [&](const EvictionView& view, auto&& holds) {
    return static_cast<std::int64_t>(std::count_if(view.scores.begin(), view.scores.end(), holds));
  };
  std::vector<std::int64_t> hits;
  std::vector<std::int64_t> ties;
  for (const auto& view : layer) {
    hits.push_back(count(view, [&](float score) { return score > bar; }));
    ties.push_back(count(view, [&](float score) { return score == bar; }));
  }
  const auto left = stay - std::accumulate(hits.begin(), hits.end(), std::int64_t{0});
  const auto equal = std::max<std::int64_t>(1, std::accumulate(ties.begin(), ties.end(), std::int64_t{0}));
  for (std::size_t g = 0; g < layer.size(); ++g) hits[g] += left * ties[g] / equal;
  const auto sum = std::max<std::int64_t>(1, std::accumulate(hits.begin(), hits.end(), std::int64_t{0}));
  const auto free = total - least * groups;
  // Rounded so that the sum is the budget: what is before a group, rounded down, is not its own.
  std::int64_t before = 0;
  for (std::size_t g = 0; g < layer.size(); ++g) {
    out[g] = least + free * (before + hits[g]) / sum - free * before / sum;
    before += hits[g];
  }
}

/// As long as all groups together need no more than the whole budget, with a page to come, everything may stay.
bool share_plenty(std::int64_t budget, std::span<const EvictionView> views, std::span<std::int64_t> out) {
  std::int64_t needed = 0;
  for (const auto& view : views) needed += view.slots() + view.page_tokens;
  if (needed > budget * static_cast<std::int64_t>(views.size())) return false;
  for (std::size_t i = 0; i < views.size(); ++i) out[i] = std::max(out[i], views[i].slots() + views[i].page_tokens);
  return true;
}

/// The natural logarithm of a positive number to about 1e-6. Without branches, so that compilers use vectors: a million
/// scores are looked at while a token is waited for.
float near_log(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto above = static_cast<std::int32_t>(bits - 0x3f3504f3U) >> 23;  // mantissas from the root of 1/2 to that of 2
  const float m = std::bit_cast<float>(bits - (static_cast<std::uint32_t>(above) << 23));
  const float z = (m - 1.0F) / (m + 1.0F);  // log(m) = 2 artanh(z), |z| < 0.172
  const float z2 = z * z;
  const float series = 2.0F + z2 * (0.66666667F + z2 * (0.4F + z2 * 0.28571429F));
  return z * series + static_cast<float>(above) * 0.69314718F;
}

/// Sums over numbers that are not negative.
struct Mass {
  double x = 0;
  double x_log_x = 0;
};

Mass mass_of(std::span<const float> values) noexcept {
  constexpr std::size_t together = 256;  // summed in single precision, in eight strands
  Mass mass;
  for (std::size_t at = 0; at < values.size(); at += together) {
    float products[together] = {};
    float plain[together] = {};
    const std::size_t count = std::min(together, values.size() - at);
    for (std::size_t i = 0; i < count; ++i) {
      const float x = std::max(values[at + i], 1e-30F);
      plain[i] = x;
      products[i] = x * near_log(x);
    }
    float sums[2][8] = {};
    for (std::size_t i = 0; i < together; i += 8)
      for (std::size_t k = 0; k < 8; ++k) {
        sums[0][k] += plain[i + k];
        sums[1][k] += products[i + k];
      }
    for (std::size_t k = 0; k < 8; ++k) {
      mass.x += static_cast<double>(sums[0][k]);
      mass.x_log_x += static_cast<double>(sums[1][k]);
    }
  }
  return mass;
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
      const Mass mass = mass_of(views[end].scores);
      const double entropy = mass.x > 0 ? std::max(0.0, std::log(mass.x) - mass.x_log_x / mass.x) : 0.0;
      layer += entropy / std::log(std::max<double>(2.0, static_cast<double>(views[end].scores.size())));
    }
    for (std::size_t i = at; i < end; ++i) spread[i] = layer / static_cast<double>(end - at);
    sum += layer;
    at = end;
  }
  if (sum <= 0) return;
  const auto free = (budget - least) * static_cast<std::int64_t>(views.size());
  // Rounded so that the sum is the budget.
  double before = 0;
  std::int64_t given = 0;
  for (std::size_t i = 0; i < views.size(); ++i) {
    before += spread[i];
    const bool last = i + 1 == views.size();
    const auto upto = last ? free : static_cast<std::int64_t>(std::floor(static_cast<double>(free) * before / sum));
    out[i] = least + std::max<std::int64_t>(0, upto - given);
    given = std::max(given, upto);
  }
}

}  // namespace detail

}  // namespace skald::inline v0
