#pragma once

// A GGUF file taken apart without any check and put together again, for tests that need broken files.

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace skald_test {

using Bytes = std::vector<std::byte>;

inline void append(Bytes& out, const void* data, std::size_t size) {
  const auto at = out.size();
  out.resize(at + size);
  if (size > 0) std::memcpy(out.data() + at, data, size);
}
template <class T>
void append(Bytes& out, T value) {
  append(out, &value, sizeof value);
}
/// Little-endian bytes of numbers, one after the other.
template <class... T>
Bytes bytes_of(T... values) {
  Bytes out;
  (append(out, values), ...);
  return out;
}
/// A GGUF string: 64-bit length and characters.
inline Bytes gguf_string(std::string_view text, std::optional<std::uint64_t> length = {}) {
  Bytes out;
  append(out, length.value_or(text.size()));
  append(out, text.data(), text.size());
  return out;
}
inline Bytes operator+(Bytes a, const Bytes& b) {
  append(a, b.data(), b.size());
  return a;
}

enum RawType : std::uint32_t {
  raw_u8,
  raw_i8,
  raw_u16,
  raw_i16,
  raw_u32,
  raw_i32,
  raw_f32,
  raw_bool,
  raw_string,
  raw_array,
  raw_u64,
  raw_i64,
  raw_f64
};

struct RawKey {
  std::string key{};
  std::uint32_t type = raw_u32;
  Bytes value{};
  std::optional<std::uint64_t> key_length{};  ///< written instead of the true length
};

struct RawTensor {
  std::string name{};
  std::uint32_t rank = 1;
  std::vector<std::uint64_t> dims{};
  std::uint32_t type = 0;
  std::uint64_t offset = 0;
  std::optional<std::uint64_t> name_length{};  ///< written instead of the true length
};

/// All parts of a file; every field may be changed at will before `encode`.
struct RawGguf {
  std::uint32_t magic = 0x46554747;
  std::uint32_t version = 3;
  std::optional<std::uint64_t> tensor_count{};  ///< written instead of the true count
  std::optional<std::uint64_t> key_count{};     ///< written instead of the true count
  std::vector<RawKey> keys{};
  std::vector<RawTensor> tensors{};
  std::uint64_t alignment = 32;
  Bytes data{};

  RawKey* find_key(std::string_view key) {
    for (auto& entry : keys)
      if (entry.key == key) return &entry;
    return nullptr;
  }
  RawTensor* find_tensor(std::string_view name) {
    for (auto& tensor : tensors)
      if (tensor.name == name) return &tensor;
    return nullptr;
  }
  /// Adds a pair or replaces it.
  RawGguf& set(const std::string& key, std::uint32_t type, Bytes value) {
    if (auto* entry = find_key(key)) {
      entry->type = type;
      entry->value = std::move(value);
    } else {
      keys.push_back({key, type, std::move(value), {}});
    }
    return *this;
  }
  RawGguf& remove(std::string_view key) {
    std::erase_if(keys, [&](const RawKey& entry) { return entry.key == key; });
    return *this;
  }

  [[nodiscard]] Bytes encode() const {
    Bytes out = bytes_of(magic, version, tensor_count.value_or(tensors.size()), key_count.value_or(keys.size()));
    for (const auto& entry : keys) {
      out = std::move(out) + gguf_string(entry.key, entry.key_length) + bytes_of(entry.type) + entry.value;
    }
    for (const auto& tensor : tensors) {
      out = std::move(out) + gguf_string(tensor.name, tensor.name_length) + bytes_of(tensor.rank);
      for (const auto extent : tensor.dims) append(out, extent);
      out = std::move(out) + bytes_of(tensor.type, tensor.offset);
    }
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return std::move(out) + data;
  }
};

/// Takes a valid file apart.
class RawGgufParser {
 public:
  explicit RawGgufParser(std::span<const std::byte> bytes) : bytes_(bytes) {}

  RawGguf parse() {
    RawGguf result;
    result.magic = take<std::uint32_t>();
    result.version = take<std::uint32_t>();
    const auto tensors = take<std::uint64_t>();
    const auto keys = take<std::uint64_t>();
    for (std::uint64_t i = 0; i < keys; ++i) {
      RawKey entry;
      entry.key = text();
      entry.type = take<std::uint32_t>();
      const auto start = at_;
      skip(entry.type);
      entry.value.assign(bytes_.begin() + static_cast<std::ptrdiff_t>(start),
                         bytes_.begin() + static_cast<std::ptrdiff_t>(at_));
      if (entry.key == "general.alignment") {
        std::uint32_t alignment = 0;
        std::memcpy(&alignment, entry.value.data(), sizeof alignment);
        result.alignment = alignment;
      }
      result.keys.push_back(std::move(entry));
    }
    for (std::uint64_t i = 0; i < tensors; ++i) {
      RawTensor tensor;
      tensor.name = text();
      tensor.rank = take<std::uint32_t>();
      for (std::uint32_t d = 0; d < tensor.rank; ++d) tensor.dims.push_back(take<std::uint64_t>());
      tensor.type = take<std::uint32_t>();
      tensor.offset = take<std::uint64_t>();
      result.tensors.push_back(std::move(tensor));
    }
    at_ = (at_ + result.alignment - 1) / result.alignment * result.alignment;
    if (at_ < bytes_.size()) result.data.assign(bytes_.begin() + static_cast<std::ptrdiff_t>(at_), bytes_.end());
    return result;
  }

 private:
  template <class T>
  T take() {
    T value{};
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::string text() {
    const auto length = take<std::uint64_t>();
    std::string result(reinterpret_cast<const char*>(bytes_.data()) + at_, length);
    at_ += length;
    return result;
  }
  void skip(std::uint32_t type) {
    static constexpr std::size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == raw_string) {
      const auto length = take<std::uint64_t>();
      at_ += length;
    } else if (type == raw_array) {
      const auto element = take<std::uint32_t>();
      const auto count = take<std::uint64_t>();
      for (std::uint64_t i = 0; i < count; ++i) skip(element);
    } else {
      at_ += sizes[type];
    }
  }

  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
};

inline RawGguf parse_raw(std::span<const std::byte> bytes) { return RawGgufParser(bytes).parse(); }

}  // namespace skald_test
