// Latent attention and mixtures of experts through the whole decoder: what is cached, and that nothing but a token's past
// changes its logits.
#include <cstring>

#include <skald/decoder/decoder.hpp>
#include <skald/model/plan.hpp>
#include <skald/simd/isa.hpp>

#include "support/shared_data.hpp"

namespace {

using Rows = std::vector<float>;

std::vector<skald::TokenId> some_tokens(std::size_t count) {
  std::vector<skald::TokenId> tokens;
  for (std::size_t i = 0; i < count; ++i) tokens.push_back(static_cast<skald::TokenId>(3 + (i * i * 7 + i) % 250));
  return tokens;
}

Rows rows_of(const skald::Logits& logits) {
  const auto first = logits.row(0).data();
  return {first, first + logits.rows() * logits.vocabulary()};
}

bool same_bits(const Rows& a, const Rows& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::string golden(const std::string& name) { return skald_test::shared_path("goldens/models/" + name + ".gguf"); }

}  // namespace

TEST_CASE("decoder.latent: a token's cache is the latent row and the rotated part of one key", "[decoder]") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const auto* name : {"deepseek2-lite", "deepseek3"}) {
    const auto model = skald::Model::load(golden(name), {.backend = skald::make_reference_backend()});
    std::size_t elements = 0;
    std::int64_t layers = 0;
    for (const auto& layer : model.spec().layers) {
      REQUIRE(layer.attention);
      REQUIRE(layer.attention->latent);
      elements += static_cast<std::size_t>(layer.attention->latent->rank + layer.attention->latent->rope_dims);
      ++layers;
    }
    for (const auto& [format, bytes] : {std::pair("f32", 4U), std::pair("f16", 2U)}) {
      INFO(name << ", " << format);
      const auto type = bytes == 4 ? skald::DType::f32 : skald::DType::f16;
      CHECK(skald::plan(golden(name), {.backend = model.backend(), .kv_type = type}).kv_per_token == elements * bytes);
      // 64 tokens are one page of each layer; a page of these sizes is a multiple of 64 bytes.
      const skald::Decoder decoder(model, {.kv = {.format = format}});
      auto session = decoder.new_session();
      static_cast<void>(session.forward(some_tokens(64)));
      CHECK(session.bytes() == 64 * elements * bytes);
    }
  }
}

TEST_CASE("decoder.latent: chunks, batches, threads, forks and truncation change no bit", "[decoder][exact]") {
  if (!skald_test::have_shared("goldens/models")) return;
  const auto tokens = some_tokens(90);
  for (const auto* name : {"deepseek3", "gpt-oss", "qwen2moe"})
    for (const auto isa : skald::available_isas()) {
      INFO(name << " on " << skald::to_string(isa));
      const auto load = [&](int threads) {
        return skald::Model::load(golden(name),
                                  {.backend = skald::make_backend("cpu:isa=" + std::string(skald::to_string(isa)) +
                                                                  ",threads=" + std::to_string(threads))});
      };
      const skald::Decoder decoder(load(3));
      auto whole = decoder.new_session();
      const auto expected = rows_of(whole.forward(tokens, skald::LogitsWanted::all));
      const auto vocabulary = static_cast<std::ptrdiff_t>(decoder.model().spec().vocabulary);
      for (const int threads : {1, 4}) {
        const skald::Decoder other(load(threads), {.batch_tokens = 20});
        auto session = other.new_session();
        Rows found;
        for (std::size_t i = 0; i < tokens.size(); i += 9) {
          const auto rows = rows_of(session.forward(std::span(tokens).subspan(i, 9), skald::LogitsWanted::all));
          found.insert(found.end(), rows.begin(), rows.end());
        }
        CHECK(same_bits(found, expected));
      }
      auto one_by_one = decoder.new_session();
      Rows found;
      for (std::size_t i = 0; i < 40; ++i) {
        const auto row = rows_of(one_by_one.forward({&tokens[i], 1}));
        found.insert(found.end(), row.begin(), row.end());
      }
      CHECK(same_bits(found, {expected.begin(), expected.begin() + 40 * vocabulary}));
      auto fork = one_by_one.fork();
      one_by_one.truncate(25);
      const auto again = rows_of(one_by_one.forward(std::span(tokens).subspan(25, 30), skald::LogitsWanted::all));
      CHECK(same_bits(again, {expected.begin() + 25 * vocabulary, expected.begin() + 55 * vocabulary}));
      const auto forked = rows_of(fork.forward(std::span(tokens).subspan(40), skald::LogitsWanted::all));
      CHECK(same_bits(forked, {expected.begin() + 40 * vocabulary, expected.end()}));
    }
}
