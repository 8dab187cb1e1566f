#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_ast.hpp"
#include "text/jinja_builtins.hpp"
#include "text/jinja_value.hpp"

namespace skald::inline v0::jinja {

/// Runs a program once. Everything it makes is charged to one budget and gone with it.
class Evaluator {
 public:
  Evaluator(const Program& program, std::optional<std::chrono::system_clock::time_point> now);
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;
  ~Evaluator();

  /// Sets a variable of the template; ignored if the template does not speak of it.
  void set(std::string_view name, Value value);
  std::string run();

 private:
  enum class Flow : std::uint8_t { next, break_loop, continue_loop };
  using Nodes = std::vector<const Node*>;

  /// Variables of a block. The outermost scope is the null pointer; its variables are in `globals_`.
  struct Scope {
    explicit Scope(std::shared_ptr<Scope> outer) : parent(std::move(outer)) {}
    std::shared_ptr<Scope> parent;
    std::vector<std::pair<std::uint32_t, Value>> variables;
  };
  using ScopePtr = std::shared_ptr<Scope>;

  struct Macro {
    const Node* node = nullptr;
    ScopePtr scope;
  };

  /// A running loop, which is what the variable `loop` refers to.
  struct Loop : Object {
    Value source;
    const Node* node = nullptr;  // while it runs
    std::int64_t level = 1;
    const Node* filter = nullptr;
    const Node* target = nullptr;
    ScopePtr scope;
    std::size_t next = 0;
    std::int64_t index0 = -1;
    Value before;
    Value current;
    Value after;
    bool has_after = false;
    Value last_changed;
    bool changed_before = false;
  };

  /// One level of evaluation; bounds the stack.
  struct Deeper {
    explicit Deeper(Evaluator& evaluator) : evaluator_(&evaluator) {
      if (evaluator.depth_ >= max_evaluation_depth) {
        evaluator.runtime_.fail("the template's macros nest deeper than the limit");
      }
      ++evaluator.depth_;
    }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;
    ~Deeper() { --evaluator_->depth_; }

   private:
    Evaluator* evaluator_;
  };
  /// What the deepest program may nest, times a few macros in each other.
  static constexpr int max_evaluation_depth = 768;

  // statements
  Flow execute(const Nodes& nodes, const ScopePtr& scope, TextBuilder& out);
  Flow execute(const Node& node, const ScopePtr& scope, TextBuilder& out);
  Flow run_branches(const Node& node, const ScopePtr& scope, TextBuilder& out);
  Flow run_loop(const Node& node, const ScopePtr& scope, TextBuilder& out);
  Flow run_items(const Node& node, const Value& source, std::int64_t level, const ScopePtr& scope, TextBuilder& out);
  void run_set_block(const Node& node, const ScopePtr& scope);
  void run_call_block(const Node& node, const ScopePtr& scope, TextBuilder& out);
  void run_filter_block(const Node& node, const ScopePtr& scope, TextBuilder& out);
  Flow run_with(const Node& node, const ScopePtr& scope, TextBuilder& out);
  Value capture(const Nodes& body, const ScopePtr& scope);
  Value make_macro(const Node& node, const ScopePtr& scope);
  void emit(TextBuilder& out, std::string_view text);

  // variables
  void assign(const Node& target, Value value, const ScopePtr& scope);
  void store(std::uint32_t symbol, Value value, const ScopePtr& scope);
  Value load(const Node& name, const ScopePtr& scope);

  // loops
  bool peek(Loop& loop);
  bool advance(Loop& loop);
  std::int64_t length(Loop& loop);
  Value loop_attribute(Loop& loop, const Value& name);
  Value call_loop(const Loop& loop, const CallArguments& arguments);
  Value call_loop_method(Loop& loop, const std::string& name, const CallArguments& arguments);

  // expressions
  Value evaluate(const Node& node, const ScopePtr& scope);
  Value evaluate_or_none(const Node* node, const ScopePtr& scope);
  Value evaluate_items(const Node& node, const ScopePtr& scope);
  Value evaluate_dict(const Node& node, const ScopePtr& scope);
  Value evaluate_attribute(const Node& node, const ScopePtr& scope);
  Value evaluate_item(const Node& node, const ScopePtr& scope);
  Value evaluate_call(const Node& node, const ScopePtr& scope);
  Value evaluate_filter(const Node& node, const ScopePtr& scope, const Value* input);
  Value evaluate_logical(const Node& node, const ScopePtr& scope);
  Value evaluate_comparison(const Node& node, const ScopePtr& scope);
  Value evaluate_arithmetic(const Node& node, const ScopePtr& scope);
  Value evaluate_sign(const Node& node, const ScopePtr& scope);
  Value evaluate_concatenation(const Node& node, const ScopePtr& scope);
  bool compare_values(Op op, const Value& a, const Value& b);
  Value member(const Value& object, const Value& name);
  CallArguments evaluate_arguments(const Arguments& arguments, const ScopePtr& scope);
  Value call(const Value& callee, CallArguments arguments);
  Value call_macro(const Macro& macro, CallArguments arguments);
  Value make_namespace(const CallArguments& arguments);

  Runtime runtime_;  // first: it outlives all that is charged to it
  const Program* program_;
  int depth_ = 0;
  int macro_depth_ = 0;
  std::uint32_t loop_symbol_ = UINT32_MAX;
  std::vector<std::unique_ptr<Dict>> namespaces_;
  std::vector<std::unique_ptr<Macro>> macros_;
  std::vector<Value> globals_;  // by symbol
};

// --- jinja_arithmetic.cpp --------------------------------------------------------------------------------------------
Value arithmetic(Runtime& runtime, Op op, const Value& a, const Value& b);

}  // namespace skald::inline v0::jinja
