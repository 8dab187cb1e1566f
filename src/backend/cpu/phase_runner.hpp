#pragma once

// Runs a list of phases on any number of threads inside one parallel region.
//
// A phase is a number of independent units. Every participant walks the same list of phases. In a phase it claims
// units from three places: its own share (fixed, so that the same thread meets the same weights in every step), the
// common tail, and what is left of the others' shares. When nothing is left to claim it adds the units it did to the
// phase's `done` counter and waits until that equals the number of units; then it goes on. So nobody needs to know who
// takes part: one thread alone does everything in order, late arrivals skip what is finished, and a participant that
// never comes is not missed.
//
// A participant reads a phase's data only between a successful claim and its addition to `done`: before and after, the
// others may be in a later phase that overwrites them.

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>

#include <skald/core/executor.hpp>
#include <skald/core/memory.hpp>

namespace skald::inline v0::cpu {

/// When a region must end early. Units that take long ask it, too.
class StopFlag {
 public:
  explicit StopFlag(const std::stop_token& token) noexcept : token_(token) {}
  [[nodiscard]] bool raised() const noexcept { return raised_.load(std::memory_order_relaxed); }
  /// Looks at the stop token.
  [[nodiscard]] bool check() noexcept {
    if (raised()) return true;
    if (!token_.stop_requested()) return false;
    raised_.store(true, std::memory_order_relaxed);
    return true;
  }

 private:
  const std::stop_token& token_;
  std::atomic<bool> raised_{false};
};

/// What a participant has for itself during a region.
struct Participant {
  int index = 0;
  StopFlag* stop = nullptr;
  std::int64_t phase = -1;      ///< number of the phase it works on
  std::int64_t prepared = -1;   ///< phase whose private preparations are in its work memory
  std::byte* memory = nullptr;  ///< its work memory
  // What it fetches ahead while it waits: pieces of a later phase's units.
  std::int64_t warm_phase = -1, warm_unit = 0, warm_piece = 0, warm_left = 0;
};

/// One phase. `run` does unit `unit` of [0, units); it must not throw.
struct PhaseHead {
  void (*run)(const PhaseHead& phase, std::int64_t unit, Participant& participant) noexcept = nullptr;
  std::int64_t units = 0;
  /// Optional: has piece `piece` of what `unit` reads fetched, by one whose unit it will be and who waits for an earlier
  /// phase. Must not touch what earlier phases write. @return false if the unit has fewer pieces.
  bool (*warm)(const PhaseHead& phase, std::int64_t unit, std::int64_t piece) noexcept = nullptr;
};

class PhaseRunner {
 public:
  /// @param participants most threads to use.
  explicit PhaseRunner(int participants);

  /// Runs phases[i] = at(i) for i of [0, count). Allocates only when `count` is larger than ever before.
  /// @return false if the stop token ended it early. Rethrows what the executor throws; then some units may not have
  /// run. In any case the runner can be used again.
  bool run(const AnyExecutor& executor, const PhaseHead* const* phases, std::int64_t count, std::byte* memory,
           std::size_t memory_each, const std::stop_token& token);

 private:
  struct alignas(64) Line {
    std::atomic<std::int64_t> value{0};
  };
  class Region;

  int participants_;
  std::int64_t capacity_ = 0;
  std::unique_ptr<Line[]> lines_;  // per phase: done, tail cursor, one cursor per participant
};

}  // namespace skald::inline v0::cpu
