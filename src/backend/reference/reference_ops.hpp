#pragma once

// The ops, written for obviousness: one row, one head, one output at a time; sums in double, rounded once.

#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string_view>

#include <skald/backend/backend.hpp>

namespace skald::inline v0::reference {

/// A weight decoded to f32, row-major.
class ReferenceWeight final : public Weight {
 public:
  ReferenceWeight(const WeightSource& source, Buffer values) noexcept
      : Weight(source.type, source.rows, source.cols, source.matrices),
        values_(std::move(values)),
        stride_(source.cols) {}
  /// The first rows and columns of another one.
  ReferenceWeight(const ReferenceWeight& whole, std::int64_t rows, std::int64_t cols) noexcept
      : Weight(whole.type(), rows, cols), values_(whole.values_), stride_(whole.stride_) {}
  [[nodiscard]] std::size_t bytes() const noexcept override {
    return static_cast<std::size_t>(rows() * cols()) * sizeof(float);
  }
  [[nodiscard]] std::string_view layout() const noexcept override { return "f32"; }
  [[nodiscard]] const float* row(std::int64_t r) const noexcept {
    return reinterpret_cast<const float*>(values_.address()) + r * stride_;
  }

 private:
  Buffer values_;
  std::int64_t stride_;  // from row to row
};

/// Runs one op. Shapes and host data were checked. @throws CancelledError.
void run_op(const Op& op, const std::stop_token& stop);

// Ops with a recurrent state, and what they come with (reference_recurrent.cpp).
void run(const ConvOp& op, const std::stop_token& stop);
void run(const ScanOp& op, const std::stop_token& stop);
void run(const TokenShiftOp& op, const std::stop_token& stop);
void run(const WkvOp& op, const std::stop_token& stop);
void run(const MultiplyOp& op, const std::stop_token& stop);
void run(const LerpOp& op, const std::stop_token& stop);

/// activation(x).
[[nodiscard]] double activate(double x, Activation kind) noexcept;

}  // namespace skald::inline v0::reference
