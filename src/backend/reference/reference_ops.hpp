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
      : Weight(source.type, source.rows, source.cols, source.matrices), values_(std::move(values)) {}
  [[nodiscard]] std::size_t bytes() const noexcept override { return values_.bytes(); }
  [[nodiscard]] std::string_view layout() const noexcept override { return "f32"; }
  [[nodiscard]] const float* row(std::int64_t r) const noexcept {
    return reinterpret_cast<const float*>(values_.address()) + r * cols();
  }

 private:
  Buffer values_;
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
