#include <algorithm>
#include <charconv>

#include "text/jinja_parser.hpp"

namespace skald::inline v0::jinja {

// One expression, or several with commas between, which make a tuple.
Node* Parser::parse_tuple(bool conditional, bool parentheses) {
  const std::uint32_t line = current_.line;
  std::vector<const Node*> items;
  Node* last = nullptr;
  bool is_tuple = false;
  while (true) {
    if (!items.empty()) expect_op(",");
    if (at_tuple_end()) break;
    last = parse_expression(conditional);
    items.push_back(last);
    if (!current_.op(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && last != nullptr) return last;
  if (!is_tuple && !parentheses) fail("expected an expression, found " + describe());
  Node* node = make(NodeType::tuple, line);
  node->children = std::move(items);
  return finish(node);
}

Node* Parser::parse_expression(bool conditional) { return conditional ? parse_conditional() : parse_logical(true); }

Node* Parser::parse_conditional() {
  Node* value = parse_logical(true);
  while (current_.word("if")) {
    Node* node = make(NodeType::conditional, current_.line);
    next();
    node->children = {parse_logical(true), value, nullptr};
    if (skip_word("else")) {
      const Nesting nesting(*this);
      node->children[2] = parse_conditional();
    }
    value = finish(node);
  }
  return value;
}

Node* Parser::parse_logical(bool disjunction) {
  const std::uint32_t line = current_.line;
  Node* first = disjunction ? parse_logical(false) : parse_not();
  const char* word = disjunction ? "or" : "and";
  if (!current_.word(word)) return first;
  Node* node = make(disjunction ? NodeType::disjunction : NodeType::conjunction, line);
  node->children = {first};
  while (skip_word(word)) node->children.push_back(disjunction ? parse_logical(false) : parse_not());
  return finish(node);
}

Node* Parser::parse_not() {
  const Nesting nesting(*this);  // every way down to a nested expression leads through here
  if (!current_.word("not")) return parse_comparison();
  Node* node = make(NodeType::negation, current_.line);
  next();
  node->children = {parse_not()};
  return finish(node);
}

Node* Parser::parse_comparison() {
  static constexpr std::pair<std::string_view, Op> operators[] = {{"==", Op::eq}, {"!=", Op::ne}, {"<", Op::lt},
                                                                  {"<=", Op::le}, {">", Op::gt},  {">=", Op::ge}};
  const std::uint32_t line = current_.line;
  Node* first = parse_sum();
  Node* node = nullptr;
  while (true) {
    const auto* const found = std::find_if(std::begin(operators), std::end(operators),
                                           [&](const auto& candidate) { return current_.op(candidate.first); });
    Op op = Op::in;
    if (found != std::end(operators)) {
      op = found->second;
    } else if (current_.word("not") && ahead_.word("in")) {
      op = Op::not_in;
      next();
    } else if (!current_.word("in")) {
      return node == nullptr ? first : finish(node);
    }
    next();
    if (node == nullptr) {
      node = make(NodeType::comparison, line);
      node->children = {first};
    }
    node->ops.push_back(op);
    node->children.push_back(parse_sum());
  }
}

// Operands with operators of one precedence between them; one node however many there are.
Node* Parser::parse_chain(std::initializer_list<std::pair<std::string_view, Op>> operators,
                          Node* (Parser::*operand)()) {
  const std::uint32_t line = current_.line;
  Node* first = (this->*operand)();
  Node* node = nullptr;
  while (true) {
    const auto* const found = std::find_if(operators.begin(), operators.end(),
                                           [&](const auto& candidate) { return current_.op(candidate.first); });
    if (found == operators.end()) return node == nullptr ? first : finish(node);
    if (node == nullptr) {
      node = make(NodeType::arithmetic, line);
      node->children = {first};
    }
    next();
    node->ops.push_back(found->second);
    node->children.push_back((this->*operand)());
  }
}

Node* Parser::parse_sum() { return parse_chain({{"+", Op::add}, {"-", Op::sub}}, &Parser::parse_concatenation); }

Node* Parser::parse_concatenation() {
  const std::uint32_t line = current_.line;
  Node* first = parse_product();
  if (!current_.op("~")) return first;
  Node* node = make(NodeType::concatenation, line);
  node->children = {first};
  while (skip_op("~")) node->children.push_back(parse_product());
  return finish(node);
}

Node* Parser::parse_product() {
  return parse_chain({{"*", Op::mul}, {"/", Op::div}, {"//", Op::floor_div}, {"%", Op::mod}}, &Parser::parse_power);
}

Node* Parser::parse_power() {
  const std::uint32_t line = current_.line;
  Node* base = parse_unary(true);
  while (skip_op("**")) {
    Node* node = make(NodeType::arithmetic, line);
    node->children = {base, parse_unary(true)};
    node->ops = {Op::pow};
    base = finish(node);
  }
  return base;
}

Node* Parser::parse_unary(bool filters) {
  const std::uint32_t line = current_.line;
  Node* node = nullptr;
  if (current_.op("-") || current_.op("+")) {
    const Nesting nesting(*this);
    node = make(current_.op("-") ? NodeType::minus : NodeType::plus, line);
    next();
    node->children = {parse_unary(false)};
    finish(node);
  } else {
    node = parse_primary();
  }
  node = parse_postfix(node);
  return filters ? parse_filters_and_tests(node) : node;
}

Node* Parser::parse_primary() {
  const std::uint32_t line = current_.line;
  if (current_.type == TokenType::name) {
    const std::string name = expect_name();
    const auto constant = [&](Value value) {
      Node* node = make(NodeType::constant, line);
      node->value = std::move(value);
      return node;
    };
    if (name == "true" || name == "True") return constant(Value::boolean(true));
    if (name == "false" || name == "False") return constant(Value::boolean(false));
    if (name == "none" || name == "None") return constant(Value::none());
    if (is_unsupported_function(name) && current_.op("(")) unsupported_at(line, "the function '" + name + "'");
    return name_node(name, line);
  }
  if (current_.type == TokenType::string) {
    Node* node = make(NodeType::constant, line);
    std::string text;
    while (current_.type == TokenType::string) {
      text += current_.text;
      next();
    }
    node->value = make_text(nullptr, std::move(text));
    return node;
  }
  if (current_.type == TokenType::integer || current_.type == TokenType::real) return parse_number();
  if (skip_op("(")) {
    Node* node = parse_tuple(true, true);
    expect_op(")");
    return node;
  }
  if (current_.op("[")) return parse_list();
  if (current_.op("{")) return parse_dict();
  fail("expected an expression, found " + describe());
}

Node* Parser::parse_number() {
  Node* node = make(NodeType::constant, current_.line);
  const std::string& text = current_.text;
  if (current_.type == TokenType::real) {
    double value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);  // unlike strtod, whatever the host's locale
    node->value = Value::real(value);
  } else {
    int base = 10;
    std::size_t start = 0;
    if (text.size() > 1 && text[0] == '0' && (text[1] < '0' || text[1] > '9')) {
      base = (text[1] | 0x20) == 'x' ? 16 : (text[1] | 0x20) == 'o' ? 8 : 2;
      start = 2;
    }
    std::int64_t value = 0;
    const auto result = std::from_chars(text.data() + start, text.data() + text.size(), value, base);
    if (result.ec == std::errc::result_out_of_range) unsupported_at(current_.line, "an integer beyond 64 bits");
    if (result.ec != std::errc() || result.ptr != text.data() + text.size()) fail("malformed number '" + text + "'");
    if (base == 10 && text.size() > 1 && text[0] == '0' && value != 0) fail("malformed number '" + text + "'");
    node->value = Value::integer(value);
  }
  next();
  return node;
}

Node* Parser::parse_list() {
  Node* node = make(NodeType::list, current_.line);
  expect_op("[");
  while (!current_.op("]")) {
    if (!node->children.empty()) expect_op(",");
    if (current_.op("]")) break;
    node->children.push_back(parse_expression());
  }
  next();
  return finish(node);
}

Node* Parser::parse_dict() {
  Node* node = make(NodeType::dict, current_.line);
  expect_op("{");
  while (!current_.op("}")) {
    if (!node->children.empty()) expect_op(",");
    if (current_.op("}")) break;
    node->children.push_back(parse_expression());
    expect_op(":");
    node->children.push_back(parse_expression());
  }
  next();
  return finish(node);
}

Node* Parser::parse_postfix(Node* node) {
  while (true) {
    if (current_.op(".") || current_.op("[")) {
      node = parse_subscript(node);
    } else if (current_.op("(")) {
      node = parse_call(node);
    } else {
      return node;
    }
  }
}

Node* Parser::parse_filters_and_tests(Node* node) {
  while (true) {
    if (current_.op("|")) {
      node = parse_filter(node, false);
    } else if (current_.word("is")) {
      node = parse_test(node);
    } else if (current_.op("(")) {
      node = parse_call(node);
    } else {
      return node;
    }
  }
}

Node* Parser::parse_subscript(Node* object) {
  Node* node = make(NodeType::item, current_.line);
  if (skip_op(".")) {
    if (current_.type == TokenType::name) {
      node->type = NodeType::attribute;
      node->value = make_text(nullptr, expect_name());
      node->children = {object};
      return finish(node);
    }
    if (current_.type != TokenType::integer) fail("expected a name or a number, found " + describe());
    node->children = {object, parse_number()};
    return finish(node);
  }
  expect_op("[");
  std::vector<const Node*> keys;
  while (!current_.op("]")) {
    if (!keys.empty()) expect_op(",");
    keys.push_back(parse_subscribed());
  }
  next();
  if (keys.size() != 1) unsupported_at(node->line, "an index with several parts");
  node->children = {object, keys[0]};
  return finish(node);
}

Node* Parser::parse_subscribed() {
  Node* node = make(NodeType::slice, current_.line);
  node->children = {nullptr, nullptr, nullptr};
  if (!current_.op(":")) {
    Node* start = parse_expression();
    if (!current_.op(":")) return start;
    node->children[0] = start;
  }
  next();
  const auto at_end = [&] { return current_.op("]") || current_.op(","); };
  if (!current_.op(":") && !at_end()) node->children[1] = parse_expression();
  if (skip_op(":") && !at_end()) node->children[2] = parse_expression();
  return finish(node);
}

void Parser::parse_arguments(Arguments& arguments) {
  expect_op("(");
  bool first = true;
  while (!current_.op(")")) {
    if (!first) {
      expect_op(",");
      if (current_.op(")")) break;
    }
    first = false;
    const bool after_stars = arguments.star != nullptr || arguments.double_star != nullptr;
    if (current_.op("*")) {
      if (after_stars) fail("misplaced '*' in the arguments of a call");
      next();
      arguments.star = parse_expression();
    } else if (current_.op("**")) {
      if (arguments.double_star != nullptr) fail("misplaced '**' in the arguments of a call");
      next();
      arguments.double_star = parse_expression();
    } else if (current_.type == TokenType::name && ahead_.op("=")) {
      if (arguments.double_star != nullptr) fail("an argument follows '**'");
      std::string name = expect_name();
      next();
      for (const auto& other : arguments.named) {
        if (other.first == name) fail("the argument '" + name + "' is given twice");
      }
      arguments.named.emplace_back(std::move(name), parse_expression());
    } else {
      if (after_stars || !arguments.named.empty()) fail("a positional argument follows a named one");
      arguments.positional.push_back(parse_expression());
    }
    if (arguments.named.size() > 64) fail("a call has more than 64 named arguments");
  }
  next();
}

Node* Parser::parse_call(Node* callee) {
  Node* node = make(NodeType::call, current_.line);
  node->children = {callee};
  node->arguments = std::make_unique<Arguments>();
  parse_arguments(*node->arguments);
  return finish(node);
}

Node* Parser::parse_filter(Node* node, bool inline_start) {
  while (inline_start || current_.op("|")) {
    if (!inline_start) next();
    inline_start = false;
    Node* filter = make(NodeType::filter, current_.line);
    std::string name = expect_name();
    while (skip_op(".")) name += "." + expect_name();
    const int id = find_filter(name);
    if (id < 0) unsupported_at(filter->line, "the filter '" + name + "'");
    filter->symbol = static_cast<std::uint32_t>(id);
    filter->value = make_text(nullptr, name);
    filter->children = {node};
    filter->arguments = std::make_unique<Arguments>();
    if (current_.op("(")) parse_arguments(*filter->arguments);
    node = finish(filter);
  }
  return node;
}

Node* Parser::parse_test(Node* subject) {
  Node* node = make(NodeType::test, current_.line);
  next();  // "is"
  node->flag = skip_word("not");
  std::string name = expect_name();
  while (skip_op(".")) name += "." + expect_name();
  const int id = find_test(name);
  if (id < 0) unsupported_at(node->line, "the test '" + name + "'");
  node->symbol = static_cast<std::uint32_t>(id);
  node->children = {subject};
  node->arguments = std::make_unique<Arguments>();
  const bool value = current_.type == TokenType::name || current_.type == TokenType::string ||
                     current_.type == TokenType::integer || current_.type == TokenType::real || current_.op("[") ||
                     current_.op("{");
  if (current_.op("(")) {
    parse_arguments(*node->arguments);
  } else if (value && !at_any({"else", "or", "and"})) {
    if (current_.word("is")) fail("tests cannot be chained with 'is'");
    const Nesting nesting(*this);
    Node* argument = parse_primary();
    node->arguments->positional.push_back(parse_postfix(argument));
  }
  return finish(node);
}

}  // namespace skald::inline v0::jinja
