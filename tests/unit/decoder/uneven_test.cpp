// A network whose layers differ in head counts and widths and lack parts: batches, forks, truncation.
#include <skald/decoder/decoder.hpp>
#include <skald/simd/isa.hpp>

#include "support/catch.hpp"
#include "support/shared_data.hpp"
#include "support/tiny_model.hpp"

namespace {

std::vector<float> rows_of(const skald::Logits& logits, std::size_t entry = 0) {
  const auto first = logits.row(entry, 0).data();
  return {first, first + logits.rows(entry) * logits.vocabulary()};
}

}  // namespace

TEST_CASE("decoder.uneven: layers of different widths run in batches, forks and after truncation to the same bits",
          "[decoder][exact]") {
  if (!skald_test::have_shared("goldens/models")) return;
  for (const std::string name : {"deci", "gemma2", "gptneox", "bloom", "olmo2"})
    for (const auto isa : skald::available_isas()) {
      INFO(name << " " << skald::to_string(isa));
      const auto backend = skald::make_backend("cpu:isa=" + std::string(skald::to_string(isa)));
      const auto model = skald::Model::load(skald_test::shared_path("goldens/models/" + name + ".gguf"),
                                            {.backend = backend, .tokenizer = false});
      const skald::Decoder<> decoder(model, {.kv = {.page_tokens = 16}});
      const auto tokens = skald_test::some_tokens(60, model.spec().vocabulary);
      const auto all = std::span<const skald::TokenId>(tokens);
      auto alone = decoder.new_session();
      const auto expected = rows_of(alone.forward(all, skald::LogitsWanted::all));

      auto a = decoder.new_session();
      auto b = decoder.new_session();
      skald::Batch batch;
      batch.add(a, all.first(23), skald::LogitsWanted::none).add(b, all, skald::LogitsWanted::all);
      CHECK(rows_of(decoder.forward(batch), 1) == expected);

      const std::vector<float> tail(expected.begin() + 23 * model.spec().vocabulary, expected.end());
      auto fork = a.fork();
      fork.forward(all.first(9));  // writes to its own copy
      CHECK(rows_of(a.forward(all.subspan(23), skald::LogitsWanted::all)) == tail);
      b.truncate(50);
      const std::vector<float> end(expected.begin() + 50 * model.spec().vocabulary, expected.end());
      CHECK(rows_of(b.forward(all.subspan(50), skald::LogitsWanted::all)) == end);
      auto restored = decoder.new_session();
      b.truncate(55);
      restored.restore(b.snapshot());
      const std::vector<float> last(expected.begin() + 55 * model.spec().vocabulary, expected.end());
      CHECK(rows_of(restored.forward(all.subspan(55), skald::LogitsWanted::all)) == last);
    }
}
