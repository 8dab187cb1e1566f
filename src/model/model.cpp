#include <skald/model/model.hpp>

#include <algorithm>
#include <new>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/huggingface/directory.hpp>
#include <skald/model/quantize.hpp>
#include <skald/model/tensor_forms.hpp>

#include "model/fingerprint.hpp"
#include "model/loader.hpp"

namespace skald::inline v0 {

namespace {

// A failed allocation becomes an error that names the file; by then the memory of the load is free again.
template <class Load>
Model load_or_out_of_memory(const std::string& file, const Load& load) {
  try {
    return load();
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError("model.load", "the allocator has no memory left", {.file = file});
  }
}

}  // namespace

Model Model::load(const std::string& path, const LoadOptions& options) {
  throw_if_stopped(options.stop, "model.load");
  return load_or_out_of_memory(path, [&] {
    // Packed weights are copied anyway: positioned reads cost no more than a mapping, leave no pages of the file in
    // the process, and survive a file that shrinks.
    return load(open_model(path, options.map && options.layout == WeightLayout::rows), options);
  });
}

Model Model::load(AnyByteSource source, const LoadOptions& options) {
  throw_if_stopped(options.stop, "model.load");
  const std::string name = source.name();
  return load_or_out_of_memory(name, [&] { return load(read_gguf(std::move(source)), options); });
}

Model Model::load(ModelFile file, const LoadOptions& options) {
  const std::string name = file.name();
  return load_or_out_of_memory(name, [&] {
    if (has_rare_forms(file)) file = in_usual_forms(file);
    if (!options.quantize.empty()) file = quantized(file, options.quantize);
    return ModelLoader(std::move(file), options).run();
  });
}

Model Model::nested(std::span<const float> fractions) const {
  auto impl = std::make_shared<Impl>(*impl_);
  take_nested_ffn(impl->spec, fractions);
  for (std::int32_t layer = 0; layer < impl->spec.layer_count(); ++layer) {
    const auto& ffn = impl->spec.layers[static_cast<std::size_t>(layer)].ffn;
    const auto& before = impl_->spec.layers[static_cast<std::size_t>(layer)].ffn;
    if (!ffn || ffn->width == before->width) continue;
    for (const Role role : {Role::ffn_gate, Role::ffn_up, Role::ffn_down}) {
      const Weight*& place = impl->weight_table[impl->slot(role, layer)];
      if (place == nullptr) continue;
      const auto owner = std::ranges::find(impl->weights, place, &std::shared_ptr<const Weight>::get);
      const ErrorContext context{.file = impl->info.file, .layer = layer};
      const bool down = role == Role::ffn_down;
      if (down && ffn->width % dtype_info(place->type()).block_elements != 0)
        throw UsageError("model.nested", fmt::format("the width is {}, allowed is a multiple of the {} elements of a {} block",
                                                     ffn->width, dtype_info(place->type()).block_elements,
                                                     to_string(place->type())), context);
      std::shared_ptr<const Weight> part;
      if (owner != impl->weights.end())
        part = impl->backend->narrow_weight(*owner, down ? place->rows() : ffn->width, down ? ffn->width : place->cols());
      if (!part)
        throw UnsupportedError("model.nested", fmt::format("the {} backend cannot share parts of weights; use "
                                                           "LoadOptions::ffn_fraction", impl->backend->info().name), context);
      const std::uint64_t elements = static_cast<std::uint64_t>(place->rows() * place->cols());
      impl->info.parameters -= elements - static_cast<std::uint64_t>(part->rows() * part->cols());
      place = part.get();
      impl->weights.push_back(std::move(part));
    }
  }
  Fingerprint fingerprint;
  fingerprint.add(to_json(impl->spec));
  for (const std::uint64_t word : impl_->fingerprint) fingerprint.add(word);
  impl->fingerprint = fingerprint.value();
  return Model(std::move(impl));
}

const ModelSpec& Model::spec() const noexcept { return impl_->spec; }
const AnyBackend& Model::backend() const noexcept { return impl_->backend; }
WeightLayout Model::layout() const noexcept { return impl_->layout; }
std::span<const DType> Model::weight_types() const noexcept { return impl_->weight_types; }
std::span<const DType> Model::expert_types() const noexcept { return impl_->expert_types; }
const Metadata& Model::metadata() const noexcept { return impl_->metadata; }
const ModelInfo& Model::info() const noexcept { return impl_->info; }
std::array<std::uint64_t, 2> Model::fingerprint() const noexcept { return impl_->fingerprint; }

const Weight* Model::weight(Role role, int layer) const noexcept {
  return impl_->in_table(role, layer) ? impl_->weight_table[impl_->slot(role, layer)] : nullptr;
}

const float* Model::vector(Role role, int layer) const noexcept {
  return impl_->in_table(role, layer) ? impl_->vector_table[impl_->slot(role, layer)] : nullptr;
}

const Classifier* Model::classifier() const noexcept { return impl_->classifier.get(); }

const RopeFrequencies& Model::rope(std::int32_t index) const {
  if (index < 0 || static_cast<std::size_t>(index) >= impl_->ropes.size())
    throw UsageError("model.rope",
                     fmt::format("index is {}, the model has {} rotary embeddings", index, impl_->ropes.size()));
  return impl_->ropes[static_cast<std::size_t>(index)];
}

bool Model::has_tokenizer() const noexcept { return impl_->tokenizer != nullptr; }

const Tokenizer& Model::tokenizer() const {
  if (!impl_->tokenizer)
    throw UsageError("model.tokenizer", "the model has no tokenizer: the file has none, or it was not asked for",
                     {.file = impl_->info.file});
  return *impl_->tokenizer;
}

const ChatTemplate* Model::chat_template() const {
  if (impl_->chat_template_error) std::rethrow_exception(impl_->chat_template_error);
  return impl_->chat_template.get();
}

}  // namespace skald::inline v0
