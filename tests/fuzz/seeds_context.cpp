// Writes the first inputs of fuzz_context.cpp into the folder named by the argument.

#include <filesystem>

#include <skald/decoder/context_file.hpp>
#include <skald/decoder/decoder.hpp>

#include "support/context_model.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  const skald::Decoder decoder(skald_test::context_model(), skald::DecoderOptions{.context = 128});
  const std::filesystem::path folder(argv[1]);
  for (const std::int64_t count : {0, 3, 40}) {
    auto session = decoder.new_session();
    if (count > 0) (void)session.forward(skald_test::some_tokens(count, 64), skald::LogitsWanted::none);
    skald::save_context(session, (folder / ("seed" + std::to_string(count))).string(),
                        {.steps = {0.2F, 1.0F}, .chunk_tokens = 16});
  }
  return 0;
}
