#include <skald/skald.hpp>

const char* version_seen_by_the_other() { return skald::library_version(); }
std::size_t row_bytes_seen_by_the_other() { return skald::row_bytes(skald::DType::q8_0, 64); }
