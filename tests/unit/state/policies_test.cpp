// Each policy against its published rule, on scores that are given.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>

#include <skald/core/random.hpp>
#include <skald/state/kv_rows.hpp>
#include <skald/state/paged_kv.hpp>
#include <skald/state/policies.hpp>
#include <skald/state/sequence.hpp>

#include "support/catch.hpp"

namespace {

constexpr skald::KvPageLayout layout{skald::DType::f32, 16, 1, 4, 2};

/// One layer, one group: appends tokens one by one; `attention(query, key)` is what token `query` gives to token `key`.
struct Line {
  explicit Line(skald::AnyEviction with, bool scores = true)
      : policy(std::move(with)),
        pool(std::make_shared<skald::KvPool>(skald::make_reference_backend(), layout, 4096)) {
    std::vector<std::unique_ptr<skald::LayerState>> layers;
    const auto traits = policy.traits();
    layers.push_back(std::make_unique<skald::PagedKv>(
        pool, 1,
        skald::PagedKvOptions{.max_tokens = 8192,
                              .evicts = true,
                              .scores = scores && traits.needs_scores,
                              .scores_anew = traits.score_window > 0,
                              .score_shape = traits.score_shape,
                              .counts = traits.counts_merged,
                              .memory_floats = traits.memory_floats}));
    sequence = skald::SequenceState(std::move(layers));
  }
  skald::PagedKv& kv() { return static_cast<skald::PagedKv&>(*sequence.layer(0)); }
  template <class Attention>
  void step(Attention&& attention) {
    const auto query = sequence.length();
    sequence.append(1);
    if (appended) appended(*this, query);
    const auto window = policy.traits().score_window;
    if (window == 0 || query % 16 >= 16 - window)
      if (float* scores = kv().begin_scores(0)) {
        const auto positions = kv().positions(0);
        for (std::size_t slot = 0; slot < positions.size(); ++slot)
          scores[slot] += attention(query, static_cast<std::int64_t>(positions[slot]));
      }
    if ((query + 1) % 16 == 0) {
      sequence.choose_evictions(policy);
      sequence.commit();
      sequence.apply_evictions();
    } else {
      sequence.commit();
    }
  }
  std::set<std::int32_t> kept() {
    const auto positions = kv().positions(0);
    return {positions.begin(), positions.end()};
  }
  std::function<void(Line&, std::int64_t)> appended;  // writes the key and value of a token
  skald::AnyEviction policy;
  std::shared_ptr<skald::KvPool> pool;
  skald::SequenceState sequence;
};

float none(std::int64_t, std::int64_t) { return 0.0F; }

}  // namespace

TEST_CASE("state.h2o: a planted heavy hitter outlives four budgets of tokens, a window of the same size has lost it", "[state]") {
  constexpr std::int64_t budget = 64;
  Line h2o(skald::HeavyHitters{.budget = budget});
  Line window(skald::SinksAndWindow{.sinks = 0, .window = budget});
  const auto attention = [](std::int64_t query, std::int64_t key) {
    return key == 23 ? 0.8F : 0.2F / static_cast<float>(query + 1);
  };
  for (std::int64_t i = 0; i < 5 * budget; ++i) {
    h2o.step(attention);
    window.step(attention);
    REQUIRE(h2o.kv().slots(0) <= budget);
    REQUIRE(window.kv().slots(0) <= budget);
    // The newest always survive: half of what is kept at a border, and all since.
    for (std::int64_t newest = std::max<std::int64_t>(0, i - 23); newest <= i; ++newest)
      REQUIRE(h2o.kept().count(static_cast<std::int32_t>(newest)) == 1);
  }
  CHECK(h2o.kept().count(23) == 1);
  CHECK(window.kept().count(23) == 0);
}

TEST_CASE("state.eviction: names say the shares that were asked for, and no two policies are called the same", "[state]") {
  for (int percent = 0; percent <= 100; ++percent)
    for (const std::string policy : {"h2o", "keyformer"}) {
      const auto text = policy + ":budget=64,recent=" + std::to_string(percent);
      CHECK(skald::AnyEviction::from_spec(text).name().substr(0, text.size()) == text);
      CHECK((skald::AnyEviction::from_spec(text).name() + ",").find("recent=" + std::to_string(percent) + ",") != std::string::npos);
    }
  CHECK(skald::DiscriminativeMerge{.budget = 64}.name() == skald::AnyEviction::from_spec("d2o:budget=64").name());
  CHECK(skald::DiscriminativeMerge{.recent = 0.25}.name() != skald::DiscriminativeMerge{}.name());
  CHECK(skald::DiscriminativeMerge{.follow = 0.25}.name() != skald::DiscriminativeMerge{}.name());
  CHECK_THROWS_AS(skald::AnyEviction::from_spec("snapkv:pool=4"), skald::UsageError);
}

