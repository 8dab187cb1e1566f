// Makes a GGUF file of a published network's shape with random weights, for measuring speed and memory.
//   skald_make_random_gguf --shape SHAPE --type TYPE -o OUT.gguf [--seed N]
// Blocks of quantized types are made directly, with zero mean and the spread that a trained matrix would have: nothing
// is encoded, so a file of a billion weights takes seconds. The mixture of types follows what users quantize with:
// matrices of TYPE, the head in Q6_K, and for q4_k_m half of the value and down projections in Q6_K.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/core/dtype.hpp>
#include <skald/core/error.hpp>
#include <skald/core/executor.hpp>
#include <skald/core/half.hpp>
#include <skald/core/random.hpp>
#include <skald/model/gguf/writer.hpp>
#include <skald/quant/block_layout.hpp>
#include <skald/quant/row_codec.hpp>

namespace {

using skald::DType;

struct Shape {
  std::string_view name;
  std::string_view architecture;
  std::uint32_t vocabulary, dim, layers, heads, kv_heads, head_dim, ffn, context;
  float rope_base, epsilon;
  bool tied_head, qkv_bias, llama3_rope;
  std::uint32_t experts = 0, used = 0;  // `ffn` is the width of each
};

constexpr std::array shapes{
    Shape{"tiny", "llama", 512, 256, 4, 4, 2, 64, 768, 2048, 1e4F, 1e-5F, false, false, false},
    Shape{"llama-3.2-1b", "llama", 128256, 2048, 16, 32, 8, 64, 8192, 131072, 5e5F, 1e-5F, true, false, true},
    Shape{"llama-3.2-3b", "llama", 128256, 3072, 28, 24, 8, 128, 8192, 131072, 5e5F, 1e-5F, true, false, true},
    Shape{"llama-3.1-8b", "llama", 128256, 4096, 32, 32, 8, 128, 14336, 131072, 5e5F, 1e-5F, false, false, true},
    // An eighth of 1B in its layers, with the same vocabulary: a model that predicts for it.
    Shape{"llama-1b-eighth", "llama", 128256, 1024, 8, 16, 4, 64, 4096, 131072, 5e5F, 1e-5F, true, false, true},
    Shape{"qwen2.5-0.5b", "qwen2", 151936, 896, 24, 14, 2, 64, 4864, 32768, 1e6F, 1e-6F, true, true, false},
    // An eighth of the layers and of the vocabulary, so that the share of the head stays.
    Shape{"qwen3-30b-a3b-scaled", "qwen3moe", 18992, 2048, 6, 32, 4, 128, 768, 40960, 1e6F, 1e-6F, false, false, false,
          128, 8},
};

/// Types of the parts of a file.
struct Mixture {
  std::string_view name;
  DType matrices, head, half_of_value_and_down;
  std::uint32_t file_type;  // general.file_type (GGUF specification)
};

constexpr std::array mixtures{
    Mixture{"f32", DType::f32, DType::f32, DType::f32, 0},      Mixture{"f16", DType::f16, DType::f16, DType::f16, 1},
    Mixture{"bf16", DType::bf16, DType::bf16, DType::bf16, 32}, Mixture{"q8_0", DType::q8_0, DType::q8_0, DType::q8_0, 7},
    Mixture{"q4_0", DType::q4_0, DType::q6_k, DType::q4_0, 2},  Mixture{"q4_1", DType::q4_1, DType::q6_k, DType::q4_1, 3},
    Mixture{"q5_0", DType::q5_0, DType::q6_k, DType::q5_0, 8},  Mixture{"q5_1", DType::q5_1, DType::q6_k, DType::q5_1, 9},
    Mixture{"q4_k_s", DType::q4_k, DType::q6_k, DType::q4_k, 14},
    Mixture{"q4_k_m", DType::q4_k, DType::q6_k, DType::q6_k, 15},
    Mixture{"q5_k_s", DType::q5_k, DType::q6_k, DType::q5_k, 16},
    Mixture{"q5_k_m", DType::q5_k, DType::q6_k, DType::q6_k, 17},
    Mixture{"q6_k", DType::q6_k, DType::q6_k, DType::q6_k, 18},
    Mixture{"q2_k", DType::q2_k, DType::q6_k, DType::q3_k, 10},
    Mixture{"q3_k", DType::q3_k, DType::q6_k, DType::q3_k, 12},
    Mixture{"iq2_xxs", DType::iq2_xxs, DType::q6_k, DType::iq2_xxs, 19},
    Mixture{"iq2_xs", DType::iq2_xs, DType::q6_k, DType::iq2_xs, 20},
    Mixture{"iq3_xxs", DType::iq3_xxs, DType::q6_k, DType::iq3_xxs, 23},
    Mixture{"iq1_s", DType::iq1_s, DType::q6_k, DType::iq1_s, 24},
    Mixture{"iq4_nl", DType::iq4_nl, DType::q6_k, DType::iq4_nl, 25},
    Mixture{"iq3_s", DType::iq3_s, DType::q6_k, DType::iq3_s, 26},
    Mixture{"iq2_s", DType::iq2_s, DType::q6_k, DType::iq2_s, 28},
    Mixture{"iq4_xs", DType::iq4_xs, DType::q6_k, DType::iq4_xs, 30},
    Mixture{"iq1_m", DType::iq1_m, DType::q6_k, DType::iq1_m, 31},
    Mixture{"tq1_0", DType::tq1_0, DType::q6_k, DType::tq1_0, 36},
    Mixture{"tq2_0", DType::tq2_0, DType::q6_k, DType::tq2_0, 37},
    Mixture{"mxfp4", DType::mxfp4, DType::q6_k, DType::mxfp4, 38},
};

template <class T>
const T& named(const auto& table, std::string_view what, std::string_view name) {
  std::string names;
  for (const T& each : table) {
    if (each.name == name) return each;
    names += " " + std::string(each.name);
  }
  throw skald::UsageError("make_random_gguf", "unknown " + std::string(what) + " '" + std::string(name) + "'; there are:" + names);
}

/// The type used instead where rows are not whole super-blocks.
DType fitting(DType type, std::uint32_t columns) {
  if (columns % skald::format_ops(type).block_elements == 0) return type;
  switch (type) {
    case DType::q4_k: return DType::q5_0;
    case DType::q5_k: return DType::q5_1;
    default: return DType::q8_0;
  }
}

std::uint16_t half_bits(float value) { return skald::f32_to_f16(value); }

/// Random bytes of one row.
class RowRandom {
 public:
  RowRandom(std::uint64_t seed, std::uint64_t tensor, std::uint64_t row) : random_(seed, tensor, row) {}
  void fill(void* out, std::size_t bytes) {
    auto* to = static_cast<unsigned char*>(out);
    for (; bytes >= 4; bytes -= 4, to += 4) {
      const std::uint32_t bits = random_.next();
      std::memcpy(to, &bits, 4);
    }
    const std::uint32_t rest = random_.next();
    std::memcpy(to, &rest, bytes);
  }
  float between(float low, float high) {
    return low + (high - low) * static_cast<float>(random_.next() >> 8) * 0x1p-24F;
  }
  bool coin() { return (random_.next() & 1) != 0; }

