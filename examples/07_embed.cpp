// Texts as vectors: which of the others is closest to the first?
//   embed [model.gguf]
// Prints each text with its cosine to the first. Any model works; encoders (BERT, Nomic Embed) were trained for it.
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const auto decoder = skald::Decoder(model);
  const std::vector<std::string> texts = {"Lily found a red ball in the garden.", "A girl finds a toy outside.",
                                          "The old ship sank in the storm."};

  std::vector<std::vector<skald::TokenId>> tokens;
  for (const auto& text : texts) tokens.push_back(model.tokenizer().encode(text));
  const auto vectors = skald::embed(decoder, tokens);

  std::cout << vectors.size() << " vectors of " << vectors.dims << " values\n" << std::fixed << std::setprecision(3);
  for (std::size_t i = 1; i < texts.size(); ++i)
    std::cout << skald::similarity(vectors[0], vectors[i]) << "  " << texts[i] << '\n';
  return 0;
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
