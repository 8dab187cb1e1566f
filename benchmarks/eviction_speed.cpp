// Decoding speed of a long sequence under eviction policies, beside the full cache at the budget's length.
//   skald_eviction_speed model.gguf [tokens[,tokens...] [percent [policy...]]]
// A policy is a name with `%` where its budget goes: "h2o:budget=%". Of several lengths the full cache is measured at each.
// "dcp" gets random gates, which close slowly.
// The cache is not computed but filled: pages with random numbers and random scores, of which a window stays, at the end what
// the policy says; so what is timed is decoding alone, 64 tokens one by one, a page border among them. Of one length each
// policy takes turns, token by token, with the full cache of the budget's length, for machines drift. Prints CSV.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <skald/core/half.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/state/paged_kv.hpp>
#include <skald/state/policies.hpp>
#include <skald/state/two_part_kv.hpp>

#include "decoder/context_access.hpp"
#include "support/gates_file.hpp"

namespace {

using Clock = std::chrono::steady_clock;

/// Numbers as keys and values are: of unit variance, in the pages' format f16.
std::vector<std::byte> random_bytes(std::size_t bytes) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> numbers(bytes / 2);
  for (auto& x : numbers) x = skald::f32_to_f16(normal(random));
  std::vector<std::byte> result(bytes);
  std::memcpy(result.data(), numbers.data(), numbers.size() * 2);
  return result;
}

/// Words of a text: of a thousand kinds.
skald::TokenId token_at(std::int64_t position) {
  return static_cast<skald::TokenId>(1 + static_cast<std::uint32_t>(position * 2654435761LL) / 7 % 1000);
}

/// Appends tokens that no pass has computed. A window of the budget's length stays of them, which is quick; the policy itself
/// decides at the last borders.
void fill(skald::Session& session, const skald::AnyEviction& policy, std::int64_t tokens, std::int64_t budget, int page_tokens,
          std::int64_t dim) {
  auto& state = session.state();
  const auto traits = policy.traits();
  const skald::AnyEviction window(
      skald::SinksAndWindow{.sinks = traits.sinks, .window = budget - traits.rebuild - traits.sinks});
  std::vector<float> entered;
  std::mt19937 random(2);
  std::vector<std::byte> bytes;
  const std::int64_t block = std::max<std::int64_t>(1, 4096 / page_tokens) * page_tokens;  // of those that the window decides on
  for (std::int64_t done = 0, count = 0; done < tokens; done += count) {
    const bool last = done + block + 4 * page_tokens > tokens;
    count = std::min<std::int64_t>(last ? page_tokens : block, tokens - done);
    state.append(count);
    if (traits.rebuild > 0) entered.resize(static_cast<std::size_t>(count * dim), 0.25F);
    for (int l = 0; l < state.layer_count(); ++l) {
      if (auto* rebuilt = dynamic_cast<skald::RebuiltKv*>(state.layer(l))) rebuilt->add_entered(entered);
      auto* parts = dynamic_cast<skald::TwoPartKv*>(state.layer(l));
      auto* kv = parts != nullptr ? &parts->written() : dynamic_cast<skald::PagedKv*>(state.layer(l));
      if (kv == nullptr) continue;
      const auto width = kv->options().gate_width;
      for (auto i = (kv->slots(0) - count) * width; i < kv->slots(0) * width; ++i)
        kv->gate_keys()[i] = static_cast<float>(random() % 2000) * 1e-3F - 1.0F;
      constexpr std::size_t shifts = 256;  // so that no two pages are equal
      const auto page_bytes = kv->pool().page_bytes();
      if (bytes.size() < page_bytes + shifts * 32) bytes = random_bytes(page_bytes + shifts * 32);
      for (int g = 0; g < kv->groups(); ++g) {
        // Pages that a window drops are never looked at.
        const auto& pages = kv->pages(g);
        const auto fresh = static_cast<std::size_t>(done + count + budget >= tokens ? count / page_tokens : 1);
        for (std::size_t p = pages.size() - fresh; p < pages.size(); ++p)
          std::memcpy(kv->pool().address(pages[p]), bytes.data() + random() % shifts * 32, page_bytes);
        if (float* scores = kv->begin_scores(g))
          for (std::int64_t slot = kv->slots(g) - count; slot < kv->slots(g); ++slot)
            scores[slot] += static_cast<float>(random() % 1000) * 1e-6F;
      }
    }
    if (traits.drops_tokens) state.choose_evictions(done + count + page_tokens < tokens ? window : policy);
    state.commit();
    for (std::int64_t i = 0; i < count; ++i) skald::detail::ContextAccess::tokens(session).push_back(token_at(done + i));
    if (traits.drops_tokens) state.apply_evictions();
  }
}

