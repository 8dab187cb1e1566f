#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <skald/model/model_spec.hpp>

namespace skald::inline v0 {

/// The matrices of a ClassifierSpec, f32, row-major; unused ones are empty.
struct ClassifierWeights {
  std::vector<float> dense{};        ///< [dense, dim]
  std::vector<float> dense_bias{};   ///< [dense]
  std::vector<float> output{};       ///< [output, dim or dense]
  std::vector<float> output_bias{};  ///< [output]
};

/// The classifier of a model, in the process's memory. Immutable, safe to use from several threads at once.
class SKALD_API Classifier {
 public:
  /// @throws UsageError if a size is not that of the spec.
  Classifier(ClassifierSpec spec, std::int64_t dim, ClassifierWeights weights);

  [[nodiscard]] const ClassifierSpec& spec() const noexcept { return spec_; }
  /// Number of logits.
  [[nodiscard]] std::int64_t count() const noexcept { return spec_.count(); }
  [[nodiscard]] std::int64_t dim() const noexcept { return dim_; }
  /// Logits of a hidden state of dim() elements, summed in double in ascending order. @throws UsageError if a size is
  /// another; NumericError if a logit is not finite.
  void apply(std::span<const float> state, std::span<float> logits) const;

 private:
  ClassifierSpec spec_;
  std::int64_t dim_ = 0;
  ClassifierWeights weights_;
};

}  // namespace skald::inline v0
