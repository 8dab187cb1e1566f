#include <algorithm>
#include <cmath>

#include "text/jinja_builtins.hpp"
#include "text/jinja_text.hpp"

// Jinja2's tests (`value is …`) and global functions.
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

constexpr Named tests[] = {entry("!=", Test::ne),
                           entry("<", Test::lt),
                           entry("<=", Test::le),
                           entry("==", Test::eq),
                           entry(">", Test::gt),
                           entry(">=", Test::ge),
                           entry("boolean", Test::boolean),
                           entry("callable", Test::callable),
                           entry("defined", Test::defined),
                           entry("divisibleby", Test::divisibleby),
                           entry("eq", Test::eq),
                           entry("equalto", Test::eq),
                           entry("escaped", Test::escaped),
                           entry("even", Test::even),
                           entry("false", Test::falsity),
                           entry("filter", Test::filter),
                           entry("float", Test::floating),
                           entry("ge", Test::ge),
                           entry("greaterthan", Test::gt),
                           entry("gt", Test::gt),
                           entry("in", Test::in),
                           entry("integer", Test::integer),
                           entry("iterable", Test::iterable),
                           entry("le", Test::le),
                           entry("lessthan", Test::lt),
                           entry("lower", Test::lower),
                           entry("lt", Test::lt),
                           entry("mapping", Test::mapping),
                           entry("ne", Test::ne),
                           entry("none", Test::none),
                           entry("number", Test::number),
                           entry("odd", Test::odd),
                           entry("sameas", Test::sameas),
                           entry("sequence", Test::sequence),
                           entry("string", Test::string),
                           entry("test", Test::test),
                           entry("true", Test::truth),
                           entry("undefined", Test::undefined),
                           entry("upper", Test::upper)};

constexpr Named functions[] = {entry("range", Function::range), entry("dict", Function::dict),
                               entry("namespace", Function::space), entry("raise_exception", Function::raise_exception),
                               entry("strftime_now", Function::strftime_now)};

template <std::size_t N>
int find_named(const Named (&table)[N], std::string_view name) noexcept {
  const auto* const found =
      std::find_if(std::begin(table), std::end(table), [&](const Named& candidate) { return candidate.name == name; });
  return found == std::end(table) ? -1 : found->id;
}

bool divisible(Runtime& runtime, const Value& value, const Value& by, std::int64_t remainder) {
  if (value.is(Kind::undefined)) fail_undefined(runtime, value);
  if (!value.is_number() || !by.is_number())
    runtime.fail(std::string("a remainder needs numbers, not ") + type_name(value));
  if (by.as_real() == 0) runtime.fail("division by zero");
  if (value.is_int() && by.is_int()) {
    if (by.as_int() == -1) return remainder == 0;
    const std::int64_t rest = value.as_int() % by.as_int();
    return (rest < 0 ? rest + std::abs(by.as_int()) : rest) == remainder;
  }
  const double rest = std::fmod(value.as_real(), by.as_real());
  return (rest < 0 ? rest + std::abs(by.as_real()) : rest) == static_cast<double>(remainder);
}

bool same(Runtime& runtime, const Value& a, const Value& b) {
  if (a.kind() != b.kind()) return false;
  if (a.object() && !a.is_text()) return a.object() == b.object();
  return equal(runtime, a, b);
}

bool is_sequence(const Value& value) noexcept {
  switch (value.kind()) {
    case Kind::undefined:
    case Kind::string:
    case Kind::list:
    case Kind::tuple:
    case Kind::dict:
    case Kind::range: return true;
    default: return false;
  }
}

bool is_callable(const Value& value) noexcept {
  switch (value.kind()) {
    case Kind::undefined:
    case Kind::function:
    case Kind::macro:
    case Kind::method:
    case Kind::loop: return true;
    default: return false;
  }
}

bool has_case(Runtime& runtime, const Value& value, const char* method) {
  return truthy(call_method(runtime, make_text(&runtime, to_text(runtime, value)), method, {}));
}

bool ordered(Runtime& runtime, Test test, const Value& a, const Value& b) {
  switch (test) {
    case Test::lt: return compare(runtime, a, b, "<") == -1;
    case Test::gt: return compare(runtime, a, b, ">") == 1;
    case Test::le: {
      const int order = compare(runtime, a, b, "<=");
      return order == -1 || order == 0;
    }
    default: {
      const int order = compare(runtime, a, b, ">=");
      return order == 1 || order == 0;
    }
  }
}

