#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <skald/config.hpp>
#include <skald/state/coupled.hpp>

namespace skald::inline v0 {

/// The KV cache of a decoder.
struct KvOptions {
  /// Element format: "f32", "f16", "bf16", "q8_0", "q4_0" or "q4_1", and rules for layers and KV heads that differ:
  /// "q4_0;layers 0-1=f16;heads 3=q8_0". @see AnyKvFormat. Or "coupled", with `codebooks`.
  std::string format = "f16";
  /// Eviction policy by name: "none", "recent_pages:sinks=1,recent=8", "h2o:budget=512", ... (see docs/kv-cache.md).
  std::string eviction = "none";
  /// Tokens per page: 16, 32, 64, 128 or 256.
  std::int32_t page_tokens = 64;
  /// Tokens that can be taken back in layers with a sliding window, on top of the window. Truncating by more is refused once
  /// tokens have left the window. 0 or more.
  std::int64_t rollback_tokens = 0;
  /// KV heads that share a page table; must divide the KV heads of every layer. 1: each head evicts for itself.
  std::int32_t heads_per_group = 1;
  /// Tokens that all sessions together can hold; 0: context x parallel. Address space is reserved for them, memory is
  /// used as they come.
  std::int64_t capacity_tokens = 0;
  /// Of formats with values, or keys and values, in slow memory ("f16;values=128", "f16;chunks=256"): a directory for files
  /// that hold them; empty: host memory.
  std::string slow_directory{};
  /// Of the format "coupled": keys and values as codes of groups of channels, down to 1 bit per channel. Attention decodes one
  /// layer at a time. @see calibrate_coupled
  std::shared_ptr<const CoupledCodebooks> codebooks{};
};

/// Recurrent layers' memory. Their state has a fixed size and cannot take tokens back: truncating goes back to the last
/// checkpoint before and computes the tokens after it again.
struct RecurrentMemoryOptions {
  /// Tokens between checkpoints, at which batches are cut; 0: none, truncating computes everything again.
  std::int64_t checkpoint_interval = 256;
  /// How many of the latest checkpoints a session keeps.
  std::int32_t checkpoints = 2;
};

/// What is checked for NaN and infinity after each forward pass.
enum class CheckFinite : std::uint8_t { off, logits };

/// Options of a decoder.
struct DecoderOptions {
  KvOptions kv{};
  RecurrentMemoryOptions recurrent{};
  /// Attention variant by name: "dense".
  std::string attention = "dense";
  /// Most tokens of one session; 0: the model's context length, at most 4096.
  std::int64_t context = 0;
  /// Sessions that are expected to be full at the same time; sizes the KV pool. Batches of more sessions are cut.
  std::int32_t parallel = 4;
  /// Most tokens that go through the network together; longer batches are cut. Does not change results.
  std::int64_t batch_tokens = 512;
  CheckFinite check_finite = CheckFinite::logits;
};

/// What is really active in a decoder.
struct EffectiveConfig {
  std::string model{};
  std::string architecture{};
  std::string backend{};
  std::string device{};
  std::string isa{};
  int threads = 0;
  bool huge_pages = false;
  std::string weight_layout{};
  std::string kv_format{};
  std::string eviction{};
  std::string attention{};
  std::string rope{};  ///< "short" or "long" for models with two sets of rotary factors, of which the context decides; else empty
  std::int32_t page_tokens = 0;
  std::int32_t heads_per_group = 0;
  std::int64_t capacity_tokens = 0;
  std::int64_t context = 0;
  std::int64_t batch_tokens = 0;
  std::int32_t parallel = 0;
  std::uint64_t recurrent_bytes = 0;     ///< recurrent state of one session, checkpoints included; 0: the model has none
  std::int64_t checkpoint_interval = 0;  ///< of recurrent state
  std::int32_t checkpoints = 0;
  /// One JSON object with these fields.
  [[nodiscard]] SKALD_API std::string to_json() const;
};

/// Work done by a decoder since it was made; each feature that is on shows here.
struct DecoderCounters {
  std::uint64_t forward_passes = 0;  ///< batches run through the network (after cutting)
  std::uint64_t tokens = 0;          ///< rows computed
  std::uint64_t logits_rows = 0;     ///< rows of logits computed
  std::uint64_t encoder_passes = 0;  ///< texts read by the model's encoder
  std::uint64_t encoded_tokens = 0;  ///< their tokens
  std::uint64_t evicted_pages = 0;   ///< KV pages freed by the eviction policy
  std::uint64_t evicted_tokens = 0;  ///< slots dropped or merged by the eviction policy, over all head groups
  std::uint64_t merged_tokens = 0;   ///< those of them that were merged into others
  std::uint64_t rebuilt_rows = 0;  ///< keys and values of a token in a layer that were dropped and computed again
  std::uint64_t eviction_rounds = 0;  ///< times that the policy was asked about a sequence
  std::uint64_t kv_bytes_read = 0;    ///< keys and values that attention has read
  std::uint64_t kv_bytes_shared = 0;  ///< of common prefixes, not read again for each sequence
  /// Weights that linear maps have read, each matrix once per pass; stacks of experts do not count. The cpu backend alone
  /// counts them.
  std::uint64_t weight_bytes_read = 0;
  std::uint64_t value_rows_fetched = 0;   ///< values of a head and token that were fetched from slow memory
  std::uint64_t value_bytes_fetched = 0;  ///< their bytes
  std::uint64_t chunks_read = 0;       ///< chunks that rows have chosen, over all layers and head groups
  std::uint64_t chunk_bytes_read = 0;  ///< keys and values read from slow memory, each row's anew
  std::uint64_t chunk_bytes_seen = 0;  ///< those, and those that rows saw and did not choose
  std::uint64_t slow_page_bytes_used = 0;  ///< bytes of pages of slow memory in use now, not counted below
  std::uint64_t kv_pages_used = 0;   ///< pages in use now
  std::uint64_t kv_pages_peak = 0;   ///< most pages ever in use
  std::uint64_t kv_page_bytes_used = 0;  ///< bytes of the pages in use now
};

}  // namespace skald::inline v0
