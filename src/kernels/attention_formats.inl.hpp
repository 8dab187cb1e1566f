#pragma once

// How keys and values are stored (see KvPageLayout): reading vectors of them, and writing a token's. Included by
// src/kernels/isa/attention.cpp alone, inside the anonymous namespace of its instruction set.

/// How keys and values are stored: conversion of one vector.
struct Single {
  using Stored = float;
  static constexpr DType type = DType::f32;
  static constexpr bool converts = false;
  static constexpr bool coded = false;
  SKALD_INLINE static f32x16 read(const Stored* p) noexcept { return load(p); }
  SKALD_INLINE static f32x16 read_n(const Stored* p, int n) noexcept { return load_n(p, n); }
  SKALD_INLINE static void write(Stored* p, f32x16 a) noexcept { store(p, a); }
};
struct Half {
  using Stored = std::uint16_t;
  static constexpr DType type = DType::f16;
  static constexpr bool converts = true;
  static constexpr bool coded = false;
  SKALD_INLINE static f32x16 read(const Stored* p) noexcept { return load_f16(p); }
  SKALD_INLINE static f32x16 read_n(const Stored* p, int n) noexcept { return load_f16_n(p, n); }
  SKALD_INLINE static void write(Stored* p, f32x16 a) noexcept { store_f16(p, a); }
};
struct Brain {
  using Stored = std::uint16_t;
  static constexpr DType type = DType::bf16;
  static constexpr bool converts = true;
  static constexpr bool coded = false;
  SKALD_INLINE static f32x16 read(const Stored* p) noexcept { return load_bf16(p); }
  SKALD_INLINE static f32x16 read_n(const Stored* p, int n) noexcept { return load_bf16_n(p, n); }
  SKALD_INLINE static void write(Stored* p, f32x16 a) noexcept { store_bf16(p, a); }
};


/// q8_0: signed codes of eight bits.
struct Eight {
  using Stored = std::uint8_t;
  static constexpr DType type = DType::q8_0;
  static constexpr bool converts = true;
  static constexpr bool coded = true;
  static constexpr int pair_bytes = 32;  ///< two dimensions of 16 keys
  static constexpr int offset = 0;       ///< what `pairs` gives less this is the code's value
  static constexpr bool minimums = false;  ///< blocks have a minimum, to which scale * code is added
  SKALD_INLINE static i32x16 pairs(const Stored* p) noexcept { return load_i8_pairs(p); }
  /// Vector `vector` of 16 dimensions of a value's codes.
  SKALD_INLINE static i32x16 value(const Stored* codes, int vector) noexcept {
    return load_i8(reinterpret_cast<const std::int8_t*>(codes) + 16 * vector);
  }
};
/// q4_0: codes of four bits that stand for themselves less 8.
struct Four {
  using Stored = std::uint8_t;
  static constexpr DType type = DType::q4_0;
  static constexpr bool converts = true;
  static constexpr bool coded = true;
  static constexpr int pair_bytes = 16;
  static constexpr int offset = 8;
  static constexpr bool minimums = false;
  SKALD_INLINE static i32x16 pairs(const Stored* p) noexcept {
    const i32x16 both = load_u8(p);
    return (both & set1(0x0F)) | shl<12>(both & set1(0xF0));
  }
  SKALD_INLINE static i32x16 value(const Stored* codes, int vector) noexcept {
    const i32x16 both = load_u8(codes + 16 * (vector / 2));
    return (shift_right(both, 4 * (vector % 2)) & set1(0x0F)) - set1(8);
  }
};

/// q4_1: codes of four bits over a minimum. What the minimums of a block weigh in a score is the sum of the query's numbers.
struct FourOver {
  using Stored = std::uint8_t;
  static constexpr DType type = DType::q4_1;
  static constexpr bool converts = true;
  static constexpr bool coded = true;
  static constexpr int pair_bytes = 16;
  static constexpr int offset = 0;
  static constexpr bool minimums = true;
  SKALD_INLINE static i32x16 pairs(const Stored* p) noexcept { return Four::pairs(p); }
  SKALD_INLINE static i32x16 value(const Stored* codes, int vector) noexcept {
    const i32x16 both = load_u8(codes + 16 * (vector / 2));
    return shift_right(both, 4 * (vector % 2)) & set1(0x0F);
  }
};

SKALD_INLINE int blocks_of(int dims) noexcept { return (dims + 31) / 32; }
SKALD_INLINE bool is_coded(DType type) noexcept {
  return type == DType::q8_0 || type == DType::q4_0 || type == DType::q4_1;
}
/// Binary16 numbers of a block beside its codes.
SKALD_INLINE int block_numbers(DType type) noexcept { return type == DType::q4_1 ? 2 : 1; }

