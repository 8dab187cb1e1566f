// Every allocation fails once: an error each time, nothing leaks, the next try works.
#include <functional>
#include <new>
#include <optional>

#include <skald/generate/generate.hpp>

#include "helpers.hpp"
#include "malloc_counter.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

const TinyShape small{.vocabulary = 64,
                      .dim = 64,
                      .layers = 2,
                      .heads = 2,
                      .kv_heads = 1,
                      .head_dim = 32,
                      .ffn = 64,
                      .context = 128,
                      .type = skald::DType::q8_0};

enum class Outcome {
  untouched,  // fewer allocations were made
  tolerated,  // done in spite of the failure (a sort without its buffer)
  out_of_memory,
  other
};

/// Which allocator fails: operator new, or malloc and its relatives (aligned memory of tensors, too).
enum class Allocator { operator_new, c_allocator };

std::vector<Allocator> allocators() {
  if (SKALD_TEST_COUNTS_MALLOC) return {Allocator::operator_new, Allocator::c_allocator};
  return {Allocator::operator_new};
}

Outcome outcome_of(const std::function<void()>& action, Allocator allocator, AllocationCounter& allocations,
                   std::uint64_t fail_at) {
  Outcome outcome = Outcome::tolerated;
  const auto calls = [&] { return allocator == Allocator::operator_new ? allocations.calls() : malloc_calls(); };
  const auto before = calls();
  if (allocator == Allocator::operator_new) allocations.fail_at(fail_at);
  else fail_malloc_at(fail_at);
  try {
    action();
  } catch (const std::bad_alloc&) {
    outcome = Outcome::out_of_memory;
  } catch (const skald::OutOfMemoryError&) {
    outcome = Outcome::out_of_memory;
  } catch (...) {
    outcome = Outcome::other;
  }
  allocations.fail_at(0);
  fail_malloc_at(0);
  return outcome == Outcome::tolerated && calls() - before < fail_at ? Outcome::untouched : outcome;
}

constexpr std::uint64_t too_many = 100000;

}  // namespace

TEST_CASE("integration.faults: the n-th allocation fails, for every n, from loading to saving") {
  const auto bytes = tiny_gguf(small);
  for (const auto allocator : allocators())
    for (const bool reference : {false, true}) {
      INFO((reference ? "reference backend" : "cpu backend")
           << (allocator == Allocator::operator_new ? ", operator new" : ", malloc"));
      Rows result;
      const auto action = [&] {
        result.clear();
        const auto backend = reference ? skald::make_reference_backend() : serial_cpu();
        const auto model =
            skald::Model::load(skald::AnyByteSource(skald::SpanSource(bytes), "tiny"), {.backend = backend});
        const skald::Decoder decoder(model, {.kv = {.page_tokens = 16}, .context = 64});
        auto session = decoder.new_session();
        const std::vector<skald::TokenId> prompt{1, 2, 3, 4};
        (void)session.forward(prompt);
        auto fork = session.fork();
        skald::GenerateOptions options{.max_tokens = 8, .logprobs = 2};
        options.sampler.dry_multiplier = 0.5F;
        auto generation = skald::generate(session, prompt, options);
        (void)generation.collect();
        const auto snapshot = session.snapshot();
        fork.restore(snapshot);
        result = next_row(fork, 5);
      };
      action();
      const Rows expected = result;
      Rows().swap(result);
      AllocationCounter allocations;
      std::uint64_t failures = 0;
      bool wrong_outcome = false;
      bool leaked = false;
      for (std::uint64_t n = 1; n < too_many; ++n) {
        const auto outcome = outcome_of(action, allocator, allocations, n);
        Rows().swap(result);
        if (allocations.live_bytes() != 0) {
          leaked = true;
          UNSCOPED_INFO("allocation " << n << " leaked " << allocations.live_bytes() << " bytes");
          break;
        }
        if (outcome == Outcome::untouched) break;
        if (outcome == Outcome::out_of_memory) ++failures;
        if (outcome == Outcome::other) {
          wrong_outcome = true;
          UNSCOPED_INFO("allocation " << n << " led to another error");
          break;
        }
      }
      CHECK_FALSE(wrong_outcome);
      CHECK_FALSE(leaked);
      CHECK(failures > 300);
      CHECK(failures < too_many - 2);
      action();
      CHECK(same_bits(result, expected));
    }
}

