// Bit-exactness (a token's logits depend on the tokens before it and on nothing else).
#include <algorithm>
#include <cstring>

#include <skald/decoder/decoder.hpp>
#include <skald/model/plan.hpp>
#include <skald/simd/isa.hpp>

#include "rows.hpp"
#include "support/catch.hpp"
#include "support/tiny_model.hpp"

namespace {

using skald_test::chunked, skald_test::copy, skald_test::cpu, skald_test::Rows, skald_test::same_bits;

constexpr std::int64_t prompt_length = 300;

const std::vector<skald::DType> exact_formats{skald::DType::f32,  skald::DType::f16,  skald::DType::bf16,
                                              skald::DType::q8_0, skald::DType::q4_0, skald::DType::q4_1,
                                              skald::DType::q5_0, skald::DType::q5_1, skald::DType::q4_k,
                                              skald::DType::q5_k, skald::DType::q6_k};
/// All that matrices are stored in.
const std::vector<skald::DType> all_formats = [] {
  auto types = exact_formats;
  for (const auto type : skald::block_formats())
    if (skald::dtype_info(type).quantized && std::find(types.begin(), types.end(), type) == types.end()) types.push_back(type);
  return types;
}();

}  // namespace

TEST_CASE("decoder.exact: chunks, batches, threads, batch size, layout and page size change no bit", "[decoder][exact]") {
  for (const auto isa : skald::available_isas())
    for (const auto type : exact_formats) {
      INFO(skald::to_string(isa) << " " << skald::to_string(type));
      const skald_test::TinyShape shape{.type = type};
      const auto tokens = skald_test::some_tokens(prompt_length, shape.vocabulary);
      const auto model = skald_test::tiny_model(shape, {.backend = cpu(isa, 4)});
      const skald::Decoder decoder(model);
      auto session = decoder.new_session();
      const auto expected = chunked(session, tokens, tokens.size());
      REQUIRE(expected.size() == static_cast<std::size_t>(prompt_length * shape.vocabulary));

      for (const std::size_t chunk : {1u, 7u, 64u}) {
        INFO("chunks of " << chunk);
        auto other = decoder.new_session();
        CHECK(same_bits(chunked(other, tokens, chunk), expected));
      }
      for (const int threads : {1, 2, 3}) {
        INFO(threads << " threads");
        const auto fewer = skald_test::tiny_model(shape, {.backend = cpu(isa, threads)});
        auto other = skald::Decoder(fewer, {.batch_tokens = 40 * threads}).new_session();
        CHECK(same_bits(chunked(other, tokens, tokens.size()), expected));
      }
      {
        INFO("rows layout, pages of 16, two heads per group");
        const auto rows = skald_test::tiny_model(shape, {.backend = cpu(isa, 2), .layout = skald::WeightLayout::rows});
        auto other = skald::Decoder(rows, {.kv = {.page_tokens = 16, .heads_per_group = 2}}).new_session();
        CHECK(same_bits(chunked(other, tokens, 150), expected));
      }
    }
}

TEST_CASE("decoder.exact: eight sequences together equal each alone", "[decoder][exact]") {
  for (const auto isa : skald::available_isas())
    for (const auto type : exact_formats) {
      INFO(skald::to_string(isa) << " " << skald::to_string(type));
      const skald_test::TinyShape shape{.type = type};
      const auto model = skald_test::tiny_model(shape, {.backend = cpu(isa, 3)});
      const skald::Decoder decoder(model, {.parallel = 20});
      std::vector<std::vector<skald::TokenId>> prompts;
      std::vector<Rows> alone;
      for (int s = 0; s < 8; ++s) {
        prompts.push_back(skald_test::some_tokens(5 + 13 * s, shape.vocabulary, 100 + s));
        auto session = decoder.new_session();
        alone.push_back(chunked(session, prompts.back(), 1000));
        for (int step = 0; step < 3; ++step) {
          const auto row = copy(session.forward({&prompts.back()[static_cast<std::size_t>(step)], 1}));
          alone.back().insert(alone.back().end(), row.begin(), row.end());
        }
      }
      std::vector<skald::Session> sessions;
      for (int s = 0; s < 8; ++s) sessions.push_back(decoder.new_session());
      std::vector<Rows> together(8);
      const auto collect = [&](const skald::Logits& logits) {
        for (std::size_t s = 0; s < 8; ++s)
          for (std::int64_t i = 0; i < logits.rows(s); ++i) {
            const auto row = logits.row(s, i);
            together[s].insert(together[s].end(), row.begin(), row.end());
          }
      };
      skald::Batch batch;
      for (std::size_t s = 0; s < 8; ++s) batch.add(sessions[s], prompts[s], skald::LogitsWanted::all);
      collect(decoder.forward(batch));
      for (int step = 0; step < 3; ++step) {
        batch.clear();
        for (std::size_t s = 0; s < 8; ++s) batch.add(sessions[s], {&prompts[s][static_cast<std::size_t>(step)], 1});
        collect(decoder.forward(batch));
      }
      for (std::size_t s = 0; s < 8; ++s) CHECK(same_bits(together[s], alone[s]));
    }
}