TEST_CASE("state.h2o: what is kept is the greedy choice by accumulated attention", "[state]") {
  constexpr std::int64_t budget = 48;
  Line line(skald::HeavyHitters{.budget = budget, .recent = 0.25});
  const auto attention = [](std::int64_t query, std::int64_t key) {
    return static_cast<float>((key * 7919 + query * 104729) % 1000) / 1000.0F;
  };
  std::vector<std::pair<std::int64_t, float>> expected;  // position, score
  for (std::int64_t i = 0; i < 160; ++i) {
    line.step(attention);
    expected.emplace_back(i, 0.0F);
    for (auto& [position, score] : expected) score += attention(i, position);
    if ((i + 1) % 16 != 0 || expected.size() <= 32) continue;
    auto old = std::vector(expected.begin(), expected.end() - 8);
    std::stable_sort(old.begin(), old.end(), [](auto& a, auto& b) { return a.second > b.second; });
    old.resize(24);
    std::sort(old.begin(), old.end());
    old.insert(old.end(), expected.end() - 8, expected.end());
    expected = old;
    std::set<std::int32_t> positions;
    for (const auto& [position, score] : expected) positions.insert(static_cast<std::int32_t>(position));
    REQUIRE(line.kept() == positions);
  }
}

TEST_CASE("state.rpc: lengths are a saw-tooth, each compression leaves the best and the window, the prompt stays", "[state]") {
  constexpr std::int64_t prompt = 40;
  Line line(skald::ReasoningPath{.interval = 64, .window = 8, .percent = 25});
  Line never(skald::ReasoningPath{.interval = 0, .window = 8, .percent = 25});
  const auto attention = [](std::int64_t query, std::int64_t key) {
    return key % 50 == 45 ? 0.5F : static_cast<float>((key * 31 + query) % 17) / 1000.0F;
  };
  for (std::int64_t i = 0; i < 640; ++i) {
    if (i == prompt) line.sequence.set_prompt_length(prompt);
    line.step(attention);
    never.step(attention);
    const auto generated = std::max<std::int64_t>(0, i + 1 - prompt);
    REQUIRE(line.kv().slots(0) <= prompt + (generated + 3) / 4 + 64);
    if ((i + 1) % 64 != 0) continue;
    const auto kept = line.kept();
    REQUIRE(static_cast<std::int64_t>(kept.size()) == prompt + std::max<std::int64_t>(8, (generated + 3) / 4));
    for (std::int32_t p = 0; p < prompt; ++p) REQUIRE(kept.count(p) == 1);
    for (std::int64_t p = i - 7; p <= i; ++p) REQUIRE(kept.count(static_cast<std::int32_t>(p)) == 1);
    for (std::int64_t p = 95; p < i; p += 50) REQUIRE(kept.count(static_cast<std::int32_t>(p)) == 1);
  }
  CHECK(never.kv().slots(0) == 640);
}

TEST_CASE("state.policies: an observation window keeps what its tokens look at and the neighbours of that", "[state]") {
  Line line(skald::WindowedAttention{.budget = 48, .window = 4, .pool = 3});
  // Early queries look at token 10, the last four of each page at token 20.
  for (std::int64_t i = 0; i < 64; ++i)
    line.step([](std::int64_t query, std::int64_t key) {
      return query % 16 < 12 ? (key == 10 ? 1.0F : 0.0F) : (key == 20 ? 1.0F : 0.001F * static_cast<float>(key % 3));
    });
  const auto kept = line.kept();
  for (const int position : {19, 20, 21, 60, 61, 62, 63}) CHECK(kept.count(position) == 1);
  CHECK(kept.size() == 32);
}

