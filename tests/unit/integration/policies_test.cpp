// What every eviction policy must keep to, whatever it drops.
#include <unistd.h>

#include <filesystem>

#include <skald/model/safetensors/writer.hpp>
#include <skald/state/drop_gates.hpp>
#include <skald/state/paged_kv.hpp>
#include <skald/state/policies.hpp>
#include <skald/text/tokenizer.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"
#include "support/gates_file.hpp"
#include "support/shared_data.hpp"
#include "support/story_grammar.hpp"

using namespace skald_test;

namespace {

/// A policy by name, with a budget that 300 tokens exceed, and with one that they never reach.
struct Case {
  std::string tight;
  std::string wide;
  std::int64_t most_slots;  ///< of a head group under the tight budget after any step; 0: no bound
  bool from_start = false;  ///< drops tokens at the first border already
};

const TinyShape shape{.type = skald::DType::q8_0};

std::string gates_of(const TinyShape& of, float bias) { return gates_policy(of.layers, of.dim, bias); }

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {"recent_pages:sinks=1,recent=3", "recent_pages:sinks=1,recent=40", 80},
      {"window:sinks=4,window=60", "window:sinks=4,window=400", 64},
      {"h2o:budget=64,recent=50", "h2o:budget=400,recent=50", 64},
      {"h2o:budget=64,recent=50,shares=pyramid", "h2o:budget=800,recent=50,shares=pyramid", 80},
      {"h2o:budget=64,recent=50,shares=adaptive", "h2o:budget=400,recent=50,shares=adaptive", 96},
      {"keyformer:budget=64,recent=50,noise=100,temperature=200,steps=200,seed=7",
       "keyformer:budget=400,recent=50,noise=100,temperature=200,steps=200,seed=7", 64},
      {"snapkv:budget=64,window=8,pool=5", "snapkv:budget=400,window=8,pool=5", 64},
      {"streaming:sinks=4,window=60", "streaming:sinks=4,window=400", 64},
      {"d2o:budget=64", "d2o:budget=400", 96},
      {"rpc:interval=32,window=8,percent=25", "rpc:interval=0,window=8,percent=25", 0},
      {gates_of(shape, 2.0F), gates_of(shape, 1e6F), 0, true},
  };
  return list;
}

skald::DecoderOptions with(const std::string& eviction) {
  return {.kv = {.eviction = eviction, .page_tokens = 16}};
}

std::int64_t longest_group(const skald::Session& session) {
  std::int64_t most = 0;
  for (int l = 0; l < session.state().layer_count(); ++l) {
    const auto& kv = static_cast<const skald::PagedKv&>(*session.state().layer(l));
    for (int g = 0; g < kv.groups(); ++g) most = std::max(most, kv.slots(g));
  }
  return most;
}

Rows tail(const Rows& rows, std::size_t from) {
  return {rows.begin() + static_cast<std::ptrdiff_t>(from) * shape.vocabulary, rows.end()};
}

}  // namespace

TEST_CASE("integration.policies: a budget that is never reached changes no bit") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto tokens = some_tokens(300, shape.vocabulary);
  auto plain = skald::Decoder(model, with("none")).new_session();
  const auto expected = chunked(plain, tokens, 300);
  for (const auto& policy : cases()) {
    INFO(policy.wide);
    const skald::Decoder decoder(model, with(policy.wide));
    CHECK(decoder.effective_config().eviction == policy.wide);
    auto session = decoder.new_session();
    CHECK(same_bits(chunked(session, tokens, 77), expected));
    CHECK(session.bytes() == plain.bytes());
    CHECK(decoder.counters().evicted_tokens == 0);
    CHECK(decoder.counters().eviction_rounds == 300 / 16);
  }
}

