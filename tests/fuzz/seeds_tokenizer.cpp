// Writes the first inputs of fuzz_tokenizer.cpp into the folder named by the argument.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  const std::vector<std::string> seeds = {
      "\x01Hello, world! It's 12345 o'clock.\n\n  def f(x):\n\treturn x\n",
      "\x01<s><|im_end|>   aaaaaaaa 1111 ababab! \xf0\x9f\x98\x80 \xe4\xbd\xa0\xe5\xa5\xbd \xff\xfe",
      std::string("\x02\x00\x01\x01\x05gpt-2\n\x21"
                  "aa\n\x21"
                  "ab\n\x23<s>\n\x24"
                  "ba\n\na a\na b\n\naaab<s>ba \xff",
                  41),
      std::string("\x02\x01\x01\x02\x05\n\x21\xe2\x96\x81\n\x41"
                  "aa\n\x33<s>\n\n\naa a<s> aaa",
                  31),
  };
  int number = 0;
  for (const std::string& seed : seeds) {
    std::ofstream file(std::filesystem::path(argv[1]) / ("seed" + std::to_string(number++)), std::ios::binary);
    file << seed;
    if (!file) return 1;
  }
  return 0;
}
