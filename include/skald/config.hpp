#pragma once

#include <skald/version.hpp>

/// Marks what the compiled part of the library exports. Everything else is hidden.
#if defined(__GNUC__) || defined(__clang__)
#define SKALD_API __attribute__((visibility("default")))
#else
#define SKALD_API
#endif

/// All of skald lives in `namespace skald::inline v0`, so that two versions can meet in one program.
namespace skald::inline v0 {
/// Version of the headers, as {major, minor, patch}.
struct Version {
  int major = SKALD_VERSION_MAJOR;
  int minor = SKALD_VERSION_MINOR;
  int patch = SKALD_VERSION_PATCH;
};
/// Version of the compiled library that is linked, e.g. "0.1.0".
[[nodiscard]] SKALD_API const char* library_version() noexcept;
}  // namespace skald::inline v0
