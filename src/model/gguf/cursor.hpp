#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/core/error.hpp>

namespace skald::inline v0::gguf {

/// Reads the header of a file front to back in blocks, so that a source which answers slowly (a callback, a network
/// file system) is asked seldom. Every length is checked against the bytes that exist before memory is taken.
class Cursor {
 public:
  Cursor(const AnyByteSource& source, std::uint64_t max_bytes)
      : source_(source), size_(source.size()), limit_(std::min(size_, max_bytes)) {}

  [[nodiscard]] std::uint64_t position() const noexcept { return position_; }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// Bytes from here to the end of the file.
  [[nodiscard]] std::uint64_t left() const noexcept { return size_ - position_; }

  /// What is being read, for error messages.
  std::string key{};
  std::string tensor{};

  [[noreturn]] void fail(std::uint64_t offset, const std::string& message, ErrorCode code = ErrorCode::format) const {
    detail::throw_error(code, "model.gguf", message,
                        {.file = source_.name(), .offset = offset, .key = key, .tensor = tensor});
  }

  /// Checks that `count` elements of at least `element_bytes` can follow. @throws FormatError naming `what`.
  void require(std::uint64_t count, std::uint64_t element_bytes, const char* what) const {
    if (count > left() / element_bytes)
      fail(position_, std::string(what) + ": found " + std::to_string(count) + ", but the " + std::to_string(left()) +
                          " bytes left in the file hold at most " + std::to_string(left() / element_bytes));
    if (count > (limit_ - position_) / element_bytes)
      fail(position_, std::string(what) + ": found " + std::to_string(count) + ", which exceeds the header limit of " +
                          std::to_string(limit_) + " bytes");
  }

  void read(void* out, std::uint64_t bytes, const char* what) {
    if (bytes > left())
      fail(position_, "the file of " + std::to_string(size_) + " bytes ends within the " + what + " of " +
                          std::to_string(bytes) + " bytes");
    require(bytes, 1, what);
    auto* to = static_cast<std::byte*>(out);
    while (bytes > 0) {
      if (next_ == block_.size()) {
        if (bytes >= block_bytes) {  // large arrays go straight to their place
          const auto piece = bytes - bytes % block_bytes;
          source_.read(position_, {to, static_cast<std::size_t>(piece)});
          to += piece, position_ += piece, bytes -= piece;
          continue;
        }
        fill();
      }
      const auto piece = std::min<std::uint64_t>(bytes, block_.size() - next_);
      std::memcpy(to, block_.data() + next_, static_cast<std::size_t>(piece));
      next_ += static_cast<std::size_t>(piece);
      to += piece, position_ += piece, bytes -= piece;
    }
  }

  template <class T>
  [[nodiscard]] T scalar(const char* what) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    T value{};
    read(&value, sizeof value, what);
    return value;
  }

  /// A string with its 64-bit length before it, of at most `max_bytes`.
  [[nodiscard]] std::string string(std::uint64_t max_bytes, const char* what) {
    const auto start = position_;
    const auto length = scalar<std::uint64_t>(what);
    if (length > max_bytes)
      fail(start, std::string(what) + ": found a length of " + std::to_string(length) + ", allowed is at most " +
                      std::to_string(max_bytes));
    require(length, 1, what);
    std::string text(static_cast<std::size_t>(length), '\0');
    read(text.data(), length, what);
    return text;
  }

 private:
  static constexpr std::size_t block_bytes = 65536;

  void fill() {
    block_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(block_bytes, size_ - position_)));
    next_ = block_.size();  // stays empty if reading throws
    source_.read(position_, block_);
    next_ = 0;
  }

  const AnyByteSource& source_;
  std::uint64_t size_;
  std::uint64_t limit_;
  std::uint64_t position_ = 0;
  std::vector<std::byte> block_{};
  std::size_t next_ = 0;  // first unread byte of block_
};

}  // namespace skald::inline v0::gguf
