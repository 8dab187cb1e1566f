#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string_view>

#include "backend/cpu/kernel_set.hpp"

#include <skald/backend/backend.hpp>
#include <skald/core/memory.hpp>
#include <skald/quant/row_codec.hpp>

namespace skald::inline v0::cpu {

/// A weight of the cpu backend: panels of sixteen rows, or the rows of the file. Each matrix of a stack begins with a
/// panel of its own.
class CpuWeight final : public Weight {
 public:
  CpuWeight(const WeightSource& source, WeightLayout layout, const kernels::MatmulKernel& kernel,
            const kernels::MatmulKernel& alone, std::size_t row_bytes) noexcept
      : Weight(source.type, source.rows, source.cols, source.matrices),
        kernel_(kernel),
        alone_(alone),
        layout_(layout),
        row_bytes_(row_bytes),
        panel_bytes_(kernel.panel_bytes(source.cols)) {}

  /// The first rows and columns of another weight, which is kept.
  CpuWeight(std::shared_ptr<const CpuWeight> whole, std::int64_t rows, std::int64_t cols) noexcept
      : Weight(whole->type(), rows, cols),
        kernel_(whole->kernel_),
        alone_(whole->alone_),
        layout_(whole->layout_),
        row_bytes_(whole->row_bytes_),
        panel_bytes_(whole->panel_bytes_),
        data_(whole->data_),
        whole_(std::move(whole)) {}

  /// Of a part of another weight what it would hold alone.
  [[nodiscard]] std::size_t bytes() const noexcept override {
    if (layout_ == WeightLayout::packed) return kernel_.panel_bytes(cols()) * static_cast<std::size_t>(panels());
    return (whole_ ? skald::row_bytes(type(), static_cast<std::size_t>(cols())) : row_bytes_) *
           static_cast<std::size_t>(rows());
  }
  [[nodiscard]] std::string_view layout() const noexcept override {
    return layout_ == WeightLayout::rows ? "rows" : "panel16";
  }

  [[nodiscard]] const kernels::MatmulKernel& kernel() const noexcept { return kernel_; }
  /// That of linear maps: see MatmulKernel::alone.
  [[nodiscard]] const kernels::MatmulKernel& linear_kernel() const noexcept { return alone_; }
  /// Rows and panels of one matrix of a stack, and panels of all.
  [[nodiscard]] std::int64_t matrix_rows() const noexcept { return rows() / matrices(); }
  [[nodiscard]] std::int64_t matrix_panels() const noexcept {
    return (matrix_rows() + kernels::panel_rows - 1) / kernels::panel_rows;
  }
  [[nodiscard]] std::int64_t panels() const noexcept { return matrices() * matrix_panels(); }
  [[nodiscard]] bool packed() const noexcept { return layout_ == WeightLayout::packed; }
  [[nodiscard]] std::size_t panel_bytes() const noexcept { return panel_bytes_; }
  [[nodiscard]] std::size_t row_bytes() const noexcept { return row_bytes_; }
  /// True if a panel ends with columns that are not used: the next one does not follow at once.
  [[nodiscard]] bool gaps() const noexcept { return panel_bytes_ != kernel_.panel_bytes(cols()); }
  /// Panel p of a packed weight.
  [[nodiscard]] const std::byte* panel(std::int64_t p) const noexcept {
    return data_ + static_cast<std::size_t>(p) * panel_bytes_;
  }
  /// Row r of a weight in file order.
  [[nodiscard]] const std::byte* row(std::int64_t r) const noexcept {
    return data_ + static_cast<std::size_t>(r) * row_bytes_;
  }
  /// All panels of a packed weight that is no part of another.
  [[nodiscard]] std::span<const std::byte> packed_bytes() const noexcept {
    return packed() && !whole_ ? std::span(data_, bytes()) : std::span<const std::byte>();
  }
  /// Makes panel p of a weight in file order.
  void pack(std::int64_t p, std::byte* panel) const noexcept;

 private:
  friend std::shared_ptr<const Weight> make_cpu_weight(const WeightSource&, WeightLayout, const KernelSet&,
                                                       const AnyExecutor&, int, MemoryOptions, const std::stop_token&);
  friend std::shared_ptr<const Weight> use_packed_weight(const PackedWeight&, const KernelSet&);
  const kernels::MatmulKernel& kernel_;
  const kernels::MatmulKernel& alone_;
  WeightLayout layout_;
  std::size_t row_bytes_;
  std::size_t panel_bytes_;
  AlignedBuffer own_{};
  std::shared_ptr<const void> owner_{};
  const std::byte* data_ = nullptr;
  std::shared_ptr<const CpuWeight> whole_{};  // whose memory it uses
};

/// Reads and rearranges a weight on up to `participants` threads. Beside the weight itself it holds at most about
/// 1 MiB (or sixteen rows) per thread. @throws UsageError, UnsupportedError, CancelledError, what `source.read` throws.
std::shared_ptr<const Weight> make_cpu_weight(const WeightSource& source, WeightLayout layout, const KernelSet& kernels,
                                              const AnyExecutor& executor, int participants, MemoryOptions memory,
                                              const std::stop_token& stop);

/// A weight of panels that exist. @throws UnsupportedError, UsageError.
std::shared_ptr<const Weight> use_packed_weight(const PackedWeight& packed, const KernelSet& kernels);

}  // namespace skald::inline v0::cpu
