// Keys in fast memory, values in slow memory (KCache, He and Wu 2024, arXiv 2404.18057).
#include <cmath>
#include <filesystem>
#include <map>

#include "helpers.hpp"
#include "support/catch.hpp"
#include "support/tiny_attention.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.layers = 2, .type = skald::DType::q8_0};
constexpr std::int64_t page = 16;

skald::DecoderOptions with(const std::string& format, const std::string& directory = "", std::int64_t batch = 512) {
  return {.kv = {.format = format, .page_tokens = page, .slow_directory = directory}, .context = 512, .batch_tokens = batch};
}

Rows rows_of(const skald::Model& model, const std::string& format, std::size_t chunk = 1000, const std::string& directory = "") {
  const skald::Decoder decoder(model, with(format, directory));
  auto session = decoder.new_session();
  return chunked(session, some_tokens(100, shape.vocabulary), chunk);
}

}  // namespace

TEST_CASE("integration.kcache: as many values as tokens reproduce full attention bit for bit") {
  for (const std::string kind : {"gqa", "mha"})
    for (const std::string format : {"f16", "f32", "bf16"}) {
      INFO(kind << " " << format);
      const auto model = tiny_attention_model(kind, shape, {.backend = cpu_with(3)});
      const auto full = rows_of(model, format);
      CHECK(same_bits(rows_of(model, format + ";values=100"), full));
      CHECK(same_bits(rows_of(model, format + ";values=512", 9), full));
      CHECK(same_bits(rows_of(model, format + ";values=100", 33, std::filesystem::temp_directory_path().string()), full));
      CHECK_FALSE(same_bits(rows_of(model, format + ";values=99"), full));
    }
}

TEST_CASE("integration.kcache: fast bytes fall to half, those of values lie in slow memory") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder whole(model, with("f16"));
  const skald::Decoder split(model, with("f16;values=32"));
  auto one = whole.new_session();
  auto two = split.new_session();
  const auto tokens = some_tokens(100, shape.vocabulary);
  (void)one.forward(tokens);
  (void)two.forward(tokens);
  CHECK(one.slow_bytes() == 0);
  CHECK(two.bytes() * 2 == one.bytes());
  CHECK(two.slow_bytes() * 2 == one.bytes());
  CHECK(split.counters().kv_page_bytes_used == two.bytes());
  CHECK(split.counters().slow_page_bytes_used == two.slow_bytes());
}

TEST_CASE("integration.kcache: a step fetches the values of so many tokens per head, and no others") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, with("f16;values=24"));
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(60, shape.vocabulary), skald::LogitsWanted::none);
  for (int step = 0; step < 5; ++step) {
    const auto before = decoder.counters();
    (void)next_row(session, 3);
    CHECK(decoder.counters().value_rows_fetched - before.value_rows_fetched == static_cast<std::uint64_t>(24 * shape.heads * shape.layers));
    CHECK(decoder.counters().value_bytes_fetched - before.value_bytes_fetched == static_cast<std::uint64_t>(24 * shape.heads * shape.layers * 128));
  }
}

TEST_CASE("integration.kcache: the values of a head are on their way while the next head's weights are computed") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, with("f16;values=24"));
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(60, shape.vocabulary), skald::LogitsWanted::none);
  skald::Batch batch;
  const skald::TokenId token = 3;
  batch.add(session, {&token, 1});
  std::vector<skald::TransferEvent> events;
  (void)decoder.forward(batch, {.transfers = &events});
  std::map<std::tuple<int, int, skald::TransferStep>, std::uint64_t> at;
  for (const auto& event : events) {
    REQUIRE(event.time > 0);
    at[{event.layer, event.head, event.step}] = event.time;
  }
  CHECK(at.size() == static_cast<std::size_t>(4 * shape.layers * shape.heads));
  using skald::TransferStep;
  for (int layer = 0; layer < shape.layers; ++layer)
    for (int head = 0; head + 1 < shape.heads; ++head) {
      INFO("layer " << layer << " head " << head);
      CHECK(at[{layer, head, TransferStep::weighed}] < at[{layer, head, TransferStep::request}]);
      CHECK(at[{layer, head, TransferStep::request}] < at[{layer, head + 1, TransferStep::weigh}]);
      CHECK(at[{layer, head + 1, TransferStep::weighed}] < at[{layer, head, TransferStep::fetched}]);
    }
}

