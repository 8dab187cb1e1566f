#include "text/jinja_value.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>

#include <skald/core/error.hpp>

#include "text/jinja_text.hpp"

namespace skald::inline v0::jinja {

namespace {
constexpr const char* place = "text.chat_template";
ErrorContext at_line(std::uint32_t line) { return {.path = "template line " + std::to_string(line)}; }
}  // namespace

void fail_at(std::uint32_t line, const std::string& message) { throw FormatError(place, message, at_line(line)); }

void unsupported_at(std::uint32_t line, const std::string& construct) {
  throw UnsupportedError(place, "the template uses " + construct + ", which is not supported", at_line(line));
}

void Runtime::steps_exceeded() const {
  fail("the template does more work than the limit of " + std::to_string(max_steps) + " steps");
}

void Runtime::memory_exceeded() const {
  fail("the template builds more than the limit of " + std::to_string(max_memory_bytes) + " bytes of values");
}

void Object::own(Runtime* runtime, std::size_t bytes) {
  if (runtime == nullptr) return;
  runtime->charge(bytes);
  owner = runtime;
  charged = bytes;
}

const std::string& Value::text() const noexcept { return static_cast<const Text*>(object_.get())->text; }
Sequence& Value::sequence() const noexcept { return *static_cast<Sequence*>(object_.get()); }
Dict& Value::dict() const noexcept { return *static_cast<Dict*>(object_.get()); }
const Range& Value::range() const noexcept { return *static_cast<const Range*>(object_.get()); }
const Method& Value::method() const noexcept { return *static_cast<const Method*>(object_.get()); }

// --- dictionaries ----------------------------------------------------------------------------------------------------

bool Dict::Key::operator<(const Key& other) const noexcept {
  if (rank != other.rank) return rank < other.rank;
  if (rank == 1) return number < other.number;
  return text < other.text;
}

bool Dict::hashable(const Value& key) noexcept {
  return key.is_text() || key.is_number() || key.is(Kind::none) || key.is(Kind::undefined);
}

Dict::Key Dict::key_of(const Value& key) noexcept {
  if (key.is_text()) return {2, 0, key.text()};
  if (key.is_number()) return {1, key.as_real(), {}};
  return {key.is(Kind::none) ? 3 : 4, 0, {}};
}

const Value* Dict::find(const Key& key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &items[found->second].second;
}
const Value* Dict::find(const Value& key) const { return find(key_of(key)); }
const Value* Dict::find(std::string_view key) const { return find(Key{2, 0, key}); }

void Dict::set(const Value& key, Value value) {
  const auto found = index_.find(key_of(key));
  if (found != index_.end()) {
    items[found->second].second = std::move(value);
    return;
  }
  items.emplace_back(key, std::move(value));
  index_.emplace(key_of(items.back().first), items.size() - 1);  // its text lives in the stored key's object
}

// --- making values ---------------------------------------------------------------------------------------------------

namespace {
// Destruction recurses through containers, so their nesting is bounded.
int checked_depth(Runtime* runtime, int depth) {
  if (depth > max_depth && runtime != nullptr) {
    runtime->fail("values nest deeper than the limit of " + std::to_string(max_depth));
  }
  return depth;
}
}  // namespace

Value make_text(Runtime* runtime, std::string text, bool markup) {
  auto object = std::make_shared<Text>();
  object->own(runtime, 96 + text.size());
  object->text = std::move(text);
  return Value(Kind::string, std::move(object)).with_markup(markup);
}

Value make_sequence(Runtime* runtime, Kind kind, std::vector<Value> items, const char* name) {
  auto object = std::make_shared<Sequence>();
  object->own(runtime, 112 + items.size() * sizeof(Value));
  if (runtime != nullptr) runtime->step(1 + items.size() / 8);
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  object->depth = checked_depth(runtime, depth + 1);
  object->items = std::move(items);
  object->name = name;
  return Value(kind, std::move(object));
}

Value make_dict(Runtime* runtime, std::shared_ptr<Dict> dict) {
  dict->own(runtime, 128 + dict->items.size() * (2 * sizeof(Value) + 80));
  if (runtime != nullptr) runtime->step(1 + dict->items.size());
  int depth = 0;
  for (const auto& item : dict->items) depth = std::max(depth, item.second.depth());
  dict->depth = checked_depth(runtime, depth + 1);
  return Value(Kind::dict, std::move(dict));
}

// --- Python's meaning of values --------------------------------------------------------------------------------------

const char* type_name(const Value& value) noexcept {
  switch (value.kind()) {
    case Kind::undefined: return "Undefined";
    case Kind::none: return "NoneType";
    case Kind::boolean: return "bool";
    case Kind::integer: return "int";
    case Kind::real: return "float";
    case Kind::string: return "str";
    case Kind::list: return "list";
    case Kind::tuple: return "tuple";
    case Kind::dict: return "dict";
    case Kind::range: return "range";
    case Kind::view: return value.sequence().name;
    case Kind::iterator: return "generator";
    case Kind::space: return "Namespace";
    case Kind::loop: return "LoopContext";
    case Kind::function: return "function";
    case Kind::macro: return "Macro";
    case Kind::method: return "method";
  }
  return "object";
}

void fail_undefined(const Runtime& runtime, const Value& value) {
  const std::string name = value.object() ? "'" + value.text() + "'" : "a value";
  if (value.as_int() == 1) runtime.fail("undefined: there is no attribute or item " + name);
  runtime.fail(name + " is undefined");
}

bool truthy(const Value& value) noexcept {
  switch (value.kind()) {
    case Kind::undefined:
    case Kind::none: return false;
    case Kind::boolean:
    case Kind::integer: return value.as_int() != 0;
    case Kind::real: return value.as_real() != 0;
    case Kind::string: return !value.text().empty();
    case Kind::list:
    case Kind::tuple:
    case Kind::view: return !value.sequence().items.empty();
    case Kind::dict: return !value.dict().items.empty();
    case Kind::range: return value.range().count > 0;
    default: return true;
  }
}

namespace {

bool equal_numbers(const Value& a, const Value& b) noexcept {
  return a.is_int() && b.is_int() ? a.as_int() == b.as_int() : a.as_real() == b.as_real();
}

bool equal_items(Runtime& runtime, const std::vector<Value>& a, const std::vector<Value>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [&](const Value& x, const Value& y) { return equal(runtime, x, y); });
}

bool equal_dicts(Runtime& runtime, const Dict& a, const Dict& b) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, value] : a.items) {
    const Value* other = b.find(key);
    if (other == nullptr || !equal(runtime, value, *other)) return false;
  }
  return true;
}

}  // namespace

