#include "backend/cpu/cpu_weight.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>

#include <fmt/format.h>

#include "backend/op_check.hpp"

#include <skald/core/error.hpp>

namespace skald::inline v0::cpu {

namespace {

constexpr std::string_view where = "backend.cpu";
constexpr std::size_t slice_bytes = std::size_t{1} << 20;

using kernels::panel_rows;

/// Runs slices [0, count) on all threads; the first exception ends it and is rethrown.
class Slices {
 public:
  Slices(std::int64_t count, const std::stop_token& stop) : count_(count), stop_(stop) {}

  template <class Make>
  void run(const AnyExecutor& executor, int participants, const Make& make) {
    const int wanted = static_cast<int>(std::min<std::int64_t>(participants, count_));
    const auto work = [&](int) {
      try {
        auto slice = make();
        for (std::int64_t s; !failed_.load(std::memory_order_relaxed) && (s = next_.fetch_add(1)) < count_;) {
          if (stop_.stop_requested()) detail::throw_error(ErrorCode::cancelled, where, "stop was requested");
          slice(s);
        }
      } catch (...) {
        const std::scoped_lock lock(mutex_);
        if (!error_) error_ = std::current_exception();
        failed_.store(true, std::memory_order_relaxed);
      }
    };
    if (wanted > 1) {
      executor.run(wanted, work);
    }
    work(0);  // what an executor left undone
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::int64_t count_;
  const std::stop_token& stop_;
  std::atomic<std::int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

void pack_panel(const kernels::MatmulKernel& kernel, const std::byte* first_row, std::int64_t present,
                std::size_t row_bytes, std::int64_t cols, std::byte* panel) noexcept {
  std::array<const std::byte*, panel_rows> rows{};
  for (std::int64_t i = 0; i < std::min<std::int64_t>(present, panel_rows); ++i) {
    rows[static_cast<std::size_t>(i)] = first_row + static_cast<std::size_t>(i) * row_bytes;
  }
  kernel.pack(rows.data(), cols, panel);
}

const kernels::MatmulKernel* find_kernel(const KernelSet& kernels, DType type) {
  const kernels::MatmulKernel* kernel = kernels.matmul(type);
  if (kernel == nullptr) {
    detail::throw_error(ErrorCode::unsupported, where,
                        fmt::format("no kernels for weights of type {}", to_string(type)));
  }
  return kernel;
}

}  // namespace

void CpuWeight::pack(std::int64_t p, std::byte* panel) const noexcept {
  const std::int64_t first = p % matrix_panels() * panel_rows;
  const std::byte* rows = row(p / matrix_panels() * matrix_rows() + first);
  pack_panel(kernel_, rows, matrix_rows() - first, row_bytes_, cols(), panel);
}

std::shared_ptr<const Weight> make_cpu_weight(const WeightSource& source, WeightLayout layout, const KernelSet& kernels,
                                              const AnyExecutor& executor, int participants, MemoryOptions memory,
                                              const std::stop_token& stop) {
  const std::size_t row_bytes = detail::check_weight_source(source, where);
  const kernels::MatmulKernel* kernel = find_kernel(kernels, source.type);
  if (stop.stop_requested()) detail::throw_error(ErrorCode::cancelled, where, "stop was requested");
  auto weight = std::make_shared<CpuWeight>(source, layout, *kernel, *kernels.matmul_alone(source.type), row_bytes);
  if (layout == WeightLayout::rows && !source.mapped.empty()) {
    weight->data_ = source.mapped.data();
    return weight;
  }
  weight->own_ = AlignedBuffer(weight->bytes(), memory);
  std::byte* out = weight->own_.data();
  weight->data_ = out;

  // Whole panels of about slice_bytes, of one matrix.
  const std::size_t per_panel = row_bytes * panel_rows;
  const auto panels_each = static_cast<std::int64_t>(std::max<std::size_t>(1, slice_bytes / per_panel));
  const std::int64_t matrix_rows = weight->matrix_rows();
  const std::int64_t rows_each = std::min(panels_each * panel_rows, weight->matrix_panels() * panel_rows);
  const std::int64_t slices_each = (matrix_rows + rows_each - 1) / rows_each;
  Slices slices(slices_each * source.matrices, stop);
  slices.run(executor, participants, [&] {
    const bool own_copy = layout == WeightLayout::packed && source.mapped.empty();
    return [&, buffer = AlignedBuffer(own_copy ? row_bytes * static_cast<std::size_t>(std::min(rows_each, matrix_rows))
                                               : 0)](std::int64_t s) mutable {
      const std::int64_t inside = s % slices_each * rows_each;
      const std::int64_t first = s / slices_each * matrix_rows + inside;
      const std::int64_t count = std::min(rows_each, matrix_rows - inside);
      const std::int64_t first_panel = s / slices_each * weight->matrix_panels() + inside / panel_rows;
      const std::size_t bytes = static_cast<std::size_t>(count) * row_bytes;
      const std::size_t offset = static_cast<std::size_t>(first) * row_bytes;
      if (layout == WeightLayout::rows) {
        source.read(first, count, {out + offset, bytes});
        return;
      }
      const std::byte* rows = source.mapped.empty() ? nullptr : source.mapped.data() + offset;
      if (source.mapped.empty()) {
        source.read(first, count, {buffer.data(), bytes});
        rows = buffer.data();
      }
      for (std::int64_t r = 0; r < count; r += panel_rows) {
        pack_panel(*kernel, rows + static_cast<std::size_t>(r) * row_bytes, count - r, row_bytes, source.cols,
                   out + static_cast<std::size_t>(first_panel + r / panel_rows) * weight->panel_bytes());
      }
    };
  });
  return weight;
}

std::shared_ptr<const Weight> use_packed_weight(const PackedWeight& packed, const KernelSet& kernels) {
  const auto no_rows = [](std::int64_t, std::int64_t, std::span<std::byte>) {};
  const WeightSource shape{.type = packed.type, .rows = packed.rows, .cols = packed.cols, .matrices = packed.matrices,
                           .mapped = {}, .read = no_rows};
  const std::size_t row_bytes = detail::check_weight_source(shape, where);
  auto weight = std::make_shared<CpuWeight>(shape, WeightLayout::packed, *find_kernel(kernels, packed.type),
                                            *kernels.matmul_alone(packed.type), row_bytes);
  if (packed.bytes.size() != weight->bytes() || reinterpret_cast<std::uintptr_t>(packed.bytes.data()) % 64 != 0) {
    detail::throw_error(ErrorCode::usage, where,
                        fmt::format("{} packed bytes at an address that is {} modulo 64; needed are {} at a multiple of it",
                                    packed.bytes.size(), reinterpret_cast<std::uintptr_t>(packed.bytes.data()) % 64,
                                    weight->bytes()));
  }
  weight->data_ = packed.bytes.data();
  weight->owner_ = packed.owner;
  return weight;
}

}  // namespace skald::inline v0::cpu
