#pragma once

// Files of random gates for the policy of learned gates.

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <skald/core/random.hpp>
#include <skald/model/safetensors/writer.hpp>
#include <skald/state/eviction.hpp>

namespace skald_test {

/// Name of the policy with random gates of all layers; a token closes the gates of about one in fifty at a bias of 2, the
/// larger the bias the fewer. The file is removed when the process ends.
inline std::string gates_policy(std::int64_t layers, std::int64_t dim, float bias) {
  constexpr std::int64_t width = 24;
  const auto file = "skald-gates-" + std::to_string(::getpid()) + "-" + std::to_string(layers) + "-" + std::to_string(dim) +
                    "-" + std::to_string(bias) + ".safetensors";
  const auto path = (std::filesystem::temp_directory_path() / file).string();
  skald::SafetensorsWriter writer;
  for (std::int64_t l = 0; l < layers; ++l) {
    const auto name = "layers." + std::to_string(l) + ".";
    for (const std::string part : {"query", "key"}) {
      skald::CounterRandom random(11, static_cast<std::uint64_t>(l), part == "key" ? 1 : 0);
      std::vector<float> numbers(static_cast<std::size_t>(width * dim));
      const double scale = 2 / std::sqrt(static_cast<double>(dim));
      for (float& x : numbers)
        x = static_cast<float>((random.uniform() + random.uniform() + random.uniform() - 1.5) * scale);
      writer.add_tensor(name + part, skald::SafetensorsType::f32, {width, dim}, std::as_bytes(std::span(numbers)));
    }
    writer.add_tensor(name + "bias", skald::SafetensorsType::f32, {1}, std::as_bytes(std::span(&bias, 1)));
  }
  writer.write_file(path);
  struct Remover {
    std::set<std::string> paths{};
    ~Remover() {
      std::error_code ignored;
      for (const auto& each : paths) std::filesystem::remove(each, ignored);
    }
  };
  static Remover remover;
  remover.paths.insert(path);
  return skald::AnyEviction::from_spec("dcp:file=" + path).name();
}

}  // namespace skald_test
