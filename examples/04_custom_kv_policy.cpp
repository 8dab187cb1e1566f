// A KV eviction policy of one's own: which pages of a head's cache leave, decided at each page border.
//   custom_kv_policy [model.gguf]
// Prints a text, then what the cache holds and how many pages the policy has dropped; with less to look back at, the
// model forgets its story and repeats itself.
#include <iostream>
#include <string>

#include <skald/skald.hpp>

/// Keeps the first page and every other page of the rest, but always the last `recent`.
struct EveryOtherPage {
  int recent = 2;
  [[nodiscard]] std::string name() const { return "every_other_page"; }
  [[nodiscard]] skald::ComponentTraits traits() const { return {.drops_tokens = true, .lossy = true}; }
  void evict(const skald::EvictionView& view, std::span<std::uint8_t> drop) const {
    const auto pages = static_cast<int>(view.pages.size());
    for (int i = 1; i < pages - recent; ++i)
      drop[static_cast<std::size_t>(i)] = (view.pages[static_cast<std::size_t>(i)].first_token / view.page_tokens) % 2;
  }
};
static_assert(skald::EvictionPolicy<EveryOtherPage>);

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const skald::Decoder<skald::CpuBackend, EveryOtherPage, skald::KvF16> decoder(
      model, EveryOtherPage{}, skald::KvF16{}, {.kv = {.page_tokens = 16}});
  auto session = decoder.new_session();

  const std::string prompt = "Once upon a time";
  std::cout << prompt;
  for (const auto& piece : skald::generate(session, prompt, {.max_tokens = 200, .sampler = {.temperature = 0.0F}}))
    std::cout << piece.text << std::flush;
  std::cout << "\n\n"
            << session.length() << " tokens, " << session.bytes() << " bytes of KV, "
            << decoder.counters().evicted_pages << " pages evicted by " << decoder.effective_config().eviction << '\n';
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
