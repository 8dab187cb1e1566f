#include <algorithm>

#include "text/jinja_evaluator.hpp"
#include "text/jinja_text.hpp"

// Expressions.
namespace skald::inline v0::jinja {

Value Evaluator::evaluate(const Node& node, const ScopePtr& scope) {
  const Deeper deeper(*this);
  runtime_.step();
  runtime_.line = node.line;
  switch (node.type) {
    case NodeType::constant: return node.value;
    case NodeType::name: return load(node, scope);
    case NodeType::list:
    case NodeType::tuple: return evaluate_items(node, scope);
    case NodeType::dict: return evaluate_dict(node, scope);
    case NodeType::attribute: return evaluate_attribute(node, scope);
    case NodeType::item: return evaluate_item(node, scope);
    case NodeType::call: return evaluate_call(node, scope);
    case NodeType::filter: return evaluate_filter(node, scope, nullptr);
    case NodeType::test: {
      const Value value = evaluate(*node.children[0], scope);
      const CallArguments arguments = evaluate_arguments(*node.arguments, scope);
      runtime_.line = node.line;
      return Value::boolean(apply_test(runtime_, static_cast<Test>(node.symbol), value, arguments) != node.flag);
    }
    case NodeType::negation: return Value::boolean(!truthy(evaluate(*node.children[0], scope)));
    case NodeType::minus:
    case NodeType::plus: return evaluate_sign(node, scope);
    case NodeType::conjunction:
    case NodeType::disjunction: return evaluate_logical(node, scope);
    case NodeType::conditional: {
      if (truthy(evaluate(*node.children[0], scope))) return evaluate(*node.children[1], scope);
      return node.children[2] == nullptr ? Value() : evaluate(*node.children[2], scope);
    }
    case NodeType::comparison: return evaluate_comparison(node, scope);
    case NodeType::arithmetic: return evaluate_arithmetic(node, scope);
    case NodeType::concatenation: return evaluate_concatenation(node, scope);
    default: runtime_.fail("a slice stands where a value is expected");
  }
}

Value Evaluator::evaluate_or_none(const Node* node, const ScopePtr& scope) {
  return node == nullptr ? Value::none() : evaluate(*node, scope);
}

Value Evaluator::evaluate_items(const Node& node, const ScopePtr& scope) {
  std::vector<Value> items;
  items.reserve(node.children.size());
  for (const Node* child : node.children) items.push_back(evaluate(*child, scope));
  return make_sequence(&runtime_, node.type == NodeType::list ? Kind::list : Kind::tuple, std::move(items));
}

Value Evaluator::evaluate_dict(const Node& node, const ScopePtr& scope) {
  auto dict = std::make_shared<Dict>();
  for (std::size_t i = 0; i + 1 < node.children.size(); i += 2) {
    const Value key = evaluate(*node.children[i], scope);
    if (key.is(Kind::tuple)) runtime_.unsupported("a tuple as the key of a mapping");
    if (!Dict::hashable(key)) runtime_.fail(std::string("unhashable type: ") + type_name(key));
    dict->set(key, evaluate(*node.children[i + 1], scope));
  }
  return make_dict(&runtime_, std::move(dict));
}

Value Evaluator::member(const Value& object, const Value& name) {
  if (object.is(Kind::loop)) return loop_attribute(*static_cast<Loop*>(object.object().get()), name);
  if (object.is(Kind::space)) {
    const Value* found = static_cast<const Dict*>(object.as_pointer())->find(name);
    return found == nullptr ? Value::undefined(name, true) : *found;
  }
  return get_attribute(runtime_, object, name);
}

Value Evaluator::evaluate_attribute(const Node& node, const ScopePtr& scope) {
  const Value object = evaluate(*node.children[0], scope);
  runtime_.line = node.line;
  return member(object, node.value);
}

Value Evaluator::evaluate_item(const Node& node, const ScopePtr& scope) {
  const Value object = evaluate(*node.children[0], scope);
  const Node& key = *node.children[1];
  if (key.type == NodeType::slice) {
    const Value start = evaluate_or_none(key.children[0], scope);
    const Value stop = evaluate_or_none(key.children[1], scope);
    const Value step = evaluate_or_none(key.children[2], scope);
    runtime_.line = node.line;
    return get_slice(runtime_, object, start, stop, step);
  }
  const Value index = evaluate(key, scope);
  runtime_.line = node.line;
  if ((object.is(Kind::loop) || object.is(Kind::space)) && index.is_text()) return member(object, index);
  return get_item(runtime_, object, index);
}

CallArguments Evaluator::evaluate_arguments(const Arguments& arguments, const ScopePtr& scope) {
  CallArguments values;
  values.positional.reserve(arguments.positional.size());
  for (const Node* node : arguments.positional) values.positional.push_back(evaluate(*node, scope));
  for (const auto& [name, node] : arguments.named) values.named.emplace_back(name, evaluate(*node, scope));
  if (arguments.star != nullptr) {
    for (const Value& value : iterate(runtime_, evaluate(*arguments.star, scope))) values.positional.push_back(value);
  }
  if (arguments.double_star != nullptr) {
    const Value more = evaluate(*arguments.double_star, scope);
    if (!more.is(Kind::dict)) runtime_.fail("'**' needs a mapping");
    if (more.dict().items.size() > 64) runtime_.fail("a call has more than 64 named arguments");
    for (const auto& [name, value] : more.dict().items) {
      if (!name.is_text()) runtime_.fail("the names of arguments must be strings");
      values.named.emplace_back(name.text(), value);
    }
  }
  return values;
}

Value Evaluator::evaluate_call(const Node& node, const ScopePtr& scope) {
  const Node& callee = *node.children[0];
  if (callee.type != NodeType::attribute) {
    const Value function = evaluate(callee, scope);
    CallArguments arguments = evaluate_arguments(*node.arguments, scope);
    runtime_.line = node.line;
    return call(function, std::move(arguments));
  }
  // A method is called without making a value of it first.
  const Value object = evaluate(*callee.children[0], scope);
  const std::string& name = callee.value.text();
  if (has_method(object.kind(), name)) {
    const CallArguments arguments = evaluate_arguments(*node.arguments, scope);
    runtime_.line = node.line;
    return call_method(runtime_, object, name, arguments);
  }
  if (object.is(Kind::loop) && (name == "cycle" || name == "changed")) {
    const CallArguments arguments = evaluate_arguments(*node.arguments, scope);
    runtime_.line = node.line;
    return call_loop_method(*static_cast<Loop*>(object.object().get()), name, arguments);
  }
  runtime_.line = callee.line;
  const Value function = member(object, callee.value);
  CallArguments arguments = evaluate_arguments(*node.arguments, scope);
  runtime_.line = node.line;
  return call(function, std::move(arguments));
}

Value Evaluator::call(const Value& callee, CallArguments arguments) {
  switch (callee.kind()) {
    case Kind::undefined: fail_undefined(runtime_, callee);
    case Kind::macro: return call_macro(*static_cast<const Macro*>(callee.as_pointer()), std::move(arguments));
    case Kind::method: return call_method(runtime_, callee.method().self, callee.method().name, arguments);
    case Kind::loop: return call_loop(*static_cast<const Loop*>(callee.object().get()), arguments);
    case Kind::function: {
      const auto function = static_cast<Function>(callee.as_int());
      return function == Function::space ? make_namespace(arguments) : call_function(runtime_, function, arguments);
    }
    default: runtime_.fail(std::string("a value of type ") + type_name(callee) + " cannot be called");
  }
}

Value Evaluator::evaluate_filter(const Node& node, const ScopePtr& scope, const Value* input) {
  // In a filter or set block, the innermost filter has no operand: it takes what the block rendered.
  const Node* operand = node.children[0];
  Value value;
  if (operand == nullptr) {
    value = *input;
  } else if (input != nullptr && operand->type == NodeType::filter) {
    const Deeper deeper(*this);
    value = evaluate_filter(*operand, scope, input);
  } else {
    value = evaluate(*operand, scope);
  }
  const CallArguments arguments = evaluate_arguments(*node.arguments, scope);
  runtime_.line = node.line;
  return apply_filter(runtime_, static_cast<Filter>(node.symbol), value, arguments);
}

Value Evaluator::evaluate_logical(const Node& node, const ScopePtr& scope) {
  const bool stop_at = node.type == NodeType::disjunction;
  Value value;
  for (const Node* child : node.children) {
    value = evaluate(*child, scope);
    if (truthy(value) == stop_at) break;
  }
  return value;
}

bool Evaluator::compare_values(Op op, const Value& a, const Value& b) {
  const auto order = [&](const char* text) { return compare(runtime_, a, b, text); };
  switch (op) {
    case Op::eq: return equal(runtime_, a, b);
    case Op::ne: return !equal(runtime_, a, b);
    case Op::lt: return order("<") == -1;
    case Op::gt: return order(">") == 1;
    case Op::le: return order("<=") <= 0;
    case Op::ge: {
      const int result = order(">=");
      return result == 0 || result == 1;
    }
    case Op::in: return contains(runtime_, a, b);
    default: return !contains(runtime_, a, b);
  }
}

Value Evaluator::evaluate_comparison(const Node& node, const ScopePtr& scope) {
  Value left = evaluate(*node.children[0], scope);
  for (std::size_t i = 0; i < node.ops.size(); ++i) {
    Value right = evaluate(*node.children[i + 1], scope);
    runtime_.line = node.line;
    if (!compare_values(node.ops[i], left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Evaluator::evaluate_arithmetic(const Node& node, const ScopePtr& scope) {
  Value result = evaluate(*node.children[0], scope);
  for (std::size_t i = 0; i < node.ops.size(); ++i) {
    const Value right = evaluate(*node.children[i + 1], scope);
    runtime_.line = node.line;
    result = arithmetic(runtime_, node.ops[i], result, right);
  }
  return result;
}

Value Evaluator::evaluate_sign(const Node& node, const ScopePtr& scope) {
  const Value value = evaluate(*node.children[0], scope);
  const bool minus = node.type == NodeType::minus;
  runtime_.line = node.line;
  if (value.is(Kind::undefined)) fail_undefined(runtime_, value);
  if (value.is(Kind::real)) return Value::real(minus ? -value.as_real() : value.as_real());
  if (!value.is_int()) runtime_.fail(std::string("a sign does not go with a value of type ") + type_name(value));
  return minus ? arithmetic(runtime_, Op::sub, Value::integer(0), value) : Value::integer(value.as_int());
}

Value Evaluator::evaluate_concatenation(const Node& node, const ScopePtr& scope) {
  TextBuilder out(runtime_);
  for (const Node* child : node.children) append_str(out, evaluate(*child, scope));
  return out.value();
}

}  // namespace skald::inline v0::jinja
