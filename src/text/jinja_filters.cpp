#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja_builtins.hpp"
#include "text/jinja_text.hpp"

namespace skald::inline v0::jinja {

namespace {

struct Named {
  std::string_view name;
  int id;
};

template <typename Id>
constexpr Named entry(std::string_view name, Id id) {
  return {name, static_cast<int>(id)};
}

constexpr Named filters[] = {entry("abs", Filter::abs),
                             entry("attr", Filter::attr),
                             entry("batch", Filter::batch),
                             entry("capitalize", Filter::capitalize),
                             entry("center", Filter::center),
                             entry("count", Filter::length),
                             entry("d", Filter::default_value),
                             entry("default", Filter::default_value),
                             entry("dictsort", Filter::dictsort),
                             entry("e", Filter::escape),
                             entry("escape", Filter::escape),
                             entry("first", Filter::first),
                             entry("float", Filter::floating),
                             entry("format", Filter::format),
                             entry("groupby", Filter::groupby),
                             entry("indent", Filter::indent),
                             entry("int", Filter::integer),
                             entry("items", Filter::items),
                             entry("join", Filter::join),
                             entry("last", Filter::last),
                             entry("length", Filter::length),
                             entry("list", Filter::list),
                             entry("lower", Filter::lower),
                             entry("map", Filter::map),
                             entry("max", Filter::max),
                             entry("min", Filter::min),
                             entry("reject", Filter::reject),
                             entry("rejectattr", Filter::rejectattr),
                             entry("replace", Filter::replace),
                             entry("reverse", Filter::reverse),
                             entry("round", Filter::round),
                             entry("safe", Filter::safe),
                             entry("select", Filter::select),
                             entry("selectattr", Filter::selectattr),
                             entry("slice", Filter::slice),
                             entry("sort", Filter::sort),
                             entry("string", Filter::string),
                             entry("sum", Filter::sum),
                             entry("title", Filter::title),
                             entry("tojson", Filter::tojson),
                             entry("trim", Filter::trim),
                             entry("truncate", Filter::truncate),
                             entry("unique", Filter::unique),
                             entry("upper", Filter::upper),
                             entry("wordcount", Filter::wordcount)};

template <std::size_t N>
int find_named(const Named (&table)[N], std::string_view name) noexcept {
  for (const Named& candidate : table) {
    if (candidate.name == name) return candidate.id;
  }
  return -1;
}

/// A call of a filter.
struct Call {
  Runtime& runtime;
  const Value& value;
  const CallArguments& arguments;
  std::string_view name;

  [[nodiscard]] std::vector<Value> bound(std::initializer_list<std::string_view> names,
                                         std::size_t required = 0) const {
    return jinja::bind(runtime, arguments, "the filter '" + std::string(name) + "'", names, required);
  }
  /// The value as text, as `soft_str` makes it.
  [[nodiscard]] Value text() const { return value.is_text() ? value : make_text(&runtime, to_text(runtime, value)); }
};

Value as_iterator(const Call& call, std::vector<Value> items) {
  return make_sequence(&call.runtime, Kind::iterator, std::move(items));
}

// `attribute=` of many filters: names and numbers with points between.
Value get_path(Runtime& runtime, Value item, const Value& path, const Value& otherwise = {}) {
  if (path.is(Kind::none) || path.is(Kind::undefined)) return item;
  if (!path.is_text()) return get_item(runtime, item, path);
  std::string_view rest = path.text();
  while (true) {
    const std::size_t point = rest.find('.');
    const std::string_view part = rest.substr(0, point);
    std::int64_t number = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), number);
    const bool is_number =
        !part.empty() && part[0] != '-' && parsed.ec == std::errc() && parsed.ptr == part.data() + part.size();
    item = get_item(runtime, item, is_number ? Value::integer(number) : make_text(&runtime, std::string(part)));
    if (item.is(Kind::undefined) && given(otherwise) && !otherwise.is(Kind::none)) item = otherwise;
    if (point == std::string_view::npos) return item;
    rest.remove_prefix(point + 1);
  }
}

Value ignore_case(Runtime& runtime, const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.is_text()) return value;
  runtime.scan(value.text().size());
  return make_text(&runtime, lower(value.text()));
}