 private:
  skald::CounterRandom random_;
};

/// A block scale near `scale`; the sign is random where codes alone would not have zero mean.
float block_scale(RowRandom& random, float scale, bool any_sign) {
  const float value = scale * random.between(0.8F, 1.2F);
  return any_sign && random.coin() ? -value : value;
}

// `spread` is the standard deviation of the values; codes are uniform, so that of n codes is about n / sqrt(12).
void make_block(skald::quant::BlockQ8_0& block, RowRandom& random, float spread) {
  random.fill(block.codes, sizeof block.codes);
  for (auto& code : block.codes) code = std::max<std::int8_t>(code, -127);
  block.scale = half_bits(block_scale(random, spread / 73.6F, false));
}
void make_block(skald::quant::BlockQ4_0& block, RowRandom& random, float spread) {
  random.fill(block.codes, sizeof block.codes);
  block.scale = half_bits(block_scale(random, spread / 4.6F, true));
}
void make_block(skald::quant::BlockQ5_0& block, RowRandom& random, float spread) {
  random.fill(block.codes, sizeof block.codes);
  random.fill(block.fifth_bits, sizeof block.fifth_bits);
  block.scale = half_bits(block_scale(random, spread / 9.2F, true));
}
void make_block(skald::quant::BlockQ4_1& block, RowRandom& random, float spread) {
  random.fill(block.codes, sizeof block.codes);
  const float scale = block_scale(random, spread / 4.6F, false);
  block.scale = half_bits(scale);
  block.minimum = half_bits(-7.5F * scale);
}
void make_block(skald::quant::BlockQ5_1& block, RowRandom& random, float spread) {
  random.fill(block.codes, sizeof block.codes);
  random.fill(block.fifth_bits, sizeof block.fifth_bits);
  const float scale = block_scale(random, spread / 9.2F, false);
  block.scale = half_bits(scale);
  block.minimum = half_bits(-15.5F * scale);
}
/// Sub-scales 32..63, each minimum equal to its scale: then scale and minimum of the block decide the mean alone.
void make_sub_scales(std::uint8_t (&packed)[12], RowRandom& random) {
  std::uint8_t values[8];
  random.fill(values, sizeof values);
  for (auto& value : values) value = static_cast<std::uint8_t>(32 + value % 32);
  for (int j = 0; j < 4; ++j) {
    const auto high = static_cast<std::uint8_t>((values[j + 4] >> 4) << 6);
    packed[j] = static_cast<std::uint8_t>(values[j] | high);
    packed[j + 4] = packed[j];
    packed[j + 8] = static_cast<std::uint8_t>((values[j + 4] & 15) | (values[j + 4] & 15) << 4);
  }
}
void make_block(skald::quant::BlockQ4_K& block, RowRandom& random, float spread) {
  random.fill(block.codes, sizeof block.codes);
  make_sub_scales(block.scales, random);
  const float scale = block_scale(random, spread / (4.6F * 48), false);
  block.scale = half_bits(scale);
  block.minimum = half_bits(7.5F * scale);
}
void make_block(skald::quant::BlockQ5_K& block, RowRandom& random, float spread) {
  random.fill(block.codes, sizeof block.codes);
  random.fill(block.fifth_bits, sizeof block.fifth_bits);
  make_sub_scales(block.scales, random);
  const float scale = block_scale(random, spread / (9.2F * 48), false);
  block.scale = half_bits(scale);
  block.minimum = half_bits(15.5F * scale);
}
void make_block(skald::quant::BlockQ6_K& block, RowRandom& random, float spread) {
  random.fill(block.low_bits, sizeof block.low_bits);
  random.fill(block.high_bits, sizeof block.high_bits);
  random.fill(block.scales, sizeof block.scales);
  block.scale = half_bits(block_scale(random, spread / (18.5F * 73.6F), false));
}

/// Offset of a block's binary16 scale in the formats whose codes may be any bytes.
std::size_t scale_offset(DType type) {
  switch (type) {
    case DType::q2_k: return 80;
    case DType::q3_k: return 108;
    case DType::tq1_0: return 52;
    case DType::tq2_0: return 64;
    default: return 0;
  }
}

/// Sets the scale of a low-bit block; the minimum of q2_k is such that equal small scales and minimums cancel the mean.
void set_scale(DType type, std::byte* block, float scale) {
  const std::uint16_t bits = half_bits(scale);
  if (type == DType::mxfp4) {
    block[0] = static_cast<std::byte>(128 + std::ilogb(std::abs(scale)));
    return;
  }
  if (type == DType::iq1_m) {
    for (unsigned n = 0; n < 4; ++n)
      block[49 + 2 * n] = (block[49 + 2 * n] & std::byte{15}) | static_cast<std::byte>(((bits >> (4 * n)) & 15U) << 4U);
    return;
  }
  std::memcpy(block + scale_offset(type), &bits, 2);
  if (type != DType::q2_k) return;
  const std::uint16_t minimum = half_bits(1.5F * scale);
  std::memcpy(block + 82, &minimum, 2);
  for (int j = 0; j < 16; ++j) block[j] = (block[j] & std::byte{15}) | (block[j] << 4U);
}

/// Random codes of a low-bit block; the ternary format with two bits has no fourth value.
void fill_codes(DType type, std::byte* block, std::size_t bytes, RowRandom& random) {
  random.fill(block, bytes);
  if (type != DType::tq2_0) return;
  for (std::size_t i = 0; i < 64; ++i) block[i] &= ~((block[i] & block[i] >> 1U & std::byte{0x55}) << 1U);
}

/// Spread of the values of random blocks of a low-bit type with scale 1.
float unit_spread(DType type) {
  const auto& ops = skald::format_ops(type);
  std::vector<std::byte> block(ops.block_bytes);
  std::vector<float> values(ops.block_elements);
  RowRandom random(1, 2, 3);
  double squares = 0;
  for (int i = 0; i < 64; ++i) {
    fill_codes(type, block.data(), block.size(), random);
    set_scale(type, block.data(), 1.0F);
    ops.decode_row(block.data(), values.data(), values.size());
    for (const float value : values) squares += static_cast<double>(value) * static_cast<double>(value);
  }
  return static_cast<float>(std::sqrt(squares / (64.0 * static_cast<double>(values.size()))));
}

void make_low_bits(DType type, std::span<std::byte> row, RowRandom& random, float spread) {
  const auto& ops = skald::format_ops(type);
  const float scale = spread / unit_spread(type);
  for (std::size_t at = 0; at < row.size(); at += ops.block_bytes) {
    fill_codes(type, row.data() + at, ops.block_bytes, random);
    // The sign of the scale cancels the mean of uneven values; minimums need a positive one.
    set_scale(type, row.data() + at, block_scale(random, scale, type != DType::q2_k));
  }
}

template <class Block>
void make_blocks(std::span<std::byte> row, RowRandom& random, float spread) {
  for (std::size_t at = 0; at < row.size(); at += sizeof(Block)) {
    Block block;
    make_block(block, random, spread);
    std::memcpy(row.data() + at, &block, sizeof block);
  }
}

void make_floats(DType type, std::span<std::byte> row, RowRandom& random, float spread) {
  std::vector<float> values(row.size() / skald::row_bytes(type, 1));
  const float bound = spread * std::numbers::sqrt3_v<float>;
  for (float& value : values) value = random.between(-bound, bound);
  skald::encode_row(type, values, row);
}

void make_row(DType type, std::span<std::byte> row, RowRandom random, float spread) {
  switch (type) {
    case DType::q8_0: return make_blocks<skald::quant::BlockQ8_0>(row, random, spread);
    case DType::q4_0: return make_blocks<skald::quant::BlockQ4_0>(row, random, spread);
    case DType::q4_1: return make_blocks<skald::quant::BlockQ4_1>(row, random, spread);
    case DType::q5_0: return make_blocks<skald::quant::BlockQ5_0>(row, random, spread);
    case DType::q5_1: return make_blocks<skald::quant::BlockQ5_1>(row, random, spread);
    case DType::q4_k: return make_blocks<skald::quant::BlockQ4_K>(row, random, spread);
    case DType::q5_k: return make_blocks<skald::quant::BlockQ5_K>(row, random, spread);
    case DType::q6_k: return make_blocks<skald::quant::BlockQ6_K>(row, random, spread);
    case DType::f32:
    case DType::f16:
    case DType::bf16: return make_floats(type, row, random, spread);
    default: return make_low_bits(type, row, random, spread);
  }
}

/// The layers whose value and down projections get more bits: the first and last eighth, and every third between.
bool more_bits(std::uint32_t layer, std::uint32_t layers) {
  const std::uint32_t eighth = layers / 8;
  return layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
}

/// Frequency divisors of the Llama 3 context extension (factor 32, or 8 in 3.1; wavelengths 2048 to 8192).
std::vector<float> llama3_factors(const Shape& shape) {
  const double factor = shape.name == "llama-3.1-8b" ? 8.0 : 32.0;
  std::vector<float> factors;
  for (std::uint32_t i = 0; i < shape.head_dim / 2; ++i) {
    const double length =
        2 * std::numbers::pi * std::pow(static_cast<double>(shape.rope_base), 2.0 * i / shape.head_dim);
    const double smooth = std::clamp((8192.0 / length - 1.0) / 3.0, 0.0, 1.0);
    factors.push_back(static_cast<float>(1.0 / ((1.0 - smooth) / factor + smooth)));
  }
  return factors;
}

class File {
 public:
  File(const Shape& shape, const Mixture& mixture, std::uint64_t seed)
      : shape_(shape), mixture_(mixture), seed_(seed), executor_(skald::make_tbb_executor()) {
    set_metadata();
    add_tensors();
  }
  void write(const std::string& path) const { writer_.write_file(path); }
  [[nodiscard]] std::uint64_t bytes() const { return writer_.file_bytes(); }

