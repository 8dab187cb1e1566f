// The public surface as the design sketches it, as far as its parts exist: what a first program writes must compile and
// run exactly so.

#include <skald/skald.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"

namespace {

struct DropSecondPage {
  [[nodiscard]] std::string name() const { return "drop_second_page"; }
  [[nodiscard]] skald::ComponentTraits traits() const { return {.drops_tokens = true, .lossy = true}; }
  void evict(const skald::EvictionView& view, std::span<std::uint8_t> drop) const {
    if (view.pages.size() > 2 && view.pages[1].first_token == view.page_tokens) drop[1] = 1;
  }
};

const std::string file = skald_test::model_path("skald-tiny-q8_0.gguf");

}  // namespace

TEST_CASE("surface: the first program of the design compiles and generates", "[surface]") {
  std::uint64_t done = 0;
  std::uint64_t total = 1;
  const auto on_progress = [&](const skald::Progress& progress) {
    done = progress.done;
    total = progress.total;
  };
  auto model = skald::Model::load(file, {.progress = on_progress});
  CHECK(done == total);
  auto decoder = skald::Decoder(
      model, {.kv = {.format = "bf16", .eviction = "recent_pages:sinks=1,recent=2"}, .attention = "dense"});
  auto session = decoder.new_session();
  std::string text;
  for (auto piece : skald::generate(session, "Once upon a time", {.max_tokens = 128, .sampler = {.temperature = 0.8f}}))
    text += piece.text;
  CHECK(text.size() > 20);
  CHECK(decoder.effective_config().kv_format == "bf16");
  CHECK(decoder.effective_config().eviction == "recent_pages:sinks=1,recent=2");
}

TEST_CASE("surface: a decoder composed statically, with a policy of one's own", "[surface]") {
  const auto model = skald::Model::load(file);
  const skald::Decoder<skald::CpuBackend, DropSecondPage, skald::KvF16> fast(
      model, DropSecondPage{}, skald::KvF16{}, {.kv = {.page_tokens = 16}});
  auto session = fast.new_session();
  auto text = skald::generate(session, "Once upon a time", {.max_tokens = 100, .ignore_eos = true});
  CHECK(!text.collect().empty());
  CHECK(fast.counters().evicted_pages > 0);
  CHECK(fast.effective_config().eviction == "drop_second_page");
  const skald::Decoder<skald::CpuBackend, DropSecondPage, skald::KvBF16> brief(model, DropSecondPage{});
  CHECK(brief.effective_config().kv_format == "bf16");
  using OnReference = skald::Decoder<skald::ReferenceBackend, DropSecondPage, skald::KvF16>;
  CHECK_THROWS_AS(OnReference(model, DropSecondPage{}), skald::IncompatibleError);
}

TEST_CASE("surface: parts of the sketch that do not exist are refused by name", "[surface]") {
  const auto model = skald::Model::load(file);
  CHECK_THROWS_AS(skald::Decoder(model, {.kv = {.format = "q7_0"}}), skald::UnsupportedError);
  CHECK_THROWS_AS(skald::Decoder(model, {.kv = {.eviction = "h3o:budget=2048"}}), skald::UsageError);
  CHECK_THROWS_AS(skald::Decoder(model, {.attention = "sparq:r=32,k=256"}), skald::UsageError);
}
