#include "text/jinja_evaluator.hpp"

#include <algorithm>

// Statements, scopes and loops.
namespace skald::inline v0::jinja {

Evaluator::Evaluator(const Program& program, std::optional<std::chrono::system_clock::time_point> now)
    : program_(&program), globals_(program.names.size()) {
  runtime_.now = now;
  const auto found = program.symbols.find("loop");
  if (found != program.symbols.end()) loop_symbol_ = found->second;
}

// Namespaces and macros can refer to each other in circles; they are emptied before they go.
Evaluator::~Evaluator() {
  globals_.clear();
  for (const auto& macro : macros_) macro->scope.reset();
  for (const auto& space : namespaces_) space->items.clear();
}

void Evaluator::set(std::string_view name, Value value) {
  const auto found = program_->symbols.find(name);
  if (found != program_->symbols.end()) globals_[found->second] = std::move(value);
}

std::string Evaluator::run() {
  TextBuilder out(runtime_);
  execute(program_->body, nullptr, out);
  return out.take();
}

void Evaluator::emit(TextBuilder& out, std::string_view text) {
  if (out.text().size() + text.size() > max_output_bytes) {
    runtime_.fail("the output is longer than the limit of " + std::to_string(max_output_bytes) + " bytes");
  }
  out.add(text);
}

// --- variables -------------------------------------------------------------------------------------------------------

void Evaluator::store(std::uint32_t symbol, Value value, const ScopePtr& scope) {
  if (!scope) {
    globals_[symbol] = std::move(value);
    return;
  }
  runtime_.step(1 + scope->variables.size() / 16);
  for (auto& variable : scope->variables) {
    if (variable.first == symbol) {
      variable.second = std::move(value);
      return;
    }
  }
  scope->variables.emplace_back(symbol, std::move(value));
}

Value Evaluator::load(const Node& name, const ScopePtr& scope) {
  for (const Scope* s = scope.get(); s != nullptr; s = s->parent.get()) {
    if (s->variables.size() > 16) runtime_.step(s->variables.size() / 16);
    for (const auto& variable : s->variables) {
      if (variable.first == name.symbol) return variable.second;
    }
  }
  const Value& value = globals_[name.symbol];
  if (!value.is(Kind::undefined)) return value;
  const int function = find_function(name.value.text());
  return function >= 0 ? Value::function(function) : Value::undefined(name.value, false);
}

void Evaluator::assign(const Node& target, Value value, const ScopePtr& scope) {
  runtime_.line = target.line;
  if (target.type == NodeType::name_target) {
    store(target.symbol, std::move(value), scope);
    return;
  }
  if (target.type == NodeType::member_target) {
    Node name;
    name.symbol = target.symbol;
    name.value = program_->names[target.symbol];
    const Value object = load(name, scope);
    if (!object.is(Kind::space))
      runtime_.fail("cannot assign an attribute of '" + name.value.text() + "', which is not a namespace");
    Dict& members = *static_cast<Dict*>(object.as_pointer());
    if (members.find(target.value) == nullptr) {
      runtime_.charge(160);
      members.charged += 160;
    }
    members.set(target.value, std::move(value));
    return;
  }
  const Value items = iterate_shared(runtime_, value);
  const auto& values = items.sequence().items;
  if (values.size() != target.children.size()) {
    runtime_.fail("cannot unpack " + std::to_string(values.size()) + " values into " +
                  std::to_string(target.children.size()) + " names");
  }
  for (std::size_t i = 0; i < values.size(); ++i) assign(*target.children[i], values[i], scope);
}

// --- statements ------------------------------------------------------------------------------------------------------

Evaluator::Flow Evaluator::execute(const Nodes& nodes, const ScopePtr& scope, TextBuilder& out) {
  for (const Node* node : nodes) {
    const Flow flow = execute(*node, scope, out);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Evaluator::Flow Evaluator::execute(const Node& node, const ScopePtr& scope, TextBuilder& out) {
  const Deeper deeper(*this);
  runtime_.step();
  runtime_.line = node.line;
  switch (node.type) {
    case NodeType::text: emit(out, node.value.text()); break;
    case NodeType::output: {
      const Value value = evaluate(*node.children[0], scope);
      if (value.is_text()) {
        emit(out, value.text());
      } else if (!value.is(Kind::undefined)) {
        emit(out, to_text(runtime_, value));
      }
      break;
    }
    case NodeType::branches: return run_branches(node, scope, out);
    case NodeType::loop: return run_loop(node, scope, out);
    case NodeType::set: assign(*node.children[0], evaluate(*node.children[1], scope), scope); break;
    case NodeType::set_block: run_set_block(node, scope); break;
    case NodeType::macro: store(node.symbol, make_macro(node, scope), scope); break;
    case NodeType::call_block: run_call_block(node, scope, out); break;
    case NodeType::filter_block: run_filter_block(node, scope, out); break;
    case NodeType::with_block: return run_with(node, scope, out);
    case NodeType::scope: return execute(node.body, std::make_shared<Scope>(scope), out);
    case NodeType::break_loop: return Flow::break_loop;
    case NodeType::continue_loop: return Flow::continue_loop;
    default: break;
  }
  return Flow::next;
}

Evaluator::Flow Evaluator::run_branches(const Node& node, const ScopePtr& scope, TextBuilder& out) {
  for (const Node* branch : node.children) {
    runtime_.line = branch->line;
    if (branch->children[0] == nullptr || truthy(evaluate(*branch->children[0], scope))) {
      return execute(branch->body, scope, out);
    }
  }
  return Flow::next;
}

Value Evaluator::capture(const Nodes& body, const ScopePtr& scope) {
  TextBuilder out(runtime_);
  execute(body, scope, out);
  return out.value();
}

void Evaluator::run_set_block(const Node& node, const ScopePtr& scope) {
  Value value = capture(node.body, std::make_shared<Scope>(scope));
  if (node.children[1] != nullptr) value = evaluate_filter(*node.children[1], scope, &value);
  assign(*node.children[0], std::move(value), scope);
}

void Evaluator::run_filter_block(const Node& node, const ScopePtr& scope, TextBuilder& out) {
  const ScopePtr inner = std::make_shared<Scope>(scope);
  const Value value = capture(node.body, inner);
  emit(out, to_text(runtime_, evaluate_filter(*node.children[0], inner, &value)));
}

Evaluator::Flow Evaluator::run_with(const Node& node, const ScopePtr& scope, TextBuilder& out) {
  const ScopePtr inner = std::make_shared<Scope>(scope);
  for (std::size_t i = 0; i + 1 < node.children.size(); i += 2) {
    assign(*node.children[i], evaluate(*node.children[i + 1], scope), inner);
  }
  return execute(node.body, inner, out);
}

Value Evaluator::make_macro(const Node& node, const ScopePtr& scope) {
  runtime_.charge(256 + (scope ? scope->variables.size() * 48 : 0));
  macros_.push_back(std::make_unique<Macro>());
  macros_.back()->node = &node;
  macros_.back()->scope = scope;
  return Value::pointer(Kind::macro, macros_.back().get());
}

void Evaluator::run_call_block(const Node& node, const ScopePtr& scope, TextBuilder& out) {
  const Node& call_node = *node.children[0];
  CallArguments arguments = evaluate_arguments(*call_node.arguments, scope);
  arguments.named.emplace_back("caller", make_macro(*node.children[1], scope));
  const Value callee = evaluate(*call_node.children[0], scope);
  if (!callee.is(Kind::macro)) runtime_.unsupported("a call block around something that is not a macro");
  emit(out, to_text(runtime_, call(callee, std::move(arguments))));
}

// --- loops -----------------------------------------------------------------------------------------------------------

// Looks for the next item; with a filter, items are tested as late as Jinja2 does.
bool Evaluator::peek(Loop& loop) {
  if (loop.has_after) return true;
  const auto& items = loop.source.sequence().items;
  while (loop.next < items.size()) {
    const Value& item = items[loop.next++];
    if (loop.filter != nullptr) {
      runtime_.step();
      const ScopePtr inner = std::make_shared<Scope>(loop.scope);
      assign(*loop.target, item, inner);
      if (!truthy(evaluate(*loop.filter, inner))) continue;
    }
    loop.after = item;
    loop.has_after = true;
    return true;
  }
  return false;
}

bool Evaluator::advance(Loop& loop) {
  if (!peek(loop)) return false;
  loop.before = std::move(loop.current);
  loop.current = std::move(loop.after);
  loop.has_after = false;
  ++loop.index0;
  return true;
}

std::int64_t Evaluator::length(Loop& loop) {
  if (loop.filter == nullptr) return static_cast<std::int64_t>(loop.source.sequence().items.size());
  // Tests what is left, and goes on with what passed.
  std::vector<Value> rest;
  while (peek(loop)) {
    runtime_.need((rest.size() + 1) * sizeof(Value));
    rest.push_back(std::move(loop.after));
    loop.has_after = false;
  }
  std::vector<Value> all;
  all.resize(static_cast<std::size_t>(loop.index0 + 1), loop.current);
  const auto total = static_cast<std::int64_t>(all.size() + rest.size());
  all.insert(all.end(), rest.begin(), rest.end());
  loop.source = make_list(&runtime_, std::move(all));
  loop.next = static_cast<std::size_t>(loop.index0 + 1);
  loop.filter = nullptr;
  return total;
}

Evaluator::Flow Evaluator::run_loop(const Node& node, const ScopePtr& scope, TextBuilder& out) {
  return run_items(node, evaluate(*node.children[1], scope), 1, scope, out);
}

// `{% for … recursive %}`: calling the loop runs it over other items, one level deeper.
Value Evaluator::call_loop(const Loop& loop, const CallArguments& arguments) {
  if (loop.node == nullptr || !loop.node->flag) runtime_.fail("'loop' is called in a loop that is not recursive");
  if (arguments.positional.size() != 1 || !arguments.named.empty()) runtime_.fail("'loop' takes one argument");
  if (macro_depth_ >= max_depth) {
    runtime_.fail("a loop is called deeper than the limit of " + std::to_string(max_depth));
  }
  ++macro_depth_;
  struct Leave {
    int& depth;
    ~Leave() { --depth; }
  } const leave{macro_depth_};
  const Deeper deeper(*this);
  const ScopePtr scope = loop.scope;
  TextBuilder out(runtime_);
  run_items(*loop.node, arguments.positional.front(), loop.level + 1, scope, out);
  return out.value();
}

Evaluator::Flow Evaluator::run_items(const Node& node, const Value& source, std::int64_t level, const ScopePtr& scope,
                                     TextBuilder& out) {
  auto loop = std::make_shared<Loop>();
  loop->source = iterate_shared(runtime_, source);
  loop->node = &node;
  loop->level = level;
  loop->own(&runtime_, 400);
  loop->depth = loop->source.depth() + 1;
  if (loop->depth > max_depth) runtime_.fail("values nest deeper than the limit of " + std::to_string(max_depth));
  loop->target = node.children[0];
  loop->filter = node.children[2];
  loop->scope = scope;
  // Afterwards the loop refers to no scope, so that scopes and loops form no circle.
  struct Close {
    Loop* loop;
    ~Close() {
      loop->scope.reset();
      loop->node = nullptr;
      loop->filter = nullptr;
      loop->next = loop->source.sequence().items.size();
    }
  } const close{loop.get()};

  ScopePtr inner;
  bool ran = false;
  while (advance(*loop)) {
    ran = true;
    runtime_.step();
    if (inner && inner.use_count() == 1) {
      inner->variables.clear();
    } else {
      inner = std::make_shared<Scope>(scope);
    }
    if (loop_symbol_ != UINT32_MAX) inner->variables.emplace_back(loop_symbol_, Value(Kind::loop, loop));
    assign(*node.children[0], loop->current, inner);
    if (execute(node.body, inner, out) == Flow::break_loop) break;
  }
  if (ran || node.other.empty()) return Flow::next;
  return execute(node.other, std::make_shared<Scope>(scope), out);
}

Value Evaluator::loop_attribute(Loop& loop, const Value& name) {
  const std::string& text = name.text();
  if (text == "index") return Value::integer(loop.index0 + 1);
  if (text == "index0") return Value::integer(loop.index0);
  if (text == "first") return Value::boolean(loop.index0 == 0);
  if (text == "last") return Value::boolean(!peek(loop));
  if (text == "length") return Value::integer(length(loop));
  if (text == "revindex") return Value::integer(length(loop) - loop.index0);
  if (text == "revindex0") return Value::integer(length(loop) - loop.index0 - 1);
  if (text == "depth") return Value::integer(loop.level);
  if (text == "depth0") return Value::integer(loop.level - 1);
  if (text == "previtem") return loop.index0 == 0 ? Value::undefined(name, true) : loop.before;
  if (text == "nextitem") return peek(loop) ? loop.after : Value::undefined(name, true);
  if (text == "cycle" || text == "changed") runtime_.unsupported("'loop." + text + "' other than in a call");
  return Value::undefined(name, true);
}

Value Evaluator::call_loop_method(Loop& loop, const std::string& name, const CallArguments& arguments) {
  if (!arguments.named.empty()) runtime_.fail("'loop." + name + "' takes no named arguments");
  const auto& values = arguments.positional;
  if (name == "cycle") {
    if (values.empty()) runtime_.fail("'loop.cycle' needs arguments");
    return values[static_cast<std::size_t>(loop.index0) % values.size()];
  }
  // A loop that keeps a value with a loop in it could be a circle.
  for (const Value& value : values) {
    if (value.depth() > 0) runtime_.unsupported("'loop.changed' with a container");
  }
  Value now = make_tuple(&runtime_, values);
  const bool changed = !loop.changed_before || !equal(runtime_, now, loop.last_changed);
  loop.changed_before = true;
  loop.last_changed = std::move(now);
  return Value::boolean(changed);
}

// --- macros ----------------------------------------------------------------------------------------------------------

Value Evaluator::call_macro(const Macro& macro, CallArguments arguments) {
  const MacroInfo& info = *macro.node->macro;
  const std::string what = "the macro '" + macro.node->value.text() + "'";
  if (macro_depth_ >= max_depth)
    runtime_.fail(what + " is called deeper than the limit of " + std::to_string(max_depth));
  const ScopePtr scope = std::make_shared<Scope>(macro.scope);
  const auto take = [&](const std::string& name) -> std::optional<Value> {
    for (auto it = arguments.named.begin(); it != arguments.named.end(); ++it) {
      if (it->first != name) continue;
      Value value = std::move(it->second);
      arguments.named.erase(it);
      return value;
    }
    return std::nullopt;
  };
  const std::size_t given_count = std::min(arguments.positional.size(), info.parameters.size());
  bool has_caller = false;
  for (std::size_t i = 0; i < info.parameters.size(); ++i) {
    const Parameter& parameter = info.parameters[i];
    has_caller |= parameter.name == "caller";
    if (i < given_count) {
      store(parameter.symbol, arguments.positional[i], scope);
    } else if (auto value = take(parameter.name)) {
      store(parameter.symbol, std::move(*value), scope);
    } else if (parameter.initial != nullptr) {
      store(parameter.symbol, evaluate(*parameter.initial, scope), scope);
    } else {
      store(parameter.symbol, Value::undefined(program_->names[parameter.symbol], false), scope);
    }
  }
  const auto special = [&](const char* name, Value value) {
    store(program_->symbols.find(name)->second, std::move(value), scope);
  };
  if (info.uses_caller && !has_caller) special("caller", take("caller").value_or(Value()));
  if (info.uses_kwargs) {
    auto rest = std::make_shared<Dict>();
    for (auto& [name, value] : arguments.named) rest->set(make_text(&runtime_, name), std::move(value));
    special("kwargs", make_dict(&runtime_, std::move(rest)));
  } else if (!arguments.named.empty()) {
    runtime_.fail(what + " takes no argument '" + arguments.named.front().first + "'");
  }
  if (info.uses_varargs) {
    special("varargs", make_tuple(&runtime_, {arguments.positional.begin() + static_cast<std::ptrdiff_t>(given_count),
                                              arguments.positional.end()}));
  } else if (arguments.positional.size() > given_count) {
    runtime_.fail(what + " takes at most " + std::to_string(info.parameters.size()) + " arguments");
  }
  ++macro_depth_;
  struct Leave {
    int& depth;
    ~Leave() { --depth; }
  } const leave{macro_depth_};
  return capture(macro.node->body, scope);
}

Value Evaluator::make_namespace(const CallArguments& arguments) {
  runtime_.charge(256 + 160 * arguments.named.size());
  namespaces_.push_back(std::make_unique<Dict>());
  Dict& members = *namespaces_.back();
  if (arguments.positional.size() > 1) runtime_.fail("namespace takes at most one positional argument");
  if (!arguments.positional.empty()) update_dict(runtime_, members, arguments.positional[0]);
  for (const auto& [name, value] : arguments.named) members.set(make_text(&runtime_, name), value);
  return Value::pointer(Kind::space, &members);
}

}  // namespace skald::inline v0::jinja