 private:
  void set_metadata() {
    const std::string prefix = std::string(shape_.architecture) + ".";
    const auto set = [&](const std::string& key, auto value) { writer_.set(key, skald::MetadataValue(value)); };
    set("general.architecture", std::string(shape_.architecture));
    set("general.name", "random " + std::string(shape_.name) + " " + std::string(mixture_.name));
    set("general.file_type", mixture_.file_type);
    set("general.quantization_version", std::uint32_t{2});
    set(prefix + "context_length", shape_.context);
    set(prefix + "embedding_length", shape_.dim);
    set(prefix + "block_count", shape_.layers);
    set(prefix + "feed_forward_length", shape_.ffn);
    if (shape_.experts > 0) {
      set(prefix + "expert_count", shape_.experts);
      set(prefix + "expert_used_count", shape_.used);
      set(prefix + "expert_feed_forward_length", shape_.ffn);
    }
    set(prefix + "attention.head_count", shape_.heads);
    set(prefix + "attention.head_count_kv", shape_.kv_heads);
    set(prefix + "attention.key_length", shape_.head_dim);
    set(prefix + "attention.value_length", shape_.head_dim);
    set(prefix + "attention.layer_norm_rms_epsilon", shape_.epsilon);
    set(prefix + "rope.dimension_count", shape_.head_dim);
    set(prefix + "rope.freq_base", shape_.rope_base);
    set(prefix + "vocab_size", shape_.vocabulary);
    set("tokenizer.ggml.model", std::string("no_vocab"));
  }

