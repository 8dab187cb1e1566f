#include <skald/generate/eval.hpp>

#include <algorithm>
#include <chrono>

#include <skald/core/spec_string.hpp>
#include <skald/decoder/decoder.hpp>
#include <skald/generate/score.hpp>
#include <skald/generate/story_grammar.hpp>
#include <skald/state/eviction.hpp>

namespace skald::inline v0 {

namespace {

constexpr std::string_view where = "generate.eval";

std::int64_t ssize(const std::vector<TokenId>& tokens) { return static_cast<std::int64_t>(tokens.size()); }

/// Draws items of one task after another, each task from its own stream: leaving one out does not change the others.
class ItemMaker {
 public:
  ItemMaker(const Tokenizer& tokenizer, const EvalOptions& options, std::uint64_t task)
      : tokenizer_(&tokenizer), options_(&options), dice_(options.seed * 16 + task) {}

  EvalItem perplexity() {
    StoryWorld world(dice_);
    auto tokens = tokenizer_->encode(story::joined(sentences(world, options_->length + longest_sentence)));
    tokens.resize(static_cast<std::size_t>(std::min(ssize(tokens), options_->length)));
    const auto size = ssize(tokens);
    return {"perplexity", std::move(tokens), {{size / 2, size}}};
  }

  EvalItem questions(std::size_t index) {
    const auto& kind = options_->kinds[index % options_->kinds.size()];
    for (int i = 0; i < most_tries; ++i) {  // until a story has something of that kind
      StoryWorld world(dice_);
      const auto told = sentences(world, options_->length - questions_room);
      const auto asked = world.questions();
      std::vector<const StoryQuestion*> fitting;
      for (const auto& question : asked)
        if (question.kind == kind) fitting.push_back(&question);
      if (fitting.empty()) continue;
      const auto& chosen = *fitting[static_cast<std::size_t>(dice_.between(0, static_cast<int>(fitting.size()) - 1))];
      EvalItem item{"questions/" + kind, {}, {}};
      std::string text = story::joined(told) + " " + world.ending() + "\n";
      ask(item, text, chosen);
      return item;
    }
    give_up();
  }

  EvalItem passkey() {
    StoryWorld world(dice_);
    auto told = sentences(world, options_->length - questions_room - longest_sentence);
    auto stranger = dice_.pick(story::names());
    while (knows(world, stranger)) stranger = dice_.pick(story::names());
    std::string digits = std::to_string(dice_.between(0, 9));
    for (int i = 0; i < 3; ++i) digits += " " + std::to_string(dice_.between(0, 9));
    const auto at = dice_.between(1, static_cast<int>(told.size()));
    told.insert(told.begin() + at, "The secret number of " + stranger + " is " + digits + ".");
    EvalItem item{"passkey", {}, {}};
    std::string text = story::joined(told) + " " + world.ending() + "\n";
    ask(item, text, {"What is the secret number of " + stranger + "?", "It is " + digits + ".", "number"});
    return item;
  }

  EvalItem copy() {
    auto words = story::colors();
    for (const auto& list : {story::things(), story::animals()}) words.insert(words.end(), list.begin(), list.end());
    EvalItem item{"copy", {}, {}};
    std::string text;
    while (item.answers.empty() || ssize(item.tokens) + longest_sentence < options_->length) {
      const auto said = story::joined(dice_.sample(words, dice_.between(8, 13)));
      text += "<|im_start|>user\nRepeat after me: " + said + "<|im_end|>\n<|im_start|>assistant\n";
      answer(item, text, said);
      text += "<|im_end|>\n";
    }
    return item;
  }

