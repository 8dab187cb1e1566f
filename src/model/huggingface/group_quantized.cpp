#include "model/huggingface/group_quantized.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/core/half.hpp>
#include <skald/quant/block_layout.hpp>

namespace skald::inline v0::huggingface {

namespace {

constexpr std::string_view place = "model.huggingface.quantized";
constexpr std::int64_t block = 32;

enum class Packing : std::uint8_t { gptq, awq };

struct Scheme {
  Packing packing = Packing::gptq;
  int bits = 4;
  std::int64_t group = 128;  // -1: one group
  int zero_offset = 1;       // added to stored zero points
};

[[noreturn]] void refuse(const TensorView& tensor, std::string_view message) {
  throw FormatError(place, message, {.file = tensor.source.name(), .offset = tensor.offset, .tensor = tensor.name});
}

Scheme read_scheme(const Config& config) {
  Scheme scheme;
  const std::string method = config.text_or({"quant_method"}, "");
  scheme.bits = static_cast<int>(config.integer_or({"bits", "w_bit"}, 4));
  scheme.group = config.integer_or({"group_size", "q_group_size"}, 128);
  if (method == "gptq") {
    const std::string format = config.text_or({"checkpoint_format"}, "gptq");
    if (format != "gptq" && format != "gptq_v2")
      config.unsupported("checkpoint_format", fmt::format("'{}' is not implemented; known are gptq and gptq_v2",
                                                          printable(format, 40)));
    scheme.zero_offset = format == "gptq" ? 1 : 0;
    if (scheme.bits != 2 && scheme.bits != 4 && scheme.bits != 8)
      config.unsupported("bits", fmt::format("{} bits are not implemented; known are 2, 4 and 8", scheme.bits));
  } else if (method == "awq") {
    scheme.packing = Packing::awq;
    scheme.zero_offset = 0;
    const std::string version = config.text_or({"version"}, "gemm");
    if (version != "gemm" && version != "GEMM")
      config.unsupported("version", fmt::format("'{}' is not implemented; known is gemm", printable(version, 40)));
    if (scheme.bits != 4) config.unsupported("bits", fmt::format("{} bits are not implemented; known is 4", scheme.bits));
  } else {
    config.unsupported("quant_method",
                       fmt::format("'{}' is not implemented; known are gptq, awq, mxfp4, fp8 and compressed-tensors of format float-quantized", printable(method, 40)));
  }
  if (scheme.group != -1 && (scheme.group < 1 || scheme.group > (std::int64_t{1} << 24)))
    config.fail("group_size", fmt::format("found {}, allowed is -1 or a positive number", scheme.group));
  return scheme;
}

/// The parts of one matrix; `outputs` x `inputs` after unpacking.
struct Packed {
  TensorView codes;
  TensorView zeros;
  TensorView scales;
  std::optional<TensorView> group_index;
  Scheme scheme;
  std::int64_t inputs = 0;
  std::int64_t outputs = 0;
  std::int64_t groups = 0;

