#include <skald/model/classifier.hpp>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/quant/row_codec.hpp>

#include "model/limits.hpp"
#include "model/loader.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "model.classifier";

/// Rows of a tensor that may be one row or one element per label.
std::int64_t rows_of(const TensorInfo& tensor, const ModelFile& file) {
  if (tensor.dims[2] != 1 || tensor.dims[3] != 1 || tensor.dims[1] > limits::dim)
    file.fail(tensor, fmt::format("found shape {}, allowed is a matrix of up to {} rows", tensor.shape(), limits::dim));
  return tensor.dims[1];
}

std::vector<float> multiplied(const std::vector<float>& matrix, const std::vector<float>& bias,
                              std::span<const float> x, std::int64_t rows) {
  std::vector<float> result(static_cast<std::size_t>(rows));
  for (std::size_t r = 0; r < result.size(); ++r) {
    double sum = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i)
      sum += static_cast<double>(matrix[r * x.size() + i]) * static_cast<double>(x[i]);
    if (!bias.empty()) sum += static_cast<double>(bias[r]);
    result[r] = static_cast<float>(sum);
  }
  return result;
}

}  // namespace

Classifier::Classifier(ClassifierSpec spec, std::int64_t dim, ClassifierWeights weights)
    : spec_(std::move(spec)), dim_(dim), weights_(std::move(weights)) {
  const auto check = [](std::string_view what, const std::vector<float>& values, std::int64_t size) {
    if (static_cast<std::int64_t>(values.size()) != size)
      throw UsageError(where, fmt::format("{} has {} elements, allowed are {}", what, values.size(), size));
  };
  check("the dense matrix", weights_.dense, spec_.dense * dim_);
  check("the dense bias", weights_.dense_bias, spec_.dense_bias ? spec_.dense : 0);
  check("the output matrix", weights_.output, spec_.output * (spec_.dense > 0 ? spec_.dense : dim_));
  check("the output bias", weights_.output_bias, spec_.output_bias ? spec_.output : 0);
}

void Classifier::apply(std::span<const float> state, std::span<float> logits) const {
  if (static_cast<std::int64_t>(state.size()) != dim_ || static_cast<std::int64_t>(logits.size()) != count())
    throw UsageError(where, fmt::format("found {} elements and {} logits, allowed are {} and {}", state.size(),
                                        logits.size(), dim_, count()));
  std::vector<float> x(state.begin(), state.end());
  if (spec_.dense > 0) {
    x = multiplied(weights_.dense, weights_.dense_bias, x, spec_.dense);
    for (float& value : x) value = static_cast<float>(std::tanh(static_cast<double>(value)));
  }
  if (spec_.output > 0) x = multiplied(weights_.output, weights_.output_bias, x, spec_.output);
  for (std::size_t i = 0; i < x.size(); ++i)
    if (!std::isfinite(x[i])) throw NumericError(where, fmt::format("logit {} is {}", i, x[i]));
  std::ranges::copy(x, logits.begin());
}

void read_classifier(HyperParameters& parameters, ModelSpec& spec) {
  const ModelFile& file = parameters.file();
  spec.pooling = static_cast<Pooling>(
      parameters.integer_or("pooling_type", static_cast<std::int64_t>(spec.pooling), 0, 4));
  const TensorInfo* dense = file.find("cls.weight");
  const TensorInfo* output = file.find("cls.output.weight");
  constexpr std::string_view key = "classifier.output_labels";
  if (!dense && !output) {
    static_cast<void>(parameters.contains(key));  // means nothing then
    return;
  }
  ClassifierSpec& classifier = spec.classifier.emplace();
  if (dense) classifier.dense = rows_of(*dense, file);
  if (output) classifier.output = rows_of(*output, file);
  classifier.dense_bias = dense && file.find("cls.bias");
  classifier.output_bias = output && file.find("cls.output.bias");
  if (!parameters.contains(key)) return;
  const StringArray& labels = parameters.metadata().get_strings(parameters.key(key));
  for (const std::string_view label : labels) classifier.labels.emplace_back(label);
  if (static_cast<std::int64_t>(classifier.labels.size()) != classifier.count())
    parameters.fail(key, fmt::format("found {} labels, but the classifier has {} outputs", classifier.labels.size(),
                                     classifier.count()));
}

void ModelLoader::load_classifier() {
  const auto& spec = impl_->spec.classifier;
  if (!spec) return;
  ClassifierWeights weights;
  for (const BoundTensor& each : bound_.used) {
    std::vector<float>* values = nullptr;
    switch (each.binding.role) {
      case Role::classifier_dense: values = &weights.dense; break;
      case Role::classifier_dense_bias: values = &weights.dense_bias; break;
      case Role::classifier_output: values = &weights.output; break;
      case Role::classifier_output_bias: values = &weights.output_bias; break;
      default: continue;
    }
    if (!is_matrix(each.binding.use)) {
      *values = read_vector(*file_, *each.tensor);
      continue;
    }
    const auto columns = static_cast<std::size_t>(each.tensor->columns());
    std::vector<std::byte> row(row_bytes(each.tensor->type, columns));
    values->resize(static_cast<std::size_t>(each.elements()));
    for (std::size_t r = 0; r * columns < values->size(); ++r) {
      throw_if_stopped(options_.stop, where);
      file_->read(*each.tensor, r * row.size(), row);
      decode_row(each.tensor->type, row, std::span(*values).subspan(r * columns, columns));
    }
    if (const auto bad = std::ranges::find_if(*values, [](float value) { return !std::isfinite(value); });
        bad != values->end())
      throw NumericError(where, fmt::format("element {} is {}, allowed is a finite number", bad - values->begin(), *bad),
                         {.file = file_->name(), .offset = each.tensor->offset, .tensor = each.tensor->name});
    impl_->info.vector_bytes += values->size() * sizeof(float);
  }
  impl_->classifier = std::make_shared<const Classifier>(*spec, impl_->spec.dim, std::move(weights));
}

}  // namespace skald::inline v0
