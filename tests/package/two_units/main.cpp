// Two translation units include every header: nothing may be defined twice.
#include <cstring>

#include <skald/skald.hpp>

const char* version_seen_by_the_other();
std::size_t row_bytes_seen_by_the_other();

int main() {
  const bool same_version = std::strcmp(version_seen_by_the_other(), skald::library_version()) == 0;
  return same_version && row_bytes_seen_by_the_other() == skald::row_bytes(skald::DType::q8_0, 64) ? 0 : 1;
}
