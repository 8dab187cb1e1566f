#include "support/paths.hpp"

namespace skald_test {

std::string source_path(const std::string& relative) { return std::string(SKALD_SOURCE_DIR "/") + relative; }
std::string shared_path(const std::string& relative) { return source_path("../shared/" + relative); }
std::string model_path(const std::string& name) { return source_path("models/" + name); }

}  // namespace skald_test