bool equal(Runtime& runtime, const Value& a, const Value& b) {
  runtime.step();
  if (a.is_number() && b.is_number()) return equal_numbers(a, b);
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::undefined:
    case Kind::none: return true;
    case Kind::string: runtime.sweep(std::min(a.text().size(), b.text().size())); return a.text() == b.text();
    case Kind::list:
    case Kind::tuple: return a.object() == b.object() || equal_items(runtime, a.sequence().items, b.sequence().items);
    case Kind::dict: return a.object() == b.object() || equal_dicts(runtime, a.dict(), b.dict());
    case Kind::range: {
      const Range& x = a.range();
      const Range& y = b.range();
      return x.count == y.count && (x.count == 0 || (x.start == y.start && (x.count == 1 || x.step == y.step)));
    }
    case Kind::function: return a.as_int() == b.as_int();
    case Kind::space:
    case Kind::macro: return a.as_pointer() == b.as_pointer();
    default: return a.object() == b.object();
  }
}

int compare(Runtime& runtime, const Value& a, const Value& b, const char* op) {
  runtime.step();
  const auto order = [](const auto& x, const auto& y) { return x < y ? -1 : y < x ? 1 : 0; };
  if (a.is_int() && b.is_int()) return order(a.as_int(), b.as_int());
  if (a.is_number() && b.is_number()) {
    if (std::isnan(a.as_real()) || std::isnan(b.as_real())) return 2;
    return order(a.as_real(), b.as_real());
  }
  if (a.is_text() && b.is_text()) {
    runtime.sweep(std::min(a.text().size(), b.text().size()));
    return order(a.text().compare(b.text()), 0);  // UTF-8 sorts like code points
  }
  if (a.kind() == b.kind() && (a.is(Kind::list) || a.is(Kind::tuple))) {
    const auto& x = a.sequence().items;
    const auto& y = b.sequence().items;
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(runtime, x[i], y[i])) return compare(runtime, x[i], y[i], op);
    }
    return order(x.size(), y.size());
  }
  if (a.is(Kind::undefined)) fail_undefined(runtime, a);
  if (b.is(Kind::undefined)) fail_undefined(runtime, b);
  runtime.fail(std::string("'") + op + "' is not defined between " + type_name(a) + " and " + type_name(b));
}

