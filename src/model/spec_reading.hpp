#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include <skald/model/architecture.hpp>

namespace skald::inline v0 {

/// A spec and the hyper-parameter keys that were not used for it.
struct SpecReading {
  ModelSpec spec;
  std::vector<std::string> unread_keys;
};
[[nodiscard]] SpecReading read_spec_and_rest(const ModelFile& file, std::span<const Architecture> more);

/// What all architectures may have after their last layer: the key `pooling_type`, and a classifier (`cls.weight`,
/// `cls.output.weight`, their biases, the key `classifier.output_labels`).
void read_classifier(HyperParameters& parameters, ModelSpec& spec);

/// The entry of a name: one of `more`, a built-in one, or nothing.
[[nodiscard]] std::optional<Architecture> find_architecture(std::string_view name, std::span<const Architecture> more);

}  // namespace skald::inline v0
