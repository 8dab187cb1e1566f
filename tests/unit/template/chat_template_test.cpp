#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include <skald/core/error.hpp>
#include <skald/text/chat_template.hpp>

#include "support/catch.hpp"

namespace {

std::string render(const std::string& source, const skald::ChatTemplateInputs& inputs = {}) {
  return skald::ChatTemplate(source, "<s>", "</s>").apply(inputs);
}

/// Message and place of the refusal, or "" if the template rendered.
template <typename Error>
std::string refusal(const std::string& source, const skald::ChatTemplateInputs& inputs = {}) {
  try {
    (void)render(source, inputs);
  } catch (const Error& error) {
    return error.context().path + ": " + error.message();
  }
  return "";
}

std::string repeated(const std::string& text, std::size_t count) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i) out += text;
  return out;
}

bool limited(const std::string& source, const skald::ChatTemplateInputs& inputs = {}) {
  const std::string message = refusal<skald::FormatError>(source, inputs);
  CAPTURE(source.substr(0, 100), message);
  return message.find("limit") != std::string::npos;
}

}  // namespace

TEST_CASE("text.chat_template: gives messages their optional fields only when they are set") {
  skald::ChatTemplateInputs inputs;
  inputs.messages = {{"user", "hi"}, {"assistant", "yo", "because", R"([{"function":{"name":"f"}}])", "bob", "id1"}};
  CHECK(render("{{ messages[0] }}", inputs) == "{'role': 'user', 'content': 'hi'}");
  CHECK(render("{{ messages[1] }}", inputs) ==
        "{'role': 'assistant', 'content': 'yo', 'reasoning_content': 'because', 'tool_calls': [{'function': {'name': "
        "'f'}}], "
        "'name': 'bob', 'tool_call_id': 'id1'}");
}

TEST_CASE("text.chat_template: passes tools and extra variables as JSON, keeping the order of keys") {
  skald::ChatTemplateInputs inputs;
  inputs.tools_json = R"([{"z":1,"a":{"y":2.50,"b":"\u00e9"}}])";
  inputs.extra_json = R"({"enable_thinking":false,"bos_token":"<other>"})";
  CHECK(render("{{ tools | tojson }}{{ enable_thinking }}{{ bos_token }}", inputs) ==
        R"([{"z": 1, "a": {"y": 2.5, "b": "é"}}])"
        "False<other>");
  CHECK(render("{{ tools }}{{ documents }}") == "NoneNone");
}

TEST_CASE("text.chat_template: an empty special token is undefined") {
  CHECK(skald::ChatTemplate("{{ bos_token is defined }}{{ eos_token }}", "", "e").apply({}) == "Falsee");
}

TEST_CASE("text.chat_template: malformed JSON inputs are refused by name") {
  skald::ChatTemplateInputs inputs;
  inputs.tools_json = "{";
  CHECK(refusal<skald::FormatError>("x", inputs).find("tools_json") != std::string::npos);
  inputs.tools_json = "{}";
  CHECK(refusal<skald::FormatError>("x", inputs).find("not an array") != std::string::npos);
  inputs.tools_json = "";
  inputs.extra_json = "[1]";
  CHECK(refusal<skald::FormatError>("x", inputs).find("extra_json is not an object") != std::string::npos);
  inputs.extra_json = R"({"x":)" + repeated("[", 100000) + repeated("]", 100000) + "}";
  CHECK(limited("x", inputs));
  inputs.extra_json = R"({"x":123456789012345678901234567890})";
  CHECK(refusal<skald::FormatError>("x", inputs).find("beyond 64 bits") != std::string::npos);
  inputs.extra_json = "";
  inputs.messages = {{"assistant", "", "", "[1"}};
  CHECK(refusal<skald::FormatError>("x", inputs).find("tool_calls_json") != std::string::npos);
}

