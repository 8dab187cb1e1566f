// Recurrent layers: a token's logits depend on the tokens before it and on nothing else, whatever was cut, batched,
// taken back, forked, saved or cached on the way.
#include <algorithm>
#include <cmath>
#include <cstring>

#include <skald/decoder/decoder.hpp>
#include <skald/decoder/prefix_cache.hpp>
#include <skald/model/plan.hpp>
#include <skald/simd/isa.hpp>
#include <skald/state/recurrent.hpp>

#include "rows.hpp"
#include "support/catch.hpp"
#include "support/recurrent_model.hpp"
#include "support/tiny_model.hpp"

namespace {

using skald_test::chunked, skald_test::copy, skald_test::cpu, skald_test::Rows, skald_test::same_bits;
using Tokens = std::vector<skald::TokenId>;

Tokens some(std::int64_t count, std::uint64_t seed = 5) {
  return skald_test::some_tokens(count, skald_test::recurrent_vocabulary, seed);
}

Tokens slice(const Tokens& tokens, std::size_t from, std::size_t to) {
  return {tokens.begin() + static_cast<std::ptrdiff_t>(from), tokens.begin() + static_cast<std::ptrdiff_t>(to)};
}

Rows rows_of(const Rows& rows, std::size_t from, std::size_t to) {
  const auto width = static_cast<std::ptrdiff_t>(skald_test::recurrent_vocabulary);
  return {rows.begin() + static_cast<std::ptrdiff_t>(from) * width,
          rows.begin() + static_cast<std::ptrdiff_t>(to) * width};
}

std::vector<std::int64_t> checkpoints(const skald::Session& session) {
  for (int l = 0; l < session.state().layer_count(); ++l)
    if (const auto* state = session.state().second(l))
      return static_cast<const skald::RecurrentState*>(state)->checkpoint_lengths();
  return {};
}

bool keeps_tokens(const skald::Model& model) {
  return std::any_of(model.spec().layers.begin(), model.spec().layers.end(),
                     [](const auto& layer) { return layer.attention.has_value(); });
}

}  // namespace

TEST_CASE("decoder.recurrent: chunks, batch sizes, checkpoints, threads and layout change no bit", "[decoder][exact]") {
  for (const auto isa : skald::available_isas())
    for (const auto& architecture : skald_test::recurrent_architectures())
      for (const auto type : {skald::DType::f32, skald::DType::q8_0}) {
        INFO(skald::to_string(isa) << " " << architecture << " " << skald::to_string(type));
        const auto tokens = some(90);
        const auto model = skald_test::recurrent_model(architecture, type, {.backend = cpu(isa, 4)});
        const skald::Decoder decoder(model);
        auto session = decoder.new_session();
        const auto expected = chunked(session, tokens, tokens.size());
        for (const std::size_t chunk : {1u, 2u, 7u, 64u}) {
          INFO("chunks of " << chunk);
          auto other = decoder.new_session();
          CHECK(same_bits(chunked(other, tokens, chunk), expected));
        }
        for (const int threads : {1, 3}) {
          INFO(threads << " threads");
          const auto layout = threads == 1 ? skald::WeightLayout::rows : skald::WeightLayout::packed;
          const auto fewer =
              skald_test::recurrent_model(architecture, type, {.backend = cpu(isa, threads), .layout = layout});
          auto other = skald::Decoder(fewer, {.recurrent = {.checkpoint_interval = 16, .checkpoints = threads},
                                              .batch_tokens = 25 * threads})
                           .new_session();
          CHECK(same_bits(chunked(other, tokens, tokens.size()), expected));
        }
      }
}

