// Cancelling: whoever asks and whenever, the long call ends and every session is at its last committed step.
#include <atomic>
#include <stdexcept>
#include <thread>

#include <skald/generate/generate.hpp>

#include "helpers.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

/// Bytes that count what is read from them and ask for a stop after a while.
struct StoppingFile {
  std::vector<std::byte> bytes;
  std::stop_source stop;
  std::uint64_t stop_after;
  std::shared_ptr<std::atomic<std::uint64_t>> read = std::make_shared<std::atomic<std::uint64_t>>(0);
  std::shared_ptr<std::atomic<std::uint64_t>> read_after_stop = std::make_shared<std::atomic<std::uint64_t>>(0);

  [[nodiscard]] skald::AnyByteSource source() {
    return {skald::CallbackSource(bytes.size(),
                                  [this](std::uint64_t offset, std::span<std::byte> out) {
                                    if (stop.stop_requested()) *read_after_stop += out.size();
                                    std::memcpy(out.data(), bytes.data() + offset, out.size());
                                    if ((*read += out.size()) >= stop_after) stop.request_stop();
                                  }),
            "stopping"};
  }
};

/// A step that asks for a stop from inside the network: an eviction policy runs between the passes.
struct StopAt {
  std::stop_source* stop;
  int* calls;
  int at;
  [[nodiscard]] static std::string name() { return "stop_at"; }
  [[nodiscard]] static skald::ComponentTraits traits() { return {.drops_tokens = true, .lossy = true}; }
  void evict(const skald::EvictionView&, std::span<std::uint8_t>) const {
    if (++*calls == at) stop->request_stop();
  }
};

}  // namespace

TEST_CASE("integration.cancel: a load ends at every place it is stopped, soon and without leaks") {
  const auto bytes = tiny_gguf({.ffn = 2048, .type = skald::DType::f32});
  for (const int threads : {1, 4}) {
    const auto backend = cpu_with(threads);
    for (std::uint64_t tenth = 0; tenth < 10; ++tenth) {
      INFO(threads << " threads, stopped after " << tenth << " tenths");
      StoppingFile file{
          .bytes = bytes, .stop = {}, .stop_after = std::max<std::uint64_t>(1, bytes.size() * tenth / 10)};
      CHECK_THROWS_AS(skald::Model::load(file.source(), {.backend = backend, .stop = file.stop.get_token()}),
                      skald::CancelledError);
      // Each thread may finish the piece it is at.
      CHECK(*file.read_after_stop <= (std::uint64_t{1} << 20) * static_cast<std::uint64_t>(threads));
    }
    std::stop_source stop;
    std::uint64_t last = 0;
    bool monotonic = true;
    skald::LoadOptions options{.backend = backend, .stop = stop.get_token()};
    options.progress = [&](const skald::Progress& progress) {
      monotonic = monotonic && progress.done >= last && progress.done <= progress.total;
      last = progress.done;
      if (progress.done * 2 > progress.total) stop.request_stop();
    };
    CHECK_THROWS_AS(skald::Model::load(keeping_source(bytes, "tiny"), options), skald::CancelledError);
    CHECK(monotonic);
    options.stop = {};
    options.progress = [](const skald::Progress&) { throw std::runtime_error("enough"); };
    CHECK_THROWS_AS(skald::Model::load(keeping_source(bytes, "tiny"), options), std::runtime_error);
    options.progress = {};
    CHECK_NOTHROW(skald::Model::load(keeping_source(bytes, "tiny"), options));
  }
}

TEST_CASE("integration.cancel: a prefill that is stopped keeps its whole passes and nothing else") {
  const TinyShape shape{.type = skald::DType::q8_0};
  for (const int threads : {1, 4}) {
    const auto model = tiny_model(shape, {.backend = cpu_with(threads)});
    const skald::Decoder decoder(model, {.context = 1024, .batch_tokens = 64});
    auto other = decoder.new_session();
    (void)other.forward(some_tokens(33, shape.vocabulary, 4));
    const auto tokens = some_tokens(700, shape.vocabulary);
    for (const std::uint64_t stop_at : {64u, 128u, 640u, 700u}) {
      INFO(threads << " threads, stopped at " << stop_at);
      auto session = decoder.new_session();
      (void)session.forward(some_tokens(10, shape.vocabulary, 6));
      std::stop_source stop;
      const auto passes = decoder.counters().forward_passes;
      const auto progress = [&](const skald::Progress& p) {
        if (p.done >= stop_at) stop.request_stop();
      };
      const auto run = [&] { (void)session.forward(tokens, skald::LogitsWanted::last, stop.get_token(), progress); };
      if (stop_at < 700) CHECK_THROWS_AS(run(), skald::CancelledError);
      else CHECK_NOTHROW(run());  // nothing was left to do
      CHECK(session.length() == static_cast<std::int64_t>(10 + stop_at));
      CHECK(decoder.counters().forward_passes - passes == (stop_at + 63) / 64);
      CHECK(equals_fresh(decoder, session));
    }
    CHECK(equals_fresh(decoder, other));
  }
}