TEST_CASE("text.chat_template: errors name the template's line") {
  CHECK(refusal<skald::FormatError>("a\nb{{ messages.x.y }}") ==
        "template line 2: undefined: there is no attribute or item 'x'");
  CHECK(refusal<skald::FormatError>("\n\n{% if x %}") ==
        "template line 3: the block that starts here is not closed by 'endif'");
  CHECK(refusal<skald::FormatError>("a\n\n{{ raise_exception('roles must alternate') }}") ==
        "template line 3: roles must alternate");
  CHECK(refusal<skald::FormatError>("{% for x in [1] %}\n{{ x }}\n{{ x + 'a' }}\n{% endfor %}") ==
        "template line 3: the operator + does not take int and str");
}

TEST_CASE("text.chat_template: what is not supported is refused by name, when parsing where that is possible") {
  const auto parse_refusal = [](const std::string& source) -> std::string {
    try {
      (void)skald::ChatTemplate(source, "", "");
    } catch (const skald::UnsupportedError& error) {
      return error.context().path + ": " + error.message();
    }
    return "";
  };
  CHECK(parse_refusal("x\n{% include 'a' %}") ==
        "template line 2: the template uses the tag 'include', which is not supported");
  CHECK(parse_refusal("{{ x | urlize }}").find("the filter 'urlize'") != std::string::npos);
  CHECK(parse_refusal("{{ x is weird }}").find("the test 'weird'") != std::string::npos);
  CHECK(parse_refusal("{{ cycler(1) }}").find("the function 'cycler'") != std::string::npos);
  CHECK(refusal<skald::UnsupportedError>("{{ 'a'.encode() }}").find("'encode'") != std::string::npos);
  CHECK(refusal<skald::UnsupportedError>("{{ range }}").find("function") != std::string::npos);
}

TEST_CASE("text.chat_template: nothing beyond plain values can be reached") {
  CHECK(refusal<skald::FormatError>("{{ ''.__class__.__mro__ }}").find("__class__") != std::string::npos);
  CHECK(refusal<skald::FormatError>("{{ messages.append(1) }}").find("append") != std::string::npos);
  CHECK(refusal<skald::FormatError>("{{ range.__globals__.x }}").find("__globals__") != std::string::npos);
  CHECK(refusal<skald::FormatError>("{{ '{0.__class__.x}'.format(1) }}").find("__class__") != std::string::npos);
  CHECK(render("{{ messages.__class__ }}{{ self }}{{ request }}") == "");
}

TEST_CASE("text.chat_template: work, memory and output of a template are bounded") {
  CHECK(limited("{% for i in range(1000000000) %}{% endfor %}"));
  CHECK(limited("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"));
  CHECK(limited("{{ 'x' * 1000000000 }}"));
  CHECK(limited("{{ ('x' * 3000) * 3000 }}"));
  CHECK(limited("{{ [0] * 1000000000 }}"));
  CHECK(limited("{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"));
  CHECK(limited("{% set ns = namespace(l=[1]) %}{% for i in range(100) %}{% set ns.l = ns.l + ns.l %}{% endfor %}"));
  CHECK(limited("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}"));
  CHECK(limited("{% set ns = namespace(l={}) %}{% for i in range(1000) %}{% set ns.l = {'a': ns.l} %}{% endfor %}"));
  CHECK(limited("{% set a = 'x' * 1000 %}{% for i in range(2000) %}{{ a }}{% endfor %}"));
  CHECK(limited("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"));
  CHECK(limited("{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m([]) }}"));
  CHECK(limited("{% macro a(caller=1) %}{% call a() %}{% endcall %}{% endmacro %}{{ a() }}"));
  CHECK(limited("{{ 'ab' | center(1000000000) }}"));
  CHECK(limited("{{ '%1000000000d' % 1 }}"));
  CHECK(limited("{{ '{:1000000000}'.format(1) }}"));
  CHECK(limited("{{ 'a' | indent(1000000000, true) }}"));
  CHECK(limited("{{ [1] | tojson(indent=1000000000) }}"));
  CHECK(limited("{{ ('a' * 1000000).replace('', 'bbbbbbbbbb') }}"));
  CHECK(limited("{% set s = 'a' * 500000 %}{% for i in range(100000) %}{% set x = s.upper() %}{% endfor %}"));
  CHECK(limited("{% set s = 'ab' * 400000 %}{{ s | list }}"));
  CHECK(limited("{% set s = 'a' * 400000 %}{% for i in range(5000) %}{% set x = (s ~ 'b') in (s + s) %}{% endfor %}"));
  CHECK(refusal<skald::FormatError>("{{ 9223372036854775807 + 1 }}").find("overflow") != std::string::npos);
  CHECK(refusal<skald::FormatError>("{{ 10 ** 10 ** 10 }}").find("overflow") != std::string::npos);
}

