#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/core/executor.hpp>
#include <skald/core/progress.hpp>
#include <skald/decoder/session.hpp>

namespace skald::inline v0 {

/// How a context is compressed.
struct ContextSaveOptions {
  /// Quality levels, the finest first: the size of a quantization step in standard deviations of the head's keys or
  /// values. Every level adds its own copy of the context to the file. Steps of 0.1, 0.3, 0.6 and 1 take
  /// about 5.5, 3.9, 2.8 and 2.2 bits per element.
  std::vector<float> steps{0.3F};
  /// Tokens that are loaded or computed again together.
  std::int64_t chunk_tokens = 256;
  /// Tokens that share an anchor.
  std::int32_t group_tokens = 10;
  /// Where layers are coded at the same time; nothing: a oneTBB arena of its own.
  std::optional<AnyExecutor> executor{};
  std::stop_token stop{};
  ProgressCallback progress{};  ///< stage "compress", in layers
};

/// Writes the keys and values of a session, and its tokens, as a compressed context (after CacheGen, Liu et al. 2024,
/// arXiv 2310.07240): distances from anchor tokens, quantized with coarser steps in deeper layers, then packed by an
/// entropy coder with statistics per layer and group of channels. Self-describing, with checksums; at any moment the
/// file holds the whole old or the whole new contents. What the keys and values were stored as does not matter.
/// @throws IncompatibleError for sessions that have dropped tokens or remember anything but keys and values; UsageError
/// for options that are not allowed; NumericError; IoError; CancelledError.
SKALD_API void save_context(const Session& session, const std::string& path, const ContextSaveOptions& options = {});
/// The same as bytes.
[[nodiscard]] SKALD_API std::vector<std::byte> compress_context(const Session& session,
                                                                const ContextSaveOptions& options = {});

/// What is done for a chunk instead of loading one of its levels: its tokens go through the network again.
inline constexpr int recompute_chunk = -1;

/// A chunk of a context as a controller sees it.
struct ContextChunk {
  std::int64_t first = 0;  ///< its first token
  std::int64_t tokens = 0;
  std::vector<std::uint64_t> bytes{};  ///< that loading it takes, by level
};

/// Decides how the chunks of a context come into a session.
struct ContextRates {
  double bytes_per_second = 0;   ///< of the link or disk: a first guess, which measurements replace; 0: unlimited
  double tokens_per_second = 0;  ///< of computing again; 0: never computed again
  double seconds = 0;            ///< in which the whole context should be there; 0: as fast as possible
  int coarsest_level = 1 << 20;  ///< that is good enough
};

/// Chooses, chunk after chunk, the best that still comes in time: the chunk computed again, which is exact, then the
/// levels from the finest on. Where nothing comes in time, or no time is set, the fastest. Measured rates replace the
/// guesses. Deterministic: its clock is what it is told.
class SKALD_API ContextController {
 public:
  explicit ContextController(const ContextRates& rates) : rates_(rates) {}
  /// recompute_chunk or a level for the first of the chunks that are left, `elapsed` seconds after the beginning.
  [[nodiscard]] int choose(std::span<const ContextChunk> left, double elapsed) const;
  /// What a chunk has really taken.
  void loaded(std::uint64_t bytes, double seconds);
  void computed(std::int64_t tokens, double seconds);
  [[nodiscard]] const ContextRates& rates() const noexcept { return rates_; }

 private:
  ContextRates rates_;
};

/// How a context is brought into a session.
struct ContextLoadOptions {
  int level = 0;                            ///< of all chunks, unless there is a controller
  ContextController* controller = nullptr;  ///< chooses for each chunk
  std::function<double()> clock{};  ///< seconds on any monotone clock, for the controller; nothing: the steady clock
  /// Where layers are decoded at the same time; nothing: a oneTBB arena of its own.
  std::optional<AnyExecutor> executor{};
  std::stop_token stop{};
  ProgressCallback progress{};  ///< stage "context", in tokens
};

/// What loading a context did.
struct ContextLoadReport {
  std::vector<int> choices{};  ///< by chunk: a level, or recompute_chunk
  std::uint64_t bytes_read = 0;
  std::int64_t computed_tokens = 0;
};

/// A compressed context: opening reads its description only, loading reads the chunks that are wanted, in order. The
/// source may be slow, or far away.
class SKALD_API ContextFile {
 public:
  /// @throws IoError, FormatError for damaged data, UnsupportedError for versions unknown here.
  explicit ContextFile(AnyByteSource source);
  static ContextFile open(const std::string& path) { return ContextFile(open_file(path)); }
  ~ContextFile();
  ContextFile(ContextFile&&) noexcept;
  ContextFile& operator=(ContextFile&&) noexcept;

  [[nodiscard]] std::span<const TokenId> tokens() const noexcept;
  [[nodiscard]] const std::vector<ContextChunk>& chunks() const noexcept;
  /// Steps of the levels in standard deviations, the finest first.
  [[nodiscard]] std::span<const float> steps() const noexcept;
  /// Bytes of the description, which every load needs.
  [[nodiscard]] std::uint64_t header_bytes() const noexcept;

  /// Replaces a session's contents by the context; on an error the session is unchanged. The rest of a prompt can
  /// follow.
  /// @throws IncompatibleError naming what differs (model, ...), FormatError, IoError, OutOfMemoryError,
  /// CancelledError.
  ContextLoadReport load(Session& session, const ContextLoadOptions& options = {}) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace skald::inline v0
