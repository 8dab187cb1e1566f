// Any bytes: the reader accepts them or throws a skald::Error that names file and place. What was accepted obeys the
// format's rules and comes back from the writer.

#include <cstdlib>

#include <skald/core/error.hpp>
#include <skald/model/safetensors/writer.hpp>

namespace {

using namespace skald;

void check(bool condition) {
  if (!condition) std::abort();
}

bool read(std::span<const std::byte> bytes, SafetensorsFile& file) {
  try {
    file = read_safetensors({SpanSource(bytes), "input"});
    return true;
  } catch (const Error& error) {
    check(error.context().file == "input");
    check(error.context().offset.has_value());
    check(std::string_view(error.what()).size() <= 1024);
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  SafetensorsFile file;
  if (!read(bytes, file)) return 0;
  std::uint64_t covered = 0;
  SafetensorsWriter writer;
  for (const auto& tensor : file.tensors()) {
    check(file.find(tensor.name) == &tensor);
    covered += tensor.bytes;
    std::vector<std::byte> copy(tensor.bytes);
    file.read(tensor, 0, copy);
    writer.add_tensor(tensor.name, tensor.type, tensor.shape, copy);
  }
  check(covered <= size);
  const auto again = writer.to_bytes();
  SafetensorsFile second;
  check(read(again, second));
  check(second.tensors().size() == file.tensors().size());
  return 0;
}
