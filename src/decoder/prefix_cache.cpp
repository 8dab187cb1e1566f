#include <skald/decoder/prefix_cache.hpp>

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <utility>

#include <skald/core/file.hpp>

#include "decoder/checksum.hpp"
#include "decoder/prefix_tree.hpp"

namespace skald::inline v0 {

using detail::PrefixNode;
using detail::PrefixTree;
using NodePtr = std::shared_ptr<PrefixNode>;

namespace detail {

namespace {

std::uint64_t hash_tokens(std::span<const TokenId> tokens) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const auto token : tokens) hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x100000001b3ull;
  return hash;
}

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::vector<TokenId> tokens_until(const PrefixNode& last) {
  std::vector<TokenId> all(static_cast<std::size_t>(last.end()));
  auto begin = last.end();
  const auto put = [&](const PrefixNode& node) {
    begin = node.begin;
    std::copy(node.tokens.begin(), node.tokens.end(), all.begin() + begin);
  };
  put(last);
  for (auto node = last.parent.lock(); node; node = node->parent.lock()) put(*node);
  if (begin > 0) all.clear();
  return all;
}

PrefixTree::PrefixTree(std::shared_ptr<DecoderCore> decoder, PrefixCacheOptions given)
    : core(std::move(decoder)), options(std::move(given)) {
  if (options.replacement != "gdsf" && options.replacement != "lru")
    throw UsageError("decoder.prefix_cache",
                     "replacement '" + options.replacement + "' is not one of gdsf, lru");
  if (!core->model().spec().causal())
    throw IncompatibleError("decoder.prefix_cache",
                            "the model's tokens see those that come later: no prefix is the same in another text");
  if (core->model().spec().has_encoder())
    throw IncompatibleError("decoder.prefix_cache",
                            "the model's tokens depend on a text that an encoder has read: equal tokens have unequal states");
  if (!options.clock) options.clock = steady_seconds;
  if (!options.hash) options.hash = hash_tokens;
  if (options.fast_bytes == 0) options.fast_bytes = core->kv_capacity_bytes() / 2;
}

PrefixTree::~PrefixTree() {
  for (auto& [scope, root] : roots) forget(root);
}

double PrefixTree::now() const { return options.clock(); }

void PrefixTree::touch(PrefixNode& node) {
  ++node.uses;
  node.last_used = ++ticks;
  node.age = age;
}

/// The child whose tokens begin like `tokens`, and how many of them are equal.
NodePtr PrefixTree::child_of(const PrefixNode& node, std::span<const TokenId> tokens, std::int64_t& equal) const {
  equal = 0;
  if (tokens.empty()) return nullptr;
  const auto hash = options.hash(tokens.first(1));
  for (const auto& child : node.children) {
    if (child->hash != hash) continue;
    const auto most = std::min(tokens.size(), child->tokens.size());
    std::size_t same = 0;
    while (same < most && tokens[same] == child->tokens[same]) ++same;
    if (same == 0) continue;  // another token with the same hash
    equal = static_cast<std::int64_t>(same);
    return child;
  }
  return nullptr;
}

/// The state that lets a session go on after the most of `tokens`: a node and a length.
PrefixTree::Hit PrefixTree::look_up(const NodePtr& root, std::span<const TokenId> tokens, std::int64_t limit) const {
  Hit best;
  NodePtr node = root;
  while (node) {
    std::int64_t equal = 0;
    const auto rest = tokens.subspan(std::min(tokens.size(), static_cast<std::size_t>(node->end())));
    const auto child = child_of(*node, rest, equal);
    if (!child) break;
    const auto length = std::min(limit, child->begin + equal);
    if (child->known()) {
      // What lies in the slow tier as rows can be cut anywhere; other states only as they themselves say.
      const auto usable = child->state   ? child->state->restorable(length)
                          : child->rows  ? length
                          : length == child->end() ? length
                                                   : -1;
      if (usable > best.length) best = {child, usable};
    }
    if (equal < child->size()) break;
    node = child;
  }
  return best;
}

/// Writes a node's slow form; the node changes only if that works.
void PrefixTree::store_slow(PrefixNode& node) {
  ArchiveWriter out;
  const auto above = known_above(node);
  const bool rows = node.state->row_wise();
  if (rows) node.state->save_rows(out, above ? above->end() : 0);
  else node.state->save(out);
  auto bytes = out.take();
  const auto size = bytes.size();
  if (options.slow_folder.empty()) {
    node.slow = std::move(bytes);
  } else {
    auto file = options.slow_folder + "/prefix-" + std::to_string(::getpid()) + "-" +
                std::to_string(reinterpret_cast<std::uintptr_t>(this)) + "-" + std::to_string(++files) + ".kv";
    node.writing = write_slow(file, std::move(bytes));
    node.file = std::move(file);
  }
  node.rows = rows;
  node.slow_size = size;
  slow_bytes += size;
}

/// To a file, by the host's thread if there is one; then what that thread works on is returned.
std::shared_ptr<SlowJob> PrefixTree::write_slow(const std::string& file, std::vector<std::byte> bytes) const {
  if (!options.background) {
    write_file_atomically(file, bytes);
    return nullptr;
  }
  auto writing = std::make_shared<SlowJob>();
  writing->bytes = std::move(bytes);
  options.background([job = writing, path = file] {
    bool failed = false;
    try {
      write_file_atomically(path, job->bytes);  // until `done` nobody changes them
    } catch (...) {
      failed = true;
    }
    const std::lock_guard lock(job->mutex);
    job->done = true;
    job->failed = failed;
    if (!failed) job->bytes = {};
    if (job->dropped) {
      std::error_code ignored;
      std::filesystem::remove(path, ignored);
    }
    job->ended.notify_all();
  });
  return writing;
}

/// A node's slow form: from memory if it is still there, or from the file.
std::vector<std::byte> PrefixTree::copy_slow(const PrefixNode& node) const {
  if (node.file.empty()) return node.slow;
  if (node.writing) {
    const std::lock_guard lock(node.writing->mutex);
    if (!node.writing->bytes.empty()) return node.writing->bytes;
  }
  return read_whole_file(node.file);
}

/// The same, from a prefetch if one was begun.
std::vector<std::byte> PrefixTree::read_slow(PrefixNode& node) {
  if (const auto job = std::exchange(node.reading, nullptr)) {
    std::unique_lock lock(job->mutex);
    job->ended.wait(lock, [&] { return job->done; });
    if (!job->failed) {
      ++counters.prefetched;
      return std::move(job->bytes);
    }
  }
  return copy_slow(node);
}

/// Begins to read a node's file.
bool PrefixTree::prefetch(PrefixNode& node) {
  if (node.file.empty() || node.reading) return false;
  if (node.writing) {
    const std::lock_guard lock(node.writing->mutex);
    if (!node.writing->bytes.empty()) return false;  // still in memory
  }
  auto reading = std::make_shared<SlowJob>();
  options.background([job = reading, path = node.file] {
    std::vector<std::byte> bytes;
    bool failed = false;
    try {
      bytes = read_whole_file(path);
    } catch (...) {
      failed = true;  // the call that needs the file will meet the error
    }
    const std::lock_guard lock(job->mutex);
    job->bytes = std::move(bytes);
    job->failed = failed;
    job->done = true;
    job->ended.notify_all();
  });
  node.reading = std::move(reading);
  return true;
}

void PrefixTree::drop_slow(PrefixNode& node) noexcept {
  if (node.slow_size == 0) return;
  slow_bytes -= node.slow_size;
  node.slow_size = 0;
  node.slow = {};
  node.reading = nullptr;
  if (node.writing) {
    const std::lock_guard lock(node.writing->mutex);
    node.writing->dropped = true;
  }
  node.writing = nullptr;
  if (!node.file.empty()) {
    std::error_code ignored;
    std::filesystem::remove(node.file, ignored);
    node.file.clear();
  }
}

void PrefixTree::drop_fast(PrefixNode& node) noexcept {
  if (!node.state) return;
  fast_bytes -= node.bytes;
  node.bytes = 0;
  node.state.reset();
}

NodePtr PrefixTree::known_above(const PrefixNode& node) const {
  for (auto above = node.parent.lock(); above; above = above->parent.lock())
    if (above->known()) return above;
  return nullptr;
}

void PrefixTree::set_state(PrefixNode& node, SequenceState state) {
  drop_fast(node);
  const auto above = known_above(node);
  if (above && above->state) state.share_rows(*above->state, above->end());
  node.bytes = above && above->state ? state.bytes_beyond(*above->state) : state.bytes();
  fast_bytes += node.bytes;
  node.state.emplace(std::move(state));
}

/// The nodes without a state of their own that a node's state is made from, itself first.
std::vector<NodePtr> PrefixTree::asleep(const NodePtr& node) const {
  std::vector<NodePtr> nodes;
  for (auto at = node; at && !at->state; at = at->rows ? known_above(*at) : nullptr) nodes.push_back(at);
  return nodes;
}

/// Brings a node's state, and those above that it builds on, into the fast tier. Returns false if a file of the slow tier is
/// gone or damaged: what builds on it is then dropped, as if it had never been known.
bool PrefixTree::promote(const NodePtr& node) {
  auto nodes = asleep(node);
  for (; !nodes.empty(); nodes.pop_back()) {
    const auto& next = nodes.back();
    try {
      set_state(*next, load_slow(*next));
    } catch (const Error& error) {
      const bool lost = error.code() == ErrorCode::io || error.code() == ErrorCode::format;
      if (next->file.empty() || !lost) throw;
      ++counters.lost;
      drop(NodePtr(next));
      return false;
    }
    drop_slow(*next);
    ++counters.promoted;
  }
  return true;
}

/// A node's state from its slow form, those above that it builds on being in the fast tier.
SequenceState PrefixTree::load_slow(PrefixNode& node) {
  auto base = core->new_session();
  auto state = std::move(base.state());
  const auto above = known_above(node);
  if (above && node.rows) state = above->state->fork();
  const auto bytes = node.file.empty() ? std::vector<std::byte>{} : read_slow(node);
  ArchiveReader in(node.file.empty() ? std::span<const std::byte>(node.slow) : std::span<const std::byte>(bytes),
                   node.file.empty() ? "slow tier" : node.file);
  if (node.rows) state.load_rows(in);
  else state.load(in);
  in.finish();
  return state;
}

/// Cuts a node in two, so that one ends after `size` of its tokens; returns that one, or null if the node had to be dropped.
NodePtr PrefixTree::split(const NodePtr& node, std::int64_t size) {
  if (node->known() && !node->state && !promote(node)) return nullptr;
  auto upper = std::make_shared<PrefixNode>();
  upper->begin = node->begin;
  upper->hash = node->hash;
  upper->tokens.assign(node->tokens.begin(), node->tokens.begin() + size);
  upper->uses = node->uses;
  upper->last_used = node->last_used;
  upper->age = node->age;
  const auto parent = node->parent.lock();
  std::optional<SequenceState> state;
  if (node->state && node->state->restorable(node->begin + size) == node->begin + size) {
    state.emplace(node->state->fork());
    state->truncate(node->begin + size);
  }
  std::replace(parent->children.begin(), parent->children.end(), node, upper);
  upper->parent = parent;
  upper->children.push_back(node);
  node->tokens.erase(node->tokens.begin(), node->tokens.begin() + size);
  node->begin += size;
  node->hash = options.hash(std::span<const TokenId>(node->tokens).first(1));
  node->parent = upper;
  ++nodes;
  if (state) {
    set_state(*upper, std::move(*state));
    auto own = std::move(*node->state);
    fast_bytes -= node->bytes;
    node->bytes = 0;
    node->state.reset();
    set_state(*node, std::move(own));
  }
  return upper;
}

NodePtr PrefixTree::insert(const std::string& scope, std::span<const TokenId> tokens, const SequenceState& state) {
  auto& root = roots[scope];
  if (!root) root = std::make_shared<PrefixNode>();
  NodePtr node = root;
  while (node->end() < static_cast<std::int64_t>(tokens.size())) {
    std::int64_t equal = 0;
    const auto rest = tokens.subspan(static_cast<std::size_t>(node->end()));
    auto child = child_of(*node, rest, equal);
    if (!child) {
      child = std::make_shared<PrefixNode>();
      child->begin = node->end();
      child->tokens.assign(rest.begin(), rest.end());
      child->hash = options.hash(rest.first(1));
      child->parent = node;
      node->children.push_back(child);
      ++nodes;
      counters.inserted_tokens += rest.size();
    } else if (equal < child->size()) {
      child = split(child, equal);
      if (!child) child = root;  // what was lost is gone: from the beginning again
    }
    node = child;
  }
  if (node != root && !node->state) {
    auto fork = state.fork();
    drop_slow(*node);
    set_state(*node, std::move(fork));
  }
  for (auto up = node; up && up != root; up = up->parent.lock()) touch(*up);
  return node;
}

/// Takes apart all that is below a node, however deep, and lets go of what it holds; returns the number of nodes.
std::uint64_t PrefixTree::forget(const NodePtr& top) noexcept {
  std::uint64_t count = 0;
  for (auto node = top;;) {
    while (!node->children.empty()) node = NodePtr(node->children.back());
    drop_fast(*node);
    drop_slow(*node);
    ++count;
    if (node == top) return count;
    node = node->parent.lock();
    node->children.pop_back();
  }
}

double PrefixTree::worth(const PrefixNode& node) const {
  if (options.replacement == "lru") return static_cast<double>(node.last_used);
  // Computing a token costs the weights' products and attention over those before it, which overtakes at some thousands.
  const auto size = static_cast<double>(node.size());
  const auto cost = size * (1.0 + (static_cast<double>(node.begin) + size / 2) / 8192.0);
  const auto bytes = static_cast<double>(std::max<std::size_t>(1, node.bytes > 0 ? node.bytes : node.slow_size));
  return node.age + static_cast<double>(node.uses) * cost / bytes;
}

/// The least worth leaf of a tier, or null: nothing that lives on below it, and nobody holds on to it.
NodePtr PrefixTree::victim(bool fast, double time) const {
  struct Visit {
    const NodePtr* node;
    std::size_t parent;
    bool held;   // it, or one below
    bool below;  // one below is in the tier (of the slow one: in any)
  };
  std::vector<Visit> visits;
  for (const auto& [scope, root] : roots) visits.push_back({&root, visits.size(), true, false});
  const auto first = visits.size();
  for (std::size_t i = 0; i < visits.size(); ++i)
    for (const auto& child : (*visits[i].node)->children)
      visits.push_back({&child, i, child->pins > 0 || child->keep_until > time, false});
  const NodePtr* best = nullptr;
  for (std::size_t i = visits.size(); i-- > first;) {
    const auto& [place, above, held, below] = visits[i];
    const PrefixNode& node = **place;
    const bool in_tier = fast ? node.state.has_value() : node.slow_size > 0;
    visits[above].held |= held;
    visits[above].below |= below || (fast ? in_tier : node.known());
    if (in_tier && !held && !below && (best == nullptr || worth(node) < worth(**best))) best = place;
  }
  return best == nullptr ? nullptr : *best;
}

/// Forgets a node with all below it, and those above that were there for its sake only.
void PrefixTree::drop(NodePtr node) {
  for (;;) {
    const auto parent = node->parent.lock();
    const auto gone = forget(node);
    std::erase(parent->children, node);
    nodes -= gone;
    counters.dropped += gone;
    if (!parent->children.empty() || parent->known() || parent->pins > 0 || parent->parent.expired()) return;
    node = parent;
  }
}

std::size_t PrefixTree::shrink(std::size_t most) {
  const auto time = now();
  while (fast_bytes > most) {
    const auto node = victim(true, time);
    if (!node) break;
    age = std::max(age, worth(*node));
    if (options.slow_bytes > 0) {
      store_slow(*node);
      drop_fast(*node);
      ++counters.demoted;
      while (slow_bytes > options.slow_bytes) {
        const auto last = victim(false, time);
        if (!last) break;
        drop(last);
      }
    } else {
      drop(node);
    }
  }
  return fast_bytes;
}

}  // namespace detail

