// Any bytes as the files of an adapter: a GGUF file, or the two files of a PEFT folder. They are read or refused with a
// skald::Error, and what was read has the sizes that it states.
//
// First byte: even for GGUF, whose bytes follow. Odd: two bytes (little-endian) with the length of adapter_config.json,
// that file, then adapter_model.safetensors.

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <skald/core/error.hpp>
#include <skald/model/adapter.hpp>

namespace {

namespace fs = std::filesystem;

void check(bool condition) {
  if (!condition) std::abort();
}

void write(const fs::path& path, const std::uint8_t* data, std::size_t size) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
}

const fs::path& folder() {
  static const fs::path path = [] {
    const fs::path memory("/dev/shm");
    fs::path made = (fs::is_directory(memory) ? memory : fs::temp_directory_path()) /
                    ("skald-fuzz-adapter-" + std::to_string(::getpid()));
    fs::create_directories(made / "peft");
    std::atexit([] {
      std::error_code error;
      fs::remove_all(folder(), error);
    });
    return made;
  }();
  return path;
}

skald::Metadata model_of(const std::string& architecture) {
  skald::Metadata metadata("model");
  metadata.set("general.architecture", architecture);
  metadata.set(architecture + ".attention.head_count", std::uint32_t{4});
  metadata.set(architecture + ".attention.head_count_kv", std::uint32_t{2});
  return metadata;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return 0;
  const bool peft = data[0] % 2 == 1;
  fs::path path = folder() / "adapter.gguf";
  if (peft) {
    const std::size_t length = std::min<std::size_t>(data[1] + 256u * data[2], size - 3);
    path = folder() / "peft";
    write(path / "adapter_config.json", data + 3, length);
    write(path / "adapter_model.safetensors", data + 3 + length, size - 3 - length);
  } else {
    write(path, data + 1, size - 1);
  }
  static const skald::Metadata models[] = {model_of("llama"), model_of("gpt2"), model_of("falcon"), model_of("deepseek2")};
  for (const auto& model : models) {
    try {
      const skald::AdapterFile file = skald::read_adapter(path.string(), model);
      check(!file.deltas.empty());
      for (const auto& delta : file.deltas) {
        check(!delta.tensor.empty() && delta.rank > 0 && delta.outputs > 0 && std::isfinite(delta.scale));
        if (delta.kind == skald::DeltaKind::kronecker) continue;
        check(delta.second.size() == static_cast<std::size_t>(delta.outputs) * static_cast<std::size_t>(delta.rank));
        std::vector<float> row(static_cast<std::size_t>(delta.inputs));
        if (delta.kind == skald::DeltaKind::low_rank) delta.change_row(delta.outputs - 1, 1.0F, row);
      }
    } catch (const skald::Error& error) {
      check(std::string_view(error.what()).size() <= 2048);
    }
  }
  return 0;
}
