#include "kernels/matmul_apart_formats.inl.hpp"
#include "kernels/matmul_drivers.inl.hpp"
#include "kernels/matmul_float.inl.hpp"
#include "kernels/matmul_low_formats.inl.hpp"
#include "kernels/matmul_parts.hpp"
#include "kernels/matmul_prepare.inl.hpp"

namespace skald::inline v0::kernels::SKALD_ISA {

#if defined(SKALD_ISA_avx512vnni)
// Formats with products of their own for many columns (matmul_stationary.inl.hpp).
#define SKALD_MANY(name) &multiply_##name##_many
SKALD_DECLARE_MULTIPLY(q4_k_many);
SKALD_DECLARE_MULTIPLY(q5_k_many);
SKALD_DECLARE_MULTIPLY(q6_k_many);
#else
#define SKALD_MANY(name) &multiply_##name
#endif

namespace {

using Multiply = decltype(MatmulKernel::multiply);

template <class F>
constexpr MatmulKernel block_kernel(DType type, Multiply multiply_panels) noexcept {
  using A = typename ActsOf<F::block_k>::type;
  return {type, group_columns, &panel_bytes<F>, &pack<F>, &unpack_row<F>, &acts_bytes<A>, &prepare_columns<A>,
          &scratch_bytes<F>, multiply_panels, A::id, false};
}

template <class E>
constexpr MatmulKernel float_kernel(DType type, Multiply multiply_panels) noexcept {
  return {type, group_columns, &float_panel_bytes<E>, &float_pack<E>, &float_unpack_row<E>, &acts_bytes<ActsF32>,
          &prepare_acts<ActsF32>, &no_scratch, multiply_panels, ActsF32::id, false};
}

template <class F>
constexpr MatmulKernel apart_kernel(DType type, Multiply multiply_panels, decltype(MatmulKernel::unpack_row) unpack) noexcept {
  return {type, group_columns, &apart_panel_bytes<F>, &apart_pack<F>, unpack, &acts_bytes<Acts256>,
          &prepare_columns<Acts256>, &apart_scratch_bytes<typename F::Layout>, multiply_panels, Acts256::id, false};
}

constexpr MatmulKernel mxfp4_kernel() noexcept {
  return {DType::mxfp4, group_columns, &panel_bytes<FormatMXFP4>, &FormatMXFP4::pack, &unpack_row<FormatMXFP4>,
          &acts_bytes<Acts32>, &prepare_columns<Acts32>, &scratch_bytes<FormatMXFP4>, &multiply_mxfp4, Acts32::id, false};
}

void unpack_iq4_xs_row(const std::byte* panel, int row, std::int64_t cols, float* out) noexcept {
  unpack_iq4_xs(panel, row, cols, out);
}
constexpr MatmulKernel iq4_xs_kernel() noexcept {
  return {DType::iq4_xs, group_columns, &panel_bytes<FormatIQ4_XS>, &pack<FormatIQ4_XS>, &unpack_iq4_xs_row,
          &acts_bytes<Acts256>, &prepare_columns<Acts256>, &scratch_bytes<FormatIQ4_XS>, &multiply_iq4_xs, Acts256::id, false};
}

constexpr MatmulKernel ternary_lookup_kernel() noexcept {
  MatmulKernel kernel = apart_kernel<ApartTQ1_0>(DType::tq1_0, &multiply_tq1_0_lookup, &unpack_row_tq1_0);
  kernel.acts_bytes = &tq1_0_lookup_acts_bytes;
  kernel.prepare = &tq1_0_lookup_prepare;
  kernel.activation_id = 3;
  kernel.alone = true;
  return kernel;
}

/// Numbers that no file has matrices of become floats when packed.
template <class T>
void pack_as_floats(const std::byte* const* rows, std::int64_t cols, std::byte* panel) noexcept {
  for (int r = 0; r < 16; ++r)
    for (std::int64_t k = 0; k < cols; ++k) {
      T value{};
      if (rows[r]) __builtin_memcpy(&value, rows[r] + k * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
      const auto number = static_cast<float>(value);
      __builtin_memcpy(panel + (16 * k + r) * 4, &number, 4);
    }
}
template <class T>
constexpr MatmulKernel plain_kernel(DType type) noexcept {
  MatmulKernel kernel = float_kernel<ElementF32>(type, &multiply_f32);
  kernel.pack = &pack_as_floats<T>;
  return kernel;
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
    block_kernel<FormatQ4_K>(DType::q4_k, SKALD_MANY(q4_k)),
    block_kernel<FormatQ5_K>(DType::q5_k, SKALD_MANY(q5_k)),
    block_kernel<FormatQ6_K>(DType::q6_k, SKALD_MANY(q6_k)),
    block_kernel<FormatIQ4_NL>(DType::iq4_nl, &multiply_iq4_nl),
    mxfp4_kernel(),
    apart_kernel<ApartQ2_K>(DType::q2_k, &multiply_q2_k, &unpack_row_q2_k),
    block_kernel<FormatQ3_K>(DType::q3_k, &multiply_q3_k),
    iq4_xs_kernel(),
    apart_kernel<ApartTQ1_0>(DType::tq1_0, &multiply_tq1_0, &unpack_row_tq1_0),
    block_kernel<FormatTQ2_0>(DType::tq2_0, &multiply_tq2_0),
    apart_kernel<ApartIQ2_XXS>(DType::iq2_xxs, &multiply_iq2_xxs, &unpack_row_iq2_xxs),
    apart_kernel<ApartIQ2_XS>(DType::iq2_xs, &multiply_iq2_xs, &unpack_row_iq2_xs),
    apart_kernel<ApartIQ2_S>(DType::iq2_s, &multiply_iq2_s, &unpack_row_iq2_s),
    apart_kernel<ApartIQ3_XXS>(DType::iq3_xxs, &multiply_iq3_xxs, &unpack_row_iq3_xxs),
    apart_kernel<ApartIQ3_S>(DType::iq3_s, &multiply_iq3_s, &unpack_row_iq3_s),
    apart_kernel<ApartIQ1_S>(DType::iq1_s, &multiply_iq1_s, &unpack_row_iq1_s),
    apart_kernel<ApartIQ1_M>(DType::iq1_m, &multiply_iq1_m, &unpack_row_iq1_m),
    plain_kernel<double>(DType::f64),
    plain_kernel<std::int8_t>(DType::i8),
    plain_kernel<std::int16_t>(DType::i16),
    plain_kernel<std::int32_t>(DType::i32),
    ternary_lookup_kernel(),
};

}  // namespace

const MatmulKernel* matmul_kernels(int* count) noexcept {
  *count = static_cast<int>(sizeof(all_kernels) / sizeof(all_kernels[0]));
  return all_kernels;
}

}  // namespace skald::inline v0::kernels::SKALD_ISA
