#include "model/tensor_view.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/core/half.hpp>
#include <skald/quant/row_codec.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view place = "model.tensor_view";

class GatherSource {
 public:
  GatherSource(std::vector<TensorView> tensors, const std::vector<RowRun>& runs, std::uint64_t row_bytes)
      : tensors_(std::move(tensors)) {
    for (const RowRun& run : runs) {
      if (run.count == 0) continue;
      const auto first = static_cast<std::uint64_t>(run.first) * row_bytes;
      // Neighbours that continue each other become one.
      if (!runs_.empty() && runs_.back().tensor == run.tensor && runs_.back().from + (size_ - runs_.back().to) == first) {
        size_ += static_cast<std::uint64_t>(run.count) * row_bytes;
        continue;
      }
      runs_.push_back({run.tensor, first, size_});
      size_ += static_cast<std::uint64_t>(run.count) * row_bytes;
    }
  }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    if (offset > size_ || out.size() > size_ - offset)
      throw IoError(place, fmt::format("bytes {} + {} do not lie in the tensor of {}", offset, out.size(), size_));
    auto run = std::upper_bound(runs_.begin(), runs_.end(), offset,
                                [](std::uint64_t at, const Run& each) { return at < each.to; });
    while (!out.empty()) {
      const Run& from = *(run - 1);
      const std::uint64_t end = run == runs_.end() ? size_ : run->to;
      const auto length = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), end - offset));
      tensors_[from.tensor].read(from.from + (offset - from.to), out.first(length));
      out = out.subspan(length);
      offset += length;
      ++run;
    }
  }

 private:
  struct Run {
    std::size_t tensor;
    std::uint64_t from;  // byte in the tensor
    std::uint64_t to;    // byte in the result
  };
  std::vector<TensorView> tensors_;
  std::vector<Run> runs_;
  std::uint64_t size_ = 0;
};

/// Holds what was transposed last, so that the pieces of one tensor cost one transposition.
class TransposeSource {
 public:
  explicit TransposeSource(TensorView tensor) : state_(std::make_shared<State>(std::move(tensor))) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return state_->tensor.bytes; }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    const auto bytes = state_->transposed();
    if (offset > bytes->size() || out.size() > bytes->size() - offset)
      throw IoError(place, "the range does not lie in the tensor");
    std::memcpy(out.data(), bytes->data() + offset, out.size());
    state_->forget(out.size());
  }

 private:
  using Bytes = std::vector<std::byte>;
  struct State {
    explicit State(TensorView view) : tensor(std::move(view)) {}
    std::shared_ptr<const Bytes> transposed() {
      const std::lock_guard lock(mutex);
      if (cache) return cache;
      Bytes in(static_cast<std::size_t>(tensor.bytes));
      tensor.read(0, in);
      auto out = std::make_shared<Bytes>(in.size());
      const auto rows = static_cast<std::size_t>(tensor.rows());
      const auto columns = static_cast<std::size_t>(tensor.columns());
      const std::size_t size = columns == 0 || rows == 0 ? 0 : in.size() / rows / columns;
      for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t column = 0; column < columns; ++column)
          std::memcpy(out->data() + (column * rows + row) * size, in.data() + (row * columns + column) * size, size);
      cache = std::move(out);
      given = 0;
      return cache;
    }
    /// After as many bytes as the tensor has were given out, it was probably read to its end.
    void forget(std::size_t bytes) {
      const std::lock_guard lock(mutex);
      given += bytes;
      if (given >= tensor.bytes) cache.reset();
    }
    const TensorView tensor;
    std::mutex mutex;
    std::shared_ptr<const Bytes> cache;
    std::uint64_t given = 0;
  };
  std::shared_ptr<State> state_;
};

/// Calls `fill(first, bytes)` for the whole units that cover a byte range and copies the range out of them.
template <class Fill>
void read_covering(std::uint64_t offset, std::span<std::byte> out, std::uint64_t unit, const Fill& fill) {
  if (out.empty()) return;
  const std::uint64_t first = offset / unit;
  const std::uint64_t end = (offset + out.size() + unit - 1) / unit;
  if (first * unit == offset && end * unit == offset + out.size()) return fill(first, out);
  std::vector<std::byte> covering(static_cast<std::size_t>((end - first) * unit));
  fill(first, std::span(covering));
  std::memcpy(out.data(), covering.data() + (offset - first * unit), out.size());
}

