#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "backend/op_check.hpp"
#include "backend/reference/reference_ops.hpp"

#include <skald/backend/backend.hpp>
#include <skald/core/error.hpp>
#include <skald/core/memory.hpp>
#include <skald/core/progress.hpp>
#include <skald/quant/row_codec.hpp>
#include <skald/simd/isa.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "backend.reference";

Buffer host_buffer(std::size_t bytes) {
  auto memory = std::make_shared<AlignedBuffer>(bytes, MemoryOptions{.huge_pages = false});
  std::byte* address = memory->data();
  return {std::move(memory), address, bytes, true};
}

void check_weights(const Op& op) {
  const auto check = [&](const Weight* weight) {
    if (dynamic_cast<const reference::ReferenceWeight*>(weight) == nullptr) {
      detail::throw_error(ErrorCode::usage, where,
                          fmt::format("{}: the weight was made by another backend", detail::op_name(op)));
    }
  };
  if (const auto* embed = std::get_if<EmbedOp>(&op)) check(embed->table);
  if (const auto* linear = std::get_if<LinearOp>(&op)) {
    for (std::int32_t p = 0; p < linear->part_count; ++p) check(linear->parts[static_cast<std::size_t>(p)].weight);
  }
  if (const auto* heads = std::get_if<HeadLinearOp>(&op)) check(heads->weight);
  if (const auto* experts = std::get_if<ExpertsOp>(&op)) {
    for (const Weight* weight : {experts->gate, experts->up, experts->down}) check(weight);
  }
}

class ReferenceStream final : public Stream {
 public:
  explicit ReferenceStream(const StreamLimits& limits) : limits_(limits) {}

  void enqueue(const Op& op) override {
    detail::check_op(op, limits_, where);
    check_weights(op);
    ops_.push_back(op);
  }

  void synchronize(const std::stop_token& stop) override {
    struct Clear {
      std::vector<Op>& ops;
      ~Clear() { ops.clear(); }
    } clear{ops_};
    for (const Op& op : ops_) {
      throw_if_stopped(stop, where);
      detail::check_host_data(op, limits_, where);
      reference::run_op(op, stop);
    }
  }

 private:
  StreamLimits limits_;
  std::vector<Op> ops_;
};

class ReferenceBackendImpl final : public ReferenceBackend {
 public:
  [[nodiscard]] BackendInfo info() const override {
    return {.name = "reference", .device = std::string(processor_name()), .isa = "f32", .threads = 1};
  }
  [[nodiscard]] std::optional<std::string> refuses(const Op& op) const override { return detail::op_shape_fault(op); }
  [[nodiscard]] std::optional<std::string> refuses_weight(DType type, WeightLayout /*any*/) const override {
    if (find_format_ops(type) != nullptr) return {};
    return fmt::format("the reference backend cannot decode weights of type {}", to_string(type));
  }
  [[nodiscard]] std::size_t weight_bytes(DType /*type*/, std::int64_t rows, std::int64_t cols,
                                         WeightLayout /*layout*/) const override {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols) * sizeof(float);
  }
  [[nodiscard]] std::size_t stream_bytes(const StreamLimits& /*limits*/) const override { return 0; }
  [[nodiscard]] Buffer allocate(std::size_t bytes) override { return host_buffer(bytes); }

  [[nodiscard]] std::shared_ptr<const Weight> make_weight(const WeightSource& source, WeightLayout layout,
                                                          const std::stop_token& stop) override {
    const std::size_t bytes = detail::check_weight_source(source, where);
    if (const auto reason = refuses_weight(source.type, layout)) {
      detail::throw_error(ErrorCode::unsupported, where, *reason);
    }
    const auto rows = static_cast<std::size_t>(source.rows);
    const auto cols = static_cast<std::size_t>(source.cols);
    if (rows > std::numeric_limits<std::size_t>::max() / 8 / cols) {
      detail::throw_error(ErrorCode::out_of_memory, where, fmt::format("a weight of {} x {} floats", rows, cols));
    }
    const FormatOps& format = format_ops(source.type);
    Buffer values = host_buffer(rows * cols * sizeof(float));
    auto* out = reinterpret_cast<float*>(values.address());
    constexpr std::size_t slice = 16;
    std::vector<std::byte> file_rows(source.mapped.empty() ? slice * bytes : 0);
    for (std::size_t r = 0; r < rows; r += slice) {
      throw_if_stopped(stop, where);
      const std::size_t count = std::min(slice, rows - r);
      const std::byte* from = source.mapped.empty() ? nullptr : source.mapped.data() + r * bytes;
      if (source.mapped.empty()) {
        source.read(static_cast<std::int64_t>(r), static_cast<std::int64_t>(count), {file_rows.data(), count * bytes});
        from = file_rows.data();
      }
      for (std::size_t i = 0; i < count; ++i) format.decode_row(from + i * bytes, out + (r + i) * cols, cols);
    }
    return std::make_shared<reference::ReferenceWeight>(source, std::move(values));
  }

  [[nodiscard]] std::shared_ptr<const Weight> narrow_weight(std::shared_ptr<const Weight> whole, std::int64_t rows,
                                                            std::int64_t cols) override {
    const auto* weight = dynamic_cast<const reference::ReferenceWeight*>(whole.get());
    if (weight == nullptr || !detail::can_narrow(*weight, rows, cols)) return nullptr;
    return std::make_shared<reference::ReferenceWeight>(*weight, rows, cols);
  }

  void write(std::byte* device, std::span<const std::byte> host) override {
    if (!host.empty()) std::memcpy(device, host.data(), host.size());
  }
  void read(std::span<std::byte> host, const std::byte* device) override {
    if (!host.empty()) std::memcpy(host.data(), device, host.size());
  }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    if (bytes != 0) std::memmove(to, from, bytes);
  }
  [[nodiscard]] std::unique_ptr<Stream> new_stream(const StreamLimits& limits) override {
    return std::make_unique<ReferenceStream>(limits);
  }
};

}  // namespace

AnyBackend make_reference_backend() { return std::make_shared<ReferenceBackendImpl>(); }

}  // namespace skald::inline v0
