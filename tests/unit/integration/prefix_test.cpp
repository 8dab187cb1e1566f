// Prefixes that are computed once and reused.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <thread>

#include <skald/core/file.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/decoder/speculative_start.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.type = skald::DType::q8_0};

skald::DecoderOptions small_pages(const std::string& eviction = "none") {
  return {.kv = {.eviction = eviction, .page_tokens = 16}, .parallel = 8};
}

using Tokens = std::vector<skald::TokenId>;

Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Tokens document(unsigned seed, std::int64_t count) { return some_tokens(count, shape.vocabulary, seed); }

/// Last logits of a prompt through a cache; remembers the session's state.
Rows ask(skald::PrefixCache& cache, const Tokens& prompt, std::int64_t* reused = nullptr, std::string_view scope = {}) {
  auto session = cache.new_session(prompt, scope);
  if (reused != nullptr) *reused = session.length();
  auto rows = copy(session.forward(std::span(prompt).subspan(static_cast<std::size_t>(session.length()))));
  (void)cache.insert(session, scope);
  return rows;
}

Rows alone(const skald::Decoder<>& decoder, const Tokens& prompt) {
  auto session = decoder.new_session();
  return copy(session.forward(prompt));
}

struct Folder {
  std::string path = (std::filesystem::temp_directory_path() / ("skald_prefix_" + std::to_string(::getpid()))).string();
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
};

}  // namespace

TEST_CASE("integration.prefix: a prompt reuses the documents it shares with an earlier one, bit for bit") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  for (const std::string eviction : {"none", "window:sinks=4,window=60", "h2o:budget=400", "h2o:budget=64"}) {
    INFO(eviction);
    const skald::Decoder decoder(model, small_pages(eviction));
    skald::PrefixCache cache(decoder);
    const auto d1 = document(1, 70);
    const auto d2 = document(2, 45);
    const auto d3 = document(3, 50);
    const auto q = document(4, 9);
    const auto other = document(5, 11);
    std::int64_t reused = -1;
    CHECK(same_bits(ask(cache, d1 + d3 + other, &reused), alone(decoder, d1 + d3 + other)));
    CHECK(reused == 0);
    CHECK(same_bits(ask(cache, d1 + d2 + q, &reused), alone(decoder, d1 + d2 + q)));
    if (eviction == "none") CHECK(reused == 70);
    else CHECK(reused <= 70);
    // The same again: everything but the last token.
    CHECK(same_bits(ask(cache, d1 + d2 + q, &reused), alone(decoder, d1 + d2 + q)));
    if (eviction == "none") CHECK(reused == 123);
    // Longer than anything known: all of it is reused, under evictions too.
    CHECK(same_bits(ask(cache, d1 + d2 + q + other, &reused), alone(decoder, d1 + d2 + q + other)));
    CHECK(reused == 124);
    CHECK(cache.counters().hits >= 1);
  }
}

TEST_CASE("integration.prefix: pages of a prefix exist once, whoever computed it") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, small_pages());
  const auto prefix = document(1, 160);
  {
    skald::PrefixCache cache(decoder);
    (void)ask(cache, prefix + document(2, 16));
    const auto used = [&] { return decoder.counters().kv_pages_used; };
    CHECK(used() == 4 * 11);
    // Computed apart, then remembered: the common pages become one.
    auto apart = decoder.new_session();
    (void)apart.forward(prefix + document(3, 16));
    CHECK(used() == 4 * 22);
    (void)cache.insert(apart);
    apart.clear();
    CHECK(used() == 4 * 12);
    const auto bytes = cache.counters().fast_bytes;
    CHECK(bytes == decoder.counters().kv_page_bytes_used);
    std::vector<skald::Session> sessions;
    for (unsigned i = 0; i < 4; ++i) sessions.push_back(cache.new_session(prefix + document(10 + i, 5)));
    CHECK(used() == 4 * 12);
    CHECK(sessions[0].length() == 160);
  }
  CHECK(decoder.counters().kv_pages_used == 0);
}

