#include <skald/model/plan.hpp>

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/tensor_forms.hpp>

#include "model/json_text.hpp"
#include "model/limits.hpp"
#include "model/loader.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "model.plan";
constexpr std::uint64_t alignment = 64;
constexpr std::int64_t default_context = 4096;

// Sums and products of sizes, refused instead of wrapped.
class Bytes {
 public:
  Bytes(std::uint64_t value) noexcept : value_(value) {}  // NOLINT(google-explicit-constructor): a number
  friend Bytes operator*(Bytes a, Bytes b) {
    Bytes result = 0;
    if (__builtin_mul_overflow(a.value_, b.value_, &result.value_)) overflow();
    return result;
  }
  friend Bytes operator+(Bytes a, Bytes b) {
    Bytes result = 0;
    if (__builtin_add_overflow(a.value_, b.value_, &result.value_)) overflow();
    return result;
  }
  [[nodiscard]] Bytes aligned() const { return Bytes((*this + (alignment - 1)).value_ / alignment * alignment); }
  [[nodiscard]] std::uint64_t value() const noexcept { return value_; }

 private:
  [[noreturn]] static void overflow() {
    throw OutOfMemoryError(where, "the sizes asked for need more than 2^64 bytes");
  }
  std::uint64_t value_;
};

Bytes size(std::int64_t value) { return static_cast<std::uint64_t>(value); }

void check_range(std::string_view what, std::int64_t value, std::int64_t min, std::int64_t max) {
  if (value < min || value > max)
    throw UsageError(where, fmt::format("{} is {}, allowed is {} to {}", what, value, min, max));
}

PlanOptions checked(const PlanOptions& given, const ModelSpec& spec) {
  PlanOptions options = given;
  if (!options.backend) options.backend = make_cpu_backend();
  if (options.context == 0) options.context = std::min<std::int64_t>(spec.context_length, default_context);
  if (options.logits_rows == 0) options.logits_rows = options.sequences;
  check_range("context", options.context, 1, limits::context);
  check_range("sequences", options.sequences, 1, 1 << 20);
  check_range("heads_per_group", options.heads_per_group, 1, limits::heads);
  check_range("batch_tokens", options.batch_tokens, 1, limits::vocabulary);
  check_range("logits_rows", options.logits_rows, 1, limits::vocabulary);
  check_range("checkpoint_interval", options.checkpoint_interval, 0, limits::context);
  check_range("checkpoints", options.checkpoints, 0, 1 << 20);
  check_range("page_tokens", options.page_tokens, KvPageLayout::lane_tokens, attention_chunk);
  if (options.page_tokens % KvPageLayout::lane_tokens != 0 || attention_chunk % options.page_tokens != 0)
    throw UsageError(where, fmt::format("page_tokens is {}, allowed is a multiple of {} that divides {}",
                                        options.page_tokens, KvPageLayout::lane_tokens, attention_chunk));
  if (!KvPageLayout::supports(options.kv_type))
    throw UsageError(where,
                     fmt::format("kv_type is {}, allowed is f32, f16, bf16, q8_0, q4_0 or q4_1", to_string(options.kv_type)));
  return options;
}

// Pages of a head group of all sequences. A layer with a sliding window holds the window and a page of each sequence,
// and while a batch is computed its tokens, wherever they belong.
std::int64_t pages_of(const AttentionSpec& attention, std::int64_t sequences, bool of_encoder, const PlanOptions& options) {
  const auto pages = [&](std::int64_t tokens) { return (tokens + options.page_tokens - 1) / options.page_tokens; };
  const std::int64_t all = options.capacity_tokens > 0 && !of_encoder ? pages(options.capacity_tokens)
                                                                      : sequences * pages(options.context);
  if (attention.window <= 0) return all;
  const std::int64_t kept = sequences * (pages(attention.window) + 1);
  return std::min(all, kept + pages(options.batch_tokens) + sequences - 1);
}

