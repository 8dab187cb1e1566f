// Sequences with common pages read them together.
#include <map>

#include <skald/decoder/prefix_cache.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.type = skald::DType::q8_0};

/// Logits of a step of all sessions in one batch, a row each.
Rows together(const skald::Decoder<>& decoder, std::vector<skald::Session>& sessions, skald::TokenId token) {
  skald::Batch batch;
  for (std::size_t i = 0; i < sessions.size(); ++i) {
    const auto own = static_cast<skald::TokenId>(token + static_cast<skald::TokenId>(i));
    batch.add(sessions[i], {&own, 1});
  }
  return copy(decoder.forward(batch));
}

std::uint64_t bytes_of_step(const skald::Decoder<>& decoder, std::vector<skald::Session>& sessions) {
  const auto before = decoder.counters().kv_bytes_read;
  (void)together(decoder, sessions, 7);
  return decoder.counters().kv_bytes_read - before;
}

}  // namespace

TEST_CASE("integration.shared_prefix: sequences on a tree of prefixes compute together what each computes alone, bit for bit") {
  for (const int threads : {1, 2, 4})
    for (const std::string format : {"f16", "f32"}) {
      INFO(threads << " threads, " << format);
      const auto model = tiny_model(shape, {.backend = cpu_with(threads)});
      const skald::Decoder decoder(model, {.kv = {.format = format}, .context = 2048, .parallel = 8});
      auto root = decoder.new_session();
      (void)root.forward(some_tokens(700, shape.vocabulary));
      auto branch = root.fork();
      (void)branch.forward(some_tokens(600, shape.vocabulary, 2));
      std::vector<skald::Session> sessions;
      std::vector<skald::Session> apart;
      for (unsigned i = 0; i < 6; ++i) {
        auto session = (i < 3 ? root : branch).fork();
        (void)session.forward(some_tokens(5 + 40 * static_cast<std::int64_t>(i), shape.vocabulary, 10 + i));
        apart.push_back(session.fork());
        sessions.push_back(std::move(session));
      }
      for (skald::TokenId step = 0; step < 3; ++step) {
        const auto before = decoder.counters().kv_bytes_shared;
        const auto rows = together(decoder, sessions, step);
        CHECK(decoder.counters().kv_bytes_shared > before);
        Rows expected;
        for (std::size_t i = 0; i < apart.size(); ++i) {
          const auto row = next_row(apart[i], static_cast<skald::TokenId>(step + static_cast<skald::TokenId>(i)));
          expected.insert(expected.end(), row.begin(), row.end());
        }
        CHECK(same_bits(rows, expected));
      }
    }
}

TEST_CASE("integration.shared_prefix: bytes read of a prefix in a step do not depend on how many sequences have it") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, {.context = 2048, .parallel = 16});
  auto root = decoder.new_session();
  (void)root.forward(some_tokens(1024, shape.vocabulary));
  std::map<std::size_t, std::uint64_t> bytes;
  for (const std::size_t count : {2u, 4u, 16u}) {
    std::vector<skald::Session> sessions;
    for (std::size_t i = 0; i < count; ++i) sessions.push_back(root.fork());
    bytes[count] = bytes_of_step(decoder, sessions);
  }
  // Two layers, two heads, keys and values of 64 halves: the prefix once, and a token of its own for each sequence.
  const std::uint64_t token = 2 * 2 * 2 * 64 * 2;
  for (const auto& [count, read] : bytes) CHECK(read == (1024 + count) * token);
}

TEST_CASE("integration.shared_prefix: requests on a registered system prompt hold none of it themselves and answer as on the whole text") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, {.context = 2048, .parallel = 8});
  skald::PrefixCache cache(decoder);
  const auto system = some_tokens(512, shape.vocabulary);
  {
    auto session = decoder.new_session();
    (void)session.forward(system);
    cache.set_name("system", cache.insert(session));
  }
  const auto pages = decoder.counters().kv_pages_used;
  CHECK(pages == 4 * 8);
  std::vector<skald::Session> sessions;
  std::vector<std::vector<skald::TokenId>> prompts;
  for (unsigned i = 0; i < 5; ++i) {
    auto prompt = system;
    const auto own = some_tokens(9, shape.vocabulary, 30 + i);
    prompt.insert(prompt.end(), own.begin(), own.end());
    prompts.push_back(prompt);
    sessions.push_back(cache.new_session(prompt));
    CHECK(sessions.back().length() == 512);
    (void)sessions.back().forward(own, skald::LogitsWanted::none);
  }
  CHECK(decoder.counters().kv_pages_used == pages + 5 * 4);
  const auto read = decoder.counters().kv_bytes_read;
  const auto rows = together(decoder, sessions, 3);
  // In two layers with two heads of 64 and 64 halves: the system prompt once, ten tokens of each request.
  CHECK(decoder.counters().kv_bytes_read - read == (512 + 5 * 10) * 2 * 2 * 2 * 64 * 2);
  CHECK(decoder.counters().kv_bytes_shared > 0);
  Rows expected;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    auto session = decoder.new_session();
    prompts[i].push_back(static_cast<skald::TokenId>(3 + i));
    const auto row = copy(session.forward(prompts[i]));
    expected.insert(expected.end(), row.begin(), row.end());
  }
  CHECK(same_bits(rows, expected));
}

TEST_CASE("integration.shared_prefix: a policy that drops tokens shares what is left in common") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  for (const std::string eviction : {"h2o:budget=600", "window:sinks=4,window=700"}) {
    INFO(eviction);
    const skald::Decoder decoder(model, {.kv = {.eviction = eviction}, .context = 2048, .parallel = 8});
    auto root = decoder.new_session();
    (void)root.forward(some_tokens(1000, shape.vocabulary));
    std::vector<skald::Session> sessions;
    std::vector<skald::Session> apart;
    for (int i = 0; i < 4; ++i) {
      sessions.push_back(root.fork());
      apart.push_back(root.fork());
    }
    for (skald::TokenId step = 0; step < 60; ++step) {
      const auto rows = together(decoder, sessions, step);
      Rows expected;
      for (std::size_t i = 0; i < apart.size(); ++i) {
        const auto row = next_row(apart[i], static_cast<skald::TokenId>(step + static_cast<skald::TokenId>(i)));
        expected.insert(expected.end(), row.begin(), row.end());
      }
      REQUIRE(same_bits(rows, expected));
    }
    CHECK(decoder.counters().kv_bytes_shared > 0);
  }
}
