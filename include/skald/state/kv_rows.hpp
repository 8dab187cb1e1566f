#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <skald/kernels/kv_codes.hpp>
#include <skald/kernels/kv_layout.hpp>

/// Access to single token slots of a KV page in host memory: the one place of this room that knows how a token lies in a
/// page. Compaction, merging, snapshots and files go through it.
namespace skald::inline v0 {

/// Bytes of one slot outside a page: for each head its key, then its value, as they are stored.
[[nodiscard]] inline std::size_t kv_slot_bytes(const KvPageLayout& layout) noexcept {
  return static_cast<std::size_t>(layout.heads) * layout.token_bytes();
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

}  // namespace detail

/// Moves one slot between a page and kv_slot_bytes() contiguous bytes.
template <bool ToPage, class Page, class Row>
void move_kv_slot(const KvPageLayout& layout, Page* page, std::int32_t slot, Row* row) noexcept {
  for (std::int32_t head = 0; head < layout.heads; ++head) {
    layout.for_each_piece(head, slot, [&](std::size_t at, std::size_t bytes) {
      if constexpr (ToPage) std::memcpy(page + at, row, bytes);
      else std::memcpy(row, page + at, bytes);
      row += bytes;
    });
  }
}

/// Copies slot `s` of one page to slot `t` of another or the same.
inline void copy_kv_slot(const KvPageLayout& layout, const std::byte* from, std::int32_t s, std::byte* to,
                         std::int32_t t) noexcept {
  if (!layout.coded()) {
    if (layout.element_bytes() == 4) detail::copy_kv_slot<std::uint32_t>(layout, from, s, to, t);
    else detail::copy_kv_slot<std::uint16_t>(layout, from, s, to, t);
    return;
  }
  const std::size_t pair = layout.dtype == DType::q8_0 ? 2 : 1;
  for (std::int32_t head = 0; head < layout.heads; ++head) {
    const std::size_t keys = layout.keys_offset(head);
    const std::size_t values = layout.values_offset(head);
    const auto copy = [&](std::size_t out, std::size_t in, std::size_t bytes) {
      std::memmove(to + out, from + in, bytes);
    };
    const auto padded = static_cast<std::int32_t>(KvPageLayout::blocks(layout.head_dim_k)) * KvPageLayout::block_dims;
    for (std::int32_t d = 0; d < padded; d += 2)
      copy(keys + layout.key_place(t, d).code, keys + layout.key_place(s, d).code, pair);
    for (std::int32_t d = 0; d < layout.head_dim_k; d += KvPageLayout::block_dims)
      copy(keys + layout.key_place(t, d).scale, keys + layout.key_place(s, d).scale, 2);
    for (std::int32_t d = 0; layout.block_numbers() > 1 && d < layout.head_dim_k; d += KvPageLayout::block_dims)
      copy(keys + layout.key_place(t, d).minimum, keys + layout.key_place(s, d).minimum, 2);
    if (layout.values_in_keys) continue;
    copy(values + layout.value_place(t, 0).code, values + layout.value_place(s, 0).code,
         layout.code_bytes(layout.head_dim_v));
    copy(values + layout.value_place(t, 0).scale, values + layout.value_place(s, 0).scale,
         2 * KvPageLayout::blocks(layout.head_dim_v));
    if (layout.block_numbers() > 1)
      copy(values + layout.value_place(t, 0).minimum, values + layout.value_place(s, 0).minimum,
           2 * KvPageLayout::blocks(layout.head_dim_v));
  }
}

/// Copies the 16 slots from `s` on, which lie in the groups of 16 at `low` and, if `s` is no multiple of 16, at `high` (places
/// of their pages, slots within these), to the 16 from `t` on, a multiple of 16. The places may be the same. Not for codes.
struct KvGroupPlace {
  const std::byte* page = nullptr;
  std::int32_t slot = 0;  ///< a multiple of 16
};
template <class Stored>
void copy_kv_group(const KvPageLayout& layout, const KvGroupPlace& low, const KvGroupPlace& high, std::size_t skipped,
                   std::byte* to, std::int32_t t) noexcept {
  constexpr auto lanes = static_cast<std::size_t>(KvPageLayout::lane_tokens);
  constexpr std::size_t together = 64;  // dimensions
  const auto dims = static_cast<std::size_t>(layout.head_dim_k);
  for (std::int32_t head = 0; head < layout.heads; ++head) {
    const auto keys = [&](const KvGroupPlace& place) {
      return reinterpret_cast<const Stored*>(place.page + layout.keys_offset(head)) + layout.key_index(place.slot, 0);
    };
    const Stored* a = keys(low);
    const Stored* b = skipped == 0 ? a : keys(high);
    auto* out = reinterpret_cast<Stored*>(to + layout.keys_offset(head)) + layout.key_index(t, 0);
    Stored both[together][2 * lanes];
    for (std::size_t first = 0; first < dims; first += together) {
      const std::size_t count = dims - first < together ? dims - first : together;
      for (std::size_t d = 0; d < count; ++d) {
        std::memcpy(both[d], a + (first + d) * lanes, sizeof(Stored) * lanes);
        std::memcpy(both[d] + lanes, b + (first + d) * lanes, sizeof(Stored) * lanes);
      }
      for (std::size_t d = 0; d < count; ++d)
        std::memcpy(out + (first + d) * lanes, both[d] + skipped, sizeof(Stored) * lanes);
    }
    if (layout.values_in_keys) continue;
    const auto values = [&](std::int32_t slot) {
      return layout.values_offset(head) + layout.value_index(slot, 0) * sizeof(Stored);
    };
    const std::size_t bytes = static_cast<std::size_t>(layout.head_dim_v) * sizeof(Stored);
    const std::size_t of_low = lanes - skipped;
    std::memmove(to + values(t), low.page + values(low.slot) + skipped * bytes, of_low * bytes);
    if (skipped > 0) std::memmove(to + values(t) + of_low * bytes, high.page + values(high.slot), skipped * bytes);
  }
}

/// The key of one head and slot as floats; `out` has head_dim_k elements.
inline void read_kv_key(const KvPageLayout& layout, const std::byte* page, std::int32_t head, std::int32_t slot,
                        std::span<float> out) noexcept {
  const std::byte* keys = page + layout.keys_offset(head);
  for (std::size_t d = 0; d < out.size(); ++d)
    out[d] = kv_key_element(layout, keys, slot, static_cast<std::int32_t>(d));
}
/// The keys of one head in the 16 slots from `slot` on, a multiple of 16, as floats: [head_dim_k][16], as they lie in the page.
inline void read_kv_keys(const KvPageLayout& layout, const std::byte* page, std::int32_t head, std::int32_t slot,
                         std::span<float> out) noexcept {
  constexpr auto lanes = static_cast<std::size_t>(KvPageLayout::lane_tokens);
  const std::byte* keys = page + layout.keys_offset(head);
  if (layout.coded() || layout.dtype == DType::bf16) {
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = kv_key_element(layout, keys, slot + static_cast<std::int32_t>(i % lanes), static_cast<std::int32_t>(i / lanes));
    return;
  }
  keys += layout.key_index(slot, 0) * layout.element_bytes();
  if (layout.dtype == DType::f32) {
    std::memcpy(out.data(), keys, out.size() * sizeof(float));
    return;
  }
  // Without branches, so that compilers use vectors: the exponent is moved by a product, which subnormal numbers survive.
  std::uint16_t bits[lanes];
  for (std::size_t at = 0; at < out.size(); at += lanes, keys += sizeof bits) {
    std::memcpy(bits, keys, sizeof bits);
    for (std::size_t i = 0; i < lanes; ++i) {
      const std::uint32_t magnitude = static_cast<std::uint32_t>(bits[i] & 0x7fffU) << 13;
      const float scaled = std::bit_cast<float>(magnitude) * 0x1p112F;
      const std::uint32_t sign = static_cast<std::uint32_t>(bits[i] & 0x8000U) << 16;
      out[at + i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | sign);
    }
  }
}
/// The value of one head and slot as floats; `out` has head_dim_v elements.
inline void read_kv_value(const KvPageLayout& layout, const std::byte* page, std::int32_t head, std::int32_t slot,
                          std::span<float> out) noexcept {
  const std::byte* values = page + layout.values_offset(head);
  for (std::size_t d = 0; d < out.size(); ++d)
    out[d] = kv_value_element(layout, values, slot, static_cast<std::int32_t>(d));
}
inline void write_kv_key(const KvPageLayout& layout, std::byte* page, std::int32_t head, std::int32_t slot,
                         std::span<const float> key) noexcept {
  set_kv_key(layout, page + layout.keys_offset(head), slot, key.data());
}
inline void write_kv_value(const KvPageLayout& layout, std::byte* page, std::int32_t head, std::int32_t slot,
                           std::span<const float> value) noexcept {
  set_kv_value(layout, page + layout.values_offset(head), slot, value.data());
}

}  // namespace skald::inline v0
