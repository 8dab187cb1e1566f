#include <skald/generate/rerank.hpp>

#include <algorithm>
#include <numeric>

#include <skald/core/error.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/text/tokenizer.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "generate.rerank";

/// The identifiers' tokens as they follow `before`: some vocabularies spell a word differently at the beginning of a
/// text.
std::vector<TokenId> label_tokens(const Tokenizer& tokenizer, const ListwiseOptions& options) {
  std::vector<TokenId> labels;
  const auto base = tokenizer.encode(options.question, {.add_special = false});
  for (const auto& identifier : options.identifiers) {
    const auto with = tokenizer.encode(options.question + identifier, {.add_special = false});
    if (with.size() != base.size() + 1 || !std::equal(base.begin(), base.end(), with.begin()))
      throw UsageError(where,
                       "identifier '" + printable(identifier) + "' is not one token of its own after the question");
    if (std::find(labels.begin(), labels.end(), with.back()) != labels.end())
      throw UsageError(where, "identifier '" + printable(identifier) + "' is not different from the others");
    labels.push_back(with.back());
  }
  return labels;
}

}  // namespace

ListwiseResult rerank(Session& session, std::span<const TokenId> prefix, std::span<const std::string> candidates,
                      const ListwiseOptions& options) {
  const auto& tokenizer = session.model().tokenizer();
  const auto labels = label_tokens(tokenizer, options);
  const auto most = static_cast<std::int64_t>(labels.size());
  const auto window = options.window == 0 ? most : options.window;
  if (window < 1 || window > most)
    throw UsageError(where, "window is " + std::to_string(options.window) + ", allowed is 1 to the " +
                                std::to_string(most) + " identifiers, or 0 for all of them");
  const auto step = options.step == 0 ? std::max<std::int64_t>(1, window / 2) : options.step;
  if (step < 1 || step > window)
    throw UsageError(where,
                     "step is " + std::to_string(options.step) + ", allowed is 1 to the window, or 0 for half of it");
  if (session.length() != 0 &&
      !std::equal(prefix.begin(), prefix.end(), session.tokens().begin(), session.tokens().end()))
    throw UsageError(where, "the session holds something other than the prefix");
  if (session.length() == 0 && !prefix.empty()) (void)session.forward(prefix, LogitsWanted::none, options.stop);

  ListwiseResult result;
  result.order.resize(candidates.size());
  std::iota(result.order.begin(), result.order.end(), std::size_t{0});
  const auto count = static_cast<std::int64_t>(candidates.size());
  for (auto begin = std::max<std::int64_t>(0, count - window); count > 0;
       begin = std::max<std::int64_t>(0, begin - step)) {
    const auto end = std::min(count, begin + window);
    std::string text;
    ListwiseWindow one;
    for (auto i = begin; i < end; ++i) {
      const auto candidate = result.order[static_cast<std::size_t>(i)];
      one.candidates.push_back(candidate);
      text += options.before_id + options.identifiers[static_cast<std::size_t>(i - begin)] + options.after_id +
              candidates[candidate] + options.after_item;
    }
    text += options.question;
    auto fork = session.fork();
    const auto tokens = tokenizer.encode(text, {.add_special = false});
    const auto logits = fork.forward(tokens, LogitsWanted::last, options.stop);
    one.scores = label_scores(logits.last(), std::span(labels).first(one.candidates.size()));
    std::vector<std::size_t> places(one.candidates.size());
    std::iota(places.begin(), places.end(), std::size_t{0});
    std::stable_sort(places.begin(), places.end(),
                     [&](std::size_t a, std::size_t b) { return one.scores.logits[a] > one.scores.logits[b]; });
    for (std::size_t i = 0; i < places.size(); ++i)
      result.order[static_cast<std::size_t>(begin) + i] = one.candidates[places[i]];
    result.windows.push_back(std::move(one));
    if (begin == 0) break;
  }
  return result;
}

}  // namespace skald::inline v0
