#include <skald/model/huggingface/directory.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <new>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <skald/core/error.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/safetensors/reader.hpp>

#include "model/huggingface/config.hpp"
#include "model/huggingface/families.hpp"
#include "model/huggingface/group_quantized.hpp"
#include "model/huggingface/row_order.hpp"
#include "model/huggingface/stored_formats.hpp"
#include "model/huggingface/text_files.hpp"
#include "model/limits.hpp"
#include "model/tensor_view.hpp"

namespace skald::inline v0 {

namespace {

namespace hf = huggingface;
namespace fs = std::filesystem;

constexpr std::string_view place = "model.huggingface";

std::string replaced(std::string_view text, std::string_view what, std::int64_t number) {
  std::string result(text);
  if (const auto at = result.find(what); at != std::string::npos)
    result.replace(at, what.size(), std::to_string(number));
  return result;
}

// The element types that GGUF files know; others can only be packed codes.
std::optional<DType> stored_type(SafetensorsType type) {
  switch (type) {
    case SafetensorsType::f32: return DType::f32;
    case SafetensorsType::f16: return DType::f16;
    case SafetensorsType::bf16: return DType::bf16;
    case SafetensorsType::f64: return DType::f64;
    case SafetensorsType::i8: return DType::i8;
    case SafetensorsType::i16: return DType::i16;
    case SafetensorsType::i32: return DType::i32;
    case SafetensorsType::i64: return DType::i64;
    default: return {};
  }
}

class FolderReader {
 public:
  FolderReader(const std::string& folder, const HuggingFaceOptions& options)
      : folder_(folder),
        config_file_((fs::path(folder) / "config.json").string()),
        root_(parse_config(folder, config_file_)),
        file_(open_safetensors(folder, {.map = options.map})) {}

  ModelFile run() && {
    const hf::Config whole(root_, config_file_);
    const std::string outer_type = whole.text_or({"model_type"}, "");
    // Models that also see or hear keep the language model's values in an object of their own.
    const hf::Config config = whole.object({"text_config"}).value_or(whole);
    classifies_ = names_a_classifier(whole);
    family_ = &find(whole, outer_type, config.text_or({"model_type"}, outer_type));
    auto reading = hf::read_config(config, family_->architecture, family_->model_type);
    metadata_ = std::move(reading.metadata);
    collect_views();
    if (const auto quantization = whole.object({"quantization_config"})) hf::unpack_stored_formats(*quantization, raw_, views_);
    if (!raw_.empty())
      throw UnsupportedError(place, fmt::format("weights of type {} are not implemented here", to_string(raw_.begin()->second.type)),
                             {.file = raw_.begin()->second.view.source.name(), .offset = raw_.begin()->second.view.offset,
                              .tensor = raw_.begin()->first});
    read_counts(config);
    for (const hf::Rule& rule : family_->rules) apply(rule);
    if (classifies_)
      for (const hf::Rule& rule : hf::classifier_rules()) apply(rule);
    for (auto& [name, values] : reading.tensors) add(from_values(name, std::move(values), config_file_));
    derive_width();
    tie_head(whole, config);
    add_rest();
    hf::add_text_files(folder_, whole, metadata_);
    if (classifies_) describe_classifier(whole);
    return {folder_, std::move(metadata_), std::move(infos_), std::move(sources_)};
  }

 private:
  /// A folder that is none of a model is a common mistake: the error says what is in it instead.
  static json::Value parse_config(const std::string& folder, const std::string& file) {
    std::error_code error;
    if (fs::exists(file, error)) return json::parse_file(file);
    std::vector<std::string> others;
    for (fs::directory_iterator at(folder, error), end; !error && at != end && others.size() < 8; at.increment(error))
      if (const std::string name = at->path().filename().string(); name.ends_with(".gguf")) others.push_back(printable(name, 80));
    std::ranges::sort(others);
    throw FormatError(place,
                      others.empty() ? std::string("the folder has no config.json, so it is not a Hugging Face model")
                                     : fmt::format("the folder has no config.json; give one of its GGUF files: {}",
                                                   fmt::join(others, ", ")),
                      {.file = folder});
  }

