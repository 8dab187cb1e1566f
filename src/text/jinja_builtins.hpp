#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_value.hpp"

namespace skald::inline v0::jinja {

enum class Filter : std::uint8_t {
  abs,
  attr,
  batch,
  capitalize,
  center,
  default_value,
  dictsort,
  escape,
  first,
  floating,
  format,
  groupby,
  indent,
  integer,
  items,
  join,
  last,
  length,
  list,
  lower,
  map,
  max,
  min,
  reject,
  rejectattr,
  replace,
  reverse,
  round,
  safe,
  select,
  selectattr,
  slice,
  sort,
  string,
  sum,
  title,
  tojson,
  trim,
  truncate,
  unique,
  upper,
  wordcount,
};

enum class Test : std::uint8_t {
  boolean,
  callable,
  defined,
  divisibleby,
  eq,
  escaped,
  even,
  falsity,
  filter,
  floating,
  ge,
  gt,
  in,
  integer,
  iterable,
  le,
  lower,
  lt,
  mapping,
  ne,
  none,
  number,
  odd,
  sameas,
  sequence,
  string,
  test,
  truth,
  undefined,
  upper,
};

enum class Function : std::uint8_t { range, dict, space, raise_exception, strftime_now };

/// Numbers of a filter, test or global function; -1 if there is none of that name.
int find_filter(std::string_view name) noexcept;
int find_test(std::string_view name) noexcept;
int find_function(std::string_view name) noexcept;
/// Functions that Jinja2 has and this implementation does not.
bool is_unsupported_function(std::string_view name) noexcept;

/// Arguments of a call, evaluated.
struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

/// Puts arguments into the order of `names`, undefined where left out (undefined and without object). Fails, naming
/// `what`, for too many or unknown arguments and if one of the first `required` is missing.
std::vector<Value> bind(const Runtime& runtime, const CallArguments& arguments, std::string_view what,
                        std::initializer_list<std::string_view> names, std::size_t required);
/// Argument `i` was given.
inline bool given(const Value& value) noexcept { return !value.is(Kind::undefined); }
std::int64_t to_index(const Runtime& runtime, const Value& value, std::string_view what);
const std::string& to_string_argument(const Runtime& runtime, const Value& value, std::string_view what);

/// Jinja2's item access `value[key]`, where a string also finds attributes; undefined if there is none.
Value get_item(Runtime& runtime, const Value& object, const Value& key);
/// Jinja2's attribute access `value.name`, where a name also finds items.
Value get_attribute(Runtime& runtime, const Value& object, const Value& name);
Value get_slice(Runtime& runtime, const Value& object, const Value& start, const Value& stop, const Value& step);

/// True if values of the kind have a method of that name.
bool has_method(Kind kind, std::string_view name) noexcept;
Value call_method(Runtime& runtime, const Value& self, const std::string& name, const CallArguments& arguments);

Value apply_filter(Runtime& runtime, Filter filter, const Value& value, const CallArguments& arguments);
bool apply_test(Runtime& runtime, Test test, const Value& value, const CallArguments& arguments);
/// Functions other than `namespace`.
Value call_function(Runtime& runtime, Function function, const CallArguments& arguments);
/// Adds the members of a mapping, or the pairs of an iterable, as `dict()` does.
void update_dict(Runtime& runtime, Dict& dict, const Value& source);

// --- jinja_format.cpp ------------------------------------------------------------------------------------------------
/// `"…" % value`.
Value format_percent(Runtime& runtime, const Value& format, const Value& value);
/// `"…".format(…)`.
Value format_braces(Runtime& runtime, const Value& format, const CallArguments& arguments);
std::string format_time(Runtime& runtime, std::string_view format);
/// A character of a format as it may stand in a message.
std::string printable_format(char c);
/// Value of a numeral as Python's `int(text, base)` and `float(text)` read it.
std::optional<std::int64_t> parse_integer(Runtime& runtime, std::string_view text, std::int64_t base);
std::optional<double> parse_real(std::string_view text);

}  // namespace skald::inline v0::jinja