std::vector<Value> collect(const Call& call) { return iterate(call.runtime, call.value); }

Value filter_default(const Call& call) {
  const auto a = call.bound({"default_value", "boolean"});
  const bool replace = call.value.is(Kind::undefined) || (truthy(a[1]) && !truthy(call.value));
  if (!replace) return call.value;
  return call.arguments.positional.empty() && call.arguments.named.empty() ? make_text(&call.runtime, "") : a[0];
}

Value filter_text_case(const Call& call, std::string (*map)(std::string_view)) {
  (void)call.bound({});
  const Value text = call.text();
  call.runtime.scan(text.text().size());
  call.runtime.need(text.text().size() * 2);
  return make_text(&call.runtime, map(text.text()), text.markup());
}

Value filter_trim(const Call& call) {
  const auto a = call.bound({"chars"});
  CallArguments arguments;
  if (given(a[0])) arguments.positional.push_back(a[0]);
  return call_method(call.runtime, call.text(), "strip", arguments);
}

Value filter_length(const Call& call) {
  (void)call.bound({});
  const auto length = length_of(call.runtime, call.value);
  if (!length) call.runtime.fail(std::string("a value of type ") + type_name(call.value) + " has no length");
  return Value::integer(static_cast<std::int64_t>(*length));
}

Value filter_join(const Call& call) {
  const auto a = call.bound({"d", "attribute"});
  const std::string separator = given(a[0]) ? to_text(call.runtime, a[0]) : "";
  TextBuilder out(call.runtime);
  bool first = true;
  for (const Value& item : collect(call)) {
    if (!first) out.add(separator);
    first = false;
    append_str(out, get_path(call.runtime, item, a[1]));
  }
  return out.value();
}

Value filter_replace(const Call& call) {
  const auto a = call.bound({"old", "new", "count"}, 2);
  CallArguments arguments;
  arguments.positional = {make_text(&call.runtime, to_text(call.runtime, a[0])),
                          make_text(&call.runtime, to_text(call.runtime, a[1]))};
  if (given(a[2])) arguments.positional.push_back(a[2]);
  return call_method(call.runtime, call.text().with_markup(false), "replace", arguments);
}

Value filter_ends(const Call& call, bool last) {
  (void)call.bound({});
  if (last && call.value.is(Kind::iterator)) call.runtime.fail("a generator cannot be reversed");
  const std::vector<Value> items = collect(call);
  if (items.empty()) return {};
  return last ? items.back() : items.front();
}

Value filter_reverse(const Call& call) {
  (void)call.bound({});
  std::vector<Value> items = collect(call);
  std::reverse(items.begin(), items.end());
  if (!call.value.is_text())
    return call.value.is(Kind::iterator) ? make_list(&call.runtime, std::move(items))
                                         : as_iterator(call, std::move(items));
  TextBuilder out(call.runtime);
  for (const Value& item : items) out.add(item.text());
  return out.value(call.value.markup());
}

Value filter_sort(const Call& call) {
  const auto a = call.bound({"reverse", "case_sensitive", "attribute"});
  std::vector<Value> items = collect(call);
  std::vector<Value> paths;
  if (a[2].is_text()) {
    std::string_view rest = a[2].text();
    for (std::size_t comma = rest.find(','); comma != std::string_view::npos; comma = rest.find(',')) {
      paths.push_back(make_text(&call.runtime, std::string(rest.substr(0, comma))));
      rest.remove_prefix(comma + 1);
    }
    paths.push_back(make_text(&call.runtime, std::string(rest)));
  } else {
    paths.push_back(a[2]);
  }
  struct Entry {
    std::vector<Value> keys;
    Value item;
  };
  std::vector<Entry> entries;
  call.runtime.need(items.size() * (sizeof(Entry) + paths.size() * sizeof(Value)));
  for (const Value& item : items) {
    Entry next{{}, item};
    for (const Value& path : paths) {
      next.keys.push_back(ignore_case(call.runtime, get_path(call.runtime, item, path), truthy(a[1])));
    }
    entries.push_back(std::move(next));
  }
  const bool reverse = truthy(a[0]);
  std::stable_sort(entries.begin(), entries.end(), [&](const Entry& x, const Entry& y) {
    const Entry& small = reverse ? y : x;
    const Entry& large = reverse ? x : y;
    for (std::size_t i = 0; i < small.keys.size(); ++i) {
      const int order = compare(call.runtime, small.keys[i], large.keys[i], "<");
      if (order != 0) return order == -1;
    }
    return false;
  });
  for (std::size_t i = 0; i < items.size(); ++i) items[i] = entries[i].item;
  return make_list(&call.runtime, std::move(items));
}

