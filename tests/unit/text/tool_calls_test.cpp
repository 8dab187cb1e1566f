#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>
#include <skald/text/tool_calls.hpp>

#include "small_vocabularies.hpp"
#include "support/catch.hpp"

namespace {

using skald::AssistantMessage;
using skald::MessageEvent;
using skald::MessageParser;
using skald::MessageParserOptions;
using skald::ToolCall;
using Format = skald::ToolCallFormat;

struct Case {
  Format format;
  std::string text;
  std::string content;
  std::string reasoning;
  std::vector<ToolCall> calls;
  bool in_reasoning = false;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {Format::none, "", "", "", {}},
      {Format::none, " Hello \n", " Hello \n", "", {}},
      {Format::none, "<think>\nWhy?\n\n</think>\n\nBecause. ", "Because. ", "Why?", {}},
      {Format::none, "Why?\n</think>Because", "Because", "Why?", {}, true},
      {Format::none, "<think>\nAgain</think>x", "x", "Again", {}, true},
      {Format::none, "<think>never ends", "", "never ends", {}},
      {Format::none, "I say <think>no</think>", "I say <think>no</think>", "", {}},
      {Format::none, "<think></think>a<think>b", "a<think>b", "", {}},
      {Format::none, "<thin", "<thin", "", {}},
      // hermes, qwen
      {Format::hermes,
       "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, {\"y\": \"</tool\"}]}}\n</tool_call>",
       "Let me see.",
       "",
       {{"f", R"({"x":[1,{"y":"</tool"}]})"}}},
      {Format::hermes,
       "<think>hm</think>\n<tool_call>{\"name\":\"a\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"b\","
       "\"arguments\":\"{\\\"k\\\":1}\"}</tool_call>\n",
       "",
       "hm",
       {{"a", "{}"}, {"b", R"({"k":1})"}}},
      {Format::hermes, "<tool_call>{\"name\":\"a\",\"arguments\":{\"b\":2}}", "", "", {{"a", R"({"b":2})"}}},
      {Format::hermes,
       "x <tool_call>{\"name\": oops}</tool_call> y",
       "x <tool_call>{\"name\": oops}</tool_call> y",
       "",
       {}},
      {Format::hermes,
       "<tool_call>{\"arguments\":{}}</tool_call>",
       "<tool_call>{\"arguments\":{}}</tool_call>",
       "",
       {}},
      {Format::hermes,
       "<tool_call>{\"name\":\"a\",\"arguments\":[1]}</tool_call>",
       "<tool_call>{\"name\":\"a\",\"arguments\":[1]}</tool_call>",
       "",
       {}},
      {Format::hermes, "<tool_call>never", "<tool_call>never", "", {}},
      {Format::hermes, "a <tool_cal", "a <tool_cal", "", {}},
      {Format::hermes,
       "<tool_call>\n<function=get>\n<parameter=city>\nNew York\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
       "</function>\n</tool_call>",
       "",
       "",
       {{"get", R"({"city":"New York","days":3})"}}},
      // llama 3
      {Format::llama3_json, R"({"name": "f", "parameters": {"a": 1}})", "", "", {{"f", R"({"a":1})"}}},
      {Format::llama3_json,
       "\n{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}\n",
       "",
       "",
       {{"f", "{}"}, {"g", "{}"}}},
      {Format::llama3_json, R"({"answer": 42} is it)", R"({"answer": 42} is it)", "", {}},
      {Format::llama3_json, R"(See {"name": "f", "parameters": {}})", R"(See {"name": "f", "parameters": {}})", "", {}},
      {Format::llama3_json, R"({"name": "f", "param)", R"({"name": "f", "param)", "", {}},
      {Format::llama3_json,
       R"(<|python_tag|>{"type": "function", "name": "f", "parameters": {"q": "a;b"}})",
       "",
       "",
       {{"f", R"({"q":"a;b"})"}}},
      {Format::llama3_json,
       R"(<|python_tag|>brave_search.call(query="who, \"me\"?", n=3))",
       "",
       "",
       {{"brave_search", R"({"query":"who, \"me\"?","n":3})"}}},
      {Format::llama3_json, "<|python_tag|>print(1)\n", "", "", {{"python", R"x({"code":"print(1)"})x"}}},
      // mistral
      {Format::mistral,
       R"([TOOL_CALLS][{"name": "f", "arguments": {"a": "]"}, "id": "abc123456"}, {"name": "g", "arguments": {}}])",
       "",
       "",
       {{"f", R"({"a":"]"})", "abc123456"}, {"g", "{}"}}},
      {Format::mistral,
       R"(Sure.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{})",
       "Sure.",
       "",
       {{"f", R"({"a":1})"}, {"g", "{}", "x1"}}},
      {Format::mistral, "[TOOL_CALLS] [1, 2] done", "[TOOL_CALLS] [1, 2] done", "", {}},
      {Format::mistral, "[TOOL_CALLS]", "[TOOL_CALLS]", "", {}},
      // function tags
      {Format::function_tag, "<function=f>{\"a\": true}</function>", "", "", {{"f", R"({"a":true})"}}},
      {Format::function_tag, "<function=f>{\"a\": </function>!", "<function=f>{\"a\": </function>!", "", {}},
      // functionary
      {Format::functionary, "all\nHello there", "Hello there", "", {}},
      {Format::functionary, ">>>all\nHi.>>>f\n{\"a\": 1}>>>g\n{}", "Hi.", "", {{"f", R"({"a":1})"}, {"g", "{}"}}},
      {Format::functionary, "f\n{broken>>>all\nText", "f\n{brokenText", "", {}},
      {Format::functionary, "python\nprint(2)", "", "", {{"python", R"x({"code":"print(2)"})x"}}},
      {Format::functionary, "Just text without a line", "Just text without a line", "", {}},
      // deepseek
      {Format::deepseek,
       "<think>r</think>Now.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": "
       "1}\n```"
       "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>"
       "<｜tool▁calls▁end｜>",
       "Now.",
       "r",
       {{"f", R"({"a":1})"}, {"g", "{}"}}},
      {Format::deepseek,
       "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>",
       "",
       "",
       {{"f", R"({"a":1})"}}},
      {Format::deepseek,
       "<｜tool▁calls▁begin｜>huh<｜tool▁calls▁end｜>",
       "<｜tool▁calls▁begin｜>huh<｜tool▁calls▁end｜>",
       "",
       {}},
      // harmony
      {Format::harmony,
       "<|channel|>analysis<|message|>Need weather.<|end|><|start|>assistant<|channel|>commentary to=functions.get "
       "<|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>",
       "",
       "Need weather.",
       {{"get", R"({"city":"Oslo"})"}}},
      {Format::harmony,
       "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
       "It rains.",
       "Hm.",
       {}},
      {Format::harmony,
       "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}",
       "",
       "",
       {{"f", "{}"}}},
      {Format::harmony,
       "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant",
       "I will look.",
       "",
       {}},
      {Format::harmony, "plain answer", "plain answer", "", {}},
      {Format::harmony, "<|channel|>final<|message|>unfinished", "unfinished", "", {}},
  };
  return all;
}

