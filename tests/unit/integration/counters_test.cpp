// What a step costs and what a session holds, counted.
#include <algorithm>
#include <fstream>
#include <functional>
#include <limits>

#include <skald/generate/sampler.hpp>
#include <skald/model/adapter.hpp>
#include <skald/model/plan.hpp>

#include "helpers.hpp"
#include "malloc_counter.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/recurrent_model.hpp"

#if SKALD_TEST_COUNTS_MALLOC
#include <malloc.h>
#endif

using namespace skald_test;

namespace {

constexpr int windows = 12;
constexpr int steps_per_window = 8;  // twelve windows cross a page border of 64 tokens

struct Counted {
  std::uint64_t operator_new = 0;                                            // all windows together
  std::uint64_t fewest_mallocs = std::numeric_limits<std::uint64_t>::max();  // of one window
};

/// Runs `step` until it is warm, then counts.
Counted count_steps(int warm_up, const std::function<void()>& step) {
  for (int i = 0; i < warm_up; ++i) step();
  Counted counted;
  const AllocationCounter allocations;
  for (int w = 0; w < windows; ++w) {
    const auto before = malloc_calls();
    for (int i = 0; i < steps_per_window; ++i) step();
    counted.fewest_mallocs = std::min(counted.fewest_mallocs, malloc_calls() - before);
  }
  counted.operator_new = allocations.calls();
  return counted;
}

/// Bytes of address space that the process has mapped now, 0 where nobody says.
std::size_t mapped_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::size_t pages = 0;
  statm >> pages;
  return pages * 4096;
}

skald::SamplerOptions everything() {
  skald::SamplerOptions options;
  options.repeat_penalty = 1.1F;
  options.frequency_penalty = 0.1F;
  options.presence_penalty = 0.1F;
  options.dry_multiplier = 0.8F;
  options.typical_p = 0.95F;
  options.logit_bias = {{5, 0.5F}};
  return options;
}

}  // namespace

TEST_CASE("integration.counters: a decoding step with sampling allocates nothing, also across a page border") {
  for (const auto type : {skald::DType::f32, skald::DType::q8_0, skald::DType::q4_k})
    for (const int threads : {1, 4}) {
      const auto model = tiny_model({.vocabulary = 2000, .type = type}, {.backend = cpu_with(threads)});
      const skald::Decoder decoder(model, {.context = 512});
      skald::SamplerOptions greedy;
      greedy.temperature = 0.0F;
      for (const auto& options : {greedy, skald::SamplerOptions{}, everything()}) {
        auto sampler = skald::make_sampler(options);
        INFO(skald::to_string(type) << ", " << threads << " threads, " << sampler.describe());
        auto session = decoder.new_session();
        skald::TokenId token = 1;
        const auto counted = count_steps(40, [&] {
          const auto logits = session.forward({&token, 1});
          token = sampler.sample(logits.last(), session);
        });
        CHECK(session.length() == 40 + windows * steps_per_window);
        CHECK(counted.operator_new == 0);
        CHECK(counted.fewest_mallocs == 0);
      }
    }
}

TEST_CASE("integration.counters: a step of eight sessions allocates nothing") {
  for (const int threads : {1, 4}) {
    INFO(threads << " threads");
    const auto model = tiny_model({.type = skald::DType::q4_0}, {.backend = cpu_with(threads)});
    const skald::Decoder decoder(model, {.context = 256, .parallel = 8});
    std::vector<skald::Session> sessions;
    std::vector<skald::TokenId> tokens(8, 2);
    for (int i = 0; i < 8; ++i) {
      sessions.push_back(decoder.new_session());
      (void)sessions.back().forward(some_tokens(3 + 5 * i, 320));
    }
    std::vector<skald::SamplerChain> samplers(8, skald::make_sampler({}));
    skald::Batch batch;
    const auto counted = count_steps(40, [&] {
      batch.clear();
      for (std::size_t s = 0; s < 8; ++s) batch.add(sessions[s], {&tokens[s], 1});
      const auto logits = decoder.forward(batch);
      for (std::size_t s = 0; s < 8; ++s) tokens[s] = samplers[s].sample(logits.last(s), sessions[s]);
    });
    CHECK(counted.operator_new == 0);
    CHECK(counted.fewest_mallocs == 0);
  }
}

