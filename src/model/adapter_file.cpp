// Reading adapters: PEFT folders and GGUF files.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/model/adapter.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/safetensors/reader.hpp>
#include <skald/model/tensor_forms.hpp>
#include <skald/quant/row_codec.hpp>

#include "model/huggingface/config.hpp"
#include "model/huggingface/families.hpp"
#include "model/huggingface/row_order.hpp"

namespace skald::inline v0 {

namespace {

namespace hf = huggingface;
namespace fs = std::filesystem;
constexpr std::string_view place = "model.adapter";
constexpr std::int64_t most_rank = 1 << 16;
constexpr std::int64_t most_extent = 1 << 22;  // of a Kronecker product, whose factors say nothing of its size

/// What the names and orders of rows follow from.
struct Base {
  std::string architecture;
  std::vector<std::int64_t> heads;  // of each layer, or one number for all
  std::vector<std::int64_t> kv_heads;
  explicit Base(const Metadata& model) : architecture(model.get_string("general.architecture")) {
    heads = counts(model, architecture + ".attention.head_count");
    kv_heads = counts(model, architecture + ".attention.head_count_kv");
  }

 private:
  static std::vector<std::int64_t> counts(const Metadata& model, const std::string& key) {
    const Metadata::Entry* entry = model.find(key);
    if (!entry) return {};
    if (!std::holds_alternative<MetadataArray>(entry->value))
      return {static_cast<std::int64_t>(model.find_u64(key, 0, 1 << 20).value_or(0))};
    std::vector<std::int64_t> list;
    if (const auto own = model.find_array<std::int64_t>(key)) list = *own;
    return list;
  }
};

/// Heads of one layer.
struct Heads {
  std::int64_t query = 1;
  std::int64_t key = 1;
  Heads(const Base& base, std::size_t layer) {
    const auto of = [&](const std::vector<std::int64_t>& list, std::int64_t otherwise) {
      const std::int64_t found = list.empty() ? 0 : list.size() == 1 ? list[0] : layer < list.size() ? list[layer] : 0;
      return found > 0 && found <= 1 << 20 ? found : otherwise;
    };
    query = of(base.heads, 1);
    key = of(base.kv_heads, query);
  }
};

struct Target {
  std::string tensor;
  hf::Form form = hf::Form::as_is;
  std::size_t layer = 0;
};

/// The matrix that a PEFT module name means.
Target find_target(std::string_view module, const Base& base, const std::string& file) {
  std::string_view name = module;
  for (const std::string_view prefix : {"base_model.model.", "base_model."})
    if (name.starts_with(prefix)) {
      name.remove_prefix(prefix.size());
      break;
    }
  for (const std::string_view prefix : hf::prefixes)
    if (name.starts_with(prefix)) {
      name.remove_prefix(prefix.size());
      break;
    }
  // The first number is the layer.
  std::string pattern;
  std::string layer;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const bool begins = i > 0 && name[i - 1] == '.' && name[i] >= '0' && name[i] <= '9' && layer.empty();
    if (!begins) {
      pattern += name[i];
      continue;
    }
    while (i < name.size() && name[i] >= '0' && name[i] <= '9') layer += name[i++];
    --i;
    pattern += "{}";
  }
  for (const hf::Family& family : hf::families()) {
    if (family.architecture != base.architecture) continue;
    for (const hf::Rule& rule : family.rules) {
      if (rule.from != pattern || layer.empty() || layer.size() > 6) continue;
      std::string tensor(rule.to);
      tensor.replace(tensor.find("{}"), 2, layer);
      return {tensor + ".weight", rule.form};
    }
  }
  throw UnsupportedError(
      place, fmt::format("adapters of '{}' are not implemented for {}", printable(module, 120), base.architecture),
      {.file = file, .tensor = std::string(module)});
}

void permute_rows(std::vector<float>& matrix, const std::vector<std::int32_t>& order, std::size_t columns) {
  std::vector<float> moved(matrix.size());
  for (std::size_t i = 0; i < order.size(); ++i)
    std::copy_n(matrix.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(order[i]) * columns), columns,
                moved.begin() + static_cast<std::ptrdiff_t>(i * columns));
  matrix = std::move(moved);
}

