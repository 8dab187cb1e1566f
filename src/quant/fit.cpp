#include "quant/fit.hpp"

#include <cmath>

namespace skald::inline v0::quant::fit {

std::uint16_t scale_bits(float scale, float top, float limit) noexcept {
  const std::uint16_t bits = f32_to_f16(scale);
  const float stored = std::fabs(f16_to_f32(bits));
  // Normal binary16 values are within 2^-12 of the scale, far less than half a code of any format here.
  if (stored >= 0x1p-14F || top < stored * (limit + 0.5F) || top < 0x1p-26F) return bits;
  return static_cast<std::uint16_t>(bits + 1);
}

void load_weights(const float* importance, std::size_t n, float* weights) noexcept {
  float top = 0;
  if (importance)
    for (std::size_t i = 0; i < n; ++i) top = importance[i] > top ? importance[i] : top;
  for (std::size_t i = 0; i < n; ++i) weights[i] = top > 0 ? importance[i] / top : 1.0F;
}

double coded_error(const float* x, const float* w, std::size_t n, float scale, float minimum, int low,
                   int high) noexcept {
  const float inverse = inverse_of(scale);
  LaneSum error;
  for (std::size_t i = 0; i < n; i += LaneSum::lanes) {
    for (std::size_t l = 0; l < LaneSum::lanes; ++l) {
      const float q = float_code(x[i + l] + minimum, inverse, static_cast<float>(low), static_cast<float>(high));
      const float difference = scale * q - minimum - x[i + l];
      error.part[l] += w[i + l] * (difference * difference);
    }
  }
  return error.total();
}

namespace {

// Position of the extreme code relative to the end of the code range, in codes. Negative values shrink the range used,
// positive ones clip the extreme value, which pays when it is an outlier.
constexpr double first_shift = -0.9;
constexpr double shift_step = 0.15;
constexpr int shifts = 17;  // up to 1.5

}  // namespace

double symmetric_scale(const float* x, const float* w, std::size_t n, int low, int high) noexcept {
  float extreme = 0;
  for (std::size_t i = 0; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  if (extreme == 0) return 0;
  double best_gain = 0;
  double best_scale = 0;
  for (int step = 0; step < shifts; ++step) {
    const auto inverse = static_cast<float>((low - (first_shift + shift_step * step)) / static_cast<double>(extreme));
    LaneSum xq_sum;
    LaneSum qq_sum;
    for (std::size_t i = 0; i < n; i += LaneSum::lanes) {
      for (std::size_t l = 0; l < LaneSum::lanes; ++l) {
        const float q = float_code(x[i + l], inverse, static_cast<float>(low), static_cast<float>(high));
        const float wq = w[i + l] * q;
        xq_sum.part[l] += wq * x[i + l];
        qq_sum.part[l] += wq * q;
      }
    }
    const double xq = xq_sum.total();
    const double qq = qq_sum.total();
    // With the best scale xq / qq the error is sum w x^2 - xq^2 / qq.
    if (qq > 0 && xq * xq > best_gain * qq) {
      best_gain = xq * xq / qq;
      best_scale = xq / qq;
    }
  }
  return best_scale;
}

Affine affine_fit(const float* x, const float* w, std::size_t n, int high, bool free_minimum) noexcept {
  float smallest = x[0];
  float largest = x[0];
  double sum_w = 0;
  double sum_x = 0;
  double sum_xx = 0;
  for (std::size_t i = 0; i < n; ++i) {
    smallest = x[i] < smallest ? x[i] : smallest;
    largest = x[i] > largest ? x[i] : largest;
    sum_w += w[i];
    sum_x += static_cast<double>(w[i]) * x[i];
    sum_xx += static_cast<double>(w[i]) * x[i] * x[i];
  }
  if (!free_minimum && smallest > 0) smallest = 0;
  const double range = static_cast<double>(largest) - smallest;
  if (range <= 0) return {0, -static_cast<double>(smallest)};
  Affine best{range / high, -static_cast<double>(smallest)};
  double best_error = -1;
  for (int step = 0; step < shifts; ++step) {
    const auto inverse = static_cast<float>((high + first_shift + shift_step * step) / range);
    LaneSum q1_sum;
    LaneSum q2_sum;
    LaneSum xq_sum;
    for (std::size_t i = 0; i < n; i += LaneSum::lanes) {
      for (std::size_t l = 0; l < LaneSum::lanes; ++l) {
        const float q = float_code(x[i + l] - smallest, inverse, 0, static_cast<float>(high));
        const float wq = w[i + l] * q;
        q1_sum.part[l] += wq;
        q2_sum.part[l] += wq * q;
        xq_sum.part[l] += wq * x[i + l];
      }
    }
    const double q1 = q1_sum.total();
    const double q2 = q2_sum.total();
    const double xq = xq_sum.total();
    const double determinant = sum_w * q2 - q1 * q1;
    if (!(determinant > 0)) continue;
    double scale = (sum_w * xq - sum_x * q1) / determinant;
    double offset = (q2 * sum_x - q1 * xq) / determinant;
    double error = sum_xx - scale * xq - offset * sum_x;
    if (!free_minimum && offset > 0) {
      offset = 0;
      scale = xq / q2;
      error = sum_xx - scale * xq;
    }
    if (scale > 0 && (best_error < 0 || error < best_error)) {
      best_error = error;
      best = {scale, -offset};
    }
  }
  return best;
}

}  // namespace skald::inline v0::quant::fit
