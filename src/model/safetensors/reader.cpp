#include <skald/model/safetensors/reader.hpp>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <numeric>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/core/half.hpp>

#include "model/json.hpp"
#include "model/safetensors/types.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view place = "model.safetensors";

template <class F>
auto guarded(const std::string& name, F&& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError(place, "the allocator refused memory for the header", {.file = name});
  }
}

struct Index {
  std::vector<std::pair<std::string, std::string>> entries;  // tensor, file; sorted
  std::vector<std::string> files;                            // each once, sorted
};

Index parse_index(std::string_view text, const std::string& name) {
  const json::Value root = json::parse(text, name);
  const json::Value* map = root.find("weight_map");
  if (!map || !map->object())
    throw FormatError(place, "the index has no object 'weight_map'", {.file = name, .path = "$.weight_map"});
  Index index;
  for (const json::Member& member : *map->object()) {
    const std::string* file = member.value.text();
    const std::string path = fmt::format("$.weight_map['{}']", printable(member.key, 80));
    if (!file)
      throw FormatError(place, fmt::format("found {}, allowed is the name of a file", member.value.kind()),
                        {.file = name, .path = path, .tensor = member.key});
    if (file->empty() || file->find_first_of("/\\") != std::string::npos || file->find('\0') != std::string::npos ||
        file->front() == '.')
      throw FormatError(place, fmt::format("'{}' is not the name of a file beside the index", printable(*file, 80)),
                        {.file = name, .path = path, .tensor = member.key});
    index.entries.emplace_back(member.key, *file);
    index.files.push_back(*file);
  }
  std::ranges::sort(index.entries);
  std::ranges::sort(index.files);
  index.files.erase(std::unique(index.files.begin(), index.files.end()), index.files.end());
  return index;
}

SafetensorsFile assemble(const std::vector<std::pair<std::string, AnyByteSource>>& files, const Index& index,
                         const std::string& index_name, const SafetensorsOptions& options) {
  std::vector<SafetensorsTensor> tensors;
  std::vector<AnyByteSource> sources;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<std::pair<std::string, std::string>> found;
  for (const auto& [name, source] : files) {
    auto header = safetensors::read_header(source, options);
    for (SafetensorsTensor& tensor : header.tensors) {
      tensor.source = sources.size();
      found.emplace_back(tensor.name, name);
      tensors.push_back(std::move(tensor));
    }
    std::ranges::move(header.metadata, std::back_inserter(metadata));
    sources.push_back(source);
  }
  std::ranges::sort(found);
  for (std::size_t i = 0; i < std::max(found.size(), index.entries.size()); ++i) {
    if (i < found.size() && i < index.entries.size() && found[i] == index.entries[i]) continue;
    const bool missing = i >= found.size() || (i < index.entries.size() && index.entries[i] < found[i]);
    const auto& [tensor, file] = missing ? index.entries[i] : found[i];
    throw FormatError(place,
                      fmt::format(fmt::runtime(missing ? "the index says that '{}' holds it, but it does not"
                                          : "'{}' holds it, but the index does not say so"),
                                  printable(file, 80)),
                      {.file = index_name, .tensor = tensor});
  }
  return {index_name, std::move(tensors), std::move(sources), std::move(metadata)};
}

AnyByteSource open_source(const std::string& path, const SafetensorsOptions& options) {
  return options.map ? map_file(path) : open_file(path);
}

