#include <algorithm>

#include "text/jinja_builtins.hpp"
#include "text/jinja_text.hpp"

// Items, attributes and methods of values, as Jinja2's immutable sandbox lets a template reach them.
namespace skald::inline v0::jinja {

std::vector<Value> bind(const Runtime& runtime, const CallArguments& arguments, std::string_view what,
                        std::initializer_list<std::string_view> names, std::size_t required) {
  if (arguments.positional.size() > names.size()) {
    runtime.fail(std::string(what) + " takes at most " + std::to_string(names.size()) + " arguments, got " +
                 std::to_string(arguments.positional.size()));
  }
  std::vector<Value> values = arguments.positional;
  const std::size_t positional = values.size();
  std::vector<bool> set(names.size(), false);
  std::fill_n(set.begin(), positional, true);
  values.resize(names.size());
  for (const auto& [name, value] : arguments.named) {
    const auto i = static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
    if (i == names.size()) runtime.fail(std::string(what) + " has no argument '" + name + "'");
    if (set[i]) runtime.fail(std::string(what) + " got the argument '" + name + "' twice");
    set[i] = true;
    values[i] = value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (!set[i]) runtime.fail(std::string(what) + " needs the argument '" + std::string(names.begin()[i]) + "'");
  }
  return values;
}

std::int64_t to_index(const Runtime& runtime, const Value& value, std::string_view what) {
  if (value.is(Kind::undefined)) fail_undefined(runtime, value);
  if (!value.is_int()) runtime.fail(std::string(what) + " must be an integer, not " + type_name(value));
  return value.as_int();
}

const std::string& to_string_argument(const Runtime& runtime, const Value& value, std::string_view what) {
  if (value.is(Kind::undefined)) fail_undefined(runtime, value);
  if (!value.is_text()) runtime.fail(std::string(what) + " must be a string, not " + type_name(value));
  return value.text();
}

namespace {

constexpr std::string_view text_methods[] = {
    "capitalize", "center",  "count",     "endswith",   "find",      "format",       "index",        "isalnum",
    "isalpha",    "isascii", "isdecimal", "isdigit",    "islower",   "isnumeric",    "isspace",      "isupper",
    "join",       "ljust",   "lower",     "lstrip",     "partition", "removeprefix", "removesuffix", "replace",
    "rfind",      "rindex",  "rjust",     "rpartition", "rsplit",    "rstrip",       "split",        "splitlines",
    "startswith", "strip",   "swapcase",  "title",      "upper",     "zfill"};
constexpr std::string_view missing_text_methods[] = {"casefold",    "encode",       "expandtabs",
                                                     "format_map",  "isidentifier", "istitle",
                                                     "isprintable", "maketrans",    "translate"};
constexpr std::string_view sequence_methods[] = {"count", "index"};
constexpr std::string_view dict_methods[] = {"copy", "get", "items", "keys", "values"};
// What the immutable sandbox takes away.
constexpr std::string_view unsafe_list_methods[] = {"append", "clear",  "extend",  "insert",
                                                    "pop",    "remove", "reverse", "sort"};
constexpr std::string_view unsafe_dict_methods[] = {"clear", "pop", "popitem", "setdefault", "update"};

template <std::size_t N>
bool one_of(const std::string_view (&names)[N], std::string_view name) noexcept {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool is_unsafe(Kind kind, std::string_view name) noexcept {
  if (kind == Kind::list) return one_of(unsafe_list_methods, name);
  if (kind == Kind::dict) return one_of(unsafe_dict_methods, name);
  return false;
}

Value make_method(Runtime& runtime, const Value& self, const std::string& name) {
  auto method = std::make_shared<Method>();
  method->own(&runtime, 160 + name.size());
  method->depth = self.depth() + 1;
  if (method->depth > max_depth) runtime.fail("values nest deeper than the limit of " + std::to_string(max_depth));
  method->self = self;
  method->name = name;
  return Value(Kind::method, std::move(method));
}

// The attribute of the Python object, if it has one of that name.
std::optional<Value> own_attribute(Runtime& runtime, const Value& object, const Value& name) {
  const std::string& text = name.text();
  if (has_method(object.kind(), text)) return make_method(runtime, object, text);
  if (is_unsafe(object.kind(), text) || text.substr(0, 2) == "__") return Value::undefined(name, true);
  if (object.is_text() && one_of(missing_text_methods, text)) runtime.unsupported("the string method '" + text + "'");
  return std::nullopt;
}

// The item of the Python object; nothing where Python raises an error.
std::optional<Value> own_item(Runtime& runtime, const Value& object, const Value& key) {
  if (object.is(Kind::dict)) {
    if (!Dict::hashable(key)) return std::nullopt;
    if (key.is_text()) runtime.sweep(key.text().size());
    const Value* found = object.dict().find(key);
    return found == nullptr ? std::nullopt : std::optional<Value>(*found);
  }
  if (!key.is_int()) return std::nullopt;
  std::int64_t index = key.as_int();
  const auto in_range = [&](std::size_t size) {
    if (index < 0) index += static_cast<std::int64_t>(size);
    return index >= 0 && index < static_cast<std::int64_t>(size);
  };
  if (object.is(Kind::list) || object.is(Kind::tuple)) {
    const auto& items = object.sequence().items;
    if (!in_range(items.size())) return std::nullopt;
    return items[static_cast<std::size_t>(index)];
  }
  if (object.is(Kind::range)) {
    if (!in_range(static_cast<std::size_t>(object.range().count))) return std::nullopt;
    return range_item(object.range(), index);
  }
  if (object.is_text()) {
    const std::string& text = object.text();
    if (!in_range(*length_of(runtime, object))) return std::nullopt;
    std::size_t at = 0;
    for (std::int64_t i = 0; i < index; ++i) at += decode(text, at).bytes;
    return make_text(&runtime, text.substr(at, decode(text, at).bytes));
  }
  return std::nullopt;
}

}  // namespace

bool has_method(Kind kind, std::string_view name) noexcept {
  switch (kind) {
    case Kind::string: return one_of(text_methods, name);
    case Kind::list: return name == "copy" || one_of(sequence_methods, name);
    case Kind::tuple:
    case Kind::range: return one_of(sequence_methods, name);
    case Kind::dict: return one_of(dict_methods, name);
    default: return false;
  }
}

Value get_item(Runtime& runtime, const Value& object, const Value& key) {
  if (object.is(Kind::undefined)) fail_undefined(runtime, object);
  if (auto item = own_item(runtime, object, key)) return *item;
  if (key.is_text()) {
    if (auto attribute = own_attribute(runtime, object, key)) return *attribute;
    return Value::undefined(key, true);
  }
  return Value::undefined(make_text(&runtime, key.is_int() ? std::to_string(key.as_int()) : type_name(key)), true);
}

Value get_attribute(Runtime& runtime, const Value& object, const Value& name) {
  if (object.is(Kind::undefined)) fail_undefined(runtime, object);
  if (auto attribute = own_attribute(runtime, object, name)) return *attribute;
  if (auto item = own_item(runtime, object, name)) return *item;
  return Value::undefined(name, true);
}

Value get_slice(Runtime& runtime, const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (object.is(Kind::undefined)) fail_undefined(runtime, object);
  const bool is_text = object.is_text();
  if (!is_text && !object.is(Kind::list) && !object.is(Kind::tuple) && !object.is(Kind::range)) {
    runtime.fail(std::string("a value of type ") + type_name(object) + " cannot be sliced");
  }
  const auto size = static_cast<std::int64_t>(*length_of(runtime, object));
  const std::int64_t by = step.is(Kind::none) ? 1 : to_index(runtime, step, "the step of a slice");
  if (by == 0) runtime.fail("the step of a slice cannot be zero");
  const auto place = [&](const Value& value, std::int64_t otherwise) {
    if (value.is(Kind::none)) return otherwise;
    std::int64_t i = to_index(runtime, value, "the index of a slice");
    if (i < 0) i = i < -size ? -1 : i + size;
    return std::clamp<std::int64_t>(i, by < 0 ? -1 : 0, by < 0 ? size - 1 : size);
  };
  const std::int64_t first = place(start, by < 0 ? size - 1 : 0);
  const std::int64_t last = place(stop, by < 0 ? -1 : size);
  // Steps beyond the size take one item, and cannot overflow.
  const std::int64_t stride = std::clamp<std::int64_t>(by, -size - 1, size + 1);
  if (is_text && stride == 1) {
    const std::string& text = object.text();
    std::size_t from = 0;
    for (std::int64_t i = 0; i < first; ++i) from += decode(text, from).bytes;
    std::size_t to = from;
    for (std::int64_t i = first; i < last; ++i) to += decode(text, to).bytes;
    return make_text(&runtime, text.substr(from, to - from), object.markup());
  }
  std::vector<std::int64_t> indices;
  for (std::int64_t i = first; stride > 0 ? i < last : i > last; i += stride) indices.push_back(i);
  runtime.step(1 + indices.size() / 4);
  if (is_text) {
    const std::string& text = object.text();
    const std::vector<std::size_t> offsets = character_offsets(text);
    TextBuilder out(runtime);
    for (const std::int64_t i : indices) {
      const auto at = static_cast<std::size_t>(i);
      out.add(std::string_view(text).substr(offsets[at], offsets[at + 1] - offsets[at]));
    }
    return out.value(object.markup());
  }
  std::vector<Value> items;
  runtime.need(indices.size() * sizeof(Value));
  items.reserve(indices.size());
  for (const std::int64_t i : indices) {
    items.push_back(object.is(Kind::range) ? range_item(object.range(), i)
                                           : object.sequence().items[static_cast<std::size_t>(i)]);
  }
  return make_sequence(&runtime, object.is(Kind::tuple) ? Kind::tuple : Kind::list, std::move(items));
}

// --- methods of strings ----------------------------------------------------------------------------------------------

namespace {

struct TextCall {
  Runtime& runtime;
  const std::string& text;
  const std::string& name;
  const CallArguments& arguments;

