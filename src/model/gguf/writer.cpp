#include <skald/model/gguf/writer.hpp>

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include <skald/core/error.hpp>
#include <skald/core/file.hpp>

#include "model/gguf/format.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view place = "model.gguf.writer";
constexpr std::uint64_t piece_bytes = std::uint64_t{1} << 20;

class Encoder {
 public:
  std::vector<std::byte> bytes{};

  void raw(const void* data, std::size_t size) {
    const auto at = bytes.size();
    bytes.resize(at + size);
    if (size > 0) std::memcpy(bytes.data() + at, data, size);
  }
  template <class T>
  requires std::is_arithmetic_v<T>
  void put(T value) {
    if constexpr (std::is_same_v<T, bool>) bytes.push_back(static_cast<std::byte>(value));
    else raw(&value, sizeof value);
  }
  void put(std::string_view text) {
    put(std::uint64_t{text.size()});
    raw(text.data(), text.size());
  }
  void put(const std::string& text) { put(std::string_view(text)); }
  void put(const MetadataArray& array) {
    put(static_cast<std::uint32_t>(array.values.index()));
    put(std::uint64_t{array.size()});
    std::visit(
        [&](const auto& elements) {
          using Elements = std::remove_cvref_t<decltype(elements)>;
          if constexpr (std::is_same_v<Elements, std::vector<bool>>) {
            for (const bool element : elements) put(element);
          } else if constexpr (requires { raw(elements.data(), sizeof elements[0]); } &&
                               std::is_arithmetic_v<std::remove_cvref_t<decltype(elements[0])>>) {
            if (!elements.empty()) raw(elements.data(), elements.size() * sizeof elements[0]);
          } else {
            for (const auto& element : elements) put(element);
          }
        },
        array.values);
  }
  void pad(std::uint64_t alignment) { bytes.resize((bytes.size() + alignment - 1) / alignment * alignment); }
};

[[noreturn]] void refuse_key(std::string_view key, std::string_view message) {
  throw UsageError(place, message, {.key = std::string(key)});
}

void check_array(std::string_view key, const MetadataArray& array, unsigned depth) {
  if (depth > gguf::max_nesting) refuse_key(key, "arrays are nested deeper than 4 levels");
  if (const auto* strings = std::get_if<StringArray>(&array.values)) {
    if (!std::all_of(strings->begin(), strings->end(), gguf::valid_utf8))
      refuse_key(key, "a string is not valid UTF-8");
  } else if (const auto* arrays = std::get_if<std::vector<MetadataArray>>(&array.values)) {
    for (const auto& inner : *arrays) check_array(key, inner, depth + 1);
  }
}

void check_value(std::string_view key, const MetadataValue& value) {
  if (const auto* text = std::get_if<std::string>(&value); text && !gguf::valid_utf8(*text))
    refuse_key(key, "the string is not valid UTF-8");
  if (const auto* array = std::get_if<MetadataArray>(&value)) check_array(key, *array, 1);
}

bool valid_name(std::string_view text, std::uint64_t max_bytes) {
  return !text.empty() && text.size() <= max_bytes && text.find('\0') == std::string_view::npos &&
         gguf::valid_utf8(text);
}

