// Rare forms of tensors: numbers that no kernel reads, and stacks that lie in tensors of their own.
#include <skald/model/tensor_forms.hpp>

#include <cmath>
#include <limits>

#include <skald/core/error.hpp>
#include <skald/model/model.hpp>
#include <skald/model/plan.hpp>
#include <skald/model/quantize.hpp>

#include "support/catch.hpp"
#include "support/model_parts.hpp"
#include "support/recording_backend.hpp"
#include "support/recurrent_model.hpp"

using namespace skald;
using namespace skald_test;

namespace {

ModelFile file_of(const TinyModel& model) { return read_gguf(source_of(model)); }

/// Codes of every weight and elements of every vector, by role and layer.
std::vector<std::vector<std::byte>> contents(ModelFile file) {
  const auto backend = make_recording_backend();
  const Model model = Model::load(std::move(file), {.backend = backend, .tokenizer = false});
  std::vector<std::vector<std::byte>> result;
  for (const TensorBinding& binding : tensor_bindings(model.spec())) {
    if (const auto* weight = dynamic_cast<const RecordedWeight*>(model.weight(binding.role, binding.layer)))
      result.push_back(weight->codes);
    else if (const float* vector = model.vector(binding.role, binding.layer))
      result.emplace_back(reinterpret_cast<const std::byte*>(vector),
                          reinterpret_cast<const std::byte*>(vector + binding.shape[0]));
  }
  return result;
}

template <class T>
void store_as(TinyModel::Tensor& tensor, DType type) {
  std::vector<std::byte> bytes(tensor.bytes.size() / sizeof(float) * sizeof(T));
  for (std::size_t i = 0; i < tensor.bytes.size() / sizeof(float); ++i) {
    float value = 0;
    std::memcpy(&value, tensor.bytes.data() + i * sizeof(float), sizeof(float));
    const T stored = static_cast<T>(value);
    std::memcpy(bytes.data() + i * sizeof(T), &stored, sizeof(T));
  }
  tensor.type = type;
  tensor.bytes = std::move(bytes);
}

/// Whole numbers, which all types hold, for every tensor of f32.
void make_whole(TinyModel& model) {
  for (auto& tensor : model.tensors)
    for (std::size_t i = 0; i + sizeof(float) <= tensor.bytes.size(); i += sizeof(float)) {
      float value = 0;
      std::memcpy(&value, tensor.bytes.data() + i, sizeof(float));
      value = std::round(value * 50.0F) + 0.0F;  // no integer is minus zero
      std::memcpy(tensor.bytes.data() + i, &value, sizeof(float));
    }
}

void store_all_as(TinyModel& model, DType type) {
  for (auto& tensor : model.tensors) {
    if (type == DType::f64) store_as<double>(tensor, type);
    if (type == DType::i8) store_as<std::int8_t>(tensor, type);
    if (type == DType::i16) store_as<std::int16_t>(tensor, type);
    if (type == DType::i32) store_as<std::int32_t>(tensor, type);
  }
}

/// Takes a stack apart into a tensor for each expert.
void split_experts(TinyModel& model, const std::string& layer, const std::string& part) {
  const auto stack = model.tensor(layer + part + "_exps.weight");
  model.erase_tensor(stack.name);
  const auto each = stack.bytes.size() / static_cast<std::size_t>(stack.dims[2]);
  for (std::int64_t e = 0; e < stack.dims[2]; ++e) {
    const auto begin = stack.bytes.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(e) * each);
    model.tensors.push_back({layer + part + "." + std::to_string(e) + ".weight", stack.type,
                             {stack.dims[0], stack.dims[1]},
                             {begin, begin + static_cast<std::ptrdiff_t>(each)}});
  }
}

TinyModel older_mixture(const TinyModel& model) {
  TinyModel older = model;
  for (const char* layer : {"blk.0.", "blk.1."})
    for (const char* part : {"ffn_down", "ffn_gate", "ffn_up"}) split_experts(older, layer, part);
  return older;
}

