#include <skald/decoder/embed.hpp>

#include <cmath>
#include <string>

#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "decoder.embed";

}  // namespace

EmbedPlan embed_plan(const ModelSpec& spec, const EmbedOptions& options) {
  EmbedPlan plan;
  plan.pooling = options.pooling.value_or(spec.pooling == Pooling::none ? Pooling::mean : spec.pooling);
  if (plan.pooling == Pooling::none)
    throw UnsupportedError(where, "pooling 'none' gives no vector per text; ask Decoder::forward for hidden states");
  if (plan.pooling == Pooling::rank) {
    if (!spec.classifier)
      throw UnsupportedError(where, "pooling 'rank' needs a classifier (tensors cls.weight or cls.output.weight), and "
                                    "the model has none; there are mean, cls and last");
    plan.dims = spec.classifier->count();
    if (options.dims != 0 && options.dims != plan.dims)
      throw UsageError(where, "dims is " + std::to_string(options.dims) + ", but pooling 'rank' gives the " +
                                  std::to_string(plan.dims) + " logits of the classifier");
    return plan;
  }
  if (options.dims < 0 || options.dims > spec.dim)
    throw UsageError(where, "dims is " + std::to_string(options.dims) + ", allowed is 0 to " + std::to_string(spec.dim));
  plan.dims = options.dims == 0 ? spec.dim : options.dims;
  return plan;
}

void pool(std::span<const float> hidden, std::int64_t dim, const EmbedPlan& plan, bool normalize,
          std::span<float> out) {
  const auto width = static_cast<std::size_t>(dim);
  if (plan.pooling == Pooling::rank) throw UsageError(where, "pooling 'rank' needs the model");
  if (width == 0 || hidden.empty() || hidden.size() % width != 0 || out.size() > width)
    throw UsageError(where, "the hidden states are not rows of " + std::to_string(dim) + " elements");
  const std::size_t rows = hidden.size() / width;
  const std::size_t first = plan.pooling == Pooling::last ? rows - 1 : 0;
  const std::size_t count = plan.pooling == Pooling::mean ? rows : 1;
  double length = 0.0;
  for (std::size_t j = 0; j < out.size(); ++j) {
    double sum = 0.0;
    for (std::size_t i = first; i < first + count; ++i) sum += static_cast<double>(hidden[i * width + j]);
    if (!std::isfinite(sum))
      throw NumericError(where, "element " + std::to_string(j) + " of the hidden states is not finite");
    const double value = sum / static_cast<double>(count);
    length += value * value;
    out[j] = static_cast<float>(value);
  }
  if (!normalize || length == 0.0) return;
  const double scale = 1.0 / std::sqrt(length);
  for (float& value : out) value = static_cast<float>(static_cast<double>(value) * scale);
}

void pool(std::span<const float> hidden, const Model& model, const EmbedPlan& plan, bool normalize,
          std::span<float> out) {
  const auto dim = static_cast<std::size_t>(model.spec().dim);
  if (plan.pooling != Pooling::rank) return pool(hidden, model.spec().dim, plan, normalize, out);
  if (model.classifier() == nullptr || hidden.empty() || hidden.size() % dim != 0)
    throw UsageError(where, "there is no classifier, or the hidden states are not rows of " + std::to_string(dim) + " elements");
  // What has seen the whole text: any token of an encoder, of which the first is trained for it; else only the last.
  model.classifier()->apply(model.spec().causal() ? hidden.last(dim) : hidden.first(dim), out);
}

double similarity(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size())
    throw UsageError(where, "vectors of " + std::to_string(a.size()) + " and " + std::to_string(b.size()) + " elements");
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

}  // namespace skald::inline v0
