#include <algorithm>
#include <bit>
#include <charconv>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/core/file.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

using nlohmann::ordered_json;

struct LogitsFlags {
  ModelFlags model;
  DecoderFlags decoder;
  AdapterFlags adapters;
  std::string tokens;
  int greedy = 0;
  std::string output;
};

/// Numbers between commas, with or without the brackets and spaces of a JSON array.
std::vector<skald::TokenId> ids_of(std::string_view text) {
  std::vector<skald::TokenId> ids;
  const auto trim = [](std::string_view part) {
    while (part.starts_with(' ')) part.remove_prefix(1);
    while (part.ends_with(' ') || part.ends_with('\n')) part.remove_suffix(1);
    return part;
  };
  text = trim(text);
  if (text.starts_with('[') && text.ends_with(']')) text = text.substr(1, text.size() - 2);
  while (true) {
    const auto comma = text.find(',');
    const auto part = trim(text.substr(0, comma));
    skald::TokenId id = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), id);
    if (error != std::errc{} || end != part.data() + part.size())
      throw skald::UsageError("cli.logits",
                              "--tokens: '" + std::string(part) + "' is no token id; ids are written 1,2,3");
    ids.push_back(id);
    if (comma == std::string_view::npos) return ids;
    text.remove_prefix(comma + 1);
  }
}

static_assert(std::endian::native == std::endian::little, "the output is little-endian");

int run(const LogitsFlags& flags, const Global& global) {
  const auto tokens = ids_of(flags.tokens);
  const auto model = flags.model.load(global, false);
  // Without -c the context grows with what is asked for.
  const auto needed = static_cast<std::int64_t>(tokens.size()) + flags.greedy;
  auto options = flags.decoder.options(model.spec(), global);
  if (!flags.decoder.context) options.context = std::max(options.context, needed);
  const skald::Decoder decoder(model, options);
  auto session = decoder.new_session();
  flags.adapters.apply(session);
  skald::AtomicFile output(flags.output);
  ProgressLine progress(global.quiet);
  const auto stop = stop_on_interrupt();
  const auto logits = session.forward(tokens, skald::LogitsWanted::all, stop, progress.callback("logits"));
  const auto vocabulary = logits.vocabulary();
  ordered_json json{
      {"shape", {logits.rows(), vocabulary}}, {"dtype", "f32"}, {"tokens", tokens}, {"model", flags.model.path}};
  output.write(std::as_bytes(std::span(logits.row(0).data(), static_cast<std::size_t>(logits.rows() * vocabulary))));
  if (flags.greedy > 0) {
    std::vector<skald::TokenId> greedy;
    auto row = logits.last();
    while (true) {
      greedy.push_back(static_cast<skald::TokenId>(std::max_element(row.begin(), row.end()) - row.begin()));
      if (static_cast<int>(greedy.size()) == flags.greedy) break;
      row = session.forward({&greedy.back(), 1}, skald::LogitsWanted::last, stop).last();
    }
    json["greedy"] = greedy;
  }
  json["config"] = ordered_json::parse(decoder.effective_config().to_json());
  const auto text = json.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  output.commit();
  skald::write_file_atomically(flags.output + ".json", std::as_bytes(std::span(text)));
  return exit_ok;
}

}  // namespace

void add_logits(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("logits", "Logits of all positions as little-endian f32, for comparing engines");
  auto flags = std::make_shared<LogitsFlags>();
  flags->decoder.cache_k = "f32";
  flags->model.add_to(*command);
  flags->decoder.add_to(*command);
  flags->adapters.add_to(*command);
  command->add_option("--tokens", flags->tokens, "Token ids: 1,2,3, or the array that tokenize prints")->required();
  command->add_option("--greedy", flags->greedy, "Also continue greedily by n tokens")->check(CLI::Range(0, 1 << 20));
  command->add_option("-o,--output", flags->output, "FILE for the logits; FILE.json gets shape and greedy ids")
      ->required();
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
