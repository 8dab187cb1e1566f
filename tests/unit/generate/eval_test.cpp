#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <skald/decoder/decoder.hpp>
#include <skald/generate/eval.hpp>
#include <skald/generate/story_grammar.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

namespace {

const skald::Model& bundled() {
  static const auto model = skald::Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  return model;
}

skald::DecoderOptions options_of(const std::string& format, const std::string& eviction) {
  skald::DecoderOptions options;
  options.context = 512;
  options.parallel = 1;
  options.kv.format = format;
  options.kv.eviction = eviction;
  options.kv.page_tokens = 16;
  return options;
}

std::vector<skald::EvalResult> results_of(const std::vector<skald::EvalItem>& items, const std::string& format,
                                          const std::string& eviction) {
  const skald::Decoder decoder(bundled(), options_of(format, eviction));
  auto session = decoder.new_session();
  return skald::evaluate(session, items);
}

const skald::EvalResult& of(const std::vector<skald::EvalResult>& results, const std::string& task) {
  const auto found = std::find_if(results.begin(), results.end(), [&](const auto& r) { return r.task == task; });
  REQUIRE(found != results.end());
  return *found;
}

bool same(const skald::EvalItem& a, const skald::EvalItem& b) {
  return a.task == b.task && a.tokens == b.tokens &&
         std::equal(a.answers.begin(), a.answers.end(), b.answers.begin(), b.answers.end(),
                    [](const auto& x, const auto& y) { return x.begin == y.begin && x.end == y.end; });
}

}  // namespace

TEST_CASE("generate.eval: the same seed draws the same items, whatever else is drawn, and another seed others",
          "[generate]") {
  const auto& tokenizer = bundled().tokenizer();
  skald::EvalOptions options;
  options.items = 3;
  const auto all = skald::make_eval_items(tokenizer, options);
  REQUIRE(all.size() == 15);
  CHECK(std::equal(all.begin(), all.end(), skald::make_eval_items(tokenizer, options).begin(), same));
  options.tasks = {"passkey"};
  const auto some = skald::make_eval_items(tokenizer, options);
  CHECK(std::equal(some.begin(), some.end(), all.begin() + 6, same));
  options.seed = 2;
  CHECK_FALSE(same(skald::make_eval_items(tokenizer, options)[0], some[0]));
}

TEST_CASE("generate.eval: items are as long as asked for, and their answers are answers", "[generate]") {
  const auto& tokenizer = bundled().tokenizer();
  for (const std::int64_t length : {96, 256, 480}) {
    skald::EvalOptions options;
    options.length = length;
    options.items = 8;
    options.facts = 2;
    for (const auto& item : skald::make_eval_items(tokenizer, options)) {
      INFO(item.task << " of " << length);
      const auto size = static_cast<std::int64_t>(item.tokens.size());
      CHECK(size <= length + 24);
      CHECK(size >= std::min(length - 60, length / 2));
      CHECK(item.answers.size() >= (item.task == "facts" ? 2U : 1U));
      const auto& last = item.answers.back();
      CHECK(last.end == size);
      const auto said = tokenizer.decode(
          std::span(item.tokens)
              .subspan(static_cast<std::size_t>(last.begin), static_cast<std::size_t>(last.end - last.begin)));
      if (item.task == "questions/feels") CHECK(said.find(" feels ") != std::string::npos);
      if (item.task == "passkey") {
        // The number is in the story, once, and again in the answer.
        const auto number = said.substr(said.find(" is ") + 4);
        const auto told = tokenizer.decode(std::span(item.tokens).first(static_cast<std::size_t>(last.begin)));
        CHECK(told.find("secret number of") != std::string::npos);
        CHECK(told.find(number) != std::string::npos);
      }
    }
  }
}

