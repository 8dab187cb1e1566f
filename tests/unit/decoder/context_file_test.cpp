// Compressed contexts, after CacheGen (Liu et al. 2024, arXiv 2310.07240).

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>

#include <skald/core/file.hpp>
#include <skald/skald.hpp>

#include "state/context_codec.hpp"
#include "support/catch.hpp"
#include "support/shared_data.hpp"
#include "support/story_grammar.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace skald;

AnyExecutor serial() { return {std::make_shared<SerialExecutor>()}; }

double nll(std::span<const float> row, TokenId token) {
  double most = static_cast<double>(row[0]);
  for (const float x : row) most = std::max<double>(most, static_cast<double>(x));
  double sum = 0;
  for (const float x : row) sum += std::exp(static_cast<double>(x) - most);
  return most + std::log(sum) - static_cast<double>(row[static_cast<std::size_t>(token)]);
}

/// Mean negative log-likelihood of tokens that follow what the session holds; the first is not scored.
double loss(Session& session, std::span<const TokenId> tokens) {
  const auto logits = session.forward(tokens, LogitsWanted::all);
  double sum = 0;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i)
    sum += nll(logits.row(static_cast<std::int64_t>(i)), tokens[i + 1]);
  return sum / static_cast<double>(tokens.size() - 1);
}

/// Greedy continuation.
std::vector<TokenId> greedy(Session& session, TokenId token, int count) {
  std::vector<TokenId> result;
  for (int i = 0; i < count; ++i) {
    const auto logits = session.forward({&token, 1});
    const auto row = logits.row(0);
    token = static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
    result.push_back(token);
  }
  return result;
}

bool same_logits(Session& a, Session& b, TokenId token) {
  const auto first = a.forward({&token, 1});
  const std::vector<float> copy(first.row(0).begin(), first.row(0).end());
  const auto second = b.forward({&token, 1});
  return std::memcmp(copy.data(), second.row(0).data(), copy.size() * sizeof(float)) == 0;
}

const Model& bundled() {
  static const auto model = Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  return model;
}

std::vector<TokenId> story_tokens(std::uint64_t seed, std::size_t count) {
  auto tokens = bundled().tokenizer().encode(skald_test::StoryGrammar(seed).text(8 * count));
  tokens.resize(count);
  return tokens;
}

constexpr skald_test::TinyShape small{
    .vocabulary = 96, .dim = 64, .heads = 2, .kv_heads = 2, .head_dim = 32, .ffn = 64};

Model small_model(std::uint64_t seed = 1) {
  auto shape = small;
  shape.seed = seed;
  return skald_test::tiny_model(shape, {.backend = make_cpu_backend({.threads = 1, .executor = serial()})});
}

std::vector<TokenId> some_tokens(std::uint64_t seed, std::size_t count) {
  std::vector<TokenId> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<TokenId>(CounterRandom(seed, i, 0).next() % 96);
  return tokens;
}

Session filled(const Decoder<>& decoder, std::span<const TokenId> tokens) {
  auto session = decoder.new_session();
  (void)session.forward(tokens, LogitsWanted::none);
  return session;
}

ContextFile in_memory(std::span<const std::byte> bytes) { return ContextFile({SpanSource(bytes), "memory"}); }

std::string temporary(const std::string& name) {
  return (std::filesystem::temp_directory_path() / (name + std::to_string(::getpid()))).string();
}

}  // namespace

