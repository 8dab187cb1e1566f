#pragma once

#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include <skald/core/executor.hpp>
#include <skald/core/progress.hpp>
#include <skald/model/model.hpp>
#include <skald/state/chunked_kv.hpp>
#include <skald/state/coupled.hpp>
#include <skald/text/vocabulary.hpp>

namespace skald::inline v0 {

/// How codebooks are calibrated.
struct CalibrateOptions {
  CoupledShape shape{};
  CoupledFit fit{};
  /// Most tokens that are used; each centroid wants some tens. Memory: one layer's keys and values of them as floats,
  /// for all layers.
  std::int64_t tokens = 16384;
  std::optional<AnyExecutor> executor{};  ///< nothing: a oneTBB arena of its own
  std::stop_token stop{};
  ProgressCallback progress{};  ///< stages "calibrate", in tokens, and "k-means", in layers
};

/// Learns the codebooks of the KV format "coupled" from the keys (before rotation) and values that a model computes for
/// texts; each text begins anew and is cut at the model's context. @throws UsageError, IncompatibleError for models
/// without keys and values, NumericError, CancelledError.
[[nodiscard]] SKALD_API CoupledCodebooks calibrate_coupled(const Model& model,
                                                           std::span<const std::vector<TokenId>> texts,
                                                           const CalibrateOptions& options = {});

/// Tokens of each layer's chunks, for KV formats with chunks ("f16;chunks=256 of 64,32"): few where attention falls on few
/// tokens, powers of two between `least_tokens` and `most_tokens`. Means over texts, of which each begins anew. `least_tokens`
/// is to be kv.page_tokens or a power of two times that. @see chunk_tokens_for @throws UsageError, IncompatibleError, CancelledError.
[[nodiscard]] SKALD_API std::vector<std::int32_t> measure_chunk_tokens(const Model& model,
                                                                       std::span<const std::vector<TokenId>> texts,
                                                                       const ChunkedKvOptions& options = {},
                                                                       std::stop_token stop = {});

}  // namespace skald::inline v0
