// The newest tokens in full precision before quantized ones (KIVI, Liu et al. 2024, arXiv 2402.02750).
#include <cmath>

#include <skald/decoder/prefix_cache.hpp>
#include <skald/model/plan.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"
#include "support/tiny_attention.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.layers = 2, .type = skald::DType::q8_0};
constexpr std::int64_t page = 16;

skald::DecoderOptions with(const std::string& format, std::int64_t rollback = 0, std::int64_t batch = 512) {
  return {.kv = {.format = format, .page_tokens = page, .rollback_tokens = rollback},
          .context = 512,
          .batch_tokens = batch};
}

Rows rows_of(const skald::Model& model, const std::string& format, std::size_t chunk = 1000, std::int64_t tokens = 150) {
  const skald::Decoder decoder(model, with(format));
  auto session = decoder.new_session();
  return chunked(session, some_tokens(tokens, shape.vocabulary), chunk);
}

double distance(const Rows& a, const Rows& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2.0);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

}  // namespace

TEST_CASE("integration.residual: one that holds all tokens gives the bits of its own format") {
  const auto model = tiny_model(shape, {.backend = cpu_with(3)});
  CHECK(same_bits(rows_of(model, "q4_0;residual=160"), rows_of(model, "f16")));
  CHECK(same_bits(rows_of(model, "q8_0;residual=160 f32"), rows_of(model, "f32")));
  // Also when the first page could be encoded, but is not yet.
  CHECK(same_bits(rows_of(model, "q4_1;residual=144 bf16"), rows_of(model, "bf16")));
}

TEST_CASE("integration.residual: chunks, batches and threads change no bit, on every kind of model that it goes with") {
  for (const std::string kind : {"gqa", "mha", "mla"}) {
    for (const std::string format : {"q4_0;residual=32", "q8_0;residual=64 f32", "q4_1;residual=16"}) {
      INFO(kind << " " << format);
      const auto model = tiny_attention_model(kind, shape, {.backend = cpu_with(3)});
      const auto expected = rows_of(model, format);
      CHECK(same_bits(rows_of(tiny_attention_model(kind, shape, {.backend = cpu_with(1)}), format, 1), expected));
      CHECK(same_bits(rows_of(model, format, 7), expected));
      CHECK(same_bits(rows_of(model, format, 49), expected));

      const skald::Decoder decoder(model, with(format, 0, 40));
      auto one = decoder.new_session();
      auto two = decoder.new_session();
      const auto tokens = some_tokens(150, shape.vocabulary);
      const auto others = some_tokens(97, shape.vocabulary, 8);
      skald::Batch batch;
      batch.add(two, others, skald::LogitsWanted::all).add(one, tokens, skald::LogitsWanted::all);
      auto rows = copy(decoder.forward(batch));
      rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(97 * shape.vocabulary));
      CHECK(same_bits(rows, expected));
      auto alone = decoder.new_session();
      (void)alone.forward(others, skald::LogitsWanted::none);
      CHECK(same_bits(next_row(two, 4), next_row(alone, 4)));
    }
  }
}

TEST_CASE("integration.residual: lies between the coded format and full precision, as the reference backend says") {
  auto floats = shape;
  floats.type = skald::DType::f32;
  const auto model = tiny_model(floats, {.backend = cpu_with(2)});
  const auto full = rows_of(model, "f16");
  const auto coded = rows_of(model, "q4_0");
  const auto residual = rows_of(model, "q4_0;residual=32");
  INFO("q4_0 is off by " << distance(coded, full) << ", with a residual by " << distance(residual, full));
  CHECK(distance(residual, full) < 0.9 * distance(coded, full));
  CHECK(distance(residual, full) > 0.0);
  const auto oracle = tiny_model(floats, {.backend = skald::make_reference_backend()});
  CHECK(distance(residual, rows_of(oracle, "q4_0;residual=32", 1000, 150)) < 0.1 * distance(residual, full));
}

TEST_CASE("integration.residual: takes the bytes that were planned") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, with("q4_0;residual=32"));
  CHECK(decoder.effective_config().kv_format == "q4_0;residual=32");
  auto session = decoder.new_session();
  // Of a token, layer and head: key and value of 64 elements, 2 x 128 or 2 x 36 bytes.
  const auto heads = static_cast<std::size_t>(shape.layers * shape.kv_heads);
  for (const std::int64_t length : {1, 16, 47, 48, 63, 64, 65, 79, 80, 200}) {
    if (length > session.length())
      (void)session.forward(some_tokens(length - session.length(), shape.vocabulary), skald::LogitsWanted::none);
    const auto coded = std::max<std::int64_t>(0, length / page * page - 32);
    const auto newest = (length - coded + page - 1) / page * page;
    CHECK(session.bytes() == heads * static_cast<std::size_t>(coded * 72 + newest * 256));
  }
  const skald::AnyKvFormat parsed("q4_0;residual=32");
  skald::PlanOptions options{.backend = model.backend(), .context = 512, .sequences = 2};
  options.kv_type_of = [&](std::int32_t layer, std::int32_t head) { return parsed.dtype(layer, head); };
  options.page_tokens = page;
  options.residual_tokens = parsed.residual();
  const auto plan = skald::plan(model.spec(), skald::DType::q8_0, options);
  CHECK(plan.kv == 2 * heads * (512 * 72 + 3 * page * 256));
  while (session.length() < 511) {
    (void)session.forward(some_tokens(1, shape.vocabulary), skald::LogitsWanted::none);
    REQUIRE(2 * session.bytes() <= plan.kv);
  }
}

