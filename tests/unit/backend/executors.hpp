#pragma once

// Executors that keep the letter of the contract and nothing more.

#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include <skald/core/executor.hpp>

namespace skald_test {

/// One thread that runs the calls in descending order.
class ReverseExecutor {
 public:
  [[nodiscard]] int concurrency() const { return 4; }
  void run(int n, skald::FunctionRef<void(int)> work) {
    for (int i = n - 1; i >= 0; --i) work(i);
  }
};

/// Runs only call 0: the work of the others must be done all the same.
class LonelyExecutor {
 public:
  [[nodiscard]] int concurrency() const { return 4; }
  void run(int /*n*/, skald::FunctionRef<void(int)> work) { work(0); }
};

/// Runs nothing.
class IdleExecutor {
 public:
  [[nodiscard]] int concurrency() const { return 4; }
  void run(int /*n*/, skald::FunctionRef<void(int)> /*work*/) {}
};

/// Threads that start late, one after the other.
class LateExecutor {
 public:
  explicit LateExecutor(int threads) : threads_(threads) {}
  [[nodiscard]] int concurrency() const { return threads_; }
  void run(int n, skald::FunctionRef<void(int)> work) {
    std::vector<std::thread> threads;
    for (int i = 1; i < n; ++i) {
      threads.emplace_back([work, i] {
        std::this_thread::sleep_for(std::chrono::microseconds(150 * i));
        work(i);
      });
    }
    work(0);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int threads_;
};

/// Threads without delay.
class ThreadExecutor {
 public:
  explicit ThreadExecutor(int threads) : threads_(threads) {}
  [[nodiscard]] int concurrency() const { return threads_; }
  void run(int n, skald::FunctionRef<void(int)> work) {
    std::vector<std::thread> threads;
    for (int i = 1; i < n; ++i) threads.emplace_back([work, i] { work(i); });
    work(0);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int threads_;
};

/// Fails while `broken`, before or after it has done the work.
class BrokenExecutor {
 public:
  bool broken = true;
  bool after = false;
  [[nodiscard]] int concurrency() const { return 4; }
  void run(int n, skald::FunctionRef<void(int)> work) {
    if (broken && !after) throw std::runtime_error("no threads today");
    for (int i = 0; i < n; ++i) work(i);
    if (broken) throw std::runtime_error("too late");
  }
};

}  // namespace skald_test
