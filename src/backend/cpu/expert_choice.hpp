#pragma once

// Which experts a token uses.

#include <cstdint>

#include <skald/backend/ops.hpp>

namespace skald::inline v0::cpu {

/// Numbers of scratch that choose_experts needs.
[[nodiscard]] constexpr std::int64_t choice_scores(std::int64_t experts) noexcept { return 2 * experts; }

/// The `op.used` experts of a token from the largest score down, of equal ones the lower first, and their shares, scaled.
/// `scores` has choice_scores(experts) elements.
void choose_experts(const ExpertsOp& op, std::int64_t token, double* scores, std::int32_t* chosen,
                    float* shares) noexcept;

}  // namespace skald::inline v0::cpu
