#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// Writes a new file piece by piece; it gets its name only at `commit`, so that at any moment `path` holds the whole
/// old or the whole new contents. Without `commit` nothing remains.
class SKALD_API AtomicFile {
 public:
  /// Creates a temporary file in the folder of `path`. @throws IoError.
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends. @throws IoError.
  void write(std::span<const std::byte> bytes);
  /// Syncs and renames. @throws IoError.
  void commit();

 private:
  std::string path_;
  std::string temporary_{};
  int fd_ = -1;
};

/// Writes a file so that at any moment it holds the whole old or the whole new contents (temporary file in the same
/// folder, sync, rename). @throws IoError.
SKALD_API void write_file_atomically(const std::string& path, std::span<const std::byte> bytes);
/// The whole file. @throws IoError.
[[nodiscard]] SKALD_API std::vector<std::byte> read_whole_file(const std::string& path);

}  // namespace skald::inline v0
