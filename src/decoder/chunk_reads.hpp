#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/state/summarized_kv.hpp>

namespace skald::inline v0::detail {

/// Attention over keys and values in slow memory, of which each row reads some chunks. A row that sees at most `tokens` tokens
/// reads all of them, by the same op as ever: the same bits. A row that sees more reads the chunk that it lies in and of the
/// complete ones before that as many as fill up `tokens`: those whose summaries promise the highest scores. Which chunks are
/// complete depends on a row's position alone, so that batches change nothing.
class ChunkReads {
 public:
  ChunkReads(std::int64_t tokens, std::size_t layers) : tokens_(tokens), layers_(layers) {
    for (auto& layer : layers_) layer.all = this;
  }
  ChunkReads(const ChunkReads&) = delete;
  ChunkReads& operator=(const ChunkReads&) = delete;

  /// Pages of a layer's summaries.
  [[nodiscard]] static KvPageLayout summaries_of(const KvPageLayout& kv) noexcept;

  /// Announces a pass: its segments, which stay where they are.
  void begin(std::span<const Segment> segments);
  /// One layer's keys and values, and its summaries, whose tables have the slots of chunks that the pass completes as well; both in
  /// segment_count x groups.
  void add(std::size_t layer, const KvPool& kv, const KvPool& summaries, std::int32_t groups, std::int32_t chunk_tokens,
           const KvTable* tables, std::span<const KvTable> summary_tables);
  void end();
  /// True if a pass was announced (else ops are only checked).
  [[nodiscard]] bool busy() const noexcept { return !segments_.empty(); }

  /// Ops of a layer: after keys and values are stored; then before the attention of row_segments.
  [[nodiscard]] HostOp summarize(std::size_t layer) noexcept;
  [[nodiscard]] HostOp choose(std::size_t layer, const AttentionOp& op) noexcept;
  /// Segments whose rows see all.
  [[nodiscard]] std::span<const Segment> whole_segments() const noexcept { return whole_; }
  [[nodiscard]] const KvTable* whole_tables(std::size_t layer) const noexcept { return layers_[layer].whole_tables.data(); }
  /// The rows of the others, each a segment of its own.
  [[nodiscard]] std::span<const Segment> row_segments() const noexcept { return rows_; }
  [[nodiscard]] const KvTable* row_tables(std::size_t layer) const noexcept { return layers_[layer].row_tables.data(); }

  /// Most of memory_bytes for so many tables (rows and groups) of a layer.
  [[nodiscard]] static std::size_t most_memory(std::int64_t tokens, std::int64_t chunk_tokens, std::int64_t page_tokens,
                                               std::int64_t context, std::int64_t tables) noexcept;
  [[nodiscard]] std::size_t memory_bytes() const noexcept {
    return pages_.size() * sizeof(std::uint32_t) + lanes_.size() * sizeof(float);
  }
  [[nodiscard]] std::uint64_t chunks_read() const noexcept { return chunks_read_; }
  [[nodiscard]] std::uint64_t bytes_read() const noexcept { return bytes_read_; }
  [[nodiscard]] std::uint64_t bytes_seen() const noexcept { return bytes_seen_; }

 private:
  struct Chunk {  // to be summarized
    std::size_t table = 0;
    std::int32_t index = 0;
  };
  struct Layer {
    ChunkReads* all = nullptr;
    const KvPool* kv = nullptr;
    const KvPool* summaries = nullptr;
    std::int32_t groups = 0;
    std::int32_t chunk = 0;
    const KvTable* tables = nullptr;
    std::vector<KvTable> summary_tables{};
    std::vector<KvTable> whole_tables{};  // [whole segment][group]
    std::vector<KvTable> row_tables{};    // [row][group]
    AttentionOp op{};
    std::size_t first_chunk = 0;
    std::size_t chunk_count = 0;
    std::int32_t row_pages = 0;  // room for the pages of a row and group
  };
  struct Row {
    std::int32_t segment = 0;
    std::int32_t slots = 0;  // that it sees
  };
  static void run_summarize(void* context, std::int64_t unit) noexcept;
  static void run_choose(void* context, std::int64_t unit) noexcept;
  void choose_for(const Layer& layer, std::size_t row, std::int32_t group, float* lane) noexcept;
  void weigh(const Layer& layer, std::size_t row, std::int32_t group, std::int32_t chunks, float* bounds, float* best) const noexcept;

  std::int64_t tokens_;
  std::vector<Layer> layers_;
  std::span<const Segment> segments_{};
  std::vector<Segment> whole_, rows_;
  std::vector<std::int32_t> whole_index_;  // of each whole segment: its number
  std::vector<Row> row_places_;            // of each of rows_
  std::vector<Chunk> chunks_;
  std::vector<std::uint32_t> pages_;  // of the rows of one layer
  std::vector<float> lanes_;
  std::size_t pages_needed_ = 0;
  std::size_t lane_floats_ = 0;
  std::int64_t lane_count_ = 0;
  std::uint64_t chunks_read_ = 0;
  std::uint64_t bytes_read_ = 0;
  std::uint64_t bytes_seen_ = 0;
};

}  // namespace skald::inline v0::detail