TEST_CASE("decoder.cachegen: codes come back exactly, in fewer bytes than a plain dump of 8-bit keys and values",
          "[decoder]") {
  const Decoder decoder(bundled());
  const auto tokens = story_tokens(1, 900);
  const auto session = filled(decoder, tokens);
  const detail::ContextCut cut;
  const auto& kv = static_cast<const PagedKv&>(*session.state().layer(2));
  std::size_t pulled = 0;
  for (const bool keys : {true, false}) {
    detail::ContextPart part;
    part.heads = kv.groups() * kv.pool().layout().heads;
    part.dims = keys ? kv.pool().layout().head_dim_k : kv.pool().layout().head_dim_v;
    std::vector<float> values(part.channels() * tokens.size());
    detail::read_part(kv, keys, 0, 900, values);
    part.fit(values, 900, cut);
    for (const auto pull : part.pulls) pulled += pull > 0;
    for (const float step : {0.02F, 0.1F, 0.3F, 1.0F}) {
      const auto codes = part.add_level(values, 900, cut, step);
      const auto level = part.levels.size() - 1;
      part.prepare(level);
      std::size_t bytes = 0;
      for (std::int64_t first = 0; first < 900; first += cut.chunk_tokens) {
        const auto count = std::min<std::int64_t>(cut.chunk_tokens, 900 - first);
        const auto stream = part.pack(level, codes, 900, first, count, cut);
        bytes += stream.size();
        ArchiveReader in(stream, "stream");
        std::vector<std::int32_t> again(part.channels() * static_cast<std::size_t>(count));
        part.unpack(level, in, count, cut, again);
        in.finish();
        for (std::size_t c = 0; c < part.channels(); ++c)
          REQUIRE(std::equal(again.begin() + static_cast<std::ptrdiff_t>(c) * count,
                             again.begin() + static_cast<std::ptrdiff_t>(c + 1) * count,
                             codes.begin() + static_cast<std::ptrdiff_t>(c) * 900 + first));
      }
      INFO("step " << step << ": " << bytes << " bytes for " << values.size() << " elements");
      CHECK(bytes < values.size());
    }
  }
  CHECK(pulled > 0);  // neighbouring tokens are alike in some channels, so anchors are used
}

TEST_CASE("decoder.cachegen: where neighbours are alike, distances from anchors take fewer bytes than the values",
          "[decoder]") {
  constexpr std::int64_t tokens = 1000;
  std::vector<float> values(64 * tokens);
  for (std::size_t c = 0; c < 64; ++c) {
    float slow = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      CounterRandom random(c, t, 0);
      slow += 0.05F * static_cast<float>(random.uniform() - 0.5);
      values[c * tokens + t] = slow + 0.02F * static_cast<float>(random.uniform() - 0.5);
    }
  }
  const auto bytes = [&](std::int32_t group) {
    const detail::ContextCut cut{250, group};
    detail::ContextPart part;
    part.heads = 1;
    part.dims = 64;
    part.fit(values, tokens, cut);
    if (group == 2) std::fill(part.pulls.begin(), part.pulls.end(), std::uint8_t{0});  // no anchors
    const auto codes = part.add_level(values, tokens, cut, 0.1F);
    std::size_t sum = 0;
    for (std::int64_t first = 0; first < tokens; first += 250)
      sum += part.pack(0, codes, tokens, first, 250, cut).size();
    return sum;
  };
  INFO(bytes(10) << " bytes with anchors, " << bytes(2) << " without");
  CHECK(static_cast<double>(bytes(10)) < 0.8 * static_cast<double>(bytes(2)));
}

TEST_CASE("decoder.cachegen: a file is at least 3.5 times smaller than f16 at under one percent of perplexity",
          "[decoder]") {
  const Decoder decoder(bundled());
  double exact = 0;
  double restored = 0;
  double file_bytes = 0;
  double f16_bytes = 0;
  for (std::uint64_t i = 0; i < 4; ++i) {
    const auto tokens = story_tokens(500 + i, 1024);
    auto session = filled(decoder, std::span(tokens).first(704));
    f16_bytes += static_cast<double>(session.bytes());  // whole pages
    const auto bytes = compress_context(session);
    file_bytes += static_cast<double>(bytes.size());
    auto other = decoder.new_session();
    in_memory(bytes).load(other);
    REQUIRE(other.length() == 704);
    exact += loss(session, std::span(tokens).subspan(704)) / 4;
    restored += loss(other, std::span(tokens).subspan(704)) / 4;
  }
  const double change = std::exp(restored - exact) - 1;
  INFO(f16_bytes / file_bytes << " times smaller, perplexity " << 100 * change << " % more");
  CHECK(f16_bytes > 3.5 * file_bytes);
  CHECK(std::abs(change) < 0.01);
}

