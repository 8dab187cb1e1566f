#include <string>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>

#include "support/catch.hpp"
#include "support/recording_backend.hpp"
#include "support/shared_data.hpp"
#include "support/model_parts.hpp"

using namespace skald;
using namespace skald_test;

TEST_CASE("model.plan: bytes of weights and vectors are those that a load holds") {
  std::vector<std::string> files;
  if (have_shared("goldens/models"))
    for (const char* name : {"llama2-spm", "llama3-ropefreqs", "llama-yarn", "llama-linear-bias", "mixtral", "qwen2", "qwen3"})
      files.push_back(shared_path(std::string("goldens/models/") + name + ".gguf"));
  if (have_shared("goldens/quants/models"))
    for (const char* name : {"F16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q4_K_M-mix"})
      files.push_back(shared_path(std::string("goldens/quants/models/quant-") + name + ".gguf"));
  for (const AnyBackend& backend :
       {make_reference_backend(), make_cpu_backend(), AnyBackend(make_recording_backend())}) {
    for (const std::string& file : files) {
      CAPTURE(file, backend->info().name);
      const MemoryPlan planned = plan(file, {.backend = backend});
      const Model model = Model::load(file, {.backend = backend});
      std::uint64_t held = 0;
      for (const TensorBinding& binding : tensor_bindings(model.spec()))
        if (const Weight* weight = model.weight(binding.role, binding.layer)) held += weight->bytes();
      CHECK(planned.weights == held);
      CHECK(planned.weights == model.info().weight_bytes);
      CHECK(planned.vectors == model.info().vector_bytes);
    }
  }
}

TEST_CASE("model.plan: takes nothing from the backend") {
  const auto backend = make_recording_backend();
  const ModelFile file = read_gguf(source_of(tiny_model()));
  const MemoryPlan planned = plan(file, {.backend = backend});
  CHECK(planned.weights > 0);
  CHECK(backend->allocations() == 0);
}

TEST_CASE("model.plan: KV, activations and stream follow the sizes asked for") {
  const auto backend = make_recording_backend();
  // 2 layers, 2 KV heads of 8 + 8 elements, dim 32, 4 heads of 8, ffn 64.
  const ModelFile file = read_gguf(source_of(tiny_model()));
  const PlanOptions options{.backend = backend,
                            .context = 100,
                            .sequences = 3,
                            .kv_type = DType::f32,
                            .page_tokens = 32,
                            .batch_tokens = 16,
                            .logits_rows = 5};
  const MemoryPlan planned = plan(file, options);
  const std::uint64_t pages = 4;  // of 32 tokens for 100
  CHECK(planned.kv == 2 * 2 * 3 * pages * 32 * (8 + 8) * 4);
  CHECK(planned.kv_per_token == 2 * 2 * (8 + 8) * 4);
  const std::uint64_t widths =
      32 /* x */ + 32 /* q */ + 16 /* k */ + 16 /* v */ + 32 /* attention */ + 64 + 8 /* rope */;
  CHECK(planned.activations == 16 * widths * 4 + 5 * tiny_vocabulary * 4);
  CHECK(planned.stream == 16 * 64);
  CHECK(planned.total() ==
        planned.weights + planned.vectors + planned.kv + planned.activations + planned.stream + planned.tokenizer);

  PlanOptions half = options;
  half.kv_type = DType::bf16;
  CHECK(plan(file, half).kv == planned.kv / 2);
  PlanOptions grouped = options;
  grouped.heads_per_group = 2;
  CHECK(plan(file, grouped).kv == planned.kv);
  grouped.heads_per_group = 3;
  CHECK_THROWS_AS(plan(file, grouped), UsageError);
}

TEST_CASE("model.plan: the defaults are those of a decoder") {
  const auto backend = make_recording_backend();
  TinyModel tiny = tiny_model();
  const auto kv = [&] { return plan(read_gguf(source_of(tiny)), {.backend = backend}).kv; };
  const std::uint64_t per_token = 2 * 2 * (8 + 8) * 2;
  CHECK(kv() == 4 * 512 * per_token);  // the context of the file
  tiny.set("llama.context_length", std::uint32_t{131072});
  CHECK(kv() == 4 * 4096 * per_token);
}

