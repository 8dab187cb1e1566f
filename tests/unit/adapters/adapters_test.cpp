// Adapters: applied per session, several at once, merged; from PEFT folders and GGUF files.
#include <skald/model/adapter.hpp>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>

#include <skald/core/error.hpp>
#include <skald/core/random.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/simd/isa.hpp>

#include "support/huggingface_folder.hpp"
#include "support/shared_data.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace skald;
using skald_test::TemporaryFolder;

constexpr std::int64_t dim = 64, heads = 4, kv_heads = 2, head_dim = 16, ffn = 96;

skald_test::TinyShape shape(DType type = DType::f32) {
  return {.vocabulary = 96,
          .dim = dim,
          .layers = 2,
          .heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .ffn = ffn,
          .type = type};
}

std::vector<float> noise(std::size_t count, std::uint64_t seed, float spread) {
  CounterRandom random(seed, 3, 0);
  std::vector<float> values(count);
  for (float& value : values) value = spread * static_cast<float>(random.uniform() * 2 - 1);
  return values;
}

AdapterDelta lora(const std::string& tensor, std::int64_t outputs, std::int64_t inputs, std::int32_t rank,
                  std::uint64_t seed) {
  AdapterDelta delta;
  delta.tensor = tensor;
  delta.outputs = outputs;
  delta.inputs = inputs;
  delta.rank = rank;
  delta.scale = 0.5F;
  delta.first = noise(static_cast<std::size_t>(rank * inputs), seed, 0.3F);
  delta.second = noise(static_cast<std::size_t>(rank * outputs), seed + 1, 0.3F);
  return delta;
}

AdapterFile full_lora(std::uint64_t seed, std::int32_t rank = 4) {
  AdapterFile file{"lora-" + std::to_string(seed), {}};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string base = "blk." + std::to_string(layer) + ".";
    const auto add = [&](const char* name, std::int64_t outputs, std::int64_t inputs) {
      file.deltas.push_back(lora(base + name + ".weight", outputs, inputs, rank, seed += 10));
    };
    add("attn_q", heads * head_dim, dim);
    add("attn_k", kv_heads * head_dim, dim);
    add("attn_v", kv_heads * head_dim, dim);
    add("attn_output", dim, heads * head_dim);
    add("ffn_gate", ffn, dim);
    add("ffn_up", ffn, dim);
    add("ffn_down", dim, ffn);
  }
  file.deltas.push_back(lora("output.weight", 96, dim, rank, seed + 10));
  return file;
}

AdapterFile kronecker_file() {
  AdapterDelta delta;
  delta.tensor = "blk.1.ffn_up.weight";
  delta.kind = DeltaKind::kronecker;
  delta.rank = 2;
  delta.a_rows = 8;
  delta.a_cols = 4;
  delta.b_rows = 12;
  delta.b_cols = 16;
  delta.outputs = ffn;
  delta.inputs = dim;
  delta.first = noise(2 * 8 * 4, 5, 0.3F);
  delta.second = noise(2 * 12 * 16, 6, 0.3F);
  return {"soka", {delta}};
}

AdapterFile columns_file() {
  AdapterDelta delta;
  delta.tensor = "blk.0.ffn_down.weight";
  delta.kind = DeltaKind::columns;
  delta.rank = 3;
  delta.outputs = dim;
  delta.columns = {5, 90, 17};
  delta.second = noise(3 * dim, 8, 0.5F);
  return {"paca", {delta}};
}

const std::vector<TokenId> prompt = {3, 17, 20, 5, 94, 42, 7, 12, 31, 64, 11};

std::vector<float> copy(const Logits& logits, std::size_t entry = 0) {
  std::vector<float> result;
  for (std::int64_t i = 0; i < logits.rows(entry); ++i) {
    const auto row = logits.row(entry, i);
    result.insert(result.end(), row.begin(), row.end());
  }
  return result;
}

