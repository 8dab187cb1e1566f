#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/decoder/decoder.hpp>

namespace skald::inline v0 {

namespace detail {
struct PrefixTree;
struct PrefixNode;
}  // namespace detail

/// Options of a PrefixCache.
struct PrefixCacheOptions {
  /// Bytes of KV memory that the cache may hold on its own, in whole pages; 0: half of what the decoder's pools have.
  std::size_t fast_bytes = 0;
  /// Bytes of host memory or files that leaves move to when they leave the fast tier; 0: they are dropped.
  std::size_t slow_bytes = 0;
  /// Folder for files of the slow tier; empty: host memory. Files are removed with the cache.
  std::string slow_folder{};
  /// "gdsf": the leaf with the least (age + uses x cost / bytes) leaves first, where cost is the work of computing it again
  /// (RAGCache, Jin et al. 2024, arXiv 2404.12457); "lru": the one not used for longest.
  std::string replacement = "gdsf";
  /// Seconds on any monotone clock, for times to live; nothing: the steady clock.
  std::function<double()> clock{};
  /// Runs work on a thread of the host's: files of the slow tier are then written and read there, while the caller goes on.
  /// What was not written yet is still in memory. Nothing: files are written and read by the calls that need them.
  std::function<void(std::function<void()>)> background{};
  /// Hash of a run of tokens, used to find candidates only: hits compare tokens. For tests.
  std::function<std::uint64_t(std::span<const TokenId>)> hash{};
};

/// Work done by a PrefixCache.
struct PrefixCacheCounters {
  std::uint64_t lookups = 0;
  std::uint64_t hits = 0;             ///< lookups that reused at least a token
  std::uint64_t reused_tokens = 0;
  std::uint64_t missed_tokens = 0;    ///< asked for and not found
  std::uint64_t inserted_tokens = 0;
  std::uint64_t demoted = 0;          ///< nodes moved to the slow tier
  std::uint64_t promoted = 0;         ///< nodes brought back
  std::uint64_t prefetched = 0;       ///< of those, nodes whose file prefetch had asked for
  std::uint64_t dropped = 0;          ///< nodes forgotten
  std::uint64_t lost = 0;             ///< nodes whose file of the slow tier was gone or damaged; dropped with what built on them
  std::uint64_t nodes = 0;            ///< now
  std::uint64_t fast_bytes = 0;       ///< now
  std::uint64_t slow_bytes = 0;       ///< now
};

/// A place in the cache that its holder keeps from being dropped: a pin. Copies pin again.
class SKALD_API PrefixHandle {
 public:
  PrefixHandle() = default;
  PrefixHandle(const PrefixHandle& other);
  PrefixHandle(PrefixHandle&& other) noexcept = default;
  PrefixHandle& operator=(PrefixHandle other) noexcept;
  ~PrefixHandle();
  [[nodiscard]] explicit operator bool() const noexcept { return node_ != nullptr; }
  /// Tokens from the root up to here.
  [[nodiscard]] std::int64_t length() const noexcept;
  [[nodiscard]] std::vector<TokenId> tokens() const;

 private:
  friend class PrefixCache;
  explicit PrefixHandle(std::shared_ptr<detail::PrefixNode> node) noexcept;
  std::shared_ptr<detail::PrefixNode> node_;
};

/// Remembers the state after sequences of tokens, as a radix tree, and begins new sessions from the longest prefix that it
/// knows. Pages are shared, not copied. A prefix is reused only in the same decoder, whose model, RoPE, KV format and
/// techniques cannot change, under the same adapters, and in the same scope; tokens are compared one by one. What a
/// session begun here computes is bit for bit what it would compute from nothing.
/// One thread at a time, as the decoder and its sessions.
class SKALD_API PrefixCache {
 public:
  /// @throws UsageError for options that are not allowed; IncompatibleError for models whose tokens see later ones.
  template <class B, class E, class K>
  explicit PrefixCache(const Decoder<B, E, K>& decoder, PrefixCacheOptions options = {})
      : PrefixCache(decoder.core(), std::move(options)) {}
  PrefixCache(std::shared_ptr<detail::DecoderCore> core, PrefixCacheOptions options);
  ~PrefixCache();
  PrefixCache(PrefixCache&&) noexcept;
  PrefixCache& operator=(PrefixCache&&) noexcept;

  /// A session that holds the longest known prefix of `tokens`, but not all of them: the rest, from Session::length() on, is
  /// for the caller to forward. What a lost file of the slow tier held counts as unknown. @throws OutOfMemoryError.
  [[nodiscard]] Session new_session(std::span<const TokenId> tokens, std::string_view scope = {});
  /// The same under adapters: only what was computed under equal ones is reused, and the session has them.
  /// @throws as Session::set_adapters.
  [[nodiscard]] Session new_session(std::span<const TokenId> tokens, std::vector<ScaledAdapter> adapters,
                                    std::string_view scope = {});
  /// How many tokens new_session would reuse; changes nothing.
  [[nodiscard]] std::int64_t match(std::span<const TokenId> tokens, std::string_view scope = {}) const;
  /// Begins to read, in the background, the files that new_session would need for `tokens`. @return how many.
  std::int64_t prefetch(std::span<const TokenId> tokens, std::string_view scope = {});
  /// Remembers all that a session holds, apart for every set of adapters, and returns a handle to it. Sessions with
  /// embeddings in place of tokens cannot be remembered. Those with predicted keys and values or a compressed context are
  /// not what their tokens give: they need a scope of their own, without one they are refused. @throws UsageError.
  PrefixHandle insert(const Session& session, std::string_view scope = {});
  /// Gives a handle a name, or takes the name away from an empty handle; the name holds on to it.
  void set_name(std::string_view name, const PrefixHandle& handle);
  /// The handle of a name, empty if there is none.
  [[nodiscard]] PrefixHandle find(std::string_view name) const;
  /// Keeps what a session holds, as insert, for `seconds` at least: then it may be dropped as anything else.
  void keep_for(const Session& session, double seconds, std::string_view scope = {});
  /// Drops leaves, first those that are worth least, until the cache holds at most so many bytes of KV memory. Handles,
  /// names and times to live that have not passed hold on to theirs. @return bytes held.
  std::size_t shrink(std::size_t fast_bytes);
  /// Forgets everything; handles keep what they hold alive but it is found no more.
  void clear();
  [[nodiscard]] PrefixCacheCounters counters() const;
  /// What a prefix must have in common beside its tokens and scope: the model's fingerprint, RoPE, KV format and techniques.
  [[nodiscard]] std::string key() const;
  /// Writes all that is known to a file: self-describing, with a checksum; the file holds the old or the new contents at any
  /// moment. @throws IoError.
  void save(const std::string& path) const;
  /// Adds what a file holds. On an error nothing is added. @throws FormatError for damaged data, IncompatibleError naming
  /// what differs, IoError, OutOfMemoryError.
  void load(const std::string& path);

 private:
  std::unique_ptr<detail::PrefixTree> tree_;
};

}  // namespace skald::inline v0
