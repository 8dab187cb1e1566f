#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <skald/decoder/prefix_cache.hpp>

namespace skald::inline v0::detail {

/// A file that is being written or read by the host's own thread. Shared with that thread, so that it outlives the node.
struct SlowJob {
  std::mutex mutex{};
  std::condition_variable ended{};
  std::vector<std::byte> bytes{};  // to be written, until they are; or what was read
  bool done = false;
  bool failed = false;  // bytes that could not be written stay in memory
  bool dropped = false;  // the file is to be removed when it has been written
};

/// Tokens that follow one another without a branch, and what a sequence remembers after them.
struct PrefixNode {
  std::weak_ptr<PrefixNode> parent{};
  std::vector<std::shared_ptr<PrefixNode>> children{};
  std::int64_t begin = 0;  // tokens before this node
  std::vector<TokenId> tokens{};
  std::uint64_t hash = 0;  // of the first token
  std::optional<SequenceState> state{};  // after the last token; shares its pages with the nodes above
  std::size_t bytes = 0;                 // of pages that the nodes above do not hold
  std::vector<std::byte> slow{};         // or in `file`
  std::string file{};
  std::shared_ptr<SlowJob> writing{}, reading{};
  std::size_t slow_size = 0;
  bool rows = false;  // the slow form holds this node's tokens only
  int pins = 0;
  double keep_until = -1e300;
  std::uint64_t uses = 0;
  std::uint64_t last_used = 0;
  double age = 0;

  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(tokens.size()); }
  [[nodiscard]] std::int64_t end() const noexcept { return begin + size(); }
  [[nodiscard]] bool known() const noexcept { return state.has_value() || slow_size > 0; }
};

/// All tokens up to the end of a node; none if the tree has forgotten what was before.
[[nodiscard]] std::vector<TokenId> tokens_until(const PrefixNode& last);

struct PrefixTree {
  using NodePtr = std::shared_ptr<PrefixNode>;
  struct Hit {
    NodePtr node{};
    std::int64_t length = 0;
  };

  PrefixTree(std::shared_ptr<DecoderCore> decoder, PrefixCacheOptions given);
  ~PrefixTree();
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  [[nodiscard]] double now() const;
  void touch(PrefixNode& node);
  [[nodiscard]] NodePtr child_of(const PrefixNode& node, std::span<const TokenId> tokens, std::int64_t& equal) const;
  [[nodiscard]] Hit look_up(const NodePtr& root, std::span<const TokenId> tokens, std::int64_t limit) const;
  [[nodiscard]] NodePtr known_above(const PrefixNode& node) const;
  void set_state(PrefixNode& node, SequenceState state);
  void store_slow(PrefixNode& node);
  void drop_slow(PrefixNode& node) noexcept;
  void drop_fast(PrefixNode& node) noexcept;
  [[nodiscard]] std::vector<NodePtr> asleep(const NodePtr& node) const;
  [[nodiscard]] bool promote(const NodePtr& node);
  [[nodiscard]] SequenceState load_slow(PrefixNode& node);
  [[nodiscard]] std::shared_ptr<SlowJob> write_slow(const std::string& file, std::vector<std::byte> bytes) const;
  [[nodiscard]] std::vector<std::byte> copy_slow(const PrefixNode& node) const;
  [[nodiscard]] std::vector<std::byte> read_slow(PrefixNode& node);
  bool prefetch(PrefixNode& node);
  [[nodiscard]] NodePtr split(const NodePtr& node, std::int64_t size);
  NodePtr insert(const std::string& scope, std::span<const TokenId> tokens, const SequenceState& state);
  std::uint64_t forget(const NodePtr& top) noexcept;
  void drop(NodePtr node);
  [[nodiscard]] double worth(const PrefixNode& node) const;
  [[nodiscard]] NodePtr victim(bool fast, double time) const;
  std::size_t shrink(std::size_t most);
  [[nodiscard]] bool owns_session(const Session& session) const noexcept { return core->owns(session); }

  std::shared_ptr<DecoderCore> core;
  PrefixCacheOptions options;
  std::map<std::string, NodePtr, std::less<>> roots{};  // by scope
  std::map<std::string, PrefixHandle, std::less<>> names{};
  PrefixCacheCounters counters{};
  std::uint64_t nodes = 0;
  std::size_t fast_bytes = 0;
  std::size_t slow_bytes = 0;
  std::uint64_t ticks = 0;
  std::uint64_t files = 0;
  double age = 0;  // rises to the worth of what was dropped last, so that old merits fade
};

}  // namespace skald::inline v0::detail
