// Formats of keys and values chosen by layer and head.
#include "helpers.hpp"
#include "support/catch.hpp"

#include <skald/model/plan.hpp>

using namespace skald_test;

namespace {

const TinyShape shape{.layers = 3, .type = skald::DType::q8_0};

Rows rows_with(const skald::Model& model, const std::string& format, std::size_t chunk = 90,
               const std::string& eviction = "none") {
  const skald::Decoder decoder(model, {.kv = {.format = format, .eviction = eviction, .page_tokens = 16}});
  auto session = decoder.new_session();
  return chunked(session, some_tokens(90, shape.vocabulary), chunk);
}

double distance(const Rows& a, const Rows& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, static_cast<double>(std::abs(a[i] - b[i])));
  return most;
}

}  // namespace

TEST_CASE("integration.kv_format: rules that say what holds anyway change no bit, others do") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto f16 = rows_with(model, "f16");
  const auto q8 = rows_with(model, "q8_0");
  CHECK(same_bits(rows_with(model, "q8_0;layers 0-2=f16"), f16));
  CHECK(same_bits(rows_with(model, "f16;layers 0,1=q8_0;layers 2=q8_0"), q8));
  CHECK(same_bits(rows_with(model, "f16;heads 0-1=q8_0"), q8));
  CHECK(same_bits(rows_with(model, "f16;heads 0=f16"), f16));
  CHECK_FALSE(same_bits(rows_with(model, "f16;layers 1=q8_0"), f16));
  CHECK_FALSE(same_bits(rows_with(model, "f16;layers 1 heads 1=q4_0"), f16));
}

TEST_CASE("integration.kv_format: heads of different formats give what the reference backend gives, however chunked") {
  const std::string format = "f32;heads 1=f16;layers 1 heads 0=q8_0;layers 2=bf16";
  auto floats = shape;
  floats.type = skald::DType::f32;
  const auto model = tiny_model(floats, {.backend = cpu_with(3)});
  const auto rows = rows_with(model, format);
  CHECK(same_bits(rows, rows_with(model, format, 7)));
  const auto oracle = rows_with(tiny_model(floats, {.backend = skald::make_reference_backend()}), format);
  // Now and then a number is rounded to another code; formats themselves are further apart.
  CHECK(distance(rows, oracle) < 0.005);
  CHECK(distance(rows, rows_with(model, "f32")) > 0.01);
  for (const std::string eviction : {"h2o:budget=64", "window:sinks=4,window=28", "snapkv:budget=64,window=8"}) {
    INFO(eviction);
    CHECK(same_bits(rows_with(model, format, 90, eviction), rows_with(model, format, 11, eviction)));
  }
}

TEST_CASE("integration.kv_format: sessions of mixed formats fork, go back, are saved, and take the bytes that were planned") {
  const std::string format = "q8_0;layers 0=f32;heads 1=q4_0";
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, {.kv = {.format = format, .page_tokens = 16}, .context = 256, .parallel = 2});
  CHECK(decoder.effective_config().kv_format == format);
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(64, shape.vocabulary));
  // Bytes of a token's key and value of 64 elements: 2 x 256, 2 x 68 and 2 x 36.
  CHECK(session.bytes() == 64 * ((512 + 72) + 2 * (136 + 72)));
  const skald::AnyKvFormat parsed(format);
  const auto plan = skald::plan(model.spec(), skald::DType::q8_0,
                                {.backend = model.backend(),
                                 .context = 256,
                                 .sequences = 2,
                                 .kv_type_of = [&](std::int32_t layer, std::int32_t head) { return parsed.dtype(layer, head); },
                                 .page_tokens = 16});
  CHECK(plan.kv_per_token == (512 + 72) + 2 * (136 + 72));
  CHECK(plan.kv == 2 * 256 * plan.kv_per_token);

  auto fork = session.fork();
  auto back = decoder.new_session();
  back.restore(session.snapshot());
  const auto expected = next_row(session, 9);
  CHECK(same_bits(next_row(fork, 9), expected));
  CHECK(same_bits(next_row(back, 9), expected));
  session.truncate(64);
  CHECK(same_bits(next_row(session, 9), expected));
  session.truncate(40);
  CHECK(equals_fresh(decoder, session));

  const skald::Decoder other(model, {.kv = {.format = "q8_0;layers 0=f32", .page_tokens = 16}});
  auto stranger = other.new_session();
  CHECK_THROWS_AS(stranger.restore(session.snapshot()), skald::IncompatibleError);
}

TEST_CASE("integration.kv_format: rules that do not fit the model are refused") {
  const auto model = tiny_model(shape);
  const auto make = [&](skald::KvOptions kv) { return skald::Decoder(model, {.kv = std::move(kv)}); };
  CHECK_THROWS_AS(make({.format = "f16;layers 3=f32"}), skald::IncompatibleError);
  CHECK_THROWS_AS(make({.format = "f16;heads 2=f32"}), skald::IncompatibleError);
  CHECK_THROWS_AS(make({.format = "f16;heads 1=f32", .heads_per_group = 2}), skald::IncompatibleError);
  CHECK_NOTHROW(make({.format = "f16;layers 1=f32", .heads_per_group = 2}));
}
