#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <skald/text/tool_calls.hpp>

namespace skald::inline v0::detail {

/// The functions below append the calls that a text consists of, and say whether it consists of calls and nothing else;
/// if not, nothing is appended.
using ToolCalls = std::vector<ToolCall>;

/// An object with `name` (or `tool_name`) and `arguments` (or `parameters`), or an array of such.
bool parse_call_json(std::string_view text, ToolCalls& calls);
/// Several such objects, separated by `;` or white space.
bool parse_call_list(std::string_view text, ToolCalls& calls);
/// `NAME>…` behind `<function=`: JSON, or `<parameter=KEY>value</parameter>`…; without the closing tag.
bool parse_function_tag(std::string_view text, ToolCalls& calls);
/// What stands between `<tool_call>` and `</tool_call>`.
bool parse_hermes(std::string_view text, ToolCalls& calls);
/// What follows `<|python_tag|>`. Code becomes a call of `python` with the argument `code`.
bool parse_python_tag(std::string_view text, ToolCalls& calls);
/// What follows `[TOOL_CALLS]`.
bool parse_mistral(std::string_view text, ToolCalls& calls);
/// What stands between `<｜tool▁calls▁begin｜>` and `<｜tool▁calls▁end｜>`.
bool parse_deepseek(std::string_view text, ToolCalls& calls);
/// A call of `name` with the arguments as JSON.
bool parse_arguments(std::string_view name, std::string_view json, ToolCalls& calls, std::string_view id = {});

[[nodiscard]] std::string_view trim(std::string_view text) noexcept;

/// Watches text go by and tells where a JSON object or array ends.
class JsonEnd {
 public:
  /// True once the value is complete: `c` was its last character.
  bool push(char c) noexcept;
  [[nodiscard]] bool begun() const noexcept { return depth_ > 0 || done_; }

 private:
  std::size_t depth_ = 0;
  bool in_string_ = false, escaped_ = false, done_ = false;
};

}  // namespace skald::inline v0::detail