// One PEFT folder.
class PeftReader {
 public:
  PeftReader(const std::string& folder, const Metadata& model)
      : folder_(folder),
        base_(model),
        config_file_((fs::path(folder) / "adapter_config.json").string()),
        root_(json::parse_file(config_file_)),
        config_(root_, config_file_),
        file_(open_safetensors((fs::path(folder) / "adapter_model.safetensors").string(), {.map = false})) {}

  AdapterFile run() && {
    check_kind();
    std::map<std::string, std::map<std::string, const SafetensorsTensor*>> modules;
    for (const SafetensorsTensor& tensor : file_.tensors()) {
      bool known = false;
      for (const std::string_view part : {".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".lokr_w1", ".lokr_w2",
                                          ".kron_A", ".kron_B", ".paca_columns", ".paca_delta"}) {
        if (!tensor.name.ends_with(part)) continue;
        modules[tensor.name.substr(0, tensor.name.size() - part.size())][std::string(part)] = &tensor;
        known = true;
      }
      if (!known)
        throw UnsupportedError(place, "this part of an adapter is not implemented",
                               {.file = file_.name(), .offset = tensor.offset, .tensor = tensor.name});
    }
    AdapterFile result{folder_, {}};
    for (const auto& [module, parts] : modules) result.deltas.push_back(read_module(module, parts));
    if (result.deltas.empty()) throw FormatError(place, "the adapter has no factors", {.file = file_.name()});
    return result;
  }

 private:
  using Parts = std::map<std::string, const SafetensorsTensor*>;

  void check_kind() const {
    if (!root_.object()) throw FormatError(place, "it is no JSON object", {.file = config_file_});
    const std::string kind = config_.text_or({"peft_type"}, "LORA");
    for (const char* known : {"LORA", "LOKR", "SOKA", "PACA"})
      if (kind == known) {
        if (config_.flag_or({"use_dora"}, false) && kind != "LORA")
          config_.unsupported("use_dora", "only false is implemented for this peft_type");
        if (config_.text_or({"bias"}, "none") != "none") config_.unsupported("bias", "only 'none' is implemented");
        return check_options();
      }
    config_.unsupported(
        "peft_type", fmt::format("'{}' is not implemented; known are LORA, LOKR, SOKA and PACA", printable(kind, 40)));
  }

  /// Options under which the factors alone do not say what changes.
  void check_options() const {
    for (const std::string_view list : {"modules_to_save", "layer_replication", "trainable_token_indices",
                                        "target_parameters", "alora_invocation_tokens"})
      if (const auto* value = config_.find({list}); value && !((value->array() && value->array()->empty()) ||
                                                               (value->object() && value->object()->empty())))
        config_.unsupported(list, "only an empty value is implemented");
    for (const std::string_view flag : {"lora_bias", "use_qalora", "use_bdlora"})
      if (config_.flag_or({flag}, false)) config_.unsupported(flag, "only false is implemented");
    // These begin from base weights that they have changed.
    if (const auto* begin = config_.find({"init_lora_weights"}); begin && begin->text())
      for (const std::string_view changed : {"pissa", "olora", "corda", "loftq"})
        if (begin->text()->starts_with(changed))
          config_.unsupported("init_lora_weights",
                              fmt::format("'{}' changes the base weights; only adapters to the original ones are implemented",
                                          printable(*begin->text(), 40)));
  }

  const SafetensorsTensor& part(const Parts& parts, const std::string& module, const std::string& name) const {
    if (const auto at = parts.find(name); at != parts.end()) return *at->second;
    throw FormatError(place, "this factor is missing, but the other one is there",
                      {.file = file_.name(), .tensor = module + name});
  }

  /// A pattern's key is the end of a module's name.
  [[nodiscard]] std::optional<double> pattern(std::string_view name, std::string_view module) const {
    const auto table = config_.find({name});
    if (!table || !table->object()) return {};
    for (const json::Member& member : *table->object())
      if (module == member.key || module.ends_with("." + member.key)) return member.value.number();
    return {};
  }

  /// alpha over rank, as PEFT scales.
  [[nodiscard]] float scale(std::string_view module, double rank) const {
    double alpha = config_.number_or({"lora_alpha", "alpha"}, rank);
    if (const auto own = pattern("alpha_pattern", module)) alpha = *own;
    const double divisor = config_.flag_or({"use_rslora"}, false) ? std::sqrt(rank) : rank;
    return finite("lora_alpha", alpha / divisor);
  }

