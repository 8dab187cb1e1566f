#include "backend/cpu/phase_runner.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace skald::inline v0::cpu {

namespace {

void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A few microseconds of spinning; the thread that is waited for may need this core.
constexpr int spins_before_yield = 200;
// Who waits longer sleeps: most likely a participant was preempted in the middle of a unit, and the scheduler moves it to
// a core only if that is idle.
constexpr std::chrono::microseconds yields_before_park{50};

/// Pieces that a participant fetches ahead, which must stay in its second-level cache, and how many phases ahead.
constexpr std::int64_t warm_pieces = 256;
constexpr std::int64_t warm_reach = 4;

/// How the units of a phase are divided: each participant has `share` of its own, the rest is the common tail.
struct Division {
  std::int64_t share;
  std::int64_t tail_begin;
  Division(std::int64_t units, int participants) noexcept
      : share(units * 9 / (10 * std::int64_t{participants})), tail_begin(share * participants) {}
};

}  // namespace

class PhaseRunner::Region {
 public:
  Region(const PhaseRunner& runner, const PhaseHead* const* phases, std::int64_t count, const std::stop_token& token)
      : lines_(runner.lines_.get()),
        participants_(runner.participants_),
        phases_(phases),
        count_(count),
        stop_(token) {}

  void participate(int index, std::byte* memory) noexcept {
    Participant me{.index = index, .stop = &stop_, .memory = memory};
    for (std::int64_t p = 0; p < count_; ++p) {
      const std::int64_t units = phases_[p]->units;
      std::atomic<std::int64_t>& done = line(p, 0);
      if (done.load(std::memory_order_acquire) == units) continue;
      me.phase = p;
      if (const std::int64_t mine = work(p, me); mine > 0) {
        if (done.fetch_add(mine, std::memory_order_seq_cst) + mine == units && sleepers_.load() > 0) wake();
      }
      fetch_ahead(p, me, done, units);
      if (!wait(done, units)) return;
    }
  }

  [[nodiscard]] bool finished() const noexcept {
    return count_ == 0 || line(count_ - 1, 0).load(std::memory_order_acquire) == phases_[count_ - 1]->units;
  }
  [[nodiscard]] bool stopped() const noexcept { return stop_.raised(); }

 private:
  [[nodiscard]] std::atomic<std::int64_t>& line(std::int64_t phase, std::int64_t which) const noexcept {
    return lines_[phase * (participants_ + 2) + which].value;
  }

  /// Does units until none is left to claim. @return how many.
  std::int64_t work(std::int64_t p, Participant& me) noexcept {
    const Division division(phases_[p]->units, participants_);
    std::int64_t mine = 0;
    if (division.share > 0) mine += drain(p, me, line(p, 2 + me.index), me.index * division.share, division.share);
    mine += drain(p, me, line(p, 1), division.tail_begin, phases_[p]->units - division.tail_begin);
    if (division.share == 0) return mine;
    for (int i = 1; i < participants_; ++i) {
      const int other = (me.index + i) % participants_;
      mine += drain(p, me, line(p, 2 + other), other * division.share, division.share);
    }
    return mine;
  }

  /// Claims from one cursor. The order of claims needs no synchronization: `done` carries it.
  std::int64_t drain(std::int64_t p, Participant& me, std::atomic<std::int64_t>& cursor, std::int64_t begin,
                     std::int64_t count) noexcept {
    std::int64_t mine = 0;
    while (cursor.load(std::memory_order_relaxed) < count) {
      if (stop_.check()) break;
      const std::int64_t claimed = cursor.fetch_add(1, std::memory_order_relaxed);
      if (claimed >= count) break;
      phases_[p]->run(*phases_[p], begin + claimed, me);
      ++mine;
    }
    return mine;
  }

