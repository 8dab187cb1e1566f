#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/core/file.hpp>

#include "common.hpp"
#include "plot.hpp"

namespace skald_cli {

namespace {

struct EvalFlags {
  ModelFlags model;
  DecoderFlags decoder;
  skald::EvalOptions options;
  std::vector<std::string> policies;
  std::vector<std::string> formats;
  std::vector<double> budgets;
  std::string file;
  std::string csv;
  std::string svg;
  bool json = false;
};

/// One decoder configuration.
struct Configuration {
  std::string format;
  std::string policy;    ///< as given
  std::string eviction;  ///< with its budget
  double percent = 100;  ///< of the longest item, that the budget is
};

struct Row {
  Configuration configuration;
  skald::EvalResult result;
};

/// Every format with every policy at every budget. What has no budget to set runs once.
std::vector<Configuration> configurations(const EvalFlags& flags, std::int64_t longest) {
  const auto policies = flags.policies.empty() ? std::vector<std::string>{flags.decoder.eviction} : flags.policies;
  const auto formats = flags.formats.empty() ? std::vector<std::string>{flags.decoder.cache_k} : flags.formats;
  const auto page = flags.decoder.page_tokens;
  const auto whole = (longest + page - 1) / page * page;
  std::vector<Configuration> result;
  for (const auto& format : formats)
    for (const auto& policy : policies) {
      if (flags.budgets.empty()) {
        result.push_back({format, policy, policy, 100});
        continue;
      }
      for (const double percent : flags.budgets) {
        const auto tokens = std::max<std::int64_t>(1, std::llround(static_cast<double>(whole) * percent / 100));
        const auto eviction = skald::eviction_with_budget(policy, tokens, whole, page);
        result.push_back({format, policy, eviction, eviction == policy ? 100 : percent});
        if (eviction == policy) break;
      }
    }
  return result;
}

std::vector<skald::EvalItem> items_of(const EvalFlags& flags, const skald::Tokenizer& tokenizer, bool chosen) {
  std::vector<skald::EvalItem> items;
  if (!flags.file.empty()) items = skald::eval_items_of_text(tokenizer, read_input(flags.file), flags.options.length);
  if (flags.file.empty() || chosen) {
    auto more = skald::make_eval_items(tokenizer, flags.options);
    std::move(more.begin(), more.end(), std::back_inserter(items));
  }
  return items;
}

constexpr const char* csv_header =
    "kv_format,policy,eviction,budget_percent,task,items,answers,right_answers,recall,tokens,token_accuracy,nll,"
    "perplexity,kv_bytes,tokens_per_second\n";

std::string csv_line(const Row& row) {
  const auto& [configuration, result] = row;
  return fmt::format("{},\"{}\",\"{}\",{:g},{},{},{},{},{:.6f},{},{:.6f},{:.6f},{:.6f},{:.1f},{:.1f}\n",
                     configuration.format, configuration.policy, configuration.eviction, configuration.percent,
                     result.task, result.items, result.answers, result.right_answers, result.recall(), result.tokens,
                     result.token_accuracy(), result.mean_nll(), result.perplexity(), result.mean_kv_bytes(),
                     result.tokens_per_second());
}

nlohmann::ordered_json json_of(const Row& row) {
  const auto& [configuration, result] = row;
  return {{"kv_format", configuration.format},
          {"policy", configuration.policy},
          {"eviction", configuration.eviction},
          {"budget_percent", configuration.percent},
          {"task", result.task},
          {"items", result.items},
          {"answers", result.answers},
          {"right_answers", result.right_answers},
          {"recall", result.recall()},
          {"tokens", result.tokens},
          {"token_accuracy", result.token_accuracy()},
          {"nll", result.mean_nll()},
          {"perplexity", result.perplexity()},
          {"kv_bytes", result.mean_kv_bytes()},
          {"tokens_per_second", result.tokens_per_second()}};
}

bool counts_perplexity(const std::string& task) { return task == "perplexity" || task == "text"; }

std::string table(const std::vector<Row>& rows) {
  std::string out =
      "| KV     | eviction                         | budget % | task                | recall | tokens right | "
      "perplexity | KV KiB |    t/s |\n"
      "| ------ | -------------------------------- | -------: | ------------------- | -----: | -----------: | "
      "---------: | -----: | -----: |\n";
  for (const auto& row : rows) {
    const auto& result = row.result;
    out += fmt::format("| {:<6} | {:<32} | {:>8g} | {:<19} | {:>6} | {:>12.3f} | {:>10.4f} | {:>6.1f} | {:>6.0f} |\n",
                       row.configuration.format, row.configuration.eviction, row.configuration.percent, result.task,
                       counts_perplexity(result.task) ? "" : fmt::format("{:.3f}", result.recall()),
                       result.token_accuracy(), result.perplexity(), result.mean_kv_bytes() / 1024,
                       result.tokens_per_second());
  }
  return out;
}

/// One file per task: PREFIX-TASK.svg.
void plot(const std::string& prefix, const std::vector<Row>& rows) {
  std::map<std::string, Plot> plots;
  const bool several_formats = std::any_of(rows.begin(), rows.end(), [&](const Row& row) {
    return row.configuration.format != rows.front().configuration.format;
  });
  for (const auto& row : rows) {
    auto& plot = plots[row.result.task];
    const bool perplexity = counts_perplexity(row.result.task);
    plot.title = row.result.task;
    plot.x_label = "KiB of keys and values held";
    plot.y_label = perplexity                  ? "perplexity"
                   : row.result.task == "copy" ? "share of tokens right"
                                               : "share of answers right";
    plot.from_zero = !perplexity;
    const auto name =
        several_formats ? row.configuration.policy + " " + row.configuration.format : row.configuration.policy;
    auto found = std::find_if(plot.series.begin(), plot.series.end(), [&](const Series& s) { return s.name == name; });
    if (found == plot.series.end()) found = plot.series.insert(found, Series{name, {}});
    found->points.emplace_back(row.result.mean_kv_bytes() / 1024, perplexity ? row.result.perplexity()
                                                                  : row.result.task == "copy"
                                                                      ? row.result.token_accuracy()
                                                                      : row.result.recall());
  }
  for (auto& [task, chart] : plots) {
    for (auto& series : chart.series) std::sort(series.points.begin(), series.points.end());
    auto name = task;
    std::replace(name.begin(), name.end(), '/', '-');
    const auto text = to_svg(chart);
    skald::write_file_atomically(prefix + "-" + name + ".svg", std::as_bytes(std::span(text)));
  }
}

int run(const EvalFlags& flags, const Global& global, bool tasks_chosen) {
  for (const double percent : flags.budgets)
    if (!(percent > 0 && percent <= 100))
      throw skald::UsageError("cli.eval",
                              fmt::format("a budget of {} %: more than 0 and at most 100 is allowed", percent));
  const auto model = flags.model.load(global);
  const auto items = items_of(flags, model.tokenizer(), tasks_chosen);
  std::int64_t longest = 0;
  for (const auto& item : items) longest = std::max(longest, static_cast<std::int64_t>(item.tokens.size()));
  const auto chosen = configurations(flags, longest);
  std::ofstream csv;
  const auto write = [&](const std::string& line) {
    if (flags.csv.empty()) return;
    csv << line << std::flush;  // the file can be read while it grows
    if (!csv) throw skald::IoError("cli.eval", std::string("cannot write: ") + std::strerror(errno), {.file = flags.csv});
  };
  if (!flags.csv.empty()) csv.open(flags.csv);
  write(csv_header);
  ProgressLine progress(global.quiet);
  const auto stop = stop_on_interrupt();
  std::vector<Row> rows;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    auto decoder_flags = flags.decoder;
    decoder_flags.cache_k = chosen[i].format;
    decoder_flags.eviction = chosen[i].eviction;
    auto options = decoder_flags.options(model.spec(), global, longest);
    const skald::Decoder decoder(model, options);
    auto session = decoder.new_session();
    const auto results = skald::evaluate(session, items, stop, [&](const skald::Progress& p) {
      progress.show(fmt::format("{}/{} {} {}: {}/{}", i + 1, chosen.size(), chosen[i].format, chosen[i].eviction,
                                p.done, p.total));
    });
    for (const auto& result : results) {
      rows.push_back({chosen[i], result});
      write(csv_line(rows.back()));
    }
  }
  progress.show("");
  if (!flags.svg.empty()) plot(flags.svg, rows);
  if (flags.json) {
    auto all = nlohmann::ordered_json::array();
    for (const auto& row : rows) all.push_back(json_of(row));
    write_out(all.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    write_out(table(rows));
  }
  return exit_ok;
}

}  // namespace

void add_eval(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command =
      app.add_subcommand("eval", "Perplexity and recall on fresh text, for KV formats, eviction policies and budgets");
  auto flags = std::make_shared<EvalFlags>();
  flags->decoder.page_tokens = 16;  // short texts
  flags->model.add_to(*command);
  flags->decoder.add_to(*command);
  auto& options = flags->options;
  auto* tasks = command
                    ->add_option("--tasks", options.tasks,
                                 "Of the story grammar: perplexity, questions, passkey, copy, facts (default: all)")
                    ->delimiter(',');
  command
      ->add_option("--kinds", options.kinds,
                   "Kinds of questions: where, who_moved, number, likes, feels, who_is (default: those that the "
                   "bundled model answers)")
      ->delimiter(',');
  command->add_option("--length", options.length, "Tokens of an item")->capture_default_str();
  command->add_option("--items", options.items, "Items of each task")->capture_default_str();
  command->add_option("--facts", options.facts, "Questions of an item of 'facts'")->capture_default_str();
  command->add_option("-s,--seed", options.seed, "Seed of the texts")->capture_default_str();
  command->add_option(
      "-f,--file", flags->file,
      "Text whose perplexity is taken too, or alone without --tasks, in pieces of --length; -: standard input");
  command->add_option(
      "--policy", flags->policies,
      "Eviction policy to compare, in place of --kv-eviction; may be repeated. {tokens}, {pages} or {percent} "
      "in it stand for the budget");
  command->add_option("--formats", flags->formats, "KV formats to compare, in place of -ctk")->delimiter(',');
  command->add_option("--budgets", flags->budgets, "Budgets of the policies, in percent of the longest item: 100,50,25")
      ->delimiter(',');
  command->add_option("--csv", flags->csv, "Write one line per configuration and task");
  command->add_option("--svg", flags->svg, "PREFIX of plots over the bytes held, PREFIX-TASK.svg");
  command->add_flag("--json", flags->json, "Print the rows as JSON");
  commands.push_back({command, [flags, tasks, &global] { return run(*flags, global, tasks->count() > 0); }});
}

}  // namespace skald_cli