namespace {

/// The scope that a session's contents belong to: that of the caller, and apart for every set of adapters.
std::string scope_of(const Session& session, std::string_view scope) {
  std::string result(scope);
  if (session.adapters().empty()) return result;
  result.append("\0adapters", 9);
  for (const auto word : session.adapter_fingerprint()) result += ':' + std::to_string(word);
  return result;
}

}  // namespace

PrefixHandle::PrefixHandle(NodePtr node) noexcept : node_(std::move(node)) {
  if (node_) ++node_->pins;
}
PrefixHandle::PrefixHandle(const PrefixHandle& other) : PrefixHandle(other.node_) {}
PrefixHandle& PrefixHandle::operator=(PrefixHandle other) noexcept {
  std::swap(node_, other.node_);
  return *this;
}
PrefixHandle::~PrefixHandle() {
  if (node_) --node_->pins;
}
std::int64_t PrefixHandle::length() const noexcept { return node_ ? node_->end() : 0; }
std::vector<TokenId> PrefixHandle::tokens() const {
  return node_ ? detail::tokens_until(*node_) : std::vector<TokenId>{};
}

PrefixCache::PrefixCache(std::shared_ptr<detail::DecoderCore> core, PrefixCacheOptions options)
    : tree_(std::make_unique<PrefixTree>(std::move(core), std::move(options))) {}
