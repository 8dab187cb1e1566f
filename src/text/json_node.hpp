#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>

namespace skald::inline v0::detail {

/// A value of a JSON document together with its place, so that errors can name it. Refers into the document.
class JsonNode {
 public:
  using Json = nlohmann::json;
  JsonNode(const Json& value, std::string path, const std::string& file)
      : value_(&value), path_(std::move(path)), file_(&file) {}

  [[nodiscard]] const Json& json() const noexcept { return *value_; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] bool is_null() const noexcept { return value_->is_null(); }
  [[nodiscard]] bool is_string() const noexcept { return value_->is_string(); }
  [[nodiscard]] bool is_array() const noexcept { return value_->is_array(); }
  [[nodiscard]] bool is_object() const noexcept { return value_->is_object(); }
  [[nodiscard]] std::size_t size() const noexcept { return value_->size(); }

  [[noreturn]] void fail(const std::string& message) const {
    throw FormatError("text.tokenizer_json", message, {.file = *file_, .path = path_});
  }
  [[noreturn]] void unsupported(const std::string& message) const {
    throw UnsupportedError("text.tokenizer_json", message, {.file = *file_, .path = path_});
  }

  /// Member of an object; nothing if it is absent or null.
  [[nodiscard]] std::optional<JsonNode> find(const char* key) const {
    if (!value_->is_object()) fail(std::string("found ") + value_->type_name() + ", allowed is an object");
    const auto member = value_->find(key);
    if (member == value_->end() || member->is_null()) return std::nullopt;
    return JsonNode(*member, path_ + "." + key, *file_);
  }
  [[nodiscard]] JsonNode at(const char* key) const {
    auto member = find(key);
    if (!member) fail(std::string("has no member '") + key + "'");
    return *member;
  }
  [[nodiscard]] JsonNode at(std::size_t i) const {
    if (!value_->is_array()) fail(std::string("found ") + value_->type_name() + ", allowed is an array");
    if (i >= value_->size())
      fail("has " + std::to_string(value_->size()) + " elements; at least " + std::to_string(i + 1) + " are needed");
    return {(*value_)[i], path_ + "[" + std::to_string(i) + "]", *file_};
  }
  /// Checks that this is an array.
  [[nodiscard]] std::size_t array_size() const {
    if (!value_->is_array()) fail(std::string("found ") + value_->type_name() + ", allowed is an array");
    return value_->size();
  }

  [[nodiscard]] const std::string& string() const {
    if (!value_->is_string()) fail(std::string("found ") + value_->type_name() + ", allowed is a string");
    return value_->get_ref<const std::string&>();
  }
  [[nodiscard]] bool boolean() const {
    if (!value_->is_boolean()) fail(std::string("found ") + value_->type_name() + ", allowed is true or false");
    return value_->get<bool>();
  }
  [[nodiscard]] double number() const {
    if (!value_->is_number()) fail(std::string("found ") + value_->type_name() + ", allowed is a number");
    return value_->get<double>();
  }
  [[nodiscard]] std::int64_t integer(std::int64_t least, std::int64_t most) const {
    const bool fits = value_->is_number_integer() && (!value_->is_number_unsigned() ||
                                                      value_->get<std::uint64_t>() <= static_cast<std::uint64_t>(most));
    if (!fits || value_->get<std::int64_t>() < least || value_->get<std::int64_t>() > most) {
      fail("found " +
           printable(value_->is_structured() ? value_->type_name()
                                             : value_->dump(-1, ' ', false, Json::error_handler_t::replace),
                     40) +
           ", allowed is " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value_->get<std::int64_t>();
  }
  [[nodiscard]] bool boolean_or(const char* key, bool otherwise) const {
    const auto member = find(key);
    return member ? member->boolean() : otherwise;
  }
  [[nodiscard]] std::string string_or(const char* key, const char* otherwise) const {
    const auto member = find(key);
    return member ? member->string() : otherwise;
  }

 private:
  const Json* value_;
  std::string path_;
  const std::string* file_;
};

/// Parses a document. Throws `FormatError`, with the offset, for malformed JSON and for nesting deeper than 64.
[[nodiscard]] nlohmann::json parse_json_document(std::string_view text, const std::string& file);

}  // namespace skald::inline v0::detail