// Everything but weights, vectors and tokenizer.
void add_state_and_work(MemoryPlan& plan, const ModelSpec& spec, const PlanOptions& options,
                        std::span<const DType> weight_types, std::span<const DType> expert_types) {
  Bytes kv = 0;
  Bytes slow = 0;
  Bytes per_token = 0;
  const auto add = [&](const AttentionSpec& attention, std::int64_t sequences, bool of_tokens, std::int32_t layer) {
    if (attention.kv_heads % options.heads_per_group != 0)
      throw UsageError(where, fmt::format("heads_per_group {} does not divide {} KV heads", options.heads_per_group,
                                          attention.kv_heads));
    for (std::int32_t head = 0; head < attention.kv_heads; head += options.heads_per_group) {
      const DType dtype = of_tokens && options.kv_type_of ? options.kv_type_of(layer, head) : options.kv_type;
      KvPageLayout page{.dtype = dtype,
                              .page_tokens = options.page_tokens,
                              .heads = options.heads_per_group,
                              .head_dim_k = attention.stored_dim_k(),
                              .head_dim_v = attention.stored_dim_v(),
                              .values_in_keys = attention.latent.has_value()};
      if (of_tokens) per_token = per_token + size(options.heads_per_group) * page.token_bytes();
      if (of_tokens && options.kv_layout_of) page = options.kv_layout_of(layer, page);
      std::int64_t pages = pages_of(attention, sequences, layer < 0, options);
      if (of_tokens && options.segments) pages += sequences;  // a page that the prompt does not fill
      if (of_tokens && options.rebuilt_tokens > 0)
        pages += (sequences * (options.rebuilt_tokens + options.page_tokens) + options.page_tokens - 1) / options.page_tokens;
      if (of_tokens && options.fetched_values > 0 && !attention.latent) {
        auto values = page;
        values.head_dim_k = 0;
        slow = slow + size(pages) * values.page_bytes();
        page.head_dim_v = page.head_dim_k;
        page.values_in_keys = true;
      }
      if (of_tokens && options.read_tokens > 0) {  // a summary of each chunk: its keys' least and greatest elements
        slow = slow + size(pages) * page.page_bytes();
        const std::int64_t said = options.chunk_tokens_of ? options.chunk_tokens_of(layer) : 0;
        const std::int64_t chunks = options.context / (said > 0 ? said : options.page_tokens);
        const KvPageLayout summary{DType::f32, KvPageLayout::lane_tokens, 2 * page.heads, page.head_dim_k, page.head_dim_k, true};
        kv = kv + size(sequences * ((chunks + summary.page_tokens - 1) / summary.page_tokens)) * summary.page_bytes();
        continue;
      }
      kv = kv + size(pages) * page.page_bytes();
      const bool coded = of_tokens && page.coded() && options.residual_tokens > 0;
      page.dtype = coded ? options.residual_type : page.dtype;
      const auto newest = residual_pages(options.residual_tokens, options.rollback_tokens, options.page_tokens);
      if (coded) kv = kv + size(sequences * newest) * page.page_bytes();
    }
  };
  for (std::int32_t i = 0; i < spec.layer_count(); ++i) {
    const LayerSpec& layer = spec.layer(i);
    if (layer.attention && (!options.kv_source_of || options.kv_source_of(i) == i))
      add(*layer.attention, options.sequences, true, i);
    if (layer.cross) add(*layer.cross, options.sequences, false, i);  // of the encoder's result
  }
  for (const AttentionSpec& each : encoder_kv_shapes(spec)) add(each, 1, false, -1);  // one after the other
  plan.kv = kv.value();
  plan.slow = slow.value();
  plan.kv_per_token = per_token.value();
  plan.recurrent =
      (size(options.sequences) * recurrent_bytes(spec, options.checkpoint_interval, options.checkpoints)).value();
  plan.activations = activation_bytes(spec, options.batch_tokens, options.logits_rows);
  bool reads_ahead = false;
  for (std::int32_t i = 0; i < spec.layer_count(); ++i)
    reads_ahead = reads_ahead || (options.kv_source_of && options.kv_source_of(i) > i);
  const auto rows = reads_ahead || options.read_tokens > 0
                        ? std::max<std::int64_t>(options.batch_tokens, options.sequences)
                        : options.sequences;
  auto limits = stream_limits(spec, options.batch_tokens, options.context, rows, weight_types, expert_types);
  limits.tokens = std::max(limits.tokens, options.rebuilt_tokens * options.sequences);
  limits.segments = std::max(limits.segments, options.rebuilt_tokens * options.sequences);
  limits.earlier = options.residual_tokens > 0 || options.segments || options.fetched_values > 0 || options.read_tokens > 0 ||
                   options.rebuilt_tokens > 0;
  plan.stream = options.backend->stream_bytes(limits);
}

