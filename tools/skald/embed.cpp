// skald embed: texts as vectors, or documents in the order of their relevance for a query.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/generate/rerank.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

using nlohmann::ordered_json;

struct EmbedFlags {
  ModelFlags model;
  DecoderFlags decoder;
  std::vector<std::string> texts;
  std::string file;
  std::string query;
  std::string pooling;
  std::int64_t dims = 0;
  std::optional<std::size_t> label;
  bool raw = false;
};

/// Texts of the command line, then the lines of a file.
std::vector<std::string> texts_of(const EmbedFlags& flags) {
  auto texts = flags.texts;
  if (!flags.file.empty()) {
    const std::string all = read_input(flags.file);
    for (std::size_t begin = 0; begin < all.size();) {
      const auto end = std::min(all.find('\n', begin), all.size());
      if (end > begin) texts.push_back(all.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  if (texts.empty()) throw skald::UsageError("cli.embed", "give texts, or a file of them with -f");
  return texts;
}

std::optional<skald::Pooling> pooling_of(const std::string& name) {
  if (name.empty()) return {};
  for (const auto pooling : {skald::Pooling::mean, skald::Pooling::cls, skald::Pooling::last, skald::Pooling::rank})
    if (skald::to_string(pooling) == name) return pooling;
  throw skald::UsageError("cli.embed", "--pooling: '" + skald::printable(name, 40) + "', allowed is mean, cls, last or rank");
}

ordered_json embedded(const EmbedFlags& flags, const skald::Decoder<>& decoder, const std::vector<std::string>& texts) {
  skald::EmbedOptions options;
  options.pooling = pooling_of(flags.pooling);
  options.normalize = !flags.raw;
  options.dims = flags.dims;
  options.stop = stop_on_interrupt();
  std::vector<std::vector<skald::TokenId>> tokens;
  for (const auto& text : texts) tokens.push_back(decoder.model().tokenizer().encode(text));
  const auto vectors = skald::embed(decoder, tokens, options);
  const auto pooling = skald::embed_plan(decoder.model().spec(), options).pooling;
  ordered_json json{{"pooling", skald::to_string(pooling)}, {"dims", vectors.dims}};
  if (pooling == skald::Pooling::rank) json["labels"] = decoder.model().classifier()->spec().labels;
  auto& list = json["embeddings"] = ordered_json::array();
  for (std::size_t i = 0; i < vectors.size(); ++i)
    list.push_back(std::vector<float>(vectors[i].begin(), vectors[i].end()));
  return json;
}

ordered_json ranked(const EmbedFlags& flags, const skald::Decoder<>& decoder, const std::vector<std::string>& texts) {
  skald::PairwiseOptions options;
  options.label = flags.label;
  options.stop = stop_on_interrupt();
  const auto result = skald::rerank(decoder, flags.query, texts, options);
  auto list = ordered_json::array();
  for (const auto index : result.order)
    list.push_back({{"index", index}, {"score", result.scores[index]}, {"text", texts[index]}});
  return {{"query", flags.query}, {"results", std::move(list)}};
}

int run(const EmbedFlags& flags, const Global& global) {
  const auto texts = texts_of(flags);
  const auto model = flags.model.load(global);
  const skald::Decoder decoder(model, flags.decoder.options(model.spec(), global));
  const auto json = flags.query.empty() ? embedded(flags, decoder, texts) : ranked(flags, decoder, texts);
  write_out(json.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  return exit_ok;
}

}  // namespace

void add_embed(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("embed", "Texts as vectors, or documents ordered by relevance for a query, as JSON");
  auto flags = std::make_shared<EmbedFlags>();
  flags->model.add_to(*command);
  flags->decoder.add_to(*command);
  command->add_option("-f,--file", flags->file, "File with one text per line; -: standard input");
  auto* query = command->add_option("--query", flags->query, "Order the texts by the model's classifier over this query and each");
  command->add_option("--label", flags->label, "Number of the classifier's label that means relevant, from 0")->needs(query);
  command->add_option("--pooling", flags->pooling, "mean, cls, last or rank (default: what the model was trained for)")
      ->excludes(query);
  command->add_option("--dims", flags->dims, "Keep only the first n elements (Matryoshka)")
      ->check(at_least(0))
      ->excludes(query);
  command->add_flag("--raw", flags->raw, "Do not scale vectors to length 1")->excludes(query);
  command->add_option("texts", flags->texts, "The texts");
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
