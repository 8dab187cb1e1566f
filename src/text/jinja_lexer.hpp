#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0::jinja {

enum class TokenType : std::uint8_t {
  end,
  data,
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  op,
};

struct Token {
  TokenType type = TokenType::end;
  std::uint32_t line = 1;
  std::string text{};  ///< data, name, value of a string, operator, digits of a number

  [[nodiscard]] bool op(std::string_view o) const noexcept { return type == TokenType::op && text == o; }
  [[nodiscard]] bool word(std::string_view w) const noexcept { return type == TokenType::name && text == w; }
};

/// Splits a template into tokens, one at a time, with the whitespace rules of Jinja2 under `trim_blocks` and
/// `lstrip_blocks`: a newline after a tag goes, and so does the white space before a tag that starts its line.
class Lexer {
 public:
  /// Normalizes line ends and drops one newline at the end.
  explicit Lexer(std::string_view source);
  Token next();

 private:
  enum class State : std::uint8_t { text, block, variable };

  Token text_token();
  bool try_raw(std::size_t open, Token& token);
  void skip_comment();
  Token tag_token();
  bool try_tag_end(Token& token);
  Token number_token();
  Token string_token();
  Token op_token();
  void advance(std::size_t to);
  std::string_view trimmed(std::string_view text, char sign, bool is_variable) const;
  void skip_space();
  [[nodiscard]] bool at(std::string_view text) const {
    return std::string_view(source_).substr(pos_, text.size()) == text;
  }
  [[noreturn]] void fail(const std::string& message) const;

  std::string source_;
  std::size_t pos_ = 0;
  std::uint32_t line_ = 1;
  State state_ = State::text;
  bool line_starting_ = true;
  std::vector<char> brackets_;
  Token pending_{};
  bool has_pending_ = false;
};

}  // namespace skald::inline v0::jinja
