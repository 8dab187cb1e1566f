#include "backend/cpu/phase_runner.hpp"

#include "executors.hpp"
#include "fixture.hpp"

using namespace skald;
using namespace skald_test;
using skald::cpu::Participant;
using skald::cpu::PhaseHead;
using skald::cpu::PhaseRunner;

namespace {

/// A phase whose every unit adds to a cell what it sees of all cells of the phase before: a missing wait, a unit that
/// runs twice or not at all changes the result.
struct ChainPhase : PhaseHead {
  const std::vector<std::int64_t>* from = nullptr;
  std::vector<std::int64_t>* to = nullptr;
  std::stop_source* stop_at_unit = nullptr;
  std::int64_t stop_unit = -1;
  std::atomic<std::int64_t>* ran = nullptr;
};

void run_chain(const PhaseHead& head, std::int64_t unit, Participant& /*me*/) noexcept {
  const auto& phase = static_cast<const ChainPhase&>(head);
  std::int64_t sum = unit;
  for (const std::int64_t v : *phase.from) sum += v;
  (*phase.to)[static_cast<std::size_t>(unit)] += sum % 1000003;
  if (phase.ran != nullptr) phase.ran->fetch_add(1);
  if (unit == phase.stop_unit && phase.stop_at_unit != nullptr) phase.stop_at_unit->request_stop();
}

class Chain {
 public:
  explicit Chain(const std::vector<std::int64_t>& units) : phases(units.size()) {
    cells_.emplace_back(1, 1);
    for (const std::int64_t n : units) cells_.emplace_back(static_cast<std::size_t>(n), 0);
    for (std::size_t p = 0; p < units.size(); ++p) {
      phases[p].run = run_chain;
      phases[p].units = units[p];
      phases[p].from = &cells_[p];
      phases[p].to = &cells_[p + 1];
      phases[p].ran = &ran;
      heads.push_back(&phases[p]);
    }
  }
  bool run(PhaseRunner& runner, const AnyExecutor& executor, const std::stop_token& token = {}) {
    for (std::size_t c = 1; c < cells_.size(); ++c) std::fill(cells_[c].begin(), cells_[c].end(), 0);
    return runner.run(executor, heads.data(), static_cast<std::int64_t>(heads.size()), memory_.data(), 64, token);
  }
  [[nodiscard]] const std::vector<std::int64_t>& result() const { return cells_.back(); }

  std::vector<ChainPhase> phases;
  std::vector<const PhaseHead*> heads;
  std::atomic<std::int64_t> ran{0};

 private:
  std::vector<std::vector<std::int64_t>> cells_;
  std::vector<std::byte> memory_ = std::vector<std::byte>(64 * 64);
};

std::vector<std::int64_t> mixed_units() {
  std::vector<std::int64_t> units;
  for (int i = 0; i < 60; ++i)
    units.push_back(std::vector<std::int64_t>{1, 2, 3, 7, 40, 111}[static_cast<std::size_t>(i % 6)]);
  units.push_back(5);
  return units;
}

}  // namespace

TEST_CASE("backend.phases: every unit runs once, after all units of the phase before, on any executor", "[backend]") {
  PhaseRunner alone(1);
  Chain expected(mixed_units());
  REQUIRE(expected.run(alone, std::make_shared<SerialExecutor>()));
  const std::vector<AnyExecutor> executors = {std::make_shared<SerialExecutor>(),   std::make_shared<ReverseExecutor>(),
                                              std::make_shared<LonelyExecutor>(),   std::make_shared<IdleExecutor>(),
                                              std::make_shared<LateExecutor>(4),    std::make_shared<ThreadExecutor>(3),
                                              std::make_shared<ThreadExecutor>(11), make_tbb_executor(4)};
  for (std::size_t e = 0; e < executors.size(); ++e) {
    for (const int participants : {1, 2, 4, 11}) {
      INFO("executor " << e << ", " << participants << " participants");
      PhaseRunner runner(participants);
      for (int repeat = 0; repeat < 5; ++repeat) {
        Chain chain(mixed_units());
        REQUIRE(chain.run(runner, executors[e]));
        CHECK(chain.result() == expected.result());
        CHECK(chain.ran == expected.ran);
      }
    }
  }
}

