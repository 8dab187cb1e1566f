#include <cstddef>
#include <cstdint>
#include <string>

#include <skald/core/error.hpp>
#include <skald/text/chat_template.hpp>

// Input: a chat template, and after a zero byte optionally JSON variables for it. Parses and renders.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = input.find('\0');
  skald::ChatTemplateInputs inputs;
  inputs.messages = {{"system", "Be <b>brief</b>."},
                     {"user", "Grüße \n"},
                     {"assistant", "", "because", R"([{"id":"a","function":{"name":"f","arguments":{"x":[1,2.5,null]}}}])"},
                     {"tool", "{\"y\": 1}", "", "", "f", "a"}};
  inputs.tools_json = R"([{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}])";
  if (zero != std::string::npos) inputs.extra_json = input.substr(zero + 1);
  inputs.now = std::chrono::system_clock::time_point{};
  try {
    const skald::ChatTemplate chat(input.substr(0, zero), "<s>", "</s>");
    (void)chat.apply(inputs);
  } catch (const skald::Error&) {  // refusals are the point; anything else is a finding
  }
  return 0;
}
