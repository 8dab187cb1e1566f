// Adaptive token release with rebuild (ADORE, Zhang et al. 2024, arXiv 2407.02328).
#include <algorithm>
#include <cmath>

#include <skald/kernels/kv_codes.hpp>
#include <skald/state/kv_rows.hpp>
#include <skald/state/release.hpp>
#include <skald/state/two_part_kv.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"
#include "support/tiny_attention.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{.layers = 2, .type = skald::DType::q8_0};
constexpr std::int64_t page = 16;

skald::DecoderOptions with(const std::string& eviction, std::int64_t batch = 512, const std::string& format = "f32") {
  return {.kv = {.format = format, .eviction = eviction, .page_tokens = page}, .context = 512, .batch_tokens = batch};
}

const skald::RebuiltKv& state_of(const skald::Session& session, int layer) {
  return static_cast<const skald::RebuiltKv&>(*session.state().layer(layer));
}

/// Key, then value of a slot.
std::vector<float> row_of(const skald::PagedKv& kv, int group, std::int64_t slot) {
  const auto& layout = kv.pool().layout();
  const auto* at = kv.pool().address(kv.pages(group)[static_cast<std::size_t>(slot / page)]);
  std::vector<float> key(static_cast<std::size_t>(layout.head_dim_k)), value(static_cast<std::size_t>(layout.head_dim_v));
  skald::read_kv_key(layout, at, 0, static_cast<std::int32_t>(slot % page), key);
  skald::read_kv_value(layout, at, 0, static_cast<std::int32_t>(slot % page), value);
  key.insert(key.end(), value.begin(), value.end());
  return key;
}

/// Tokens of few kinds, so that later ones repeat earlier ones.
std::vector<skald::TokenId> repeating(std::int64_t count) { return some_tokens(count, 40); }

/// Drops all but the newest tokens and wants all of them back.
struct All {
  [[nodiscard]] std::string name() const { return "all"; }
  [[nodiscard]] skald::ComponentTraits traits() const noexcept {
    skald::ComponentTraits traits{.drops_tokens = true, .budget = 512};
    traits.rebuild = 400;
    return traits;
  }
  void evict(const skald::EvictionView& view, skald::EvictionChoice& choice) const {
    for (std::int64_t slot = 0; slot < view.slots() - 20; ++slot) choice.drop(slot);
  }
  [[nodiscard]] std::size_t recall(std::span<const std::int32_t>, std::span<const std::int32_t> dropped,
                                   std::span<std::int32_t> wanted) const {
    std::copy(dropped.begin(), dropped.end(), wanted.begin());
    return dropped.size();
  }
};

Rows rows_of(const skald::Model& model, const std::string& eviction, std::size_t chunk, std::int64_t tokens = 150) {
  const skald::Decoder decoder(model, with(eviction));
  auto session = decoder.new_session();
  return chunked(session, repeating(tokens), chunk);
}

}  // namespace

