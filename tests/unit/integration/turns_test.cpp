// Memory of programs that wait for tools (Continuum, Li et al. 2025, arXiv 2511.02230).
#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <optional>

#include <skald/decoder/turn_keeper.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.dim = 64, .heads = 2, .kv_heads = 1, .head_dim = 32, .ffn = 64, .type = skald::DType::q8_0};

using Tokens = std::vector<skald::TokenId>;

enum class Rule { drop_at_once, pin_for_ever, time_to_live };

/// Programs of several turns on one machine, on a clock of our own: computing a token takes a tenth of a second, calls take
/// as long as their tool. Programs go first come, first served, as far as there is memory; the one that runs cannot be
/// stopped.
class Machine {
 public:
  static constexpr double token_seconds = 0.1;
  static constexpr std::int64_t page = 16;
  static constexpr std::int64_t memory_tokens = 512;
  static constexpr int turns = 5;
  static constexpr int programs = 12;

  explicit Machine(Rule rule)
      : rule_(rule),
        decoder_(tiny_model(shape, {.backend = cpu_with(1)}),
                 {.kv = {.page_tokens = page, .capacity_tokens = memory_tokens + 512}, .context = 512, .parallel = 4}),
        memory_(static_cast<std::size_t>(memory_tokens / page * 2) * page_bytes()),
        cache_(decoder_, {.fast_bytes = memory_, .clock = [this] { return now; }}),
        keeper_(cache_, {.clock = [this] { return now; },
                         .seconds_per_token = token_seconds,
                         .memory_bytes = memory_,
                         .first_guess = 5.0}) {
    for (int p = 0; p < programs; ++p) {
      auto& program = all_.emplace_back();
      program.name = "program " + std::to_string(p);
      program.arrival = program.ready = 8.0 * p;
      program.text = some_tokens(96, shape.vocabulary, 100 + static_cast<unsigned>(p));
    }
  }

  /// Mean seconds from arrival to end.
  double run() {
    for (;;) {
      Program* next = nullptr;
      double soonest = std::numeric_limits<double>::infinity();
      for (auto& program : all_) {
        if (program.done) continue;
        soonest = std::min(soonest, program.ready);
        if (program.ready <= now && next == nullptr && fits(program)) next = &program;
      }
      if (soonest == std::numeric_limits<double>::infinity()) break;
      if (next != nullptr) {
        turn(*next);
        continue;
      }
      // Somebody comes back later, or pins stand in the way of all.
      double later = std::numeric_limits<double>::infinity();
      for (const auto& program : all_)
        if (!program.done && program.ready > now) later = std::min(later, program.ready);
      if (later < std::numeric_limits<double>::infinity() || rule_ == Rule::time_to_live) now = std::min(later, now + 1);
      else if (!unpin_youngest()) throw std::runtime_error("nobody can go on");
    }
    double sum = 0;
    for (const auto& program : all_) sum += program.ended - program.arrival;
    return sum / programs;
  }

  double now = 0;
  std::int64_t computed = 0;
  [[nodiscard]] const skald::TurnKeeper& keeper() const { return keeper_; }
  [[nodiscard]] std::vector<Rows> answers() const {
    std::vector<Rows> rows;
    for (const auto& program : all_) rows.push_back(program.answer);
    return rows;
  }

 private:
  struct Program {
    std::string name{};
    double arrival = 0;
    double ready = 0;
    double ended = 0;
    int turn = 0;
    bool done = false;
    Tokens text{};
    skald::PrefixHandle pin{};
    Rows answer{};
  };