TEST_CASE("integration.prefix: what a conversation's turns hold is counted to the page, and stays within the limit") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  for (const std::string eviction : {"none", "window:sinks=4,window=60"}) {
    INFO(eviction);
    const skald::Decoder decoder(model, small_pages(eviction));
    const auto used = [&] { return decoder.counters().kv_page_bytes_used; };
    {
      skald::PrefixCache cache(decoder);
      auto session = decoder.new_session();
      for (unsigned turn = 0; turn < 8; ++turn) {
        (void)session.forward(document(turn, 23));
        (void)cache.insert(session);
      }
      session.clear();
      CHECK(cache.counters().nodes == 8);
      CHECK(cache.counters().fast_bytes == used());
    }
    CHECK(used() == 0);
    const std::size_t limit = std::size_t{200} << 10;
    skald::PrefixCache cache(decoder, {.fast_bytes = limit});
    auto session = decoder.new_session();
    std::size_t most = 0;
    for (unsigned turn = 0; turn < 20; ++turn) {
      (void)session.forward(document(turn, 23));
      (void)cache.insert(session);  // held by its handle until here
      most = std::max<std::size_t>(most, cache.shrink(limit));
      CHECK(cache.counters().fast_bytes <= limit);
    }
    session.clear();
    CHECK(most > limit / 2);
    CHECK(used() == cache.counters().fast_bytes);
  }
}

TEST_CASE("integration.prefix: a hash that is always equal never serves other tokens") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, small_pages());
  skald::PrefixCache cache(decoder, {.hash = [](std::span<const skald::TokenId>) { return std::uint64_t{7}; }});
  for (unsigned round = 0; round < 2; ++round)
    for (unsigned i = 0; i < 6; ++i) {
      const auto prompt = document(i % 3, 40) + document(20 + i, 20);
      std::int64_t reused = -1;
      CHECK(same_bits(ask(cache, prompt, &reused), alone(decoder, prompt)));
      CHECK(reused == (round == 1 ? 59 : i >= 3 ? 40 : 0));
    }
  const auto unknown = document(50, 30);
  CHECK(cache.match(unknown) == 0);
}

TEST_CASE("integration.prefix: scopes are apart, handles pin, names hold, foreign sessions are refused") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, small_pages());
  skald::PrefixCache cache(decoder);
  const auto prompt = document(1, 50);
  (void)ask(cache, prompt, nullptr, "adapter-a");
  CHECK(cache.match(prompt + prompt, "adapter-a") == 50);
  CHECK(cache.match(prompt + prompt, "adapter-b") == 0);
  CHECK(cache.match(prompt + prompt) == 0);

  auto session = decoder.new_session();
  (void)session.forward(prompt);
  auto handle = cache.insert(session);
  CHECK(handle.length() == 50);
  CHECK(handle.tokens() == prompt);
  session.clear();
  (void)cache.shrink(0);
  CHECK(cache.match(prompt + prompt) == 50);
  CHECK(cache.match(prompt + prompt, "adapter-a") == 0);
  cache.set_name("system", handle);
  handle = {};
  (void)cache.shrink(0);
  CHECK(cache.find("system").length() == 50);
  CHECK_FALSE(cache.find("other"));
  CHECK(cache.match(prompt + prompt) == 50);
  cache.set_name("system", {});
  CHECK(cache.shrink(0) == 0);
  CHECK(cache.match(prompt + prompt) == 0);
  CHECK(decoder.counters().kv_pages_used == 0);

  const skald::Decoder second(model, small_pages());
  auto foreign = second.new_session();
  (void)foreign.forward(prompt);
  CHECK_THROWS_AS(cache.insert(foreign), skald::UsageError);
  auto embedded = decoder.new_session();
  skald::Batch batch;
  batch.add_embeddings(embedded, std::vector<float>(256, 0.1F), 1);
  (void)decoder.forward(batch);
  CHECK_THROWS_AS(cache.insert(embedded), skald::UsageError);
  CHECK_THROWS_AS(skald::PrefixCache(decoder, {.replacement = "fifo"}), skald::UsageError);
}

