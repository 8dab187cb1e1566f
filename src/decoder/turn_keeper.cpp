#include <skald/decoder/turn_keeper.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "decoder.turn_keeper";

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void check(double value, std::string_view name) {
  if (!std::isfinite(value) || value < 0)
    throw UsageError(where, std::string(name) + " is " + std::to_string(value) + ", 0 or more is allowed");
}

template <class T>
void push(std::vector<T>& ring, std::size_t& next, std::size_t most, T value) {
  if (ring.size() < most) ring.push_back(value);
  else ring[next] = value;
  next = (next + 1) % most;
}

}  // namespace

void ToolStatistics::record_call(std::string_view tool, double seconds) {
  check(seconds, "the time of a call");
  auto found = tools_.find(tool);
  if (found == tools_.end()) found = tools_.emplace(std::string(tool), Calls{}).first;
  auto& [summary, ring, next] = found->second;
  ++summary.calls;
  summary.mean += (seconds - summary.mean) / static_cast<double>(summary.calls);
  summary.shortest = summary.calls == 1 ? seconds : std::min(summary.shortest, seconds);
  summary.longest = std::max(summary.longest, seconds);
  push(ring, next, remembered_, seconds);
}

void ToolStatistics::record_program(std::int64_t calls, bool given_up) {
  push(programs_, next_, remembered_, Program{calls, given_up});
}

ToolStatistics::Summary ToolStatistics::of(std::string_view tool) const {
  const auto found = tools_.find(tool);
  return found == tools_.end() ? Summary{} : found->second.summary;
}

std::vector<std::string> ToolStatistics::tools() const {
  std::vector<std::string> names;
  for (const auto& [name, calls] : tools_) names.push_back(name);
  return names;
}

/// Times of a tool, or of all if it was never called, ascending.
std::vector<double> ToolStatistics::known(std::string_view tool) const {
  std::vector<double> seconds;
  if (const auto found = tools_.find(tool); found != tools_.end()) {
    seconds = found->second.seconds;
  } else {
    for (const auto& [name, calls] : tools_) seconds.insert(seconds.end(), calls.seconds.begin(), calls.seconds.end());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

double ToolStatistics::within(std::string_view tool, double seconds) const {
  const auto all = known(tool);
  if (all.empty()) return 0.0;
  const auto count = std::upper_bound(all.begin(), all.end(), seconds) - all.begin();
  return static_cast<double>(count) / static_cast<double>(all.size());
}

double ToolStatistics::comes_back(std::int64_t turn) const {
  double came = 1;
  double back = 1;
  for (const auto& program : programs_) {
    came += program.calls >= turn ? 1 : 0;
    back += program.calls > turn || (program.calls == turn && !program.given_up) ? 1 : 0;
  }
  return back / came;
}

double ToolStatistics::time_to_live(std::string_view tool, std::int64_t turn, double gain, double rent,
                                    double guess) const {
  check(gain, "gain");
  check(rent, "rent");
  check(guess, "guess");
  const auto all = known(tool);
  if (all.empty()) return guess;
  const auto count = static_cast<double>(all.size());
  const double chance = comes_back(turn);
  double best = 0.0;
  double best_time = 0.0;
  double before = 0.0;  // seconds of the calls that return within the time
  for (std::size_t i = 0; i < all.size(); ++i) {
    before += all[i];
    if (i + 1 < all.size() && all[i + 1] == all[i]) continue;
    const double time = 1.1 * all[i];
    const auto returned = static_cast<double>(i + 1);
    // Who does not return in time, or at all, holds the memory for all of it.
    const double held = chance * (before + (count - returned) * time) / count + (1 - chance) * time;
    const double won = chance * gain * returned / count - rent * held;
    if (won > best) {
      best = won;
      best_time = time;
    }
  }
  return best_time;
}

TurnKeeper::TurnKeeper(PrefixCache& cache, TurnKeeperOptions options)
    : cache_(&cache), options_(std::move(options)), statistics_(options_.remembered) {
  check(options_.seconds_per_token, "seconds_per_token");
  check(options_.queue_seconds, "queue_seconds");
  check(options_.first_guess, "first_guess");
  if (options_.memory_bytes == 0) throw UsageError(where, "memory_bytes is 0, 1 or more is allowed");
  if (!options_.clock) options_.clock = steady_seconds;
}

double TurnKeeper::end_turn(std::string_view program, std::string_view tool, const Session& session,
                            std::string_view scope) {
  if (tool.empty()) throw UsageError(where, "a turn that ends without a call of a tool ends the program: end_program");
  auto found = programs_.find(program);
  if (found == programs_.end()) found = programs_.emplace(std::string(program), Program{}).first;
  auto& state = found->second;
  if (!state.tool.empty())
    throw UsageError(where, "program '" + std::string(program) + "' waits for '" + state.tool + "' already");
  const double gain = static_cast<double>(session.length()) * options_.seconds_per_token + options_.queue_seconds;
  const double rent = static_cast<double>(session.bytes()) / static_cast<double>(options_.memory_bytes);
  const double time = statistics_.time_to_live(tool, state.turns + 1, gain, rent, options_.first_guess);
  if (time > 0) cache_->keep_for(session, time, scope);
  ++state.turns;
  state.tool = tool;
  state.called = options_.clock();
  state.kept_until = state.called + time;
  ++counters_.turns;
  counters_.kept += time > 0 ? 1 : 0;
  return time;
}

Session TurnKeeper::begin_turn(std::string_view program, std::span<const TokenId> tokens, std::string_view scope) {
  if (const auto found = programs_.find(program); found != programs_.end() && !found->second.tool.empty()) {
    auto& state = found->second;
    const double now = options_.clock();
    statistics_.record_call(state.tool, std::max(0.0, now - state.called));
    state.tool.clear();
    if (state.kept_until > state.called) ++(now <= state.kept_until ? counters_.in_time : counters_.too_late);
  }
  return cache_->new_session(tokens, scope);
}

void TurnKeeper::end_program(std::string_view program) {
  const auto found = programs_.find(program);
  if (found == programs_.end()) return;
  statistics_.record_program(found->second.turns, !found->second.tool.empty());
  programs_.erase(found);
}

}  // namespace skald::inline v0
