// Conversations with models whose layers forget: only what is new is computed.
#include <skald/decoder/decoder.hpp>
#include <skald/generate/chat.hpp>
#include <skald/model/decoder_traits.hpp>
#include <skald/model/plan.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

namespace {

constexpr std::int32_t window = 48;

/// The bundled model with a sliding window in every other layer.
skald::Model windowed() {
  skald::LoadOptions options;
  options.architectures.push_back({"llama", "windowed", [](skald::HyperParameters& parameters) {
                                     auto spec = skald::read_decoder(parameters, {});
                                     for (std::size_t i = 0; i < spec.layers.size(); i += 2)
                                       spec.layers[i].attention->window = window;
                                     return spec;
                                   }});
  return skald::Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"), options);
}

}  // namespace

TEST_CASE("generate.chat: a turn on a model with sliding windows computes its new tokens and at most a window",
          "[generate]") {
  const skald::Decoder decoder(windowed(), {.kv = {.page_tokens = 16}, .context = 1024, .parallel = 2});
  for (const float temperature : {0.0F, 1.5F}) {  // hot replies are spelled in tokens that a tokenizer would not choose
    skald::GenerateOptions options{.max_tokens = 40, .sampler = {.temperature = temperature, .seed = 3}};
    skald::Chat chat(decoder.new_session(), options);
    std::string asked =
        "Mara was a small fox. Hugo was an old owl. Mara felt sad. Hugo hid the red key in the barn. The "
        "secret number of Mara is 4 7 1. It was raining. They played until the moon came up. How does Mara "
        "feel?";
    std::int64_t known = 0;
    for (int turn = 0; turn < 4; ++turn) {
      auto& reply = chat.send(asked);
      const auto before = decoder.counters().tokens;
      (void)reply.collect();
      const auto computed = static_cast<std::int64_t>(decoder.counters().tokens - before);
      const auto held = chat.session().length();
      INFO("turn " << turn << ": " << computed << " computed, " << held << " held, " << known << " known");
      if (turn > 0) CHECK(computed <= held - known + window);
      CHECK(computed >= held - known);
      // Cold: the same tokens from nothing give the same logits.
      auto cold = decoder.new_session();
      const std::vector<skald::TokenId> tokens(chat.session().tokens().begin(), chat.session().tokens().end());
      const skald::TokenId next = 7;
      (void)cold.forward(tokens, skald::LogitsWanted::none);
      const auto expected = cold.forward({&next, 1}).last();
      const std::vector<float> row(expected.begin(), expected.end());
      auto warm = chat.session().fork();
      const auto found = warm.forward({&next, 1}).last();
      CHECK(std::equal(found.begin(), found.end(), row.begin(), row.end()));
      known = held;
      asked = "Who is Hugo? " + std::to_string(turn);
    }
  }
}

TEST_CASE("generate.chat: the plan counts the window and a page of layers that have one, and holds", "[generate]") {
  const auto model = windowed();
  const skald::PlanOptions options{
      .context = 1024, .sequences = 2, .kv_type = skald::DType::f16, .page_tokens = 16, .batch_tokens = 64};
  const auto planned = skald::plan(model.spec(), skald::DType::q8_0, options);
  auto whole = model.spec();
  for (auto& layer : whole.layers) layer.attention->window = 0;
  const auto full = skald::plan(whole, skald::DType::q8_0, options);
  // Half of the layers: 2 sequences of 3 + 1 pages, a batch of 4 pages over two sequences.
  const auto page_bytes = full.kv / (4 * 2 * 2 * 64);  // layers, heads, sequences, pages
  CHECK(planned.kv == page_bytes * (2 * 2 * 2 * 64 + 2 * 2 * (2 * 4 + 4 + 1)));
  const skald::Decoder decoder(model, {.kv = {.page_tokens = 16}, .context = 1024, .parallel = 2, .batch_tokens = 64});
  auto one = decoder.new_session();
  auto two = decoder.new_session();
  std::vector<skald::TokenId> tokens(31, 5);
  skald::Batch batch;
  for (int i = 0; i < 33; ++i) {
    batch.clear();
    batch.add(one, tokens, skald::LogitsWanted::none).add(two, tokens, skald::LogitsWanted::none);
    (void)decoder.forward(batch);
  }
  CHECK(decoder.counters().kv_pages_peak * page_bytes <= planned.kv);
  CHECK(one.bytes() + two.bytes() <= planned.kv);
}