void check_total(const MemoryPlan& plan) {
  static_cast<void>(Bytes(plan.weights) + plan.vectors + plan.kv + plan.slow + plan.recurrent + plan.activations +
                    plan.stream + plan.tokenizer);
}

}  // namespace

std::string MemoryPlan::to_json() const {
  return json_text::Object()
      .add("weights", weights)
      .add("vectors", vectors)
      .add("kv", kv)
      .add("slow", slow)
      .add("policies", policies)
      .add("techniques", techniques)
      .add("recurrent", recurrent)
      .add("activations", activations)
      .add("stream", stream)
      .add("tokenizer", tokenizer)
      .add("kv_per_token", kv_per_token)
      .add("total", total())
      .text();
}

namespace {

// True if something is computed beside the residual stream before it is added to it.
bool needs_work_rows(const ModelSpec& spec) {
  if (spec.learned_positions || spec.token_types > 0) return true;
  return std::ranges::any_of(spec.layers, [](const LayerSpec& layer) {
    return layer.linear_attention || (layer.ffn && layer.ffn->receptance) ||
           layer.attention_post_norm.kind != NormKind::none || layer.ffn_post_norm.kind != NormKind::none;
  });
}

// What a mixer and a channel mixing compute for a row beside what they share with other layers; as in
// decoder/program_recurrent.cpp.
std::int64_t recurrent_columns(const RecurrentSpec& mixer) {
  const std::int64_t width = mixer.width;
  switch (mixer.kind) {
    case RecurrentKind::selective_scan:
      return mixer.input_rows() + mixer.conv_cols() + mixer.step_rank + 2 * std::int64_t{mixer.state_size} + 2 * width;
    case RecurrentKind::ssd: return mixer.input_rows() + mixer.conv_cols() + width;
    case RecurrentKind::short_convolution: return mixer.input_rows() + width;
    case RecurrentKind::rwkv6: return 13 * width + 5 * std::int64_t{mixer.mix_rank} + mixer.decay_rank;
    case RecurrentKind::rwkv7:
      return 15 * width + std::max({mixer.decay_rank, mixer.rate_rank, mixer.value_rank, mixer.gate_rank});
  }
  return 0;
}

}  // namespace

std::int64_t first_value_columns(const ModelSpec& spec) noexcept {
  return std::ranges::any_of(
             spec.layers,
             [](const LayerSpec& layer) { return layer.recurrent && layer.recurrent->kind == RecurrentKind::rwkv7; })
             ? spec.dim
             : 0;
}

std::uint64_t recurrent_bytes(const ModelSpec& spec, std::int64_t checkpoint_interval, std::int32_t checkpoints) {
  const std::int64_t copies = 2 + (checkpoint_interval > 0 ? std::max(0, checkpoints) : 0);
  Bytes total = 0;
  for (const LayerSpec& layer : spec.layers)
    total = total + size(copies) * (size(layer.state_elements(spec.dim)) * sizeof(float)).aligned();
  return total.value();
}

