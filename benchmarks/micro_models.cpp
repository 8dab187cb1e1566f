// A whole random model under techniques whose cost is a claim: feed-forward networks at a share of their width, relevance
// scores of pairs with a shared query, adapters beside the base. Weights in Q8_0, 60 MB, four layers of width 1024, on all
// threads. Results are checked before they are timed.

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <skald/decoder/decoder.hpp>
#include <skald/generate/score.hpp>
#include <skald/model/adapter.hpp>

#include "support/tiny_model.hpp"

namespace {

using namespace skald;

constexpr std::int64_t dim = 1024, ffn = 4096;

const Model& model() {
  static const Model loaded = skald_test::tiny_model({.vocabulary = 4096, .dim = dim, .layers = 4, .heads = 16, .kv_heads = 4,
                                                      .head_dim = 64, .ffn = ffn, .type = DType::q8_0});
  return loaded;
}

std::vector<float> row_of(const Logits& logits) { return {logits.last().begin(), logits.last().end()}; }

/// One token after another; the session begins anew when it is full.
void decode(benchmark::State& state, const Decoder<>& decoder, std::vector<ScaledAdapter> adapters = {}) {
  auto session = decoder.new_session();
  session.set_adapters(std::move(adapters));
  const auto prompt = skald_test::some_tokens(16, 4096, 1);
  (void)session.forward(prompt);
  const auto before = decoder.counters();
  TokenId token = 7;
  for (auto _ : state) {
    if (session.length() > 128) session.truncate(16);
    (void)session.forward({&token, 1});
  }
  const auto read = decoder.counters().weight_bytes_read - before.weight_bytes_read;
  state.counters["weight MB/token"] = static_cast<double>(read) / 1e6 / static_cast<double>(state.iterations());
}

void run_nested(benchmark::State& state, std::vector<float> shares) {
  const Model nested = model().nested(shares);
  if (nested.weight(Role::ffn_down, 0)->bytes() > model().weight(Role::ffn_down, 0)->bytes()) state.SkipWithError("wider");
  decode(state, Decoder<>(nested));
}

void run_pairs(benchmark::State& state) {
  const auto count = static_cast<std::size_t>(state.range(0));
  const Decoder<> decoder(model(), {.parallel = static_cast<std::int32_t>(count) + 1});
  const auto query = skald_test::some_tokens(64, 4096, 1);
  std::vector<std::vector<TokenId>> items;
  for (std::size_t i = 0; i < count; ++i) items.push_back(skald_test::some_tokens(32, 4096, 100 + i));
  const std::vector<TokenId> labels{17, 40};
  const auto scores = score_labels(decoder, query, items, labels);
  const bool empty = decoder.counters().kv_pages_used == 0;
  std::vector<float> last;
  {
    auto alone = decoder.new_session();
    (void)alone.forward(query, LogitsWanted::none);
    last = row_of(alone.forward(items.back()));
  }
  if (scores.back().logits[1] != last[40] || !empty) {
    state.SkipWithError("wrong result");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(score_labels(decoder, query, items, labels));
  state.counters["pairs/s"] = benchmark::Counter(static_cast<double>(count) * static_cast<double>(state.iterations()),
                                                 benchmark::Counter::kIsRate);
}

/// An adapter of one kind for all matrices of all layers.
AdapterFile adapter(const std::string& kind) {
  AdapterFile file{kind, {}};
  CounterRandom random(3, 1, 0);
  const auto noise = [&](std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = 0.02F * static_cast<float>(random.uniform() - 0.5);
    return values;
  };
  const auto add = [&](const std::string& tensor, std::int64_t outputs, std::int64_t inputs) {
    AdapterDelta delta;
    delta.tensor = tensor;
    delta.outputs = outputs;
    delta.inputs = inputs;
    if (kind == "lora") {
      delta.rank = 16;
      delta.first = noise(16 * inputs);
      delta.second = noise(16 * outputs);
    } else if (kind == "paca") {
      delta.kind = DeltaKind::columns;
      delta.rank = 16;
      delta.inputs = 0;
      for (int i = 0; i < 16; ++i) delta.columns.push_back(static_cast<std::int32_t>(i * inputs / 16));
      delta.second = noise(16 * outputs);
    } else {
      delta.kind = DeltaKind::kronecker;
      delta.rank = 1;
      delta.a_rows = delta.a_cols = 16;
      delta.b_rows = static_cast<std::int32_t>(outputs / 16);
      delta.b_cols = static_cast<std::int32_t>(inputs / 16);
      delta.first = noise(256);
      delta.second = noise(outputs / 16 * (inputs / 16));
    }
    file.deltas.push_back(std::move(delta));
  };
  for (int layer = 0; layer < 4; ++layer) {
    const std::string base = "blk." + std::to_string(layer) + ".";
    add(base + "attn_q.weight", dim, dim);
    add(base + "attn_k.weight", 256, dim);
    add(base + "attn_v.weight", 256, dim);
    add(base + "attn_output.weight", dim, dim);
    add(base + "ffn_gate.weight", ffn, dim);
    add(base + "ffn_up.weight", ffn, dim);
    add(base + "ffn_down.weight", dim, ffn);
  }
  return file;
}

void run_adapter(benchmark::State& state, const std::string& kind) {
  std::vector<ScaledAdapter> adapters;
  const Decoder<> decoder(model());
  if (kind != "base") {
    adapters.push_back({Adapter::load(adapter(kind), model()), 1.0F});
    auto plain = decoder.new_session(), changed = decoder.new_session();
    changed.set_adapters(adapters);
    const auto tokens = skald_test::some_tokens(4, 4096, 1);
    if (row_of(plain.forward(tokens)) == row_of(changed.forward(tokens))) {
      state.SkipWithError("the adapter changes nothing");
      return;
    }
    state.counters["adapter MB"] = static_cast<double>(adapters[0].adapter.bytes()) / 1e6;
  }
  decode(state, decoder, std::move(adapters));
}

template <class Run>
void add(const std::string& name, const Run& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  for (const float share : {1.0F, 0.75F, 0.5F, 0.25F})
    add(fmt::format("nested/{}", share), [=](benchmark::State& state) { run_nested(state, {share}); });
  add("nested/1,0.5,0.25,0.25", [](benchmark::State& state) { run_nested(state, {1.0F, 0.5F, 0.25F, 0.25F}); });
  benchmark::RegisterBenchmark("pairs", run_pairs)->RangeMultiplier(2)->Range(1, 64)->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const std::string kind : {"base", "lora", "paca", "kronecker"})
    add("adapter/" + kind, [=](benchmark::State& state) { run_adapter(state, kind); });
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