TEST_CASE("integration.policies: chunks, neighbours and threads change no bit and the budget holds after every step") {
  const auto tokens = some_tokens(300, shape.vocabulary);
  for (const auto& policy : cases()) {
    INFO(policy.tight);
    Rows expected;
    for (const int threads : {1, 3}) {
      const auto model = tiny_model(shape, {.backend = cpu_with(threads)});
      const skald::Decoder decoder(model, with(policy.tight));
      auto whole = decoder.new_session();
      const auto rows = chunked(whole, tokens, 300);
      if (expected.empty()) expected = rows;
      CHECK(same_bits(rows, expected));
      CHECK(decoder.counters().evicted_tokens > 0);
      for (const std::size_t chunk : {1u, 7u}) {
        auto session = decoder.new_session();
        CHECK(same_bits(chunked(session, tokens, chunk), expected));
        CHECK(session.bytes() == whole.bytes());
      }
      auto a = decoder.new_session();
      auto b = decoder.new_session();
      Rows together;
      skald::Batch batch;
      for (std::size_t i = 0; i < 300; i += 30) {
        batch.clear();
        batch.add(b, std::span(tokens).subspan(i, 11))
            .add(a, std::span(tokens).subspan(i, 30), skald::LogitsWanted::all);
        const auto logits = decoder.forward(batch);
        for (std::int64_t r = 0; r < logits.rows(1); ++r)
          together.insert(together.end(), logits.row(1, r).begin(), logits.row(1, r).end());
      }
      CHECK(same_bits(together, expected));
    }
    if (policy.most_slots == 0) continue;
    const auto model = tiny_model(shape, {.backend = cpu_with(2)});
    const skald::Decoder decoder(model, with(policy.tight));
    auto session = decoder.new_session();
    for (const auto token : tokens) {
      (void)next_row(session, token);
      REQUIRE(longest_group(session) <= policy.most_slots);
      const auto& kv = static_cast<const skald::PagedKv&>(*session.state().layer(0));
      REQUIRE(kv.positions(0).back() == session.length() - 1);
    }
    // A prompt at once takes no more than that either: four groups, and the page that is being filled.
    const skald::Decoder fresh(model, with(policy.tight));
    auto prompt = fresh.new_session();
    (void)prompt.forward(tokens);
    CHECK(fresh.counters().kv_pages_peak <= 4 * static_cast<std::uint64_t>((policy.most_slots + 15) / 16 + 1));
  }
}

TEST_CASE("integration.policies: forks, snapshots and truncation carry the statistics") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto tokens = some_tokens(300, shape.vocabulary);
  for (const auto& policy : cases()) {
    INFO(policy.tight);
    const skald::Decoder decoder(model, with(policy.tight));
    auto whole = decoder.new_session();
    const auto expected = chunked(whole, tokens, 300);
    auto half = decoder.new_session();
    (void)chunked(half, std::span(tokens).first(150), 150);
    auto fork = half.fork();
    auto other = half.fork();
    auto restored = decoder.new_session();
    restored.restore(half.snapshot());
    CHECK(restored.bytes() == half.bytes());
    // The fork goes another way first and comes back: within the page that is being filled.
    (void)other.forward(some_tokens(9, shape.vocabulary, 12));
    other.truncate(147);
    CHECK(other.length() == 147);
    (void)half.forward(some_tokens(70, shape.vocabulary, 12));
    CHECK(same_bits(chunked(fork, std::span(tokens).subspan(150), 13), tail(expected, 150)));
    CHECK(same_bits(chunked(restored, std::span(tokens).subspan(150), 13), tail(expected, 150)));
    CHECK(same_bits(chunked(other, std::span(tokens).subspan(147), 13), tail(expected, 147)));
    // Back to before the first eviction, from before it.
    if (policy.from_start) continue;
    auto young = decoder.new_session();
    (void)young.forward(std::span(tokens).first(31));
    young.truncate(5);
    CHECK(same_bits(chunked(young, std::span(tokens).subspan(5), 64), tail(expected, 5)));
    // Beyond an eviction there is no way back.
    CHECK_FALSE(restored.can_truncate(20));
    CHECK_THROWS_AS(restored.truncate(20), skald::UsageError);
    CHECK(restored.length() == 300);
  }
}

