// Adapters in backend memory, and merged into files.
#include <skald/model/adapter.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/model.hpp>
#include <skald/model/tensor_forms.hpp>
#include <skald/quant/row_codec.hpp>

#include "model/fingerprint.hpp"
#include "model/tensor_view.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view place = "model.adapter";

/// A part of a delta that belongs to one matrix of the model: fused tensors are several.
struct Slice {
  const Weight* weight = nullptr;
  std::int64_t first = 0;  // output
};

/// Roles whose matrices multiply activations in a LinearOp, which is where deltas enter.
bool can_change(Role role) {
  switch (role) {
    case Role::head:
    case Role::query:
    case Role::key:
    case Role::value:
    case Role::attention_output:
    case Role::ffn_gate:
    case Role::ffn_up:
    case Role::ffn_down:
    case Role::expert_router:
    case Role::shared_router:
    case Role::shared_gate:
    case Role::shared_up:
    case Role::shared_down:
    case Role::query_down:
    case Role::latent_down:
    case Role::cross_query:
    case Role::cross_key:
    case Role::cross_value:
    case Role::cross_output: return true;
    default: return false;
  }
}

// Finds the matrices of a network by the names that its file uses.
class Finder {
 public:
  explicit Finder(const Model& model) : model_(model), bindings_(tensor_bindings(model.spec())) {
    std::erase_if(bindings_, [](const TensorBinding& each) { return each.use != TensorUse::matrix; });
  }

  [[nodiscard]] std::vector<Slice> find(const AdapterDelta& delta) const {
    std::vector<const TensorBinding*> own, parts;
    for (const TensorBinding& each : bindings_) {
      if (each.name == delta.tensor || std::ranges::find(each.other_names, delta.tensor) != each.other_names.end())
        own.push_back(&each);
      if (each.fused_name == delta.tensor) parts.push_back(&each);
      if (each.grouped_name == delta.tensor) refuse(delta, each);
    }
    // The name of several matrices may also be that of one of them; then the size tells.
    const bool together = !parts.empty() && (own.empty() || parts.front()->fused_rows == delta.outputs);
    if (own.empty() && parts.empty())
      throw IncompatibleError(place, "the model has no matrix of this name",
                              {.file = model_.info().file, .tensor = delta.tensor});
    std::vector<Slice> slices;
    std::int64_t outputs = 0;
    for (const TensorBinding* each : together ? parts : own) {
      const Weight* weight = model_.weight(each->role, each->layer);
      if (!weight || weight->matrices() != 1 || !can_change(each->role)) refuse(delta, *each);
      slices.push_back({weight, together ? each->first_row : 0});
      outputs += weight->rows();
      if (delta.inputs != 0 && weight->cols() != delta.inputs) fail(delta, weight);
      for (const std::int32_t column : delta.columns)
        if (column < 0 || column >= weight->cols())
          throw IncompatibleError(place, fmt::format("column {} of {}", column, weight->cols()),
                                  {.tensor = delta.tensor});
    }
    if (outputs != delta.outputs) fail(delta, slices.front().weight);
    return slices;
  }

 private:
  [[noreturn]] static void refuse(const AdapterDelta& delta, const TensorBinding& binding) {
    throw IncompatibleError(place,
                            fmt::format("an adapter cannot change the matrices of '{}' while the model runs",
                                        to_string(binding.role)),
                            {.tensor = delta.tensor});
  }
  [[noreturn]] static void fail(const AdapterDelta& delta, const Weight* weight) {
    throw IncompatibleError(place,
                            fmt::format("the adapter has {} outputs and {} inputs, the matrix {} and {}", delta.outputs,
                                        delta.inputs, weight->rows(), weight->cols()),
                            {.tensor = delta.tensor});
  }
  const Model& model_;
  std::vector<TensorBinding> bindings_;
};

