#!/usr/bin/env bash
# Tests of the installed package.
#   run.sh STEP WORK_FOLDER SOURCE BUILD CXX
# `install` makes WORK_FOLDER/prefix, which the other steps use. Where the system allows it, they run with the source
# tree hidden and without a network (own mount and network namespaces); otherwise they say so and go on.
set -euo pipefail
step=$1 work=$2 source=$3 build=$4 cxx=$5
prefix=$work/prefix

fail() { echo "FAILED: $*"; exit 1; }

isolate=()
if unshare -mn true 2>/dev/null && unshare -m mount -t tmpfs none "$source" 2>/dev/null; then
  isolate=(unshare -mn bash -c 'mount -t tmpfs none "$0" && cd / && exec "$@"' "$source")
fi
isolated() { if [ ${#isolate[@]} -gt 0 ]; then (cd / && "${isolate[@]}" "$@"); else "$@"; fi; }
if [ ${#isolate[@]} -eq 0 ]; then echo "note: this system cannot hide the source tree from the consumer"; fi

generator=()
if command -v ninja >/dev/null; then generator=(-G Ninja); fi

# consumer NAME CMAKE_OPTION...: configures and builds a copy of tests/package/NAME against the prefix.
consumer() {
  local name=$1
  shift
  rm -rf "$work/build-$name"
  isolated cmake -S "$work/consumers/$name" -B "$work/build-$name" "${generator[@]}" -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=Release -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF "$@"
  isolated cmake --build "$work/build-$name"
}

# install_tree BUILD PREFIX: installs to a first place and moves that, so that nothing may hold on to the place.
install_tree() {
  rm -rf "$2" "$2-first"
  cmake --install "$1" --prefix "$2-first" >/dev/null
  mv "$2-first" "$2"
  if grep -rlF -e "$source/" -e "$build/" -e "$2-first" "$2"; then fail "these installed files name the source tree"; fi
}

pkg_config() { PKG_CONFIG_PATH=$(dirname "$(find "$1" -name skald.pc)") pkg-config "${@:2}"; }

# pkg_config_consumer PREFIX: compiles the consumer with what pkg-config says, nothing else.
pkg_config_consumer() {
  local flags libs
  flags=$(pkg_config "$1" --cflags skald)
  libs=$(pkg_config "$1" --libs skald)
  # shellcheck disable=SC2086
  isolated "$cxx" -std=c++20 -O1 -DMODEL='""' $flags "$work/consumers/find_package/main.cpp" -o "$work/pkg_config_consumer" $libs
  LD_LIBRARY_PATH=$(dirname "$(find "$1" -name 'libskald.*' | head -1)") isolated "$work/pkg_config_consumer" \
    "$1/share/skald/models/skald-tiny-q8_0.gguf"
}

case $step in
  install)
    rm -rf "$work"
    mkdir -p "$work"
    cp -r "$source/tests/package" "$work/consumers"
    cp -r "$source/examples" "$work/consumers/examples"
    install_tree "$build" "$prefix"
    ;;
  find_package)
    consumer find_package
    isolated "$work/build-find_package/consumer"
    ;;
  two_units)
    consumer two_units
    isolated "$work/build-two_units/two_units"
    ;;
  no_rtti)
    consumer no_rtti
    isolated "$work/build-no_rtti/no_rtti"
    ;;
  examples)
    consumer examples
    isolated "$work/build-examples/hello_generate"
    ;;
  pkg_config)
    pkg_config_consumer "$prefix"
    ;;
  missing_component)
    # CMake wraps its messages, so blanks and line breaks count alike.
    if output=$(consumer missing_component -DCOMPONENT=cuda 2>&1); then fail "a missing component was accepted"; fi
    grep -qF "without component 'cuda' (available: cpu" <<<"$(tr -s ' \n' ' ' <<<"$output")" || fail "no clear message: $output"
    ;;
  wrong_version)
    mkdir -p "$work/consumers/wrong_version"
    sed 's/find_package(skald [0-9.]*/find_package(skald 99.0/' "$work/consumers/find_package/CMakeLists.txt" \
      >"$work/consumers/wrong_version/CMakeLists.txt"
    if output=$(consumer wrong_version 2>&1); then fail "version 99.0 was found"; fi
    grep -qF 'version: 0.' <<<"$output" || fail "the message does not name the version that is there: $output"
    ;;
  subproject)
    # As a subproject, built as a shared library, in Debug; then installed from there.
    rm -rf "$work/build-subproject"
    cmake -S "$source/tests/package/fetch_content" -B "$work/build-subproject" "${generator[@]}" -DSKALD_SOURCE="$source" \
      -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-g0 -DBUILD_SHARED_LIBS=ON \
      -DSKALD_INSTALL=ON -DSKALD_AVX512=OFF -DFETCHCONTENT_FULLY_DISCONNECTED=ON
    cmake --build "$work/build-subproject"
    "$work/build-subproject/host" "$source/models/skald-tiny-q8_0.gguf"
    ;;
  shared)
    install_tree "$work/build-subproject" "$work/prefix-shared"
    prefix=$work/prefix-shared
    consumer find_package
    isolated "$work/build-find_package/consumer"
    pkg_config_consumer "$prefix"
    if pkg_config "$prefix" --libs skald | grep -qE 'fmt|tbb|pcre2'; then fail "the shared library leaks its dependencies"; fi
    library=$(find "$prefix" -name 'libskald.so')
    # Everything that is defined strongly and exported lies in the versioned namespace.
    if nm -DC --defined-only "$library" | awk '$2 ~ /[TDBR]/' | grep -v ' skald::v0::' |
      grep -vE ' (typeinfo|vtable|typeinfo name|guard variable|VTT) for skald::v0::'; then
      fail "the shared library exports these symbols"
    fi
    ;;
  *) fail "unknown step $step" ;;
esac
echo "ok: $step"
