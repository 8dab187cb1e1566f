#include <chrono>
#include <string>

#include <skald/core/error.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>

#include "support/catch.hpp"
#include "support/model_defects.hpp"

using namespace skald;
using namespace skald_test;

namespace {

bool names(const Error& error, const std::string& what) {
  return error.context().key == what || error.context().tensor == what ||
         error.message().find(what) != std::string::npos;
}

}  // namespace

TEST_CASE("model.load: accepts the model that the defects are made from") {
  const Model model = Model::load(source_of(tiny_model()), {.backend = make_reference_backend()});
  CHECK(model.spec().layer_count() == 2);
  CHECK(model.info().unused.empty());
  CHECK(model.info().unused_keys.empty());
}

TEST_CASE("model.load: refuses every model that contradicts itself, naming key or tensor") {
  const AnyBackend backend = make_reference_backend();
  const auto defects = model_defects();
  CHECK(defects.size() >= 40);
  for (const ModelDefect& defect : defects) {
    CAPTURE(defect.name, defect.named);
    try {
      static_cast<void>(Model::load(source_of(defect.model), {.backend = backend}));
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CAPTURE(error.what());
      CHECK(names(error, defect.named));
      CHECK(error.context().file == "tiny.gguf");
      CHECK(std::string(error.what()).size() <= 1024);
      const bool kind = error.code() == ErrorCode::format || error.code() == ErrorCode::unsupported ||
                        error.code() == ErrorCode::numeric;
      CHECK(kind);
    }
  }
}

TEST_CASE("model.plan: refuses hyper-parameters and shapes that contradict each other, like load") {
  const AnyBackend backend = make_reference_backend();
  for (const ModelDefect& defect : model_defects()) {
    CAPTURE(defect.name);
    // A plan neither builds the tokenizer nor reads the values of norms.
    const bool beyond =
        defect.name.starts_with("tokenizer.ggml.scores") || defect.name.starts_with("tokenizer.ggml.token_type") ||
        defect.name.starts_with("tokenizer.ggml.model") || defect.name.find(" holds ") != std::string::npos;
    const ModelFile file = read_gguf(source_of(defect.model));
    if (!beyond) CHECK_THROWS_AS(plan(file, {.backend = backend}), Error);
  }
}

TEST_CASE("model.load: a refused model has not read any matrix") {
  // A source that fails when the data of a matrix is read.
  const auto bytes = tiny_model().to_bytes();
  for (const ModelDefect& defect : model_defects()) {
    CAPTURE(defect.name);
    const auto file_bytes = std::make_shared<const std::vector<std::byte>>(defect.model.to_bytes());
    const ModelFile plain = read_gguf(owning_source(*file_bytes));
    std::vector<std::pair<std::uint64_t, std::uint64_t>> matrices;
    for (const TensorInfo& tensor : plain.tensors())
      if (tensor.rank > 1) matrices.emplace_back(tensor.offset, tensor.offset + tensor.bytes);
    bool touched = false;
    const CallbackSource source(file_bytes->size(), [&](std::uint64_t offset, std::span<std::byte> out) {
      // The reader may take the header in large blocks; those begin before the data.
      for (const auto& [begin, end] : matrices) touched = touched || (offset >= begin && offset < end);
      std::memcpy(out.data(), file_bytes->data() + offset, out.size());
    });
    CHECK_THROWS_AS(Model::load(AnyByteSource(source, "tiny.gguf"), {.backend = make_reference_backend()}), Error);
    CHECK_FALSE(touched);
  }
}

TEST_CASE("model.load: check_weights finds a matrix element that is not finite") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    TinyModel model = tiny_model();
    auto& tensor = model.tensor("blk.1.ffn_up.weight");
    std::memcpy(tensor.bytes.data() + (5 * 32 + 7) * sizeof(float), &bad, sizeof(bad));
    for (const WeightLayout layout : {WeightLayout::packed, WeightLayout::rows}) {
      const LoadOptions options{.backend = make_reference_backend(), .layout = layout, .check_weights = true};
      try {
        static_cast<void>(Model::load(source_of(model), options));
        FAIL("accepted");
      } catch (const NumericError& error) {
        CHECK(error.context().tensor == "blk.1.ffn_up.weight");
        CHECK(error.message().find("row 5, column 7") != std::string::npos);
      }
    }
    CHECK_NOTHROW(Model::load(source_of(model), {.backend = make_reference_backend()}));
  }
}

TEST_CASE("model.load: reports tensors and keys that it does not use") {
  TinyModel model = tiny_model();
  model.set_tensor("adapter.weight", {4, 4});
  model.set("llama.attention.sliding_window", std::uint32_t{4096});
  std::vector<std::string> warnings;
  LoadOptions options{.backend = make_reference_backend()};
  options.log = [&](const LogEvent& event) {
    if (event.level == LogLevel::warning) warnings.emplace_back(event.message);
  };
  const Model loaded = Model::load(source_of(model), options);
  CHECK(loaded.info().unused == std::vector<std::string>{"adapter.weight"});
  CHECK(loaded.info().unused_keys == std::vector<std::string>{"llama.attention.sliding_window"});
  CHECK(warnings.size() == 2);
}

TEST_CASE("model.load: an unknown architecture lists the known ones") {
  TinyModel model = tiny_model();
  model.set("general.architecture", std::string("mystery"));
  try {
    static_cast<void>(Model::load(source_of(model), {.backend = make_reference_backend()}));
    FAIL("accepted");
  } catch (const UnsupportedError& error) {
    for (const char* known : {"mystery", "llama", "qwen2", "qwen3"})
      CHECK(error.message().find(known) != std::string::npos);
  }
}
