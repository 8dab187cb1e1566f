#!/usr/bin/env bash
# Builds skald in build/ and tells a story with the bundled model. Missing packages are installed from the distribution.
#   ./demo.sh [prompt]
set -euo pipefail
cd "$(dirname "$0")"
source tools/dev/packages.sh

need_packages "${build_packages[@]}"
configure build -DCMAKE_BUILD_TYPE=Release -DSKALD_BUILD_TESTING=OFF -DSKALD_BUILD_EXAMPLES=OFF -DSKALD_BUILD_PROGRAMS=ON \
  >/dev/null
cmake --build build --parallel "$(jobs)" --target skald_cli
echo
build/bin/skald generate -m models/skald-tiny-q8_0.gguf -p "${1:-Once upon a time}" -n 300 --temp 0.7 --seed "${SEED:-1}"