  [[nodiscard]] int per_word() const noexcept { return 32 / scheme.bits; }
};

template <class T>
std::vector<T> load(const TensorView& view) {
  std::vector<T> values(static_cast<std::size_t>(view.bytes / sizeof(T)));
  view.read(0, std::as_writable_bytes(std::span(values)));
  return values;
}

/// The scale and zero point of every group and output, and each input's group.
struct Grid {
  std::vector<float> scales;             // [group][output]
  std::vector<std::int32_t> zeros;       // [group][output]
  std::vector<std::int32_t> group_of;    // [input]
  bool ordered = true;                   // inputs of a group lie together, whole blocks
};

std::vector<float> load_scales(const TensorView& view) {
  std::vector<float> values(static_cast<std::size_t>(view.rows() * view.columns()));
  if (view.type == DType::f32) return load<float>(view);
  const auto bits = load<std::uint16_t>(view);
  std::ranges::transform(bits, values.begin(),
                         [&](std::uint16_t each) { return view.type == DType::f16 ? f16_to_f32(each) : bf16_to_f32(each); });
  return values;
}

int awq_shift(std::int64_t column) {
  constexpr int order[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // where output 8 j + i lies in its word
  return order[column % 8] * 4;
}

Grid load_grid(const Packed& packed) {
  Grid grid;
  const auto outputs = static_cast<std::size_t>(packed.outputs);
  const auto groups = static_cast<std::size_t>(packed.groups);
  grid.scales = load_scales(packed.scales);
  if (!std::ranges::all_of(grid.scales, [](float scale) { return std::isfinite(scale); }))
    throw NumericError(place, "a scale is not finite", {.file = packed.scales.source.name(), .tensor = packed.scales.name});
  const auto words = load<std::uint32_t>(packed.zeros);
  const auto per_word = static_cast<std::size_t>(packed.per_word());
  const std::size_t row = words.size() / groups;
  const std::uint32_t mask = packed.scheme.bits == 32 ? ~0u : (1u << packed.scheme.bits) - 1;
  grid.zeros.resize(groups * outputs);
  for (std::size_t g = 0; g < groups; ++g)
    for (std::size_t o = 0; o < outputs; ++o) {
      const int shift = packed.scheme.packing == Packing::awq ? awq_shift(static_cast<std::int64_t>(o))
                                                              : static_cast<int>(o % per_word) * packed.scheme.bits;
      grid.zeros[g * outputs + o] =
          static_cast<std::int32_t>((words[g * row + o / per_word] >> shift) & mask) + packed.scheme.zero_offset;
    }
  const std::int64_t size = packed.scheme.group == -1 ? packed.inputs : packed.scheme.group;
  if (packed.group_index) grid.group_of = load<std::int32_t>(*packed.group_index);
  else
    for (std::int64_t i = 0; i < packed.inputs; ++i) grid.group_of.push_back(static_cast<std::int32_t>(i / size));
  for (std::size_t i = 0; i < grid.group_of.size(); ++i) {
    if (grid.group_of[i] < 0 || grid.group_of[i] >= packed.groups)
      refuse(*packed.group_index, fmt::format("element {} is {}, allowed is 0 to {}", i, grid.group_of[i], packed.groups - 1));
    if (i % block != 0 && grid.group_of[i] != grid.group_of[i - 1]) grid.ordered = false;
  }
  if (packed.inputs % block != 0) grid.ordered = false;
  return grid;
}

bool fits_half(float value) { return f16_to_f32(f32_to_f16(value)) == value && std::abs(value) <= 65504.0F; }

/// The smallest type that holds every number of a matrix exactly.
DType exact_type(const Packed& packed, const Grid& grid) {
  if (!grid.ordered || !std::ranges::all_of(grid.scales, fits_half)) return DType::f32;
  if (packed.scheme.bits == 4) {
    if (std::ranges::all_of(grid.zeros, [](std::int32_t zero) { return zero == 8; })) return DType::q4_0;
    bool exact = true;
    for (std::size_t i = 0; i < grid.zeros.size() && exact; ++i)
      exact = fits_half(grid.scales[i] * static_cast<float>(grid.zeros[i]));
    if (exact) return DType::q4_1;
  }
  const int largest = (1 << packed.scheme.bits) - 1;
  const bool fits = std::ranges::all_of(grid.zeros, [&](std::int32_t zero) { return zero <= 128 && largest - zero <= 127; });
  return fits ? DType::q8_0 : DType::f32;
}

// Unpacks the whole matrix when it is first read and gives it back after as many bytes as it has were read.
class UnpackSource {
 public:
  UnpackSource(Packed packed, DType type) : state_(std::make_shared<State>(std::move(packed), type)) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return state_->bytes; }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    const auto data = state_->unpacked();
    if (offset > data->size() || out.size() > data->size() - offset)
      throw IoError(place, "the range does not lie in the tensor");
    std::memcpy(out.data(), data->data() + offset, out.size());
    const std::lock_guard lock(state_->mutex);
    state_->given += out.size();
    if (state_->given >= state_->bytes) state_->cache.reset();
  }

