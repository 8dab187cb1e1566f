#include <algorithm>
#include <cstdio>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

struct GenerateFlags {
  ModelFlags model;
  DecoderFlags decoder;
  AdapterFlags adapters;
  SamplerFlags sampler;
  std::string prompt;
  std::string file;
  std::int64_t max_tokens = 256;
  std::vector<std::string> stop;
  bool escape = false;
  bool ignore_eos = false;
  bool no_display_prompt = false;
  bool parse_special = false;
  bool json = false;
  bool show_config = false;
  int logprobs = 0;
  std::string save;
  std::string load;
  std::string save_context;
  std::string load_context;
  std::vector<float> context_steps = skald::ContextSaveOptions{}.steps;
  int context_level = 0;
};

using nlohmann::ordered_json;

/// \n, \r, \t, \', \" and \\ as in C; anything else stays as it is.
std::string unescaped(const std::string& text) {
  constexpr std::string_view names = "nrt'\"\\";
  constexpr std::string_view values = "\n\r\t'\"\\";
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto name = text[i] == '\\' && i + 1 < text.size() ? names.find(text[i + 1]) : std::string_view::npos;
    result += name == std::string_view::npos ? text[i] : values[name];
    if (name != std::string_view::npos) ++i;
  }
  return result;
}

std::string prompt_of(const GenerateFlags& flags) {
  auto text = flags.prompt;
  if (!flags.file.empty()) {
    text = read_input(flags.file);
    if (text.ends_with('\n')) text.pop_back();  // the one that editors end files with
  }
  return flags.escape ? unescaped(text) : text;
}

ordered_json result_json(const std::string& prompt, const skald::Generation& generation, std::uint64_t seed) {
  const auto timing = generation.timing();
  return {{"prompt", prompt},
          {"text", generation.text()},
          {"tokens", std::vector<skald::TokenId>(generation.tokens().begin(), generation.tokens().end())},
          {"finish_reason", skald::to_string(generation.finish_reason())},
          {"seed", seed},
          {"timings",
           {{"prompt_n", timing.prompt_tokens},
            {"prompt_ms", timing.prompt_seconds * 1e3},
            {"prompt_per_second", timing.prompt_tokens_per_second()},
            {"ttft_ms", timing.first_token_seconds * 1e3},
            {"predicted_n", timing.generated_tokens},
            {"predicted_ms", timing.decode_seconds * 1e3},
            {"predicted_per_second", timing.tokens_per_second()}}}};
}