  static const hf::Family& find(const hf::Config& config, const std::string& outer, const std::string& inner) {
    for (const std::string& type : {inner, outer})
      if (const hf::Family* family = hf::find_family(type)) return *family;
    config.unsupported("model_type", fmt::format("'{}' is not implemented; known are {}", printable(outer, 60),
                                                 fmt::join(huggingface_model_types(), ", ")));
  }

  static bool names_a_classifier(const hf::Config& config) {
    const json::Value* names = config.find({"architectures"});
    return names && names->array() && std::ranges::any_of(*names->array(), [](const json::Value& each) {
             return each.text() && each.text()->ends_with("ForSequenceClassification");
           });
  }

  /// Pooling, and the names of the labels in the order of their numbers.
  void describe_classifier(const hf::Config& config) {
    const auto output = std::ranges::find(infos_, "cls.output.weight", &TensorInfo::name);
    if (output == infos_.end())
      config.fail("architectures", "a model for classification is named, but there is no tensor 'classifier.weight', "
                                   "'classifier.out_proj.weight' or 'score.weight'");
    metadata_.set(fmt::format("{}.pooling_type", family_->architecture), std::uint32_t{4});
    const json::Value* labels = config.find({"id2label"});
    if (!labels || !labels->object()) return;
    std::vector<std::string> names;
    for (std::int64_t i = 0; i < output->dims[1]; ++i) {
      const json::Value* label = labels->find(std::to_string(i));
      if (!label || !label->text()) return;
      names.push_back(*label->text());
    }
    if (labels->object()->size() == names.size())
      metadata_.set(fmt::format("{}.classifier.output_labels", family_->architecture), MetadataArray{StringArray(names)});
  }

  void collect_views() {
    for (const SafetensorsTensor& tensor : file_.tensors()) {
      std::string_view name = tensor.name;
      for (const std::string_view prefix : hf::prefixes)
        if (name.starts_with(prefix)) {
          name.remove_prefix(prefix.size());
          break;
        }
      if (hf::is_ignored(name, classifies_)) continue;
      if (tensor.shape.size() > 4 || tensor.elements() == 0) file_.fail(tensor, "found a shape that no weight has");
      auto type = stored_type(tensor.type);
      const bool raw = tensor.type == SafetensorsType::u8 || tensor.type == SafetensorsType::f8_e4m3;
      if (raw) type = DType::i8;  // what quantization_config says of it comes later
      if (!type)
        throw UnsupportedError(place, fmt::format("weights of type {} are not implemented", to_string(tensor.type)),
                               {.file = file_.sources()[tensor.source].name(), .offset = tensor.offset,
                                .tensor = tensor.name});
      TensorView view{std::string(name), *type, tensor.shape, file_.sources()[tensor.source], tensor.offset, tensor.bytes};
      if (view.shape.empty()) view.shape = {1};
      if (*type == DType::f64) view = as_f32(view.name, view);
      const std::string key(name);
      if (raw ? !raw_.emplace(key, hf::RawTensor{tensor.type, std::move(view)}).second
              : !views_.emplace(key, std::move(view)).second)
        file_.fail(tensor, fmt::format("two tensors are '{}' without prefix", printable(name, 80)));
    }
  }

  void read_counts(const hf::Config& config) {
    const auto key = [&](std::string_view name) { return fmt::format("{}.{}", family_->architecture, name); };
    layers_ = static_cast<std::int64_t>(metadata_.get_u64(key("block_count"), 1, limits::layers));
    if (std::cmp_greater(layers_, file_.tensors().size()))
      config.fail("num_hidden_layers",
                  fmt::format("found {} layers, but there are only {} tensors", layers_, file_.tensors().size()));
    heads_ = static_cast<std::int64_t>(metadata_.get_u64(key("attention.head_count"), 1, limits::heads));
    kv_heads_ = static_cast<std::int64_t>(
        metadata_.find_u64(key("attention.head_count_kv"), 1, limits::heads).value_or(static_cast<std::uint64_t>(heads_)));
    experts_ = static_cast<std::int64_t>(metadata_.find_u64(key("expert_count"), 0, limits::experts).value_or(0));
    if (heads_ % kv_heads_ != 0)
      config.fail("num_key_value_heads", fmt::format("{} query heads are not a multiple of {}", heads_, kv_heads_));
  }