TEST_CASE("integration.policies: heads that evict apart in a fork leave the shared pages as they are") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto tokens = some_tokens(300, shape.vocabulary);
  for (const auto& policy : cases()) {
    INFO(policy.tight);
    const skald::Decoder decoder(model, with(policy.tight));
    const auto used = [&] { return decoder.counters().kv_pages_used; };
    auto parent = decoder.new_session();
    (void)parent.forward(std::span(tokens).first(120));
    std::vector<skald::Session> children;
    for (int i = 0; i < 3; ++i) children.push_back(parent.fork());
    const auto shared = used();
    CHECK(shared * decoder.counters().kv_page_bytes_used / std::max<std::uint64_t>(1, used()) == parent.bytes());
    for (int i = 0; i < 3; ++i)
      (void)children[static_cast<std::size_t>(i)].forward(some_tokens(100, shape.vocabulary, 20u + static_cast<unsigned>(i)));
    auto alone = decoder.new_session();
    (void)alone.forward(std::span(tokens).first(120));
    CHECK(same_bits(chunked(parent, std::span(tokens).subspan(120), 50),
                    chunked(alone, std::span(tokens).subspan(120), 50)));
    children.clear();
    alone.clear();
    parent.clear();
    CHECK(used() == 0);
  }
}

TEST_CASE("integration.policies: a step that evicts by scores allocates no page beyond the budget of a full cache") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  const skald::Decoder decoder(model, with("h2o:budget=32"));
  CHECK_THROWS_AS(skald::Decoder(model, with("h2o:budget=31")), skald::IncompatibleError);
  CHECK_THROWS_AS(skald::Decoder(model, with("snapkv:budget=64,window=17")), skald::IncompatibleError);
  CHECK_THROWS_AS(skald::Decoder(model, with("h2o:budget=64,shares=odd")), skald::UsageError);
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(400, shape.vocabulary));
  CHECK(longest_group(session) <= 32);
  CHECK(decoder.counters().kv_pages_peak <= 4 * 3);
}

TEST_CASE("integration.streaming: a stream of twenty windows stays within constant bytes and answers as if the cache alone had been read") {
  // With one layer a token's key and value depend on the token and its position only, so that what is in the cache can be
  // computed apart: the sinks and the window, one directly after the other.
  // Also where the context of the decoder decides how keys are rotated.
  const auto above = GENERATE(std::int64_t{0}, std::int64_t{1024});
  const TinyShape one{.layers = 1, .long_rope_above = above, .type = skald::DType::f32};
  const auto model = tiny_model(one, {.backend = cpu_with(2)});
  constexpr std::int64_t window = 60;
  skald::DecoderOptions options{.kv = {.format = "f32", .eviction = "streaming:sinks=4,window=60", .page_tokens = 16},
                                .context = 4096};
  const skald::Decoder streaming(model, options);
  options.kv.eviction = "window:sinks=4,window=60";
  const skald::Decoder fixed(model, options);
  options.kv.eviction = "none";
  const skald::Decoder plain(model, options);
  const auto tokens = some_tokens(20 * window, one.vocabulary, 77);
  auto session = streaming.new_session();
  auto kept_positions = fixed.new_session();
  std::size_t most_bytes = 0;
  for (std::size_t i = 0; i < tokens.size(); i += 25) {
    (void)session.forward(std::span(tokens).subspan(i, 25));
    (void)kept_positions.forward(std::span(tokens).subspan(i, 25));
    most_bytes = std::max(most_bytes, session.bytes());
  }
  const auto& kv = static_cast<const skald::PagedKv&>(*session.state().layer(0));
  CHECK(most_bytes <= 2 * 4 * kv.pool().page_bytes());
  std::vector<skald::TokenId> left;
  for (const auto position : kv.positions(0)) left.push_back(tokens[static_cast<std::size_t>(position)]);
  CHECK(static_cast<std::int64_t>(left.size()) <= window + 4);  // and so is every distance between two of them
  auto alone = plain.new_session();
  (void)alone.forward(left);
  const auto expected = next_row(alone, 5);
  const auto distance = [&](const Rows& rows) {
    double worst = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) worst = std::max(worst, std::abs(double{rows[i]} - expected[i]));
    return worst;
  };
  CHECK(distance(next_row(session, 5)) < 2e-3);
  CHECK(distance(next_row(kept_positions, 5)) > 2e-2);  // the sinks are far away there
}

