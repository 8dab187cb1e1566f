// First byte: the format, whether the answer begins in reasoning, and how it is cut. The rest is a model's answer: it
// is taken apart without an error, in the same way wherever it is cut, and calls have names and objects as arguments.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include <skald/text/tool_calls.hpp>

namespace {

using namespace skald;

void check(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  MessageParserOptions options;
  options.format = static_cast<ToolCallFormat>(data[0] & 7);
  options.in_reasoning = (data[0] & 8) != 0;
  options.max_call_bytes = 2048;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::size_t piece = std::size_t{1} + (data[0] >> 4);

  MessageParser parser(options);
  for (std::size_t at = 0; at < text.size(); at += piece) (void)parser.push(text.substr(at, piece));
  (void)parser.finish();
  const AssistantMessage& message = parser.message();
  for (const ToolCall& call : message.tool_calls) {
    check(!call.name.empty() && call.arguments_json.starts_with('{'));
  }
  check(message.tool_calls_json().empty() == message.tool_calls.empty());
  // A call that is as large as allowed may or may not be given up, depending on where it is cut.
  if (text.size() > options.max_call_bytes) return 0;
  const AssistantMessage whole = parse_message(text, options);
  check(whole.content == message.content);
  check(whole.reasoning_content == message.reasoning_content);
  check(whole.tool_calls == message.tool_calls);
  return 0;
}
