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

/// The entry of a name: one of `more`, a built-in one, or nothing.
[[nodiscard]] std::optional<Architecture> find_architecture(std::string_view name, std::span<const Architecture> more);

}  // namespace skald::inline v0