TEST_CASE("integration.counters: a step of recurrent layers allocates nothing, also at checkpoints and after a fork") {
  for (const auto& architecture : recurrent_architectures()) {
    INFO(architecture);
    const auto model = recurrent_model(architecture, skald::DType::q8_0, {.backend = cpu_with(2)});
    const skald::Decoder decoder(model, {.recurrent = {.checkpoint_interval = 16, .checkpoints = 2}, .context = 512});
    auto first = decoder.new_session();
    const skald::TokenId token = 7;
    (void)first.forward(some_tokens(40, recurrent_vocabulary));
    auto session = first.fork();
    const auto counted = count_steps(40, [&] { (void)session.forward({&token, 1}); });
    CHECK(counted.operator_new == 0);
    CHECK(counted.fewest_mallocs == 0);
  }
}

TEST_CASE("integration.counters: a step of sessions with adapters allocates nothing, and unloading gives memory back") {
  const auto change = [](const std::string& tensor, std::int64_t outputs, std::int64_t inputs, std::int32_t rank) {
    skald::AdapterDelta delta;
    delta.tensor = tensor;
    delta.outputs = outputs;
    delta.inputs = inputs;
    delta.rank = rank;
    delta.first.assign(static_cast<std::size_t>(rank * inputs), 0.02F);
    delta.second.assign(static_cast<std::size_t>(rank * outputs), -0.01F);
    return delta;
  };
  const auto model = tiny_model({.type = skald::DType::q8_0}, {.backend = cpu_with(2)});
  const skald::AdapterFile small{"small", {change("blk.0.attn_q.weight", 256, 256, 4)}};
  const skald::AdapterFile wide{
      "wide", {change("blk.1.ffn_down.weight", 256, 512, 32), change("output.weight", 320, 256, 8)}};
  {
    const skald::Decoder decoder(model, {.context = 256, .parallel = 3});
    std::vector<skald::ScaledAdapter> loaded{{skald::Adapter::load(small, model), 1.0F},
                                             {skald::Adapter::load(wide, model), 0.5F}};
    CHECK(loaded[1].adapter.bytes() >= (32U * 768 + 8 * 576) * sizeof(float));
    std::vector<skald::Session> sessions;
    for (int i = 0; i < 3; ++i) sessions.push_back(decoder.new_session());
    sessions[1].set_adapters({loaded[0]});
    sessions[2].set_adapters(loaded);
    skald::Batch batch;
    const skald::TokenId token = 7;
    const auto counted = count_steps(40, [&] {
      batch.clear();
      for (auto& session : sessions) batch.add(session, {&token, 1});
      (void)decoder.forward(batch);
    });
    CHECK(counted.operator_new == 0);
    CHECK(counted.fewest_mallocs == 0);
  }
  // Loaded and dropped a hundred times, it would hold a hundred times its bytes if anything stayed.
  const auto held = skald::Adapter::load(wide, model);
  const auto resting = mapped_bytes();
  {
    std::vector<skald::Adapter> many;
    for (int i = 0; i < 100; ++i) many.push_back(skald::Adapter::load(wide, model));
    if (resting > 0) CHECK(mapped_bytes() >= resting + 80 * held.bytes());
  }
  for (int i = 0; i < 100; ++i) (void)skald::Adapter::load(wide, model);
  CHECK(mapped_bytes() <= resting + 20 * held.bytes());
}

TEST_CASE("integration.counters: a step that evicts allocates nothing") {
  const auto model = tiny_model({.type = skald::DType::q8_0}, {.backend = cpu_with(1)});
  const skald::Decoder decoder(model, {.kv = {.eviction = "recent_pages:sinks=1,recent=2", .page_tokens = 16}});
  auto session = decoder.new_session();
  const skald::TokenId token = 7;
  const auto counted = count_steps(100, [&] { (void)session.forward({&token, 1}); });
  CHECK(decoder.counters().evicted_pages > 10);
  CHECK(counted.operator_new == 0);
  CHECK(counted.fewest_mallocs == 0);
}

