#include <skald/core/file.hpp>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <skald/core/byte_source.hpp>
#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

[[noreturn]] void refuse(const std::string& path, const char* what) {
  throw IoError("core.file", std::string(what) + ": " + std::strerror(errno), {.file = path});
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  // Not mkstemp: the file shall get the permissions that the process's umask asks for.
  for (int attempt = 0; attempt < 100 && fd_ < 0; ++attempt) {
    temporary_ = path_ + ".part" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno != EEXIST) break;
  }
  if (fd_ < 0) refuse(path_, "cannot create a temporary file beside it");
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (fd_ < 0) throw UsageError("core.file", "the file is already complete", {.file = path_});
  while (!bytes.empty()) {
    const auto written = ::write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) refuse(path_, "cannot write");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::commit() {
  if (fd_ < 0) throw UsageError("core.file", "the file is already complete", {.file = path_});
  // Without the sync, a power cut after the rename can leave a named but empty file.
  if (::fsync(fd_) != 0) refuse(path_, "cannot write");
  if (::close(std::exchange(fd_, -1)) != 0) refuse(path_, "cannot write");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) refuse(path_, "cannot rename the temporary file to it");
  temporary_.clear();
}

void write_file_atomically(const std::string& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

std::vector<std::byte> read_whole_file(const std::string& path) {
  const auto source = open_file(path);
  std::vector<std::byte> bytes(static_cast<std::size_t>(source.size()));
  source.read(0, bytes);
  return bytes;
}

}  // namespace skald::inline v0