  EvalItem facts() {
    for (int tries = 0; tries < most_tries; ++tries) {
      StoryWorld world(dice_);
      const auto told = sentences(world, options_->length - questions_room * options_->facts);
      std::vector<StoryQuestion> asked;
      for (const auto& question : world.questions())
        if (std::find(options_->kinds.begin(), options_->kinds.end(), question.kind) != options_->kinds.end())
          asked.push_back(question);
      if (static_cast<std::int64_t>(asked.size()) < options_->facts) continue;
      EvalItem item{"facts", {}, {}};
      std::string text = story::joined(told) + " " + world.ending() + "\n";
      for (std::int64_t i = 0; i < options_->facts; ++i) {
        const auto last = static_cast<int>(asked.size()) - 1;
        std::swap(asked[static_cast<std::size_t>(i)],
                  asked[static_cast<std::size_t>(dice_.between(static_cast<int>(i), last))]);
        ask(item, text, asked[static_cast<std::size_t>(i)]);
      }
      return item;
    }
    give_up();
  }

 private:
  static constexpr std::int64_t longest_sentence = 40;  // tokens, about; what is longer makes the item longer
  static constexpr std::int64_t questions_room = 28;
  static constexpr int most_tries = 2000;

  [[noreturn]] static void give_up() {
    throw UsageError(where, "stories of this length do not have so many facts of these kinds; ask for longer ones");
  }

  /// A story as sentences, of about so many tokens.
  story::Words sentences(StoryWorld& world, std::int64_t tokens) {
    story::Words told{world.intro()};
    auto count = ssize(tokenizer_->encode(told.back()));
    while (count + longest_sentence / 2 <= tokens) {
      told.push_back(world.event());
      count += ssize(tokenizer_->encode(" " + told.back(), {.add_special = false}));
    }
    return told;
  }
  static bool knows(const StoryWorld& world, const std::string& name) {
    return std::any_of(world.persons().begin(), world.persons().end(),
                       [&](const StoryWorld::Person& person) { return person.name == name; });
  }
  static std::int64_t common(const std::vector<TokenId>& a, const std::vector<TokenId>& b) {
    std::int64_t count = 0;
    while (count < ssize(a) && count < ssize(b) &&
           a[static_cast<std::size_t>(count)] == b[static_cast<std::size_t>(count)])
      ++count;
    return count;
  }
  void ask(EvalItem& item, std::string& text, const StoryQuestion& question) {
    text += "\nQuestion: " + question.question + "\nAnswer:";
    answer(item, text, " " + question.answer);
  }
  /// Adds an answer to a text. Its tokens are those that the text without it has not: right for any tokenizer.
  void answer(EvalItem& item, std::string& text, const std::string& said) {
    const auto before = tokenizer_->encode(text, {.parse_special = true});
    text += said;
    item.tokens = tokenizer_->encode(text, {.parse_special = true});
    item.answers.push_back({common(before, item.tokens), ssize(item.tokens)});
  }

