// The part of DiscriminativeMerge that looks for the tokens which those that leave are merged into.
#include <algorithm>
#include <cmath>
#include <limits>

#include <skald/state/policies.hpp>

#include "backend/cpu/kernel_set.hpp"

namespace skald::inline v0 {

namespace {

using kernels::RowKernels;

constexpr std::size_t lanes = 16;  // slots side by side, as keys lie in pages
constexpr std::size_t width = RowKernels::compared_rows;

/// The token that stays with the most similar key.
struct Nearest {
  std::int64_t into = -1;
  float similarity = -2.0F;
};

/// The keys of the slots that leave, all heads of a group in a row, made of length one: [tiles][stride][width].
struct LeavingKeys {
  std::vector<std::int64_t> slots{};
  std::vector<float> rows{};
  std::size_t stride = 0;
  std::size_t tiles = 0;

  LeavingKeys(const EvictionView& view, const EvictionChoice& choice) {
    const auto dims = static_cast<std::size_t>(view.key_dims);
    stride = dims * static_cast<std::size_t>(view.heads);
    for (std::int64_t slot = 0; slot < view.slots(); ++slot)
      if (!choice.kept(slot)) slots.push_back(slot);
    tiles = (slots.size() + width - 1) / width;
    rows.assign(tiles * width * stride, 0.0F);
    std::vector<float> row(stride);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      float square = 0.0F;
      for (int head = 0; head < view.heads; ++head)
        (*view.read_key)(head, slots[i], {row.data() + static_cast<std::size_t>(head) * dims, dims});
      for (const float x : row) square += x * x;
      const float scale = 1.0F / std::sqrt(square + 1e-30F);
      float* out = rows.data() + i / width * width * stride + i % width;
      for (std::size_t d = 0; d < stride; ++d) out[d * width] = row[d] * scale;
    }
  }
};

/// Of each leaving key the most similar that stays, the oldest of equal ones.
std::vector<Nearest> find_nearest(const EvictionView& view, const EvictionChoice& choice, const LeavingKeys& leaving) {
  const auto* const kernels = cpu::kernel_table(default_isa()).rows;
  const auto dims = static_cast<std::size_t>(view.key_dims);
  std::vector<float> keys(leaving.stride * lanes);
  std::vector<float> best(leaving.tiles * width * lanes, -2.0F);
  std::vector<std::int32_t> slots;
  slots.assign(best.size(), -1);
  for (std::int64_t slot = 0; slot < view.slots(); slot += static_cast<std::int64_t>(lanes)) {
    float penalties[lanes];
    for (std::size_t i = 0; i < lanes; ++i) {
      const auto other = slot + static_cast<std::int64_t>(i);
      penalties[i] = other < view.slots() && choice.kept(other) ? 0.0F : -std::numeric_limits<float>::infinity();
    }
    for (int head = 0; head < view.heads; ++head)
      (*view.read_keys)(head, slot, std::span(keys).subspan(static_cast<std::size_t>(head) * dims * lanes, dims * lanes));
    kernels->compare_keys(leaving.rows.data(), static_cast<std::int64_t>(leaving.tiles), keys.data(),
                          static_cast<std::int64_t>(leaving.stride), penalties, static_cast<std::int32_t>(slot), best.data(),
                          slots.data());
  }
  std::vector<Nearest> nearest(leaving.slots.size());
  for (std::size_t i = 0; i < nearest.size() * lanes; ++i) {
    auto& each = nearest[i / lanes];
    if (best[i] > each.similarity || (best[i] == each.similarity && slots[i] >= 0 && slots[i] < each.into))
      each = {slots[i], best[i]};
  }
  return nearest;
}

}  // namespace

void DiscriminativeMerge::merge_similar(const EvictionView& view, EvictionChoice& choice) const {
  const LeavingKeys leaving(view, choice);
  const auto nearest = find_nearest(view, choice, leaving);
  float mean = 0.0F;
  for (std::size_t i = 0; i < leaving.slots.size(); ++i) mean += nearest[i].similarity;
  mean /= static_cast<float>(leaving.slots.size());
  float& threshold = view.memory[0];
  float& seen = view.memory[1];
  threshold = seen == 0.0F ? mean : static_cast<float>(follow) * mean + static_cast<float>(1 - follow) * threshold;
  seen = 1.0F;
  const auto count = [&](std::int64_t slot) {
    return view.counts.empty() ? 1.0F : static_cast<float>(view.counts[static_cast<std::size_t>(slot)]);
  };
  for (std::size_t i = 0; i < leaving.slots.size(); ++i) {
    if (nearest[i].similarity < threshold - 1e-5F) continue;  // of equal ones rounding must not drop any
    choice.set_weight(nearest[i].into, std::exp(1.0F) * count(nearest[i].into));
    choice.set_weight(leaving.slots[i], std::exp(nearest[i].similarity) * count(leaving.slots[i]));
    choice.merge(leaving.slots[i], nearest[i].into);
  }
}

}  // namespace skald::inline v0
