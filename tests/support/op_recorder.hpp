#pragma once

// A backend that passes everything on to another, counts what its ops write, and can take fused ops apart on the way.

#include <memory>
#include <utility>
#include <vector>

#include <skald/backend/backend.hpp>

namespace skald_test {

/// What is counted, over all streams. Ops before the first and after the last layer count too.
struct OpCounts {
  std::int64_t tensors = 0;  ///< matrices that were written to memory of their own
  std::int64_t moves = 0;    ///< ops of layers that only normalize, add, multiply or copy elements
  std::vector<const std::byte*> copies{};  ///< where BackendInterface::copy copied from
  bool unfuses = false;
};

class OpRecorder final : public skald::BackendInterface, public OpCounts {
 public:
  explicit OpRecorder(skald::AnyBackend inner) : inner_(std::move(inner)) {}
  OpRecorder(const OpRecorder&) = delete;

  [[nodiscard]] skald::BackendInfo info() const override { return inner_->info(); }
  [[nodiscard]] std::optional<std::string> refuses(const skald::Op& op) const override { return inner_->refuses(op); }
  [[nodiscard]] std::optional<std::string> refuses_weight(skald::DType type, skald::WeightLayout layout) const override {
    return inner_->refuses_weight(type, layout);
  }
  [[nodiscard]] std::size_t weight_bytes(skald::DType type, std::int64_t rows, std::int64_t cols,
                                         skald::WeightLayout layout) const override {
    return inner_->weight_bytes(type, rows, cols, layout);
  }
  [[nodiscard]] std::size_t stream_bytes(const skald::StreamLimits& limits) const override { return inner_->stream_bytes(limits); }
  [[nodiscard]] skald::Buffer allocate(std::size_t bytes) override { return inner_->allocate(bytes); }
  [[nodiscard]] std::shared_ptr<const skald::Weight> make_weight(const skald::WeightSource& source, skald::WeightLayout layout,
                                                                 const std::stop_token& stop) override {
    return inner_->make_weight(source, layout, stop);
  }
  void write(std::byte* device, std::span<const std::byte> host) override { inner_->write(device, host); }
  void read(std::span<std::byte> host, const std::byte* device) override { inner_->read(host, device); }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    copies.push_back(from);
    inner_->copy(to, from, bytes);
  }
  [[nodiscard]] std::unique_ptr<skald::Stream> new_stream(const skald::StreamLimits& limits) override {
    return std::make_unique<RecordingStream>(*this, inner_->new_stream(limits));
  }

 private:
  class RecordingStream final : public skald::Stream {
   public:
    RecordingStream(OpRecorder& all, std::unique_ptr<skald::Stream> inner) : all_(all), inner_(std::move(inner)) {}
    void enqueue(const skald::Op& op) override {
      const auto* linear = std::get_if<skald::LinearOp>(&op);
      if (linear == nullptr || linear->rows != nullptr || !all_.unfuses) return pass(op);
      unfuse(*linear);
    }
    void synchronize(const std::stop_token& stop) override {
      inner_->synchronize(stop);
      work_.clear();
    }
    [[nodiscard]] skald::KvReads kv_reads() const noexcept override { return inner_->kv_reads(); }

   private:
    void pass(const skald::Op& op) {
      if (const auto* linear = std::get_if<skald::LinearOp>(&op)) {
        if (linear->epilogue == skald::LinearEpilogue::store) all_.tensors += linear->part_count;
        if (linear->epilogue == skald::LinearEpilogue::gated) ++all_.tensors;
      } else if (std::holds_alternative<skald::AttentionOp>(op)) {
        ++all_.tensors;
      } else if (std::holds_alternative<skald::NormOp>(op) || std::holds_alternative<skald::AddOp>(op) ||
                 std::holds_alternative<skald::MultiplyOp>(op)) {
        ++all_.tensors;
        ++all_.moves;
      }
      inner_->enqueue(op);
    }
    skald::Matrix work(std::int64_t rows, std::int64_t cols) {
      work_.push_back(all_.inner_->allocate(static_cast<std::size_t>(rows * cols) * sizeof(float)));
      return work_.back().matrix(0, rows, cols);
    }
    /// Each norm, product, activation and sum by itself.
    void unfuse(const skald::LinearOp& op) {
      auto x = op.x;
      if (op.norm.kind != skald::NormKind::none) {
        x = work(op.x.rows, op.x.cols);
        pass(skald::NormOp{op.x, op.norm, x});
      }
      std::vector<skald::Matrix> results;
      for (std::int32_t p = 0; p < op.part_count; ++p) {
        const auto& part = op.parts[static_cast<std::size_t>(p)];
        skald::LinearOp one{};
        one.x = x;
        one.parts[0] = part;
        if (op.epilogue == skald::LinearEpilogue::store) one.scale = op.scale;
        else one.parts[0].out = work(op.x.rows, part.out.cols);
        if (op.epilogue == skald::LinearEpilogue::store || p == 0) one.activation = op.activation;
        pass(one);
        results.push_back(one.parts[0].out);
      }
      if (op.epilogue == skald::LinearEpilogue::add) pass(skald::AddOp{op.parts[0].out, results[0], op.scale});
      if (op.epilogue != skald::LinearEpilogue::gated) return;
      pass(skald::MultiplyOp{results[0], results[1]});
      skald::Matrix none = op.parts[0].out;  // zeros, then the sum: ops copy in no other way
      pass_quietly(skald::SoftcapOp{none, 0.0F, 0.0F});
      pass_quietly(skald::AddOp{none, results[0], 1.0F});
    }
    void pass_quietly(const skald::Op& op) { inner_->enqueue(op); }

    OpRecorder& all_;
    std::unique_ptr<skald::Stream> inner_;
    std::vector<skald::Buffer> work_;
  };

  skald::AnyBackend inner_;
};

}  // namespace skald_test
