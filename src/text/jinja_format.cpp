#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <ctime>

#include "text/jinja_builtins.hpp"
#include "text/jinja_text.hpp"

// Python's `%` and `format` formatting, numerals and times.
namespace skald::inline v0::jinja {

namespace {

struct Spec {
  bool left = false;
  bool plus = false;
  bool space = false;
  bool zero = false;
  bool alternate = false;
  std::int64_t width = 0;
  std::optional<std::int64_t> precision{};
};

std::string fixed_point(double value, std::int64_t precision, std::chars_format format) {
  std::array<char, 800> buffer{};
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format, static_cast<int>(precision));
  return {buffer.data(), end.ptr};
}

std::string format_real(Runtime& runtime, double value, char type, const std::optional<std::int64_t>& precision) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const std::int64_t digits = precision.value_or(6);
  if (digits > 300) runtime.fail("a number has more digits than the limit of 300");
  switch (type) {
    case 'e': return fixed_point(value, digits, std::chars_format::scientific);
    case 'g': return fixed_point(value, std::max<std::int64_t>(digits, 1), std::chars_format::general);
    default: return fixed_point(value, digits, std::chars_format::fixed);
  }
}

std::string digits_of(std::uint64_t value, int base, bool upper_case) {
  const char* const symbols = upper_case ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string out;
  do {
    out += symbols[value % static_cast<unsigned>(base)];
    value /= static_cast<unsigned>(base);
  } while (value > 0);
  std::reverse(out.begin(), out.end());
  return out;
}

// `digits` without sign, to be padded on the side and with the sign that the flags ask for.
void add_number(TextBuilder& out, std::string digits, bool negative, const Spec& spec) {
  const std::string sign = negative ? "-" : spec.plus ? "+" : spec.space ? " " : "";
  const std::int64_t total = spec.width - static_cast<std::int64_t>(digits.size() + sign.size());
  out.runtime().need(static_cast<std::size_t>(std::max<std::int64_t>(total, 0)));
  const std::string pad(static_cast<std::size_t>(std::max<std::int64_t>(total, 0)),
                        spec.zero && !spec.left ? '0' : ' ');
  if (spec.left) {
    out.add(sign + digits + pad);
  } else {
    out.add(spec.zero ? sign + pad + digits : pad + sign + digits);
  }
}

void add_text(TextBuilder& out, std::string text, const Spec& spec) {
  if (spec.precision) {
    std::size_t cut = 0;
    for (std::int64_t i = 0; i < *spec.precision && cut < text.size(); ++i) cut += decode(text, cut).bytes;
    text.resize(cut);
  }
  const std::int64_t total = spec.width - static_cast<std::int64_t>(count_characters(text));
  out.runtime().need(static_cast<std::size_t>(std::max<std::int64_t>(total, 0)));
  const std::string pad(static_cast<std::size_t>(std::max<std::int64_t>(total, 0)), ' ');
  out.add(spec.left ? text + pad : pad + text);
}

void add_conversion(TextBuilder& out, char type, const Value& value, const Spec& spec) {
  Runtime& runtime = out.runtime();
  if (type == 's' || type == 'r') {
    TextBuilder piece(runtime);
    if (type == 's') {
      append_str(piece, value);
    } else {
      append_repr(piece, value);
    }
    add_text(out, piece.take(), spec);
    return;
  }
  if (value.is(Kind::undefined)) fail_undefined(runtime, value);
  if (!value.is_number()) runtime.fail(std::string("%") + type + " needs a number, not " + type_name(value));
  std::string digits;
  bool negative = false;
  if (type == 'd' || type == 'i' || type == 'u' || type == 'x' || type == 'X' || type == 'o') {
    if (value.is(Kind::real) && (type == 'x' || type == 'X' || type == 'o')) runtime.fail("an integer is needed");
    if (value.is(Kind::real) && !(std::abs(value.as_real()) < 9.2e18)) runtime.fail("integer overflow beyond 64 bits");
    const std::int64_t number = value.is(Kind::real) ? static_cast<std::int64_t>(value.as_real()) : value.as_int();
    negative = number < 0;
    const std::uint64_t magnitude =
        negative ? 0 - static_cast<std::uint64_t>(number) : static_cast<std::uint64_t>(number);
    const int base = type == 'o' ? 8 : (type | 0x20) == 'x' ? 16 : 10;
    digits = digits_of(magnitude, base, type == 'X');
    const auto least = static_cast<std::size_t>(std::min<std::int64_t>(spec.precision.value_or(0), 300));
    if (digits.size() < least) digits.insert(0, least - digits.size(), '0');
    if (spec.alternate && base != 10) digits = std::string("0") + (base == 8 ? 'o' : type) + digits;
  } else {
    digits = format_real(runtime, value.as_real(), static_cast<char>(type | 0x20), spec.precision);
    negative = digits[0] == '-';
    if (negative) digits.erase(0, 1);
    if (type < 'a') digits = upper(digits);
  }
  add_number(out, std::move(digits), negative, spec);
}

}  // namespace