// In free stories many words fit equally well: there even q8_0 pages change some choice within 48 tokens on most seeds.
TEST_CASE("decoder.cachegen: answers about a story restored at the finest level are those about the original",
          "[decoder]") {
  const Decoder decoder(bundled());
  const auto& tokenizer = bundled().tokenizer();
  const auto line_end = tokenizer.encode("\n").back();  // after it a new question may begin, of any kind
  for (std::uint64_t i = 0; i < 6; ++i) {
    skald_test::StoryGrammar grammar(40 + i);
    const auto told = grammar.story(20);
    auto session = filled(decoder, tokenizer.encode(told.text));
    const auto bytes = compress_context(session, {.steps = {0.05F, 0.3F, 1.0F}});
    auto other = decoder.new_session();
    const auto file = in_memory(bytes);
    CHECK(std::equal(file.tokens().begin(), file.tokens().end(), session.tokens().begin(), session.tokens().end()));
    file.load(other);
    for (std::size_t q = 0; q < 3; ++q) {
      const auto question = tokenizer.encode("\n\nQuestion: " + told.questions[q].question + "\nAnswer:");
      auto a = session.fork();
      auto b = other.fork();
      (void)a.forward(std::span(question).first(question.size() - 1), LogitsWanted::none);
      (void)b.forward(std::span(question).first(question.size() - 1), LogitsWanted::none);
      auto first = greedy(a, question.back(), 12);
      auto second = greedy(b, question.back(), 12);
      for (auto* answer : {&first, &second})
        answer->erase(std::find(answer->begin(), answer->end(), line_end), answer->end());
      CHECK(first == second);
    }
  }
}

TEST_CASE("decoder.cachegen: as a link slows down the controller picks the fine level, the coarse one, then text",
          "[decoder]") {
  std::vector<ContextChunk> chunks;
  for (std::int64_t i = 0; i < 8; ++i) chunks.push_back({i * 256, 256, {4000, 2000, 1000}});
  const auto choose = [&](ContextRates rates, double elapsed = 0) {
    return ContextController(rates).choose(chunks, elapsed);
  };
  // 2048 tokens take 2 s to compute, the levels 32000, 16000 and 8000 bytes; one second is allowed.
  const auto at = [&](double rate) {
    return choose({.bytes_per_second = rate, .tokens_per_second = 1024, .seconds = 1});
  };
  CHECK(at(40000) == 0);
  CHECK(at(32000) == 0);
  CHECK(at(31999) == 1);
  CHECK(at(15999) == 2);
  CHECK(at(7999) == 2);  // nothing comes in time: 1.0001 s is the fastest
  CHECK(at(4001) == 2);
  CHECK(at(3999) == recompute_chunk);
  // A processor that is fast enough gives the exact result, whatever the link.
  CHECK(choose({.bytes_per_second = 1e9, .tokens_per_second = 2048, .seconds = 1}) == recompute_chunk);
  // Without a time the fastest, within what is good enough.
  CHECK(choose({.bytes_per_second = 40000}) == 2);
  CHECK(choose({.bytes_per_second = 40000, .coarsest_level = 1}) == 1);
  CHECK(choose({.bytes_per_second = 100, .tokens_per_second = 10}) == 2);
  CHECK(choose({.bytes_per_second = 10, .tokens_per_second = 10}) == recompute_chunk);
  CHECK(choose({}) == 0);
  // Half of the time is over.
  CHECK(choose({.bytes_per_second = 40000, .seconds = 1}, 0.5) == 1);
  // What was measured replaces what was guessed.
  ContextController controller({.bytes_per_second = 40000, .tokens_per_second = 1024, .seconds = 1});
  controller.loaded(4000, 0.2);
  CHECK(controller.choose(std::span(chunks).subspan(1), 0.2) == 1);  // 14000 bytes at 20000 per second, in 0.8 s
  controller.computed(256, 0.01);
  CHECK(controller.choose(std::span(chunks).subspan(1), 0.26) == recompute_chunk);
}

