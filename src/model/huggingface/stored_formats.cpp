#include "model/huggingface/stored_formats.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/core/half.hpp>
#include <skald/quant/block_layout.hpp>

namespace skald::inline v0::huggingface {

namespace {

constexpr std::string_view place = "model.huggingface.quantized";

[[noreturn]] void refuse_stored(const TensorView& tensor, std::string_view message) {
  throw FormatError(place, message, {.file = tensor.source.name(), .offset = tensor.offset, .tensor = tensor.name});
}

TensorView taken(RawTensors& raw, const std::string& name, SafetensorsType type, const TensorView& beside) {
  const auto at = raw.find(name);
  if (at == raw.end() || at->second.type != type)
    throw FormatError(place, fmt::format("'{}' is there, but not this tensor of {}", printable(beside.name, 80), to_string(type)),
                      {.file = beside.source.name(), .tensor = name});
  TensorView view = std::move(at->second.view);
  raw.erase(at);
  return view;
}

// Blocks of 32 as MXFP4 blocks of GGUF files.
class Mxfp4Source {
 public:
  Mxfp4Source(TensorView blocks, TensorView scales) : blocks_(std::move(blocks)), scales_(std::move(scales)) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return scales_.bytes * sizeof(quant::BlockMXFP4); }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    if (offset > size() || out.size() > size() - offset) throw IoError(place, "the range does not lie in the tensor");
    if (out.empty()) return;
    constexpr std::uint64_t unit = sizeof(quant::BlockMXFP4);
    const std::uint64_t first = offset / unit, end = (offset + out.size() + unit - 1) / unit;
    const auto count = static_cast<std::size_t>(end - first);
    std::vector<quant::BlockMXFP4> result(count);
    std::vector<std::uint8_t> codes(16 * count), exponents(count);
    blocks_.read(16 * first, std::as_writable_bytes(std::span(codes)));
    scales_.read(first, std::as_writable_bytes(std::span(exponents)));
    for (std::size_t b = 0; b < count; ++b) {
      result[b].exponent = exponents[b];
      // Byte j of the result holds element j below and j + 16 above.
      const auto element = [&](std::size_t i) { return codes[16 * b + i / 2] >> (i % 2 * 4) & 15; };
      for (std::size_t j = 0; j < 16; ++j)
        result[b].codes[j] = static_cast<std::uint8_t>(element(j) | element(j + 16) << 4);
    }
    std::memcpy(out.data(), std::as_bytes(std::span(result)).data() + (offset - first * unit), out.size());
  }

 private:
  TensorView blocks_;
  TensorView scales_;
};

void unpack_mxfp4(RawTensors& raw, Views& views) {
  constexpr std::string_view ending = "_blocks";
  std::vector<std::string> stems;
  for (const auto& [name, tensor] : raw)
    if (name.ends_with(ending)) stems.push_back(name.substr(0, name.size() - ending.size()));
  for (const std::string& stem : stems) {
    const TensorView& named = raw.find(stem + "_blocks")->second.view;
    TensorView scales = taken(raw, stem + "_scales", SafetensorsType::u8, named);
    TensorView blocks = taken(raw, stem + "_blocks", SafetensorsType::u8, scales);
    auto shape = scales.shape;
    shape.push_back(16);
    if (scales.shape.size() < 2 || scales.shape.size() > 3 || blocks.shape != shape)
      refuse_stored(blocks, "the shapes of blocks and scales are not [..., n, 16] and [..., n]");
    TensorView view;
    view.name = stem;
    view.type = DType::mxfp4;
    view.shape = scales.shape;
    view.shape.back() *= 32;
    const std::string file = blocks.source.name();
    view.source = AnyByteSource(Mxfp4Source(std::move(blocks), std::move(scales)), file);
    view.bytes = view.source.size();
    if (!views.emplace(stem, view).second) refuse_stored(view, "there is also a tensor of this name");
  }
}

/// Four bits of exponent with bias 7, three of mantissa, no infinities; 127 is NaN.
float e4m3(std::uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if ((code & 127) == 127) value = std::nanf("");
  return (code & 128) != 0 ? -value : value;
}

/// Scales of a matrix: `rows` and `columns` elements to each.
struct ScaleGrid {
  std::vector<float> values;
  std::int64_t rows = 1;
  std::int64_t columns = 1;
  std::int64_t across = 1;  ///< scales of a row of blocks
  [[nodiscard]] float at(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(row / rows * across + column / columns)];
  }
};

class Float8Source {
 public:
  Float8Source(TensorView codes, std::shared_ptr<const ScaleGrid> scales, DType type)
      : codes_(std::move(codes)), scales_(std::move(scales)), width_(type == DType::f32 ? 4 : 2) {
    for (int code = 0; code < 256; ++code) values_[static_cast<std::size_t>(code)] = e4m3(static_cast<std::uint8_t>(code));
  }
  [[nodiscard]] std::uint64_t size() const noexcept { return codes_.bytes * width_; }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    if (offset > size() || out.size() > size() - offset) throw IoError(place, "the range does not lie in the tensor");
    if (out.empty()) return;
    const std::uint64_t first = offset / width_, end = (offset + out.size() + width_ - 1) / width_;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(end - first));
    codes_.read(first, std::as_writable_bytes(std::span(codes)));
    std::vector<std::byte> result(codes.size() * width_);
    const auto columns = static_cast<std::uint64_t>(codes_.columns());
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const std::uint64_t at = first + i;
      const float value = values_[codes[i]] * scales_->at(static_cast<std::int64_t>(at / columns),
                                                          static_cast<std::int64_t>(at % columns));
      const std::uint16_t half = f32_to_bf16(value);
      if (width_ == 4) std::memcpy(result.data() + 4 * i, &value, 4);
      else std::memcpy(result.data() + 2 * i, &half, 2);
    }
    std::memcpy(out.data(), result.data() + (offset - first * width_), out.size());
  }

 private:
  TensorView codes_;
  std::shared_ptr<const ScaleGrid> scales_;
  std::uint64_t width_;
  std::array<float, 256> values_{};
};