Value format_percent(Runtime& runtime, const Value& format, const Value& value) {
  const std::string& text = format.text();
  TextBuilder out(runtime);
  std::size_t used = 0;
  const auto next_argument = [&]() -> Value {
    if (value.is(Kind::tuple)) {
      const auto& items = value.sequence().items;
      if (used >= items.size()) runtime.fail("not enough arguments for the format string");
      return items[used++];
    }
    if (used++ > 0) runtime.fail("not enough arguments for the format string");
    return value;
  };
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t percent = text.find('%', i);
    out.add(std::string_view(text).substr(i, percent == std::string::npos ? percent : percent - i));
    if (percent == std::string::npos) break;
    i = percent + 1;
    runtime.step();
    std::optional<Value> named;
    if (i < text.size() && text[i] == '(') {
      const std::size_t close = text.find(')', i);
      if (close == std::string::npos || !value.is(Kind::dict)) runtime.fail("a format with a key needs a mapping");
      const Value* found = value.dict().find(std::string_view(text).substr(i + 1, close - i - 1));
      if (found == nullptr) runtime.fail("the key of a format is not in the mapping");
      named = *found;
      used = 1;
      i = close + 1;
    }
    Spec spec;
    for (; i < text.size() && std::string_view("-+ 0#").find(text[i]) != std::string_view::npos; ++i) {
      spec.left |= text[i] == '-';
      spec.plus |= text[i] == '+';
      spec.space |= text[i] == ' ';
      spec.zero |= text[i] == '0';
      spec.alternate |= text[i] == '#';
    }
    const auto number = [&] {
      std::int64_t n = 0;
      for (; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i)
        n = std::min<std::int64_t>(n * 10 + (text[i] - '0'), 1 << 30);
      return n;
    };
    spec.width = number();
    if (i < text.size() && text[i] == '.') {
      ++i;
      spec.precision = number();
    }
    if (i >= text.size()) runtime.fail("incomplete format");
    const char type = text[i++];
    if (type == '%') {
      out.add('%');
      continue;
    }
    if (std::string_view("sdriuxXofFeEgG").find(type) == std::string_view::npos) {
      runtime.unsupported(std::string("the format '%") + printable_format(type) + "'");
    }
    add_conversion(out, type, named ? *named : next_argument(), spec);
  }
  if (value.is(Kind::tuple) ? used < value.sequence().items.size()
                            : (used == 0 && !value.is(Kind::dict) && !value.is(Kind::list))) {
    runtime.fail("not all arguments were used by the format string");
  }
  return out.value();
}

// --- str.format ------------------------------------------------------------------------------------------------------

