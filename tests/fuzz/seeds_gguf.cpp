// Writes small GGUF files, valid and broken, as first inputs of the fuzzer: seeds_gguf FOLDER

#include <cstdio>
#include <fstream>

#include "support/gguf_defects.hpp"
#include "unit/gguf/samples.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: seeds_gguf FOLDER\n", stderr);
    return 2;
  }
  const auto valid = skald_test::sample_writer().to_bytes();
  auto inputs = skald_test::container_defects(valid);
  inputs.push_back({"valid", valid});
  inputs.push_back({"valid with alignment 8", skald_test::sample_writer(8).to_bytes()});
  auto version_2 = skald_test::parse_raw(valid);
  version_2.version = 2;
  inputs.push_back({"valid version 2", version_2.encode()});
  for (auto& truncated : skald_test::truncations(valid, 20)) inputs.push_back(std::move(truncated));
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].bytes.size() > 32768) continue;  // large inputs slow the fuzzer down
    const auto path = std::string(argv[1]) + "/seed-" + std::to_string(i) + ".gguf";
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(inputs[i].bytes.data()),
               static_cast<std::streamsize>(inputs[i].bytes.size()));
    if (!file.good()) {
      std::fprintf(stderr, "cannot write %s\n", path.c_str());
      return 1;
    }
  }
  return 0;
}
