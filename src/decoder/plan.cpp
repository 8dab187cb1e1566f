// What decoder options add to a plan. Everything here mirrors what make_pools, make_buffers and PagedKv reserve; a test compares.
#include <skald/decoder/plan.hpp>

#include <algorithm>

#include <skald/core/error.hpp>
#include <skald/state/coupled.hpp>
#include <skald/state/drop_gates.hpp>
#include <skald/state/eviction.hpp>
#include <skald/state/kv_format.hpp>
#include <skald/state/paged_kv.hpp>

#include "decoder/chunk_reads.hpp"
#include "decoder/memory_sizes.hpp"
#include "decoder/slow_values.hpp"

namespace skald::inline v0 {

namespace {

std::uint64_t size(std::int64_t count) noexcept { return static_cast<std::uint64_t>(std::max<std::int64_t>(0, count)); }

std::int64_t pages_for(std::int64_t tokens, const PlanOptions& plan) noexcept {
  return (tokens + plan.page_tokens - 1) / plan.page_tokens;
}

/// What a decoder is composed of, by name.
struct Parts {
  explicit Parts(const DecoderOptions& options)
      : eviction(AnyEviction::from_spec(options.kv.eviction)), traits(eviction.traits()) {
    if ((options.kv.format == "coupled") != (options.kv.codebooks != nullptr))
      throw UsageError("decoder.plan", "kv.format 'coupled' and kv.codebooks need one another");
    if (options.kv.codebooks) format = AnyKvFormat(KvF32{});
    else format = AnyKvFormat(options.kv.format);
  }
  AnyKvFormat format{};
  AnyEviction eviction;
  ComponentTraits traits;
};

PlanOptions plan_options(const Parts& parts, const DecoderOptions& options, const PlanOptions& base) {
  PlanOptions plan = base;
  const auto format = parts.format;
  plan.context = options.context;
  plan.sequences = options.parallel;
  plan.capacity_tokens = options.kv.capacity_tokens;
  plan.batch_tokens = options.batch_tokens;
  plan.page_tokens = options.kv.page_tokens;
  plan.heads_per_group = options.kv.heads_per_group;
  plan.rollback_tokens = options.kv.rollback_tokens;
  plan.checkpoint_interval = options.recurrent.checkpoint_interval;
  plan.checkpoints = options.recurrent.checkpoints;
  plan.kv_type = format.dtype();
  plan.kv_type_of = [format](std::int32_t layer, std::int32_t head) { return format.dtype(layer, head); };
  plan.kv_source_of = [format](std::int32_t layer) { return format.source(layer); };
  plan.residual_tokens = format.residual();
  plan.residual_type = format.residual_dtype();
  plan.segments = format.segments();
  plan.fetched_values = format.fetched_values();
  plan.read_tokens = format.read_tokens();
  plan.chunk_tokens_of = [format](std::int32_t layer) { return format.chunk_tokens(layer); };
  plan.rebuilt_tokens = parts.traits.rebuild;
  if (const auto books = options.kv.codebooks)
    plan.kv_layout_of = [books](std::int32_t layer, const KvPageLayout& usual) {
      if (static_cast<std::size_t>(layer) >= books->layers().size())
        throw IncompatibleError("decoder.plan", "the codebooks are of fewer layers than the model has", {.layer = layer});
      const auto& of_layer = books->layers()[static_cast<std::size_t>(layer)];
      return KvPageLayout{DType::f16,
                          usual.page_tokens,
                          usual.heads,
                          static_cast<std::int32_t>(of_layer.keys.row_bytes() / 2),
                          static_cast<std::int32_t>(of_layer.values.row_bytes() / 2),
                          false};
    };
  return plan;
}

/// Numbers that PagedKv reserves for a policy: of each slot of each group, and to choose with.
std::uint64_t numbers_of_layer(const AttentionSpec& attention, std::int32_t layer, const Parts& parts, const PlanOptions& plan) {
  const auto& traits = parts.traits;
  const std::int64_t slots = plan.context;
  const std::int64_t pages = pages_for(slots, plan);
  const std::int64_t groups = attention.kv_heads / plan.heads_per_group;
  std::int64_t of_slot = 4 + 4 + 4;  // position, fate, weight
  if (traits.needs_scores) of_slot += 3 * 4 + (traits.score_shape.noise != 0.0F ? 4 : 0);
  if (traits.counts_merged) of_slot += 4 + 4;
  if (traits.merges_tokens) of_slot += 4;
  const std::int64_t key_floats = std::int64_t{plan.heads_per_group} * attention.stored_dim_k();
  const std::int64_t sinks = traits.reorders_positions && attention.rope >= 0 ? traits.sinks : 0;
  std::int64_t of_group = of_slot * slots + 4 * pages + 4 * (2 * traits.memory_floats + sinks * key_floats);
  if (traits.merges_tokens)  // a page leaves at a time
    of_group += 4 * plan.page_tokens * (key_floats + std::int64_t{plan.heads_per_group} * attention.stored_dim_v());
  std::int64_t ways = 1;  // groups of different formats are kept apart
  for (std::int32_t head = 1; head < attention.kv_heads; ++head)
    ways += parts.format.dtype(layer, head) != parts.format.dtype(layer, head - 1) ? 1 : 0;
  std::int64_t once = ways * (8 * slots + 4 * pages + 4 * std::int64_t{attention.stored_dim_k()});
  if (const auto& gates = parts.eviction.gates();
      gates && !gates->layers[static_cast<std::size_t>(layer)].query.empty())
    once += slots * 4 * (gates->width + 1);
  const auto infos = static_cast<std::int64_t>(sizeof(PageInfo)) * pages * groups;
  return size(groups * of_group + once + infos);
}

/// Memory that components work in.
std::uint64_t work_of_techniques(const ModelSpec& spec, const Parts& parts, const PlanOptions& plan) {
  const auto& traits = parts.traits;
  std::int64_t floats = 0;
  std::uint64_t bytes = 0;
  std::int64_t heads = 0;
  std::int64_t k_cols = 0;
  std::int64_t v_cols = 0;
  std::int64_t layers = 0;
  std::uint64_t plain_pages = 0;    // of the layer with the most, decoded
  std::uint64_t chosen = 0;         // tables of chosen chunks, of the layer with the most
  std::uint64_t fetched_pages = 0;  // of rows that fetch everything
  for (std::int32_t i = 0; i < spec.layer_count(); ++i) {
    const auto& attention = spec.layer(i).attention;
    if (!attention) continue;
    ++layers;
    heads = std::max<std::int64_t>(heads, attention->heads);
    k_cols = std::max(k_cols, attention->k_cols());
    v_cols = std::max(v_cols, attention->v_cols());
    KvPageLayout page{.dtype = DType::f32,
                      .page_tokens = plan.page_tokens,
                      .heads = plan.heads_per_group,
                      .head_dim_k = attention->stored_dim_k(),
                      .head_dim_v = attention->stored_dim_v(),
                      .values_in_keys = attention->latent.has_value()};
    const auto groups = plan.sequences * std::int64_t{attention->kv_heads / plan.heads_per_group};
    plain_pages = std::max(plain_pages, size(groups * pages_for(plan.context, plan)) * page.page_bytes());
    page.dtype = parts.format.dtype(i, 0);
    const auto shortest = std::min<std::int64_t>(plan.fetched_values, plan.context);
    fetched_pages = std::max(fetched_pages, size(groups * pages_for(shortest, plan)) * page.page_bytes());
  }
  if (traits.drops_tokens && traits.needs_scores) floats += detail::score_work(heads, plan.context, plan.sequences);
  if (const auto& gates = parts.eviction.gates()) {
    floats += 2 * std::int64_t{gates->width} * plan.batch_tokens;
    for (std::size_t l = 0; l < gates->layers.size(); ++l)
      if (!gates->layers[l].query.empty())
        bytes += plan.backend->weight_bytes(DType::f32, 2 * std::int64_t{gates->width}, spec.dim, plan.layout);
  }
  if (traits.rebuild > 0) {
    const auto rows = traits.rebuild * plan.sequences;
    floats += rows * (spec.dim + k_cols + v_cols) + layers * (rows + plan.batch_tokens) * spec.dim;
    for (const auto& rope : spec.ropes) floats += rows * rope.dims;
  }
  if (plan.kv_layout_of) {
    bytes += plain_pages + plain_pages / 2;
    for (const auto& rope : spec.ropes) floats += plan.context * rope.dims;
  }
  if (plan.fetched_values > 0)
    bytes += fetched_pages + fetched_pages / 2 + detail::SlowValues::lane_bytes(spec, plan.fetched_values, plan.context);
  if (plan.read_tokens > 0)
    for (std::int32_t i = 0; i < spec.layer_count(); ++i) {
      const auto& attention = spec.layer(i).attention;
      const auto chunk = parts.format.chunk_tokens(i) > 0 ? parts.format.chunk_tokens(i) : plan.page_tokens;
      if (attention)
        chosen = std::max(chosen, detail::ChunkReads::most_memory(plan.read_tokens, chunk, plan.page_tokens, plan.context,
                                                                  plan.batch_tokens * attention->kv_heads / plan.heads_per_group));
    }
  return bytes + chosen + size(floats) * sizeof(float);
}

void add_components(MemoryPlan& result, const ModelSpec& spec, const Parts& parts, PlanOptions plan) {
  if (!plan.backend) plan.backend = make_cpu_backend();
  if (plan.context == 0) plan.context = detail::usual_context(spec);
  plan.batch_tokens = std::min(plan.batch_tokens, plan.context * plan.sequences);
  result.techniques += work_of_techniques(spec, parts, plan);
  for (std::int32_t i = 0; i < spec.layer_count(); ++i) {
    const auto& attention = spec.layer(i).attention;
    if (!attention || plan.kv_source_of(i) != i) continue;
    if (parts.traits.drops_tokens && attention->window <= 0)
      result.policies += size(plan.sequences) * numbers_of_layer(*attention, i, parts, plan);
    if (parts.traits.rebuild > 0)  // how every token entered the layer
      result.slow += size(plan.sequences * plan.context * spec.dim) * sizeof(float);
  }
}

}  // namespace

MemoryPlan plan_decoder(const ModelFile& file, const DecoderOptions& options, const PlanOptions& base) {
  const Parts parts(options);
  const auto wanted = plan_options(parts, options, base);
  auto result = plan(file, wanted);
  ModelSpec spec = read_spec(file, base.architectures);
  add_components(result, spec, parts, wanted);
  return result;
}

MemoryPlan plan_decoder(const ModelSpec& spec, DType weights, const DecoderOptions& options, const PlanOptions& base) {
  const Parts parts(options);
  const auto wanted = plan_options(parts, options, base);
  auto result = plan(spec, weights, wanted);
  add_components(result, spec, parts, wanted);
  return result;
}

}  // namespace skald::inline v0
