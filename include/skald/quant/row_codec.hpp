#pragma once

#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

#include <skald/config.hpp>
#include <skald/core/dtype.hpp>
#include <skald/quant/activation.hpp>
#include <skald/quant/block_format.hpp>
#include <skald/quant/low_bit_formats.hpp>

namespace skald::inline v0 {

/// A BlockFormat at run time: operations on whole rows. Rows need no alignment. `n` is the number of elements; every
/// function @throws UsageError if it is not a whole number of blocks.
struct FormatOps {
  std::string_view name;
  std::optional<DType> dtype;  ///< nothing for a format that files do not know
  std::size_t block_elements;
  std::size_t block_bytes;
  ActivationKind activation;  ///< what dot_q8 takes; f32 if there is no integer dot product

  /// Row of n / block_elements * block_bytes bytes to n floats.
  void (*decode_row)(const std::byte* row, float* out, std::size_t n);
  /// n floats to a row. `importance` is null or n weights of the squared errors, finite and >= 0.
  /// Deterministic. @throws NumericError naming the index of the first input (or importance) that is not finite, or
  /// whose magnitude the format's scale cannot express; nothing has been written then.
  void (*encode_row)(const float* x, std::byte* row, std::size_t n, const float* importance);
  /// Dot product of the decoded row with x, summed in double in ascending order.
  double (*dot_row)(const std::byte* row, const float* x, std::size_t n);
  /// Integer dot product as block_format.hpp specifies it; null if there is none.
  /// @throws UsageError if the activations have another kind or length.
  float (*dot_q8)(const std::byte* row, const ActivationView& activations, std::size_t n);
};

namespace detail {

/// Number of blocks in n elements. @throws UsageError if that is not whole.
[[nodiscard]] SKALD_API std::size_t whole_blocks(std::string_view format, std::size_t n, std::size_t block_elements);
/// @throws NumericError naming the first element that is not finite or larger than `max_magnitude`, or the first
/// importance that is not finite or negative.
SKALD_API void check_encodable(std::string_view format, const float* x, std::size_t n, float max_magnitude,
                               const float* importance);
/// @throws UsageError unless the activations have this kind and length.
SKALD_API void check_activations(std::string_view format, ActivationKind kind, std::size_t n,
                                 const ActivationView& activations);

/// Blocks in a file may lie at any address, so each one is copied before it is read.
template <BlockFormat F>
[[nodiscard]] typename F::Block load_block(const std::byte* row, std::size_t index) noexcept {
  typename F::Block block;
  std::memcpy(&block, row + index * sizeof(block), sizeof(block));
  return block;
}

template <BlockFormat F>
void decode_row(const std::byte* row, float* out, std::size_t n) {
  const std::size_t blocks = whole_blocks(F::name, n, F::block_elements);
  for (std::size_t b = 0; b < blocks; ++b) {
    const auto block = load_block<F>(row, b);
    F::decode(&block, out + b * F::block_elements);
  }
}

template <BlockFormat F>
void encode_row(const float* x, std::byte* row, std::size_t n, const float* importance) {
  const std::size_t blocks = whole_blocks(F::name, n, F::block_elements);
  check_encodable(F::name, x, n, F::max_magnitude, importance);
  for (std::size_t b = 0; b < blocks; ++b) {
    typename F::Block block;
    F::encode(x + b * F::block_elements, &block, importance ? importance + b * F::block_elements : nullptr);
    std::memcpy(row + b * sizeof(block), &block, sizeof(block));
  }
}

template <BlockFormat F>
double dot_row(const std::byte* row, const float* x, std::size_t n) {
  const std::size_t blocks = whole_blocks(F::name, n, F::block_elements);
  float values[F::block_elements];
  double sum = 0;
  for (std::size_t b = 0; b < blocks; ++b) {
    const auto block = load_block<F>(row, b);
    F::decode(&block, values);
    // The product of two floats is exact in double.
    for (std::size_t i = 0; i < F::block_elements; ++i)
      sum += static_cast<double>(values[i]) * static_cast<double>(x[b * F::block_elements + i]);
  }
  return sum;
}

template <IntegerBlockFormat F>
float dot_q8(const std::byte* row, const ActivationView& activations, std::size_t n) {
  const std::size_t blocks = whole_blocks(F::name, n, F::block_elements);
  check_activations(F::name, F::activation, n, activations);
  float acc = 0;
  for (std::size_t b = 0; b < blocks; ++b) {
    const auto block = load_block<F>(row, b);
    acc = F::fold_q8(&block, activations, b, acc);
  }
  return acc;
}

template <BlockFormat F>
[[nodiscard]] constexpr FormatOps make_format_ops() noexcept {
  FormatOps ops{F::name,
                std::nullopt,
                F::block_elements,
                sizeof(typename F::Block),
                ActivationKind::f32,
                &decode_row<F>,
                &encode_row<F>,
                &dot_row<F>,
                nullptr};
  if constexpr (StoredBlockFormat<F>) ops.dtype = F::dtype;
  if constexpr (IntegerBlockFormat<F>) {
    ops.activation = F::activation;
    ops.dot_q8 = &dot_q8<F>;
  }
  return ops;
}

}  // namespace detail

/// The run-time twin of a BlockFormat, a user's own as well.
template <BlockFormat F>
inline constexpr FormatOps format_ops_of = detail::make_format_ops<F>();

/// Operations of a stored type. @throws UnsupportedError naming a type that skald cannot decode.
[[nodiscard]] SKALD_API const FormatOps& format_ops(DType type);
/// Operations of a stored type, or nullptr if skald cannot decode it.
[[nodiscard]] SKALD_API const FormatOps* find_format_ops(DType type) noexcept;
/// All stored types that skald decodes, in ascending order of their ids.
[[nodiscard]] SKALD_API std::span<const DType> block_formats() noexcept;
/// True if rows of the type can be made from floats.
[[nodiscard]] SKALD_API bool can_encode(DType type) noexcept;

/// Decodes a row. @throws UnsupportedError, and UsageError unless row.size() == row_bytes(type, out.size()).
SKALD_API void decode_row(DType type, std::span<const std::byte> row, std::span<float> out);
/// Encodes a row. `importance` is empty or as long as x. @throws UnsupportedError, NumericError, and UsageError unless
/// row.size() == row_bytes(type, x.size()).
SKALD_API void encode_row(DType type, std::span<const float> x, std::span<std::byte> row,
                          std::span<const float> importance = {});

}  // namespace skald::inline v0
