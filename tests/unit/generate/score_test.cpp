// Scoring, reranking, guarding: probabilities without generating.
#include <cmath>
#include <limits>
#include <numeric>

#include <skald/generate/guard.hpp>
#include <skald/generate/rerank.hpp>
#include <skald/generate/score.hpp>

#include "support/shared_data.hpp"
#include "support/tiny_model.hpp"

#include "support/catch.hpp"

namespace {

using Tokens = std::vector<skald::TokenId>;

const skald::Model& bundled() {
  static const auto model = skald::Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  return model;
}

Tokens encoded(const std::string& text, bool special = false) {
  return bundled().tokenizer().encode(text, {.add_special = special});
}

std::vector<float> last_logits(const skald::Decoder<>& decoder, const Tokens& tokens) {
  auto session = decoder.new_session();
  const auto row = session.forward(tokens).last();
  return {row.begin(), row.end()};
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

TEST_CASE(
    "generate.score: a continuation's score is the sum of its tokens' log-probabilities, the prefix is computed once",
    "[generate]") {
  const skald::Decoder decoder(bundled());
  const auto prefix = encoded("Once upon a time there was", true);
  std::vector<Tokens> continuations;
  for (const char* text :
       {" a small fox", " an old", " purple purple purple lamp.", " a", " fox", " a quiet girl named Nora."})
    continuations.push_back(encoded(text));
  const auto before = decoder.counters();
  const auto scores = skald::score_continuations(decoder, prefix, continuations);
  const auto after = decoder.counters();
  std::uint64_t tokens = prefix.size() - 1;
  for (const auto& continuation : continuations) tokens += continuation.size();  // the last one not, the prefix's last
  CHECK(after.tokens - before.tokens == tokens);
  CHECK(after.kv_pages_used == before.kv_pages_used);
  REQUIRE(scores.size() == continuations.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    auto session = decoder.new_session();
    auto row = session.forward(prefix).last();
    double sum = 0;
    for (const auto token : continuations[i]) {
      double total = 0;
      for (const float x : row) total += std::exp(static_cast<double>(x));
      sum += static_cast<double>(row[static_cast<std::size_t>(token)]) - std::log(total);
      row = session.forward({&token, 1}).last();
    }
    CHECK(std::abs(scores[i].sum - sum) < 1e-9 * std::abs(sum) + 1e-9);
    CHECK(scores[i].tokens == static_cast<std::int64_t>(continuations[i].size()));
    CHECK(scores[i].mean() == scores[i].sum / static_cast<double>(scores[i].tokens));
  }
  CHECK(scores[0].sum > scores[2].sum);
}

TEST_CASE("generate.score: whole texts count from their second token, more of them than go together", "[generate]") {
  const skald::Decoder decoder(bundled(), {.context = 128, .parallel = 2});
  std::vector<Tokens> texts;
  for (const char* text : {"Nora felt sad.", "It was raining.", "sad Nora felt.", "The sky was clear.", "They played."})
    texts.push_back(encoded(text, true));
  const auto together = skald::score_continuations(decoder, {}, texts);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::vector<Tokens> rest{Tokens(texts[i].begin() + 1, texts[i].end())};
    const auto alone = skald::score_continuations(decoder, std::span(texts[i]).first(1), rest);
    CHECK(together[i].sum == alone[0].sum);
    CHECK(together[i].tokens == static_cast<std::int64_t>(texts[i].size()) - 1);
  }
  CHECK(together[0].mean() > together[2].mean());
  CHECK_THROWS_AS(skald::score_continuations(decoder, {}, std::vector<Tokens>{{5}}), skald::UsageError);
  CHECK_THROWS_AS(skald::score_continuations(decoder, texts[0], std::vector<Tokens>{{}}), skald::UsageError);
}

TEST_CASE("generate.score: log-probabilities are refused where there are none", "[generate]") {
  const std::vector<float> logits{1.0F, 2.0F, 3.0F};
  CHECK(std::abs(skald::log_probability(logits, 2) - (3 - std::log(std::exp(1.0) + std::exp(2.0) + std::exp(3.0)))) <
        1e-12);
  CHECK_THROWS_AS(skald::log_probability(logits, 3), skald::UsageError);
  CHECK_THROWS_AS(skald::log_probability(logits, -1), skald::UsageError);
  CHECK_THROWS_AS(skald::label_scores(logits, {}), skald::UsageError);
  const std::vector<float> bad{1.0F, std::numeric_limits<float>::quiet_NaN()};
  CHECK_THROWS_AS(skald::log_probability(bad, 0), skald::NumericError);
}

// SLM relevance scoring (LinkedIn job search).
TEST_CASE("generate.relevance: label probabilities come with no decoding, no memory kept and the query computed once",
          "[generate]") {
  // A pruned network: fewer layers and narrower feed-forward networks.
  for (const auto& [layers, ffn] : {std::pair{2, 512}, std::pair{1, 256}}) {
    skald_test::TinyShape shape;
    shape.layers = layers;
    shape.ffn = ffn;
    const skald::Decoder decoder(skald_test::tiny_model(shape), {.parallel = 8});
    const auto query = skald_test::some_tokens(90, shape.vocabulary, 1);
    std::vector<Tokens> items;
    for (std::uint64_t i = 0; i < 20; ++i)
      items.push_back(skald_test::some_tokens(5 + static_cast<std::int64_t>(i % 7), shape.vocabulary, 100 + i));
    const Tokens labels{17, 40, 3};
    const auto before = decoder.counters();
    const auto scores = skald::score_labels(decoder, query, items, labels);
    const auto after = decoder.counters();
    std::uint64_t tokens = query.size();
    for (const auto& item : items) tokens += item.size();
    CHECK(after.tokens - before.tokens == tokens);                  // the query once, no token decoded
    CHECK(after.logits_rows - before.logits_rows == items.size());  // one row for each
    CHECK(after.forward_passes - before.forward_passes == 1 + 3);   // the query, and eight items together
    CHECK(after.kv_pages_used == 0);                                // nothing kept
    REQUIRE(scores.size() == items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      const auto row = last_logits(decoder, joined(query, items[i]));
      double sum = 0;
      for (std::size_t l = 0; l < labels.size(); ++l) {
        CHECK(scores[i].logits[l] == row[static_cast<std::size_t>(labels[l])]);  // the same bits
        sum += std::exp(static_cast<double>(scores[i].logits[l]));
      }
      for (std::size_t l = 0; l < labels.size(); ++l)
        CHECK(std::abs(scores[i].probabilities[l] - std::exp(static_cast<double>(scores[i].logits[l])) / sum) < 1e-9);
    }
    CHECK_THROWS_AS(skald::score_labels(decoder, query, items, Tokens{-1}), skald::UsageError);
  }
}

// FIRST (single-token listwise reranking).
TEST_CASE("generate.rerank: one prefill per window orders candidates by the logits of their identifiers",
          "[generate]") {
  const skald::Decoder decoder(bundled());
  skald::ListwiseOptions options;
  options.identifiers = {" 1", " 2", " 3", " 4"};
  options.before_id = "\nFact";
  options.after_id = ": ";
  options.after_item = "";
  options.question = "\nAnswer:";
  const auto prefix = encoded("Question: Who is Nora?", true);
  const std::vector<std::string> candidates{"The sky was clear.", "Nora was a small fox.", "Hugo felt sad."};
  auto session = decoder.new_session();
  const auto before = decoder.counters();
  const auto result = skald::rerank(session, prefix, candidates, options);
  const auto after = decoder.counters();
  REQUIRE(result.windows.size() == 1);
  CHECK(after.forward_passes - before.forward_passes == 2);  // prefix and list
  CHECK(after.logits_rows - before.logits_rows == 1);        // no decoding step
  // The same by hand.
  const auto list =
      encoded("\nFact 1: The sky was clear.\nFact 2: Nora was a small fox.\nFact 3: Hugo felt sad.\nAnswer:");
  const auto row = last_logits(decoder, joined(prefix, list));
  const auto& scores = result.windows[0].scores;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto with = encoded("\nAnswer: " + std::to_string(i + 1));
    CHECK(scores.logits[i] == row[static_cast<std::size_t>(with.back())]);
  }
  CHECK(std::abs(std::accumulate(scores.probabilities.begin(), scores.probabilities.end(), 0.0) - 1.0) < 1e-12);
  for (std::size_t i = 0; i + 1 < 3; ++i) CHECK(scores.logits[result.order[i]] >= scores.logits[result.order[i + 1]]);
}