std::string message_of(const TinyModel& model) {
  try {
    static_cast<void>(contents(file_of(model)));
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("model.tensor_forms: matrices and vectors of f64, i8, i16 and i32 load as the f32 of their values") {
  for (const std::uint32_t experts : {0u, 3u}) {
    TinyModel plain = tiny_model({.experts = experts});
    make_whole(plain);
    const auto expected = contents(file_of(plain));
    for (const DType type : {DType::f64, DType::i8, DType::i16, DType::i32}) {
      CAPTURE(to_string(type), experts);
      TinyModel stored = plain;
      store_all_as(stored, type);
      const ModelFile file = file_of(stored);
      CHECK(file.tensors()[0].type == type);
      CHECK(has_rare_forms(file));
      CHECK((contents(file) == expected));
      const MemoryPlan planned = plan(file);
      CHECK(planned.weights == plan(file_of(plain)).weights);
      CHECK(planned.vectors == plan(file_of(plain)).vectors);
      CHECK(planned.weights == Model::load(file).info().weight_bytes);
    }
  }
  CHECK_FALSE(has_rare_forms(file_of(tiny_model())));
}

TEST_CASE("model.tensor_forms: f64 is rounded to the nearest f32, also by quantizing, and one beyond it is refused") {
  TinyModel wide = tiny_model();
  TinyModel near = wide;
  auto& tensor = wide.tensor("blk.0.ffn_up.weight");
  store_as<double>(tensor, DType::f64);
  const double third = 1.0 / 3.0;
  const auto rounded = static_cast<float>(third);
  std::memcpy(tensor.bytes.data(), &third, sizeof(third));
  std::memcpy(near.tensor("blk.0.ffn_up.weight").bytes.data(), &rounded, sizeof(rounded));
  CHECK((contents(file_of(wide)) == contents(file_of(near))));
  CHECK((contents(quantized(file_of(wide), "q8_0")) == contents(quantized(file_of(near), "q8_0"))));
  const double beyond = 1e300;
  std::memcpy(tensor.bytes.data() + 40, &beyond, sizeof(beyond));
  try {
    static_cast<void>(contents(file_of(wide)));
    FAIL("accepted");
  } catch (const NumericError& error) {
    CHECK(std::string(error.what()).find("blk.0.ffn_up.weight") != std::string::npos);
    CHECK(std::string(error.what()).find("element 5") != std::string::npos);
  }
}

TEST_CASE("model.tensor_forms: a tensor for each expert loads as the stack of them, bit for bit") {
  for (const DType type : {DType::f32, DType::q8_0}) {
    const TinyModel merged = tiny_model({.type = type, .experts = 12});
    TinyModel older = older_mixture(merged);
    std::reverse(older.tensors.begin(), older.tensors.end());  // the order in the file means nothing
    const ModelFile file = file_of(older);
    CHECK(file.find("blk.0.ffn_gate.11.weight") != nullptr);
    CHECK((contents(file) == contents(file_of(merged))));
    CHECK(plan(file).total() == plan(file_of(merged)).total());
    CHECK(read_spec(file) == read_spec(file_of(merged)));
    const ModelFile usual = in_usual_forms(file);
    REQUIRE(usual.find("blk.1.ffn_down_exps.weight") != nullptr);
    CHECK(usual.find("blk.1.ffn_down_exps.weight")->shape() == "[64, 32, 12]");
    CHECK(usual.tensors().size() == file_of(merged).tensors().size());
  }
}

TEST_CASE("model.tensor_forms: experts that are missing or differ are refused by name") {
  const TinyModel older = older_mixture(tiny_model({.experts = 4}));
  TinyModel hole = older;
  hole.erase_tensor("blk.1.ffn_up.2.weight");
  CHECK(message_of(hole).find("blk.1.ffn_up.3.weight") != std::string::npos);
  TinyModel short_stack = older;  // as many as expert_count are needed
  short_stack.erase_tensor("blk.0.ffn_down.3.weight");
  CHECK(message_of(short_stack).find("blk.0.ffn_down_exps.weight") != std::string::npos);
  TinyModel shape = older;
  shape.set_tensor("blk.0.ffn_gate.1.weight", {32, 63});
  CHECK(message_of(shape).find("blk.0.ffn_gate.1.weight") != std::string::npos);
  TinyModel type = older;
  type.set_tensor("blk.0.ffn_gate.1.weight", {32, 64}, DType::f16);
  CHECK(message_of(type).find("blk.0.ffn_gate.1.weight") != std::string::npos);
  TinyModel twice = older;
  twice.set_tensor("blk.0.ffn_gate.01.weight", {32, 64});
  CHECK(message_of(twice).find("another tensor is also part 1") != std::string::npos);
  TinyModel far = older;
  far.set_tensor("blk.0.ffn_gate.9223372036854775807.weight", {32, 64});
  CHECK(message_of(far).find("part 4") != std::string::npos);
}

TEST_CASE("model.tensor_forms: the shares of RWKV-6's token shift in tensors of their own load as the fused ones") {
  const auto bytes = recurrent_gguf("rwkv6", DType::f32, 64);
  const ModelFile fused = read_gguf(owning_source(bytes));
  const auto unfused = [&](std::string_view left_out) {
    GgufWriter writer;
    writer.set_all(fused.metadata());
    for (const TensorInfo& tensor : fused.tensors()) {
      std::vector<std::byte> data(static_cast<std::size_t>(tensor.bytes));
      fused.read(tensor, data);
      const auto at = tensor.name.find("lerp_fused");
      if (at == std::string::npos) {
        writer.add_tensor(tensor.name, tensor.type,
                          {tensor.dims.begin(), tensor.dims.begin() + static_cast<std::ptrdiff_t>(tensor.rank)}, data);
        continue;
      }
      const std::string order = "wkvrg";
      for (std::size_t i = 0; i < order.size(); ++i)
        if (left_out != tensor.name.substr(0, at) + "lerp_" + order[i])
          writer.add_tensor(tensor.name.substr(0, at) + "lerp_" + order[i] + ".weight", tensor.type, {tensor.dims[0], 1, 1},
                            std::span(data).subspan(i * data.size() / 5, data.size() / 5));
    }
    return read_gguf(owning_source(writer.to_bytes()));
  };
  CHECK((contents(unfused("")) == contents(fused)));
  CHECK_THROWS_AS(contents(unfused("blk.1.time_mix_lerp_v")), FormatError);
  CHECK_THROWS_AS(contents(unfused("blk.1.time_mix_lerp_g")), FormatError);
}