TEST_CASE("integration.kcache: multiplies the largest weights of the softmax, as the definition says") {
  // One layer with one head: against attention computed from what the keys' and values' owner has stored.
  auto one = shape;
  one.type = skald::DType::f32;
  const auto model = tiny_model(one, {.backend = cpu_with(1)});
  const auto full = rows_of(model, "f32");
  // Nearly all values: nearly the same. Fewer: further off.
  const auto distance = [&](const std::string& format) {
    const auto rows = rows_of(model, format);
    double sum = 0;
    for (std::size_t i = 0; i < full.size(); ++i) sum += std::pow(static_cast<double>(rows[i]) - full[i], 2.0);
    return std::sqrt(sum / static_cast<double>(full.size()));
  };
  const double many = distance("f32;values=90");
  const double some = distance("f32;values=50");
  const double few = distance("f32;values=8");
  INFO(many << " " << some << " " << few);
  CHECK(many < some);
  CHECK(some < few);
  const auto oracle = tiny_model(one, {.backend = skald::make_reference_backend()});
  const auto expected = rows_of(oracle, "f32;values=30");
  const auto found = rows_of(model, "f32;values=30");
  for (std::size_t i = 0; i < found.size(); ++i) REQUIRE(std::abs(found[i] - expected[i]) < 0.01F);
}

TEST_CASE("integration.kcache: chunks, batches, threads and files change no bit, sessions fork, go back and are saved") {
  const auto model = tiny_model(shape, {.backend = cpu_with(3)});
  const auto expected = rows_of(model, "f16;values=32");
  CHECK(same_bits(rows_of(model, "f16;values=32", 1), expected));
  CHECK(same_bits(rows_of(tiny_model(shape, {.backend = cpu_with(1)}), "f16;values=32", 13), expected));
  CHECK(same_bits(rows_of(model, "f16;values=32", 40, std::filesystem::temp_directory_path().string()), expected));

  const skald::Decoder decoder(model, with("f16;values=32", "", 37));
  auto one = decoder.new_session();
  auto two = decoder.new_session();
  const auto others = some_tokens(20, shape.vocabulary, 9);
  skald::Batch batch;  // rows that fetch all beside rows that do not
  batch.add(two, others, skald::LogitsWanted::all).add(one, some_tokens(100, shape.vocabulary), skald::LogitsWanted::all);
  auto rows = copy(decoder.forward(batch));
  rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(20 * shape.vocabulary));
  CHECK(same_bits(rows, expected));

  auto fork = one.fork();
  auto back = decoder.new_session();
  back.restore(one.snapshot());
  const auto next = next_row(one, 5);
  CHECK(same_bits(next_row(fork, 5), next));
  CHECK(same_bits(next_row(back, 5), next));
  one.truncate(100);
  CHECK(same_bits(next_row(one, 5), next));
  one.truncate(20);
  CHECK(equals_fresh(decoder, one));
  const auto used = decoder.counters().slow_page_bytes_used;
  CHECK(used > 0);
  one.clear();
  fork.clear();
  back.clear();
  two.clear();
  CHECK(decoder.counters().slow_page_bytes_used == 0);
}

TEST_CASE("integration.kcache: what it cannot go with is refused with the reason") {
  const auto refused = [&](const skald::Model& model, const std::string& format, const std::string& eviction, const std::string& reason) {
    auto options = with(format);
    options.kv.eviction = eviction;
    try {
      const skald::Decoder decoder(model, options);
      FAIL("accepted: " << format);
    } catch (const skald::IncompatibleError& error) {
      INFO(error.message());
      CHECK(error.message().find(reason) != std::string::npos);
    }
  };
  const auto model = tiny_model(shape);
  refused(model, "q8_0;values=32", "none", "must not be coded");
  refused(model, "f16;values=32", "h2o:budget=64", "drops or moves them");
  refused(model, "f16;values=32;segments=prompt", "none", "not more");
  refused(model, "f16;layers 1=layer 0;values=32", "none", "that others read");
  refused(tiny_attention_model("mla", shape, {}), "f16;values=32", "none", "latent");
  refused(tiny_attention_model("window", shape, {}), "f16;values=32", "none", "sliding window");
  CHECK_THROWS_AS(skald::AnyKvFormat("f16;values=0"), skald::UsageError);
  CHECK_THROWS_AS(skald::Decoder(model, with("f16", "/tmp")), skald::UsageError);
  CHECK_THROWS_AS(skald::Decoder(model, with("f16;values=32", "/nowhere")), skald::IoError);
}
