#include <skald/model/safetensors/reader.hpp>

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include <skald/core/error.hpp>
#include <skald/model/safetensors/writer.hpp>

#include "support/catch.hpp"
#include "support/safetensors_raw.hpp"

namespace {

using namespace skald;

std::vector<std::byte> bytes_of(const std::vector<float>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

AnyByteSource source_of(const std::vector<std::byte>& bytes, const std::string& name = "input") {
  return {SpanSource(bytes), name};
}

std::string refusal(const std::vector<std::byte>& bytes) {
  try {
    static_cast<void>(read_safetensors(source_of(bytes)));
  } catch (const Error& error) {
    CHECK(error.context().file == "input");
    CHECK(error.context().offset.has_value());
    return error.what();
  }
  return "accepted";
}

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("skald-safetensors-" + std::to_string(::getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name, std::ios::binary) << text;
  }
  [[nodiscard]] std::string of(const std::string& name) const { return (path / name).string(); }
};

TEST_CASE("safetensors.reader: gives back what the writer wrote") {
  SafetensorsWriter writer;
  writer.set_metadata("format", "pt");
  const std::vector<float> values{1.5F, -2.0F, 0.25F, 8.0F, 0.0F, -0.5F};
  writer.add_tensor("b \"quoted\"", SafetensorsType::f32, {2, 3}, bytes_of(values));
  writer.add_tensor("empty", SafetensorsType::bf16, {0, 4}, std::span<const std::byte>());
  writer.add_tensor("scalar", SafetensorsType::i64, {}, std::vector<std::byte>(8, std::byte{7}));
  const auto bytes = writer.to_bytes();
  CHECK(bytes.size() % 8 == 0);
  const SafetensorsFile file = read_safetensors(source_of(bytes));
  REQUIRE(file.tensors().size() == 3);
  const auto& tensor = file.at("b \"quoted\"");
  CHECK(tensor.shape == std::vector<std::int64_t>{2, 3});
  CHECK(tensor.type == SafetensorsType::f32);
  CHECK(file.read_floats(tensor) == values);
  CHECK(file.at("empty").bytes == 0);
  CHECK(file.at("empty").elements() == 0);
  CHECK(file.at("scalar").elements() == 1);
  CHECK(file.at("scalar").bytes == 8);
  REQUIRE(file.metadata().size() == 1);
  CHECK(file.metadata()[0] == std::pair<std::string, std::string>{"format", "pt"});
  CHECK(file.find("a") == nullptr);
  CHECK_THROWS_AS(file.at("a"), FormatError);
}

TEST_CASE("safetensors.reader: reads halves, bfloats and doubles as floats") {
  SafetensorsWriter writer;
  const std::uint16_t half = 0x3E00;      // 1.5
  const std::uint16_t brain = 0xC000;     // -2
  const double wide = 0.1;
  writer.add_tensor("h", SafetensorsType::f16, {1}, std::as_bytes(std::span(&half, 1)));
  writer.add_tensor("b", SafetensorsType::bf16, {1}, std::as_bytes(std::span(&brain, 1)));
  writer.add_tensor("d", SafetensorsType::f64, {1}, std::as_bytes(std::span(&wide, 1)));
  writer.add_tensor("i", SafetensorsType::i8, {1}, std::vector<std::byte>(1));
  const auto bytes = writer.to_bytes();
  const SafetensorsFile file = read_safetensors(source_of(bytes));
  CHECK(file.read_floats(file.at("h")) == std::vector<float>{1.5F});
  CHECK(file.read_floats(file.at("b")) == std::vector<float>{-2.0F});
  CHECK(file.read_floats(file.at("d")) == std::vector<float>{0.1F});
  CHECK_THROWS_AS(file.read_floats(file.at("i")), FormatError);
}

TEST_CASE("safetensors.reader: accepts entries in any order and an empty header") {
  const auto swapped = skald_test::raw_safetensors(
      R"({"b":{"data_offsets":[4,6],"shape":[1],"dtype":"F16"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   )", 6);
  const SafetensorsFile file = read_safetensors(source_of(swapped));
  REQUIRE(file.tensors().size() == 2);
  CHECK(file.tensors()[0].name == "a");
  CHECK(file.tensors()[1].name == "b");
  const auto empty = skald_test::raw_safetensors("{}", 0);
  CHECK(read_safetensors(source_of(empty)).tensors().empty());
}

TEST_CASE("safetensors.reader: refuses every break of the format, naming what is wrong") {
  for (const auto& defect : skald_test::safetensors_defects()) {
    INFO(defect.what);
    const auto text = refusal(skald_test::raw_safetensors(defect.header, defect.data_bytes, defect.length));
    INFO(text);
    CHECK(text.find(defect.message) != std::string::npos);
  }
}

TEST_CASE("safetensors.reader: refuses every truncation of a file") {
  SafetensorsWriter writer;
  writer.add_tensor("a", SafetensorsType::f32, {2}, bytes_of({1, 2}));
  writer.add_tensor("b", SafetensorsType::f32, {1}, bytes_of({3}));
  auto bytes = writer.to_bytes();
  while (!bytes.empty()) {
    bytes.pop_back();
    CHECK(refusal(bytes) != "accepted");
  }
}

TEST_CASE("safetensors.reader: survives every changed byte of a header") {
  SafetensorsWriter writer;
  writer.set_metadata("k", "v");
  writer.add_tensor("a", SafetensorsType::f32, {2}, bytes_of({1, 2}));
  const auto valid = writer.to_bytes();
  for (std::size_t at = 0; at + 8 < valid.size(); ++at)
    for (int bit = 0; bit < 8; ++bit) {
      auto bytes = valid;
      bytes[at] ^= static_cast<std::byte>(1 << bit);
      static_cast<void>(refusal(bytes));  // refused with place, or harmless
    }
}

TEST_CASE("safetensors.reader: does not recurse into deep nesting") {
  const std::string deep(100000, '{');
  CHECK(refusal(skald_test::raw_safetensors(deep, 0)) != "accepted");
  const std::string arrays = R"({"a":)" + std::string(100000, '[');
  CHECK(refusal(skald_test::raw_safetensors(arrays, 0)) != "accepted");
}

TEST_CASE("safetensors.shards: an index must name every tensor and its file") {
  SafetensorsWriter first;
  first.add_tensor("a", SafetensorsType::f32, {1}, bytes_of({1}));
  SafetensorsWriter second;
  second.add_tensor("b", SafetensorsType::f32, {1}, bytes_of({2}));
  const Folder folder;
  first.write_file(folder.of("one.safetensors"));
  second.write_file(folder.of("two.safetensors"));
  const auto open = [&](const std::string& map) {
    folder.write("model.safetensors.index.json", map);
    return open_safetensors(folder.path.string());
  };
  const auto refused = [&](const std::string& map, const std::string& part) {
    try {
      static_cast<void>(open(map));
    } catch (const Error& error) {
      INFO(error.what());
      CHECK(std::string(error.what()).find(part) != std::string::npos);
      return;
    }
    FAIL_CHECK("accepted: " << map);
  };
  const auto file = open(R"({"metadata":{"total_size":8},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  CHECK(file.read_floats(file.at("a")) == std::vector<float>{1});
  CHECK(file.read_floats(file.at("b")) == std::vector<float>{2});
  CHECK(file.at("b").source == 1);

  refused(R"({"weight_map":{"a":"one.safetensors"}, "weight_map":{}})", "twice");
  refused(R"({"weight_map":{"a":"two.safetensors","b":"one.safetensors"}})", "'a'");
  refused(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}})", "tensor 'c'");
  refused(R"({"weight_map":{"a":"one.safetensors","x":"two.safetensors"}})", "tensor 'b'");
  refused(R"({"weight_map":{"a":"../one.safetensors"}})", "not the name of a file");
  refused(R"({"weight_map":{"a":"/etc/passwd"}})", "not the name of a file");
  refused(R"({"weight_map":{"a":1}})", "a number");
  refused(R"({"weight_map":[]})", "weight_map");
  refused(R"({"weight_map":{"a":"three.safetensors"}})", "three.safetensors");
  refused("nonsense", "offset");
}

TEST_CASE("safetensors.writer: refuses what the format cannot hold") {
  SafetensorsWriter writer;
  writer.add_tensor("a", SafetensorsType::f32, {1}, bytes_of({1}));
  CHECK_THROWS_AS(writer.add_tensor("a", SafetensorsType::f32, {1}, bytes_of({1})), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("__metadata__", SafetensorsType::f32, {1}, bytes_of({1})), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("b", SafetensorsType::f32, {-1}, bytes_of({1})), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("b", SafetensorsType::f32, {2}, bytes_of({1})), UsageError);
  writer.set_metadata("k", "v");
  CHECK_THROWS_AS(writer.set_metadata("k", "w"), UsageError);
}

}  // namespace