TEST_CASE("generate.eval: the row of the full cache is what a direct computation gives", "[generate]") {
  skald::EvalOptions options;
  options.items = 4;
  options.length = 128;
  const auto items = skald::make_eval_items(bundled().tokenizer(), options);
  const auto results = results_of(items, "f16", "none");
  const skald::Decoder decoder(bundled(), options_of("f16", "none"));
  std::map<std::string, skald::EvalResult> direct;
  for (const auto& item : items) {
    auto session = decoder.new_session();
    const auto logits = session.forward(item.tokens, skald::LogitsWanted::all);  // all at once
    auto& sum = direct[item.task.substr(0, item.task.find('/'))];
    for (const auto& answer : item.answers) {
      bool right = true;
      for (auto at = answer.begin; at < answer.end; ++at) {
        const auto row = logits.row(at - 1);
        const auto token = static_cast<std::size_t>(item.tokens[static_cast<std::size_t>(at)]);
        double total = 0;
        for (const float x : row) total += std::exp(static_cast<double>(x) - static_cast<double>(row[token]));
        sum.nll += std::log(total);
        right = right && *std::max_element(row.begin(), row.end()) == row[token];
        ++sum.tokens;
      }
      ++sum.answers;
      sum.right_answers += right ? 1 : 0;
    }
  }
  for (const auto& [task, sum] : direct) {
    INFO(task);
    const auto& result = of(results, task);
    CHECK(result.items == 4);
    CHECK(result.answers == sum.answers);
    CHECK(result.right_answers == sum.right_answers);
    CHECK(result.tokens == sum.tokens);
    CHECK(std::abs(result.nll - sum.nll) < 1e-9 * (1 + sum.nll));
    CHECK(result.kv_bytes > 0);
    CHECK(result.tokens_per_second() > 0);
  }
  // What greedy decoding really says.
  for (const auto& item : items) {
    if (item.task != "passkey") continue;
    auto session = decoder.new_session();
    const auto& answer = item.answers[0];
    auto row = session.forward(std::span(item.tokens).first(static_cast<std::size_t>(answer.begin))).last();
    bool right = true;
    for (auto at = answer.begin; at < answer.end && right; ++at) {
      const auto best = static_cast<skald::TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
      right = best == item.tokens[static_cast<std::size_t>(at)];
      row = session.forward({&best, 1}).last();
    }
    auto one = decoder.new_session();
    CHECK(skald::evaluate(one, {&item, 1})[0].right_answers == (right ? 1 : 0));
  }
}

TEST_CASE("generate.eval: a budget of all tokens is the full cache, bit for bit, for every policy", "[generate]") {
  skald::EvalOptions options;
  options.items = 3;
  options.length = 160;
  const auto items = skald::make_eval_items(bundled().tokenizer(), options);
  std::int64_t longest = 0;
  for (const auto& item : items) longest = std::max(longest, static_cast<std::int64_t>(item.tokens.size()));
  const auto dense = results_of(items, "q8_0", "none");
  for (const std::string policy : {"window", "recent_pages", "streaming", "h2o", "h2o:shares=pyramid", "snapkv",
                                   "snapkv:shares=adaptive", "d2o", "rpc"}) {
    const auto spec = skald::eviction_with_budget(policy, longest, longest, 16);
    INFO(spec);
    const auto results = results_of(items, "q8_0", spec);
    REQUIRE(results.size() == dense.size());
    for (std::size_t i = 0; i < results.size(); ++i) {
      CHECK(results[i].nll == dense[i].nll);
      CHECK(results[i].right_answers == dense[i].right_answers);
      CHECK(results[i].kv_bytes == dense[i].kv_bytes);
    }
    // A quarter is less in memory, and another computation.
    const auto quarter = results_of(items, "q8_0", skald::eviction_with_budget(policy, longest / 4, longest, 16));
    if (policy == "rpc") continue;  // compresses at every 256 tokens
    CHECK(of(quarter, "perplexity").kv_bytes < 0.4 * of(dense, "perplexity").kv_bytes);
    CHECK(of(quarter, "perplexity").nll != of(dense, "perplexity").nll);
  }
}

TEST_CASE("generate.eval: the full cache recalls more than a window of a quarter of the text", "[generate]") {
  skald::EvalOptions options;
  options.tasks = {"passkey", "copy"};
  options.items = 24;
  const auto items = skald::make_eval_items(bundled().tokenizer(), options);
  const auto dense = results_of(items, "f16", "none");
  const auto window = results_of(items, "f16", skald::eviction_with_budget("window", 64, 256, 16));
  CHECK(of(dense, "passkey").recall() > of(window, "passkey").recall() + 0.2);
  CHECK(of(dense, "copy").recall() > 0.9);
}