/// Bytes of a vector, and of its codes without the scales; as KvPageLayout, whose functions this file may not link.
SKALD_INLINE std::size_t code_bytes(DType type, int dims) noexcept {
  return static_cast<std::size_t>(blocks_of(dims)) * (type == DType::q8_0 ? 32 : 16);
}
SKALD_INLINE std::size_t vector_bytes(DType type, int dims) noexcept {
  if (is_coded(type)) return code_bytes(type, dims) + static_cast<std::size_t>(2 * block_numbers(type) * blocks_of(dims));
  return static_cast<std::size_t>(dims) * (type == DType::f32 ? 4 : 2);
}

/// Dimension `dim` of the 16 keys of a group.
template <class Element>
SKALD_INLINE f32x16 read_dimension(const typename Element::Stored* group, int dims, int dim) noexcept {
  if constexpr (Element::coded) {
    const auto* scales = reinterpret_cast<const std::uint16_t*>(group + 16 * code_bytes(Element::type, dims));
    const i32x16 both = Element::pairs(group + std::ptrdiff_t{Element::pair_bytes} * (dim / 2));
    const i32x16 code = dim % 2 == 0 ? sra<16>(shl<16>(both)) : sra<16>(both);
    const f32x16 scale = load_f16(scales + std::ptrdiff_t{16} * (dim / 32));
    if constexpr (Element::minimums)
      return fma(to_f32(code), scale, load_f16(scales + std::ptrdiff_t{16} * (blocks_of(dims) + dim / 32)));
    return to_f32(code - set1(Element::offset)) * scale;
  } else {
    return Element::read(group + std::ptrdiff_t{16} * dim);
  }
}

template <class Element>
void store_row(const float* k, const float* v, std::byte* page, const KvPageLayout& layout, std::int32_t head,
               std::int32_t slot) noexcept {
  using Stored = typename Element::Stored;
  const auto tokens = static_cast<std::size_t>(layout.page_tokens);
  const auto dims_k = static_cast<std::size_t>(layout.head_dim_k);
  const auto dims_v = static_cast<std::size_t>(layout.values_in_keys ? 0 : layout.head_dim_v);
  auto* elements = reinterpret_cast<Stored*>(page) + static_cast<std::size_t>(head) * tokens * (dims_k + dims_v);
  Stored* keys = elements + static_cast<std::size_t>(slot / 16) * 16 * dims_k + slot % 16;
  Stored* values = elements + tokens * dims_k + static_cast<std::size_t>(slot) * dims_v;
  Stored converted[16];
  for (std::size_t d = 0; d < dims_k; d += 16) {
    const int n = least(16, static_cast<int>(dims_k - d));
    Element::write(converted, n == 16 ? load(k + d) : load_n(k + d, n));
    for (int i = 0; i < n; ++i) keys[(d + static_cast<std::size_t>(i)) * 16] = converted[i];
  }
  for (std::size_t d = 0; d < dims_v; d += 16) {
    const int n = least(16, static_cast<int>(dims_v - d));
    Element::write(converted, n == 16 ? load(v + d) : load_n(v + d, n));
    for (int i = 0; i < n; ++i) values[d + static_cast<std::size_t>(i)] = converted[i];
  }
}

/// Codes of a block of 32 numbers.
struct CodedBlock {
  std::int32_t codes[32];
  std::uint16_t scale;
  std::uint16_t minimum;
};

SKALD_INLINE float half_value(std::uint16_t half) noexcept {
  std::uint16_t halves[16];
  for (auto& each : halves) each = half;
  float values[16];
  store(values, load_f16(halves));
  return values[0];
}
SKALD_INLINE std::uint16_t nearest_half(float x) noexcept {
  std::uint16_t halves[16];
  store_f16(halves, set1(x));
  return halves[0];
}

/// Encodes n <= 32 numbers over their minimum. The minimum is rounded down and the scale up: no code is cut off.
SKALD_INLINE void encode_over_minimum(const float* x, int n, CodedBlock& block) noexcept {
  const f32x16 a = n >= 16 ? load(x) : load_n(x, n);
  const f32x16 b = n >= 32 ? load(x + 16) : n > 16 ? load_n(x + 16, n - 16) : zero_f32();
  const float top = reduce_max(max(a, b));
  const float bottom = -reduce_max(max(-a, -b));
  const float not_finite = reduce_add(abs(a) + abs(b)) * 0.0F;  // 0 or NaN
  const float within = bottom > 65504.0F ? 65504.0F : bottom < -65504.0F ? -65504.0F : bottom;
  std::uint16_t low = nearest_half(within);
  if (half_value(low) > bottom && low != 0xFBFF) {
    if ((low & 0x7FFF) == 0) low = 0x8001;
    else low = static_cast<std::uint16_t>((low & 0x8000) != 0 ? low + 1 : low - 1);
  }
  if (not_finite != 0.0F) low = 0;
  const float minimum = half_value(low);
  const float wanted = (top - minimum) / 15.0F;
  std::uint16_t half = nearest_half((wanted > 65504.0F ? 65504.0F : wanted) + not_finite);
  if (half_value(half) < wanted && half < 0x7BFF) ++half;
  if (not_finite != 0.0F) half = 0x7E00;
  block.scale = half;
  block.minimum = low;
  const float scale = half_value(half);
  const f32x16 inverse = set1(scale > 0.0F ? 1.0F / scale : 0.0F);
  const f32x16 from = set1(minimum);
  const i32x16 none = zero_i32();
  const i32x16 high = set1(15);
  store(block.codes, min(max(round_to_i32((a - from) * inverse), none), high));
  store(block.codes + 16, min(max(round_to_i32((b - from) * inverse), none), high));
}

