#include "model/gguf/header.hpp"

#include <algorithm>
#include <numeric>

#include "model/gguf/cursor.hpp"
#include "model/gguf/format.hpp"

namespace skald::inline v0::gguf {

namespace {

// Least bytes in the file: length, type and one value byte; length, name, rank, one extent, type and offset.
constexpr std::uint64_t least_pair_bytes = 8 + 4 + 1;
constexpr std::uint64_t least_tensor_bytes = 8 + 1 + 4 + 8 + 4 + 8;

std::string in_quotes(std::string_view text) { return "'" + printable(text, 80) + "'"; }

class HeaderParser {
 public:
  HeaderParser(const AnyByteSource& source, const GgufOptions& options)
      : in_(source, options.max_header_bytes), header_{Metadata(source.name()), {}} {}

  Header parse() {
    read_preamble();
    read_metadata();
    read_alignment();
    read_tensors();
    place_tensors();
    return std::move(header_);
  }

 private:
  struct InfoOffsets {
    std::uint64_t start;   // of the tensor's entry in the table
    std::uint64_t offset;  // of its offset field
  };

  void read_preamble();
  void read_metadata();
  MetadataValue read_value(std::uint32_t type, std::uint64_t type_offset);
  MetadataArray read_array(unsigned depth);
  StringArray read_strings(std::uint64_t count);
  template <class T>
  std::vector<T> read_numbers(std::uint64_t count);
  std::vector<bool> read_bools(std::uint64_t count);
  void read_alignment();
  void read_tensors();
  TensorInfo read_tensor();
  void read_shape(TensorInfo& tensor);
  void read_type(TensorInfo& tensor);
  void place_tensors();
  void check_overlap();
  void check_text(std::string_view text, std::uint64_t offset, const char* what) const;
  void check_name(std::string_view text, std::uint64_t offset, const char* what) const;

