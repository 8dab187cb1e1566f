// Networks with an encoder: reference numbers, exactness, sessions, refusals.
#include <algorithm>
#include <cmath>
#include <functional>

#include <nlohmann/json.hpp>

#include <skald/decoder/decoder.hpp>
#include <skald/decoder/embed.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/generate/generate.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/model/plan.hpp>
#include <skald/simd/isa.hpp>

#include "support/shared_data.hpp"
#include "support/tiny_model.hpp"

namespace {

using nlohmann::json;
using skald::TokenId;

const std::string file = "goldens/models/t5.gguf";

std::vector<float> copy(const skald::Logits& logits, std::size_t entry = 0) {
  const auto first = logits.row(entry, 0).data();
  return {first, first + logits.rows(entry) * logits.vocabulary()};
}

double max_difference(std::span<const float> found, std::span<const float> expected) {
  REQUIRE(found.size() == expected.size());
  double most = 0;
  for (std::size_t i = 0; i < found.size(); ++i)
    most = std::max(most, std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i])));
  return most;
}

std::vector<skald::AnyBackend> backends() {
  std::vector<skald::AnyBackend> list{skald::make_reference_backend()};
  for (const auto isa : skald::available_isas())
    list.push_back(skald::make_backend("cpu:isa=" + std::string(skald::to_string(isa))));
  return list;
}

TokenId best(std::span<const float> row) {
  return static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
}

TokenId model_start(const skald::Session& session) { return session.model().spec().decoder_start; }

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const skald::UsageError& error) {
    return error.what();
  }
  return {};
}

skald::Model load(const skald::AnyBackend& backend = skald::make_backend("cpu")) {
  return skald::Model::load(skald_test::shared_path(file), {.backend = backend});
}

using Rename = std::function<std::pair<std::string, skald::MetadataValue>(const std::string&, skald::MetadataValue)>;

/// The file without some tensors and with other metadata; an empty key leaves an entry out.
std::vector<std::byte> rewritten(const std::function<bool(const std::string&)>& without, const Rename& rename) {
  const skald::ModelFile whole = skald::open_gguf(skald_test::shared_path(file));
  skald::GgufWriter writer;
  for (const auto& entry : whole.metadata().entries()) {
    const auto [key, value] = rename(entry.key, entry.value);
    if (!key.empty()) writer.set(key, value);
  }
  for (const auto& tensor : whole.tensors()) {
    if (without(tensor.name)) continue;
    std::vector<std::byte> data(static_cast<std::size_t>(tensor.bytes));
    whole.read(tensor, data);
    const std::vector<std::int64_t> dims(tensor.dims.begin(), tensor.dims.begin() + (tensor.dims[1] > 1 ? 2 : 1));
    writer.add_tensor(tensor.name, tensor.type, dims, data);
  }
  return writer.to_bytes();
}

skald::Model load_bytes(const std::vector<std::byte>& bytes) {
  return skald::Model::load(skald::AnyByteSource(skald::SpanSource(bytes), "changed"), {.tokenizer = false});
}

}  // namespace

TEST_CASE("decoder.encoder: T5 gives the reference engine's encoder states, logits and continuation",
          "[decoder][golden]") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto floats = [](const std::string& end) {
    return skald_test::read_floats(skald_test::shared_path("goldens/logits/t5." + end));
  };
  const auto description = json::parse(skald_test::read_text(skald_test::shared_path("goldens/logits/t5.json")));
  const auto& tolerance = description.at("tolerance_max_abs");
  const auto answer = description.at("decoder_input").get<std::vector<TokenId>>();
  for (const auto& backend : backends()) {
    INFO(backend->info().name << " " << backend->info().isa);
    const skald::Decoder<> decoder(load(backend), {.kv = {.format = "f32"}});
    for (int k = 1; k <= 2; ++k) {
      const auto prompt = description.at("prompts").at(static_cast<std::size_t>(k - 1)).get<std::vector<TokenId>>();
      const std::string name = "p" + std::to_string(k);
      auto session = decoder.new_session();
      std::vector<float> states;
      session.encode(prompt, {}, &states);
      CHECK(session.encoded_length() == static_cast<std::int64_t>(prompt.size()));
      CHECK(max_difference(states, floats(name + ".enc.f32")) <= tolerance.at("vs_llama_cpp").get<double>());
      const auto found = copy(session.forward(answer, skald::LogitsWanted::all));
      CHECK(max_difference(found, floats(name + ".ref64.f32")) <= tolerance.at("vs_float64").get<double>());
      if (k < 2) continue;
      const auto greedy = description.at("greedy_ids").get<std::vector<TokenId>>();
      const auto steps = floats("gen.f32");
      session.truncate(0);
      TokenId last = model_start(session);
      for (std::size_t i = 0; i < greedy.size(); ++i) {
        const auto row = session.forward({&last, 1}).last();
        CHECK(best(row) == greedy[i]);
        const auto wide = row.size();
        if (i > 0)
          CHECK(max_difference(row, std::span(steps).subspan((i - 1) * wide, wide)) <=
                tolerance.at("vs_llama_cpp").get<double>());
        last = greedy[i];
      }
    }
  }
}

