#include <algorithm>
#include <cstdio>
#include <optional>

#include <fmt/format.h>

#include "common.hpp"

namespace skald_cli {

namespace {

struct ChatFlags {
  ModelFlags model;
  DecoderFlags decoder;
  AdapterFlags adapters;
  SamplerFlags sampler;
  std::string system;
  std::string template_file;
  bool jinja = true;
  std::int64_t max_tokens = 512;
};

std::optional<skald::ChatTemplate> own_template(const ChatFlags& flags, const skald::Tokenizer& tokenizer) {
  if (flags.template_file.empty()) return std::nullopt;
  const auto text = [&](skald::TokenId token) {
    return token < 0 ? std::string{} : std::string(tokenizer.token_text(token));
  };
  return skald::ChatTemplate(read_input(flags.template_file), text(tokenizer.bos()), text(tokenizer.eos()));
}

int run(const ChatFlags& flags, const Global& global) {
  const auto model = flags.model.load(global);
  const skald::Decoder decoder(model, flags.decoder.options(model.spec(), global));
  skald::GenerateOptions options;
  options.max_tokens = std::max<std::int64_t>(flags.max_tokens, -1);
  options.sampler = flags.sampler.options(model.tokenizer());
  options.stop_token = stop_on_interrupt();
  auto session = decoder.new_session();
  flags.adapters.apply(session);
  skald::Chat chat(std::move(session), options, flags.system, own_template(flags, model.tokenizer()));
  if (!global.quiet)
    fmt::print(stderr, "{}; an empty line or the end of input ends the conversation\n", model.info().description);
  while (true) {
    if (!global.quiet) fmt::print(stderr, "> ");
    const auto line = read_line();
    if (!line || line->empty()) break;
    auto& reply = chat.send(*line);
    for (const auto& piece : reply)
      if (!piece.text.empty()) write_out(piece.text);
    write_out("\n");
    if (!global.quiet) {
      const auto timing = reply.timing();
      fmt::print(stderr, "[{} new prompt tokens, {} generated, {:.1f} tokens/s, {}]\n", timing.prompt_tokens,
                 timing.generated_tokens, timing.tokens_per_second(), skald::to_string(reply.finish_reason()));
    }
    if (reply.finish_reason() == skald::FinishReason::cancelled) throw skald::CancelledError("cli.chat", "interrupted");
    if (reply.finish_reason() == skald::FinishReason::context)
      throw skald::UsageError("cli.chat", "the context of " + std::to_string(chat.session().context()) +
                                              " tokens is full; give a larger -c");
  }
  return exit_ok;
}

}  // namespace

void add_chat(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command =
      app.add_subcommand("chat", "Talk with a model, with its own chat template; lines from standard input");
  auto flags = std::make_shared<ChatFlags>();
  flags->model.add_to(*command);
  flags->decoder.add_to(*command);
  flags->adapters.add_to(*command);
  flags->sampler.add_to(*command);
  command->add_option("--sys,--system,--system-prompt", flags->system, "System message");
  command->add_option("--chat-template-file", flags->template_file, "Chat template (Jinja) instead of the model's own");
  command->add_flag("--jinja", flags->jinja, "Templates are Jinja: always so");
  command->add_option("-n,--predict,--n-predict", flags->max_tokens, "Most tokens per reply; -1: until it ends")
      ->check(CLI::Range(std::int64_t{-1}, INT64_MAX))
      ->capture_default_str();
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
