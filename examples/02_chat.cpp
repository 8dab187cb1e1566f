// A conversation on the terminal, with the model's own chat template. Only the new turn is computed each time.
//   chat [model.gguf]
// Prints "> ", reads a line, prints the model's reply; the end of the input (Ctrl-D) ends the conversation.
#include <iostream>
#include <string>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const auto decoder = skald::Decoder(model);
  skald::Chat chat(decoder.new_session(), {.max_tokens = 200, .sampler = {.temperature = 0.7F}});

  for (std::string line; std::cout << "> " << std::flush, std::getline(std::cin, line);) {
    if (line.empty()) continue;
    for (const auto& piece : chat.send(line)) std::cout << piece.text << std::flush;
    std::cout << '\n';
  }
  std::cout << '\n';
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
