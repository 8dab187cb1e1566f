#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include <skald/state/two_part_kv.hpp>

namespace skald::inline v0 {

/// Keys and values in slow memory, in `back`, and in fast memory a summary of every complete chunk of them, in `front`: a slot
/// per chunk, whose even heads hold the least element of the chunk's keys in each dimension and whose odd heads the
/// greatest (LeoAM, Sun et al. 2025, arXiv 2506.20187).
class SKALD_API SummarizedKv final : public SlowBackKv {
 public:
  /// Both empty, with as many groups; `front` has two heads for each of `back`.
  SummarizedKv(std::unique_ptr<PagedKv> summaries, std::unique_ptr<PagedKv> kv, std::int64_t chunk_tokens)
      : SlowBackKv(std::move(summaries), std::move(kv)), chunk_(chunk_tokens) {}

  [[nodiscard]] std::string_view kind() const noexcept override { return "summarized_kv"; }
  [[nodiscard]] PagedKv& written() const noexcept override { return *back_; }
  void append(std::int64_t count) override;
  [[nodiscard]] std::int64_t length() const noexcept override { return back_->length(); }
  void remove_last(std::int64_t count) override;
  /// @throws IncompatibleError: summaries are made of tokens that follow one another.
  void select_last(std::int64_t count, std::span<const std::int32_t> rows) override;
  [[nodiscard]] std::unique_ptr<LayerState> fork() const override;
  void load(ArchiveReader& in) override;

 private:
  std::int64_t chunk_;
};

/// A number that no scalar product of the query with a key between `least` and `greatest`, dimension by dimension, exceeds,
/// also as floats sum it up one after the other: term by term it is at least as great, and rounding keeps the order.
[[nodiscard]] inline float chunk_bound(std::span<const float> query, const float* least, const float* greatest) noexcept {
  float sum = 0.0F;
  for (std::size_t d = 0; d < query.size(); ++d) {
    const float a = query[d] * least[d];
    const float b = query[d] * greatest[d];
    sum += a < b ? b : a;
  }
  return sum;
}

}  // namespace skald::inline v0
