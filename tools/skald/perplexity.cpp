#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

struct PerplexityFlags {
  ModelFlags model;
  DecoderFlags decoder;
  AdapterFlags adapters;
  std::string file;
  std::string csv;
  std::int64_t chunks = -1;
  bool json = false;
};

/// Sums of negative log-likelihoods, in nats.
struct Score {
  double sum = 0.0;
  double squares = 0.0;
  std::int64_t tokens = 0;
  void add(double nll) {
    sum += nll;
    squares += nll * nll;
    ++tokens;
  }
  [[nodiscard]] double mean() const { return sum / static_cast<double>(tokens); }
  [[nodiscard]] double perplexity() const { return std::exp(mean()); }
  /// Of the perplexity.
  [[nodiscard]] double standard_error() const {
    if (tokens < 2) return 0.0;
    const double variance = squares / static_cast<double>(tokens) - mean() * mean();
    return perplexity() * std::sqrt(std::max(0.0, variance) / static_cast<double>(tokens - 1));
  }
};

/// Scores the tokens of a chunk that come after the first half, and after the token at half.
Score score_chunk(skald::Session& session, std::span<const skald::TokenId> chunk, Score& total) {
  constexpr std::size_t rows = 256;  // of logits at once: memory stays small with large vocabularies
  const std::size_t first = chunk.size() / 2;
  const auto stop = stop_on_interrupt();
  session.clear();
  (void)session.forward(chunk.first(first), skald::LogitsWanted::none, stop);
  Score score;
  for (std::size_t begin = first; begin + 1 < chunk.size(); begin += rows) {
    const std::size_t count = std::min(rows, chunk.size() - 1 - begin);
    const auto logits = session.forward(chunk.subspan(begin, count), skald::LogitsWanted::all, stop);
    for (std::size_t i = 0; i < count; ++i) {
      const double nll = -skald::log_probability(logits.row(static_cast<std::int64_t>(i)), chunk[begin + i + 1]);
      score.add(nll);
      total.add(nll);
    }
  }
  return score;
}

class CsvFile {
 public:
  explicit CsvFile(const std::string& path) : path_(path) {
    if (path.empty()) return;
    file_.open(path);
    write("chunk,tokens,chunk_nll,chunk_perplexity,nll,perplexity,standard_error\n");
  }
  /// Each line is flushed: the file can be plotted while it grows.
  void write(const std::string& line) {
    if (path_.empty()) return;
    file_ << line << std::flush;
    if (!file_) throw skald::IoError("cli.perplexity", std::string("cannot write: ") + std::strerror(errno), {.file = path_});
  }

 private:
  std::string path_;
  std::ofstream file_;
};

/// Chunks of `context` tokens, each on an empty session; the second half of each counts (as llama.cpp measures it).
int run(const PerplexityFlags& flags, const Global& global) {
  const auto text = read_input(flags.file);
  CsvFile csv(flags.csv);
  const auto model = flags.model.load(global);
  const auto options = flags.decoder.options(model.spec(), global, 512);
  const auto context = options.context;
  if (context < 4)
    throw skald::UsageError("cli.perplexity", fmt::format("-c {}: at least 4 tokens are needed", context));
  const skald::Decoder decoder(model, options);
  const auto& tokenizer = model.tokenizer();
  const auto tokens = tokenizer.encode(text);
  if (static_cast<std::int64_t>(tokens.size()) < context)
    throw skald::UsageError(
        "cli.perplexity",
        fmt::format("the text has {} tokens, one chunk of {} is needed; give a longer text or a smaller -c",
                    tokens.size(), context));
  auto count = static_cast<std::int64_t>(tokens.size()) / context;
  if (flags.chunks > 0) count = std::min(count, flags.chunks);
  ProgressLine progress(global.quiet);
  auto session = decoder.new_session();
  flags.adapters.apply(session);
  Score total;
  for (std::int64_t c = 0; c < count; ++c) {
    std::vector<skald::TokenId> chunk(tokens.begin() + c * context, tokens.begin() + (c + 1) * context);
    if (tokenizer.adds_bos() && tokenizer.bos() >= 0) chunk[0] = tokenizer.bos();
    const auto score = score_chunk(session, chunk, total);
    csv.write(fmt::format("{},{},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f}\n", c + 1, score.tokens, score.mean(),
                          score.perplexity(), total.mean(), total.perplexity(), total.standard_error()));
    progress.show(fmt::format("chunk {}/{}: perplexity {:.4f} +/- {:.4f}", c + 1, count, total.perplexity(),
                              total.standard_error()));
  }
  progress.show("");
  if (flags.json)
    write_out(nlohmann::ordered_json{{"perplexity", total.perplexity()},
                                     {"standard_error", total.standard_error()},
                                     {"nll", total.mean()},
                                     {"tokens", total.tokens},
                                     {"chunks", count},
                                     {"n_ctx", context}}
                  .dump() +
              "\n");
  else
    write_out(fmt::format("perplexity {:.4f} +/- {:.4f} over {} tokens in {} chunks of {}\n", total.perplexity(),
                          total.standard_error(), total.tokens, count, context));
  return exit_ok;
}

}  // namespace

void add_perplexity(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("perplexity", "Perplexity of a text under a model");
  auto flags = std::make_shared<PerplexityFlags>();
  flags->model.add_to(*command);
  flags->decoder.add_to(*command);
  flags->adapters.add_to(*command);
  command->add_option("-f,--file", flags->file, "Text file; -: standard input")->required();
  command->add_option("--chunks", flags->chunks, "Most chunks; -1: all")
      ->check(CLI::Range(std::int64_t{-1}, INT64_MAX))
      ->capture_default_str();
  command->add_option("--csv", flags->csv, "Write one line per chunk, ready to plot");
  command->add_flag("--json", flags->json, "Print the result as JSON");
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