TEST_CASE("decoder.encoder: batches, chunks, forks, truncation and snapshots change no bit", "[decoder][exact]") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const auto isa : skald::available_isas())
    for (const std::string format : {"f16", "q8_0"}) {
      INFO(skald::to_string(isa) << " " << format);
      const auto model = load(skald::make_backend("cpu:isa=" + std::string(skald::to_string(isa))));
      const auto vocabulary = model.spec().vocabulary;
      const skald::Decoder<> decoder(model, {.kv = {.format = format, .page_tokens = 16}});
      // Answers longer than the distances that have a bucket of their own.
      std::vector<std::vector<TokenId>> prompts, answers;
      std::vector<std::vector<float>> alone;
      for (int s = 0; s < 3; ++s) {
        prompts.push_back(skald_test::some_tokens(3 + 40 * s, vocabulary, 7 + s));
        answers.push_back(skald_test::some_tokens(150 - 20 * s, vocabulary, 70 + s));
        auto session = decoder.new_session();
        session.encode(prompts.back());
        alone.push_back(copy(session.forward(answers.back(), skald::LogitsWanted::all)));
      }
      const auto tail = [&](std::size_t s, std::int64_t from) {
        return std::vector<float>(alone[s].begin() + from * vocabulary, alone[s].end());
      };
      std::vector<skald::Session> sessions;
      for (std::size_t s = 0; s < 3; ++s) {
        sessions.push_back(decoder.new_session());
        sessions.back().encode(prompts[s]);
      }
      skald::Batch batch;
      for (std::size_t s = 0; s < 3; ++s) batch.add(sessions[s], answers[s], skald::LogitsWanted::all);
      const auto together = decoder.forward(batch);
      for (std::size_t s = 0; s < 3; ++s) CHECK((copy(together, s) == alone[s]));

      auto steps = decoder.new_session();
      steps.encode(prompts[2]);
      const std::span<const TokenId> answer(answers[2]);
      steps.forward(answer.first(90));
      auto fork = steps.fork();
      CHECK((copy(steps.forward(answer.subspan(90), skald::LogitsWanted::all)) == tail(2, 90)));
      fork.forward(answer.first(5));
      fork.truncate(90);
      CHECK((copy(fork.forward(answer.subspan(90), skald::LogitsWanted::all)) == tail(2, 90)));
      fork.truncate(100);
      auto restored = decoder.new_session();
      restored.restore(fork.snapshot());
      CHECK(restored.encoded_length() == 83);
      CHECK((copy(restored.forward(answer.subspan(100), skald::LogitsWanted::all)) == tail(2, 100)));
      for (std::size_t i = 0; i < 10; ++i) {  // one by one
        if (i == 0) restored.truncate(100);
        const auto row = copy(restored.forward(answer.subspan(100 + i, 1)));
        CHECK(std::equal(row.begin(), row.end(), tail(2, 100 + static_cast<std::int64_t>(i)).begin()));
      }
    }
}