TEST_CASE("decoder.recurrent: sequences in one batch equal each alone", "[decoder][exact]") {
  for (const auto isa : skald::available_isas())
    for (const auto& architecture : skald_test::recurrent_architectures()) {
      INFO(skald::to_string(isa) << " " << architecture);
      const auto model = skald_test::recurrent_model(architecture, skald::DType::q8_0, {.backend = cpu(isa, 3)});
      const skald::Decoder decoder(model, {.recurrent = {.checkpoint_interval = 16}, .parallel = 16});
      std::vector<skald::Session> sessions;
      std::vector<Tokens> prompts;
      for (int s = 0; s < 5; ++s) {
        sessions.push_back(decoder.new_session());
        prompts.push_back(some(3 + 11 * s, 100 + static_cast<std::uint64_t>(s)));
      }
      std::vector<Rows> together(5);
      const auto run = [&](bool step) {
        skald::Batch batch;
        for (std::size_t s = 0; s < 5; ++s)
          batch.add(sessions[s], step ? slice(prompts[s], 0, 1) : prompts[s], skald::LogitsWanted::all);
        const auto logits = decoder.forward(batch);
        for (std::size_t s = 0; s < 5; ++s)
          for (std::int64_t i = 0; i < logits.rows(s); ++i)
            together[s].insert(together[s].end(), logits.row(s, i).begin(), logits.row(s, i).end());
      };
      run(false);
      run(true);
      for (std::size_t s = 0; s < 5; ++s) {
        auto alone = decoder.new_session();
        auto rows = chunked(alone, prompts[s], 1000);
        const auto step = chunked(alone, slice(prompts[s], 0, 1), 1);
        rows.insert(rows.end(), step.begin(), step.end());
        CHECK(same_bits(together[s], rows));
      }
    }
}

TEST_CASE("decoder.recurrent: truncated, forked, resumed and restored sessions equal fresh ones", "[decoder][exact]") {
  for (const auto& architecture : skald_test::recurrent_architectures()) {
    INFO(architecture);
    const auto model = skald_test::recurrent_model(architecture);
    const skald::DecoderOptions options{.recurrent = {.checkpoint_interval = 16, .checkpoints = 2}};
    const skald::Decoder decoder(model, options);
    const auto tokens = some(100);
    auto whole = decoder.new_session();
    const auto expected = chunked(whole, tokens, 1000);
    CHECK(checkpoints(whole) == std::vector<std::int64_t>{80, 96});
    // To a checkpoint, between two, before all that are kept, to the beginning.
    for (const std::size_t length : {96u, 90u, 80u, 33u, 1u, 0u}) {
      INFO("back to " << length);
      auto session = whole.fork();
      const auto before = decoder.counters().tokens;
      CHECK(session.can_truncate(static_cast<std::int64_t>(length)));
      session.truncate(static_cast<std::int64_t>(length));
      const std::size_t known = length >= 96 ? 96 : length >= 80 ? 80 : 0;
      CHECK(decoder.counters().tokens - before == length - known);  // computed again: those after the checkpoint
      CHECK(session.length() == static_cast<std::int64_t>(length));
      CHECK(same_bits(chunked(session, slice(tokens, length, 100), 9), rows_of(expected, length, 100)));
    }
    CHECK(checkpoints(whole) == std::vector<std::int64_t>{80, 96});
    // A fork goes its own way, and so does the one it came from.
    auto fork = whole.fork();
    (void)chunked(fork, some(40, 9), 1000);
    fork.truncate(100);
    const auto rest = some(30, 10);
    CHECK(same_bits(chunked(fork, rest, 1000), chunked(whole, rest, 7)));
    // To a snapshot and back, in a decoder that keeps other checkpoints.
    auto saved = decoder.new_session();
    (void)chunked(saved, slice(tokens, 0, 70), 1000);
    const auto bytes = saved.snapshot();
    for (const std::int32_t kept : {0, 1, 5}) {
      const skald::Decoder other(model, {.recurrent = {.checkpoint_interval = 16, .checkpoints = kept}});
      auto restored = other.new_session();
      restored.restore(bytes);
      CHECK(checkpoints(restored).size() == static_cast<std::size_t>(std::min(kept, 2)));
      CHECK(same_bits(chunked(restored, slice(tokens, 70, 100), 4), rows_of(expected, 70, 100)));
      restored.truncate(50);
      CHECK(same_bits(chunked(restored, slice(tokens, 50, 100), 1000), rows_of(expected, 50, 100)));
    }
    auto damaged = bytes;
    damaged[damaged.size() / 2] ^= std::byte{1};
    CHECK_THROWS_AS(saved.restore(damaged), skald::FormatError);
    CHECK(saved.length() == 70);
    saved.clear();
    CHECK(same_bits(chunked(saved, tokens, 1000), expected));
  }
}

