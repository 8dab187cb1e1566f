// The plan against the memory that the process really holds.
#include <cstdio>
#include <fstream>
#include <sstream>

#include <skald/model/gguf/writer.hpp>
#include <skald/model/plan.hpp>

#include "helpers.hpp"
#include "malloc_counter.hpp"
#include "support/catch.hpp"

#if SKALD_TEST_COUNTS_MALLOC
#include <malloc.h>
#endif

using namespace skald_test;

namespace {

constexpr double mebibyte = 1024.0 * 1024.0;

/// A field of /proc/self/status in bytes; 0 if there is none.
std::uint64_t status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(field + ":")) {
      std::uint64_t kilobytes = 0;
      std::istringstream(line.substr(field.size() + 1)) >> kilobytes;
      return kilobytes * 1024;
    }
  return 0;
}

/// Resident memory now, after which the peak is counted from here. 0 if this system cannot say.
std::uint64_t start_of_peak() {
#if SKALD_TEST_COUNTS_MALLOC
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";
  const auto now = status_bytes("VmRSS");
  const auto peak = status_bytes("VmHWM");
  return peak < now + 4096 * 1024 ? now : 0;
#else
  return 0;  // sanitizers have memory of their own
#endif
}

const TinyShape large{.vocabulary = 4000,
                      .dim = 768,
                      .layers = 5,
                      .heads = 12,
                      .kv_heads = 4,
                      .head_dim = 64,
                      .ffn = 3072,
                      .context = 4096};

/// Writes a model of that shape with cheap weights.
void write_large(const std::string& path, skald::DType type) {
  skald::GgufWriter writer;
  const auto set = [&](const std::string& key, auto value) { writer.set("llama." + key, skald::MetadataValue(value)); };
  const auto u32 = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
  writer.set("general.architecture", std::string("llama"));
  set("context_length", u32(large.context));
  set("embedding_length", u32(large.dim));
  set("block_count", u32(large.layers));
  set("feed_forward_length", u32(large.ffn));
  set("attention.head_count", u32(large.heads));
  set("attention.head_count_kv", u32(large.kv_heads));
  set("attention.layer_norm_rms_epsilon", 1e-5F);
  set("vocab_size", u32(large.vocabulary));
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols, skald::DType as) {
    // One encoded row, repeated: the values do not matter here.
    std::vector<float> values(static_cast<std::size_t>(cols));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = rows == 1 ? 1.0F : 0.02F * static_cast<float>(i % 7) - 0.06F;
    std::vector<std::byte> row(skald::row_bytes(as, values.size()));
    skald::encode_row(as, values, row);
    std::vector<std::int64_t> dims{cols};
    if (rows > 1) dims.push_back(rows);
    writer.add_tensor(name, as, dims, [row](std::uint64_t, std::span<std::byte> out) {
      for (std::size_t at = 0; at < out.size(); at += row.size()) std::memcpy(out.data() + at, row.data(), row.size());
    });
  };
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    add(name, rows, cols, type);
  };
  const auto vector = [&](const std::string& name, std::int64_t cols) { add(name, 1, cols, skald::DType::f32); };
  matrix("token_embd.weight", large.vocabulary, large.dim);
  matrix("output.weight", large.vocabulary, large.dim);
  vector("output_norm.weight", large.dim);
  for (std::int64_t l = 0; l < large.layers; ++l) {
    const std::string layer = "blk." + std::to_string(l) + ".";
    vector(layer + "attn_norm.weight", large.dim);
    matrix(layer + "attn_q.weight", large.heads * large.head_dim, large.dim);
    matrix(layer + "attn_k.weight", large.kv_heads * large.head_dim, large.dim);
    matrix(layer + "attn_v.weight", large.kv_heads * large.head_dim, large.dim);
    matrix(layer + "attn_output.weight", large.dim, large.heads * large.head_dim);
    vector(layer + "ffn_norm.weight", large.dim);
    matrix(layer + "ffn_gate.weight", large.ffn, large.dim);
    matrix(layer + "ffn_up.weight", large.ffn, large.dim);
    matrix(layer + "ffn_down.weight", large.dim, large.ffn);
  }
  writer.write_file(path);
}

struct TemporaryFile {
  std::string path;
  ~TemporaryFile() { std::remove(path.c_str()); }
};

}  // namespace

