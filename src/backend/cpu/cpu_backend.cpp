#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "backend/cpu/cpu_weight.hpp"
#include "backend/cpu/kernel_set.hpp"
#include "backend/cpu/phases.hpp"
#include "backend/op_check.hpp"

#include <skald/backend/backend.hpp>
#include <skald/core/error.hpp>

namespace skald::inline v0 {

namespace cpu {

namespace {

constexpr std::string_view where = "backend.cpu";
/// Grows when the panels of any format change.
constexpr int panel_version = 1;

/// What streams and weights need of their backend; they may outlive it.
struct Core {
  KernelSet kernels;
  AnyExecutor executor;
  int participants;
  MemoryOptions memory;
};

[[noreturn]] void fail(const Op& op, std::string_view message) {
  detail::throw_error(ErrorCode::usage, where, fmt::format("{}: {}", detail::op_name(op), message));
}

class CpuStream final : public Stream {
 public:
  CpuStream(std::shared_ptr<const Core> core, const StreamLimits& limits)
      : core_(std::move(core)),
        limits_(limits),
        weight_types_(limits.weight_types.begin(), limits.weight_types.end()),
        expert_types_(limits.expert_types.begin(), limits.expert_types.end()),
        state_{.kernels = core_->kernels,
               .participants = core_->participants,
               .sizes = work_sizes(core_->kernels, limits, core_->participants),
               .memory = {}},
        runner_(core_->participants) {
    limits_.weight_types = {};
    limits_.expert_types = {};
    state_.memory = AlignedBuffer(state_.sizes.total, core_->memory);
  }

  void enqueue(const Op& op) override {
    detail::check_op(op, limits_, where);
    if (const auto* embed = std::get_if<EmbedOp>(&op)) check_weight(op, embed->table, false);
    if (const auto* linear = std::get_if<LinearOp>(&op)) {
      for (std::int32_t p = 0; p < linear->part_count; ++p) {
        check_weight(op, linear->parts[static_cast<std::size_t>(p)].weight, true);
      }
    }
    if (const auto* heads = std::get_if<HeadLinearOp>(&op)) check_weight(op, heads->weight, true);
    if (const auto* experts = std::get_if<ExpertsOp>(&op)) {
      for (const Weight* weight : {experts->gate, experts->up, experts->down}) {
        check_weight(op, weight, true);
        if (!expert_types_.empty() &&
            std::find(expert_types_.begin(), expert_types_.end(), weight->type()) == expert_types_.end()) {
          fail(op, fmt::format("the stream was not made for experts of type {}", to_string(weight->type())));
        }
      }
    }
    ops_.push_back(op);
  }

  [[nodiscard]] KvReads kv_reads() const noexcept override {
    return {state_.kv_bytes_read, state_.kv_bytes_shared, state_.weight_bytes_read};
  }

  void synchronize(const std::stop_token& stop) override {
    struct Clear {
      CpuStream& stream;
      ~Clear() {
        stream.ops_.clear();
        stream.phases_.clear();
        stream.heads_.clear();
        stream.state_.spans.clear();
        stream.state_.shared_chunks.clear();
        stream.state_.shared_runs.clear();
      }
    } clear{*this};
    for (const Op& op : ops_) {
      detail::check_host_data(op, limits_, where);
      plan(op);
    }
    if (stop.stop_requested()) detail::throw_error(ErrorCode::cancelled, where, "stop was requested");
    for (const Phase& phase : phases_) heads_.push_back(&phase);
    const bool whole = runner_.run(core_->executor, heads_.data(), static_cast<std::int64_t>(heads_.size()),
                                   state_.memory.data(), state_.sizes.participant_bytes, stop);
    if (!whole) detail::throw_error(ErrorCode::cancelled, where, "stop was requested");
  }

 private:
  void check_weight(const Op& op, const Weight* weight, bool multiplied) const {
    const auto* mine = dynamic_cast<const CpuWeight*>(weight);
    if (mine == nullptr) fail(op, "the weight was made by another backend");
    if (&mine->kernel() != core_->kernels.matmul(mine->type())) {
      fail(op, "the weight was made for another instruction set");
    }
    if (multiplied && !weight_types_.empty() &&
        std::find(weight_types_.begin(), weight_types_.end(), mine->type()) == weight_types_.end()) {
      fail(op, fmt::format("the stream was not made for weights of type {}", to_string(mine->type())));
    }
  }

  static void run_host(const PhaseHead& head, std::int64_t unit, Participant& /*me*/) noexcept {
    const auto& op = *std::get_if<HostOp>(static_cast<const Phase&>(head).op);
    op.run(op.context, unit);
  }

  void plan_host(const Op& whole, const HostOp& op) {
    if (op.units == 0) return;
    Phase phase;
    phase.state = &state_;
    phase.op = &whole;
    phase.run = run_host;
    phase.units = op.units;
    phases_.push_back(phase);
  }

  void plan(const Op& op) {
    if (std::holds_alternative<LinearOp>(op)) {
      plan_linear(state_, op, phases_);
    } else if (std::holds_alternative<DeltaInputOp>(op)) {
      plan_delta_input(state_, op, phases_);
    } else if (std::holds_alternative<ExpertsOp>(op)) {
      plan_experts(state_, op, phases_);
    } else if (std::holds_alternative<HeadLinearOp>(op)) {
      plan_heads(state_, op, phases_);
    } else if (std::holds_alternative<StoreKvOp>(op) || std::holds_alternative<AttentionOp>(op)) {
      plan_attention(state_, op, phases_);
    } else if (const auto* host = std::get_if<HostOp>(&op)) {
      plan_host(op, *host);
    } else if (!plan_recurrent(state_, op, phases_)) {
      plan_rows(state_, op, phases_);
    }
  }

