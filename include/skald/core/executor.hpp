#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include <skald/core/function_ref.hpp>

namespace skald::inline v0 {

/// Where the library's parallel work runs. skald starts no threads of its own: the host may supply this.
/// `run(n, work)` calls `work(i)` once for each i in [0, n), on any threads, and returns when all calls have
/// returned. It need not run them at the same time: one thread that runs all of them in turn is correct.
/// An exception from `work` is rethrown by `run`. Must be callable from several threads at once.
template <class E>
concept Executor = requires(E& executor, int n, FunctionRef<void(int)> work) {
  { executor.concurrency() } -> std::convertible_to<int>;
  executor.run(n, work);
};

/// Type-erased, shared Executor.
class AnyExecutor {
 public:
  template <class E>
    requires(!std::same_as<E, AnyExecutor>) && Executor<E>
  AnyExecutor(std::shared_ptr<E> executor)  // NOLINT(google-explicit-constructor)
      : object_(executor), concurrency_([](void* o) -> int { return static_cast<E*>(o)->concurrency(); }),
        run_([](void* o, int n, FunctionRef<void(int)> work) { static_cast<E*>(o)->run(n, work); }) {}

  /// How many calls may run at once; at least 1.
  [[nodiscard]] int concurrency() const { return concurrency_(object_.get()); }
  void run(int n, FunctionRef<void(int)> work) const { run_(object_.get(), n, work); }

 private:
  std::shared_ptr<void> object_;
  int (*concurrency_)(void*);
  void (*run_)(void*, int, FunctionRef<void(int)>);
};

/// Runs everything on the calling thread.
class SerialExecutor {
 public:
  [[nodiscard]] int concurrency() const noexcept { return 1; }
  void run(int n, FunctionRef<void(int)> work) {
    for (int i = 0; i < n; ++i) work(i);
  }
};
static_assert(Executor<SerialExecutor>);

/// Threads this process may use: the affinity mask cut by the cgroup CPU quota (v1 and v2, rounded up); at least 1.
[[nodiscard]] SKALD_API int available_threads();

/// Executor on a oneTBB task arena of its own. `threads` <= 0 means available_threads().
[[nodiscard]] SKALD_API AnyExecutor make_tbb_executor(int threads = 0);
/// Executor that shares the oneTBB arena in which it is called (the host's), with at most `threads` workers.
[[nodiscard]] SKALD_API AnyExecutor attach_tbb_executor(int threads = 0);

}  // namespace skald::inline v0