  const Tokenizer* tokenizer_;
  const EvalOptions* options_;
  story::Dice dice_;
};

void check(const EvalOptions& options) {
  static constexpr std::string_view all_kinds[] = {"where", "who_moved", "number", "likes", "feels", "who_is"};
  const auto refuse = [](const std::string& what) { throw UsageError(where, what); };
  if (options.length < 96 || options.length > (1 << 20))
    refuse("length is " + std::to_string(options.length) + " tokens, allowed is 96 to 1048576");
  if (options.items < 1) refuse("items is " + std::to_string(options.items) + ", 1 or more is allowed");
  if (options.facts < 1 || options.facts > 6)
    refuse("facts is " + std::to_string(options.facts) + ", allowed is 1 to 6");
  if (options.kinds.empty()) refuse("no kind of question is given");
  for (const auto& kind : options.kinds)
    if (std::find(std::begin(all_kinds), std::end(all_kinds), kind) == std::end(all_kinds))
      refuse("no kind of question is called '" + printable(kind) +
             "'; there are: where, who_moved, number, likes, feels, who_is");
}

/// A result by its task; made if it is not there.
EvalResult& result_of(std::vector<EvalResult>& results, std::string_view task) {
  for (auto& result : results)
    if (result.task == task) return result;
  results.emplace_back();
  results.back().task = task;
  return results.back();
}

void add(EvalResult& sum, const EvalResult& one) {
  sum.items += one.items;
  sum.answers += one.answers;
  sum.right_answers += one.right_answers;
  sum.tokens += one.tokens;
  sum.right_tokens += one.right_tokens;
  sum.nll += one.nll;
  sum.nll_squares += one.nll_squares;
  sum.kv_bytes += one.kv_bytes;
  sum.computed += one.computed;
  sum.seconds += one.seconds;
}

void check(const EvalItem& item) {
  std::int64_t last = 1;
  for (const auto& answer : item.answers) {
    if (answer.begin < last || answer.end <= answer.begin || answer.end > ssize(item.tokens))
      throw UsageError(where, "an answer of task '" + item.task + "' is tokens " + std::to_string(answer.begin) +
                                  " to " + std::to_string(answer.end) + "; they must ascend within 1 to " +
                                  std::to_string(item.tokens.size()));
    last = answer.end;
  }
  if (item.answers.empty()) throw UsageError(where, "an item of task '" + item.task + "' has no answer");
}

/// Predicts tokens [begin, end); the session holds those before begin - 1. @return whether all were the most probable
/// ones.
bool predict(Session& session, const EvalItem& item, std::int64_t begin, std::int64_t end, const std::stop_token& stop,
             EvalResult& result) {
  constexpr std::int64_t rows = 256;  // of logits at once: memory stays small with large vocabularies
  bool all = true;
  for (std::int64_t at = begin; at < end; at += rows) {
    const auto count = std::min(rows, end - at);
    const auto given =
        std::span(item.tokens).subspan(static_cast<std::size_t>(at - 1), static_cast<std::size_t>(count));
    const auto logits = session.forward(given, LogitsWanted::all, stop);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto row = logits.row(i);
      const auto token = item.tokens[static_cast<std::size_t>(at + i)];
      const auto best = static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
      const double nll = -log_probability(row, token);
      all = all && best == token;
      result.right_tokens += best == token ? 1 : 0;
      result.nll += nll;
      result.nll_squares += nll * nll;
    }
  }
  result.tokens += end - begin;
  return all;
}

EvalResult run(Session& session, const EvalItem& item, const std::stop_token& stop) {
  EvalResult result;
  result.task = item.task;
  result.items = 1;
  const auto start = std::chrono::steady_clock::now();
  session.clear();
  for (const auto& answer : item.answers) {
    const auto held = session.length();
    if (answer.begin - 1 > held)
      (void)session.forward(
          std::span(item.tokens)
              .subspan(static_cast<std::size_t>(held), static_cast<std::size_t>(answer.begin - 1 - held)),
          LogitsWanted::none, stop);
    ++result.answers;
    result.right_answers += predict(session, item, answer.begin, answer.end, stop, result) ? 1 : 0;
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.computed = session.length();
  result.kv_bytes = static_cast<double>(session.bytes());
  return result;
}

void replace_all(std::string& text, std::string_view what, const std::string& by) {
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
}

}  // namespace

std::vector<EvalItem> make_eval_items(const Tokenizer& tokenizer, const EvalOptions& options) {
  check(options);
  static constexpr std::string_view names[] = {"perplexity", "questions", "passkey", "copy", "facts"};
  std::vector<EvalItem> items;
  for (const auto& task : options.tasks) {
    const auto found = std::find(std::begin(names), std::end(names), task);
    if (found == std::end(names))
      throw UsageError(
          where, "no task is called '" + printable(task) + "'; there are: perplexity, questions, passkey, copy, facts");
    const auto number = static_cast<std::uint64_t>(found - std::begin(names));
    ItemMaker maker(tokenizer, options, number);
    for (std::int64_t i = 0; i < options.items; ++i) switch (number) {
        case 0: items.push_back(maker.perplexity()); break;
        case 1: items.push_back(maker.questions(static_cast<std::size_t>(i))); break;
        case 2: items.push_back(maker.passkey()); break;
        case 3: items.push_back(maker.copy()); break;
        default: items.push_back(maker.facts()); break;
      }
  }
  return items;
}

std::vector<EvalItem> eval_items_of_text(const Tokenizer& tokenizer, std::string_view text, std::int64_t length,
                                         std::int64_t most) {
  if (length < 4) throw UsageError(where, "length is " + std::to_string(length) + " tokens, 4 or more are allowed");
  const auto tokens = tokenizer.encode(text);
  if (ssize(tokens) < length)
    throw UsageError(
        where, "the text has " + std::to_string(tokens.size()) + " tokens, one piece has " + std::to_string(length));
  std::vector<EvalItem> items;
  for (std::int64_t begin = 0; begin + length <= ssize(tokens); begin += length) {
    if (most >= 0 && static_cast<std::int64_t>(items.size()) == most) break;
    EvalItem item{"text", {tokens.begin() + begin, tokens.begin() + begin + length}, {{length / 2 + 1, length}}};
    if (tokenizer.adds_bos() && tokenizer.bos() >= 0) item.tokens[0] = tokenizer.bos();
    items.push_back(std::move(item));
  }
  return items;
}

std::vector<EvalResult> evaluate(Session& session, std::span<const EvalItem> items, std::stop_token stop,
                                 const ProgressCallback& progress) {
  for (const auto& item : items) check(item);
  std::vector<EvalResult> results;
  for (std::size_t i = 0; i < items.size(); ++i) {
    throw_if_stopped(stop, where);
    const auto one = run(session, items[i], stop);
    const auto slash = one.task.find('/');
    if (slash != std::string::npos) add(result_of(results, std::string_view(one.task).substr(0, slash)), one);
    add(result_of(results, one.task), one);
    if (progress) progress({"eval", i + 1, items.size()});
  }
  session.clear();
  return results;
}

std::string eviction_with_budget(std::string_view spec, std::int64_t tokens, std::int64_t whole,
                                 std::int32_t page_tokens) {
  if (tokens < 1 || whole < 1 || page_tokens < 1) throw UsageError(where, "a budget is at least one token");
  const auto pages = (tokens + page_tokens - 1) / page_tokens;
  const auto percent = std::min<std::int64_t>(100, (100 * tokens + whole / 2) / whole);
  std::string result(spec);
  replace_all(result, "{tokens}", std::to_string(pages * page_tokens));
  replace_all(result, "{pages}", std::to_string(pages));
  replace_all(result, "{percent}", std::to_string(percent));
  if (result != spec) return result;
  const std::string name = SpecString(result).name();
  if (name == "none") return result;
  const char separator = result.find(':') == std::string::npos ? ':' : ',';
  const auto has = [&](const std::string& key) {
    return result.find(":" + key + "=") != std::string::npos || result.find("," + key + "=") != std::string::npos;
  };
  const auto with = [&](const std::string& key, std::int64_t value) {
    return result + separator + key + "=" + std::to_string(value);
  };
  // Few policies call their budget otherwise.
  const std::string key = name == "recent_pages"                    ? "recent"
                          : name == "rpc"                           ? "percent"
                          : name == "window" || name == "streaming" ? "window"
                                                                    : "budget";
  if (has(key)) return result;
  if (key == "percent") return with(key, percent);
  if (key == "recent") {
    const auto sinks = SpecString(result).integer("sinks", RecentPages{}.sinks, 0, pages);
    return with(key, std::max<std::int64_t>(1, pages - sinks - 1));  // one more is being filled
  }
  const auto whole_budget = with(key, pages * page_tokens);
  const auto over = AnyEviction::from_spec(whole_budget).traits().budget - pages * page_tokens;
  if (over <= 0) return whole_budget;  // what the policy keeps besides, as sinks
  return with(key, std::max<std::int64_t>(1, pages * page_tokens - over));
}

}  // namespace skald::inline v0