  std::shared_ptr<const Core> core_;
  StreamLimits limits_;
  std::vector<DType> weight_types_;
  std::vector<DType> expert_types_;
  StreamState state_;
  PhaseRunner runner_;
  std::vector<Op> ops_;
  std::vector<Phase> phases_;
  std::vector<const PhaseHead*> heads_;
};

class CpuBackendImpl final : public CpuBackend {
 public:
  explicit CpuBackendImpl(std::shared_ptr<const Core> core) : core_(std::move(core)) {}

  [[nodiscard]] BackendInfo info() const override {
    return {.name = "cpu",
            .device = std::string(processor_name()),
            .isa = std::string(to_string(core_->kernels.isa())),
            .threads = core_->participants,
            .host_visible = true,
            .huge_pages = core_->memory.huge_pages};
  }

  [[nodiscard]] std::optional<std::string> refuses(const Op& op) const override {
    if (auto fault = detail::op_shape_fault(op)) return fault;
    const KvLayer* kv = nullptr;
    if (const auto* store = std::get_if<StoreKvOp>(&op)) kv = &store->kv;
    if (const auto* attention = std::get_if<AttentionOp>(&op)) kv = &attention->kv;
    if (kv != nullptr && core_->kernels.attention(kv->layout.dtype) == nullptr) {
      return fmt::format("{}: no kernels for KV pages of {}", detail::op_name(op), to_string(kv->layout.dtype));
    }
    return {};
  }

  [[nodiscard]] std::optional<std::string> refuses_weight(DType type, WeightLayout /*any*/) const override {
    if (core_->kernels.matmul(type) != nullptr) return {};
    std::string known;
    for (const auto& kernel : core_->kernels.all_matmul()) {
      known += (known.empty() ? "" : ", ") + std::string(to_string(kernel.type));
    }
    return fmt::format("the cpu backend has no kernels for weights of type {}; there are: {}", to_string(type), known);
  }

  [[nodiscard]] std::size_t weight_bytes(DType type, std::int64_t rows, std::int64_t cols,
                                         WeightLayout layout) const override {
    const kernels::MatmulKernel* kernel = core_->kernels.matmul(type);
    if (kernel == nullptr || rows <= 0 || cols <= 0) return 0;
    if (layout == WeightLayout::rows) {
      return row_bytes(type, static_cast<std::size_t>(cols)) * static_cast<std::size_t>(rows);
    }
    return kernel->panel_bytes(cols) * static_cast<std::size_t>(ceil_div(rows, kernels::panel_rows));
  }

  [[nodiscard]] std::size_t stream_bytes(const StreamLimits& limits) const override {
    return work_sizes(core_->kernels, limits, core_->participants).total;
  }

  [[nodiscard]] Buffer allocate(std::size_t bytes) override {
    auto memory = std::make_shared<AlignedBuffer>(bytes, core_->memory);
    std::byte* address = memory->data();
    return {std::move(memory), address, bytes, true};
  }

  [[nodiscard]] std::shared_ptr<const Weight> make_weight(const WeightSource& source, WeightLayout layout,
                                                          const std::stop_token& stop) override {
    return make_cpu_weight(source, layout, core_->kernels, core_->executor, core_->participants, core_->memory, stop);
  }

  [[nodiscard]] std::string packed_layout() const override {
    return fmt::format("cpu panel16 {} {}", panel_version, to_string(core_->kernels.isa()));
  }
  [[nodiscard]] std::span<const std::byte> packed_bytes(const Weight& weight) const override {
    const auto* mine = dynamic_cast<const CpuWeight*>(&weight);
    if (mine == nullptr || &mine->kernel() != core_->kernels.matmul(mine->type())) return {};
    return mine->packed_bytes();
  }
  [[nodiscard]] std::shared_ptr<const Weight> use_packed(const PackedWeight& packed) override {
    return use_packed_weight(packed, core_->kernels);
  }
  [[nodiscard]] std::shared_ptr<const Weight> narrow_weight(std::shared_ptr<const Weight> whole, std::int64_t rows,
                                                            std::int64_t cols) override {
    auto weight = std::dynamic_pointer_cast<const cpu::CpuWeight>(std::move(whole));
    if (weight == nullptr || !detail::can_narrow(*weight, rows, cols)) return nullptr;
    return std::make_shared<cpu::CpuWeight>(std::move(weight), rows, cols);
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
    return std::make_unique<CpuStream>(core_, limits);
  }

 private:
  std::shared_ptr<const Core> core_;
};

Isa chosen_isa(const std::string& name) {
  if (name.empty()) return default_isa();
  const std::optional<Isa> isa = isa_from_name(name);
  const std::vector<Isa> available = available_isas();
  if (isa && std::find(available.begin(), available.end(), *isa) != available.end()) return *isa;
  std::string known;
  for (const Isa each : available) known += (known.empty() ? "" : ", ") + std::string(to_string(each));
  detail::throw_error(ErrorCode::unsupported, where,
                      fmt::format("instruction set '{}' is {}; this machine has: {}", printable(name),
                                  isa ? "not available" : "unknown", known));
}

}  // namespace

}  // namespace cpu

AnyBackend make_cpu_backend(const CpuOptions& options) {
  const Isa isa = cpu::chosen_isa(options.isa);
  AnyExecutor executor = options.executor ? *options.executor : make_tbb_executor(options.threads);
  int participants = std::max(1, executor.concurrency());
  if (options.threads > 0) participants = std::min(participants, options.threads);
  return std::make_shared<cpu::CpuBackendImpl>(std::make_shared<const cpu::Core>(
      cpu::Core{cpu::KernelSet(isa), std::move(executor), participants, {.huge_pages = options.huge_pages}}));
}

}  // namespace skald::inline v0