TEST_CASE("state.policies: shares of a budget add up to it", "[state]") {
  std::vector<float> flat(200, 0.1F);
  std::vector<float> steep(200, 0.0F);
  for (std::size_t i = 0; i < 5; ++i) steep[i * 31] = 4.0F;
  const std::vector<std::int32_t> positions(200);
  std::vector<skald::EvictionView> views(8);
  for (std::size_t i = 0; i < views.size(); ++i) {
    views[i].layer = static_cast<int>(i / 2);
    views[i].page_tokens = 16;
    views[i].positions = positions;
    views[i].scores = i % 2 == 0 ? flat : steep;
  }
  std::vector<std::int64_t> out(8);
  const auto sum = [&] { return std::accumulate(out.begin(), out.end(), std::int64_t{0}); };
  skald::detail::share_budgets(skald::BudgetShares::uniform, 100, 32, views, out);
  CHECK(sum() == 800);
  skald::detail::share_budgets(skald::BudgetShares::pyramid, 100, 32, views, out);
  CHECK(sum() <= 800);
  CHECK(sum() >= 792);
  CHECK(out.front() > out.back());
  CHECK(out.back() >= 32);
  for (std::size_t i = 0; i < views.size(); ++i) views[i].scores = i < 4 ? flat : steep;
  skald::detail::share_by_spread(100, 32, views, out);
  CHECK(sum() == 800);
  CHECK(out[0] > 2 * out[7]);  // layers of flat attention receive more
  CHECK(out[7] >= 32);
  for (std::size_t i = 0; i < views.size(); ++i) views[i].scores = i % 2 == 0 ? flat : steep;
  skald::detail::share_budgets(skald::BudgetShares::adaptive, 100, 32, views, out);
  CHECK(sum() == 800);
  CHECK(out[0] > 2 * out[1]);  // the flat head needs more
  CHECK(out[1] >= 32);
  // As at every page border of a long text: what the groups hold is the budget, the page that came included.
  for (std::size_t i = 0; i < views.size(); ++i) {
    views[i].positions = std::span(positions).first(100);
    views[i].scores = std::span(i % 2 == 0 ? flat : steep).first(100);
  }
  skald::detail::share_budgets(skald::BudgetShares::adaptive, 100, 32, views, out);
  CHECK(sum() == 800);
  CHECK(out[0] > out[1] + 20);
  for (auto& view : views) view.positions = positions;
  // Nobody has to give while there is enough for all, with a page to come.
  for (auto& view : views) view.positions = std::span(positions).first(84);
  skald::detail::share_budgets(skald::BudgetShares::pyramid, 100, 32, views, out);
  CHECK(*std::min_element(out.begin(), out.end()) >= 100);
  skald::detail::share_by_spread(100, 32, views, out);
  CHECK(*std::min_element(out.begin(), out.end()) >= 100);
  views[3].positions = std::span(positions).first(85);
  skald::detail::share_budgets(skald::BudgetShares::pyramid, 100, 32, views, out);
  CHECK(*std::min_element(out.begin(), out.end()) < 100);
}

TEST_CASE("state.policies: tokens merge into weighted means, shared pages stay as they are", "[state]") {
  struct MergeOldest {
    [[nodiscard]] static std::string name() { return "merge_oldest"; }
    [[nodiscard]] static skald::ComponentTraits traits() {
      return {.drops_tokens = true, .lossy = true, .merges_tokens = true};
    }
    static void evict(const skald::EvictionView& view, skald::EvictionChoice& choice) {
      if (view.sequence_tokens != 32) return;
      choice.merge(0, 3);
      choice.merge(1, 3);
      choice.set_weight(1, 2.0F);
      choice.drop(17);
      std::vector<float> key(4);
      (*view.read_key)(0, 17, key);
      CHECK(key[0] == 17.0F);
    }
  };
  Line line(MergeOldest{}, false);
  const auto key = [&](skald::SequenceState& sequence, std::int64_t slot) {
    auto& kv = static_cast<skald::PagedKv&>(*sequence.layer(0));
    return reinterpret_cast<float*>(line.pool->address(kv.pages(0)[static_cast<std::size_t>(slot / 16)])) +
           layout.key_index(static_cast<int>(slot % 16), 0);
  };
  for (int i = 0; i < 31; ++i) {
    line.step(none);
    *key(line.sequence, i) = static_cast<float>(i);
  }
  auto fork = line.sequence.fork();
  line.step(none);
  CHECK(line.kv().slots(0) == 29);
  CHECK(line.kv().merged_tokens() == 2);
  CHECK(line.kv().evicted_tokens() == 3);
  CHECK(*key(line.sequence, 0) == 2.0F);
  CHECK(*key(line.sequence, 1) == (0.0F + 2.0F + 3.0F) / 4.0F);
  CHECK(*key(line.sequence, 2) == 4.0F);
  CHECK(*key(line.sequence, 15) == 18.0F);
  for (int i = 0; i < 31; ++i) REQUIRE(*key(fork, i) == static_cast<float>(i));
  fork.clear();
  line.sequence.clear();
  CHECK(line.pool->used_pages() == 0);
}