  void apply(const hf::Rule& rule) {
    const std::int64_t count = rule.from.find("{}") == std::string_view::npos ? 1 : layers_;
    const bool exact = rule.to.ends_with(".weight") || rule.to.ends_with(".bias");
    for (std::int64_t layer = 0; layer < count; ++layer)
      for (const std::string_view suffix : {".weight", ".bias"}) {
        if (exact && suffix == ".bias") break;
        const std::string_view ending = exact ? "" : suffix;
        const std::string to = replaced(rule.to, "{}", layer) + std::string(ending);
        std::vector<TensorView> from = sources_of(rule, layer, ending);
        if (!from.empty()) add(formed(rule.form, to, std::move(from)));
      }
  }

  /// Tensors of a form that is a stack, else 0.
  [[nodiscard]] std::int64_t stack_size(hf::Form form) const noexcept {
    if (form == hf::Form::experts) return experts_;
    return form == hf::Form::query_heads ? heads_ : form == hf::Form::key_heads ? kv_heads_ : 0;
  }

  /// The tensors that a rule names; none if the first is not there. @throws FormatError if only some are.
  std::vector<TensorView> sources_of(const hf::Rule& rule, std::int64_t layer, std::string_view ending) {
    std::vector<std::string> names;
    std::string_view rest = rule.from;
    while (!rest.empty()) {
      const auto end = rest.find('+');
      std::string part(rest.substr(0, end));
      while (part.find("{}") != std::string::npos) part = replaced(part, "{}", layer);
      part += ending;
      if (const std::int64_t count = stack_size(rule.form); count > 0)
        for (std::int64_t e = 0; e < count; ++e) names.push_back(replaced(part, "{e}", e));
      else names.push_back(std::move(part));
      rest = end == std::string_view::npos ? "" : rest.substr(end + 1);
    }
    std::vector<TensorView> found;
    for (const std::string& name : names) {
      const auto at = views_.find(name);
      if (at != views_.end()) {
        found.push_back(at->second);
        used_.insert(name);
      } else if (!found.empty()) {
        throw FormatError(place, fmt::format("the tensor is missing, but '{}' is there", printable(names.front(), 80)),
                          {.file = file_.name(), .tensor = name, .layer = static_cast<int>(layer)});
      }
    }
    if (!found.empty() && found.size() != names.size())
      throw FormatError(place, "the tensor is missing, but others of its kind are there",
                        {.file = file_.name(), .tensor = names.front(), .layer = static_cast<int>(layer)});
    for (const TensorView& each : found)
      if (each.type != found[0].type || each.shape.size() != found[0].shape.size() || each.columns_or_one() != found[0].columns_or_one() ||
          (stack_size(rule.form) > 0 && each.shape != found[0].shape))
        refuse(each, fmt::format("type or shape differ from those of '{}'", printable(found[0].name, 80)));
    return found;
  }

  [[noreturn]] static void refuse(const TensorView& tensor, std::string_view message) {
    throw FormatError(place, message, {.file = tensor.source.name(), .offset = tensor.offset, .tensor = tensor.name});
  }

