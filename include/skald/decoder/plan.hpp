#pragma once

#include <skald/decoder/options.hpp>
#include <skald/model/plan.hpp>

namespace skald::inline v0 {

/// Bytes that a decoder with these options takes, before any is allocated: plan() with what KV format and eviction policy need
/// beside. Of `base` counts what decoder options do not say: backend, layout, architectures, widths, logits_rows.
/// @throws as plan(), AnyKvFormat and AnyEviction::from_spec.
[[nodiscard]] SKALD_API MemoryPlan plan_decoder(const ModelFile& file, const DecoderOptions& options,
                                                const PlanOptions& base = {});
/// For a network that exists only as a spec: all matrices in the format `weights`, vectors in f32.
[[nodiscard]] SKALD_API MemoryPlan plan_decoder(const ModelSpec& spec, DType weights, const DecoderOptions& options,
                                                const PlanOptions& base = {});

}  // namespace skald::inline v0
