#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

/// Builds a snapshot: little-endian values one after the other.
class ArchiveWriter {
 public:
  template <class T>
    requires(std::is_arithmetic_v<T>)
  void value(T v) {
    append(&v, sizeof v);
  }
  void text(std::string_view s) {
    value(static_cast<std::uint64_t>(s.size()));
    append(s.data(), s.size());
  }
  template <class T>
    requires(std::is_arithmetic_v<T>)
  void array(std::span<const T> values) {
    value(static_cast<std::uint64_t>(values.size()));
    append(values.data(), values.size_bytes());
  }
  /// `bytes` uninitialized bytes to be filled by the caller.
  [[nodiscard]] std::span<std::byte> reserve(std::size_t bytes) {
    const auto at = bytes_.size();
    bytes_.resize(at + bytes);
    return std::span(bytes_).subspan(at);
  }
  [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  void append(const void* data, std::size_t size) {
    if (size == 0) return;
    const auto at = bytes_.size();
    bytes_.resize(at + size);
    std::memcpy(bytes_.data() + at, data, size);
  }
  std::vector<std::byte> bytes_;
};

/// Reads what ArchiveWriter wrote; every access is checked against the bytes that exist.
class ArchiveReader {
 public:
  ArchiveReader(std::span<const std::byte> bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}

  template <class T>
    requires(std::is_arithmetic_v<T>)
  [[nodiscard]] T value(std::string_view field) {
    T v{};
    const auto from = raw(sizeof v, field);
    std::memcpy(&v, from.data(), sizeof v);
    return v;
  }
  [[nodiscard]] std::string text(std::string_view field) {
    const auto from = raw(length(1, field), field);
    return {reinterpret_cast<const char*>(from.data()), from.size()};
  }
  template <class T>
    requires(std::is_arithmetic_v<T>)
  [[nodiscard]] std::vector<T> array(std::string_view field) {
    const auto count = length(sizeof(T), field);
    const auto from = raw(count * sizeof(T), field);
    std::vector<T> values(count);
    if (count > 0) std::memcpy(values.data(), from.data(), from.size());
    return values;
  }
  [[nodiscard]] std::span<const std::byte> raw(std::size_t bytes, std::string_view field) {
    if (bytes > bytes_.size() - at_) refuse(field, "the data ends inside this field");
    const auto part = bytes_.subspan(at_, bytes);
    at_ += bytes;
    return part;
  }
  /// @throws FormatError if bytes are left over.
  void finish() const {
    if (at_ != bytes_.size()) refuse("end", std::to_string(bytes_.size() - at_) + " bytes are left over");
  }
  /// @throws FormatError at the current place.
  [[noreturn]] void refuse(std::string_view field, const std::string& message) const {
    detail::throw_error(ErrorCode::format, "state.archive", message,
                        {.file = name_, .offset = at_, .key = std::string(field)});
  }

 private:
  std::size_t length(std::size_t element, std::string_view field) {
    const auto count = value<std::uint64_t>(field);
    if (count > (bytes_.size() - at_) / element)
      refuse(field, "a length of " + std::to_string(count) + " does not fit in the data");
    return static_cast<std::size_t>(count);
  }
  std::span<const std::byte> bytes_;
  std::string name_;
  std::size_t at_ = 0;
};

}  // namespace skald::inline v0
