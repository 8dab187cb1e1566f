#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <skald/state/eviction.hpp>

namespace skald::inline v0 {

/// Learned gates of Dynamic Context Pruning (Anagnostidis et al. 2023, arXiv 2305.15805): in each layer a token closes the
/// gate of an earlier one, for itself and all that follow, if the product of its interaction query with the other's
/// interaction key / sqrt(width) + bias is negative. That is the sparse sigmoid of the paper at its limit, as it is used
/// after training. Queries and keys are products with what the layer's own queries and keys are made of.
struct SKALD_API DropGates {
  struct Layer {
    std::vector<float> query{};  ///< [width][dim]; empty: the layer drops nothing
    std::vector<float> key{};    ///< [width][dim]
    float bias = 0.0F;
  };
  std::int32_t width = 0;  ///< of interaction queries and keys, 1 to 1024
  std::vector<Layer> layers{};

  /// Reads a safetensors file: for layer N `layers.N.query` and `layers.N.key` [width, dim] and `layers.N.bias` [1]; layers
  /// that have none drop nothing. @throws FormatError, IoError.
  static DropGates load(const std::string& path);
  /// Distinguishes gates with different numbers.
  [[nodiscard]] std::uint64_t checksum() const noexcept;
  /// @throws IncompatibleError unless every layer that has gates has them whole, for vectors of `dim`.
  void check(std::size_t layer_count, std::int64_t dim) const;
};

/// Drops what learned gates have closed. Attention no longer sees a token from the row on that closes its gate; its slot is
/// freed at the next page border. All head groups of a layer drop the same tokens.
struct LearnedGates {
  std::shared_ptr<const DropGates> weights{};
  std::string file{};  ///< where they are from, for the name

  [[nodiscard]] std::string name() const {
    return "dcp:file=" + file + ",checksum=" + std::to_string(weights->checksum() >> 32);
  }
  [[nodiscard]] ComponentTraits traits() const noexcept {
    return {.drops_tokens = true, .lossy = true, .concurrent = true};
  }
  [[nodiscard]] std::shared_ptr<const DropGates> gates() const noexcept { return weights; }
  void evict(const EvictionView& view, EvictionChoice& choice) const noexcept {
    if (view.until.empty()) return;  // a layer without gates
    for (std::int64_t slot = 0; slot + 1 < view.slots(); ++slot)
      if (view.until[static_cast<std::size_t>(slot)] <= view.sequence_tokens) choice.drop(slot);
  }
};
static_assert(EvictionPolicy<LearnedGates>);

}  // namespace skald::inline v0
