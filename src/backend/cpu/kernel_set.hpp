#pragma once

// The kernels of one instruction set, found by type.

#include <span>
#include <vector>

#include "kernels/kernel_table.hpp"

#include <skald/core/dtype.hpp>
#include <skald/simd/isa.hpp>

namespace skald::inline v0::cpu {

/// Kernels of an instruction set that was compiled in and that this machine has.
[[nodiscard]] kernels::KernelTable kernel_table(Isa isa) noexcept;

class KernelSet {
 public:
  explicit KernelSet(Isa isa);
  KernelSet(KernelSet&&) = default;  // weights point to its kernels, which a move leaves where they are
  KernelSet& operator=(KernelSet&&) = default;
  [[nodiscard]] Isa isa() const noexcept { return isa_; }
  [[nodiscard]] const kernels::RowKernels& rows() const noexcept { return *table_.rows; }
  [[nodiscard]] const kernels::RecurrentKernels& recurrent() const noexcept { return *table_.recurrent; }
  /// Kernel of a weight format, or null.
  [[nodiscard]] const kernels::MatmulKernel* matmul(DType type) const noexcept;
  /// The one for matrices alone, if there is such a one; else as `matmul`.
  [[nodiscard]] const kernels::MatmulKernel* matmul_alone(DType type) const noexcept;
  /// Kernel of a KV format, or null.
  [[nodiscard]] const kernels::AttentionKernel* attention(DType type) const noexcept;
  [[nodiscard]] std::span<const kernels::MatmulKernel> all_matmul() const noexcept {
    return matmul_;
  }
  [[nodiscard]] std::span<const kernels::AttentionKernel> all_attention() const noexcept {
    return {table_.attention, static_cast<std::size_t>(table_.attention_count)};
  }

 private:
  Isa isa_;
  kernels::KernelTable table_;
  std::vector<kernels::MatmulKernel> matmul_;
};

}  // namespace skald::inline v0::cpu
