// A host program: loads the installed model and generates a few tokens.
#include <iostream>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : MODEL);
  const auto decoder = skald::Decoder(model);
  auto session = decoder.new_session();
  auto text = skald::generate(session, "Once upon a time", {.max_tokens = 24, .sampler = {.temperature = 0.0F}});
  const auto story = text.collect();
  std::cout << "Once upon a time" << story << '\n';
  return story.size() > 20 ? 0 : 1;
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
