#include <skald/model/safetensors/writer.hpp>

#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/core/file.hpp>

#include "model/json_text.hpp"
#include "model/safetensors/types.hpp"

namespace skald::inline v0 {

namespace {
constexpr std::string_view place = "model.safetensors.writer";
constexpr std::uint64_t piece_bytes = std::uint64_t{1} << 20;
}  // namespace

void SafetensorsWriter::set_metadata(std::string key, std::string value) {
  if (std::ranges::find(metadata_, key, [](const auto& entry) { return entry.first; }) != metadata_.end())
    throw UsageError(place, "the key occurs twice", {.key = key});
  metadata_.emplace_back(std::move(key), std::move(value));
}

void SafetensorsWriter::add_tensor(std::string name, SafetensorsType type, std::vector<std::int64_t> shape,
                                   Provider provider) {
  const auto bytes = safetensors::shape_bytes(type, shape);
  if (!bytes) throw UsageError(place, "an extent is negative or the product too large", {.tensor = name});
  if (name == safetensors::metadata_key) throw UsageError(place, "the name is reserved", {.tensor = name});
  if (!names_.insert(name).second) throw UsageError(place, "two tensors have this name", {.tensor = name});
  tensors_.push_back({std::move(name), type, std::move(shape), data_bytes_, *bytes, std::move(provider)});
  data_bytes_ += *bytes;
}

void SafetensorsWriter::add_tensor(std::string name, SafetensorsType type, std::vector<std::int64_t> shape,
                                   std::span<const std::byte> bytes) {
  if (safetensors::shape_bytes(type, shape) != bytes.size())
    throw UsageError(place, fmt::format("{} bytes are not what type and shape need", bytes.size()), {.tensor = name});
  auto copy = std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end());
  add_tensor(std::move(name), type, std::move(shape), [copy](std::uint64_t offset, std::span<std::byte> out) {
    std::copy_n(copy->begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
  });
}

void SafetensorsWriter::write(const std::function<void(std::span<const std::byte>)>& sink) const {
  json_text::Object header;
  if (!metadata_.empty()) {
    json_text::Object entries;
    for (const auto& [key, value] : metadata_) entries.add(key, std::string_view(value));
    header.add_raw(safetensors::metadata_key, entries.text());
  }
  const auto number = [](auto value) { return json_text::of(value); };
  for (const Pending& tensor : tensors_) {
    json_text::Object entry;
    entry.add("dtype", to_string(tensor.type));
    entry.add_raw("shape", json_text::array(tensor.shape, number));
    entry.add_raw("data_offsets",
                  json_text::array(std::array{tensor.offset, tensor.offset + tensor.bytes}, number));
    header.add_raw(tensor.name, entry.text());
  }
  std::string text = header.text();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::array<std::byte, safetensors::prefix_bytes> prefix{};
  for (std::size_t i = 0; i < prefix.size(); ++i)
    prefix[i] = static_cast<std::byte>(static_cast<std::uint64_t>(text.size()) >> (8 * i) & 0xFF);
  sink(prefix);
  sink(std::as_bytes(std::span(text.data(), text.size())));
  std::vector<std::byte> piece;
  for (const Pending& tensor : tensors_)
    for (std::uint64_t done = 0; done < tensor.bytes; done += piece.size()) {
      piece.resize(static_cast<std::size_t>(std::min(piece_bytes, tensor.bytes - done)));
      tensor.provider(done, piece);
      sink(piece);
    }
}

void SafetensorsWriter::write_file(const std::string& path) const {
  AtomicFile file(path);
  write([&](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
}

std::vector<std::byte> SafetensorsWriter::to_bytes() const {
  std::vector<std::byte> result;
  write([&](std::span<const std::byte> bytes) { result.insert(result.end(), bytes.begin(), bytes.end()); });
  return result;
}

}  // namespace skald::inline v0
