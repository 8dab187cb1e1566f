// skald: run, inspect, measure and compare models from the command line. Everything here is a call of the public
// library; the program adds flags, files and printing.
#include <cstdio>
#include <exception>
#include <new>

#include "common.hpp"

namespace {

int report(const skald_cli::Global& global, const std::string& line, const std::string& json) {
  std::fprintf(stderr, "%s\n", global.json_errors ? json.c_str() : ("error: " + line).c_str());
  return skald_cli::exit_error;
}

std::string plain_json(const std::string& code, const std::string& message) {
  return skald::Error(skald::ErrorCode::usage, "cli", message).to_json().replace(9, 5, code);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace skald_cli;
  Global global;
  CLI::App app{"skald " + std::string(skald::library_version()) + ": language-model inference", "skald"};
  app.set_version_flag("--version", std::string("skald ") + skald::library_version());
  app.add_flag("--json-errors", global.json_errors, "Print errors as one JSON object");
  app.add_flag("-q,--quiet", global.quiet, "No progress on stderr");
  app.require_subcommand(1);
  app.fallthrough();
  std::vector<Command> commands;
  add_generate(app, global, commands);
  add_chat(app, global, commands);
  add_bench(app, global, commands);
  add_inspect(app, global, commands);
  add_perplexity(app, global, commands);
  add_tokenize(app, global, commands);
  add_detokenize(app, global, commands);
  add_logits(app, global, commands);
  std::vector<std::string> arguments;
  for (int i = argc - 1; i > 0; --i) {
    // llama.cpp's two-letter flags with one dash.
    std::string argument = argv[i];
    for (const char* flag : {"-ub", "-ctk", "-ctv", "-np", "-pg", "-mmp", "-fa", "-ngl", "-tb", "-md"})
      if (argument == flag) argument = "-" + argument;
    arguments.push_back(std::move(argument));
  }
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    if (global.json_errors) std::fprintf(stderr, "%s\n", plain_json("usage", error.what()).c_str());
    else app.exit(error);
    return exit_usage;
  }
  try {
    for (const auto& command : commands)
      if (command.app->parsed()) return command.run();
    return exit_usage;
  } catch (const skald::Error& error) {
    return report(global, error.what(), error.to_json());
  } catch (const std::bad_alloc&) {
    return report(global, "out of memory", plain_json("out_of_memory", "out of memory"));
  } catch (const std::exception& error) {
    return report(global, error.what(), plain_json("internal", error.what()));
  }
}