std::vector<AttentionSpec> encoder_kv_shapes(const ModelSpec& spec) {
  std::vector<AttentionSpec> shapes;
  const auto same = [](const AttentionSpec& a, const AttentionSpec& b) {
    return a.kv_heads == b.kv_heads && a.head_dim_k == b.head_dim_k && a.head_dim_v == b.head_dim_v;
  };
  for (const LayerSpec& layer : spec.encoder)
    if (layer.attention &&
        std::ranges::none_of(shapes, [&](const AttentionSpec& each) { return same(each, *layer.attention); }))
      shapes.push_back(*layer.attention);
  return shapes;
}

ActivationSizes activation_sizes(const ModelSpec& spec) {
  ActivationSizes sizes;
  sizes.residual = spec.dim;
  for (std::int32_t i = 0; i < spec.all_layer_count(); ++i) {
    const LayerSpec& layer = spec.layer(i);
    for (const auto* attention : {&layer.attention, &layer.cross}) {
      if (!*attention) continue;
      sizes.q = std::max(sizes.q, (*attention)->q_cols());
      sizes.k = std::max(sizes.k, (*attention)->k_cols());
      sizes.v = std::max(sizes.v, (*attention)->v_cols());
      sizes.attention = std::max(sizes.attention, (*attention)->output_cols());
    }
    if (layer.attention) {
      // Queries in the latent space, results in it, and what queries are made from.
      if (const auto& latent = layer.attention->latent) {
        const std::int64_t heads = layer.attention->heads;
        sizes.attention = std::max(sizes.attention, heads * (latent->rank + latent->rope_dims));
        sizes.q = std::max(sizes.q, heads * latent->rank);
        sizes.v = std::max<std::int64_t>(sizes.v, latent->query_rank);
      }
    }
    if (layer.recurrent) sizes.recurrent = std::max(sizes.recurrent, recurrent_columns(*layer.recurrent));
    if (layer.ffn && layer.ffn->token_shift) sizes.recurrent = std::max(sizes.recurrent, 3 * spec.dim);
    if (!layer.ffn) continue;
    const ExpertsSpec experts = layer.ffn->experts.value_or(ExpertsSpec{});
    sizes.ffn = std::max(sizes.ffn, layer.ffn->width * (layer.ffn->experts ? experts.used : 1) + experts.shared_width);
    sizes.router = std::max<std::int64_t>(sizes.router, experts.count + (experts.shared_gate ? 1 : 0));
    sizes.experts = std::max(sizes.experts, spec.dim * experts.used);
  }
  if (sizes.recurrent > 0) sizes.recurrent += first_value_columns(spec);
  if (needs_work_rows(spec)) sizes.work = spec.dim;
  for (const RopeSpec& rope : spec.ropes)
    if (rope.kind != RopeKind::none) sizes.rope += rope.dims;
  sizes.logits = spec.has_head ? spec.vocabulary : 0;
  return sizes;
}

std::size_t activation_bytes(const ModelSpec& spec, std::int64_t batch_tokens, std::int64_t logits_rows) {
  check_range("batch_tokens", batch_tokens, 1, limits::vocabulary);
  check_range("logits_rows", logits_rows, 0, limits::vocabulary);
  const ActivationSizes sizes = activation_sizes(spec);
  Bytes total = (size(logits_rows) * size(sizes.logits) * sizeof(float)).aligned();
  for (const std::int64_t width : {sizes.residual, sizes.q, sizes.k, sizes.v, sizes.attention, sizes.ffn, sizes.router,
                                   sizes.experts, sizes.work, sizes.recurrent, sizes.rope})
    total = total + (size(batch_tokens) * size(width) * sizeof(float)).aligned();
  return static_cast<std::size_t>(total.value());
}

