#pragma once

// Broken variants of a valid GGUF file. Every one must be refused with an error that names the place.

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include <skald/core/dtype.hpp>

#include "support/gguf_raw.hpp"

namespace skald_test {

struct Defect {
  std::string name;
  Bytes bytes;
};

/// Collects variants: each `add` starts from a fresh copy of the valid file. Other parts make their own lists of
/// defects (hyper-parameters, vocabularies) with this.
class DefectMaker {
 public:
  explicit DefectMaker(std::span<const std::byte> valid)
      : valid_(valid.begin(), valid.end()), base_(parse_raw(valid)) {}

  [[nodiscard]] const RawGguf& base() const { return base_; }
  [[nodiscard]] const Bytes& valid() const { return valid_; }
  /// A variant made by changing the parts.
  void add(std::string name, const std::function<void(RawGguf&)>& change) {
    RawGguf parts = base_;
    change(parts);
    defects_.push_back({std::move(name), parts.encode()});
  }
  /// A variant with another (or a new) metadata value.
  void add_value(std::string name, const std::string& key, std::uint32_t type, const Bytes& value) {
    add(std::move(name), [&](RawGguf& g) { g.set(key, type, value); });
  }
  void add_bytes(std::string name, Bytes bytes) { defects_.push_back({std::move(name), std::move(bytes)}); }
  [[nodiscard]] std::vector<Defect> take() { return std::move(defects_); }

