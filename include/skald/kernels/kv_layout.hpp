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
///
/// The coded formats keep, for every token and block of 32 dimensions, codes and one binary16 scale; dimensions are
/// padded with zeros to whole blocks, P below. The value is scale * code, so appending a token touches no other.
///
///   q8_0   codes of -127 to 127, scale = max |x| / 127
///     keys    [page_tokens / 16] of { codes [P / 2][16][2], scales [P / 32][16] }
///     values  codes [page_tokens][P], then scales [page_tokens][P / 32]
///   q4_0   codes of 0 to 15 that stand for -8 to 7, scale = (the x of largest magnitude) / -8
///     keys    [page_tokens / 16] of { codes [P / 2][16], dimension 2i in the low half of byte i; scales [P / 32][16] }
///     values  codes [page_tokens][P / 32][16], dimensions j and j + 16 of a block in the halves of byte j; then scales
///             [page_tokens][P / 32]
///   q4_1   codes of 0 to 15 as those of q4_0; behind the scales as many minimums, in the same order. The value is
///          minimum + scale * code; the minimum is rounded down and the scale up, so that no element is further off than
///          scale / 2 (the group-wise quantization of FlexGen, Sheng et al. 2023, arXiv 2303.06865)
struct KvPageLayout {
  DType dtype = DType::f16;       ///< f32, f16, bf16, q8_0, q4_0 or q4_1
  std::int32_t page_tokens = 64;  ///< token slots per page; a multiple of 16 that divides 256
  std::int32_t heads = 1;         ///< KV heads per group
  std::int32_t head_dim_k = 0;    ///< elements per key
  std::int32_t head_dim_v = 0;    ///< elements per value
  bool values_in_keys = false;    ///< values are the leading elements of the keys; head_dim_v <= head_dim_k

  static constexpr std::int32_t lane_tokens = 16;
  static constexpr std::int32_t block_dims = 32;

  /// True for the types that pages can have.
  [[nodiscard]] static constexpr bool supports(DType type) noexcept {
    return type == DType::f32 || type == DType::f16 || type == DType::bf16 || type == DType::q8_0 ||
           type == DType::q4_0 || type == DType::q4_1;
  }
  /// True if elements are codes with scales.
  [[nodiscard]] constexpr bool coded() const noexcept { return dtype == DType::q8_0 || dtype == DType::q4_0 || dtype == DType::q4_1; }
  /// Binary16 numbers that a coded block has beside its codes: the scale, and with q4_1 the minimum.
  [[nodiscard]] constexpr std::size_t block_numbers() const noexcept { return dtype == DType::q4_1 ? 2 : 1; }
  /// Bytes of an element that is not coded.
  [[nodiscard]] constexpr std::size_t element_bytes() const noexcept { return dtype == DType::f32 ? 4 : 2; }
  /// Blocks that a coded vector of `dims` elements has.
  [[nodiscard]] static constexpr std::size_t blocks(std::int32_t dims) noexcept {
    return static_cast<std::size_t>((dims + block_dims - 1) / block_dims);
  }
  /// Bytes of the codes of a vector, without its scales and minimums.
  [[nodiscard]] constexpr std::size_t code_bytes(std::int32_t dims) const noexcept {
    return blocks(dims) * (dtype == DType::q8_0 ? 32 : 16);
  }
  /// Bytes of one token's vector of `dims` elements.
  [[nodiscard]] constexpr std::size_t vector_bytes(std::int32_t dims) const noexcept {
    return coded() ? code_bytes(dims) + 2 * block_numbers() * blocks(dims) : static_cast<std::size_t>(dims) * element_bytes();
  }
  /// Elements that are stored for the value of a token: none if it is part of the key.
  [[nodiscard]] constexpr std::int32_t stored_dim_v() const noexcept { return values_in_keys ? 0 : head_dim_v; }
  /// Bytes that a token takes in one head.
  [[nodiscard]] constexpr std::size_t token_bytes() const noexcept {
    return vector_bytes(head_dim_k) + vector_bytes(stored_dim_v());
  }
  /// Bytes of one head's keys and values.
  [[nodiscard]] constexpr std::size_t head_bytes() const noexcept {
    return static_cast<std::size_t>(page_tokens) * token_bytes();
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
    return keys_offset(head) + static_cast<std::size_t>(page_tokens) * vector_bytes(head_dim_k);
  }
  /// Element index, within a head's keys, of dimension d of the token in `slot` (0 <= slot < page_tokens); not coded.
  [[nodiscard]] constexpr std::size_t key_index(std::int32_t slot, std::int32_t d) const noexcept {
    return (static_cast<std::size_t>(slot / lane_tokens) * static_cast<std::size_t>(head_dim_k) +
            static_cast<std::size_t>(d)) * lane_tokens + static_cast<std::size_t>(slot % lane_tokens);
  }
  /// Element index, within a head's values, of dimension d of the token in `slot`; not coded.
  [[nodiscard]] constexpr std::size_t value_index(std::int32_t slot, std::int32_t d) const noexcept {
    if (values_in_keys) return key_index(slot, d);
    return static_cast<std::size_t>(slot) * static_cast<std::size_t>(head_dim_v) + static_cast<std::size_t>(d);
  }

