#include <cmath>
#include <string>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

using namespace skald;
using skald_test::have_shared;
using skald_test::shared_path;

namespace {

struct Expected {
  const char* file;
  const char* architecture;
  std::int64_t vocabulary;
  std::int64_t context;
  std::int64_t dim;
  std::int32_t layers;
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  std::int64_t width;
  RopeKind rope;
  double freq_base;
  RopeScaling scaling;
  double factor;
  float epsilon;
  bool tied;
};

// From the descriptions of the files' generator, not from this library's reader.
const std::vector<Expected> expected_models = {
    {"llama2-spm", "llama", 365, 2048, 64, 2, 4, 2, 16, 96, RopeKind::interleaved, 1e4, RopeScaling::none, 1,
     0.001284335507079959F, false},
    {"llama3-ropefreqs", "llama", 301, 8192, 64, 2, 4, 2, 24, 96, RopeKind::interleaved, 5e5, RopeScaling::llama3, 1,
     0.0028074849396944046F, true},
    {"llama-yarn", "llama", 301, 8192, 64, 2, 4, 2, 16, 96, RopeKind::interleaved, 1e4, RopeScaling::yarn, 4,
     0.001719849999062717F, false},
    {"llama-linear-bias", "llama", 365, 4096, 48, 2, 4, 2, 12, 72, RopeKind::interleaved, 1e4, RopeScaling::linear, 2.5,
     0.0023989970795810223F, false},
    {"qwen2", "qwen2", 299, 32768, 64, 2, 4, 2, 16, 96, RopeKind::half, 1e6, RopeScaling::none, 1,
     0.002312334021553397F, true},
    {"qwen3", "qwen3", 299, 40960, 64, 2, 4, 2, 24, 96, RopeKind::half, 1e6, RopeScaling::none, 1,
     0.0016920637572184205F, false},
};

std::string golden(const std::string& name) { return shared_path("goldens/models/" + name + ".gguf"); }

LoadOptions reference() { return {.backend = make_reference_backend()}; }

}  // namespace

TEST_CASE("model.load: reads the specs of the golden models") {
  if (!have_shared("goldens/models")) return;
  for (const Expected& expected : expected_models) {
    CAPTURE(expected.file);
    const Model model = Model::load(golden(expected.file), reference());
    const ModelSpec& spec = model.spec();
    CHECK(spec.architecture == expected.architecture);
    CHECK(spec.vocabulary == expected.vocabulary);
    CHECK(spec.context_length == expected.context);
    CHECK(spec.dim == expected.dim);
    CHECK(spec.layer_count() == expected.layers);
    CHECK(spec.tied_head == expected.tied);
    CHECK(spec.final_norm == NormSpec{.kind = NormKind::rms, .epsilon = expected.epsilon});
    REQUIRE(spec.ropes.size() == 1);
    CHECK(spec.ropes[0].kind == expected.rope);
    CHECK(spec.ropes[0].dims == expected.head_dim);
    CHECK(spec.ropes[0].freq_base == expected.freq_base);
    CHECK(spec.ropes[0].scaling == expected.scaling);
    CHECK(spec.ropes[0].factor == expected.factor);
    const bool qwen2 = spec.architecture == "qwen2";
    const bool biased = std::string(expected.file) == "llama-linear-bias";
    for (const LayerSpec& layer : spec.layers) {
      REQUIRE(layer.attention);
      REQUIRE(layer.ffn);
      const AttentionSpec& attention = *layer.attention;
      CHECK(attention.heads == expected.heads);
      CHECK(attention.kv_heads == expected.kv_heads);
      CHECK(attention.head_dim_k == expected.head_dim);
      CHECK(attention.head_dim_v == expected.head_dim);
      CHECK(attention.scale == Approx(1 / std::sqrt(double(expected.head_dim))));
      CHECK(attention.q_bias == (qwen2 || biased));
      CHECK(attention.k_bias == (qwen2 || biased));
      CHECK(attention.v_bias == (qwen2 || biased));
      CHECK(attention.output_bias == biased);
      CHECK((attention.q_norm.kind == NormKind::rms) == (spec.architecture == "qwen3"));
      CHECK((attention.k_norm.kind == NormKind::rms) == (spec.architecture == "qwen3"));
      CHECK(attention.rope == 0);
      CHECK(layer.ffn->width == expected.width);
      CHECK(layer.ffn->activation == Activation::silu);
      CHECK(layer.ffn->gated);
      CHECK(layer.ffn->gate_bias == biased);
      CHECK(layer.ffn->up_bias == biased);
      CHECK(layer.ffn->down_bias == biased);
    }
    CHECK(model.info().unused.empty());
    CHECK(model.info().unused_keys.empty());
    CHECK(model.info().name == expected.file);
  }
}

TEST_CASE("model.load: gives every weight and vector that the spec names") {
  if (!have_shared("goldens/models")) return;
  for (const Expected& expected : expected_models) {
    CAPTURE(expected.file);
    const Model model = Model::load(golden(expected.file), reference());
    std::uint64_t held = 0;
    for (const TensorBinding& binding : tensor_bindings(model.spec())) {
      CAPTURE(binding.name);
      const Weight* weight = model.weight(binding.role, binding.layer);
      const float* vector = model.vector(binding.role, binding.layer);
      CHECK((weight != nullptr) == (binding.use == TensorUse::matrix));
      CHECK((vector != nullptr) == (binding.use == TensorUse::vector));
      if (!weight) continue;
      CHECK(weight->rows() == binding.shape[0]);
      CHECK(weight->cols() == binding.shape[1]);
      held += weight->bytes();
    }
    CHECK(held == model.info().weight_bytes);
    REQUIRE(model.weight(Role::head) != nullptr);
    CHECK((model.weight(Role::head) == model.weight(Role::token_embedding)) == expected.tied);
    CHECK(model.weight(Role::query, expected.layers) == nullptr);
    CHECK(model.weight(Role::query, -1) == nullptr);
    CHECK(model.vector(Role::final_norm, -2) == nullptr);
    CHECK_THROWS_AS(model.rope(1), UsageError);
    CHECK_THROWS_AS(model.rope(-1), UsageError);
  }
}
