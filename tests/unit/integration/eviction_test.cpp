// Eviction in the whole pipeline.
#include <stdexcept>

#include <skald/state/policies.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

/// Drops other pages in each layer and group, depending only on the view.
struct Uneven {
  [[nodiscard]] static std::string name() { return "uneven"; }
  [[nodiscard]] static skald::ComponentTraits traits() { return {.drops_tokens = true, .lossy = true}; }
  static void evict(const skald::EvictionView& view, std::span<std::uint8_t> drop) {
    for (std::size_t i = 0; i + 2 < drop.size(); ++i) {
      const auto page = view.pages[i].first_token / view.page_tokens;
      if ((page + view.layer + 2 * view.group) % 3 == 0) drop[i] = 1;
    }
  }
};

/// Declares what it is told to.
struct Declares {
  skald::ComponentTraits declared;
  [[nodiscard]] static std::string name() { return "declares"; }
  [[nodiscard]] skald::ComponentTraits traits() const { return declared; }
  static void evict(const skald::EvictionView&, std::span<std::uint8_t>) {}
};

/// Fails at the n-th call.
struct Failing {
  int* calls;
  int fail_at;
  bool drops_last;
  [[nodiscard]] static std::string name() { return "failing"; }
  [[nodiscard]] static skald::ComponentTraits traits() { return {.drops_tokens = true, .lossy = true}; }
  void evict(const skald::EvictionView& view, std::span<std::uint8_t> drop) const {
    if (drop.size() > 2) drop[0] = 1;
    if (++*calls != fail_at) return;
    if (drops_last) drop.back() = 1;
    else throw std::runtime_error("the policy of layer " + std::to_string(view.layer) + " failed");
  }
};

template <class P>
using With = skald::Decoder<skald::BackendInterface, P, skald::AnyKvFormat>;

}  // namespace

TEST_CASE("integration.eviction: a budget that is never reached changes no bit") {
  const TinyShape shape{.type = skald::DType::q8_0};
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto tokens = some_tokens(300, shape.vocabulary);
  auto plain = skald::Decoder(model).new_session();
  const auto expected = chunked(plain, tokens, 300);
  const skald::Decoder evicting(model, {.kv = {.eviction = "recent_pages:sinks=1,recent=8"}});
  for (const std::size_t chunk : {300u, 7u}) {
    auto session = evicting.new_session();
    CHECK(same_bits(chunked(session, tokens, chunk), expected));
    CHECK(session.bytes() == plain.bytes());
  }
  CHECK(evicting.counters().evicted_pages == 0);
}

TEST_CASE("integration.eviction: chunks, batches and threads change no bit, and memory stays bounded") {
  const TinyShape shape{.type = skald::DType::q4_0};
  const auto tokens = some_tokens(300, shape.vocabulary);
  Rows expected;
  for (const int threads : {1, 4}) {
    const auto model = tiny_model(shape, {.backend = cpu_with(threads)});
    const skald::DecoderOptions options{.kv = {.eviction = "recent_pages:sinks=1,recent=3", .page_tokens = 16}};
    const skald::Decoder decoder(model, options);
    auto whole = decoder.new_session();
    const auto rows = chunked(whole, tokens, 300);
    if (expected.empty()) expected = rows;
    CHECK(same_bits(rows, expected));
    // Four groups (two layers, two heads) of at most four full pages and the one being filled.
    const auto page_bytes = decoder.counters().kv_page_bytes_used / decoder.counters().kv_pages_used;
    CHECK(whole.bytes() <= 4 * 5 * page_bytes);
    CHECK(decoder.counters().evicted_pages == 4 * (300 / 16 - 4));
    CHECK(decoder.counters().kv_pages_peak <= 4 * 6);
    for (const std::size_t chunk : {1u, 7u, 64u}) {
      INFO(threads << " threads, chunks of " << chunk);
      auto session = decoder.new_session();
      CHECK(same_bits(chunked(session, tokens, chunk), expected));
    }
    // Beside other sequences.
    auto a = decoder.new_session();
    auto b = decoder.new_session();
    Rows together;
    skald::Batch batch;
    for (std::size_t i = 0; i < 300; i += 30) {
      batch.clear();
      batch.add(b, std::span(tokens).subspan(i, 11)).add(a, std::span(tokens).subspan(i, 30), skald::LogitsWanted::all);
      const auto logits = decoder.forward(batch);
      for (std::int64_t r = 0; r < logits.rows(1); ++r)
        together.insert(together.end(), logits.row(1, r).begin(), logits.row(1, r).end());
    }
    CHECK(same_bits(together, expected));
  }
}