 private:
  using Bytes = std::vector<std::byte>;
  struct State {
    State(Packed p, DType t)
        : packed(std::move(p)), type(t), bytes(view_bytes(t, {packed.outputs, packed.inputs})) {}

    std::shared_ptr<const Bytes> unpacked() {
      const std::lock_guard lock(mutex);
      if (cache) return cache;
      auto out = std::make_shared<Bytes>(static_cast<std::size_t>(bytes));
      const Grid grid = load_grid(packed);
      const auto words = load<std::uint32_t>(packed.codes);
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(packed.inputs));
      const std::size_t row_size = out->size() / static_cast<std::size_t>(packed.outputs);
      for (std::int64_t o = 0; o < packed.outputs; ++o) {
        row_codes(words, o, codes);
        write_row(grid, static_cast<std::size_t>(o), codes, out->data() + static_cast<std::size_t>(o) * row_size);
      }
      cache = std::move(out);
      given = 0;
      return cache;
    }
    void row_codes(const std::vector<std::uint32_t>& words, std::int64_t o, std::vector<std::uint8_t>& codes) const {
      const std::int64_t per_word = packed.per_word();
      const std::uint32_t mask = (1u << packed.scheme.bits) - 1;
      for (std::int64_t i = 0; i < packed.inputs; ++i) {
        const bool awq = packed.scheme.packing == Packing::awq;
        const std::int64_t word =
            awq ? i * (packed.outputs / per_word) + o / per_word : i / per_word * packed.outputs + o;
        const int shift = awq ? awq_shift(o) : static_cast<int>(i % per_word) * packed.scheme.bits;
        codes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>((words[static_cast<std::size_t>(word)] >> shift) & mask);
      }
    }
    void write_row(const Grid& grid, std::size_t o, const std::vector<std::uint8_t>& codes, std::byte* out) const {
      const auto outputs = static_cast<std::size_t>(packed.outputs);
      const auto cell = [&](std::size_t input) { return static_cast<std::size_t>(grid.group_of[input]) * outputs + o; };
      if (type == DType::f32) {
        for (std::size_t i = 0; i < codes.size(); ++i) {
          const float value = grid.scales[cell(i)] * static_cast<float>(codes[i] - grid.zeros[cell(i)]);
          std::memcpy(out + i * sizeof(float), &value, sizeof(float));
        }
        return;
      }
      for (std::size_t i = 0; i < codes.size(); i += block) {
        const float scale = grid.scales[cell(i)];
        const std::int32_t zero = grid.zeros[cell(i)];
        out = write_block(scale, zero, codes.data() + i, out);
      }
    }
    std::byte* write_block(float scale, std::int32_t zero, const std::uint8_t* codes, std::byte* out) const {
      const auto store = [&](const auto& value) {
        std::memcpy(out, &value, sizeof(value));
        return out + sizeof(value);
      };
      // In 4-bit blocks byte j holds element j below and element j + 16 above.
      const auto pack = [&](auto& nibbles) {
        for (std::size_t j = 0; j < 16; ++j)
          nibbles[j] = static_cast<std::uint8_t>(codes[j] | codes[j + 16] << 4);
      };
      if (type == DType::q4_0) {
        quant::BlockQ4_0 result{};
        result.scale = f32_to_f16(scale);
        pack(result.codes);
        return store(result);
      }
      if (type == DType::q4_1) {
        quant::BlockQ4_1 result{};
        result.scale = f32_to_f16(scale);
        result.minimum = f32_to_f16(-scale * static_cast<float>(zero));
        pack(result.codes);
        return store(result);
      }
      quant::BlockQ8_0 result{};
      result.scale = f32_to_f16(scale);
      for (std::size_t j = 0; j < static_cast<std::size_t>(block); ++j) result.codes[j] = static_cast<std::int8_t>(codes[j] - zero);
      return store(result);
    }