TEST_CASE("text.chat_template: size and nesting of a template are bounded") {
  CHECK(limited(repeated("x", (1U << 20) + 1)));
  CHECK(limited("{{ " + repeated("(", 100000) + "1" + repeated(")", 100000) + " }}"));
  CHECK(limited("{{ " + repeated("[", 100000) + "1" + repeated("]", 100000) + " }}"));
  CHECK(limited("{{ " + repeated("not ", 100000) + "1 }}"));
  CHECK(limited("{{ " + repeated("-", 100000) + "1 }}"));
  CHECK(limited("{{ x" + repeated(".a", 100000) + " }}"));
  CHECK(limited("{{ x" + repeated("|e", 100000) + " }}"));
  CHECK(limited("{{ 1" + repeated(" if 1 else 2", 50000) + " }}"));
  CHECK(limited("{{ " + repeated("1 ** ", 50000) + "1 }}"));
  CHECK(limited(repeated("{% if 1 %}", 50000)));
  CHECK(limited("{{ [" + repeated("1,", 200000) + "] }}"));
  CHECK(limited("{% set " + repeated("(", 100000) + "x" + repeated(")", 100000) + " = 1 %}"));
  CHECK(render("{{ " + repeated("1 + ", 5000) + "1 }}") == "5001");
  CHECK(render("{{ " + repeated("'a' ~ ", 5000) + "'b' }}").size() == 5001);
  CHECK(render(repeated("{% if 0 %}", 1) + repeated("{% elif 0 %}", 5000) + "{% endif %}x") == "x");
}

TEST_CASE("text.chat_template: references in circles are released") {
  CHECK(render("{% set ns = namespace() %}{% set ns.me = ns %}{% set ns.l = [ns] %}{{ ns.me.me.l | length }}") == "1");
  CHECK(render("{% set ns = namespace() %}{% for x in [1] %}{% set ns.l = loop %}{% macro m() %}{{ ns.l.index }}{% "
               "endmacro %}"
               "{% set ns.m = m %}{{ m() }}{% endfor %}{{ ns.m() }}") == "11");
  CHECK(
      render(
          "{% macro a(x) %}{% for y in [1] if y %}{% set ns.k = [loop] %}{% endfor %}{% set z = ns.k %}{{ z | length }}"
          "{% endmacro %}{% set ns = namespace() %}{{ a(1) }}") == "1");
}

TEST_CASE("text.chat_template: one template renders in many threads at once") {
  const skald::ChatTemplate chat("{% for m in messages %}{{ m.role }}:{{ m.content | upper }};{% endfor %}", "", "");
  skald::ChatTemplateInputs inputs;
  inputs.messages = {{"user", "a"}, {"assistant", "b"}};
  std::vector<std::string> results(8);
  std::vector<std::thread> threads;
  for (std::string& result : results) {
    threads.emplace_back([&result, &inputs, copy = chat] {
      for (int i = 0; i < 50; ++i) result = copy.apply(inputs);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& result : results) CHECK(result == "user:A;assistant:B;");
}

TEST_CASE("text.chat_template: invalid UTF-8 in a conversation passes through") {
  skald::ChatTemplateInputs inputs;
  inputs.messages = {{"user",
                      "a\xff\xc3"
                      "b"}};
  CHECK(render("{{ messages[0].content }}{{ messages[0].content | length }}{{ messages[0].content[::-1] }}", inputs) ==
        "a\xff\xc3"
        "b4b\xc3\xff"
        "a");
}
