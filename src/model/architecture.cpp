#include <skald/model/architecture.hpp>

#include <algorithm>

#include <fmt/format.h>

#include <skald/core/error.hpp>

#include "model/architecture_parts.hpp"
#include "model/limits.hpp"
#include "model/spec_reading.hpp"

namespace skald::inline v0 {

/// Mixtral's experts: softmax over all, the shares of the chosen add up to 1.
std::optional<ExpertsSpec> read_experts(HyperParameters& parameters, bool known) {
  const std::int64_t count = parameters.integer_or("expert_count", 0, 0, limits::experts);
  const std::int64_t most = std::min(count, limits::experts_used);
  if (count == 0) {
    static_cast<void>(parameters.contains("expert_used_count"));  // means nothing then
    return {};
  }
  if (!known)
    throw UnsupportedError(
        "model.read_spec",
        fmt::format("mixture-of-experts layers are not implemented for {}", parameters.architecture()),
        {.file = parameters.file().name(), .key = parameters.key("expert_count")});
  if (const TensorInfo* tensor = parameters.file().find("blk.0.ffn_gate.0.weight"))
    throw UnsupportedError("model.read_spec",
                           "a tensor for each expert is the older form of this format, which is not implemented; "
                           "convert the model again",
                           {.file = parameters.file().name(), .offset = tensor->offset, .tensor = tensor->name});
  return ExpertsSpec{.count = static_cast<std::int32_t>(count),
                     .used = static_cast<std::int32_t>(parameters.integer("expert_used_count", 1, most)),
                     .gating = ExpertGating::softmax,
                     .renormalize = true};
}

std::optional<Architecture> find_architecture(std::string_view name, std::span<const Architecture> more) {
  for (const Architecture& each : more)
    if (each.name == name) return each;
  for (Architecture& each : architectures())
    if (each.name == name) return std::move(each);
  return {};
}

SpecReading read_spec_and_rest(const ModelFile& file, std::span<const Architecture> more) {
  const std::string& name = file.metadata().get_string("general.architecture");
  const std::optional<Architecture> architecture = find_architecture(name, more);
  if (!architecture || !architecture->read) {
    std::string known;
    const auto list = [&](std::span<const Architecture> entries) {
      for (const Architecture& each : entries) known += (known.empty() ? "" : ", ") + each.name;
    };
    list(more);
    list(architectures());
    throw UnsupportedError("model.read_spec",
                           fmt::format("architecture '{}' is not implemented; known are {}", printable(name), known),
                           {.file = file.name(), .key = "general.architecture"});
  }
  HyperParameters parameters(file, architecture->name);
  ModelSpec spec = architecture->read(parameters);
  validate(spec, file.name());
  return {std::move(spec), parameters.unread()};
}

ModelSpec read_spec(const ModelFile& file, std::span<const Architecture> more) {
  return read_spec_and_rest(file, more).spec;
}

}  // namespace skald::inline v0