/// Refuses a delta whose lists do not have the lengths that its extents ask for.
void check(const AdapterDelta& delta) {
  const auto fail = [&](const std::string& what) { throw FormatError(place, what, {.tensor = delta.tensor}); };
  const auto size = [](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); };
  constexpr std::int64_t most = 1 << 24;
  constexpr std::int64_t most_inner = 1 << 20;  // floats of each token that come between the factors
  for (const std::int64_t extent : {delta.outputs, delta.inputs, std::int64_t{delta.rank}})
    if (extent < 0 || extent > most) fail(fmt::format("an extent of {}, 0 to {} are allowed", extent, most));
  if (delta.rank < 1 || delta.outputs < 1) fail("a change without rank or outputs");
  bool right = false;
  if (delta.kind == DeltaKind::low_rank) {
    right = delta.first.size() == size(delta.rank, delta.inputs) && delta.second.size() == size(delta.outputs, delta.rank);
  } else if (delta.kind == DeltaKind::columns) {
    right = delta.columns.size() == size(delta.rank, 1) && delta.second.size() == size(delta.outputs, delta.rank);
  } else if (delta.kind == DeltaKind::kronecker) {
    for (const std::int32_t extent : {delta.a_rows, delta.a_cols, delta.b_rows, delta.b_cols})
      if (extent < 1 || extent > most) fail("a factor of a Kronecker product is empty");
    right = std::int64_t{delta.a_rows} * delta.b_rows == delta.outputs &&
            std::int64_t{delta.a_cols} * delta.b_cols == delta.inputs &&
            delta.first.size() == size(delta.rank, std::int64_t{delta.a_rows} * delta.a_cols) &&
            delta.second.size() == size(delta.rank, std::int64_t{delta.b_rows} * delta.b_cols) &&
            std::int64_t{delta.rank} * delta.a_cols * delta.b_rows <= std::min(most_inner, delta.outputs * delta.inputs) &&
            (delta.rows.empty() || delta.rows.size() == size(delta.outputs, 1)) &&
            std::ranges::all_of(delta.rows, [&](std::int32_t row) { return row >= 0 && row < delta.outputs; });
  }
  if (!delta.magnitude.empty() && (delta.kind != DeltaKind::low_rank || delta.magnitude.size() != size(delta.outputs, 1)))
    right = false;
  if (!right) fail("the factors do not have the sizes that its rank, outputs and inputs ask for");
  if (!std::isfinite(delta.scale)) throw NumericError(place, "the scale is not finite", {.tensor = delta.tensor});
}

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

class MergeSource {
 public:
  MergeSource(TensorView base, std::vector<AdapterDelta> deltas, float scale)
      : base_(std::move(base)), deltas_(std::move(deltas)), scale_(scale) {}
  [[nodiscard]] std::uint64_t size() const noexcept { return view_bytes(DType::f32, base_.shape); }
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    const auto columns = static_cast<std::size_t>(base_.columns());
    const std::uint64_t row_size = columns * sizeof(float);
    std::vector<float> values(columns);
    std::vector<std::byte> stored(static_cast<std::size_t>(base_.row_size()));
    while (!out.empty()) {
      const std::uint64_t row = offset / row_size;
      base_.read(row * stored.size(), stored);
      decode_row(base_.type, stored, values);
      for (const AdapterDelta& delta : deltas_) delta.change_row(static_cast<std::int64_t>(row), scale_, values);
      const std::uint64_t within = offset - row * row_size;
      const auto length = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), row_size - within));
      std::memcpy(out.data(), std::as_bytes(std::span(values)).data() + within, length);
      out = out.subspan(length);
      offset += length;
    }
  }

 private:
  TensorView base_;
  std::vector<AdapterDelta> deltas_;
  float scale_;
};

}  // namespace

struct Adapter::Impl {
  std::string name;
  std::array<std::uint64_t, 2> fingerprint{};
  std::optional<Model> model;  // keeps the matrices that the table names
  Buffer memory;
  std::map<const Weight*, std::vector<WeightDelta>> table;
};

Adapter Adapter::load(const std::string& path, const Model& model) {
  return load(read_adapter(path, model.metadata()), model);
}