TEST_CASE("integration.faults: a step whose allocations fail leaves the session as it was, and works again") {
  const auto model = tiny_model(small, {.backend = serial_cpu()});
  const auto tokens = some_tokens(60, small.vocabulary);
  const skald::DecoderOptions options{.kv = {.page_tokens = 16}, .context = 128, .parallel = 3, .batch_tokens = 24};
  const skald::Decoder<> calm(model, options);
  skald::AttentionScores scores;

  struct Case {
    std::string name;
    std::function<void(const skald::Decoder<>&, skald::Session&, skald::Session&)> act;
    bool long_batch = false;  // some of it may have been committed
  };
  const std::vector<std::int32_t> parents{-1, 0, 1, 0};
  const auto snapshot = [&] {
    auto session = calm.new_session();
    (void)session.forward(std::span(tokens).first(50));
    return session.snapshot();
  }();
  const std::vector<Case> cases{
      {"forward", [&](const auto&, auto& a, auto&) { (void)a.forward(std::span(tokens).first(20)); }},
      {"forward in cuts", [&](const auto&, auto& a, auto&) { (void)a.forward(tokens, skald::LogitsWanted::all); },
       true},
      {"batch",
       [&](const auto& decoder, auto& a, auto& b) {
         skald::Batch batch;
         batch.add(a, std::span(tokens).first(9)).add(b, std::span(tokens).first(3), skald::LogitsWanted::all);
         (void)decoder.forward(batch);
       }},
      {"embeddings",
       [&](const auto& decoder, auto& a, auto& b) {
         skald::Batch batch;
         batch.add_embeddings(a, std::vector<float>(3 * 64, 0.1F), 3).add(b, std::span(tokens).first(3));
         (void)decoder.forward(batch);
       }},
      {"scores",
       [&](const auto& decoder, auto& a, auto&) {
         skald::Batch batch;
         batch.add(a, std::span(tokens).first(9));
         (void)decoder.forward(batch, {.scores = &scores});
       }},
      {"token tree",
       [&](const auto& decoder, auto& a, auto&) {
         skald::Batch batch;
         batch.add_tree(a, std::span(tokens).first(4), parents);
         try {
           (void)decoder.forward(batch);
           a.accept(std::vector<std::int32_t>{0, 3});
         } catch (...) {
           if (a.state().pending() != 0) a.truncate(a.length());
           throw;
         }
       }},
      {"restore", [&](const auto&, auto& a, auto&) { a.restore(snapshot); }},
      {"snapshot", [&](const auto&, auto& a, auto&) { (void)a.snapshot(); }},
      {"fork and write",
       [&](const auto&, auto& a, auto& b) {
         auto fork = a.fork();
         (void)fork.forward(std::span(tokens).first(5));
         b = std::move(fork);
       }},
      {"truncate", [&](const auto&, auto& a, auto&) { a.truncate(3); }},
  };
  for (const auto allocator : allocators())
    for (const auto& each : cases) {
      INFO(each.name << (allocator == Allocator::operator_new ? ", operator new" : ", malloc"));
      std::uint64_t failures = 0;
      bool wrong = false;
      for (std::uint64_t n = 1; n < too_many && !wrong; ++n) {
        scores = {};
        const skald::Decoder<> decoder(model, options);
        auto a = decoder.new_session();
        auto b = decoder.new_session();
        (void)a.forward(std::span(tokens).first(13));
        (void)b.forward(std::span(tokens).subspan(20, 7));
        const std::vector<skald::TokenId> before(a.tokens().begin(), a.tokens().end());
        AllocationCounter allocations;
        const auto outcome = outcome_of([&] { each.act(decoder, a, b); }, allocator, allocations, n);
        if (outcome == Outcome::untouched) break;
        if (outcome == Outcome::out_of_memory) ++failures;
        const bool finished = outcome == Outcome::tolerated;
        wrong = outcome == Outcome::other;
        // Continue as if nothing had been asked.
        const auto kept = static_cast<std::size_t>(a.length());
        if (!each.long_batch && !finished) wrong = wrong || kept != 13 || b.length() != 7;
        wrong = wrong || a.tokens().size() != kept || a.state().pending() != 0 || b.state().pending() != 0;
        wrong = wrong || (!finished && !std::equal(before.begin(), before.end(), a.tokens().begin()));
        wrong = wrong || !equals_fresh(decoder, a) || !equals_fresh(decoder, b);
        if (wrong) UNSCOPED_INFO("allocation " << n << ": kept " << kept << " and " << b.length());
      }
      CHECK_FALSE(wrong);
      CHECK(failures < too_many - 2);
      if (each.name == "restore" || each.name == "snapshot" || each.name == "fork and write" || each.name == "scores")
        CHECK(failures > 0);
    }
}