TEST_CASE("generate.rerank: windows that slide over a long list compute the shared prefix once", "[generate]") {
  const skald::Decoder decoder(bundled());
  skald::ListwiseOptions options;
  options.identifiers = {" 1", " 2", " 3", " 4"};
  options.step = 2;
  options.question = "\nAnswer:";
  const auto prefix = encoded(std::string("Question: Which of these is best? ") + std::string(300, 'a'), true);
  std::vector<std::string> candidates;
  for (int i = 0; i < 9; ++i)
    candidates.push_back("Number " + std::to_string(i * 7919 % 101) + " was " +
                         std::string(1, static_cast<char>('a' + i)) + ".");
  auto session = decoder.new_session();
  const auto before = decoder.counters().tokens;
  const auto result = skald::rerank(session, prefix, candidates, options);
  const auto computed = decoder.counters().tokens - before;
  CHECK(result.windows.size() == 4);  // 5-8, 3-6, 1-4, 0-3
  std::uint64_t lists = 0;
  for (const auto& window : result.windows) {
    CHECK(window.candidates.size() == 4);
    CHECK(window.scores.logits.size() == 4);
    std::string text;
    for (std::size_t i = 0; i < 4; ++i)
      text += "[" + options.identifiers[i] + "] " + candidates[window.candidates[i]] + "\n";
    lists += encoded(text + options.question).size();
  }
  CHECK(computed == prefix.size() + lists);
  // The last window is the head of the list; all candidates are there.
  const auto& last = result.windows.back();
  for (std::size_t i = 0; i < 3; ++i) {
    const auto place = [&](std::size_t candidate) {
      return static_cast<std::size_t>(std::find(last.candidates.begin(), last.candidates.end(), candidate) -
                                      last.candidates.begin());
    };
    CHECK(last.scores.logits[place(result.order[i])] >= last.scores.logits[place(result.order[i + 1])]);
  }
  auto sorted = result.order;
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; i < sorted.size(); ++i) CHECK(sorted[i] == i);
  // Another list after the same prefix.
  CHECK(session.length() == static_cast<std::int64_t>(prefix.size()));
  const auto again = decoder.counters().tokens;
  CHECK(skald::rerank(session, prefix, candidates, options).order == result.order);
  CHECK(decoder.counters().tokens - again == lists);
  CHECK(skald::rerank(session, prefix, {}, options).order.empty());
}

