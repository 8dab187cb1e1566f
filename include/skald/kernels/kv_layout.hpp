#pragma once

#include <cstddef>
#include <cstdint>

#include <skald/core/dtype.hpp>

namespace skald::inline v0 {

/// How the keys and values of one page lie in memory. A page holds `page_tokens` consecutive token slots of
/// `heads` KV heads (one KV-head group) of one layer. For each head, first all keys, then all values:
///
///   keys    [page_tokens / 16][head_dim_k][16]   lane = token: a dot product folds over the head dimension
///   values  [page_tokens][head_dim_v]            lane = dimension: the weighted sum folds over the tokens
///
/// so neither product ever sums across lanes, and one query gives the same bits as many. With `values_in_keys` there are
/// no values: a token's value is the first head_dim_v elements of its key (the latent row of multi-head latent attention,
/// DeepSeek-V2, arXiv 2405.04434).
struct KvPageLayout {
  DType dtype = DType::f16;       ///< f32, f16 or bf16
  std::int32_t page_tokens = 64;  ///< token slots per page; a multiple of 16 that divides 256
  std::int32_t heads = 1;         ///< KV heads per group
  std::int32_t head_dim_k = 0;    ///< elements per key
  std::int32_t head_dim_v = 0;    ///< elements per value
  bool values_in_keys = false;    ///< values are the leading elements of the keys; head_dim_v <= head_dim_k

  static constexpr std::int32_t lane_tokens = 16;

  [[nodiscard]] constexpr std::size_t element_bytes() const noexcept { return dtype == DType::f32 ? 4 : 2; }
  /// Elements that are stored for the value of a token: none if it is part of the key.
  [[nodiscard]] constexpr std::int32_t stored_dim_v() const noexcept { return values_in_keys ? 0 : head_dim_v; }
  /// Bytes of one head's keys and values.
  [[nodiscard]] constexpr std::size_t head_bytes() const noexcept {
    return static_cast<std::size_t>(page_tokens) * static_cast<std::size_t>(head_dim_k + stored_dim_v()) *
           element_bytes();
  }
  /// Bytes of a page, rounded up to 64.
  [[nodiscard]] constexpr std::size_t page_bytes() const noexcept {
    return (static_cast<std::size_t>(heads) * head_bytes() + 63) / 64 * 64;
  }
  /// Byte offset of the first key of a head in its page.
  [[nodiscard]] constexpr std::size_t keys_offset(std::int32_t head) const noexcept {
    return static_cast<std::size_t>(head) * head_bytes();
  }
  /// Byte offset of the first value of a head in its page.
  [[nodiscard]] constexpr std::size_t values_offset(std::int32_t head) const noexcept {
    if (values_in_keys) return keys_offset(head);
    return keys_offset(head) +
           static_cast<std::size_t>(page_tokens) * static_cast<std::size_t>(head_dim_k) * element_bytes();
  }
  /// Element index, within a head's keys, of dimension d of the token in `slot` (0 <= slot < page_tokens).
  [[nodiscard]] constexpr std::size_t key_index(std::int32_t slot, std::int32_t d) const noexcept {
    return (static_cast<std::size_t>(slot / lane_tokens) * static_cast<std::size_t>(head_dim_k) +
            static_cast<std::size_t>(d)) * lane_tokens + static_cast<std::size_t>(slot % lane_tokens);
  }
  /// Element index, within a head's values, of dimension d of the token in `slot`.
  [[nodiscard]] constexpr std::size_t value_index(std::int32_t slot, std::int32_t d) const noexcept {
    if (values_in_keys) return key_index(slot, d);
    return static_cast<std::size_t>(slot) * static_cast<std::size_t>(head_dim_v) + static_cast<std::size_t>(d);
  }
  friend constexpr bool operator==(const KvPageLayout&, const KvPageLayout&) = default;
};

}  // namespace skald::inline v0
