#include <skald/state/drop_gates.hpp>

#include <charconv>
#include <cmath>
#include <cstring>

#include <skald/core/error.hpp>
#include <skald/model/safetensors/reader.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view prefix = "layers.";
constexpr std::int64_t most_layers = 4096;

/// Number of the layer that a tensor's name begins with and the rest of the name, or -1.
std::pair<std::int64_t, std::string_view> layer_of(std::string_view name) {
  if (name.substr(0, prefix.size()) != prefix) return {-1, {}};
  const char* first = name.data() + prefix.size();
  const char* last = name.data() + name.size();
  std::int64_t layer = -1;
  const auto [end, error] = std::from_chars(first, last, layer);
  if (error != std::errc() || end == last || *end != '.' || layer < 0 || layer >= most_layers) return {-1, {}};
  return {layer, name.substr(static_cast<std::size_t>(end + 1 - name.data()))};
}

}  // namespace

DropGates DropGates::load(const std::string& path) {
  const auto file = open_safetensors(path);
  DropGates gates;
  for (const auto& tensor : file.tensors()) {
    const auto [number, part] = layer_of(tensor.name);
    if (number < 0 || (part != "query" && part != "key" && part != "bias"))
      file.fail(tensor, "gates have tensors layers.N.query, layers.N.key and layers.N.bias, N below " +
                            std::to_string(most_layers));
    if (static_cast<std::size_t>(number) >= gates.layers.size()) gates.layers.resize(static_cast<std::size_t>(number) + 1);
    auto& layer = gates.layers[static_cast<std::size_t>(number)];
    if (part == "bias") {
      if (tensor.elements() != 1) file.fail(tensor, "a bias is one number");
      layer.bias = file.read_floats(tensor).front();
      continue;
    }
    if (tensor.shape.size() != 2 || tensor.shape[0] < 1 || tensor.shape[0] > 1024 || tensor.shape[1] < 1)
      file.fail(tensor, "a matrix of 1 to 1024 rows is needed");
    if (gates.width == 0) gates.width = static_cast<std::int32_t>(tensor.shape[0]);
    if (tensor.shape[0] != gates.width)
      file.fail(tensor, std::to_string(tensor.shape[0]) + " rows; other gates have " + std::to_string(gates.width));
    (part == "query" ? layer.query : layer.key) = file.read_floats(tensor);
  }
  for (const auto& layer : gates.layers)
    if (!std::isfinite(layer.bias)) throw FormatError("state.drop_gates", "a bias is not finite", {.file = path});
  for (const auto& layer : gates.layers)
    for (const auto* numbers : {&layer.query, &layer.key})
      for (const float x : *numbers)
        if (!std::isfinite(x)) throw FormatError("state.drop_gates", "a weight is not finite", {.file = path});
  return gates;
}

std::uint64_t DropGates::checksum() const noexcept {
  std::uint64_t sum = 14695981039346656037ull;  // FNV-1a over words
  const auto add = [&](float x) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    sum = (sum ^ bits) * 1099511628211ull;
  };
  for (const auto& layer : layers) {
    for (const float x : layer.query) add(x);
    for (const float x : layer.key) add(x);
    add(layer.bias);
  }
  return sum;
}

void DropGates::check(std::size_t layer_count, std::int64_t dim) const {
  const auto clash = [](const std::string& reason, std::size_t layer) {
    throw IncompatibleError("state.drop_gates", "learned gates " + reason, {.layer = static_cast<int>(layer)});
  };
  if (width < 1 || width > 1024) clash("have a width of " + std::to_string(width) + ", 1 to 1024 are allowed", 0);
  if (layers.size() > layer_count)
    clash("are for " + std::to_string(layers.size()) + " layers, the model has " + std::to_string(layer_count), 0);
  const auto needed = static_cast<std::size_t>(width) * static_cast<std::size_t>(dim);
  for (std::size_t i = 0; i < layers.size(); ++i)
    if (layers[i].query.size() != layers[i].key.size() || (!layers[i].query.empty() && layers[i].query.size() != needed))
      clash("have " + std::to_string(layers[i].query.size()) + " and " + std::to_string(layers[i].key.size()) +
                " numbers; the model needs " + std::to_string(needed),
            i);
}

}  // namespace skald::inline v0