  [[nodiscard]] float finite(std::string_view key, double scale) const {
    if (!(std::abs(scale) <= 1e30)) config_.fail(key, "the scale is not finite or too large");
    return static_cast<float>(scale);
  }

  [[nodiscard]] std::vector<float> values(const SafetensorsTensor& tensor) const {
    auto result = file_.read_floats(tensor);
    if (!std::ranges::all_of(result, [](float value) { return std::isfinite(value); }))
      throw NumericError(place, "a value is not finite", {.file = file_.name(), .tensor = tensor.name});
    return result;
  }

  AdapterDelta read_module(const std::string& module, const Parts& parts) {
    const Target target = find_target(module, base_, file_.name());
    AdapterDelta delta;
    delta.tensor = target.tensor;
    if (parts.contains(".lora_A.weight") || parts.contains(".lora_B.weight")) low_rank(delta, module, parts);
    else if (parts.contains(".paca_columns") || parts.contains(".paca_delta")) columns(delta, module, parts);
    else kronecker(delta, module, parts);
    order_rows(delta, target, module);
    return delta;
  }

  void low_rank(AdapterDelta& delta, const std::string& module, const Parts& parts) {
    const auto& a = part(parts, module, ".lora_A.weight");
    const auto& b = part(parts, module, ".lora_B.weight");
    if (a.shape.size() != 2 || b.shape.size() != 2 || a.shape[0] != b.shape[1] || a.shape[0] < 1 ||
        a.shape[0] > most_rank)
      file_.fail(b, "the shapes of the two factors are not [rank, inputs] and [outputs, rank]");
    delta.rank = static_cast<std::int32_t>(a.shape[0]);
    delta.inputs = a.shape[1];
    delta.outputs = b.shape[0];
    delta.scale = scale(module, static_cast<double>(delta.rank));
    delta.first = values(a);
    delta.second = values(b);
    const bool magnitudes = config_.flag_or({"use_dora"}, false);
    if (!magnitudes && parts.contains(".lora_magnitude_vector"))
      file_.fail(*parts.at(".lora_magnitude_vector"), "there are magnitudes, but use_dora is not true");
    if (!magnitudes) return;
    const auto& lengths = part(parts, module, ".lora_magnitude_vector");
    if (static_cast<std::int64_t>(lengths.elements()) != delta.outputs)
      file_.fail(lengths, fmt::format("found {} magnitudes of {} outputs", lengths.elements(), delta.outputs));
    delta.magnitude = values(lengths);
  }
  void columns(AdapterDelta& delta, const std::string& module, const Parts& parts) {
    const auto& numbers = part(parts, module, ".paca_columns");
    const auto& changed = part(parts, module, ".paca_delta");
    if (numbers.type != SafetensorsType::i32 || numbers.shape.size() != 1 || changed.shape.size() != 2 ||
        numbers.shape[0] != changed.shape[1] || numbers.shape[0] < 1 || numbers.shape[0] > most_rank)
      file_.fail(changed, "the shapes are not [columns] of I32 and [outputs, columns]");
    delta.kind = DeltaKind::columns;
    delta.rank = static_cast<std::int32_t>(numbers.shape[0]);
    delta.outputs = changed.shape[0];
    delta.inputs = 0;  // as many as the matrix has
    delta.columns.resize(static_cast<std::size_t>(delta.rank));
    file_.read(numbers, 0, std::as_writable_bytes(std::span(delta.columns)));
    delta.second = values(changed);
  }
  void kronecker(AdapterDelta& delta, const std::string& module, const Parts& parts) {
    const bool lokr = parts.contains(".lokr_w1") || parts.contains(".lokr_w2");
    const auto& a = part(parts, module, lokr ? ".lokr_w1" : ".kron_A");
    const auto& b = part(parts, module, lokr ? ".lokr_w2" : ".kron_B");
    const std::size_t rank = lokr ? 2 : 3;
    if (a.shape.size() != rank || b.shape.size() != rank || (!lokr && a.shape[0] != b.shape[0]))
      file_.fail(b, "the shapes of the two factors are not those of Kronecker products");
    for (const auto* shape : {&a.shape, &b.shape})
      for (const std::int64_t extent : *shape)
        if (extent < 1 || extent > most_rank) file_.fail(b, "an extent is out of range");
    delta.kind = DeltaKind::kronecker;
    delta.rank = static_cast<std::int32_t>(lokr ? 1 : a.shape[0]);
    delta.a_rows = static_cast<std::int32_t>(a.shape[rank - 2]);
    delta.a_cols = static_cast<std::int32_t>(a.shape[rank - 1]);
    delta.b_rows = static_cast<std::int32_t>(b.shape[rank - 2]);
    delta.b_cols = static_cast<std::int32_t>(b.shape[rank - 1]);
    delta.outputs = std::int64_t{delta.a_rows} * delta.b_rows;
    delta.inputs = std::int64_t{delta.a_cols} * delta.b_cols;
    if (delta.outputs > most_extent || delta.inputs > most_extent) file_.fail(b, "the product is too large");
    delta.scale = finite("scale", config_.number_or({"scale"}, scale(module, config_.number_or({"r"}, 1.0))));
    delta.first = values(a);
    delta.second = values(b);
  }

