#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <skald/core/error.hpp>

namespace skald::inline v0::json {

class Value;
struct Member;
using Array = std::vector<Value>;
using Object = std::vector<Member>;

/// A JSON value of a configuration file. Objects keep the order of the text and have unique keys; nesting is limited, so
/// that destroying one cannot exhaust the stack.
class Value {
 public:
  using Data = std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object>;
  // Defined below: a member of an object must be complete first.
  Value();
  explicit Value(Data data);
  Value(const Value&);
  Value(Value&&) noexcept;
  Value& operator=(const Value&);
  Value& operator=(Value&&) noexcept;
  ~Value();

  [[nodiscard]] const Data& data() const noexcept { return data_; }
  [[nodiscard]] Data& data() noexcept { return data_; }
  [[nodiscard]] bool is_null() const noexcept { return std::holds_alternative<std::nullptr_t>(data_); }
  [[nodiscard]] const std::string* text() const noexcept { return std::get_if<std::string>(&data_); }
  [[nodiscard]] const Array* array() const noexcept { return std::get_if<Array>(&data_); }
  [[nodiscard]] const Object* object() const noexcept { return std::get_if<Object>(&data_); }
  [[nodiscard]] std::optional<bool> boolean() const noexcept;
  /// Whole numbers that fit, written as such.
  [[nodiscard]] std::optional<std::int64_t> integer() const noexcept;
  [[nodiscard]] std::optional<double> number() const noexcept;
  /// Member of an object; nullptr if there is none, it is null, or this is no object.
  [[nodiscard]] const Value* find(std::string_view key) const noexcept;
  /// "a string", "an object", … for messages.
  [[nodiscard]] std::string_view kind() const noexcept;

 private:
  Data data_;
};

struct Member {
  std::string key;
  Value value;
};

inline Value::Value() : data_(nullptr) {}
inline Value::Value(Data data) : data_(std::move(data)) {}
inline Value::Value(const Value&) = default;
inline Value::Value(Value&&) noexcept = default;
inline Value& Value::operator=(const Value&) = default;
inline Value& Value::operator=(Value&&) noexcept = default;
inline Value::~Value() = default;

/// @throws FormatError with file and offset for text that is not JSON, repeated keys or nesting beyond 64 levels.
[[nodiscard]] Value parse(std::string_view text, const std::string& file);
/// Reads and parses a file of at most `max_bytes`. @throws IoError, FormatError.
[[nodiscard]] Value parse_file(const std::string& path, std::uint64_t max_bytes = std::uint64_t{256} << 20);

}  // namespace skald::inline v0::json
