// Vectors instead of tokens: the first layer is given rows of floats, as an image encoder or a soft prompt would.
//   embeddings_in [model.gguf]
// Prints "5 embedding rows of 256 values; logits equal those of the tokens"; equal means: to the last bit.
#include <algorithm>
#include <iostream>
#include <vector>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const auto decoder = skald::Decoder(model);
  const auto tokens = model.tokenizer().encode("Once upon a time");

  // The embedding rows of the prompt, taken from the model itself: the logits must be those of the tokens.
  const auto rows = skald::embedding_rows(model, tokens);

  auto by_tokens = decoder.new_session();
  const auto expected = by_tokens.forward(tokens).last();
  const std::vector<float> reference(expected.begin(), expected.end());

  auto by_vectors = decoder.new_session();
  skald::Batch batch;
  batch.add_embeddings(by_vectors, rows, static_cast<std::int64_t>(tokens.size()));
  const auto logits = decoder.forward(batch).last();

  const bool equal = std::equal(logits.begin(), logits.end(), reference.begin());
  std::cout << tokens.size() << " embedding rows of " << model.spec().dim << " values; logits "
            << (equal ? "equal" : "differ from") << " those of the tokens\n";
  return equal ? 0 : 1;
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
