// Any bytes: the reader accepts them or throws a skald::Error that names the file. Mapped and piecewise reading agree,
// and what was accepted can be read, written and read again.

#include <cstdlib>
#include <cstring>

#include <skald/core/error.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>

namespace {

using namespace skald;

void check(bool condition) {
  if (!condition) std::abort();
}

/// Empty if accepted, else what was wrong.
std::string read(const AnyByteSource& source, ModelFile& file) {
  try {
    file = read_gguf(source);
    return {};
  } catch (const Error& error) {
    check(error.context().file == "input");
    check(error.context().offset || !error.context().key.empty() || !error.context().tensor.empty());
    check(std::string_view(error.what()).size() <= 1024);
    check(!error.to_json().empty());
    return error.what();
  }
}

void use_metadata(const Metadata& metadata) {
  for (const auto& entry : metadata.entries()) {
    check(metadata.find(entry.key) == &entry);
    check(!type_name(entry.value).empty());
    const auto attempt = [](auto&& get) {
      try {
        (void)get();
      } catch (const FormatError&) {
      }
    };
    attempt([&] { return metadata.get_u64(entry.key); });
    attempt([&] { return metadata.get_i64(entry.key); });
    attempt([&] { return metadata.get_f32(entry.key); });
    attempt([&] { return metadata.get_bool(entry.key); });
    attempt([&] { return metadata.get_string(entry.key); });
    attempt([&] { return metadata.get_strings(entry.key); });
    attempt([&] { return metadata.get_array<std::uint8_t>(entry.key); });
    attempt([&] { return metadata.get_array<float>(entry.key); });
    attempt([&] { return metadata.get_array<std::string>(entry.key); });
  }
}

/// NaN differs from itself, so values are compared by their bytes in a file.
std::vector<std::byte> rewritten(const ModelFile& file) {
  const auto alignment = file.metadata().find_u32("general.alignment").value_or(32);
  GgufWriter writer(alignment);
  writer.set_all(file.metadata());
  for (const auto& tensor : file.tensors())
    writer.add_tensor(tensor.name, tensor.type, {tensor.dims.begin(), tensor.dims.begin() + tensor.rank},
                      file.view(tensor));
  return writer.to_bytes();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  ModelFile mapped;
  ModelFile piecewise;
  const auto refused = read({SpanSource(bytes), "input"}, mapped);
  const auto read_bytes = [bytes](std::uint64_t offset, std::span<std::byte> out) {
    check(offset <= bytes.size() && out.size() <= bytes.size() - offset);
    std::memcpy(out.data(), bytes.data() + offset, out.size());
  };
  check(read({CallbackSource(size, read_bytes), "input"}, piecewise) == refused);
  if (!refused.empty()) return 0;

  check(mapped.tensors().size() == piecewise.tensors().size());
  for (const auto& tensor : mapped.tensors()) {
    check(mapped.find(tensor.name) == &tensor);
    const auto view = mapped.view(tensor);
    std::vector<std::byte> copy(tensor.bytes);
    piecewise.read(piecewise.at(tensor.name), copy);
    check(std::equal(view.begin(), view.end(), copy.begin(), copy.end()));
  }
  use_metadata(mapped.metadata());
  const auto first = rewritten(mapped);
  ModelFile again;
  check(read({SpanSource(first), "input"}, again).empty());
  check(rewritten(again) == first);
  return 0;
}
