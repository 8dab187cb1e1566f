#pragma once

// Sizes that the decoder and its plan have in common.

#include <algorithm>
#include <cstdint>

#include <skald/backend/ops.hpp>
#include <skald/model/model_spec.hpp>

namespace skald::inline v0::detail {

/// Tokens of a session if nobody says.
[[nodiscard]] inline std::int64_t usual_context(const ModelSpec& spec) noexcept {
  return std::min<std::int64_t>(spec.context_length, 4096);
}

/// Floats of ScoreSink::work: for one row of every session, within reason; a pass with more computes logits again.
[[nodiscard]] constexpr std::int64_t score_work(std::int64_t heads, std::int64_t context, std::int64_t sessions) noexcept {
  constexpr std::int64_t enough = std::int64_t{16} << 20;
  return std::min(enough, heads * score_work_floats(context) * sessions);
}

}  // namespace skald::inline v0::detail
