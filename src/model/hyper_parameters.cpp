#include <skald/model/hyper_parameters.hpp>

#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/core/half.hpp>

#include "model/limits.hpp"

namespace skald::inline v0 {

HyperParameters::HyperParameters(const ModelFile& file, std::string architecture)
    : file_(file), architecture_(std::move(architecture)) {}

std::string HyperParameters::asked(std::string_view name) {
  std::string result = key(name);
  asked_.insert(result);
  return result;
}

std::int64_t HyperParameters::integer(std::string_view name, std::int64_t min, std::int64_t max) {
  return metadata().get_i64(asked(name), min, max);
}

std::int64_t HyperParameters::integer_or(std::string_view name, std::int64_t otherwise, std::int64_t min,
                                         std::int64_t max) {
  return metadata().find_i64(asked(name), min, max).value_or(otherwise);
}

double HyperParameters::number(std::string_view name, double min, double max) {
  const double value = metadata().get_f64(asked(name));
  if (value < min || value > max) fail(name, fmt::format("found {}, allowed is {} to {}", value, min, max));
  return value;
}

double HyperParameters::number_or(std::string_view name, double otherwise, double min, double max) {
  return contains(name) ? number(name, min, max) : otherwise;
}

bool HyperParameters::flag_or(std::string_view name, bool otherwise) {
  return metadata().find_bool(asked(name)).value_or(otherwise);
}

std::string HyperParameters::text_or(std::string_view name, std::string_view otherwise) {
  const std::string* value = metadata().find_string(asked(name));
  return value ? *value : std::string(otherwise);
}

std::vector<std::int64_t> HyperParameters::per_layer(std::string_view name, std::int64_t layers, std::int64_t min,
                                                     std::int64_t max) {
  const std::string full = asked(name);
  const auto* entry = metadata().find(full);
  if (!entry || !std::holds_alternative<MetadataArray>(entry->value))
    return std::vector<std::int64_t>(static_cast<std::size_t>(layers), integer(name, min, max));
  auto values = metadata().get_array<std::int64_t>(full);
  if (std::cmp_not_equal(values.size(), layers))
    fail(name, fmt::format("found {} elements, allowed is one for each of the {} layers", values.size(), layers));
  for (std::size_t i = 0; i < values.size(); ++i)
    if (values[i] < min || values[i] > max)
      fail(name, fmt::format("element {} is {}, allowed is {} to {}", i, values[i], min, max));
  return values;
}

std::vector<bool> HyperParameters::flags_or_none(std::string_view name, std::int64_t layers) {
  auto values = metadata().find_array<bool>(asked(name));
  if (!values) return {};
  if (std::cmp_not_equal(values->size(), layers))
    fail(name, fmt::format("found {} elements, allowed is one for each of the {} layers", values->size(), layers));
  return std::move(*values);
}

bool HyperParameters::has_tensor(std::int64_t layer, std::string_view name) const {
  return file_.find(fmt::format("blk.{}.{}", layer, name)) != nullptr;
}

float HyperParameters::epsilon(std::string_view name) {
  const auto value = static_cast<float>(number(name, 0, static_cast<double>(limits::epsilon)));
  if (value <= 0) fail(name, fmt::format("found {}, allowed is above 0 to {}", value, limits::epsilon));
  return value;
}

std::vector<std::string> HyperParameters::unread() const {
  std::vector<std::string> result;
  for (const auto& entry : metadata().entries())
    if (entry.key.starts_with(architecture_ + ".") && !asked_.contains(entry.key)) result.push_back(entry.key);
  return result;
}

std::vector<float> read_vector(const ModelFile& file, const TensorInfo& tensor) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes));
  file.read(tensor, bytes);
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  const auto element = [&](std::size_t i, auto sample) {
    std::memcpy(&sample, bytes.data() + i * sizeof(sample), sizeof(sample));
    return sample;
  };
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (tensor.type == DType::f32) values[i] = element(i, 0.0F);
    else if (tensor.type == DType::f16) values[i] = f16_to_f32(element(i, std::uint16_t{}));
    else if (tensor.type == DType::bf16) values[i] = bf16_to_f32(element(i, std::uint16_t{}));
    else if (tensor.type == DType::f64) values[i] = static_cast<float>(element(i, 0.0));
    else if (tensor.type == DType::i8) values[i] = static_cast<float>(element(i, std::int8_t{}));
    else if (tensor.type == DType::i16) values[i] = static_cast<float>(element(i, std::int16_t{}));
    else if (tensor.type == DType::i32) values[i] = static_cast<float>(element(i, std::int32_t{}));
    else file.fail(tensor, fmt::format("found type {}, allowed is f32, f16, bf16, f64, i8, i16 or i32",
                                       to_string(tensor.type)));
    if (!std::isfinite(values[i]))
      throw NumericError("model.load", fmt::format("element {} is {}, allowed is a finite number", i, values[i]),
                         {.file = file.name(), .offset = tensor.offset, .tensor = tensor.name});
  }
  return values;
}

