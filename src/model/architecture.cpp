#include <skald/model/architecture.hpp>

#include <algorithm>
#include <array>

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

namespace {

/// The key `hidden_activation` of files that were made from a folder: its activation may be another than the architecture's.
void read_activation(HyperParameters& parameters, ModelSpec& spec) {
  const std::string name = parameters.text_or("hidden_activation", "");
  if (name.empty()) return;
  constexpr std::array allowed = {Activation::silu, Activation::gelu_tanh,    Activation::gelu_erf, Activation::relu,
                                  Activation::relu_squared, Activation::tanh, Activation::sigmoid};
  const auto at = std::ranges::find(allowed, name, [](Activation each) { return to_string(each); });
  if (at == allowed.end())
    throw UnsupportedError("model.read_spec", fmt::format("activation '{}' is not implemented", printable(name, 40)),
                           {.file = parameters.file().name(), .key = parameters.key("hidden_activation")});
  for (LayerSpec& layer : spec.layers)
    if (layer.ffn && !layer.ffn->token_shift) layer.ffn->activation = *at;
}

}  // namespace

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
  read_classifier(parameters, spec);
  read_activation(parameters, spec);
  validate(spec, file.name());
  return {std::move(spec), parameters.unread()};
}

ModelSpec read_spec(const ModelFile& file, std::span<const Architecture> more) {
  return read_spec_and_rest(file, more).spec;
}

}  // namespace skald::inline v0