TEST_CASE("decoder.recurrent: prefixes are reused up to a checkpoint, with the same bits", "[decoder]") {
  for (const auto& architecture : skald_test::recurrent_architectures()) {
    INFO(architecture);
    const auto model = skald_test::recurrent_model(architecture);
    const skald::Decoder decoder(model, {.recurrent = {.checkpoint_interval = 16, .checkpoints = 4}});
    const auto tokens = some(100);
    auto plain = decoder.new_session();
    const auto expected = chunked(plain, tokens, 1000);
    skald::PrefixCache cache(decoder);
    auto first = cache.new_session(tokens);
    (void)chunked(first, slice(tokens, 0, 60), 1000);
    (void)cache.insert(first);
    CHECK(cache.counters().fast_bytes >= decoder.effective_config().recurrent_bytes);
    auto again = cache.new_session(tokens);  // all of what is known
    CHECK(again.length() == 60);
    CHECK(same_bits(chunked(again, slice(tokens, 60, 100), 1000), rows_of(expected, 60, 100)));
    auto other = slice(tokens, 0, 40);  // a branch within what is known
    const auto more = some(20, 8);
    other.insert(other.end(), more.begin(), more.end());
    auto branch = cache.new_session(other);
    CHECK(branch.length() == 32);
    auto fresh = decoder.new_session();
    const auto rows = chunked(fresh, other, 1000);
    CHECK(same_bits(chunked(branch, slice(other, 32, 60), 1000), rows_of(rows, 32, 60)));
    (void)cache.shrink(0);
    CHECK(cache.counters().fast_bytes == 0);
    CHECK(cache.new_session(tokens).length() == 0);
  }
}

TEST_CASE("decoder.recurrent: what cannot work with a state of fixed size is refused with the reason", "[decoder]") {
  for (const auto& architecture : skald_test::recurrent_architectures()) {
    INFO(architecture);
    const auto model = skald_test::recurrent_model(architecture);
    const skald::DecoderOptions evicting{.kv = {.eviction = "recent_pages:sinks=1,recent=2", .page_tokens = 16}};
    if (!keeps_tokens(model)) {
      CHECK_THROWS_AS(skald::Decoder(model, evicting), skald::IncompatibleError);
    } else {
      // Layers with attention drop pages; the others go on as before.
      const skald::Decoder decoder(model, evicting);
      auto a = decoder.new_session();
      auto b = decoder.new_session();
      const auto tokens = some(100);
      CHECK(same_bits(chunked(a, tokens, 1000), chunked(b, tokens, 7)));
      CHECK(decoder.counters().evicted_pages > 0);
    }
    const skald::Decoder decoder(model);
    auto session = decoder.new_session();
    skald::Batch batch;
    const Tokens tree{1, 2, 3};
    const std::vector<std::int32_t> parents{-1, 0, 0};
    batch.add_tree(session, tree, parents);
    CHECK_THROWS_AS(decoder.forward(batch), skald::IncompatibleError);
    CHECK(session.length() == 0);
    skald::AttentionScores scores;
    batch.clear();
    batch.add(session, tree);
    if (!keeps_tokens(model)) CHECK_THROWS_AS(decoder.forward(batch, {.scores = &scores}), skald::IncompatibleError);
    // Embeddings in place of tokens cannot be computed again.
    const std::vector<float> embeddings(static_cast<std::size_t>(20 * model.spec().dim), 0.25F);
    batch.clear();
    batch.add_embeddings(session, embeddings, 20);
    (void)decoder.forward(batch);
    CHECK_THROWS_AS(session.truncate(7), skald::UsageError);
    CHECK(session.length() == 20);
    CHECK_THROWS_AS(skald::Decoder(model, {.recurrent = {.checkpoint_interval = -1}}), skald::UsageError);
  }
}

