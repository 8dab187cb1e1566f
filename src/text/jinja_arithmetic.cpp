#include <cmath>

#include "text/jinja_evaluator.hpp"
#include "text/jinja_text.hpp"

// Python's operators on numbers, strings and lists.
namespace skald::inline v0::jinja {

namespace {

[[noreturn]] void overflow(const Runtime& runtime) { runtime.fail("integer overflow beyond 64 bits"); }

std::int64_t floor_divide(const Runtime& runtime, std::int64_t a, std::int64_t b) {
  if (b == 0) runtime.fail("division by zero");
  if (b == -1 && a == INT64_MIN) overflow(runtime);
  const std::int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

std::int64_t modulo(const Runtime& runtime, std::int64_t a, std::int64_t b) {
  if (b == 0) runtime.fail("division by zero");
  if (b == -1) return 0;
  const std::int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

Value integer_power(Runtime& runtime, std::int64_t base, std::int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) runtime.fail("zero cannot be raised to a negative power");
    return Value::real(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  std::int64_t result = 1;
  while (true) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) overflow(runtime);
    exponent >>= 1;
    if (exponent == 0) return Value::integer(result);
    if (__builtin_mul_overflow(base, base, &base)) overflow(runtime);
  }
}

Value integer_operation(Runtime& runtime, Op op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  switch (op) {
    case Op::add:
      if (__builtin_add_overflow(a, b, &result)) overflow(runtime);
      return Value::integer(result);
    case Op::sub:
      if (__builtin_sub_overflow(a, b, &result)) overflow(runtime);
      return Value::integer(result);
    case Op::mul:
      if (__builtin_mul_overflow(a, b, &result)) overflow(runtime);
      return Value::integer(result);
    case Op::div:
      if (b == 0) runtime.fail("division by zero");
      return Value::real(static_cast<double>(a) / static_cast<double>(b));
    case Op::floor_div: return Value::integer(floor_divide(runtime, a, b));
    case Op::mod: return Value::integer(modulo(runtime, a, b));
    default: return integer_power(runtime, a, b);
  }
}

Value real_operation(Runtime& runtime, Op op, double a, double b) {
  if ((op == Op::div || op == Op::floor_div || op == Op::mod) && b == 0) runtime.fail("division by zero");
  switch (op) {
    case Op::add: return Value::real(a + b);
    case Op::sub: return Value::real(a - b);
    case Op::mul: return Value::real(a * b);
    case Op::div: return Value::real(a / b);
    case Op::pow: {
      if (a == 0 && b < 0) runtime.fail("zero cannot be raised to a negative power");
      if (a < 0 && std::isfinite(a) && std::isfinite(b) && b != std::floor(b)) runtime.unsupported("complex numbers");
      const double result = std::pow(a, b);
      if (std::isinf(result) && std::isfinite(a) && std::isfinite(b))
        runtime.fail("the result of a power is too large");
      return Value::real(result);
    }
    default: break;
  }
  double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0) {
    if ((b < 0) != (rest < 0)) {
      rest += b;
      quotient -= 1.0;
    }
  } else {
    rest = std::copysign(0.0, b);
  }
  if (op == Op::mod) return Value::real(rest);
  if (quotient == 0) return Value::real(std::copysign(0.0, a / b));
  const double floored = std::floor(quotient);
  return Value::real(quotient - floored > 0.5 ? floored + 1.0 : floored);
}

// What `safe` marked stays marked, and what is added to it is escaped.
Value add_text(Runtime& runtime, const Value& a, const Value& b) {
  const bool markup = a.markup() || b.markup();
  const std::size_t bytes = a.text().size() + b.text().size();
  runtime.sweep(bytes);
  runtime.need(markup ? bytes * 6 : bytes);
  const auto part = [&](const Value& value) {
    return markup && !value.markup() ? escape_html(value.text()) : value.text();
  };
  return make_text(&runtime, part(a) + part(b), markup);
}

Value repeat(Runtime& runtime, const Value& value, std::int64_t count) {
  const std::size_t times = count > 0 ? static_cast<std::size_t>(count) : 0;
  const std::size_t size = value.is_text() ? value.text().size() : value.sequence().items.size() * sizeof(Value);
  if (times > 0 && size > max_memory_bytes / times) runtime.need(max_memory_bytes + 1);
  runtime.sweep(size * times);
  runtime.need(size * times);
  if (value.is_text()) {
    std::string text;
    if (size > 0) {
      text.reserve(size * times);
      for (std::size_t i = 0; i < times; ++i) text += value.text();
    }
    return make_text(&runtime, std::move(text), value.markup());
  }
  std::vector<Value> items;
  const auto& source = value.sequence().items;
  if (!source.empty()) {
    for (std::size_t i = 0; i < times; ++i) items.insert(items.end(), source.begin(), source.end());
  }
  return make_sequence(&runtime, value.kind(), std::move(items));
}

Value join_sequences(Runtime& runtime, const Value& a, const Value& b) {
  const std::size_t count = a.sequence().items.size() + b.sequence().items.size();
  runtime.need(count * sizeof(Value));
  std::vector<Value> items = a.sequence().items;
  items.insert(items.end(), b.sequence().items.begin(), b.sequence().items.end());
  return make_sequence(&runtime, a.kind(), std::move(items));
}

constexpr const char* op_text(Op op) {
  switch (op) {
    case Op::add: return "+";
    case Op::sub: return "-";
    case Op::mul: return "*";
    case Op::div: return "/";
    case Op::floor_div: return "//";
    case Op::mod: return "%";
    default: return "**";
  }
}

}  // namespace

Value arithmetic(Runtime& runtime, Op op, const Value& a, const Value& b) {
  runtime.step();
  if (a.is_int() && b.is_int()) return integer_operation(runtime, op, a.as_int(), b.as_int());
  if (a.is_number() && b.is_number()) return real_operation(runtime, op, a.as_real(), b.as_real());
  const auto is_items = [](const Value& v) { return v.is(Kind::list) || v.is(Kind::tuple); };
  if (op == Op::mod && a.is_text()) {
    if (a.markup()) runtime.unsupported("the operator % on a string that the filter 'safe' marked");
    return format_percent(runtime, a, b);
  }
  if (op == Op::add && a.is_text() && b.is_text()) return add_text(runtime, a, b);
  if (op == Op::add && is_items(a) && a.kind() == b.kind()) return join_sequences(runtime, a, b);
  if (op == Op::mul && (a.is_text() || is_items(a)) && b.is_int()) return repeat(runtime, a, b.as_int());
  if (op == Op::mul && (b.is_text() || is_items(b)) && a.is_int()) return repeat(runtime, b, a.as_int());
  if (a.is(Kind::undefined)) fail_undefined(runtime, a);
  if (b.is(Kind::undefined)) fail_undefined(runtime, b);
  runtime.fail(std::string("the operator ") + op_text(op) + " does not take " + type_name(a) + " and " + type_name(b));
}

}  // namespace skald::inline v0::jinja