Value filter_dictsort(const Call& call) {
  const auto a = call.bound({"case_sensitive", "by", "reverse"});
  if (!call.value.is(Kind::dict)) call.runtime.fail("the filter 'dictsort' needs a mapping");
  const std::string by = given(a[1]) ? to_text(call.runtime, a[1]) : "key";
  if (by != "key" && by != "value") call.runtime.fail("the filter 'dictsort' sorts by \"key\" or \"value\"");
  const Value pairs = call_method(call.runtime, call.value, "items", {});
  CallArguments arguments;
  arguments.named = {{"reverse", a[2]}, {"case_sensitive", a[0]}, {"attribute", Value::integer(by == "key" ? 0 : 1)}};
  return apply_filter(call.runtime, Filter::sort, pairs, arguments);
}

Value filter_unique(const Call& call) {
  const auto a = call.bound({"case_sensitive", "attribute"});
  std::vector<Value> kept;
  std::vector<Value> keys;
  Dict seen;
  for (const Value& item : collect(call)) {
    Value key = ignore_case(call.runtime, get_path(call.runtime, item, a[1]), truthy(a[0]));
    if (!Dict::hashable(key)) call.runtime.fail(std::string("unhashable type: ") + type_name(key));
    call.runtime.step(4);
    if (seen.find(key) != nullptr) continue;
    call.runtime.need(200 * seen.items.size());
    seen.set(key, Value::none());
    kept.push_back(item);
  }
  return as_iterator(call, std::move(kept));
}

Value filter_extreme(const Call& call, bool largest) {
  const auto a = call.bound({"case_sensitive", "attribute"});
  Value best;
  Value best_key;
  bool first = true;
  for (const Value& item : collect(call)) {
    Value key = ignore_case(call.runtime, get_path(call.runtime, item, a[1]), truthy(a[0]));
    if (first || compare(call.runtime, key, best_key, largest ? ">" : "<") == (largest ? 1 : -1)) {
      best = item;
      best_key = std::move(key);
    }
    first = false;
  }
  return best;
}

Value filter_sum(const Call& call) {
  const auto a = call.bound({"attribute", "start"});
  Value sum = given(a[1]) ? a[1] : Value::integer(0);
  for (const Value& item : collect(call)) {
    const Value part = get_path(call.runtime, item, a[0]);
    if (part.is(Kind::undefined)) fail_undefined(call.runtime, part);
    if (!sum.is_number() || !part.is_number())
      call.runtime.unsupported("the filter 'sum' of values that are not numbers");
    if (sum.is_int() && part.is_int()) {
      std::int64_t total = 0;
      if (__builtin_add_overflow(sum.as_int(), part.as_int(), &total))
        call.runtime.fail("integer overflow beyond 64 bits");
      sum = Value::integer(total);
    } else {
      sum = Value::real(sum.as_real() + part.as_real());
    }
  }
  return sum;
}

// `map`: an attribute of every item, or a filter applied to it.
Value filter_map(const Call& call) {
  if (!truthy(call.value)) return as_iterator(call, {});
  std::vector<Value> items = collect(call);
  if (call.arguments.positional.empty() && !call.arguments.named.empty()) {
    const auto a = call.bound({"attribute", "default"});
    for (Value& item : items) item = get_path(call.runtime, item, a[0], a[1]);
    return as_iterator(call, std::move(items));
  }
  if (call.arguments.positional.empty()) call.runtime.fail("the filter 'map' needs the name of a filter");
  const std::string& name = to_string_argument(call.runtime, call.arguments.positional[0], "the filter's name");
  const int id = find_filter(name);
  if (id < 0) call.runtime.unsupported("the filter '" + name + "'");
  CallArguments rest = call.arguments;
  rest.positional.erase(rest.positional.begin());
  for (Value& item : items) item = apply_filter(call.runtime, static_cast<Filter>(id), item, rest);
  return as_iterator(call, std::move(items));
}