StreamLimits stream_limits(const ModelSpec& spec, std::int64_t batch_tokens, std::int64_t context,
                           std::int64_t sequences, std::span<const DType> weight_types,
                           std::span<const DType> expert_types) {
  StreamLimits limits{.tokens = batch_tokens,
                      .max_cols = spec.dim,
                      .context = context,
                      .segments = sequences,
                      .weight_types = weight_types,
                      .expert_types = expert_types};
  for (std::int32_t i = 0; i < spec.all_layer_count(); ++i) {
    const LayerSpec& layer = spec.layer(i);
    for (const auto* each : {&layer.attention, &layer.cross}) {
      if (!*each) continue;
      const AttentionSpec& attention = **each;
      limits.max_cols = std::max(limits.max_cols, attention.output_cols());
      limits.heads = std::max<std::int64_t>(limits.heads, attention.heads);
      limits.head_dim =
          std::max<std::int64_t>(limits.head_dim, std::max(attention.stored_dim_k(), attention.stored_dim_v()));
      if (attention.latent) {
        limits.max_cols = std::max<std::int64_t>(limits.max_cols, attention.latent->query_rank);
        limits.head_cols = std::max<std::int64_t>(
            {limits.head_cols, attention.latent->rank, attention.head_dim_k - attention.latent->rope_dims});
      }
    }
    if (const auto& mixer = layer.recurrent) {
      limits.max_cols = std::max<std::int64_t>({limits.max_cols, mixer->width, mixer->step_rank, mixer->decay_rank,
                                                mixer->rate_rank, mixer->value_rank, mixer->gate_rank});
      limits.head_cols = std::max<std::int64_t>(limits.head_cols, mixer->mix_rank);
    }
    if (layer.ffn) limits.max_cols = std::max(limits.max_cols, layer.ffn->width);
    if (!layer.ffn || !layer.ffn->experts) continue;
    limits.max_cols = std::max(limits.max_cols, layer.ffn->experts->shared_width);
    limits.expert_cols = std::max({limits.expert_cols, spec.dim, layer.ffn->width});
    limits.experts = std::max<std::int64_t>(limits.experts, layer.ffn->experts->count);
    limits.used = std::max<std::int64_t>(limits.used, layer.ffn->experts->used);
  }
  return limits;
}

std::uint64_t vector_bytes(std::int64_t elements) { return (size(elements) * sizeof(float)).aligned().value(); }

void add_tensor_bytes(MemoryPlan& plan, const ModelFile& file, const BoundTensors& bound,
                      const BackendInterface& backend, WeightLayout layout) {
  Bytes weights = 0;
  Bytes vectors = 0;
  for (const BoundTensor& each : bound.used) {
    const TensorInfo& tensor = *each.tensor;
    if (each.binding.use == TensorUse::vector) vectors = vectors + vector_bytes(each.rows);
    if (each.binding.use == TensorUse::host_matrix) vectors = vectors + Bytes(each.elements()) * sizeof(float);
    if (each.binding.use != TensorUse::matrix) continue;
    if (const auto reason = backend.refuses_weight(each.type(), layout))
      throw UnsupportedError(
          where,
          fmt::format("the {} backend refuses {} weights: {}", backend.info().name, to_string(each.type()), *reason),
          {.file = file.name(), .offset = tensor.offset, .tensor = tensor.name});
    const std::int64_t matrices = each.binding.matrices;
    weights = weights +
              size(matrices) * backend.weight_bytes(each.type(), each.rows / matrices, each.binding.shape[1], layout);
  }
  plan.weights = weights.value();
  plan.vectors = vectors.value();
}

std::vector<DType> multiplied_types(const BoundTensors& bound, bool has_head) {
  const bool own_head =
      std::ranges::any_of(bound.used, [](const auto& each) { return each.binding.role == Role::head; }) || !has_head;
  std::vector<DType> types;
  for (const BoundTensor& each : bound.used) {
    if (each.binding.use != TensorUse::matrix) continue;
    // An embedding table that is not the head as well is only read row by row.
    const Role role = each.binding.role;
    if (role == Role::token_embedding && own_head) continue;
    if (role == Role::position_embedding || role == Role::token_type_embedding) continue;
    if (std::ranges::find(types, each.type()) == types.end()) types.push_back(each.type());
  }
  std::ranges::sort(types);
  return types;
}