TEST_CASE("integration.prefix: within its time to live a turn's memory stays, after it the pages can be had back") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, small_pages());
  double now = 100;
  skald::PrefixCache cache(decoder, {.clock = [&] { return now; }});
  const auto turn = document(1, 80);
  auto session = cache.new_session(turn);
  (void)session.forward(turn);
  cache.keep_for(session, 5.0);
  session.clear();
  now = 104;
  CHECK(cache.shrink(0) > 0);
  std::int64_t reused = 0;
  CHECK(same_bits(ask(cache, turn + document(2, 7), &reused), alone(decoder, turn + document(2, 7))));
  CHECK(reused == 80);  // only the tool's answer is computed
  now = 106;
  CHECK(cache.shrink(0) == 0);
  CHECK(decoder.counters().kv_pages_used == 0);
}

TEST_CASE("integration.prefix: under pressure the leaf worth least moves to the slow tier first, never a parent before its child") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const Folder folder;
  for (const bool files : {false, true}) {
    const skald::Decoder decoder(model, small_pages());
    skald::PrefixCache cache(decoder, {.slow_bytes = std::size_t{1} << 24, .slow_folder = files ? folder.path : ""});
    const auto shared = document(1, 64);
    const auto often = shared + document(2, 64);
    const auto once = shared + document(3, 64);
    std::map<std::string, Rows> expected;
    expected["often"] = ask(cache, often);
    expected["once"] = ask(cache, once);
    for (int i = 0; i < 5; ++i) (void)ask(cache, often);
    const auto full = cache.counters().fast_bytes;
    const auto held = [&](const Tokens& prompt) { return cache.match(prompt + document(9, 1)); };
    (void)cache.shrink(full - 1);
    CHECK(cache.counters().demoted == 1);
    CHECK(cache.counters().slow_bytes > 0);
    CHECK(held(once) == 128);  // still known
    CHECK(held(often) == 128);
    // It comes back equal.
    std::int64_t reused = 0;
    CHECK(same_bits(ask(cache, once, &reused), expected["once"]));
    CHECK(reused == 127);
    CHECK(cache.counters().promoted == 1);
    // All of it leaves, children first, and returns with its parents.
    CHECK(cache.shrink(0) == 0);
    CHECK(decoder.counters().kv_pages_used == 0);
    if (files) CHECK_FALSE(std::filesystem::is_empty(folder.path));
    CHECK(same_bits(ask(cache, often, &reused), expected["often"]));
    CHECK(reused == 127);
    cache.clear();
    if (files) CHECK(std::filesystem::is_empty(folder.path));
  }
  // Without a slow tier the same leaf is dropped, and what it shares stays.
  const skald::Decoder decoder(model, small_pages());
  skald::PrefixCache cache(decoder);
  const auto shared = document(1, 64);
  for (int i = 0; i < 4; ++i) (void)ask(cache, shared + document(2, 64));
  (void)ask(cache, shared + document(3, 64));
  (void)cache.shrink(cache.counters().fast_bytes - 1);
  CHECK(cache.match(shared + document(3, 64)) == 64);
  CHECK(cache.match(shared + document(2, 64)) == 127);
}