TEST_CASE("backend.phases: after a stop request each participant ends at most the unit it is in", "[backend]") {
  for (const int participants : {1, 2, 4}) {
    PhaseRunner runner(participants);
    const AnyExecutor executor = make_tbb_executor(participants);
    for (const std::int64_t at : {0, 17, 999}) {
      Chain chain({50, 1000, 1000});
      std::stop_source stop;
      chain.phases[1].stop_at_unit = &stop;
      chain.phases[1].stop_unit = at;
      std::atomic<std::int64_t> later{0};
      chain.phases[2].ran = &later;
      CHECK_FALSE(chain.run(runner, executor, stop.get_token()));
      // Units of other participants may have come before the one that asked; none of the next phase but by a race of
      // the last unit.
      CHECK(later <= participants);
      CHECK(chain.run(runner, executor));
      CHECK(chain.result().size() == 1000);
    }
  }
  // One thread: exact.
  PhaseRunner runner(1);
  Chain chain({10, 100, 100});
  std::stop_source stop;
  chain.phases[1].stop_at_unit = &stop;
  chain.phases[1].stop_unit = 17;
  CHECK_FALSE(chain.run(runner, std::make_shared<SerialExecutor>(), stop.get_token()));
  CHECK(chain.ran == 10 + 18);
}

TEST_CASE("backend.phases: an executor's exception arrives and the runner stays usable", "[backend]") {
  for (const bool after : {false, true}) {
    const auto broken = std::make_shared<BrokenExecutor>();
    broken->after = after;
    const AnyExecutor executor(broken);
    PhaseRunner runner(4);
    Chain chain(mixed_units());
    CHECK_THROWS_AS(chain.run(runner, executor), std::runtime_error);
    broken->broken = false;
    Chain again(mixed_units());
    Chain expected(mixed_units());
    PhaseRunner alone(1);
    REQUIRE(again.run(runner, executor));
    REQUIRE(expected.run(alone, std::make_shared<SerialExecutor>()));
    CHECK(again.result() == expected.result());
  }
}

namespace {

/// A phase that notes which pieces of its units were fetched ahead.
struct FetchedPhase : PhaseHead {
  struct Piece {
    std::int64_t unit, number;
  };
  std::vector<Piece>* pieces = nullptr;  ///< written by the only participant that waits
  std::atomic<std::int64_t>* fetched = nullptr;
  std::int64_t pieces_of_unit = 3;
};

bool fetch_noted(const PhaseHead& head, std::int64_t unit, std::int64_t piece) noexcept {
  const auto& phase = static_cast<const FetchedPhase&>(head);
  if (piece >= phase.pieces_of_unit) return false;
  if (phase.fetched->load() < static_cast<std::int64_t>(phase.pieces->size())) {
    (*phase.pieces)[static_cast<std::size_t>(phase.fetched->load())] = {unit, piece};
    phase.fetched->fetch_add(1);
  }
  return true;
}

/// One unit that lasts until enough was fetched, at most two seconds.
struct SlowPhase : PhaseHead {
  const std::atomic<std::int64_t>* fetched = nullptr;
  std::int64_t enough = 0;
};

}  // namespace

TEST_CASE("backend.phases: who waits fetches the pieces of its own next units, in order", "[backend]") {
  std::vector<FetchedPhase::Piece> pieces(1000);
  std::atomic<std::int64_t> fetched{0};
  SlowPhase slow;
  slow.units = 1;
  slow.fetched = &fetched;
  slow.enough = 27;  // nine units
  slow.run = [](const PhaseHead& head, std::int64_t, Participant&) noexcept {
    const auto& phase = static_cast<const SlowPhase&>(head);
    const auto start = std::chrono::steady_clock::now();
    while (phase.fetched->load() < phase.enough && std::chrono::steady_clock::now() - start < std::chrono::seconds(2))
      std::this_thread::yield();
  };
  FetchedPhase between;  // nothing to fetch: the phase behind it is looked at
  between.units = 2;
  between.run = [](const PhaseHead&, std::int64_t, Participant&) noexcept {};
  FetchedPhase next = between;
  next.units = 20;  // of which nine belong to each of two
  next.pieces = &pieces;
  next.fetched = &fetched;
  next.warm = fetch_noted;
  const std::vector<const PhaseHead*> heads = {&slow, &between, &next};
  PhaseRunner runner(2);
  std::vector<std::byte> memory(128);
  REQUIRE(runner.run(std::make_shared<ThreadExecutor>(2), heads.data(), 3, memory.data(), 64, {}));
  // Both wait: one for the slow unit, either for the other afterwards; the second finds its own share only.
  const auto count = static_cast<std::size_t>(fetched.load());
  REQUIRE(count >= 27);
  const std::int64_t first = pieces[0].unit;
  CHECK((first == 0 || first == 9));
  for (std::size_t i = 0; i < 27; ++i) {
    CHECK(pieces[i].unit == first + static_cast<std::int64_t>(i) / 3);
    CHECK(pieces[i].number == static_cast<std::int64_t>(i) % 3);
  }
}
