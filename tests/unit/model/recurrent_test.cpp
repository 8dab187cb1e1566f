// Readers of architectures with recurrent layers: what they make of a file, and what they refuse.
#include <limits>

#include <skald/model/plan.hpp>

#include "support/catch.hpp"
#include "support/recurrent_model.hpp"

using namespace skald;
using namespace skald_test;

namespace {

Model load(const std::vector<std::byte>& bytes) {
  return Model::load(AnyByteSource(SpanSource(bytes), "test"),
                     {.backend = make_reference_backend(), .tokenizer = false});
}

}  // namespace

TEST_CASE("model.recurrent: the spec is what the keys and tensors say, and every tensor is used") {
  for (const auto& architecture : recurrent_architectures()) {
    INFO(architecture);
    GgufWriter ignored;
    auto expected = recurrent_detail::recurrent_spec(architecture, ignored, 64);
    const Model model = recurrent_model(architecture, DType::f32, {.backend = make_reference_backend()});
    const auto& spec = model.spec();
    CHECK(model.info().unused.empty());
    CHECK(model.info().unused_keys.empty());
    REQUIRE(spec.layers.size() == expected.layers.size());
    for (std::size_t i = 0; i < spec.layers.size(); ++i) {
      CHECK(spec.layers[i].recurrent == expected.layers[i].recurrent);
      CHECK(spec.layers[i].attention.has_value() == expected.layers[i].attention.has_value());
      CHECK(spec.layers[i].state_elements(spec.dim) == expected.layers[i].state_elements(spec.dim));
      CHECK(spec.layers[i].output_scale == (architecture == "rwkv6" && i == 1 ? 0.5F : 1.0F));
    }
    CHECK(spec.recurrent());
    CHECK(to_json(spec).find("\"recurrent\":{\"kind\":") != std::string::npos);
    validate(spec);
  }
}

TEST_CASE("model.recurrent: keys that are missing, of another type or out of range are refused by name") {
  const std::vector<std::pair<std::string, std::vector<std::string>>> keys{
      {"mamba", {"ssm.inner_size", "ssm.state_size", "ssm.conv_kernel", "ssm.time_step_rank"}},
      {"mamba2", {"ssm.inner_size", "ssm.state_size", "ssm.conv_kernel", "ssm.time_step_rank", "ssm.group_count"}},
      {"lfm2", {"shortconv.l_cache"}},
      {"rwkv6", {"wkv.head_size", "time_mix_extra_dim", "time_decay_extra_dim"}},
      {"rwkv7",
       {"wkv.head_size", "attention.decay_lora_rank", "attention.iclr_lora_rank",
        "attention.value_residual_mix_lora_rank"}},
  };
  for (const auto& [architecture, names] : keys)
    for (const auto& name : names)
      for (const MetadataValue& value :
           {MetadataValue(std::uint32_t{0}), MetadataValue(std::int32_t{-4}), MetadataValue(std::uint64_t{1} << 63),
            MetadataValue(std::numeric_limits<std::uint32_t>::max()), MetadataValue(std::string("4")),
            MetadataValue(4.5F)}) {
        const auto key = architecture + "." + name;
        INFO(key);
        const auto bytes =
            recurrent_gguf(architecture, DType::f32, 64, [&, &v = value](GgufWriter& writer) { writer.set(key, v); });
        try {
          (void)load(bytes);
          FAIL("accepted");
        } catch (const Error& error) {
          CHECK(std::string(error.what()).find(key) != std::string::npos);
        }
      }
}

TEST_CASE("model.recurrent: numbers that contradict each other or the tensors are refused") {
  const auto refused = [](const std::string& architecture, const std::string& key, std::uint32_t value) {
    INFO(architecture << "." << key << " = " << value);
    const auto bytes = recurrent_gguf(architecture, DType::f32, 64, [&](GgufWriter& writer) {
      writer.set(architecture + "." + key, MetadataValue(value));
    });
    CHECK_THROWS_AS(load(bytes), FormatError);
  };
  refused("mamba", "ssm.inner_size", 127);  // the tensors have 128
  refused("mamba", "ssm.state_size", 17);
  refused("mamba", "ssm.conv_kernel", 5);
  refused("mamba", "ssm.time_step_rank", 31);
  refused("mamba2", "ssm.time_step_rank", 7);   // does not divide 128
  refused("mamba2", "ssm.group_count", 3);      // does not divide 8
  refused("falcon-h1", "ssm.group_count", 16);  // more than heads
  refused("lfm2", "shortconv.l_cache", 4);
  refused("rwkv6", "wkv.head_size", 24);  // does not divide 64
  refused("rwkv6", "time_mix_extra_dim", 16);
  refused("rwkv7", "attention.gate_lora_rank", 16);
  refused("rwkv7", "wkv.head_size", 257);
}

TEST_CASE("model.recurrent: a spec that nobody can compute is refused") {
  GgufWriter ignored;
  const auto refused = [&](const std::string& architecture, const std::function<void(ModelSpec&)>& change) {
    auto spec = recurrent_detail::recurrent_spec(architecture, ignored, 64);
    validate(spec);
    change(spec);
    CHECK_THROWS_AS(validate(spec), FormatError);
  };
  refused("mamba", [](ModelSpec& spec) { spec.layers[0].recurrent->taps = 1; });
  refused("mamba", [](ModelSpec& spec) { spec.layers[0].recurrent->taps = most_conv_taps + 1; });
  refused("mamba", [](ModelSpec& spec) { spec.layers[0].recurrent->heads = 4; });
  refused("mamba", [](ModelSpec& spec) { spec.layers[0].recurrent->step_rank = 0; });
  refused("mamba2", [](ModelSpec& spec) { spec.layers[0].recurrent->groups = 3; });
  refused("mamba2", [](ModelSpec& spec) { spec.layers[0].recurrent->heads = 0; });
  refused("mamba2", [](ModelSpec& spec) { spec.layers[0].recurrent->state_size = 0; });
  refused("lfm2", [](ModelSpec& spec) { spec.layers[0].recurrent->width = 63; });
  refused("lfm2", [](ModelSpec& spec) { spec.layers[0].attention_post_norm = spec.final_norm; });
  refused("rwkv6", [](ModelSpec& spec) { spec.layers[0].recurrent->heads = 3; });
  refused("rwkv6", [](ModelSpec& spec) { spec.layers[0].recurrent->mix_rank = 0; });
  refused("rwkv6", [](ModelSpec& spec) { spec.layers[0].ffn->gated = true; });
  refused("rwkv7", [](ModelSpec& spec) { spec.layers[0].recurrent->rate_rank = 0; });
  refused("rwkv7", [](ModelSpec& spec) { spec.layers[0].output_scale = 0; });
  refused("falcon-h1", [](ModelSpec& spec) { spec.layers[0].attention->causal = false; });
}