  /// Where a coded element is, in bytes from the head's first key or value: the byte with its code, the bits by which
  /// the code is shifted, its scale, and with q4_1 its minimum.
  struct CodePlace {
    std::size_t code;
    int shift;
    std::size_t scale;
    std::size_t minimum;
  };
  [[nodiscard]] constexpr CodePlace key_place(std::int32_t slot, std::int32_t d) const noexcept {
    const auto lane = static_cast<std::size_t>(slot % lane_tokens);
    const auto dim = static_cast<std::size_t>(d);
    const std::size_t group = static_cast<std::size_t>(slot / lane_tokens) * lane_tokens * vector_bytes(head_dim_k);
    const std::size_t scale = group + lane_tokens * code_bytes(head_dim_k) + 2 * (dim / 32 * lane_tokens + lane);
    const std::size_t minimum = scale + 2 * lane_tokens * blocks(head_dim_k);
    if (dtype == DType::q8_0) return {group + 2 * (dim / 2 * lane_tokens + lane) + dim % 2, 0, scale, minimum};
    return {group + dim / 2 * lane_tokens + lane, 4 * (d % 2), scale, minimum};
  }
  [[nodiscard]] constexpr CodePlace value_place(std::int32_t slot, std::int32_t d) const noexcept {
    if (values_in_keys) return key_place(slot, d);
    const auto row = static_cast<std::size_t>(slot);
    const auto dim = static_cast<std::size_t>(d);
    const std::size_t scale = static_cast<std::size_t>(page_tokens) * code_bytes(head_dim_v) +
                              2 * (row * blocks(head_dim_v) + dim / 32);
    const std::size_t codes = row * code_bytes(head_dim_v);
    const std::size_t minimum = scale + 2 * static_cast<std::size_t>(page_tokens) * blocks(head_dim_v);
    if (dtype == DType::q8_0) return {codes + dim, 0, scale, minimum};
    return {codes + dim / 32 * 16 + dim % 16, 4 * (d / 16 % 2), scale, minimum};
  }

  /// Calls f(offset, bytes) for the pieces of a page that hold the token in `slot` of `head`, always in the same order:
  /// token_bytes() in all.
  template <class F>
  constexpr void for_each_piece(std::int32_t head, std::int32_t slot, const F& f) const {
    const std::size_t keys = keys_offset(head);
    const std::size_t values = values_offset(head);
    if (!coded()) {
      for (std::int32_t d = 0; d < head_dim_k; ++d) f(keys + key_index(slot, d) * element_bytes(), element_bytes());
      if (!values_in_keys) f(values + value_index(slot, 0) * element_bytes(), vector_bytes(head_dim_v));
      return;
    }
    const auto dims_k = static_cast<std::int32_t>(blocks(head_dim_k)) * block_dims;
    const std::size_t pair = dtype == DType::q8_0 ? 2 : 1;
    for (std::int32_t d = 0; d < dims_k; d += 2) f(keys + key_place(slot, d).code, pair);
    for (std::int32_t d = 0; d < dims_k; d += block_dims) f(keys + key_place(slot, d).scale, std::size_t{2});
    for (std::int32_t d = 0; block_numbers() > 1 && d < dims_k; d += block_dims)
      f(keys + key_place(slot, d).minimum, std::size_t{2});
    if (values_in_keys) return;
    f(values + value_place(slot, 0).code, code_bytes(head_dim_v));
    f(values + value_place(slot, 0).scale, 2 * blocks(head_dim_v));
    if (block_numbers() > 1) f(values + value_place(slot, 0).minimum, 2 * blocks(head_dim_v));
  }
  friend constexpr bool operator==(const KvPageLayout&, const KvPageLayout&) = default;
};

}  // namespace skald::inline v0