Value make_range(Runtime& runtime, const CallArguments& arguments) {
  const auto a = jinja::bind(runtime, arguments, "the function 'range'", {"start", "stop", "step"}, 1);
  auto range = std::make_shared<Range>();
  range->own(&runtime, 160);
  const bool one = arguments.positional.size() == 1;
  range->start = one ? 0 : to_index(runtime, a[0], "the start of a range");
  range->stop = to_index(runtime, one ? a[0] : a[1], "the end of a range");
  range->step = given(a[2]) ? to_index(runtime, a[2], "the step of a range") : 1;
  if (range->step == 0) runtime.fail("the step of a range cannot be zero");
  constexpr std::int64_t far = std::int64_t{1} << 60;
  for (const std::int64_t part : {range->start, range->stop, range->step}) {
    if (part > far || part < -far) runtime.fail("a range goes beyond 60 bits");
  }
  const std::int64_t distance = range->step > 0 ? range->stop - range->start : range->start - range->stop;
  const std::int64_t stride = range->step > 0 ? range->step : -range->step;
  range->count = distance <= 0 ? 0 : (distance + stride - 1) / stride;
  if (range->count > 100000) runtime.fail("a range has more items than the limit of 100000");
  return Value(Kind::range, std::move(range));
}

}  // namespace

int find_test(std::string_view name) noexcept { return find_named(tests, name); }
int find_function(std::string_view name) noexcept { return find_named(functions, name); }
bool is_unsupported_function(std::string_view name) noexcept {
  return name == "cycler" || name == "joiner" || name == "lipsum";
}

bool apply_test(Runtime& runtime, Test test, const Value& value, const CallArguments& arguments) {
  runtime.step();
  const bool binary = test == Test::divisibleby || test == Test::in || test == Test::sameas || test == Test::eq ||
                      test == Test::ne || test == Test::lt || test == Test::le || test == Test::gt || test == Test::ge;
  std::vector<Value> a;
  if (binary) {
    a = jinja::bind(runtime, arguments, "the test", {"other"}, 1);
  } else {
    a = jinja::bind(runtime, arguments, "the test", {}, 0);
  }
  switch (test) {
    case Test::boolean: return value.is(Kind::boolean);
    case Test::callable: return is_callable(value);
    case Test::defined: return !value.is(Kind::undefined);
    case Test::divisibleby: return divisible(runtime, value, a[0], 0);
    case Test::eq: return equal(runtime, value, a[0]);
    case Test::escaped: return value.markup();
    case Test::even: return divisible(runtime, value, Value::integer(2), 0);
    case Test::falsity: return value.is(Kind::boolean) && value.as_int() == 0;
    case Test::filter: return value.is_text() && find_filter(value.text()) >= 0;
    case Test::floating: return value.is(Kind::real);
    case Test::in: return contains(runtime, value, a[0]);
    case Test::integer: return value.is(Kind::integer);
    case Test::iterable: return iterable(value) || value.is(Kind::loop);
    case Test::lower: return has_case(runtime, value, "islower");
    case Test::mapping: return value.is(Kind::dict);
    case Test::ne: return !equal(runtime, value, a[0]);
    case Test::none: return value.is(Kind::none);
    case Test::number: return value.is_number();
    case Test::odd: return divisible(runtime, value, Value::integer(2), 1);
    case Test::sameas: return same(runtime, value, a[0]);
    case Test::sequence: return is_sequence(value);
    case Test::string: return value.is_text();
    case Test::test: return value.is_text() && find_test(value.text()) >= 0;
    case Test::truth: return value.is(Kind::boolean) && value.as_int() == 1;
    case Test::undefined: return value.is(Kind::undefined);
    case Test::upper: return has_case(runtime, value, "isupper");
    default: return ordered(runtime, test, value, a[0]);
  }
}

void update_dict(Runtime& runtime, Dict& dict, const Value& source) {
  if (source.is(Kind::dict)) {
    runtime.need(source.dict().items.size() * 150);
    for (const auto& [key, value] : source.dict().items) {
      runtime.step();
      dict.set(key, value);
    }
    return;
  }
  for (const Value& item : iterate(runtime, source)) {
    const std::vector<Value> pair = iterate(runtime, item);
    if (pair.size() != 2) runtime.fail("the items of a dict must be pairs");
    if (!Dict::hashable(pair[0])) runtime.fail(std::string("unhashable type: ") + type_name(pair[0]));
    runtime.need(dict.items.size() * 150);
    dict.set(pair[0], pair[1]);
  }
}

Value call_function(Runtime& runtime, Function function, const CallArguments& arguments) {
  runtime.step();
  switch (function) {
    case Function::range: return make_range(runtime, arguments);
    case Function::raise_exception: {
      const auto a = jinja::bind(runtime, arguments, "the function 'raise_exception'", {"message"}, 1);
      runtime.fail(to_text(runtime, a[0]));
    }
    case Function::strftime_now: {
      const auto a = jinja::bind(runtime, arguments, "the function 'strftime_now'", {"format"}, 1);
      return make_text(&runtime, format_time(runtime, to_string_argument(runtime, a[0], "the format of a time")));
    }
    default: {
      auto dict = std::make_shared<Dict>();
      if (arguments.positional.size() > 1) runtime.fail("dict takes at most one positional argument");
      if (!arguments.positional.empty()) update_dict(runtime, *dict, arguments.positional[0]);
      for (const auto& [name, value] : arguments.named) dict->set(make_text(&runtime, name), value);
      return make_dict(&runtime, std::move(dict));
    }
  }
}

}  // namespace skald::inline v0::jinja
