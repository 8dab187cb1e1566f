// Keys and values in pages of one pool (PagedAttention, Kwon et al. 2023, arXiv 2309.06180).
#include <skald/core/random.hpp>
#include <skald/state/paged_kv.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.type = skald::DType::q8_0};
constexpr std::int64_t page = 16;
constexpr std::uint64_t groups = 4;  // two layers with two heads

skald::DecoderOptions small_pages(std::int64_t capacity = 0) {
  return {.kv = {.page_tokens = page, .capacity_tokens = capacity}, .context = 512, .parallel = 8};
}

Rows all_of(const skald::Decoder<>& decoder, std::span<const skald::TokenId> tokens) {
  auto session = decoder.new_session();
  return copy(session.forward(tokens, skald::LogitsWanted::all));
}

}  // namespace

TEST_CASE("integration.paged: unused slots never exceed a page of a sequence's head group, and nobody else holds pages") {
  const auto model = tiny_model({.dim = 64, .heads = 2, .kv_heads = 2, .head_dim = 32, .ffn = 64}, {.backend = cpu_with(1)});
  const skald::Decoder decoder(model, small_pages());
  std::vector<skald::Session> sessions;
  for (int i = 0; i < 5; ++i) sessions.push_back(decoder.new_session());
  skald::CounterRandom random(4, 0, 0);
  for (int step = 0; step < 120; ++step) {
    auto& session = sessions[static_cast<std::size_t>(random.uniform() * 5)];
    const auto count = static_cast<std::int64_t>(random.uniform() * 60);
    if (session.length() + count > 500) session.clear();
    else if (step % 5 == 4) session.truncate(std::max<std::int64_t>(0, session.length() - count));
    else if (count > 0) (void)session.forward(some_tokens(count, shape.vocabulary), skald::LogitsWanted::none);
    std::uint64_t pages = 0;
    for (const auto& each : sessions)
      for (int l = 0; l < each.state().layer_count(); ++l) {
        const auto& kv = static_cast<const skald::PagedKv&>(*each.state().layer(l));
        for (int g = 0; g < kv.groups(); ++g) {
          const auto slots = static_cast<std::int64_t>(kv.pages(g).size()) * page;
          REQUIRE(slots - each.length() < page);
          REQUIRE(slots >= each.length());
          pages += kv.pages(g).size();
        }
      }
    REQUIRE(decoder.counters().kv_pages_used == pages);
  }
  sessions.clear();
  CHECK(decoder.counters().kv_pages_used == 0);
}

TEST_CASE("integration.paged: samples of one prompt hold it once and copy only the page in which they part") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, small_pages());
  constexpr std::uint64_t samples = 5;
  for (const std::int64_t partial : {0, 7}) {
    INFO(partial << " tokens in the last page");
    const auto prompt = some_tokens(12 * page + partial, shape.vocabulary);
    auto first = decoder.new_session();
    (void)first.forward(prompt, skald::LogitsWanted::none);
    const auto used = [&] { return decoder.counters().kv_pages_used; };
    const auto of_prompt = used();
    CHECK(of_prompt == groups * (12 + (partial > 0 ? 1 : 0)));
    std::vector<skald::Session> all;
    all.push_back(std::move(first));
    while (all.size() < samples) all.push_back(all.front().fork());
    CHECK(used() == of_prompt);
    for (std::size_t i = 0; i < samples; ++i) (void)next_row(all[i], static_cast<skald::TokenId>(i));
    CHECK(used() == groups * (12 + samples));  // a page of its own for each, whole pages are there once
    for (std::size_t i = 0; i < samples; ++i) {
      auto text = prompt;
      text.push_back(static_cast<skald::TokenId>(i));
      text.push_back(9);
      const auto alone = all_of(decoder, text);
      CHECK(same_bits(next_row(all[i], 9), Rows(alone.end() - shape.vocabulary, alone.end())));
    }
  }
  CHECK(decoder.counters().kv_pages_used == 0);
}

