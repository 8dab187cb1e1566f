#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <skald/core/progress.hpp>
#include <skald/decoder/session.hpp>
#include <skald/text/tokenizer.hpp>

/// How well a decoder predicts and recalls: the same items for every configuration, so that a KV format or an eviction
/// policy can be compared with the full cache.
namespace skald::inline v0 {

/// A text with the parts that count: each token of [begin, end) is predicted from those before it.
struct EvalItem {
  struct Answer {
    std::int64_t begin = 0;  ///< at least 1
    std::int64_t end = 0;
  };
  std::string task{};  ///< results are grouped by it; "a/b" counts for "a" too
  std::vector<TokenId> tokens{};
  std::vector<Answer> answers{};  ///< ascending
};

/// What to draw from the story grammar (skald/generate/story_grammar.hpp).
struct EvalOptions {
  /// - "perplexity": a story; its second half counts;
  /// - "questions": a story and one question about it ("questions/KIND");
  /// - "passkey": a secret number of a person who is nowhere else, at a random place in a story;
  /// - "copy": a chat of lists of random words and their repetitions, which count;
  /// - "facts": a story and several questions, each with the right answer before the next.
  std::vector<std::string> tasks{"perplexity", "questions", "passkey", "copy", "facts"};
  /// Of "questions" and "facts": "where", "who_moved", "number", "likes", "feels", "who_is".
  std::vector<std::string> kinds{"feels", "likes", "who_is", "who_moved"};
  std::int64_t length = 256;  ///< tokens of an item, about; at least 96
  std::int64_t items = 64;    ///< of each task
  std::int64_t facts = 3;     ///< questions of an item of "facts"
  std::uint64_t seed = 1;
};

/// The same items for equal options and tokenizers. @throws UsageError naming a task, a kind or a number that is not
/// allowed.
[[nodiscard]] SKALD_API std::vector<EvalItem> make_eval_items(const Tokenizer& tokenizer,
                                                              const EvalOptions& options = {});
/// A text of one's own in pieces of `length` tokens, each with BOS as the vocabulary asks; of each the second half
/// counts, as task "text". `most`: pieces at most; -1: all. @throws UsageError if the text is shorter than one piece.
[[nodiscard]] SKALD_API std::vector<EvalItem> eval_items_of_text(const Tokenizer& tokenizer, std::string_view text,
                                                                 std::int64_t length, std::int64_t most = -1);

/// Sums over the items of one task.
struct EvalResult {
  std::string task{};
  std::int64_t items = 0;
  std::int64_t answers = 0;
  std::int64_t right_answers = 0;  ///< greedy decoding would have said every token of them
  std::int64_t tokens = 0;         ///< that count
  std::int64_t right_tokens = 0;   ///< most probable ones, the lowest id of equals
  double nll = 0.0;                ///< negative log-likelihoods, nats
  double nll_squares = 0.0;
  double kv_bytes = 0.0;      ///< Session::bytes() at the ends of the items
  std::int64_t computed = 0;  ///< tokens that went through the network
  double seconds = 0.0;

  [[nodiscard]] double recall() const noexcept { return ratio(static_cast<double>(right_answers), answers); }
  [[nodiscard]] double token_accuracy() const noexcept { return ratio(static_cast<double>(right_tokens), tokens); }
  [[nodiscard]] double mean_nll() const noexcept { return ratio(nll, tokens); }
  [[nodiscard]] double perplexity() const noexcept { return std::exp(mean_nll()); }
  [[nodiscard]] double mean_kv_bytes() const noexcept { return ratio(kv_bytes, items); }
  [[nodiscard]] double tokens_per_second() const noexcept {
    return seconds > 0.0 ? static_cast<double>(computed) / seconds : 0.0;
  }

 private:
  [[nodiscard]] static double ratio(double sum, std::int64_t count) noexcept {
    return count == 0 ? 0.0 : sum / static_cast<double>(count);
  }
};

/// Runs all items through a session, which is cleared before each; results in order of first appearance of their tasks.
/// Everything but the times is the same for equal items and configurations. Answers are given to the session as they
/// stand; that finds the same right answers as greedy decoding. `progress`: stage "eval", in items.
/// @throws UsageError for an item without answers or with one out of range; as Decoder::forward.
[[nodiscard]] SKALD_API std::vector<EvalResult> evaluate(Session& session, std::span<const EvalItem> items,
                                                         std::stop_token stop = {},
                                                         const ProgressCallback& progress = {});

/// The spec of an eviction policy with a budget of `tokens` out of `whole` tokens per head group: fills in the
/// parameter that is its budget, e.g. "h2o" becomes "h2o:budget=64", "window:sinks=4" "window:sinks=4,window=60" and
/// "rpc" "rpc:percent=25". A spec that has this parameter already stays as it is; {tokens}, {pages} and {percent}
/// anywhere in a spec are replaced instead. Tokens are rounded up to whole pages.
/// @throws UsageError for a policy that is not known, or that has no such parameter.
[[nodiscard]] SKALD_API std::string eviction_with_budget(std::string_view spec, std::int64_t tokens, std::int64_t whole,
                                                         std::int32_t page_tokens);

}  // namespace skald::inline v0