TEST_CASE("integration.residual: sessions fork, go back and are saved") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, with("q4_0;residual=32", 20));
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(100, shape.vocabulary));
  auto fork = session.fork();
  auto back = decoder.new_session();
  back.restore(session.snapshot());
  CHECK(back.bytes() == session.bytes());
  const auto more = some_tokens(40, shape.vocabulary, 3);
  const auto expected = chunked(session, more, 40);
  CHECK(same_bits(chunked(fork, more, 3), expected));
  CHECK(same_bits(chunked(back, more, 11), expected));

  // Within the tokens that can be taken back nothing is computed again, though a page border is passed.
  const auto computed = decoder.counters().tokens;
  session.truncate(125);
  CHECK(decoder.counters().tokens == computed);
  {
    auto fresh = decoder.new_session();
    (void)fresh.forward(std::vector<skald::TokenId>(session.tokens().begin(), session.tokens().end()));
    CHECK(same_bits(next_row(session, 3), next_row(fresh, 3)));
  }
  // Beyond them everything is.
  fork.truncate(50);
  CHECK(fork.length() == 50);
  CHECK(decoder.counters().tokens >= computed + 50);
  auto fresh = decoder.new_session();
  (void)fresh.forward(std::vector<skald::TokenId>(fork.tokens().begin(), fork.tokens().end()));
  CHECK(same_bits(next_row(fork, 3), next_row(fresh, 3)));

  skald::PrefixCache cache(decoder);
  (void)cache.insert(back);
  const std::vector<skald::TokenId> tokens(back.tokens().begin(), back.tokens().end());
  auto hit = cache.new_session(tokens);
  CHECK(hit.length() >= 100);
  (void)hit.forward(std::span(tokens).subspan(static_cast<std::size_t>(hit.length())));
  CHECK(same_bits(next_row(hit, 6), next_row(back, 6)));

  // A file of another division is refused.
  const skald::Decoder other(model, with("q4_0;residual=48"));
  auto stranger = other.new_session();
  CHECK_THROWS_AS(stranger.restore(back.snapshot()), skald::IncompatibleError);
}

TEST_CASE("integration.residual: what it cannot go with is refused with the reason") {
  const auto refused = [&](const skald::Model& model, const std::string& format, const std::string& eviction, const std::string& reason) {
    auto options = with(format);
    options.kv.eviction = eviction;
    try {
      const skald::Decoder decoder(model, options);
      FAIL("accepted: " << format << " " << eviction);
    } catch (const skald::IncompatibleError& error) {
      INFO(error.message());
      CHECK(error.message().find(reason) != std::string::npos);
    }
  };
  const auto model = tiny_model(shape);
  refused(model, "q4_0;residual=32", "window:sinks=4,window=60", "drops or moves them");
  refused(model, "q4_0;residual=20", "none", "multiple of kv.page_tokens");
  refused(model, "f16;residual=32", "none", "no layer stores codes");
  refused(model, "q4_0;heads 1=q8_0;residual=32", "none", "heads of different formats");
  refused(model, "q4_0;layers 0=layer 1;residual=32", "none", "read a later one");
  refused(model, "q4_0;residual=32;segments=prompt", "none", "not more");
  refused(tiny_attention_model("window", shape, {}), "q4_0;residual=32", "none", "sliding window");
  CHECK_THROWS_AS(skald::AnyKvFormat("q4_0;residual=32 q8_0"), skald::UsageError);
  CHECK_THROWS_AS(skald::AnyKvFormat("q4_0;residual=0"), skald::UsageError);

  const skald::Decoder decoder(model, with("q4_0;residual=32"));
  auto session = decoder.new_session();
  skald::Batch batch;
  const std::vector<skald::TokenId> tree{1, 2};
  const std::vector<std::int32_t> parents{-1, -1};
  batch.add_tree(session, tree, parents);
  CHECK_THROWS_AS(decoder.forward(batch), skald::IncompatibleError);
  skald::Batch scored;
  scored.add(session, tree);
  skald::AttentionScores scores;
  CHECK_THROWS_AS(decoder.forward(scored, {.scores = &scores}), skald::IncompatibleError);
}
