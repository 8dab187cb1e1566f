// Keys and values in a file, of which a decoder reads the chunks that matter (LeoAM, Sun et al. 2025, arXiv 2506.20187).
#include <cmath>
#include <filesystem>

#include <skald/kernels/kv_codes.hpp>
#include <skald/state/summarized_kv.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"
#include "support/tiny_attention.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.layers = 2, .type = skald::DType::q8_0};
constexpr std::int64_t page = 16;

std::string folder() { return std::filesystem::temp_directory_path().string(); }

skald::DecoderOptions with(const std::string& format, const std::string& directory = "", std::int64_t batch = 512) {
  return {.kv = {.format = format, .page_tokens = page, .slow_directory = directory}, .context = 512, .batch_tokens = batch};
}

Rows rows_of(const skald::Model& model, const std::string& format, std::size_t chunk = 1000, const std::string& directory = "") {
  const skald::Decoder decoder(model, with(format, directory));
  auto session = decoder.new_session();
  return chunked(session, some_tokens(100, shape.vocabulary), chunk);
}

double distance(const Rows& a, const Rows& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2.0);
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("integration.leoam: a budget of all tokens reproduces full attention bit for bit") {
  for (const std::string kind : {"gqa", "mha", "mla"})
    for (const std::string format : {"f16", "f32", "q8_0", "q4_0"}) {
      INFO(kind << " " << format);
      const auto model = tiny_attention_model(kind, shape, {.backend = cpu_with(3)});
      const auto full = rows_of(model, format);
      CHECK(same_bits(rows_of(model, format + ";chunks=100"), full));
      CHECK(same_bits(rows_of(model, format + ";chunks=512 of 32,64", 9), full));
      CHECK(same_bits(rows_of(model, format + ";chunks=100", 33, folder()), full));
      CHECK_FALSE(same_bits(rows_of(model, format + ";chunks=64"), full));
    }
}

TEST_CASE("integration.leoam: bytes read per step are a small, reported share and chunk sizes differ by layer") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, with("f16;chunks=64 of 32,16", folder()));
  CHECK(decoder.effective_config().kv_format == "f16;chunks=64 of 32,16");
  auto session = decoder.new_session();
  (void)session.forward(some_tokens(440, shape.vocabulary), skald::LogitsWanted::none);
  for (int step = 0; step < 5; ++step) {
    const auto before = decoder.counters();
    (void)next_row(session, 3);
    const auto after = decoder.counters();
    const auto slots = static_cast<std::uint64_t>(441 + step);
    const auto row = static_cast<std::uint64_t>(shape.kv_heads * 2 * shape.head_dim * 2);  // bytes of a token and layer
    // Chunks before the one that the token lies in, as many as fill up 64 tokens with what there is of that one.
    std::uint64_t chunks = 0;
    std::uint64_t tokens = 0;
    for (const std::uint64_t size : {32U, 16U}) {
      const auto own = (slots - 1) % size + 1;
      chunks += (64 - own) / size;
      tokens += (64 - own) / size * size + own;
    }
    CHECK(after.chunks_read - before.chunks_read == chunks * static_cast<std::uint64_t>(shape.kv_heads));
    CHECK(after.chunk_bytes_read - before.chunk_bytes_read == tokens * row);
    CHECK(after.chunk_bytes_seen - before.chunk_bytes_seen == 2 * slots * row);
    CHECK((after.chunk_bytes_read - before.chunk_bytes_read) * 6 < after.chunk_bytes_seen - before.chunk_bytes_seen);
    // Attention itself reads nothing else.
    CHECK(after.kv_bytes_read - before.kv_bytes_read == after.chunk_bytes_read - before.chunk_bytes_read);
  }
}