 private:
  Bytes valid_;
  RawGguf base_;
  std::vector<Defect> defects_{};
};

namespace defect_detail {

inline constexpr std::uint64_t huge = ~std::uint64_t{0};
inline const std::string extra = "test.extra";

inline Bytes prefix(const Bytes& bytes, std::size_t size) {
  return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(std::min(size, bytes.size()))};
}

inline std::uint64_t data_bytes(const RawTensor& tensor) {
  std::uint64_t elements = 1;
  for (const auto extent : tensor.dims) elements *= extent;
  const auto& info = skald::dtype_info(static_cast<skald::DType>(tensor.type));
  return elements / info.block_elements * info.block_bytes;
}

inline void preamble(DefectMaker& make) {
  const auto& valid = make.valid();
  for (const std::size_t size : {0, 1, 3, 4, 7, 8, 15, 16, 23, 24})
    make.add_bytes("file of " + std::to_string(size) + " bytes", prefix(valid, size));
  const auto magic = [&](const char* name, std::uint32_t value) {
    make.add(name, [&](RawGguf& g) { g.magic = value; });
  };
  magic("magic zero", 0);
  magic("magic lower case", 0x66756767);
  magic("magic reversed", 0x47475546);
  magic("magic of another container", 0x6C6D6767);
  for (const std::uint32_t version : {0u, 1u, 4u, 0x7FFFFFFFu, 0xFFFFFFFFu, 0x03000000u, 0x02000000u})
    make.add("version " + std::to_string(version), [&](RawGguf& g) { g.version = version; });
  for (const std::uint64_t count : {huge, std::uint64_t{1} << 63, std::uint64_t{1} << 32, std::uint64_t{65537}}) {
    make.add("tensor count " + std::to_string(count), [&](RawGguf& g) { g.tensor_count = count; });
    make.add("key count " + std::to_string(count), [&](RawGguf& g) { g.key_count = count; });
  }
  make.add("tensor count one too many", [](RawGguf& g) { g.tensor_count = g.tensors.size() + 1; });
  make.add("key count one too many", [](RawGguf& g) { g.key_count = g.keys.size() + 1; });
  make.add("key count one too few", [](RawGguf& g) { g.key_count = g.keys.size() - 1; });
  make.add("key count zero", [](RawGguf& g) { g.key_count = 0; });
  make.add("counts exchanged",
           [](RawGguf& g) { g.key_count = g.tensors.size() + 1000, g.tensor_count = g.keys.size(); });
}

inline void keys(DefectMaker& make) {
  for (const std::uint64_t length : {huge, std::uint64_t{1} << 63, std::uint64_t{65536}, std::uint64_t{0}})
    make.add("key length " + std::to_string(length), [&](RawGguf& g) { g.keys[0].key_length = length; });
  make.add("key empty", [](RawGguf& g) { g.keys[0].key.clear(); });
  make.add("key of 65536 bytes", [](RawGguf& g) { g.keys[0].key.assign(65536, 'k'); });
  make.add("key twice", [](RawGguf& g) { g.keys.push_back(g.keys[0]); });
  make.add("key twice with another type", [](RawGguf& g) {
    g.keys.push_back({g.keys[0].key, raw_f32, bytes_of(1.0f), {}});
  });
  const std::pair<const char*, std::string> bad_text[] = {{"lone byte FF", "a\xFF"},
                                                          {"lone continuation", "a\x80"},
                                                          {"overlong zero", "a\xC0\x80"},
                                                          {"surrogate", "a\xED\xA0\x80"},
                                                          {"cut sequence", "a\xE2\x82"},
                                                          {"beyond U+10FFFF", "a\xF4\x90\x80\x80"},
                                                          {"lead byte F5", "a\xF5\x80\x80\x80"}};
  for (const auto& bad : bad_text) {
    make.add(std::string("key bad UTF-8: ") + bad.first, [&](RawGguf& g) { g.keys[0].key = bad.second; });
    make.add_value(std::string("string bad UTF-8: ") + bad.first, extra, raw_string, gguf_string(bad.second));
  }
  make.add("key with zero byte", [](RawGguf& g) { g.keys[0].key = std::string("a\0b", 3); });
  for (const std::uint32_t type : {13u, 14u, 255u, 0x80000000u, 0xFFFFFFFFu})
    make.add("value type " + std::to_string(type), [&](RawGguf& g) { g.keys[0].type = type; });
  for (const std::uint64_t length : {huge, std::uint64_t{1} << 63, std::uint64_t{1} << 40, std::uint64_t{1} << 31})
    make.add_value("string length " + std::to_string(length), extra, raw_string, gguf_string("text", length));
  make.add("string longer than the file",
           [](RawGguf& g) { g.set(extra, raw_string, gguf_string("text", g.encode().size())); });
  for (const std::uint8_t value : {2, 128, 255})
    make.add_value("bool " + std::to_string(value), extra, raw_bool, bytes_of(value));
}

inline void arrays(DefectMaker& make) {
  const auto array = [&](const std::string& name, std::uint32_t type, std::uint64_t count, const Bytes& elements) {
    make.add_value(name, extra, raw_array, bytes_of(type, count) + elements);
  };
  for (const std::uint32_t type : {13u, 99u, 0xFFFFFFFFu})
    array("array of type " + std::to_string(type), type, 1, bytes_of(std::uint64_t{1}));
  array("array of type 13 without elements", 13, 0, {});
  for (std::uint32_t type = raw_u8; type <= raw_f64; ++type)
    array("array of type " + std::to_string(type) + " with 2^64-1 elements", type, huge, bytes_of(std::uint64_t{0}));
  array("array bytes wrap to 8", raw_u64, (std::uint64_t{1} << 61) + 1, bytes_of(std::uint64_t{1}));
  array("array bytes wrap to 4", raw_u32, (std::uint64_t{1} << 62) + 1, bytes_of(std::uint32_t{1}));
  array("array of 2^40 u8", raw_u8, std::uint64_t{1} << 40, {});
  array("array of 2^31 f32", raw_f32, std::uint64_t{1} << 31, {});
  array("array of 2^60 strings", raw_string, std::uint64_t{1} << 60, {});
  array("array of 2^28 strings", raw_string, std::uint64_t{1} << 28, {});
  array("array with a string of 2^64-1 bytes", raw_string, 2, gguf_string("ok") + gguf_string("x", huge));
  array("array with a string of 2^40 bytes", raw_string, 2,
        gguf_string("ok") + gguf_string("x", std::uint64_t{1} << 40));
  array("array with a bad UTF-8 string", raw_string, 2, gguf_string("ok") + gguf_string("\xC3("));
  array("array with bool 2", raw_bool, 2, bytes_of(std::uint8_t{1}, std::uint8_t{2}));
  for (const int depth : {5, 6, 64, 20000}) {
    Bytes nested;
    for (int i = 1; i < depth; ++i) nested = std::move(nested) + bytes_of(std::uint32_t{raw_array}, std::uint64_t{1});
    nested = std::move(nested) + bytes_of(std::uint32_t{raw_u8}, std::uint64_t{0});
    make.add_value("arrays nested " + std::to_string(depth) + " deep", extra, raw_array, nested);
  }
  array("nested array with 2^60 elements", raw_array, std::uint64_t{1} << 60,
        bytes_of(std::uint32_t{raw_u8}, std::uint64_t{0}));
  Bytes many;
  for (int i = 0; i < 70000; ++i) many = std::move(many) + bytes_of(std::uint32_t{raw_u8}, std::uint64_t{0});
  array("70000 empty arrays in an array", raw_array, 70000, many);
  array("wide arrays nested with huge counts", raw_array, 2,
        bytes_of(std::uint32_t{raw_array}, std::uint64_t{1} << 59, std::uint32_t{raw_array}, huge));
}

inline void alignment(DefectMaker& make) {
  const std::string key = "general.alignment";
  for (const std::uint32_t value : {0u, 1u, 3u, 4u, 7u, 24u, 33u, 131072u, 0x80000000u, 0xFFFFFFFFu})
    make.add_value("alignment " + std::to_string(value), key, raw_u32, bytes_of(value));
  make.add_value("alignment of type u64", key, raw_u64, bytes_of(std::uint64_t{32}));
  make.add_value("alignment of type i32", key, raw_i32, bytes_of(std::int32_t{32}));
  make.add_value("alignment of type u8", key, raw_u8, bytes_of(std::uint8_t{32}));
  make.add_value("alignment of type f32", key, raw_f32, bytes_of(32.0f));
  make.add_value("alignment of type string", key, raw_string, gguf_string("32"));
  make.add_value("alignment of type array", key, raw_array,
                 bytes_of(std::uint32_t{raw_u32}, std::uint64_t{1}, std::uint32_t{32}));
  make.add("alignment larger than the data", [&](RawGguf& g) {
    g.set(key, raw_u32, bytes_of(std::uint32_t{65536}));  // the data still starts at the old alignment
    g.tensors.resize(1);
    g.data.resize(data_bytes(g.tensors[0]));
    g.data.resize(std::min<std::size_t>(g.data.size(), 4096));
  });
}

inline void tensor_names(DefectMaker& make) {
  for (const std::uint64_t length : {huge, std::uint64_t{1} << 63, std::uint64_t{65}, std::uint64_t{1} << 20})
    make.add("tensor name length " + std::to_string(length), [&](RawGguf& g) { g.tensors[0].name_length = length; });
  make.add("tensor name empty", [](RawGguf& g) { g.tensors[0].name.clear(); });
  make.add("tensor name of 65 bytes", [](RawGguf& g) { g.tensors[0].name.assign(65, 'n'); });
  make.add("tensor name with zero byte", [](RawGguf& g) { g.tensors[0].name = std::string("a\0b", 3); });
  make.add("tensor name bad UTF-8", [](RawGguf& g) { g.tensors[0].name = "a\xFE"; });
  make.add("tensor name twice", [](RawGguf& g) { g.tensors[1].name = g.tensors[0].name; });
}

inline void tensor_shapes(DefectMaker& make) {
  const auto tensor = [&](const std::string& name, const std::function<void(RawTensor&)>& change) {
    make.add(name, [&](RawGguf& g) { change(g.tensors[0]); });
  };
  for (const std::uint32_t rank : {0u, 5u, 6u, 255u, 0x80000000u, 0xFFFFFFFFu})
    tensor("rank " + std::to_string(rank), [&](RawTensor& t) { t.rank = rank; });
  tensor("rank 5 with five dims", [](RawTensor& t) { t.rank = 5, t.dims.assign(5, 1); });
  for (std::size_t i = 0; i < 4; ++i)
    tensor("dim " + std::to_string(i) + " zero", [&](RawTensor& t) {
      t.rank = 4, t.dims.resize(4, 1);
      t.dims[i] = 0;
    });
  for (const std::uint64_t extent : {huge, std::uint64_t{1} << 63, std::uint64_t{1} << 62, std::uint64_t{1} << 40})
    tensor("dim " + std::to_string(extent), [&](RawTensor& t) { t.dims[0] = extent; });
  const auto dims = [&](const std::string& name, std::vector<std::uint64_t> values) {
    tensor(name,
           [&](RawTensor& t) { t.type = 0, t.rank = static_cast<std::uint32_t>(values.size()), t.dims = values; });
  };
  dims("dims whose product is 2^64", {std::uint64_t{1} << 32, std::uint64_t{1} << 32});
  dims("dims whose product wraps to 1", {274177, 67280421310721});
  dims("dims whose product is 2^63", {std::uint64_t{1} << 21, std::uint64_t{1} << 21, std::uint64_t{1} << 21});
  dims("dims whose bytes are 2^64", {std::uint64_t{1} << 31, std::uint64_t{1} << 31});
  dims("dims whose bytes wrap to 4", {(std::uint64_t{1} << 62) + 1});
  dims("four dims of 65536", {65536, 65536, 65536, 65536});
  dims("dims larger than the file", {1024, 1024, 1024});
  for (const std::uint32_t type : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u, 40u, 64u, 255u, 0x80000000u, 0xFFFFFFFFu})
    tensor("tensor type " + std::to_string(type), [&](RawTensor& t) { t.type = type; });
  for (const std::uint32_t type : {2u, 8u, 12u, 14u, 39u})
    tensor("row of 33 elements of type " + std::to_string(type), [&](RawTensor& t) {
      t.type = type, t.rank = 2, t.dims = {33, 1};
    });
  tensor("row of 32 elements of a type with blocks of 256",
         [](RawTensor& t) { t.type = 12, t.rank = 1, t.dims = {32}; });
}

