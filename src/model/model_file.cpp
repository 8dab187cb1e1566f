#include <skald/model/model_file.hpp>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view place = "model.file";

/// Bytes that type and dims ask for, or nothing if they are out of range.
std::optional<std::uint64_t> expected_bytes(const TensorInfo& tensor) {
  const auto* info = find_dtype(tensor.type);
  if (!info || tensor.rank < 1 || tensor.rank > tensor.dims.size()) return {};
  std::int64_t elements = 1;
  for (const auto extent : tensor.dims)
    if (extent < 1 || __builtin_mul_overflow(elements, extent, &elements)) return {};
  if (tensor.dims[0] % info->block_elements != 0) return {};
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<std::uint64_t>(elements) / info->block_elements,
                             std::uint64_t{info->block_bytes}, &bytes))
    return {};
  return bytes;
}

}  // namespace

std::string TensorInfo::shape() const {
  std::string text = "[";
  for (std::size_t i = 0; i < std::min(rank, dims.size()); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

ModelFile::ModelFile(std::string name, Metadata metadata, std::vector<TensorInfo> tensors,
                     std::vector<AnyByteSource> sources)
    : name_(std::move(name)),
      metadata_(std::move(metadata)),
      tensors_(std::move(tensors)),
      sources_(std::move(sources)) {
  if (tensors_.size() > std::numeric_limits<std::uint32_t>::max())
    throw FormatError(place, std::to_string(tensors_.size()) + " tensors are too many", {.file = name_});
  for (const auto& tensor : tensors_) {
    const auto size = source_of(tensor).size();
    const auto expected = expected_bytes(tensor);
    if (!expected || *expected != tensor.bytes)
      fail(tensor, "the data has " + std::to_string(tensor.bytes) + " bytes, which is not what " +
                       std::string(to_string(tensor.type)) + " " + tensor.shape() + " needs");
    if (tensor.offset > size || tensor.bytes > size - tensor.offset)
      fail(tensor, "the data ends at byte " + std::to_string(tensor.offset) + " + " + std::to_string(tensor.bytes) +
                       ", the file has " + std::to_string(size));
    tensor_bytes_ += tensor.bytes;
  }
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::sort(by_name_.begin(), by_name_.end(), [&](auto a, auto b) {
    const int order = tensors_[a].name.compare(tensors_[b].name);
    return order != 0 ? order < 0 : a < b;
  });
  const auto same = std::adjacent_find(by_name_.begin(), by_name_.end(),
                                       [&](auto a, auto b) { return tensors_[a].name == tensors_[b].name; });
  if (same != by_name_.end()) fail(tensors_[*(same + 1)], "two tensors have this name");
}

const AnyByteSource& ModelFile::source_of(const TensorInfo& tensor) const {
  if (tensor.source < sources_.size()) return sources_[tensor.source];
  throw UsageError(place, "the tensor does not belong to this file", {.file = name_, .tensor = tensor.name});
}

const TensorInfo* ModelFile::find(std::string_view name) const noexcept {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [&](auto index, std::string_view wanted) { return tensors_[index].name < wanted; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

const TensorInfo& ModelFile::at(std::string_view name) const {
  if (const auto* tensor = find(name)) return *tensor;
  throw FormatError(place, "the required tensor is missing", {.file = name_, .tensor = std::string(name)});
}

void ModelFile::read(const TensorInfo& tensor, std::span<std::byte> out) const {
  if (out.size() != tensor.bytes)
    throw UsageError(
        place, "the buffer has " + std::to_string(out.size()) + " bytes, the tensor " + std::to_string(tensor.bytes),
        {.file = source_of(tensor).name(), .tensor = tensor.name});
  source_of(tensor).read(tensor.offset, out);
}

void ModelFile::read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  if (offset > tensor.bytes || out.size() > tensor.bytes - offset)
    throw UsageError(place,
                     "bytes " + std::to_string(offset) + " + " + std::to_string(out.size()) +
                         " do not lie in the tensor of " + std::to_string(tensor.bytes),
                     {.file = source_of(tensor).name(), .tensor = tensor.name});
  source_of(tensor).read(tensor.offset + offset, out);
}

std::span<const std::byte> ModelFile::view(const TensorInfo& tensor) const {
  return source_of(tensor).view(tensor.offset, static_cast<std::size_t>(tensor.bytes));
}

void ModelFile::release(const TensorInfo& tensor) const {
  source_of(tensor).release(tensor.offset, static_cast<std::size_t>(tensor.bytes));
}

void ModelFile::fail(const TensorInfo& tensor, std::string_view message) const {
  throw FormatError(place, message, {.file = source_of(tensor).name(), .offset = tensor.offset, .tensor = tensor.name});
}

}  // namespace skald::inline v0
