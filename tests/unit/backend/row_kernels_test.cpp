// Elementwise functions of every instruction set: their accuracy, and that an element's place does not matter.

#include <limits>

#include "backend/cpu/kernel_set.hpp"
#include "fixture.hpp"

#include <skald/simd/isa.hpp>

using namespace skald;
using namespace skald_test;
using skald::cpu::KernelSet;

namespace {

std::vector<float> sweep() {
  std::vector<float> x;
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<float>(i) * 0.0301F);
  for (float v = 1e-30F; v < 1.0F; v *= 1.7F) {
    x.push_back(v);
    x.push_back(-v);
  }
  return x;
}

double ulp(double x) {
  const auto f = static_cast<float>(std::abs(x));
  return static_cast<double>(std::nextafter(f, std::numeric_limits<float>::infinity()) - f);
}

}  // namespace

TEST_CASE("kernels.rows: activations are exact to a few units in the last place", "[backend]") {
  const std::vector<float> x = sweep();
  for (const Isa isa : tested_isas()) {
    const KernelSet kernels(isa);
    for (const Activation kind :
         {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::relu_squared,
          Activation::tanh, Activation::sigmoid}) {
      std::vector<float> y(x.size());
      kernels.rows().activate(x.data(), static_cast<int>(kind), static_cast<std::int64_t>(x.size()), y.data());
      double worst = 0;
      double worst_at = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double expected = oracle_activation(static_cast<double>(x[i]), kind);
        // For negative x gelu is a difference: there the error counts against x.
        const bool gelu = kind == Activation::gelu_tanh || kind == Activation::gelu_erf;
        const double scale = std::max(std::abs(expected), gelu ? std::abs(static_cast<double>(x[i])) * 0.5 : 0.0);
        const double error = std::abs(static_cast<double>(y[i]) - expected) / std::max(ulp(scale), 1e-37);
        if (!(error <= worst)) {
          worst = error;
          worst_at = static_cast<double>(x[i]);
        }
      }
      INFO(to_string(isa) << ", activation " << static_cast<int>(kind) << ", worst at " << worst_at);
      CHECK(worst < 4.0);
    }
    std::vector<float> y(x.size());
    kernels.rows().softcap(x.data(), 1.0F, 1.0F, static_cast<std::int64_t>(x.size()), y.data());
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = std::tanh(static_cast<double>(x[i]));
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) - expected) / ulp(expected));
    }
    INFO(to_string(isa) << ", tanh");
    CHECK(worst < 4.0);
  }
}

TEST_CASE("kernels.rows: infinities and NaN come through as they should", "[backend]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {inf, -200.0F, -0.0F, 0.0F, std::numeric_limits<float>::quiet_NaN(), 3e38F};
  for (const Isa isa : tested_isas()) {
    INFO(to_string(isa));
    const KernelSet kernels(isa);
    std::vector<float> y(6);
    kernels.rows().activate(x.data(), static_cast<int>(Activation::silu), 6, y.data());
    CHECK(y[0] == inf);
    CHECK(std::abs(y[1]) < 1e-36F);
    CHECK(y[2] == 0.0F);
    CHECK(std::isnan(y[4]));
    CHECK(y[5] == 3e38F);
    kernels.rows().softcap(x.data(), 1.0F, 30.0F, 6, y.data());
    CHECK(y[0] == 30.0F);
    CHECK(y[1] > -30.1F);
    CHECK(std::signbit(y[2]));
    CHECK(std::isnan(y[4]));
  }
}

TEST_CASE("kernels.rows: an element's result does not depend on its place or its neighbours", "[backend]") {
  std::mt19937 random(3);
  std::vector<float> x(101), gate(101);
  for (float& v : x) v = uniform(random, -8, 8);
  for (float& v : gate) v = uniform(random, -8, 8);
  for (const Isa isa : tested_isas()) {
    const kernels::RowKernels& rows = KernelSet(isa).rows();
    for (int kind = 0; kind <= 5; ++kind) {
      std::vector<float> whole(101), single(101), gated(101), gated_single(101), capped(101), capped_single(101);
      rows.activate(x.data(), kind, 101, whole.data());
      rows.gated(gate.data(), x.data(), kind, 101, gated.data());
      rows.softcap(x.data(), 0.3F, 5.0F, 101, capped.data());
      std::vector<float> sum = gate;
      std::vector<float> sum_single = gate;
      std::vector<float> clamped(101), clamped_single(101);
      rows.clamped_gate(gate.data(), x.data(), 1.702F, 0.5F, 101, clamped.data());
      rows.add(x.data(), 0.7F, 101, sum.data());
      for (std::size_t i = 0; i < 101; ++i) {
        rows.activate(&x[i], kind, 1, &single[i]);
        rows.gated(&gate[i], &x[i], kind, 1, &gated_single[i]);
        rows.softcap(&x[i], 0.3F, 5.0F, 1, &capped_single[i]);
        rows.add(&x[i], 0.7F, 1, &sum_single[i]);
        rows.clamped_gate(&gate[i], &x[i], 1.702F, 0.5F, 1, &clamped_single[i]);
      }
      INFO(to_string(isa) << ", activation " << kind);
      CHECK(same_bits(whole, single));
      CHECK(same_bits(gated, gated_single));
      CHECK(same_bits(capped, capped_single));
      CHECK(same_bits(sum, sum_single));
      CHECK(same_bits(clamped, clamped_single));
    }
  }
}