  void add_matrix(const std::string& name, std::uint32_t rows, std::uint32_t columns, DType wanted, float spread,
                  std::uint32_t matrices = 1) {
    const DType type = fitting(wanted, columns);
    const std::size_t row_bytes = skald::row_bytes(type, columns);
    std::vector<std::int64_t> dims{columns, rows};
    if (matrices > 1) dims.push_back(matrices);
    writer_.add_tensor(name, type, dims,
                       [this, type, row_bytes, spread, tensor = tensors_++](std::uint64_t offset, std::span<std::byte> out) {
                         const auto count = static_cast<int>(out.size() / row_bytes);
                         const int parts = std::min(count, 4 * executor_.concurrency());
                         executor_.run(parts, [&](int part) {
                           const int end = static_cast<int>(std::int64_t{count} * (part + 1) / parts);
                           for (int i = static_cast<int>(std::int64_t{count} * part / parts); i < end; ++i) {
                             const auto at = static_cast<std::size_t>(i) * row_bytes;
                             make_row(type, out.subspan(at, row_bytes),
                                      RowRandom(seed_, tensor, (offset + at) / row_bytes), spread);
                           }
                         });
                       });
  }
  void add_vector(const std::string& name, std::uint32_t size, float low, float high) {
    RowRandom random(seed_, tensors_++, 0);
    std::vector<float> values(size);
    for (float& value : values) value = random.between(low, high);
    writer_.add_tensor(name, DType::f32, {size}, std::as_bytes(std::span(values)));
  }

