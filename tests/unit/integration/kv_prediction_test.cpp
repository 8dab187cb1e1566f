// Keys and values of a big model made of a small one's (Horton et al. 2024, arXiv 2410.08391).
#include <skald/core/byte_source.hpp>
#include <skald/decoder/context_file.hpp>
#include <skald/decoder/kv_prediction.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/state/kv_rows.hpp>
#include <skald/state/paged_kv.hpp>

#include <algorithm>
#include <cmath>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

const TinyShape big{.layers = 3, .type = skald::DType::q8_0};
const TinyShape small{.dim = 256, .layers = 1, .heads = 2, .kv_heads = 1, .ffn = 256, .type = skald::DType::q8_0};

double distance(const Rows& a, const Rows& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2.0);
  return std::sqrt(sum);
}

/// Keys and values of a head in the first layer.
Rows first_layer(const skald::Session& session, int head) {
  const auto& kv = static_cast<const skald::PagedKv&>(*session.state().layer(0));
  const auto& layout = kv.pool().layout();
  Rows rows;
  Rows row(static_cast<std::size_t>(layout.head_dim_k));
  for (std::int64_t t = 0; t < session.length(); ++t) {
    const auto* page = kv.pool().address(kv.pages(head)[static_cast<std::size_t>(t / layout.page_tokens)]);
    const auto slot = static_cast<std::int32_t>(t % layout.page_tokens);
    skald::read_kv_key(layout, page, 0, slot, row);
    rows.insert(rows.end(), row.begin(), row.end());
    skald::read_kv_value(layout, page, 0, slot, row);
    rows.insert(rows.end(), row.begin(), row.end());
  }
  return rows;
}

}  // namespace

TEST_CASE("integration.kv_prediction: with the base model as its own auxiliary and equal maps the logits are the base's, bit for bit") {
  const auto model = tiny_model(big, {.backend = cpu_with(2)});
  for (const std::string format : {"f16", "q8_0", "f32"}) {
    INFO(format);
    const skald::Decoder base(model, {.kv = {.format = format}});
    const skald::Decoder auxiliary(model, {.kv = {.format = format}});
    const skald::KvPredictor predictor(auxiliary, base, {{0}, {1}, {2}});
    const auto tokens = some_tokens(100, big.vocabulary);
    auto session = predictor.predict(std::span(tokens).first(99));
    // Nothing of the base model ran over the prompt.
    CHECK(base.counters().forward_passes == 0);
    CHECK(base.counters().tokens == 0);
    CHECK(auxiliary.counters().tokens == 99);
    CHECK(session.length() == 99);
    auto plain = base.new_session();
    CHECK(same_bits(next_row(session, tokens[99]), copy(plain.forward(tokens))));
    CHECK(base.counters().tokens == 1 + 100);
    CHECK(same_bits(next_row(session, 4), next_row(plain, 4)));
    CHECK(equals_fresh(base, session));
  }
}

TEST_CASE("integration.kv_prediction: a prefix cache takes sessions that were predicted or stored with a loss only under a scope") {
  const auto model = tiny_model(big, {.backend = cpu_with(1)});
  const skald::Decoder decoder(model);
  const auto tokens = some_tokens(80, big.vocabulary);
  const auto first = std::span(tokens).first(70);
  const skald::KvPredictor predictor(decoder, decoder, {{0}, {1}, {2}});
  auto predicted = predictor.predict(first);
  auto computed = decoder.new_session();
  (void)computed.forward(first);
  const skald::AnyExecutor serial(std::make_shared<skald::SerialExecutor>());
  auto stored = decoder.new_session();
  const auto bytes = skald::compress_context(computed, {.executor = serial});
  const skald::CallbackSource source(bytes.size(), [&](std::uint64_t offset, std::span<std::byte> out) {
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
  });
  (void)skald::ContextFile({source, "context"}).load(stored, {.executor = serial});
  auto restored = decoder.new_session();
  restored.restore(predicted.snapshot());

  skald::PrefixCache cache(decoder);
  for (const auto* session : {&predicted, &stored, &restored}) {
    CHECK_THROWS_AS(cache.insert(*session), skald::UsageError);
    CHECK_THROWS_AS(cache.insert(session->fork()), skald::UsageError);
    CHECK(cache.insert(*session, "guessed"));
  }
  CHECK(cache.match(tokens) == 0);
  const auto hit = cache.new_session(tokens, "guessed");
  CHECK(hit.length() == 70);
  CHECK_THROWS_AS(cache.insert(hit), skald::UsageError);
  // Cleared and computed, a session is like any other.
  predicted.clear();
  (void)predicted.forward(first);
  CHECK(cache.insert(predicted));
  CHECK(cache.match(tokens) == 70);
}

