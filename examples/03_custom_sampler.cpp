// A sampler of one's own: any type that satisfies skald::Sampler joins the chain.
//   custom_sampler [model.gguf]
// Prints a text in which no token occurs twice within any seven in a row, which makes it a little strange.
#include <iostream>
#include <string>

#include <skald/skald.hpp>

/// Never lets a token come twice within the last `window` tokens.
struct NoRepeat {
  std::size_t window = 8;
  [[nodiscard]] std::string name() const { return "no_repeat"; }
  void apply(skald::Candidates& candidates, const skald::SamplingContext& context) const {
    const auto recent = context.history.last(std::min(window, context.history.size()));
    for (const auto token : recent) candidates.forbid(token);
  }
};
static_assert(skald::Sampler<NoRepeat>);

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const auto decoder = skald::Decoder(model);
  auto session = decoder.new_session();

  skald::SamplerChain chain;
  chain.add(NoRepeat{.window = 6}).add(skald::TopK{40}).add(skald::Temperature{0.8F});

  const std::string prompt = "Once upon a time";
  std::cout << prompt;
  for (const auto& piece : skald::generate(session, prompt, {.max_tokens = 64, .chain = chain}))
    std::cout << piece.text << std::flush;
  std::cout << '\n';
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