// `select`, `reject`, `selectattr`, `rejectattr`.
Value filter_select(const Call& call, bool attribute, bool wanted) {
  if (!truthy(call.value)) return as_iterator(call, {});
  CallArguments rest = call.arguments;
  Value path;
  const auto shift = [&] {
    const Value first = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
    return first;
  };
  if (attribute) {
    if (rest.positional.empty())
      call.runtime.fail("the filter '" + std::string(call.name) + "' needs the name of an attribute");
    path = shift();
  }
  int test = -1;
  if (!rest.positional.empty()) {
    const Value name = shift();
    test = find_test(to_string_argument(call.runtime, name, "the test's name"));
    if (test < 0) call.runtime.unsupported("the test '" + name.text() + "'");
  }
  std::vector<Value> kept;
  for (const Value& item : collect(call)) {
    call.runtime.step();
    const Value subject = get_path(call.runtime, item, path);
    const bool result = test < 0 ? truthy(subject) : apply_test(call.runtime, static_cast<Test>(test), subject, rest);
    if (result == wanted) kept.push_back(item);
  }
  return as_iterator(call, std::move(kept));
}

Value filter_indent(const Call& call) {
  const auto a = call.bound({"width", "first", "blank"});
  const std::string& text = to_string_argument(call.runtime, call.value, "what 'indent' indents");
  std::string indent(4, ' ');
  if (a[0].is_text()) {
    indent = a[0].text();
  } else if (given(a[0])) {
    const std::int64_t width = to_index(call.runtime, a[0], "'width'");
    call.runtime.need(static_cast<std::size_t>(std::max<std::int64_t>(width, 0)));
    indent = std::string(static_cast<std::size_t>(std::max<std::int64_t>(width, 0)), ' ');
  }
  call.runtime.scan(text.size());
  TextBuilder out(call.runtime);
  if (truthy(a[1])) out.add(indent);
  bool first = true;
  const std::string closed = text + "\n";  // so that a newline at the end makes a last, empty line
  std::string_view rest = closed;
  std::string_view line;
  while (next_line(rest, line)) {
    if (!first) {
      out.add('\n');
      if (truthy(a[2]) || !line.empty()) out.add(indent);
    }
    first = false;
    out.add(line);
  }
  return out.value(call.value.markup());
}