TEST_CASE("integration.adaptive: heads of the bundled model get shares that differ and sum to the budget, in no more bytes") {
  const auto model = skald::Model::load(model_path("skald-tiny-q8_0.gguf"), {.backend = cpu_with(2)});
  const auto tokens = model.tokenizer().encode(StoryGrammar(3).text(3000));
  constexpr std::int64_t budget = 64;
  constexpr std::int64_t page = 16;
  for (const std::string policy : {"h2o:budget=64", "snapkv:budget=64,window=8", "keyformer:budget=64"}) {
    INFO(policy);
    const auto run = [&](const std::string& eviction, const auto& after) {
      const skald::Decoder decoder(model, with(eviction));
      auto session = decoder.new_session();
      for (std::size_t i = 0; i < 400; i += 8) {
        (void)session.forward(std::span(tokens).subspan(i, 8), skald::LogitsWanted::none);
        after(session);
      }
      const auto groups = static_cast<std::uint64_t>(session.state().layer_count() * 2);
      CHECK(decoder.counters().kv_pages_peak <= groups * (budget / page + 1));
      return next_row(session, tokens[400]);
    };
    int uneven = 0;
    std::int64_t most = 0;
    const auto adaptive = run(policy + ",shares=adaptive", [&](const skald::Session& session) {
      for (int l = 0; l < session.state().layer_count(); ++l) {
        const auto& kv = static_cast<const skald::PagedKv&>(*session.state().layer(l));
        REQUIRE(kv.groups() == 2);
        uneven += std::abs(kv.slots(0) - kv.slots(1)) >= 4 ? 1 : 0;
        most = std::max(most, kv.slots(0) + kv.slots(1));
        REQUIRE(kv.slots(0) + kv.slots(1) <= 2 * budget);
        REQUIRE(kv.bytes() <= static_cast<std::size_t>(2 * (budget / page + 1)) * kv.pool().page_bytes());
      }
    });
    CHECK(uneven > 50);
    CHECK(most > 2 * (budget - page));  // what one head gives up another has
    CHECK_FALSE(same_bits(adaptive, run(policy + ",shares=uniform", [](const skald::Session&) {})));
  }
}

TEST_CASE("integration.d2o: layers share one budget, merges and drops are counted") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, with("d2o:budget=64"));
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(400, shape.vocabulary));
  const auto counters = decoder.counters();
  CHECK(counters.merged_tokens > 0);
  CHECK(counters.evicted_tokens > counters.merged_tokens);
  std::int64_t slots = 0;
  for (int l = 0; l < session.state().layer_count(); ++l) {
    const auto& kv = static_cast<const skald::PagedKv&>(*session.state().layer(l));
    for (int g = 0; g < kv.groups(); ++g) slots += kv.slots(g);
  }
  CHECK(slots <= 4 * 64);
}

namespace {

/// What is left of the tokens of a session, for each layer and group.
std::vector<std::vector<std::int32_t>> kept(const skald::Session& session) {
  std::vector<std::vector<std::int32_t>> all;
  for (int l = 0; l < session.state().layer_count(); ++l) {
    const auto& kv = static_cast<const skald::PagedKv&>(*session.state().layer(l));
    for (int g = 0; g < kv.groups(); ++g) all.emplace_back(kv.positions(g).begin(), kv.positions(g).end());
  }
  return all;
}

}  // namespace

TEST_CASE("integration.keyformer: without noise at temperature one it is the policy of accumulated attention") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto tokens = some_tokens(300, shape.vocabulary);
  const auto run = [&](const std::string& policy) {
    auto session = skald::Decoder(model, with(policy)).new_session();
    const auto rows = chunked(session, tokens, 100);
    return std::pair(kept(session), rows);
  };
  const auto plain = run("h2o:budget=64,recent=50");
  const auto same = run("keyformer:budget=64,recent=50,noise=0,temperature=100");
  CHECK(same.first == plain.first);
  CHECK(same_bits(same.second, plain.second));
  const auto seeded = run("keyformer:budget=64,recent=50,seed=1");
  CHECK(run("keyformer:budget=64,recent=50,seed=1").first == seeded.first);
  CHECK(run("keyformer:budget=64,recent=50,seed=2").first != seeded.first);
  CHECK(seeded.first != plain.first);
}