  [[nodiscard]] std::size_t page_bytes() const {
    auto session = decoder_.new_session();
    (void)session.forward(Tokens{1});
    const auto counters = decoder_.counters();
    return counters.kv_page_bytes_used / counters.kv_pages_used;
  }
  [[nodiscard]] std::size_t bytes_of(std::int64_t tokens) const {
    return static_cast<std::size_t>((tokens + page - 1) / page * 2) * memory_ / static_cast<std::size_t>(memory_tokens / page * 2);
  }
  /// Makes room for a program's turn, as far as nobody holds on to what is there.
  bool fits(const Program& program) {
    const auto tokens = static_cast<std::int64_t>(program.text.size());
    const auto known = cache_.match(program.text);
    const auto needed = bytes_of(tokens) - bytes_of(known / page * page);
    if (needed > memory_) return false;
    const skald::Session holds = known > 0 ? cache_.new_session(program.text) : decoder_.new_session();
    for (auto most = memory_ - needed;; most -= std::min(most, bytes_of(page))) {
      (void)cache_.shrink(most);  // which counts pages that are not shared alone
      if (decoder_.counters().kv_page_bytes_used + needed <= memory_) return true;
      if (most == 0) return false;
    }
  }
  void turn(Program& program) {
    auto session = rule_ == Rule::time_to_live ? keeper_.begin_turn(program.name, program.text) : cache_.new_session(program.text);
    const auto left = std::span(program.text).subspan(static_cast<std::size_t>(session.length()));
    computed += static_cast<std::int64_t>(left.size());
    program.answer = copy(session.forward(left));
    now += token_seconds * static_cast<double>(left.size());
    if (++program.turn == turns) {
      program.done = true;
      program.ended = now;
      program.pin = {};
      keeper_.end_program(program.name);
      return;
    }
    // Every third call builds something, the others look something up.
    const bool slow = (program.turn + static_cast<int>(program.arrival / 8)) % 3 == 0;
    if (rule_ == Rule::time_to_live) (void)keeper_.end_turn(program.name, slow ? "build" : "look up", session);
    if (rule_ == Rule::pin_for_ever) program.pin = cache_.insert(session);
    program.ready = now + (slow ? 150.0 : 2.0);
    const auto more = some_tokens(24, shape.vocabulary, 500 + static_cast<unsigned>(program.turn));
    program.text.insert(program.text.end(), more.begin(), more.end());
  }
  bool unpin_youngest() {
    for (auto program = all_.rbegin(); program != all_.rend(); ++program)
      if (program->pin) {
        program->pin = {};
        return true;
      }
    return false;
  }

  Rule rule_;
  skald::Decoder<> decoder_;
  std::size_t memory_;
  skald::PrefixCache cache_;
  skald::TurnKeeper keeper_;
  std::vector<Program> all_;
};

}  // namespace

TEST_CASE("integration.turns: times of calls are kept for each tool, and give the time for which keeping pays most") {
  skald::ToolStatistics statistics(8);
  CHECK(statistics.time_to_live("search", 1, 10, 0.5, 3.0) == 3.0);  // nothing is known
  for (const double seconds : {1.0, 2.0, 3.0, 40.0}) statistics.record_call("search", seconds);
  statistics.record_call("build", 200.0);
  CHECK(statistics.tools() == std::vector<std::string>{"build", "search"});
  const auto search = statistics.of("search");
  CHECK(search.calls == 4);
  CHECK(search.mean == Approx(11.5));
  CHECK(search.shortest == 1.0);
  CHECK(search.longest == 40.0);
  CHECK(statistics.of("other").calls == 0);
  CHECK(statistics.within("search", 2.5) == 0.5);
  CHECK(statistics.within("build", 2.5) == 0.0);
  CHECK(statistics.within("other", 40.0) == 0.8);  // as all together
  // Three of four return soon: 7.5 of 10 seconds for 2.3 held on average; waiting for the last wins no more.
  CHECK(statistics.time_to_live("search", 1, 10, 0.5) == Approx(3.3));
  CHECK(statistics.time_to_live("search", 1, 1000, 0.5) == Approx(44.0));
  CHECK(statistics.time_to_live("search", 1, 0.1, 0.5) == 0.0);
  CHECK(statistics.time_to_live("build", 1, 10, 0.5) == 0.0);
  CHECK(statistics.time_to_live("build", 1, 10, 0.0) == Approx(220.0));
  // Programs that are given up at some turn do not come back from it.
  CHECK(statistics.comes_back(2) == 1.0);
  for (int i = 0; i < 3; ++i) statistics.record_program(2, true);
  CHECK(statistics.comes_back(1) == 1.0);
  CHECK(statistics.comes_back(2) == 0.25);
  CHECK(statistics.time_to_live("search", 2, 3, 0.5) < statistics.time_to_live("search", 1, 3, 0.5));
  // The oldest are forgotten.
  for (int i = 0; i < 8; ++i) statistics.record_call("search", 60.0);
  CHECK(statistics.within("search", 40.0) == 0.0);
  CHECK(statistics.of("search").calls == 12);
  CHECK_THROWS_AS(statistics.record_call("search", -1.0), skald::UsageError);
}

