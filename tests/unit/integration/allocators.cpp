// Replaces the allocators of the test program by counting ones.
#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "malloc_counter.hpp"

namespace {
std::atomic<std::uint64_t> malloc_count{0};
std::atomic<std::uint64_t> failing_malloc{0};

#if SKALD_TEST_COUNTS_MALLOC
/// Counts a call. @return true if it must fail.
bool fails() noexcept {
  if (malloc_count.fetch_add(1, std::memory_order_relaxed) + 1 != failing_malloc.load(std::memory_order_relaxed))
    return false;
  errno = ENOMEM;
  return true;
}
#endif
}  // namespace

namespace skald_test {
std::uint64_t malloc_calls() noexcept { return malloc_count.load(); }
void fail_malloc_at(std::uint64_t n) noexcept { failing_malloc = n == 0 ? 0 : malloc_count + n; }
}  // namespace skald_test

#if SKALD_TEST_COUNTS_MALLOC
extern "C" {
void* __libc_malloc(std::size_t size);                           // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(std::size_t count, std::size_t size);        // NOLINT(bugprone-reserved-identifier)
void* __libc_realloc(void* old, std::size_t size);               // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(std::size_t alignment, std::size_t size);  // NOLINT(bugprone-reserved-identifier)

void* malloc(std::size_t size) { return fails() ? nullptr : __libc_malloc(size); }
void* calloc(std::size_t count, std::size_t size) { return fails() ? nullptr : __libc_calloc(count, size); }
void* realloc(void* old, std::size_t size) { return fails() ? nullptr : __libc_realloc(old, size); }
void* memalign(std::size_t alignment, std::size_t size) { return fails() ? nullptr : __libc_memalign(alignment, size); }
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  return fails() ? nullptr : __libc_memalign(alignment, size);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  if (fails()) return ENOMEM;
  *out = __libc_memalign(alignment, size);
  return *out ? 0 : ENOMEM;
}
}
#endif