  [[nodiscard]] std::vector<Value> bound(std::initializer_list<std::string_view> names, std::size_t required) const {
    return jinja::bind(runtime, arguments, "the method '" + name + "'", names, required);
  }
  [[nodiscard]] Value text_value(std::string_view piece) const { return make_text(&runtime, std::string(piece)); }
};

Value split_at_space(const TextCall& call, std::int64_t limit, bool from_right) {
  if (limit < 0) from_right = false;
  std::vector<Value> parts;
  std::string_view rest = strip(call.text, from_right ? Side::right : Side::left);
  while (!rest.empty() && (limit < 0 || static_cast<std::int64_t>(parts.size()) < limit)) {
    std::size_t cut = std::string_view::npos;
    for (std::size_t at = 0; at < rest.size();) {
      const CodePoint c = decode(rest, at);
      if (is_space(c.value)) {
        cut = at;
        if (!from_right) break;
        cut = at + c.bytes;
      }
      at += c.bytes;
    }
    call.runtime.scan(cut == std::string_view::npos || from_right ? rest.size() : cut);
    if (cut == std::string_view::npos) break;
    parts.push_back(call.text_value(from_right ? rest.substr(cut) : rest.substr(0, cut)));
    rest = from_right ? strip(rest.substr(0, cut), Side::right) : strip(rest.substr(cut), Side::left);
  }
  if (!rest.empty()) parts.push_back(call.text_value(rest));
  if (from_right) std::reverse(parts.begin(), parts.end());
  return make_list(&call.runtime, std::move(parts));
}

Value split(const TextCall& call, bool from_right) {
  const auto a = call.bound({"sep", "maxsplit"}, 0);
  const std::int64_t limit = given(a[1]) ? to_index(call.runtime, a[1], "'maxsplit'") : -1;
  call.runtime.search(call.text.size());
  if (!given(a[0]) || a[0].is(Kind::none)) return split_at_space(call, limit, from_right);
  const std::string& separator = to_string_argument(call.runtime, a[0], "'sep'");
  if (separator.empty()) call.runtime.fail("the separator of '" + call.name + "' is empty");
  std::vector<Value> parts;
  std::string_view rest = call.text;
  if (!from_right || limit < 0) {
    while (limit < 0 || static_cast<std::int64_t>(parts.size()) < limit) {
      const std::size_t at = find_text(rest, separator);
      if (at == std::string_view::npos) break;
      parts.push_back(call.text_value(rest.substr(0, at)));
      rest.remove_prefix(at + separator.size());
      call.runtime.sweep(separator.size());
    }
    parts.push_back(call.text_value(rest));
  } else {
    while (static_cast<std::int64_t>(parts.size()) < limit) {
      call.runtime.scan(separator.size() > 4 ? rest.size() : 0);
      const std::size_t at = rest.rfind(separator);
      if (at == std::string_view::npos) break;
      parts.push_back(call.text_value(rest.substr(at + separator.size())));
      rest = rest.substr(0, at);
    }
    parts.push_back(call.text_value(rest));
    std::reverse(parts.begin(), parts.end());
  }
  return make_list(&call.runtime, std::move(parts));
}

Value strip_method(const TextCall& call, Side side) {
  const auto a = call.bound({"chars"}, 0);
  call.runtime.sweep(call.text.size());
  if (!given(a[0]) || a[0].is(Kind::none)) return call.text_value(strip(call.text, side));
  const std::string& characters = to_string_argument(call.runtime, a[0], "'chars'");
  call.runtime.scan(characters.size() + call.text.size());
  return call.text_value(strip(call.text, side, characters));
}

Value starts_or_ends(const TextCall& call, bool at_start) {
  const auto a = call.bound({"prefix", "start", "end"}, 1);
  if (given(a[1])) call.runtime.unsupported("'" + call.name + "' with a start");
  const auto matches = [&](const Value& value) {
    const std::string& affix = to_string_argument(call.runtime, value, "what '" + call.name + "' looks for");
    call.runtime.sweep(affix.size());
    if (affix.size() > call.text.size()) return false;
    return call.text.compare(at_start ? 0 : call.text.size() - affix.size(), affix.size(), affix) == 0;
  };
  if (!a[0].is(Kind::tuple)) return Value::boolean(matches(a[0]));
  const auto& items = a[0].sequence().items;
  return Value::boolean(std::any_of(items.begin(), items.end(), matches));
}

Value find_method(const TextCall& call, bool last, bool must_find) {
  const auto a = call.bound({"sub", "start", "end"}, 1);
  if (given(a[1])) call.runtime.unsupported("'" + call.name + "' with a start");
  const std::string& needle = to_string_argument(call.runtime, a[0], "what '" + call.name + "' looks for");
  call.runtime.search(call.text.size());
  std::size_t at = find_text(call.text, needle);
  if (last) {
    for (std::size_t later = at; later != std::string::npos && later < call.text.size();) {
      at = later;
      call.runtime.sweep(needle.size() > 4 ? call.text.size() * 8 : 0);
      later = find_text(call.text, needle, later + 1);
    }
    if (needle.empty()) at = call.text.size();
  }
  if (at == std::string::npos && must_find) call.runtime.fail("'" + call.name + "': substring not found");
  if (at == std::string::npos) return Value::integer(-1);
  return Value::integer(static_cast<std::int64_t>(count_characters(std::string_view(call.text).substr(0, at))));
}

Value count_method(const TextCall& call) {
  const auto a = call.bound({"sub"}, 1);
  const std::string& needle = to_string_argument(call.runtime, a[0], "what 'count' counts");
  call.runtime.search(call.text.size());
  if (needle.empty()) return Value::integer(static_cast<std::int64_t>(count_characters(call.text)) + 1);
  std::int64_t count = 0;
  for (std::size_t at = find_text(call.text, needle); at != std::string::npos;
       at = find_text(call.text, needle, at + needle.size())) {
    call.runtime.sweep(needle.size());
    ++count;
  }
  return Value::integer(count);
}

Value replace_method(const TextCall& call) {
  const auto a = call.bound({"old", "new", "count"}, 2);
  const std::string& old = to_string_argument(call.runtime, a[0], "'old'");
  const std::string& with = to_string_argument(call.runtime, a[1], "'new'");
  std::int64_t left = given(a[2]) && !a[2].is(Kind::none) ? to_index(call.runtime, a[2], "'count'") : -1;
  const std::string_view text = call.text;
  call.runtime.search(text.size());
  TextBuilder out(call.runtime);
  std::size_t from = 0;
  if (old.empty()) {
    for (; left != 0; --left) {
      out.add(with);
      if (from >= text.size()) break;
      const std::size_t bytes = decode(text, from).bytes;
      out.add(text.substr(from, bytes));
      from += bytes;
    }
  } else {
    for (; left != 0; --left) {
      const std::size_t at = find_text(text, old, from);
      if (at == std::string_view::npos) break;
      out.add(text.substr(from, at - from));
      out.add(with);
      from = at + old.size();
      call.runtime.sweep(old.size());
    }
  }
  if (from < text.size()) out.add(text.substr(from));
  return out.value();
}

Value join_method(const TextCall& call) {
  const auto a = call.bound({"iterable"}, 1);
  TextBuilder out(call.runtime);
  bool first = true;
  for (const Value& item : iterate(call.runtime, a[0])) {
    if (!first) out.add(call.text);
    first = false;
    out.add(to_string_argument(call.runtime, item, "an item of 'join'"));
  }
  return out.value();
}

Value pad_method(const TextCall& call) {
  const auto a = call.bound({"width", "fillchar"}, 1);
  const std::int64_t width = to_index(call.runtime, a[0], "'width'");
  const bool zeros = call.name == "zfill";
  const std::string fill = zeros ? "0" : given(a[1]) ? to_string_argument(call.runtime, a[1], "'fillchar'") : " ";
  if (count_characters(fill) != 1) call.runtime.fail("'fillchar' must be one character");
  call.runtime.scan(call.text.size());
  const auto size = static_cast<std::int64_t>(count_characters(call.text));
  const std::int64_t total = std::max<std::int64_t>(width - size, 0);
  call.runtime.need(static_cast<std::size_t>(total));
  std::int64_t left = total;
  if (call.name == "ljust") left = 0;
  if (call.name == "center") left = total / 2 + (total & width & 1);
  TextBuilder out(call.runtime);
  const bool sign = zeros && !call.text.empty() && (call.text[0] == '-' || call.text[0] == '+');
  if (sign) out.add(call.text[0]);
  for (std::int64_t i = 0; i < left; ++i) out.add(fill);
  out.add(std::string_view(call.text).substr(sign ? 1 : 0));
  for (std::int64_t i = left; i < total; ++i) out.add(fill);
  return out.value();
}

Value partition_method(const TextCall& call, bool last) {
  const auto a = call.bound({"sep"}, 1);
  const std::string& separator = to_string_argument(call.runtime, a[0], "'sep'");
  if (separator.empty()) call.runtime.fail("the separator of '" + call.name + "' is empty");
  const std::string_view text = call.text;
  call.runtime.scan(text.size() * (separator.size() > 16 && last ? 16 : 1));
  const std::size_t at = last ? text.rfind(separator) : find_text(text, separator);
  if (at == std::string_view::npos) {
    const Value none = call.text_value("");
    const Value whole = call.text_value(text);
    return make_tuple(&call.runtime,
                      last ? std::vector<Value>{none, none, whole} : std::vector<Value>{whole, none, none});
  }
  return make_tuple(&call.runtime, {call.text_value(text.substr(0, at)), call.text_value(separator),
                                    call.text_value(text.substr(at + separator.size()))});
}

Value remove_affix(const TextCall& call, bool prefix) {
  const auto a = call.bound({"affix"}, 1);
  const std::string& affix = to_string_argument(call.runtime, a[0], "what '" + call.name + "' removes");
  call.runtime.sweep(call.text.size());
  const std::string_view text = call.text;
  if (affix.size() > text.size()) return call.text_value(text);
  const std::size_t rest = text.size() - affix.size();
  if (prefix) return call.text_value(text.substr(0, affix.size()) == affix ? text.substr(affix.size()) : text);
  return call.text_value(text.substr(rest) == affix ? text.substr(0, rest) : text);
}

Value lines_method(const TextCall& call) {
  const auto a = call.bound({"keepends"}, 0);
  call.runtime.scan(call.text.size());
  std::vector<Value> lines;
  std::string_view rest = call.text;
  std::string_view line;
  while (next_line(rest, line, truthy(a[0]))) lines.push_back(call.text_value(line));
  return make_list(&call.runtime, std::move(lines));
}

Value class_method(const TextCall& call) {
  (void)call.bound({}, 0);
  call.runtime.scan(call.text.size());
  const std::string_view text = call.text;
  bool all = !text.empty();
  bool cased = false;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode(text, at);
    at += c.bytes;
    if (call.name == "islower" || call.name == "isupper") {
      const bool lower_wanted = call.name == "islower";
      if (lower_wanted ? is_upper(c.value) : is_lower(c.value)) return Value::boolean(false);
      cased |= lower_wanted ? is_lower(c.value) : is_upper(c.value);
    } else if (call.name == "isalpha") {
      all &= is_letter(c.value);
    } else if (call.name == "isalnum") {
      all &= is_letter(c.value) || is_digit(c.value);
    } else if (call.name == "isspace") {
      all &= is_space(c.value);
    } else {
      all &= is_digit(c.value);  // isdigit, isdecimal, isnumeric: the same for decimal digits
    }
  }
  if (call.name == "isascii") {
    return Value::boolean(
        std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 128; }));
  }
  if (call.name == "islower" || call.name == "isupper") return Value::boolean(cased);
  return Value::boolean(all);
}

