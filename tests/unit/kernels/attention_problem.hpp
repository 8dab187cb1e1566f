#pragma once

// Random attention problems for the tests of the kernels: a page pool filled with NaN but for the stored tokens, with
// inaccessible memory behind every array, and plain attention in double precision.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include <skald/core/half.hpp>
#include <skald/kernels/kv_codes.hpp>
#include <skald/simd/isa.hpp>

#include "kernels/kernel_table.hpp"

namespace skald_test {

using skald::DType;
using skald::kernels::AttentionKernel;
using skald::kernels::AttentionTask;

/// `count` elements whose end (or, if `low`, whose beginning) touches inaccessible memory; every byte is 0xFF.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t count, bool low = false) : count_(count) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t used = (count * sizeof(T) + page - 1) / page * page;
    bytes_ = used + 2 * page;
    map_ = static_cast<std::byte*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (map_ == MAP_FAILED) throw std::runtime_error("mmap failed");
    std::memset(map_, 0xFF, bytes_);
    mprotect(map_, page, PROT_NONE);
    mprotect(map_ + page + used, page, PROT_NONE);
    data_ = reinterpret_cast<T*>(low ? map_ + page : map_ + page + used - count * sizeof(T));
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(map_, bytes_); }
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return count_; }
  T& operator[](std::size_t i) const { return data_[i]; }

 private:
  std::byte* map_ = nullptr;
  T* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t count_ = 0;
};

struct Shape {
  DType type = DType::f16;
  int page_tokens = 64;
  int kv_heads = 1;  ///< all in one group
  int heads = 4;     ///< query heads per KV head
  int dims_k = 64;
  int dims_v = 64;
  int before = 0;  ///< slots filled before the segment
  int rows = 1;
  int window = 0;
  float softcap = 0.0F;
  float magnitude = 1.0F;  ///< of queries: larger ones give sharper distributions
  bool tree = false;
  bool low = false;  ///< guards touch the beginnings of the arrays
  int mask = 0;      ///< causal, full or none
  bool sinks = false;
  bool slopes = false;
  int bias_reach = -1;  ///< negative: no bias
  bool values_in_keys = false;
  bool slot_bias = false;
  bool positions = false;  ///< of tokens of which some between them are gone
  bool until = false;      ///< slots are dropped while the rows pass
};

struct IsaKernels {
  skald::Isa isa;
  const AttentionKernel* kernels;
  int count;
  [[nodiscard]] const AttentionKernel& of(DType type) const {
    for (int i = 0; i < count; ++i) {
      if (kernels[i].type == type) return kernels[i];
    }
    throw std::runtime_error("no attention kernel of this type");
  }
};

inline std::vector<IsaKernels> available_kernels() {
  std::vector<IsaKernels> all;
  for (const skald::Isa isa : skald::available_isas()) {
    IsaKernels k{isa, nullptr, 0};
    switch (isa) {
      case skald::Isa::baseline: k.kernels = skald::kernels::baseline::attention_kernels(&k.count); break;
#if defined(__x86_64__)
      case skald::Isa::avx2: k.kernels = skald::kernels::avx2::attention_kernels(&k.count); break;
      case skald::Isa::avx512: k.kernels = skald::kernels::avx512::attention_kernels(&k.count); break;
      case skald::Isa::avx512bf16:
      case skald::Isa::avx512vnni: k.kernels = skald::kernels::avx512vnni::attention_kernels(&k.count); break;
#else
      default: continue;
#endif
    }
    all.push_back(k);
  }
  return all;
}

inline float rounded(DType type, float x) {
  if (type == DType::f16) return skald::f16_to_f32(skald::f32_to_f16(x));
  if (type == DType::bf16) return skald::bf16_to_f32(skald::f32_to_bf16(x));
  return x;
}