TEST_CASE("integration.leoam: summaries alone lie in fast memory, and bound every score of their chunk") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  for (const std::string format : {"f16", "q4_0"}) {
    const skald::Decoder decoder(model, with(format + ";chunks=64 of 32"));
    auto session = decoder.new_session();
    (void)session.forward(some_tokens(333, shape.vocabulary), skald::LogitsWanted::none);
    CHECK(session.slow_bytes() == decoder.counters().slow_page_bytes_used);
    CHECK(session.bytes() == decoder.counters().kv_page_bytes_used);
    // 333 tokens have 10 chunks, a page of whose summaries is there for each head.
    CHECK(session.bytes() == static_cast<std::size_t>(shape.layers * shape.kv_heads * 16 * 2 * shape.head_dim * 4));
    const auto dims = static_cast<std::size_t>(shape.head_dim);
    for (int l = 0; l < shape.layers; ++l) {
      auto& state = static_cast<skald::SummarizedKv&>(*session.state().layer(l));
      REQUIRE(state.front().length() == 10);
      const auto& kv = state.back().pool();
      const auto& summaries = state.front().pool();
      for (int g = 0; g < state.back().groups(); ++g)
        for (std::int32_t c = 0; c < 10; ++c) {
          std::vector<float> least(dims);
          std::vector<float> greatest(dims);
          const auto* at = summaries.address(state.front().pages(g)[0]);
          for (std::size_t d = 0; d < dims; ++d) {
            const auto element = summaries.layout().key_index(c, static_cast<std::int32_t>(d)) * 4;
            std::memcpy(&least[d], at + summaries.layout().keys_offset(0) + element, 4);
            std::memcpy(&greatest[d], at + summaries.layout().keys_offset(1) + element, 4);
          }
          for (std::uint64_t round = 0; round < 20; ++round) {
            skald::CounterRandom random(round, static_cast<std::uint64_t>(c), 0);
            std::vector<float> query(dims);
            for (float& x : query) x = static_cast<float>(random.uniform() - 0.5);
            const bool single = round >= 10;  // one dimension: the bound is reached
            for (std::size_t d = 0; single && d < dims; ++d)
              if (d != round) query[d] = 0.0F;
            const float bound = skald::chunk_bound(query, least.data(), greatest.data());
            float best = -1e30F;
            for (std::int32_t slot = 32 * c; slot < 32 * (c + 1); ++slot) {
              const auto* page_at = kv.address(state.back().pages(g)[static_cast<std::size_t>(slot / page)]);
              float score = 0.0F;
              for (std::size_t d = 0; d < dims; ++d)
                score += query[d] * skald::kv_key_element(kv.layout(), page_at, slot % static_cast<std::int32_t>(page),
                                                          static_cast<std::int32_t>(d));
              best = std::max(best, score);
            }
            REQUIRE(bound >= best);
            if (single) REQUIRE(bound == best);
          }
        }
    }
  }
}

TEST_CASE("integration.leoam: more chunks come nearer to full attention, and nearer than the newest tokens alone") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const auto full = rows_of(model, "f32");
  const double many = distance(rows_of(model, "f32;chunks=90"), full);
  const double some = distance(rows_of(model, "f32;chunks=64"), full);
  const double few = distance(rows_of(model, "f32;chunks=32"), full);
  INFO(many << " " << some << " " << few);
  CHECK(many > 0.0);
  CHECK(many < some);
  CHECK(some < few);
  // The oracle chooses the same chunks.
  auto plain = shape;
  plain.type = skald::DType::f32;
  const auto expected = rows_of(tiny_model(plain, {.backend = skald::make_reference_backend()}), "f32;chunks=48");
  const auto found = rows_of(tiny_model(plain, {.backend = cpu_with(1)}), "f32;chunks=48");
  for (std::size_t i = 0; i < found.size(); ++i) REQUIRE(std::abs(found[i] - expected[i]) < 0.01F);
}

