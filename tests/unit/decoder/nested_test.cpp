// Nested networks: a share of the feed-forward width, chosen at load.
#include <cstring>

#include <skald/core/error.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/model/plan.hpp>

#include "support/catch.hpp"
#include "support/model_parts.hpp"

using namespace skald;
using namespace skald_test;

namespace {

std::vector<float> logits_of(const Model& model) {
  auto session = Decoder<>(model, {.kv = {.format = "f32"}}).new_session();
  const std::vector<TokenId> tokens{5, 9, 31, 7};
  const auto logits = session.forward(tokens, LogitsWanted::all);
  const auto first = logits.row(0).data();
  return {first, first + logits.rows() * logits.vocabulary()};
}

/// The file of the network that has only the first `width` elements in layer `layer`.
void cut(TinyModel& file, int layer, std::int64_t width) {
  const std::string prefix = "blk." + std::to_string(layer) + ".ffn_";
  for (const char* name : {"gate.weight", "up.weight"}) {
    auto& tensor = file.tensor(prefix + name);
    tensor.dims[1] = width;
    tensor.bytes.resize(static_cast<std::size_t>(tensor.dims[0] * width) * sizeof(float));
  }
  auto& down = file.tensor(prefix + "down.weight");
  std::vector<std::byte> bytes;
  const auto whole = static_cast<std::ptrdiff_t>(down.dims[0] * static_cast<std::int64_t>(sizeof(float)));
  const auto part = static_cast<std::ptrdiff_t>(width * static_cast<std::int64_t>(sizeof(float)));
  for (std::int64_t row = 0; row < down.dims[1]; ++row)
    bytes.insert(bytes.end(), down.bytes.begin() + row * whole, down.bytes.begin() + row * whole + part);
  down.dims[0] = width;
  down.bytes = std::move(bytes);
}

}  // namespace

TEST_CASE("decoder.nested: a share of the width equals the network that has only that share", "[decoder]") {
  for (const char* name : {"reference", "cpu"})
    for (const WeightLayout layout : {WeightLayout::packed, WeightLayout::rows}) {
      LoadOptions options;
      options.backend = make_backend(name);
      options.layout = layout;
      const Model whole = Model::load(source_of(tiny_model()), options);
      TinyModel small = tiny_model();
      const std::int64_t width = whole.spec().layers[0].ffn->width;
      cut(small, 0, width / 2);
      cut(small, 1, width / 4);
      small.set("llama.feed_forward_length", MetadataArray{std::vector<std::int32_t>{
                                                 static_cast<std::int32_t>(width / 2),
                                                 static_cast<std::int32_t>(width / 4)}});
      const Model alone = Model::load(source_of(small), options);
      options.ffn_fraction = {0.5F, 0.25F};
      const Model nested = Model::load(source_of(tiny_model()), options);
      CHECK(nested.spec().layers[1].ffn->width == width / 4);
      CHECK(nested.spec().layers[1].ffn->stored_width == width);
      CHECK(logits_of(nested) == logits_of(alone));
      CHECK(logits_of(nested) != logits_of(whole));
      CHECK(nested.info().weight_bytes == alone.info().weight_bytes);
      CHECK(nested.info().weight_bytes < whole.info().weight_bytes);
      CHECK(nested.fingerprint() != whole.fingerprint());
      PlanOptions planned;
      planned.backend = options.backend;
      planned.layout = layout;
      planned.ffn_fraction = options.ffn_fraction;
      CHECK(plan(read_gguf(source_of(tiny_model())), planned).weights == nested.info().weight_bytes);
    }
}

TEST_CASE("decoder.nested: refuses shares out of range, of other layers, or between blocks", "[decoder]") {
  const auto refused = [](std::vector<float> fractions) {
    LoadOptions options;
    options.backend = make_reference_backend();
    options.ffn_fraction = std::move(fractions);
    CHECK_THROWS_AS(Model::load(source_of(tiny_model()), options), UsageError);
  };
  refused({0.0F});
  refused({-1.0F});
  refused({1.5F});
  refused({0.5F, 0.5F, 0.5F});
  TinyModel blocks = tiny_model();
  for (const char* name : {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"})
    blocks.set_tensor(name, blocks.tensor(name).dims, DType::q8_0);
  LoadOptions options;
  options.backend = make_reference_backend();
  options.ffn_fraction = {0.5F};
  CHECK_NOTHROW(Model::load(source_of(blocks), options));
  options.ffn_fraction = {0.3F};
  try {
    static_cast<void>(Model::load(source_of(blocks), options));
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.context().tensor == "blk.0.ffn_down.weight");
  }
}