PrefixCache::~PrefixCache() = default;
PrefixCache::PrefixCache(PrefixCache&&) noexcept = default;
PrefixCache& PrefixCache::operator=(PrefixCache&&) noexcept = default;

Session PrefixCache::new_session(std::span<const TokenId> tokens, std::string_view scope) {
  auto& tree = *tree_;
  ++tree.counters.lookups;
  tree.counters.missed_tokens += tokens.size();
  const auto root = tree.roots.find(scope);
  if (root == tree.roots.end() || tokens.empty()) return tree.core->new_session();
  PrefixTree::Hit hit;
  PrefixHandle pin;
  do {  // until nothing more is found lost
    hit = tree.look_up(root->second, tokens, static_cast<std::int64_t>(tokens.size()) - 1);
    if (hit.length == 0) return tree.core->new_session();
    pin = PrefixHandle(hit.node);
  } while (!tree.promote(hit.node));
  // A state that came back may be less willing to go back than its rows promised.
  hit.length = hit.node->state->restorable(hit.length);
  if (hit.length <= 0) return tree.core->new_session();
  auto state = hit.node->state->fork();
  state.truncate(hit.length);
  for (auto node = hit.node; node && node != root->second; node = node->parent.lock()) tree.touch(*node);
  ++tree.counters.hits;
  tree.counters.reused_tokens += static_cast<std::uint64_t>(hit.length);
  tree.counters.missed_tokens -= static_cast<std::uint64_t>(hit.length);
  const auto known = tokens.first(static_cast<std::size_t>(hit.length));
  auto session = tree.core->new_session(std::move(state), {known.begin(), known.end()});
  (void)tree.shrink(tree.options.fast_bytes);
  return session;
}