Value case_method(const TextCall& call, std::string (*map)(std::string_view)) {
  (void)call.bound({}, 0);
  call.runtime.scan(call.text.size());
  call.runtime.need(call.text.size() * 2);
  return make_text(&call.runtime, map(call.text));
}

Value call_text_method(const TextCall& call) {
  const std::string& name = call.name;
  if (name == "strip") return strip_method(call, Side::both);
  if (name == "lstrip") return strip_method(call, Side::left);
  if (name == "rstrip") return strip_method(call, Side::right);
  if (name == "split" || name == "rsplit") return split(call, name == "rsplit");
  if (name == "startswith" || name == "endswith") return starts_or_ends(call, name == "startswith");
  if (name == "replace") return replace_method(call);
  if (name == "upper") return case_method(call, &upper);
  if (name == "lower") return case_method(call, &lower);
  if (name == "title") return case_method(call, &title);
  if (name == "capitalize") return case_method(call, &capitalize);
  if (name == "swapcase") return case_method(call, &swap_case);
  if (name == "join") return join_method(call);
  if (name == "find" || name == "index") return find_method(call, false, name == "index");
  if (name == "rfind" || name == "rindex") return find_method(call, true, name == "rindex");
  if (name == "count") return count_method(call);
  if (name == "center" || name == "ljust" || name == "rjust" || name == "zfill") return pad_method(call);
  if (name == "partition" || name == "rpartition") return partition_method(call, name == "rpartition");
  if (name == "removeprefix" || name == "removesuffix") return remove_affix(call, name == "removeprefix");
  if (name == "splitlines") return lines_method(call);
  return class_method(call);
}