TEST_CASE("decoder.cachegen: a link that slows down while a context is loaded brings coarser chunks, then text",
          "[decoder]") {
  const auto model = small_model();
  const Decoder decoder(model);
  const auto tokens = some_tokens(1, 320);
  const auto session = filled(decoder, tokens);
  const auto bytes = compress_context(session, {.steps = {0.1F, 1.0F}, .chunk_tokens = 32, .executor = serial()});
  double time = 0;
  int reads = -2;  // two for the description, then one for each chunk
  const CallbackSource link(bytes.size(), [&](std::uint64_t offset, std::span<std::byte> out) {
    std::memcpy(out.data(), bytes.data() + offset, out.size());
    time += static_cast<double>(out.size()) / (reads < 3 ? 1e6 : reads < 6 ? 3e5 : 1.0);
    ++reads;
  });
  const ContextFile file({link, "link"});
  const double fine = static_cast<double>(file.chunks()[0].bytes[0]) * 10;
  ContextController controller({.bytes_per_second = 1e6, .tokens_per_second = 1e3, .seconds = 1.5e-6 * fine});
  auto other = decoder.new_session();
  const auto report =
      file.load(other, {.controller = &controller, .clock = [&] { return time; }, .executor = serial()});
  REQUIRE(report.choices.size() == 10);
  CHECK(report.choices.front() == 0);
  CHECK(report.choices.back() == recompute_chunk);
  CHECK(std::find(report.choices.begin(), report.choices.end(), 1) != report.choices.end());
  const auto rank = [](int choice) { return choice == recompute_chunk ? 99 : choice; };
  CHECK(std::is_sorted(report.choices.begin(), report.choices.end(), [&](int a, int b) { return rank(a) < rank(b); }));
  std::uint64_t expected = file.header_bytes();
  std::int64_t computed = 0;
  for (std::size_t c = 0; c < 10; ++c)
    if (report.choices[c] == recompute_chunk) computed += 32;
    else expected += file.chunks()[c].bytes[static_cast<std::size_t>(report.choices[c])];
  CHECK(report.bytes_read == expected);
  CHECK(report.computed_tokens == computed);
  CHECK(other.length() == 320);
  CHECK(std::equal(other.tokens().begin(), other.tokens().end(), tokens.begin(), tokens.end()));
}

TEST_CASE("decoder.cachegen: text alone is computed to the original's bits, threads and page shapes change no bit",
          "[decoder]") {
  const auto model = small_model();
  const Decoder decoder(model);
  const auto session = filled(decoder, some_tokens(2, 150));
  const auto bytes = compress_context(session, {.chunk_tokens = 64, .executor = serial()});
  CHECK(bytes == compress_context(session, {.chunk_tokens = 64, .executor = make_tbb_executor(4)}));
  const auto file = in_memory(bytes);
  auto text = decoder.new_session();
  file.load(text, {.level = recompute_chunk});
  auto original = session.fork();
  CHECK(same_logits(text, original, 5));
  for (const char* format : {"f32", "f16", "bf16", "q8_0", "q4_0"}) {
    const Decoder one(model, {.kv = {.format = format, .page_tokens = 16}});
    const Decoder two(model, {.kv = {.format = format, .page_tokens = 64, .heads_per_group = 2}});
    auto a = one.new_session();
    auto b = two.new_session();
    file.load(a, {.executor = serial()});
    file.load(b, {.executor = make_tbb_executor(3)});
    CHECK(a.length() == 150);
    CHECK(same_logits(a, b, 5));
  }
  const auto packed = compress_context(filled(Decoder(model, {.kv = {.format = "q8_0"}}), some_tokens(2, 150)));
  CHECK(std::abs(static_cast<double>(packed.size()) / static_cast<double>(compress_context(session).size()) - 1) <
        0.05);
}