Session PrefixCache::new_session(std::span<const TokenId> tokens, std::vector<ScaledAdapter> adapters,
                                 std::string_view scope) {
  auto empty = tree_->core->new_session();
  empty.set_adapters(std::move(adapters));  // checks them
  auto session = new_session(tokens, scope_of(empty, scope));
  session.adapters_ = std::move(empty.adapters_);
  return session;
}

std::int64_t PrefixCache::match(std::span<const TokenId> tokens, std::string_view scope) const {
  const auto root = tree_->roots.find(scope);
  if (root == tree_->roots.end() || tokens.empty()) return 0;
  return tree_->look_up(root->second, tokens, static_cast<std::int64_t>(tokens.size()) - 1).length;
}

std::int64_t PrefixCache::prefetch(std::span<const TokenId> tokens, std::string_view scope) {
  const auto root = tree_->roots.find(scope);
  if (root == tree_->roots.end() || tokens.empty()) return 0;
  const auto hit = tree_->look_up(root->second, tokens, static_cast<std::int64_t>(tokens.size()) - 1);
  if (hit.length == 0 || !tree_->options.background) return 0;
  const auto nodes = tree_->asleep(hit.node);
  return std::count_if(nodes.rbegin(), nodes.rend(), [&](const NodePtr& node) { return tree_->prefetch(*node); });
}

