#include <skald/core/executor.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

#include <sched.h>
#include <tbb/info.h>
#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>
#include <tbb/task_arena.h>

#if defined(SKALD_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

namespace skald::inline v0 {

namespace {

int affinity_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

/// Quota in CPUs, or 0 when there is none.
double cgroup_quota() {
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file) {
    std::string quota;
    double period = 0;
    if (file >> quota >> period && quota != "max" && period > 0) return std::strtod(quota.c_str(), nullptr) / period;
    return 0;
  }
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota = 0;
  double period = 0;
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) return quota / period;
  return 0;
}

// The thread sanitizer cannot see how the distribution's oneTBB hands work to its threads and waits for it, so it is
// told; this file is then compiled without it.
void announce(void* place) {
#if defined(SKALD_THREAD_SANITIZER)
  __tsan_release(place);
#else
  static_cast<void>(place);
#endif
}
void observe(void* place) {
#if defined(SKALD_THREAD_SANITIZER)
  __tsan_acquire(place);
#else
  static_cast<void>(place);
#endif
}

class TbbExecutor {
 public:
  // oneTBB warns on stderr when an arena asks for more workers than the process has.
  explicit TbbExecutor(int threads) : arena_(std::min(threads, tbb::info::default_concurrency())) {}
  explicit TbbExecutor(tbb::task_arena::attach tag, int threads) : arena_(tag), limit_(threads) {}

  [[nodiscard]] int concurrency() const {
    const int available = std::max(1, arena_.max_concurrency());
    return limit_ > 0 ? std::min(limit_, available) : available;
  }

  void run(int n, FunctionRef<void(int)> work) {
    if (n <= 0) return;
    if (n == 1) {
      work(0);
      return;
    }
    char begin = 0;
    char end = 0;
    announce(&begin);
    const auto call = [&](int i) {
      observe(&begin);
      struct Announce {
        char& end;
        ~Announce() { announce(&end); }
      } announce_end{end};
      work(i);
    };
    struct Observe {
      char& end;
      ~Observe() { observe(&end); }
    } observe_end{end};
    arena_.execute([&] { tbb::parallel_for(0, n, 1, call, tbb::static_partitioner()); });
  }

 private:
  tbb::task_arena arena_;
  int limit_ = 0;
};

}  // namespace

int available_threads() {
  const int threads = affinity_threads();
  const double quota = cgroup_quota();
  return quota > 0 ? std::clamp(static_cast<int>(std::ceil(quota)), 1, threads) : threads;
}

AnyExecutor make_tbb_executor(int threads) {
  return std::make_shared<TbbExecutor>(threads > 0 ? threads : available_threads());
}

AnyExecutor attach_tbb_executor(int threads) {
  return std::make_shared<TbbExecutor>(tbb::task_arena::attach{}, threads);
}

}  // namespace skald::inline v0
