// Nested networks: a share of the feed-forward width, chosen at load.
#include <algorithm>
#include <cstring>

#include <skald/core/error.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/model/plan.hpp>
#include <skald/simd/isa.hpp>

#include "backend/cpu/cpu_weight.hpp"
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

namespace {

/// A model whose feed-forward widths divide into blocks of every format.
TinyModel wide_model() {
  return tiny_model(TinyOptions{.dim = 256, .heads = 4, .kv_heads = 2, .head_dim = 64, .ffn = 1024});
}

TokenId best(std::span<const float> row) {
  return static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
}

/// Where a weight of the cpu backend begins.
const std::byte* address(const Model& model, Role role, int layer) {
  const auto& weight = dynamic_cast<const cpu::CpuWeight&>(*model.weight(role, layer));
  return weight.packed() ? weight.panel(0) : weight.row(0);
}

}  // namespace

// MatFormer (Devvrit et al. 2023, arXiv 2310.07707).
TEST_CASE("decoder.nested: widths of a loaded model share its weights and give the bits of a model of that width",
          "[decoder][exact]") {
  std::vector<AnyBackend> backends{make_reference_backend()};
  for (const auto isa : available_isas()) backends.push_back(make_backend("cpu:isa=" + std::string(to_string(isa))));
  for (const auto& backend : backends)
    for (const std::string type : {"f32", "f16", "q8_0", "q4_0", "q4_k", "q6_k", "iq4_nl"})
      for (const WeightLayout layout : {WeightLayout::packed, WeightLayout::rows}) {
        INFO(backend->info().name << " " << backend->info().isa << " " << type << " " << static_cast<int>(layout));
        LoadOptions options;
        options.backend = backend;
        options.layout = layout;
        options.quantize = type;
        options.tokenizer = false;
        const Model whole = Model::load(source_of(wide_model()), options);
        const std::vector<float> shares{0.5F, 0.25F};
        const Model nested = whole.nested(shares);
        CHECK(nested.spec().layers[0].ffn->width == 512);
        CHECK(nested.spec().layers[1].ffn->width == 256);
        options.ffn_fraction = shares;
        const Model loaded = Model::load(source_of(wide_model()), options);
        CHECK(nested.spec() == loaded.spec());
        CHECK((logits_of(nested) == logits_of(loaded)));
        const std::vector<float> all{1.0F};
        CHECK((logits_of(whole.nested(all)) == logits_of(whole)));
        CHECK(nested.info().parameters == loaded.info().parameters);
        CHECK(nested.fingerprint() != whole.fingerprint());
        if (backend->info().name != "cpu") continue;
        for (const Role role : {Role::ffn_gate, Role::ffn_up, Role::ffn_down, Role::query})
          for (const int layer : {0, 1}) CHECK(address(nested, role, layer) == address(whole, role, layer));
      }
}

TEST_CASE("decoder.nested: the work of feed-forward networks scales with their widths, layer by layer", "[decoder]") {
  for (const std::string type : {"f32", "q8_0", "q4_k"}) {
    INFO(type);
    LoadOptions options;
    options.backend = make_backend("cpu");
    options.quantize = type;
    options.tokenizer = false;
    const Model whole = Model::load(source_of(wide_model()), options);
    const auto work = [](const Model& model) {
      const Decoder<> decoder(model);
      auto session = decoder.new_session();
      const TokenId token = 5;
      (void)session.forward({&token, 1});
      const auto first = decoder.counters().weight_bytes_read;
      (void)session.forward({&token, 1});
      CHECK(decoder.counters().weight_bytes_read == 2 * first);  // each token reads them once
      return first;
    };
    const std::uint64_t all = work(whole);
    std::uint64_t ffn = 0;  // of one layer
    for (const Role role : {Role::ffn_gate, Role::ffn_up, Role::ffn_down}) ffn += whole.weight(role, 0)->bytes();
    CHECK(all > 2 * ffn);
    for (const auto& [first, second] : {std::pair{4, 4}, {2, 4}, {4, 1}, {1, 2}, {3, 1}, {1, 1}}) {
      const std::vector<float> shares{static_cast<float>(first) / 4, static_cast<float>(second) / 4};
      const std::uint64_t saved = ffn / 4 * static_cast<std::uint64_t>(8 - first - second);
      CHECK(work(whole.nested(shares)) == all - saved);
    }
  }
}

TEST_CASE("decoder.nested: refuses widths that a loaded model cannot share", "[decoder]") {
  LoadOptions options;
  options.backend = make_reference_backend();
  options.quantize = "q8_0";
  const Model whole = Model::load(source_of(wide_model()), options);
  const auto nested = [&](std::vector<float> shares) { return whole.nested(shares); };
  CHECK_THROWS_AS(nested({0.3F}), UsageError);  // ends within a block
  CHECK_THROWS_AS(nested({0.0F}), UsageError);
  CHECK_THROWS_AS(nested({2.0F}), UsageError);
  CHECK_THROWS_AS(nested({0.5F, 0.5F, 0.5F}), UsageError);
}

TEST_CASE("decoder.nested: a narrow network drafts for the whole one, whose greedy text comes out", "[decoder]") {
  const Model whole = Model::load(source_of(wide_model()), {.tokenizer = false});
  const std::vector<float> shares{1.0F, 0.75F};
  const Decoder<> full(whole);
  const Decoder<> narrow(whole.nested(shares));
  const std::vector<TokenId> prompt{5, 9, 31, 7};
  constexpr std::size_t wanted = 40;

  std::vector<TokenId> plain;
  auto greedy = full.new_session();
  for (TokenId next = best(greedy.forward(prompt).last()); plain.size() < wanted;) {
    plain.push_back(next);
    next = best(greedy.forward({&next, 1}).last());
  }

  std::vector<TokenId> text;
  auto verifier = full.new_session();
  auto drafter = narrow.new_session();
  text.push_back(best(verifier.forward(prompt).last()));
  drafter.forward(prompt, LogitsWanted::none);
  std::size_t drafted = 0, accepted = 0, passes = 0;
  while (text.size() < wanted) {
    std::vector<TokenId> draft{text.back()};
    for (int i = 0; i < 4; ++i) draft.push_back(best(drafter.forward({&draft.back(), 1}).last()));
    const auto rows = verifier.forward(draft, LogitsWanted::all);
    ++passes;
    std::size_t same = 0;
    while (same < 4 && best(rows.row(0, static_cast<std::int64_t>(same))) == draft[same + 1]) ++same;
    drafted += 4;
    accepted += same;
    text.insert(text.end(), draft.begin() + 1, draft.begin() + 1 + static_cast<std::ptrdiff_t>(same));
    text.push_back(best(rows.row(0, static_cast<std::int64_t>(same))));
    const auto length = static_cast<std::int64_t>(prompt.size() + text.size()) - 1;
    verifier.truncate(length);
    if (drafter.length() < length) drafter.forward(std::span<const TokenId>(draft).last(1), LogitsWanted::none);
    drafter.truncate(length);
  }
  text.resize(wanted);
  CHECK(text == plain);
  INFO(accepted << " of " << drafted << " drafted tokens accepted in " << passes << " passes");
  CHECK(accepted > 0);
  CHECK(passes < wanted);
}
