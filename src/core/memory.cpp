#include <skald/core/memory.hpp>

#include <cstdlib>
#include <cstring>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {
constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr std::size_t map_from = std::size_t{1} << 16;
}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t bytes, MemoryOptions options) : size_(bytes) {
  if (bytes == 0) return;
  const auto refuse = [&] {
    size_ = 0;
    throw OutOfMemoryError("core.memory", "the system refused " + std::to_string(bytes) + " bytes");
  };
  if (bytes > (std::size_t{1} << 56)) refuse();
  if (bytes < map_from) {
    const std::size_t rounded = (bytes + 63) / 64 * 64;
    data_ = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
    if (!data_) refuse();
    std::memset(data_, 0, rounded);
    return;
  }
  const bool large = bytes >= huge_page;
  const std::size_t page = 4096;
  const std::size_t rounded = (bytes + page - 1) / page * page;
  const std::size_t reserve = large ? rounded + huge_page : rounded;
  void* raw = ::mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) refuse();
  auto* begin = static_cast<std::byte*>(raw);
  if (large) {  // keep only the aligned part
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    const std::size_t skip = (huge_page - address % huge_page) % huge_page;
    if (skip > 0) ::munmap(begin, skip);
    const std::size_t rest = reserve - skip - rounded;
    if (rest > 0) ::munmap(begin + skip + rounded, rest);
    begin += skip;
    if (options.huge_pages) ::madvise(begin, rounded, MADV_HUGEPAGE);
  }
  data_ = begin;
  mapped_ = rounded;
}

AlignedBuffer::~AlignedBuffer() {
  if (!data_) return;
  if (mapped_ > 0) ::munmap(data_, mapped_);
  else std::free(data_);
}

void AlignedBuffer::discard(std::size_t offset, std::size_t length) noexcept {
  if (mapped_ == 0) return;
  const std::size_t page = 4096;
  const std::size_t begin = (offset + page - 1) / page * page;
  const std::size_t end = (offset + length) / page * page;
  if (begin < end && end <= mapped_) ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

std::span<std::byte> Arena::take(std::size_t bytes, std::size_t alignment) {
  const std::size_t begin = (used_ + alignment - 1) / alignment * alignment;
  if (begin > block_.size() || bytes > block_.size() - begin)
    throw OutOfMemoryError("core.memory", "the arena of " + std::to_string(block_.size()) + " bytes has " +
                                              std::to_string(block_.size() - used_) + " left, " +
                                              std::to_string(bytes) + " are needed");
  used_ = begin + bytes;
  return {block_.data() + begin, bytes};
}

}  // namespace skald::inline v0