namespace {

// `[[fill]align][sign][0][width][,][.precision][type]`
void add_formatted(TextBuilder& out, const Value& value, std::string_view spec_text) {
  Runtime& runtime = out.runtime();
  if (spec_text.empty()) {
    append_str(out, value);
    return;
  }
  Spec spec;
  std::size_t i = 0;
  std::string fill = " ";
  char align = value.is_number() ? '>' : '<';
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  const std::size_t first = decode(spec_text, 0).bytes;
  if (first < spec_text.size() && is_align(spec_text[first])) {
    fill = spec_text.substr(0, first);
    align = spec_text[first];
    i = first + 1;
  } else if (is_align(spec_text[0])) {
    align = spec_text[0];
    i = 1;
  }
  if (align == '=') runtime.unsupported("the alignment '=' in a format");
  const auto at = [&](char c) { return i < spec_text.size() && spec_text[i] == c; };
  const auto number = [&] {
    std::int64_t n = 0;
    for (; i < spec_text.size() && spec_text[i] >= '0' && spec_text[i] <= '9'; ++i) {
      n = std::min<std::int64_t>(n * 10 + (spec_text[i] - '0'), 1 << 30);
    }
    return n;
  };
  if (at('+') || at(' ') || at('-')) {
    spec.plus = at('+');
    spec.space = at(' ');
    ++i;
  }
  if (at('0')) {
    if (!value.is_number() || i > 1) runtime.unsupported("this format specification");
    spec.zero = true;
    ++i;
  }
  const std::int64_t width = number();
  const bool thousands = at(',');
  if (thousands) ++i;
  if (at('.')) {
    ++i;
    spec.precision = number();
  }
  char type = '\0';
  if (i < spec_text.size()) type = spec_text[i++];
  if (i != spec_text.size() || thousands) runtime.unsupported("this format specification");
  if (value.is(Kind::undefined)) fail_undefined(runtime, value);
  TextBuilder piece(runtime);
  if (value.is_number() && !value.is(Kind::boolean)) {
    if (type == '\0' && value.is(Kind::real) && spec.precision)
      runtime.unsupported("a precision without a type in a format");
    if (spec.zero) spec.width = width;
    if (type == '\0' && value.is(Kind::real)) {
      std::string digits = real_text(value.as_real());
      const bool negative = digits[0] == '-';
      add_number(piece, digits.substr(negative ? 1 : 0), negative, spec);
    } else {
      const char conversion = type == '\0' ? 'd' : type;
      const bool integral = std::string_view("dxXo").find(conversion) != std::string_view::npos;
      if (!integral && std::string_view("fFeEgG").find(conversion) == std::string_view::npos) {
        runtime.unsupported("this format specification");
      }
      if (integral && (value.is(Kind::real) || spec.precision))
        runtime.fail("a format for integers got something else");
      add_conversion(piece, conversion, value, spec);
    }
  } else if (value.is_text() && (type == '\0' || type == 's') && !spec.plus && !spec.space) {
    add_text(piece, value.text(), spec);
  } else {
    runtime.unsupported(std::string("a format specification for a value of type ") + type_name(value));
  }
  const std::string text = piece.take();
  const std::int64_t total = std::max<std::int64_t>(width - static_cast<std::int64_t>(count_characters(text)), 0);
  const std::int64_t left = align == '>' ? total : align == '^' ? total / 2 : 0;
  runtime.need(static_cast<std::size_t>(total));
  for (std::int64_t k = 0; k < left; ++k) out.add(fill);
  out.add(text);
  for (std::int64_t k = left; k < total; ++k) out.add(fill);
}

Value find_field(Runtime& runtime, std::string_view field, const CallArguments& arguments, std::size_t& automatic) {
  const std::size_t end = std::min(field.find('.'), field.find('['));
  const std::string_view first = field.substr(0, end);
  Value value;
  std::int64_t number = static_cast<std::int64_t>(automatic);
  const auto parsed = std::from_chars(first.data(), first.data() + first.size(), number);
  const bool is_number = first.empty() || (parsed.ec == std::errc() && parsed.ptr == first.data() + first.size());
  if (is_number) {
    if (first.empty()) ++automatic;
    if (number < 0 || number >= static_cast<std::int64_t>(arguments.positional.size())) {
      runtime.fail("a format refers to an argument that was not given");
    }
    value = arguments.positional[static_cast<std::size_t>(number)];
  } else {
    const auto found = std::find_if(arguments.named.begin(), arguments.named.end(),
                                    [&](const auto& argument) { return argument.first == first; });
    if (found == arguments.named.end())
      runtime.fail("a format refers to '" + std::string(first.substr(0, 60)) + "', which was not given");
    value = found->second;
  }
  std::string_view rest = end == std::string_view::npos ? std::string_view() : field.substr(end);
  while (!rest.empty()) {
    runtime.step();
    if (rest[0] == '.') {
      rest.remove_prefix(1);
      const std::size_t stop = std::min({rest.find('.'), rest.find('['), rest.size()});
      value = get_attribute(runtime, value, make_text(&runtime, std::string(rest.substr(0, stop))));
      rest.remove_prefix(stop);
    } else {
      const std::size_t close = rest.find(']');
      if (rest[0] != '[' || close == std::string_view::npos) runtime.fail("malformed field in a format");
      const std::string_view key = rest.substr(1, close - 1);
      std::int64_t index = 0;
      const auto index_parsed = std::from_chars(key.data(), key.data() + key.size(), index);
      const bool is_index = index_parsed.ec == std::errc() && index_parsed.ptr == key.data() + key.size();
      value = get_item(runtime, value, is_index ? Value::integer(index) : make_text(&runtime, std::string(key)));
      rest.remove_prefix(close + 1);
    }
  }
  return value;
}

}  // namespace

