#include <chrono>
#include <cstdlib>
#include <string>

#include <nlohmann/json.hpp>

#include <skald/core/error.hpp>
#include <skald/text/chat_template.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

// Every case was rendered by Jinja2 itself (generate_cases.py); the text must be the same, byte for byte.

namespace {

using Json = nlohmann::ordered_json;

const std::string folder = skald_test::source_path("tests/unit/template/");

const Json& golden() {
  static const Json data = [] {
    ::setenv("TZ", "UTC", 1);
    return Json::parse(skald_test::read_text(folder + "cases.json"));
  }();
  return data;
}

std::string field(const Json& object, const char* name) { return object.value(name, std::string()); }

skald::ChatTemplateInputs inputs_of(const Json& conversation) {
  skald::ChatTemplateInputs inputs;
  for (const Json& message : conversation.value("messages", Json::array())) {
    skald::ChatMessage m{field(message, "role"), field(message, "content")};
    m.reasoning_content = field(message, "reasoning_content");
    m.name = field(message, "name");
    m.tool_call_id = field(message, "tool_call_id");
    if (message.contains("tool_calls")) m.tool_calls_json = message["tool_calls"].dump();
    inputs.messages.push_back(std::move(m));
  }
  inputs.add_generation_prompt = conversation.value("add_generation_prompt", true);
  if (conversation.contains("tools")) inputs.tools_json = conversation["tools"].dump();
  if (conversation.contains("extra")) inputs.extra_json = conversation["extra"].dump();
  inputs.now = std::chrono::system_clock::from_time_t(golden()["now"].get<std::time_t>());
  return inputs;
}

void check(const Json& expected, const std::string& source, const skald::ChatTemplateInputs& inputs) {
  std::string rendered;
  std::string refused;
  try {
    rendered = skald::ChatTemplate(source, "<s>", "</s>").apply(inputs);
  } catch (const skald::FormatError& error) {
    refused = error.what();
  } catch (const skald::UnsupportedError& error) {
    refused = error.what();
  }
  if (expected.contains("fails")) {
    INFO("Jinja2 says: " << field(expected, "fails") << "\nrendered: " << rendered);
    CHECK_FALSE(refused.empty());
  } else {
    INFO(refused);
    CHECK(refused.empty());
    CHECK(rendered == field(expected, "expected"));
  }
}

}  // namespace

TEST_CASE("text.chat_template: renders expressions and statements as Jinja2 does") {
  skald::ChatTemplateInputs snippet =
      inputs_of({{"messages", golden()["snippet_messages"]}, {"extra", golden()["extra"]}});
  skald::ChatTemplateInputs expression = snippet;
  expression.messages.clear();
  std::size_t count = 0;
  for (const Json& c : golden()["cases"]) {
    const std::string source = field(c, "template");
    INFO(source);
    check(c, source, c.contains("name") ? expression : snippet);
    ++count;
  }
  REQUIRE(count > 600);
}

TEST_CASE("text.chat_template: renders templates of the published families' structure as Jinja2 does") {
  std::size_t count = 0;
  for (const Json& c : golden()["families"]) {
    const std::string name = field(c, "family");
    const std::string conversation = field(c, "conversation");
    INFO(name << ", " << conversation);
    check(c, skald_test::read_text(folder + "families/" + name), inputs_of(golden()["conversations"][conversation]));
    ++count;
  }
  REQUIRE(count >= 13 * 10);
}