  [[nodiscard]] TensorView formed(hf::Form form, std::string name, std::vector<TensorView> from) {
    using enum hf::Form;
    const TensorView first = from.front();
    const std::int64_t rows = first.shape.size() == 1 ? first.shape[0] : first.rows();
    switch (form) {
      case as_is: return renamed(std::move(name), first);
      case plus_one: return as_f32(std::move(name), first, 1.0F);
      case flat: {
        TensorView view = renamed(std::move(name), first);
        view.shape = {first.rows() * first.columns()};
        return view;
      }
      case transpose:
        if (first.shape.size() == 1) return renamed(std::move(name), first);
        if (first.shape.size() != 2 || dtype_info(first.type).quantized) refuse(first, "found a shape that is no matrix");
        return transposed(std::move(name), first);
      case rotary_q:
      case rotary_k:
      case head_qkv:
      case group_qkv: return gather_rows(std::move(name), from, moved_rows(first, rows, form), first.shape);
      case concat: return below(std::move(name), std::move(from));
      case experts:
      case query_heads:
      case key_heads: return stacked(std::move(name), std::move(from), form == experts ? 2 : 1);
      case stack_first:
      case stack_second: return stack_half(std::move(name), first, form == stack_second);
      case after_padding: {
        const auto first_row = metadata_.get_i64("tokenizer.ggml.padding_token_id") + 1;
        if (first.shape.size() != 2 || rows <= first_row)
          refuse(first, fmt::format("{} rows are no more than the {} of the padding token", rows, first_row));
        return gather_rows(std::move(name), from, {{0, first_row, rows - first_row}}, {rows - first_row, first.columns()});
      }
      case halves_first:
      case halves_second: {
        if (first.shape.size() != 2 || rows % 2 != 0) refuse(first, "found a shape that has no halves");
        return gather_rows(std::move(name), from, {{0, form == halves_second ? rows / 2 : 0, rows / 2}},
                           {rows / 2, first.columns()});
      }
      case even_rows:
      case odd_rows: return alternate_rows(std::move(name), first, form == odd_rows);
      case even_elements:
      case odd_elements: return alternate_elements(std::move(name), first, form == odd_elements);
      case stack_back:
        if (first.shape.size() != 3) refuse(first, "found a shape that is no stack");
        if (dtype_info(first.type).quantized) return renamed(std::move(name), first);
        return transposed_stack(std::move(name), first);
    }
    return first;
  }

  static TensorView transposed_stack(std::string name, const TensorView& tensor) {
    std::vector<TensorView> matrices;
    const auto count = static_cast<std::uint64_t>(tensor.shape[0]);
    for (std::uint64_t e = 0; e < count; ++e) {
      TensorView matrix = tensor;
      matrix.shape = {tensor.shape[1], tensor.shape[2]};
      matrix.bytes = tensor.bytes / count;
      matrix.offset = tensor.offset + e * matrix.bytes;
      matrices.push_back(transposed(tensor.name, std::move(matrix)));
    }
    return stacked(std::move(name), std::move(matrices), 2);
  }
  static TensorView alternate_rows(std::string name, const TensorView& tensor, bool odd) {
    if (tensor.shape.size() != 3) refuse(tensor, "found a shape that is no stack");
    const TensorView rows = dtype_info(tensor.type).quantized ? tensor : transposed_stack(tensor.name, tensor);
    if (rows.shape[1] % 2 != 0) refuse(tensor, "found an odd number of rows");
    return every_second_row(std::move(name), rows, odd, {rows.shape[0], rows.shape[1] / 2, rows.shape[2]});
  }
  static TensorView alternate_elements(std::string name, TensorView tensor, bool odd) {
    if (tensor.shape.size() != 2 || tensor.shape[1] % 2 != 0 || dtype_info(tensor.type).quantized)
      refuse(tensor, "found a shape that has no even number of columns");
    const std::vector<std::int64_t> shape{tensor.shape[0], tensor.shape[1] / 2};
    tensor.shape = {tensor.shape[0] * tensor.shape[1], 1};
    return every_second_row(std::move(name), std::move(tensor), odd, shape);
  }

