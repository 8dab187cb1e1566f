#include <cstdio>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/model/gguf/vocabulary.hpp>

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
  std::string ids;
};

skald::Tokenizer tokenizer_of(const std::string& path) {
  return skald::Tokenizer(skald::vocabulary_from_metadata(skald::open_gguf(path).metadata()));
}

std::string input(const TokenizeFlags& flags) {
  if (flags.from_stdin) return read_input("-");
  if (!flags.file.empty()) return read_input(flags.file);
  return flags.text;
}

int tokenize(const TokenizeFlags& flags) {
  const auto ids = tokenizer_of(flags.model).encode(
      input(flags), {.add_special = !flags.no_add_special, .parse_special = !flags.no_parse_special});
  fmt::print("{}\n", nlohmann::json(ids).dump());
  return exit_ok;
}

int detokenize(const TokenizeFlags& flags) {
  const auto text = flags.ids.empty() ? input(flags) : flags.ids;
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_array()) throw skald::FormatError("cli.detokenize", "the input is not a JSON array of token ids");
  std::vector<skald::TokenId> ids;
  for (const auto& id : json) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > 0x7FFFFFFF)
      throw skald::FormatError("cli.detokenize", "'" + id.dump() + "' is not a token id");
    ids.push_back(id.get<skald::TokenId>());
  }
  const auto decoded = tokenizer_of(flags.model).decode(ids);
  std::fwrite(decoded.data(), 1, decoded.size(), stdout);
  return exit_ok;
}

void add_input(CLI::App& command, TokenizeFlags& flags) {
  command.add_option("-m,--model", flags.model, "GGUF model or vocabulary file")->required();
  auto* group = command.add_option_group("input");
  group->add_option("-f,--file", flags.file, "File with the input");
  group->add_flag("--stdin", flags.from_stdin, "Read the input from standard input");
  group->require_option(1);
}

}  // namespace

void add_tokenize(CLI::App& app, Global&, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("tokenize", "Text to a JSON array of token ids");
  auto flags = std::make_shared<TokenizeFlags>();
  add_input(*command, *flags);
  command->get_option_group("input")->add_option("--text,-p,--prompt", flags->text, "The text");
  command->add_flag("--no-add-special,--no-bos", flags->no_add_special, "No BOS or EOS");
  command->add_flag("--no-parse-special", flags->no_parse_special, "Text that spells control tokens stays text");
  commands.push_back({command, [flags] { return tokenize(*flags); }});
}

void add_detokenize(CLI::App& app, Global&, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("detokenize", "A JSON array of token ids to text");
  auto flags = std::make_shared<TokenizeFlags>();
  add_input(*command, *flags);
  command->get_option_group("input")->add_option("--ids", flags->ids, "The array, e.g. [1,2,3]");
  commands.push_back({command, [flags] { return detokenize(*flags); }});
}

}  // namespace skald_cli