  /// Fetches what this participant will read in the next phase that can tell, until phase `p` is complete: memory works
  /// while somebody has the last unit, and who waited is the faster afterwards.
  void fetch_ahead(std::int64_t p, Participant& me, const std::atomic<std::int64_t>& done, std::int64_t units) noexcept {
    if (me.warm_phase <= p) {
      me.warm_left = 0;
      for (std::int64_t next = p + 1; next < std::min(count_, p + 1 + warm_reach); ++next) {
        if (phases_[next]->warm == nullptr) continue;
        const Division division(phases_[next]->units, participants_);
        me.warm_phase = next;
        me.warm_unit = std::min(me.index * division.share, phases_[next]->units - 1);
        me.warm_piece = 0;
        me.warm_left = warm_pieces;
        break;
      }
    }
    if (me.warm_left == 0) return;
    const PhaseHead& next = *phases_[me.warm_phase];
    const std::int64_t end = (me.index + 1) * Division(next.units, participants_).share;
    while (me.warm_left > 0 && done.load(std::memory_order_relaxed) != units && !stop_.raised()) {
      if (next.warm(next, me.warm_unit, me.warm_piece)) {
        ++me.warm_piece;
        --me.warm_left;
      } else if (++me.warm_unit < end) {
        me.warm_piece = 0;
      } else {
        me.warm_left = 0;
      }
    }
  }

  /// Wakes those who sleep: a phase is complete, or the region ends.
  void wake() noexcept {
    // Whoever looked before this sleeps by now, whoever looks later sees why they were to be woken.
    { const std::scoped_lock lock(mutex_); }
    event_.notify_all();
  }

  /// @return false if the region ends early.
  bool wait(const std::atomic<std::int64_t>& done, std::int64_t units) noexcept {
    // Sequentially consistent, as the addition to `done` and the look at `sleepers_` are: one of the two sees the other.
    const auto over = [&] { return done.load(std::memory_order_seq_cst) == units || stop_.raised(); };
    for (int spins = 0; spins < spins_before_yield && !over(); ++spins) pause();
    const auto start = std::chrono::steady_clock::now();
    while (!over() && std::chrono::steady_clock::now() - start < yields_before_park) std::this_thread::yield();
    if (!over()) {
      sleepers_.fetch_add(1);
      std::unique_lock lock(mutex_);
      event_.wait(lock, over);
      sleepers_.fetch_sub(1);
    }
    if (done.load(std::memory_order_acquire) == units) return true;
    wake();  // stopped: the others sleep, perhaps
    return false;
  }

  Line* lines_;
  int participants_;
  const PhaseHead* const* phases_;
  std::int64_t count_;
  StopFlag stop_;
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_{};
  std::condition_variable event_{};
};

PhaseRunner::PhaseRunner(int participants) : participants_(std::max(1, participants)) {}

bool PhaseRunner::run(const AnyExecutor& executor, const PhaseHead* const* phases, std::int64_t count,
                      std::byte* memory, std::size_t memory_each, const std::stop_token& token) {
  const auto lines = static_cast<std::size_t>(count * (participants_ + 2));
  if (count > capacity_) {
    lines_ = std::make_unique<Line[]>(lines);
    capacity_ = count;
  }
  std::int64_t widest = 0;
  for (std::int64_t p = 0; p < count; ++p) widest = std::max(widest, phases[p]->units);
  for (std::size_t i = 0; i < lines; ++i) lines_[i].value.store(0, std::memory_order_relaxed);

  Region region(*this, phases, count, token);
  // Work that cannot be shared wakes nobody.
  const int wanted = static_cast<int>(std::min<std::int64_t>(participants_, widest));
  if (wanted > 1) {
    executor.run(wanted, [&](int index) {
      if (index >= 0 && index < participants_) {
        region.participate(index, memory + static_cast<std::size_t>(index) * memory_each);
      }
    });
  }
  // Also if the executor ran less than it was asked to.
  if (!region.finished() && !region.stopped()) region.participate(0, memory);
  return !region.stopped();
}

}  // namespace skald::inline v0::cpu
