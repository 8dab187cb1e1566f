#include "text/jinja_parser.hpp"

#include <algorithm>
#include <array>

#include "text/jinja_value.hpp"

namespace skald::inline v0::jinja {

Parser::Parser(std::string_view source) : lexer_(source) {
  if (source.size() > max_source_bytes) {
    fail_at(1, "the template has " + std::to_string(source.size()) + " bytes, the limit is " +
                   std::to_string(max_source_bytes));
  }
  current_ = lexer_.next();
  ahead_ = lexer_.next();
}

Program Parser::parse() {
  program_.body = parse_body({});
  if (current_.type != TokenType::end) fail("unexpected " + describe());
  return std::move(program_);
}

// --- tokens and nodes ------------------------------------------------------------------------------------------------

void Parser::fail(const std::string& message) const { fail_at(current_.line, message); }

std::string Parser::describe() const {
  switch (current_.type) {
    case TokenType::end: return "end of the template";
    case TokenType::data: return "text";
    case TokenType::variable_begin: return "'{{'";
    case TokenType::variable_end: return "'}}'";
    case TokenType::block_begin: return "'{%'";
    case TokenType::block_end: return "'%}'";
    case TokenType::string: return "a string";
    default: return "'" + current_.text.substr(0, 60) + "'";
  }
}

void Parser::next() {
  current_ = std::move(ahead_);
  if (current_.type != TokenType::end) ahead_ = lexer_.next();
}

bool Parser::skip_op(std::string_view op) {
  if (!current_.op(op)) return false;
  next();
  return true;
}

bool Parser::skip_word(std::string_view word) {
  if (!current_.word(word)) return false;
  next();
  return true;
}

void Parser::expect_op(std::string_view op) {
  if (!skip_op(op)) fail("expected '" + std::string(op) + "', found " + describe());
}

void Parser::expect_word(std::string_view word) {
  if (!skip_word(word)) fail("expected '" + std::string(word) + "', found " + describe());
}

std::string Parser::expect_name() {
  if (current_.type != TokenType::name) fail("expected a name, found " + describe());
  std::string name = current_.text;
  next();
  return name;
}

void Parser::expect(TokenType type, const char* what) {
  if (current_.type != type) fail(std::string("expected ") + what + ", found " + describe());
  next();
}

bool Parser::at_any(Words words) const {
  return std::any_of(words.begin(), words.end(), [&](std::string_view word) { return current_.word(word); });
}

bool Parser::at_tuple_end() const {
  return current_.type == TokenType::variable_end || current_.type == TokenType::block_end || current_.op(")");
}

Node* Parser::make(NodeType type, std::uint32_t line) {
  if (program_.nodes.size() >= max_nodes) {
    fail("the template has more parts than the limit of " + std::to_string(max_nodes));
  }
  Node& node = program_.nodes.emplace_back();
  node.type = type;
  node.line = line;
  return &node;
}

// Fixes the node's depth: evaluation recurses along it.
Node* Parser::finish(Node* node) {
  int depth = 0;
  const auto look = [&](const Node* child) {
    if (child != nullptr) depth = std::max<int>(depth, child->depth);
  };
  for (const Node* child : node->children) look(child);
  for (const Node* child : node->body) look(child);
  for (const Node* child : node->other) look(child);
  if (node->arguments) {
    for (const Node* child : node->arguments->positional) look(child);
    for (const auto& child : node->arguments->named) look(child.second);
    look(node->arguments->star);
    look(node->arguments->double_star);
  }
  if (node->macro) {
    for (const Parameter& parameter : node->macro->parameters) look(parameter.initial);
  }
  if (depth >= max_depth) fail("the template nests deeper than the limit of " + std::to_string(max_depth));
  node->depth = static_cast<std::uint16_t>(depth + 1);
  return node;
}

Node* Parser::name_node(const std::string& name, std::uint32_t line) {
  Node* node = make(NodeType::name, line);
  node->symbol = program_.intern(name);
  node->value = program_.names[node->symbol];
  for (MacroInfo* macro : macros_) {
    macro->uses_caller |= name == "caller";
    macro->uses_varargs |= name == "varargs";
    macro->uses_kwargs |= name == "kwargs";
  }
  return node;
}

// --- statements ------------------------------------------------------------------------------------------------------

std::vector<const Node*> Parser::parse_body(Words end_words) {
  const Nesting nesting(*this);
  std::vector<const Node*> body;
  while (current_.type != TokenType::end) {
    if (current_.type == TokenType::data) {
      if (!current_.text.empty()) {
        Node* node = make(NodeType::text, current_.line);
        node->value = make_text(nullptr, std::move(current_.text));
        body.push_back(node);
      }
      next();
    } else if (current_.type == TokenType::variable_begin) {
      Node* node = make(NodeType::output, current_.line);
      next();
      node->children = {parse_tuple(true, false)};
      expect(TokenType::variable_end, "'}}'");
      body.push_back(finish(node));
    } else if (current_.type == TokenType::block_begin) {
      next();
      if (at_any(end_words)) return body;
      parse_statement(body);
      expect(TokenType::block_end, "'%}'");
    } else {
      fail("unexpected " + describe());
    }
  }
  return body;
}

// The body of a block, from the end of its opening tag up to one of `end_words` (which stays, or goes).
std::vector<const Node*> Parser::parse_block(Words end_words, bool drop_end) {
  const std::uint32_t line = current_.line;
  skip_op(":");
  expect(TokenType::block_end, "'%}'");
  std::vector<const Node*> body = parse_body(end_words);
  if (current_.type == TokenType::end) {
    const std::string_view closing = *(end_words.end() - 1);
    fail_at(line, "the block that starts here is not closed by '" + std::string(closing) + "'");
  }
  if (drop_end) next();
  return body;
}

void Parser::parse_statement(std::vector<const Node*>& out) {
  if (current_.type != TokenType::name) fail("expected the name of a tag, found " + describe());
  struct Tag {
    std::string_view name;
    Node* (Parser::*parse)();
  };
  static constexpr std::array<Tag, 10> tags = {{{"if", &Parser::parse_if},
                                                {"for", &Parser::parse_for},
                                                {"set", &Parser::parse_set},
                                                {"macro", &Parser::parse_macro},
                                                {"call", &Parser::parse_call_block},
                                                {"filter", &Parser::parse_filter_block},
                                                {"with", &Parser::parse_with},
                                                {"generation", &Parser::parse_generation},
                                                {"break", &Parser::parse_loop_control},
                                                {"continue", &Parser::parse_loop_control}}};
  for (const Tag& tag : tags) {
    if (current_.text == tag.name) {
      out.push_back(finish((this->*tag.parse)()));
      return;
    }
  }
  if (at_any({"block", "extends", "include", "import", "from", "autoescape", "print", "do", "trans", "debug"})) {
    unsupported_at(current_.line, "the tag '" + current_.text + "'");
  }
  fail("unknown tag '" + current_.text.substr(0, 60) + "'");
}

Node* Parser::parse_if() {
  Node* node = make(NodeType::branches, current_.line);
  next();
  while (true) {
    Node* branch = make(NodeType::branch, current_.line);
    branch->children = {parse_tuple(false, false)};
    branch->body = parse_block({"elif", "else", "endif"}, false);
    node->children.push_back(finish(branch));
    if (skip_word("elif")) continue;
    if (skip_word("else")) {
      Node* last = make(NodeType::branch, current_.line);
      last->children = {nullptr};
      last->body = parse_block({"endif"}, true);
      node->children.push_back(finish(last));
    } else {
      next();
    }
    return node;
  }
}

Node* Parser::parse_for() {
  Node* node = make(NodeType::loop, current_.line);
  next();
  node->children = {parse_target(false, true)};
  expect_word("in");
  node->children.push_back(parse_tuple(false, false));
  node->children.push_back(skip_word("if") ? parse_expression() : nullptr);
  node->flag = skip_word("recursive");
  ++loops_;
  node->body = parse_block({"endfor", "else"}, false);
  --loops_;
  if (skip_word("else")) {
    node->other = parse_block({"endfor"}, true);
  } else {
    next();
  }
  return node;
}

Node* Parser::parse_set() {
  Node* node = make(NodeType::set, current_.line);
  next();
  node->children = {parse_target(true, false)};
  if (skip_op("=")) {
    node->children.push_back(parse_tuple(true, false));
    return node;
  }
  node->type = NodeType::set_block;
  node->children.push_back(current_.op("|") ? parse_filter(nullptr, false) : nullptr);
  node->body = parse_block({"endset"}, true);
  return node;
}

void Parser::parse_signature(MacroInfo& macro) {
  expect_op("(");
  while (!current_.op(")")) {
    if (!macro.parameters.empty()) expect_op(",");
    Parameter parameter;
    parameter.name = expect_name();
    parameter.symbol = program_.intern(parameter.name);
    if (skip_op("=")) {
      parameter.initial = parse_expression();
    } else if (!macro.parameters.empty() && macro.parameters.back().initial != nullptr) {
      fail("a parameter without default follows one with a default");
    }
    macro.parameters.push_back(std::move(parameter));
  }
  next();
}

Node* Parser::parse_macro() {
  Node* node = make(NodeType::macro, current_.line);
  next();
  const std::string name = expect_name();
  node->symbol = program_.intern(name);
  node->value = program_.names[node->symbol];
  node->macro = std::make_unique<MacroInfo>();
  parse_signature(*node->macro);
  macros_.push_back(node->macro.get());
  const int loops = std::exchange(loops_, 0);
  node->body = parse_block({"endmacro"}, true);
  loops_ = loops;
  macros_.pop_back();
  return node;
}

Node* Parser::parse_call_block() {
  Node* node = make(NodeType::call_block, current_.line);
  Node* caller = make(NodeType::macro, current_.line);
  next();
  caller->symbol = program_.intern("caller");
  caller->value = program_.names[caller->symbol];
  caller->macro = std::make_unique<MacroInfo>();
  if (current_.op("(")) parse_signature(*caller->macro);
  Node* call = parse_expression();
  if (call->type != NodeType::call) fail("expected a call");
  const int loops = std::exchange(loops_, 0);
  caller->body = parse_block({"endcall"}, true);
  loops_ = loops;
  node->children = {call, finish(caller)};
  return node;
}

Node* Parser::parse_filter_block() {
  Node* node = make(NodeType::filter_block, current_.line);
  next();
  node->children = {parse_filter(nullptr, true)};
  node->body = parse_block({"endfilter"}, true);
  return node;
}

Node* Parser::parse_with() {
  Node* node = make(NodeType::with_block, current_.line);
  next();
  while (current_.type != TokenType::block_end) {
    if (!node->children.empty()) expect_op(",");
    node->children.push_back(parse_target(false, false));
    expect_op("=");
    node->children.push_back(parse_expression());
  }
  node->body = parse_block({"endwith"}, true);
  return node;
}

// What marks the assistant's text for training; renders its body.
Node* Parser::parse_generation() {
  Node* node = make(NodeType::scope, current_.line);
  next();
  const int loops = std::exchange(loops_, 0);
  node->body = parse_block({"endgeneration"}, true);
  loops_ = loops;
  return node;
}

Node* Parser::parse_loop_control() {
  if (loops_ == 0) fail("'" + current_.text + "' outside of a loop");
  Node* node = make(current_.text == "break" ? NodeType::break_loop : NodeType::continue_loop, current_.line);
  next();
  return node;
}

Node* Parser::parse_single_target(bool members) {
  const Nesting nesting(*this);
  const std::uint32_t line = current_.line;
  if (skip_op("(")) {
    Node* node = parse_target(members, false);
    expect_op(")");
    return node;
  }
  const std::string name = expect_name();
  for (const char* word : {"true", "false", "none", "True", "False", "None"}) {
    if (name == word) fail_at(line, "cannot assign to '" + name + "'");
  }
  Node* node = make(NodeType::name_target, line);
  node->symbol = program_.intern(name);
  node->value = program_.names[node->symbol];
  if (members && skip_op(".")) {
    node->type = NodeType::member_target;
    node->value = make_text(nullptr, expect_name());
  }
  return node;
}

Node* Parser::parse_target(bool members, bool until_in) {
  const std::uint32_t line = current_.line;
  Node* first = parse_single_target(members);
  if (!current_.op(",")) return first;
  Node* node = make(NodeType::tuple_target, line);
  node->children = {first};
  while (skip_op(",")) {
    if (at_tuple_end() || (until_in && current_.word("in")) || current_.op("=")) break;
    node->children.push_back(parse_single_target(members));
  }
  return finish(node);
}

}  // namespace skald::inline v0::jinja