bool contains(Runtime& runtime, const Value& item, const Value& container) {
  switch (container.kind()) {
    case Kind::string:
      if (!item.is_text()) {
        runtime.fail(std::string("'in <string>' requires a string as its left operand, not ") + type_name(item));
      }
      runtime.search(container.text().size());
      return find_text(container.text(), item.text()) != std::string_view::npos;
    case Kind::dict:
      if (!Dict::hashable(item)) runtime.fail(std::string("unhashable type: ") + type_name(item));
      return container.dict().find(item) != nullptr;
    case Kind::undefined: return false;
    case Kind::list:
    case Kind::tuple:
    case Kind::view:
      for (const Value& other : container.sequence().items) {
        if (equal(runtime, other, item)) return true;
      }
      return false;
    default:
      for (const Value& other : iterate(runtime, container)) {
        if (equal(runtime, other, item)) return true;
      }
      return false;
  }
}

std::optional<std::size_t> length_of(Runtime& runtime, const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: return 0;
    case Kind::string: runtime.scan(value.text().size()); return count_characters(value.text());
    case Kind::list:
    case Kind::tuple:
    case Kind::view: return value.sequence().items.size();
    case Kind::dict: return value.dict().items.size();
    case Kind::range: return static_cast<std::size_t>(value.range().count);
    default: return std::nullopt;
  }
}

bool iterable(const Value& value) noexcept {
  switch (value.kind()) {
    case Kind::undefined:
    case Kind::string:
    case Kind::list:
    case Kind::tuple:
    case Kind::view:
    case Kind::dict:
    case Kind::range:
    case Kind::iterator: return true;
    default: return false;
  }
}

Value range_item(const Range& range, std::int64_t index) { return Value::integer(range.start + index * range.step); }

std::vector<Value> iterate(Runtime& runtime, const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::undefined: break;
    case Kind::string: {
      const std::string& text = value.text();
      runtime.step(1 + text.size() / 4);
      runtime.need(text.size() * 64);
      for (std::size_t at = 0; at < text.size();) {
        const std::size_t bytes = decode(text, at).bytes;
        items.push_back(make_text(&runtime, text.substr(at, bytes)));
        at += bytes;
      }
      break;
    }
    case Kind::list:
    case Kind::tuple:
    case Kind::view:
      runtime.step(1 + value.sequence().items.size() / 8);
      runtime.need(value.sequence().items.size() * sizeof(Value));
      return value.sequence().items;
    case Kind::iterator: {
      Sequence& source = value.sequence();
      runtime.step(1 + source.items.size() / 8);
      runtime.need(source.items.size() * sizeof(Value));
      items.assign(source.items.begin() + static_cast<std::ptrdiff_t>(source.consumed), source.items.end());
      source.consumed = source.items.size();
      break;
    }
    case Kind::dict:
      runtime.step(1 + value.dict().items.size() / 8);
      runtime.need(value.dict().items.size() * sizeof(Value));
      for (const auto& item : value.dict().items) items.push_back(item.first);
      break;
    case Kind::range: {
      const Range& range = value.range();
      runtime.need(static_cast<std::size_t>(range.count) * sizeof(Value));
      runtime.step(1 + static_cast<std::size_t>(range.count) / 8);
      for (std::int64_t i = 0; i < range.count; ++i) items.push_back(range_item(range, i));
      break;
    }
    default: runtime.fail(std::string("a value of type ") + type_name(value) + " cannot be iterated over");
  }
  return items;
}

Value iterate_shared(Runtime& runtime, const Value& value) {
  if (value.is(Kind::list) || value.is(Kind::tuple) || value.is(Kind::view)) return value;
  return make_list(&runtime, iterate(runtime, value));
}

