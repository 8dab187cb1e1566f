// What every eviction policy must keep to, whatever it drops.
#include <skald/state/paged_kv.hpp>
#include <skald/state/policies.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

/// A policy by name, with a budget that 300 tokens exceed, and with one that they never reach.
struct Case {
  std::string tight;
  std::string wide;
  std::int64_t most_slots;  ///< of a head group under the tight budget after any step; 0: no bound
};

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {"recent_pages:sinks=1,recent=3", "recent_pages:sinks=1,recent=40", 80},
      {"window:sinks=4,window=60", "window:sinks=4,window=400", 64},
      {"h2o:budget=64,recent=50", "h2o:budget=400,recent=50", 64},
      {"h2o:budget=64,recent=50,shares=pyramid", "h2o:budget=800,recent=50,shares=pyramid", 80},
      {"h2o:budget=64,recent=50,shares=adaptive", "h2o:budget=400,recent=50,shares=adaptive", 96},
      {"snapkv:budget=64,window=8,pool=5", "snapkv:budget=400,window=8,pool=5", 64},
      {"streaming:sinks=4,window=60", "streaming:sinks=4,window=400", 64},
      {"d2o:budget=64", "d2o:budget=400", 96},
      {"rpc:interval=32,window=8,percent=25", "rpc:interval=0,window=8,percent=25", 0},
  };
  return list;
}

const TinyShape shape{.type = skald::DType::q8_0};

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

TEST_CASE("A002: a stream of twenty windows stays within constant bytes and answers as if the cache alone had been read") {
  // With one layer a token's key and value depend on the token and its position only, so that what is in the cache can be
  // computed apart: the sinks and the window, one directly after the other.
  const TinyShape one{.layers = 1, .type = skald::DType::f32};
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

TEST_CASE("A006: layers share one budget, merges and drops are counted") {
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
