#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/state/sequence.hpp>

namespace skald::inline v0 {

/// How keys and values are cut into chunks.
struct ChunkedKvOptions {
  std::int32_t least_tokens = 16;  ///< of a chunk, where attention falls on few tokens
  std::int32_t most_tokens = 256;  ///< where it is spread evenly
  double mass = 0.9;               ///< share of the attention that the tokens counted as important hold together
  std::size_t memory_bytes = 0;    ///< chunks that were read stay in memory up to so many bytes, the last used ones
};

/// Work done by a ChunkedKv.
struct ChunkedKvCounters {
  std::uint64_t steps = 0;        ///< calls of attend
  std::uint64_t bytes_read = 0;   ///< from the file
  std::uint64_t bytes_asked = 0;  ///< those, and those that were still in memory
  std::uint64_t chunks_read = 0;
};

/// A sequence's keys and values in a file, in chunks whose sizes differ by layer: small where attention is skewed, so
/// that little is read beside what matters (LeoAM, Sun et al. 2025, arXiv 2506.20187). Of each chunk and KV head the
/// least and the greatest element per dimension stay in memory: from them follows a bound of every score in it, so that
/// only chunks that can matter are read. One thread at a time.
class SKALD_API ChunkedKv {
 public:
  /// Writes the whole sequence to `path`. `attention`: [layer][head group][slot] as AttentionScores::values has it, or
  /// empty for chunks of one size. The file stays until it is removed by the caller.
  /// @throws IncompatibleError for sequences that are not rows of keys and values, UsageError, IoError.
  ChunkedKv(const SequenceState& state, const std::string& path,
            std::span<const std::vector<std::vector<float>>> attention = {}, const ChunkedKvOptions& options = {});

  [[nodiscard]] std::int64_t tokens() const noexcept { return tokens_; }
  [[nodiscard]] std::size_t layers() const noexcept { return layers_.size(); }
  /// Most tokens of a chunk of a layer.
  [[nodiscard]] std::int32_t chunk_tokens(std::size_t layer) const noexcept { return layers_[layer].chunk_tokens; }
  [[nodiscard]] std::size_t chunks(std::size_t layer) const noexcept { return layers_[layer].chunks; }
  /// Bytes of the keys and values of one KV head, of all tokens.
  [[nodiscard]] std::uint64_t head_bytes(std::size_t layer) const noexcept;
  /// Bytes of all bounds that are kept in memory.
  [[nodiscard]] std::size_t abstract_bytes() const noexcept;
  [[nodiscard]] const ChunkedKvCounters& counters() const noexcept { return counters_; }

  /// No key of the chunk has a greater scalar product with the query than this, also as floats sum it up, dimension by
  /// dimension.
  [[nodiscard]] float bound(std::size_t layer, std::int32_t head, std::size_t chunk,
                            std::span<const float> query) const;
  /// The chunks with the greatest bounds that hold at most `budget` tokens together, ascending; the newest is always
  /// among them.
  [[nodiscard]] std::vector<std::size_t> select(std::size_t layer, std::int32_t head, std::span<const float> query,
                                                std::int64_t budget) const;
  /// softmax(scale * query K^T) V over the tokens of some ascending chunks, which are read if they are not in memory.
  /// How tokens are cut into chunks changes no bit. @throws IoError, FormatError if the file has changed.
  void attend(std::size_t layer, std::int32_t head, std::span<const float> query, float scale,
              std::span<const std::size_t> chunks, std::span<float> out);
  /// The keys and values of a chunk, [token][head_dim_k + head_dim_v].
  [[nodiscard]] std::vector<float> read(std::size_t layer, std::int32_t head, std::size_t chunk);

 private:
  struct Layer {
    std::int32_t heads = 0;
    std::int32_t dims_k = 0;
    std::int32_t dims_v = 0;
    std::int32_t chunk_tokens = 0;
    std::size_t chunks = 0;
    std::uint64_t offset = 0;
    bool halves = false;                     // stored as 16-bit floats, exactly
    std::vector<float> least{}, greatest{};  // [head][chunk][dim]
    std::vector<std::uint64_t> checksums{};  // [head][chunk]
  };
  using Key = std::pair<std::size_t, std::size_t>;  // layer, head and chunk
  [[nodiscard]] std::int64_t chunk_size(const Layer& layer, std::size_t chunk) const noexcept;
  [[nodiscard]] const std::vector<float>& get(std::size_t layer, std::int32_t head, std::size_t chunk);
  void write_layer(const SequenceState& state, std::size_t index, std::vector<std::byte>& out);

  ChunkedKvOptions options_;
  AnyByteSource source_;
  std::int64_t tokens_ = 0;
  std::vector<Layer> layers_;
  std::map<Key, std::pair<std::vector<float>, std::list<Key>::iterator>> memory_;
  std::list<Key> order_;  // the last used first
  std::size_t held_ = 0;
  std::vector<float> passing_;
  ChunkedKvCounters counters_;
};

/// Tokens of a chunk for a layer by how its attention falls on tokens: the share of tokens that hold `mass` of it moves
/// the size between least_tokens and most_tokens, in powers of two.
[[nodiscard]] SKALD_API std::int32_t chunk_tokens_for(std::span<const std::vector<float>> attention,
                                                      const ChunkedKvOptions& options);

}  // namespace skald::inline v0
