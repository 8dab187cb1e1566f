#include <skald/model/gguf/reader.hpp>

#include <atomic>
#include <filesystem>
#include <fstream>

#include <skald/core/error.hpp>

#include "samples.hpp"
#include "support/catch.hpp"
#include "support/gguf_raw.hpp"
#include "support/shared_data.hpp"

using namespace skald;
using namespace skald_test;

namespace {

void write_bytes(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(file.good());
}

/// Three shards: metadata in the first, two tensors in each of the others.
std::vector<std::vector<std::byte>> sample_shards(std::int32_t announced_tensors = 4) {
  std::vector<std::vector<std::byte>> result;
  for (std::uint16_t i = 0; i < 3; ++i) {
    GgufWriter writer;
    if (i == 0) writer.set("general.architecture", std::string("test"));
    writer.set("split.no", i);
    writer.set("split.count", std::uint16_t{3});
    writer.set("split.tensors.count", announced_tensors);
    if (i > 0) {
      writer.add_tensor("t" + std::to_string(2 * i), DType::f32, {8}, pattern(32, 2u * i));
      writer.add_tensor("t" + std::to_string(2 * i + 1), DType::q4_0, {32, 2}, pattern(36, 2u * i + 1));
    }
    result.push_back(writer.to_bytes());
  }
  return result;
}

std::string shard_name(int i) { return "model-0000" + std::to_string(i + 1) + "-of-00003.gguf"; }

void write_shards(const ScratchFolder& folder, const std::vector<std::vector<std::byte>>& shards) {
  for (int i = 0; i < 3; ++i) write_bytes(folder.file(shard_name(i)), shards[static_cast<std::size_t>(i)]);
}

template <class F>
std::string message_of(F&& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(!error.context().file.empty());
    return error.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& words) {
  INFO(text);
  CHECK(text.find(words) != std::string::npos);
  return text.find(words) != std::string::npos;
}

}  // namespace

TEST_CASE("model.gguf: opens every reference file, mapped and read alike") {
  for (const std::string folder : {"goldens/models", "goldens/quants/models", "goldens/tokenizers/vocab"}) {
    if (!have_shared(folder)) continue;
    std::size_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(shared_path(folder))) {
      if (entry.path().extension() != ".gguf") continue;
      ++files;
      INFO(entry.path().string());
      const auto mapped = open_gguf(entry.path().string());
      const auto read = open_gguf(entry.path().string(), {.map = false});
      CHECK(mapped.name() == entry.path().string());
      CHECK(mapped.metadata().size() > 0);
      CHECK(mapped.metadata().size() == read.metadata().size());
      CHECK(mapped.tensors().size() == read.tensors().size());
      for (const auto& tensor : mapped.tensors()) {
        CHECK(mapped.find(tensor.name) == &tensor);
        std::vector<std::byte> bytes(tensor.bytes);
        read.read(read.at(tensor.name), bytes);
        const auto view = mapped.view(tensor);
        REQUIRE(view.size() == bytes.size());
        CHECK(std::equal(view.begin(), view.end(), bytes.begin()));
      }
    }
    CHECK(files > 0);
  }
}

TEST_CASE("model.gguf: metadata of a reference file is as documented") {
  const std::string name = "goldens/tokenizers/vocab/ggml-vocab-llama-spm.gguf";
  if (!have_shared(name)) return;
  const auto file = open_gguf(shared_path(name));
  CHECK(file.metadata().get_string("tokenizer.ggml.model") == "llama");
  const auto& tokens = file.metadata().get_strings("tokenizer.ggml.tokens");
  CHECK(tokens.size() == 32000);
  CHECK(tokens[1] == "<s>");
  CHECK(file.metadata().get_array<float>("tokenizer.ggml.scores").size() == tokens.size());
  CHECK(file.metadata().get_array<std::int32_t>("tokenizer.ggml.token_type").size() == tokens.size());
  CHECK(file.tensors().empty());
}

TEST_CASE("model.gguf: version 2 is read like version 3") {
  const auto valid = sample_writer().to_bytes();
  auto raw = parse_raw(valid);
  raw.version = 2;
  const auto file = read_gguf(memory_source(raw.encode()));
  CHECK(file.metadata().get_u64("value.u8") == 200);
  CHECK(bytes_of_tensor(file, "b.weight") == pattern(272, 2));
}

