// Writes the first inputs of fuzz_tool_calls.cpp into the folder named by the argument.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  const std::vector<std::string> seeds = {
      "\x30<think>a</think> b",
      "\x01hi <tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}</tool_call>",
      "\x51<tool_call><function=f><parameter=a>1</parameter></function></tool_call>",
      "\x22{\"name\":\"f\",\"parameters\":{}}; {\"name\":\"g\",\"parameters\":{}}",
      "\x22<|python_tag|>f.call(a=\"b\", c=1)",
      "\x33[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{}}]",
      "\x33[TOOL_CALLS]f[CALL_ID]x[ARGS]{}",
      "\x14<function=f>{}</function>",
      "\x25>>>all\nhi>>>f\n{}",
      "\x36<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>",
      "\x47<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}"};
  int number = 0;
  for (const std::string& seed : seeds) {
    std::ofstream file(std::filesystem::path(argv[1]) / ("seed" + std::to_string(number++)), std::ios::binary);
    file << seed;
    if (!file) return 1;
  }
  return 0;
}