TEST_CASE("decoder.encoder: what layers keep of a text is computed once, counted and given back", "[decoder]") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto model = load();
  const skald::DecoderOptions options{.kv = {.page_tokens = 16}, .context = 128, .parallel = 2};
  const skald::Decoder<> decoder(model, options);
  const auto prompt = skald_test::some_tokens(40, model.spec().vocabulary);
  auto session = decoder.new_session();
  CHECK(session.bytes() == 0);
  session.encode(prompt);
  // 3 pages for each of 4 heads in 2 layers, of keys and values of 18 elements in f16.
  const auto held = session.bytes();
  CHECK(held == 3u * 4 * 2 * skald::KvPageLayout{skald::DType::f16, 16, 1, 18, 18}.page_bytes());
  CHECK(decoder.counters().kv_page_bytes_used == held);
  const auto start = model_start(session);
  session.forward({&start, 1});
  session.forward({&start, 1});
  CHECK(decoder.counters().encoder_passes == 1);
  CHECK(decoder.counters().encoded_tokens == 40);
  CHECK(decoder.counters().tokens == 2);
  {
    const auto fork = session.fork();
    CHECK(fork.encoded_length() == 40);
    CHECK(decoder.counters().kv_page_bytes_used == session.bytes());
  }
  session.truncate(0);
  CHECK(session.bytes() == held);
  session.clear();
  CHECK(session.encoded_length() == 0);
  CHECK(decoder.counters().kv_page_bytes_used == 0);

  const auto plan = skald::plan(skald_test::shared_path(file),
                                {.context = 128, .sequences = 2, .kv_type = skald::DType::f16, .page_tokens = 16});
  // 2 layers x 4 heads x (tokens and text of 2 sequences), 4 heads of one layer of the encoder; 8 pages each.
  CHECK(plan.kv == (2u * 4 * 2 * 2 + 4) * 8 * skald::KvPageLayout{skald::DType::f16, 16, 1, 18, 18}.page_bytes());
  // That many sequences fit indeed.
  std::vector<skald::Session> sessions;
  const auto all = skald_test::some_tokens(128, model.spec().vocabulary);
  for (int s = 0; s < 2; ++s) {
    sessions.push_back(decoder.new_session());
    sessions.back().encode(all);
    sessions.back().forward(all);
  }
  auto more = decoder.new_session();
  CHECK_THROWS_AS(more.encode(all), skald::OutOfMemoryError);
  CHECK(more.encoded_length() == 0);
}

TEST_CASE("decoder.encoder: generates greedily from the start token what the encoder has read", "[decoder]") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto description = json::parse(skald_test::read_text(skald_test::shared_path("goldens/logits/t5.json")));
  const auto prompt = description.at("prompts").at(1).get<std::vector<TokenId>>();
  const auto greedy = description.at("greedy_ids").get<std::vector<TokenId>>();
  const skald::Decoder<> decoder(load());
  auto session = decoder.new_session();
  auto generation = skald::generate(session, prompt, {.max_tokens = 16, .sampler = {.temperature = 0}});
  static_cast<void>(generation.collect());
  CHECK(std::vector<TokenId>(generation.tokens().begin(), generation.tokens().end()) == greedy);
  CHECK(session.encoded_length() == 48);
  // A second prompt needs a session without an answer to the first.
  auto again = skald::generate(session, prompt, {.max_tokens = 1});
  CHECK_THROWS_AS(again.collect(), skald::UsageError);
  session.clear();
  auto fresh = skald::generate(session, "the man", {.max_tokens = 4});
  static_cast<void>(fresh.collect());
  const auto& tokenizer = session.model().tokenizer();
  CHECK(session.encoded_length() == static_cast<std::int64_t>(tokenizer.encode("the man", {.add_special = true}).size()));
}

TEST_CASE("decoder.encoder: refuses what cannot work and says what to do", "[decoder]") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto model = load();
  const skald::Decoder<> decoder(model, {.context = 64});
  auto session = decoder.new_session();
  const TokenId token = 3;
  CHECK(message_of([&] { session.forward({&token, 1}); }).find("call Session::encode first") != std::string::npos);
  CHECK_THROWS_AS(session.encode({}), skald::UsageError);
  CHECK_THROWS_AS(session.encode(std::vector<TokenId>(65, 3)), skald::UsageError);
  CHECK_THROWS_AS(session.encode(std::vector<TokenId>{92}), skald::UsageError);
  CHECK_THROWS_AS(session.encode(std::vector<TokenId>{-1}), skald::UsageError);
  std::stop_source stop;
  stop.request_stop();
  CHECK_THROWS_AS(session.encode({&token, 1}, stop.get_token()), skald::CancelledError);
  CHECK(session.encoded_length() == 0);
  session.encode({&token, 1});
  session.encode(std::vector<TokenId>{3, 4});  // nothing was computed from the first text yet
  CHECK(session.encoded_length() == 2);
  session.forward({&token, 1});
  CHECK(message_of([&] { session.encode({&token, 1}); }).find("clear()") != std::string::npos);
  CHECK(session.encoded_length() == 2);
  skald::Batch tree;
  tree.add_tree(session, std::vector<TokenId>{1, 2}, std::vector<std::int32_t>{-1, -1});
  CHECK_THROWS_AS(decoder.forward(tree), skald::IncompatibleError);
  CHECK_THROWS_AS(skald::Decoder<>(model, {.kv = {.eviction = "recent_pages:sinks=1,recent=8"}}),
                  skald::IncompatibleError);
  CHECK_THROWS_AS(skald::PrefixCache(decoder), skald::IncompatibleError);

  const auto plain = skald_test::tiny_model({});
  auto without = skald::Decoder<>(plain).new_session();
  CHECK_THROWS_AS(without.encode({&token, 1}), skald::IncompatibleError);
}