TEST_CASE("model.gguf: other versions and byte orders are unsupported, and the error says which") {
  const auto valid = sample_writer().to_bytes();
  const auto with_version = [&](std::uint32_t version) {
    auto raw = parse_raw(valid);
    raw.version = version;
    return memory_source(raw.encode());
  };
  CHECK_THROWS_AS(read_gguf(with_version(1)), UnsupportedError);
  CHECK_THROWS_AS(read_gguf(with_version(4)), UnsupportedError);
  CHECK_THROWS_AS(read_gguf(with_version(0x03000000)), UnsupportedError);
  contains(message_of([&] { (void)read_gguf(with_version(1)); }), "found GGUF version 1, supported are 2 and 3");
  contains(message_of([&] { (void)read_gguf(with_version(0x03000000)); }), "big-endian");
  auto raw = parse_raw(valid);
  contains(message_of([&] {
             const auto bytes = sample_writer().to_bytes();
             (void)read_gguf(memory_source({bytes.begin(), bytes.begin() + 14}));
           }),
           "sample.gguf: offset 8: the file of 14 bytes ends within the tensor count of 8 bytes");
  raw.tensors[2].type = 36;
  contains(message_of([&] { (void)read_gguf(memory_source(raw.encode())); }), "'c.weight'");
  contains(message_of([&] { (void)read_gguf(memory_source(raw.encode())); }), "type 36");
  CHECK_THROWS_AS(read_gguf(memory_source(raw.encode())), UnsupportedError);
}

TEST_CASE("model.gguf: reads from an unaligned part of another source") {
  const auto bytes = sample_writer().to_bytes();
  const auto archive = Bytes(13, std::byte{0xEE}) + bytes + Bytes(7, std::byte{0xEE});
  const AnyByteSource slice(SliceSource(memory_source(archive), 13, bytes.size()), "inner.gguf");
  const auto file = read_gguf(slice);
  CHECK(file.name() == "inner.gguf");
  CHECK(bytes_of_tensor(file, "d.bias") == pattern(64, 4));
  const auto view = file.view(file.at("a.weight"));
  CHECK(std::vector<std::byte>(view.begin(), view.end()) == pattern(96, 1));
  CHECK(file.at("a.weight").offset % 32 == 0);
  // One byte less is one byte too few.
  CHECK_THROWS_AS(read_gguf({SliceSource(memory_source(archive), 13, bytes.size() - 1), "cut"}), FormatError);
}

TEST_CASE("model.gguf: asks a callback source for few, large blocks and never for tensor data") {
  GgufWriter writer;
  writer.set("words", MetadataArray{StringArray(std::vector<std::string>(50000, "some word"))});
  writer.set("numbers", MetadataArray{std::vector<float>(200000, 1.0f)});
  writer.add_tensor("big", DType::f32, {1024, 1024}, std::vector<std::byte>(4 << 20));
  const auto bytes = writer.to_bytes();
  std::atomic<std::uint64_t> calls{0};
  std::atomic<std::uint64_t> total{0};
  const AnyByteSource source(CallbackSource(bytes.size(),
                                            [&](std::uint64_t offset, std::span<std::byte> out) {
                                              ++calls;
                                              total += out.size();
                                              std::memcpy(out.data(), bytes.data() + offset, out.size());
                                            }),
                             "callback");
  const auto file = read_gguf(source);
  const auto header = bytes.size() - (4 << 20);
  CHECK(total <= header + 65536);
  CHECK(calls <= header / 65536 + 4);
  CHECK(file.metadata().get_array<float>("numbers") == std::vector<float>(200000, 1.0f));
  CHECK(file.view(file.at("big")).empty());
  CHECK(bytes_of_tensor(file, "big").size() == 4 << 20);
}

TEST_CASE("model.gguf: a sharded model is found from any of its files") {
  ScratchFolder folder;
  write_shards(folder, sample_shards());
  for (int i = 0; i < 3; ++i) {
    for (const bool map : {true, false}) {
      const auto file = open_gguf(folder.file(shard_name(i)), {.map = map});
      CHECK(file.name() == folder.file(shard_name(0)));
      CHECK(file.metadata().get_string("general.architecture") == "test");
      CHECK(file.tensors().size() == 4);
      CHECK(file.sources().size() == 3);
      CHECK(file.at("t4").source == 2);
      CHECK(bytes_of_tensor(file, "t2") == pattern(32, 2));
      CHECK(bytes_of_tensor(file, "t5") == pattern(36, 5));
    }
  }
}

TEST_CASE("model.gguf: shards may be given as sources in any order") {
  const auto shards = sample_shards();
  const auto file =
      read_gguf_shards({memory_source(shards[2], "c"), memory_source(shards[0], "a"), memory_source(shards[1], "b")});
  CHECK(file.name() == "a");
  CHECK(bytes_of_tensor(file, "t3") == pattern(36, 3));
  CHECK(read_gguf_shards({memory_source(sample_writer().to_bytes())}).tensors().size() == 4);
  CHECK_THROWS_AS(read_gguf_shards({}), UsageError);
}

TEST_CASE("model.gguf: shards that do not belong together are refused") {
  const auto shards = sample_shards();
  const auto read = [](std::vector<std::vector<std::byte>> parts) {
    return message_of([&] {
      std::vector<AnyByteSource> sources;
      for (std::size_t i = 0; i < parts.size(); ++i)
        sources.push_back(memory_source(parts[i], "part" + std::to_string(i)));
      (void)read_gguf_shards(std::move(sources));
    });
  };
  contains(read({shards[0]}), "the model has 3 shards, given are 1");
  contains(read({shards[0], shards[1]}), "the model has 3 shards, given are 2");
  contains(read({shards[0], shards[1], shards[1]}), "found shard 1, expected is shard 2");
  contains(read({shards[0], shards[1], sample_writer().to_bytes()}), "split.count");
  const auto wrong_total = sample_shards(5);
  contains(read({wrong_total[0], wrong_total[1], wrong_total[2]}), "found 5, but the shards hold 4 tensors");
  auto raw = parse_raw(shards[2]);
  raw.tensors[0].name = "t2";
  contains(read({shards[0], shards[1], raw.encode()}), "'t2': two tensors have this name");
  contains(read({shards[0], shards[1], raw.encode()}), "part2");
}

