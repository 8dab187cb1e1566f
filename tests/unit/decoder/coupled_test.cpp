// The KV format "coupled" (coupled quantization, Zhang et al. 2024, arXiv 2405.03917).

#include <cmath>
#include <cstring>

#include <skald/skald.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"
#include "support/story_grammar.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace skald;

std::vector<float> copy(const Logits& logits) {
  return {logits.row(0).data(), logits.row(0).data() + logits.rows() * logits.vocabulary()};
}

std::vector<float> all_rows(Session& session, std::span<const TokenId> tokens, std::size_t chunk) {
  std::vector<float> rows;
  for (std::size_t i = 0; i < tokens.size(); i += chunk) {
    const auto some = copy(session.forward(tokens.subspan(i, std::min(chunk, tokens.size() - i)), LogitsWanted::all));
    rows.insert(rows.end(), some.begin(), some.end());
  }
  return rows;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

constexpr skald_test::TinyShape small{
    .vocabulary = 96, .dim = 64, .heads = 2, .kv_heads = 2, .head_dim = 32, .ffn = 64};

std::shared_ptr<const CoupledCodebooks> books_of(const Model& model, CoupledShape shape,
                                                 std::span<const std::vector<TokenId>> texts, std::int64_t tokens) {
  return std::make_shared<const CoupledCodebooks>(calibrate_coupled(model, texts, {.shape = shape, .fit = {.iterations = 6}, .tokens = tokens}));
}

/// Mean negative log-likelihood of stories.
double loss(const Decoder<>& decoder) {
  skald_test::StoryGrammar grammar(91);
  double sum = 0;
  std::size_t count = 0;
  for (int i = 0; i < 4; ++i) {
    auto tokens = decoder.model().tokenizer().encode(grammar.story(25).text);
    if (tokens.size() > 400) tokens.resize(400);
    auto session = decoder.new_session();
    const auto logits = session.forward(tokens, LogitsWanted::all);
    for (std::size_t t = 0; t + 1 < tokens.size(); ++t, ++count) {
      const auto row = logits.row(static_cast<std::int64_t>(t));
      double total = 0;
      for (const float x : row) total += std::exp(static_cast<double>(x));
      sum += std::log(total) - static_cast<double>(row[static_cast<std::size_t>(tokens[t + 1])]);
    }
  }
  return sum / static_cast<double>(count);
}

}  // namespace

TEST_CASE("decoder.coupled: one bit per coupled channel keeps clearly more of the model than one bit per channel",
          "[decoder]") {
  const auto model = Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  skald_test::StoryGrammar grammar(1234);
  std::vector<std::vector<TokenId>> texts;
  for (int i = 0; i < 16; ++i) texts.push_back(model.tokenizer().encode(grammar.story(30).text));
  const auto measure = [&](CoupledShape shape) {
    const auto books = books_of(model, shape, texts, 3000);
    const Decoder decoder(model, DecoderOptions{.kv = {.format = "coupled", .codebooks = books}, .context = 512});
    auto session = decoder.new_session();
    const TokenId token = 5;
    (void)session.forward({&token, 1});
    const Decoder plain(model, DecoderOptions{.context = 512});
    auto other = plain.new_session();
    (void)other.forward({&token, 1});
    // A page of f16 takes 16 bits per channel.
    CHECK(session.bytes() * 16 * static_cast<std::size_t>(shape.channels) ==
          other.bytes() * static_cast<std::size_t>(shape.bits));
    return loss(decoder);
  };
  const double exact = loss(Decoder(model, DecoderOptions{.context = 512}));
  const double coupled = measure({8, 8});
  const double apart = measure({1, 1});
  const auto percent = [&](double found) { return 100 * (std::exp(found - exact) - 1); };
  INFO("perplexity over f16: 1 bit coupled " << percent(coupled) << " %, 1 bit apart " << percent(apart) << " %");
  CHECK(percent(coupled) < 0.5 * percent(apart));
}