TEST_CASE("integration.prefix: a file of prefixes is restored bit for bit and refused where it does not belong") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const Folder folder;
  const auto path = folder.path + "/prefixes";
  const auto a = document(1, 64) + document(2, 33);
  const auto b = document(1, 64) + document(3, 50);
  for (const std::string eviction : {"none", "h2o:budget=64"}) {
    const skald::Decoder decoder(model, small_pages(eviction));
    {
      skald::PrefixCache cache(decoder);
      (void)ask(cache, a);
      (void)ask(cache, b, nullptr, "scope");
      cache.save(path);
    }
    skald::PrefixCache cache(decoder);
    cache.load(path);
    std::int64_t reused = 0;
    const auto more = a + document(7, 5);
    CHECK(same_bits(ask(cache, more, &reused), alone(decoder, more)));
    CHECK(reused == 97);
    CHECK(same_bits(ask(cache, b + a, &reused, "scope"), alone(decoder, b + a)));
    CHECK(reused == 114);
    auto bytes = skald::read_whole_file(path);
    for (std::size_t i = 0; i < bytes.size(); i += bytes.size() / 50) {
      auto damaged = bytes;
      damaged[i] ^= std::byte{0x20};
      skald::write_file_atomically(path, damaged);
      skald::PrefixCache fresh(decoder);
      CHECK_THROWS_AS(fresh.load(path), skald::Error);
      CHECK(fresh.counters().nodes == 0);
    }
    skald::write_file_atomically(path, bytes);
    auto options = small_pages(eviction);
    options.kv.format = "f32";
    const skald::Decoder other(model, options);
    skald::PrefixCache refused(other);
    CHECK_THROWS_AS(refused.load(path), skald::IncompatibleError);
  }
}

TEST_CASE("integration.prefix: a process killed while it saves leaves the old file or the new one, 100 times of 100") {
  const auto model = tiny_model(shape, {.backend = serial_cpu()});
  const Folder folder;
  const auto path = folder.path + "/session";
  const skald::Decoder decoder(model, small_pages());
  auto first = decoder.new_session();
  (void)first.forward(document(1, 100));
  auto second = decoder.new_session();
  (void)second.forward(document(2, 400));
  first.save(path);
  const auto old_bytes = first.snapshot();
  const auto new_bytes = second.snapshot();
  int old_files = 0;
  int new_files = 0;
  for (int i = 0; i < 100; ++i) {
    first.save(path);
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        skald::write_file_atomically(path, new_bytes);
      } catch (...) {
      }
      ::_exit(0);
    }
    ::usleep(static_cast<useconds_t>((i * 37) % 1500));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    const auto found = skald::read_whole_file(path);
    old_files += found == old_bytes;
    new_files += found == new_bytes;
    auto session = decoder.new_session();
    REQUIRE_NOTHROW(session.load(path));
  }
  CHECK(old_files + new_files == 100);
  CHECK(old_files > 0);
}

TEST_CASE("integration.prefix: a process killed while it saves a file of prefixes leaves the old or the new one, 100 times of 100") {
  const auto model = tiny_model(shape, {.backend = serial_cpu()});
  const Folder folder;
  const auto path = folder.path + "/prefixes";
  const skald::Decoder decoder(model, small_pages());
  skald::PrefixCache first(decoder);
  (void)ask(first, document(1, 60));
  skald::PrefixCache second(decoder);
  for (unsigned i = 2; i < 7; ++i) (void)ask(second, document(i, 90));
  first.save(path);
  const auto old_bytes = skald::read_whole_file(path);
  second.save(path);
  const auto new_bytes = skald::read_whole_file(path);
  const auto reference = alone(decoder, document(1, 60) + document(9, 3));
  int old_files = 0;
  int new_files = 0;
  for (int i = 0; i < 100; ++i) {
    skald::write_file_atomically(path, old_bytes);
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        second.save(path);
      } catch (...) {
      }
      ::_exit(0);
    }
    ::usleep(static_cast<useconds_t>((i * 41) % 2500));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    const auto found = skald::read_whole_file(path);
    old_files += found == old_bytes;
    new_files += found == new_bytes;
    skald::PrefixCache cache(decoder);
    REQUIRE_NOTHROW(cache.load(path));
    CHECK(cache.counters().nodes == (found == old_bytes ? 1 : 5));
  }
  CHECK(old_files + new_files == 100);
  CHECK(old_files > 0);
  skald::write_file_atomically(path, old_bytes);
  skald::PrefixCache cache(decoder);
  cache.load(path);
  CHECK(same_bits(ask(cache, document(1, 60) + document(9, 3)), reference));
}

