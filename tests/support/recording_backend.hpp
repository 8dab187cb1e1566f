#pragma once

// A backend that keeps the codes of its weights as it got them and counts what it is asked for. It runs no ops.

#include <atomic>
#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/core/progress.hpp>

namespace skald_test {

class RecordedWeight final : public skald::Weight {
 public:
  RecordedWeight(const skald::WeightSource& source, std::vector<std::byte> rows, std::shared_ptr<std::atomic<int>> live)
      : Weight(source.type, source.rows, source.cols, source.matrices), codes(std::move(rows)), live_(std::move(live)) {
    ++*live_;
  }
  ~RecordedWeight() override { --*live_; }
  [[nodiscard]] std::size_t bytes() const noexcept override { return codes.size(); }
  [[nodiscard]] std::string_view layout() const noexcept override { return "recorded"; }

  const std::vector<std::byte> codes;

 private:
  std::shared_ptr<std::atomic<int>> live_;
};

class RecordingBackend final : public skald::BackendInterface {
 public:
  [[nodiscard]] int allocations() const { return allocations_; }
  [[nodiscard]] int live_weights() const { return *live_; }
  [[nodiscard]] int mapped_weights() const { return mapped_; }
  void refuse(skald::DType type) { refused_.insert(type); }

  [[nodiscard]] skald::BackendInfo info() const override { return {.name = "recording"}; }
  [[nodiscard]] std::optional<std::string> refuses(const skald::Op& /*op*/) const override { return "runs no ops"; }
  [[nodiscard]] std::optional<std::string> refuses_weight(skald::DType type,
                                                          skald::WeightLayout /*layout*/) const override {
    if (refused_.contains(type)) return "told to";
    return {};
  }
  [[nodiscard]] std::size_t weight_bytes(skald::DType type, std::int64_t rows, std::int64_t cols,
                                         skald::WeightLayout /*layout*/) const override {
    return static_cast<std::size_t>(rows) * skald::row_bytes(type, static_cast<std::size_t>(cols));
  }
  [[nodiscard]] std::size_t stream_bytes(const skald::StreamLimits& limits) const override {
    return static_cast<std::size_t>(limits.tokens * limits.max_cols);
  }
  [[nodiscard]] skald::Buffer allocate(std::size_t bytes) override {
    ++allocations_;
    struct Line {
      alignas(64) std::byte bytes[64];
    };
    auto memory = std::make_shared<std::vector<Line>>((bytes + 63) / 64);
    auto* address = memory->data()->bytes;
    return {std::move(memory), address, bytes, true};
  }
  [[nodiscard]] std::shared_ptr<const skald::Weight> make_weight(const skald::WeightSource& source,
                                                                 skald::WeightLayout layout,
                                                                 const std::stop_token& stop) override {
    ++allocations_;
    std::vector<std::byte> codes(weight_bytes(source.type, source.rows, source.cols, layout));
    if (!source.mapped.empty()) {
      ++mapped_;
      if (source.mapped.size() != codes.size()) throw std::logic_error("mapped bytes are not all rows");
      std::memcpy(codes.data(), source.mapped.data(), codes.size());
    } else {
      const std::size_t row = codes.size() / static_cast<std::size_t>(source.rows);
      // Last rows first: the order is the backend's choice.
      for (std::int64_t end = source.rows; end > 0;) {
        skald::throw_if_stopped(stop, "recording");
        const std::int64_t count = std::min<std::int64_t>(end, 7);
        end -= count;
        source.read(
            end, count,
            std::span(codes).subspan(static_cast<std::size_t>(end) * row, static_cast<std::size_t>(count) * row));
      }
    }
    return std::make_shared<RecordedWeight>(source, std::move(codes), live_);
  }
  void write(std::byte* device, std::span<const std::byte> host) override {
    std::memcpy(device, host.data(), host.size());
  }
  void read(std::span<std::byte> host, const std::byte* device) override {
    std::memcpy(host.data(), device, host.size());
  }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) override { std::memmove(to, from, bytes); }
  [[nodiscard]] std::unique_ptr<skald::Stream> new_stream(const skald::StreamLimits& /*limits*/) override {
    throw std::logic_error("the recording backend runs no ops");
  }

 private:
  std::atomic<int> allocations_ = 0;
  std::atomic<int> mapped_ = 0;
  std::shared_ptr<std::atomic<int>> live_ = std::make_shared<std::atomic<int>>(0);
  std::set<skald::DType> refused_;
};

using RecordingBackendPtr = std::shared_ptr<RecordingBackend>;
inline RecordingBackendPtr make_recording_backend() { return std::make_shared<RecordingBackend>(); }

}  // namespace skald_test
