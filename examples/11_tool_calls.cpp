// Takes model answers apart: reasoning, text and calls of tools, while the text arrives in pieces.
//   tool_calls [FORMAT TEXT]
// Without arguments it shows an answer in the format of Hermes and Qwen.
#include <algorithm>
#include <iostream>
#include <string>
#include <string_view>

#include <skald/text/tool_calls.hpp>
#include <skald/core/error.hpp>

namespace {

void print(const std::vector<skald::MessageEvent>& events) {
  using Kind = skald::MessageEvent::Kind;
  for (const auto& event : events) {
    if (event.kind == Kind::reasoning) std::cout << "thinks: " << event.text << '\n';
    if (event.kind == Kind::content) std::cout << "says:   " << event.text << '\n';
    if (event.kind == Kind::tool_call) std::cout << "calls:  " << event.call.name << event.call.arguments_json << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string_view format = argc > 2 ? argv[1] : "hermes";
  const std::string_view answer = argc > 2 ? argv[2] : R"(<think>I need the weather.</think>Let me look.
<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>)";
  skald::MessageParser parser({.format = skald::tool_call_format(format)});
  constexpr std::size_t piece = 16;
  for (std::size_t at = 0; at < answer.size(); at += piece) print(parser.push(answer.substr(at, piece)));
  print(parser.finish());
  // As the next turn's ChatMessage::tool_calls_json:
  std::cout << parser.message().tool_calls_json() << '\n';
} catch (const skald::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
