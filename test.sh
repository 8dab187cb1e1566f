#!/usr/bin/env bash
# Builds skald in build/ and runs all tests. Missing packages are installed from the distribution.
#   ./test.sh [ctest arguments]
# SKALD_CMAKE_OPTIONS may hold further options of cmake, e.g. -DSKALD_WERROR=ON.
set -euo pipefail
cd "$(dirname "$0")"
source tools/dev/packages.sh

need_packages "${build_packages[@]}" "${test_packages[@]}"
configure build -DCMAKE_BUILD_TYPE=Release -DSKALD_BUILD_TESTING=ON -DSKALD_BUILD_EXAMPLES=ON -DSKALD_BUILD_PROGRAMS=ON \
  -DSKALD_GROUP_SOURCES=ON \
  ${SKALD_CMAKE_OPTIONS:-} >/dev/null
cmake --build build --parallel "$(jobs)"
ctest --test-dir build --output-on-failure --parallel "$(nproc)" "$@"
