#include <skald/core/file.hpp>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <skald/core/byte_source.hpp>
#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

[[noreturn]] void refuse(const std::string& path, const char* what) {
  throw IoError("core.file", std::string(what) + ": " + std::strerror(errno), {.file = path});
}

bool write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return true;
}

}  // namespace

void write_file_atomically(const std::string& path, std::span<const std::byte> bytes) {
  std::string temporary = path + ".XXXXXX";
  const int fd = ::mkstemp(temporary.data());
  if (fd < 0) refuse(path, "cannot create a temporary file beside it");
  const bool written = ::fchmod(fd, 0644) == 0 && write_all(fd, bytes) && ::fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  if (!written || ::rename(temporary.c_str(), path.c_str()) != 0) {
    if (!written) errno = error;
    const int saved = errno;
    ::unlink(temporary.c_str());
    errno = saved;
    refuse(path, "cannot write");
  }
}

std::vector<std::byte> read_whole_file(const std::string& path) {
  const auto source = open_file(path);
  std::vector<std::byte> bytes(static_cast<std::size_t>(source.size()));
  source.read(0, bytes);
  return bytes;
}

}  // namespace skald::inline v0
