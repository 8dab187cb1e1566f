// Generates text with a model file: load, decode, print as it comes.
//   hello_generate [model.gguf] [prompt]
// Prints the prompt, its continuation piece by piece, and at the end "128 tokens, <n> tokens/s".
#include <iostream>
#include <string>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const std::string path = argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL;
  const std::string prompt = argc > 2 ? argv[2] : "Once upon a time";

  const auto model = skald::Model::load(path);
  const auto decoder = skald::Decoder(model);
  auto session = decoder.new_session();

  std::cout << prompt;
  auto text = skald::generate(session, prompt, {.max_tokens = 128, .sampler = {.temperature = 0.8F, .seed = 1}});
  for (const auto& piece : text) std::cout << piece.text << std::flush;

  const auto timing = text.timing();
  std::cout << "\n\n" << timing.generated_tokens << " tokens, " << timing.tokens_per_second() << " tokens/s\n";
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