  void order_rows(AdapterDelta& delta, const Target& target, const std::string& module) {
    using enum hf::Form;
    if (target.form == as_is || target.form == transpose) return;
    if (target.form != rotary_q && target.form != rotary_k && target.form != head_qkv && target.form != group_qkv)
      throw IncompatibleError(place, fmt::format("an adapter cannot change '{}'", printable(module, 120)),
                             {.file = file_.name(), .tensor = module});
    const Heads heads(base_, target.layer);
    auto order = hf::row_order(target.form, delta.outputs, heads.query, heads.key);
    if (static_cast<std::int64_t>(order.size()) != delta.outputs)
      throw FormatError(place, fmt::format("{} outputs are not whole heads", delta.outputs),
                        {.file = file_.name(), .tensor = module});
    if (delta.kind == DeltaKind::kronecker) delta.rows = std::move(order);
    else permute_rows(delta.second, order, static_cast<std::size_t>(delta.rank));
    if (!delta.magnitude.empty()) permute_rows(delta.magnitude, order, 1);
  }

  std::string folder_;
  Base base_;
  std::string config_file_;
  json::Value root_;
  hf::Config config_;
  SafetensorsFile file_;
};

std::vector<float> tensor_values(const ModelFile& file, const TensorInfo& tensor) {
  std::vector<float> result(static_cast<std::size_t>(tensor.elements()));
  const auto columns = static_cast<std::size_t>(tensor.columns());
  std::vector<std::byte> row(row_bytes(tensor.type, columns));
  for (std::size_t r = 0; r < static_cast<std::size_t>(tensor.rows()); ++r) {
    file.read(tensor, r * row.size(), row);
    decode_row(tensor.type, row, std::span(result).subspan(r * columns, columns));
  }
  if (!std::ranges::all_of(result, [](float value) { return std::isfinite(value); }))
    file.fail(tensor, "a value is not finite");
  return result;
}