std::uint64_t aligned(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

GgufWriter::GgufWriter(std::uint32_t alignment) : alignment_(alignment) {
  if (!gguf::valid_alignment(alignment))
    throw UsageError(place, "alignment " + std::to_string(alignment) + " is not a power of two from 8 to 65536");
  if (alignment != gguf::default_alignment) metadata_.set(std::string(gguf::alignment_key), alignment);
}

void GgufWriter::set(std::string key, MetadataValue value) {
  if (!valid_name(key, gguf::max_key_bytes)) refuse_key(key, "the key is empty, too long or not valid UTF-8");
  if (key == gguf::alignment_key) refuse_key(key, "the alignment is set by the constructor");
  if (metadata_.size() >= gguf::max_keys && !metadata_.contains(key)) refuse_key(key, "too many keys");
  check_value(key, value);
  metadata_.set(std::move(key), std::move(value));
}

void GgufWriter::set_all(const Metadata& metadata) {
  for (const auto& entry : metadata.entries())
    if (entry.key != gguf::alignment_key) set(entry.key, entry.value);
}

void GgufWriter::add_tensor(std::string name, DType type, std::vector<std::int64_t> dims, Provider provider) {
  const auto refuse = [&](const std::string& message) { throw UsageError(place, message, {.tensor = name}); };
  if (!valid_name(name, gguf::max_name_bytes)) refuse("the name must be 1 to 64 bytes of UTF-8 without zero bytes");
  if (names_.contains(name)) refuse("a tensor of this name was added before");
  if (tensors_.size() >= gguf::max_tensors) refuse("too many tensors");
  const auto& info = dtype_info(type);
  if (dims.empty() || dims.size() > gguf::max_rank)
    refuse("found " + std::to_string(dims.size()) + " dimensions, allowed is 1 to 4");
  std::int64_t rows = 1;
  for (const auto extent : dims)
    if (extent < 1) refuse("dimensions must be positive");
  for (std::size_t i = 1; i < dims.size(); ++i)
    if (__builtin_mul_overflow(rows, dims[i], &rows)) refuse("the number of elements does not fit 64 bits");
  if (dims[0] % info.block_elements != 0)
    refuse("rows of " + std::to_string(dims[0]) + " elements are not whole blocks of " +
           std::to_string(info.block_elements));
  std::uint64_t row = 0;
  std::uint64_t bytes = 0;
  std::uint64_t end = 0;
  if (__builtin_mul_overflow(static_cast<std::uint64_t>(dims[0]) / info.block_elements, std::uint64_t{info.block_bytes},
                             &row) ||
      __builtin_mul_overflow(row, static_cast<std::uint64_t>(rows), &bytes) ||
      __builtin_add_overflow(data_bytes_, bytes, &end) || end > std::uint64_t{1} << 62)
    refuse("the bytes do not fit 64 bits");
  names_.insert(name);
  tensors_.push_back({std::move(name), type, std::move(dims), row, bytes, data_bytes_, std::move(provider)});
  data_bytes_ = aligned(end, alignment_);
}

void GgufWriter::add_tensor(std::string name, DType type, std::vector<std::int64_t> dims,
                            std::span<const std::byte> bytes) {
  add_tensor(
      std::move(name), type, std::move(dims),
      [copy = std::vector<std::byte>(bytes.begin(), bytes.end())](std::uint64_t offset, std::span<std::byte> out) {
        std::memcpy(out.data(), copy.data() + offset, out.size());
      });
  auto& added = tensors_.back();
  if (added.bytes == bytes.size()) return;
  const auto message =
      "given are " + std::to_string(bytes.size()) + " bytes, type and dims need " + std::to_string(added.bytes);
  auto refused = std::move(added);
  tensors_.pop_back();
  names_.erase(refused.name);
  data_bytes_ = refused.offset;
  throw UsageError(place, message, {.tensor = refused.name});
}

std::vector<std::byte> GgufWriter::header() const {
  Encoder out;
  out.put(gguf::magic);
  out.put(gguf::newest_version);
  out.put(std::uint64_t{tensors_.size()});
  out.put(std::uint64_t{metadata_.size()});
  for (const auto& entry : metadata_.entries()) {
    out.put(entry.key);
    out.put(static_cast<std::uint32_t>(entry.value.index()));
    std::visit([&](const auto& value) { out.put(value); }, entry.value);
  }
  for (const auto& tensor : tensors_) {
    out.put(tensor.name);
    out.put(static_cast<std::uint32_t>(tensor.dims.size()));
    for (const auto extent : tensor.dims) out.put(static_cast<std::uint64_t>(extent));
    out.put(static_cast<std::uint32_t>(tensor.type));
    out.put(tensor.offset);
  }
  out.pad(alignment_);
  return std::move(out.bytes);
}

void GgufWriter::write(const Sink& sink) const {
  sink(header());
  std::vector<std::byte> piece;
  const std::vector<std::byte> padding(alignment_);
  for (const auto& tensor : tensors_) {
    const auto step = std::max<std::uint64_t>(1, piece_bytes / tensor.row_bytes) * tensor.row_bytes;
    for (std::uint64_t done = 0; done < tensor.bytes; done += step) {
      piece.resize(static_cast<std::size_t>(std::min(step, tensor.bytes - done)));
      tensor.provider(done, piece);
      sink(piece);
    }
    sink(std::span(padding).first(static_cast<std::size_t>(aligned(tensor.bytes, alignment_) - tensor.bytes)));
  }
}

std::uint64_t GgufWriter::file_bytes() const { return header().size() + data_bytes_; }

void GgufWriter::write_file(const std::string& path) const {
  AtomicFile file(path);
  write([&](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
}

std::vector<std::byte> GgufWriter::to_bytes() const {
  std::vector<std::byte> result;
  write([&](std::span<const std::byte> bytes) { result.insert(result.end(), bytes.begin(), bytes.end()); });
  return result;
}

}  // namespace skald::inline v0