TEST_CASE("decoder.encoder: the encoder alone gives hidden states and embeddings", "[decoder]") {
  if (!skald_test::have_shared("goldens/models")) return;
  // The same file under the name of the encoder; the decoder is left out.
  const auto data = rewritten([](const std::string& name) { return name.starts_with("dec.") || name == "output.weight"; },
                              [](const std::string& key, skald::MetadataValue value) {
                                if (key == "general.architecture") value = std::string("t5encoder");
                                const auto renamed = key.starts_with("t5.") ? "t5encoder." + key.substr(3) : key;
                                return std::pair(renamed, std::move(value));
                              });
  const auto model = load_bytes(data);
  CHECK(model.info().unused.empty());
  const skald::Decoder<> decoder(model, {.kv = {.format = "f32"}});
  const auto tokens = skald_test::some_tokens(30, model.spec().vocabulary);
  auto session = decoder.new_session();
  std::vector<float> hidden;
  skald::Batch batch;
  batch.add(session, tokens, skald::LogitsWanted::none);
  skald::ForwardOptions options;
  options.hidden = &hidden;
  static_cast<void>(decoder.forward(batch, options));
  const skald::Decoder<> both(load(), {.kv = {.format = "f32"}});
  auto other = both.new_session();
  std::vector<float> states;
  other.encode(tokens, {}, &states);
  CHECK((states == hidden));
  CHECK(skald::embed(decoder, tokens).size() == 56);
}

TEST_CASE("decoder.encoder: refuses files whose encoder is incomplete or contradicts itself", "[decoder]") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto same = [](const std::string& key, skald::MetadataValue value) { return std::pair(key, std::move(value)); };
  const skald::ModelFile whole = skald::open_gguf(skald_test::shared_path(file));
  for (const auto& tensor : whole.tensors()) {
    INFO("without " << tensor.name);
    const auto bytes = rewritten([&](const std::string& name) { return name == tensor.name; }, same);
    // These two are allowed to be missing: the head is then the embedding, the network has no gate.
    if (tensor.name == "output.weight" || tensor.name.find("ffn_gate") != std::string::npos)
      CHECK_NOTHROW(load_bytes(bytes));
    else
      CHECK_THROWS_AS(load_bytes(bytes), skald::FormatError);
  }
  using Change = std::pair<std::string, skald::MetadataValue>;
  const std::vector<Change> changes{{"t5.decoder_block_count", std::uint32_t{3}},
                                    {"t5.decoder_block_count", std::uint32_t{0}},
                                    {"t5.decoder_block_count", std::uint32_t{1u << 30}},
                                    {"t5.block_count", std::uint32_t{4}},
                                    {"t5.decoder_start_token_id", std::uint32_t{92}},
                                    {"t5.attention.relative_buckets_count", std::uint32_t{8}},
                                    {"t5.attention.relative_buckets_count", std::uint32_t{0}},
                                    {"t5.attention.relative_buckets_count", std::uint32_t{1u << 31}},
                                    {"t5.attention.key_length", std::uint32_t{9}},
                                    {"t5.embedding_length", std::uint32_t{28}}};
  for (const auto& change : changes) {
    INFO(change.first);
    const auto bytes = rewritten([](const std::string&) { return false; },
                                 [&](const std::string& key, skald::MetadataValue value) {
                                   return std::pair(key, key == change.first ? change.second : std::move(value));
                                 });
    CHECK_THROWS_AS(load_bytes(bytes), skald::FormatError);
  }
}
