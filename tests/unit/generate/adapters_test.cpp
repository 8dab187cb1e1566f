// Adapters that come and go while texts are generated.
#include <atomic>
#include <mutex>
#include <thread>

#include <skald/core/random.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/generate/generate.hpp>
#include <skald/model/adapter.hpp>

#include "support/shared_data.hpp"

namespace {

/// A LoRA of rank 4 over the queries and the first half of the networks of every layer.
skald::AdapterFile random_adapter(const skald::Model& model, std::uint64_t seed) {
  skald::AdapterFile file{"random", {}};
  for (int layer = 0; layer < model.spec().layer_count(); ++layer)
    for (const auto& [role, name] : {std::pair(skald::Role::query, "attn_q"), {skald::Role::ffn_up, "ffn_up"}}) {
      const auto* weight = model.weight(role, layer);
      skald::AdapterDelta delta;
      delta.tensor = "blk." + std::to_string(layer) + "." + name + ".weight";
      delta.outputs = weight->rows();
      delta.inputs = weight->cols();
      delta.rank = 4;
      skald::CounterRandom random(seed, static_cast<std::uint64_t>(layer), 0);
      const auto fill = [&](std::int64_t count) {
        std::vector<float> values(static_cast<std::size_t>(count));
        for (float& value : values) value = static_cast<float>(random.uniform() - 0.5) * 0.3F;
        return values;
      };
      delta.first = fill(4 * delta.inputs);
      delta.second = fill(4 * delta.outputs);
      file.deltas.push_back(std::move(delta));
    }
  return file;
}

/// Runs every part on a thread of its own: plain synchronization that race detectors understand.
class ThreadPerPart {
 public:
  [[nodiscard]] static int concurrency() noexcept { return 2; }
  static void run(int n, skald::FunctionRef<void(int)> work) {
    std::vector<std::jthread> threads;
    for (int i = 1; i < n; ++i) threads.emplace_back([&work, i] { work(i); });
    if (n > 0) work(0);
  }
};

std::string text_of(const skald::Decoder<>& decoder, std::vector<skald::ScaledAdapter> adapters) {
  auto session = decoder.new_session();
  session.set_adapters(std::move(adapters));
  return skald::generate(session, "Once upon a time", {.max_tokens = 6, .sampler = {.temperature = 0.0F}}).collect();
}

/// What requests share: the adapters that are loaded now.
struct Shelf {
  std::mutex mutex;
  std::vector<skald::Adapter> adapters;

  std::vector<skald::Adapter> take() {
    const std::lock_guard lock(mutex);
    return adapters;
  }
  void put(std::vector<skald::Adapter> fresh) {
    const std::lock_guard lock(mutex);
    adapters = std::move(fresh);  // what nobody uses any more is freed here
  }
};

}  // namespace

TEST_CASE("generate.adapters: are loaded and unloaded while batches with and without them run") {
  for (const bool serial : {true, false}) {
    skald::CpuOptions options;
    if (serial) options.executor = skald::AnyExecutor(std::make_shared<skald::SerialExecutor>());
    else options.executor = skald::AnyExecutor(std::make_shared<ThreadPerPart>());
    if (serial) options.threads = 1;
    const auto model = skald::Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"),
                                          {.backend = skald::make_cpu_backend(options)});
    const auto first = random_adapter(model, 1);
    const auto second = random_adapter(model, 2);
    const skald::Decoder plain(model, {.context = 64});
    const auto base = text_of(plain, {});
    const std::vector<std::string> expected{text_of(plain, {{skald::Adapter::load(first, model), 1.0F}}),
                                            text_of(plain, {{skald::Adapter::load(second, model), 1.0F}})};
    CHECK(expected[0] != base);
    CHECK(expected[1] != expected[0]);

    Shelf shelf;
    shelf.put({skald::Adapter::load(first, model), skald::Adapter::load(second, model)});
    std::atomic<int> running = 2;
    std::atomic<int> wrong = 0;
    std::atomic<int> loads = 0;
    {
      std::vector<std::jthread> threads;
      for (int t = 0; t < 2; ++t)
        threads.emplace_back([&] {
          const skald::Decoder decoder(model, {.context = 64, .parallel = 3});
          for (int round = 0; round < (serial ? 4 : 2) || (loads == 0 && round < 1000); ++round) {
            const auto now = shelf.take();
            for (std::size_t i = 0; i < now.size(); ++i)
              if (text_of(decoder, {{now[i], 1.0F}}) != expected[i]) ++wrong;
            if (text_of(decoder, {}) != base) ++wrong;
            // A step of three sessions, each with a set of its own.
            std::vector<skald::Session> sessions;
            skald::Batch batch;
            for (std::size_t s = 0; s < 3; ++s) {
              sessions.push_back(decoder.new_session());
              if (s > 0) sessions.back().set_adapters({{now[s - 1], 0.5F}});
            }
            const std::vector<skald::TokenId> tokens{3, 40, 9};
            for (auto& session : sessions) batch.add(session, tokens);
            (void)decoder.forward(batch);
          }
          --running;
        });
      threads.emplace_back([&] {
        while (running > 0) {
          shelf.put({skald::Adapter::load(first, model), skald::Adapter::load(second, model)});
          ++loads;
        }
      });
    }
    INFO((serial ? "one thread" : "two threads") << " per pass, " << loads << " loads");
    CHECK(wrong == 0);
    CHECK(loads > 0);
  }
}

TEST_CASE("generate.adapters: a request's text is that of its adapters, whatever else is in its batch") {
  const auto model = skald::Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  const skald::Decoder decoder(model, {.context = 64, .parallel = 4});
  const std::vector<skald::Adapter> adapters{skald::Adapter::load(random_adapter(model, 1), model),
                                             skald::Adapter::load(random_adapter(model, 2), model)};
  const std::vector<std::vector<skald::ScaledAdapter>> sets{
      {}, {{adapters[0], 1.0F}}, {{adapters[0], 0.5F}, {adapters[1], 1.0F}}};
  const auto prompt = model.tokenizer().encode("Once upon a time");
  const auto best = [](std::span<const float> row) {
    return static_cast<skald::TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
  };
  std::vector<skald::Session> sessions;
  sessions.reserve(sets.size());  // batches point to them
  std::vector<std::vector<skald::TokenId>> found(sets.size());
  skald::Batch batch;
  for (const auto& set : sets) {
    sessions.push_back(decoder.new_session());
    sessions.back().set_adapters(set);
    batch.add(sessions.back(), prompt);
  }
  for (int step = 0; step < 12; ++step) {
    const auto logits = decoder.forward(batch);
    for (std::size_t i = 0; i < sets.size(); ++i) found[i].push_back(best(logits.last(i)));
    batch.clear();
    for (std::size_t i = 0; i < sets.size(); ++i) batch.add(sessions[i], {&found[i].back(), 1});
  }
  for (std::size_t i = 0; i < sets.size(); ++i) {
    auto alone = decoder.new_session();
    alone.set_adapters(sets[i]);
    auto generation = skald::generate(alone, "Once upon a time",
                                      {.max_tokens = 12, .sampler = {.temperature = 0.0F}, .ignore_eos = true});
    (void)generation.collect();
    CHECK(std::ranges::equal(generation.tokens(), found[i]));
  }
}
