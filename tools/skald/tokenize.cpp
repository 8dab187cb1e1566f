#include <cstdio>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/model/huggingface/directory.hpp>
#include <skald/model/huggingface/gguf_vocabulary.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

struct TokenizeFlags {
  std::string model;
  std::string text;
  std::string file;
  bool from_stdin = false;
  bool no_add_special = false;
  bool no_parse_special = false;
  bool keep_spaces = false;
};

skald::Tokenizer tokenizer_of(const std::string& path) {
  const auto file = skald::open_model(path);
  if (auto tokenizer = skald::tokenizer_from_metadata(file.metadata())) return *std::move(tokenizer);
  throw skald::UnsupportedError("cli", "the model has no tokenizer", {.file = path});
}

std::string input(const TokenizeFlags& flags) {
  if (flags.from_stdin) return read_input("-");
  if (!flags.file.empty()) return read_input(flags.file);
  return flags.text;
}

int tokenize(const TokenizeFlags& flags) {
  const auto text = input(flags);
  const auto ids = tokenizer_of(flags.model)
                       .encode(text, {.add_special = !flags.no_add_special, .parse_special = !flags.no_parse_special});
  write_out(nlohmann::json(ids).dump() + "\n");
  return exit_ok;
}

std::vector<skald::TokenId> ids_of(const std::string& text) {
  const auto refuse = [](const std::string& found) {
    throw skald::FormatError("cli.detokenize", found + ": a JSON array of token ids is needed, as [1,2,3]");
  };
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) refuse("the input is not JSON");
  if (!json.is_array()) refuse(std::string("the input is JSON of type ") + json.type_name());
  std::vector<skald::TokenId> ids;
  for (const auto& id : json) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > 0x7FFFFFFF)
      refuse("element " + std::to_string(ids.size()) + " is no token id");
    ids.push_back(id.get<skald::TokenId>());
  }
  return ids;
}

int detokenize(const TokenizeFlags& flags) {
  const auto ids = ids_of(input(flags));
  const auto tokenizer = tokenizer_of(flags.model);
  write_out(tokenizer.decode(ids, {.clean_up_spaces = !flags.keep_spaces && tokenizer.cleans_up_spaces()}));
  return exit_ok;
}

void add_input(CLI::App& command, TokenizeFlags& flags, const char* text_names, const char* text_help) {
  command.add_option("-m,--model", flags.model, "GGUF model or vocabulary file, or a Hugging Face folder")->required();
  auto* group = command.add_option_group("Input", "exactly one of");
  group->add_option(text_names, flags.text, text_help);
  group->add_option("-f,--file", flags.file, "File with the input; -: standard input")
      ->check([](const std::string& path) {
        return path.empty() ? std::string("the name of a file is needed") : std::string{};
      });
  group->add_flag("--stdin", flags.from_stdin, "Read the input from standard input");
  group->require_option(1);
}

}  // namespace

void add_tokenize(CLI::App& app, Global&, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("tokenize", "Text to a JSON array of token ids");
  auto flags = std::make_shared<TokenizeFlags>();
  add_input(*command, *flags, "-p,--text,--prompt", "The text");
  command->add_flag("--no-add-special,--no-bos", flags->no_add_special, "No BOS or EOS");
  command->add_flag("--no-parse-special", flags->no_parse_special, "Text that spells control tokens stays text");
  commands.push_back({command, [flags] { return tokenize(*flags); }});
}

void add_detokenize(CLI::App& app, Global&, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("detokenize", "A JSON array of token ids to text");
  auto flags = std::make_shared<TokenizeFlags>();
  add_input(*command, *flags, "--text,--ids", "The array, e.g. [1,2,3]");
  command->add_flag("--keep-spaces", flags->keep_spaces,
                    "Keep spaces before punctuation that the vocabulary asks to remove");
  commands.push_back({command, [flags] { return detokenize(*flags); }});
}

}  // namespace skald_cli
