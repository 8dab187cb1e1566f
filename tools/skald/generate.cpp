#include <cstdio>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

struct GenerateFlags {
  ModelFlags model;
  DecoderFlags decoder;
  SamplerFlags sampler;
  std::string prompt;
  std::string file;
  std::int64_t max_tokens = 256;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool no_display_prompt = false;
  bool parse_special = false;
  bool json = false;
  bool show_config = false;
  int logprobs = 0;
  std::string save;
  std::string load;
};

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

int run(const GenerateFlags& flags, const Global& global) {
  const auto model = flags.model.load(global);
  const skald::Decoder decoder(model, flags.decoder.options());
  if (flags.show_config) fmt::print(stderr, "{}\n", decoder.effective_config().to_json());
  auto session = decoder.new_session();
  if (!flags.load.empty()) session.load(flags.load);
  const std::string prompt = flags.file.empty() ? flags.prompt : read_input(flags.file);

  ProgressLine progress(global.quiet);
  skald::GenerateOptions options;
  options.max_tokens = flags.max_tokens;
  options.sampler = flags.sampler.options;
  options.stop = flags.stop;
  options.ignore_eos = flags.ignore_eos;
  options.parse_special = flags.parse_special;
  options.logprobs = flags.logprobs;
  options.stop_token = stop_on_interrupt();
  options.progress = progress.callback("prompt");
  auto generation = skald::generate(session, prompt, options);
  nlohmann::ordered_json logprobs = nlohmann::ordered_json::array();
  if (!flags.json && !flags.no_display_prompt) print(prompt);
  for (const auto& piece : generation) {
    progress.show("");
    if (!flags.json) print(piece.text);
    if (flags.json && flags.logprobs > 0 && piece.token >= 0) {
      nlohmann::ordered_json top = nlohmann::ordered_json::array();
      for (const auto& entry : piece.top) top.push_back({{"token", entry.token}, {"logprob", entry.logprob}});
      logprobs.push_back({{"token", piece.token}, {"logprob", piece.logprob}, {"top", std::move(top)}});
    }
  }
  if (!flags.save.empty()) session.save(flags.save);
  const auto timing = generation.timing();
  if (flags.json) {
    nlohmann::ordered_json json{{"prompt", prompt},
                                {"text", generation.text()},
                                {"tokens", std::vector<skald::TokenId>(generation.tokens().begin(), generation.tokens().end())},
                                {"finish_reason", skald::to_string(generation.finish_reason())},
                                {"timings",
                                 {{"prompt_n", timing.prompt_tokens},
                                  {"prompt_ms", timing.prompt_seconds * 1e3},
                                  {"prompt_per_second", timing.prompt_tokens_per_second()},
                                  {"ttft_ms", timing.first_token_seconds * 1e3},
                                  {"predicted_n", timing.generated_tokens},
                                  {"predicted_ms", timing.decode_seconds * 1e3},
                                  {"predicted_per_second", timing.tokens_per_second()}}}};
    if (flags.logprobs > 0) json["logprobs"] = std::move(logprobs);
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return exit_ok;
  }
  fmt::print("\n");
  if (!global.quiet)
    fmt::print(stderr,
               "\nprompt {} tokens, {:.1f} tokens/s; first token after {:.0f} ms; generated {} tokens, {:.1f} tokens/s ({})\n",
               timing.prompt_tokens, timing.prompt_tokens_per_second(), timing.first_token_seconds * 1e3,
               timing.generated_tokens, timing.tokens_per_second(), skald::to_string(generation.finish_reason()));
  if (generation.finish_reason() == skald::FinishReason::cancelled)
    throw skald::CancelledError("cli.generate", "interrupted");
  return exit_ok;
}

}  // namespace

void add_generate(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("generate", "Continue a text");
  auto flags = std::make_shared<GenerateFlags>();
  flags->model.add_to(*command);
  flags->decoder.add_to(*command);
  flags->sampler.add_to(*command);
  command->add_option("-p,--prompt", flags->prompt, "Text to continue");
  command->add_option("-f,--file", flags->file, "File with the text; -: standard input")->excludes("--prompt");
  command->add_option("-n,--n-predict,--predict", flags->max_tokens, "Most tokens to generate; -1: until the end")->capture_default_str();
  command->add_option("--stop,-r,--reverse-prompt", flags->stop, "Text that ends generation (may be repeated)");
  command->add_flag("--ignore-eos", flags->ignore_eos, "Do not end at end-of-generation tokens");
  command->add_flag("--no-display-prompt", flags->no_display_prompt, "Print only the generated text");
  command->add_flag("--special,--parse-special", flags->parse_special, "Text of the prompt that spells control tokens becomes them");
  command->add_flag("--json", flags->json, "Print one JSON object with text, tokens and timings");
  command->add_option("--logprobs", flags->logprobs, "With --json: report the n most probable tokens of each step");
  command->add_flag("--show-config", flags->show_config, "Print what is really active as JSON on stderr");
  command->add_option("--save-session", flags->save, "Write the session to a file in the end");
  command->add_option("--load-session", flags->load, "Continue a session from a file");
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
