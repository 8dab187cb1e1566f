// Layers that read the keys and values of another layer (LCKV, Wu and Tu 2024, arXiv 2405.10637).
#include "helpers.hpp"
#include "support/catch.hpp"

#include <cmath>

using namespace skald_test;

namespace {

const TinyShape shape{.layers = 4, .type = skald::DType::q8_0};

double distance(const Rows& a, const Rows& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2.0);
  return std::sqrt(sum);
}

skald::Decoder<> with(const skald::Model& model, const std::string& format, const std::string& eviction = "none") {
  return {model, {.kv = {.format = format, .eviction = eviction, .page_tokens = 16}, .context = 256}};
}

}  // namespace

TEST_CASE("integration.shared_layers: iterations over a prompt approach token by token, and reach it with as many as tokens") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto tokens = some_tokens(24, shape.vocabulary);
  // The first layer has its own, all others read the last.
  const std::string format = "f16;layers 1-2=layer 3";
  const auto exact = with(model, format);
  auto one_by_one = exact.new_session();
  const auto expected = chunked(one_by_one, tokens, 1);
  auto at_once = exact.new_session();
  CHECK(same_bits(chunked(at_once, tokens, 24), expected));
  std::vector<double> distances;
  for (const int times : {1, 2, 4, 8, 16, 24}) {
    const auto decoder = with(model, format + ";iterations=" + std::to_string(times));
    auto session = decoder.new_session();
    const auto rows = chunked(session, tokens, 24);
    distances.push_back(distance(rows, expected));
    INFO(times << " iterations: " << distances.back());
    if (times > 1) CHECK(distances.back() < distances[distances.size() - 2]);
    if (times < 24) continue;
    CHECK(same_bits(rows, expected));
    CHECK(same_bits(next_row(session, 5), next_row(one_by_one, 5)));
  }
}

TEST_CASE("integration.shared_layers: bytes grow with the layers that have keys and values, not with all") {
  const auto model = tiny_model(shape);
  const auto bytes = [&](const std::string& format, const std::string& eviction = "none") {
    const auto decoder = with(model, format, eviction);
    auto session = decoder.new_session();
    (void)session.forward(some_tokens(96, shape.vocabulary));
    return session.bytes();
  };
  const auto all = bytes("f16");
  CHECK(bytes("f16;layers 1-3=layer 0") == all / 4);
  CHECK(bytes("f16;layers 0-2=layer 3") == all / 4);
  CHECK(bytes("f16;layers 1=layer 0;layers 3=layer 2") == all / 2);
  CHECK(bytes("f16;layers 1=layer 0;layers 3=layer 2", "window:sinks=4,window=28") < all / 4);
}

TEST_CASE("integration.shared_layers: chunks, forks, going back and saving change no bit, and backends agree") {
  const auto tokens = some_tokens(60, shape.vocabulary);
  for (const std::string format : {"f16;layers 1=layer 0;layers 3=layer 2", "f16;layers 0-2=layer 3", "f16;layers 0-1=layer 2;heads 1=q8_0"}) {
    INFO(format);
    auto floats = shape;
    floats.type = skald::DType::f32;
    const auto decoder = with(tiny_model(floats, {.backend = cpu_with(2)}), format);
    CHECK(decoder.effective_config().kv_format == format);
    auto session = decoder.new_session();
    const auto rows = chunked(session, tokens, 60);
    auto pieces = decoder.new_session();
    CHECK(same_bits(chunked(pieces, tokens, 7), rows));
    auto fork = session.fork();
    auto back = decoder.new_session();
    back.restore(session.snapshot());
    const auto next = next_row(session, 9);
    CHECK(same_bits(next_row(fork, 9), next));
    CHECK(same_bits(next_row(back, 9), next));
    session.truncate(31);
    CHECK(equals_fresh(decoder, session));
    const auto oracle = with(tiny_model(floats, {.backend = skald::make_reference_backend()}), format);
    auto other = oracle.new_session();
    CHECK(distance(chunked(other, tokens, 60), rows) / distance(rows, Rows(rows.size())) < (format.find("q8_0") == std::string::npos ? 1e-3 : 1e-2));
  }
}

TEST_CASE("integration.shared_layers: what cannot be read is refused, with the reason") {
  const auto model = tiny_model(shape);
  CHECK_THROWS_AS(with(model, "f16;layers 0=layer 4"), skald::IncompatibleError);
  CHECK_THROWS_AS(with(model, "f16;layers 0=layer 1;layers 1=layer 2"), skald::IncompatibleError);
  CHECK_THROWS_AS(with(model, "f16;heads 0=layer 1"), skald::UsageError);
  CHECK_THROWS_AS(with(model, "f16;layers 0=layer 3", "h2o:budget=64"), skald::IncompatibleError);
  const auto decoder = with(model, "f16;layers 0=layer 3");
  auto session = decoder.new_session();
  const std::vector<skald::TokenId> tokens{1, 2};
  const std::vector<std::int32_t> parents{-1, 0};
  skald::Batch batch;
  batch.add_tree(session, tokens, parents);
  CHECK_THROWS_AS(decoder.forward(batch), skald::IncompatibleError);
}