TEST_CASE("state.policies: a policy that drops the newest token or merges into what leaves is refused", "[state]") {
  struct Wrong {
    int how;
    [[nodiscard]] static std::string name() { return "wrong"; }
    [[nodiscard]] static skald::ComponentTraits traits() { return {.drops_tokens = true, .lossy = true}; }
    void evict(const skald::EvictionView& view, skald::EvictionChoice& choice) const {
      if (how == 0) choice.drop(view.slots() - 1);
      if (how == 1) choice.merge(2, 2);
      if (how == 2) choice.merge(2, view.slots());
      if (how == 3) {
        choice.drop(5);
        choice.merge(2, 5);
      }
    }
  };
  for (int how = 0; how < 4; ++how) {
    Line line(Wrong{how}, false);
    for (int i = 0; i < 15; ++i) line.step(none);
    CHECK_THROWS_AS(line.step(none), skald::UsageError);
    line.sequence.rollback();
    CHECK(line.kv().slots(0) == 15);
  }
}

namespace {

/// What a query of every row makes of the keys and values of a line, on a backend.
std::vector<float> attend(Line& line, const std::vector<float>& queries, const skald::AnyBackend& backend) {
  auto& kv = line.kv();
  const auto rows = static_cast<std::int64_t>(queries.size()) / layout.head_dim_k;
  auto memory = backend->allocate((queries.size() + static_cast<std::size_t>(rows * layout.head_dim_v)) * sizeof(float));
  backend->write(memory.address(), std::as_bytes(std::span(queries)));
  auto* q = reinterpret_cast<float*>(memory.address());
  auto* out = q + queries.size();
  std::vector<skald::KvTable> tables;
  std::vector<skald::Segment> segments;
  for (std::int32_t row = 0; row < rows; ++row) {
    tables.push_back({.pages = kv.pages(0).data(), .length = static_cast<std::int32_t>(kv.slots(0)), .bias = kv.bias(0)});
    segments.push_back({.row_begin = row, .row_count = 1});
  }
  skald::AttentionOp op;
  op.q = {q, rows, layout.head_dim_k, layout.head_dim_k};
  op.out = {out, rows, layout.head_dim_v, layout.head_dim_v};
  op.heads = op.kv_heads = 1;
  op.mask = skald::AttentionMask::none;
  op.kv = {line.pool->base(), layout, 1, tables.data()};
  op.segments = segments.data();
  op.segment_count = static_cast<std::int32_t>(rows);
  const auto stream = backend->new_stream({.tokens = rows, .max_cols = 64, .heads = 1, .head_dim = layout.head_dim_k,
                                           .context = 8192, .segments = rows});
  stream->enqueue(op);
  stream->synchronize({});
  std::vector<float> result(static_cast<std::size_t>(rows * layout.head_dim_v));
  backend->read(std::as_writable_bytes(std::span(result)), reinterpret_cast<const std::byte*>(out));
  return result;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

}  // namespace

TEST_CASE("state.d2o: a token that equals a kept one leaves without a trace, dropping it leaves one", "[state]") {
  // Eight different tokens over and over: whatever leaves has an equal among the newest eight.
  std::vector<float> queries;
  for (int i = 0; i < 12 * 4; ++i) queries.push_back(std::sin(static_cast<float>(7 * i)));
  const auto fill = [](Line& line, std::int64_t token) {
    const auto slot = line.kv().slots(0) - 1;
    auto* page = line.pool->address(line.kv().pages(0)[static_cast<std::size_t>(slot / 16)]);
    const auto kind = static_cast<float>(token % 8);
    const std::vector<float> key{std::cos(kind), std::sin(kind), 0.1F * kind, 1.0F};
    const std::vector<float> value{kind, kind * kind};
    skald::write_kv_key(layout, page, 0, static_cast<std::int32_t>(slot % 16), key);
    skald::write_kv_value(layout, page, 0, static_cast<std::int32_t>(slot % 16), value);
  };
  const auto run = [&](Line& line) {
    line.appended = fill;
    for (std::int64_t i = 0; i < 5 * 16 + 3; ++i) line.step(none);
  };
  Line all(skald::NoEviction{});
  Line merged(skald::DiscriminativeMerge{.budget = 32});
  Line dropped(skald::HeavyHitters{.budget = 32});
  for (auto* line : {&all, &merged, &dropped}) run(*line);
  REQUIRE(merged.kv().slots(0) == 16 + 3);
  REQUIRE(dropped.kv().slots(0) == 16 + 3);
  CHECK(merged.kv().merged_tokens() == 64);
  CHECK(dropped.kv().bias(0) == nullptr);
  for (const auto& backend : {skald::make_reference_backend(), skald::make_cpu_backend()}) {
    const auto expected = attend(all, queries, backend);
    CHECK(largest_difference(attend(merged, queries, backend), expected) < 1e-5F);
    CHECK(largest_difference(attend(dropped, queries, backend), expected) > 0.1F);
  }
  // What slots stand for goes with the sequence.
  auto fork = merged.sequence.fork();
  merged.sequence.truncate(merged.sequence.restorable(82));
  const auto& kv = static_cast<const skald::PagedKv&>(*fork.layer(0));
  double tokens = 0;
  for (std::int64_t slot = 0; slot < kv.slots(0); ++slot) tokens += std::exp(double{kv.bias(0)[slot]});
  CHECK(tokens == Approx(5 * 16 + 3));
}

TEST_CASE("state.streaming: where attention rests on the first tokens, a window without them attends to something else",
          "[state]") {
  // Every query looks at the first four tokens, whose values are next to nothing, as trained models do that have nothing to
  // look for; what is left over falls on the others.
  std::vector<float> queries;
  for (int i = 0; i < 8; ++i)
    for (int d = 0; d < 4; ++d)
      queries.push_back(d == 3 ? 12.0F : std::sin(static_cast<float>(3 * i + d)));
  const auto fill = [](Line& line, std::int64_t token) {
    const auto slot = line.kv().slots(0) - 1;
    auto* page = line.pool->address(line.kv().pages(0)[static_cast<std::size_t>(slot / 16)]);
    const auto t = static_cast<float>(token);
    const bool sink = token < 4;
    const std::vector<float> key{std::cos(t), std::sin(t), std::cos(2 * t), sink ? 1.0F : 0.0F};
    const std::vector<float> value{sink ? 0.01F : 1.0F + std::sin(t), sink ? 0.0F : 2.0F};
    skald::write_kv_key(layout, page, 0, static_cast<std::int32_t>(slot % 16), key);
    skald::write_kv_value(layout, page, 0, static_cast<std::int32_t>(slot % 16), value);
  };
  const auto run = [&](Line& line) {
    line.appended = fill;
    for (std::int64_t i = 0; i < 20 * 16 + 5; ++i) line.step(none);
  };
  Line all(skald::NoEviction{});
  Line sinks(skald::SinksAndWindow{.sinks = 4, .window = 60});
  Line window(skald::SinksAndWindow{.sinks = 0, .window = 64});
  run(all);
  run(sinks);
  run(window);
  for (const auto& backend : {skald::make_reference_backend(), skald::make_cpu_backend()}) {
    const auto expected = attend(all, queries, backend);
    const auto kept = largest_difference(attend(sinks, queries, backend), expected);
    const auto lost = largest_difference(attend(window, queries, backend), expected);
    INFO("with the first four tokens " << kept << ", without " << lost);
    CHECK(kept < 0.05F);
    CHECK(lost > 20 * kept);
    CHECK(lost > 1.0F);
  }
}

TEST_CASE("state.keyformer: what is kept is the choice by the published score, computed apart", "[state]") {
  constexpr std::int64_t budget = 48;
  constexpr std::int64_t prompt = 50;
  const auto random_number = [](std::int64_t token, int d) {
    return static_cast<float>(2 * skald::CounterRandom(3, static_cast<std::uint64_t>(d), static_cast<std::uint64_t>(token)).uniform() - 1);
  };
  for (const auto& backend : {skald::make_reference_backend(), skald::make_cpu_backend()}) {
    Line line(skald::KeyTokens{.budget = budget, .recent = 0.25, .noise = 0.5, .last = 3.0, .steps = 60, .seed = 9});
    line.sequence.set_prompt_length(prompt);
    auto memory = backend->allocate(8 * sizeof(float));
    auto* q = reinterpret_cast<float*>(memory.address());
    const auto stream = backend->new_stream(
        {.max_cols = 64, .heads = 1, .head_dim = layout.head_dim_k, .context = 8192});
    std::vector<std::pair<std::int64_t, double>> expected;  // position, score
    int borders = 0;
    for (std::int64_t i = 0; i < 176; ++i) {
      line.sequence.append(1);
      auto& kv = line.kv();
      const auto slot = static_cast<std::int32_t>(kv.slots(0) - 1);
      auto* page = line.pool->address(kv.pages(0)[static_cast<std::size_t>(slot / 16)]);
      std::vector<float> key(4);
      for (int d = 0; d < 4; ++d) {
        key[static_cast<std::size_t>(d)] = 3 * random_number(i, d);
        q[d] = random_number(i, 4 + d);
      }
      skald::write_kv_key(layout, page, 0, slot % 16, key);
      skald::write_kv_value(layout, page, 0, slot % 16, std::span(key).first(2));
      const skald::KvTable table{.pages = kv.pages(0).data(), .length = slot};
      const skald::Segment segment{.row_begin = 0, .row_count = 1};
      float* scores = kv.begin_scores(0);
      const float* noise = kv.noise(0);
      const float inverse = 1.0F / line.policy.traits().score_shape.temperature(i, prompt);
      const skald::ScoreSink sink{.scores = &scores, .noise = &noise, .inverse_temperatures = &inverse};
      skald::AttentionOp op;
      op.q = {q, 1, layout.head_dim_k, layout.head_dim_k};
      op.out = {q + 4, 1, layout.head_dim_v, layout.head_dim_v};
      op.heads = op.kv_heads = 1;
      op.kv = {line.pool->base(), layout, 1, &table};
      op.segments = &segment;
      op.segment_count = 1;
      op.sink = &sink;
      stream->enqueue(op);
      stream->synchronize({});

      expected.emplace_back(i, 0.0);
      const double temperature = i < prompt ? 1.0 : 1.0 + 2.0 * std::min<double>(1.0, static_cast<double>(i - prompt + 1) / 60);
      std::vector<double> weights;
      for (const auto& [position, score] : expected) {
        double dot = 0;
        for (int d = 0; d < 4; ++d) dot += 3.0 * double{random_number(position, d)} * double{random_number(i, 4 + d)};
        const double uniform = skald::CounterRandom(9, 0, static_cast<std::uint64_t>(position)).uniform();
        weights.push_back(std::exp((dot - 0.5 * std::log(-std::log(uniform))) / temperature));
      }
      const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
      for (std::size_t n = 0; n < weights.size(); ++n) expected[n].second += weights[n] / sum;
      if ((i + 1) % 16 != 0) {
        line.sequence.commit();
        continue;
      }
      line.sequence.choose_evictions(line.policy);
      line.sequence.commit();
      line.sequence.apply_evictions();
      if (expected.size() <= 32) continue;
      ++borders;
      auto old = std::vector(expected.begin(), expected.end() - 8);
      std::stable_sort(old.begin(), old.end(), [](auto& a, auto& b) { return a.second > b.second; });
      old.resize(24);
      std::sort(old.begin(), old.end());
      old.insert(old.end(), expected.end() - 8, expected.end());
      expected = old;
      std::set<std::int32_t> positions;
      for (const auto& [position, score] : expected) positions.insert(static_cast<std::int32_t>(position));
      REQUIRE(line.kept() == positions);
    }
    CHECK(borders == 9);
  }
}

TEST_CASE("state.policies: every policy that is registered is made by its name and the parameters it lists", "[state]") {
  for (const auto& info : skald::AnyEviction::registered()) {
    INFO(info.name);
    CHECK_FALSE(info.keeps.empty());
    if (info.name == "dcp") continue;  // needs a file
    const auto plain = skald::AnyEviction::from_spec(info.name);
    const auto text = std::string(info.name) + (info.parameters.empty() ? "" : ":") + std::string(info.parameters);
    CHECK(skald::AnyEviction::from_spec(text).name() == plain.name());
    CHECK(skald::AnyEviction::from_spec(plain.name()).name() == plain.name());
    CHECK(plain.traits().drops_tokens == (info.name != "none"));
  }
  CHECK_THROWS_AS(skald::AnyEviction::from_spec("h3o"), skald::UsageError);
}
