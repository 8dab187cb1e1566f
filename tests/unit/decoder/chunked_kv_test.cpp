// Keys and values in a file, chunks of them read by importance (LeoAM, Sun et al. 2025, arXiv 2506.20187).

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>

#include <skald/core/file.hpp>
#include <skald/skald.hpp>
#include <skald/state/chunked_kv.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"
#include "support/story_grammar.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace skald;

struct File {
  std::string path = (std::filesystem::temp_directory_path() / ("skald_chunks_" + std::to_string(::getpid()))).string();
  ~File() { std::filesystem::remove(path); }
};

std::vector<float> normal(std::uint64_t seed, std::size_t count) {
  CounterRandom random(seed, 0, 0);
  std::vector<float> x(count);
  for (auto& v : x) v = static_cast<float>(random.uniform() + random.uniform() + random.uniform() - 1.5);
  return x;
}

std::vector<std::size_t> all_of(const ChunkedKv& kv, std::size_t layer) {
  std::vector<std::size_t> chunks(kv.chunks(layer));
  std::iota(chunks.begin(), chunks.end(), std::size_t{0});
  return chunks;
}

constexpr skald_test::TinyShape small{
    .vocabulary = 96, .dim = 64, .heads = 2, .kv_heads = 2, .head_dim = 32, .ffn = 64};

/// A session, and the attention that its tokens got.
Session filled(const Decoder<>& decoder, std::span<const TokenId> tokens, AttentionScores& scores) {
  auto session = decoder.new_session();
  Batch batch;
  batch.add(session, tokens, LogitsWanted::none);
  ForwardOptions options;
  options.scores = &scores;
  (void)decoder.forward(batch, options);
  return session;
}

}  // namespace

TEST_CASE("decoder.leoam: a chunk's bound is never below the best score of its keys", "[decoder]") {
  const Decoder decoder(skald_test::tiny_model(small), DecoderOptions{.context = 512});
  AttentionScores scores;
  const auto session = filled(decoder, skald_test::some_tokens(333, 96), scores);
  const File file;
  ChunkedKv kv(session.state(), file.path, {}, {.most_tokens = 32});
  int tight = 0;
  for (std::uint64_t round = 0; round < 40; ++round)
    for (std::size_t layer = 0; layer < 2; ++layer)
      for (std::int32_t head = 0; head < 2; ++head) {
        const auto query = normal(round, 32);
        for (std::size_t c = 0; c < kv.chunks(layer); ++c) {
          const auto rows = kv.read(layer, head, c);
          float best = -1e30F;
          for (std::size_t at = 0; at < rows.size(); at += 64) {
            float score = 0.0F;
            for (std::size_t d = 0; d < 32; ++d) score += query[d] * rows[at + d];
            best = std::max(best, score);
          }
          const float bound = kv.bound(layer, head, c, query);
          REQUIRE(bound >= best);
          tight += bound < best + 20.0F;
        }
      }
  CHECK(tight > 0);
}

TEST_CASE("decoder.leoam: reading all chunks is exact, however tokens are cut", "[decoder]") {
  const Decoder decoder(skald_test::tiny_model(small), DecoderOptions{.context = 512});
  AttentionScores scores;
  const auto session = filled(decoder, skald_test::some_tokens(301, 96), scores);
  const File file;
  const auto query = normal(7, 32);
  std::vector<float> first;
  for (const std::int32_t size : {16, 48, 300, 512}) {
    ChunkedKv kv(session.state(), file.path, {}, {.least_tokens = size, .most_tokens = size});
    std::vector<float> out(32);
    kv.attend(1, 1, query, 0.2F, all_of(kv, 1), out);
    CHECK(kv.select(1, 1, query, 512) == all_of(kv, 1));
    CHECK(kv.counters().bytes_read == kv.head_bytes(1));
    if (first.empty()) first = out;
    CHECK(std::memcmp(first.data(), out.data(), out.size() * sizeof(float)) == 0);
    // The definition, in double precision over the keys and values as they lie in the file.
    const auto rows = ChunkedKv(session.state(), file.path, {}, {.most_tokens = 512}).read(1, 1, 0);
    std::vector<double> weights;
    for (std::size_t at = 0; at < rows.size(); at += 64) {
      double score = 0;
      for (std::size_t d = 0; d < 32; ++d) score += static_cast<double>(query[d]) * static_cast<double>(rows[at + d]);
      weights.push_back(std::exp(0.2 * score));
    }
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (std::size_t d = 0; d < 32; ++d) {
      double value = 0;
      for (std::size_t t = 0; t < weights.size(); ++t)
        value += weights[t] / total * static_cast<double>(rows[t * 64 + 32 + d]);
      CHECK(std::abs(value - static_cast<double>(out[d])) < 1e-5);
    }
  }
}

