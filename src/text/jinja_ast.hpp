#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_builtins.hpp"
#include "text/jinja_value.hpp"

namespace skald::inline v0::jinja {

enum class NodeType : std::uint8_t {
  // expressions
  constant,
  name,
  list,
  tuple,
  dict,       // children: key, value, key, value, …
  attribute,  // children[0] . value
  item,       // children[0] [ children[1] ]
  slice,      // children: start, stop, step; null where left out
  call,       // children[0], arguments
  filter,     // children[0] (null in a filter block), id, arguments
  test,       // children[0], id, arguments, flag: negated
  negation,   // not
  minus,
  plus,
  conjunction,  // two or more children
  disjunction,
  conditional,  // children: condition, value, other value or null
  comparison,   // children, ops between them
  arithmetic,   // children, ops between them, from left to right
  concatenation,
  // targets of assignments
  name_target,
  tuple_target,
  member_target,  // symbol . value
  // statements
  text,
  output,
  branches,      // children: branch…
  branch,        // children[0]: condition or null; body
  loop,          // children: target, source, filter or null; body, other; flag: recursive
  set,           // children: target, value
  set_block,     // children: target, filter or null; body
  macro,         // symbol, value (name), parameters; body
  call_block,    // children[0]: call, children[1]: macro
  filter_block,  // children[0]: filter; body
  with_block,    // children: target, value, target, value, …; body
  scope,         // body
  break_loop,
  continue_loop,
};

enum class Op : std::uint8_t { add, sub, mul, div, floor_div, mod, pow, eq, ne, lt, le, gt, ge, in, not_in };

struct Node;

struct Arguments {
  std::vector<const Node*> positional;
  std::vector<std::pair<std::string, const Node*>> named;
  const Node* star = nullptr;
  const Node* double_star = nullptr;
};

struct Parameter {
  std::uint32_t symbol = 0;
  std::string name;
  const Node* initial = nullptr;
};

struct MacroInfo {
  std::vector<Parameter> parameters;
  bool uses_caller = false;
  bool uses_varargs = false;
  bool uses_kwargs = false;
};

struct Node {
  NodeType type = NodeType::constant;
  bool flag = false;
  std::uint16_t depth = 1;
  std::uint32_t line = 1;
  std::uint32_t symbol = 0;  ///< of names; number of the filter or test
  Value value;               ///< constant, name, text
  std::vector<const Node*> children;
  std::vector<const Node*> body;
  std::vector<const Node*> other;
  std::vector<Op> ops;
  std::unique_ptr<Arguments> arguments;
  std::unique_ptr<MacroInfo> macro;
};

/// A parsed template. Nodes live in one container, so that nothing recurses when they go.
struct Program {
  std::deque<Node> nodes;
  std::vector<const Node*> body;
  std::map<std::string, std::uint32_t, std::less<>> symbols;
  std::vector<Value> names;  ///< by symbol

  std::uint32_t intern(const std::string& name) {
    const auto [place, added] = symbols.emplace(name, static_cast<std::uint32_t>(names.size()));
    if (added) names.push_back(make_text(nullptr, name));
    return place->second;
  }
};

}  // namespace skald::inline v0::jinja