class FloatSource {
 public:
  FloatSource(TensorView tensor, float add) : tensor_(std::move(tensor)), add_(add) {
    element_ = static_cast<std::size_t>(dtype_info(tensor_.type).block_bytes);
    size_ = tensor_.bytes / element_ * sizeof(float);
  }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    read_covering(offset, out, sizeof(float), [&](std::uint64_t first, std::span<std::byte> floats) {
      const std::size_t count = floats.size() / sizeof(float);
      std::vector<std::byte> in(count * element_);
      tensor_.read(first * element_, in);
      for (std::size_t i = 0; i < count; ++i) {
        const float value = element(in.data() + i * element_, first + i) + add_;
        std::memcpy(floats.data() + i * sizeof(float), &value, sizeof(float));
      }
    });
  }

 private:
  [[nodiscard]] float element(const std::byte* at, std::uint64_t index) const {
    const auto load = [at](auto value) {
      std::memcpy(&value, at, sizeof(value));
      return value;
    };
    if (tensor_.type == DType::f16) return f16_to_f32(load(std::uint16_t{}));
    if (tensor_.type == DType::bf16) return bf16_to_f32(load(std::uint16_t{}));
    if (tensor_.type == DType::i8) return static_cast<float>(load(std::int8_t{}));
    if (tensor_.type == DType::i16) return static_cast<float>(load(std::int16_t{}));
    if (tensor_.type == DType::i32) return static_cast<float>(load(std::int32_t{}));
    if (tensor_.type == DType::f64) return narrowed(load(double{}), index);
    return load(float{});
  }
  [[nodiscard]] float narrowed(double value, std::uint64_t index) const {
    const auto result = static_cast<float>(value);
    if (std::isfinite(value) && !std::isfinite(result))
      throw NumericError(place, fmt::format("element {} is {}, which no f32 can hold", index, value),
                         {.file = tensor_.source.name(), .offset = tensor_.offset, .tensor = tensor_.name});
    return result;
  }
  TensorView tensor_;
  float add_;
  std::size_t element_ = 4;
  std::uint64_t size_ = 0;
};

class EncodeSource {
 public:
  EncodeSource(TensorView tensor, DType type)
      : tensor_(std::move(tensor)), type_(type), columns_(static_cast<std::size_t>(tensor_.columns())) {
    row_bytes_ = row_bytes(type, columns_);
  }
  [[nodiscard]] std::uint64_t size() const noexcept { return row_bytes_ * static_cast<std::uint64_t>(tensor_.rows()); }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    read_covering(offset, out, row_bytes_, [&](std::uint64_t first, std::span<std::byte> rows) {
      std::vector<std::byte> stored(static_cast<std::size_t>(tensor_.row_size()));
      std::vector<float> values(columns_);
      for (std::size_t at = 0; at < rows.size(); at += row_bytes_, ++first) {
        tensor_.read(first * stored.size(), stored);
        decode_row(tensor_.type, stored, values);
        encode(first, values, rows.subspan(at, row_bytes_));
      }
    });
  }

 private:
  void encode(std::uint64_t row, std::span<const float> values, std::span<std::byte> out) const {
    try {
      encode_row(type_, values, out);
    } catch (const NumericError& error) {
      throw NumericError("model.quantize", fmt::format("row {}: {}", row, error.message()),
                         {.file = tensor_.source.name(), .tensor = tensor_.name});
    }
  }
  TensorView tensor_;
  DType type_;
  std::size_t columns_;
  std::size_t row_bytes_;
};

class SecondRowSource {
 public:
  SecondRowSource(TensorView tensor, bool odd) : tensor_(std::move(tensor)), odd_(odd), row_(tensor_.row_size()) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return tensor_.bytes / 2; }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    read_covering(offset, out, row_, [&](std::uint64_t first, std::span<std::byte> rows) {
      std::vector<std::byte> both(2 * rows.size());
      tensor_.read(2 * first * row_, both);
      const auto row = static_cast<std::size_t>(row_);
      for (std::size_t at = 0; at < rows.size(); at += row)
        std::memcpy(rows.data() + at, both.data() + 2 * at + (odd_ ? row : 0), row);
    });
  }

 private:
  TensorView tensor_;
  bool odd_;
  std::uint64_t row_;
};