TEST_CASE("integration.adore: never holds more than K entries, and those rebuilt equal the originals and are counted") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  const skald::Decoder decoder(model, with("adore:budget=64,rebuild=16"));
  auto session = decoder.new_session();
  const auto tokens = repeating(200);
  // [layer][group][position]: rows as they were when they were first computed.
  std::vector<std::vector<std::vector<std::vector<float>>>> originals(2, {2, std::vector<std::vector<float>>(200)});
  std::uint64_t compared = 0;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto before = decoder.counters().rebuilt_rows;
    std::vector<std::int32_t> had(state_of(session, 0).rebuilt().begin(), state_of(session, 0).rebuilt().end());
    (void)session.forward({&tokens[t], 1}, skald::LogitsWanted::none);
    const auto& now = state_of(session, 0).rebuilt();
    // Those that are there already are not computed again.
    const auto fresh = std::count_if(now.begin(), now.end(), [&](auto p) { return !std::binary_search(had.begin(), had.end(), p); });
    CHECK(decoder.counters().rebuilt_rows - before == 2 * static_cast<std::uint64_t>(fresh));
    CHECK(now.size() <= 16);
    for (int layer = 0; layer < 2; ++layer) {
      const auto& state = state_of(session, layer);
      for (int group = 0; group < 2; ++group) {
        REQUIRE(state.back().slots(group) + state.front().length() <= 64);
        auto& kept = originals[static_cast<std::size_t>(layer)][static_cast<std::size_t>(group)];
        // The newest token's row, unless a border has just compacted it to another slot, which is the last one all the same.
        kept[t] = row_of(state.back(), group, state.back().slots(group) - 1);
        for (std::size_t i = 0; i < now.size(); ++i) {
          const auto found = row_of(state.front(), group, static_cast<std::int64_t>(i));
          const auto& original = kept[static_cast<std::size_t>(now[i])];
          REQUIRE(found.size() == original.size());
          for (std::size_t d = 0; d < found.size(); ++d) REQUIRE(std::abs(found[d] - original[d]) <= 1e-4F);
          CHECK(found == original);  // indeed the same bits
          ++compared;
        }
        // Nothing is there twice.
        const auto positions = state.back().positions(group);
        for (const auto position : now) CHECK(std::find(positions.begin(), positions.end(), position) == positions.end());
      }
    }
  }
  CHECK(compared > 500);
  CHECK(decoder.counters().evicted_tokens > 0);
}

TEST_CASE("integration.adore: a budget that is never reached changes no bit, and without rebuilding it is a window") {
  const auto model = tiny_model(shape, {.backend = cpu_with(3)});
  CHECK(same_bits(rows_of(model, "adore:budget=256,rebuild=32", 150), rows_of(model, "none", 150)));
  CHECK(same_bits(rows_of(model, "adore:budget=64,rebuild=0", 150), rows_of(model, "window:sinks=4,window=60", 150)));
  CHECK_FALSE(same_bits(rows_of(model, "adore:budget=64,rebuild=16", 150), rows_of(model, "window:sinks=4,window=44", 150)));
}

TEST_CASE("integration.adore: rows see what was rebuilt as if it had stayed") {
  // With room for all that was released everything is seen: what full attention gives, in another order of slots.
  auto floats = shape;
  floats.type = skald::DType::f32;
  const auto model = tiny_model(floats, {.backend = cpu_with(2)});
  const skald::Decoder full(model, with("none"));
  auto one = full.new_session();
  const skald::Decoder<skald::CpuBackend, All> all(model, All{}, skald::AnyKvFormat("f32"), with("none"));
  auto two = all.new_session();
  const auto tokens = repeating(100);
  const auto expected = chunked(one, tokens, 100);
  const auto found = chunked(two, tokens, 100);
  for (std::size_t i = 0; i < expected.size(); ++i) REQUIRE(std::abs(found[i] - expected[i]) < 1e-3F);
  CHECK(all.counters().rebuilt_rows > 0);
}

TEST_CASE("integration.adore: chunks, batches and threads change no bit, sessions fork, go back and are saved") {
  const auto model = tiny_model(shape, {.backend = cpu_with(3)});
  for (const std::string policy : {"adore:budget=64,rebuild=16", "adore:budget=64,rebuild=20,interval=8,reach=2"}) {
    const auto expected = rows_of(model, policy, 150);
    CHECK(same_bits(rows_of(model, policy, 1), expected));
    CHECK(same_bits(rows_of(tiny_model(shape, {.backend = cpu_with(1)}), policy, 37), expected));
    const skald::Decoder decoder(model, with(policy, 45));
    auto one = decoder.new_session();
    auto two = decoder.new_session();
    const auto others = some_tokens(90, 30, 7);
    skald::Batch batch;
    batch.add(two, others, skald::LogitsWanted::all).add(one, repeating(150), skald::LogitsWanted::all);
    auto rows = copy(decoder.forward(batch));
    rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(90 * shape.vocabulary));
    CHECK(same_bits(rows, expected));
    auto fork = one.fork();
    auto back = decoder.new_session();
    back.restore(one.snapshot());
    CHECK(back.slow_bytes() == one.slow_bytes());
    CHECK(one.slow_bytes() == static_cast<std::size_t>(150 * shape.dim * shape.layers) * sizeof(float));
    const auto next = next_row(one, 5);
    CHECK(same_bits(next_row(fork, 5), next));
    CHECK(same_bits(next_row(back, 5), next));
    one.truncate(147);
    const auto again = repeating(150);
    (void)one.forward(std::span(again).subspan(147));
    CHECK(same_bits(next_row(one, 5), next));
  }
}