TEST_CASE("decoder.coupled: chunks, batches, threads, forks, truncation and snapshots change no bit",
          "[decoder][exact]") {
  const auto tokens = skald_test::some_tokens(150, 96, 3);
  const std::vector<std::vector<TokenId>> texts{skald_test::some_tokens(600, 96, 4)};
  const auto one = skald_test::tiny_model(small, {.backend = make_backend("cpu:threads=1")});
  const auto four = skald_test::tiny_model(small, {.backend = make_backend("cpu:threads=4")});
  const auto books = books_of(one, {8, 6}, texts, 600);
  const auto options = [&](std::int64_t batch, std::int32_t page, std::int32_t heads) {
    return DecoderOptions{
        .kv = {.format = "coupled", .page_tokens = page, .heads_per_group = heads, .codebooks = books},
        .context = 256,
        .parallel = 16,
        .batch_tokens = batch};
  };
  const Decoder decoder(one, options(512, 64, 1));
  auto whole = decoder.new_session();
  const auto expected = all_rows(whole, tokens, 150);
  for (const std::size_t chunk : {1, 7, 64}) {
    auto session = decoder.new_session();
    CHECK(same_bits(all_rows(session, tokens, chunk), expected));
  }
  const Decoder other(four, options(16, 16, 2));
  auto session = other.new_session();
  CHECK(same_bits(all_rows(session, tokens, 150), expected));
  // Two at once.
  auto a = decoder.new_session();
  auto b = decoder.new_session();
  Batch batch;
  batch.add(a, std::span(tokens).first(90), LogitsWanted::none);
  batch.add(b, tokens, LogitsWanted::all);
  CHECK(same_bits(copy(decoder.forward(batch)), expected));
  // Back, apart, and from bytes.
  const std::size_t vocabulary = 96;
  const auto rest = std::vector<float>(expected.begin() + static_cast<std::ptrdiff_t>(70 * vocabulary), expected.end());
  b.truncate(70);
  auto fork = b.fork();
  CHECK(same_bits(all_rows(fork, std::span(tokens).subspan(70), 33), rest));
  auto restored = decoder.new_session();
  restored.restore(b.snapshot());
  CHECK(same_bits(all_rows(restored, std::span(tokens).subspan(70), 80), rest));
  PrefixCache cache(decoder);
  (void)cache.insert(b);
  auto cached = cache.new_session(tokens);
  REQUIRE(cached.length() == 70);
  CHECK(same_bits(all_rows(cached, std::span(tokens).subspan(70), 80), rest));
  // A path of a token tree.
  auto tree = decoder.new_session();
  (void)tree.forward(std::span(tokens).first(70), LogitsWanted::none);
  const std::vector<TokenId> nodes{11, tokens[70], 12, tokens[71]};
  const std::vector<std::int32_t> parents{-1, -1, 0, 1};
  Batch branches;
  branches.add_tree(tree, nodes, parents);
  (void)decoder.forward(branches);
  const std::vector<std::int32_t> path{1, 3};
  tree.accept(path);
  const auto later =
      std::vector<float>(expected.begin() + static_cast<std::ptrdiff_t>(72 * vocabulary), expected.end());
  CHECK(same_bits(all_rows(tree, std::span(tokens).subspan(72), 80), later));
}

TEST_CASE("decoder.coupled: the reference backend agrees, what does not fit is refused by name", "[decoder]") {
  const std::vector<std::vector<TokenId>> texts{skald_test::some_tokens(600, 96, 4)};
  const auto fast = skald_test::tiny_model(small);
  const auto slow = skald_test::tiny_model(small, {.backend = make_reference_backend()});
  const auto books = books_of(fast, {4, 8}, texts, 600);
  const auto tokens = skald_test::some_tokens(40, 96, 3);
  const DecoderOptions options{.kv = {.format = "coupled", .codebooks = books}, .context = 256};
  const Decoder decoder(fast, options);
  CHECK(decoder.effective_config().kv_format == books->name());
  auto a = decoder.new_session();
  auto b = Decoder(slow, options).new_session();
  const auto first = all_rows(a, tokens, 40);
  const auto second = all_rows(b, tokens, 40);
  double most = 0;
  for (std::size_t i = 0; i < first.size(); ++i)
    most = std::max(most, std::abs(static_cast<double>(first[i] - second[i])));
  CHECK(most < 0.05);  // a key on the border of two centroids may get either
  CHECK_THROWS_AS(Decoder(fast, DecoderOptions{.kv = {.format = "coupled"}}), UsageError);
  CHECK_THROWS_AS(Decoder(fast, DecoderOptions{.kv = {.codebooks = books}}), UsageError);
  CHECK_THROWS_AS(
      Decoder(fast, DecoderOptions{.kv = {.format = "coupled", .eviction = "h2o:budget=128", .codebooks = books}}),
      IncompatibleError);
  auto wide = small;
  wide.head_dim = 64;
  CHECK_THROWS_AS(Decoder(skald_test::tiny_model(wide), options), IncompatibleError);
  CHECK_THROWS_AS(compress_context(a), IncompatibleError);
  auto plain = Decoder(fast, DecoderOptions{.context = 256}).new_session();
  CHECK_THROWS_AS(plain.restore(a.snapshot()), IncompatibleError);
  CHECK_THROWS_AS(calibrate_coupled(fast, {}, {}), UsageError);
}
