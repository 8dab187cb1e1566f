#include <algorithm>

#include <fmt/format.h>

#include "common.hpp"

namespace skald_cli {

namespace {

struct CalibrateFlags {
  ModelFlags model;
  std::string file;
  std::string output;
  skald::CalibrateOptions options;
};

int run(const CalibrateFlags& flags, const Global& global) {
  const auto text = read_input(flags.file);
  const auto model = flags.model.load(global);
  const auto tokens = model.tokenizer().encode(text);
  // Pieces of the size of a context, so that keys and values of all positions are learned from.
  const auto length = static_cast<std::size_t>(choose_context(std::nullopt, model.spec()));
  std::vector<std::vector<skald::TokenId>> texts;
  for (std::size_t i = 0; i < tokens.size(); i += length)
    texts.emplace_back(tokens.begin() + static_cast<std::ptrdiff_t>(i),
                       tokens.begin() + static_cast<std::ptrdiff_t>(std::min(tokens.size(), i + length)));
  ProgressLine progress(global.quiet);
  auto options = flags.options;
  options.stop = stop_on_interrupt();
  options.progress = progress.callback("calibrating");
  const auto books = skald::calibrate_coupled(model, texts, options);
  books.save(flags.output);
  progress.show("");
  write_out(fmt::format("{}: {} channels in {} bits, codebooks of {}\n", flags.output, books.shape().channels,
                        books.shape().bits, human_bytes(books.bytes())));
  return exit_ok;
}

}  // namespace

void add_calibrate(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("calibrate", "Learn the codebooks of the KV format 'coupled' from a text");
  auto flags = std::make_shared<CalibrateFlags>();
  flags->model.add_to(*command);
  command->add_option("-f,--file", flags->file, "Text file; -: standard input")->required();
  command->add_option("-o,--output", flags->output, "File of codebooks, for --kv-codebooks")->required();
  command->add_option("--channels", flags->options.shape.channels, "Neighbouring channels that share a code")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--bits", flags->options.shape.bits, "Bits of a code; bits / channels are taken per channel")
      ->check(CLI::Range(1, 12))
      ->capture_default_str();
  command->add_option("--tokens", flags->options.tokens, "Most tokens to learn from")
      ->check(at_least(1))
      ->capture_default_str();
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