Value filter_tojson(const Call& call) {
  const auto a = call.bound({"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = truthy(a[0]);
  style.sort_keys = truthy(a[3]);
  if (a[1].is_text()) {
    style.indent = a[1].text();
  } else if (given(a[1]) && !a[1].is(Kind::none)) {
    const std::int64_t width = std::max<std::int64_t>(to_index(call.runtime, a[1], "'indent'"), 0);
    call.runtime.need(static_cast<std::size_t>(width));
    style.indent = std::string(static_cast<std::size_t>(width), ' ');
  }
  if (style.indent) style.item_separator = ",";
  if (given(a[2]) && !a[2].is(Kind::none)) {
    const std::vector<Value> separators = iterate(call.runtime, a[2]);
    if (separators.size() != 2) call.runtime.fail("tojson: 'separators' needs two strings");
    style.item_separator = to_string_argument(call.runtime, separators[0], "a separator");
    style.key_separator = to_string_argument(call.runtime, separators[1], "a separator");
  }
  TextBuilder out(call.runtime);
  append_json(out, call.value, style);
  return out.value();
}

Value filter_int(const Call& call) {
  const auto a = call.bound({"default", "base"});
  const Value otherwise = given(a[0]) ? a[0] : Value::integer(0);
  const Value& value = call.value;
  if (value.is(Kind::undefined)) fail_undefined(call.runtime, value);
  if (value.is_int()) return Value::integer(value.as_int());
  double number = 0;
  if (value.is_text()) {
    call.runtime.scan(value.text().size());
    const std::int64_t base = given(a[1]) ? to_index(call.runtime, a[1], "'base'") : 10;
    if (const auto integer = parse_integer(call.runtime, value.text(), base)) return Value::integer(*integer);
    const auto real = parse_real(value.text());
    if (!real || !std::isfinite(*real)) return otherwise;
    number = *real;
  } else if (value.is(Kind::real)) {
    number = value.as_real();
    if (std::isnan(number)) return otherwise;
    if (std::isinf(number)) call.runtime.fail("infinity cannot become an integer");
  } else {
    return otherwise;
  }
  if (std::abs(number) >= 9.2e18) call.runtime.fail("integer overflow beyond 64 bits");
  return Value::integer(static_cast<std::int64_t>(number));
}

Value filter_float(const Call& call) {
  const auto a = call.bound({"default"});
  const Value& value = call.value;
  if (value.is(Kind::undefined)) fail_undefined(call.runtime, value);
  if (value.is_number()) return Value::real(value.as_real());
  if (value.is_text()) {
    call.runtime.scan(value.text().size());
    if (const auto real = parse_real(value.text())) return Value::real(*real);
  }
  return given(a[0]) ? a[0] : Value::real(0.0);
}

Value filter_abs(const Call& call) {
  (void)call.bound({});
  const Value& value = call.value;
  if (value.is(Kind::real)) return Value::real(std::abs(value.as_real()));
  if (!value.is_int()) call.runtime.fail(std::string("the filter 'abs' needs a number, not ") + type_name(value));
  if (value.as_int() == INT64_MIN) call.runtime.fail("integer overflow beyond 64 bits");
  return Value::integer(std::abs(value.as_int()));
}

Value filter_round(const Call& call) {
  const auto a = call.bound({"precision", "method"});
  const std::int64_t precision = given(a[0]) ? to_index(call.runtime, a[0], "'precision'") : 0;
  const std::string method = given(a[1]) ? to_text(call.runtime, a[1]) : "common";
  const Value& value = call.value;
  if (value.is(Kind::undefined)) fail_undefined(call.runtime, value);
  if (!value.is_number()) call.runtime.fail(std::string("the filter 'round' needs a number, not ") + type_name(value));
  if (precision < 0 || precision > 300) call.runtime.unsupported("the filter 'round' with this precision");
  if (method == "ceil" || method == "floor") {
    const double scale = std::pow(10.0, static_cast<double>(precision));
    const double scaled = value.as_real() * scale;
    return Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
  }
  if (method != "common") call.runtime.fail("the filter 'round' knows the methods common, ceil and floor");
  if (value.is_int()) return Value::integer(value.as_int());
  if (!std::isfinite(value.as_real())) return value;
  // As in Python: to the nearest decimal of the exact value.
  char buffer[700];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value.as_real(), std::chars_format::fixed,
                                 static_cast<int>(precision));
  double rounded = 0;
  std::from_chars(buffer, end.ptr, rounded);
  return Value::real(rounded);
}

Value filter_batch(const Call& call) {
  const auto a = call.bound({"linecount", "fill_with"}, 1);
  const std::int64_t size = to_index(call.runtime, a[0], "'linecount'");
  if (size <= 0) call.runtime.unsupported("the filter 'batch' with lines of no items");
  std::vector<Value> rows;
  std::vector<Value> row;
  for (const Value& item : collect(call)) {
    if (static_cast<std::int64_t>(row.size()) == size) {
      rows.push_back(make_list(&call.runtime, std::exchange(row, {})));
    }
    row.push_back(item);
  }
  if (!row.empty()) {
    if (given(a[1]) && !a[1].is(Kind::none)) {
      call.runtime.need(static_cast<std::size_t>(std::min<std::int64_t>(size, 1 << 24)) * sizeof(Value));
      row.resize(static_cast<std::size_t>(size), a[1]);
    }
    rows.push_back(make_list(&call.runtime, std::move(row)));
  }
  return as_iterator(call, std::move(rows));
}

Value filter_slice(const Call& call) {
  const auto a = call.bound({"slices", "fill_with"}, 1);
  const std::int64_t slices = to_index(call.runtime, a[0], "'slices'");
  if (slices <= 0 || slices > 100000) call.runtime.fail("the filter 'slice' makes 1 to 100000 slices");
  const std::vector<Value> items = collect(call);
  const std::size_t count = static_cast<std::size_t>(slices);
  std::vector<Value> rows;
  std::size_t at = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const bool extra = i < items.size() % count;
    const std::size_t size = items.size() / count + (extra ? 1 : 0);
    std::vector<Value> row(items.begin() + static_cast<std::ptrdiff_t>(at),
                           items.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
    if (!extra && given(a[1]) && !a[1].is(Kind::none)) row.push_back(a[1]);
    rows.push_back(make_list(&call.runtime, std::move(row)));
  }
  return as_iterator(call, std::move(rows));
}

Value filter_groupby(const Call& call) {
  const auto a = call.bound({"attribute", "default", "case_sensitive"}, 1);
  const Value sorted = [&] {
    if (given(a[1])) call.runtime.unsupported("the filter 'groupby' with a default");
    CallArguments arguments;
    arguments.named = {{"attribute", a[0]}, {"case_sensitive", a[2]}};
    return apply_filter(call.runtime, Filter::sort, call.value, arguments);
  }();
  std::vector<Value> groups;
  std::vector<Value> group;
  Value group_key;
  Value group_name;
  const auto finish = [&] {
    if (group.empty()) return;
    Value items = make_list(&call.runtime, std::exchange(group, {}));
    groups.push_back(make_tuple(&call.runtime, {group_name, std::move(items)}));
  };
  for (const Value& item : sorted.sequence().items) {
    const Value name = get_path(call.runtime, item, a[0]);
    Value key = ignore_case(call.runtime, name, truthy(a[2]));
    if (group.empty() || !equal(call.runtime, key, group_key)) {
      finish();
      group_key = std::move(key);
      group_name = name;
    }
    group.push_back(item);
  }
  finish();
  return make_list(&call.runtime, std::move(groups));
}

Value filter_truncate(const Call& call) {
  const auto a = call.bound({"length", "killwords", "end", "leeway"});
  const std::int64_t length = given(a[0]) ? to_index(call.runtime, a[0], "'length'") : 255;
  const std::string end = given(a[2]) ? to_string_argument(call.runtime, a[2], "'end'") : "...";
  const std::int64_t leeway = given(a[3]) && !a[3].is(Kind::none) ? to_index(call.runtime, a[3], "'leeway'") : 5;
  const std::string& text = to_string_argument(call.runtime, call.value, "what 'truncate' shortens");
  call.runtime.scan(text.size());
  const auto end_size = static_cast<std::int64_t>(count_characters(end));
  if (length < end_size || leeway < 0) call.runtime.fail("the filter 'truncate' got a length below that of 'end'");
  if (static_cast<std::int64_t>(count_characters(text)) <= length + std::min<std::int64_t>(leeway, INT32_MAX))
    return call.value;
  std::size_t cut = 0;
  for (std::int64_t i = 0; i < length - end_size; ++i) cut += decode(text, cut).bytes;
  std::string kept = text.substr(0, cut);
  if (!truthy(a[1])) {
    const std::size_t space = kept.rfind(' ');
    if (space != std::string::npos) kept.erase(space);
  }
  return make_text(&call.runtime, kept + end);
}

Value filter_wordcount(const Call& call) {
  (void)call.bound({});
  const Value value = call.text();
  const std::string& text = value.text();
  call.runtime.scan(text.size());
  std::int64_t words = 0;
  bool inside = false;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode(text, at);
    const bool part = c.value == '_' || is_letter(c.value) || is_digit(c.value);
    if (part && !inside) ++words;
    inside = part;
    at += c.bytes;
  }
  return Value::integer(words);
}