std::vector<float> run(const Model& model, std::vector<ScaledAdapter> adapters) {
  const Decoder decoder(model, {.kv = {.format = "f32"}});
  auto session = decoder.new_session();
  session.set_adapters(std::move(adapters));
  return copy(session.forward(prompt, LogitsWanted::all));
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double result = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    result = std::max(result, std::abs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return result / largest;
}

Model load_merged(const std::vector<std::byte>& bytes, const std::vector<std::pair<AdapterFile, float>>& adapters) {
  ModelFile file = read_gguf({SpanSource(bytes), "tiny"});
  for (const auto& [adapter, scale] : adapters) file = merged(file, adapter, scale);
  return Model::load(std::move(file));
}

TEST_CASE("adapters.apply: gives the logits of the merged model") {
  const auto bytes = skald_test::tiny_gguf(shape());
  const Model model = Model::load(read_gguf({SpanSource(bytes), "tiny"}));
  const auto base = run(model, {});
  const AdapterFile files[] = {full_lora(100), full_lora(500, 17), kronecker_file(), columns_file()};
  for (const AdapterFile& file : files) {
    INFO(file.name);
    const auto applied = run(model, {{Adapter::load(file, model), 1.0F}});
    CHECK(difference(applied, run(load_merged(bytes, {{file, 1.0F}}), {})) <= 1e-5);
    CHECK(difference(applied, base) > 1e-2);
  }
  const auto together = run(model, {{Adapter::load(files[0], model), 0.5F},
                                    {Adapter::load(files[2], model), -2.0F},
                                    {Adapter::load(files[3], model), 1.0F}});
  CHECK(difference(together, run(load_merged(bytes, {{files[0], 0.5F}, {files[2], -2.0F}, {files[3], 1.0F}}), {})) <=
        1e-5);
}

TEST_CASE("adapters.apply: both backends agree, also over quantized weights") {
  for (const DType type : {DType::f32, DType::q8_0}) {
    const auto bytes = skald_test::tiny_gguf(shape(type));
    const auto on = [&](AnyBackend backend) {
      const Model model = Model::load(read_gguf({SpanSource(bytes), "tiny"}), {.backend = std::move(backend)});
      return run(model, {{Adapter::load(full_lora(100), model), 1.0F}, {Adapter::load(kronecker_file(), model), 1.0F}});
    };
    CHECK(difference(on(make_cpu_backend()), on(make_reference_backend())) <= (type == DType::f32 ? 1e-5 : 5e-2));
  }
}

TEST_CASE("adapters.batch: base and two adapters together equal each alone, bit for bit") {
  for (const DType type : {DType::f32, DType::q8_0}) {
    std::vector<std::string> backends{"reference", "cpu:threads=3"};
    for (const auto isa : available_isas()) backends.push_back("cpu:isa=" + std::string(to_string(isa)));
    for (const auto& backend : backends) {
      INFO(backend << " " << to_string(type));
      const Model model = skald_test::tiny_model(shape(type), {.backend = make_backend(backend)});
      const std::vector<ScaledAdapter> sets[] = {
          {},
          {{Adapter::load(full_lora(100), model), 1.0F}},
          {{Adapter::load(full_lora(900, 9), model), 0.7F}, {Adapter::load(columns_file(), model), 1.0F}},
          {{Adapter::load(kronecker_file(), model), 1.5F}}};
      const Decoder decoder(model, {.kv = {.format = "f32"}, .batch_tokens = 17});
      std::vector<Session> sessions;
      Batch batch;
      for (const auto& set : sets) {
        sessions.push_back(decoder.new_session());
        sessions.back().set_adapters(set);
      }
      for (auto& session : sessions) batch.add(session, prompt, LogitsWanted::all);
      const auto logits = decoder.forward(batch);
      for (std::size_t i = 0; i < std::size(sets); ++i) CHECK(copy(logits, i) == run(model, sets[i]));
      // One token each, as in decoding.
      batch.clear();
      const TokenId next = 9;
      for (auto& session : sessions) batch.add(session, {&next, 1});
      const auto step = decoder.forward(batch);
      for (std::size_t i = 0; i < std::size(sets); ++i) {
        auto alone = decoder.new_session();
        std::vector<float> expected = copy(step, i);
        alone.set_adapters(sets[i]);
        auto tokens = prompt;
        tokens.push_back(next);
        const Decoder other(model, {.kv = {.format = "f32"}});
        auto session = other.new_session();
        session.set_adapters(sets[i]);
        CHECK(copy(session.forward(tokens)) == expected);
      }
    }
  }
}

TEST_CASE("adapters.session: taking an adapter away gives the bits of the base, changes need an empty session") {
  const Model model = skald_test::tiny_model(shape());
  const Decoder decoder(model, {.kv = {.format = "f32"}});
  auto session = decoder.new_session();
  const auto base = copy(session.forward(prompt, LogitsWanted::all));
  const Adapter adapter = Adapter::load(columns_file(), model);
  CHECK_THROWS_AS(session.set_adapters({{adapter, 1.0F}}), UsageError);
  session.clear();
  session.set_adapters({{adapter, 1.0F}});
  CHECK(copy(session.forward(prompt, LogitsWanted::all)) != base);
  session.clear();
  session.set_adapters({});
  CHECK(copy(session.forward(prompt, LogitsWanted::all)) == base);
  CHECK_THROWS_AS(decoder.new_session().set_adapters({{adapter, std::nanf("")}}), NumericError);
  const Model other = skald_test::tiny_model(shape());
  CHECK_THROWS_AS(decoder.new_session().set_adapters({{Adapter::load(columns_file(), other), 1.0F}}),
                  IncompatibleError);
}

TEST_CASE("adapters.session: forks keep them, snapshots need the same ones") {
  const Model model = skald_test::tiny_model(shape());
  const Decoder decoder(model, {.kv = {.format = "f32"}});
  const Adapter a = Adapter::load(full_lora(100), model), b = Adapter::load(full_lora(200), model);
  auto session = decoder.new_session();
  CHECK(session.adapter_fingerprint() == std::array<std::uint64_t, 2>{});
  session.set_adapters({{a, 1.0F}});
  const auto fingerprint = session.adapter_fingerprint();
  static_cast<void>(session.forward(prompt));
  auto fork = session.fork();
  CHECK(fork.adapter_fingerprint() == fingerprint);
  const TokenId next = 9;
  CHECK(copy(fork.forward({&next, 1})) == copy(session.forward({&next, 1})));
  const auto saved = session.snapshot();
  auto fresh = decoder.new_session();
  CHECK_THROWS_AS(fresh.restore(saved), IncompatibleError);
  fresh.set_adapters({{b, 1.0F}});
  CHECK(fresh.adapter_fingerprint() != fingerprint);
  CHECK_THROWS_AS(fresh.restore(saved), IncompatibleError);
  fresh.set_adapters({{a, 0.9F}});
  CHECK_THROWS_AS(fresh.restore(saved), IncompatibleError);
  fresh.set_adapters({{a, 1.0F}});
  fresh.restore(saved);
  CHECK(copy(fresh.forward({&next, 1})) == copy(session.forward({&next, 1})));
}

TEST_CASE("adapters.prefix: a prefix is reused under the same adapters only") {
  const Model model = skald_test::tiny_model(shape());
  const Decoder decoder(model, {.kv = {.format = "f32", .page_tokens = 16}});
  PrefixCache cache(decoder);
  std::vector<TokenId> tokens;
  for (TokenId i = 0; i < 40; ++i) tokens.push_back((i * 7 + 3) % 96);
  const Adapter a = Adapter::load(full_lora(100), model), b = Adapter::load(full_lora(200), model);
  auto session = decoder.new_session();
  session.set_adapters({{a, 1.0F}});
  static_cast<void>(session.forward(tokens));
  const auto handle = cache.insert(session);
  CHECK(cache.new_session(tokens).length() == 0);
  CHECK(cache.new_session(tokens, std::vector<ScaledAdapter>{{b, 1.0F}}).length() == 0);
  CHECK(cache.new_session(tokens, std::vector<ScaledAdapter>{{a, 0.5F}}).length() == 0);
  auto again = cache.new_session(tokens, std::vector<ScaledAdapter>{{a, 1.0F}});
  CHECK(again.length() > 0);
  CHECK(again.adapter_fingerprint() == session.adapter_fingerprint());
  const auto rest = std::span(tokens).subspan(static_cast<std::size_t>(again.length()));
  const auto found = copy(again.forward(rest));
  auto plain = decoder.new_session();
  plain.set_adapters({{a, 1.0F}});
  CHECK(copy(plain.forward(tokens)) == found);
}

TEST_CASE("adapters.threads: are loaded and dropped while sessions of other decoders run") {
  const Model model = skald_test::tiny_model(shape());
  const auto expected = run(model, {{Adapter::load(full_lora(100), model), 1.0F}});
  std::atomic<bool> done{false};
  std::thread loader([&] {
    for (std::uint64_t seed = 1; !done; ++seed) static_cast<void>(Adapter::load(full_lora(seed), model));
  });
  std::thread second([&] {
    for (int i = 0; i < 5; ++i)
      if (run(model, {{Adapter::load(full_lora(100), model), 1.0F}}) != expected) FAIL_CHECK("another result");
  });
  bool same = true;
  for (int i = 0; i < 5; ++i) same = same && run(model, {{Adapter::load(full_lora(100), model), 1.0F}}) == expected;
  second.join();
  done = true;
  loader.join();
  CHECK(same);
}

struct Peft {
  TemporaryFolder folder{"peft"};
  nlohmann::json config{{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 8}};
  SafetensorsWriter writer;

  void add(const std::string& name, std::vector<std::int64_t> extents, const std::vector<float>& values) {
    writer.add_tensor("base_model.model.model.layers." + name, SafetensorsType::f32, std::move(extents),
                      std::as_bytes(std::span(values)));
  }
  AdapterFile read(const Model& model) {
    writer.write_file(folder.of("adapter_model.safetensors"));
    folder.write("adapter_config.json", config.dump());
    return read_adapter(folder.path(), model.metadata());
  }
};

TEST_CASE("adapters.peft: a folder's factors are those of the GGUF adapter, rows in the order of the matrix") {
  const Model model = skald_test::tiny_model(shape());
  const auto a = noise(4 * dim, 1, 1.0F), b = noise(static_cast<std::size_t>(heads * head_dim) * 4, 2, 1.0F);
  Peft peft;
  peft.add("1.self_attn.q_proj.lora_A.weight", {4, dim}, a);
  peft.add("1.self_attn.q_proj.lora_B.weight", {heads * head_dim, 4}, b);
  peft.add("0.mlp.down_proj.lora_A.weight", {4, ffn}, noise(4 * ffn, 3, 1.0F));
  peft.add("0.mlp.down_proj.lora_B.weight", {dim, 4}, noise(4 * dim, 4, 1.0F));
  peft.config["rank_pattern"] = nlohmann::json::object();
  peft.config["alpha_pattern"] = {{"down_proj", 2}};
  const AdapterFile file = peft.read(model);
  REQUIRE(file.deltas.size() == 2);
  CHECK(file.deltas[0].tensor == "blk.0.ffn_down.weight");
  CHECK(file.deltas[0].scale == 0.5F);
  CHECK(file.deltas[1].tensor == "blk.1.attn_q.weight");
  CHECK(file.deltas[1].scale == 2.0F);
  CHECK(file.deltas[1].first == a);
  // Pair i of a head is its elements i and i + half.
  for (std::int64_t row = 0; row < heads * head_dim; ++row) {
    const std::int64_t head = row / head_dim, i = row % head_dim;
    const std::int64_t from = head * head_dim + i / 2 + (i % 2) * head_dim / 2;
    for (std::int64_t k = 0; k < 4; ++k)
      CHECK(file.deltas[1].second[static_cast<std::size_t>(row * 4 + k)] == b[static_cast<std::size_t>(from * 4 + k)]);
  }

  GgufWriter writer;
  writer.set("general.type", std::string("adapter"));
  writer.set("general.architecture", std::string("llama"));
  writer.set("adapter.type", std::string("lora"));
  writer.set("adapter.lora.alpha", 8.0F);
  writer.add_tensor("blk.1.attn_q.weight.lora_a", DType::f32, {dim, 4}, std::as_bytes(std::span(file.deltas[1].first)));
  writer.add_tensor("blk.1.attn_q.weight.lora_b", DType::f32, {4, heads * head_dim},
                    std::as_bytes(std::span(file.deltas[1].second)));
  const TemporaryFolder folder("gguf-adapter");
  writer.write_file(folder.of("a.gguf"));
  const AdapterFile gguf = read_adapter(folder.of("a.gguf"), model.metadata());
  REQUIRE(gguf.deltas.size() == 1);
  CHECK(gguf.deltas[0].scale == 2.0F);
  CHECK(gguf.deltas[0].second == file.deltas[1].second);
  CHECK(run(model, {{Adapter::load(gguf, model), 1.0F}}) ==
        run(model, {{Adapter::load({"q", {file.deltas[1]}}, model), 1.0F}}));
}

TEST_CASE("adapters.peft: scales follow alpha, rank, their patterns and the square root of the rank") {
  const Model model = skald_test::tiny_model(shape());
  const auto scales = [&](const nlohmann::json& options) {
    Peft peft;
    for (const auto& [key, value] : options.items()) peft.config[key] = value;
    // Ranks 4 and 16, as a rank_pattern gives them.
    peft.add("0.mlp.down_proj.lora_A.weight", {16, ffn}, noise(16 * ffn, 3, 1.0F));
    peft.add("0.mlp.down_proj.lora_B.weight", {dim, 16}, noise(16 * dim, 4, 1.0F));
    peft.add("1.mlp.up_proj.lora_A.weight", {4, dim}, noise(4 * dim, 5, 1.0F));
    peft.add("1.mlp.up_proj.lora_B.weight", {ffn, 4}, noise(4 * ffn, 6, 1.0F));
    const AdapterFile file = peft.read(model);
    REQUIRE(file.deltas.size() == 2);
    return std::pair(file.deltas[0].scale, file.deltas[1].scale);
  };
  const nlohmann::json ranks{{"r", 4}, {"lora_alpha", 8}, {"rank_pattern", {{"down_proj", 16}}}};
  CHECK(scales(ranks) == std::pair(0.5F, 2.0F));
  auto options = ranks;
  options["use_rslora"] = true;
  CHECK(scales(options) == std::pair(2.0F, 4.0F));
  options["alpha_pattern"] = {{"layers.1.mlp.up_proj", 3}};
  CHECK(scales(options) == std::pair(2.0F, 1.5F));
}

TEST_CASE("adapters.peft: Kronecker and column adapters change rotated matrices as their product does") {
  const auto bytes = skald_test::tiny_gguf(shape());
  const Model model = Model::load(read_gguf({SpanSource(bytes), "tiny"}));
  Peft peft;
  peft.config["peft_type"] = "SOKA";
  peft.add("0.self_attn.q_proj.kron_A", {2, 8, 4}, noise(64, 1, 0.4F));
  peft.add("0.self_attn.q_proj.kron_B", {2, 8, 16}, noise(256, 2, 0.4F));
  peft.add("0.self_attn.k_proj.paca_delta", {kv_heads * head_dim, 2},
           noise(static_cast<std::size_t>(kv_heads * head_dim) * 2, 3, 0.4F));
  const std::vector<std::int32_t> columns{60, 1};
  peft.writer.add_tensor("base_model.model.model.layers.0.self_attn.k_proj.paca_columns", SafetensorsType::i32, {2},
                         std::as_bytes(std::span(columns)));
  const AdapterFile file = peft.read(model);
  CHECK(difference(run(model, {{Adapter::load(file, model), 1.0F}}), run(load_merged(bytes, {{file, 1.0F}}), {})) <=
        1e-5);
  // Output 1 of head 0 is element 8 of it in the folder's order.
  const AdapterDelta* kron = nullptr;
  for (const auto& delta : file.deltas)
    if (delta.kind == DeltaKind::kronecker) kron = &delta;
  REQUIRE(kron != nullptr);
  CHECK(kron->rows[1] == 8);
}

TEST_CASE("adapters.dora: merging gives every row of W + s B A the length of its magnitude") {
  const std::vector<std::byte> bytes = skald_test::tiny_gguf(shape());
  const ModelFile base = read_gguf({SpanSource(bytes), "tiny"});
  const Model model = skald_test::tiny_model(shape());
  const auto a = noise(4 * dim, 1, 0.3F), b = noise(static_cast<std::size_t>(heads * head_dim) * 4, 2, 0.3F);
  auto magnitude = noise(static_cast<std::size_t>(heads * head_dim), 3, 2.0F);
  Peft peft;
  peft.config["use_dora"] = true;
  peft.add("1.self_attn.q_proj.lora_A.weight", {4, dim}, a);
  peft.add("1.self_attn.q_proj.lora_B.weight", {heads * head_dim, 4}, b);
  peft.add("1.self_attn.q_proj.lora_magnitude_vector", {heads * head_dim}, magnitude);
  const AdapterFile file = peft.read(model);
  const float factor = 0.75F;
  const ModelFile changed = merged(base, file, factor);
  const auto values = [](const ModelFile& of) {
    return skald_test::plain_tensor(of, of.at("blk.1.attn_q.weight")).values;
  };
  const auto before = values(base), after = values(changed);
  for (std::int64_t row = 0; row < heads * head_dim; ++row) {
    // Pair i of a head is its elements i and i + half, of the factors and of the magnitudes.
    const std::int64_t i = row % head_dim;
    const auto from = static_cast<std::size_t>(row - i + i / 2 + (i % 2) * head_dim / 2);
    std::vector<double> expected;
    double squares = 0;
    for (std::size_t c = 0; c < dim; ++c) {
      double sum = static_cast<double>(before[static_cast<std::size_t>(row) * dim + c]);
      for (std::size_t k = 0; k < 4; ++k)  // lora_alpha / r = 2
        sum += 2.0 * static_cast<double>(factor) * static_cast<double>(b[from * 4 + k]) * static_cast<double>(a[k * dim + c]);
      expected.push_back(sum);
      squares += sum * sum;
    }
    double worst = 0;
    for (std::size_t c = 0; c < dim; ++c)
      worst = std::max(worst, std::abs(expected[c] * static_cast<double>(magnitude[from]) / std::sqrt(squares) -
                                       static_cast<double>(after[static_cast<std::size_t>(row) * dim + c])));
    CHECK(worst < 1e-6);
  }
}

TEST_CASE("adapters.peft: refuses what does not fit, naming it") {
  const Model model = skald_test::tiny_model(shape());
  const auto refusal = [&](auto&& fill) {
    Peft peft;
    fill(peft);
    try {
      static_cast<void>(Adapter::load(peft.read(model), model));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const auto names = [](const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  const std::string q = "0.self_attn.q_proj.";
  const auto pair = [&](Peft& peft, std::int64_t rank_b = 4, std::int64_t outputs = 64, std::int64_t inputs = 64) {
    peft.add(q + "lora_A.weight", {4, inputs}, noise(static_cast<std::size_t>(4 * inputs), 1, 1.0F));
    peft.add(q + "lora_B.weight", {outputs, rank_b}, noise(static_cast<std::size_t>(outputs * rank_b), 1, 1.0F));
  };
  CHECK(refusal([&](Peft& peft) { pair(peft); }) == "accepted");
  names(refusal([&](Peft& peft) { pair(peft, 3); }), "rank");
  names(refusal([&](Peft& peft) { pair(peft, 4, 128); }), "128 outputs");
  names(refusal([&](Peft& peft) { pair(peft, 4, 64, 32); }), "32 inputs");
  names(refusal([&](Peft& peft) { peft.add(q + "lora_A.weight", {4, 64}, noise(256, 1, 1.0F)); }), "lora_B");
  names(refusal([&](Peft& peft) {
          pair(peft);
          peft.config["peft_type"] = "IA3";
        }),
        "IA3");
  names(refusal([&](Peft& peft) {
          pair(peft);
          peft.config["use_dora"] = true;
        }),
        "lora_magnitude_vector");
  const auto magnitudes = [&](bool dora, std::int64_t count) {
    return refusal([&](Peft& peft) {
      pair(peft);
      peft.config["use_dora"] = dora;
      peft.add(q + "lora_magnitude_vector", {count}, std::vector<float>(static_cast<std::size_t>(count), 1.0F));
    });
  };
  names(magnitudes(false, 64), "use_dora is not true");
  names(magnitudes(true, 32), "32 magnitudes of 64 outputs");
  names(magnitudes(true, 64), "merge it");
  const std::pair<const char*, nlohmann::json> options[] = {
      {"modules_to_save", {"lm_head"}}, {"layer_replication", {{0, 1}}}, {"trainable_token_indices", {1, 2}},
      {"target_parameters", {"mlp.experts.gate_up_proj"}}, {"alora_invocation_tokens", {5}}, {"lora_bias", true},
      {"use_qalora", true}, {"init_lora_weights", "pissa_niter_4"}, {"init_lora_weights", "olora"}};
  for (const auto& [key, value] : options)
    names(refusal([&, k = key, v = value](Peft& peft) {
            pair(peft);
            peft.config[k] = v;
          }),
          key);
  for (const auto& [key, value] : {std::pair<const char*, nlohmann::json>{"modules_to_save", nullptr},
                                   {"modules_to_save", nlohmann::json::array()}, {"init_lora_weights", true},
                                   {"init_lora_weights", "gaussian"}, {"trainable_token_indices", nlohmann::json::object()}})
    CHECK(refusal([&, k = key, v = value](Peft& peft) {
            pair(peft);
            peft.config[k] = v;
          }) == "accepted");
  names(refusal([&](Peft& peft) {
          peft.add("0.self_attn.z_proj.lora_A.weight", {4, 64}, noise(256, 1, 1.0F));
        }),
        "z_proj");
  names(refusal([&](Peft& peft) {
          peft.add("7.mlp.up_proj.lora_A.weight", {4, 64}, noise(256, 1, 1.0F));
          peft.add("7.mlp.up_proj.lora_B.weight", {96, 4}, noise(384, 1, 1.0F));
        }),
        "blk.7");
  names(refusal([&](Peft& peft) {
          pair(peft);
          peft.add(q + "other", {1}, {1.0F});
        }),
        "not implemented");
  names(refusal([&](Peft& peft) {
          auto bad = noise(256, 1, 1.0F);
          bad[7] = std::nanf("");
          peft.add(q + "lora_A.weight", {4, 64}, bad);
          peft.add(q + "lora_B.weight", {64, 4}, noise(256, 1, 1.0F));
        }),
        "not finite");
  names(refusal([&](Peft&) {}), "no factors");
  const auto bytes = skald_test::tiny_gguf(shape());
  CHECK_THROWS_AS(merged(read_gguf({SpanSource(bytes), "tiny"}), {"x", {lora("blk.9.attn_q.weight", 64, 64, 2, 1)}}),
                  FormatError);
}

/// Message of the error that an action throws; "accepted" if it throws none.
template <class Action>
std::string refusal_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return std::string(to_string(error.code())) + " " + error.what();
  }
  return "accepted";
}

// SoKA: Singular Value Decomposition on Kronecker Adaptation.
TEST_CASE("adapters.soka: (A kron B) x by reshaping equals the product that is formed, and merging agrees") {
  const auto bytes = skald_test::tiny_gguf(shape());
  const Model model = Model::load(read_gguf({SpanSource(bytes), "tiny"}));
  const AdapterFile file = kronecker_file();
  const AdapterDelta& soka = file.deltas[0];
  // The same change, formed: A kron B of every term, as one factor beside the identity.
  AdapterDelta formed = soka;
  formed.kind = DeltaKind::low_rank;
  formed.rank = static_cast<std::int32_t>(dim);
  formed.first.assign(dim * dim, 0.0F);
  for (std::size_t i = 0; i < dim; ++i) formed.first[i * dim + i] = 1.0F;
  formed.second.assign(static_cast<std::size_t>(ffn * dim), 0.0F);
  for (int t = 0; t < soka.rank; ++t)
    for (int p = 0; p < soka.a_rows; ++p)
      for (int q = 0; q < soka.a_cols; ++q)
        for (int m = 0; m < soka.b_rows; ++m)
          for (int n = 0; n < soka.b_cols; ++n)
            formed.second[static_cast<std::size_t>((p * soka.b_rows + m) * dim + q * soka.b_cols + n)] +=
                soka.first[static_cast<std::size_t>((t * soka.a_rows + p) * soka.a_cols + q)] *
                soka.second[static_cast<std::size_t>((t * soka.b_rows + m) * soka.b_cols + n)];
  formed.a_rows = formed.a_cols = formed.b_rows = formed.b_cols = 0;
  for (const char* backend : {"cpu", "reference"}) {
    const Model other = Model::load(read_gguf({SpanSource(bytes), "tiny"}), {.backend = make_backend(backend)});
    const auto applied = run(other, {{Adapter::load(file, other), 1.0F}});
    CHECK(difference(applied, run(other, {{Adapter::load({"formed", {formed}}, other), 1.0F}})) <= 1e-5);
    CHECK(difference(applied, run(other, {})) > 1e-3);
  }
  const auto applied = run(model, {{Adapter::load(file, model), 1.0F}});
  CHECK(difference(applied, run(load_merged(bytes, {{file, 1.0F}}), {})) <= 1e-5);
  // It holds the factors, not the product.
  CHECK(Adapter::load(file, model).bytes() < formed.second.size() * sizeof(float) / 4);
}

// PaCA: Partial Connection Adaptation for Efficient Fine-Tuning.
TEST_CASE("adapters.paca: applying and removing changed columns restores the base bit for bit, also over q8_0") {
  for (const DType type : {DType::f32, DType::q8_0})
    for (const char* backend : {"cpu", "reference"}) {
      const auto bytes = skald_test::tiny_gguf(shape(type));
      const Model model = Model::load(read_gguf({SpanSource(bytes), "tiny"}), {.backend = make_backend(backend)});
      const auto fingerprint = model.fingerprint();
      const auto base = run(model, {});
      std::vector<float> changed;
      {
        const Adapter adapter = Adapter::load(columns_file(), model);
        changed = run(model, {{adapter, 1.0F}});
        // One number per output and column, and which columns: nothing else to read in a pass.
        CHECK(adapter.deltas(model.weight(Role::ffn_down, 0)).front().inner() == 3);
        CHECK(adapter.bytes() <= (3 * dim + 64) * sizeof(float));
      }
      CHECK(changed != base);
      CHECK(run(model, {}) == base);
      CHECK(model.fingerprint() == fingerprint);
      // Merged, it is a matrix of the same shape: nothing is added to a pass.
      const ModelFile file = read_gguf({SpanSource(bytes), "tiny"});
      const Model swapped = Model::load(merged(file, columns_file()), {.backend = make_backend(backend)});
      const double bound = type == DType::f32 || std::string(backend) == "reference" ? 1e-5 : 5e-2;
      CHECK(difference(run(swapped, {}), changed) <= bound);
    }
}

TEST_CASE("adapters.models: each matrix of each architecture changes as merging changes it, or is refused by name") {
  if (!skald_test::have_shared("goldens/models")) return;
  int models = 0, accepted = 0, refused = 0;
  for (const auto& entry : std::filesystem::directory_iterator(skald_test::shared_path("goldens/models"))) {
    if (entry.path().extension() != ".gguf") continue;
    INFO(entry.path().filename());
    const ModelFile file = open_gguf(entry.path().string());
    std::optional<Model> model;
    try {
      model = Model::load(file, {.backend = make_reference_backend(), .tokenizer = false});
    } catch (const UnsupportedError&) {
      continue;
    }
    if (!model->spec().has_head || !model->spec().causal() || model->info().architecture == "t5") continue;
    ++models;
    AdapterFile all{"all", {}};
    for (const TensorInfo& tensor : file.tensors()) {
      if (tensor.dims[1] == 1 || tensor.name.find("blk.1.") == 0) continue;
      auto delta = lora(tensor.name, tensor.rows(), tensor.columns(), 2, all.deltas.size() * 2 + 1);
      for (float& value : delta.first) value *= 0.3F;
      const auto text = refusal_of([&] { static_cast<void>(Adapter::load({"one", {delta}}, *model)); });
      if (text == "accepted") {
        ++accepted;
        all.deltas.push_back(std::move(delta));
      } else {
        INFO(text);
        ++refused;
        CHECK(text.starts_with("incompatible"));
        CHECK(text.find(tensor.name) != std::string::npos);
        for (const char* plain : {"attn_q.", "attn_k.", "attn_output.", "ffn_down.", "ffn_up.", "ffn_gate_inp.",
                                  "attn_q_a.", "attn_q_b.", "attn_kv_a_mqa.", "ffn_down_shexp.", "ffn_up_shexp."})
          CHECK(tensor.name.find(plain) == std::string::npos);
      }
    }
    if (all.deltas.empty()) continue;
    const std::vector<TokenId> tokens{3, 17, 40, 5};
    const auto logits = [&](const Model& of, std::vector<ScaledAdapter> adapters) {
      const Decoder decoder(of, {.kv = {.format = "f32"}, .context = 32});
      auto session = decoder.new_session();
      session.set_adapters(std::move(adapters));
      return copy(session.forward(tokens, LogitsWanted::all));
    };
    const auto applied = logits(*model, {{Adapter::load(all, *model), 1.0F}});
    const Model combined =
        Model::load(merged(file, all), {.backend = make_reference_backend(), .tokenizer = false});
    CHECK(difference(applied, logits(combined, {})) <= 2e-5);
    CHECK(difference(applied, logits(*model, {})) > 1e-3);
  }
  INFO(models << " models, " << accepted << " matrices accepted, " << refused << " refused");
  CHECK(models >= 20);
  CHECK(accepted >= 100);
  CHECK(refused >= 20);
}

TEST_CASE("adapters.refusals: embedding tables, stacks and unknown or misshapen matrices are named") {
  const Model dense = skald_test::tiny_model(shape());
  auto with_experts = shape();
  with_experts.experts = 4;
  const Model mixture = skald_test::tiny_model(with_experts);
  const auto refuse = [&](const Model& model, const AdapterDelta& delta) {
    return refusal_of([&] { static_cast<void>(Adapter::load({"x", {delta}}, model)); });
  };
  const auto named = [](const std::string& text, const std::string& tensor) {
    INFO(text);
    CHECK(text.starts_with("incompatible"));
    CHECK(text.find(tensor) != std::string::npos);
  };
  named(refuse(dense, lora("token_embd.weight", 96, dim, 2, 1)), "token_embd.weight");
  named(refuse(mixture, lora("blk.0.ffn_up_exps.weight", 4 * ffn, dim, 2, 1)), "blk.0.ffn_up_exps.weight");
  named(refuse(mixture, lora("blk.0.ffn_up.weight", ffn, dim, 2, 1)), "blk.0.ffn_up.weight");
  named(refuse(dense, lora("blk.0.attn_z.weight", 64, dim, 2, 1)), "blk.0.attn_z.weight");
  named(refuse(dense, lora("blk.0.attn_q.weight", 32, dim, 2, 1)), "blk.0.attn_q.weight");
  CHECK(refuse(mixture, lora("blk.0.ffn_gate_inp.weight", 4, dim, 2, 1)) == "accepted");
  // Lists of other lengths than the extents ask for.
  for (const int broken : {0, 1, 2, 3, 4}) {
    auto delta = lora("blk.0.attn_q.weight", 64, dim, 2, 1);
    if (broken == 0) delta.first.pop_back();
    if (broken == 1) delta.second.push_back(1.0F);
    if (broken == 2) delta.rank = -1;
    if (broken == 3) delta.kind = DeltaKind::columns;
    if (broken == 4) delta.kind = DeltaKind::kronecker;
    const auto text = refuse(dense, delta);
    INFO(broken << ": " << text);
    CHECK(text.starts_with("format"));
    CHECK(text.find("blk.0.attn_q.weight") != std::string::npos);
  }
}

/// Reads damaged copies of an adapter: they give an error of the library or an adapter, never anything else.
template <class Read>
void damage(const std::vector<char>& whole, Read&& read) {
  std::size_t refused = 0;
  const auto attempt = [&](const std::vector<char>& bytes) {
    try {
      read(bytes);
    } catch (const Error&) {
      ++refused;
    }
  };
  const std::size_t step = std::max<std::size_t>(1, whole.size() / 300);
  for (std::size_t length = 0; length + 64 < whole.size(); length += step) {  // the end may be padding
    const auto before = refused;
    attempt({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length)});
    CHECK(refused == before + 1);
  }
  CounterRandom random(11, 1, 0);
  for (int i = 0; i < 600; ++i) {
    auto bytes = whole;
    // The beginning says most of what can be wrong.
    const auto at = random.next() % std::min<std::size_t>(bytes.size(), i % 2 == 0 ? 600 : bytes.size());
    bytes[at] = static_cast<char>(random.next());
    attempt(bytes);
  }
  CHECK(refused > 300);
}

std::vector<char> bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_bytes(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

TEST_CASE("adapters.hostile: damaged files give errors of the library") {
  const Model model = skald_test::tiny_model(shape(), {.backend = make_reference_backend()});
  const TemporaryFolder folder("hostile-adapter");
  GgufWriter writer;
  writer.set("general.type", std::string("adapter"));
  writer.set("general.architecture", std::string("llama"));
  writer.set("adapter.type", std::string("lora"));
  writer.set("adapter.lora.alpha", 8.0F);
  const auto a = noise(2 * dim, 1, 1.0F), b = noise(2 * ffn, 2, 1.0F);
  writer.add_tensor("blk.1.ffn_up.weight.lora_a", DType::f32, {dim, 2}, std::as_bytes(std::span(a)));
  writer.add_tensor("blk.1.ffn_up.weight.lora_b", DType::f32, {2, ffn}, std::as_bytes(std::span(b)));
  writer.write_file(folder.of("a.gguf"));
  damage(bytes_of(folder.of("a.gguf")), [&](const std::vector<char>& bytes) {
    write_bytes(folder.of("b.gguf"), bytes);
    static_cast<void>(Adapter::load(folder.of("b.gguf"), model));
  });

  Peft peft;
  peft.config["peft_type"] = "SOKA";
  peft.add("0.self_attn.q_proj.kron_A", {2, 8, 4}, noise(64, 1, 0.4F));
  peft.add("0.self_attn.q_proj.kron_B", {2, 8, 16}, noise(256, 2, 0.4F));
  peft.add("0.mlp.up_proj.lora_A.weight", {2, dim}, a);
  peft.add("0.mlp.up_proj.lora_B.weight", {ffn, 2}, b);
  static_cast<void>(Adapter::load(peft.read(model), model));
  const auto tensors = peft.folder.of("adapter_model.safetensors");
  const auto whole = bytes_of(tensors);
  damage(whole, [&](const std::vector<char>& bytes) {
    write_bytes(tensors, bytes);
    static_cast<void>(Adapter::load(peft.folder.path(), model));
  });
  write_bytes(tensors, whole);
  const auto config = peft.config.dump();
  for (const char* text : {"", "{", "[]", "{\"r\":\"x\"}", "{\"lora_alpha\":1e999}", "{\"lora_alpha\":1e300}",
                           "{\"alpha_pattern\":7,\"peft_type\":5}", "{\"scale\":1e39,\"peft_type\":\"SOKA\"}"}) {
    peft.folder.write("adapter_config.json", text);
    INFO(text);
    CHECK(refusal_of([&] { static_cast<void>(Adapter::load(peft.folder.path(), model)); }) != "accepted");
  }
  peft.folder.write("adapter_config.json", config);
  CHECK_NOTHROW(Adapter::load(peft.folder.path(), model));
  // Factors that say nothing of the size of their product, which nobody must allocate.
  Peft huge;
  huge.add("0.self_attn.q_proj.kron_A", {1, 60000, 1}, noise(60000, 1, 0.4F));
  huge.add("0.self_attn.q_proj.kron_B", {1, 60000, 1}, noise(60000, 2, 0.4F));
  CHECK(refusal_of([&] { static_cast<void>(huge.read(model)); }).find("too large") != std::string::npos);
}

}  // namespace
