// Mixtures of experts: from keys and tensors to the spec, the plan and the weights.
#include <functional>
#include <string>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>

#include "support/catch.hpp"
#include "support/model_parts.hpp"
#include "support/recording_backend.hpp"
#include "support/shared_data.hpp"

using namespace skald;
using namespace skald_test;

namespace {

const TinyOptions mixture{.experts = 4};

ModelSpec spec_of(const TinyModel& model) { return read_spec(read_gguf(source_of(model))); }

}  // namespace

TEST_CASE("model.experts: the golden mixture has the experts of its description") {
  if (!have_shared("goldens/models")) return;
  const Model model = Model::load(shared_path("goldens/models/mixtral.gguf"), {.backend = make_reference_backend()});
  CHECK(model.info().unused.empty());
  CHECK(model.info().unused_keys.empty());
  std::int64_t parameters = 0;
  for (const TensorBinding& binding : tensor_bindings(model.spec())) {
    parameters += binding.shape[0] * (binding.shape.size() > 1 ? binding.shape[1] : 1);
    const Weight* weight = model.weight(binding.role, binding.layer);
    if (!weight) continue;
    CHECK(weight->rows() == binding.shape[0]);
    CHECK(weight->matrices() == binding.matrices);
  }
  CHECK(model.info().parameters == static_cast<std::uint64_t>(parameters));
  for (const LayerSpec& layer : model.spec().layers) {
    REQUIRE(layer.ffn);
    REQUIRE(layer.ffn->experts);
    CHECK(layer.ffn->experts->used < layer.ffn->experts->count);
    CHECK(layer.ffn->experts->renormalize);
    CHECK(layer.ffn->experts->gating == ExpertGating::softmax);
  }
}

TEST_CASE("model.experts: keys become the spec, which is written as JSON") {
  const ModelSpec spec = spec_of(tiny_model({.experts = 6, .experts_used = 3}));
  for (const LayerSpec& layer : spec.layers) {
    REQUIRE(layer.ffn);
    CHECK(layer.ffn->width == 64);
    CHECK(layer.ffn->experts == ExpertsSpec{.count = 6, .used = 3, .renormalize = true, .scale = 1.0F});
  }
  const auto json = nlohmann::json::parse(to_json(spec)).at("layers")[0].at("ffn").at("experts");
  CHECK(json.at("count") == 6);
  CHECK(json.at("used") == 3);
  CHECK(json.at("gating") == "softmax");
  CHECK(json.at("renormalize") == true);

  TinyModel dense = tiny_model();
  dense.set("llama.expert_count", std::uint32_t{0});
  dense.set("llama.expert_used_count", std::uint32_t{0});
  CHECK_FALSE(spec_of(dense).layers[0].ffn->experts);
  CHECK_FALSE(nlohmann::json::parse(to_json(spec_of(dense))).at("layers")[0].at("ffn").contains("experts"));
}

TEST_CASE("model.experts: every tensor is bound once, as it stands in the file") {
  const TinyModel tiny = tiny_model(mixture);
  const ModelFile file = read_gguf(source_of(tiny));
  const ModelSpec spec = read_spec(file);
  const BoundTensors bound = bind_tensors(file, spec);
  CHECK(bound.unused.empty());
  CHECK(bound.used.size() == file.tensors().size());
  const auto backend = make_recording_backend();
  const Model model = Model::load(source_of(tiny), {.backend = backend});
  TinyModel copy = tiny;
  for (const Role role : {Role::expert_router, Role::expert_gate, Role::expert_up, Role::expert_down}) {
    const auto* weight = dynamic_cast<const RecordedWeight*>(model.weight(role, 1));
    REQUIRE(weight != nullptr);
    const auto binding = std::ranges::find_if(
        bound.used, [&](const BoundTensor& each) { return each.binding.role == role && each.binding.layer == 1; });
    REQUIRE(binding != bound.used.end());
    CHECK(weight->codes == copy.tensor(binding->binding.name).bytes);
    CHECK(weight->matrices() == (role == Role::expert_router ? 1 : 4));
  }
  CHECK(model.weight(Role::ffn_gate, 0) == nullptr);
}

