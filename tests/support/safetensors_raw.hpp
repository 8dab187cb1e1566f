#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace skald_test {

/// A safetensors file from the text of its header and its data; `length` overrides the header's true length.
inline std::vector<std::byte> raw_safetensors(std::string_view header, std::size_t data_bytes,
                                              std::uint64_t length = UINT64_MAX) {
  if (length == UINT64_MAX) length = header.size();
  std::vector<std::byte> file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<std::byte>(length >> (8 * i) & 0xFF));
  for (const char c : header) file.push_back(static_cast<std::byte>(c));
  for (std::size_t i = 0; i < data_bytes; ++i) file.push_back(static_cast<std::byte>(i * 37 + 11));
  return file;
}

struct SafetensorsDefect {
  std::string what;
  std::string header;
  std::size_t data_bytes;
  std::string message;  // part of the error
  std::uint64_t length = UINT64_MAX;
};

/// Files that break one rule of the format each.
inline std::vector<SafetensorsDefect> safetensors_defects() {
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  return {
      {"a header longer than the file", "{}", 0, "the file", 100},
      {"a header of the largest length", "{}", 0, "allowed is up to", UINT64_MAX - 1},
      {"an empty header", "", 0, "begin with"},
      {"a header that is an array", "[]", 0, "begin with"},
      {"a header that begins with a space", " {}", 0, "begin with"},
      {"a header that is not JSON", "{x}", 0, "not JSON"},
      {"a header cut in the middle", R"({"a":{"dtype":"F32")", 0, "not JSON"},
      {"text after the header", "{}x", 0, "not JSON"},
      {"bytes that are not UTF-8", "{\"\xff\":{}}", 0, "not JSON"},
      {"an entry that is a number", R"({"a":1})", 0, "number"},
      {"an entry that is null", R"({"a":null})", 0, "null"},
      {"an entry that is an array", R"({"a":[]})", 0, "array"},
      {"metadata that is not text", R"({"__metadata__":{"a":1}})", 0, "number"},
      {"metadata that is nested", R"({"__metadata__":{"a":{}}})", 0, "object"},
      {"an unknown key", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8, "unknown key 'x'"},
      {"a key twice", R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "twice"},
      {"a name twice", "{" + a + "," + a + "}", 8, "two entries"},
      {"no dtype", R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8, "'dtype' is missing"},
      {"no shape", R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8, "'shape' is missing"},
      {"no offsets", R"({"a":{"dtype":"F32","shape":[2]}})", 8, "'data_offsets' is missing"},
      {"an unknown dtype", R"({"a":{"dtype":"F5","shape":[2],"data_offsets":[0,8]}})", 8, "unknown dtype 'F5'"},
      {"a dtype that is a number", R"({"a":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", 8, "number"},
      {"a dtype in an array", R"({"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}})", 8, "array"},
      {"a negative extent", R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "negative"},
      {"an extent with a fraction", R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, "fraction"},
      {"an extent beyond 63 bits", R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})", 8,
       "too large"},
      {"a product beyond 63 bits", R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "63 bits"},
      {"a product that wraps to 8",
       R"({"a":{"dtype":"U8","shape":[2305843009213693953,8],"data_offsets":[0,8]}})", 8, "63 bits"},
      {"a nested shape", R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8, "array"},
      {"three offsets", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", 8, "3 elements"},
      {"offsets that go back", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "need 8 bytes"},
      {"too few bytes", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "need 8 bytes"},
      {"data that begins late", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, "gap"},
      {"a gap", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
       12, "gap"},
      {"an overlap",
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12,
       "overlap"},
      {"two tensors at one place",
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8,
       "overlap"},
      {"data beyond the end", "{" + a + "}", 7, "the file has 7 bytes"},
      {"data that belongs to no tensor", "{" + a + "}", 9, "belong to no tensor"},
  };
}

}  // namespace skald_test
