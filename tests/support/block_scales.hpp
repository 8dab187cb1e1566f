#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <skald/core/dtype.hpp>

namespace skald_test {

/// Offset of the binary16 scale in a block of the type.
inline std::size_t scale_offset(skald::DType type) {
  switch (type) {
    case skald::DType::q6_k: return 208;
    case skald::DType::q2_k: return 80;
    case skald::DType::q3_k: return 108;
    case skald::DType::tq1_0: return 52;
    case skald::DType::tq2_0: return 64;
    default: return 0;
  }
}

inline bool has_minimum(skald::DType type) {
  using skald::DType;
  return type == DType::q4_1 || type == DType::q5_1 || type == DType::q4_k || type == DType::q5_k || type == DType::q2_k;
}

/// Sets scale and minimum of one block to binary16 numbers (mxfp4: the scale to a power of two from the exponent of `scale`).
inline void set_block_scale(skald::DType type, std::byte* block, std::uint16_t scale, std::uint16_t minimum) {
  if (type == skald::DType::mxfp4) {
    block[0] = static_cast<std::byte>(128 + ((scale >> 10) & 31) - 15);
    return;
  }
  if (type == skald::DType::iq1_m) {
    for (int n = 0; n < 4; ++n)
      block[48 + 2 * n + 1] = (block[48 + 2 * n + 1] & std::byte{0x0F}) | static_cast<std::byte>(((scale >> (4 * n)) & 15) << 4);
    return;
  }
  std::memcpy(block + scale_offset(type), &scale, 2);
  if (has_minimum(type)) std::memcpy(block + scale_offset(type) + 2, &minimum, 2);
}

}  // namespace skald_test