TEST_CASE("generate.rerank: identifiers that are no single tokens, windows out of range and other sessions are refused",
          "[generate]") {
  const skald::Decoder decoder(bundled());
  const auto prefix = encoded("Question: Who is Nora?", true);
  const std::vector<std::string> candidates{"a", "b"};
  const auto refused = [&](auto change) {
    skald::ListwiseOptions options;
    options.identifiers = {" 1", " 2"};
    options.question = "\nAnswer:";
    change(options);
    auto session = decoder.new_session();
    CHECK_THROWS_AS(skald::rerank(session, prefix, candidates, options), skald::UsageError);
  };
  refused([](auto& o) { o.identifiers = {" Unbelievable", " 2"}; });
  refused([](auto& o) { o.identifiers = {" 1", " 1"}; });
  refused([](auto& o) { o.window = 3; });
  refused([](auto& o) { o.window = -1; });
  refused([](auto& o) { o.step = 3; });
  auto other = decoder.new_session();
  (void)other.forward(encoded("Something else."));
  skald::ListwiseOptions options;
  options.identifiers = {" 1", " 2"};
  options.question = "\nAnswer:";
  CHECK_THROWS_AS(skald::rerank(other, prefix, candidates, options), skald::UsageError);
}

namespace {

skald::GuardOptions guard_options() {
  skald::GuardOptions options;
  options.instructions = "Nora was a small fox. ";
  options.question = "\nQuestion: How does Nora feel?\nAnswer: Nora feels";
  options.categories = {{"joy", " happy"}, {"sorrow", " sad"}, {"anger", " angry"}};
  options.reason = ".";
  return options;
}

}  // namespace

// YuFeng-XGuard (tiered guardrail).
TEST_CASE("generate.guard: a verdict needs one prefill and the restricted probabilities of the first token",
          "[generate]") {
  const skald::Decoder decoder(bundled());
  const skald::Guard guard(decoder.new_session(), guard_options());
  const auto before = decoder.counters();
  const auto perceived = guard.perceive("That day Nora was very sad.");
  const auto after = decoder.counters();
  CHECK(after.forward_passes - before.forward_passes == 1);
  CHECK(after.logits_rows - before.logits_rows == 1);
  const auto text = encoded("That day Nora was very sad.");
  const auto question = encoded(guard_options().question);
  CHECK(after.tokens - before.tokens == text.size() + question.size());  // instructions were computed before
  const auto row = last_logits(decoder, joined(joined(encoded(guard_options().instructions, true), text), question));
  double sum = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto label = encoded(guard_options().question + guard_options().categories[i].token).back();
    CHECK(perceived.scores().logits[i] == row[static_cast<std::size_t>(label)]);
    sum += perceived.probabilities()[i];
  }
  CHECK(std::abs(sum - 1.0) < 1e-12);
  CHECK(perceived.category() == "sorrow");
  CHECK(perceived.confidence() == perceived.probability("sorrow"));
  CHECK(perceived.probability("envy") == 0.0);
}

