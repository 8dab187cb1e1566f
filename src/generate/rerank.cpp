#include <skald/generate/rerank.hpp>

#include <algorithm>
#include <cmath>
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

namespace {

std::string replaced(std::string text, std::string_view what, std::string_view by) {
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
  return text;
}

/// The template with query and document in it. Control tokens that those spell stay text.
std::vector<TokenId> from_template(const Tokenizer& tokenizer, const std::string& form, std::string_view query,
                                   std::string_view document) {
  constexpr EncodeOptions trusted{.add_special = false, .parse_special = true};
  constexpr EncodeOptions plain{.add_special = false, .parse_special = false};
  const auto spells_control = [&](std::string_view text) {
    return tokenizer.encode(text, trusted) != tokenizer.encode(text, plain);
  };
  if (!spells_control(query) && !spells_control(document)) {
    // The document last, so that a placeholder in it stays.
    const auto at = form.find("{document}");
    const std::string before = replaced(form.substr(0, at), "{query}", query);
    if (at == std::string::npos) return tokenizer.encode(before, trusted);
    const std::string after = replaced(form.substr(at + std::string_view("{document}").size()), "{query}", query);
    return tokenizer.encode(before + std::string(document) + after, trusted);
  }
  std::vector<TokenId> tokens;
  const auto add = [&](std::string_view text, const EncodeOptions& options) {
    const auto more = tokenizer.encode(text, options);
    tokens.insert(tokens.end(), more.begin(), more.end());
  };
  for (std::size_t begin = 0; begin < form.size();) {
    const auto is_query = form.find("{query}", begin);
    const auto is_document = form.find("{document}", begin);
    const auto end = std::min({is_query, is_document, form.size()});
    add(std::string_view(form).substr(begin, end - begin), trusted);
    if (end == form.size()) break;
    add(end == is_query ? query : document, plain);
    begin = end + (end == is_query ? std::string_view("{query}") : std::string_view("{document}")).size();
  }
  return tokens;
}

}  // namespace

TextPair rerank_pair(const Model& model, std::string_view query, std::string_view document) {
  const Tokenizer& tokenizer = model.tokenizer();
  if (const auto* form = model.metadata().find_string("tokenizer.chat_template.rerank"))
    return {from_template(tokenizer, *form, query, document), -1};
  TextPair pair{tokenizer.encode(query), -1};
  const auto second = tokenizer.encode(document);
  // What the vocabulary puts around a text: the first of it does not stand before the second text.
  const auto around = tokenizer.encode("");
  const bool begins = !around.empty() && !second.empty() && second.front() == around.front();
  const bool ends = around.size() > (begins ? 1U : 0U);
  const bool word_piece = tokenizer.model() == "bert" || tokenizer.model() == "WordPiece";
  // RoBERTa and its kin were trained with two separators between texts, BERT with one.
  if (ends && !word_piece) pair.tokens.push_back(around.back());
  pair.second = static_cast<std::int64_t>(pair.tokens.size());
  pair.tokens.insert(pair.tokens.end(), second.begin() + (begins ? 1 : 0), second.end());
  return pair;
}

float rerank_score(const Classifier& classifier, std::span<const float> logits, std::optional<std::size_t> label) {
  const auto count = static_cast<std::size_t>(classifier.count());
  if (logits.size() != count)
    throw UsageError(where, std::to_string(logits.size()) + " logits are given, the classifier has " +
                                std::to_string(count));
  const auto& names = classifier.spec().labels;
  for (std::size_t i = 0; i < names.size() && !label; ++i)
    if (names[i] == "yes" || names[i] == "relevant") label = i;
  if (count == 1 && !label) label = 0;
  if (!label)
    throw UsageError(where, "the classifier has " + std::to_string(count) +
                                " labels, of which none is called 'yes' or 'relevant': tell which one means that");
  if (*label >= count)
    throw UsageError(where, "the label is " + std::to_string(*label) + ", allowed is 0 to " + std::to_string(count - 1));
  if (count == 1) return logits[0];
  const auto most = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0.0;
  for (const float each : logits) sum += std::exp(static_cast<double>(each) - most);
  return static_cast<float>(std::exp(static_cast<double>(logits[*label]) - most) / sum);
}

}  // namespace skald::inline v0