TEST_CASE("integration.prefix: a file read under a hash that is always equal never serves other tokens") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, small_pages());
  const Folder folder;
  const auto path = folder.path + "/prefixes";
  const skald::PrefixCacheOptions constant{
      .slow_bytes = std::size_t{1} << 30, .slow_folder = folder.path,
      .hash = [](std::span<const skald::TokenId>) { return std::uint64_t{0}; }};
  {
    skald::PrefixCache cache(decoder);
    for (unsigned i = 0; i < 4; ++i) (void)ask(cache, document(1, 33) + document(10 + i, 20));
    cache.save(path);
  }
  skald::PrefixCache cache(decoder, constant);
  cache.load(path);
  (void)cache.shrink(0);  // all of it into files of the slow tier
  for (unsigned i = 0; i < 8; ++i) {
    const auto prompt = document(1, 33) + document(10 + i, 20) + document(30, 5);
    std::int64_t reused = -1;
    CHECK(same_bits(ask(cache, prompt, &reused), alone(decoder, prompt)));
    CHECK(reused == (i < 4 ? 53 : 33));
  }
}

TEST_CASE("integration.prefix: a speculative start with a right guess hides the search, with a wrong one the output is still correct") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  for (const std::string eviction : {"none", "h2o:budget=400", "h2o:budget=64"}) {
    const skald::Decoder decoder(model, small_pages(eviction));
    const auto question = document(9, 20);
    const auto right = document(1, 60) + document(2, 60) + question;
    const auto wrong = document(1, 60) + document(3, 60) + question;
    // The search ends after so many questions to it; time passes only there, so that the test is the same everywhere.
    const auto run = [&](skald::PrefixCache& cache, const Tokens& guess, int ends_after, skald::SpeculativeStartReport& report) {
      int asked = 0;
      auto session = skald::start_speculatively(
          cache,
          [&](bool) {
            return asked++ < ends_after ? skald::ProvisionalPrompt{guess, false} : skald::ProvisionalPrompt{right, true};
          },
          {.chunk_tokens = 32}, &report);
      CHECK(session.length() == 139);
      return copy(session.forward(std::span(right).last(1)));
    };
    const auto expected = alone(decoder, right);
    skald::SpeculativeStartReport report;
    {
      skald::PrefixCache cache(decoder);
      CHECK(same_bits(run(cache, right, 10, report), expected));
      CHECK(report.after_final == 0);  // all of the prompt was computed behind the search
      CHECK(report.before_final == 139);
      CHECK(report.wasted == 0);
    }
    {
      skald::PrefixCache cache(decoder);
      CHECK(same_bits(run(cache, right, 2, report), expected));
      CHECK(report.before_final == 64);
      CHECK(report.after_final == 75);
    }
    {
      skald::PrefixCache cache(decoder);
      CHECK(same_bits(run(cache, wrong, 10, report), expected));
      CHECK(report.changes == 1);
      CHECK(report.wasted >= 79);
      if (eviction == "none") CHECK(report.after_final == 79);  // the document in common is kept
      // The wrong document was remembered: a later request that has it computes its question alone.
      if (eviction == "none") CHECK(cache.match(wrong) == 139);
    }
  }
  const skald::Decoder decoder(model, small_pages());
  skald::PrefixCache cache(decoder);
  CHECK_THROWS_AS(skald::start_speculatively(cache, [](bool) { return skald::ProvisionalPrompt{{}, true}; }), skald::UsageError);
}