TEST_CASE("generate.guard: another policy turns the verdict without a call of the model", "[generate]") {
  const skald::Decoder decoder(bundled());
  const skald::Guard guard(decoder.new_session(), guard_options());
  const auto perceived = guard.perceive("That day Nora was very sad.");
  const auto before = decoder.counters().forward_passes;
  skald::GuardPolicy policy;
  CHECK_FALSE(policy.decide(perceived).blocked);
  CHECK(policy.decide(perceived).category == "sorrow");
  const double sorrow = perceived.probability("sorrow");
  CHECK(policy.block("sorrow", sorrow).decide(perceived).blocked);
  CHECK_FALSE(policy.block("sorrow", std::nextafter(sorrow, 2.0)).decide(perceived).blocked);
  policy.block("joy", 0.0).block("envy", 0.0);
  CHECK(policy.decide(perceived).category == "joy");
  policy.block("sorrow", 0.0);
  CHECK(policy.decide(perceived).category == "sorrow");
  policy.allow("sorrow").allow("joy");
  CHECK_FALSE(policy.decide(perceived).blocked);
  CHECK(decoder.counters().forward_passes == before);
  CHECK_THROWS_AS(policy.block("joy", -1.0), skald::UsageError);
  CHECK_THROWS_AS(policy.block("joy", std::nan("")), skald::UsageError);
}

TEST_CASE("generate.guard: an explanation goes on from the same memory", "[generate]") {
  const skald::Decoder decoder(bundled());
  const skald::Guard guard(decoder.new_session(), guard_options());
  auto perceived = guard.perceive("That day Nora was very sad.");
  skald::GenerateOptions options{.max_tokens = 12, .sampler = {.temperature = 0.0F}, .ignore_eos = true};
  const auto before = decoder.counters().tokens;
  const auto why = perceived.explain(options);
  CHECK(decoder.counters().tokens - before == 1 + encoded(".").size() + 11);  // category, reason, what was generated
  // As if the whole had been the prompt.
  auto session = decoder.new_session();
  auto whole = joined(encoded(guard_options().instructions, true), encoded("That day Nora was very sad."));
  whole = joined(joined(whole, encoded(guard_options().question)), encoded(" sad"));
  whole = joined(whole, encoded("."));
  CHECK(why == skald::generate(session, std::span<const skald::TokenId>(whole), options).collect());
  CHECK(perceived.explain(options) == why);
  options.max_tokens = 3;
  CHECK(why.starts_with(perceived.explain(options)));
}

TEST_CASE("generate.guard: gates another generation in the same process", "[generate]") {
  const skald::Decoder decoder(bundled(), {.parallel = 6});
  const skald::Guard guard(decoder.new_session(), guard_options());
  const skald::Decoder other(bundled());
  const skald::GenerateOptions options{.max_tokens = 20, .sampler = {.temperature = 0.0F}, .ignore_eos = true};
  const auto prompt = "That day Nora was very sad.";
  auto plain_session = other.new_session();
  const auto plain = skald::generate(plain_session, prompt, options).collect();

  auto writer = other.new_session();
  skald::GuardPolicy policy;
  const auto open = skald::generate_guarded(writer, prompt, guard, policy, options, 8);
  CHECK_FALSE(open.prompt.blocked);
  CHECK(open.text == plain);

  // The prompt is refused: the writer does nothing.
  auto idle = other.new_session();
  const auto tokens = other.counters().tokens;
  const auto refused =
      skald::generate_guarded(idle, prompt, guard, skald::GuardPolicy().block("sorrow", 0.5), options, 8);
  CHECK(refused.prompt.blocked);
  CHECK(refused.text.empty());
  CHECK(idle.length() == 0);
  CHECK(other.counters().tokens == tokens);

  // The answer is refused: found by a threshold between the prompt's probability and the answer's.
  const auto at_prompt = guard.perceive(prompt);
  for (const auto& category : guard_options().categories) {
    auto session = other.new_session();
    const double threshold = std::nextafter(at_prompt.probability(category.name), 2.0);
    const auto watched = skald::generate_guarded(session, prompt, guard,
                                                 skald::GuardPolicy().block(category.name, threshold), options, 1);
    CHECK_FALSE(watched.prompt.blocked);
    CHECK(plain.starts_with(watched.text));
    CHECK(watched.answer.blocked == (watched.text.size() < plain.size()));
  }
  CHECK_THROWS_AS(skald::generate_guarded(idle, prompt, guard, policy, options, 0), skald::UsageError);
}

TEST_CASE("generate.guard: categories that cannot be told apart are refused", "[generate]") {
  const skald::Decoder decoder(bundled());
  const auto refused = [&](auto change) {
    auto options = guard_options();
    change(options);
    CHECK_THROWS_AS(skald::Guard(decoder.new_session(), options), skald::UsageError);
  };
  refused([](auto& o) { o.categories.resize(1); });
  refused([](auto& o) { o.categories[1].name = "joy"; });
  refused([](auto& o) { o.categories[1].token = " happy"; });
  refused([](auto& o) { o.categories[1].token = " unbelievably sad"; });
}