TEST_CASE("decoder.exact: experts keep their bits in chunks, batches and on any number of threads", "[decoder][exact]") {
  for (const auto isa : skald::available_isas())
    for (const auto type : {skald::DType::f32, skald::DType::f16, skald::DType::q8_0, skald::DType::q4_k}) {
      INFO(skald::to_string(isa) << " " << skald::to_string(type));
      const std::int64_t width = type == skald::DType::f32 ? 150 : 256;
      const skald_test::TinyShape shape{.ffn = width, .experts = 7, .experts_used = 3, .type = type};
      const auto tokens = skald_test::some_tokens(130, shape.vocabulary);
      const auto model = skald_test::tiny_model(shape, {.backend = cpu(isa, 3)});
      const skald::Decoder decoder(model, {.parallel = 8});
      auto session = decoder.new_session();
      const auto expected = chunked(session, tokens, tokens.size());
      for (const std::size_t chunk : {1u, 2u, 9u, 64u}) {
        INFO("chunks of " << chunk);
        auto other = decoder.new_session();
        CHECK(same_bits(chunked(other, tokens, chunk), expected));
      }
      for (const int threads : {1, 2, 4}) {
        INFO(threads << " threads");
        const auto layout = threads == 2 ? skald::WeightLayout::rows : skald::WeightLayout::packed;
        const auto fewer = skald_test::tiny_model(shape, {.backend = cpu(isa, threads), .layout = layout});
        auto other = skald::Decoder(fewer, {.batch_tokens = 25 * threads}).new_session();
        CHECK(same_bits(chunked(other, tokens, tokens.size()), expected));
      }
      // The same tokens beside other sequences, and one that has a batch of one token for itself.
      std::vector<skald::Session> sessions;
      for (int s = 0; s < 4; ++s) sessions.push_back(decoder.new_session());
      skald::Batch batch;
      std::vector<std::vector<skald::TokenId>> others;
      for (int s = 0; s < 4; ++s)
        others.push_back(s == 2 ? tokens : skald_test::some_tokens(3 + 20 * s, shape.vocabulary, 300 + s));
      for (std::size_t s = 0; s < 4; ++s) batch.add(sessions[s], others[s], skald::LogitsWanted::all);
      const auto logits = decoder.forward(batch);
      Rows found;
      for (std::int64_t i = 0; i < logits.rows(2); ++i) found.insert(found.end(), logits.row(2, i).begin(), logits.row(2, i).end());
      CHECK(same_bits(found, expected));
      CHECK(decoder.memory_bytes() ==
            skald::activation_bytes(model.spec(), decoder.effective_config().batch_tokens, 130 + 3 + 23 + 63));
    }
}

TEST_CASE("decoder.exact: resumed, forked and truncated sessions equal fresh ones", "[decoder][exact]") {
  for (const auto isa : skald::available_isas())
    for (const auto type : exact_formats)
      for (const auto* kv : {"f32", "f16", "bf16", "q8_0", "q4_0"}) {
        if (std::string(kv) != "f16" && type != skald::DType::q8_0) continue;
        INFO(skald::to_string(isa) << " " << skald::to_string(type) << " kv " << kv);
        const skald_test::TinyShape shape{.type = type};
        const auto model = skald_test::tiny_model(shape, {.backend = cpu(isa, 2)});
        const skald::Decoder decoder(model, {.kv = {.format = kv}});
        const auto tokens = skald_test::some_tokens(prompt_length, shape.vocabulary);
        const auto first = std::vector(tokens.begin(), tokens.begin() + 200);
        const auto rest = std::vector(tokens.begin() + 200, tokens.end());
        auto whole = decoder.new_session();
        (void)chunked(whole, first, 1000);
        const auto expected = chunked(whole, rest, 1000);

        auto saved = decoder.new_session();
        (void)chunked(saved, first, 1000);
        const auto bytes = saved.snapshot();
        auto restored = skald::Decoder(model, {.kv = {.format = kv}}).new_session();
        restored.restore(bytes);
        CHECK(same_bits(chunked(restored, rest, 33), expected));

        auto fork = saved.fork();
        auto other = skald_test::some_tokens(90, shape.vocabulary, 77);
        (void)chunked(saved, other, 1000);
        CHECK(same_bits(chunked(fork, rest, 1000), expected));
        saved.truncate(200);
        CHECK(same_bits(chunked(saved, rest, 17), expected));
        fork.truncate(150);
        const auto middle = std::vector(tokens.begin() + 150, tokens.begin() + 200);
        (void)chunked(fork, middle, 1000);
        CHECK(same_bits(chunked(fork, rest, 1000), expected));
      }
}

