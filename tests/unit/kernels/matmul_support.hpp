#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <skald/quant/activation.hpp>
#include <skald/quant/row_codec.hpp>
#include <skald/simd/isa.hpp>

#include "kernels/kernel_table.hpp"
#include "support/block_scales.hpp"
#include "support/catch.hpp"

namespace skald_test {

using skald::DType;
using skald::Isa;
using skald::kernels::MatmulColumns;
using skald::kernels::MatmulKernel;

/// Bytes between two pages that must not be touched. The data ends where the second one begins.
class GuardedBytes {
 public:
  explicit GuardedBytes(std::size_t bytes) : size_(bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    inner_ = (bytes + page - 1) / page * page;
    total_ = inner_ + 2 * page;
    void* mapping = mmap(nullptr, total_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(mapping != MAP_FAILED);
    mapping_ = static_cast<std::byte*>(mapping);
    REQUIRE(mprotect(mapping_, page, PROT_NONE) == 0);
    REQUIRE(mprotect(mapping_ + page + inner_, page, PROT_NONE) == 0);
    data_ = mapping_ + page + inner_ - bytes;
    std::memset(mapping_ + page, 0xA5, inner_);
  }
  ~GuardedBytes() { munmap(mapping_, total_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_, inner_ = 0, total_ = 0;
  std::byte* mapping_ = nullptr;
  std::byte* data_ = nullptr;
};

inline std::span<const MatmulKernel> matmul_kernels(Isa isa) {
  int count = 0;
  const MatmulKernel* kernels = nullptr;
  switch (isa) {
    case Isa::baseline: kernels = skald::kernels::baseline::matmul_kernels(&count); break;
#if defined(__x86_64__)
    case Isa::avx2: kernels = skald::kernels::avx2::matmul_kernels(&count); break;
    case Isa::avx512: kernels = skald::kernels::avx512::matmul_kernels(&count); break;
    case Isa::avx512bf16: kernels = skald::kernels::avx512bf16::matmul_kernels(&count); break;
    case Isa::avx512vnni: kernels = skald::kernels::avx512vnni::matmul_kernels(&count); break;
#else
    default: break;
#endif
  }
  return {kernels, static_cast<std::size_t>(count)};
}

/// Calls f(isa, kernel) for every kernel of every instruction set that runs here.
template <class F>
void for_each_kernel(F&& f) {
  for (const Isa isa : skald::available_isas())
    for (const MatmulKernel& kernel : matmul_kernels(isa)) {
      CAPTURE(std::string(to_string(isa)), std::string(skald::to_string(kernel.type)));
      f(isa, kernel);
    }
}

inline bool has_fma(Isa isa) { return isa != Isa::baseline; }
/// Plain numbers, multiplied as floats.
inline bool is_float(DType type) { return !skald::dtype_info(type).quantized; }
/// Plain numbers whose panels hold floats.
inline bool packs_floats(DType type) {
  return is_float(type) && type != DType::f32 && type != DType::f16 && type != DType::bf16;
}
inline std::int64_t block_of(DType type) { return static_cast<std::int64_t>(skald::dtype_info(type).block_elements); }

/// A weight in file format, one row after the other.
struct Weight {
  DType type;
  std::int64_t rows, cols;
  std::vector<std::byte> bytes;
  std::size_t row_bytes() const { return skald::row_bytes(type, static_cast<std::size_t>(cols)); }
  const std::byte* row(std::int64_t r) const { return bytes.data() + static_cast<std::size_t>(r) * row_bytes(); }
};

inline std::vector<float> normal_floats(std::size_t n, unsigned seed, float sigma = 1.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, sigma);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

inline Weight encoded_weight(DType type, std::int64_t rows, std::int64_t cols, unsigned seed) {
  Weight weight{type, rows, cols, {}};
  weight.bytes.resize(static_cast<std::size_t>(rows) * weight.row_bytes());
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto values = normal_floats(static_cast<std::size_t>(cols), seed + static_cast<unsigned>(r));
    skald::encode_row(type, values,
                      std::span(weight.bytes).subspan(static_cast<std::size_t>(r) * weight.row_bytes(), weight.row_bytes()));
  }
  return weight;
}

inline Weight random_bytes_weight(DType type, std::int64_t rows, std::int64_t cols, unsigned seed) {
  Weight weight{type, rows, cols, {}};
  weight.bytes.resize(static_cast<std::size_t>(rows) * weight.row_bytes());
  std::mt19937 random(seed);
  for (std::byte& byte : weight.bytes) byte = static_cast<std::byte>(random() & 0xFF);
  return weight;
}

/// Sets the scales and minimums of every block.
inline void set_scales(Weight& weight, std::uint16_t scale, std::uint16_t minimum) {
  const auto block_bytes = skald::dtype_info(weight.type).block_bytes;
  for (std::size_t at = 0; at < weight.bytes.size(); at += block_bytes)
    set_block_scale(weight.type, weight.bytes.data() + at, scale, minimum);
}

inline void pack_weight(const MatmulKernel& kernel, const Weight& weight, std::byte* to) {
  for (std::int64_t first = 0; first < weight.rows; first += 16) {
    const std::byte* rows[16];
    for (std::int64_t r = 0; r < 16; ++r) rows[r] = first + r < weight.rows ? weight.row(first + r) : nullptr;
    kernel.pack(rows, weight.cols, to);
    to += kernel.panel_bytes(weight.cols);
  }
}

inline std::size_t packed_bytes(const MatmulKernel& kernel, const Weight& weight) {
  return static_cast<std::size_t>((weight.rows + 15) / 16) * kernel.panel_bytes(weight.cols);
}

/// out[c][r] of the whole product, with every buffer ending at a page that must not be touched and columns computed in
/// ranges that begin at `starts`.
inline std::vector<float> product(const MatmulKernel& kernel, const Weight& weight, const std::vector<float>& x,
                                  std::int64_t count, std::vector<std::int64_t> starts = {0}) {
  GuardedBytes panels(packed_bytes(kernel, weight));
  pack_weight(kernel, weight, panels.data());
  const auto cols = static_cast<std::size_t>(weight.cols), tokens = static_cast<std::size_t>(count);
  GuardedBytes input(tokens * cols * 4);
  std::memcpy(input.data(), x.data(), input.size());
  GuardedBytes acts(kernel.acts_bytes(weight.cols, count));
  GuardedBytes scratch(kernel.scratch_bytes(weight.cols, count));
  GuardedBytes out(tokens * static_cast<std::size_t>(weight.rows) * 4);
  starts.push_back(count);
  const auto* from = reinterpret_cast<const float*>(input.data());
  for (std::size_t i = 0; i + 1 < starts.size(); ++i)
    kernel.prepare(from + starts[i] * weight.cols, weight.cols, weight.cols, starts[i], starts[i + 1], acts.data(), count);
  for (std::size_t i = 0; i + 1 < starts.size(); ++i)
    kernel.multiply(panels.data(), weight.rows, weight.cols, MatmulColumns{acts.data(), count, starts[i], starts[i + 1]},
                    reinterpret_cast<float*>(out.data()), weight.rows, scratch.data());
  std::vector<float> result(out.size() / 4);
  std::memcpy(result.data(), out.data(), out.size());
  return result;
}

/// Equal bits, or both NaN.
inline bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (a != a && b != b);
}

/// Index of the first difference, or -1.
inline std::ptrdiff_t first_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!same_bits(a[i], b[i])) return static_cast<std::ptrdiff_t>(i);
  return -1;
}

}  // namespace skald_test
