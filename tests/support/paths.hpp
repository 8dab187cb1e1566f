#pragma once

#include <string>

namespace skald_test {

/// Path of a file of the project, from its root.
std::string source_path(const std::string& relative);

/// Path in the reference data beside the project; tests that need it skip, saying so, when it is not there.
std::string shared_path(const std::string& relative);

/// A file of the bundled models.
std::string model_path(const std::string& name);

}  // namespace skald_test