  void add_experts(const std::string& layer, DType finer) {
    const auto stack = [&](const std::string& name, std::uint32_t rows, std::uint32_t columns, DType type) {
      add_matrix(layer + name, rows, columns, type, 1.0F / std::sqrt(static_cast<float>(columns)), shape_.experts);
    };
    add_matrix(layer + "ffn_gate_inp.weight", shape_.experts, shape_.dim, DType::f32,
               1.0F / std::sqrt(static_cast<float>(shape_.dim)));
    stack("ffn_gate_exps.weight", shape_.ffn, shape_.dim, mixture_.matrices);
    stack("ffn_up_exps.weight", shape_.ffn, shape_.dim, mixture_.matrices);
    stack("ffn_down_exps.weight", shape_.dim, shape_.ffn, finer);
  }

  void add_tensors() {
    const std::uint32_t dim = shape_.dim;
    const auto weight = [&](const std::string& name, std::uint32_t rows, std::uint32_t columns, DType type) {
      add_matrix(name, rows, columns, type, 1.0F / std::sqrt(static_cast<float>(columns)));
    };
    add_matrix("token_embd.weight", shape_.vocabulary, dim, shape_.tied_head ? mixture_.head : mixture_.matrices,
               1.0F / std::sqrt(static_cast<float>(dim)));
    if (shape_.llama3_rope) {
      const auto factors = llama3_factors(shape_);
      writer_.add_tensor("rope_freqs.weight", DType::f32, {static_cast<std::int64_t>(factors.size())},
                         std::as_bytes(std::span(factors)));
    }
    const std::uint32_t queries = shape_.heads * shape_.head_dim;
    const std::uint32_t keys = shape_.kv_heads * shape_.head_dim;
    for (std::uint32_t i = 0; i < shape_.layers; ++i) {
      const std::string layer = "blk." + std::to_string(i) + ".";
      const DType finer = more_bits(i, shape_.layers) ? mixture_.half_of_value_and_down : mixture_.matrices;
      add_vector(layer + "attn_norm.weight", dim, 0.8F, 1.2F);
      weight(layer + "attn_q.weight", queries, dim, mixture_.matrices);
      weight(layer + "attn_k.weight", keys, dim, mixture_.matrices);
      weight(layer + "attn_v.weight", keys, dim, finer);
      if (shape_.qkv_bias) {
        add_vector(layer + "attn_q.bias", queries, -0.1F, 0.1F);
        add_vector(layer + "attn_k.bias", keys, -0.1F, 0.1F);
        add_vector(layer + "attn_v.bias", keys, -0.1F, 0.1F);
      }
      weight(layer + "attn_output.weight", dim, queries, mixture_.matrices);
      add_vector(layer + "ffn_norm.weight", dim, 0.8F, 1.2F);
      if (shape_.experts > 0) {
        add_vector(layer + "attn_q_norm.weight", shape_.head_dim, 0.8F, 1.2F);
        add_vector(layer + "attn_k_norm.weight", shape_.head_dim, 0.8F, 1.2F);
        add_experts(layer, finer);
        continue;
      }
      weight(layer + "ffn_gate.weight", shape_.ffn, dim, mixture_.matrices);
      weight(layer + "ffn_up.weight", shape_.ffn, dim, mixture_.matrices);
      weight(layer + "ffn_down.weight", dim, shape_.ffn, finer);
    }
    add_vector("output_norm.weight", dim, 0.8F, 1.2F);
    if (!shape_.tied_head) weight("output.weight", shape_.vocabulary, dim, mixture_.head);
  }