Value filter_escape(const Call& call) {
  (void)call.bound({});
  const Value text = call.text();
  if (text.markup()) return text;
  call.runtime.scan(text.text().size());
  call.runtime.need(text.text().size() * 5);
  return make_text(&call.runtime, escape_html(text.text()), true);
}

Value filter_format(const Call& call) {
  if (!call.arguments.named.empty() && !call.arguments.positional.empty()) {
    call.runtime.fail("the filter 'format' takes positional or named arguments, not both");
  }
  if (call.arguments.named.empty()) {
    return format_percent(call.runtime, call.text(), make_tuple(&call.runtime, call.arguments.positional));
  }
  auto dict = std::make_shared<Dict>();
  for (const auto& [name, value] : call.arguments.named) dict->set(make_text(&call.runtime, name), value);
  return format_percent(call.runtime, call.text(), make_dict(&call.runtime, std::move(dict)));
}

Value filter_items(const Call& call) {
  (void)call.bound({});
  if (call.value.is(Kind::undefined)) return as_iterator(call, {});
  if (!call.value.is(Kind::dict)) call.runtime.fail("the filter 'items' needs a mapping");
  return as_iterator(call, iterate(call.runtime, call_method(call.runtime, call.value, "items", {})));
}

Value filter_attr(const Call& call) {
  const auto a = call.bound({"name"}, 1);
  (void)to_string_argument(call.runtime, a[0], "the name of an attribute");
  if (call.value.is(Kind::undefined)) fail_undefined(call.runtime, call.value);
  if (has_method(call.value.kind(), a[0].text())) return get_attribute(call.runtime, call.value, a[0]);
  return Value::undefined(a[0], true);
}

}  // namespace