/// A vector as pages of a type give it back; for coded types in blocks of 32, by the definition of KvPageLayout.
inline void round_vector(DType type, float* x, int dims) {
  if (!skald::KvPageLayout{.dtype = type}.coded()) {
    for (int d = 0; d < dims; ++d) x[d] = rounded(type, x[d]);
    return;
  }
  if (type == DType::q4_1) {
    for (int begin = 0; begin < dims; begin += 32) {
      const int end = std::min(begin + 32, dims);
      float low = end - begin < 32 ? std::min(0.0F, *std::min_element(x + begin, x + end)) : *std::min_element(x + begin, x + end);
      const float top = end - begin < 32 ? std::max(0.0F, *std::max_element(x + begin, x + end)) : *std::max_element(x + begin, x + end);
      low = skald::f16_to_f32(skald::detail::f16_below(low));
      const float scale = skald::f16_to_f32(skald::detail::f16_above((top - low) / 15.0F));
      for (int d = begin; d < end; ++d) {
        const float code = scale == 0 ? 0.0F : std::nearbyint((x[d] - low) * (1.0F / scale));
        x[d] = low + scale * std::clamp(code, 0.0F, 15.0F);
      }
    }
    return;
  }
  for (int begin = 0; begin < dims; begin += 32) {
    const int end = std::min(begin + 32, dims);
    float extreme = 0;
    for (int d = begin; d < end; ++d) {
      // Of equal magnitudes the positive one counts.
      if (std::abs(x[d]) > std::abs(extreme) || (x[d] > 0 && x[d] == -extreme)) extreme = x[d];
    }
    const bool eight = type == DType::q8_0;
    const float scale = rounded(DType::f16, eight ? std::abs(extreme) / 127.0F : extreme / -8.0F);
    for (int d = begin; d < end; ++d) {
      const float code = scale == 0 ? 0.0F : std::nearbyint(x[d] * (1.0F / scale));
      x[d] = scale * (eight ? std::clamp(code, -127.0F, 127.0F) : std::clamp(code, -8.0F, 7.0F));
    }
  }
}