  static TensorView renamed(std::string name, TensorView view) {
    view.name = std::move(name);
    return view;
  }
  /// The rows of a matrix or the elements of a vector in the order of GGUF files, neighbours together.
  [[nodiscard]] std::vector<RowRun> moved_rows(const TensorView& tensor, std::int64_t rows, hf::Form form) const {
    std::vector<std::int32_t> order;
    if (tensor.shape.size() <= 2) order = hf::row_order(form, rows, heads_, kv_heads_);
    if (order.empty()) refuse(tensor, fmt::format("{} rows are not {} query and {} key heads", rows, heads_, kv_heads_));
    std::vector<RowRun> runs;
    for (const std::int64_t row : order) {
      if (!runs.empty() && runs.back().first + runs.back().count == row) ++runs.back().count;
      else runs.push_back({0, row, 1});
    }
    return runs;
  }
  static TensorView below(std::string name, std::vector<TensorView> from) {
    std::vector<RowRun> runs;
    std::vector<std::int64_t> shape = from.front().shape;
    shape[0] = 0;
    for (std::size_t i = 0; i < from.size(); ++i) {
      runs.push_back({i, 0, from[i].shape[0]});
      shape[0] += from[i].shape[0];
    }
    return gather_rows(std::move(name), std::move(from), runs, std::move(shape));
  }
  static TensorView stacked(std::string name, std::vector<TensorView> from, std::size_t rank) {
    if (from.front().shape.size() != rank) refuse(from.front(), rank == 2 ? "found a shape that is no matrix" : "found a shape that is no vector");
    std::vector<std::int64_t> shape = from.front().shape;
    shape.insert(shape.begin(), static_cast<std::int64_t>(from.size()));
    std::vector<RowRun> runs;
    for (std::size_t i = 0; i < from.size(); ++i) runs.push_back({i, 0, from[i].shape[0]});
    return gather_rows(std::move(name), std::move(from), runs, std::move(shape));
  }
  static TensorView stack_half(std::string name, const TensorView& tensor, bool second) {
    if (tensor.shape.size() != 3 || tensor.shape[1] % 2 != 0) refuse(tensor, "found a shape that is no stack of halves");
    const std::int64_t half = tensor.shape[1] / 2;
    std::vector<RowRun> runs;
    for (std::int64_t e = 0; e < tensor.shape[0]; ++e)
      runs.push_back({0, e * 2 * half + (second ? half : 0), half});
    return gather_rows(std::move(name), {tensor}, runs, {tensor.shape[0], half, tensor.shape[2]});
  }

  void add(const TensorView& view) {
    if (!names_.insert(view.name).second) refuse(view, "two tensors of the folder have this meaning");
    infos_.push_back(add_view(view, sources_));
  }

  /// Some configurations leave the width of the feed-forward network out.
  void derive_width() {
    const std::string key = fmt::format("{}.feed_forward_length", family_->architecture);
    const auto up = std::ranges::find(infos_, "blk.0.ffn_up.weight", &TensorInfo::name);
    if (!metadata_.contains(key) && up != infos_.end() && up->dims[1] <= limits::ffn_width)
      metadata_.set(key, static_cast<std::uint32_t>(up->dims[1]));
  }

  void tie_head(const hf::Config& whole, const hf::Config& config) {
    const bool tied =
        config.flag_or({"tie_word_embeddings"}, whole.flag_or({"tie_word_embeddings"}, family_->tied_by_default));
    if (!tied) return;
    std::erase_if(infos_, [](const TensorInfo& tensor) { return tensor.name == "output.weight"; });
  }

  /// What no rule asked for stays visible under its own name.
  void add_rest() {
    for (const auto& [name, view] : views_)
      if (!used_.contains(name) && !names_.contains(name)) add(view);
  }

  std::string folder_;
  std::string config_file_;
  json::Value root_;
  SafetensorsFile file_;
  const hf::Family* family_ = nullptr;
  Metadata metadata_;
  hf::Views views_;
  hf::RawTensors raw_;
  std::set<std::string, std::less<>> used_;
  std::set<std::string, std::less<>> names_;
  std::vector<TensorInfo> infos_;
  std::vector<AnyByteSource> sources_;
  bool classifies_ = false;
  std::int64_t layers_ = 0;
  std::int64_t heads_ = 0;
  std::int64_t kv_heads_ = 0;
  std::int64_t experts_ = 0;
};

}  // namespace

ModelFile open_huggingface(const std::string& folder, const HuggingFaceOptions& options) {
  try {
    return FolderReader(folder, options).run();
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError(place, "the allocator has no memory left", {.file = folder});
  }
}

std::vector<std::string> huggingface_model_types() {
  std::vector<std::string> types;
  for (const hf::Family& family : hf::families()) types.emplace_back(family.model_type);
  return types;
}

ModelFile open_model(const std::string& path, bool map) {
  std::error_code error;
  if (fs::is_directory(path, error)) return open_huggingface(path, {.map = map});
  return open_gguf(path, {.map = map});
}

}  // namespace skald::inline v0
