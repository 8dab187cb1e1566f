#pragma once

#include <functional>
#include <string_view>

#include <skald/config.hpp>

namespace skald::inline v0 {

enum class LogLevel { debug, info, warning, error };

/// One event. The views live only during the call.
struct LogEvent {
  LogLevel level = LogLevel::info;
  std::string_view category{};  ///< room, e.g. "model"
  std::string_view message{};   ///< one line, no prompt text below `debug`
};

/// Receives events of one model or decoder; empty (the default) means silence. Called from any thread that
/// runs a library call; must not call back into the object that logs.
using LogSink = std::function<void(const LogEvent&)>;

}  // namespace skald::inline v0
