#include <algorithm>
#include <ranges>

#include <skald/decoder/decoder.hpp>
#include <skald/generate/chat.hpp>
#include <skald/generate/generate.hpp>

#include "support/shared_data.hpp"
#include "support/tiny_model.hpp"

namespace {

const skald::Model& bundled() {
  static const auto model = skald::Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  return model;
}

skald::GenerateOptions greedy(std::int64_t tokens) { return {.max_tokens = tokens, .sampler = {.temperature = 0.0F}}; }

}  // namespace

static_assert(std::ranges::input_range<skald::Generation>);

TEST_CASE("generate: pieces concatenate to the text, which is the decoding of the tokens", "[generate]") {
  const skald::Decoder decoder(bundled());
  auto session = decoder.new_session();
  auto generation = skald::generate(session, "Once upon a time", greedy(60));
  std::string text;
  std::vector<skald::TokenId> tokens;
  for (const auto& piece : generation) {
    text += piece.text;
    if (piece.token >= 0) tokens.push_back(piece.token);
    CHECK(piece.logprob <= 0.0F);
  }
  CHECK(generation.finish_reason() == skald::FinishReason::length);
  CHECK(tokens.size() == 60);
  CHECK(text == generation.text());
  CHECK(std::ranges::equal(tokens, generation.tokens()));
  auto all = bundled().tokenizer().encode("Once upon a time");
  const auto prompt_text = bundled().tokenizer().decode(all);
  all.insert(all.end(), tokens.begin(), tokens.end());
  CHECK(prompt_text + text == bundled().tokenizer().decode(all));
  CHECK(session.length() + 1 == static_cast<std::int64_t>(all.size()));  // the last token was not run
  const auto timing = generation.timing();
  CHECK(timing.generated_tokens == 60);
  CHECK(timing.first_token_seconds > 0);
  CHECK(timing.decode_seconds > 0);
  CHECK_THROWS_AS(generation.begin(), skald::UsageError);
}

TEST_CASE("generate: a stop string is found across token borders, and nothing of it leaks", "[generate]") {
  const skald::Decoder decoder(bundled());
  auto plain = decoder.new_session();
  const auto whole = skald::generate(plain, "Once upon a time", greedy(60)).collect();
  REQUIRE(whole.size() > 40);
  for (const std::size_t at : {1u, 7u, 20u, 33u})
    for (const std::size_t length : {1u, 3u, 12u}) {
      const auto stop = whole.substr(at, length);
      const auto first = whole.find(stop);
      auto session = decoder.new_session();
      auto options = greedy(60);
      options.stop = {"never in the text", stop};
      auto generation = skald::generate(session, "Once upon a time", options);
      std::string text;
      for (const auto& piece : generation) {
        text += piece.text;
        CHECK(whole.substr(0, first).starts_with(text));
      }
      CHECK(text == whole.substr(0, first));
      CHECK(generation.finish_reason() == skald::FinishReason::stop_string);
    }
  // A stop string that almost comes: what was held back is emitted in the end.
  auto session = decoder.new_session();
  auto options = greedy(60);
  options.stop = {whole.substr(whole.size() - 5) + "\x01"};
  CHECK(skald::generate(session, "Once upon a time", options).collect() == whole);
}

TEST_CASE("generate: a full session, a cancelled one and bad options end or are refused as documented", "[generate]") {
  const skald::Decoder decoder(bundled(), {.context = 24});
  auto session = decoder.new_session();
  auto options = greedy(-1);
  options.ignore_eos = true;
  auto full = skald::generate(session, "Once upon a time", options);
  (void)full.collect();
  CHECK(full.finish_reason() == skald::FinishReason::context);
  CHECK(session.length() == 24);

  std::stop_source source;
  session.clear();
  options.stop_token = source.get_token();
  auto cancelled = skald::generate(session, "Once upon a time", options);
  int pieces = 0;
  for (const auto& piece : cancelled) {
    (void)piece;
    if (++pieces == 5) source.request_stop();
  }
  CHECK(cancelled.finish_reason() == skald::FinishReason::cancelled);
  CHECK(pieces == 5);
  // The session goes on as if nothing had happened.
  auto fresh = decoder.new_session();
  (void)fresh.forward(std::vector(session.tokens().begin(), session.tokens().end()));
  const skald::TokenId next = 42;
  const auto a = session.forward({&next, 1}).last();
  const std::vector<float> row(a.begin(), a.end());
  CHECK(std::ranges::equal(row, fresh.forward({&next, 1}).last()));

  CHECK_THROWS_AS(skald::generate(session, "x", {.max_tokens = -2}), skald::UsageError);
  CHECK_THROWS_AS(skald::generate(session, "x", {.logprobs = -1}), skald::UsageError);
  CHECK_THROWS_AS(skald::generate(session, std::span<const skald::TokenId>{}), skald::UsageError);
  auto empty = decoder.new_session();
  auto nothing = skald::generate(empty, "Once", greedy(0));
  CHECK(nothing.collect().empty());
  CHECK(nothing.finish_reason() == skald::FinishReason::length);
  CHECK(empty.length() > 0);
}

TEST_CASE("generate: logprobs are those of the softmax, the best first", "[generate]") {
  const skald::Decoder decoder(bundled());
  auto session = decoder.new_session();
  auto options = greedy(5);
  options.logprobs = 3;
  for (const auto& piece : skald::generate(session, "Once upon a time", options)) {
    REQUIRE(piece.top.size() == 3);
    CHECK(piece.top[0].token == piece.token);
    CHECK(piece.top[0].logprob == piece.logprob);
    CHECK(piece.top[0].logprob >= piece.top[1].logprob);
  }
  auto check = decoder.new_session();
  const auto prompt = bundled().tokenizer().encode("Once upon a time");
  const auto logits = check.forward(prompt).last();
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  auto again = decoder.new_session();
  auto first = skald::generate(again, prompt, options);
  const auto piece = *first.begin();
  CHECK(piece.logprob == Approx(std::log(std::exp(logits[static_cast<std::size_t>(piece.token)]) / sum)).margin(1e-4));
}

TEST_CASE("generate: equal seeds give equal text, whatever else the decoder does, and forks with other streams differ", "[generate]") {
  const skald::Decoder decoder(bundled());
  const auto run = [&](std::uint64_t seed, std::uint64_t stream) {
    auto session = decoder.new_session();
    session.set_random_stream(stream);
    return skald::generate(session, "Once upon a time", {.max_tokens = 40, .sampler = {.temperature = 1.0F, .seed = seed}})
        .collect();
  };
  const auto text = run(3, 0);
  CHECK(run(3, 0) == text);
  CHECK(run(4, 0) != text);
  CHECK(run(3, 1) != text);
}

TEST_CASE("generate.chat: a second turn computes only what is new", "[generate]") {
  if (bundled().chat_template() == nullptr) {
    const skald::Decoder decoder(bundled());
    CHECK_THROWS_AS(skald::Chat(decoder.new_session()), skald::UsageError);
    WARN("the bundled model has no chat template");
    return;
  }
  const skald::Decoder decoder(bundled());
  skald::Chat chat(decoder.new_session(), greedy(30));
  (void)chat.send("Tell me a story.").collect();
  const auto before = decoder.counters().tokens;
  const auto known = chat.session().length();
  auto& reply = chat.send("Who is in it?");
  (void)reply.collect();
  CHECK(chat.messages().size() == 3);
  const auto computed = static_cast<std::int64_t>(decoder.counters().tokens - before);
  CHECK(computed < known + 30);
  CHECK(reply.timing().prompt_tokens < known);
}