std::vector<DType> expert_types(const BoundTensors& bound) {
  std::vector<DType> types;
  for (const BoundTensor& each : bound.used) {
    const Role role = each.binding.role;
    if (role != Role::expert_gate && role != Role::expert_up && role != Role::expert_down) continue;
    if (std::ranges::find(types, each.tensor->type) == types.end()) types.push_back(each.tensor->type);
  }
  std::ranges::sort(types);
  return types;
}

std::uint64_t tokenizer_bytes(const Metadata& metadata) {
  // A token is kept as text, in a hash table and with its properties; a merge as an entry of a hash table. The numbers
  // are those measured on vocabularies of 1,500 to 50,000 tokens.
  constexpr std::uint64_t fixed = 60'000;
  constexpr std::uint64_t per_token = 134;
  constexpr std::uint64_t per_merge = 70;
  if (!metadata.contains("tokenizer.ggml.tokens")) return 0;
  std::uint64_t bytes = fixed;
  const auto add = [&](std::string_view key, std::uint64_t per_entry) {
    const auto* entry = metadata.find(key);
    const auto* array = entry ? std::get_if<MetadataArray>(&entry->value) : nullptr;
    const auto* strings = array ? std::get_if<StringArray>(&array->values) : nullptr;
    if (!strings) return;
    for (const std::string_view text : *strings) bytes += 2 * text.size() + per_entry;
  };
  add("tokenizer.ggml.tokens", per_token);
  add("tokenizer.ggml.merges", per_merge);
  return bytes;
}

MemoryPlan plan(const ModelFile& file, const PlanOptions& given) {
  if (has_rare_forms(file)) return plan(in_usual_forms(file), given);
  ModelSpec spec = read_spec(file, given.architectures);
  take_nested_ffn(spec, given.ffn_fraction);
  const BoundTensors bound = bind_tensors(file, spec, given.architectures);
  const PlanOptions options = checked(given, spec);
  MemoryPlan result;
  add_tensor_bytes(result, file, bound, *options.backend, options.layout);
  result.tokenizer = tokenizer_bytes(file.metadata());
  add_state_and_work(result, spec, options, multiplied_types(bound, spec.has_head), expert_types(bound));
  check_total(result);
  return result;
}

MemoryPlan plan(const std::string& path, const PlanOptions& options) {
  return plan(open_gguf(path, {.map = false}), options);
}

MemoryPlan plan(const ModelSpec& spec, DType weights, const PlanOptions& given) {
  validate(spec);
  const PlanOptions options = checked(given, spec);
  const DTypeInfo& type = dtype_info(weights);
  if (const auto reason = options.backend->refuses_weight(weights, options.layout))
    throw UnsupportedError(
        where, fmt::format("the {} backend refuses {} weights: {}", options.backend->info().name, type.name, *reason));
  MemoryPlan result;
  Bytes matrices = 0;
  Bytes vectors = 0;
  for (const TensorBinding& each : tensor_bindings(spec, given.architectures)) {
    if (each.use == TensorUse::vector) vectors = vectors + vector_bytes(each.shape[0]);
    if (each.use == TensorUse::host_matrix) vectors = vectors + size(each.shape[0]) * size(each.shape[1]) * sizeof(float);
    if (each.use != TensorUse::matrix) continue;
    if (each.shape[1] % type.block_elements != 0)
      throw UsageError(where,
                       fmt::format("{} columns are not a multiple of the {} elements of a {} block", each.shape[1],
                                   type.block_elements, type.name),
                       {.tensor = each.name});
    matrices = matrices + size(each.matrices) * options.backend->weight_bytes(weights, each.shape[0] / each.matrices,
                                                                              each.shape[1], options.layout);
  }
  result.weights = matrices.value();
  result.vectors = vectors.value();
  add_state_and_work(result, spec, options, std::span(&weights, 1), {});
  check_total(result);
  return result;
}

}  // namespace skald::inline v0