namespace {

RopeScaling scaling_kind(HyperParameters& parameters, bool has_factor) {
  // A file that gives a factor alone means linear scaling: that key is older than the key of the type.
  const std::string type = parameters.text_or("rope.scaling.type", has_factor ? "linear" : "none");
  if (type == "none") return RopeScaling::none;
  if (type == "linear") return RopeScaling::linear;
  if (type == "yarn") return RopeScaling::yarn;
  if (type == "longrope") return RopeScaling::longrope;
  throw UnsupportedError("model.read_spec",
                         fmt::format("rope scaling '{}' is not implemented for {}; known are none, linear, yarn and "
                                     "longrope",
                                     printable(type), parameters.architecture()),
                         {.file = parameters.file().name(), .key = parameters.key("rope.scaling.type")});
}

void read_yarn(HyperParameters& parameters, RopeSpec& rope, std::int64_t context_length) {
  rope.original_context =
      parameters.integer_or("rope.scaling.original_context_length", context_length, 1, limits::context);
  rope.extrapolation = parameters.number_or("rope.scaling.yarn_ext_factor", 1.0, 0.0, 1.0);
  rope.attention_factor *= parameters.number_or("rope.scaling.yarn_attn_factor", 1.0, limits::min_attention_factor,
                                                limits::max_attention_factor);
  rope.beta_slow = parameters.number_or("rope.scaling.yarn_beta_slow", 1.0, limits::min_beta, limits::max_beta);
  rope.whole_pairs = parameters.flag_or("rope.scaling.yarn_truncate", true);
  rope.beta_fast = parameters.number_or("rope.scaling.yarn_beta_fast", 32.0, rope.beta_slow, limits::max_beta);
}

std::vector<float> read_rope_factors(const ModelFile& file, std::string_view name, std::int32_t pairs) {
  const TensorInfo* tensor = file.find(name);
  if (!tensor) return {};
  if (tensor->elements() != pairs || tensor->columns() != pairs)
    file.fail(*tensor,
              fmt::format("found shape {}, allowed is [{}], half of the rotary dimensions", tensor->shape(), pairs));
  auto factors = read_vector(file, *tensor);
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const auto factor = static_cast<double>(factors[i]);
    if (factor < limits::min_rope_factor || factor > limits::max_rope_factor)
      file.fail(*tensor, fmt::format("element {} is {}, allowed is {} to {}", i, factor, limits::min_rope_factor,
                                     limits::max_rope_factor));
  }
  return factors;
}

}  // namespace

