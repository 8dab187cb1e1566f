// skald: run, inspect, measure and compare models from the command line. Everything here is a call of the public
// library; the program adds flags, files and printing.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "common.hpp"

namespace {

using skald_cli::Global;

// Flags that llama.cpp's programs spell with one dash and several letters. They are registered with two, because the
// parser would read `-ub` as `-u b`; what the user sees and writes has one.
constexpr const char* one_dash[] = {"ub", "ctk", "ctv", "np", "pg", "mmp", "fa", "ngl", "tb", "md", "sys"};

class Formatter : public CLI::Formatter {
  std::string make_option_name(const CLI::Option* option, bool is_positional) const override {
    auto name = CLI::Formatter::make_option_name(option, is_positional);
    for (const std::string flag : one_dash) {
      const auto at = name.find("--" + flag + ",");
      if (at != std::string::npos) name.erase(at, 1);
    }
    return name;
  }
};

/// True for `-ub`: one dash and at least two characters, the first two of them letters.
bool is_one_dash_word(const std::string& text) {
  const auto letter = [&](std::size_t i) {
    return (text[i] >= 'a' && text[i] <= 'z') || (text[i] >= 'A' && text[i] <= 'Z');
  };
  return text.size() >= 3 && text[0] == '-' && letter(1) && letter(2);
}

/// The arguments as the parser wants them (in reverse): one-dash words get their second dash, values stay as they are.
struct Arguments {
  std::vector<std::string> reversed;
  std::vector<std::string> changed;  // what got a second dash
  std::string unknown_command{};     // what stands where a subcommand should
};

Arguments normalized(const CLI::App& app, int argc, char** argv) {
  Arguments result;
  const CLI::App* command = &app;
  bool is_value = false;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    if (is_value) {
      is_value = false;
    } else if (argument.size() > 1 && argument[0] == '-') {
      if (is_one_dash_word(argument)) {
        argument.insert(0, 1, '-');
        result.changed.push_back(argument);
      }
      const auto name = argument.substr(0, argument.find('='));
      const auto* option = command->get_option_no_throw(name);
      is_value = option != nullptr && option->get_items_expected_min() > 0 && name.size() == argument.size();
    } else if (command == &app) {
      for (const auto* candidate : app.get_subcommands([](const CLI::App*) { return true; }))
        if (candidate->get_name() == argument) command = candidate;
      if (command == &app && result.unknown_command.empty()) result.unknown_command = argument;
    }
    result.reversed.push_back(std::move(argument));
  }
  std::reverse(result.reversed.begin(), result.reversed.end());
  return result;
}

std::string error_json(std::string_view code, std::string_view message) {
  return nlohmann::ordered_json{{"code", code}, {"message", message}}.dump(
      -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

int report(const Global& global, const std::string& line, const std::string& json,
           int exit_code = skald_cli::exit_error) {
  std::fprintf(stderr, "%s\n", global.json_errors ? json.c_str() : ("error: " + line).c_str());
  return exit_code;
}

int usage_error(const Global& global, const CLI::App& app, std::string message, const std::vector<std::string>& changed,
                const std::string& unknown_command) {
  for (const auto& argument : changed) {  // as it was written
    const auto at = message.find(argument);
    if (at != std::string::npos) message.erase(at, 1);
  }
  const auto chosen = app.get_subcommands();
  const std::string help = chosen.empty() ? "skald --help" : "skald " + chosen.front()->get_name() + " --help";
  if (!unknown_command.empty()) message = "there is no subcommand '" + unknown_command + "'";
  else if (message.find("was not expected: ") != std::string::npos && message.find("was not expected: -") == std::string::npos)
    message += "; options begin with -, a model is given with -m";
  message = skald::printable(message, 600);
  return report(global, message + " (see " + help + ")", error_json("usage", message), skald_cli::exit_usage);
}

int run(const Global& global, const std::vector<skald_cli::Command>& commands) {
  try {
    for (const auto& command : commands)
      if (command.app->parsed()) return command.run();
    return skald_cli::exit_usage;
  } catch (const skald::CancelledError&) {  // wherever it was noticed
    return report(global, "interrupted", error_json("cancelled", "interrupted"));
  } catch (const skald::Error& error) {
    return report(global, error.what(), error.to_json());
  } catch (const std::bad_alloc&) {
    return report(global, "out of memory", error_json("out_of_memory", "out of memory"));
  } catch (const std::exception& error) {
    const auto line = skald::printable(error.what(), 600);
    return report(global, line, error_json("internal", line));
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace skald_cli;
  std::signal(SIGPIPE, SIG_IGN);  // a reader that has gone is an error with a message and an exit code
  Global global;
  CLI::App app{"skald " + std::string(skald::library_version()) + ": language-model inference", "skald"};
  app.formatter(std::make_shared<Formatter>());
  app.set_version_flag("--version", std::string("skald ") + skald::library_version());
  app.add_flag("--json-errors", global.json_errors, "Print errors as one JSON object on stderr");
  app.add_flag("-q,--quiet", global.quiet, "No progress, warnings or statistics on stderr");
  app.footer("Exit codes: 0; 1 for an error, one line 'error: ...' on stderr; 2 for wrong usage.");
  app.require_subcommand(1);
  app.fallthrough();
  std::vector<Command> commands;
  add_generate(app, global, commands);
  add_chat(app, global, commands);
  add_bench(app, global, commands);
  add_inspect(app, global, commands);
  add_convert(app, global, commands);
  add_calibrate(app, global, commands);
  add_perplexity(app, global, commands);
  add_eval(app, global, commands);
  add_tokenize(app, global, commands);
  add_detokenize(app, global, commands);
  add_embed(app, global, commands);
  add_logits(app, global, commands);
  const auto arguments = normalized(app, argc, argv);
  try {
    auto copy = arguments.reversed;
    app.parse(copy);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    // The parser may have stopped before it came to this flag.
    const auto& all = arguments.reversed;
    global.json_errors = std::find(all.begin(), all.end(), "--json-errors") != all.end();
    return usage_error(global, app, error.what(), arguments.changed, arguments.unknown_command);
  }
  const InterruptGuard guard;
  return run(global, commands);
}
