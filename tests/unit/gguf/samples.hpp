#pragma once

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>

namespace skald_test {

/// Bytes that depend on position and seed.
inline std::vector<std::byte> pattern(std::size_t size, unsigned seed) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>((i * 131 + seed * 17 + i / 251) & 0xFF);
  return bytes;
}

/// A writer with a value of every type and tensors of several types and ranks; alignment 32 and data that ends on it.
inline skald::GgufWriter sample_writer(std::uint32_t alignment = 32) {
  using namespace skald;
  GgufWriter writer(alignment);
  writer.set("general.architecture", std::string("test"));
  writer.set("value.u8", std::uint8_t{200});
  writer.set("value.i8", std::int8_t{-100});
  writer.set("value.u16", std::uint16_t{60000});
  writer.set("value.i16", std::int16_t{-30000});
  writer.set("value.u32", std::uint32_t{4000000000});
  writer.set("value.i32", std::int32_t{-2000000000});
  writer.set("value.u64", std::uint64_t{1} << 63);
  writer.set("value.i64", INT64_MIN);
  writer.set("value.f32", 0.1f);
  writer.set("value.f64", 0.1);
  writer.set("value.bool", true);
  writer.set("value.string", std::string("gr\xC3\xBC\xC3\x9F \xF0\x9F\x98\x80 dich"));
  writer.set("array.u8", MetadataArray{std::vector<std::uint8_t>{1, 255}});
  writer.set("array.i32", MetadataArray{std::vector<std::int32_t>{-1, 2, 3}});
  writer.set("array.u64", MetadataArray{std::vector<std::uint64_t>{7, UINT64_MAX}});
  writer.set("array.f32", MetadataArray{std::vector<float>{0.5f, -2.25f}});
  writer.set("array.f64", MetadataArray{std::vector<double>{0.25, 1e300}});
  writer.set("array.bool", MetadataArray{std::vector<bool>{true, false, true}});
  writer.set("array.string", MetadataArray{StringArray(std::vector<std::string>{"one", "", "three"})});
  writer.set("array.empty", MetadataArray{std::vector<std::uint16_t>{}});
  writer.set("array.nested", MetadataArray{std::vector<MetadataArray>{{std::vector<std::int8_t>{1, -2}},
                                                                      {StringArray(std::vector<std::string>{"in"})}}});
  writer.add_tensor("a.weight", DType::f32, {8, 3}, pattern(8 * 3 * 4, 1));
  writer.add_tensor("b.weight", DType::q8_0, {64, 2, 2}, pattern(2 * 34 * 4, 2));
  writer.add_tensor("c.weight", DType::f16, {5, 1, 2, 3}, pattern(5 * 6 * 2, 3));
  writer.add_tensor("d.bias", DType::f32, {16}, pattern(64, 4));
  return writer;
}

/// A source in memory that owns its bytes.
inline skald::AnyByteSource memory_source(std::vector<std::byte> bytes, std::string name = "sample.gguf") {
  struct Owned {
    std::shared_ptr<const std::vector<std::byte>> bytes;
    [[nodiscard]] std::uint64_t size() const { return bytes->size(); }
    void read(std::uint64_t offset, std::span<std::byte> out) const {
      std::memcpy(out.data(), bytes->data() + offset, out.size());
    }
    [[nodiscard]] std::span<const std::byte> view(std::uint64_t offset, std::size_t length) const {
      return std::span(*bytes).subspan(static_cast<std::size_t>(offset), length);
    }
  };
  return {Owned{std::make_shared<const std::vector<std::byte>>(std::move(bytes))}, std::move(name)};
}

/// A folder that goes away with the object.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "skald_test_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// The tensor's bytes, copied.
inline std::vector<std::byte> bytes_of_tensor(const skald::ModelFile& file, const std::string& name) {
  std::vector<std::byte> bytes(file.at(name).bytes);
  file.read(file.at(name), bytes);
  return bytes;
}

}  // namespace skald_test