TEST_CASE("integration.prefix: pages move to files and back on the host's thread, and are there when they are asked for") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  const skald::Decoder decoder(model, small_pages());
  const Folder folder;
  std::vector<std::function<void()>> queue;
  const auto run_queue = [&] {
    for (std::size_t i = 0; i < queue.size(); ++i) queue[i]();
    queue.clear();
  };
  const auto files = [&] {
    std::size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path)) count += entry.is_regular_file();
    return count;
  };
  {
    skald::PrefixCache cache(decoder, {.slow_bytes = std::size_t{1} << 30,
                                       .slow_folder = folder.path,
                                       .background = [&](std::function<void()> work) { queue.push_back(std::move(work)); }});
    const auto prompt = document(1, 100);
    const auto other = document(2, 100);
    const auto more = prompt + document(3, 4);
    const auto more_of_other = other + document(4, 4);
    (void)ask(cache, prompt);
    (void)ask(cache, other);
    (void)cache.shrink(0);
    CHECK(cache.counters().demoted == 2);
    CHECK(decoder.counters().kv_pages_used == 0);  // free at once
    CHECK(files() == 0);                           // nothing was written yet, but what is asked for is there
    CHECK(cache.prefetch(more) == 0);
    CHECK(same_bits(ask(cache, more), alone(decoder, more)));
    run_queue();
    CHECK(files() == 1);  // the file of what came back is gone
    CHECK(cache.prefetch(more_of_other) == 1);
    CHECK(cache.prefetch(more_of_other) == 0);  // on its way
    run_queue();
    std::filesystem::remove_all(folder.path);  // it was read before it is asked for
    std::filesystem::create_directories(folder.path);
    std::int64_t reused = 0;
    CHECK(same_bits(ask(cache, more_of_other, &reused), alone(decoder, more_of_other)));
    CHECK(reused == 100);
    CHECK(cache.counters().prefetched == 1);
    CHECK(cache.prefetch(document(8, 9)) == 0);
    (void)cache.shrink(0);
  }
  run_queue();  // after the cache has gone
  CHECK(files() == 0);
  // Threads of the host's, many at a time.
  std::vector<std::thread> threads;
  {
    skald::PrefixCache cache(decoder, {.slow_bytes = std::size_t{1} << 30,
                                       .slow_folder = folder.path,
                                       .background = [&](std::function<void()> work) { threads.emplace_back(std::move(work)); }});
    for (unsigned i = 0; i < 6; ++i) (void)ask(cache, document(i, 50));
    for (unsigned round = 0; round < 3; ++round) {
      (void)cache.shrink(0);
      for (unsigned i = 0; i < 6; ++i) (void)cache.prefetch(document(i, 50) + document(20, 3));
      for (unsigned i = 0; i < 6; ++i) {
        const auto prompt = document(i, 50) + document(30 + round, 3);
        CHECK(same_bits(ask(cache, prompt), alone(decoder, prompt)));
      }
    }
  }
  for (auto& thread : threads) thread.join();
  CHECK(files() == 0);
}

TEST_CASE("integration.prefix: a file of the slow tier that cannot be written leaves the cache as it was") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  const skald::Decoder decoder(model, small_pages());
  skald::PrefixCache cache(decoder, {.slow_bytes = std::size_t{1} << 30, .slow_folder = "/no such folder"});
  const auto prompt = document(1, 40);
  (void)ask(cache, prompt);
  const auto before = cache.counters();
  CHECK_THROWS_AS(cache.shrink(0), skald::IoError);
  CHECK(cache.counters().fast_bytes == before.fast_bytes);
  CHECK(cache.counters().slow_bytes == 0);
  CHECK(cache.match(prompt) == 39);
  cache.clear();
  CHECK(cache.counters().fast_bytes == 0);
  CHECK(cache.counters().slow_bytes == 0);
}

TEST_CASE("integration.prefix: saving brings nothing back from the slow tier") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  for (const std::string eviction : {"none", "window:sinks=4,window=60"}) {
    INFO(eviction);
    const skald::Decoder decoder(model, small_pages(eviction));
    const Folder folder;
    skald::PrefixCache cache(decoder, {.slow_bytes = std::size_t{1} << 30, .slow_folder = folder.path});
    const auto common = document(1, 48);
    for (unsigned i = 0; i < 3; ++i) (void)ask(cache, common + document(2 + i, 30));
    (void)cache.shrink(0);
    const auto before = cache.counters();
    CHECK(before.fast_bytes == 0);
    CHECK(before.demoted > 2);
    const auto path = folder.path + "/prefixes";
    cache.save(path);
    CHECK(cache.counters().fast_bytes == 0);
    CHECK(cache.counters().promoted == before.promoted);
    CHECK(cache.counters().slow_bytes == before.slow_bytes);
    skald::PrefixCache other(decoder);
    other.load(path);
    for (unsigned i = 0; i < 3; ++i) {
      const auto prompt = common + document(2 + i, 30) + document(9, 5);
      std::int64_t reused = -1;
      CHECK(same_bits(ask(other, prompt, &reused), alone(decoder, prompt)));
      CHECK(reused == 78);
    }
  }
}