inline void tensor_places(DefectMaker& make) {
  for (const std::uint64_t shift : {1, 4, 31})
    make.add("offset unaligned by " + std::to_string(shift), [&](RawGguf& g) { g.tensors[0].offset += shift; });
  for (const std::uint64_t offset : {huge - 31, std::uint64_t{1} << 63, std::uint64_t{1} << 40})
    make.add("offset " + std::to_string(offset), [&](RawGguf& g) { g.tensors[0].offset = offset / 32 * 32; });
  make.add("offset at the end of the data", [](RawGguf& g) { g.tensors[0].offset = (g.data.size() + 31) / 32 * 32; });
  make.add("offset that wraps to the start of the file",
           [](RawGguf& g) { g.tensors[0].offset = (~std::uint64_t{0} - data_bytes(g.tensors[0])) / 32 * 32; });
  make.add("two tensors at one offset", [](RawGguf& g) { g.tensors[1].offset = g.tensors[0].offset; });
  make.add("all tensors at offset 0", [](RawGguf& g) {
    for (auto& tensor : g.tensors) tensor.offset = 0;
  });
  make.add("tensor grown over the next one", [](RawGguf& g) {
    std::sort(g.tensors.begin(), g.tensors.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
    g.tensors[0].type = 0, g.tensors[0].rank = 1, g.tensors[0].dims = {g.tensors[1].offset / 4 + 1};
  });
  make.add("data missing", [](RawGguf& g) { g.data.clear(); });
  make.add("last byte of the data missing", [](RawGguf& g) {
    std::uint64_t end = 0;
    for (const auto& tensor : g.tensors) end = std::max(end, tensor.offset + data_bytes(tensor));
    g.data.resize(end - 1);
  });
}

inline void shards(DefectMaker& make) {
  make.add_value("shard of two, alone", "split.count", raw_u16, bytes_of(std::uint16_t{2}));
  make.add_value("split.count of type string", "split.count", raw_string, gguf_string("2"));
  make.add_value("split.count negative", "split.count", raw_i32, bytes_of(std::int32_t{-1}));
  make.add_value("split.count 2^32", "split.count", raw_u64, bytes_of(std::uint64_t{1} << 32));
  make.add("split.no beyond split.count", [](RawGguf& g) {
    g.set("split.count", raw_u16, bytes_of(std::uint16_t{2})).set("split.no", raw_u16, bytes_of(std::uint16_t{2}));
  });
}

}  // namespace defect_detail

