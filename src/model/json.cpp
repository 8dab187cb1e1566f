#include "model/json.hpp"

#include <algorithm>
#include <limits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/core/byte_source.hpp>

namespace skald::inline v0::json {

namespace {

constexpr std::size_t deepest = 64;

class Builder {
 public:
  explicit Builder(const std::string& file) : file_(file) {}

  // The interface that nlohmann::json::sax_parse calls.
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;
  bool null() { return add(Value()); }
  bool boolean(bool value) { return add(Value(value)); }
  bool number_integer(number_integer_t value) { return add(Value(std::int64_t{value})); }
  bool number_unsigned(number_unsigned_t value) { return add(Value(std::uint64_t{value})); }
  bool number_float(number_float_t value, const string_t&) { return add(Value(value)); }
  bool string(string_t& value) { return add(Value(std::move(value))); }
  bool binary(binary_t&) { return false; }
  bool start_object(std::size_t) { return open(Value(Object())); }
  bool start_array(std::size_t) { return open(Value(Array())); }
  bool key(string_t& name) {
    std::get<Object>(open_.back().data()).push_back({std::move(name), Value()});
    return true;
  }
  bool end_object() {
    check_unique(std::get<Object>(open_.back().data()));
    return close();
  }
  bool end_array() { return close(); }
  bool parse_error(std::size_t position, const std::string& /*token*/, const nlohmann::json::exception& error) {
    throw FormatError("model.json", printable(error.what(), 160), {.file = file_, .offset = position});
  }

  [[nodiscard]] Value take() && { return std::move(root_); }

 private:
  bool add(Value value) {
    if (open_.empty()) root_ = std::move(value);
    else if (auto* array = std::get_if<Array>(&open_.back().data())) array->push_back(std::move(value));
    else std::get<Object>(open_.back().data()).back().value = std::move(value);
    return true;
  }
  bool open(Value value) {
    if (open_.size() >= deepest)
      throw FormatError("model.json", fmt::format("nested deeper than {} levels", deepest), {.file = file_});
    open_.push_back(std::move(value));
    return true;
  }
  bool close() {
    Value value = std::move(open_.back());
    open_.pop_back();
    return add(std::move(value));
  }
  void check_unique(const Object& object) const {
    std::vector<std::string_view> keys;
    for (const Member& member : object) keys.push_back(member.key);
    std::ranges::sort(keys);
    const auto same = std::ranges::adjacent_find(keys);
    if (same != keys.end())
      throw FormatError("model.json", fmt::format("the key '{}' occurs twice in an object", printable(*same, 80)),
                        {.file = file_, .key = std::string(*same)});
  }

  const std::string& file_;
  Value root_;
  std::vector<Value> open_;
};

}  // namespace

std::optional<bool> Value::boolean() const noexcept {
  const auto* value = std::get_if<bool>(&data_);
  return value ? std::optional(*value) : std::nullopt;
}

std::optional<std::int64_t> Value::integer() const noexcept {
  if (const auto* value = std::get_if<std::int64_t>(&data_)) return *value;
  if (const auto* value = std::get_if<std::uint64_t>(&data_);
      value && *value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
    return static_cast<std::int64_t>(*value);
  return {};
}

std::optional<double> Value::number() const noexcept {
  if (const auto* value = std::get_if<std::int64_t>(&data_)) return static_cast<double>(*value);
  if (const auto* value = std::get_if<std::uint64_t>(&data_)) return static_cast<double>(*value);
  if (const auto* value = std::get_if<double>(&data_)) return *value;
  return {};
}

const Value* Value::find(std::string_view key) const noexcept {
  const Object* members = object();
  if (!members) return nullptr;
  const auto at = std::ranges::find(*members, key, &Member::key);
  return at != members->end() && !at->value.is_null() ? &at->value : nullptr;
}

std::string_view Value::kind() const noexcept {
  constexpr std::string_view names[] = {"null",     "a boolean", "a number", "a number",
                                        "a number", "a string",  "an array", "an object"};
  return names[data_.index()];
}

Value parse(std::string_view text, const std::string& file) {
  Builder builder(file);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return std::move(builder).take();
}

Value parse_file(const std::string& path, std::uint64_t max_bytes) {
  const AnyByteSource source = open_file(path);
  if (source.size() > max_bytes)
    throw FormatError("model.json", fmt::format("the file has {} bytes, allowed is up to {}", source.size(), max_bytes),
                      {.file = path});
  std::string text(static_cast<std::size_t>(source.size()), '\0');
  source.read(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return parse(text, path);
}

}  // namespace skald::inline v0::json
