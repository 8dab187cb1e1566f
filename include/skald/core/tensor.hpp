#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <skald/core/error.hpp>
#include <skald/core/memory.hpp>

namespace skald::inline v0 {

/// Extent of each dimension, outermost first.
template <std::size_t Rank>
using Shape = std::array<std::int64_t, Rank>;

/// Product of the extents. @throws UsageError on a negative extent or overflow.
template <std::size_t Rank>
[[nodiscard]] std::int64_t element_count(const Shape<Rank>& shape) {
  std::int64_t count = 1;
  for (const auto extent : shape)
    if (extent < 0 || __builtin_mul_overflow(count, extent, &count))
      detail::throw_error(ErrorCode::usage, "core.tensor", "negative extent or element count overflow");
  return count;
}

/// Row-major strides in elements.
template <std::size_t Rank>
[[nodiscard]] constexpr Shape<Rank> row_major_strides(const Shape<Rank>& shape) noexcept {
  Shape<Rank> strides{};
  std::int64_t step = 1;
  for (std::size_t i = Rank; i-- > 0;) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

/// Strided view of elements that somebody else owns. Strides are in elements. Trivially copyable.
template <class T, std::size_t Rank>
class TensorView {
 public:
  static_assert(Rank >= 1);
  using value_type = std::remove_const_t<T>;

  constexpr TensorView() = default;
  constexpr TensorView(T* data, const Shape<Rank>& shape) noexcept
      : data_(data), shape_(shape), strides_(row_major_strides<Rank>(shape)) {}
  constexpr TensorView(T* data, const Shape<Rank>& shape, const Shape<Rank>& strides) noexcept
      : data_(data), shape_(shape), strides_(strides) {}
  /// A mutable view converts to a const one.
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  constexpr TensorView(const TensorView<U, Rank>& other) noexcept  // NOLINT(google-explicit-constructor)
      : data_(other.data()), shape_(other.shape()), strides_(other.strides()) {}

  [[nodiscard]] constexpr T* data() const noexcept { return data_; }
  [[nodiscard]] constexpr const Shape<Rank>& shape() const noexcept { return shape_; }
  [[nodiscard]] constexpr const Shape<Rank>& strides() const noexcept { return strides_; }
  [[nodiscard]] constexpr std::int64_t extent(std::size_t dimension) const noexcept { return shape_[dimension]; }
  [[nodiscard]] constexpr std::int64_t stride(std::size_t dimension) const noexcept { return strides_[dimension]; }
  [[nodiscard]] constexpr std::int64_t size() const noexcept {
    std::int64_t count = 1;
    for (const auto e : shape_) count *= e;
    return count;
  }
  [[nodiscard]] constexpr bool contiguous() const noexcept { return strides_ == row_major_strides<Rank>(shape_); }

  /// Element at the given indices; unchecked.
  template <class... I>
    requires(sizeof...(I) == Rank && (std::is_convertible_v<I, std::int64_t> && ...))
  [[nodiscard]] constexpr T& operator()(I... index) const noexcept {
    const Shape<Rank> at{static_cast<std::int64_t>(index)...};
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < Rank; ++i) offset += at[i] * strides_[i];
    return data_[offset];
  }
  /// The sub-tensor at `index` of the first dimension.
  [[nodiscard]] constexpr TensorView<T, Rank - 1> operator[](std::int64_t index) const noexcept
    requires(Rank > 1)
  {
    Shape<Rank - 1> shape{};
    Shape<Rank - 1> strides{};
    for (std::size_t i = 1; i < Rank; ++i) {
      shape[i - 1] = shape_[i];
      strides[i - 1] = strides_[i];
    }
    return {data_ + index * strides_[0], shape, strides};
  }
  [[nodiscard]] constexpr T& operator[](std::int64_t index) const noexcept
    requires(Rank == 1)
  {
    return data_[index * strides_[0]];
  }
  /// Indices [begin, end) of one dimension; unchecked.
  [[nodiscard]] constexpr TensorView slice(std::size_t dimension, std::int64_t begin, std::int64_t end) const noexcept {
    auto shape = shape_;
    shape[dimension] = end - begin;
    return {data_ + begin * strides_[dimension], shape, strides_};
  }
  /// The same elements with two dimensions exchanged.
  [[nodiscard]] constexpr TensorView transposed(std::size_t a, std::size_t b) const noexcept {
    auto shape = shape_;
    auto strides = strides_;
    std::swap(shape[a], shape[b]);
    std::swap(strides[a], strides[b]);
    return {data_, shape, strides};
  }

 private:
  T* data_ = nullptr;
  Shape<Rank> shape_{};
  Shape<Rank> strides_{};
};

/// Owns its elements: row-major, zeroed, 64-byte aligned. Move-only; pass views.
template <class T, std::size_t Rank>
class Tensor {
 public:
  static_assert(std::is_trivially_copyable_v<T>);
  Tensor() = default;
  /// @throws OutOfMemoryError, UsageError.
  explicit Tensor(const Shape<Rank>& shape) : shape_(shape) {
    std::int64_t bytes = 0;
    if (__builtin_mul_overflow(element_count<Rank>(shape), static_cast<std::int64_t>(sizeof(T)), &bytes))
      detail::throw_error(ErrorCode::usage, "core.tensor", "byte count overflow");
    storage_ = AlignedBuffer(static_cast<std::size_t>(bytes));
  }

  [[nodiscard]] T* data() noexcept { return reinterpret_cast<T*>(storage_.data()); }
  [[nodiscard]] const T* data() const noexcept { return reinterpret_cast<const T*>(storage_.data()); }
  [[nodiscard]] const Shape<Rank>& shape() const noexcept { return shape_; }
  [[nodiscard]] std::int64_t extent(std::size_t dimension) const noexcept { return shape_[dimension]; }
  [[nodiscard]] std::int64_t size() const noexcept { return view().size(); }
  [[nodiscard]] TensorView<T, Rank> view() noexcept { return {data(), shape_}; }
  [[nodiscard]] TensorView<const T, Rank> view() const noexcept { return {data(), shape_}; }
  template <class... I>
  [[nodiscard]] T& operator()(I... index) noexcept { return view()(index...); }
  template <class... I>
  [[nodiscard]] const T& operator()(I... index) const noexcept { return view()(index...); }

 private:
  Shape<Rank> shape_{};
  AlignedBuffer storage_;
};

}  // namespace skald::inline v0