int find_filter(std::string_view name) noexcept { return find_named(filters, name); }

Value apply_filter(Runtime& runtime, Filter filter, const Value& value, const CallArguments& arguments) {
  runtime.step();
  std::string_view name;
  for (const Named& candidate : filters) {
    if (candidate.id == static_cast<int>(filter)) name = candidate.name;
  }
  const Call call{runtime, value, arguments, name};
  switch (filter) {
    case Filter::abs: return filter_abs(call);
    case Filter::attr: return filter_attr(call);
    case Filter::batch: return filter_batch(call);
    case Filter::capitalize: return filter_text_case(call, &capitalize);
    case Filter::center: {
      const auto a = call.bound({"width"});
      return call_method(runtime, call.text(), "center", {{given(a[0]) ? a[0] : Value::integer(80)}, {}});
    }
    case Filter::default_value: return filter_default(call);
    case Filter::dictsort: return filter_dictsort(call);
    case Filter::escape: return filter_escape(call);
    case Filter::first: return filter_ends(call, false);
    case Filter::floating: return filter_float(call);
    case Filter::format: return filter_format(call);
    case Filter::groupby: return filter_groupby(call);
    case Filter::indent: return filter_indent(call);
    case Filter::integer: return filter_int(call);
    case Filter::items: return filter_items(call);
    case Filter::join: return filter_join(call);
    case Filter::last: return filter_ends(call, true);
    case Filter::length: return filter_length(call);
    case Filter::list: (void)call.bound({}); return make_list(&runtime, collect(call));
    case Filter::lower: return filter_text_case(call, &lower);
    case Filter::map: return filter_map(call);
    case Filter::max: return filter_extreme(call, true);
    case Filter::min: return filter_extreme(call, false);
    case Filter::reject: return filter_select(call, false, false);
    case Filter::rejectattr: return filter_select(call, true, false);
    case Filter::replace: return filter_replace(call);
    case Filter::reverse: return filter_reverse(call);
    case Filter::round: return filter_round(call);
    case Filter::safe: (void)call.bound({}); return call.text().with_markup(true);
    case Filter::select: return filter_select(call, false, true);
    case Filter::selectattr: return filter_select(call, true, true);
    case Filter::slice: return filter_slice(call);
    case Filter::sort: return filter_sort(call);
    case Filter::string: (void)call.bound({}); return call.text();
    case Filter::sum: return filter_sum(call);
    case Filter::title: return filter_text_case(call, &title_words);
    case Filter::tojson: return filter_tojson(call);
    case Filter::trim: return filter_trim(call);
    case Filter::truncate: return filter_truncate(call);
    case Filter::unique: return filter_unique(call);
    case Filter::upper: return filter_text_case(call, &upper);
    case Filter::wordcount: return filter_wordcount(call);
  }
  return {};
}

}  // namespace skald::inline v0::jinja