TEST_CASE("integration.counters: a session holds the bytes that the plan says") {
  for (const auto* format : {"f32", "f16"})
    for (const int page_tokens : {16, 64, 256}) {
      INFO(format << ", pages of " << page_tokens);
      const auto model = tiny_model({.type = skald::DType::q8_0});
      const skald::Decoder decoder(model, {.kv = {.format = format, .page_tokens = page_tokens}, .context = 512});
      const auto dtype = std::string(format) == "f32" ? skald::DType::f32 : skald::DType::f16;
      const auto planned = [&](std::int64_t tokens) {
        return skald::plan(model.spec(), skald::DType::q8_0,
                           {.context = tokens, .sequences = 1, .kv_type = dtype, .page_tokens = page_tokens})
            .kv;
      };
      auto session = decoder.new_session();
      CHECK(session.bytes() == 0);
      for (const std::int64_t more : {1, 15, 1, 60, 200}) {
        (void)session.forward(some_tokens(more, 320), skald::LogitsWanted::none);
        CHECK(session.bytes() == planned(session.length()));
        CHECK(decoder.counters().kv_page_bytes_used == planned(session.length()));
      }
      session.truncate(17);
      CHECK(session.bytes() == planned(17));
    }
}

TEST_CASE("integration.counters: the counters count") {
  const auto model = tiny_model({});
  const skald::Decoder decoder(model, {.batch_tokens = 16});
  auto a = decoder.new_session();
  auto b = decoder.new_session();
  skald::Batch batch;
  const auto tokens = some_tokens(40, 320);
  batch.add(a, tokens, skald::LogitsWanted::all).add(b, std::span(tokens).first(3));
  (void)decoder.forward(batch);
  const auto counters = decoder.counters();
  CHECK(counters.tokens == 43);
  CHECK(counters.logits_rows == 41);
  CHECK(counters.forward_passes == 3);  // 43 rows in cuts of 16
  CHECK(counters.evicted_pages == 0);
  // Two layers with two heads each, one page of 64 tokens per session.
  CHECK(counters.kv_pages_used == 8);
  CHECK(counters.kv_pages_peak == 8);
}

TEST_CASE("integration.counters: freeing all sessions gives the whole pool back") {
  const auto model = tiny_model({});
  const skald::Decoder decoder(model, {.kv = {.page_tokens = 16}, .context = 256});
  const auto used = [&] { return decoder.counters().kv_pages_used; };
  {
    auto session = decoder.new_session();
    (void)session.forward(some_tokens(100, 320));
    auto fork = session.fork();
    auto second = fork.fork();
    (void)fork.forward(some_tokens(30, 320, 8));
    second.truncate(50);
    (void)second.forward(some_tokens(9, 320, 9));
    auto restored = decoder.new_session();
    restored.restore(fork.snapshot());
    restored.restore(session.snapshot());

    // A cancelled and a refused pass leave nothing behind.
    const auto before = used();
    std::stop_source stop;
    stop.request_stop();
    CHECK_THROWS_AS(second.forward(some_tokens(60, 320), skald::LogitsWanted::last, stop.get_token()),
                    skald::CancelledError);
    const std::vector<skald::TokenId> bad{1, 2, 5000};
    CHECK_THROWS_AS(second.forward(bad), skald::UsageError);
    CHECK(used() == before);

    // A token tree that is never accepted.
    const std::vector<skald::TokenId> tree{1, 2, 3};
    const std::vector<std::int32_t> parents{-1, 0, 0};
    skald::Batch batch;
    batch.add_tree(restored, tree, parents);
    (void)decoder.forward(batch);
    auto moved = std::move(fork);
    session = std::move(second);
    CHECK(used() > 0);
  }
  CHECK(used() == 0);
  CHECK(decoder.counters().kv_page_bytes_used == 0);
  // The whole capacity can be used again, twice.
  for (int i = 0; i < 2; ++i) {
    std::vector<skald::Session> all;
    for (int s = 0; s < 4; ++s) {
      all.push_back(decoder.new_session());
      (void)all.back().forward(some_tokens(256, 320), skald::LogitsWanted::none);
    }
  }
  CHECK(used() == 0);
}
