#pragma once

#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include <skald/core/executor.hpp>
#include <skald/core/progress.hpp>
#include <skald/model/model.hpp>
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

}  // namespace skald::inline v0
