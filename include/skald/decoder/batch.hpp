#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <skald/decoder/session.hpp>

namespace skald::inline v0 {

/// A ragged list of tokens or embeddings, each entry for one session. Prefill, chunks, decoding, many sequences and
/// token trees are all batches. Keeps its memory when cleared. A session may appear once.
class Batch {
 public:
  /// Tokens that continue a session. @throws UsageError if there are none.
  Batch& add(Session& session, std::span<const TokenId> tokens, LogitsWanted wanted = LogitsWanted::last) {
    begin(session, static_cast<std::int64_t>(tokens.size()), wanted, Kind::tokens);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    return *this;
  }
  /// Tokens of two texts, of which the second begins at index `second` (-1: there is no second). Models with several
  /// token types (BERT) add that of the second to its tokens; to others this is add(). @throws UsageError for another
  /// index.
  Batch& add_pair(Session& session, std::span<const TokenId> tokens, std::int64_t second,
                  LogitsWanted wanted = LogitsWanted::last) {
    if (second < -1 || second > static_cast<std::int64_t>(tokens.size()))
      detail::throw_error(ErrorCode::usage, "decoder.batch", "the second text does not begin within the tokens");
    add(session, tokens, wanted);
    entries_.back().second_begin = second;
    return *this;
  }
  /// Vectors instead of tokens, `rows` x dim, as they enter the first layer.
  Batch& add_embeddings(Session& session, std::span<const float> values, std::int64_t rows,
                        LogitsWanted wanted = LogitsWanted::last) {
    begin(session, rows, wanted, Kind::embeddings);
    entries_.back().embedding_begin = static_cast<std::int64_t>(embeddings_.size());
    entries_.back().embedding_count = static_cast<std::int64_t>(values.size());
    embeddings_.insert(embeddings_.end(), values.begin(), values.end());
    tokens_.insert(tokens_.end(), static_cast<std::size_t>(rows), TokenId{-1});
    return *this;
  }
  /// A tree of tokens: parents[i] < i is the index of token i's parent in this entry, -1 for children of the session's
  /// last token. Each token sees the session and its ancestors, at the position of its depth. The tokens become part of
  /// the session only through Session::accept. Not with an eviction policy that drops tokens (IncompatibleError).
  Batch& add_tree(Session& session, std::span<const TokenId> tokens, std::span<const std::int32_t> parents,
                  LogitsWanted wanted = LogitsWanted::all) {
    if (parents.size() != tokens.size())
      detail::throw_error(ErrorCode::usage, "decoder.batch", "a tree needs one parent per token");
    begin(session, static_cast<std::int64_t>(tokens.size()), wanted, Kind::tree);
    entries_.back().parent_begin = static_cast<std::int64_t>(parents_.size());
    parents_.insert(parents_.end(), parents.begin(), parents.end());
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    return *this;
  }
  void clear() noexcept {
    entries_.clear();
    tokens_.clear();
    embeddings_.clear();
    parents_.clear();
  }
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  /// Rows of all entries.
  [[nodiscard]] std::int64_t rows() const noexcept { return static_cast<std::int64_t>(tokens_.size()); }

 private:
  friend class detail::DecoderCore;
  enum class Kind : std::uint8_t { tokens, embeddings, tree };
  struct Entry {
    Session* session;
    std::int64_t begin;  // first row in tokens_
    std::int64_t count;
    LogitsWanted wanted;
    Kind kind;
    std::int64_t embedding_begin = 0;
    std::int64_t embedding_count = 0;
    std::int64_t parent_begin = 0;
    std::int64_t second_begin = -1;
  };
  void begin(Session& session, std::int64_t count, LogitsWanted wanted, Kind kind) {
    if (count <= 0) detail::throw_error(ErrorCode::usage, "decoder.batch", "an entry needs at least one token");
    for (const auto& entry : entries_)
      if (entry.session == &session)
        detail::throw_error(ErrorCode::usage, "decoder.batch", "a session appears twice in one batch");
    entries_.push_back({&session, rows(), count, wanted, kind});
  }
  std::vector<Entry> entries_;
  std::vector<TokenId> tokens_;
  std::vector<float> embeddings_;
  std::vector<std::int32_t> parents_;
};

/// Rows of logits of one forward pass. Refers to the decoder's memory: valid until its next forward pass.
class Logits {
 public:
  Logits() = default;
  Logits(const float* data, std::int64_t vocabulary, std::span<const std::int64_t> entry_begin) noexcept
      : data_(data), vocabulary_(vocabulary), entry_begin_(entry_begin) {}
  /// Elements per row.
  [[nodiscard]] std::int64_t vocabulary() const noexcept { return vocabulary_; }
  /// Rows of all entries.
  [[nodiscard]] std::int64_t rows() const noexcept { return entry_begin_.empty() ? 0 : entry_begin_.back(); }
  /// Rows of one entry: 0, 1 or as many as it has tokens.
  [[nodiscard]] std::int64_t rows(std::size_t entry) const noexcept {
    return entry_begin_[entry + 1] - entry_begin_[entry];
  }
  /// Row `index` over all entries; unchecked.
  [[nodiscard]] std::span<const float> row(std::int64_t index) const noexcept {
    return {data_ + index * vocabulary_, static_cast<std::size_t>(vocabulary_)};
  }
  /// Row `index` of an entry; unchecked.
  [[nodiscard]] std::span<const float> row(std::size_t entry, std::int64_t index) const noexcept {
    return row(entry_begin_[entry] + index);
  }
  /// The last row of an entry; unchecked.
  [[nodiscard]] std::span<const float> last(std::size_t entry = 0) const noexcept {
    return row(entry_begin_[entry + 1] - 1);
  }

 private:
  const float* data_ = nullptr;
  std::int64_t vocabulary_ = 0;
  std::span<const std::int64_t> entry_begin_{};
};

}  // namespace skald::inline v0