/// Encodes n <= 32 numbers; those that are missing are zeros. A number that is not finite makes the scale NaN.
template <class Element>
SKALD_INLINE void encode_block(const float* x, int n, CodedBlock& block) noexcept {
  if constexpr (Element::minimums) return encode_over_minimum(x, n, block);
  const f32x16 a = n >= 16 ? load(x) : load_n(x, n);
  const f32x16 b = n >= 32 ? load(x + 16) : n > 16 ? load_n(x + 16, n - 16) : zero_f32();
  const float top = reduce_max(max(a, b));
  const float bottom = -reduce_max(max(-a, -b));
  const float not_finite = reduce_add(abs(a) + abs(b)) * 0.0F;  // 0 or NaN
  const float extreme = top >= -bottom ? top : bottom;
  constexpr bool eight = Element::type == DType::q8_0;
  const float wanted = eight ? (extreme < 0 ? -extreme : extreme) / 127.0F : extreme / -8.0F;
  const float finite = wanted > 65504.0F ? 65504.0F : wanted < -65504.0F ? -65504.0F : wanted;
  std::uint16_t halves[16];
  store_f16(halves, set1(finite + not_finite));
  block.scale = halves[0];
  float scale[16];
  store(scale, load_f16(halves));
  const f32x16 inverse = set1(scale[0] != 0.0F ? 1.0F / scale[0] : 0.0F);
  const i32x16 low = set1(eight ? -127 : 0);
  const i32x16 high = set1(eight ? 127 : 15);
  const i32x16 offset = set1(Element::offset);
  store(block.codes, min(max(round_to_i32(a * inverse) + offset, low), high));
  store(block.codes + 16, min(max(round_to_i32(b * inverse) + offset, low), high));
}

template <class Element>
void store_codes(const float* k, const float* v, std::byte* page, const KvPageLayout& layout, std::int32_t head,
                 std::int32_t slot) noexcept {
  const auto tokens = static_cast<std::size_t>(layout.page_tokens);
  const int dims_k = layout.head_dim_k;
  const int dims_v = layout.values_in_keys ? 0 : layout.head_dim_v;
  const std::size_t key_bytes = vector_bytes(Element::type, dims_k);
  auto* keys = reinterpret_cast<std::uint8_t*>(page) +
               static_cast<std::size_t>(head) * tokens * (key_bytes + vector_bytes(Element::type, dims_v));
  std::uint8_t* values = keys + tokens * key_bytes;
  std::uint8_t* group = keys + static_cast<std::size_t>(slot / 16) * 16 * key_bytes;
  auto* key_scales = reinterpret_cast<std::uint16_t*>(group + 16 * code_bytes(Element::type, dims_k)) + slot % 16;
  constexpr bool eight = Element::type == DType::q8_0;
  CodedBlock block;
  for (int b = 0; b < blocks_of(dims_k); ++b) {
    encode_block<Element>(k + std::ptrdiff_t{32} * b, least(32, dims_k - 32 * b), block);
    std::uint8_t* codes = group + std::ptrdiff_t{16} * Element::pair_bytes * b + slot % 16 * (eight ? 2 : 1);
    for (int i = 0; i < 32; i += 2, codes += Element::pair_bytes) {
      if (eight) {
        codes[0] = static_cast<std::uint8_t>(block.codes[i]);
        codes[1] = static_cast<std::uint8_t>(block.codes[i + 1]);
      } else {
        codes[0] = static_cast<std::uint8_t>(block.codes[i] | block.codes[i + 1] << 4);
      }
    }
    key_scales[std::ptrdiff_t{16} * b] = block.scale;
    if constexpr (Element::minimums) key_scales[std::ptrdiff_t{16} * (blocks_of(dims_k) + b)] = block.minimum;
  }
  const std::size_t value_codes = code_bytes(Element::type, dims_v);
  auto* value_scales = reinterpret_cast<std::uint16_t*>(values + tokens * value_codes) + slot * blocks_of(dims_v);
  std::uint8_t* codes = values + static_cast<std::size_t>(slot) * value_codes;
  for (int b = 0; b < blocks_of(dims_v); ++b) {
    encode_block<Element>(v + std::ptrdiff_t{32} * b, least(32, dims_v - 32 * b), block);
    for (int i = 0; i < (eight ? 32 : 16); ++i) {
      *codes++ = static_cast<std::uint8_t>(eight ? block.codes[i] : block.codes[i] | block.codes[i + 16] << 4);
    }
    value_scales[b] = block.scale;
    if constexpr (Element::minimums) value_scales[static_cast<std::ptrdiff_t>(tokens) * blocks_of(dims_v) + b] = block.minimum;
  }
}