TEST_CASE("integration.kv_prediction: a small model's cache becomes one of the big model's shape, on which it goes on") {
  const auto base_model = tiny_model(big, {.backend = cpu_with(2)});
  const auto small_model = tiny_model(small, {.backend = cpu_with(2)});
  const skald::Decoder base(base_model, {.kv = {.format = "f32", .page_tokens = 16}});
  const skald::Decoder auxiliary(small_model, {.kv = {.format = "f16"}});
  std::vector<std::vector<skald::TokenId>> texts;
  for (std::uint64_t seed = 20; seed < 26; ++seed) texts.push_back(some_tokens(200, big.vocabulary, seed));
  const auto maps = skald::fit_kv_maps(auxiliary, base, texts);
  REQUIRE(maps.size() == 3);
  CHECK(maps[2].keys.size() == 128 * 64);
  const skald::KvPredictor predictor(auxiliary, base, maps);
  const auto tokens = some_tokens(61, big.vocabulary, 99);
  auto session = predictor.predict(std::span(tokens).first(60));
  auto plain = base.new_session();
  (void)plain.forward(std::span(tokens).first(60));
  CHECK(session.bytes() == plain.bytes());
  // Keys and values of the first layer are nearer to the base's than nothing is; both are linear in a token's row.
  double missed = 0;
  double all = 0;
  for (int head = 0; head < 2; ++head) {
    const auto predicted = first_layer(session, head);
    const auto real = first_layer(plain, head);
    missed += std::pow(distance(predicted, real), 2.0);
    all += std::pow(distance(real, Rows(real.size())), 2.0);
  }
  CHECK(missed < 0.9 * all);
  (void)session.forward(some_tokens(30, big.vocabulary, 5));
  CHECK(session.length() == 90);
}

TEST_CASE("integration.kv_prediction: maps are rotated with the base's embedding, whatever the auxiliary's format") {
  // Fitted to itself, a model's maps are nearly the identity, so that rotating back and forth must be right. Weights are
  // floats: activations of quantized ones are rounded, and a last bit can change what they are rounded to.
  auto shape = big;
  shape.type = skald::DType::f32;
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, {.kv = {.format = "f32"}});
  std::vector<std::vector<skald::TokenId>> texts;
  for (std::uint64_t seed = 20; seed < 24; ++seed) texts.push_back(some_tokens(150, big.vocabulary, seed));
  const skald::KvPredictor predictor(decoder, decoder, skald::fit_kv_maps(decoder, decoder, texts, {}, 1e-9));
  const auto tokens = some_tokens(50, big.vocabulary, 3);
  auto session = predictor.predict(std::span(tokens).first(49));
  auto plain = decoder.new_session();
  const auto expected = copy(plain.forward(tokens));
  CHECK(distance(next_row(session, tokens[49]), expected) < 1e-4 * distance(expected, Rows(expected.size())));
}

TEST_CASE("integration.kv_prediction: what cannot be mapped is refused") {
  const auto base_model = tiny_model(big);
  const skald::Decoder base(base_model);
  const skald::Decoder auxiliary(tiny_model(small));
  CHECK_THROWS_AS(skald::KvPredictor(auxiliary, base, {{0}}), skald::UsageError);
  CHECK_THROWS_AS(skald::KvPredictor(auxiliary, base, {{0}, {0}, {0}}), skald::UsageError);
  CHECK_THROWS_AS(skald::KvPredictor(base, base, {{0}, {1}, {3}}), skald::UsageError);
  const skald::Decoder evicting(base_model, {.kv = {.eviction = "window:sinks=4,window=124"}});
  CHECK_THROWS_AS(skald::KvPredictor(base, evicting, {{0}, {1}, {2}}), skald::IncompatibleError);
  const skald::KvPredictor predictor(base, base, {{0}, {1}, {2}});
  CHECK_THROWS_AS(predictor.predict({}), skald::UsageError);
}