TEST_CASE("integration.keyformer: rotary, ALiBi and learned positions run with the reduced cache") {
  if (!have_shared("goldens/models")) return;
  for (const std::string name : {"qwen2", "bloom", "gpt2"}) {
    INFO(name);
    std::vector<Rows> results;
    for (const auto& backend : {cpu_with(2), skald::make_reference_backend()}) {
      const auto model = skald::Model::load(shared_path("goldens/models/" + name + ".gguf"), {.backend = backend});
      const skald::Decoder decoder(model, {.kv = {.format = "f32", .eviction = "keyformer:budget=32,seed=3", .page_tokens = 16}});
      auto session = decoder.new_session();
      const auto tokens = some_tokens(100, model.spec().vocabulary);
      (void)session.forward(tokens, skald::LogitsWanted::none);
      CHECK(longest_group(session) <= 32);
      CHECK(decoder.counters().evicted_tokens > 0);
      results.push_back(next_row(session, 5));
    }
    double worst = 0;
    for (std::size_t i = 0; i < results[0].size(); ++i) worst = std::max(worst, std::abs(double{results[0][i]} - results[1][i]));
    CHECK(worst < 2e-3);
  }
}

namespace {

/// A prompt of 32k tokens and a hundred more under a policy with a quarter of that: never more pages than the budget's and one
/// for each head group. `over`: tokens beyond the budget that the policy's own rule allows.
void run_long(const std::string& policy, std::int64_t heads, std::uint64_t over = 0) {
  INFO(policy);
  constexpr std::int64_t length = 32768;
  constexpr auto budget = static_cast<std::uint64_t>(length / 4);
  const TinyShape small{.vocabulary = 64, .dim = 32, .layers = 1, .heads = heads, .kv_heads = heads, .head_dim = 16, .ffn = 32,
                        .context = 40000};
  const auto model = tiny_model(small, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, {.kv = {.eviction = policy}, .context = 33000, .batch_tokens = 512});
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(length, 64), skald::LogitsWanted::none);
  const auto groups = static_cast<std::uint64_t>(heads);
  const auto page = static_cast<std::uint64_t>(decoder.effective_config().page_tokens);
  const auto most_pages = groups * ((budget + over) / page + 1);
  const auto counters = decoder.counters();
  const auto& pool = static_cast<const skald::PagedKv&>(*session.state().layer(0)).pool();
  CHECK(counters.kv_pages_peak <= most_pages);
  CHECK(counters.evicted_pages >= groups * (static_cast<std::uint64_t>(length) - budget) / page);
  for (int i = 0; i < 100; ++i) {
    (void)next_row(session, 1);
    REQUIRE(session.bytes() <= most_pages * pool.page_bytes());
  }
  session.clear();
  CHECK(decoder.counters().kv_pages_used == 0);
}

}  // namespace

TEST_CASE("integration.eviction: 32k tokens at a quarter of the cache stay within budget and a page per head group, in prefill too") {
  run_long("window:sinks=4,window=8188", 2);
  run_long("streaming:sinks=4,window=8188", 2);
  run_long("snapkv:budget=8192", 1);
  run_long("rpc:interval=256,percent=25", 1, 256);
}

// Policies that count all attention add up a quarter of a billion probabilities for each head.
TEST_CASE("integration.eviction: 32k tokens under policies that count all attention stay within budget and a page per head group") {
  run_long("h2o:budget=8192", 1);
  run_long("keyformer:budget=8192", 1);
}

TEST_CASE("integration.eviction: 32k tokens with shared budgets and merging stay within budget and a page per head group") {
  run_long("snapkv:budget=8192,shares=adaptive", 2);
  run_long("d2o:budget=8192", 1);
}