TEST_CASE("decoder.exact: random ragged batches equal the sequences one token at a time", "[decoder][exact]") {
  constexpr std::size_t length = 30, count_of_sequences = 3;
  const auto isas = skald::available_isas();
  for (std::size_t f = 0; f < all_formats.size(); ++f) {
    const auto type = all_formats[f];
    // Odd sizes: rows that are no multiple of 16, one KV head.
    const skald_test::TinyShape shape{.vocabulary = 301, .dim = 256, .layers = 2, .heads = 8, .kv_heads = 1, .head_dim = 96,
                                      .ffn = 768, .type = type, .seed = 9};
    const auto file = skald_test::tiny_gguf(shape);  // encoding takes longer than all the rest
    for (std::size_t i = 0; i < isas.size(); ++i) {
      // Every format on every number of threads, if there are five instruction sets; every number for each set.
      const int threads = 1 + static_cast<int>((f + i) % 5);
      INFO(skald::to_string(isas[i]) << " " << skald::to_string(type) << " " << threads << " threads");
      const auto model = skald::Model::load({skald::SpanSource(file), "tiny"}, {.backend = cpu(isas[i], threads), .tokenizer = false});
      const skald::Decoder decoder(model, {.parallel = 16, .batch_tokens = 41});
      skald::CounterRandom random(42, f, i);
      std::vector<skald::Session> sessions;
      std::vector<std::vector<skald::TokenId>> tokens;
      std::vector<Rows> found(count_of_sequences);
      for (std::size_t s = 0; s < count_of_sequences; ++s) {
        sessions.push_back(decoder.new_session());
        tokens.push_back(skald_test::some_tokens(length, shape.vocabulary, 200 + s));
      }
      skald::Batch batch;
      while (true) {
        batch.clear();
        std::vector<std::size_t> members;
        for (std::size_t s = 0; s < count_of_sequences; ++s) {
          const auto at = static_cast<std::size_t>(sessions[s].length());
          const auto count = std::min<std::size_t>(random.next() % 30, tokens[s].size() - at);
          if (count == 0) continue;
          batch.add(sessions[s], std::span(tokens[s]).subspan(at, count), skald::LogitsWanted::all);
          members.push_back(s);
        }
        if (batch.size() == 0) {
          if (std::all_of(sessions.begin(), sessions.end(), [](auto& s) { return s.length() == length; })) break;
          continue;
        }
        const auto logits = decoder.forward(batch);
        for (std::size_t m = 0; m < members.size(); ++m)
          for (std::int64_t i = 0; i < logits.rows(m); ++i) {
            const auto row = logits.row(m, i);
            found[members[m]].insert(found[members[m]].end(), row.begin(), row.end());
          }
      }
      for (std::size_t s = 0; s < count_of_sequences; ++s) {
        auto session = decoder.new_session();
        CHECK(same_bits(chunked(session, tokens[s], 1), found[s]));
      }
    }
  }
}

TEST_CASE("decoder.exact: a token tree gives each branch the logits of its own path", "[decoder][exact]") {
  const skald_test::TinyShape shape{.type = skald::DType::q8_0};
  const auto model = skald_test::tiny_model(shape);
  const skald::Decoder decoder(model);
  const auto prompt = skald_test::some_tokens(30, shape.vocabulary);
  auto session = decoder.new_session();
  (void)session.forward(prompt);
  //        0        path a: 0 1 3, path b: 0 2 4
  //      1   2
  //      3   4
  const std::vector<skald::TokenId> tree{11, 12, 13, 14, 15};
  const std::vector<std::int32_t> parents{-1, 0, 0, 1, 2};
  skald::Batch batch;
  batch.add_tree(session, tree, parents);
  const auto rows = copy(decoder.forward(batch));
  const auto check_path = [&](const std::vector<std::int32_t>& path) {
    auto plain = decoder.new_session();
    (void)plain.forward(prompt);
    for (const auto node : path) {
      const auto expected = plain.forward({&tree[static_cast<std::size_t>(node)], 1}).last();
      double worst = 0;
      for (std::size_t i = 0; i < expected.size(); ++i)
        worst = std::max(worst, std::abs(static_cast<double>(expected[i]) -
                                         rows[static_cast<std::size_t>(node) * expected.size() + i]));
      CHECK(worst < 1e-4);  // the slots differ from those of the plain path, so the sums run in another order
    }
  };
  check_path({0, 1, 3});
  check_path({0, 2, 4});
  CHECK(session.length() == 30);
  const skald::TokenId next = 7;
  CHECK_THROWS_AS(session.forward({&next, 1}), skald::UsageError);  // not accepted yet
  const std::int32_t path[] = {0, 2, 4};
  session.accept(path);
  CHECK(session.length() == 33);
  CHECK(session.tokens()[31] == 13);
  auto plain = decoder.new_session();
  (void)plain.forward(prompt);
  const std::vector<skald::TokenId> chosen{11, 13, 15};
  (void)plain.forward(chosen);
  const auto a = copy(session.forward({&next, 1}));
  const auto b = copy(plain.forward({&next, 1}));
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(a[i] == Approx(b[i]).margin(1e-3));
}
