#pragma once

/// The single source of the project's version; CMake reads these three lines.
#define SKALD_VERSION_MAJOR 0
#define SKALD_VERSION_MINOR 1
#define SKALD_VERSION_PATCH 0