TEST_CASE("model.plan: a spec alone gives the same plan as a file of that format") {
  const auto backend = make_recording_backend();
  for (const DType type : {DType::f32, DType::q8_0}) {
    const ModelFile file = read_gguf(source_of(tiny_model({.type = type})));
    const MemoryPlan from_file = plan(file, {.backend = backend});
    const MemoryPlan from_spec = plan(read_spec(file), type, {.backend = backend});
    CHECK(from_spec.weights == from_file.weights);
    CHECK(from_spec.vectors == from_file.vectors);
    CHECK(from_spec.kv == from_file.kv);
    CHECK(from_spec.activations == from_file.activations);
    CHECK(from_spec.stream == from_file.stream);
  }
  const ModelSpec spec = read_spec(read_gguf(source_of(tiny_model())));
  CHECK_THROWS_AS(plan(spec, DType::q4_k, {.backend = backend}), UsageError);  // 32 columns, blocks of 256
}

TEST_CASE("model.plan: refuses options out of range, naming them") {
  const ModelFile file = read_gguf(source_of(tiny_model()));
  const auto refused = [&](const char* name, const std::function<void(PlanOptions&)>& change) {
    PlanOptions options{.backend = make_recording_backend()};
    change(options);
    CAPTURE(name);
    try {
      static_cast<void>(plan(file, options));
      FAIL_CHECK("accepted");
    } catch (const UsageError& error) {
      CHECK(error.message().find(name) != std::string::npos);
    }
  };
  refused("context", [](PlanOptions& options) { options.context = -1; });
  refused("context", [](PlanOptions& options) { options.context = INT64_MAX; });
  refused("sequences", [](PlanOptions& options) { options.sequences = 0; });
  refused("kv_type", [](PlanOptions& options) { options.kv_type = DType::q5_1; });
  refused("page_tokens", [](PlanOptions& options) { options.page_tokens = 48; });
  refused("page_tokens", [](PlanOptions& options) { options.page_tokens = 512; });
  refused("page_tokens", [](PlanOptions& options) { options.page_tokens = 0; });
  refused("heads_per_group", [](PlanOptions& options) { options.heads_per_group = 0; });
  refused("batch_tokens", [](PlanOptions& options) { options.batch_tokens = 0; });
  refused("logits_rows", [](PlanOptions& options) { options.logits_rows = -1; });
}

TEST_CASE("model.plan: sizes beyond 64 bits are refused, not wrapped") {
  ModelSpec spec = read_spec(read_gguf(source_of(tiny_model())));
  spec.layers.resize(65536, spec.layers.front());
  for (LayerSpec& layer : spec.layers) {
    layer.attention->heads = layer.attention->kv_heads = 16384;
    layer.attention->head_dim_k = layer.attention->head_dim_v = 16384;
  }
  spec.context_length = std::int64_t{1} << 30;
  CHECK_THROWS_AS(
      plan(spec, DType::f32, {.backend = make_recording_backend(), .context = 1 << 30, .sequences = 1 << 20}),
      OutOfMemoryError);
}

TEST_CASE("model.plan: is written as JSON") {
  const MemoryPlan planned = plan(read_gguf(source_of(tiny_model())), {.backend = make_recording_backend()});
  const auto json = nlohmann::json::parse(planned.to_json());
  CHECK(json.at("weights") == planned.weights);
  CHECK(json.at("vectors") == planned.vectors);
  CHECK(json.at("kv") == planned.kv);
  CHECK(json.at("activations") == planned.activations);
  CHECK(json.at("stream") == planned.stream);
  CHECK(json.at("tokenizer") == planned.tokenizer);
  CHECK(json.at("kv_per_token") == planned.kv_per_token);
  CHECK(json.at("total") == planned.total());
}

TEST_CASE("model.stream_limits: cover every layer of a network whose layers differ") {
  ModelSpec spec = read_spec(read_gguf(source_of(tiny_model())));
  spec.layers[0].attention->heads = 8;
  spec.layers[1].attention->head_dim_v = 48;
  spec.layers[1].ffn->width = 100;
  const StreamLimits limits = stream_limits(spec, 7, 1000, 3);
  CHECK(limits.tokens == 7);
  CHECK(limits.max_cols == 4 * 48);  // the input of the second layer's output matrix
  CHECK(limits.heads == 8);
  CHECK(limits.head_dim == 48);
  CHECK(limits.context == 1000);
  CHECK(limits.segments == 3);
  const ActivationSizes sizes = activation_sizes(spec);
  CHECK(sizes.residual == 32);
  CHECK(sizes.q == 64);
  CHECK(sizes.k == 16);
  CHECK(sizes.v == 96);
  CHECK(sizes.attention == 192);
  CHECK(sizes.ffn == 100);
  CHECK(sizes.rope == 8);
  CHECK(sizes.logits == tiny_vocabulary);
}