  Cursor in_;
  Header header_;
  std::vector<InfoOffsets> info_offsets_;
  std::uint64_t key_count_ = 0;
  std::uint64_t tensor_count_ = 0;
  std::uint64_t alignment_ = default_alignment;
  std::uint64_t nested_arrays_ = 0;
};

void HeaderParser::read_preamble() {
  const auto found = in_.scalar<std::uint32_t>("magic");
  if (found == __builtin_bswap32(magic))
    in_.fail(0, "found a big-endian GGUF file, supported is little-endian", ErrorCode::unsupported);
  if (found != magic) in_.fail(0, "not a GGUF file: the first four bytes are not 'GGUF'; a Hugging Face model is given as its folder");
  const auto version = in_.scalar<std::uint32_t>("version");
  if (version < oldest_version || version > newest_version) {
    if ((version & 0xFFFFu) == 0 && version != 0)
      in_.fail(4,
               "found a big-endian GGUF file (version " + std::to_string(__builtin_bswap32(version)) +
                   " byte-swapped), supported is little-endian",
               ErrorCode::unsupported);
    in_.fail(4, "found GGUF version " + std::to_string(version) + ", supported are 2 and 3", ErrorCode::unsupported);
  }
  const auto counts = in_.position();
  tensor_count_ = in_.scalar<std::uint64_t>("tensor count");
  key_count_ = in_.scalar<std::uint64_t>("key count");
  if (tensor_count_ > max_tensors)
    in_.fail(counts, "tensor count: found " + std::to_string(tensor_count_) + ", allowed is at most " +
                         std::to_string(max_tensors));
  if (key_count_ > max_keys)
    in_.fail(counts + 8,
             "key count: found " + std::to_string(key_count_) + ", allowed is at most " + std::to_string(max_keys));
  in_.require(key_count_, least_pair_bytes, "key count");
  in_.require(tensor_count_, least_tensor_bytes, "tensor count");
}

void HeaderParser::check_text(std::string_view text, std::uint64_t offset, const char* what) const {
  if (!valid_utf8(text)) in_.fail(offset, std::string(what) + " " + in_quotes(text) + " is not valid UTF-8");
}

void HeaderParser::check_name(std::string_view text, std::uint64_t offset, const char* what) const {
  if (text.empty()) in_.fail(offset, std::string(what) + " is empty");
  check_text(text, offset, what);
  if (text.find('\0') != std::string_view::npos)
    in_.fail(offset, std::string(what) + " " + in_quotes(text) + " contains a zero byte");
}

void HeaderParser::read_metadata() {
  for (std::uint64_t i = 0; i < key_count_; ++i) {
    in_.key.clear();
    const auto start = in_.position();
    auto key = in_.string(max_key_bytes, "key length");
    in_.key = key;
    check_name(key, start, "key");
    if (header_.metadata.contains(key)) in_.fail(start, "the key occurs twice");
    const auto type_offset = in_.position();
    const auto type = in_.scalar<std::uint32_t>("value type");
    const auto value_offset = in_.position();
    auto value = read_value(type, type_offset);
    header_.metadata.insert(std::move(key), std::move(value), value_offset);
  }
  in_.key.clear();
}

template <class T>
std::vector<T> HeaderParser::read_numbers(std::uint64_t count) {
  in_.require(count, sizeof(T), "array length");
  std::vector<T> values(static_cast<std::size_t>(count));
  in_.read(values.data(), count * sizeof(T), "array");
  return values;
}

std::vector<bool> HeaderParser::read_bools(std::uint64_t count) {
  in_.require(count, 1, "array length");
  std::vector<bool> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto byte = in_.scalar<std::uint8_t>("bool");
    if (byte > 1) in_.fail(in_.position() - 1, "found a bool of " + std::to_string(byte) + ", allowed are 0 and 1");
    values[i] = byte != 0;
  }
  return values;
}

StringArray HeaderParser::read_strings(std::uint64_t count) {
  in_.require(count, sizeof(std::uint64_t), "array length");
  StringArray strings;
  strings.reserve(static_cast<std::size_t>(count));
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto start = in_.position();
    const auto length = in_.scalar<std::uint64_t>("string length");
    in_.require(length, 1, "string length");
    const auto text = strings.append(static_cast<std::size_t>(length));
    in_.read(text.data(), length, "string");
    if (!valid_utf8({text.data(), text.size()}))
      in_.fail(start,
               "element " + std::to_string(i) + " " + in_quotes({text.data(), text.size()}) + " is not valid UTF-8");
  }
  strings.shrink_to_fit();
  return strings;
}

MetadataArray HeaderParser::read_array(unsigned depth) {
  const auto start = in_.position();
  const auto type = in_.scalar<std::uint32_t>("array element type");
  const auto count = in_.scalar<std::uint64_t>("array length");
  switch (static_cast<ValueType>(type)) {
    case ValueType::u8: return {read_numbers<std::uint8_t>(count)};
    case ValueType::i8: return {read_numbers<std::int8_t>(count)};
    case ValueType::u16: return {read_numbers<std::uint16_t>(count)};
    case ValueType::i16: return {read_numbers<std::int16_t>(count)};
    case ValueType::u32: return {read_numbers<std::uint32_t>(count)};
    case ValueType::i32: return {read_numbers<std::int32_t>(count)};
    case ValueType::f32: return {read_numbers<float>(count)};
    case ValueType::boolean: return {read_bools(count)};
    case ValueType::string: return {read_strings(count)};
    case ValueType::u64: return {read_numbers<std::uint64_t>(count)};
    case ValueType::i64: return {read_numbers<std::int64_t>(count)};
    case ValueType::f64: return {read_numbers<double>(count)};
    case ValueType::array: break;
    default: in_.fail(start, "array element type: found " + std::to_string(type) + ", allowed is 0 to 12");
  }
  if (depth >= max_nesting)
    in_.fail(start, "arrays are nested deeper than the allowed " + std::to_string(max_nesting) + " levels");
  in_.require(count, 12, "array length");  // each inner array has a type and a length
  nested_arrays_ += count;
  if (nested_arrays_ > max_nested_arrays)
    in_.fail(start, "found more than the allowed " + std::to_string(max_nested_arrays) + " arrays inside arrays");
  std::vector<MetadataArray> arrays;
  arrays.reserve(static_cast<std::size_t>(count));
  for (std::uint64_t i = 0; i < count; ++i) arrays.push_back(read_array(depth + 1));
  return {std::move(arrays)};
}

