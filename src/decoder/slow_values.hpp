#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/model/model_spec.hpp>
#include <skald/state/keys_first_kv.hpp>

namespace skald::inline v0::detail {

/// Attention over keys in fast memory and values in slow memory. A row that sees at most `count` tokens fetches the values of
/// all of them and attends as if they had never been away: the same bits. A row that sees more computes its weights from
/// the keys, then fetches the values of the `count` largest of each head and multiplies these; while those of one head are on
/// their way, the weights of the next are computed.
class SlowValues {
 public:
  /// @throws IncompatibleError naming what does not fit.
  SlowValues(const ModelSpec& spec, AnyBackend backend, std::int64_t count, std::int64_t context);
  SlowValues(const SlowValues&) = delete;
  SlowValues& operator=(const SlowValues&) = delete;

  [[nodiscard]] std::int64_t count() const noexcept { return count_; }
  /// Pages with keys alone, and with values alone, of a layer's pages with both.
  [[nodiscard]] static KvPageLayout keys_of(KvPageLayout both) noexcept;
  [[nodiscard]] static KvPageLayout values_of(KvPageLayout both) noexcept;

  /// Most memory of the rows that choose.
  [[nodiscard]] static std::size_t lane_bytes(const ModelSpec& spec, std::int64_t count, std::int64_t context) noexcept;

  /// Announces a pass over `layers` layers: its segments, which stay where they are; `trace` may be null.
  void begin(std::span<const Segment> segments, std::size_t layers, std::vector<TransferEvent>* trace);
  /// The tables of one layer's keys and values, and their pools; both in segment_count x groups.
  void add(std::size_t layer, const KvPool& keys, const KvPool& values, std::int32_t groups, const KvTable* key_tables,
           std::span<const KvTable> value_tables);
  void end();

  /// Ops of a layer, in this order after its keys are stored.
  [[nodiscard]] HostOp store(std::size_t layer, const Matrix& v) noexcept;
  /// Pages with keys and values for the rows that fetch everything.
  [[nodiscard]] HostOp expand(std::size_t layer) noexcept;
  [[nodiscard]] std::span<const Segment> dense_segments() const noexcept { return dense_; }
  [[nodiscard]] KvLayer plain(std::size_t layer) const noexcept;
  [[nodiscard]] HostOp attend(std::size_t layer, const AttentionOp& op) noexcept;

  [[nodiscard]] std::size_t memory_bytes() const noexcept { return scratch_.bytes() + lanes_.size() * sizeof(float); }
  [[nodiscard]] std::uint64_t rows_fetched() const noexcept { return rows_fetched_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t bytes_fetched() const noexcept { return bytes_fetched_.load(std::memory_order_relaxed); }

 private:
  struct Layer {
    SlowValues* all = nullptr;
    std::size_t index = 0;
    const KvPool* keys = nullptr;
    const KvPool* values = nullptr;
    KvPageLayout both{};
    std::int32_t groups = 0;
    const KvTable* key_tables = nullptr;
    std::vector<KvTable> value_tables;  // [segment][group]
    std::vector<KvTable> plain_tables;  // [dense segment][group]
    Matrix v{};
    AttentionOp op{};
    std::size_t first_page = 0;
    std::size_t pages = 0;
    std::size_t first_event = 0;
  };
  struct Page {  // of a dense segment
    std::size_t table = 0;
    std::int32_t index = 0;
    std::uint32_t plain = 0;
  };
  struct Row {
    std::int32_t segment = 0;
    std::int32_t row = 0;  // in the segment
  };
  /// Slots of one head on their way.
  struct Chosen {
    std::int32_t* slots;
    float* weights;
    float* values;
    std::int64_t count = 0;
  };
  [[nodiscard]] static std::size_t lane_floats(std::int64_t dims, std::int64_t count, std::int64_t context) noexcept;
  static void run_store(void* context, std::int64_t unit) noexcept;
  static void run_expand(void* context, std::int64_t unit) noexcept;
  static void run_attend(void* context, std::int64_t unit) noexcept;
  void attend_row(Layer& layer, std::size_t row, float* lane) noexcept;
  void weigh(const Layer& layer, const Row& row, std::int32_t head, float* weights) const noexcept;
  void choose(float* weights, std::int64_t slots, std::int32_t* order, Chosen& chosen) const noexcept;
  [[nodiscard]] const std::byte* value_at(const Layer& layer, const Row& row, std::int32_t head, std::int32_t slot) const noexcept;
  void request(const Layer& layer, const Row& row, std::int32_t head, const Chosen& chosen) noexcept;
  void multiply(const Layer& layer, const Row& row, std::int32_t head, const Chosen& chosen) noexcept;
  void note(const Layer& layer, std::size_t row, std::int32_t head, TransferStep step) noexcept;

  AnyBackend backend_;
  std::int64_t count_;
  std::int64_t context_;
  std::int64_t most_dims_ = 0;
  std::int64_t most_heads_ = 0;
  std::vector<Layer> layers_;
  std::span<const Segment> segments_{};
  std::vector<Segment> dense_;
  std::vector<std::int32_t> dense_index_;  // of each dense segment: its number
  std::vector<Row> rows_;                  // of the others
  std::vector<Page> pages_;
  std::vector<std::uint32_t> identity_;
  std::size_t needed_ = 0;
  Buffer scratch_;
  std::int64_t lane_count_ = 0;
  std::size_t lane_floats_ = 0;
  std::vector<float> lanes_;
  std::vector<TransferEvent>* trace_ = nullptr;
  std::atomic<std::uint64_t> clock_{0};
  std::atomic<std::uint64_t> rows_fetched_{0};
  std::atomic<std::uint64_t> bytes_fetched_{0};
};

}  // namespace skald::inline v0::detail
