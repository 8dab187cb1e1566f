#pragma once

#include <concepts>
#include <string_view>

#include <skald/core/dtype.hpp>
#include <skald/core/error.hpp>
#include <skald/kernels/kv_layout.hpp>

namespace skald::inline v0 {

/// How keys and values are stored. `dtype()` names the element format of a page.
template <class F>
concept KvFormat = std::copyable<F> && requires(const F& format) {
  { format.dtype() } -> std::same_as<DType>;
};

/// 32-bit floats: the format to compare others with.
struct KvF32 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::f32; }
};
/// IEEE binary16: half the bytes, the default.
struct KvF16 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::f16; }
};
/// bfloat16: half the bytes, full range of exponents.
struct KvBF16 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::bf16; }
};
/// Eight bits per element and a binary16 scale per token and 32 elements: about half the bytes of f16.
struct KvQ8 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::q8_0; }
};
/// Four bits per element and a binary16 scale per token and 32 elements: about a quarter of the bytes of f16.
struct KvQ4 {
  [[nodiscard]] constexpr DType dtype() const noexcept { return DType::q4_0; }
};
static_assert(KvFormat<KvF32> && KvFormat<KvF16> && KvFormat<KvBF16> && KvFormat<KvQ8> && KvFormat<KvQ4>);

/// The type-erased twin, chosen by name.
class AnyKvFormat {
 public:
  AnyKvFormat() : AnyKvFormat(KvF16{}) {}
  template <class F>
    requires(!std::same_as<F, AnyKvFormat>) && KvFormat<F>
  AnyKvFormat(const F& format) : dtype_(format.dtype()) {}  // NOLINT(google-explicit-constructor)
  /// "f32", "f16", "bf16", "q8_0" or "q4_0". @throws UnsupportedError listing these.
  explicit AnyKvFormat(std::string_view name) : dtype_(parse(name)) {}
  [[nodiscard]] DType dtype() const noexcept { return dtype_; }

 private:
  static DType parse(std::string_view name) {
    const auto type = dtype_from_name(name);
    if (!type || !KvPageLayout::supports(*type))
      detail::throw_error(ErrorCode::unsupported, "state.kv_format",
                          "KV format '" + std::string(name) + "' is not one of f32, f16, bf16, q8_0, q4_0");
    return *type;
  }
  DType dtype_;
};
static_assert(KvFormat<AnyKvFormat>);

}  // namespace skald::inline v0
