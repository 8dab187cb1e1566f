// Time to the first token with keys and values that a small model predicts, beside the whole prompt through the big one.
//   skald_prediction_speed big.gguf small.gguf [tokens [rounds]]
// The tokens and the maps are random: times do not depend on what they are. Both ways take turns. Prints CSV.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <skald/decoder/decoder.hpp>
#include <skald/decoder/kv_prediction.hpp>

namespace {

template <class Work>
double seconds(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<skald::KvMap> random_maps(const skald::ModelSpec& big, const skald::ModelSpec& small) {
  std::mt19937 random(2);
  std::vector<skald::KvMap> maps(big.layers.size());
  for (std::size_t l = 0; l < maps.size(); ++l) {
    maps[l].layer = static_cast<int>(l * small.layers.size() / maps.size());
    const auto& to = *big.layers[l].attention;
    const auto& from = *small.layers[static_cast<std::size_t>(maps[l].layer)].attention;
    maps[l].keys.resize(static_cast<std::size_t>(to.k_cols() * from.k_cols()));
    maps[l].values.resize(static_cast<std::size_t>(to.v_cols() * from.v_cols()));
    for (auto* map : {&maps[l].keys, &maps[l].values})
      for (float& x : *map) x = (static_cast<float>(random() % 2001U) - 1000.0F) * 1e-5F;
  }
  return maps;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s big.gguf small.gguf [tokens [rounds]]\n", argv[0]);
    return 2;
  }
  const auto big = skald::Model::load(argv[1]);
  const auto small = skald::Model::load(argv[2]);
  const auto count = static_cast<std::size_t>(argc > 3 ? std::stoul(argv[3]) : 1024);
  const int rounds = argc > 4 ? std::stoi(argv[4]) : 1;
  const skald::DecoderOptions options{.context = static_cast<std::int64_t>(count) + 64};
  const skald::Decoder base(big, options);
  const skald::Decoder auxiliary(small, options);
  const skald::KvPredictor predictor(auxiliary, base, random_maps(big.spec(), small.spec()));
  std::mt19937 random(1);
  std::vector<skald::TokenId> tokens(count);
  for (auto& token : tokens)
    token = static_cast<skald::TokenId>(random() % static_cast<std::uint32_t>(big.spec().vocabulary));
  const auto prompt = std::span(std::as_const(tokens));
  std::printf("tokens,whole prompt s,small model alone s,predicted s,whole / predicted\n");
  for (int round = -1; round < rounds; ++round) {  // the first one warms up
    auto whole_session = base.new_session();
    const double whole = seconds([&] { (void)whole_session.forward(prompt); });
    whole_session.clear();
    auto small_session = auxiliary.new_session();
    const double alone = seconds([&] { (void)small_session.forward(prompt); });
    small_session.clear();
    const double predicted = seconds([&] {
      auto session = predictor.predict(prompt.first(count - 1));
      (void)session.forward(prompt.subspan(count - 1));
    });
    if (round < 0) continue;
    std::printf("%zu,%.3f,%.3f,%.3f,%.2f\n", count, whole, alone, predicted, whole / predicted);
    std::fflush(stdout);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
