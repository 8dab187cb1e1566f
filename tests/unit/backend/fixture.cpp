#include "fixture.hpp"

#include <skald/simd/isa.hpp>

namespace skald_test {

std::vector<double> oracle_norm(std::vector<double> x, NormKind kind, const std::vector<double>& weight,
                                const std::vector<double>& bias, double epsilon) {
  if (kind == NormKind::none) return x;
  double mean = 0;
  for (const double v : x) mean += v / static_cast<double>(x.size());
  if (kind == NormKind::rms) mean = 0;
  double variance = 0;
  for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = (x[i] - mean) / std::sqrt(variance + epsilon);
    if (!weight.empty()) x[i] *= weight[i];
    if (kind == NormKind::layer && !bias.empty()) x[i] += bias[i];
  }
  return x;
}

double oracle_activation(double x, Activation kind) {
  const double pi = std::acos(-1.0);
  switch (kind) {
    case Activation::none: return x;
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu_tanh: return x / 2 * (1 + std::tanh(std::sqrt(2 / pi) * (x + 0.044715 * std::pow(x, 3))));
    case Activation::gelu_erf: return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::relu: return x > 0 ? x : 0;
    case Activation::relu_squared: return x > 0 ? x * x : 0;
    case Activation::tanh: return std::tanh(x);
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
  }
  return 0;
}

std::vector<Isa> tested_isas() {
#if defined(__SANITIZE_THREAD__)
  return {available_isas().back()};
#else
  return available_isas();
#endif
}

std::vector<Subject> subjects() {
  std::vector<Subject> all;
  all.push_back({"reference", make_reference_backend(), false});
  for (const Isa isa : tested_isas()) {
    CpuOptions options;
    options.isa = to_string(isa);
    options.threads = 3;
    all.push_back({"cpu " + options.isa, make_cpu_backend(options), true});
  }
  return all;
}

}  // namespace skald_test
