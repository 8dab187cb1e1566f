// Four bits over a minimum, by groups (FlexGen, Sheng et al. 2023, arXiv 2303.06865).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <skald/core/random.hpp>
#include <skald/kernels/kv_codes.hpp>
#include <skald/state/kv_format.hpp>
#include <skald/state/kv_rows.hpp>

#include "support/catch.hpp"

namespace {

float half_at(const std::vector<std::byte>& page, std::size_t at) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, page.data() + at, 2);
  return skald::f16_to_f32(bits);
}

}  // namespace

TEST_CASE("state.group_codec: no element of a group is further off than half a step, whatever the numbers", "[state]") {
  skald::CounterRandom random(1, 2, 3);
  const auto uniform = [&] { return static_cast<float>(2 * random.uniform() - 1); };
  for (int round = 0; round < 400; ++round) {
    const auto dims = static_cast<std::int32_t>(1 + random.next() % 140);
    const skald::KvPageLayout layout{skald::DType::q4_1, 16, 1, dims, dims, false};
    std::vector<std::byte> page(layout.page_bytes());
    // Spreads and offsets over many orders of magnitude, and now and then one far element.
    const float spread = std::pow(10.0F, 3 * uniform());
    const float offset = round % 3 == 0 ? 0.0F : std::pow(10.0F, 4 * uniform()) * (round % 2 == 0 ? 1.0F : -1.0F);
    std::vector<float> x(static_cast<std::size_t>(dims));
    for (float& each : x) each = offset + spread * uniform() * (random.next() % 40 == 0 ? 20.0F : 1.0F);
    if (round % 7 == 0) std::fill(x.begin(), x.end(), offset);
    const auto slot = static_cast<std::int32_t>(random.next() % 16);
    skald::set_kv_key(layout, page.data(), slot, x.data());
    skald::set_kv_value(layout, page.data() + layout.values_offset(0), slot, x.data());
    for (std::int32_t d = 0; d < dims; ++d) {
      const auto place = layout.key_place(slot, d);
      const float step = half_at(page, place.scale);
      const float value = x[static_cast<std::size_t>(d)];
      // Beside half a step there is only the rounding of float arithmetic.
      const float bound = step / 2 + 4e-7F * std::max(std::abs(value), 15 * step);
      INFO("dims " << dims << " element " << d << " = " << value << ", step " << step);
      REQUIRE(std::abs(skald::kv_key_element(layout, page.data(), slot, d) - value) <= bound);
      REQUIRE(std::abs(skald::kv_value_element(layout, page.data() + layout.values_offset(0), slot, d) - value) <= bound);
      // The step is no wider than the group and the rounding of its two numbers ask for.
      const auto begin = static_cast<std::ptrdiff_t>(d / 32 * 32);
      const auto end = std::min<std::ptrdiff_t>(begin + 32, dims);
      const bool padded = end - begin < 32;
      const auto [low, high] = std::minmax_element(x.begin() + begin, x.begin() + end);
      const float bottom = padded ? std::min(0.0F, *low) : *low;
      const float top = padded ? std::max(0.0F, *high) : *high;
      REQUIRE(step <= ((top - bottom) / 15 + std::abs(bottom) / 1024 / 15) * 1.002F + 2e-7F);
    }
  }
}

TEST_CASE("state.group_codec: takes five bits per element, copies slots whole, and passes on what is not finite", "[state]") {
  CHECK(skald::AnyKvFormat("q4_1").dtype() == skald::DType::q4_1);
  const skald::KvPageLayout layout{skald::DType::q4_1, 16, 2, 64, 96, false};
  CHECK(layout.token_bytes() == (64 + 96) * 5 / 8);
  std::vector<std::byte> page(layout.page_bytes()), other(layout.page_bytes());
  skald::CounterRandom random(5, 0, 0);
  std::vector<float> key(64), value(96);
  for (std::int32_t head = 0; head < 2; ++head) {
    for (float& each : key) each = static_cast<float>(random.uniform());
    for (float& each : value) each = static_cast<float>(random.uniform());
    skald::write_kv_key(layout, page.data(), head, 3, key);
    skald::write_kv_value(layout, page.data(), head, 3, value);
  }
  skald::copy_kv_slot(layout, page.data(), 3, other.data(), 9);
  std::vector<std::byte> row(skald::kv_slot_bytes(layout)), same(row.size());
  skald::move_kv_slot<false>(layout, page.data(), 3, row.data());
  skald::move_kv_slot<false>(layout, other.data(), 9, same.data());
  CHECK(row == same);
  std::vector<std::byte> again(layout.page_bytes());
  skald::move_kv_slot<true>(layout, again.data(), 3, row.data());
  CHECK(again == page);

  key[40] = INFINITY;
  skald::write_kv_key(layout, page.data(), 0, 3, key);
  CHECK(std::isfinite(skald::kv_key_element(layout, page.data(), 3, 0)));
  CHECK(std::isnan(skald::kv_key_element(layout, page.data(), 3, 33)));
}