int run(const GenerateFlags& flags, const Global& global) {
  if (flags.max_tokens < -2)
    throw skald::UsageError(
        "cli.generate", fmt::format("-n {}: -1 (until the end), -2 (until the context is full) or a number of tokens",
                                    flags.max_tokens));
  const auto prompt = prompt_of(flags);
  const auto model = flags.model.load(global);
  const skald::Decoder decoder(model, flags.decoder.options(model.spec(), global));
  if (flags.show_config) fmt::print(stderr, "{}\n", decoder.effective_config().to_json());
  auto session = decoder.new_session();
  flags.adapters.apply(session);
  ProgressLine progress(global.quiet);
  if (!flags.load.empty()) session.load(flags.load);
  if (!flags.load_context.empty())
    skald::ContextFile::open(flags.load_context)
        .load(session, {.level = flags.context_level,
                        .stop = stop_on_interrupt(),
                        .progress = progress.callback("loading context")});

  skald::GenerateOptions options;
  options.max_tokens = std::max<std::int64_t>(flags.max_tokens, -1);
  options.sampler = flags.sampler.options(model.tokenizer());
  options.stop = flags.stop;
  options.ignore_eos = flags.ignore_eos || flags.max_tokens == -2;
  options.parse_special = flags.parse_special;
  options.logprobs = flags.logprobs;
  options.stop_token = stop_on_interrupt();
  options.progress = progress.callback("prompt");
  auto generation = skald::generate(session, prompt, options);
  auto logprobs = ordered_json::array();
  if (!flags.json && !flags.no_display_prompt) write_out(prompt);
  for (const auto& piece : generation) {
    progress.show("");
    if (!flags.json && !piece.text.empty()) write_out(piece.text);
    if (flags.json && flags.logprobs > 0 && piece.token >= 0) {
      auto top = ordered_json::array();
      for (const auto& entry : piece.top) top.push_back({{"token", entry.token}, {"logprob", entry.logprob}});
      logprobs.push_back({{"token", piece.token}, {"logprob", piece.logprob}, {"top", std::move(top)}});
    }
  }
  if (!flags.save.empty()) session.save(flags.save);
  if (!flags.save_context.empty())
    skald::save_context(session, flags.save_context, {.steps = flags.context_steps, .stop = stop_on_interrupt()});
  if (flags.json) {
    auto json = result_json(prompt, generation, options.sampler.seed);
    if (flags.logprobs > 0) json["logprobs"] = std::move(logprobs);
    write_out(json.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  } else {
    write_out("\n");
    const auto timing = generation.timing();
    if (!global.quiet)
      fmt::print(stderr,
                 "\nprompt {} tokens, {:.1f} tokens/s; first token after {:.0f} ms; generated {} tokens, {:.1f} "
                 "tokens/s ({})\n",
                 timing.prompt_tokens, timing.prompt_tokens_per_second(), timing.first_token_seconds * 1e3,
                 timing.generated_tokens, timing.tokens_per_second(), skald::to_string(generation.finish_reason()));
  }
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
  flags->adapters.add_to(*command);
  flags->sampler.add_to(*command);
  command->add_option("-p,--prompt", flags->prompt, "Text to continue");
  command->add_option("-f,--file", flags->file, "File with the text, without its last line end; -: standard input")
      ->excludes("--prompt");
  command->add_flag("-e,--escape,!--no-escape", flags->escape,
                    "Read \\n, \\r, \\t, \\', \\\" and \\\\ in the prompt as in C");
  command->add_flag("--parse-special", flags->parse_special,
                    "Text of the prompt that spells control tokens becomes them");
  command->add_flag("--no-display-prompt", flags->no_display_prompt, "Print only the generated text");
  command
      ->add_option("-n,--predict,--n-predict", flags->max_tokens,
                   "Most tokens to generate; -1: until the end; -2: until the context is full")
      ->capture_default_str();
  command->add_option("-r,--stop,--reverse-prompt", flags->stop, "Text that ends generation; may be repeated");
  command->add_flag("--ignore-eos", flags->ignore_eos, "Do not end at end-of-generation tokens");
  auto* json = command->add_flag("--json", flags->json, "Print one JSON object with text, tokens and timings");
  command->add_option("--logprobs", flags->logprobs, "Report the n most probable tokens of each step")
      ->check(CLI::Range(0, 1024))
      ->needs(json);
  command->add_flag("--show-config", flags->show_config, "Print what is really active as JSON on stderr");
  command->add_option("--save-session", flags->save, "Write the session to a file in the end");
  auto* load = command->add_option("--load-session", flags->load, "Continue a session from a file");
  auto* save_context =
      command->add_option("--save-context", flags->save_context, "Write the session compressed, with loss, in the end");
  auto* load_context =
      command->add_option("--load-context", flags->load_context, "Continue a compressed session from a file")->excludes(load);
  command
      ->add_option("--context-steps", flags->context_steps,
                   "Quality levels of --save-context: steps in standard deviations, the finest first")
      ->delimiter(',')
      ->needs(save_context)
      ->capture_default_str();
  command
      ->add_option("--context-level", flags->context_level,
                   "Which of its levels --load-context takes; -1: its tokens are computed again")
      ->check(CLI::Range(-1, 15))
      ->needs(load_context)
      ->capture_default_str();
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