    const Packed packed;
    const DType type;
    const std::uint64_t bytes;
    std::mutex mutex;
    std::shared_ptr<const Bytes> cache;
    std::uint64_t given = 0;
  };
  std::shared_ptr<State> state_;
};

Packed take(const std::string& stem, const Scheme& scheme, Views& views) {
  const auto part = [&](const char* ending) {
    const auto at = views.find(stem + ending);
    if (at == views.end())
      throw FormatError(place, fmt::format("'{}' is there, but this tensor is not", printable(stem + ".qweight", 80)),
                        {.file = views.begin()->second.source.name(), .tensor = stem + ending});
    return at->second;
  };
  Packed packed{part(".qweight"), part(".qzeros"), part(".scales"), {}, scheme};
  for (const TensorView* codes : {&packed.codes, &packed.zeros})
    if (codes->type != DType::i32 || codes->shape.size() != 2) refuse(*codes, "allowed is a matrix of I32");
  const bool floats = packed.scales.type == DType::f16 || packed.scales.type == DType::bf16 || packed.scales.type == DType::f32;
  if (!floats || packed.scales.shape.size() != 2) refuse(packed.scales, "allowed is a matrix of F16, BF16 or F32");
  const std::int64_t per_word = packed.per_word();
  if (packed.codes.shape[0] > (1 << 26) || packed.codes.shape[1] > (1 << 26)) refuse(packed.codes, "the shape is too large");
  packed.inputs = packed.codes.shape[0] * (scheme.packing == Packing::gptq ? per_word : 1);
  packed.outputs = packed.codes.shape[1] * (scheme.packing == Packing::awq ? per_word : 1);
  packed.groups = packed.scales.shape[0];
  const std::int64_t size = scheme.group == -1 ? packed.inputs : scheme.group;
  const std::vector<std::int64_t> scales{(packed.inputs + size - 1) / size, packed.outputs};
  if (packed.scales.shape != scales)
    refuse(packed.scales, fmt::format("found [{}, {}], allowed is [{}, {}]", packed.scales.shape[0],
                                      packed.scales.shape[1], scales[0], scales[1]));
  const std::int64_t zero_words = (packed.outputs + per_word - 1) / per_word;
  if (packed.zeros.shape != std::vector<std::int64_t>{packed.groups, zero_words})
    refuse(packed.zeros, fmt::format("found [{}, {}], allowed is [{}, {}]", packed.zeros.shape[0], packed.zeros.shape[1],
                                     packed.groups, zero_words));
  if (const auto at = views.find(stem + ".g_idx"); at != views.end()) {
    if (at->second.type != DType::i32 || at->second.shape != std::vector<std::int64_t>{packed.inputs})
      refuse(at->second, fmt::format("allowed are {} elements of I32", packed.inputs));
    packed.group_index = at->second;
    views.erase(at);
  }
  for (const char* ending : {".qweight", ".qzeros", ".scales"}) views.erase(stem + ending);
  return packed;
}

}  // namespace

void unpack_group_quantized(const Config& quantization, Views& views) {
  const Scheme scheme = read_scheme(quantization);
  std::vector<std::string> stems;
  constexpr std::string_view ending = ".qweight";
  for (const auto& [name, view] : views)
    if (name.ends_with(ending)) stems.push_back(name.substr(0, name.size() - ending.size()));
  if (stems.empty()) quantization.fail("quant_method", "there is no tensor '….qweight'");
  for (const std::string& stem : stems) {
    Packed packed = take(stem, scheme, views);
    const DType type = exact_type(packed, load_grid(packed));
    TensorView view;
    view.name = stem + ".weight";
    view.type = type;
    view.shape = {packed.outputs, packed.inputs};
    const std::string file = packed.codes.source.name();
    view.source = AnyByteSource(UnpackSource(std::move(packed), type), file);
    view.bytes = view.source.size();
    if (!views.emplace(view.name, view).second) refuse(view, "there is also a tensor of this name");
  }
}

}  // namespace skald::inline v0::huggingface