Value format_braces(Runtime& runtime, const Value& format, const CallArguments& arguments) {
  const std::string_view text = format.text();
  TextBuilder out(runtime);
  std::size_t automatic = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t brace = text.find_first_of("{}", i);
    out.add(text.substr(i, brace == std::string_view::npos ? brace : brace - i));
    if (brace == std::string_view::npos) break;
    i = brace + 1;
    runtime.step();
    if (i < text.size() && text[i] == text[brace]) {
      out.add(text[brace]);
      ++i;
      continue;
    }
    const std::size_t close = text.find('}', i);
    if (text[brace] == '}' || close == std::string_view::npos) runtime.fail("single brace in a format string");
    std::string_view field = text.substr(i, close - i);
    if (field.find('{') != std::string_view::npos) runtime.unsupported("a nested field in a format");
    i = close + 1;
    const std::size_t colon = field.find(':');
    const std::string_view spec = colon == std::string_view::npos ? std::string_view() : field.substr(colon + 1);
    field = field.substr(0, colon);
    char conversion = 's';
    const std::size_t mark = field.find('!');
    const bool converted = mark != std::string_view::npos;
    if (converted) {
      if (mark + 2 != field.size() || (field[mark + 1] != 's' && field[mark + 1] != 'r')) {
        runtime.unsupported("this conversion in a format");
      }
      conversion = field[mark + 1];
      field = field.substr(0, mark);
    }
    Value value = find_field(runtime, field, arguments, automatic);
    if (converted) {
      TextBuilder piece(runtime);
      if (conversion == 'r') {
        append_repr(piece, value);
      } else {
        append_str(piece, value);
      }
      value = piece.value();
    }
    add_formatted(out, value, spec);
  }
  return out.value();
}

// --- numerals --------------------------------------------------------------------------------------------------------

namespace {
// Strips white space and takes the underscores between digits out.
std::optional<std::string> numeral(std::string_view text) {
  std::string out;
  text = strip(text, Side::both);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
    } else if (i == 0 || i + 1 == text.size() || text[i - 1] == '_' || static_cast<unsigned char>(text[i - 1]) < '0') {
      return std::nullopt;
    }
  }
  if (out.empty()) return std::nullopt;
  return out;
}
}  // namespace

std::optional<std::int64_t> parse_integer(Runtime& runtime, std::string_view text, std::int64_t base) {
  if (base != 0 && (base < 2 || base > 36)) runtime.fail("the base of an integer is 0 or 2 to 36");
  auto digits = numeral(text);
  if (!digits) return std::nullopt;
  const bool negative = digits->front() == '-';
  if (negative || digits->front() == '+') digits->erase(0, 1);
  if (digits->size() > 2 && digits->front() == '0') {
    const char prefix = static_cast<char>((*digits)[1] | 0x20);
    const int meant = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 0;
    if (meant != 0 && (base == 0 || base == meant)) {
      base = meant;
      digits->erase(0, 2);
    }
  }
  if (digits->empty() || digits->front() == '-' || digits->front() == '+') return std::nullopt;
  std::int64_t value = 0;
  const auto result =
      std::from_chars(digits->data(), digits->data() + digits->size(), value, static_cast<int>(base == 0 ? 10 : base));
  if (result.ptr != digits->data() + digits->size() || result.ec == std::errc::invalid_argument) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) runtime.fail("integer overflow beyond 64 bits");
  return negative ? -value : value;
}

