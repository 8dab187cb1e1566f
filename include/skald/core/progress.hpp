#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string_view>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

/// How far a long call has come. `done` never decreases within a stage and ends equal to `total`.
struct Progress {
  std::string_view stage{};  ///< what is being done, e.g. "repack"
  std::uint64_t done = 0;    ///< units done (bytes while loading, tokens while prefilling)
  std::uint64_t total = 0;   ///< units in all
};

/// Called from the thread that made the long call. It may throw: the call then ends with that exception.
using ProgressCallback = std::function<void(const Progress&)>;

/// @throws CancelledError if a stop was requested.
inline void throw_if_stopped(const std::stop_token& stop, std::string_view where) {
  if (stop.stop_requested()) detail::throw_error(ErrorCode::cancelled, where, "stop was requested");
}

}  // namespace skald::inline v0