TEST_CASE("decoder.recurrent: the plan, the configuration and the session agree on the bytes of state", "[decoder]") {
  for (const auto& architecture : skald_test::recurrent_architectures()) {
    INFO(architecture);
    const auto model = skald_test::recurrent_model(architecture);
    for (const std::int32_t kept : {0, 3}) {
      const skald::DecoderOptions options{.recurrent = {.checkpoint_interval = 32, .checkpoints = kept}, .parallel = 2};
      const skald::Decoder decoder(model, options);
      const auto plan = skald::plan(model.spec(), skald::DType::f32,
                                    {.sequences = 2, .checkpoint_interval = 32, .checkpoints = kept});
      auto session = decoder.new_session();
      CHECK(plan.recurrent == 2 * decoder.effective_config().recurrent_bytes);
      CHECK(session.bytes() == decoder.effective_config().recurrent_bytes);  // no token has a page yet
      (void)session.forward(some(5));
      CHECK(decoder.memory_bytes() == plan.activations);
      CHECK((plan.kv > 0) == keeps_tokens(model));
    }
  }
}

namespace {

/// Layers of which those marked 'a' have attention, 'l' latent attention, 'm' Mamba-2, 'c' a short convolution.
skald::ModelSpec mixture(const std::string& layers) {
  skald::GgufWriter ignored;
  const auto mamba = skald_test::recurrent_detail::recurrent_spec("mamba2", ignored, 64);
  const auto convolution = skald_test::recurrent_detail::recurrent_spec("lfm2", ignored, 64);
  auto spec = mamba;
  spec.architecture = "mixture";
  spec.ropes.push_back({.kind = skald::RopeKind::interleaved, .dims = 16});
  spec.layers.clear();
  for (const char kind : layers) {
    auto& layer = spec.layers.emplace_back();
    layer.attention_norm = layer.ffn_norm = spec.final_norm;
    layer.ffn = skald::FfnSpec{.width = 96};
    if (kind == 'm') layer.recurrent = mamba.layers[0].recurrent;
    if (kind == 'c') layer.recurrent = convolution.layers[0].recurrent;
    if (kind != 'a' && kind != 'l') continue;
    layer.attention = skald::AttentionSpec{.heads = 4, .kv_heads = 2, .head_dim_k = 32, .head_dim_v = 32};
    layer.attention->scale = 0.2F;
    layer.attention->rope = 0;
    if (kind == 'a') continue;
    layer.attention->kv_heads = 1;
    layer.attention->latent = skald::LatentSpec{.rank = 64, .rope_dims = 16, .norm = spec.final_norm};
  }
  return spec;
}

}  // namespace

// Apriel-H1, arXiv 2511.02651.
TEST_CASE("decoder.hybrid: one network runs with any share of attention layers, which alone hold pages", "[decoder]") {
  for (const std::string layers : {"aaaaa", "amama", "mmamm", "mmmmm"}) {
    INFO(layers);
    const auto attention = static_cast<std::size_t>(std::count(layers.begin(), layers.end(), 'a'));
    const auto model = skald_test::model_of(mixture(layers));
    const skald::Decoder decoder(model, {.kv = {.format = "f32", .page_tokens = 16}, .parallel = 8});
    const auto tokens = some(80);
    auto session = decoder.new_session();
    const auto expected = chunked(session, tokens, 1000);
    const auto constant = decoder.effective_config().recurrent_bytes;
    CHECK((constant == 0) == (attention == layers.size()));
    CHECK(session.bytes() == constant + attention * 80 * 2 * (32 + 32) * sizeof(float));
    // Batched with others, put aside and resumed, and begun from a remembered prefix.
    auto other = decoder.new_session();
    auto again = decoder.new_session();
    skald::Batch batch;
    batch.add(other, some(33, 3)).add(again, std::span(tokens).first(48));
    (void)decoder.forward(batch);
    skald::PrefixCache cache(decoder);
    (void)cache.insert(again);
    const auto aside = again.snapshot();
    again.clear();
    again.restore(aside);
    CHECK(same_bits(chunked(again, slice(tokens, 48, 80), 5), rows_of(expected, 48, 80)));
    auto reused = cache.new_session(tokens);
    CHECK(reused.length() == 48);
    CHECK(same_bits(chunked(reused, slice(tokens, 48, 80), 1000), rows_of(expected, 48, 80)));
  }
}