TEST_CASE("integration.leoam: chunked prompts, batches, threads and files change no bit, sessions fork, go back and are saved") {
  const auto model = tiny_model(shape, {.backend = cpu_with(3)});
  const std::string format = "f16;chunks=48 of 16";
  const auto expected = rows_of(model, format);
  CHECK(same_bits(rows_of(model, format, 1), expected));
  CHECK(same_bits(rows_of(tiny_model(shape, {.backend = cpu_with(1)}), format, 13), expected));
  CHECK(same_bits(rows_of(model, format, 40, folder()), expected));

  const skald::Decoder decoder(model, with(format, "", 37));
  auto one = decoder.new_session();
  auto two = decoder.new_session();
  const auto others = some_tokens(20, shape.vocabulary, 9);
  skald::Batch batch;  // rows that read all beside rows that do not
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
  // Two forks that go on differently from within a chunk have summaries of their own.
  auto left = fork.fork();
  auto right = fork.fork();
  (void)left.forward(some_tokens(30, shape.vocabulary, 2), skald::LogitsWanted::none);
  (void)right.forward(some_tokens(30, shape.vocabulary, 3), skald::LogitsWanted::none);
  CHECK(equals_fresh(decoder, left));
  CHECK(equals_fresh(decoder, right));
  one.truncate(70);
  (void)one.forward(some_tokens(25, shape.vocabulary, 4), skald::LogitsWanted::none);
  CHECK(equals_fresh(decoder, one));
  one.truncate(20);
  CHECK(equals_fresh(decoder, one));
  CHECK(decoder.counters().slow_page_bytes_used > 0);
  for (auto* session : {&one, &fork, &back, &two, &left, &right}) session->clear();
  CHECK(decoder.counters().slow_page_bytes_used == 0);
  CHECK(decoder.counters().kv_pages_used == 0);
}

TEST_CASE("integration.leoam: it is chosen by name or as a type") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  auto options = with("f16");
  const skald::Decoder<skald::BackendInterface, skald::AnyEviction, skald::KvChunks> decoder(
      model, skald::AnyEviction{}, skald::KvChunks{skald::DType::bf16, 64, {32, 16}}, options);
  CHECK(decoder.effective_config().kv_format == "bf16;chunks=64 of 32,16");
}

TEST_CASE("integration.leoam: what it cannot go with is refused with the reason") {
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
  refused(model, "f16;chunks=64", "h2o:budget=64", "drops or moves them");
  refused(model, "f16;chunks=64;values=32", "none", "not more");
  refused(model, "f16;chunks=64 of 24", "none", "whole pages");
  refused(model, "f16;chunks=60 of 32", "none", "less than two chunks");
  refused(model, "f16;chunks=64;layers 1=layer 0", "none", "that others read");
  refused(model, "f16;chunks=64;heads 1=q8_0", "none", "different formats");
  refused(model, "coupled;chunks=64", "none", "takes no rules");
  refused(tiny_attention_model("window", shape, {}), "f16;chunks=64", "none", "sliding window");
  CHECK_THROWS_AS(skald::AnyKvFormat("f16;chunks=0"), skald::UsageError);
  CHECK_THROWS_AS(skald::AnyKvFormat("f16;chunks=64 of 16,,"), skald::UsageError);
  CHECK_THROWS_AS(skald::AnyKvFormat("f16;chunks=64 of"), skald::UsageError);
  CHECK_THROWS_AS(skald::AnyKvFormat("f16;chunks=64 of 0"), skald::UsageError);
  CHECK_THROWS_AS(skald::AnyKvFormat(skald::KvChunks{}), skald::UsageError);
  CHECK(skald::AnyKvFormat("f16; chunks=64 of 32, 16").name() == "f16;chunks=64 of 32,16");
  CHECK_THROWS_AS(skald::Decoder(model, with("f16;chunks=64", "/nowhere")), skald::IoError);
  const skald::Decoder decoder(model, with("f16;chunks=64"));
  auto session = decoder.new_session();
  const std::vector<skald::TokenId> tokens{1, 2};
  const std::vector<std::int32_t> parents{-1, -1};
  skald::Batch tree;
  tree.add_tree(session, tokens, parents);
  CHECK_THROWS_AS(decoder.forward(tree), skald::IncompatibleError);
}
