// Adapters: applied per session, several at once, merged; from PEFT folders and GGUF files.
#include <skald/model/adapter.hpp>

#include <atomic>
#include <cmath>
#include <thread>

#include <skald/core/error.hpp>
#include <skald/core/random.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>

#include "support/huggingface_folder.hpp"
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
    for (const char* backend : {"cpu", "cpu:threads=3", "reference"}) {
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
        "use_dora");
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

}  // namespace