// Zebra-Llama, arXiv 2505.17272.
TEST_CASE("decoder.hybrid: latent attention among state-space layers caches latent rows and nothing else",
          "[decoder]") {
  for (const std::string layers : {"mlmm", "lmlm"}) {
    INFO(layers);
    const auto latent = static_cast<std::size_t>(std::count(layers.begin(), layers.end(), 'l'));
    const auto spec = mixture(layers);
    const auto plan = skald::plan(spec, skald::DType::f32, {.kv_type = skald::DType::f32});
    CHECK(plan.kv_per_token == latent * (64 + 16) * sizeof(float));
    const auto model = skald_test::model_of(spec);
    const auto reference = skald_test::model_of(spec, skald::DType::f32, {.backend = skald::make_reference_backend()});
    const skald::DecoderOptions options{.kv = {.format = "f32", .page_tokens = 16}};
    const skald::Decoder decoder(model, options);
    const auto tokens = some(40);
    auto session = decoder.new_session();
    (void)session.forward(std::span(tokens).first(16));
    const auto before = session.bytes();
    (void)session.forward(std::span(tokens).subspan(16, 16));
    CHECK(session.bytes() - before == 16 * plan.kv_per_token);
    auto whole = decoder.new_session();
    auto plain = skald::Decoder(reference, options).new_session();
    const auto found = chunked(whole, tokens, 7);
    const auto expected = chunked(plain, tokens, 1000);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(std::abs(found[i] - expected[i]) < 2e-3F);
  }
}

// PackMamba, arXiv 2408.03865.
TEST_CASE("decoder.packed: sequences of unequal lengths in one batch pass nothing over their borders, without padding",
          "[decoder][exact]") {
  const auto model = skald_test::model_of(mixture("mcm"));
  const skald::Decoder decoder(model, {.parallel = 8});
  const std::vector<std::int64_t> lengths{3, 17, 1, 40, 2};
  const auto run = [&](std::uint64_t changed) {
    std::vector<skald::Session> sessions;
    std::vector<Tokens> texts;
    skald::Batch batch;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      sessions.push_back(decoder.new_session());
      texts.push_back(some(lengths[s], s == 1 ? changed : 50 + s));
    }
    for (std::size_t s = 0; s < lengths.size(); ++s) batch.add(sessions[s], texts[s], skald::LogitsWanted::all);
    const auto logits = decoder.forward(batch);
    std::vector<std::pair<Rows, std::vector<std::byte>>> results;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      Rows rows;
      for (std::int64_t i = 0; i < logits.rows(s); ++i)
        rows.insert(rows.end(), logits.row(s, i).begin(), logits.row(s, i).end());
      results.emplace_back(rows, sessions[s].snapshot());
    }
    return results;
  };
  const auto before = decoder.counters().tokens;
  const auto packed = run(51);
  CHECK(decoder.counters().tokens - before == 3 + 17 + 1 + 40 + 2);
  const auto other = run(99);
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    auto alone = decoder.new_session();
    CHECK(same_bits(chunked(alone, some(lengths[s], 50 + s), 1000), packed[s].first));
    CHECK(alone.snapshot() == packed[s].second);  // the final states
    CHECK((other[s].second == packed[s].second) == (s != 1));
  }
}

TEST_CASE("decoder.recurrent: a gated convolution keeps taps - 1 inputs per channel as its whole state", "[decoder]") {
  const auto spec = mixture("cc");
  CHECK(spec.layers[0].state_elements(64) == (3 - 1) * 64);
  const skald::Decoder decoder(skald_test::model_of(spec), {.recurrent = {.checkpoints = 0}});
  CHECK(decoder.effective_config().recurrent_bytes == 2 * 2 * (3 - 1) * 64 * sizeof(float));
  CHECK(decoder.effective_config().kv_format == "none");
}