std::optional<double> parse_real(std::string_view text) {
  auto digits = numeral(text);
  if (!digits) return std::nullopt;
  const bool negative = digits->front() == '-';
  if (negative || digits->front() == '+') digits->erase(0, 1);
  if (digits->empty() || digits->front() == '-' || digits->front() == '+') return std::nullopt;
  std::string word = lower(*digits);
  double value = 0;
  if (word == "inf" || word == "infinity") {
    value = HUGE_VAL;
  } else if (word == "nan") {
    value = NAN;
  } else {
    const auto result = std::from_chars(digits->data(), digits->data() + digits->size(), value);
    if (result.ptr != digits->data() + digits->size() || result.ec == std::errc::invalid_argument) return std::nullopt;
    if (word.find_first_of("inx") != std::string::npos) return std::nullopt;
    // Beyond the range: from_chars leaves the value alone; strings of digits that long are not numbers we know.
    if (result.ec == std::errc::result_out_of_range) return std::nullopt;
  }
  return negative ? -value : value;
}

// --- times -----------------------------------------------------------------------------------------------------------

namespace {

constexpr std::array<std::string_view, 12> months = {"January",   "February", "March",    "April",
                                                     "May",       "June",     "July",     "August",
                                                     "September", "October",  "November", "December"};
constexpr std::array<std::string_view, 7> days = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                                  "Thursday", "Friday", "Saturday"};

std::string padded(int value, int width, char flag) {
  std::string digits = std::to_string(value);
  if (flag == '-' || static_cast<int>(digits.size()) >= width) return digits;
  return std::string(static_cast<std::size_t>(width) - digits.size(), flag == '_' ? ' ' : '0') + digits;
}

// One conversion of strftime in the C locale, whatever locale the host has set.
std::string time_field(Runtime& runtime, const std::tm& time, char code, char flag) {
  const std::string_view month = months[static_cast<std::size_t>(time.tm_mon) % 12];
  const std::string_view day = days[static_cast<std::size_t>(time.tm_wday) % 7];
  const int hour12 = time.tm_hour % 12 == 0 ? 12 : time.tm_hour % 12;
  const auto joined = [&](std::string_view format) {
    std::string out;
    for (const char c : format)
      out += c == ':' || c == '/' || c == '-' || c == ' ' ? std::string(1, c) : time_field(runtime, time, c, ' ');
    return out;
  };
  switch (code) {
    case 'd': return padded(time.tm_mday, 2, flag);
    case 'e': return padded(time.tm_mday, 2, '_');
    case 'm': return padded(time.tm_mon + 1, 2, flag);
    case 'Y': return std::to_string(time.tm_year + 1900);
    case 'y': return padded((time.tm_year + 1900) % 100, 2, flag);
    case 'H': return padded(time.tm_hour, 2, flag);
    case 'I': return padded(hour12, 2, flag);
    case 'M': return padded(time.tm_min, 2, flag);
    case 'S': return padded(time.tm_sec, 2, flag);
    case 'j': return padded(time.tm_yday + 1, 3, flag);
    case 'u': return std::to_string(time.tm_wday == 0 ? 7 : time.tm_wday);
    case 'w': return std::to_string(time.tm_wday);
    case 'p': return time.tm_hour < 12 ? "AM" : "PM";
    case 'B': return std::string(month);
    case 'b':
    case 'h': return std::string(month.substr(0, 3));
    case 'A': return std::string(day);
    case 'a': return std::string(day.substr(0, 3));
    case 'F': return joined("Y-m-d");
    case 'T':
    case 'X': return joined("H:M:S");
    case 'R': return joined("H:M");
    case 'D':
    case 'x': return joined("m/d/y");
    case 'c': return joined("a b e H:M:S Y");
    case 'Z':
    case 'z': return "";  // Python's naive times have no zone
    case '%': return "%";
    case 'n': return "\n";
    case 't': return "\t";
    default: runtime.unsupported(std::string("the time format '%") + printable_format(code) + "'");
  }
}

}  // namespace

std::string printable_format(char c) { return c >= 0x20 && c < 0x7F ? std::string(1, c) : "?"; }

std::string format_time(Runtime& runtime, std::string_view format) {
  const auto now = runtime.now.value_or(std::chrono::system_clock::now());
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  std::tm time{};
  if (localtime_r(&seconds, &time) == nullptr) runtime.fail("the time cannot be told");
  std::string out;
  runtime.scan(format.size());
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out += format[i];
      continue;
    }
    char flag = ' ';
    ++i;
    if ((format[i] == '-' || format[i] == '_' || format[i] == '0') && i + 1 < format.size()) flag = format[i++];
    out += time_field(runtime, time, format[i], flag);
  }
  return out;
}

}  // namespace skald::inline v0::jinja
