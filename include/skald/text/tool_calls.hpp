#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// How a family of models writes the calls of tools in its answers.
enum class ToolCallFormat : std::uint8_t {
  none,         ///< no calls; reasoning only
  hermes,       ///< `<tool_call>{"name":…,"arguments":…}</tool_call>` (Hermes, Qwen 2.5 and 3), also with
                ///< `<function=NAME><parameter=KEY>…` inside (Qwen 3 Coder)
  llama3_json,  ///< the whole answer is `{"name":…,"parameters":…}`, several separated by `;`; or `<|python_tag|>` and
                ///< such an object, `NAME.call(key=value,…)` or code (Llama 3.1 and later)
  mistral,       ///< `[TOOL_CALLS][{"name":…,"arguments":…},…]` or `[TOOL_CALLS]NAME[ARGS]{…}`
  function_tag,  ///< `<function=NAME>{…}</function>` (Llama 3.1 custom tools, Functionary 3.1)
  functionary,   ///< `>>>NAME\n{…}` and `>>>all\n` for text (Functionary 3.2)
  deepseek,      ///< `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>…` (DeepSeek V3, R1, V3.1)
  harmony,       ///< channels: `<|channel|>commentary to=functions.NAME…<|message|>{…}<|call|>` (gpt-oss)
};

/// Name of a format as in the list above, e.g. "hermes".
[[nodiscard]] SKALD_API std::string_view to_string(ToolCallFormat format) noexcept;
/// Format of that name. Throws `UsageError` for other names.
[[nodiscard]] SKALD_API ToolCallFormat tool_call_format(std::string_view name);
/// The format that a chat template asks its model for, by the markers in the template's source.
[[nodiscard]] SKALD_API ToolCallFormat detect_tool_call_format(std::string_view chat_template);

/// A call that a model wants made.
struct ToolCall {
  std::string name;
  std::string arguments_json;  ///< a JSON object, as the model wrote it apart from white space
  std::string id{};            ///< where the model gives one
  [[nodiscard]] bool operator==(const ToolCall&) const = default;
};

/// An answer taken apart.
struct AssistantMessage {
  std::string content{};
  std::string reasoning_content{};
  std::vector<ToolCall> tool_calls{};

  /// The calls as `ChatMessage::tool_calls_json` wants them: `[{"id":…,"type":"function","function":{…}},…]`, arguments
  /// as objects; empty without calls.
  [[nodiscard]] SKALD_API std::string tool_calls_json() const;
};

/// A part of an answer.
struct MessageEvent {
  enum class Kind : std::uint8_t { content, reasoning, tool_call };
  Kind kind;
  std::string text{};  ///< of content and reasoning: what comes next
  ToolCall call{};     ///< complete
};

struct MessageParserOptions {
  ToolCallFormat format = ToolCallFormat::none;
  std::string reasoning_begin = "<think>";  ///< empty: no reasoning
  std::string reasoning_end = "</think>";
  /// The prompt ended with `reasoning_begin` already.
  bool in_reasoning = false;
  /// A call that grows beyond this is text.
  std::size_t max_call_bytes = std::size_t{1} << 20;
};

/// Takes a model's answer apart while it is being generated: text, reasoning and calls of tools.
///
/// Input is what the model says, special tokens spelled out (decode without `skip_special`), in pieces of any size; the
/// result does not depend on where it is cut. Whatever does not follow the format, down to a call that is never
/// finished, is text and comes out as it went in. White space around calls and reasoning is dropped. Bounded memory
/// besides the message itself; never throws because of its input.
class SKALD_API MessageParser {
 public:
  /// Throws `UsageError` for `reasoning_begin` without `reasoning_end`.
  explicit MessageParser(MessageParserOptions options = {});
  ~MessageParser();
  MessageParser(MessageParser&&) noexcept;
  MessageParser& operator=(MessageParser&&) noexcept;

  /// What the text completes.
  [[nodiscard]] std::vector<MessageEvent> push(std::string_view text);
  /// What was held back. To be called once, after the last push.
  [[nodiscard]] std::vector<MessageEvent> finish();
  /// Everything so far.
  [[nodiscard]] const AssistantMessage& message() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A whole answer at once.
[[nodiscard]] SKALD_API AssistantMessage parse_message(std::string_view text, MessageParserOptions options = {});

}  // namespace skald::inline v0