std::string real_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  const std::string sign = text[0] == '-' ? "-" : "";
  if (!sign.empty()) text.erase(0, 1);
  const std::size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  std::string digits = text.substr(0, e);
  if (digits.size() > 1) digits.erase(1, 1);  // the point
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    std::string out = sign + digits.substr(0, 1);
    if (count > 1) out += "." + digits.substr(1);
    const std::string magnitude = std::to_string(std::abs(exponent));
    return out + (exponent < 0 ? "e-" : "e+") + (magnitude.size() < 2 ? "0" : "") + magnitude;
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1)
    return sign + digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  const auto point = static_cast<std::size_t>(exponent + 1);
  return sign + digits.substr(0, point) + "." + digits.substr(point);
}

namespace {

void append_hex(std::string& out, std::uint32_t value, int digits) {
  for (int i = digits - 1; i >= 0; --i) out += "0123456789abcdef"[(value >> (4 * i)) & 15U];
}

void append_text_repr(TextBuilder& out, std::string_view text) {
  const bool doubled = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubled ? '"' : '\'';
  out.runtime().scan(text.size());
  out.add(quote);
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode(text, at);
    std::string piece;
    if (c.value == quote || c.value == '\\') {
      piece = {'\\', static_cast<char>(c.value)};
    } else if (c.value == '\n') {
      piece = "\\n";
    } else if (c.value == '\r') {
      piece = "\\r";
    } else if (c.value == '\t') {
      piece = "\\t";
    } else if (c.value < 0 || is_printable(c.value)) {
      piece = text.substr(at, c.bytes);
    } else {
      const auto value = static_cast<std::uint32_t>(c.value);
      piece = value < 0x100 ? "\\x" : value < 0x10000 ? "\\u" : "\\U";
      append_hex(piece, value, value < 0x100 ? 2 : value < 0x10000 ? 4 : 8);
    }
    out.add(piece);
    at += c.bytes;
  }
  out.add(quote);
}

void append_items(TextBuilder& out, const std::vector<Value>& items) {
  bool first = true;
  for (const Value& item : items) {
    if (!first) out.add(", ");
    first = false;
    append_repr(out, item);
  }
}

void append_dict(TextBuilder& out, const Dict& dict) {
  out.add('{');
  bool first = true;
  for (const auto& [key, value] : dict.items) {
    if (!first) out.add(", ");
    first = false;
    append_repr(out, key);
    out.add(": ");
    append_repr(out, value);
  }
  out.add('}');
}

}  // namespace

void append_str(TextBuilder& out, const Value& value) {
  if (value.is_text()) {
    out.add(value.text());
  } else if (!value.is(Kind::undefined)) {
    append_repr(out, value);
  }
}

void append_repr(TextBuilder& out, const Value& value) {
  out.runtime().step();
  switch (value.kind()) {
    case Kind::undefined: out.add("Undefined"); break;
    case Kind::none: out.add("None"); break;
    case Kind::boolean: out.add(value.as_int() != 0 ? "True" : "False"); break;
    case Kind::integer: out.add(std::to_string(value.as_int())); break;
    case Kind::real: out.add(real_text(value.as_real())); break;
    case Kind::string:
      if (value.markup()) out.add("Markup(");
      append_text_repr(out, value.text());
      if (value.markup()) out.add(')');
      break;
    case Kind::list:
      out.add('[');
      append_items(out, value.sequence().items);
      out.add(']');
      break;
    case Kind::tuple:
      out.add('(');
      append_items(out, value.sequence().items);
      out.add(value.sequence().items.size() == 1 ? ",)" : ")");
      break;
    case Kind::dict: append_dict(out, value.dict()); break;
    case Kind::view:
      out.add(value.sequence().name);
      out.add("([");
      append_items(out, value.sequence().items);
      out.add("])");
      break;
    case Kind::range: {
      const Range& range = value.range();
      out.add("range(" + std::to_string(range.start) + ", " + std::to_string(range.stop));
      out.add(range.step == 1 ? ")" : ", " + std::to_string(range.step) + ")");
      break;
    }
    default: out.runtime().unsupported(std::string("the text of a value of type ") + type_name(value));
  }
}

std::string to_text(Runtime& runtime, const Value& value) {
  if (value.is_text()) return value.text();
  TextBuilder out(runtime);
  append_str(out, value);
  return out.take();
}

}  // namespace skald::inline v0::jinja