/// Defects of the container itself. `valid` must have at least one key and two tensors, and alignment 32.
inline std::vector<Defect> container_defects(std::span<const std::byte> valid) {
  DefectMaker make(valid);
  defect_detail::preamble(make);
  defect_detail::keys(make);
  defect_detail::arrays(make);
  defect_detail::alignment(make);
  defect_detail::tensor_names(make);
  defect_detail::tensor_shapes(make);
  defect_detail::tensor_places(make);
  defect_detail::shards(make);
  return make.take();
}

/// `count` truncations, evenly spread over everything up to the last byte of tensor data.
inline std::vector<Defect> truncations(std::span<const std::byte> valid, std::size_t count = 200) {
  const auto parts = parse_raw(valid);
  std::uint64_t end = 0;
  for (const auto& tensor : parts.tensors) end = std::max(end, tensor.offset + defect_detail::data_bytes(tensor));
  const auto needed = valid.size() - parts.data.size() + end;
  std::vector<Defect> result;
  for (std::size_t i = 0; i < count; ++i) {
    const auto size = needed * i / count;
    result.push_back({"truncated to " + std::to_string(size) + " bytes",
                      {valid.begin(), valid.begin() + static_cast<std::ptrdiff_t>(size)}});
  }
  return result;
}

}  // namespace skald_test
