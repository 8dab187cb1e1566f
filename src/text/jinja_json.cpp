#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>

#include "text/jinja_text.hpp"
#include "text/jinja_value.hpp"

namespace skald::inline v0::jinja {

namespace {

// Builds values from the events of the JSON parser, which does not recurse.
class JsonReader {
 public:
  using Json = nlohmann::ordered_json;

  explicit JsonReader(const char* what) : what_(what) {}

  bool null() { return add(Value::none()); }
  bool boolean(bool value) { return add(Value::boolean(value)); }
  bool number_integer(Json::number_integer_t value) { return add(Value::integer(value)); }
  bool number_unsigned(Json::number_unsigned_t value) {
    if (value > static_cast<std::uint64_t>(INT64_MAX)) refuse("has an integer beyond 64 bits");
    return add(Value::integer(static_cast<std::int64_t>(value)));
  }
  bool number_float(Json::number_float_t value, const Json::string_t& text) {
    if (text.find_first_of(".eE") == std::string::npos) refuse("has an integer beyond 64 bits");
    return add(Value::real(value));
  }
  bool string(Json::string_t& value) { return add(make_text(nullptr, std::move(value))); }
  bool binary(Json::binary_t&) { return false; }
  bool start_object(std::size_t) { return open(Kind::dict); }
  bool key(Json::string_t& value) {
    open_.back().key = make_text(nullptr, std::move(value));
    return true;
  }
  bool end_object() { return close(); }
  bool start_array(std::size_t) { return open(Kind::list); }
  bool end_array() { return close(); }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) {
    throw FormatError("text.chat_template", std::string(what_) + " is not valid JSON", {.offset = position});
  }

  Value result{};

 private:
  struct Open {
    std::shared_ptr<Dict> dict;
    std::vector<Value> items;
    Value key;
  };

  [[noreturn]] void refuse(const std::string& message) const {
    throw FormatError("text.chat_template", std::string(what_) + " " + message);
  }
  bool open(Kind kind) {
    if (open_.size() >= static_cast<std::size_t>(max_depth) / 2) {
      refuse("nests deeper than the limit of " + std::to_string(max_depth / 2));
    }
    open_.emplace_back();
    if (kind == Kind::dict) open_.back().dict = std::make_shared<Dict>();
    return true;
  }
  bool close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    return add(done.dict ? make_dict(nullptr, std::move(done.dict)) : make_list(nullptr, std::move(done.items)));
  }
  bool add(Value value) {
    if (open_.empty()) {
      result = std::move(value);
    } else if (open_.back().dict) {
      open_.back().dict->set(open_.back().key, std::move(value));
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }

  const char* what_;
  std::vector<Open> open_;
};

void append_escape(std::string& out, std::uint32_t unit) {
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) out += "0123456789abcdef"[(unit >> shift) & 15U];
}

void append_json_text(TextBuilder& out, std::string_view text, bool ensure_ascii) {
  out.runtime().scan(text.size());
  out.add('"');
  std::string piece;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode(text, at);
    switch (c.value) {
      case '"': piece += "\\\""; break;
      case '\\': piece += "\\\\"; break;
      case '\n': piece += "\\n"; break;
      case '\r': piece += "\\r"; break;
      case '\t': piece += "\\t"; break;
      case '\b': piece += "\\b"; break;
      case '\f': piece += "\\f"; break;
      default:
        if (c.value >= 0 && (c.value < 0x20 || (ensure_ascii && c.value > 0x7E))) {
          const auto value = static_cast<std::uint32_t>(c.value);
          if (value == 0x7F) {
            piece += '\x7f';
          } else if (value >= 0x10000) {
            append_escape(piece, 0xD800U + ((value - 0x10000U) >> 10));
            append_escape(piece, 0xDC00U + ((value - 0x10000U) & 0x3FFU));
          } else {
            append_escape(piece, value);
          }
        } else {
          piece.append(text.substr(at, c.bytes));
        }
    }
    at += c.bytes;
    if (piece.size() > 200) {
      out.add(piece);
      piece.clear();
    }
  }
  out.add(piece);
  out.add('"');
}

std::string json_real(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return real_text(value);
}

std::string json_key(TextBuilder& out, const Value& key) {
  switch (key.kind()) {
    case Kind::string: return key.text();
    case Kind::integer: return std::to_string(key.as_int());
    case Kind::boolean: return key.as_int() != 0 ? "true" : "false";
    case Kind::real: return json_real(key.as_real());
    case Kind::none: return "null";
    default: out.runtime().fail(std::string("tojson: keys of type ") + type_name(key) + " are not allowed");
  }
}

void new_line(TextBuilder& out, const JsonStyle& style, int level) {
  if (!style.indent) return;
  out.add('\n');
  for (int i = 0; i < level; ++i) out.add(*style.indent);
}

void append_json_list(TextBuilder& out, const std::vector<Value>& items, const JsonStyle& style, int level) {
  if (items.empty()) {
    out.add("[]");
    return;
  }
  out.add('[');
  bool first = true;
  for (const Value& item : items) {
    if (!first) out.add(style.item_separator);
    first = false;
    new_line(out, style, level + 1);
    append_json(out, item, style, level + 1);
  }
  new_line(out, style, level);
  out.add(']');
}

void append_json_dict(TextBuilder& out, const Dict& dict, const JsonStyle& style, int level) {
  if (dict.items.empty()) {
    out.add("{}");
    return;
  }
  std::vector<const std::pair<Value, Value>*> items;
  for (const auto& item : dict.items) items.push_back(&item);
  if (style.sort_keys) {
    std::stable_sort(items.begin(), items.end(), [&](const auto* a, const auto* b) {
      return compare(out.runtime(), a->first, b->first, "<") == -1;
    });
  }
  out.add('{');
  bool first = true;
  for (const auto* item : items) {
    if (!first) out.add(style.item_separator);
    first = false;
    new_line(out, style, level + 1);
    append_json_text(out, json_key(out, item->first), style.ensure_ascii);
    out.add(style.key_separator);
    append_json(out, item->second, style, level + 1);
  }
  new_line(out, style, level);
  out.add('}');
}

}  // namespace

Value parse_json(const std::string& json, const char* what) {
  JsonReader reader(what);
  JsonReader::Json::sax_parse(json, &reader);
  return std::move(reader.result);
}

void append_json(TextBuilder& out, const Value& value, const JsonStyle& style, int level) {
  out.runtime().step();
  switch (value.kind()) {
    case Kind::none: out.add("null"); break;
    case Kind::boolean: out.add(value.as_int() != 0 ? "true" : "false"); break;
    case Kind::integer: out.add(std::to_string(value.as_int())); break;
    case Kind::real: out.add(json_real(value.as_real())); break;
    case Kind::string: append_json_text(out, value.text(), style.ensure_ascii); break;
    case Kind::list:
    case Kind::tuple: append_json_list(out, value.sequence().items, style, level); break;
    case Kind::dict: append_json_dict(out, value.dict(), style, level); break;
    default:
      out.runtime().fail(std::string("tojson: a value of type ") + type_name(value) + " is not JSON serializable");
  }
}

}  // namespace skald::inline v0::jinja
