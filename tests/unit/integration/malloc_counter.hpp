#pragma once

// Counts calls of the C allocator in the whole process, also those of other libraries, where that can be done: glibc,
// and no sanitizer that brings an allocator of its own.

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SKALD_TEST_COUNTS_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SKALD_TEST_COUNTS_MALLOC 0
#endif
#endif
#ifndef SKALD_TEST_COUNTS_MALLOC
#if defined(__GLIBC__)
#define SKALD_TEST_COUNTS_MALLOC 1
#else
#define SKALD_TEST_COUNTS_MALLOC 0
#endif
#endif

namespace skald_test {
/// Calls of malloc and its relatives so far; always 0 where they cannot be counted.
[[nodiscard]] std::uint64_t malloc_calls() noexcept;
/// Lets the n-th call from now on (from 1) return null, once; 0 for none.
void fail_malloc_at(std::uint64_t n) noexcept;
}  // namespace skald_test
