#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <skald/core/half.hpp>
#include <skald/kernels/kv_layout.hpp>

/// Elements of KV pages one by one, in every format: for what is not a kernel. See KvPageLayout for the formats.
namespace skald::inline v0 {

namespace detail {

inline float kv_code_value(const KvPageLayout& layout, const std::byte* base,
                           const KvPageLayout::CodePlace& place) noexcept {
  std::uint16_t scale = 0;
  std::memcpy(&scale, base + place.scale, sizeof scale);
  const auto byte = std::to_integer<std::uint8_t>(base[place.code]);
  if (layout.dtype == DType::q4_1) {
    std::uint16_t minimum = 0;
    std::memcpy(&minimum, base + place.minimum, sizeof minimum);
    return f16_to_f32(minimum) + f16_to_f32(scale) * static_cast<float>((byte >> place.shift) & 15);
  }
  const int code = layout.dtype == DType::q8_0 ? static_cast<std::int8_t>(byte) : ((byte >> place.shift) & 15) - 8;
  return f16_to_f32(scale) * static_cast<float>(code);
}

inline float kv_element(DType type, const std::byte* at) noexcept {
  if (type == DType::f32) {
    float value = 0;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof bits);
  return type == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

inline void set_kv_element(DType type, std::byte* at, float value) noexcept {
  if (type == DType::f32) {
    std::memcpy(at, &value, sizeof value);
    return;
  }
  const std::uint16_t bits = type == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
  std::memcpy(at, &bits, sizeof bits);
}

/// The largest binary16 number that is not above a finite x, and the least one that is not below x >= 0; as far as there are
/// any.
inline std::uint16_t f16_below(float x) noexcept {
  const std::uint16_t half = f32_to_f16(std::clamp(x, -65504.0F, 65504.0F));
  if (f16_to_f32(half) <= x || half == 0xFBFF) return half;
  if ((half & 0x7FFF) == 0) return 0x8001;
  return static_cast<std::uint16_t>((half & 0x8000) != 0 ? half + 1 : half - 1);
}
inline std::uint16_t f16_above(float x) noexcept {
  const std::uint16_t half = f32_to_f16(std::min(x, 65504.0F));
  return static_cast<std::uint16_t>(f16_to_f32(half) < x && half < 0x7BFF ? half + 1 : half);
}

/// As set_kv_codes, for codes with a minimum.
template <class Places>
void set_kv_codes_over_minimum(const float* x, std::int32_t dims, std::byte* base, const Places& places) noexcept {
  for (std::int32_t begin = 0; begin < dims; begin += KvPageLayout::block_dims) {
    const auto at = [&](std::int32_t d) { return begin + d < dims ? x[begin + d] : 0.0F; };
    float top = at(0);
    float bottom = at(0);
    bool finite = true;
    for (std::int32_t d = 0; d < KvPageLayout::block_dims; ++d) {
      top = std::max(top, at(d));
      bottom = std::min(bottom, at(d));
      finite = finite && std::isfinite(at(d));
    }
    const std::uint16_t low = finite ? f16_below(bottom) : std::uint16_t{0};
    const float minimum = f16_to_f32(low);
    const std::uint16_t half = finite ? f16_above((top - minimum) / 15.0F) : std::uint16_t{0x7E00};
    const float scale = f16_to_f32(half);
    const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
    for (std::int32_t d = 0; d < KvPageLayout::block_dims; ++d) {
      const KvPageLayout::CodePlace place = places(begin + d);
      const float steps = finite ? std::nearbyint((at(d) - minimum) * inverse) : 0.0F;
      const auto code = static_cast<std::uint32_t>(std::clamp(steps, 0.0F, 15.0F));
      const auto rest = std::to_integer<std::uint32_t>(base[place.code]) & ~(15U << place.shift);
      base[place.code] = static_cast<std::byte>(rest | code << place.shift);
      std::memcpy(base + place.scale, &half, sizeof half);
      std::memcpy(base + place.minimum, &low, sizeof low);
    }
  }
}

/// Encodes `dims` elements block after block; places(d) says where dimension d is, that of padding included.
template <class Places>
void set_kv_codes(DType type, const float* x, std::int32_t dims, std::byte* base, const Places& places) noexcept {
  if (type == DType::q4_1) return set_kv_codes_over_minimum(x, dims, base, places);
  const bool eight = type == DType::q8_0;
  for (std::int32_t begin = 0; begin < dims; begin += KvPageLayout::block_dims) {
    const auto at = [&](std::int32_t d) { return begin + d < dims ? x[begin + d] : 0.0F; };
    float top = 0.0F;
    float bottom = 0.0F;
    bool finite = true;
    for (std::int32_t d = 0; d < KvPageLayout::block_dims; ++d) {
      top = std::max(top, at(d));
      bottom = std::min(bottom, at(d));
      finite = finite && std::isfinite(at(d));
    }
    float wanted = eight ? std::max(top, -bottom) / 127.0F : (top >= -bottom ? top : bottom) / -8.0F;
    wanted = finite ? std::clamp(wanted, -65504.0F, 65504.0F) : std::numeric_limits<float>::quiet_NaN();
    const std::uint16_t half = f32_to_f16(wanted);
    const float scale = f16_to_f32(half);
    const float inverse = scale != 0.0F ? 1.0F / scale : 0.0F;
    for (std::int32_t d = 0; d < KvPageLayout::block_dims; ++d) {
      const KvPageLayout::CodePlace place = places(begin + d);
      const float steps = finite ? std::nearbyint(at(d) * inverse) : 0.0F;
      if (eight) {
        base[place.code] = static_cast<std::byte>(static_cast<std::int8_t>(std::clamp(steps, -127.0F, 127.0F)));
      } else {
        const auto code = static_cast<std::uint32_t>(std::clamp(steps + 8.0F, 0.0F, 15.0F));
        const auto rest = std::to_integer<std::uint32_t>(base[place.code]) & ~(15U << place.shift);
        base[place.code] = static_cast<std::byte>(rest | code << place.shift);
      }
      std::memcpy(base + place.scale, &half, sizeof half);
    }
  }
}

}  // namespace detail

/// Dimension d of the key (or value) in a slot; `keys` is where the head's keys begin in the page, `values` its values.
[[nodiscard]] inline float kv_key_element(const KvPageLayout& layout, const std::byte* keys, std::int32_t slot,
                                          std::int32_t d) noexcept {
  if (layout.coded()) return detail::kv_code_value(layout, keys, layout.key_place(slot, d));
  return detail::kv_element(layout.dtype, keys + layout.key_index(slot, d) * layout.element_bytes());
}
[[nodiscard]] inline float kv_value_element(const KvPageLayout& layout, const std::byte* values, std::int32_t slot,
                                            std::int32_t d) noexcept {
  if (layout.coded()) return detail::kv_code_value(layout, values, layout.value_place(slot, d));
  return detail::kv_element(layout.dtype, values + layout.value_index(slot, d) * layout.element_bytes());
}
/// Stores a whole key of head_dim_k elements, or a value of head_dim_v.
inline void set_kv_key(const KvPageLayout& layout, std::byte* keys, std::int32_t slot, const float* key) noexcept {
  if (layout.coded()) {
    const auto places = [&](std::int32_t d) { return layout.key_place(slot, d); };
    return detail::set_kv_codes(layout.dtype, key, layout.head_dim_k, keys, places);
  }
  for (std::int32_t d = 0; d < layout.head_dim_k; ++d)
    detail::set_kv_element(layout.dtype, keys + layout.key_index(slot, d) * layout.element_bytes(), key[d]);
}
inline void set_kv_value(const KvPageLayout& layout, std::byte* values, std::int32_t slot,
                         const float* value) noexcept {
  if (layout.coded()) {
    const auto places = [&](std::int32_t d) { return layout.value_place(slot, d); };
    return detail::set_kv_codes(layout.dtype, value, layout.head_dim_v, values, places);
  }
  for (std::int32_t d = 0; d < layout.head_dim_v; ++d)
    detail::set_kv_element(layout.dtype, values + layout.value_index(slot, d) * layout.element_bytes(), value[d]);
}

}  // namespace skald::inline v0
