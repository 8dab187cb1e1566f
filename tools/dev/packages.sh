# Sourced by demo.sh, test.sh and .ci/run: the packages that skald is built from, and how to get them.

build_packages=(cmake ninja-build g++ libfmt-dev libtbb-dev libeigen3-dev nlohmann-json3-dev libpcre2-dev
  libutf8proc-dev libcli11-dev)
test_packages=(catch2 binutils pkg-config)
ci_packages=(clang libclang-rt-14-dev libbenchmark-dev git)

# need_packages NAME...: installs what is missing with apt-get, through sudo unless this is root.
need_packages() {
  local missing=() package
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "This system has no apt-get; on Debian and Ubuntu these packages are needed: $*"
    echo "Going on in the hope that their equivalents are installed."
    return 0
  fi
  for package in "$@"; do
    if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then missing+=("$package"); fi
  done
  if [ ${#missing[@]} -eq 0 ]; then return 0; fi

  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "error: missing packages: ${missing[*]}" >&2
      echo "Neither root nor sudo is here to install them. As root: apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo)
  fi
  echo "Installing: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    >/dev/null
}

# jobs: compile jobs at once; one for each processor, but no more than memory allows (about 1.2 GB each).
jobs() {
  local processors memory
  processors=$(nproc)
  memory=$(awk '/MemAvailable/ {print int($2 / 1200000)}' /proc/meminfo)
  if [ "$memory" -lt 1 ]; then memory=1; fi
  echo $((processors < memory ? processors : memory))
}

# configure FOLDER OPTION...: Ninja for a new build folder; an existing one keeps its generator.
configure() {
  local folder=$1 generator=()
  shift
  if [ ! -e "$folder/CMakeCache.txt" ] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S . -B "$folder" "${generator[@]}" "$@"
}