TEST_CASE("integration.dcp: prefill with the mask of learned gates and steps that free what they drop give equal logits") {
  const TinyShape deep{.layers = 3};
  const auto tokens = some_tokens(250, deep.vocabulary);
  const auto gates = gates_of(deep, 2.0F);
  for (const auto& backend : {cpu_with(3), skald::make_reference_backend()}) {
    const auto model = tiny_model(deep, {.backend = backend});
    const auto count = static_cast<std::size_t>(model.backend()->info().name == "cpu" ? 250 : 90);
    // Pages that never fill: nothing is freed, all is masked.
    const skald::Decoder masked(model, {.kv = {.format = "f32", .eviction = gates, .page_tokens = 256}});
    auto whole = masked.new_session();
    const auto expected = copy(whole.forward(std::span(tokens).first(count), skald::LogitsWanted::all));
    CHECK(masked.counters().evicted_tokens == 0);
    const skald::Decoder plain(model, {.kv = {.format = "f32"}});
    auto dense = plain.new_session();
    const auto unmasked = copy(dense.forward(std::span(tokens).first(count), skald::LogitsWanted::all));

    const skald::Decoder freeing(model, {.kv = {.format = "f32", .eviction = gates, .page_tokens = 16}});
    auto session = freeing.new_session();
    Rows stepped;
    std::vector<std::vector<std::int32_t>> before;
    for (std::size_t i = 0; i < count; ++i) {
      const auto row = next_row(session, tokens[i]);
      stepped.insert(stepped.end(), row.begin(), row.end());
      // What was dropped once never comes back.
      auto now = kept(session);
      for (std::size_t g = 0; g < before.size(); ++g) {
        before[g].push_back(static_cast<std::int32_t>(i));
        REQUIRE(std::includes(before[g].begin(), before[g].end(), now[g].begin(), now[g].end()));
      }
      before = std::move(now);
    }
    const auto distance = [&](const Rows& rows) {
      double worst = 0;
      for (std::size_t i = 0; i < rows.size(); ++i) worst = std::max(worst, std::abs(double{rows[i]} - expected[i]));
      return worst;
    };
    CHECK(distance(stepped) < 2e-3);
    CHECK(distance(unmasked) > 0.1);
    // Freed pages are back in the pool; every layer has dropped tokens of its own.
    const auto counters = freeing.counters();
    CHECK(counters.evicted_pages > 0);
    CHECK(session.bytes() < dense.bytes());
    CHECK(counters.kv_page_bytes_used == session.bytes());
    CHECK(before[0] == before[1]);  // both head groups of a layer
    CHECK(before[0].size() != before[2].size());
    CHECK(before[2].size() != before[4].size());
    session.clear();
    CHECK(freeing.counters().kv_pages_used == 0);
  }
}

TEST_CASE("integration.dcp: gates that are damaged or do not fit the model are refused") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  CHECK_THROWS_AS(skald::AnyEviction::from_spec("dcp"), skald::UsageError);
  CHECK_THROWS_AS(skald::AnyEviction::from_spec("dcp:file=/nowhere"), skald::Error);
  const auto good = gates_of(shape, 2.0F);
  CHECK_THROWS_AS(skald::AnyEviction::from_spec(good.substr(0, good.rfind('=')) + "=1"), skald::UsageError);
  CHECK_THROWS_AS(skald::Decoder(model, with(gates_of({.layers = 3}, 2.0F))), skald::IncompatibleError);
  CHECK_THROWS_AS(skald::Decoder(model, with(gates_of({.dim = 128, .layers = 1}, 1.0F))), skald::IncompatibleError);
  const auto path = (std::filesystem::temp_directory_path() / ("skald-bad-gates-" + std::to_string(::getpid()))).string() + ".safetensors";
  const auto refuses = [&](const std::string& name, std::vector<std::int64_t> dims, float value) {
    skald::SafetensorsWriter writer;
    std::int64_t count = 1;
    for (const auto d : dims) count *= d;
    const std::vector<float> numbers(static_cast<std::size_t>(count), value);
    writer.add_tensor(name, skald::SafetensorsType::f32, dims, std::as_bytes(std::span(numbers)));
    writer.write_file(path);
    CHECK_THROWS_AS(skald::AnyEviction::from_spec("dcp:file=" + path), skald::FormatError);
  };
  refuses("layers.0.value", {2, 256}, 1);
  refuses("layers.99999.key", {2, 256}, 1);
  refuses("layers.0.key", {256}, 1);
  refuses("layers.0.key", {2048, 2}, 1);
  refuses("layers.0.bias", {2}, 1);
  refuses("layers.0.key", {2, 256}, std::numeric_limits<float>::quiet_NaN());
  std::filesystem::remove(path);
}