RopeSpec read_rope(HyperParameters& parameters, RopeKind kind, std::int64_t head_dim, std::int64_t context_length) {
  RopeSpec rope;
  rope.kind = kind;
  rope.dims = static_cast<std::int32_t>(parameters.integer_or("rope.dimension_count", head_dim, 2, head_dim));
  if (rope.dims % 2 != 0)
    parameters.fail(parameters.contains("rope.dimension_count") ? "rope.dimension_count" : "attention.key_length",
                    fmt::format("found {} rotary dimensions, allowed is an even number", rope.dims));
  rope.freq_base = parameters.number_or("rope.freq_base", 10000.0, limits::min_freq_base, limits::max_freq_base);
  const bool has_factor = parameters.contains("rope.scaling.factor") || parameters.contains("rope.scale_linear");
  const char* factor_key = parameters.contains("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
  const double factor = parameters.number_or(factor_key, 1.0, limits::min_rope_factor, limits::max_rope_factor);
  rope.scaling = scaling_kind(parameters, has_factor);
  if (rope.scaling != RopeScaling::none) rope.factor = factor;
  rope.attention_factor =
      parameters.number_or("rope.scaling.attn_factor", 1.0, limits::min_attention_factor, limits::max_attention_factor);
  if (rope.scaling == RopeScaling::yarn) read_yarn(parameters, rope, context_length);
  const ModelFile& file = parameters.file();
  // Files of models with two sets of factors do not always say so in the type of their scaling.
  if (rope.scaling == RopeScaling::longrope || file.find("rope_factors_long.weight")) {
    rope.scaling = RopeScaling::longrope;
    rope.original_context =
        parameters.integer_or("rope.scaling.original_context_length", context_length, 1, limits::context);
    static_cast<void>(file.at("rope_factors_short.weight"));
    static_cast<void>(file.at("rope_factors_long.weight"));
    rope.factors = read_rope_factors(file, "rope_factors_short.weight", rope.dims / 2);
    rope.long_factors = read_rope_factors(file, "rope_factors_long.weight", rope.dims / 2);
    return rope;
  }
  rope.factors = read_rope_factors(file, "rope_freqs.weight", rope.dims / 2);
  if (!rope.factors.empty() && rope.scaling == RopeScaling::none) rope.scaling = RopeScaling::llama3;
  return rope;
}

std::int64_t read_layer_count(HyperParameters& parameters) {
  const std::int64_t layers = parameters.integer("block_count", 1, limits::layers);
  // Each layer has tensors of its own: this bounds what a false count can make us allocate.
  if (std::cmp_greater(layers, parameters.file().tensors().size()))
    parameters.fail("block_count", fmt::format("found {} layers, but the file has only {} tensors", layers,
                                               parameters.file().tensors().size()));
  for (const TensorInfo& tensor : parameters.file().tensors()) {
    constexpr std::string_view prefix = "blk.";
    if (!tensor.name.starts_with(prefix)) continue;
    std::int64_t index = 0;
    for (std::size_t i = prefix.size(); i < tensor.name.size() && index <= limits::layers; ++i) {
      const char c = tensor.name[i];
      if (c < '0' || c > '9') break;
      index = index * 10 + (c - '0');
    }
    if (index >= layers)
      parameters.file().fail(
          tensor, fmt::format("belongs to layer {}, but {} is {}", index, parameters.key("block_count"), layers));
  }
  return layers;
}

std::int64_t read_vocabulary_size(HyperParameters& parameters) {
  const Metadata& metadata = parameters.metadata();
  const TensorInfo& table = parameters.file().at("token_embd.weight");
  const std::int64_t rows = table.dims[1];
  if (rows > limits::vocabulary)
    parameters.file().fail(table, fmt::format("found {} rows, allowed is up to {}", rows, limits::vocabulary));
  if (const auto* tokens = metadata.find_strings("tokenizer.ggml.tokens");
      tokens && std::cmp_not_equal(tokens->size(), rows))
    metadata.fail("tokenizer.ggml.tokens",
                  fmt::format("found {} tokens, allowed is {}, the rows of token_embd.weight", tokens->size(), rows));
  const std::int64_t stated = parameters.integer_or("vocab_size", rows, 1, limits::vocabulary);
  if (stated != rows)
    parameters.fail("vocab_size", fmt::format("found {}, allowed is {}, the rows of token_embd.weight", stated, rows));
  for (const auto& entry : metadata.entries())
    if (entry.key.starts_with("tokenizer.ggml.") && entry.key.ends_with("_token_id"))
      static_cast<void>(metadata.get_i64(entry.key, 0, rows - 1));
  return rows;
}

}  // namespace skald::inline v0
