// A KV eviction policy of one's own: which tokens of a head's cache leave, decided at each page border.
//   custom_kv_policy [model.gguf]
// Prints a text, then what the cache holds and how many tokens the policy has dropped; with less to look back at, the
// model forgets more of its story.
#include <algorithm>
#include <iostream>
#include <string>

#include <skald/skald.hpp>

/// Keeps the first tokens, the newest, and of those between them the ones that got the most attention per token that could
/// look at them: an old token must not stay for its age alone.
struct FairHitters {
  std::int64_t budget = 64;  // tokens per head
  std::int64_t first = 2;
  [[nodiscard]] std::string name() const { return "fair_hitters:budget=" + std::to_string(budget); }
  [[nodiscard]] skald::ComponentTraits traits() const {
    return {.needs_scores = true, .drops_tokens = true, .lossy = true, .budget = budget};
  }
  void evict(const skald::EvictionView& view, skald::EvictionChoice& choice) const {
    const std::int64_t keep = budget - view.page_tokens;  // room for the page that comes
    if (view.slots() <= keep) return;
    const std::int64_t newest = (keep - first) / 2;
    choice.keep_largest(first, view.slots() - newest, keep - newest - first, [&](std::int32_t slot) {
      const auto i = static_cast<std::size_t>(slot);
      return view.scores[i] / static_cast<float>(view.sequence_tokens - view.positions[i]);
    });
  }
};
static_assert(skald::EvictionPolicy<FairHitters>);

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const skald::Decoder<skald::CpuBackend, FairHitters, skald::KvF16> decoder(
      model, FairHitters{}, skald::KvF16{}, {.kv = {.page_tokens = 16}});
  auto session = decoder.new_session();

  const std::string prompt = "Once upon a time";
  std::cout << prompt;
  for (const auto& piece : skald::generate(session, prompt, {.max_tokens = 200, .sampler = {.temperature = 0.0F}}))
    std::cout << piece.text << std::flush;
  std::cout << "\n\n"
            << session.length() << " tokens, " << session.bytes() << " bytes of KV, "
            << decoder.counters().evicted_tokens << " tokens evicted by " << decoder.effective_config().eviction << '\n';
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