TEST_CASE("integration.eviction: heads that keep different pages are chunked, forked and restored alike") {
  const TinyShape shape{.type = skald::DType::q8_0};
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const With<Uneven> decoder(model, Uneven{}, skald::AnyKvFormat("f16"), {.kv = {.page_tokens = 16}});
  const auto tokens = some_tokens(300, shape.vocabulary);
  auto whole = decoder.new_session();
  const auto expected = chunked(whole, tokens, 300);
  for (const std::size_t chunk : {1u, 7u, 64u}) {
    auto session = decoder.new_session();
    CHECK(same_bits(chunked(session, tokens, chunk), expected));
  }
  const auto tail = [&](skald::Session& session, std::size_t from) {
    const auto rows = chunked(session, std::span(tokens).subspan(from), 13);
    return same_bits(rows,
                     Rows(expected.begin() + static_cast<std::ptrdiff_t>(from) * shape.vocabulary, expected.end()));
  };
  auto half = decoder.new_session();
  (void)chunked(half, std::span(tokens).first(150), 150);
  auto fork = half.fork();
  auto restored = decoder.new_session();
  restored.restore(half.snapshot());
  (void)half.forward(some_tokens(70, shape.vocabulary, 12));
  CHECK(tail(fork, 150));
  CHECK(tail(restored, 150));
}

TEST_CASE("integration.eviction: going back behind an eviction is refused, up to it allowed") {
  const TinyShape shape{.type = skald::DType::q8_0};
  const auto model = tiny_model(shape);
  const skald::Decoder decoder(model, {.kv = {.eviction = "recent_pages:sinks=1,recent=2", .page_tokens = 16}});
  auto session = decoder.new_session();
  const auto tokens = some_tokens(200, shape.vocabulary);
  (void)session.forward(std::span(tokens).first(170));
  CHECK_THROWS_AS(session.truncate(100), skald::UsageError);
  CHECK(session.length() == 170);
  session.truncate(163);
  auto fresh = decoder.new_session();
  (void)fresh.forward(std::span(tokens).first(163));
  CHECK(same_bits(next_row(session, 4), next_row(fresh, 4)));
}

TEST_CASE("integration.eviction: compositions that cannot work are refused when the decoder is made") {
  const auto model = tiny_model(skald_test::TinyShape{});
  const auto refused = [&](skald::ComponentTraits traits, const std::string& reason) {
    try {
      const With<Declares> decoder(model, Declares{traits}, skald::AnyKvFormat("f16"));
      FAIL("accepted");
    } catch (const skald::IncompatibleError& error) {
      CHECK(std::string(error.what()).find("declares") != std::string::npos);
      CHECK(std::string(error.what()).find(reason) != std::string::npos);
    }
  };
  refused({.needs_scores = true, .drops_tokens = true, .score_window = 65}, "scores");
  CHECK_NOTHROW(With<Declares>(model, Declares{{.needs_scores = true, .drops_tokens = true}}, skald::AnyKvFormat("f16")));
  refused({.reorders_positions = true}, "rotated");
  CHECK_NOTHROW(With<Declares>(model, Declares{{.drops_tokens = true}}, skald::AnyKvFormat("f16")));
  CHECK_THROWS_AS(skald::Decoder(model, {.kv = {.eviction = "h3o"}}), skald::UsageError);
  CHECK_THROWS_AS(skald::Decoder(model, {.kv = {.eviction = "recent_pages:recent=0"}}), skald::UsageError);
  CHECK_THROWS_AS(skald::Decoder(model, {.kv = {.eviction = "recent_pages:typo=1"}}), skald::UsageError);
  CHECK_THROWS_AS(skald::Decoder(model, {.kv = {.heads_per_group = 3}}), skald::IncompatibleError);
  CHECK_THROWS_AS(skald::Decoder(model, {.kv = {.format = "q3"}}), skald::Error);
  CHECK_THROWS_AS(skald::Decoder(model, {.kv = {.page_tokens = 48}}), skald::UsageError);
  CHECK_THROWS_AS(skald::Decoder(model, {.attention = "sparse"}), skald::UsageError);

  // Scores are counted by slot: they cannot be had while slots disappear.
  const skald::Decoder evicting(model, {.kv = {.eviction = "recent_pages"}});
  auto session = evicting.new_session();
  skald::AttentionScores scores;
  skald::Batch batch;
  batch.add(session, some_tokens(4, 320));
  CHECK_THROWS_AS(evicting.forward(batch, {.scores = &scores}), skald::IncompatibleError);
  CHECK(session.length() == 0);
  // The accepted path of a tree may pass a page border, where the policy should have been asked.
  batch.clear();
  batch.add_tree(session, some_tokens(2, 320), std::vector<std::int32_t>{-1, 0});
  CHECK_THROWS_AS(evicting.forward(batch), skald::IncompatibleError);
  CHECK(session.state().pending() == 0);
}

