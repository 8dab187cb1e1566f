#include <skald/state/keys_first_kv.hpp>

#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

void KeysFirstKv::append(std::int64_t count) {
  front_->append(count);
  try {
    back_->append(count);
  } catch (...) {
    front_->remove_last(count);
    throw;
  }
}

void KeysFirstKv::remove_last(std::int64_t count) {
  front_->remove_last(count);
  back_->remove_last(count);
}

void KeysFirstKv::select_last(std::int64_t count, std::span<const std::int32_t> rows) {
  front_->select_last(count, rows);
  back_->select_last(count, rows);
}

std::unique_ptr<LayerState> KeysFirstKv::fork() const {
  return std::make_unique<KeysFirstKv>(fork_part(*front_), fork_part(*back_));
}

void KeysFirstKv::load(ArchiveReader& in) {
  try {
    front_->load(in);
    back_->load(in);
    if (front_->length() != back_->length()) in.refuse("values", "there is not one for each key");
  } catch (...) {
    clear();
    throw;
  }
}

Buffer make_file_memory(const std::string& directory, std::size_t bytes) {
  const auto fail = [&](const std::string& what) {
    throw IoError("state.file_memory", what + ": " + std::system_category().message(errno), {.file = directory});
  };
  const std::string path = directory + "/skald-values-XXXXXX";
  std::vector<char> name(path.begin(), path.end());
  name.push_back('\0');
  const int file = ::mkstemp(name.data());
  if (file < 0) fail("no file can be made in this directory");
  ::unlink(name.data());
  const std::size_t size = bytes > 0 ? bytes : 1;
  void* memory = MAP_FAILED;
  if (::ftruncate(file, static_cast<off_t>(size)) == 0)
    memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int error = errno;
  ::close(file);
  errno = error;
  if (memory == MAP_FAILED) fail("a file of " + std::to_string(size) + " bytes cannot be mapped");
  std::shared_ptr<void> owner(memory, [size](void* at) { ::munmap(at, size); });
  return {std::move(owner), static_cast<std::byte*>(memory), bytes, true};
}

}  // namespace skald::inline v0