TEST_CASE("integration.prefix: what a lost or damaged file of the slow tier held is computed again") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  for (const std::string eviction : {"none", "window:sinks=4,window=60"}) {
    for (const bool damaged : {false, true}) {
      INFO(eviction << (damaged ? ", damaged" : ", gone"));
      const skald::Decoder decoder(model, small_pages(eviction));
      const Folder folder;
      skald::PrefixCache cache(decoder, {.slow_bytes = std::size_t{1} << 30, .slow_folder = folder.path});
      const auto common = document(1, 48), first = common + document(2, 30), second = common + document(3, 30);
      (void)ask(cache, first);
      (void)ask(cache, second);
      (void)cache.shrink(0);
      const auto nodes = cache.counters().nodes;
      for (const auto& entry : std::filesystem::directory_iterator(folder.path)) {
        if (damaged) std::filesystem::resize_file(entry.path(), 3);
        else std::filesystem::remove(entry.path());
      }
      const auto prompt = first + document(4, 5);
      CHECK(cache.match(prompt) > 0);
      std::int64_t reused = -1;
      CHECK(same_bits(ask(cache, prompt, &reused), alone(decoder, prompt)));
      CHECK(reused == 0);
      CHECK(cache.counters().lost > 0);
      CHECK(cache.counters().nodes < nodes + 1);
      // Insertion meets a lost file too, where it has to divide what the file held.
      (void)cache.shrink(0);
      for (const auto& entry : std::filesystem::directory_iterator(folder.path)) std::filesystem::remove(entry.path());
      auto session = decoder.new_session();
      const auto part = first + document(5, 3);
      (void)session.forward(part);
      CHECK(cache.insert(session).length() == 81);
      CHECK(same_bits(ask(cache, part + document(6, 5), &reused), alone(decoder, part + document(6, 5))));
      CHECK(reused == 81);
    }
  }
}

TEST_CASE("integration.prefix: a conversation of thousands of turns is a path that no stack has to hold") {
  const auto model = tiny_model({.layers = 1, .context = 4096, .type = skald::DType::q8_0}, {.backend = cpu_with(1)});
  skald::DecoderOptions options = small_pages();
  options.parallel = 64;  // each turn has pages of its own
  const skald::Decoder decoder(model, options);
  const Folder folder;
  skald::PrefixCache cache(decoder);
  auto session = decoder.new_session();
  constexpr int turns = 3000;
  const auto tokens = document(1, turns);
  for (int i = 0; i < turns; ++i) {
    (void)session.forward(std::span(tokens).subspan(static_cast<std::size_t>(i), 1));
    (void)cache.insert(session);
  }
  CHECK(cache.counters().nodes == turns);
  const auto work = [&] {
    const auto handle = cache.insert(session);
    CHECK(handle.tokens() == tokens);
    cache.set_name("all", handle);
    cache.set_name("all", {});
    const auto all = cache.counters().fast_bytes;
    CHECK(cache.shrink(all / 2) == all);  // the handle holds all of it
    cache.save(folder.path + "/prefixes");
    cache.clear();
    CHECK(cache.counters().nodes == 0);
  };
  // A thread with a stack of 256 KiB.
  std::function<void()> call = work;
  pthread_attr_t attributes;
  REQUIRE(pthread_attr_init(&attributes) == 0);
  REQUIRE(pthread_attr_setstacksize(&attributes, std::size_t{256} << 10) == 0);
  pthread_t thread{};
  REQUIRE(pthread_create(&thread, &attributes, [](void* f) -> void* { (*static_cast<std::function<void()>*>(f))(); return nullptr; }, &call) == 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}
