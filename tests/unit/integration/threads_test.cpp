// One model, many threads.
#include <atomic>
#include <thread>

#include "helpers.hpp"
#include "malloc_counter.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

/// Runs every part on a thread of its own: plain synchronization that race detectors understand.
class ThreadPerPart {
 public:
  [[nodiscard]] static int concurrency() noexcept { return 3; }
  static void run(int n, skald::FunctionRef<void(int)> work) {
    std::vector<std::jthread> threads;
    for (int i = 1; i < n; ++i) threads.emplace_back([&work, i] { work(i); });
    if (n > 0) work(0);
  }
};

skald::AnyBackend with_executor(skald::AnyExecutor executor) {
  skald::CpuOptions options;
  options.executor = std::move(executor);
  return skald::make_cpu_backend(options);
}

/// What each of the threads does with its decoder.
Rows work(const skald::Model& model, std::uint64_t seed) {
  const skald::Decoder decoder(model, {.context = 256, .parallel = 2, .batch_tokens = 32});
  auto session = decoder.new_session();
  auto rows = chunked(session, some_tokens(70, 64, seed), 50);
  auto fork = session.fork();
  const auto more = chunked(fork, some_tokens(20, 64, seed + 1), 1);
  rows.insert(rows.end(), more.begin(), more.end());
  auto restored = decoder.new_session();
  restored.restore(session.snapshot());
  session.clear();
  const auto last = next_row(restored, 3);
  rows.insert(rows.end(), last.begin(), last.end());
  std::stop_source stop;
  stop.request_stop();
  try {
    (void)restored.forward(some_tokens(40, 64, seed), skald::LogitsWanted::last, stop.get_token());
  } catch (const skald::CancelledError&) {
    rows.push_back(1.0F);
  }
  return rows;
}

}  // namespace

TEST_CASE("integration.threads: decoders on four threads share a model while models come and go") {
  const TinyShape shape{
      .vocabulary = 64, .dim = 64, .heads = 2, .kv_heads = 1, .head_dim = 32, .ffn = 96, .type = skald::DType::q8_0};
  std::vector<skald::AnyBackend> backends{serial_cpu(), with_executor(std::make_shared<ThreadPerPart>()),
                                          skald::make_reference_backend()};
#if SKALD_TEST_COUNTS_MALLOC  // race detectors do not see how oneTBB synchronizes
  backends.push_back(cpu_with(3));
#endif
  for (const auto& backend : backends) {
    INFO(backend->info().name << ", " << backend->info().threads << " threads");
    const auto model = tiny_model(shape, {.backend = backend});
    std::vector<Rows> expected;
    for (std::uint64_t t = 0; t < 4; ++t) expected.push_back(work(model, 10 * t));
    std::vector<Rows> found(4);
    std::atomic<int> running = 4;
    std::atomic<int> loads = 0;
    std::atomic<bool> loader_failed = false;
    {
      std::vector<std::jthread> threads;
      for (std::uint64_t t = 0; t < 4; ++t)
        threads.emplace_back([&, t] {
          for (int round = 0; round < 3; ++round) {
            const auto rows = work(model, 10 * t);
            if (round == 0) found[t] = rows;
            else if (!same_bits(rows, found[t])) found[t].clear();
          }
          --running;
        });
      threads.emplace_back([&] {
        do {
          const auto other = tiny_model(shape, {.backend = backend});
          const auto rows = work(other, 0);
          if (!same_bits(rows, expected[0])) loader_failed = true;
          ++loads;
        } while (running > 0);
      });
    }
    CHECK_FALSE(loader_failed);
    CHECK(loads > 0);
    for (std::size_t t = 0; t < 4; ++t) CHECK(same_bits(found[t], expected[t]));
  }
}

TEST_CASE("integration.threads: stopping one decoder from outside leaves the others alone") {
  const TinyShape shape{
      .vocabulary = 64, .dim = 64, .heads = 2, .kv_heads = 1, .head_dim = 32, .ffn = 96, .type = skald::DType::q8_0};
  const auto model = tiny_model(shape, {.backend = with_executor(std::make_shared<ThreadPerPart>())});
  const auto expected = work(model, 5);
  std::atomic<bool> others_equal = true;
  std::jthread other([&] {
    for (int round = 0; round < 3; ++round)
      if (!same_bits(work(model, 5), expected)) others_equal = false;
  });
  const skald::Decoder decoder(model, {.context = 512, .batch_tokens = 64});
  const auto tokens = some_tokens(400, 64);
  for (int round = 0; round < 12; ++round) {
    auto session = decoder.new_session();
    std::stop_source stop;
    std::atomic<std::uint64_t> rows = 0;
    std::jthread stopper([&] {
      while (rows < static_cast<std::uint64_t>(round) * 30) std::this_thread::yield();
      stop.request_stop();
    });
    try {
      (void)session.forward(tokens, skald::LogitsWanted::last, stop.get_token(),
                            [&](const skald::Progress& progress) { rows = progress.done; });
    } catch (const skald::CancelledError&) {
    }
    rows = 1000;
    stopper.join();
    CHECK((session.length() % 64 == 0 || session.length() == 400));
    CHECK(equals_fresh(decoder, session));
  }
  other.join();
  CHECK(others_equal);
}

TEST_CASE("integration.threads: a session may move between threads between its steps") {
  const auto model = tiny_model({.type = skald::DType::q8_0}, {.backend = serial_cpu()});
  const skald::Decoder decoder(model);
  auto session = decoder.new_session();
  const auto tokens = some_tokens(40, 320);
  Rows rows;
  for (std::size_t i = 0; i < tokens.size(); i += 10)
    std::jthread([&] {
      const auto part = copy(session.forward(std::span(tokens).subspan(i, 10), skald::LogitsWanted::all));
      rows.insert(rows.end(), part.begin(), part.end());
    }).join();
  auto fresh = decoder.new_session();
  CHECK(same_bits(rows, chunked(fresh, tokens, 40)));
}
