// Against files of an independent engine: decoding bit for bit, encoding by its error.
#include <cstring>

#include <nlohmann/json.hpp>

#include <skald/model/gguf/reader.hpp>

#include "quant_support.hpp"
#include "support/catch.hpp"
#include "support/shared_data.hpp"

using namespace skald_test;
using skald::DType;

namespace {

std::vector<std::byte> tensor_bytes(const skald::ModelFile& file, const skald::TensorInfo& tensor) {
  std::vector<std::byte> bytes(tensor.bytes);
  file.read(tensor, bytes);
  return bytes;
}

}  // namespace

TEST_CASE("quant.decode: equals the reference engine's values in every bit", "[quant]") {
  if (!have_shared("goldens/quants/models")) return;
  for (const char* name : {"F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ4_NL", "MXFP4", "TQ2_0",
                           "IQ3_XXS", "IQ2_XXS", "IQ2_S", "IQ1_S"}) {
    const std::string stem = std::string("quant-") + name;
    const auto description = nlohmann::json::parse(read_text(shared_path("goldens/quants/logits/" + stem + ".json")));
    const auto file = skald::open_gguf(shared_path("goldens/quants/models/" + stem + ".gguf"));
    REQUIRE(description["dequant"].size() == 2);
    for (const auto& entry : description["dequant"]) {
      const auto& tensor = file.at(entry["tensor"].get<std::string>());
      INFO(stem << " " << tensor.name);
      REQUIRE(tensor.type == skald::dtype_from_name(name));
      const auto expected = read_floats(shared_path("goldens/" + entry["file"].get<std::string>()));
      const auto values = decode(tensor.type, tensor_bytes(file, tensor));
      REQUIRE(expected.size() == entry["shape"][0].get<std::size_t>() * entry["shape"][1].get<std::size_t>());
      REQUIRE(entry["shape"][1].get<std::int64_t>() == tensor.columns());
      REQUIRE(values.size() >= expected.size());
      CHECK(std::memcmp(values.data(), expected.data(), expected.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("quant.encode: the error on a model's tensors is at most that of the reference engine's file", "[quant]") {
  if (!have_shared("goldens/quants/models")) return;
  const auto base = skald::open_gguf(shared_path("goldens/quants/models/quant-base.gguf"));
  for (const char* name : {"F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K"}) {
    const auto theirs_file =
        skald::open_gguf(shared_path(std::string("goldens/quants/models/quant-") + name + ".gguf"));
    const auto type = *skald::dtype_from_name(name);
    double ours = 0;
    double theirs = 0;
    std::size_t tensors = 0;
    for (const auto& tensor : theirs_file.tensors()) {
      if (tensor.type != type) continue;
      ++tensors;
      const auto& source = base.at(tensor.name);
      REQUIRE(source.type == skald::DType::f32);
      const auto x = decode(source.type, tensor_bytes(base, source));
      const double our_error = squared_error(x, decode(type, encode(type, x)));
      const double their_error = squared_error(x, decode(type, tensor_bytes(theirs_file, tensor)));
      INFO(name << " " << tensor.name << " ours " << our_error << " theirs " << their_error);
      CHECK(std::sqrt(our_error) <= 1.01 * std::sqrt(their_error));
      ours += our_error;
      theirs += their_error;
    }
    REQUIRE(tensors == 8);
    INFO(name << ": rmse relative to the reference " << std::sqrt(ours / theirs));
    // The simple formats follow the same rule; the search of the K formats measured 0.9777, 0.9528 and 0.9716, and
    // without its refinement of the block's scales 0.980, 0.958 and 0.973.
    const double limit = type == DType::q4_k ? 0.979 : type == DType::q5_k ? 0.954 : type == DType::q6_k ? 0.9725 : 1.0;
    CHECK(std::sqrt(ours / theirs) <= limit);
  }
}
