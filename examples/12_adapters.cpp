// Adapters: small changes of a model's matrices, for some requests and not for others, over weights that stay as they are.
//   adapters [model.gguf [adapter…]]
// Continues one prompt in one batch: without adapters, with each of them, and with all at half strength. Adapters are PEFT
// folders or GGUF files; without any, two random ones are made. Then it drops them all and checks that nothing of them stays.
#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include <skald/skald.hpp>

namespace {

/// A LoRA of rank 4 with random factors over the first matrix of every network.
skald::AdapterFile random_adapter(const skald::Model& model, std::uint64_t seed) {
  skald::AdapterFile file{"random " + std::to_string(seed), {}};
  for (int layer = 0; layer < model.spec().layer_count(); ++layer) {
    const auto* up = model.weight(skald::Role::ffn_up, layer);
    if (up == nullptr) continue;
    skald::AdapterDelta delta;
    delta.tensor = "blk." + std::to_string(layer) + ".ffn_up.weight";
    delta.outputs = up->rows();
    delta.inputs = up->cols();
    delta.rank = 4;
    const auto fill = [&](std::int64_t count) {
      std::vector<float> values(static_cast<std::size_t>(count));
      for (float& value : values) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        value = 0.2F * (static_cast<float>(seed >> 40U) / (1 << 24) - 0.5F);
      }
      return values;
    };
    delta.first = fill(delta.rank * delta.inputs);
    delta.second = fill(delta.rank * delta.outputs);
    file.deltas.push_back(std::move(delta));
  }
  return file;
}

skald::TokenId best(std::span<const float> logits) {
  return static_cast<skald::TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Continues a prompt greedily, all sets of adapters in one batch.
std::vector<std::string> continue_all(const skald::Decoder<>& decoder, const std::string& prompt,
                                      const std::vector<std::vector<skald::ScaledAdapter>>& sets) {
  const auto& tokenizer = decoder.model().tokenizer();
  const auto tokens = tokenizer.encode(prompt);
  std::vector<skald::Session> sessions;
  std::vector<std::vector<skald::TokenId>> found(sets.size());
  skald::Batch batch;
  for (const auto& set : sets) {
    sessions.push_back(decoder.new_session());
    sessions.back().set_adapters(set);
  }
  for (auto& session : sessions) batch.add(session, tokens);
  for (int step = 0; step < 24; ++step) {
    const auto logits = decoder.forward(batch);
    batch.clear();
    for (std::size_t i = 0; i < sets.size(); ++i) {
      found[i].push_back(best(logits.last(i)));
      batch.add(sessions[i], {&found[i].back(), 1});
    }
  }
  std::vector<std::string> texts;
  for (const auto& each : found) texts.push_back(prompt + tokenizer.decode(each));
  return texts;
}

}  // namespace

int main(int argc, char** argv) try {
  const auto model = skald::Model::load(argc > 1 ? argv[1] : SKALD_BUNDLED_MODEL);
  const std::string prompt = "Once upon a time";
  std::string before;
  {
    std::vector<skald::Adapter> adapters;
    for (int i = 2; i < argc; ++i) adapters.push_back(skald::Adapter::load(argv[i], model));
    if (adapters.empty())
      for (const std::uint64_t seed : {1U, 2U})
        adapters.push_back(skald::Adapter::load(random_adapter(model, seed), model));

    std::vector<std::vector<skald::ScaledAdapter>> sets{{}};
    std::vector<skald::ScaledAdapter> all;
    for (const auto& adapter : adapters) {
      sets.push_back({{adapter, 1.0F}});
      all.push_back({adapter, 0.5F});
    }
    sets.push_back(all);
    const skald::Decoder decoder(model, {.context = 256, .parallel = static_cast<std::int32_t>(sets.size())});
    const auto texts = continue_all(decoder, prompt, sets);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      std::cout << (i == 0 ? "base" : i > adapters.size() ? "all at 0.5" : adapters[i - 1].name()) << ": " << texts[i] << '\n';
    }
    for (const auto& adapter : adapters) std::cout << adapter.name() << " takes " << adapter.bytes() << " bytes\n";
    before = texts[0];
  }
  const skald::Decoder decoder(model, {.context = 256});
  const auto after = continue_all(decoder, prompt, {{}});
  std::cout << "without them the text is " << (after[0] == before ? "the base's again" : "another one") << '\n';
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