// --- methods of containers -------------------------------------------------------------------------------------------

Value call_dict_method(Runtime& runtime, const Value& self, const std::string& name, const CallArguments& arguments) {
  const std::string what = "the method '" + name + "'";
  const Dict& dict = self.dict();
  if (name == "get") {
    const auto a = jinja::bind(runtime, arguments, what, {"key", "default"}, 1);
    if (!Dict::hashable(a[0])) runtime.fail(std::string("unhashable type: ") + type_name(a[0]));
    const Value* found = dict.find(a[0]);
    if (found != nullptr) return *found;
    return arguments.positional.size() + arguments.named.size() > 1 ? a[1] : Value::none();
  }
  (void)bind(runtime, arguments, what, {}, 0);
  if (name == "copy") return self;  // immutable
  runtime.need(dict.items.size() * (sizeof(Value) + 250));
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items) {
    if (name == "items") {
      items.push_back(make_tuple(&runtime, {key, value}));
    } else {
      items.push_back(name == "keys" ? key : value);
    }
  }
  const char* view = name == "items" ? "dict_items" : name == "keys" ? "dict_keys" : "dict_values";
  return make_sequence(&runtime, Kind::view, std::move(items), view);
}

Value call_sequence_method(Runtime& runtime, const Value& self, const std::string& name,
                           const CallArguments& arguments) {
  const std::string what = "the method '" + name + "'";
  if (name == "copy") return self;
  const auto a = jinja::bind(runtime, arguments, what, {"value"}, 1);
  std::int64_t index = 0;
  std::int64_t count = 0;
  for (const Value& item : iterate(runtime, self)) {
    if (equal(runtime, item, a[0])) {
      if (name == "index") return Value::integer(index);
      ++count;
    }
    ++index;
  }
  if (name == "index") runtime.fail("'index': the value is not in the sequence");
  return Value::integer(count);
}

bool needs_escape(const std::string& text) { return text.find_first_of("&<>\"'") != std::string::npos; }

}  // namespace

Value call_method(Runtime& runtime, const Value& self, const std::string& name, const CallArguments& arguments) {
  if (self.is(Kind::dict)) return call_dict_method(runtime, self, name, arguments);
  if (!self.is_text()) return call_sequence_method(runtime, self, name, arguments);
  if (self.markup()) {
    for (const Value& argument : arguments.positional) {
      if (argument.is_text() ? needs_escape(argument.text()) : argument.depth() > 0) {
        runtime.unsupported("the method '" + name + "' of a string that the filter 'safe' marked");
      }
    }
  }
  if (name == "format") return format_braces(runtime, self, arguments).with_markup(self.markup());
  const Value result = call_text_method({runtime, self.text(), name, arguments});
  return result.is_text() ? result.with_markup(self.markup()) : result;
}

}  // namespace skald::inline v0::jinja
