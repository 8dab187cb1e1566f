// Architectures as data: the host's own, fused tensors, names of tensors, layers that lack a part.
#include <cmath>
#include <string>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/model/decoder_traits.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>

#include "support/catch.hpp"
#include "support/model_parts.hpp"
#include "support/shared_data.hpp"

using namespace skald;
using namespace skald_test;

namespace {

Architecture mine() {
  return {.name = "mine",
          .models = "our models",
          .read =
              [](HyperParameters& parameters) {
                auto spec = read_decoder(parameters, {.rope = RopeKind::half});
                spec.logit_softcap = static_cast<float>(parameters.number_or("softcap", 30.0, 1.0, 1000.0));
                return spec;
              },
          .names = {.roles = {{Role::final_norm, {"my_norm.weight", "output_norm.weight"}}}}};
}

LoadOptions with(std::vector<Architecture> more) {
  LoadOptions options;
  options.backend = make_reference_backend();
  options.architectures = std::move(more);
  return options;
}

}  // namespace

TEST_CASE("model.architecture: a host loads an architecture of its own") {
  TinyModel file = tiny_model({.architecture = "mine"});
  CHECK_THROWS_AS(Model::load(source_of(file), with({})), UnsupportedError);
  CHECK(Model::load(source_of(file), with({mine()})).spec().logit_softcap == 30.0F);
  file.set("mine.softcap", 12.0F);
  file.tensor("output_norm.weight").name = "my_norm.weight";
  const Model model = Model::load(source_of(file), with({mine()}));
  CHECK(model.spec().logit_softcap == 12.0F);
  CHECK(model.spec().ropes.at(0).kind == RopeKind::half);
  CHECK(model.vector(Role::final_norm) != nullptr);
  CHECK(model.info().unused.empty());
  CHECK(model.info().unused_keys.empty());
  const PlanOptions options{.backend = make_reference_backend(), .architectures = {mine()}};
  CHECK(plan(read_gguf(source_of(file)), options).weights == model.info().weight_bytes);
  file.set("mine.softcap", 0.5F);
  try {
    static_cast<void>(Model::load(source_of(file), with({mine()})));
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.context().key == "mine.softcap");
  }
}

TEST_CASE("model.architecture: a host's entry comes before a built-in one of its name") {
  Architecture other = mine();
  other.name = "llama";
  CHECK(Model::load(source_of(tiny_model()), with({other})).spec().logit_softcap == 30.0F);
  other.read = nullptr;
  CHECK_THROWS_AS(Model::load(source_of(tiny_model()), with({other})), UnsupportedError);
}

TEST_CASE("model.bind_tensors: query, key and value, or gate and up, may lie in one tensor") {
  TinyModel file = tiny_model();
  const auto join = [&](const std::string& name, std::vector<std::string> parts) {
    TinyModel::Tensor joined{name, DType::f32, file.tensor(parts[0]).dims, {}};
    joined.dims[1] = 0;
    for (const std::string& part : parts) {
      const auto& tensor = file.tensor(part);
      joined.dims[1] += tensor.dims[1];
      joined.bytes.insert(joined.bytes.end(), tensor.bytes.begin(), tensor.bytes.end());
    }
    for (const std::string& part : parts) file.erase_tensor(part);
    file.tensors.push_back(std::move(joined));
  };
  const Model split = Model::load(source_of(file), with({}));
  join("blk.0.attn_qkv.weight", {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"});
  join("blk.1.ffn_up.weight", {"blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"});
  const Model fused = Model::load(source_of(file), with({}));
  CHECK(fused.spec() == split.spec());
  CHECK(fused.info().weight_bytes == split.info().weight_bytes);
  CHECK(fused.info().parameters == split.info().parameters);
  CHECK(fused.info().unused.empty());
  for (const auto& [role, layer] : {std::pair(Role::query, 0), std::pair(Role::key, 0), std::pair(Role::value, 0),
                                    std::pair(Role::ffn_gate, 1), std::pair(Role::ffn_up, 1)})
    CHECK(fused.weight(role, layer)->rows() == split.weight(role, layer)->rows());
  TinyModel wrong = file;
  wrong.set_tensor("blk.0.attn_qkv.weight", {32, 60});
  try {
    static_cast<void>(Model::load(source_of(wrong), with({})));
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.context().tensor == "blk.0.attn_qkv.weight");
  }
}

TEST_CASE("model.read_spec: layers of the deci architecture may lack attention, the network, or both") {
  if (!have_shared("goldens/models")) return;
  const Model model = Model::load(shared_path("goldens/models/deci.gguf"), with({}));
  const auto& layers = model.spec().layers;
  REQUIRE(layers.size() == 6);
  CHECK((layers[0].attention && layers[0].ffn));
  CHECK_FALSE((layers[1].attention || layers[1].ffn || layers[1].linear_attention));
  CHECK((!layers[2].attention && layers[2].linear_attention && layers[2].ffn));
  CHECK((!layers[3].attention && !layers[3].linear_attention && layers[3].ffn));
  CHECK(layers[4].attention->kv_heads == 1);
  CHECK(layers[5].attention->kv_heads == 4);
  CHECK(model.info().unused.empty());
}

TEST_CASE("model.alibi_slopes: are powers of two, with odd steps between for other numbers of heads") {
  CHECK(alibi_slopes(4, 8.0F) == std::vector<float>{0.25F, 0.0625F, 0.015625F, 0.00390625F});
  const auto six = alibi_slopes(6, 8.0F);
  REQUIRE(six.size() == 6);
  CHECK(six[3] == 0.00390625F);
  CHECK(six[4] == Approx(0.5));
  CHECK(six[5] == Approx(0.125));
  CHECK(alibi_slopes(1, 8.0F) == std::vector<float>{0.00390625F});
}

TEST_CASE("model.rope_frequencies: longrope takes its long factors in contexts above the original one") {
  RopeSpec rope{.kind = RopeKind::half, .dims = 4, .scaling = RopeScaling::longrope, .original_context = 100};
  rope.factors = {1.0F, 2.0F};
  rope.long_factors = {4.0F, 8.0F};
  const auto near = rope_frequencies(rope, 100).inverse_frequencies;
  const auto far = rope_frequencies(rope, 101).inverse_frequencies;
  CHECK(near[0] == Approx(1.0));
  CHECK(near[1] == Approx(0.005));
  CHECK(far[0] == Approx(0.25));
  CHECK(far[1] == Approx(0.00125));
}
