#include <skald/core/byte_source.hpp>

#include <cerrno>
#include <cstring>
#include <limits>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

bool inside(std::uint64_t size, std::uint64_t offset, std::uint64_t length) noexcept {
  return offset <= size && length <= size - offset;
}

[[noreturn]] void throw_outside(const std::string& name, std::uint64_t offset, std::uint64_t length,
                                std::uint64_t size) {
  throw IoError("core.byte_source",
                "cannot read " + std::to_string(length) + " bytes: the source has " + std::to_string(size),
                {.file = name, .offset = offset});
}

[[noreturn]] void throw_errno(const std::string& path, const char* what, int error) {
  throw IoError("core.byte_source", std::string(what) + ": " + std::strerror(error), {.file = path});
}

class FileDescriptor {
 public:
  explicit FileDescriptor(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) throw_errno(path, "cannot open", errno);
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&&) = delete;

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] std::uint64_t size(const std::string& path) const {
    struct stat info {};
    if (::fstat(fd_, &info) != 0) throw_errno(path, "cannot stat", errno);
    if (!S_ISREG(info.st_mode)) throw IoError("core.byte_source", "not a regular file", {.file = path});
    return static_cast<std::uint64_t>(info.st_size);
  }

 private:
  int fd_;
};

class FileSource {
 public:
  explicit FileSource(const std::string& path) : path_(path), fd_(path), size_(fd_.size(path)) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
      const auto got = ::pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
      if (got < 0) {
        if (errno == EINTR) continue;
        throw IoError("core.byte_source", std::string("cannot read: ") + std::strerror(errno),
                      {.file = path_, .offset = offset});
      }
      if (got == 0) throw IoError("core.byte_source", "the file became shorter", {.file = path_, .offset = offset});
      offset += static_cast<std::uint64_t>(got);
      out = out.subspan(static_cast<std::size_t>(got));
    }
  }
  void release(std::uint64_t offset, std::size_t length) const noexcept {
    ::posix_fadvise(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_DONTNEED);
  }

 private:
  std::string path_;
  FileDescriptor fd_;
  std::uint64_t size_;
};

class MapSource {
 public:
  explicit MapSource(const std::string& path) {
    const FileDescriptor fd(path);
    const auto size = fd.size(path);
    if (size > std::numeric_limits<std::size_t>::max())
      throw IoError("core.byte_source", "too large to map", {.file = path});
    size_ = static_cast<std::size_t>(size);
    if (size_ == 0) return;
    void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (data == MAP_FAILED) throw_errno(path, "cannot map", errno);
    data_ = static_cast<const std::byte*>(data);
  }
  ~MapSource() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
  }
  MapSource(MapSource&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MapSource& operator=(MapSource&&) = delete;

  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    std::memcpy(out.data(), data_ + offset, out.size());
  }
  [[nodiscard]] std::span<const std::byte> view(std::uint64_t offset, std::size_t length) const noexcept {
    return {data_ + offset, length};
  }
  void release(std::uint64_t offset, std::size_t length) const noexcept {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = (offset + page - 1) / page * page;
    const auto end = (offset + length) / page * page;
    if (begin < end) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
  }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace

void AnyByteSource::read(std::uint64_t offset, std::span<std::byte> out) const {
  if (!inside(size(), offset, out.size())) throw_outside(name_, offset, out.size(), size());
  if (!out.empty()) self_->read(offset, out);
}

std::span<const std::byte> AnyByteSource::view(std::uint64_t offset, std::size_t length) const {
  if (length == 0 || !inside(size(), offset, length)) return {};
  return self_->view(offset, length);
}

void SpanSource::read(std::uint64_t offset, std::span<std::byte> out) const {
  if (!inside(bytes_.size(), offset, out.size())) throw_outside("memory", offset, out.size(), bytes_.size());
  if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
}

std::span<const std::byte> SpanSource::view(std::uint64_t offset, std::size_t length) const noexcept {
  if (!inside(bytes_.size(), offset, length)) return {};
  return bytes_.subspan(static_cast<std::size_t>(offset), length);
}

SliceSource::SliceSource(AnyByteSource whole, std::uint64_t offset, std::uint64_t size)
    : whole_(std::move(whole)), offset_(offset), size_(size) {
  if (!inside(whole_.size(), offset, size))
    throw UsageError("core.byte_source", "the slice does not lie inside the source",
                     {.file = whole_.name(), .offset = offset});
}

void SliceSource::read(std::uint64_t offset, std::span<std::byte> out) const {
  if (!inside(size_, offset, out.size())) throw_outside(whole_.name(), offset, out.size(), size_);
  whole_.read(offset_ + offset, out);
}

std::span<const std::byte> SliceSource::view(std::uint64_t offset, std::size_t length) const {
  if (!inside(size_, offset, length)) return {};
  return whole_.view(offset_ + offset, length);
}

void SliceSource::release(std::uint64_t offset, std::size_t length) const {
  if (inside(size_, offset, length)) whole_.release(offset_ + offset, length);
}

AnyByteSource open_file(const std::string& path) { return {FileSource(path), path}; }
AnyByteSource map_file(const std::string& path) { return {MapSource(path), path}; }

}  // namespace skald::inline v0
