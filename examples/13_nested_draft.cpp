// A model drafts for itself: narrow feed-forward networks guess, the whole network checks several guesses in one pass.
//   nested_draft [model.gguf] [share of the width] [tokens]
// The text is the whole model's greedy one, token for token. How many guesses hold depends on the model: one trained in
// nested widths (MatFormer) is made for it; of others only wide shares agree.
#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include <skald/skald.hpp>

namespace {

skald::TokenId best(std::span<const float> row) {
  return static_cast<skald::TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
}

}  // namespace

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const std::vector<float> share{argc > 2 ? std::stof(argv[2]) : 0.75F};
  const std::size_t wanted = argc > 3 ? std::stoul(argv[3]) : 64;
  constexpr std::size_t ahead = 4;
  const auto whole = skald::Decoder(model);
  const auto narrow = skald::Decoder(model.nested(share));  // no weight is copied
  const auto prompt = model.tokenizer().encode("Once upon a time");

  auto verifier = whole.new_session();
  auto drafter = narrow.new_session();
  std::vector<skald::TokenId> text{best(verifier.forward(prompt).last())};
  (void)drafter.forward(prompt, skald::LogitsWanted::none);
  std::size_t drafted = 0, accepted = 0, passes = 1;
  while (text.size() < wanted) {
    std::vector<skald::TokenId> draft{text.back()};
    for (std::size_t i = 0; i < ahead; ++i) draft.push_back(best(drafter.forward({&draft.back(), 1}).last()));
    // Row i says what follows draft[i]: the guesses hold up to the first that it contradicts.
    const auto rows = verifier.forward(draft, skald::LogitsWanted::all);
    std::size_t same = 0;
    while (same < ahead && best(rows.row(0, static_cast<std::int64_t>(same))) == draft[same + 1]) ++same;
    text.insert(text.end(), draft.begin() + 1, draft.begin() + 1 + static_cast<std::ptrdiff_t>(same));
    text.push_back(best(rows.row(0, static_cast<std::int64_t>(same))));
    const auto length = static_cast<std::int64_t>(prompt.size() + text.size()) - 1;
    verifier.truncate(length);
    if (drafter.length() < length) (void)drafter.forward(std::span(draft).last(1), skald::LogitsWanted::none);
    drafter.truncate(length);
    drafted += ahead;
    accepted += same;
    ++passes;
  }
  text.resize(wanted);

  std::vector<skald::TokenId> plain;
  auto session = whole.new_session();
  for (auto next = best(session.forward(prompt).last()); plain.size() < wanted;) {
    plain.push_back(next);
    next = best(session.forward({&next, 1}).last());
  }
  std::cout << model.tokenizer().decode(text, {.skip_special = true}) << "\n\n"
            << accepted << " of " << drafted << " guesses accepted (" << 100 * accepted / drafted << " %), " << passes
            << " passes of the whole network for " << wanted << " tokens\n"
            << (text == plain ? "the same text as without guesses\n" : "ANOTHER TEXT\n");
  return text == plain ? 0 : 1;
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