  const Shape& shape_;
  const Mixture& mixture_;
  std::uint64_t seed_;
  std::uint64_t tensors_ = 0;
  skald::AnyExecutor executor_;
  skald::GgufWriter writer_;
};

std::map<std::string, std::string> read_flags(int argc, char** argv) {
  std::map<std::string, std::string> flags{{"--seed", "1"}};
  for (int i = 1; i + 1 < argc; i += 2) flags[argv[i]] = argv[i + 1];
  return flags;
}

}  // namespace

int main(int argc, char** argv) try {
  auto flags = read_flags(argc, argv);
  if (argc % 2 == 0 || !flags.contains("--shape") || !flags.contains("--type") || !flags.contains("-o")) {
    std::cerr << "usage: skald_make_random_gguf --shape SHAPE --type TYPE -o OUT.gguf [--seed N]\nshapes:";
    for (const auto& shape : shapes) std::cerr << ' ' << shape.name;
    std::cerr << "\ntypes:";
    for (const auto& mixture : mixtures) std::cerr << ' ' << mixture.name;
    std::cerr << '\n';
    return 2;
  }
  const auto& shape = named<Shape>(shapes, "shape", flags["--shape"]);
  const auto& mixture = named<Mixture>(mixtures, "type", flags["--type"]);
  const File file(shape, mixture, std::stoull(flags["--seed"]));
  file.write(flags["-o"]);
  std::cout << flags["-o"] << ": " << file.bytes() << " bytes\n";
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
