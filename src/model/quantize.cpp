#include <skald/model/quantize.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <skald/core/error.hpp>
#include <skald/model/tensor_forms.hpp>
#include <skald/quant/row_codec.hpp>

#include "model/tensor_view.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view place = "model.quantize";

struct Mixture {
  std::string_view name;
  DType base;
  bool more_in_layers;  // q6_k for half of the value and down matrices
};
constexpr std::array<Mixture, 4> mixtures = {{{"q4_k_m", DType::q4_k, true},
                                              {"q4_k_s", DType::q4_k, false},
                                              {"q5_k_m", DType::q5_k, true},
                                              {"q5_k_s", DType::q5_k, false}}};

std::string lower(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return result;
}

struct Recipe {
  DType base = DType::f32;
  bool mixed = false;
  bool more_in_layers = false;
};

Recipe find_recipe(std::string_view name) {
  const std::string wanted = lower(name);
  if (const auto at = std::ranges::find(mixtures, wanted, &Mixture::name); at != mixtures.end())
    return {at->base, true, at->more_in_layers};
  if (const auto type = dtype_from_name(wanted); type && can_encode(*type)) return {*type, false, false};
  throw UsageError(place, fmt::format("'{}' is no type that can be encoded; allowed are {}", printable(name, 40),
                                      fmt::join(quantization_names(), ", ")));
}

bool is_float(DType type) {
  return type == DType::f32 || type == DType::f16 || type == DType::bf16 || is_stored_as_number(type);
}

/// Matrices of weights, but not the small ones that decide much.
bool is_quantizable(const TensorInfo& tensor) {
  if (tensor.rank < 2 || tensor.dims[1] < 2 || !tensor.name.ends_with("weight")) return false;
  if (!is_float(tensor.type) && !dtype_info(tensor.type).quantized) return false;
  constexpr std::array<std::string_view, 10> kept = {"_norm.",    "ffn_gate_inp", "position_embd", "token_types",
                                                    "ssm_conv1d", "shortconv.conv", "attn_rel_b",  "time_mix_",
                                                    "rope_f",      "cls."};
  return std::ranges::none_of(kept, [&](std::string_view part) { return tensor.name.find(part) != std::string::npos; });
}

std::optional<std::int64_t> layer_of(std::string_view name) {
  const auto at = name.find("blk.");
  if (at == std::string_view::npos) return {};
  std::int64_t layer = 0;
  const char* begin = name.data() + at + 4;
  const auto [end, error] = std::from_chars(begin, name.data() + name.size(), layer);
  return error == std::errc() && end != begin ? std::optional(layer) : std::nullopt;
}

std::int64_t layer_count(const ModelFile& file) {
  std::int64_t count = 0;
  for (const TensorInfo& tensor : file.tensors()) count = std::max(count, layer_of(tensor.name).value_or(-1) + 1);
  return count;
}

DType mixed_type(const ModelFile& file, const TensorInfo& tensor, const Recipe& recipe) {
  const bool head = tensor.name == "output.weight" ||
                    (tensor.name == "token_embd.weight" && file.find("output.weight") == nullptr);
  if (head) return DType::q6_k;
  if (!recipe.more_in_layers) return recipe.base;
  const auto layer = layer_of(tensor.name);
  const bool sensitive = tensor.name.find("attn_v.") != std::string::npos ||
                         tensor.name.find("attn_qkv.") != std::string::npos ||
                         tensor.name.find("ffn_down") != std::string::npos;
  if (!layer || !sensitive) return recipe.base;
  const std::int64_t layers = layer_count(file);
  const bool more = *layer < layers / 8 || *layer >= 7 * layers / 8 || (*layer - layers / 8) % 3 == 2;
  return more ? DType::q6_k : recipe.base;
}

DType fitting(DType type, std::int64_t columns) {
  const auto fits = [columns](DType each) { return columns % dtype_info(each).block_elements == 0; };
  if (fits(type)) return type;
  const DType smaller = type == DType::q6_k || type == DType::q8_k ? DType::q8_0 : type == DType::q5_k ? DType::q5_1 : DType::q5_0;
  return fits(smaller) && can_encode(smaller) ? smaller : DType::f16;
}

/// `general.file_type` of files that are mostly of a type (GGUF specification, docs/gguf.md).
std::optional<std::uint32_t> file_type(const Recipe& recipe) {
  switch (recipe.base) {
    case DType::f32: return 0;
    case DType::f16: return 1;
    case DType::q4_0: return 2;
    case DType::q4_1: return 3;
    case DType::q8_0: return 7;
    case DType::q5_0: return 8;
    case DType::q5_1: return 9;
    case DType::q2_k: return 10;
    case DType::q3_k: return 12;
    case DType::q4_k: return recipe.mixed && recipe.more_in_layers ? 15 : 14;
    case DType::q5_k: return recipe.mixed && recipe.more_in_layers ? 17 : 16;
    case DType::q6_k: return 18;
    case DType::bf16: return 32;
    default: return {};
  }
}

DType type_for(const ModelFile& file, const TensorInfo& tensor, const Recipe& recipe) {
  if (!is_quantizable(tensor)) return tensor.type;
  return fitting(recipe.mixed ? mixed_type(file, tensor, recipe) : recipe.base, tensor.columns());
}

}  // namespace

std::vector<std::string> quantization_names() {
  std::vector<std::string> names;
  for (const DType type : block_formats())
    if (can_encode(type)) names.emplace_back(to_string(type));
  for (const Mixture& mixture : mixtures) names.emplace_back(mixture.name);
  return names;
}

DType quantized_type(const ModelFile& file, const TensorInfo& tensor, std::string_view name) {
  return type_for(file, tensor, find_recipe(name));
}

ModelFile quantized(const ModelFile& file, std::string_view name) {
  const Recipe recipe = find_recipe(name);
  std::vector<AnyByteSource> sources(file.sources().begin(), file.sources().end());
  std::vector<TensorInfo> tensors;
  for (const TensorInfo& tensor : file.tensors()) {
    const DType type = type_for(file, tensor, recipe);
    if (type == tensor.type) {
      tensors.push_back(tensor);
      continue;
    }
    TensorView view = view_of(file, tensor);
    if (is_stored_as_number(tensor.type)) view = as_f32(view.name, view);
    static_cast<void>(format_ops(view.type));  // refuses what cannot be decoded now, not while reading
    tensors.push_back(add_view(type == DType::f32 && view.type == DType::f32 ? view : encoded(std::move(view), type), sources));
  }
  Metadata metadata = file.metadata();
  if (const auto number = file_type(recipe)) metadata.set("general.file_type", *number);
  metadata.set("general.quantization_version", std::uint32_t{2});
  return {file.name(), std::move(metadata), std::move(tensors), std::move(sources)};
}

}  // namespace skald::inline v0
