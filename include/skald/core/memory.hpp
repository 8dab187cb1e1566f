#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// How memory is taken from the system.
struct MemoryOptions {
  /// Ask for 2 MiB pages (madvise); has effect on blocks of at least 2 MiB.
  bool huge_pages = true;
};

/// Zeroed memory aligned to 64 bytes (to 2 MiB from that size on), untouched until first use: large blocks come
/// straight from the system, so unused parts cost address space only. Move-only.
class SKALD_API AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// @throws OutOfMemoryError naming the bytes.
  explicit AlignedBuffer(std::size_t bytes, MemoryOptions options = {});
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)),
        mapped_(std::exchange(other.mapped_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }

  [[nodiscard]] std::byte* data() noexcept { return data_; }
  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::span<std::byte> bytes() noexcept { return {data_, size_}; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  /// Gives the physical pages wholly inside [offset, offset + length) back; they read as zero afterwards.
  /// Only blocks that came straight from the system do so; others are left alone.
  void discard(std::size_t offset, std::size_t length) noexcept;

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t mapped_ = 0;  // bytes of the mapping, 0 if from the heap
};

/// Hands out aligned pieces of one block in order; `reset` takes all back. Never grows: what a step needs is
/// planned before.
class SKALD_API Arena {
 public:
  Arena() = default;
  explicit Arena(std::size_t bytes, MemoryOptions options = {}) : block_(bytes, options) {}

  /// @throws OutOfMemoryError if the block is used up.
  [[nodiscard]] std::span<std::byte> take(std::size_t bytes, std::size_t alignment = 64);
  /// `count` elements of a trivial type.
  template <class T>
  [[nodiscard]] std::span<T> take_of(std::size_t count) {
    const auto bytes = take(count * sizeof(T), alignof(T) > 64 ? alignof(T) : 64);
    return {reinterpret_cast<T*>(bytes.data()), count};
  }
  void reset() noexcept { used_ = 0; }
  [[nodiscard]] std::size_t used() const noexcept { return used_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return block_.size(); }

 private:
  AlignedBuffer block_;
  std::size_t used_ = 0;
};

}  // namespace skald::inline v0
