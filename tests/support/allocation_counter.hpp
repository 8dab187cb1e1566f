#pragma once

// Counts what the program allocates with operator new, in the test programs that tests/CMakeLists.txt names.

#include <cstddef>
#include <cstdint>

namespace skald_test {

/// What was allocated since the counter was made. One at a time; counts all threads.
class AllocationCounter {
 public:
  AllocationCounter();
  ~AllocationCounter();
  AllocationCounter(const AllocationCounter&) = delete;
  AllocationCounter& operator=(const AllocationCounter&) = delete;

  /// Calls of operator new.
  [[nodiscard]] std::uint64_t calls() const;
  /// Largest sum of live bytes above that at construction.
  [[nodiscard]] std::uint64_t peak_bytes() const;
  /// Live bytes above those at construction.
  [[nodiscard]] std::int64_t live_bytes() const;
  /// Lets the n-th allocation from now on (from 1) fail with std::bad_alloc; 0 for none.
  void fail_at(std::uint64_t n);
};

}  // namespace skald_test