TEST_CASE("integration.adore: more sessions in a batch than were expected change no bit") {
  const auto model = tiny_model(shape, {.backend = cpu_with(2)});
  auto options = with("adore:budget=64,rebuild=16");
  options.parallel = 1;
  const skald::Decoder decoder(model, options);
  std::vector<skald::Session> sessions;
  for (unsigned i = 0; i < 5; ++i) {
    sessions.push_back(decoder.new_session());
    (void)sessions.back().forward(some_tokens(100, 40, i), skald::LogitsWanted::none);
  }
  std::vector<Rows> expected;
  for (auto& session : sessions) {
    auto fork = session.fork();
    expected.push_back(next_row(fork, 7));
  }
  skald::Batch batch;
  const std::vector<skald::TokenId> token{7};
  for (auto& session : sessions) batch.add(session, token);
  const auto rows = decoder.forward(batch);
  for (std::size_t i = 0; i < sessions.size(); ++i)
    CHECK(same_bits(expected[i], Rows(rows.last(i).begin(), rows.last(i).end())));
}

TEST_CASE("integration.adore: a policy that asks back what was never dropped is refused and changes nothing") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  struct Wrong : All {
    int kind = 0;
    [[nodiscard]] std::string name() const { return "wrong"; }
    [[nodiscard]] std::size_t recall(std::span<const std::int32_t>, std::span<const std::int32_t> dropped,
                                     std::span<std::int32_t> wanted) const {
      wanted[0] = kind == 0 ? dropped.back() + 1 : dropped[1];
      wanted[1] = kind == 1 ? dropped[0] : dropped.back();
      return kind == 2 ? wanted.size() + 1 : 2;
    }
  };
  for (int kind = 0; kind < 3; ++kind) {
    Wrong wrong;
    wrong.kind = kind;
    const skald::Decoder<skald::CpuBackend, Wrong> decoder(model, wrong, skald::AnyKvFormat("f32"), with("none"));
    auto session = decoder.new_session();
    (void)session.forward(repeating(32), skald::LogitsWanted::none);
    CHECK_THROWS_AS(session.forward(repeating(1)), skald::UsageError);
    CHECK(session.length() == 32);
  }
}

TEST_CASE("integration.adore: what it cannot go with is refused with the reason") {
  const auto refused = [&](const skald::Model& model, const std::string& eviction, const std::string& format, const std::string& reason) {
    try {
      const skald::Decoder decoder(model, with(eviction, 512, format));
      FAIL("accepted: " << eviction << " " << format);
    } catch (const skald::IncompatibleError& error) {
      INFO(error.message());
      CHECK(error.message().find(reason) != std::string::npos);
    }
  };
  const auto model = tiny_model(shape);
  refused(model, "adore:budget=64,rebuild=40", "f16", "must be left");
  refused(model, "adore:budget=64,rebuild=16,interval=5", "f16", "must divide");
  refused(model, "adore:budget=64,rebuild=16", "q4_0;residual=32", "in one place");
  refused(model, "adore:budget=64,rebuild=16", "f16;heads 1=q8_0", "one KV format");
  refused(tiny_attention_model("mla", shape, {}), "adore:budget=64,rebuild=16", "f16", "latent");
  refused(tiny_attention_model("window", shape, {}), "adore:budget=64,rebuild=16", "f16", "sliding window");
}
