#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/core/dtype.hpp>
#include <skald/model/model_file.hpp>

/// Tensors that are computed from others while they are read: a permutation, a slice, a stack, another element type. To
/// the rest of the library they are bytes like those of a file.
namespace skald::inline v0 {

/// A tensor and where its bytes come from.
struct TensorView {
  std::string name{};
  DType type = DType::f32;
  std::vector<std::int64_t> shape{};  ///< outermost dimension first
  AnyByteSource source{};
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;

  [[nodiscard]] std::int64_t columns() const noexcept { return shape.empty() ? 1 : shape.back(); }
  /// Elements of a row if there are rows: 1 for a vector.
  [[nodiscard]] std::int64_t columns_or_one() const noexcept { return shape.size() < 2 ? 1 : shape.back(); }
  /// Rows over all outer dimensions.
  [[nodiscard]] std::int64_t rows() const noexcept {
    std::int64_t count = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) count *= shape[i];
    return count;
  }
  [[nodiscard]] std::uint64_t row_size() const noexcept {
    return rows() == 0 ? 0 : bytes / static_cast<std::uint64_t>(rows());
  }
  void read(std::uint64_t at, std::span<std::byte> out) const { source.read(offset + at, out); }
};

/// Bytes of a type and shape. @throws UsageError if rows are not whole blocks.
[[nodiscard]] std::uint64_t view_bytes(DType type, const std::vector<std::int64_t>& shape);

/// Consecutive rows of one of several tensors.
struct RowRun {
  std::size_t tensor = 0;
  std::int64_t first = 0;
  std::int64_t count = 0;
};
/// Rows of several tensors with equal type and row size, one after the other. Vectors count as one element per row.
[[nodiscard]] TensorView gather_rows(std::string name, std::vector<TensorView> tensors, const std::vector<RowRun>& runs,
                                     std::vector<std::int64_t> shape);
/// Rows 0, 2, 4 ... of a stack or matrix, or the odd ones.
[[nodiscard]] TensorView every_second_row(std::string name, TensorView tensor, bool odd, std::vector<std::int64_t> shape);
/// A matrix of plain elements with rows and columns swapped; one of them is held in memory at a time.
[[nodiscard]] TensorView transposed(std::string name, TensorView tensor);
/// Plain elements, floating-point or integers of up to 32 bits, as f32, plus a constant. @throws NumericError, while
/// reading, for an f64 beyond the range of f32.
[[nodiscard]] TensorView as_f32(std::string name, TensorView tensor, float add = 0.0F);
/// f32 values held in memory.
[[nodiscard]] TensorView from_values(std::string name, std::vector<float> values, const std::string& file);
/// Rows decoded and encoded again in another type. @throws what the encoder throws, while reading, naming the tensor.
[[nodiscard]] TensorView encoded(TensorView tensor, DType type);

/// An entry of a ModelFile for a view; its source is appended to `sources`.
[[nodiscard]] TensorInfo add_view(const TensorView& view, std::vector<AnyByteSource>& sources);
/// The view of a tensor of a file.
[[nodiscard]] TensorView view_of(const ModelFile& file, const TensorInfo& tensor);

}  // namespace skald::inline v0