TEST_CASE("integration.memory: what the process holds at its peak is what the plan says") {
  if (start_of_peak() == 0) {
    WARN("skipped: peak memory cannot be measured here");
    return;
  }
  for (const auto& [type, layout] : {std::pair{skald::DType::f32, skald::WeightLayout::packed},
                                     {skald::DType::f32, skald::WeightLayout::rows},
                                     {skald::DType::bf16, skald::WeightLayout::packed}}) {
    const TemporaryFile file{"integration_memory_" + std::string(skald::to_string(type)) + ".gguf"};
    write_large(file.path, type);
    const auto backend = cpu_with(4);
    const std::int64_t context = 1024;
    const std::int32_t sequences = 2;
    {
      // Threads and their stacks, and the allocator's first blocks, are not part of any plan.
      const auto warm = tiny_model({}, {.backend = backend});
      auto session = skald::Decoder(warm).new_session();
      (void)session.forward(some_tokens(600, 320));
    }
    const auto plan = skald::plan(file.path, {.backend = backend,
                                              .layout = layout,
                                              .context = context,
                                              .sequences = sequences,
                                              .batch_tokens = 256,
                                              .logits_rows = sequences});
    REQUIRE(plan.weights > 90 * std::uint64_t{1} << 20);
    const auto base = start_of_peak();
    REQUIRE(base > 0);
    const auto model = skald::Model::load(file.path, {.backend = backend, .layout = layout});
    const auto load_peak = static_cast<double>(status_bytes("VmHWM") - base);
    const skald::Decoder decoder(model, {.context = context, .parallel = sequences, .batch_tokens = 256});
    std::vector<skald::Session> sessions;
    skald::Batch batch;
    for (int s = 0; s < sequences; ++s) sessions.push_back(decoder.new_session());
    const auto tokens = some_tokens(context, large.vocabulary);
    for (auto& session : sessions) batch.add(session, std::span(tokens).first(static_cast<std::size_t>(context - 1)));
    (void)decoder.forward(batch);
    batch.clear();
    for (auto& session : sessions) batch.add(session, {&tokens[0], 1});
    (void)decoder.forward(batch);
    const auto peak = static_cast<double>(status_bytes("VmHWM") - base);
    const auto planned = static_cast<double>(plan.total());
    INFO(skald::to_string(type) << (layout == skald::WeightLayout::packed ? " packed" : " rows") << ": plan "
                                << planned / mebibyte << " MiB " << plan.to_json() << ", peak " << peak / mebibyte
                                << " MiB, peak of load " << load_peak / mebibyte << " MiB");
    CHECK(decoder.counters().kv_page_bytes_used == plan.kv);
    CHECK(peak > 0.97 * planned);
    CHECK(peak < 1.03 * planned);
    // Each of the four threads holds a piece of a tensor of at most a MiB while it packs it.
    CHECK(load_peak < 1.01 * static_cast<double>(plan.weights + plan.vectors) + 4 * mebibyte);
  }
}

TEST_CASE("integration.memory: a budget below the need refuses before anything is allocated") {
  const TemporaryFile file{"integration_memory_budget.gguf"};
  write_large(file.path, skald::DType::q8_0);
  const auto backend = cpu_with(2);
  const auto plan = skald::plan(file.path, {.backend = backend});
  const auto need = static_cast<std::size_t>(plan.weights + plan.vectors + plan.tokenizer);
  const auto base = start_of_peak();
  for (const std::size_t percent : {0u, 50u, 90u, 99u}) {
    const std::size_t budget = need * percent / 100;
    try {
      (void)skald::Model::load(file.path, {.backend = backend, .memory_budget = budget});
      FAIL("accepted");
    } catch (const skald::OutOfMemoryError& error) {
      const std::string text = error.what();
      CHECK(text.find(std::to_string(need)) != std::string::npos);
      CHECK(text.find(std::to_string(budget)) != std::string::npos);
    }
  }
  if (base > 0) CHECK(static_cast<double>(status_bytes("VmHWM") - base) < 16 * mebibyte);  // a third of the weights
  for (const std::size_t budget : {need, need + need / 10})
    CHECK_NOTHROW(skald::Model::load(file.path, {.backend = backend, .memory_budget = budget}));
}
