// The elementary functions of the attention kernels, compiled for the baseline: without fused multiply-add they are at
// their least accurate.

#include <cmath>
#include <limits>

#include "kernels/kernel_table.hpp"

#undef SKALD_ISA
#define SKALD_ISA test_baseline
#include "simd/vec.hpp"

namespace skald::inline v0 {
namespace kernels {
namespace SKALD_ISA {
namespace {
inline constexpr int score_stride = 16;
#include "kernels/attention_tiles.inl.hpp"

float exp2_of(float x) {
  float lane[16];
  store(lane, exp2(set1(x)));
  return lane[3];
}
float tanh_of(float x) {
  float lane[16];
  store(lane, tanh(set1(x)));
  return lane[3];
}
}  // namespace
}  // namespace SKALD_ISA
}  // namespace kernels
}  // namespace skald::inline v0

#include "support/catch.hpp"

namespace kernels = skald::kernels::test_baseline;

TEST_CASE("kernels.attention: 2^x is within 2 units in the last place, exact at 0, and 0 far below", "[kernels]") {
  double worst = 0;
  for (float x = -126.0F; x < 0.0F; x += 1.97e-4F) {
    const double exact = std::exp2(double{x});
    const double unit = std::ldexp(1.0, std::ilogb(exact) - 23);
    worst = std::max(worst, std::abs(kernels::exp2_of(x) - exact) / unit);
  }
  for (float x = -1.0F; x < -1e-30F; x *= 0.9999F) {
    const double exact = std::exp2(double{x});
    worst = std::max(worst, std::abs(kernels::exp2_of(x) - exact) / 0x1p-24);
  }
  INFO("largest error in units in the last place: " << worst);
  CHECK(worst < 2.0);
  CHECK(worst > 0.4);
  CHECK(kernels::exp2_of(0.0F) == 1.0F);
  CHECK(kernels::exp2_of(-0.0F) == 1.0F);
  CHECK(kernels::exp2_of(-126.0F) == 0x1p-126F);
  for (const float x : {-126.01F, -150.0F, -1e10F, -3e38F, -std::numeric_limits<float>::infinity()}) {
    CHECK(kernels::exp2_of(x) == 0.0F);
  }
  CHECK(std::isnan(kernels::exp2_of(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("kernels.attention: tanh is within 4e-7 and odd", "[kernels]") {
  double worst = 0;
  for (float x = -12.0F; x < 12.0F; x += 1.7e-3F) {
    worst = std::max(worst, std::abs(kernels::tanh_of(x) - std::tanh(double{x})));
    CHECK(kernels::tanh_of(-x) == -kernels::tanh_of(x));
  }
  CHECK(worst < 4e-7);
  CHECK(kernels::tanh_of(1e30F) == 1.0F);
  CHECK(kernels::tanh_of(std::numeric_limits<float>::infinity()) == 1.0F);
  CHECK(std::isnan(kernels::tanh_of(std::numeric_limits<float>::quiet_NaN())));
}
