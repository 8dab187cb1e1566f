#include "model/loader.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <thread>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/model/gguf/vocabulary.hpp>
#include <skald/model/huggingface/gguf_vocabulary.hpp>
#include <skald/quant/row_codec.hpp>
#include <skald/text/chat_template.hpp>
#include <skald/text/tokenizer.hpp>

#include "model/fingerprint.hpp"

namespace skald::inline v0 {

namespace {

// Reads are cut into pieces of this size: a stop request is seen between them, also when the disk is slow.
constexpr std::size_t piece_bytes = std::size_t{1} << 20;
// Bytes of each end of a matrix that go into the fingerprint.
constexpr std::uint64_t sample_bytes = 256;
// Longer arrays (vocabulary, merges) are not kept with the model.
constexpr std::size_t longest_kept_array = 256;

constexpr std::string_view loading = "model.load";

std::string count_text(std::uint64_t parameters) {
  const auto value = static_cast<double>(parameters);
  if (value >= 1e9) return fmt::format("{:.2f}B", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  return fmt::format("{:.2f}K", value / 1e3);
}

Metadata without_long_arrays(const Metadata& metadata) {
  Metadata result(metadata.file());
  for (const auto& entry : metadata.entries()) {
    const auto* array = std::get_if<MetadataArray>(&entry.value);
    if (!array || array->size() <= longest_kept_array) result.insert(entry.key, entry.value, entry.offset);
  }
  return result;
}

}  // namespace

ModelLoader::ModelLoader(ModelFile file, const LoadOptions& options)
    : file_(std::make_shared<const ModelFile>(std::move(file))),
      options_(options),
      impl_(std::make_shared<Model::Impl>()) {}

Model ModelLoader::run() {
  const auto start = std::chrono::steady_clock::now();
  throw_if_stopped(options_.stop, loading);
  check();
  load_text();
  report(0);
  load_vectors();
  load_classifier();
  const bool cached = !options_.packed_cache.empty();
  if (cached) describe();
  if (!cached || !map_packed()) {
    load_weights();
    write_packed();
  }
  if (!cached) describe();
  finish();
  impl_->info.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  log(LogLevel::info, fmt::format("loaded {} in {:.3f} s", impl_->info.description, impl_->info.load_seconds));
  return Model(std::move(impl_));
}

void ModelLoader::check() {
  if (!options_.packed_cache.empty() && options_.layout != WeightLayout::packed)
    throw UsageError(loading, "packed_cache is for packed weights: WeightLayout::packed is needed");
  auto [spec, unread_keys] = read_spec_and_rest(*file_, options_.architectures);
  take_nested_ffn(spec, options_.ffn_fraction);
  bound_ = bind_tensors(*file_, spec, options_.architectures);
  impl_->spec = std::move(spec);
  impl_->backend = options_.backend ? options_.backend : make_cpu_backend();
  impl_->layout = options_.layout;

  MemoryPlan plan;
  add_tensor_bytes(plan, *file_, bound_, *impl_->backend, options_.layout);
  if (options_.tokenizer) plan.tokenizer = tokenizer_bytes(file_->metadata());
  if (options_.memory_budget && plan.total() > *options_.memory_budget)
    throw OutOfMemoryError(
        loading,
        fmt::format("the model needs {} bytes ({} weights, {} vectors, {} tokenizer), the budget is "
                    "{} bytes",
                    plan.total(), plan.weights, plan.vectors, plan.tokenizer, *options_.memory_budget),
        {.file = file_->name()});
  for (const BoundTensor& each : bound_.used) total_bytes_ += each.bytes();

  ModelInfo& info = impl_->info;
  info.file = file_->name();
  info.architecture = impl_->spec.architecture;
  info.file_bytes = file_->tensor_bytes();
  info.unused = std::move(bound_.unused);
  info.unused_keys = std::move(unread_keys);
  for (const std::string& name : info.unused)
    log(LogLevel::warning, fmt::format("tensor '{}' is not used", printable(name)));
  for (const std::string& key : info.unused_keys)
    log(LogLevel::warning, fmt::format("key '{}' is not used", printable(key)));

  impl_->weight_types = multiplied_types(bound_, impl_->spec.has_head);
  impl_->expert_types = expert_types(bound_);
  for (const RopeSpec& rope : impl_->spec.ropes)
    impl_->ropes.push_back(rope.kind == RopeKind::none ? RopeFrequencies{} : rope_frequencies(rope));
  const std::size_t slots = static_cast<std::size_t>(impl_->spec.all_layer_count() + 1) * static_cast<std::size_t>(role_count);
  impl_->weight_table.resize(slots);
  impl_->vector_table.resize(slots);
}

void ModelLoader::load_text() {
  if (!options_.tokenizer) return;
  auto tokenizer = tokenizer_from_metadata(file_->metadata());
  if (!tokenizer) return;
  impl_->tokenizer = std::make_shared<const Tokenizer>(std::move(*tokenizer));
  throw_if_stopped(options_.stop, loading);
  load_chat_template();
}

void ModelLoader::load_chat_template() {
  constexpr std::string_view key = "tokenizer.chat_template";
  const Metadata& metadata = file_->metadata();
  if (!metadata.contains(key)) return;
  const Tokenizer& tokenizer = *impl_->tokenizer;
  const auto text_of = [&](TokenId token) {
    return token < 0 ? std::string() : std::string(tokenizer.token_text(token));
  };
  try {
    impl_->chat_template = std::make_shared<const ChatTemplate>(metadata.get_string(key), text_of(tokenizer.bos()),
                                                                text_of(tokenizer.eos()));
  } catch (const Error& error) {
    // A bad template disables chat, not the model. The copy says where the template came from.
    ErrorContext context = error.context();
    context.file = file_->name();
    context.key = key;
    try {
      detail::throw_error(error.code(), error.where(), error.message(), std::move(context));
    } catch (const Error&) {
      impl_->chat_template_error = std::current_exception();
    }
    log(LogLevel::warning, fmt::format("the chat template is refused: {}", error.what()));
  }
}

void ModelLoader::load_vectors() {
  std::uint64_t bytes = 0;
  for (const BoundTensor& each : bound_.used)
    if (each.binding.use == TensorUse::vector) bytes += vector_bytes(each.rows);
  impl_->info.vector_bytes = bytes;
  if (bytes == 0) return;
  impl_->vector_memory = impl_->backend->allocate(static_cast<std::size_t>(bytes));
  std::uint64_t offset = 0;
  for (const BoundTensor& each : bound_.used) {
    if (each.binding.use == TensorUse::matrix) continue;
    throw_if_stopped(options_.stop, loading);
    if (each.binding.use == TensorUse::vector) {
      const std::vector<float> all = read_vector(*file_, *each.tensor);
      const auto values = std::span(all).subspan(static_cast<std::size_t>(each.first_row),
                                                 static_cast<std::size_t>(each.rows));
      std::byte* place = impl_->vector_memory.address() + offset;
      impl_->backend->write(place, std::as_bytes(values));
      impl_->vector_table[impl_->slot(each.binding.role, each.binding.layer)] = reinterpret_cast<const float*>(place);
      offset += vector_bytes(each.rows);
    }
    limit_bytes_ += each.bytes();
    step(each.bytes());
  }
}

void ModelLoader::load_weights() {
  for (const BoundTensor& each : bound_.used)
    if (each.binding.use == TensorUse::matrix) load_weight(each);
}

void ModelLoader::keep_weight(const BoundTensor& bound, std::shared_ptr<const Weight> weight) {
  throw_if_stopped(options_.stop, loading);  // the request may have come while the last pieces were on their way
  impl_->weight_table[impl_->slot(bound.binding.role, bound.binding.layer)] = weight.get();
  impl_->info.weight_bytes += weight->bytes();
  impl_->weights.push_back(std::move(weight));
}

void ModelLoader::load_grouped(const BoundTensor& bound) {
  const TensorInfo& tensor = *bound.tensor;
  const TensorBinding& binding = bound.binding;
  const std::uint64_t before = limit_bytes_;
  limit_bytes_ += bound.bytes();
  const auto columns = static_cast<std::size_t>(tensor.columns());
  const std::size_t file_row = row_bytes(tensor.type, columns);
  const std::int64_t rows_each = binding.shape[0] / binding.matrices;
  const auto first_of = [&](std::int64_t matrix) { return matrix * binding.group_rows + binding.group_first; };
  // Of a transposed stack the rows of one matrix at a time, decoded: rows_each columns by group_count() rows.
  std::vector<float> decoded;
  if (binding.transposed) {
    decoded.resize(static_cast<std::size_t>(binding.matrices * bound.group_count()) * columns);
    std::vector<std::byte> row(file_row);
    for (std::int64_t r = 0; r < binding.matrices * bound.group_count(); ++r) {
      read_rows(tensor, first_of(r / bound.group_count()) + r % bound.group_count(), row);
      decode_row(tensor.type, row, std::span(decoded).subspan(static_cast<std::size_t>(r) * columns, columns));
    }
  }
  const auto read = [&](std::int64_t first, std::int64_t count, std::span<std::byte> out) {
    const std::size_t out_row = out.size() / static_cast<std::size_t>(count);
    for (std::int64_t r = first; r < first + count; ++r) {
      const auto to = out.subspan(static_cast<std::size_t>(r - first) * out_row, out_row);
      if (!binding.transposed) {
        read_rows(tensor, first_of(r / rows_each) + r % rows_each, to);
        continue;
      }
      const float* matrix = decoded.data() + static_cast<std::size_t>(r / rows_each * bound.group_count()) * columns;
      for (std::int64_t i = 0; i < bound.group_count(); ++i)
        std::memcpy(to.data() + static_cast<std::size_t>(i) * sizeof(float),
                    matrix + static_cast<std::size_t>(i) * columns + r % rows_each, sizeof(float));
    }
  };
  keep_weight(bound, impl_->backend->make_weight({.type = bound.type(),
                                                  .rows = binding.shape[0],
                                                  .cols = binding.shape[1],
                                                  .matrices = binding.matrices,
                                                  .mapped = {},
                                                  .read = read},
                                                 options_.layout, options_.stop));
  done_bytes_ = before + bound.bytes();
  report(limit_bytes_);
}

void ModelLoader::load_weight(const BoundTensor& bound) {
  throw_if_stopped(options_.stop, loading);
  if (bound.grouped) return load_grouped(bound);
  const TensorInfo& tensor = *bound.tensor;
  const std::uint64_t before = limit_bytes_;
  limit_bytes_ += bound.bytes();
  const std::size_t bytes_per_row = row_bytes(tensor.type, static_cast<std::size_t>(tensor.columns()));
  const std::int64_t columns = bound.binding.shape[1];
  const std::size_t used = row_bytes(tensor.type, static_cast<std::size_t>(columns));
  const auto read = [&](std::int64_t first, std::int64_t count, std::span<std::byte> out) {
    if (used < bytes_per_row && out.size() == static_cast<std::size_t>(count) * used) {
      // The first columns only; rows go through a buffer of their own.
      std::vector<std::byte> row(bytes_per_row);
      for (std::int64_t i = 0; i < count; ++i) {
        read_rows(tensor, bound.first_row + first + i, row);
        std::copy_n(row.begin(), used, out.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(i) * used));
      }
      return;
    }
    if (out.size() != static_cast<std::size_t>(count) * bytes_per_row)
      throw UsageError(loading, fmt::format("{} bytes given for {} rows of {} bytes", out.size(), count, bytes_per_row));
    read_rows(tensor, bound.first_row + first, out);
  };
  const std::uint64_t begin = static_cast<std::uint64_t>(bound.first_row) * bytes_per_row;
  const auto view = file_->view(tensor).empty()
                        ? std::span<const std::byte>()
                        : file_->view(tensor).subspan(static_cast<std::size_t>(begin),
                                                      static_cast<std::size_t>(bound.bytes()));
  WeightSource source{.type = tensor.type, .rows = bound.rows, .cols = columns,
                      .matrices = bound.binding.matrices, .mapped = {}, .read = read};
  if (options_.layout == WeightLayout::rows && used == bytes_per_row) {
    // In place only where kernels may load whole words.
    if (reinterpret_cast<std::uintptr_t>(view.data()) % 32 == 0) source.mapped = view;
    if (!source.mapped.empty()) impl_->file = file_;
    if (!source.mapped.empty() && options_.check_weights) check_rows(tensor, bound.first_row, view);
  }
  keep_weight(bound, impl_->backend->make_weight(source, options_.layout, options_.stop));
  if (source.mapped.empty() && !view.empty())
    file_->sources()[tensor.source].release(tensor.offset + begin, bound.bytes());
  // Backends may read rows twice, or use them in place and read none.
  done_bytes_ = before + bound.bytes();
  report(limit_bytes_);
}

void ModelLoader::read_rows(const TensorInfo& tensor, std::int64_t first, std::span<std::byte> out) {
  const std::size_t bytes_per_row = row_bytes(tensor.type, static_cast<std::size_t>(tensor.columns()));
  const std::uint64_t begin = static_cast<std::uint64_t>(first) * bytes_per_row;
  const AnyByteSource& source = file_->sources()[tensor.source];
  for (std::size_t done = 0; done < out.size();) {
    throw_if_stopped(options_.stop, loading);
    const std::size_t length = std::min(piece_bytes, out.size() - done);
    file_->read(tensor, begin + done, out.subspan(done, length));
    // A mapped file gives its pages back at once, so that the weights are not in memory twice.
    if (!source.view(tensor.offset + begin + done, length).empty())
      source.release(tensor.offset + begin + done, length);
    done += length;
    step(length);
  }
  if (options_.check_weights) check_rows(tensor, first, out);
}

void ModelLoader::check_rows(const TensorInfo& tensor, std::int64_t first, std::span<const std::byte> rows) const {
  const auto columns = static_cast<std::size_t>(tensor.columns());
  const std::size_t bytes_per_row = row_bytes(tensor.type, columns);
  std::vector<float> values(columns);
  for (std::size_t row = 0; row * bytes_per_row < rows.size(); ++row) {
    throw_if_stopped(options_.stop, loading);
    decode_row(tensor.type, rows.subspan(row * bytes_per_row, bytes_per_row), values);
    const auto bad = std::ranges::find_if(values, [](float value) { return !std::isfinite(value); });
    if (bad != values.end())
      throw NumericError(loading,
                         fmt::format("row {}, column {} is {}, allowed is a finite number",
                                     static_cast<std::uint64_t>(first) + row, bad - values.begin(), *bad),
                         {.file = file_->name(), .offset = tensor.offset, .tensor = tensor.name});
  }
}

void ModelLoader::step(std::uint64_t bytes) {
  const std::uint64_t done = done_bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (options_.progress && std::this_thread::get_id() == caller_) report(std::min(done, limit_bytes_));
}

void ModelLoader::report(std::uint64_t done) {
  if (!options_.progress) return;
  if (done < reported_bytes_ || (done == reported_bytes_ && done != 0)) return;
  reported_bytes_ = done;
  options_.progress({.stage = "load", .done = done, .total = total_bytes_});
  throw_if_stopped(options_.stop, loading);
}

void ModelLoader::log(LogLevel level, const std::string& message) const {
  if (options_.log) options_.log({.level = level, .category = "model", .message = message});
}

void ModelLoader::describe() {
  ModelInfo& info = impl_->info;
  std::map<std::string, std::uint64_t, std::less<>> formats;
  Fingerprint fingerprint;
  fingerprint.add(to_json(impl_->spec));
  const BoundTensor* previous = nullptr;
  for (const BoundTensor& each : bound_.used) {
    const TensorInfo& tensor = *each.tensor;
    // Parts of one tensor lie together; one that two roles share counts once.
    const bool again = previous && previous->tensor == each.tensor;
    const bool shared = again && previous->first_row == each.first_row;
    previous = &each;
    if (shared) continue;
    const std::uint64_t elements = each.elements();
    info.parameters += elements;
    if (each.binding.use == TensorUse::matrix) formats[std::string(to_string(tensor.type))] += elements;
    if (again) continue;
    fingerprint.add(tensor.name);
    fingerprint.add(static_cast<std::uint64_t>(tensor.type));
    const std::uint64_t length =
        is_matrix(each.binding.use) ? std::min(sample_bytes, tensor.bytes) : tensor.bytes;
    std::vector<std::byte> sample(static_cast<std::size_t>(length));
    file_->read(tensor, 0, sample);
    fingerprint.add(sample);
    file_->read(tensor, tensor.bytes - length, sample);
    fingerprint.add(sample);
  }
  impl_->fingerprint = fingerprint.value();
  info.formats.assign(formats.begin(), formats.end());
  std::ranges::stable_sort(info.formats, std::ranges::greater{}, &std::pair<std::string, std::uint64_t>::second);
}

void ModelLoader::finish() {
  if (impl_->spec.has_head && impl_->spec.tied_head)
    impl_->weight_table[impl_->slot(Role::head, -1)] = impl_->weight_table[impl_->slot(Role::token_embedding, -1)];
  ModelInfo& info = impl_->info;
  const Metadata& metadata = file_->metadata();
  if (const auto* entry = metadata.find("general.name"))
    if (const auto* name = std::get_if<std::string>(&entry->value)) info.name = *name;
  std::string format = info.formats.empty() ? "" : " " + info.formats.front().first;
  info.description = fmt::format("{} {}{}", info.architecture, count_text(info.parameters), format);
  impl_->metadata = without_long_arrays(metadata);
}

}  // namespace skald::inline v0
