#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"

namespace skald_test {

/// True if the file or folder is there; otherwise warns that the test is skipped. Use: `if (!have_shared("…")) return;`
inline bool have_shared(const std::string& relative) {
  if (std::filesystem::exists(shared_path(relative))) return true;
  WARN("skipped: reference data '" << relative << "' is not beside the project");
  return false;
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Little-endian float32 file.
inline std::vector<float> read_floats(const std::string& path) {
  const std::string bytes = read_text(path);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::copy(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(values.size() * sizeof(float)),
            reinterpret_cast<char*>(values.data()));
  return values;
}

}  // namespace skald_test
