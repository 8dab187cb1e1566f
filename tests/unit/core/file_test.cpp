#include <skald/core/file.hpp>

#include <filesystem>

#include <skald/core/error.hpp>

#include "support/catch.hpp"

using namespace skald;

namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

}  // namespace

TEST_CASE("core.file: a file holds the old contents until commit and the new ones after it") {
  std::string pattern = (std::filesystem::temp_directory_path() / "skald_file_XXXXXX").string();
  const std::filesystem::path folder = ::mkdtemp(pattern.data());
  const auto path = (folder / "data").string();
  const auto files = [&] { return std::distance(std::filesystem::directory_iterator(folder), {}); };

  write_file_atomically(path, bytes_of("old"));
  CHECK(read_whole_file(path) == bytes_of("old"));
  {
    AtomicFile file(path);
    file.write(bytes_of("new "));
    CHECK(read_whole_file(path) == bytes_of("old"));
    AtomicFile second(path);
    file.write(bytes_of("contents"));
    file.commit();
    CHECK(read_whole_file(path) == bytes_of("new contents"));
    CHECK_THROWS_AS(file.write(bytes_of("more")), UsageError);
    CHECK_THROWS_AS(file.commit(), UsageError);
    second.write(bytes_of("abandoned"));
  }
  CHECK(read_whole_file(path) == bytes_of("new contents"));
  CHECK(files() == 1);

  CHECK_THROWS_AS(AtomicFile((folder / "absent" / "data").string()), IoError);
  std::filesystem::create_directory(folder / "taken");
  CHECK_THROWS_AS(write_file_atomically((folder / "taken").string(), bytes_of("x")), IoError);
  CHECK(files() == 2);
  CHECK_THROWS_AS(read_whole_file((folder / "absent").string()), IoError);
  std::filesystem::remove_all(folder);
}