Adapter Adapter::load(const AdapterFile& file, const Model& model) {
  const Finder finder(model);
  std::vector<std::vector<Slice>> slices;
  std::size_t bytes = 0;
  Fingerprint fingerprint;
  const auto add = [&](const auto& values) {
    bytes += aligned(values.size() * sizeof(values[0]));
    fingerprint.add(std::as_bytes(std::span(values)));
  };
  for (const AdapterDelta& delta : file.deltas) {
    check(delta);
    if (!delta.magnitude.empty())
      throw IncompatibleError(place,
                              "a change with magnitudes (DoRA) replaces the whole matrix, which an adapter cannot do while "
                              "the model runs; merge it: skald convert --lora, or merged()",
                              {.file = file.name, .tensor = delta.tensor});
    slices.push_back(finder.find(delta));
    fingerprint.add(delta.tensor);
    fingerprint.add(static_cast<std::uint64_t>(delta.kind));
    fingerprint.add(std::as_bytes(std::span(&delta.scale, 1)));
    add(delta.first);
    add(delta.second);
    add(delta.columns);
    add(delta.rows);
    // A fused matrix's parts need tables of their own where rows are looked up.
    if (slices.back().size() > 1 && delta.kind == DeltaKind::kronecker)
      bytes += aligned(static_cast<std::size_t>(delta.outputs) * sizeof(std::int32_t)) + 64 * slices.back().size();
  }
  auto impl = std::make_shared<Impl>();
  impl->name = file.name;
  impl->fingerprint = fingerprint.value();
  impl->model = model;
  impl->memory = model.backend()->allocate(std::max<std::size_t>(bytes, 64));
  std::size_t at = 0;
  const auto upload = [&]<class T>(std::span<const T> values) -> const T* {
    if (values.empty()) return nullptr;
    std::byte* to = impl->memory.address() + at;
    model.backend()->write(to, std::as_bytes(values));
    at += aligned(values.size_bytes());
    return reinterpret_cast<const T*>(to);
  };
  for (std::size_t i = 0; i < file.deltas.size(); ++i) {
    const AdapterDelta& delta = file.deltas[i];
    WeightDelta common{.kind = delta.kind, .rank = delta.rank, .scale = delta.scale};
    common.first = upload(std::span<const float>(delta.first));
    common.second = upload(std::span<const float>(delta.second));
    common.columns = upload(std::span<const std::int32_t>(delta.columns));
    common.rows = upload(std::span<const std::int32_t>(delta.rows));
    common.a_rows = delta.a_rows;
    common.a_cols = delta.a_cols;
    common.b_rows = delta.b_rows;
    common.b_cols = delta.b_cols;
    for (const Slice& slice : slices[i]) {
      WeightDelta part = common;
      if (delta.kind != DeltaKind::kronecker) {
        part.second += slice.first * delta.rank;
      } else if (common.rows != nullptr) {
        part.rows += slice.first;
      } else if (slice.first > 0) {
        std::vector<std::int32_t> rows(static_cast<std::size_t>(slice.weight->rows()));
        for (std::size_t r = 0; r < rows.size(); ++r)
          rows[r] = static_cast<std::int32_t>(slice.first) + static_cast<std::int32_t>(r);
        part.rows = upload(std::span<const std::int32_t>(rows));
      }
      impl->table[slice.weight].push_back(part);
    }
  }
  return Adapter(std::move(impl));
}

const std::string& Adapter::name() const noexcept { return impl_->name; }
std::array<std::uint64_t, 2> Adapter::fingerprint() const noexcept { return impl_->fingerprint; }
std::size_t Adapter::bytes() const noexcept { return impl_->memory.bytes(); }
bool Adapter::belongs_to(const Model& model) const noexcept { return &impl_->model->spec() == &model.spec(); }

std::span<const WeightDelta> Adapter::deltas(const Weight* weight) const noexcept {
  const auto found = impl_->table.find(weight);
  if (found == impl_->table.end()) return {};
  return found->second;
}

ModelFile merged(const ModelFile& file, const AdapterFile& adapter, float scale) {
  if (has_rare_forms(file)) return merged(in_usual_forms(file), adapter, scale);
  std::map<std::string, std::vector<AdapterDelta>> by_tensor;
  for (const AdapterDelta& delta : adapter.deltas) {
    check(delta);
    const TensorInfo& tensor = file.at(delta.tensor);
    const bool fits =
        tensor.dims[2] == 1 && tensor.dims[1] == delta.outputs &&
        (delta.inputs == 0 || tensor.dims[0] == delta.inputs) &&
        std::ranges::all_of(delta.columns, [&](std::int32_t column) { return column >= 0 && column < tensor.dims[0]; });
    if (!fits)
      file.fail(tensor, fmt::format("the adapter has {} outputs and {} inputs, the matrix is {}", delta.outputs,
                                    delta.inputs, tensor.shape()));
    by_tensor[delta.tensor].push_back(delta);
  }
  std::vector<AnyByteSource> sources(file.sources().begin(), file.sources().end());
  std::vector<TensorInfo> tensors;
  for (const TensorInfo& tensor : file.tensors()) {
    const auto found = by_tensor.find(tensor.name);
    if (found == by_tensor.end()) {
      tensors.push_back(tensor);
      continue;
    }
    TensorView view = view_of(file, tensor);
    static_cast<void>(format_ops(view.type));
    TensorView result{view.name, DType::f32, view.shape, {}, 0, view_bytes(DType::f32, view.shape)};
    const std::string name = view.source.name();
    result.source = AnyByteSource(MergeSource(std::move(view), std::move(found->second), scale), name);
    tensors.push_back(add_view(result, sources));
  }
  return {file.name(), file.metadata(), std::move(tensors), std::move(sources)};
}

}  // namespace skald::inline v0
