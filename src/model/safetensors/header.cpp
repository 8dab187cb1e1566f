#include <algorithm>
#include <limits>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>

#include "model/safetensors/types.hpp"

namespace skald::inline v0::safetensors {

namespace {

constexpr std::string_view place = "model.safetensors";
constexpr std::size_t most_dimensions = 16;

// Receives the events of the JSON parser. Exactly the grammar of a header is accepted:
//   {"__metadata__": {text: text, …}, name: {"dtype": text, "shape": [n, …], "data_offsets": [begin, end]}, …}
class HeaderBuilder {
 public:
  HeaderBuilder(const std::string& file, Header& header) : file_(file), header_(header) {}

  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;
  bool null() { unexpected("null"); }
  bool boolean(bool) { unexpected("a boolean"); }
  bool number_integer(number_integer_t) { unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) { unexpected("a fraction"); }
  bool binary(binary_t&) { unexpected("bytes"); }
  bool number_unsigned(number_unsigned_t value) {
    if (!in_array_) unexpected("a number");
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      fail(fmt::format("'{}' has the element {}, which is too large", field_, std::uint64_t{value}));
    auto& numbers = field_ == "shape" ? tensor_.shape : offsets_;
    if (numbers.size() >= most_dimensions)
      fail(fmt::format("'{}' has more than {} elements", field_, most_dimensions));
    numbers.push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool string(string_t& value) {
    if (depth_ == 2 && in_metadata_) {
      header_.metadata.emplace_back(field_, std::move(value));
      return true;
    }
    if (depth_ != 2 || field_ != "dtype") unexpected("a string");
    const auto at = std::ranges::find(types, std::string_view(value), &TypeInfo::name);
    if (at == types.end()) unknown_type(value);
    tensor_.type = static_cast<SafetensorsType>(at - types.begin());
    return true;
  }
  bool start_object(std::size_t) {
    if (depth_ >= 2 || in_array_) unexpected("an object");
    ++depth_;
    return true;
  }
  bool key(string_t& name) {
    if (depth_ == 1) {
      start_entry(std::move(name));
    } else {
      field_ = std::move(name);
      if (!fields_.insert(field_).second) fail(fmt::format("the key '{}' occurs twice", printable(field_, 80)));
      if (!in_metadata_ && field_ != "dtype" && field_ != "shape" && field_ != "data_offsets")
        fail(fmt::format("unknown key '{}', allowed are dtype, shape and data_offsets", printable(field_, 80)));
    }
    return true;
  }
  bool end_object() {
    if (--depth_ == 1 && !in_metadata_) finish_tensor();
    return true;
  }
  bool start_array(std::size_t) {
    if (depth_ != 2 || in_metadata_ || in_array_ || field_ == "dtype") unexpected("an array");
    in_array_ = true;
    return true;
  }
  bool end_array() {
    in_array_ = false;
    return true;
  }
  bool parse_error(std::size_t position, const std::string& /*token*/, const nlohmann::json::exception& error) {
    throw FormatError(place, "the header is not JSON: " + printable(error.what(), 160),
                      {.file = file_, .offset = prefix_bytes + position});
  }

 private:
  [[noreturn]] void fail(std::string_view message) const {
    throw FormatError(place, message, {.file = file_, .offset = prefix_bytes, .tensor = tensor_.name});
  }
  [[noreturn]] void unexpected(std::string_view what) const {
    if (depth_ == 0) fail(fmt::format("the header is {}, allowed is an object", what));
    if (depth_ == 1) fail(fmt::format("the entry is {}, allowed is an object", what));
    fail(fmt::format("'{}' is or contains {}, which is not allowed there", printable(field_, 80), what));
  }
  [[noreturn]] void unknown_type(std::string_view name) const {
    std::string known;
    for (const TypeInfo& type : types) known += (known.empty() ? "" : ", ") + std::string(type.name);
    throw UnsupportedError(place, fmt::format("unknown dtype '{}', known are {}", printable(name, 40), known),
                           {.file = file_, .offset = prefix_bytes, .tensor = tensor_.name});
  }
  void start_entry(std::string name) {
    tensor_ = {};
    tensor_.name = std::move(name);
    fields_.clear();
    offsets_.clear();
    if (!names_.insert(tensor_.name).second) fail("two entries have this name");
    in_metadata_ = tensor_.name == metadata_key;
  }
  void finish_tensor() {
    for (const char* field : {"dtype", "shape", "data_offsets"})
      if (!fields_.contains(field)) fail(fmt::format("the key '{}' is missing", field));
    if (offsets_.size() != 2) fail(fmt::format("data_offsets has {} elements, allowed are 2", offsets_.size()));
    const auto bytes = shape_bytes(tensor_.type, tensor_.shape);
    if (!bytes) fail("the shape has more elements than 63 bits count");
    if (offsets_[1] < offsets_[0] || static_cast<std::uint64_t>(offsets_[1] - offsets_[0]) != *bytes)
      fail(fmt::format("data_offsets are {} to {}, but type and shape need {} bytes", offsets_[0], offsets_[1],
                       *bytes));
    tensor_.offset = static_cast<std::uint64_t>(offsets_[0]);
    tensor_.bytes = *bytes;
    header_.tensors.push_back(tensor_);
  }

  const std::string& file_;
  Header& header_;
  std::set<std::string, std::less<>> names_;
  std::set<std::string, std::less<>> fields_;
  std::string field_;
  SafetensorsTensor tensor_;
  std::vector<std::int64_t> offsets_;
  int depth_ = 0;
  bool in_metadata_ = false;
  bool in_array_ = false;
};

/// Data begins at 0, follows without gap or overlap, and ends with the file.
void place_tensors(const std::string& file, Header& header, std::uint64_t data_begin, std::uint64_t data_bytes) {
  std::ranges::stable_sort(header.tensors, [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.bytes < b.bytes;
  });
  std::uint64_t end = 0;
  for (SafetensorsTensor& tensor : header.tensors) {
    if (tensor.offset != end)
      throw FormatError(place,
                        fmt::format("the data begins at {}, allowed is {}, where the data before it ends ({})",
                                    tensor.offset, end, tensor.offset < end ? "overlap" : "gap"),
                        {.file = file, .offset = data_begin + std::min(tensor.offset, data_bytes), .tensor = tensor.name});
    if (tensor.bytes > data_bytes - end)
      throw FormatError(place,
                        fmt::format("the data ends at {}, the file has {} bytes of data", end + tensor.bytes, data_bytes),
                        {.file = file, .offset = data_begin + tensor.offset, .tensor = tensor.name});
    end += tensor.bytes;
    tensor.offset += data_begin;
  }
  if (end != data_bytes)
    throw FormatError(place, fmt::format("{} bytes of data belong to no tensor", data_bytes - end),
                      {.file = file, .offset = data_begin + end});
}

}  // namespace

Header read_header(const AnyByteSource& source, const SafetensorsOptions& options) {
  const auto refuse = [&](std::string_view message) {
    throw FormatError(place, message, {.file = source.name(), .offset = 0});
  };
  if (source.size() < prefix_bytes)
    refuse(fmt::format("the file has {} bytes, a header's length needs {}", source.size(), prefix_bytes));
  std::array<std::byte, prefix_bytes> prefix{};
  source.read(0, prefix);
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < prefix.size(); ++i) length |= static_cast<std::uint64_t>(prefix[i]) << (8 * i);
  if (length > options.max_header_bytes)
    refuse(fmt::format("the header has {} bytes, allowed is up to {}", length, options.max_header_bytes));
  if (length > source.size() - prefix_bytes)
    refuse(fmt::format("the header has {} bytes, the file {} after its length", length, source.size() - prefix_bytes));
  std::string text(static_cast<std::size_t>(length), '\0');
  source.read(prefix_bytes, std::as_writable_bytes(std::span(text.data(), text.size())));
  if (text.empty() || text.front() != '{') refuse("the header does not begin with '{'");

  Header header;
  HeaderBuilder builder(source.name(), header);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  const std::uint64_t data_begin = prefix_bytes + length;
  place_tensors(source.name(), header, data_begin, source.size() - data_begin);
  return header;
}

}  // namespace skald::inline v0::safetensors
