// Hidden states and pooled embeddings.
#include <cmath>

#include <nlohmann/json.hpp>

#include <skald/decoder/embed.hpp>
#include <skald/simd/isa.hpp>

#include "support/shared_data.hpp"
#include "support/tiny_model.hpp"

#include "support/catch.hpp"

namespace {

using nlohmann::json;
using skald_test::shared_path;
using Texts = std::vector<std::vector<skald::TokenId>>;

std::vector<skald::AnyBackend> backends() {
  std::vector<skald::AnyBackend> list{skald::make_reference_backend()};
  for (const auto isa : skald::available_isas())
    list.push_back(skald::make_backend("cpu:isa=" + std::string(skald::to_string(isa))));
  return list;
}

double distance(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return largest;
}

std::vector<float> hidden_states(const skald::Decoder<>& decoder, const std::vector<skald::TokenId>& tokens) {
  auto session = decoder.new_session();
  std::vector<float> hidden;
  skald::Batch batch;
  batch.add(session, tokens, skald::LogitsWanted::none);
  skald::ForwardOptions options;
  options.hidden = &hidden;
  decoder.forward(batch, options);
  return hidden;
}

skald::Decoder<> llama(const skald::AnyBackend& backend, std::int64_t batch_tokens = 512) {
  skald_test::TinyShape shape;
  skald::LoadOptions options;
  options.backend = backend;
  return skald::Decoder<>(skald_test::tiny_model(shape, options), {.batch_tokens = batch_tokens});
}

}  // namespace

TEST_CASE("decoder.embed: encoders give the reference engine's hidden states and pooled vectors", "[decoder][golden]") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const std::string name : {"bert", "nomic-bert"})
    for (const auto& backend : backends()) {
      INFO(name << " on " << backend->info().name << " " << backend->info().isa);
      const std::string folder = "goldens/logits/" + name;
      const auto description = json::parse(skald_test::read_text(shared_path(folder + ".json")));
      const auto texts = description.at("prompts").get<Texts>();
      const double loose = description.at("tolerance_max_abs").at("vs_llama_cpp").get<double>();
      const auto model = skald::Model::load(shared_path("goldens/models/" + name + ".gguf"),
                                            {.backend = backend, .tokenizer = false});
      CHECK_FALSE(model.spec().causal());
      CHECK(skald::to_string(model.spec().pooling) == description.at("pooling").get<std::string>());
      const skald::Decoder<> decoder(model, {.kv = {.format = "f32"}});
      const auto pooled = skald::embed(decoder, texts, {.normalize = false});
      REQUIRE(pooled.size() == texts.size());
      for (std::size_t k = 0; k < texts.size(); ++k) {
        const std::string prompt = folder + ".p" + std::to_string(k + 1);
        const auto hidden = hidden_states(decoder, texts[k]);
        CHECK(distance(hidden, skald_test::read_floats(shared_path(prompt + ".tokens.f32"))) <= loose);
        CHECK(distance(pooled[k], skald_test::read_floats(shared_path(prompt + ".pooled.f32"))) <= loose);
        const std::string exact = shared_path(prompt + ".ref64.tokens.f32");
        if (std::filesystem::exists(exact)) CHECK(distance(hidden, skald_test::read_floats(exact)) <= 5e-4);
        auto session = decoder.new_session();
        CHECK_THROWS_AS(session.forward(texts[k]), skald::UsageError);  // no head
      }
    }
}

TEST_CASE("decoder.embed: a text's vector depends on neither the other texts nor the cuts of the batch", "[decoder]") {
  for (const auto& backend : backends()) {
    const auto decoder = llama(backend);
    const auto cut = llama(backend, 5);
    Texts texts;
    for (std::uint64_t i = 0; i < 7; ++i)
      texts.push_back(skald_test::some_tokens(static_cast<std::int64_t>(3 + 4 * i), 64, 11 + i));
    const auto together = skald::embed(decoder, texts);
    const auto in_pieces = skald::embed(cut, texts);
    CHECK(together.values == in_pieces.values);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const auto alone = skald::embed(decoder, std::span<const skald::TokenId>(texts[i]));
      CHECK(std::vector<float>(together[i].begin(), together[i].end()) == alone);
      CHECK(skald::similarity(alone, alone) == Approx(1.0).margin(1e-5));
    }
  }
}

TEST_CASE("decoder.embed: pools by mean, first and last token and truncates before it normalizes", "[decoder]") {
  const auto decoder = llama(skald::make_reference_backend());
  const auto tokens = skald_test::some_tokens(9, 64);
  const auto hidden = hidden_states(decoder, tokens);
  const auto dim = static_cast<std::size_t>(decoder.model().spec().dim);
  const auto with = [&](skald::EmbedOptions options) {
    return skald::embed(decoder, std::span<const skald::TokenId>(tokens), options);
  };
  const auto cls = with({.pooling = skald::Pooling::cls, .normalize = false});
  const auto last = with({.pooling = skald::Pooling::last, .normalize = false});
  const auto mean = with({.pooling = skald::Pooling::mean, .normalize = false});
  for (std::size_t j = 0; j < dim; ++j) {
    CHECK(cls[j] == hidden[j]);
    CHECK(last[j] == hidden[8 * dim + j]);
    double sum = 0;
    for (std::size_t i = 0; i < 9; ++i) sum += static_cast<double>(hidden[i * dim + j]);
    CHECK(mean[j] == Approx(sum / 9).margin(1e-6));
  }
  const auto half = with({.pooling = skald::Pooling::cls, .dims = static_cast<std::int64_t>(dim / 2)});
  REQUIRE(half.size() == dim / 2);
  CHECK(skald::similarity(half, half) == Approx(1.0).margin(1e-5));
  CHECK(half[0] / half[1] == Approx(cls[0] / cls[1]).epsilon(1e-4));
  CHECK_THROWS_AS(with({.dims = static_cast<std::int64_t>(dim + 1)}), skald::UsageError);
  CHECK_THROWS_AS(with({.pooling = skald::Pooling::rank}), skald::UnsupportedError);  // there is no classifier
  CHECK_THROWS_AS(skald::embed(decoder, std::span<const skald::TokenId>()), skald::UsageError);
  CHECK_THROWS_AS(skald::similarity(half, cls), skald::UsageError);
}

TEST_CASE("decoder.forward: a model whose tokens see each other needs them in one pass", "[decoder]") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto model = skald::Model::load(shared_path("goldens/models/llada.gguf"),
                                        {.backend = skald::make_reference_backend(), .tokenizer = false});
  const skald::Decoder<> decoder(model, {.batch_tokens = 8});
  auto session = decoder.new_session();
  const auto tokens = skald_test::some_tokens(9, model.spec().vocabulary);
  CHECK_THROWS_AS(session.forward(tokens), skald::UsageError);
  CHECK(session.length() == 0);
  CHECK_NOTHROW(session.forward(std::span(tokens).first(8)));
  CHECK_THROWS_AS(skald::Decoder<>(model, {.kv = {.eviction = "recent_pages:sinks=1,recent=8"}}),
                  skald::IncompatibleError);
}