TEST_CASE("model.gguf: a missing or renamed shard is an error that says what is expected") {
  ScratchFolder folder;
  const auto shards = sample_shards();
  write_shards(folder, shards);
  std::filesystem::remove(folder.file(shard_name(1)));
  contains(message_of([&] { (void)open_gguf(folder.file(shard_name(0))); }), shard_name(1));
  CHECK_THROWS_AS(open_gguf(folder.file(shard_name(0))), IoError);
  write_bytes(folder.file("renamed.gguf"), shards[1]);
  contains(message_of([&] { (void)open_gguf(folder.file("renamed.gguf")); }), "-00002-of-00003.gguf");
  contains(message_of([&] { (void)read_gguf(memory_source(shards[1])); }), "split.count");
}

TEST_CASE("model.gguf: files that are not there or not files are I/O errors") {
  ScratchFolder folder;
  for (const bool map : {true, false}) {
    CHECK_THROWS_AS(open_gguf(folder.file("absent.gguf"), {.map = map}), IoError);
    CHECK_THROWS_AS(open_gguf(folder.path().string(), {.map = map}), IoError);
    CHECK_THROWS_AS(open_gguf("", {.map = map}), IoError);
  }
  write_bytes(folder.file("empty.gguf"), {});
  CHECK_THROWS_AS(open_gguf(folder.file("empty.gguf")), FormatError);
  CHECK_THROWS_AS(read_gguf(AnyByteSource()), FormatError);
}

TEST_CASE("model.gguf: a file that becomes shorter while open is an I/O error when read piecewise") {
  ScratchFolder folder;
  const auto path = folder.file("model.gguf");
  sample_writer().write_file(path);
  const auto file = open_gguf(path, {.map = false});
  std::filesystem::resize_file(path, file.at("d.bias").offset);
  CHECK_THROWS_AS(bytes_of_tensor(file, "d.bias"), IoError);
  CHECK(bytes_of_tensor(file, "a.weight") == pattern(96, 1));
}

TEST_CASE("model.file: wrong use and missing tensors are errors") {
  const auto file = read_gguf(memory_source(sample_writer().to_bytes()));
  CHECK(file.find("absent") == nullptr);
  CHECK(file.find("") == nullptr);
  contains(message_of([&] { (void)file.at("absent"); }), "tensor 'absent'");
  std::vector<std::byte> bytes(96);
  const auto& a = file.at("a.weight");
  CHECK_THROWS_AS(file.read(a, std::span(bytes).first(95)), UsageError);
  CHECK_THROWS_AS(file.read(a, 1, bytes), UsageError);
  CHECK_THROWS_AS(file.read(a, 97, std::span(bytes).first(0)), UsageError);
  file.read(a, 90, std::span(bytes).first(6));
  CHECK(std::equal(bytes.begin(), bytes.begin() + 6, pattern(96, 1).begin() + 90));
  auto foreign = a;
  foreign.source = 1;
  CHECK_THROWS_AS(file.read(foreign, bytes), UsageError);
  CHECK_NOTHROW(file.release(a));
  ModelFile empty;
  CHECK(empty.tensors().empty());
  CHECK_THROWS_AS(empty.at("x"), FormatError);
  auto moved = read_gguf(memory_source(sample_writer().to_bytes()));
  const ModelFile target = std::move(moved);
  CHECK(target.find("c.weight") == &target.tensors()[2]);
}

TEST_CASE("model.file: the constructor checks what every container must keep") {
  const auto source = memory_source(std::vector<std::byte>(64), "s");
  const TensorInfo good{.name = "t", .type = DType::f32, .dims = {4, 2, 1, 1}, .rank = 2, .offset = 32, .bytes = 32};
  const auto make = [&](std::vector<TensorInfo> tensors) {
    return ModelFile("s", Metadata("s"), std::move(tensors), {source});
  };
  CHECK(make({good}).tensor_bytes() == 32);
  CHECK_THROWS_AS(make({good, good}), FormatError);
  auto bad = good;
  bad.offset = 33;
  CHECK_THROWS_AS(make({bad}), FormatError);
  bad.offset = UINT64_MAX;
  CHECK_THROWS_AS(make({bad}), FormatError);
  bad = good;
  bad.bytes = 28;
  CHECK_THROWS_AS(make({bad}), FormatError);
  bad = good;
  bad.dims[3] = 0;
  CHECK_THROWS_AS(make({bad}), FormatError);
  bad = good;
  bad.source = 1;
  CHECK_THROWS_AS(make({bad}), UsageError);
}