TEST_CASE("integration.turns: a call that returns in time computes its new tokens only, a slow one lets the memory go") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  const skald::Decoder decoder(model, {.kv = {.page_tokens = 16}, .parallel = 4});
  double now = 0;
  const auto clock = [&] { return now; };
  skald::PrefixCache cache(decoder, {.clock = clock});
  skald::TurnKeeper keeper(cache, {.clock = clock, .seconds_per_token = 0.1, .memory_bytes = std::size_t{1} << 16, .first_guess = 5});
  auto text = some_tokens(80, shape.vocabulary);
  const auto turn = [&](double seconds) {
    auto session = keeper.begin_turn("a", text);
    const auto known = session.length();
    (void)session.forward(std::span(text).subspan(static_cast<std::size_t>(known)), skald::LogitsWanted::none);
    CHECK(keeper.end_turn("a", seconds < 10 ? "fast" : "slow", session) >= 0.0);
    CHECK_THROWS_AS(keeper.end_turn("a", "fast", session), skald::UsageError);
    session.clear();
    now += seconds;
    (void)cache.shrink(0);  // others want the memory
    text.push_back(3);
    return known;
  };
  CHECK(turn(2) == 0);
  CHECK(turn(2) == 80);
  CHECK(turn(1000) == 81);
  CHECK(decoder.counters().kv_pages_used == 0);  // the time had passed
  CHECK(turn(1000) == 0);
  CHECK(keeper.statistics().of("slow").calls == 1);
  CHECK(turn(2) == 0);
  CHECK(turn(2) == 84);
  CHECK(keeper.counters().turns == 6);
  CHECK(keeper.counters().in_time == 3);
  keeper.end_program("a");
  keeper.end_program("unknown");
  CHECK_THROWS_AS(skald::TurnKeeper(cache, {.seconds_per_token = -1}), skald::UsageError);
}

TEST_CASE("integration.turns: under memory pressure programs end sooner than with memory dropped at once or pinned for ever") {
  Machine dropping(Rule::drop_at_once);
  Machine pinning(Rule::pin_for_ever);
  Machine keeping(Rule::time_to_live);
  const double dropped = dropping.run();
  const double pinned = pinning.run();
  const double kept = keeping.run();
  INFO("mean seconds to completion: dropped at once " << dropped << ", pinned for ever " << pinned << ", for a time " << kept
                                                      << "; tokens computed " << dropping.computed << ", " << pinning.computed << ", "
                                                      << keeping.computed);
  CHECK(kept < 0.9 * dropped);
  CHECK(kept < 0.9 * pinned);
  CHECK(keeping.keeper().statistics().of("look up").calls > 10);
  CHECK(keeping.keeper().statistics().of("build").mean > 100);
  CHECK(keeping.keeper().counters().in_time > 0);
  const auto answers = keeping.answers();
  for (std::size_t i = 0; i < answers.size(); ++i) {
    CHECK(same_bits(answers[i], dropping.answers()[i]));
    CHECK(same_bits(answers[i], pinning.answers()[i]));
  }
}