TEST_CASE("decoder.cachegen: contexts of other models and of sessions that dropped tokens are refused, by name",
          "[decoder]") {
  const auto model = small_model();
  const Decoder decoder(model);
  auto session = filled(decoder, some_tokens(3, 100));
  const auto bytes = compress_context(session);
  const auto other = small_model(2);
  auto foreign = Decoder(other).new_session();
  try {
    in_memory(bytes).load(foreign);
    FAIL("accepted");
  } catch (const IncompatibleError& error) {
    CHECK(error.context().key == "model");
    CHECK(error.context().file == "memory");
  }
  auto evicting = Decoder(model, {.kv = {.eviction = "window:window=64", .page_tokens = 16}}).new_session();
  CHECK_THROWS_AS(compress_context(evicting), IncompatibleError);
  CHECK_THROWS_AS(in_memory(bytes).load(evicting), IncompatibleError);
  auto short_one = Decoder(model, {.context = 64}).new_session();
  CHECK_THROWS_AS(in_memory(bytes).load(short_one), IncompatibleError);
  CHECK_THROWS_AS(in_memory(bytes).load(session, {.level = 1}), UsageError);
  CHECK_THROWS_AS(compress_context(session, {.steps = {}}), UsageError);
  CHECK_THROWS_AS(compress_context(session, {.steps = {0.5F, 0.1F}}), UsageError);
  CHECK_THROWS_AS(compress_context(session, {.chunk_tokens = 1}), UsageError);
  CHECK_THROWS_AS(ContextFile::open("no/such/file"), IoError);
  std::stop_source stop;
  stop.request_stop();
  CHECK_THROWS_AS(in_memory(bytes).load(session, {.stop = stop.get_token()}), CancelledError);
  CHECK(session.length() == 100);
  auto empty = decoder.new_session();
  in_memory(compress_context(empty)).load(session);
  CHECK(session.length() == 0);
}

TEST_CASE("decoder.cachegen: a file damaged or cut off anywhere is refused and changes nothing", "[decoder]") {
  const Decoder decoder(small_model());
  const auto source = filled(decoder, some_tokens(4, 90));
  const auto bytes = compress_context(source, {.steps = {0.2F, 1.0F}, .chunk_tokens = 32, .executor = serial()});
  const auto session = filled(decoder, some_tokens(5, 20));
  const auto refused = [&](std::span<const std::byte> damaged) {
    for (int level = 0; level < 2; ++level) {
      auto loaded = session.fork();
      try {
        in_memory(damaged).load(loaded, {.level = level, .executor = serial()});
      } catch (const Error& error) {
        return error.context().file == "memory" && loaded.length() == 20;
      }
    }
    return false;
  };
  for (std::size_t size = 0; size < bytes.size(); size += 1 + size / 16) CHECK(refused(std::span(bytes).first(size)));
  auto longer = bytes;
  longer.push_back({});
  CHECK(refused(longer));
  std::size_t accepted = 0;
  for (std::size_t i = 0; i < 500; ++i) {
    auto damaged = bytes;
    const auto at = CounterRandom(6, i, 0).next() % bytes.size();
    damaged[at] ^= static_cast<std::byte>(1U << (i % 8));
    accepted += !refused(damaged);
  }
  CHECK(accepted == 0);
}

TEST_CASE("decoder.cachegen: a process killed while it saves a context leaves the old file or the new one, 100 of 100",
          "[decoder]") {
  const Decoder decoder(small_model());
  const auto path = temporary("skald-context-");
  const ContextSaveOptions options{.steps = {0.1F, 0.3F}, .executor = serial()};
  const auto first = filled(decoder, some_tokens(7, 40));
  const auto second = filled(decoder, some_tokens(8, 300));
  const auto old_bytes = compress_context(first, options);
  const auto new_bytes = compress_context(second, options);
  int old_files = 0;
  int new_files = 0;
  for (int i = 0; i < 100; ++i) {
    write_file_atomically(path, old_bytes);
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        write_file_atomically(path, new_bytes);
      } catch (...) {
      }
      ::_exit(0);
    }
    ::usleep(static_cast<useconds_t>((i * 37) % 1500));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    const auto found = read_whole_file(path);
    old_files += found == old_bytes;
    new_files += found == new_bytes;
    auto session = decoder.new_session();
    REQUIRE_NOTHROW(ContextFile::open(path).load(session, {.executor = serial()}));
  }
  CHECK(old_files + new_files == 100);
  CHECK(old_files > 0);
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::temp_directory_path()))
    if (entry.path().string().starts_with(path)) std::filesystem::remove(entry.path());
}
