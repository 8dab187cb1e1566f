#include <algorithm>
#include <cstring>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/core/file.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

struct LogitsFlags {
  ModelFlags model;
  DecoderFlags decoder;
  std::vector<skald::TokenId> tokens;
  int greedy = 0;
  std::string output;
};

int run(const LogitsFlags& flags, const Global& global) {
  const auto model = flags.model.load(global, false);
  auto options = flags.decoder.options();
  if (options.context == 0)
    options.context = std::max<std::int64_t>(std::min<std::int64_t>(model.spec().context_length, 4096),
                                             static_cast<std::int64_t>(flags.tokens.size()) + flags.greedy);
  const skald::Decoder decoder(model, options);
  auto session = decoder.new_session();
  ProgressLine progress(global.quiet);
  const auto logits = session.forward(flags.tokens, skald::LogitsWanted::all, stop_on_interrupt(), progress.callback("logits"));
  const auto rows = logits.rows();
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * logits.vocabulary()) * sizeof(float));
  std::memcpy(bytes.data(), logits.row(0).data(), bytes.size());
  nlohmann::ordered_json json{{"shape", {rows, logits.vocabulary()}},
                              {"dtype", "f32"},
                              {"tokens", flags.tokens},
                              {"model", flags.model.path}};
  if (flags.greedy > 0) {
    std::vector<skald::TokenId> greedy;
    std::vector<float> row(logits.last().begin(), logits.last().end());
    for (int i = 0; i < flags.greedy; ++i) {
      greedy.push_back(static_cast<skald::TokenId>(std::max_element(row.begin(), row.end()) - row.begin()));
      if (i + 1 == flags.greedy) break;
      const auto next = session.forward({&greedy.back(), 1}).last();
      row.assign(next.begin(), next.end());
    }
    json["greedy"] = greedy;
  }
  json["config"] = nlohmann::ordered_json::parse(decoder.effective_config().to_json());
  const auto text = json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  skald::write_file_atomically(flags.output, bytes);
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
  command->add_option("--tokens", flags->tokens, "Token ids: 1,2,3")->required()->delimiter(',');
  command->add_option("--greedy", flags->greedy, "Also continue greedily by n tokens")->check(CLI::NonNegativeNumber);
  command->add_option("-o,--output", flags->output, "File for the logits; FILE.json gets shape and greedy ids")->required();
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