TEST_CASE("integration.eviction: a policy that fails leaves every session at its last committed step") {
  const TinyShape shape{.type = skald::DType::q8_0};
  const auto model = tiny_model(shape);
  const auto tokens = some_tokens(200, shape.vocabulary);
  for (const bool drops_last : {false, true})
    for (const int fail_at : {1, 2, 3, 4, 5, 30, 31, 33}) {
      INFO("call " << fail_at << (drops_last ? ", drops the newest page" : ", throws"));
      int calls = 0;
      int never = 0;
      const skald::DecoderOptions options{.kv = {.page_tokens = 16}};
      const With<Failing> decoder(model, Failing{&calls, fail_at, drops_last}, skald::AnyKvFormat("f16"), options);
      const With<Failing> sound(model, Failing{&never, 0, false}, skald::AnyKvFormat("f16"), options);
      auto session = decoder.new_session();
      auto other = decoder.new_session();
      skald::Batch batch;
      batch.add(session, std::span(tokens).first(130)).add(other, std::span(tokens).first(40));
      if (drops_last) CHECK_THROWS_AS(decoder.forward(batch), skald::UsageError);
      else CHECK_THROWS_AS(decoder.forward(batch), std::runtime_error);
      for (auto* each : {&session, &other}) {
        // The policy works from here on: both go on as if nothing had happened.
        auto fresh = sound.new_session();
        const auto kept = static_cast<std::size_t>(each->length());
        CHECK(each->tokens().size() == kept);
        CHECK((kept % 16 == 0 || kept == 40));
        if (kept > 0) (void)fresh.forward(std::span(tokens).first(kept), skald::LogitsWanted::none);
        CHECK(fresh.bytes() == each->bytes());
        CHECK(same_bits(chunked(*each, std::span(tokens).subspan(kept, 60), 60),
                        chunked(fresh, std::span(tokens).subspan(kept, 60), 60)));
      }
    }
}

TEST_CASE("integration.eviction: an executor that fails while tokens leave loses no work and ends nothing") {
  struct FailsAt {
    int calls = 0;
    int fail_at = 0;
    [[nodiscard]] static int concurrency() { return 4; }
    void run(int n, skald::FunctionRef<void(int)> work) {
      if (++calls == fail_at) throw std::runtime_error("no threads today");
      for (int i = 0; i < n; ++i) work(i);
    }
  };
  const auto executor = std::make_shared<FailsAt>();
  skald::CpuOptions cpu;
  cpu.executor = skald::AnyExecutor(executor);
  const auto tokens = some_tokens(96, 320);
  const auto run = [&](int fail_at) {
    const auto model = tiny_model(skald_test::TinyShape{.layers = 3}, {.backend = skald::make_cpu_backend(cpu)});
    const skald::Decoder decoder(model, {.kv = {.eviction = "window:sinks=4,window=44", .page_tokens = 16}});
    auto session = decoder.new_session();
    (void)session.forward(std::span(tokens).first(63), skald::LogitsWanted::none);
    executor->calls = 0;
    executor->fail_at = fail_at;
    try {
      (void)session.forward(std::span(tokens).subspan(63, 1), skald::LogitsWanted::none);
    } catch (const std::runtime_error&) {
      CHECK(session.length() == 63);
      executor->fail_at = 0;
      (void)session.forward(std::span(tokens).subspan(63, 1), skald::LogitsWanted::none);
    }
    executor->fail_at = 0;
    const auto calls = executor->calls;
    return std::pair(calls, chunked(session, std::span(tokens).subspan(64), 7));
  };
  const auto [calls, expected] = run(0);
  CHECK(calls >= 3);  // the pass, the policy, what it drops
  for (int fail_at = 1; fail_at <= calls; ++fail_at) CHECK(same_bits(run(fail_at).second, expected));
}
