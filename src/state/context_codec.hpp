#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <skald/state/entropy_coder.hpp>
#include <skald/state/paged_kv.hpp>

/// The codec of compressed contexts (after CacheGen, Liu et al. 2024, arXiv 2310.07240): keys and values become small
/// integers, which an entropy coder packs with statistics per layer and group of channels.
///
/// Tokens lie in groups whose first one is the anchor. A channel's anchors are told as distances from its mean, the
/// other tokens as distances from mean + pull x (their anchor - mean), where the pull is how strongly the channel's
/// neighbours are correlated: 0 takes the mean alone, 1 is the plain difference. Distances are counted in steps, one
/// size per head.
namespace skald::inline v0::detail {

/// How tokens are cut: chunks are decoded apart, groups begin anew in each.
struct ContextCut {
  std::int64_t chunk_tokens = 256;
  std::int32_t group_tokens = 10;
};

/// The keys or the values of one layer: what their codes mean.
struct ContextPart {
  std::int32_t heads = 0;
  std::int32_t dims = 0;
  std::vector<float> means{};         // [channel]
  std::vector<std::uint8_t> pulls{};  // [channel], in sixteenths
  struct Level {
    std::vector<float> steps{};                  // [head]
    std::vector<SymbolTable> tables{};           // of groups of channels with similar spread
    std::vector<std::uint8_t> classes{};         // [channel]: its table
    std::vector<std::uint8_t> anchor_classes{};  // [channel]
  };
  std::vector<Level> levels{};

  [[nodiscard]] std::size_t channels() const noexcept {
    return static_cast<std::size_t>(heads) * static_cast<std::size_t>(dims);
  }
  /// Chooses means and pulls for values [channel][tokens] of a whole context. @throws NumericError.
  void fit(std::span<const float> values, std::int64_t tokens, const ContextCut& cut);
  /// The codes of values [channel][tokens] at a new level, whose steps are `step` standard deviations of their head.
  [[nodiscard]] std::vector<std::int32_t> add_level(std::span<const float> values, std::int64_t tokens,
                                                    const ContextCut& cut, float step);
  /// Packs the codes of one chunk: `codes` has rows of `stride`, of which tokens [first, first + count) are taken.
  [[nodiscard]] std::vector<std::byte> pack(std::size_t level, std::span<const std::int32_t> codes, std::int64_t stride,
                                            std::int64_t first, std::int64_t count, const ContextCut& cut) const;
  /// Makes a level ready for unpacking.
  void prepare(std::size_t level);
  /// The codes of one chunk, [channel][count]. @throws FormatError.
  void unpack(std::size_t level, ArchiveReader& in, std::int64_t count, const ContextCut& cut,
              std::span<std::int32_t> codes) const;
  /// The values that codes [channel][count] of one chunk stand for.
  void decode(std::size_t level, std::span<const std::int32_t> codes, std::int64_t count, const ContextCut& cut,
              std::span<float> values) const;

  void save(ArchiveWriter& out) const;
  /// @throws FormatError.
  static ContextPart load(ArchiveReader& in, std::int32_t heads, std::int32_t dims, std::size_t levels);
};

/// Keys or values of slots [first, first + count) of a layer as [channel][count], and back.
void read_part(const PagedKv& kv, bool keys, std::int64_t first, std::int64_t count, std::span<float> values);
void write_part(PagedKv& kv, bool keys, std::int64_t first, std::int64_t count, std::span<const float> values);

}  // namespace skald::inline v0::detail
