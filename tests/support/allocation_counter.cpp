// Replaces the global operator new of the program. A file of its own: inlined next to its callers, GCC would take the pair of
// malloc in new and free in delete for a mismatch.

#include <atomic>
#include <cstdlib>
#include <new>

#include <malloc.h>

#include "support/allocation_counter.hpp"

namespace {

std::atomic<std::int64_t> live{0};
std::atomic<std::int64_t> peak{0};
std::atomic<std::uint64_t> calls_made{0};
std::atomic<std::uint64_t> failing_call{0};
std::int64_t live_at_start = 0;
std::uint64_t calls_at_start = 0;

void* allocate(std::size_t size, std::size_t alignment) {
  const auto call = ++calls_made;
  if (call == failing_call) throw std::bad_alloc();
  void* data = alignment > alignof(std::max_align_t)
                   ? std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment)
                   : std::malloc(size ? size : 1);
  if (!data) throw std::bad_alloc();
  const auto now = live += static_cast<std::int64_t>(malloc_usable_size(data));
  auto before = peak.load();
  while (before < now && !peak.compare_exchange_weak(before, now)) {
  }
  return data;
}

void* allocate_or_null(std::size_t size) noexcept {
  try {
    return allocate(size, 0);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void release(void* data) noexcept {
  if (data) live -= static_cast<std::int64_t>(malloc_usable_size(data));
  std::free(data);
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size, 0); }
void* operator new[](std::size_t size) { return allocate(size, 0); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocate_or_null(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return allocate_or_null(size); }
void operator delete(void* data, const std::nothrow_t&) noexcept { release(data); }
void operator delete[](void* data, const std::nothrow_t&) noexcept { release(data); }
void operator delete(void* data) noexcept { release(data); }
void operator delete[](void* data) noexcept { release(data); }
void operator delete(void* data, std::size_t) noexcept { release(data); }
void operator delete[](void* data, std::size_t) noexcept { release(data); }
void operator delete(void* data, std::align_val_t) noexcept { release(data); }
void operator delete[](void* data, std::align_val_t) noexcept { release(data); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept { release(data); }
void operator delete[](void* data, std::size_t, std::align_val_t) noexcept { release(data); }

namespace skald_test {

AllocationCounter::AllocationCounter() {
  failing_call = 0;
  calls_at_start = calls_made;
  live_at_start = live;
  peak = live.load();
}
AllocationCounter::~AllocationCounter() { failing_call = 0; }
std::uint64_t AllocationCounter::calls() const { return calls_made - calls_at_start; }
std::uint64_t AllocationCounter::peak_bytes() const { return static_cast<std::uint64_t>(peak - live_at_start); }
std::int64_t AllocationCounter::live_bytes() const { return live - live_at_start; }
void AllocationCounter::fail_at(std::uint64_t n) { failing_call = n == 0 ? 0 : calls_made + n; }

}  // namespace skald_test