TEST_CASE("model.experts: the plan is what a load holds, also where an expert ends within a panel") {
  for (const std::uint32_t ffn : {16u, 24u, 33u}) {
    const TinyModel tiny = tiny_model({.dim = 40, .ffn = ffn, .experts = 5});
    const ModelFile file = read_gguf(source_of(tiny));
    for (const AnyBackend& backend :
         {make_reference_backend(), make_cpu_backend(), AnyBackend(make_recording_backend())}) {
      for (const WeightLayout layout : {WeightLayout::packed, WeightLayout::rows}) {
        CAPTURE(ffn, backend->info().name);
        const MemoryPlan planned = plan(file, {.backend = backend, .layout = layout});
        const MemoryPlan from_spec = plan(read_spec(file), DType::f32, {.backend = backend, .layout = layout});
        const Model model = Model::load(source_of(tiny), {.backend = backend, .layout = layout});
        CHECK(planned.weights == model.info().weight_bytes);
        CHECK(planned.vectors == model.info().vector_bytes);
        CHECK(from_spec.weights == planned.weights);
        CHECK(from_spec.activations == planned.activations);
        CHECK(from_spec.stream == planned.stream);
      }
    }
  }
}

TEST_CASE("model.experts: activations and stream limits count the experts that a token uses") {
  ModelSpec spec = spec_of(tiny_model(mixture));
  spec.layers[0].ffn->experts->used = 3;
  spec.layers[1].ffn->experts->count = 9;
  const ActivationSizes sizes = activation_sizes(spec);
  CHECK(sizes.ffn == 3 * 64);
  CHECK(sizes.router == 9);
  CHECK(sizes.experts == 3 * 32);
  const StreamLimits limits = stream_limits(spec, 7, 100, 1);
  CHECK(limits.experts == 9);
  CHECK(limits.used == 3);
  CHECK(limits.max_cols == 64);
  const std::size_t dense = activation_bytes(spec_of(tiny_model()), 16, 1);
  CHECK(activation_bytes(spec, 16, 1) == dense + 16 * 4 * (2 * 64 + 9 + 3 * 32));
}

