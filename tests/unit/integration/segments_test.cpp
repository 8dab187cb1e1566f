// Prompt and answer in two segments (Yu et al. 2024, arXiv 2401.05391): the prompt is stored once whatever the beams, answers
// alone are replaced, and a layer's ops move no tensor that they need not.
#include <algorithm>
#include <cmath>
#include <set>

#include <skald/state/two_part_kv.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"
#include "support/op_recorder.hpp"
#include "support/tiny_attention.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.layers = 2, .type = skald::DType::q8_0};
constexpr std::int64_t page = 16;

skald::DecoderOptions with(const std::string& format, std::int64_t batch = 512) {
  return {.kv = {.format = format, .page_tokens = page}, .context = 1024, .parallel = 8, .batch_tokens = batch};
}

/// Logits of an answer to a prompt.
Rows answer_to(const skald::Decoder<>& decoder, std::int64_t prompt, std::int64_t answer, std::size_t chunk = 1000) {
  const auto tokens = some_tokens(prompt + answer, shape.vocabulary);
  auto session = decoder.new_session();
  session.set_prompt_length(prompt);
  return chunked(session, tokens, chunk);
}

const skald::SegmentedKv& segments(const skald::Session& session, int layer) {
  return static_cast<const skald::SegmentedKv&>(*session.state().layer(layer));
}

}  // namespace

TEST_CASE("integration.segments: two segments give what one gives, to rounding") {
  auto floats = shape;
  floats.type = skald::DType::f32;
  for (const std::string backend : {"cpu", "reference"}) {
    for (const std::string kind : {"gqa", "mha", "mla"}) {
      const auto model = tiny_attention_model(kind, floats, {.backend = skald::make_backend(backend)});
      for (const std::int64_t prompt : {5, 50, 300}) {
        if (backend == "reference" && prompt == 300) continue;
        INFO(backend << " " << kind << " after " << prompt << " tokens");
        const auto one = answer_to(skald::Decoder(model, with("f32")), prompt, 20);
        const auto two = answer_to(skald::Decoder(model, with("f32;segments=prompt")), prompt, 20);
        double most = 0;
        double largest = 0;
        for (std::size_t i = 0; i < one.size(); ++i) {
          most = std::max(most, static_cast<double>(std::abs(one[i] - two[i])));
          largest = std::max(largest, static_cast<double>(std::abs(one[i])));
        }
        INFO("off by " << most << " of " << largest);
        CHECK(most <= 1e-5 * largest);
      }
    }
  }
}

TEST_CASE("integration.segments: chunks, batches and threads change no bit, without a prompt there is one segment") {
  const auto model = tiny_model(shape, {.backend = cpu_with(3)});
  const skald::Decoder decoder(model, with("q8_0;segments=prompt"));
  const auto expected = answer_to(decoder, 50, 70);
  CHECK(same_bits(answer_to(skald::Decoder(tiny_model(shape, {.backend = cpu_with(1)}), with("q8_0;segments=prompt", 33)), 50, 70), expected));
  CHECK(same_bits(answer_to(decoder, 50, 70, 7), expected));
  CHECK(same_bits(answer_to(decoder, 50, 70, 1), expected));

  const auto tokens = some_tokens(120, shape.vocabulary);
  auto one = decoder.new_session();
  auto two = decoder.new_session();
  one.set_prompt_length(50);
  skald::Batch batch;  // one still in its prompt, one that knows none
  batch.add(two, tokens, skald::LogitsWanted::all).add(one, tokens, skald::LogitsWanted::all);
  const auto rows = copy(decoder.forward(batch));
  const auto half = rows.begin() + static_cast<std::ptrdiff_t>(rows.size() / 2);
  CHECK(same_bits(Rows(half, rows.end()), expected));
  auto plain = skald::Decoder(model, with("q8_0")).new_session();
  CHECK(same_bits(Rows(rows.begin(), half), chunked(plain, tokens, 120)));

  // Going back into the prompt, files and trees.
  const auto next = next_row(one, 9);
  auto back = decoder.new_session();
  one.truncate(120);
  back.restore(one.snapshot());
  CHECK(same_bits(next_row(back, 9), next));
  const std::vector<skald::TokenId> tree{4, 9, 3};
  const std::vector<std::int32_t> parents{-1, -1, 1};
  skald::Batch drafts;
  drafts.add_tree(one, tree, parents);
  const auto drafted = decoder.forward(drafts);
  CHECK(same_bits(Rows(drafted.row(1).begin(), drafted.row(1).end()), next));
  one.accept(std::vector<std::int32_t>{1, 2});
  (void)next_row(back, 3);
  CHECK(same_bits(next_row(one, 7), next_row(back, 7)));
  one.truncate(30);
  (void)one.forward(std::span(tokens).subspan(30, 40));
  auto fresh = decoder.new_session();
  fresh.set_prompt_length(30);
  (void)fresh.forward(std::span(tokens).first(70));
  CHECK(same_bits(next_row(one, 2), next_row(fresh, 2)));
}

