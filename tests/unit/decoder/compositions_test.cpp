// Every pair of registered components either works or is refused when the pipeline is built, with the reason; the
// table in docs/compositions.md is this test's output.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <sstream>

#include <skald/decoder/context_file.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/decoder/kv_prediction.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/decoder/speculative_start.hpp>
#include <skald/state/chunked_kv.hpp>

#include "support/catch.hpp"
#include "support/gates_file.hpp"
#include "support/recurrent_model.hpp"
#include "support/shared_data.hpp"
#include "support/tiny_attention.hpp"

namespace {

/// A choice of parts, each by name.
struct Pipeline {
  std::string backend = "cpu";
  std::string layout = "packed";
  std::string weights = "q8_0";
  std::string kv = "f16";
  std::string eviction = "none";
  std::string attention = "dense";
  std::string scores = "off";
  std::string model = "gqa";
  std::string prompt = "whole";
  std::string prefix = "none";
  std::string start = "plain";
  std::string search = "single";
  std::string file = "none";
};

struct Component {
  std::string title;
  std::function<void(Pipeline&)> choose;
};

const std::vector<Component>& components() {
  static const std::vector<Component> list = [] {
    std::vector<Component> all;
    const auto add = [&](const std::string& kind, std::string Pipeline::*field, const std::vector<std::string>& names) {
      for (const auto& name : names)
        all.push_back({kind + " " + name, [field, name](Pipeline& p) { p.*field = name; }});
    };
    add("backend", &Pipeline::backend, {"cpu", "reference"});
    add("layout", &Pipeline::layout, {"packed", "rows"});
    add("weights", &Pipeline::weights,
        {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"});
    add("kv", &Pipeline::kv,
        {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_0;residual=32", "f16;segments=prompt", "f16;values=48",
         "f16;chunks=48", "q8_0;chunks=64 of 32,16", "f16;heads 1=q8_0", "f16;layers 1=layer 0", "f16;layers 0=layer 1",
         "f16;layers 0=layer 1;iterations=3", "coupled"});
    add("eviction", &Pipeline::eviction, {"none", "recent_pages:sinks=1,recent=2", "window:sinks=4,window=60", "h2o:budget=64,recent=50",
                                             "snapkv:budget=64,window=8,pool=5", "rpc:interval=32,window=8,percent=25",
                                             "streaming:sinks=4,window=60", "d2o:budget=64",
                                             "keyformer:budget=64,recent=50,noise=100,temperature=200,steps=512,seed=1", "dcp",
                                             "adore:budget=64,rebuild=16,interval=16,sinks=4,fade=10,reach=6"});
    add("attention", &Pipeline::attention, {"dense"});
    add("scores", &Pipeline::scores, {"off", "sum"});
    add("model", &Pipeline::model, {"gqa", "mha", "mla", "window", "recurrent", "hybrid"});
    add("prompt", &Pipeline::prompt, {"whole", "chunked"});
    add("prefix", &Pipeline::prefix, {"none", "reuse"});
    // How a session comes to hold the beginning of a prompt: computed; keys and values made of another model's (here the same);
    // a compressed context; computed while the search for its documents runs.
    add("start", &Pipeline::start, {"plain", "predicted", "compressed", "speculative"});
    add("search", &Pipeline::search, {"single", "beams"});
    // Where the session's keys and values are when all is computed: where they were, or in a file of chunks too.
    add("file", &Pipeline::file, {"none", "chunks"});
    return all;
  }();
  return list;
}

/// A small model of the pipeline's kind, loaded once.
const skald::Model& model_of(const Pipeline& parts) {
  static std::map<std::string, skald::Model> models;
  const auto key = parts.backend + "," + parts.layout + "," + parts.weights + "," + parts.model +
                   (parts.kv.find("=layer") == std::string::npos ? ",1" : ",2");
  if (const auto known = models.find(key); known != models.end()) return known->second;
  skald::LoadOptions load{.backend = skald::make_backend(parts.backend)};
  load.layout = parts.layout == "rows" ? skald::WeightLayout::rows : skald::WeightLayout::packed;
  const auto type = *skald::dtype_from_name(parts.weights);
  const bool wide_blocks = parts.weights.ends_with("_k");  // rows are whole blocks of 256
  if (parts.model == "recurrent" || parts.model == "hybrid")
    return models.emplace(key, skald_test::recurrent_model(parts.model == "hybrid" ? "jamba" : "mamba", type, load, wide_blocks ? 256 : 64))
        .first->second;
  skald_test::TinyShape shape{.layers = key.back() - '0', .type = type};
  shape.ffn = shape.dim = wide_blocks ? 256 : 64;
  return models.emplace(key, skald_test::tiny_attention_model(parts.model, shape, load)).first->second;
}

using Row = std::vector<float>;

/// Codebooks of the right shape; what they hold does not matter here.
std::shared_ptr<const skald::CoupledCodebooks> some_codebooks(const skald::ModelSpec& spec) {
  const skald::CoupledShape shape{8, 4};
  std::vector<skald::CoupledCodebooks::Layer> layers(spec.layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto& attention = spec.layers[l].attention;
    if (!attention) continue;
    const auto book = [&](std::int32_t dims) {
      std::vector<float> centroids(static_cast<std::size_t>(attention->kv_heads * ((dims + 7) / 8) * 8 * 16));
      skald::CounterRandom random(l, static_cast<std::uint64_t>(dims), 0);
      for (float& x : centroids) x = static_cast<float>(random.uniform() - 0.5);
      return skald::CoupledCodebook(shape, attention->kv_heads, dims, std::move(centroids));
    };
    layers[l] = {book(attention->stored_dim_k()), book(attention->stored_dim_v())};
  }
  return std::make_shared<const skald::CoupledCodebooks>(shape, std::move(layers));
}

using Tokens = std::vector<skald::TokenId>;
constexpr std::size_t begun = 80;  // tokens that a session is begun with
const Tokens best_beam{6, 8};

skald::AnyByteSource source_of(std::vector<std::byte> bytes) {
  const auto keep = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  return {skald::CallbackSource(keep->size(),
                                [keep](std::uint64_t offset, std::span<std::byte> out) {
                                  std::memcpy(out.data(), keep->data() + offset, out.size());
                                }),
          "context"};
}

/// A session that holds the first tokens.
skald::Session begin(const skald::Decoder<>& decoder, const Pipeline& parts, const Tokens& tokens) {
  const auto first = std::span(tokens).first(begun);
  auto session = decoder.new_session();
  if (parts.start == "predicted") {
    std::vector<skald::KvMap> maps(static_cast<std::size_t>(decoder.model().spec().layer_count()));
    for (std::size_t l = 0; l < maps.size(); ++l) maps[l].layer = static_cast<int>(l);
    return skald::KvPredictor(decoder, decoder, maps).predict(first);
  }
  if (parts.start == "speculative") {
    skald::PrefixCache cache(decoder);
    Tokens wrong(tokens.begin(), tokens.begin() + 60);
    wrong.resize(90, 3);
    int asked = 0;
    return skald::start_speculatively(
        cache, [&](bool) { return asked++ < 2 ? skald::ProvisionalPrompt{wrong, false} : skald::ProvisionalPrompt{tokens, true}; },
        {.chunk_tokens = 40});
  }
  if (parts.start == "compressed" || parts.prefix == "reuse") (void)session.forward(first);
  if (parts.start == "compressed") {
    const skald::AnyExecutor serial(std::make_shared<skald::SerialExecutor>());
    const skald::ContextFile file(source_of(skald::compress_context(session, {.executor = serial})));
    session.clear();
    (void)file.load(session, {.executor = serial});
  }
  return session;
}

/// What the best of some beams makes of a session: logits of the last of best_beam.
Row beams(const skald::Decoder<>& decoder, const skald::Session& session) {
  std::vector<skald::Session> all;
  const auto step = [&](const std::vector<const skald::Session*>& from, Tokens next) {
    std::vector<skald::Session> forks;
    for (const auto* each : from) forks.push_back(each->fork());
    all = std::move(forks);
    skald::Batch batch;
    for (std::size_t b = 0; b < all.size(); ++b) batch.add(all[b], {&next[b], 1});
    const auto logits = decoder.forward(batch);
    return Row(logits.last(0).begin(), logits.last(0).end());
  };
  (void)step({&session, &session, &session}, {5, 6, 7});
  const auto second = all[1].fork();
  return step({&second, &second}, {8, 9});
}

struct Removed {
  std::string path;
  ~Removed() { std::filesystem::remove(path); }
};

/// Writes a session into a file of chunks, and reads them all.
void read_chunks(const skald::Session& session) {
  const auto path = (std::filesystem::temp_directory_path() / ("skald_compositions_" + std::to_string(::getpid()))).string();
  const Removed removed{path};
  skald::ChunkedKv kv(session.state(), path, {}, {.most_tokens = 32});
  std::size_t layer = 0;
  while (kv.chunks(layer) == 0) ++layer;  // it may read what another one has
  REQUIRE(kv.chunks(layer) == 4);
  const auto dims = static_cast<std::size_t>(session.model().spec().layers[0].attention->head_dim_k);
  const std::vector<float> query(dims, 0.1F);
  std::vector<float> out(dims);
  const std::vector<std::size_t> all{0, 1, 2, 3};
  REQUIRE(kv.bound(layer, 0, 0, query) > -1e30F);
  kv.attend(layer, 0, query, 0.1F, all, out);
  REQUIRE(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
  REQUIRE(kv.counters().bytes_read == kv.head_bytes(layer));
}

/// Logits of the last of 120 tokens, or of what beams, or the tokens in `after`, make of them.
Row last_row(const skald::Decoder<>& decoder, const Pipeline& parts, skald::AttentionScores* scores, const Tokens& after = {}) {
  auto tokens = skald_test::some_tokens(120, decoder.model().spec().vocabulary);
  std::optional<skald::PrefixCache> cache;
  auto session = begin(decoder, parts, tokens);
  if (parts.prefix == "reuse") {
    const bool exact = parts.start == "plain" || parts.start == "speculative";
    const std::string scope = exact ? "" : parts.start;
    cache.emplace(decoder);
    (void)cache->insert(session, scope);
    session = cache->new_session(tokens, scope);
    REQUIRE(session.length() > 0);
  }
  tokens.insert(tokens.end(), after.begin(), after.end());
  Row row;
  const std::size_t most = parts.prompt == "chunked" ? 33 : tokens.size();
  for (auto at = static_cast<std::size_t>(session.length()); at < tokens.size(); at += most) {
    const auto count = std::min(most, tokens.size() - at);
    skald::Batch batch;
    batch.add(session, std::span(tokens).subspan(at, count));
    const auto logits = decoder.forward(batch, {.scores = scores});
    row.assign(logits.last().begin(), logits.last().end());
  }
  if (parts.file == "chunks") read_chunks(session);
  return parts.search == "beams" ? beams(decoder, session) : row;
}

/// Runs the pipeline; "works", or the reason of a refusal.
std::string outcome(Pipeline parts) {
  const std::string title = parts.eviction;
  try {
    if (title == "dcp") {  // gates are made for a model
      const auto& spec = model_of(parts).spec();
      parts.eviction = skald_test::gates_policy(spec.layer_count(), spec.dim, 1.5F);
    }
    skald::DecoderOptions options;
    options.kv.format = parts.kv;
    if (parts.kv == "coupled") options.kv.codebooks = some_codebooks(model_of(parts).spec());
    options.kv.eviction = parts.eviction;
    options.kv.page_tokens = 16;
    options.attention = parts.attention;
    if (parts.prompt == "chunked") options.batch_tokens = 29;
    const skald::Decoder decoder(model_of(parts), options);
    skald::AttentionScores scores;
    const auto row = last_row(decoder, parts, parts.scores == "sum" ? &scores : nullptr);
    REQUIRE(std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); }));
    // What was asked for is active, and shows in a counter.
    const auto& config = decoder.effective_config();
    const bool stores = parts.model != "recurrent";
    const std::string works = stores || parts.kv == Pipeline{}.kv ? "works" : "works; no layer stores keys and values";
    REQUIRE(config.kv_format == (!stores ? "none" : parts.kv == "coupled" ? options.kv.codebooks->name() : parts.kv));
    REQUIRE((config.recurrent_bytes > 0) == (parts.model == "recurrent" || parts.model == "hybrid"));
    REQUIRE(config.eviction == parts.eviction);
    REQUIRE(config.backend == parts.backend);
    REQUIRE((decoder.counters().evicted_pages > 0) == (parts.eviction != "none"));
    REQUIRE(scores.values.empty() == (parts.scores == "off"));
    auto plain = parts;
    plain.prompt = "whole";
    plain.prefix = "none";
    plain.search = "single";
    if (parts.start == "speculative") plain.start = "plain";
    if (plain.prompt == parts.prompt && plain.prefix == parts.prefix && plain.search == parts.search && plain.start == parts.start)
      return works;
    // None of these changes a bit.
    options.batch_tokens = 512;
    const auto expected = last_row(skald::Decoder(model_of(parts), options), plain, nullptr,
                                   parts.search == "beams" ? best_beam : Tokens{});
    const bool equal = std::memcmp(row.data(), expected.data(), row.size() * sizeof(float)) == 0;
    if (parts.kv.find("iterations") == std::string::npos) REQUIRE(equal);
    return equal ? works : "works; what iterations make of a prompt depends on how it is cut";
  } catch (const skald::IncompatibleError& error) {
    auto message = error.message();
    if (const auto at = message.find(parts.eviction); at != std::string::npos)
      message.replace(at, parts.eviction.size(), title);
    return message;
  }
}

std::string table() {
  std::ostringstream out;
  out << "# Compositions\n\nEvery pair of components works, or is refused when the pipeline is built or the pass begins, with "
         "the reason given below.\nThis page is the output of `tests/unit/decoder/compositions_test.cpp`, which runs each pair.\n\n"
         "| | | |\n|---|---|---|\n";
  const auto& list = components();
  for (std::size_t a = 0; a < list.size(); ++a)
    for (std::size_t b = a + 1; b < list.size(); ++b) {
      const auto kind = [](const std::string& title) { return title.substr(0, title.find(' ')); };
      if (kind(list[a].title) == kind(list[b].title)) continue;
      Pipeline parts;
      list[a].choose(parts);
      list[b].choose(parts);
      INFO(list[a].title << " with " << list[b].title);
      out << "| " << list[a].title << " | " << list[b].title << " | " << outcome(parts) << " |\n";
    }
  return out.str();
}

}  // namespace

TEST_CASE("decoder.compositions: the table of pairs in the documentation is what happens", "[decoder]") {
  const auto found = table();
  const std::string path = skald_test::source_path("docs/compositions.md");
  if (std::getenv("SKALD_WRITE_COMPOSITIONS") != nullptr) std::ofstream(path) << found;
  CHECK(skald_test::read_text(path) == found);
}