TEST_CASE("generate.eval: keys and values in 8 bits cost under a thousandth of perplexity, in 4 bits under 2 percent",
          "[generate]") {
  skald::EvalOptions options;
  options.tasks = {"perplexity"};
  options.items = 24;
  const auto items = skald::make_eval_items(bundled().tokenizer(), options);
  const double exact = results_of(items, "f32", "none")[0].perplexity();
  const double eight = results_of(items, "q8_0", "none")[0].perplexity();
  const double four = results_of(items, "q4_0", "none")[0].perplexity();
  INFO("f32 " << exact << ", q8_0 " << eight << ", q4_0 " << four);
  CHECK(eight < 1.001 * exact);
  CHECK(four < 1.02 * exact);
}

TEST_CASE("generate.eval: a text of one's own comes in pieces", "[generate]") {
  const auto& tokenizer = bundled().tokenizer();
  const auto text = skald::StoryGrammar(5).text(4000);
  const auto items = skald::eval_items_of_text(tokenizer, text, 100);
  CHECK(items.size() == tokenizer.encode(text).size() / 100);
  CHECK(skald::eval_items_of_text(tokenizer, text, 100, 2).size() == 2);
  for (const auto& item : items) {
    CHECK(item.tokens.size() == 100);
    CHECK(item.answers[0].begin == 51);
    if (tokenizer.adds_bos()) CHECK(item.tokens[0] == tokenizer.bos());
  }
  CHECK_THROWS_AS(skald::eval_items_of_text(tokenizer, "Short.", 100), skald::UsageError);
}

TEST_CASE("generate.eval: budgets go into the parameter that a policy has for them", "[generate]") {
  const auto spec = [](const char* policy) { return skald::eviction_with_budget(policy, 60, 256, 16); };
  CHECK(spec("none") == "none");
  CHECK(spec("h2o") == "h2o:budget=64");
  CHECK(spec("h2o:recent=20") == "h2o:recent=20,budget=64");
  CHECK(spec("h2o:budget=99") == "h2o:budget=99");
  CHECK(spec("snapkv:window=8") == "snapkv:window=8,budget=64");
  CHECK(spec("window") == "window:window=60");
  CHECK(spec("window:sinks=0") == "window:sinks=0,window=64");
  CHECK(spec("recent_pages") == "recent_pages:recent=2");
  CHECK(spec("rpc") == "rpc:percent=23");
  CHECK(spec("mine:keep={tokens},pages={pages},share={percent}") == "mine:keep=64,pages=4,share=23");
  CHECK_THROWS_AS(spec("nobody"), skald::UsageError);
  CHECK_THROWS_AS(skald::eviction_with_budget("h2o", 0, 256, 16), skald::UsageError);
}

TEST_CASE("generate.eval: what cannot be drawn or is out of range is refused", "[generate]") {
  const auto& tokenizer = bundled().tokenizer();
  const auto refused = [&](auto change) {
    skald::EvalOptions options;
    change(options);
    CHECK_THROWS_AS(skald::make_eval_items(tokenizer, options), skald::UsageError);
  };
  refused([](auto& o) { o.tasks = {"poetry"}; });
  refused([](auto& o) { o.kinds = {"why"}; });
  refused([](auto& o) { o.kinds.clear(); });
  refused([](auto& o) { o.length = 10; });
  refused([](auto& o) { o.items = 0; });
  refused([](auto& o) { o.facts = 9; });
  refused([](auto& o) {
    o.tasks = {"facts"};
    o.kinds = {"number"};
    o.length = 96;
    o.facts = 6;
  });
  const skald::Decoder decoder(bundled(), options_of("f16", "none"));
  auto session = decoder.new_session();
  for (const skald::EvalItem& bad : {skald::EvalItem{"a", {1, 2}, {}}, skald::EvalItem{"a", {1, 2}, {{0, 1}}},
                                     skald::EvalItem{"a", {1, 2}, {{1, 3}}}, skald::EvalItem{"a", {1, 2}, {{1, 1}}}})
    CHECK_THROWS_AS(skald::evaluate(session, {&bad, 1}), skald::UsageError);
  std::stop_source stop;
  stop.request_stop();
  const skald::EvalItem good{"a", {1, 2}, {{1, 2}}};
  CHECK_THROWS_AS(skald::evaluate(session, {&good, 1}, stop.get_token()), skald::CancelledError);
}