PrefixHandle PrefixCache::insert(const Session& session, std::string_view scope) {
  auto& tree = *tree_;
  if (!tree.owns_session(session))
    throw UsageError("decoder.prefix_cache", "the session belongs to another decoder");
  if (session.state().pending() != 0)
    throw UsageError("decoder.prefix_cache", "the session has a token tree that was neither accepted nor truncated");
  const auto tokens = session.tokens();
  if (tokens.empty()) return {};
  if (std::find(tokens.begin(), tokens.end(), TokenId{-1}) != tokens.end())
    throw UsageError("decoder.prefix_cache", "the session holds embeddings; only tokens can be looked up");
  if (session.state().approximate() && scope.empty())
    throw UsageError("decoder.prefix_cache", "the session's keys and values were predicted or stored with a loss: they are not "
                                             "what its tokens give, give it a scope of its own");
  PrefixHandle handle(tree.insert(scope_of(session, scope), tokens, session.state()));
  (void)tree.shrink(tree.options.fast_bytes);
  return handle;
}

void PrefixCache::set_name(std::string_view name, const PrefixHandle& handle) {
  if (handle) tree_->names.insert_or_assign(std::string(name), handle);
  else if (const auto it = tree_->names.find(name); it != tree_->names.end()) tree_->names.erase(it);
}

PrefixHandle PrefixCache::find(std::string_view name) const {
  const auto it = tree_->names.find(name);
  return it == tree_->names.end() ? PrefixHandle() : it->second;
}

void PrefixCache::keep_for(const Session& session, double seconds, std::string_view scope) {
  const auto handle = insert(session, scope);
  if (handle) handle.node_->keep_until = std::max(handle.node_->keep_until, tree_->now() + seconds);
}

std::size_t PrefixCache::shrink(std::size_t fast_bytes) { return tree_->shrink(fast_bytes); }

void PrefixCache::clear() {
  tree_->names.clear();
  for (auto& [scope, root] : tree_->roots) tree_->forget(root);
  tree_->roots.clear();
  tree_->nodes = 0;
}

PrefixCacheCounters PrefixCache::counters() const {
  auto result = tree_->counters;
  result.nodes = tree_->nodes;
  result.fast_bytes = tree_->fast_bytes;
  result.slow_bytes = tree_->slow_bytes;
  return result;
}

std::string PrefixCache::key() const { return tree_->core->state_key(); }

}  // namespace skald::inline v0
