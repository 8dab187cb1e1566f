#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <skald/core/half.hpp>
#include <skald/kernels/kv_layout.hpp>

/// Access to single token slots of a KV page in host memory: the one place of this room that knows how a token lies in a
/// page. Compaction, merging, snapshots and files go through it.
namespace skald::inline v0 {

/// Bytes of one slot outside a page: for each head its key, then its value, as they are stored.
[[nodiscard]] inline std::size_t kv_slot_bytes(const KvPageLayout& layout) noexcept {
  return static_cast<std::size_t>(layout.heads) * static_cast<std::size_t>(layout.head_dim_k + layout.stored_dim_v()) *
         layout.element_bytes();
}

namespace detail {

template <class Stored>
void copy_kv_slot(const KvPageLayout& layout, const std::byte* from, std::int32_t s, std::byte* to,
                  std::int32_t t) noexcept {
  for (std::int32_t head = 0; head < layout.heads; ++head) {
    const auto* keys = reinterpret_cast<const Stored*>(from + layout.keys_offset(head)) + layout.key_index(s, 0);
    auto* out = reinterpret_cast<Stored*>(to + layout.keys_offset(head)) + layout.key_index(t, 0);
    const auto stride = layout.key_index(0, 1);
    for (std::size_t d = 0; d < static_cast<std::size_t>(layout.head_dim_k); ++d) out[d * stride] = keys[d * stride];
    if (layout.values_in_keys) continue;
    std::memmove(to + layout.values_offset(head) + layout.value_index(t, 0) * sizeof(Stored),
                 from + layout.values_offset(head) + layout.value_index(s, 0) * sizeof(Stored),
                 static_cast<std::size_t>(layout.head_dim_v) * sizeof(Stored));
  }
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

}  // namespace detail

/// Copies slot `s` of one page to slot `t` of another or the same.
inline void copy_kv_slot(const KvPageLayout& layout, const std::byte* from, std::int32_t s, std::byte* to,
                         std::int32_t t) noexcept {
  if (layout.element_bytes() == 4) detail::copy_kv_slot<std::uint32_t>(layout, from, s, to, t);
  else detail::copy_kv_slot<std::uint16_t>(layout, from, s, to, t);
}

/// Moves one slot between a page and kv_slot_bytes() contiguous bytes.
template <bool ToPage, class Page, class Row>
void move_kv_slot(const KvPageLayout& layout, Page* page, std::int32_t slot, Row* row) noexcept {
  const std::size_t element = layout.element_bytes();
  const auto move = [&](std::size_t at) {
    if constexpr (ToPage) std::memcpy(page + at, row, element);
    else std::memcpy(row, page + at, element);
    row += element;
  };
  for (std::int32_t head = 0; head < layout.heads; ++head) {
    for (std::int32_t d = 0; d < layout.head_dim_k; ++d)
      move(layout.keys_offset(head) + layout.key_index(slot, d) * element);
    for (std::int32_t d = 0; d < layout.stored_dim_v(); ++d)
      move(layout.values_offset(head) + layout.value_index(slot, d) * element);
  }
}

/// The key of one head and slot as floats; `out` has head_dim_k elements.
inline void read_kv_key(const KvPageLayout& layout, const std::byte* page, std::int32_t head, std::int32_t slot,
                        std::span<float> out) noexcept {
  for (std::size_t d = 0; d < out.size(); ++d)
    out[d] = detail::kv_element(layout.dtype, page + layout.keys_offset(head) +
                                                  layout.key_index(slot, static_cast<std::int32_t>(d)) *
                                                      layout.element_bytes());
}
/// The value of one head and slot as floats; `out` has head_dim_v elements.
inline void read_kv_value(const KvPageLayout& layout, const std::byte* page, std::int32_t head, std::int32_t slot,
                          std::span<float> out) noexcept {
  for (std::size_t d = 0; d < out.size(); ++d)
    out[d] = detail::kv_element(layout.dtype, page + layout.values_offset(head) +
                                                  layout.value_index(slot, static_cast<std::int32_t>(d)) *
                                                      layout.element_bytes());
}
inline void write_kv_key(const KvPageLayout& layout, std::byte* page, std::int32_t head, std::int32_t slot,
                         std::span<const float> key) noexcept {
  for (std::size_t d = 0; d < key.size(); ++d)
    detail::set_kv_element(layout.dtype,
                           page + layout.keys_offset(head) +
                               layout.key_index(slot, static_cast<std::int32_t>(d)) * layout.element_bytes(),
                           key[d]);
}
inline void write_kv_value(const KvPageLayout& layout, std::byte* page, std::int32_t head, std::int32_t slot,
                           std::span<const float> value) noexcept {
  for (std::size_t d = 0; d < value.size(); ++d)
    detail::set_kv_element(layout.dtype,
                           page + layout.values_offset(head) +
                               layout.value_index(slot, static_cast<std::int32_t>(d)) * layout.element_bytes(),
                           value[d]);
}

}  // namespace skald::inline v0