TEST_CASE("decoder.leoam: chunk sizes differ by layer, a small share is read and most of the attention with it",
          "[decoder]") {
  const auto model = Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  const Decoder decoder(model, DecoderOptions{.context = 1024});
  auto tokens = model.tokenizer().encode(skald_test::StoryGrammar(5).text(8000));
  tokens.resize(1000);
  AttentionScores scores;
  const auto session = filled(decoder, tokens, scores);
  const File file;
  ChunkedKv kv(session.state(), file.path, scores.values[0], {.least_tokens = 8, .most_tokens = 128});
  std::vector<std::int32_t> sizes;
  for (std::size_t l = 0; l < kv.layers(); ++l) sizes.push_back(kv.chunk_tokens(l));
  INFO("chunks of " << sizes[0] << ", " << sizes[1] << ", " << sizes[2] << ", " << sizes[3] << " tokens");
  CHECK(*std::max_element(sizes.begin(), sizes.end()) > *std::min_element(sizes.begin(), sizes.end()));
  // The same from texts, for decoders that read chunks.
  const std::vector<std::vector<TokenId>> texts{tokens};
  const auto measured = measure_chunk_tokens(model, texts, {.least_tokens = 8, .most_tokens = 128});
  CHECK(measured == sizes);
  CHECK_THROWS_AS(measure_chunk_tokens(model, {}), UsageError);
  CHECK(chunk_tokens_for(std::vector<std::vector<float>>{std::vector<float>(1000, 1.0F)}, {}) == 256);
  std::vector<float> skewed(1000, 0.001F);
  skewed[500] = 100.0F;
  CHECK(chunk_tokens_for(std::vector<std::vector<float>>{skewed}, {}) == 16);
  // Queries like the keys: a token looks for its like. The share of the softmax that the chosen chunks hold.
  double held = 0;
  double by_age = 0;
  int count = 0;
  for (std::size_t layer = 0; layer < kv.layers(); ++layer)
    for (std::int32_t head = 0; head < 2; ++head) {
      const auto rows = ChunkedKv(session.state(), file.path + ".one", {}, {.most_tokens = 4096}).read(layer, head, 0);
      const std::size_t width = rows.size() / 1000;
      for (std::size_t t = 100; t < 1000; t += 300) {
        const std::vector<float> query(rows.begin() + static_cast<std::ptrdiff_t>(t * width),
                                       rows.begin() + static_cast<std::ptrdiff_t>(t * width + 64));
        std::vector<double> weights;
        for (std::size_t s = 0; s < 1000; ++s) {
          double score = 0;
          for (std::size_t d = 0; d < 64; ++d)
            score += static_cast<double>(query[d]) * static_cast<double>(rows[s * width + d]);
          weights.push_back(score / 8);
        }
        const double most = *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (auto& w : weights) total += w = std::exp(w - most);
        const auto size = static_cast<std::size_t>(kv.chunk_tokens(layer));
        for (const auto chunk : kv.select(layer, head, query, 256))
          for (std::size_t s = chunk * size; s < std::min<std::size_t>(1000, (chunk + 1) * size); ++s)
            held += weights[s] / total;
        for (std::size_t s = 744; s < 1000; ++s) by_age += weights[s] / total;
        ++count;
      }
    }
  std::filesystem::remove(file.path + ".one");
  held /= count;
  by_age /= count;
  INFO("share of attention held by a quarter of the tokens: " << held << ", by the newest quarter " << by_age);
  CHECK(held > 3 * by_age);
  // Bytes read are those of the chosen chunks, and none where they are still in memory.
  const auto query = normal(3, 64);
  const auto chosen = kv.select(2, 0, query, 100);
  std::vector<float> out(64);
  const auto before = kv.counters();
  kv.attend(2, 0, query, 0.125F, chosen, out);
  CHECK(kv.counters().bytes_read - before.bytes_read <= kv.head_bytes(2) / 8);
  CHECK(kv.counters().chunks_read - before.chunks_read == chosen.size());
  CHECK(kv.abstract_bytes() < 2 * 8 * kv.head_bytes(0));
  ChunkedKv keeping(session.state(), file.path, scores.values[0], {.memory_bytes = std::size_t{1} << 20});
  std::vector<float> again(64);
  const auto same = keeping.select(2, 0, query, 200);
  keeping.attend(2, 0, query, 0.125F, same, out);
  const auto read = keeping.counters().bytes_read;
  keeping.attend(2, 0, query, 0.125F, same, again);
  CHECK(keeping.counters().bytes_read == read);
  CHECK(keeping.counters().bytes_asked == 2 * read);
  CHECK(out == again);
}

TEST_CASE("decoder.leoam: a file that has changed or gone, and sequences without all rows, are errors", "[decoder]") {
  const auto model = skald_test::tiny_model(small);
  const Decoder decoder(model, DecoderOptions{.context = 512});
  AttentionScores scores;
  const auto session = filled(decoder, skald_test::some_tokens(100, 96), scores);
  const File file;
  ChunkedKv kv(session.state(), file.path, {}, {.most_tokens = 32});
  {
    auto bytes = read_whole_file(file.path);
    bytes[5] ^= std::byte{1};
    auto* stream = std::fopen(file.path.c_str(), "r+b");
    REQUIRE(stream != nullptr);
    REQUIRE(std::fwrite(bytes.data(), 1, bytes.size(), stream) == bytes.size());
    std::fclose(stream);
  }
  CHECK_THROWS_AS(kv.read(0, 0, 0), FormatError);
  CHECK_NOTHROW(kv.read(1, 1, 2));
  std::filesystem::resize_file(file.path, 10);
  CHECK_THROWS_AS(kv.read(1, 1, 2), IoError);
  CHECK_THROWS_AS(kv.read(0, 2, 0), UsageError);
  const Decoder evicting(model, DecoderOptions{.kv = {.eviction = "window:window=64", .page_tokens = 16}});
  CHECK_THROWS_AS(ChunkedKv(evicting.new_session().state(), file.path), IncompatibleError);
  CHECK_THROWS_AS(ChunkedKv(session.state(), "no/such/folder/file"), IoError);
  CHECK_THROWS_AS(ChunkedKv(session.state(), file.path, {}, {.least_tokens = 0}), UsageError);
}