TEST_CASE("integration.cancel: an exception from a progress callback keeps what was computed") {
  const TinyShape shape{.type = skald::DType::q8_0};
  const auto model = tiny_model(shape);
  const skald::Decoder decoder(model, {.batch_tokens = 64});
  auto session = decoder.new_session();
  const auto tokens = some_tokens(300, shape.vocabulary);
  const auto callback = [](const skald::Progress& progress) {
    if (progress.done >= 128) throw std::runtime_error("enough");
  };
  CHECK_THROWS_AS(session.forward(tokens, skald::LogitsWanted::last, {}, callback), std::runtime_error);
  CHECK(session.length() == 128);
  CHECK(equals_fresh(decoder, session));
}

TEST_CASE("integration.cancel: stops from another thread leave sessions as fresh ones with the same tokens") {
  const TinyShape shape{.layers = 3, .type = skald::DType::q8_0};
  for (const int threads : {1, 4}) {
    const auto model = tiny_model(shape, {.backend = cpu_with(threads)});
    const skald::Decoder decoder(model, {.context = 1024, .parallel = 6, .batch_tokens = 512});
    const auto tokens = some_tokens(900, shape.vocabulary);
    std::vector<skald::Session> others;
    for (int i = 0; i < 3; ++i) {
      others.push_back(decoder.new_session());
      (void)others.back().forward(some_tokens(20 + i, shape.vocabulary, 30 + i));
    }
    int cancelled = 0;
    for (int round = 0; round < 30; ++round) {
      auto session = decoder.new_session();
      const auto start = static_cast<std::size_t>(round % 7);
      if (start > 0) (void)session.forward(std::span(tokens).first(start));
      std::vector<std::int64_t> lengths;
      for (const auto& other : others) lengths.push_back(other.length());
      std::stop_source stop;
      std::atomic<bool> begun = false;
      // The busy loop moves the moment of the stop through the pass.
      std::thread stopper([&] {
        while (!begun) std::this_thread::yield();
        std::atomic<int> spins = 0;
        while (spins < round * 4000) ++spins;
        stop.request_stop();
      });
      skald::Batch batch;
      batch.add(session, std::span(tokens).subspan(start, 800));
      for (auto& other : others) batch.add(other, {&tokens[0], 1});
      begun = true;
      try {
        (void)decoder.forward(batch, {.stop = stop.get_token()});
      } catch (const skald::CancelledError&) {
        ++cancelled;
      }
      stopper.join();
      INFO(threads << " threads, round " << round << ", kept " << session.length());
      const auto kept = session.length() - static_cast<std::int64_t>(start);
      CHECK((kept == 0 || kept == 512 || kept == 800));
      CHECK(equals_fresh(decoder, session));
      for (std::size_t i = 0; i < others.size(); ++i)
        CHECK((others[i].length() == lengths[i] || others[i].length() == lengths[i] + 1));
    }
    for (auto& other : others) CHECK(equals_fresh(decoder, other));
    CHECK(cancelled > 0);
  }
}

TEST_CASE("integration.cancel: a stopped decoding loop continues where it was") {
  const TinyShape shape{.type = skald::DType::q8_0};
  const auto model = tiny_model(shape, {.backend = cpu_with(4)});
  const skald::Decoder decoder(model);
  const auto prompt = some_tokens(20, shape.vocabulary);
  skald::GenerateOptions options{.max_tokens = 30};
  options.sampler.temperature = 0.0F;
  auto whole_session = decoder.new_session();
  auto whole = skald::generate(whole_session, prompt, options);
  (void)whole.collect();
  const std::vector<skald::TokenId> expected(whole.tokens().begin(), whole.tokens().end());
  REQUIRE(expected.size() == 30);

  std::stop_source stop;
  options.stop_token = stop.get_token();
  auto session = decoder.new_session();
  auto first = skald::generate(session, prompt, options);
  int pieces = 0;
  for (const auto& piece : first) {
    static_cast<void>(piece);
    if (++pieces == 11) stop.request_stop();
  }
  CHECK(first.finish_reason() == skald::FinishReason::cancelled);
  REQUIRE(first.tokens().size() == 11);
  CHECK(session.length() == 30);
  CHECK(equals_fresh(decoder, session));
  session.truncate(30);
  options.stop_token = {};
  options.max_tokens = 19;
  auto rest = skald::generate(session, first.tokens().last(1), options);
  (void)rest.collect();
  CHECK(std::equal(rest.tokens().begin(), rest.tokens().end(), expected.begin() + 11, expected.end()));
}

TEST_CASE("integration.cancel: a stop between two passes is seen before the next") {
  const TinyShape shape{.type = skald::DType::q8_0};
  const auto model = tiny_model(shape);
  std::stop_source stop;
  int calls = 0;
  const StopAt policy{&stop, &calls, 5};  // four groups per page border: the second border
  const skald::Decoder<skald::BackendInterface, StopAt, skald::AnyKvFormat> decoder(
      model, policy, skald::AnyKvFormat("f16"), {.kv = {.page_tokens = 16}});
  auto session = decoder.new_session();
  CHECK_THROWS_AS(session.forward(some_tokens(300, shape.vocabulary), skald::LogitsWanted::last, stop.get_token()),
                  skald::CancelledError);
  CHECK(session.length() == 32);
}