/// A decoder with a filled session, and how long its steps take.
struct Run {
  Run(const skald::Model& model, const std::string& name, std::int64_t length, std::int64_t budget)
      : policy(name), tokens(length), decoder(model, options_of(name, length)), session(decoder.new_session()) {
    fill(session, skald::AnyEviction::from_spec(policy), tokens, budget, decoder.effective_config().page_tokens, model.spec().dim);
    step();
    seconds.clear();
  }
  void step() {
    const auto token = token_at(session.length());
    const auto start = Clock::now();
    (void)session.forward({&token, 1});
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  [[nodiscard]] double all() const { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }
  void print(double times) const {
    auto sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    std::printf("%s,%lld,%.2f,%.3f,%.3f,%.1f,%.3f\n", policy.c_str(), static_cast<long long>(tokens),
                static_cast<double>(seconds.size()) / all(), 1e3 * sorted[sorted.size() / 2], 1e3 * sorted.back(),
                static_cast<double>(session.bytes()) / 1048576.0, times);
    std::fflush(stdout);
  }
  static skald::DecoderOptions options_of(const std::string& name, std::int64_t length) {
    skald::DecoderOptions options;
    options.kv.eviction = name;
    options.context = length + 1024;  // the full cache is beside several policies
    return options;
  }

  static constexpr int steps = 64;
  std::string policy;
  std::int64_t tokens;
  skald::Decoder<> decoder;
  skald::Session session;
  std::vector<double> seconds{};
};

/// Alone, or in turn with another.
void measure(const skald::Model& model, const std::string& policy, std::int64_t tokens, std::int64_t budget,
             Run* beside = nullptr) {
  Run run(model, policy, tokens, budget);
  if (beside != nullptr) beside->seconds.clear();
  for (int i = 0; i < Run::steps; ++i) {
    run.step();
    if (beside != nullptr) beside->step();
  }
  if (beside != nullptr) beside->print(1);
  run.print(beside == nullptr ? 0 : beside->all() / run.all());
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s model.gguf [tokens[,tokens...] [percent [policy...]]]\n", argv[0]);
    return 2;
  }
  const auto model = skald::Model::load(argv[1]);
  std::vector<std::int64_t> lengths;
  std::istringstream list(argc > 2 ? argv[2] : "4096");
  for (std::string number; std::getline(list, number, ',');) lengths.push_back(std::stoll(number));
  const std::int64_t percent = argc > 3 ? std::stoll(argv[3]) : 25;
  std::vector<std::string> policies(argv + std::min(argc, 4), argv + argc);
  if (policies.empty())
    policies = {"window:window=%",    "streaming:window=%", "h2o:budget=%", "keyformer:budget=%", "snapkv:budget=%",
                "rpc:interval=64", "d2o:budget=%",       "dcp",          "adore:budget=%"};
  std::printf("policy,tokens,tokens per second,median ms,slowest ms,KV MiB,rate over that beside\n");
  for (const auto tokens : lengths) {
    const std::int64_t budget = tokens * percent / 100;
    if (lengths.size() > 1) measure(model, "none", tokens, tokens);
    const auto full = lengths.size() > 1 ? nullptr : std::make_unique<Run>(model, "none", budget, budget);
    for (auto policy : policies) {
      if (policy == "dcp")
        policy = skald_test::gates_policy(static_cast<std::int64_t>(model.spec().layers.size()), model.spec().dim, 8.0F);
      if (const auto at = policy.find('%'); at != std::string::npos) policy.replace(at, 1, std::to_string(budget));
      if (lengths.size() > 1) {
        measure(model, policy, tokens, budget);
        continue;
      }
      measure(model, policy, tokens, budget, full.get());
    }
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
