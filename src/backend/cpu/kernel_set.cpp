#include "backend/cpu/kernel_set.hpp"

#include <skald/backend/ops.hpp>

namespace skald::inline v0::cpu {

// The row kernels know these enumerations by number.
static_assert(static_cast<int>(Activation::silu) == 1 && static_cast<int>(Activation::gelu_tanh) == 2 &&
              static_cast<int>(Activation::gelu_erf) == 3 && static_cast<int>(Activation::relu) == 4 &&
              static_cast<int>(Activation::relu_squared) == 5 && static_cast<int>(Activation::tanh) == 6 &&
              static_cast<int>(Activation::sigmoid) == 7);
static_assert(static_cast<int>(NormKind::none) == 0 && static_cast<int>(NormKind::rms) == 1);
static_assert(kernels::RecurrentKernels::most_head == most_wkv_size &&
              kernels::RecurrentKernels::most_taps == most_conv_taps);
static_assert(static_cast<int>(RopeKind::interleaved) == 1 && static_cast<int>(RopeKind::half) == 2);
static_assert(static_cast<int>(ScoreKind::sum) == 0 && static_cast<int>(ScoreKind::max) == 1);

namespace {

#define SKALD_FILL_TABLE(isa_name)                                                \
  table.name = #isa_name;                                                         \
  table.matmul = kernels::isa_name::matmul_kernels(&table.matmul_count);          \
  table.attention = kernels::isa_name::attention_kernels(&table.attention_count); \
  table.rows = kernels::isa_name::row_kernels();                                  \
  table.recurrent = kernels::isa_name::recurrent_kernels()

}  // namespace

kernels::KernelTable kernel_table(Isa isa) noexcept {
  kernels::KernelTable table{};
  switch (isa) {
#if defined(__x86_64__) && !defined(SKALD_NO_AVX512)
    case Isa::avx512bf16:
      SKALD_FILL_TABLE(avx512vnni);
      table.name = "avx512bf16";
      break;
    case Isa::avx512vnni: SKALD_FILL_TABLE(avx512vnni); break;
    case Isa::avx512: SKALD_FILL_TABLE(avx512); break;
#endif
#if defined(__x86_64__)
    case Isa::avx2: SKALD_FILL_TABLE(avx2); break;
#endif
    default: SKALD_FILL_TABLE(baseline); break;
  }
  return table;
}
#undef SKALD_FILL_TABLE

KernelSet::KernelSet(Isa isa) : isa_(isa), table_(kernel_table(isa)) {
  matmul_.assign(table_.matmul, table_.matmul + table_.matmul_count);
#if defined(__x86_64__) && !defined(SKALD_NO_AVX512)
  if (isa != Isa::avx512bf16) return;
  int count = 0;
  const auto* better = kernels::avx512bf16::matmul_kernels(&count);
  for (auto& kernel : matmul_)
    for (int i = 0; i < count; ++i)
      if (better[i].type == kernel.type) kernel = better[i];
#endif
}

const kernels::MatmulKernel* KernelSet::matmul(DType type) const noexcept {
  for (const auto& kernel : all_matmul()) {
    if (kernel.type == type) return &kernel;
  }
  return nullptr;
}

const kernels::MatmulKernel* KernelSet::matmul_alone(DType type) const noexcept {
  for (const auto& kernel : all_matmul()) {
    // Lookups by plain code are no faster than unpacking.
    if (kernel.type == type && kernel.alone && isa_ != Isa::baseline) return &kernel;
  }
  return matmul(type);
}

const kernels::AttentionKernel* KernelSet::attention(DType type) const noexcept {
  for (const auto& kernel : all_attention()) {
    if (kernel.type == type) return &kernel;
  }
  return nullptr;
}

}  // namespace skald::inline v0::cpu