MessageParserOptions options_of(const Case& c) {
  MessageParserOptions options;
  options.format = c.format;
  options.in_reasoning = c.in_reasoning;
  return options;
}

bool same(const AssistantMessage& a, const AssistantMessage& b) {
  return a.content == b.content && a.reasoning_content == b.reasoning_content && a.tool_calls == b.tool_calls;
}

// Pushes the text in random pieces and checks that the events add up to the message.
AssistantMessage in_pieces(const std::string& text, const MessageParserOptions& options, skald_test::Random& random,
                           std::uint32_t most) {
  MessageParser parser(options);
  AssistantMessage sum;
  const auto take = [&](const std::vector<MessageEvent>& events) {
    for (const MessageEvent& event : events) {
      if (event.kind == MessageEvent::Kind::content) sum.content += event.text;
      else if (event.kind == MessageEvent::Kind::reasoning) sum.reasoning_content += event.text;
      else sum.tool_calls.push_back(event.call);
    }
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t size = 1 + random.below(most);
    take(parser.push(std::string_view(text).substr(at, size)));
    at += size;
  }
  take(parser.finish());
  CHECK(same(sum, parser.message()));
  return sum;
}

}  // namespace

TEST_CASE("text.tool_calls: takes answers of every family apart, wherever they are cut") {
  skald_test::Random random(1);
  for (const Case& c : cases()) {
    INFO(skald::to_string(c.format) << ": " << c.text);
    const AssistantMessage message = skald::parse_message(c.text, options_of(c));
    CHECK(message.content == c.content);
    CHECK(message.reasoning_content == c.reasoning);
    REQUIRE(message.tool_calls.size() == c.calls.size());
    for (std::size_t i = 0; i < c.calls.size(); ++i) {
      CHECK(message.tool_calls[i].name == c.calls[i].name);
      CHECK(message.tool_calls[i].arguments_json == c.calls[i].arguments_json);
      CHECK(message.tool_calls[i].id == c.calls[i].id);
    }
    for (int round = 0; round < 20; ++round) {
      CHECK(same(in_pieces(c.text, options_of(c), random, round < 3 ? 1 : 12), message));
    }
  }
}

