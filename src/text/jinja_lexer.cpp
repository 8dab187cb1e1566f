#include "text/jinja_lexer.hpp"

#include <algorithm>

#include "text/jinja_text.hpp"
#include "text/jinja_value.hpp"

namespace skald::inline v0::jinja {

namespace {

bool digit(char c) noexcept { return c >= '0' && c <= '9'; }
bool name_start(char c) noexcept {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool name_part(char c) noexcept { return name_start(c) || digit(c); }

int hex_digit(char c) noexcept {
  if (digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string normalize(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

}  // namespace

Lexer::Lexer(std::string_view source) : source_(normalize(source)) {}

void Lexer::fail(const std::string& message) const { fail_at(line_, message); }

void Lexer::advance(std::size_t to) {
  line_ += static_cast<std::uint32_t>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(pos_),
                                                 source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
  if (to > pos_) line_starting_ = source_[to - 1] == '\n';
  pos_ = to;
}

void Lexer::skip_space() {
  std::size_t to = pos_;
  while (to < source_.size()) {
    const CodePoint c = decode(source_, to);
    if (!is_space(c.value)) break;
    to += c.bytes;
  }
  advance(to);
}

std::string_view Lexer::trimmed(std::string_view text, char sign, bool is_variable) const {
  if (sign == '-') return strip(text, Side::right);
  if (sign == '+' || is_variable) return text;
  const std::size_t newline = text.rfind('\n');
  const std::size_t start = newline == std::string_view::npos ? 0 : newline + 1;
  if (start == 0 && !line_starting_) return text;
  return strip(text.substr(start), Side::left).empty() ? text.substr(0, start) : text;
}

Token Lexer::next() {
  if (has_pending_) {
    has_pending_ = false;
    return std::move(pending_);
  }
  return state_ == State::text ? text_token() : tag_token();
}

// Text up to the next tag; the tag's opening follows as the pending token.
Token Lexer::text_token() {
  while (pos_ < source_.size()) {
    std::size_t open = pos_;
    const auto is_open = [&](std::size_t i) {
      return source_[i] == '{' && i + 1 < source_.size() &&
             (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#');
    };
    while (open < source_.size() && !is_open(open)) ++open;
    Token data{TokenType::data, line_, {}};
    const std::string_view text = std::string_view(source_).substr(pos_, open - pos_);
    if (open == source_.size()) {
      data.text = text;
      advance(open);
      return data;
    }
    if (source_[open + 1] == '%' && try_raw(open, data)) {
      if (!data.text.empty()) return data;
      continue;
    }
    const char kind = source_[open + 1];
    std::size_t after = open + 2;
    const char sign = after < source_.size() && (source_[after] == '-' || source_[after] == '+') ? source_[after] : ' ';
    if (sign != ' ') ++after;
    data.text = trimmed(text, sign, kind == '{');
    advance(after);
    if (kind == '#') {
      skip_comment();
      if (!data.text.empty()) return data;
      continue;
    }
    state_ = kind == '%' ? State::block : State::variable;
    Token tag{kind == '%' ? TokenType::block_begin : TokenType::variable_begin, line_, {}};
    if (data.text.empty()) return tag;
    pending_ = std::move(tag);
    has_pending_ = true;
    return data;
  }
  return {TokenType::end, line_, {}};
}

void Lexer::skip_comment() {
  // The sign after "{#" belongs to the opening, so "{#-#}" closes at once.
  const std::size_t close = source_.find("#}", pos_);
  if (close == std::string::npos) fail("missing end of comment tag");
  const char sign = close > pos_ ? source_[close - 1] : ' ';
  advance(close + 2);
  if (sign == '-') {
    skip_space();
  } else if (sign != '+' && at("\n")) {
    advance(pos_ + 1);
  }
}

// `{% raw %}…{% endraw %}` at `open`: `token` becomes the text before and the raw text.
bool Lexer::try_raw(std::size_t open, Token& token) {
  const auto skip = [&](std::size_t i) {
    while (i < source_.size() && is_space(decode(source_, i).value)) i += decode(source_, i).bytes;
    return i;
  };
  const auto signed_at = [&](std::size_t i, bool plus) {
    return i < source_.size() && (source_[i] == '-' || (plus && source_[i] == '+'));
  };
  std::size_t i = open + 2;
  const char sign = signed_at(i, true) ? source_[i] : ' ';
  if (sign != ' ') ++i;
  i = skip(i);
  if (source_.compare(i, 3, "raw") != 0) return false;
  i = skip(i + 3);
  const bool strip_after = signed_at(i, false);
  if (strip_after) ++i;
  if (source_.compare(i, 2, "%}") != 0) return false;
  i += 2;
  if (strip_after) i = skip(i);
  token.text = trimmed(std::string_view(source_).substr(pos_, open - pos_), sign, false);
  advance(i);

  for (std::size_t end = source_.find("{%", pos_); end != std::string::npos; end = source_.find("{%", end + 2)) {
    std::size_t j = end + 2;
    const char end_sign = signed_at(j, true) ? source_[j] : ' ';
    if (end_sign != ' ') ++j;
    j = skip(j);
    if (source_.compare(j, 6, "endraw") != 0) continue;
    j = skip(j + 6);
    const char last_sign = signed_at(j, true) ? source_[j] : ' ';
    if (last_sign != ' ') ++j;
    if (source_.compare(j, 2, "%}") != 0) continue;
    j += 2;
    if (last_sign == '-') {
      j = skip(j);
    } else if (last_sign != '+' && j < source_.size() && source_[j] == '\n') {
      ++j;
    }
    token.text += trimmed(std::string_view(source_).substr(pos_, end - pos_), end_sign, false);
    advance(j);
    return true;
  }
  fail("missing end of raw directive");
}

bool Lexer::try_tag_end(Token& token) {
  if (!brackets_.empty()) return false;
  const bool block = state_ == State::block;
  const std::string_view close = block ? "%}" : "}}";
  const bool minus = at("-") && std::string_view(source_).substr(pos_ + 1, 2) == close;
  const bool plus = block && at("+") && std::string_view(source_).substr(pos_ + 1, 2) == close;
  if (!minus && !plus && !at(close)) return false;
  token = {block ? TokenType::block_end : TokenType::variable_end, line_, {}};
  advance(pos_ + close.size() + (minus || plus ? 1 : 0));
  if (minus) {
    skip_space();
  } else if (block && !plus && at("\n")) {
    advance(pos_ + 1);
  }
  state_ = State::text;
  return true;
}

Token Lexer::tag_token() {
  Token token;
  if (try_tag_end(token)) return token;
  skip_space();
  if (try_tag_end(token)) return token;
  if (pos_ >= source_.size()) return {TokenType::end, line_, {}};
  const char c = source_[pos_];
  if (digit(c)) return number_token();
  if (c == '"' || c == '\'') return string_token();
  if (name_start(c)) {
    std::size_t to = pos_;
    while (to < source_.size() && name_part(source_[to])) ++to;
    token = {TokenType::name, line_, source_.substr(pos_, to - pos_)};
    advance(to);
    return token;
  }
  return op_token();
}

Token Lexer::number_token() {
  const auto peek = [&](std::size_t i) { return i < source_.size() ? source_[i] : '\0'; };
  const auto digits = [&](std::size_t i, auto&& valid) {
    while (valid(peek(i)) || (peek(i) == '_' && valid(peek(i + 1)))) ++i;
    return i;
  };
  Token token{TokenType::integer, line_, {}};
  std::size_t to = pos_;
  const char prefix = static_cast<char>(peek(pos_ + 1) | 0x20);
  if (source_[pos_] == '0' && (prefix == 'x' || prefix == 'o' || prefix == 'b')) {
    const int base = prefix == 'x' ? 16 : prefix == 'o' ? 8 : 2;
    to = digits(pos_ + 2, [&](char c) { return hex_digit(c) >= 0 && hex_digit(c) < base; });
  } else {
    to = digits(pos_, digit);
    const bool member = pos_ > 0 && source_[pos_ - 1] == '.';  // a.0.1 are two items
    if (!member && peek(to) == '.' && digit(peek(to + 1))) {
      token.type = TokenType::real;
      to = digits(to + 1, digit);
    }
    if (!member && (peek(to) | 0x20) == 'e') {
      const std::size_t exponent = to + (peek(to + 1) == '+' || peek(to + 1) == '-' ? 2 : 1);
      if (digit(peek(exponent))) {
        token.type = TokenType::real;
        to = digits(exponent, digit);
      }
    }
  }
  token.text = source_.substr(pos_, to - pos_);
  token.text.erase(std::remove(token.text.begin(), token.text.end(), '_'), token.text.end());
  advance(to);
  return token;
}

Token Lexer::string_token() {
  const char quote = source_[pos_];
  Token token{TokenType::string, line_, {}};
  std::size_t i = pos_ + 1;
  const auto hex = [&](std::size_t digits) {
    std::int32_t value = 0;
    for (std::size_t k = 0; k < digits; ++k, ++i) {
      const int digit_value = i < source_.size() ? hex_digit(source_[i]) : -1;
      if (digit_value < 0 || value > 0x10FFFF) fail("malformed escape in a string");
      value = value * 16 + digit_value;
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) fail("escape of an invalid character in a string");
    append_utf8(token.text, value);
  };
  while (i < source_.size() && source_[i] != quote) {
    if (source_[i] != '\\') {
      token.text += source_[i++];
      continue;
    }
    if (++i >= source_.size()) break;
    const char c = source_[i++];
    constexpr std::string_view letters = "ntrabfv\\'\"";
    constexpr std::string_view meanings = "\n\t\r\a\b\f\v\\'\"";
    const std::size_t known = letters.find(c);
    if (known != std::string_view::npos) {
      token.text += meanings[known];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      hex(c == 'x' ? 2 : c == 'u' ? 4 : 8);
    } else if (c >= '0' && c <= '7') {
      int value = c - '0';
      for (int k = 0; k < 2 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++k, ++i)
        value = value * 8 + (source_[i] - '0');
      append_utf8(token.text, value);
    } else if (c == 'N') {
      unsupported_at(line_, "the string escape \\N");
    } else if (c != '\n') {
      token.text += '\\';
      token.text += c;
    }
  }
  if (i >= source_.size()) fail("a string is not closed");
  advance(i + 1);
  return token;
}

Token Lexer::op_token() {
  static constexpr std::string_view operators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                   "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                   ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
  for (const std::string_view op : operators) {
    if (!at(op)) continue;
    const char c = op[0];
    if (c == '(' || c == '[' || c == '{') brackets_.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (brackets_.empty() || brackets_.back() != c) fail("unexpected '" + std::string(op) + "'");
      brackets_.pop_back();
    }
    Token token{TokenType::op, line_, std::string(op)};
    advance(pos_ + op.size());
    return token;
  }
  fail("unexpected character in a tag");
}

}  // namespace skald::inline v0::jinja