std::vector<float> scale_values(const TensorView& view) {
  if (view.type != DType::f32 && view.type != DType::f16 && view.type != DType::bf16)
    refuse_stored(view, "allowed are scales of F32, F16 or BF16");
  const TensorView floats = as_f32(view.name, view);
  std::vector<float> values(static_cast<std::size_t>(floats.bytes / sizeof(float)));
  floats.read(0, std::as_writable_bytes(std::span(values)));
  for (const float value : values)
    if (!std::isfinite(value)) throw NumericError(place, "a scale is not finite", {.file = view.source.name(), .tensor = view.name});
  return values;
}

struct Float8 {
  TensorView codes;
  std::shared_ptr<ScaleGrid> scales;
};

std::pair<std::int64_t, std::int64_t> block_size(const Config& config) {
  if (!config.has({"weight_block_size"})) return {0, 0};
  const auto sizes = config.numbers("weight_block_size");
  if (sizes.size() != 2 || !(sizes[0] >= 1) || !(sizes[1] >= 1) || sizes[0] > 65536 || sizes[1] > 65536)
    config.fail("weight_block_size", "allowed are two positive numbers");
  return {static_cast<std::int64_t>(sizes[0]), static_cast<std::int64_t>(sizes[1])};
}

Float8 take_float8(const std::string& name, RawTensors& raw, Views& views, std::pair<std::int64_t, std::int64_t> block) {
  const auto own = raw.find(name);
  TensorView codes = std::move(own->second.view);
  raw.erase(own);
  if (codes.shape.size() != 2) refuse_stored(codes, "allowed are matrices of F8_E4M3");
  auto at = views.find(name + "_scale_inv");
  if (at == views.end()) at = views.find(name + "_scale");
  if (at == views.end()) refuse_stored(codes, "its scale ('…_scale_inv' or '…_scale') is missing");
  auto grid = std::make_shared<ScaleGrid>();
  grid->values = scale_values(at->second);
  const std::int64_t rows = codes.shape[0], columns = codes.shape[1];
  auto shape = at->second.shape;
  const auto blocks = [](std::int64_t n, std::int64_t size) { return size == 0 ? 0 : (n + size - 1) / size; };
  if (block.first > 0 && shape == std::vector<std::int64_t>{blocks(rows, block.first), blocks(columns, block.second)}) {
    grid->rows = block.first;
    grid->columns = block.second;
    grid->across = shape[1];
  } else if (grid->values.size() == 1) {
    grid->rows = rows;
    grid->columns = columns;
  } else if (shape == std::vector<std::int64_t>{rows} || shape == std::vector<std::int64_t>{rows, 1}) {
    grid->columns = columns;
  } else {
    refuse_stored(at->second, fmt::format("{} scales are neither one, nor one for each of {} rows, nor one for each block of "
                                   "weight_block_size", grid->values.size(), rows));
  }
  views.erase(at);
  return {std::move(codes), std::move(grid)};
}

void unpack_float8(const Config& config, RawTensors& raw, Views& views) {
  const auto block = block_size(config);
  std::vector<std::string> names;
  for (const auto& [name, tensor] : raw)
    if (tensor.type == SafetensorsType::f8_e4m3) names.push_back(name);
  std::map<std::string, Float8> matrices;
  for (const std::string& name : names) matrices.emplace(name, take_float8(name, raw, views, block));
  // One type for all, because stacks of experts need one.
  bool powers = true;
  for (const auto& [name, matrix] : matrices)
    for (const float scale : matrix.scales->values) {
      int exponent = 0;
      powers = powers && std::abs(std::frexp(scale, &exponent)) == 0.5F && exponent > -100 && exponent < 100;
    }
  const DType type = powers ? DType::bf16 : DType::f32;
  for (auto& [name, matrix] : matrices) {
    TensorView view;
    view.name = name;
    view.type = type;
    view.shape = matrix.codes.shape;
    const std::string file = matrix.codes.source.name();
    view.source = AnyByteSource(Float8Source(std::move(matrix.codes), std::move(matrix.scales), type), file);
    view.bytes = view.source.size();
    if (!views.emplace(name, view).second) refuse_stored(view, "there is also a tensor of this name");
  }
  // Scales of activations, which are not rounded here.
  std::erase_if(views, [](const auto& each) {
    return each.first.ends_with(".input_scale") || each.first.ends_with(".activation_scale");
  });
}

}  // namespace

void unpack_stored_formats(const Config& quantization, RawTensors& raw, Views& views) {
  const std::string method = quantization.text_or({"quant_method"}, "");
  if (method == "mxfp4") return unpack_mxfp4(raw, views);
  const std::string format = quantization.text_or({"format"}, "float-quantized");
  if (method == "fp8" || (method == "compressed-tensors" && format == "float-quantized"))
    return unpack_float8(quantization, raw, views);
  unpack_group_quantized(quantization, views);
}

}  // namespace skald::inline v0::huggingface