TEST_CASE("integration.segments: four beams hold the prompt once to its last token, and reordering copies answers alone") {
  const auto recorder = std::make_shared<OpRecorder>(cpu_with(2));
  const auto model = tiny_model(shape, {.backend = recorder});
  const skald::Decoder decoder(model, with("f16;segments=prompt"));
  constexpr std::int64_t prompt = 50;  // no whole number of pages
  auto first = decoder.new_session();
  first.set_prompt_length(prompt);
  (void)first.forward(some_tokens(prompt, shape.vocabulary));
  const auto prompt_bytes = decoder.counters().kv_page_bytes_used;
  const auto tables = static_cast<std::uint64_t>(shape.layers * shape.kv_heads);
  const auto page_bytes = prompt_bytes / (4 * tables);
  std::set<const std::byte*> prompt_pages;
  for (int l = 0; l < shape.layers; ++l)
    for (int g = 0; g < shape.kv_heads; ++g)
      for (const auto id : segments(first, l).front().pages(g)) prompt_pages.insert(segments(first, l).front().pool().address(id));
  std::vector<skald::Session> beams;
  for (int b = 0; b < 4; ++b) beams.push_back(first.fork());
  CHECK(decoder.counters().kv_page_bytes_used == prompt_bytes);
  recorder->copies.clear();
  for (int step = 0; step < 20; ++step) {
    skald::Batch batch;
    std::vector<skald::TokenId> tokens{3, 5, 7, 11};
    for (std::size_t b = 0; b < 4; ++b) batch.add(beams[b], {&tokens[b], 1});
    (void)decoder.forward(batch);
    const auto answer_pages = static_cast<std::uint64_t>((step + page) / page);
    CHECK(decoder.counters().kv_page_bytes_used <= prompt_bytes + 4 * answer_pages * tables * page_bytes);
    if (step == 0) CHECK(recorder->copies.empty());  // the answers begin pages of their own
    // The first and the third beam go on twice.
    std::vector<skald::Session> next;
    for (const std::size_t from : {0u, 2u, 0u, 2u}) next.push_back(beams[from].fork());
    beams = std::move(next);
    for (const auto& beam : beams)
      for (int l = 0; l < shape.layers; ++l)
        for (int g = 0; g < shape.kv_heads; ++g)
          REQUIRE(segments(beam, l).front().pages(g) == segments(first, l).front().pages(g));
  }
  CHECK_FALSE(recorder->copies.empty());
  CHECK(std::none_of(recorder->copies.begin(), recorder->copies.end(), [&](const auto* from) { return prompt_pages.contains(from); }));

  // One segment copies the prompt's last page for every beam but one.
  const skald::Decoder whole(model, with("f16"));
  auto other = whole.new_session();
  (void)other.forward(some_tokens(prompt, shape.vocabulary));
  recorder->copies.clear();
  auto fork = other.fork();
  (void)next_row(fork, 1);
  CHECK(recorder->copies.size() == tables);
}

TEST_CASE("integration.segments: a layer writes fewer tensors than its unfused form, with the same results") {
  auto floats = shape;
  floats.type = skald::DType::f32;
  const auto run = [&](bool unfused) {
    const auto recorder = std::make_shared<OpRecorder>(cpu_with(2));
    recorder->unfuses = unfused;
    const auto model = tiny_model(floats, {.backend = recorder});
    const skald::Decoder decoder(model, with("f32;segments=prompt"));
    auto session = decoder.new_session();
    session.set_prompt_length(12);
    (void)session.forward(some_tokens(20, shape.vocabulary));
    const OpCounts before(*recorder);
    const auto row = next_row(session, 3);
    return std::tuple(row, recorder->tensors - before.tensors, recorder->moves - before.moves);
  };
  const auto [fused, fused_tensors, fused_moves] = run(false);
  const auto [unfused, unfused_tensors, unfused_moves] = run(true);
  for (std::size_t i = 0; i < fused.size(); ++i) REQUIRE(std::abs(fused[i] - unfused[i]) < 1e-4F);
  INFO("tensors " << fused_tensors << " and " << unfused_tensors << ", of which only moved " << fused_moves << " and " << unfused_moves);
  // Norms, residual sums and the product with the gate are parts of the matrix products: nothing is copied on its way.
  CHECK(fused_moves == 0);
  CHECK(unfused_moves == 5 * shape.layers);
  CHECK(unfused_tensors - fused_tensors >= 8 * shape.layers);
}

TEST_CASE("integration.segments: what they cannot go with is refused with the reason") {
  const auto model = tiny_model(shape);
  const auto refused = [&](const std::string& format, const std::string& eviction, const std::string& reason) {
    auto options = with(format);
    options.kv.eviction = eviction;
    try {
      const skald::Decoder decoder(model, options);
      FAIL("accepted: " << format);
    } catch (const skald::IncompatibleError& error) {
      CHECK(error.message().find(reason) != std::string::npos);
    }
  };
  refused("f16;segments=prompt", "h2o:budget=64", "drops or moves them");
  refused("f16;heads 1=q8_0;segments=prompt", "none", "heads of different formats");
  CHECK_THROWS_AS(skald::AnyKvFormat("f16;segments=2"), skald::UsageError);
}
