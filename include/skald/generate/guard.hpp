#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/decoder/session.hpp>
#include <skald/generate/generate.hpp>
#include <skald/generate/score.hpp>

namespace skald::inline v0 {

/// A kind of risk (or of harmlessness) that a guard model can name.
struct GuardCategory {
  std::string name{};   ///< for policies and people
  std::string token{};  ///< what the model says for it first: one token
};

/// What a guard model is asked: instructions, the text in question, question.
struct GuardOptions {
  std::string instructions{};  ///< computed once
  std::string question{};
  std::vector<GuardCategory> categories{};
  std::string reason = " because";  ///< begins an explanation, after the category
  bool parse_special = false;       ///< control tokens may be spelled in instructions and question; never in the text
};

/// What the model perceives in a text: a distribution over the categories. No decision. Holds the memory of its prompt,
/// so that an explanation can go on from it.
class SKALD_API Perception {
 public:
  /// In the order of the categories; they sum to 1.
  [[nodiscard]] const std::vector<double>& probabilities() const noexcept { return scores_.probabilities; }
  [[nodiscard]] const LabelScores& scores() const noexcept { return scores_; }
  /// Of a category by its name; 0 if there is none of that name.
  [[nodiscard]] double probability(std::string_view category) const noexcept;
  /// The most probable category, and how probable it is.
  [[nodiscard]] const std::string& category() const noexcept { return categories_[scores_.best()].name; }
  [[nodiscard]] double confidence() const noexcept { return scores_.probabilities[scores_.best()]; }
  [[nodiscard]] const std::vector<GuardCategory>& categories() const noexcept { return categories_; }
  /// Tokens of instructions, text and question.
  [[nodiscard]] std::int64_t prompt_tokens() const noexcept { return prompt_tokens_; }
  /// Why: text that the model goes on with after the category, from the same memory; nothing is computed again. May be
  /// called again, with other options say.
  [[nodiscard]] std::string explain(const GenerateOptions& options = {});

 private:
  friend class Guard;
  explicit Perception(Session session) : session_(std::move(session)) {}
  Session session_;
  LabelScores scores_{};
  std::vector<GuardCategory> categories_{};
  std::vector<TokenId> labels_{};
  std::string reason_{};
  std::int64_t prompt_tokens_ = 0;
};

/// What follows from a perception.
struct Verdict {
  bool blocked = false;
  std::string category{};  ///< that blocked, or the most probable one
  double confidence = 0.0;
};

/// From which probability on which category blocks. A table, apart from all models: changing it changes verdicts on
/// what was perceived already.
class SKALD_API GuardPolicy {
 public:
  /// `threshold` in [0, 1]; above 1: never. Replaces an earlier rule of the category. @throws UsageError for what is no
  /// number or negative.
  GuardPolicy& block(std::string_view category, double threshold);
  GuardPolicy& allow(std::string_view category);
  /// Of the rules that block, that with the most probable category; equal: the one made first.
  [[nodiscard]] Verdict decide(const Perception& perception) const;

 private:
  std::vector<std::pair<std::string, double>> rules_{};
};

/// A guard: asks a model for the category of a text and reads the answer off the logits of the first token (as
/// YuFeng-XGuard does it). One prefill for a text, of which the instructions are shared; nothing is decoded.
class SKALD_API Guard {
 public:
  /// `session`: an empty one of the guard model's decoder. @throws UsageError for less than two categories, names or
  /// tokens that are not different or not one token; as Decoder::forward.
  Guard(Session session, GuardOptions options);
  [[nodiscard]] Perception perceive(std::string_view text, std::stop_token stop = {}) const;
  [[nodiscard]] const GuardOptions& options() const noexcept { return options_; }

 private:
  Session session_;  // the instructions
  GuardOptions options_;
  std::vector<TokenId> labels_{};
  std::vector<TokenId> question_{};
};

/// A generation that a guard watches.
struct GuardedText {
  std::string text{};  ///< what may be shown
  Verdict prompt{};    ///< on the prompt; blocked: nothing was generated, and the writer's session is as it was
  Verdict answer{};    ///< on the answer, as far as it came
};

/// Generates with one session while a guard, of the same model or another, looks at the prompt first and at the answer
/// every `interval` tokens and in the end. Text is withheld from the first blocked look on: what `text` holds was
/// looked at.
/// @throws UsageError for an interval below 1; as generate() and Guard::perceive.
[[nodiscard]] SKALD_API GuardedText generate_guarded(Session& writer, std::string_view prompt, const Guard& guard,
                                                     const GuardPolicy& policy, const GenerateOptions& options = {},
                                                     std::int64_t interval = 32);

}  // namespace skald::inline v0
