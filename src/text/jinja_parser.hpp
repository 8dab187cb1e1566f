#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_ast.hpp"
#include "text/jinja_lexer.hpp"

namespace skald::inline v0::jinja {

/// Parses a template by recursive descent, with Jinja2's grammar. Depth and size are bounded.
class Parser {
 public:
  explicit Parser(std::string_view source);
  Program parse();

 private:
  using Words = std::initializer_list<std::string_view>;
  struct Nesting;

  // statements
  std::vector<const Node*> parse_body(Words end_words);
  void parse_statement(std::vector<const Node*>& out);
  Node* parse_if();
  Node* parse_for();
  Node* parse_set();
  Node* parse_macro();
  Node* parse_call_block();
  Node* parse_filter_block();
  Node* parse_with();
  Node* parse_generation();
  Node* parse_loop_control();
  void parse_signature(MacroInfo& macro);
  std::vector<const Node*> parse_block(Words end_words, bool drop_end);
  Node* parse_target(bool members, bool until_in);
  Node* parse_single_target(bool members);
  void finish_macro(Node& node);

  // expressions, loosest first
  Node* parse_tuple(bool conditional, bool parentheses);
  Node* parse_expression(bool conditional = true);
  Node* parse_conditional();
  Node* parse_logical(bool disjunction);
  Node* parse_not();
  Node* parse_comparison();
  Node* parse_sum();
  Node* parse_concatenation();
  Node* parse_product();
  Node* parse_power();
  Node* parse_unary(bool filters);
  Node* parse_primary();
  Node* parse_number();
  Node* parse_list();
  Node* parse_dict();
  Node* parse_postfix(Node* node);
  Node* parse_filters_and_tests(Node* node);
  Node* parse_subscript(Node* node);
  Node* parse_subscribed();
  Node* parse_call(Node* callee);
  Node* parse_filter(Node* node, bool inline_start);
  Node* parse_test(Node* node);
  void parse_arguments(Arguments& arguments);
  Node* parse_chain(std::initializer_list<std::pair<std::string_view, Op>> operators, Node* (Parser::*operand)());

  // tokens and nodes
  void next();
  bool skip_op(std::string_view op);
  bool skip_word(std::string_view word);
  void expect_op(std::string_view op);
  void expect_word(std::string_view word);
  std::string expect_name();
  void expect(TokenType type, const char* what);
  [[nodiscard]] bool at_tuple_end() const;
  [[nodiscard]] bool at_any(Words words) const;
  Node* make(NodeType type, std::uint32_t line);
  Node* finish(Node* node);
  Node* name_node(const std::string& name, std::uint32_t line);
  [[noreturn]] void fail(const std::string& message) const;
  [[nodiscard]] std::string describe() const;

  Lexer lexer_;
  Token current_{};
  Token ahead_{};
  Program program_;
  int depth_ = 0;
  int loops_ = 0;
  std::vector<MacroInfo*> macros_;
};

/// Recursion in the parser, bounded before the stack is.
struct Parser::Nesting {
  explicit Nesting(Parser& parser) : parser_(&parser) {
    if (parser.depth_ >= max_depth) {
      parser.fail("the template nests deeper than the limit of " + std::to_string(max_depth));
    }
    ++parser.depth_;
  }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;
  ~Nesting() { --parser_->depth_; }

 private:
  Parser* parser_;
};

}  // namespace skald::inline v0::jinja