TEST_CASE("model.experts: keys and tensors that contradict each other are refused by name") {
  const auto refused = [](const std::string& named, const std::function<void(TinyModel&)>& change) {
    TinyModel model = tiny_model(mixture);
    change(model);
    CAPTURE(named);
    for (const bool planned : {false, true}) {
      try {
        if (planned) static_cast<void>(plan(read_gguf(source_of(model)), {.backend = make_recording_backend()}));
        else static_cast<void>(Model::load(source_of(model), {.backend = make_recording_backend()}));
        FAIL_CHECK("accepted");
      } catch (const Error& error) {
        CAPTURE(error.what());
        const bool kind = error.code() == ErrorCode::format || error.code() == ErrorCode::unsupported;
        CHECK(kind);
        CHECK((error.context().key == named || error.context().tensor == named));
        CHECK(error.context().file == "tiny.gguf");
      }
    }
  };
  const auto key = [&](const std::string& name, MetadataValue value) {
    refused(name, [&](TinyModel& model) { model.set(name, value); });
  };
  key("llama.expert_count", std::int32_t{-1});
  key("llama.expert_count", std::uint32_t{4097});
  key("llama.expert_count", std::uint64_t{1} << 63);
  key("llama.expert_count", std::string("4"));
  key("llama.expert_used_count", std::uint32_t{0});
  key("llama.expert_used_count", std::uint32_t{5});
  key("llama.expert_used_count", std::int32_t{-2});
  key("llama.expert_used_count", 1.5F);
  refused("llama.expert_used_count", [](TinyModel& model) { model.erase("llama.expert_used_count"); });
  refused("llama.expert_used_count", [](TinyModel& model) {  // more than any network uses
    model.set("llama.expert_count", std::uint32_t{4096});
    model.set("llama.expert_used_count", std::uint32_t{257});
  });
  for (const std::string name : {"ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}) {
    const std::string tensor = "blk.1." + name + ".weight";
    refused(tensor, [&](TinyModel& model) { model.erase_tensor(tensor); });
    refused(tensor, [&](TinyModel& model) { model.set_tensor(tensor, {32, 64}); });
    refused(tensor, [&](TinyModel& model) { model.set_tensor(tensor, {32, 64, 3}); });
    refused(tensor, [&](TinyModel& model) { model.set_tensor(tensor, {32, 256}); });
    refused(tensor, [&](TinyModel& model) { model.set_tensor(tensor, {32, 64, 2, 2}); });
  }
  refused("blk.0.ffn_gate_inp.weight", [](TinyModel& model) { model.set("llama.expert_count", std::uint32_t{8}); });
  refused("blk.0.ffn_gate_exps.weight", [](TinyModel& model) {  // one expert of four, in a tensor of its own
    model.set_tensor("blk.0.ffn_gate.0.weight", {32, 64});
    model.erase_tensor("blk.0.ffn_gate_exps.weight");
  });
}

TEST_CASE("model.experts: architectures that have none refuse them") {
  for (const char* architecture : {"qwen2", "qwen3"}) {
    try {
      static_cast<void>(spec_of(tiny_model({.architecture = architecture, .experts = 4})));
      FAIL_CHECK("accepted");
    } catch (const UnsupportedError& error) {
      CHECK(error.context().key == std::string(architecture) + ".expert_count");
    }
  }
}

TEST_CASE("model.experts: a spec with impossible experts is refused") {
  const auto refused = [](const char* what, const std::function<void(FfnSpec&)>& change) {
    ModelSpec spec = spec_of(tiny_model(mixture));
    change(*spec.layers[1].ffn);
    CAPTURE(what);
    try {
      validate(spec);
      FAIL_CHECK("accepted");
    } catch (const FormatError& error) {
      CHECK(error.message().find(what) != std::string::npos);
      CHECK(error.context().layer == 1);
    }
  };
  refused("experts", [](FfnSpec& ffn) { ffn.experts->count = 0; });
  refused("experts", [](FfnSpec& ffn) { ffn.experts->count = 5000; });
  refused("experts used", [](FfnSpec& ffn) { ffn.experts->used = 0; });
  refused("experts used", [](FfnSpec& ffn) { ffn.experts->used = 5; });
  refused("expert scale", [](FfnSpec& ffn) { ffn.experts->scale = 0; });
  refused("gating", [](FfnSpec& ffn) { ffn.experts->gating = static_cast<ExpertGating>(7); });
  refused("without a gate", [](FfnSpec& ffn) { ffn.gated = false; });
  refused("expert groups", [](FfnSpec& ffn) { ffn.experts->groups = 3; });
  refused("expert groups", [](FfnSpec& ffn) { ffn.experts->groups = 4; });
  refused("expert groups", [](FfnSpec& ffn) { ffn.experts->groups = 0; });
  refused("expert groups used", [](FfnSpec& ffn) { ffn.experts->groups_used = 2; });
  refused("best experts of a group", [](FfnSpec& ffn) { ffn.experts->group_best = 3; });
  refused("experts used", [](FfnSpec& ffn) {
    ffn.experts->groups = 2;
    ffn.experts->used = 3;
  });
  refused("gate_limit", [](FfnSpec& ffn) { ffn.experts->gate_limit = NAN; });
  refused("shared expert width", [](FfnSpec& ffn) { ffn.experts->shared_width = -1; });
  refused("gate of a shared expert", [](FfnSpec& ffn) { ffn.experts->shared_gate = true; });
}