TEST_CASE("text.tool_calls: survives mutilated answers, and cuts do not matter there either") {
  skald_test::Random random(2);
  for (const Case& c : cases()) {
    for (int round = 0; round < 60; ++round) {
      std::string text = c.text;
      for (std::uint32_t i = 1 + random.below(4); i > 0 && !text.empty(); --i) {
        const auto at = random.below(static_cast<std::uint32_t>(text.size()));
        switch (random.below(4)) {
          case 0: text.erase(at, 1 + random.below(9)); break;
          case 1: text.insert(at, 1, "{}[]<>|\"\\,\n "[random.below(12)]); break;
          case 2: text[at] = static_cast<char>(random.below(256)); break;
          default: text += text.substr(at, random.below(30));
        }
      }
      INFO(skald::to_string(c.format) << ": " << text);
      const AssistantMessage message = skald::parse_message(text, options_of(c));
      CHECK(same(in_pieces(text, options_of(c), random, 5), message));
      for (const ToolCall& call : message.tool_calls) {
        CHECK_FALSE(call.name.empty());
        CHECK(nlohmann::json::parse(call.arguments_json).is_object());
      }
    }
  }
}

TEST_CASE("text.tool_calls: text that is too large or too deep to be a call is text") {
  MessageParserOptions options;
  options.format = Format::hermes;
  options.max_call_bytes = 100;
  const std::string large =
      "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"" + std::string(200, 'x') + "\"}}</tool_call>";
  CHECK(skald::parse_message(large, options).content == large);
  options.max_call_bytes = 1 << 20;
  CHECK(skald::parse_message(large, options).tool_calls.size() == 1);
  const std::string deep =
      "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":" + std::string(100'000, '[') + "</tool_call>";
  CHECK(skald::parse_message(deep, options).content == deep);
}

TEST_CASE("text.tool_calls: text comes out as soon as it cannot be anything else") {
  MessageParser parser(MessageParserOptions{.format = Format::hermes});
  CHECK(parser.push("Hello <").front().text == "Hello");
  CHECK(parser.push("b>").front().text == " <b>");
  CHECK(parser.push("<tool_call>{\"name\":\"f\"").empty());
  const auto events = parser.push(",\"arguments\":{}}</tool_call>");
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == MessageEvent::Kind::tool_call);
  CHECK(events[0].call.name == "f");
  CHECK(parser.finish().empty());
}

TEST_CASE("text.tool_calls: where reasoning cannot begin, its marker does not hide an opener") {
  const std::string text = ">>l\n<think>>>f\n{}";
  const auto whole = skald::parse_message(text, {.format = Format::functionary});
  CHECK(whole.content == ">>l\n<think");
  REQUIRE(whole.tool_calls.size() == 1);
  CHECK(whole.tool_calls[0].name == "f");
  for (std::size_t piece = 1; piece < text.size(); ++piece) {
    MessageParser parser({.format = Format::functionary});
    for (std::size_t at = 0; at < text.size(); at += piece) (void)parser.push(text.substr(at, piece));
    (void)parser.finish();
    CHECK(parser.message().content == whole.content);
    CHECK(parser.message().tool_calls == whole.tool_calls);
  }
}

TEST_CASE("text.tool_calls: knows formats by name and by template") {
  for (int i = 0; i < 8; ++i) {
    const auto format = static_cast<Format>(i);
    CHECK(skald::tool_call_format(skald::to_string(format)) == format);
  }
  CHECK_THROWS_AS(skald::tool_call_format("hermess"), skald::UsageError);
  CHECK(skald::detect_tool_call_format("{{ '<tool_call>' }}") == Format::hermes);
  CHECK(skald::detect_tool_call_format("{{ '[TOOL_CALLS]' }}") == Format::mistral);
  CHECK(skald::detect_tool_call_format("<|start|>assistant<|channel|>analysis") == Format::harmony);
  CHECK(skald::detect_tool_call_format("<｜tool▁calls▁begin｜>") == Format::deepseek);
  CHECK(skald::detect_tool_call_format("<|python_tag|>") == Format::llama3_json);
  CHECK(skald::detect_tool_call_format("<function=example>") == Format::function_tag);
  CHECK(skald::detect_tool_call_format(">>>all\n") == Format::functionary);
  CHECK(skald::detect_tool_call_format("<|im_start|>") == Format::none);
  CHECK_THROWS_AS(MessageParser(MessageParserOptions{.reasoning_end = ""}), skald::UsageError);
}

TEST_CASE("text.tool_calls: writes calls for the next turn") {
  AssistantMessage message;
  CHECK(message.tool_calls_json().empty());
  message.tool_calls = {{"f", R"({"a":1})", "id1"}, {"g", "{}"}};
  CHECK(message.tool_calls_json() == R"([{"id":"id1","type":"function","function":{"name":"f","arguments":{"a":1}}},)"
                                     R"({"type":"function","function":{"name":"g","arguments":{}}}])");
}
