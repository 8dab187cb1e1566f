#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// Writes a file so that at any moment it holds the whole old or the whole new contents (temporary file in the same
/// folder, sync, rename). @throws IoError.
SKALD_API void write_file_atomically(const std::string& path, std::span<const std::byte> bytes);
/// The whole file. @throws IoError.
[[nodiscard]] SKALD_API std::vector<std::byte> read_whole_file(const std::string& path);

}  // namespace skald::inline v0