/// The data of a problem; the same seed and counts give the same numbers whatever the page size.
class Problem {
 public:
  Problem(const Shape& shape, const AttentionKernel& kernel, unsigned seed)
      : shape_(shape),
        kernel_(&kernel),
        layout_{shape.type, shape.page_tokens, shape.kv_heads, shape.dims_k, shape.dims_v,
                shape.values_in_keys},
        slots_(shape.before + shape.rows),
        pages_(static_cast<std::size_t>((slots_ + shape.page_tokens - 1) / shape.page_tokens)),
        pool_((pages_.size() + 1) * layout_.page_bytes(), shape.low),
        q_(static_cast<std::size_t>(shape.rows * shape.kv_heads * shape.heads * shape.dims_k), shape.low),
        slot_bias_(static_cast<std::size_t>(slots_), shape.low),
        noise_(static_cast<std::size_t>(slots_), shape.low),
        inverse_temperatures_(static_cast<std::size_t>(shape.rows), shape.low),
        positions_(static_cast<std::size_t>(slots_), shape.low),
        until_(static_cast<std::size_t>(slots_), shape.low) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < q_.size(); ++i) q_[i] = shape.magnitude * normal(random);
    const auto tokens = static_cast<std::size_t>(slots_ * shape.kv_heads);
    k_.resize(tokens * static_cast<std::size_t>(shape.dims_k));
    v_.resize(tokens * static_cast<std::size_t>(shape.dims_v));
    for (float& x : k_) x = normal(random);
    for (float& x : v_) x = normal(random);
    make_tree(random);
    const auto heads = static_cast<std::size_t>(shape.kv_heads * shape.heads);
    sinks_.resize(heads);
    slopes_.resize(heads);
    bias_.resize(heads * static_cast<std::size_t>(2 * std::max(0, shape.bias_reach) + 1));
    for (std::vector<float>* numbers : {&sinks_, &slopes_, &bias_}) {
      for (float& x : *numbers) x = normal(random);
    }
    for (float& x : slopes_) x *= 0.01F;
    int position = 0;
    for (int slot = 0; slot < slots_; ++slot) {
      slot_bias_[static_cast<std::size_t>(slot)] = normal(random);
      noise_[static_cast<std::size_t>(slot)] = normal(random);
      position += slot >= shape.before ? 1 : 1 + static_cast<int>(random() % 3);
      positions_[static_cast<std::size_t>(slot)] = position;
    }
    position_ = positions_[static_cast<std::size_t>(shape.before)];
    for (int slot = 0; slot < slots_; ++slot)
      until_[static_cast<std::size_t>(slot)] =
          random() % 3 == 0 ? position_ - 2 + static_cast<int>(random() % static_cast<unsigned>(shape.rows + 4)) : 1 << 30;
    for (int row = 0; row < shape.rows; ++row)
      inverse_temperatures_[static_cast<std::size_t>(row)] = 1.0F / static_cast<float>(1 + random() % 3);
    // Not in order, and with one page that no table names.
    for (std::size_t i = 0; i < pages_.size(); ++i) pages_[i] = static_cast<std::uint32_t>(i + (seed % 2));
    std::shuffle(pages_.begin(), pages_.end(), random);
    for (int slot = 0; slot < slots_; ++slot) {
      for (int head = 0; head < shape.kv_heads; ++head) write(slot, head, key(slot, head), value(slot, head));
    }
    for (int token = 0; token < slots_ * shape.kv_heads; ++token) {
      float* k = k_.data() + std::ptrdiff_t{token} * shape.dims_k;
      float* v = v_.data() + std::ptrdiff_t{token} * shape.dims_v;
      round_vector(shape.type, k, shape.dims_k);
      if (shape.values_in_keys) std::copy_n(k, shape.dims_v, v);
      else round_vector(shape.type, v, shape.dims_v);
    }
  }

  void write(int slot, int head, const float* k, const float* v) {
    std::byte* page = pool_.data() + pages_[static_cast<std::size_t>(slot / shape_.page_tokens)] * layout_.page_bytes();
    kernel_->store(k, v, page, layout_, head, slot % shape_.page_tokens);
  }
  [[nodiscard]] float* key(int slot, int head) {
    return k_.data() + static_cast<std::ptrdiff_t>(slot * shape_.kv_heads + head) * shape_.dims_k;
  }
  [[nodiscard]] float* value(int slot, int head) {
    return v_.data() + static_cast<std::ptrdiff_t>(slot * shape_.kv_heads + head) * shape_.dims_v;
  }
  [[nodiscard]] std::ptrdiff_t out_stride() const {
    return static_cast<std::ptrdiff_t>(shape_.kv_heads) * shape_.heads * shape_.dims_v;
  }
  [[nodiscard]] std::size_t out_size() const { return static_cast<std::size_t>(shape_.rows * out_stride()); }

  /// Rows [begin, end) of the segment for one KV head.
  [[nodiscard]] AttentionTask task(int head, int begin, int end, float* out) const {
    AttentionTask t{};
    t.q_stride = static_cast<std::int64_t>(shape_.kv_heads) * shape_.heads * shape_.dims_k;
    t.q = q_.data() + begin * t.q_stride + static_cast<std::ptrdiff_t>(head) * shape_.heads * shape_.dims_k;
    t.out_stride = out_stride();
    t.out = out + begin * t.out_stride + static_cast<std::ptrdiff_t>(head) * shape_.heads * shape_.dims_v;
    t.rows = end - begin;
    t.heads = shape_.heads;
    t.first_row = begin;
    t.segment_rows = shape_.rows;
    t.slot_base = shape_.before;
    t.visible = shape_.tree ? visible_.data() : nullptr;
    t.window = shape_.window;
    t.scale = scale();
    t.softcap = shape_.softcap;
    t.pool = pool_.data();
    t.pages = pages_.data();
    t.layout = layout_;
    t.head = head;
    t.mask = shape_.mask;
    const std::ptrdiff_t first_head = std::ptrdiff_t{head} * shape_.heads;
    if (shape_.sinks) t.sinks = sinks_.data() + first_head;
    if (shape_.slopes) t.slopes = slopes_.data() + first_head;
    if (shape_.bias_reach >= 0) {
      t.bias_reach = shape_.bias_reach;
      t.bias = bias_.data() + first_head * (2 * shape_.bias_reach + 1);
    }
    if (shape_.slot_bias) t.slot_bias = slot_bias_.data();
    if (shape_.positions) t.positions = positions_.data();
    if (shape_.until) t.until = until_.data();
    t.position = position_;
    return t;
  }
  /// The same for a score pass with noise and temperatures.
  [[nodiscard]] AttentionTask noisy(AttentionTask t) const {
    t.noise = noise_.data();
    t.inverse_temperatures = inverse_temperatures_.data() + t.first_row;
    return t;
  }
  [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(shape_.dims_k)); }

  void whole(const AttentionTask& t) const {
    const Guarded<std::byte> scratch(kernel_->scratch_bytes(shape_.dims_k, shape_.dims_v, t.heads, t.rows));
    kernel_->whole(t, scratch.data());
  }
  void chunk_by_chunk(const AttentionTask& t) const {
    const Guarded<std::byte> scratch(kernel_->scratch_bytes(shape_.dims_k, shape_.dims_v, t.heads, t.rows));
    const int count = (shape_.before + shape_.rows + 255) / 256;
    const std::size_t bytes = kernel_->partial_bytes(t);
    const Guarded<std::byte> partials(bytes * static_cast<std::size_t>(count));
    for (int c = count; c-- > 0;) {
      kernel_->chunk(t, c, partials.data() + static_cast<std::size_t>(c) * bytes, scratch.data());
    }
    kernel_->merge(t, partials.data(), bytes, count);
  }

  [[nodiscard]] bool sees(int row, int slot) const {
    const int own = shape_.before + row;
    const int end = shape_.mask == 0 ? own + 1 : shape_.before + (shape_.mask == 1 ? shape_.rows : 0);
    if (slot >= end || (shape_.window > 0 && slot <= own - shape_.window)) return false;
    if (shape_.until && slot != own && until_[static_cast<std::size_t>(slot)] <= position_ + row) return false;
    if (!shape_.tree || slot < shape_.before) return true;
    const int j = slot - shape_.before;
    const auto words = static_cast<std::size_t>((shape_.rows + 63) / 64);
    return (visible_[static_cast<std::size_t>(row) * words + static_cast<std::size_t>(j / 64)] >> (j % 64) & 1) != 0;
  }

  struct Exact {
    std::vector<double> probability;  ///< per slot
    std::vector<double> out;
    double bound = 0;  ///< what rounding may do to an element of `out`
  };
  /// Softmax attention of one row and query head, and an a-priori bound of single precision's error: the fold of a
  /// score rounds dims_k times, the weighted sum once per token.
  [[nodiscard]] Exact exact(int row, int head, int query_head, bool noisy = false) {
    const float* q =
        q_.data() +
        ((static_cast<std::ptrdiff_t>(row) * shape_.kv_heads + head) * shape_.heads + query_head) * shape_.dims_k;
    Exact result;
    result.probability.assign(static_cast<std::size_t>(slots_), 0.0);
    result.out.assign(static_cast<std::size_t>(shape_.dims_v), 0.0);
    std::vector<double> scores(static_cast<std::size_t>(slots_));
    double top = -std::numeric_limits<double>::infinity(), magnitude = 0, largest = 0, sum = 0, added = 0;
    for (int slot = 0; slot < slots_; ++slot) {
      if (!sees(row, slot)) continue;
      double s = 0, absolute = 0;
      for (int d = 0; d < shape_.dims_k; ++d) {
        s += static_cast<double>(q[d]) * key(slot, head)[d];
        absolute += std::abs(static_cast<double>(q[d]) * key(slot, head)[d]);
      }
      s *= scale();
      if (shape_.softcap > 0) s = shape_.softcap * std::tanh(s / shape_.softcap);
      const std::ptrdiff_t number = std::ptrdiff_t{head} * shape_.heads + query_head;
      const int by_slot = slot - shape_.before - row;
      const int distance = by_slot;
      const int by_position =
          shape_.positions ? positions_[static_cast<std::size_t>(slot)] - position_ - row : by_slot;
      if (shape_.slopes) s += static_cast<double>(slopes_[static_cast<std::size_t>(number)]) * by_position;
      if (shape_.bias_reach >= 0) {
        const int reach = shape_.bias_reach;
        s += bias_[static_cast<std::size_t>(number * (2 * reach + 1) + std::clamp(distance, -reach, reach) + reach)];
      }
      if (shape_.slot_bias) s += double{slot_bias_[static_cast<std::size_t>(slot)]};
      if (noisy)
        s = (s + double{noise_[static_cast<std::size_t>(slot)]}) * inverse_temperatures_[static_cast<std::size_t>(row)];
      added = std::max(added, std::abs(s));
      scores[static_cast<std::size_t>(slot)] = s;
      top = std::max(top, s);
      magnitude = std::max(magnitude, absolute * scale());
      for (int d = 0; d < shape_.dims_v; ++d) largest = std::max(largest, std::abs(double{value(slot, head)[d]}));
    }
    int seen = 0;
    if (shape_.sinks) {
      double sink = sinks_[static_cast<std::size_t>(head * shape_.heads + query_head)];
      if (noisy) sink *= inverse_temperatures_[static_cast<std::size_t>(row)];
      top = std::max(top, sink);
      sum = std::exp(sink - top);
    }
    for (int slot = 0; slot < slots_; ++slot) {
      if (!sees(row, slot)) continue;
      ++seen;
      sum += result.probability[static_cast<std::size_t>(slot)] =
          std::exp(scores[static_cast<std::size_t>(slot)] - top);
    }
    for (int slot = 0; slot < slots_; ++slot) {
      if (!sees(row, slot)) continue;
      result.probability[static_cast<std::size_t>(slot)] /= sum;
      for (int d = 0; d < shape_.dims_v; ++d) {
        result.out[static_cast<std::size_t>(d)] +=
            result.probability[static_cast<std::size_t>(slot)] * value(slot, head)[d];
      }
    }
    constexpr double half_ulp = 0x1p-24;
    const double score_error = half_ulp * ((shape_.dims_k + 4) * magnitude + 8.0 * shape_.softcap + 4 * added);
    // Queries become numbers of 16 bits where keys are coded.
    const double steps = layout_.coded() ? 0x1p-15 * std::sqrt(shape_.dims_k) * shape_.magnitude * 8 : 0;
    result.bound = 2 * largest * steps + largest * (2 * score_error + half_ulp * (seen + 16));
    return result;
  }

 private:
  /// Every row sees itself, its parent, and what its parent sees.
  void make_tree(std::mt19937& random) {
    const auto words = static_cast<std::size_t>((shape_.rows + 63) / 64);
    visible_.assign(static_cast<std::size_t>(shape_.rows) * words, 0);
    for (std::size_t row = 0; row < static_cast<std::size_t>(shape_.rows); ++row) {
      if (row > 0 && random() % 8 != 0) {
        const std::size_t parent = random() % row;
        for (std::size_t w = 0; w < words; ++w) visible_[row * words + w] = visible_[parent * words + w];
      }
      visible_[row * words + row / 64] |= std::uint64_t{1} << (row % 64);
    }
  }

  Shape shape_;
  const AttentionKernel* kernel_;
  skald::KvPageLayout layout_;
  int slots_;
  std::vector<std::uint32_t> pages_;
  Guarded<std::byte> pool_;
  Guarded<float> q_;
  Guarded<float> slot_bias_, noise_, inverse_temperatures_;
  Guarded<std::int32_t> positions_, until_;
  int position_ = 0;
  std::vector<float> k_, v_;
  std::vector<std::uint64_t> visible_;
  std::vector<float> sinks_, slopes_, bias_;
};

}  // namespace skald_test
