#include <skald/generate/guard.hpp>

#include <algorithm>
#include <cmath>

#include <skald/core/error.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/text/tokenizer.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "generate.guard";

}  // namespace

double Perception::probability(std::string_view category) const noexcept {
  for (std::size_t i = 0; i < categories_.size(); ++i)
    if (categories_[i].name == category) return scores_.probabilities[i];
  return 0.0;
}

std::string Perception::explain(const GenerateOptions& options) {
  auto going_on = session_.fork();
  std::vector<TokenId> tokens{labels_[scores_.best()]};
  const auto reason = session_.model().tokenizer().encode(reason_, {.add_special = false});
  tokens.insert(tokens.end(), reason.begin(), reason.end());
  return generate(going_on, std::span<const TokenId>(tokens), options).collect();
}

GuardPolicy& GuardPolicy::block(std::string_view category, double threshold) {
  if (!(threshold >= 0.0)) throw UsageError(where, "a threshold is a probability, or more than 1 for never");
  for (auto& rule : rules_)
    if (rule.first == category) {
      rule.second = threshold;
      return *this;
    }
  rules_.emplace_back(category, threshold);
  return *this;
}

GuardPolicy& GuardPolicy::allow(std::string_view category) {
  std::erase_if(rules_, [&](const auto& rule) { return rule.first == category; });
  return *this;
}

Verdict GuardPolicy::decide(const Perception& perception) const {
  Verdict verdict{false, perception.category(), perception.confidence()};
  for (const auto& [category, threshold] : rules_) {
    const double probability = perception.probability(category);
    if (probability < threshold || (verdict.blocked && probability <= verdict.confidence)) continue;
    const auto& known = perception.categories();
    if (std::none_of(known.begin(), known.end(), [&name = category](const GuardCategory& c) { return c.name == name; }))
      continue;
    verdict = {true, category, probability};
  }
  return verdict;
}

Guard::Guard(Session session, GuardOptions options) : session_(std::move(session)), options_(std::move(options)) {
  const auto refuse = [](const std::string& message) { throw UsageError(where, message); };
  if (session_.length() != 0) refuse("the session of a guard must be empty");
  if (options_.categories.size() < 2) refuse("a guard needs at least two categories");
  const auto& tokenizer = session_.model().tokenizer();
  const EncodeOptions plain{.add_special = false, .parse_special = options_.parse_special};
  question_ = tokenizer.encode(options_.question, plain);
  for (std::size_t i = 0; i < options_.categories.size(); ++i) {
    const auto& category = options_.categories[i];
    const auto with = tokenizer.encode(options_.question + category.token, plain);
    if (with.size() != question_.size() + 1 || !std::equal(question_.begin(), question_.end(), with.begin()))
      refuse("'" + printable(category.token) + "', what the model says for category '" + printable(category.name) +
             "', is not one token after the question");
    for (std::size_t j = 0; j < i; ++j)
      if (options_.categories[j].name == category.name || labels_[j] == with.back())
        refuse("category '" + printable(category.name) + "' is not different from the others");
    labels_.push_back(with.back());
  }
  auto instructions =
      tokenizer.encode(options_.instructions, {.add_special = true, .parse_special = options_.parse_special});
  if (tokenizer.adds_eos() && !instructions.empty() && instructions.back() == tokenizer.eos()) instructions.pop_back();
  if (!instructions.empty()) (void)session_.forward(instructions, LogitsWanted::none);
}

Perception Guard::perceive(std::string_view text, std::stop_token stop) const {
  Perception result(session_.fork());
  auto tokens = session_.model().tokenizer().encode(text, {.add_special = false});
  tokens.insert(tokens.end(), question_.begin(), question_.end());
  if (tokens.empty()) throw UsageError(where, "there is no text to judge and no question");
  const auto logits = result.session_.forward(tokens, LogitsWanted::last, std::move(stop));
  result.scores_ = label_scores(logits.last(), labels_);
  result.categories_ = options_.categories;
  result.labels_ = labels_;
  result.reason_ = options_.reason;
  result.prompt_tokens_ = result.session_.length();
  return result;
}

GuardedText generate_guarded(Session& writer, std::string_view prompt, const Guard& guard, const GuardPolicy& policy,
                             const GenerateOptions& options, std::int64_t interval) {
  if (interval < 1) throw UsageError(where, "interval is " + std::to_string(interval) + ", 1 or more is allowed");
  GuardedText result;
  result.prompt = policy.decide(guard.perceive(prompt, options.stop_token));
  if (result.prompt.blocked) return result;
  auto generation = generate(writer, prompt, options);
  const auto passes = [&] {
    if (generation.text().size() == result.text.size()) return true;
    result.answer = policy.decide(guard.perceive(generation.text(), options.stop_token));
    if (!result.answer.blocked) result.text = generation.text();
    return !result.answer.blocked;
  };
  std::int64_t unseen = 0;
  for ([[maybe_unused]] const auto& piece : generation) {
    if (++unseen < interval) continue;
    unseen = 0;
    if (!passes()) return result;
  }
  (void)passes();
  return result;
}

}  // namespace skald::inline v0