MetadataValue HeaderParser::read_value(std::uint32_t type, std::uint64_t type_offset) {
  switch (static_cast<ValueType>(type)) {
    case ValueType::u8: return in_.scalar<std::uint8_t>("value");
    case ValueType::i8: return in_.scalar<std::int8_t>("value");
    case ValueType::u16: return in_.scalar<std::uint16_t>("value");
    case ValueType::i16: return in_.scalar<std::int16_t>("value");
    case ValueType::u32: return in_.scalar<std::uint32_t>("value");
    case ValueType::i32: return in_.scalar<std::int32_t>("value");
    case ValueType::f32: return in_.scalar<float>("value");
    case ValueType::u64: return in_.scalar<std::uint64_t>("value");
    case ValueType::i64: return in_.scalar<std::int64_t>("value");
    case ValueType::f64: return in_.scalar<double>("value");
    case ValueType::array: return read_array(1);
    case ValueType::boolean: {
      const auto byte = in_.scalar<std::uint8_t>("value");
      if (byte > 1) in_.fail(in_.position() - 1, "found a bool of " + std::to_string(byte) + ", allowed are 0 and 1");
      return byte != 0;
    }
    case ValueType::string: {
      const auto start = in_.position();
      auto text = in_.string(UINT64_MAX, "string length");
      check_text(text, start, "the string");
      return text;
    }
  }
  in_.fail(type_offset, "value type: found " + std::to_string(type) + ", allowed is 0 to 12");
}

void HeaderParser::read_alignment() {
  const auto* entry = header_.metadata.find(alignment_key);
  if (!entry) return;
  const auto* value = std::get_if<std::uint32_t>(&entry->value);
  if (!value) header_.metadata.fail(alignment_key, "found " + type_name(entry->value) + ", allowed is u32");
  if (!valid_alignment(*value))
    header_.metadata.fail(alignment_key, "found " + std::to_string(*value) + ", allowed is a power of two from " +
                                             std::to_string(min_alignment) + " to " + std::to_string(max_alignment));
  alignment_ = *value;
}

void HeaderParser::read_shape(TensorInfo& tensor) {
  const auto start = in_.position();
  const auto rank = in_.scalar<std::uint32_t>("number of dimensions");
  if (rank < 1 || rank > max_rank)
    in_.fail(start,
             "number of dimensions: found " + std::to_string(rank) + ", allowed is 1 to " + std::to_string(max_rank));
  tensor.rank = rank;
  std::int64_t elements = 1;
  for (std::uint32_t i = 0; i < rank; ++i) {
    const auto at = in_.position();
    const auto extent = in_.scalar<std::uint64_t>("dimension");
    if (extent < 1 || extent > INT64_MAX)
      in_.fail(at, "dimension " + std::to_string(i) + ": found " + std::to_string(extent) + ", allowed is 1 to " +
                       std::to_string(INT64_MAX));
    tensor.dims[i] = static_cast<std::int64_t>(extent);
    if (__builtin_mul_overflow(elements, tensor.dims[i], &elements))
      in_.fail(at, "the number of elements of " + tensor.shape() + " does not fit 64 bits");
  }
}