class ValuesSource {
 public:
  explicit ValuesSource(std::vector<float> values) : values_(std::make_shared<const std::vector<float>>(std::move(values))) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return values_->size() * sizeof(float); }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    if (offset > size() || out.size() > size() - offset) throw IoError(place, "the range does not lie in the tensor");
    std::memcpy(out.data(), std::as_bytes(std::span(*values_)).data() + offset, out.size());
  }

 private:
  std::shared_ptr<const std::vector<float>> values_;
};

TensorView make_view(std::string name, DType type, std::vector<std::int64_t> shape, AnyByteSource source) {
  TensorView view{std::move(name), type, std::move(shape), std::move(source), 0, 0};
  view.bytes = view.source.size();
  return view;
}

}  // namespace

std::uint64_t view_bytes(DType type, const std::vector<std::int64_t>& shape) {
  TensorView view;
  view.shape = shape;
  return static_cast<std::uint64_t>(view.rows()) * row_bytes(type, static_cast<std::size_t>(view.columns()));
}

TensorView gather_rows(std::string name, std::vector<TensorView> tensors, const std::vector<RowRun>& runs,
                       std::vector<std::int64_t> shape) {
  const TensorView& front = tensors.front();
  const DType type = front.type;
  const std::string file = front.source.name();
  const std::uint64_t row =
      front.shape.size() == 1 ? front.bytes / static_cast<std::uint64_t>(front.shape[0]) : front.row_size();
  if (runs.size() == 1 && tensors.size() == 1) {  // a part of a file stays one
    TensorView part = tensors.front();
    part.name = std::move(name);
    part.shape = std::move(shape);
    part.offset += static_cast<std::uint64_t>(runs[0].first) * row;
    part.bytes = static_cast<std::uint64_t>(runs[0].count) * row;
    return part;
  }
  return make_view(std::move(name), type, std::move(shape), {GatherSource(std::move(tensors), runs, row), file});
}

TensorView every_second_row(std::string name, TensorView tensor, bool odd, std::vector<std::int64_t> shape) {
  const DType type = tensor.type;
  const std::string file = tensor.source.name();
  return make_view(std::move(name), type, std::move(shape), {SecondRowSource(std::move(tensor), odd), file});
}

TensorView transposed(std::string name, TensorView tensor) {
  std::vector<std::int64_t> shape{tensor.shape[1], tensor.shape[0]};
  const DType type = tensor.type;
  const std::string file = tensor.source.name();
  return make_view(std::move(name), type, std::move(shape), {TransposeSource(std::move(tensor)), file});
}

TensorView as_f32(std::string name, TensorView tensor, float add) {
  auto shape = tensor.shape;
  const std::string file = tensor.source.name();
  return make_view(std::move(name), DType::f32, std::move(shape), {FloatSource(std::move(tensor), add), file});
}

TensorView from_values(std::string name, std::vector<float> values, const std::string& file) {
  std::vector<std::int64_t> shape{static_cast<std::int64_t>(values.size())};
  return make_view(std::move(name), DType::f32, std::move(shape), {ValuesSource(std::move(values)), file});
}

TensorView encoded(TensorView tensor, DType type) {
  auto shape = tensor.shape;
  auto name = tensor.name;
  const std::string file = tensor.source.name();
  return make_view(std::move(name), type, std::move(shape), {EncodeSource(std::move(tensor), type), file});
}

TensorInfo add_view(const TensorView& view, std::vector<AnyByteSource>& sources) {
  TensorInfo info;
  info.name = view.name;
  info.type = view.type;
  info.rank = view.shape.size();
  std::reverse_copy(view.shape.begin(), view.shape.end(), info.dims.begin());
  info.offset = view.offset;
  info.bytes = view.bytes;
  info.source = sources.size();
  sources.push_back(view.source);
  return info;
}

TensorView view_of(const ModelFile& file, const TensorInfo& tensor) {
  TensorView view{tensor.name, tensor.type, {}, file.sources()[tensor.source], tensor.offset, tensor.bytes};
  for (std::size_t i = tensor.rank; i-- > 0;) view.shape.push_back(tensor.dims[i]);
  return view;
}

}  // namespace skald::inline v0
