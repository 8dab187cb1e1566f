// Adaptive token release with rebuild (ADORE, Zhang et al. 2024, arXiv 2407.02328) on the bundled model.
#include <algorithm>

#include <skald/decoder/decoder.hpp>
#include <skald/generate/eval.hpp>
#include <skald/state/two_part_kv.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

namespace {

const skald::Model& bundled() {
  static const auto model = skald::Model::load(skald_test::model_path("skald-tiny-q8_0.gguf"));
  return model;
}

skald::Decoder<> with(const std::string& eviction) {
  skald::DecoderOptions options;
  options.context = 512;
  options.parallel = 1;
  options.kv.eviction = eviction;
  options.kv.page_tokens = 16;
  return {bundled(), options};
}

bool answers(const skald::Decoder<>& decoder, const skald::EvalItem& item) {
  auto session = decoder.new_session();
  return skald::evaluate(session, {&item, 1}).front().right_answers == 1;
}

}  // namespace

TEST_CASE("generate.adore: early facts that become relevant late are answered with rebuilding and not without", "[generate]") {
  // A secret number somewhere in a story of 256 tokens, asked for at its end; a quarter of the tokens are in the cache.
  skald::EvalOptions options;
  options.tasks = {"passkey"};
  options.items = 16;
  const auto items = skald::make_eval_items(bundled().tokenizer(), options);
  const auto off = with("adore:budget=64,rebuild=0");
  const auto on = with("adore:budget=64,rebuild=16");
  int gained = 0;
  int lost = 0;
  int right = 0;
  for (const auto& item : items) {
    const bool without = answers(off, item);
    const bool rebuilt = answers(on, item);
    gained += rebuilt && !without ? 1 : 0;
    lost += without && !rebuilt ? 1 : 0;
    right += rebuilt ? 1 : 0;
  }
  INFO("of 16: right with rebuilding " << right << ", only with it " << gained << ", only without it " << lost);
  CHECK(gained >= 6);
  CHECK(lost <= 2);
  CHECK(on.counters().rebuilt_rows > 0);
  CHECK(off.counters().rebuilt_rows == 0);

  // Where it made the difference, the number had been released, and was back when it was asked for.
  int back = 0;
  for (const auto& item : items) {
    if (!answers(on, item) || answers(off, item)) continue;
    // The number's tokens behind the first, which is another one after a blank than after a quotation mark.
    const auto number = std::span(item.tokens).subspan(static_cast<std::size_t>(item.answers.front().begin) + 1, 3);
    const auto before = std::span(item.tokens).first(static_cast<std::size_t>(item.answers.front().begin) + 1);
    const auto told = std::search(before.begin(), before.end(), number.begin(), number.end());
    REQUIRE(told != before.end());
    const auto position = static_cast<std::int32_t>(told - before.begin());
    auto session = on.new_session();
    (void)session.forward(before);
    const auto& state = static_cast<const skald::RebuiltKv&>(*session.state().layer(0));
    CHECK(state.back().slots(0) + state.front().length() <= 64);
    std::vector<std::int32_t> dropped;
    state.dropped(dropped);
    const auto& rebuilt = state.rebuilt();
    back += std::binary_search(dropped.begin(), dropped.end(), position) &&
            std::find(rebuilt.begin(), rebuilt.end(), position) != rebuilt.end();
  }
  INFO("back in time: " << back << " of " << gained);
  CHECK(back >= gained - 1);
}
