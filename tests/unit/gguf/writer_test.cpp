#include <skald/model/gguf/writer.hpp>

#include <fstream>

#include <skald/core/error.hpp>

#include "samples.hpp"
#include "support/catch.hpp"
#include "support/gguf_raw.hpp"
#include "support/shared_data.hpp"

using namespace skald;
using namespace skald_test;

TEST_CASE("model.gguf.writer: what it writes is what the reader finds, values, types and bytes") {
  for (const std::uint32_t alignment : {8u, 32u, 64u, 4096u, 65536u}) {
    INFO("alignment " << alignment);
    const auto writer = sample_writer(alignment);
    const auto bytes = writer.to_bytes();
    CHECK(bytes.size() == writer.file_bytes());
    const auto file = read_gguf(memory_source(bytes));
    CHECK(file.metadata().get_string("value.string") == "gr\xC3\xBC\xC3\x9F \xF0\x9F\x98\x80 dich");
    CHECK(file.metadata().get_i64("value.i64") == INT64_MIN);
    CHECK(file.metadata().get_f64("value.f64") == 0.1);
    CHECK(file.metadata().get_array<bool>("array.bool") == std::vector<bool>{true, false, true});
    CHECK(type_name(file.metadata().at("array.nested")) == "array of array of i8");
    REQUIRE(file.tensors().size() == 4);
    const auto& c = file.at("c.weight");
    CHECK(c.type == DType::f16);
    CHECK(c.rank == 4);
    CHECK(c.dims == std::array<std::int64_t, 4>{5, 1, 2, 3});
    CHECK(c.columns() == 5);
    CHECK(c.rows() == 6);
    CHECK(c.elements() == 30);
    CHECK(c.shape() == "[5, 1, 2, 3]");
    CHECK(c.offset % alignment == 0);
    CHECK(bytes_of_tensor(file, "a.weight") == pattern(96, 1));
    CHECK(bytes_of_tensor(file, "b.weight") == pattern(272, 2));
    CHECK(bytes_of_tensor(file, "c.weight") == pattern(60, 3));
    CHECK(bytes_of_tensor(file, "d.bias") == pattern(64, 4));
    CHECK(file.tensor_bytes() == 96 + 272 + 60 + 64);

    GgufWriter again(alignment);
    again.set_all(file.metadata());
    for (const auto& tensor : file.tensors())
      again.add_tensor(tensor.name, tensor.type, {tensor.dims.begin(), tensor.dims.begin() + tensor.rank},
                       [&](std::uint64_t offset, std::span<std::byte> out) { file.read(tensor, offset, out); });
    CHECK(again.to_bytes() == bytes);
  }
}

TEST_CASE("model.gguf.writer: reference files survive reading and writing byte for byte") {
  for (const std::string name : {"goldens/models/llama2-spm.gguf", "goldens/models/gpt-oss-mxfp4.gguf",
                                 "goldens/quants/models/quant-Q4_K_M-mix.gguf"}) {
    if (!have_shared(name)) continue;
    INFO(name);
    const auto file = open_gguf(shared_path(name));
    GgufWriter writer;
    writer.set_all(file.metadata());
    for (const auto& tensor : file.tensors())
      writer.add_tensor(tensor.name, tensor.type, {tensor.dims.begin(), tensor.dims.begin() + tensor.rank},
                        file.view(tensor));
    const auto bytes = writer.to_bytes();
    const auto original = read_text(shared_path(name));
    CHECK(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == original);
  }
}

TEST_CASE("model.gguf.writer: asks the provider for whole rows in order") {
  GgufWriter writer;
  std::vector<std::pair<std::uint64_t, std::size_t>> asked;
  writer.add_tensor("big", DType::f32, {1000, 700}, [&](std::uint64_t offset, std::span<std::byte> out) {
    asked.emplace_back(offset, out.size());
    std::fill(out.begin(), out.end(), std::byte{1});
  });
  const auto file = read_gguf(memory_source(writer.to_bytes()));
  CHECK(asked.size() > 1);
  std::uint64_t next = 0;
  for (const auto& [offset, size] : asked) {
    CHECK(offset == next);
    CHECK(size % 4000 == 0);
    next += size;
  }
  CHECK(next == 2800000);
  CHECK(bytes_of_tensor(file, "big") == std::vector<std::byte>(2800000, std::byte{1}));
}

TEST_CASE("model.gguf.writer: a file appears whole or not at all") {
  ScratchFolder folder;
  const auto path = folder.file("model.gguf");
  sample_writer().write_file(path);
  CHECK(open_gguf(path).tensors().size() == 4);
  const auto before = read_text(path);

  GgufWriter broken;
  broken.add_tensor("t", DType::f32, {4}, [](std::uint64_t, std::span<std::byte>) { throw std::runtime_error("no"); });
  CHECK_THROWS_AS(broken.write_file(path), std::runtime_error);
  CHECK(read_text(path) == before);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);

  CHECK_THROWS_AS(sample_writer().write_file(folder.file("absent/model.gguf")), IoError);
  std::filesystem::create_directory(folder.file("taken"));
  CHECK_THROWS_AS(sample_writer().write_file(folder.file("taken")), IoError);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 2);
}

TEST_CASE("model.gguf.writer: refuses what the reader would refuse") {
  CHECK_THROWS_AS(GgufWriter(0), UsageError);
  CHECK_THROWS_AS(GgufWriter(48), UsageError);
  CHECK_THROWS_AS(GgufWriter(1u << 17), UsageError);
  GgufWriter writer;
  CHECK_THROWS_AS(writer.set("", true), UsageError);
  CHECK_THROWS_AS(writer.set("a\xFF", true), UsageError);
  CHECK_THROWS_AS(writer.set("k", std::string("\xFF")), UsageError);
  CHECK_THROWS_AS(writer.set("k", MetadataArray{StringArray(std::vector<std::string>{"\xC0\x80"})}), UsageError);
  CHECK_THROWS_AS(writer.set("general.alignment", std::uint32_t{32}), UsageError);
  MetadataArray nested{std::vector<std::uint8_t>{1}};
  for (int i = 0; i < 3; ++i) nested = MetadataArray{std::vector<MetadataArray>{nested}};
  CHECK_NOTHROW(writer.set("k", nested));
  CHECK_THROWS_AS(writer.set("k", MetadataArray{std::vector<MetadataArray>{nested}}), UsageError);

  const std::vector<std::byte> bytes(128);
  CHECK_THROWS_AS(writer.add_tensor("", DType::f32, {32}, bytes), UsageError);
  CHECK_THROWS_AS(writer.add_tensor(std::string(65, 'n'), DType::f32, {32}, bytes), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("t", DType::f32, {}, bytes), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("t", DType::f32, {32, 0}, bytes), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("t", DType::f32, {32, 1, 1, 1, 1}, bytes), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("t", DType::q8_0, {33}, bytes), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("t", DType::f32, {INT64_MAX, 4}, bytes), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("t", DType::f32, {31}, bytes), UsageError);
  CHECK_THROWS_AS(writer.add_tensor("t", static_cast<DType>(4), {32}, bytes), UnsupportedError);
  // A refused tensor leaves no trace.
  CHECK_NOTHROW(writer.add_tensor("t", DType::f32, {32}, bytes));
  CHECK_THROWS_AS(writer.add_tensor("t", DType::f32, {32}, bytes), UsageError);
  CHECK(read_gguf(memory_source(writer.to_bytes())).tensors().size() == 1);
}
