#include <skald/state/eviction.hpp>

#include <skald/core/spec_string.hpp>

namespace skald::inline v0 {

AnyEviction AnyEviction::from_spec(std::string_view spec) {
  if (spec.empty()) return {};
  SpecString parsed(spec);
  AnyEviction result;
  if (parsed.name() == "recent_pages") {
    RecentPages policy;
    policy.sinks = static_cast<int>(parsed.integer("sinks", policy.sinks, 0, 1 << 20));
    policy.recent = static_cast<int>(parsed.integer("recent", policy.recent, 1, 1 << 20));
    result = policy;
  } else if (parsed.name() != "none") {
    throw UsageError("state.eviction",
                     "no eviction policy is called '" + parsed.name() + "'; there are: none, recent_pages");
  }
  parsed.finish();
  return result;
}

}  // namespace skald::inline v0