AdapterFile read_gguf_adapter(const std::string& path, const Metadata& model) {
  const ModelFile file = in_usual_forms(open_gguf(path, {.map = false}));
  const Metadata& metadata = file.metadata();
  const auto* type = metadata.find_string("general.type");
  if (!type || *type != "adapter")
    throw FormatError(place, "general.type is not 'adapter'", {.file = path, .key = "general.type"});
  const std::string& kind = metadata.get_string("adapter.type");
  if (kind != "lora")
    throw UnsupportedError(place,
                           fmt::format("adapters of type '{}' are not implemented; known is lora", printable(kind, 40)),
                           {.file = path, .key = "adapter.type"});
  const std::string& architecture = metadata.get_string("general.architecture");
  if (architecture != model.get_string("general.architecture"))
    throw IncompatibleError(place,
                            fmt::format("the adapter is for '{}', the model is '{}'", printable(architecture, 40),
                                        model.get_string("general.architecture")),
                            {.file = path, .key = "general.architecture"});
  const double alpha = metadata.get_f64("adapter.lora.alpha");
  AdapterFile result{path, {}};
  for (const TensorInfo& a : file.tensors()) {
    constexpr std::string_view ending = ".lora_a";
    if (a.name.ends_with(".lora_b")) {
      if (!file.find(a.name.substr(0, a.name.size() - 1) + "a")) file.fail(a, "the other factor is missing");
      continue;
    }
    if (!a.name.ends_with(ending)) file.fail(a, "allowed are names that end in .lora_a or .lora_b");
    const TensorInfo* b = file.find(a.name.substr(0, a.name.size() - 1) + "b");
    if (!b) file.fail(a, "the other factor is missing");
    if (a.dims[2] != 1 || b->dims[2] != 1 || a.dims[1] != b->dims[0] || a.dims[1] > most_rank ||
        a.dims[3] != 1 || b->dims[3] != 1)
      file.fail(a, fmt::format("the factors' shapes {} and {} are not [inputs, rank] and [rank, outputs]", a.shape(),
                               b->shape()));
    AdapterDelta delta;
    delta.tensor = a.name.substr(0, a.name.size() - ending.size());
    delta.rank = static_cast<std::int32_t>(a.dims[1]);
    delta.inputs = a.dims[0];
    delta.outputs = b->dims[1];
    const double scale = alpha == 0.0 ? 1.0 : alpha / static_cast<double>(delta.rank);
    if (!(std::abs(scale) <= 1e30)) file.fail(a, "adapter.lora.alpha gives a scale that is not finite or too large");
    delta.scale = static_cast<float>(scale);
    delta.first = tensor_values(file, a);
    delta.second = tensor_values(file, *b);
    result.deltas.push_back(std::move(delta));
  }
  if (result.deltas.empty()) throw FormatError(place, "the adapter has no factors", {.file = path});
  return result;
}

}  // namespace

AdapterFile read_adapter(const std::string& path, const Metadata& model) {
  std::error_code error;
  if (fs::is_directory(path, error)) return PeftReader(path, model).run();
  return read_gguf_adapter(path, model);
}

bool is_adapter(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return fs::exists(fs::path(path) / "adapter_config.json", error);
  const ModelFile file = open_gguf(path, {.map = false});
  const auto* entry = file.metadata().find("general.type");
  const auto* type = entry ? std::get_if<std::string>(&entry->value) : nullptr;
  return type && *type == "adapter";
}

void AdapterDelta::change_row(std::int64_t output, float factor, std::span<float> out) const {
  add_row(output, factor, out);
  if (magnitude.empty()) return;
  double squares = 0;
  for (const float value : out) squares += static_cast<double>(value) * static_cast<double>(value);
  if (squares == 0) return;  // a row without direction stays
  const double stretch = static_cast<double>(magnitude[static_cast<std::size_t>(output)]) / std::sqrt(squares);
  for (float& value : out) value = static_cast<float>(static_cast<double>(value) * stretch);
}

void AdapterDelta::add_row(std::int64_t output, float factor, std::span<float> out) const {
  const float f = factor * scale;
  const auto o = static_cast<std::size_t>(output);
  if (kind == DeltaKind::low_rank) {
    for (std::size_t k = 0; k < static_cast<std::size_t>(rank); ++k) {
      const float weight = f * second[o * static_cast<std::size_t>(rank) + k];
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += weight * first[k * out.size() + i];
    }
  } else if (kind == DeltaKind::columns) {
    for (std::size_t k = 0; k < columns.size(); ++k)
      out[static_cast<std::size_t>(columns[k])] += f * second[o * columns.size() + k];
  } else {
    const auto row = rows.empty() ? o : static_cast<std::size_t>(rows[o]);
    const auto ar = static_cast<std::size_t>(a_rows), ac = static_cast<std::size_t>(a_cols);
    const auto br = static_cast<std::size_t>(b_rows), bc = static_cast<std::size_t>(b_cols);
    for (std::size_t t = 0; t < static_cast<std::size_t>(rank); ++t)
      for (std::size_t q = 0; q < ac; ++q)
        for (std::size_t n = 0; n < bc; ++n)
          out[q * bc + n] += f * first[(t * ar + row / br) * ac + q] * second[(t * br + row % br) * bc + n];
  }
}

}  // namespace skald::inline v0
