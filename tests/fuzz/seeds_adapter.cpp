// Writes small adapters as first inputs of the fuzzer: seeds_adapter FOLDER

#include <cstdio>
#include <fstream>

#include <skald/model/gguf/writer.hpp>
#include <skald/model/safetensors/writer.hpp>

namespace {

std::vector<std::byte> peft(const std::string& config, const std::vector<std::byte>& tensors) {
  std::vector<std::byte> result{std::byte{1}, static_cast<std::byte>(config.size() & 255),
                                static_cast<std::byte>(config.size() >> 8)};
  const auto text = std::as_bytes(std::span(config));
  result.insert(result.end(), text.begin(), text.end());
  result.insert(result.end(), tensors.begin(), tensors.end());
  return result;
}

std::vector<std::byte> tensors(const std::vector<std::pair<std::string, std::vector<std::int64_t>>>& list) {
  skald::SafetensorsWriter writer;
  for (const auto& [name, shape] : list) {
    std::size_t bytes = 4;
    for (const auto extent : shape) bytes *= static_cast<std::size_t>(extent);
    const bool numbers = name.ends_with("paca_columns");
    writer.add_tensor("base_model.model.model.layers.0." + name, numbers ? skald::SafetensorsType::i32 : skald::SafetensorsType::f32,
                      shape, std::vector<std::byte>(bytes));
  }
  return writer.to_bytes();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: seeds_adapter FOLDER\n", stderr);
    return 2;
  }
  std::vector<std::vector<std::byte>> inputs;
  const auto lora = tensors({{"self_attn.q_proj.lora_A.weight", {2, 8}}, {"self_attn.q_proj.lora_B.weight", {16, 2}}});
  inputs.push_back(peft(R"({"peft_type":"LORA","r":2,"lora_alpha":4,"use_rslora":true})", lora));
  inputs.push_back(peft(R"({"peft_type":"LORA","use_dora":true})", lora));
  inputs.push_back(peft(R"({"modules_to_save":["lm_head"],"alpha_pattern":{"q_proj":2}})", lora));
  inputs.push_back(peft(R"({"peft_type":"LOKR","alpha":1,"r":1})",
                        tensors({{"mlp.up_proj.lokr_w1", {2, 4}}, {"mlp.up_proj.lokr_w2", {3, 2}}})));
  inputs.push_back(peft(R"({"peft_type":"SOKA"})", tensors({{"mlp.up_proj.kron_A", {2, 2, 4}}, {"mlp.up_proj.kron_B", {2, 3, 2}}})));
  inputs.push_back(peft(R"({"peft_type":"PACA"})",
                        tensors({{"mlp.up_proj.paca_columns", {2}}, {"mlp.up_proj.paca_delta", {3, 2}}})));
  skald::GgufWriter writer;
  writer.set("general.type", std::string("adapter"));
  writer.set("general.architecture", std::string("llama"));
  writer.set("adapter.type", std::string("lora"));
  writer.set("adapter.lora.alpha", 8.0F);
  writer.add_tensor("blk.0.attn_q.weight.lora_a", skald::DType::f32, {8, 2}, std::vector<std::byte>(64));
  writer.add_tensor("blk.0.attn_q.weight.lora_b", skald::DType::f32, {2, 16}, std::vector<std::byte>(128));
  inputs.emplace_back(1);
  const auto gguf = writer.to_bytes();
  inputs.back().insert(inputs.back().end(), gguf.begin(), gguf.end());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    std::ofstream file(std::string(argv[1]) + "/seed-" + std::to_string(i), std::ios::binary);
    file.write(reinterpret_cast<const char*>(inputs[i].data()), static_cast<std::streamsize>(inputs[i].size()));
    if (!file.good()) return 1;
  }
  return 0;
}