TEST_CASE("integration.paged: pages scattered over the pool give the logits of one run of memory, bit for bit") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto tokens = some_tokens(240, shape.vocabulary);
  auto options = small_pages();
  options.kv.page_tokens = 256;  // all tokens of a head lie in one page
  const auto expected = all_of(skald::Decoder(model, options), tokens);
  for (const std::int32_t page_tokens : {16, 32, 64}) {
    options.kv.page_tokens = page_tokens;
    const skald::Decoder decoder(model, options);
    // Sessions that come, grow in turn and go leave their pages in disorder.
    std::vector<skald::Session> others;
    for (int i = 0; i < 4; ++i) others.push_back(decoder.new_session());
    for (int round = 0; round < 3; ++round)
      for (auto& other : others) (void)other.forward(some_tokens(50, shape.vocabulary), skald::LogitsWanted::none);
    others[2].clear();
    others[0].clear();
    auto session = decoder.new_session();
    Rows rows;
    for (std::size_t i = 0; i < tokens.size(); i += 40) {
      const auto more = copy(session.forward(std::span(tokens).subspan(i, 40), skald::LogitsWanted::all));
      rows.insert(rows.end(), more.begin(), more.end());
      (void)others[1].forward(some_tokens(11, shape.vocabulary), skald::LogitsWanted::none);
    }
    const auto& pages = static_cast<const skald::PagedKv&>(*session.state().layer(0)).pages(0);
    bool in_order = true;
    for (std::size_t i = 1; i < pages.size(); ++i) in_order = in_order && pages[i] == pages[i - 1] + 1;
    CHECK_FALSE(in_order);
    CHECK(same_bits(rows, expected));
  }
}

TEST_CASE("integration.paged: when the pool is used up, a session that is swapped out or computed again goes on to the same bits") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, small_pages(12 * page));
  const auto a_tokens = some_tokens(100, shape.vocabulary, 1);
  const auto b_tokens = some_tokens(160, shape.vocabulary, 2);
  const skald::Decoder roomy(model, small_pages());
  const auto tail = [&](std::span<const skald::TokenId> tokens, std::size_t from) {
    const auto rows = all_of(roomy, tokens);
    return Rows(rows.begin() + static_cast<std::ptrdiff_t>(from) * shape.vocabulary, rows.end());
  };
  for (const bool swaps : {true, false}) {
    CHECK(decoder.counters().kv_pages_used == 0);
    auto a = decoder.new_session();
    auto b = decoder.new_session();
    (void)a.forward(std::span(a_tokens).first(80), skald::LogitsWanted::none);
    (void)b.forward(std::span(b_tokens).first(90), skald::LogitsWanted::none);
    CHECK_THROWS_AS(b.forward(std::span(b_tokens).subspan(90)), skald::OutOfMemoryError);
    const auto kept = static_cast<std::size_t>(b.length());
    const auto out = swaps ? a.snapshot() : std::vector<std::byte>{};
    a.clear();
    CHECK(same_bits(copy(b.forward(std::span(b_tokens).subspan(kept), skald::LogitsWanted::all)), tail(b_tokens, kept)));
    b.clear();
    if (swaps) a.restore(out);
    else (void)a.forward(std::span(a_tokens).first(80), skald::LogitsWanted::none);
    CHECK(same_bits(copy(a.forward(std::span(a_tokens).subspan(80), skald::LogitsWanted::all)), tail(a_tokens, 80)));
  }
  CHECK(decoder.counters().kv_pages_used == 0);
}

TEST_CASE("integration.paged: batches of more sessions than were expected are cut and change no bit") {
  const auto model = tiny_model({}, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, {.kv = {.page_tokens = 16, .capacity_tokens = 512}, .context = 64, .parallel = 2});
  const auto tokens = some_tokens(20, 300);
  std::vector<skald::Session> sessions;
  skald::Batch batch;
  for (std::size_t i = 0; i < 5; ++i) sessions.push_back(decoder.new_session());
  for (std::size_t i = 0; i < 5; ++i) batch.add(sessions[i], std::span(tokens).first(10 + i));
  const auto rows = decoder.forward(batch);
  CHECK(decoder.counters().forward_passes == 3);
  std::vector<Rows> together;
  for (std::size_t i = 0; i < 5; ++i) together.emplace_back(rows.last(i).begin(), rows.last(i).end());
  for (std::size_t i = 0; i < 5; ++i) {
    auto alone = decoder.new_session();
    CHECK(same_bits(copy(alone.forward(std::span(tokens).first(10 + i))), together[i]));
  }
}
