// Several sessions on one model: one shared prompt is computed once and forked; all sessions decode in one batch.
//   many_sessions [model.gguf] [sessions]
// Prints that many different stories with the same beginning.
#include <iostream>
#include <string>
#include <vector>

#include <skald/skald.hpp>

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const int count = argc > 2 ? std::stoi(argv[2]) : 4;
  const auto decoder = skald::Decoder(model, {.parallel = count + 1});
  const auto& tokenizer = model.tokenizer();

  auto prompt = decoder.new_session();
  auto logits = prompt.forward(tokenizer.encode("Once upon a time"));

  std::vector<skald::Session> sessions;
  std::vector<skald::SamplerChain> samplers;
  std::vector<skald::TokenId> next;
  for (int i = 0; i < count; ++i) {
    sessions.push_back(prompt.fork());  // pages are shared until a session writes
    sessions.back().set_random_stream(static_cast<std::uint64_t>(i));
    samplers.push_back(skald::make_sampler({.temperature = 0.8F, .seed = 7}));
    next.push_back(samplers.back().sample(logits.last(), sessions.back()));
  }

  skald::Batch batch;
  for (int step = 0; step < 48; ++step) {
    batch.clear();
    for (int i = 0; i < count; ++i) batch.add(sessions[i], {&next[i], 1});
    logits = decoder.forward(batch);
    for (int i = 0; i < count; ++i) next[i] = samplers[i].sample(logits.last(i), sessions[i]);
  }
  for (const auto& session : sessions)
    std::cout << "* " << tokenizer.decode(session.tokens(), {.skip_special = true}) << "\n\n";
  std::cout << "one step computes " << count << " tokens; KV pages in use: " << decoder.counters().kv_pages_used
            << '\n';
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
