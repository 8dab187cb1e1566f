// Relevance without generating: orders texts for a query, twice.
//   rerank [model.gguf]
// Pointwise: how probable the query is after each text. Listwise: which identifier the model would name first.
#include <algorithm>
#include <iomanip>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const auto decoder = skald::Decoder(model);
  const auto& tokenizer = model.tokenizer();
  const std::vector<std::string> texts = {"The sky was clear.", "Nora was a small fox.",
                                          "Hugo hid the key in the barn."};
  std::cout << std::fixed << std::setprecision(3);

  // One pass for all: the answer's log-probability after each text.
  std::vector<double> means;
  for (const auto& text : texts) {
    const auto prefix = tokenizer.encode(text + "\n\nQuestion: Who is Nora?\nAnswer:");
    const std::vector<std::vector<skald::TokenId>> answer{
        tokenizer.encode(" Nora is a small fox.", {.add_special = false})};
    means.push_back(skald::score_continuations(decoder, prefix, answer)[0].mean());
    std::cout << means.back() << " nats per token after: " << text << '\n';
  }
  std::cout << "best: " << texts[static_cast<std::size_t>(std::max_element(means.begin(), means.end()) - means.begin())]
            << '\n';

  skald::ListwiseOptions list;
  list.identifiers = {" 1", " 2", " 3"};
  list.before_id = "";
  list.after_id = ": ";
  list.question = "\nAnswer:";
  auto session = decoder.new_session();
  const auto ranked = skald::rerank(session, tokenizer.encode("Question: Who is Nora?\n"), texts, list);
  for (std::size_t i = 0; i < ranked.order.size(); ++i)
    std::cout << i + 1 << ". " << ranked.windows[0].scores.probabilities[ranked.order[i]] << "  "
              << texts[ranked.order[i]] << '\n';
  std::cout << decoder.counters().logits_rows << " rows of logits, no token generated\n";
  return 0;
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
