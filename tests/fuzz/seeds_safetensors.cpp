// Writes small safetensors files, valid and broken, as first inputs of the fuzzer: seeds_safetensors FOLDER

#include <cstdio>
#include <fstream>

#include <skald/model/safetensors/writer.hpp>

#include "support/safetensors_raw.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: seeds_safetensors FOLDER\n", stderr);
    return 2;
  }
  std::vector<std::vector<std::byte>> inputs;
  for (const auto& defect : skald_test::safetensors_defects())
    inputs.push_back(skald_test::raw_safetensors(defect.header, defect.data_bytes, defect.length));
  skald::SafetensorsWriter writer;
  writer.set_metadata("format", "pt");
  writer.add_tensor("a", skald::SafetensorsType::f32, {2, 1}, std::vector<std::byte>(8));
  writer.add_tensor("b", skald::SafetensorsType::bf16, {3}, std::vector<std::byte>(6));
  inputs.push_back(writer.to_bytes());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const auto path = std::string(argv[1]) + "/seed-" + std::to_string(i) + ".safetensors";
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(inputs[i].data()), static_cast<std::streamsize>(inputs[i].size()));
    if (!file.good()) return 1;
  }
  return 0;
}
