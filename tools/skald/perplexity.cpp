#include <cmath>
#include <fstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

struct PerplexityFlags {
  ModelFlags model;
  DecoderFlags decoder;
  std::string file;
  std::string csv;
  std::int64_t chunks = -1;
  bool json = false;
};

double log_probability(std::span<const float> logits, skald::TokenId token) {
  float most = logits[0];
  for (const float value : logits) most = std::max(most, value);
  double sum = 0.0;
  for (const float value : logits) sum += std::exp(static_cast<double>(value - most));
  return static_cast<double>(logits[static_cast<std::size_t>(token)] - most) - std::log(sum);
}

/// Chunks of `context` tokens, each on an empty session; the second half of each counts (as llama.cpp measures it).
int run(const PerplexityFlags& flags, const Global& global) {
  const auto model = flags.model.load(global);
  auto options = flags.decoder.options();
  if (options.context == 0) options.context = std::min<std::int64_t>(model.spec().context_length, 512);
  const auto context = options.context;
  const skald::Decoder decoder(model, options);
  const auto& tokenizer = model.tokenizer();
  const auto tokens = tokenizer.encode(read_input(flags.file));
  if (static_cast<std::int64_t>(tokens.size()) < context)
    throw skald::UsageError("cli.perplexity", "the text has " + std::to_string(tokens.size()) + " tokens, one chunk of " +
                                                  std::to_string(context) + " is needed; give a longer text or a smaller -c");
  auto count = static_cast<std::int64_t>(tokens.size()) / context;
  if (flags.chunks >= 0) count = std::min(count, flags.chunks);
  const auto first = context / 2;
  ProgressLine progress(global.quiet);
  std::ofstream csv;
  if (!flags.csv.empty()) {
    csv.open(flags.csv);
    if (!csv) throw skald::IoError("cli.perplexity", "cannot write", {.file = flags.csv});
    csv << "chunk,tokens,chunk_nll,chunk_perplexity,nll,perplexity,standard_error\n";
  }
  auto session = decoder.new_session();
  double sum = 0.0;
  double squares = 0.0;
  std::int64_t scored = 0;
  for (std::int64_t c = 0; c < count; ++c) {
    session.clear();
    std::vector<skald::TokenId> chunk(tokens.begin() + c * context, tokens.begin() + (c + 1) * context);
    if (tokenizer.adds_bos() && tokenizer.bos() >= 0) chunk[0] = tokenizer.bos();
    const auto logits = session.forward(chunk, skald::LogitsWanted::all, stop_on_interrupt());
    double chunk_sum = 0.0;
    for (std::int64_t i = first; i + 1 < context; ++i) {
      const double nll = -log_probability(logits.row(i), chunk[static_cast<std::size_t>(i + 1)]);
      chunk_sum += nll;
      squares += nll * nll;
    }
    const auto chunk_tokens = context - 1 - first;
    sum += chunk_sum;
    scored += chunk_tokens;
    const double mean = sum / static_cast<double>(scored);
    const double variance = squares / static_cast<double>(scored) - mean * mean;
    const double error = scored > 1 ? std::exp(mean) * std::sqrt(std::max(0.0, variance) / static_cast<double>(scored - 1)) : 0.0;
    if (csv.is_open())
      csv << fmt::format("{},{},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f}\n", c + 1, chunk_tokens, chunk_sum / static_cast<double>(chunk_tokens),
                         std::exp(chunk_sum / static_cast<double>(chunk_tokens)), mean, std::exp(mean), error);
    progress.show(fmt::format("chunk {}/{}: perplexity {:.4f} +/- {:.4f}", c + 1, count, std::exp(mean), error));
    if (c + 1 < count) continue;
    progress.show("");
    if (flags.json)
      fmt::print("{}\n", nlohmann::ordered_json{{"perplexity", std::exp(mean)},
                                                {"standard_error", error},
                                                {"nll", mean},
                                                {"tokens", scored},
                                                {"chunks", count},
                                                {"n_ctx", context}}
                             .dump());
    else
      fmt::print("perplexity {:.4f} +/- {:.4f} over {} tokens in {} chunks of {}\n", std::exp(mean), error, scored, count, context);
  }
  if (csv.is_open() && !csv.flush()) throw skald::IoError("cli.perplexity", "cannot write", {.file = flags.csv});
  return exit_ok;
}

}  // namespace

void add_perplexity(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("perplexity", "Perplexity of a text under a model");
  auto flags = std::make_shared<PerplexityFlags>();
  flags->model.add_to(*command);
  flags->decoder.add_to(*command);
  command->add_option("-f,--file", flags->file, "Text file; -: standard input")->required();
  command->add_option("--chunks", flags->chunks, "Most chunks; -1: all")->capture_default_str();
  command->add_option("--csv", flags->csv, "Write one line per chunk, ready to plot");
  command->add_flag("--json", flags->json, "Print the result as JSON");
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
