#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/decoder/prefix_cache.hpp>

namespace skald::inline v0 {

/// How long the calls of each tool took, and at which turns programs are given up.
class SKALD_API ToolStatistics {
 public:
  /// What is known of one tool.
  struct Summary {
    std::int64_t calls = 0;
    double mean = 0.0;  ///< seconds, of all calls
    double shortest = 0.0;
    double longest = 0.0;
  };
  /// `remembered`: newest calls of each tool, and newest programs, whose times are kept one by one. At least 1.
  explicit ToolStatistics(std::size_t remembered = 256) : remembered_(remembered < 1 ? 1 : remembered) {}

  /// @throws UsageError for a time that is negative or not finite.
  void record_call(std::string_view tool, double seconds);
  /// A program has ended: `calls` of its turns ended in a call, and the last of these never returned if it was given up.
  void record_program(std::int64_t calls, bool given_up);

  [[nodiscard]] Summary of(std::string_view tool) const;
  /// Names of all tools that were called.
  [[nodiscard]] std::vector<std::string> tools() const;
  /// Share of the remembered calls that took at most so long; of all tools together if this one is not known; 0 if none is.
  [[nodiscard]] double within(std::string_view tool, double seconds) const;
  /// Chance that a program comes back from the call in which its turn of this number ended: of the remembered programs that
  /// came so far, and one that did.
  [[nodiscard]] double comes_back(std::int64_t turn) const;
  /// The time for which to keep a session's memory during a call so that, on average over what is remembered, the most is
  /// won: `gain` seconds if the call returns within it, at `rent` for each second that memory is held. 0: do not keep; `guess`
  /// while no call of any tool is known. A tenth is added, for calls that take equally long.
  [[nodiscard]] double time_to_live(std::string_view tool, std::int64_t turn, double gain, double rent,
                                    double guess = 0.0) const;

 private:
  struct Calls {
    Summary summary{};
    std::vector<double> seconds{};  // the newest, as a ring
    std::size_t next = 0;
  };
  [[nodiscard]] std::vector<double> known(std::string_view tool) const;

  std::size_t remembered_;
  std::map<std::string, Calls, std::less<>> tools_;
  struct Program {
    std::int64_t calls = 0;
    bool given_up = false;
  };
  std::vector<Program> programs_;  // a ring
  std::size_t next_ = 0;
};

/// Options of a TurnKeeper.
struct TurnKeeperOptions {
  /// Seconds on the clock of the PrefixCache; nothing: the steady clock.
  std::function<double()> clock{};
  /// Seconds that computing a token of a prompt takes: what it costs to have let go.
  double seconds_per_token = 1e-3;
  /// Seconds that others wait, on average, behind such a computation; added to what letting go costs.
  double queue_seconds = 0.0;
  /// Bytes of KV memory that sessions compete for; holding all of them for a second costs a second of others' work.
  std::size_t memory_bytes = std::size_t{1} << 30;
  /// Seconds to keep the first turns, while nothing is known of any tool.
  double first_guess = 2.0;
  std::size_t remembered = 256;  ///< @see ToolStatistics
};

/// Work done by a TurnKeeper.
struct TurnKeeperCounters {
  std::uint64_t turns = 0;     ///< that ended in a call
  std::uint64_t kept = 0;      ///< whose memory was kept for a time
  std::uint64_t in_time = 0;   ///< that came back before that time had passed
  std::uint64_t too_late = 0;  ///< that were kept and came back after it
};

/// Memory of programs that call tools between their turns (Continuum, Li et al. 2025, arXiv 2511.02230): when a turn ends in
/// a call, its keys and values are kept for a time that depends on how long calls of that tool took and on how likely programs
/// come back from that turn; a call that returns in time computes its new tokens only, after it the memory can be had back.
/// One thread at a time, as the cache.
class SKALD_API TurnKeeper {
 public:
  /// `cache` must outlive this. @throws UsageError for options that are negative or not finite.
  explicit TurnKeeper(PrefixCache& cache, TurnKeeperOptions options = {});

  /// A turn of a program ended in a call of a tool. @return seconds for which its memory is kept, 0 if it is not.
  double end_turn(std::string_view program, std::string_view tool, const Session& session, std::string_view scope = {});
  /// The call has returned: counts its time, and gives a session with what is still known of `tokens` (as
  /// PrefixCache::new_session). Programs that are not known begin here.
  [[nodiscard]] Session begin_turn(std::string_view program, std::span<const TokenId> tokens, std::string_view scope = {});
  /// The program has ended, or is given up if a call runs.
  void end_program(std::string_view program);

  [[nodiscard]] const ToolStatistics& statistics() const noexcept { return statistics_; }
  [[nodiscard]] ToolStatistics& statistics() noexcept { return statistics_; }
  [[nodiscard]] const TurnKeeperCounters& counters() const noexcept { return counters_; }

 private:
  struct Program {
    std::int64_t turns = 0;
    std::string tool{};  // empty: no call runs
    double called = 0.0;
    double kept_until = 0.0;
  };
  PrefixCache* cache_;
  TurnKeeperOptions options_;
  ToolStatistics statistics_;
  TurnKeeperCounters counters_;
  std::map<std::string, Program, std::less<>> programs_;
};

}  // namespace skald::inline v0