void HeaderParser::read_type(TensorInfo& tensor) {
  const auto start = in_.position();
  const auto id = in_.scalar<std::uint32_t>("tensor type");
  tensor.type = static_cast<DType>(id);
  const auto* info = find_dtype(tensor.type);
  if (!info)
    in_.fail(start, "found tensor type " + std::to_string(id) + ", which is not one that skald knows",
             ErrorCode::unsupported);
  if (tensor.dims[0] % info->block_elements != 0)
    in_.fail(start, "rows of " + std::to_string(tensor.dims[0]) + " elements are not whole blocks of " +
                        std::to_string(info->block_elements) + ", which " + std::string(info->name) + " needs");
  const auto blocks = static_cast<std::uint64_t>(tensor.elements()) / info->block_elements;
  if (__builtin_mul_overflow(blocks, std::uint64_t{info->block_bytes}, &tensor.bytes))
    in_.fail(start, "the bytes of " + std::string(info->name) + " " + tensor.shape() + " do not fit 64 bits");
}

TensorInfo HeaderParser::read_tensor() {
  TensorInfo tensor;
  in_.tensor.clear();
  const auto start = in_.position();
  tensor.name = in_.string(max_name_bytes, "tensor name length");
  in_.tensor = tensor.name;
  check_name(tensor.name, start, "tensor name");
  read_shape(tensor);
  read_type(tensor);
  info_offsets_.push_back({start, in_.position()});
  tensor.offset = in_.scalar<std::uint64_t>("tensor offset");
  return tensor;
}

void HeaderParser::read_tensors() {
  header_.tensors.reserve(static_cast<std::size_t>(tensor_count_));
  info_offsets_.reserve(static_cast<std::size_t>(tensor_count_));
  for (std::uint64_t i = 0; i < tensor_count_; ++i) header_.tensors.push_back(read_tensor());
  in_.tensor.clear();
}

void HeaderParser::place_tensors() {
  // The position is below the source's size, which cannot come near 2^64 - 65536 in memory or on disk; a callback
  // may claim it, so the sums are checked all the same.
  std::uint64_t data = 0;
  if (__builtin_add_overflow(in_.position(), alignment_ - 1, &data)) in_.fail(in_.position(), "the file is too large");
  data &= ~(alignment_ - 1);
  for (std::size_t i = 0; i < header_.tensors.size(); ++i) {
    auto& tensor = header_.tensors[i];
    in_.tensor = tensor.name;
    const auto at = info_offsets_[i].offset;
    if (tensor.offset % alignment_ != 0)
      in_.fail(at, "tensor offset: found " + std::to_string(tensor.offset) + ", allowed is a multiple of " +
                       std::to_string(alignment_));
    const auto relative = tensor.offset;
    std::uint64_t end = 0;
    if (__builtin_add_overflow(data, relative, &tensor.offset) ||
        __builtin_add_overflow(tensor.offset, tensor.bytes, &end) || end > in_.size())
      in_.fail(at, "the data of " + std::to_string(tensor.bytes) + " bytes at " + std::to_string(relative) +
                       " of the data section (byte " + std::to_string(data) + ") ends beyond the file of " +
                       std::to_string(in_.size()) + " bytes; is the file complete?");
  }
  check_overlap();
}

void HeaderParser::check_overlap() {
  std::vector<std::uint32_t> order(header_.tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](auto a, auto b) { return header_.tensors[a].offset < header_.tensors[b].offset; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const auto& before = header_.tensors[order[i - 1]];
    const auto& after = header_.tensors[order[i]];
    in_.tensor = after.name;
    if (after.offset < before.offset + before.bytes)
      in_.fail(info_offsets_[order[i]].offset, "the data overlaps that of tensor " + in_quotes(before.name));
  }
  in_.tensor.clear();
}

}  // namespace

Header read_header(const AnyByteSource& source, const GgufOptions& options) {
  return HeaderParser(source, options).parse();
}

}  // namespace skald::inline v0::gguf