std::string read_text(const std::string& path) {
  const AnyByteSource source = open_file(path);
  constexpr std::uint64_t most = 100'000'000;
  if (source.size() > most)
    throw FormatError(place, fmt::format("the index has {} bytes, allowed is up to {}", source.size(), most),
                      {.file = path});
  std::string text(static_cast<std::size_t>(source.size()), '\0');
  source.read(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

}  // namespace

std::string_view to_string(SafetensorsType type) noexcept {
  return safetensors::types[static_cast<std::size_t>(type)].name;
}
std::size_t element_bytes(SafetensorsType type) noexcept {
  return safetensors::types[static_cast<std::size_t>(type)].bytes;
}

SafetensorsFile::SafetensorsFile(std::string name, std::vector<SafetensorsTensor> tensors,
                                 std::vector<AnyByteSource> sources,
                                 std::vector<std::pair<std::string, std::string>> metadata)
    : name_(std::move(name)),
      tensors_(std::move(tensors)),
      by_name_(tensors_.size()),
      sources_(std::move(sources)),
      metadata_(std::move(metadata)) {
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::ranges::sort(by_name_, {}, [&](auto i) -> const std::string& { return tensors_[i].name; });
  const auto same = std::ranges::adjacent_find(by_name_, {}, [&](auto i) -> const std::string& { return tensors_[i].name; });
  if (same != by_name_.end()) fail(tensors_[*(same + 1)], "two tensors have this name");
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [&](auto i, std::string_view wanted) { return tensors_[i].name < wanted; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

const SafetensorsTensor& SafetensorsFile::at(std::string_view name) const {
  if (const auto* tensor = find(name)) return *tensor;
  throw FormatError(place, "the required tensor is missing", {.file = name_, .tensor = std::string(name)});
}

void SafetensorsFile::read(const SafetensorsTensor& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  if (tensor.source >= sources_.size() || offset > tensor.bytes || out.size() > tensor.bytes - offset)
    throw UsageError(place, fmt::format("bytes {} + {} do not lie in the tensor", offset, out.size()),
                     {.file = name_, .tensor = tensor.name});
  sources_[tensor.source].read(tensor.offset + offset, out);
}

std::vector<float> SafetensorsFile::read_floats(const SafetensorsTensor& tensor) const {
  const bool known = tensor.type == SafetensorsType::f32 || tensor.type == SafetensorsType::f16 ||
                     tensor.type == SafetensorsType::bf16 || tensor.type == SafetensorsType::f64;
  if (!known) fail(tensor, fmt::format("found type {}, allowed is F32, F16, BF16 or F64", to_string(tensor.type)));
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes));
  read(tensor, 0, bytes);
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  const auto element = [&](std::size_t i, auto type) {
    std::memcpy(&type, bytes.data() + i * sizeof(type), sizeof(type));
    return type;
  };
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (tensor.type == SafetensorsType::f32) values[i] = element(i, 0.0F);
    else if (tensor.type == SafetensorsType::f16) values[i] = f16_to_f32(element(i, std::uint16_t{}));
    else if (tensor.type == SafetensorsType::bf16) values[i] = bf16_to_f32(element(i, std::uint16_t{}));
    else values[i] = static_cast<float>(element(i, 0.0));
  }
  return values;
}

void SafetensorsFile::fail(const SafetensorsTensor& tensor, std::string_view message) const {
  const std::string& file = tensor.source < sources_.size() ? sources_[tensor.source].name() : name_;
  throw FormatError(place, message, {.file = file, .offset = tensor.offset, .tensor = tensor.name});
}

SafetensorsFile read_safetensors(AnyByteSource source, const SafetensorsOptions& options) {
  return guarded(source.name(), [&] {
    auto header = safetensors::read_header(source, options);
    std::string name = source.name();
    return SafetensorsFile(std::move(name), std::move(header.tensors), {std::move(source)}, std::move(header.metadata));
  });
}

SafetensorsFile read_safetensors_shards(const std::vector<std::pair<std::string, AnyByteSource>>& files,
                                        std::string_view index, const std::string& index_name,
                                        const SafetensorsOptions& options) {
  return guarded(index_name, [&] { return assemble(files, parse_index(index, index_name), index_name, options); });
}

SafetensorsFile open_safetensors(const std::string& path, const SafetensorsOptions& options) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::string file = path;
  if (fs::is_directory(path, error)) {
    file = (fs::path(path) / "model.safetensors").string();
    if (!fs::exists(file, error)) file = (fs::path(path) / "model.safetensors.index.json").string();
    if (!fs::exists(file, error))
      throw IoError(place, "the folder has neither model.safetensors nor model.safetensors.index.json",
                    {.file = path});
  }
  if (!file.ends_with(".json"))
    return guarded(file, [&] { return read_safetensors(open_source(file, options), options); });
  return guarded(file, [&] {
    const Index index = parse_index(read_text(file), file);
    std::vector<std::pair<std::string, AnyByteSource>> files;
    for (const std::string& name : index.files)
      files.emplace_back(name, open_source((fs::path(file).parent_path() / name).string(), options));
    return assemble(files, index, file, options);
  });
}

}  // namespace skald::inline v0
