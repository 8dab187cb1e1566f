// Decoding speed of a long sequence under eviction policies, beside the full cache at the budget's length.
//   skald_eviction_speed model.gguf [tokens[,tokens...] [percent [policy...]]]
// A policy is a name with `%` where its budget goes: "h2o:budget=%". Of several lengths the full cache is measured at each.
// The cache is not computed but filled: pages with random numbers and random scores, of which a window stays, at the end what
// the policy says; so what is timed is decoding alone, 64 tokens one by one, a page border among them. Of one length each
// policy takes turns, token by token, with the full cache of the budget's length, for machines drift. Prints CSV.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <skald/core/half.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/state/paged_kv.hpp>
#include <skald/state/policies.hpp>

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

/// Appends tokens that no pass has computed. A window of the budget's length stays of them, which is quick; the policy itself
/// decides at the last borders.
void fill(skald::Session& session, const skald::AnyEviction& policy, std::int64_t tokens, int page_tokens) {
  auto& state = session.state();
  const auto traits = policy.traits();
  const skald::AnyEviction window(
      skald::SinksAndWindow{.sinks = traits.sinks, .window = traits.budget > 0 ? traits.budget - traits.sinks : tokens});
  std::mt19937 random(2);
  std::vector<std::byte> bytes;
  for (std::int64_t done = 0; done < tokens; done += page_tokens) {
    state.append(page_tokens);
    for (int l = 0; l < state.layer_count(); ++l) {
      auto* kv = static_cast<skald::PagedKv*>(state.layer(l));
      if (kv == nullptr) continue;
      constexpr std::size_t shifts = 256;  // so that no two pages are equal
      if (bytes.size() < kv->pool().page_bytes() + shifts * 32) bytes = random_bytes(kv->pool().page_bytes() + shifts * 32);
      for (int g = 0; g < kv->groups(); ++g) {
        std::memcpy(kv->pool().address(kv->pages(g).back()), bytes.data() + random() % shifts * 32, kv->pool().page_bytes());
        if (float* scores = kv->begin_scores(g))
          for (std::int64_t slot = kv->slots(g) - page_tokens; slot < kv->slots(g); ++slot)
            scores[slot] += static_cast<float>(random() % 1000) * 1e-6F;
      }
    }
    if (traits.drops_tokens) state.choose_evictions(done + 2 * page_tokens < tokens && traits.budget > 0 ? window : policy);
    state.commit();
    if (traits.drops_tokens) state.apply_evictions();
  }
}

/// A decoder with a filled session, and how long its steps take.
struct Run {
  Run(const skald::Model& model, const std::string& name, std::int64_t length)
      : policy(name), tokens(length), decoder(model, options_of(name, length)), session(decoder.new_session()) {
    fill(session, skald::AnyEviction::from_spec(policy), tokens, decoder.effective_config().page_tokens);
    const auto token = skald::TokenId{1};
    (void)session.forward({&token, 1});
  }
  void step() {
    const auto token = skald::TokenId{1};
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
    options.context = length + 64 + steps + 8;
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
void measure(const skald::Model& model, const std::string& policy, std::int64_t tokens, Run* beside = nullptr) {
  Run run(model, policy, tokens);
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
    policies = {"window:window=%", "streaming:window=%", "h2o:budget=%", "keyformer:budget=%", "snapkv:budget=%", "d2o:budget=%"};
  std::printf("policy,tokens,tokens per second,median ms,slowest ms,KV MiB,rate over that beside\n");
  for (const auto tokens : lengths) {
    const std::int64_t budget = tokens * percent / 100;
    if (lengths.size() > 1) measure(model, "none", tokens);
    for (auto policy : policies) {
      if (const auto at = policy.find('%'); at != std::string::npos) policy.replace(at, 1, std::to_string(budget));
      if (lengths.size() > 1) {
        measure(model, policy, tokens);
        continue;
      }
      Run full(model, "none", budget);
      measure(model, policy, tokens, &full);
    }
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
