#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_float.inl.hpp"
#include "kernels/matmul_parts.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

namespace {

using Multiply = decltype(MatmulKernel::multiply);

template <class F>
constexpr MatmulKernel block_kernel(DType type, Multiply multiply_panels) noexcept {
  using A = typename ActsOf<F::block_k>::type;
  return {type, group_columns, &panel_bytes<F>, &pack<F>, &unpack_row<F>, &acts_bytes<A>, &prepare_acts<A>,
          &scratch_bytes<F>, multiply_panels, A::id};
}

template <class E>
constexpr MatmulKernel float_kernel(DType type, Multiply multiply_panels) noexcept {
  return {type, group_columns, &float_panel_bytes<E>, &float_pack<E>, &float_unpack_row<E>, &acts_bytes<ActsF32>,
          &prepare_acts<ActsF32>, &no_scratch, multiply_panels, ActsF32::id};
}

constexpr MatmulKernel all_kernels[] = {
    float_kernel<ElementF32>(DType::f32, &multiply_f32),
    float_kernel<ElementF16>(DType::f16, &multiply_f16),
    float_kernel<ElementBF16>(DType::bf16, &multiply_bf16),
    block_kernel<FormatQ8_0>(DType::q8_0, &multiply_q8_0),
    block_kernel<FormatQ4_0>(DType::q4_0, &multiply_q4_0),
    block_kernel<FormatQ4_1>(DType::q4_1, &multiply_q4_1),
    block_kernel<FormatQ5_0>(DType::q5_0, &multiply_q5_0),
    block_kernel<FormatQ5_1>(DType::q5_1, &multiply_q5_1),
    block_kernel<FormatQ4_K>(DType::q4_k, &multiply_q4_k),
    block_kernel<FormatQ5_K>(DType::q5_k, &multiply_q5_k),
    block_kernel<FormatQ6_K>(DType::q6_k, &multiply_q6_k),
};

}  // namespace

const MatmulKernel* matmul_kernels(int* count) noexcept {
  *count = static_cast<int>(sizeof(all_kernels) / sizeof(all_kernels[0]));
  return all_kernels;
}

}  // namespace skald::inline v0::kernels::SKALD_ISA
