// Commands that measure or compare: chat, perplexity, bench and the reference data, each against a computation of its
// own from what other commands print.

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include <nlohmann/json.hpp>

#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>

#include "program.hpp"
#include "support/story_grammar.hpp"

namespace {

using nlohmann::json;
using skald_test::Folder;
using skald_test::run_program;

const std::string model = skald_test::model_path("skald-tiny-q8_0.gguf");

std::string output_of(const std::vector<std::string>& arguments, const std::string& input = {}) {
  skald_test::Start start;
  start.input = input;
  const auto outcome = run_program(arguments, start);
  INFO(json(arguments).dump() << ": " << outcome.err);
  REQUIRE(outcome.code == 0);
  return outcome.out;
}

/// The bundled model with another chat template, or none.
void write_with_template(const std::string& path, const std::string& text) {
  const auto file = skald::open_gguf(model);
  skald::GgufWriter writer;
  for (const auto& entry : file.metadata().entries())
    if (entry.key != "tokenizer.chat_template" && entry.key != "general.alignment") writer.set(entry.key, entry.value);
  if (!text.empty()) writer.set("tokenizer.chat_template", text);
  for (const auto& tensor : file.tensors())
    writer.add_tensor(tensor.name, tensor.type,
                      {tensor.dims.begin(), tensor.dims.begin() + static_cast<std::ptrdiff_t>(tensor.rank)},
                      [&](std::uint64_t offset, std::span<std::byte> out) { file.read(tensor, offset, out); });
  writer.write_file(path);
}

constexpr const char* chatml =
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Greedy continuation of a rendered conversation by the commands tokenize, logits and detokenize.
std::string greedy_reply(const Folder& folder, const std::string& rendered, int tokens) {
  const auto ids = output_of({"tokenize", "-m", model, "--stdin", "--no-add-special"}, rendered);
  output_of({"logits", "-m", model, "--tokens", ids, "--greedy", std::to_string(tokens), "-ctk", "f16", "-o",
             folder.file("chat")});
  auto greedy = json::parse(skald_test::read_text(folder.file("chat.json"))).at("greedy").get<std::vector<int>>();
  const auto end =
      json::parse(output_of({"tokenize", "-m", model, "--text", "<|im_end|>", "--no-add-special"})).at(0).get<int>();
  greedy.erase(std::find(greedy.begin(), greedy.end(), end), greedy.end());
  return output_of({"detokenize", "-m", model, "--keep-spaces", "--text", json(greedy).dump()});
}

double nll(const float* row, std::size_t vocabulary, int token) {
  const double most = *std::max_element(row, row + vocabulary);
  double sum = 0;
  for (std::size_t i = 0; i < vocabulary; ++i) sum += std::exp(static_cast<double>(row[i]) - most);
  return most + std::log(sum) - static_cast<double>(row[token]);
}

/// Bytes and operations that the tests of bench need at least, from what inspect tells of the file.
struct Model {
  double weight_bytes = 0;
  double weight_operations = 0;
  double kv_bytes_per_token = 0;
  double attention_operations = 0;  // per token and visible token
  Model() {
    const auto all = json::parse(output_of({"inspect", "-m", model, "--json"}));
    weight_bytes = all.at("plan").at("weights").get<double>();
    kv_bytes_per_token = all.at("plan").at("kv_per_token").get<double>();
    for (const auto& tensor : skald::open_gguf(model).tensors())
      if (tensor.rank == 2) weight_operations += 2.0 * static_cast<double>(tensor.dims[0] * tensor.dims[1]);
    const auto& data = all.at("metadata");
    const double dim = data.at("llama.embedding_length").get<double>();
    attention_operations =
        2.0 * 2.0 * dim * data.at("llama.block_count").get<double>();  // heads x head size = dim, QK and PV
  }
};

}  // namespace

TEST_CASE("cli.chat: a conversation follows the model's template, turn by turn", "[cli]") {
  const Folder folder;
  write_with_template(folder.file("chatml.gguf"), chatml);
  const auto replies =
      output_of({"chat", "-m", folder.file("chatml.gguf"), "--temp", "0", "-n", "24", "--sys", "You tell stories."},
                "Hello.\nAnd now?\n");
  std::string rendered =
      "<|im_start|>system\nYou tell stories.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n";
  const auto first = greedy_reply(folder, rendered, 24);
  rendered += first + "<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n";
  const auto second = greedy_reply(folder, rendered, 24);
  CHECK(replies == first + "\n" + second + "\n");
  // Another template, another conversation: it comes from the file.
  write_with_template(folder.file("plain.gguf"), "{% for message in messages %}{{ message.content }}{% endfor %}");
  CHECK(output_of({"chat", "-m", folder.file("plain.gguf"), "--temp", "0", "-n", "24"}, "Hello.\n") ==
        greedy_reply(folder, "Hello.", 24) + "\n");
  // A template from a file wins over the model's own.
  CHECK(output_of({"chat", "-m", folder.file("plain.gguf"), "--temp", "0", "-n", "24", "--jinja", "--sys",
                   "You tell stories.", "--chat-template-file", folder.file("chatml.jinja", chatml)},
                  "Hello.\n") == first + "\n");
  // An empty line ends it.
  CHECK(output_of({"chat", "-m", model}, "\nHello.\n").empty());
}

TEST_CASE("cli.chat: a model without a template, a template that refuses and a full context are errors", "[cli]") {
  const Folder folder;
  skald_test::Start start;
  start.input = "Hello.\n";
  write_with_template(folder.file("none.gguf"), "");
  auto outcome = run_program({"chat", "-m", folder.file("none.gguf"), "-q"}, start);
  CHECK(outcome.code == 1);
  CHECK(outcome.err.find("no chat template") != std::string::npos);
  CHECK(skald_test::line_count(outcome.err) == 1);
  write_with_template(folder.file("refuses.gguf"), "{{ raise_exception('only odd turns') }}");
  outcome = run_program({"chat", "-m", folder.file("refuses.gguf"), "-q"}, start);
  CHECK(outcome.code == 1);
  CHECK(outcome.err.find("only odd turns") != std::string::npos);
  write_with_template(folder.file("broken.gguf"), "{% for %}");
  CHECK(run_program({"chat", "-m", folder.file("broken.gguf"), "-q"}, start).code == 1);
  start.input = std::string(300, 'x') + "\n";
  outcome = run_program({"chat", "-m", model, "-q", "-c", "32"}, start);
  CHECK(outcome.code == 1);
  CHECK(outcome.err.find("32") != std::string::npos);
}

TEST_CASE("cli.perplexity: the result is that of the logits, and what the model was trained to", "[cli]") {
  const Folder folder;
  skald_test::StoryGrammar grammar(99);
  const auto text = folder.file("text", grammar.text(9000));
  const auto result = json::parse(output_of(
      {"perplexity", "-m", model, "-f", text, "-c", "128", "--chunks", "3", "--json", "--csv", folder.file("csv")}));
  const auto ids =
      json::parse(output_of({"tokenize", "-m", model, "--file", text, "--no-parse-special"})).get<std::vector<int>>();
  double sum = 0;
  double squares = 0;
  std::vector<double> chunk_nll;
  const int count = 63;  // of each chunk: the tokens after the one in the middle
  for (int c = 0; c < 3; ++c) {
    std::vector<int> chunk(ids.begin() + c * 128, ids.begin() + (c + 1) * 128);
    chunk[0] = ids[0];  // BOS
    output_of({"logits", "-m", model, "--tokens", json(chunk).dump(), "-ctk", "f16", "-o", folder.file("logits")});
    const auto rows = skald_test::read_floats(folder.file("logits"));
    const std::size_t vocabulary = rows.size() / 128;
    double chunk_sum = 0;
    for (std::size_t i = 64; i < 127; ++i) {
      const double value = nll(rows.data() + i * vocabulary, vocabulary, chunk[i + 1]);
      chunk_sum += value;
      squares += value * value;
    }
    chunk_nll.push_back(chunk_sum / count);
    sum += chunk_sum;
  }
  const double mean = sum / (3 * count);
  const double error = std::exp(mean) * std::sqrt((squares / (3 * count) - mean * mean) / (3 * count - 1));
  CHECK(result.at("tokens") == 3 * count);
  CHECK(result.at("chunks") == 3);
  CHECK(std::abs(result.at("nll").get<double>() - mean) < 1e-5);
  CHECK(std::abs(result.at("perplexity").get<double>() - std::exp(mean)) < 1e-4);
  CHECK(std::abs(result.at("standard_error").get<double>() - error) < 1e-4);
  // The CSV: a header and one line per chunk.
  const auto csv = skald_test::read_text(folder.file("csv"));
  CHECK(skald_test::line_count(csv) == 4);
  CHECK(csv.starts_with("chunk,tokens,chunk_nll,chunk_perplexity,nll,perplexity,standard_error\n1,63,"));
  CHECK(std::abs(std::stod(csv.substr(csv.find("\n1,63,") + 6)) - chunk_nll[0]) < 1e-5);
  // Fresh text of the grammar at 512 tokens: an independent engine measured 3.08 on another text with the F32 file.
  const auto whole = json::parse(output_of({"perplexity", "-m", model, "-f", text, "--json"}));
  CHECK(whole.at("n_ctx") == 512);
  CHECK(whole.at("chunks").get<int>() >= 3);
  INFO("perplexity " << whole.at("perplexity"));
  CHECK(whole.at("perplexity") > 2.0);
  CHECK(whole.at("perplexity") < 4.5);
  CHECK(output_of({"perplexity", "-m", model, "-f", text, "--chunks", "1"}).starts_with("perplexity "));
}

TEST_CASE("cli.bench: rows have llama-bench's fields, and the shares of the machine are their arithmetic", "[cli]") {
  const auto rows = json::parse(output_of({"bench", "-m", model, "-p", "32", "-n", "8", "-pg", "16,4", "-d", "0,48",
                                           "-r", "1", "-ub", "16", "-o", "json"}));
  REQUIRE(rows.size() == 6);
  for (const char* field : {"build_commit",   "build_number",
                            "cpu_info",       "gpu_info",
                            "backends",       "model_filename",
                            "model_type",     "model_size",
                            "model_n_params", "n_batch",
                            "n_ubatch",       "n_threads",
                            "cpu_mask",       "cpu_strict",
                            "poll",           "type_k",
                            "type_v",         "n_gpu_layers",
                            "n_cpu_moe",      "split_mode",
                            "main_gpu",       "no_kv_offload",
                            "flash_attn",     "devices",
                            "tensor_split",   "tensor_buft_overrides",
                            "use_mmap",       "embeddings",
                            "no_op_offload",  "no_host",
                            "n_prompt",       "n_gen",
                            "n_depth",        "test_time",
                            "avg_ns",         "stddev_ns",
                            "avg_ts",         "stddev_ts",
                            "samples_ns",     "samples_ts",
                            "techniques"})
    for (const auto& row : rows) {
      INFO(field);
      CHECK(row.contains(field));
    }
  std::vector<std::string> names;
  for (const auto& row : rows) names.push_back(row.at("test"));
  CHECK(names == std::vector<std::string>{"pp32", "tg8", "pp16+tg4", "pp32 @ d48", "tg8 @ d48", "pp16+tg4 @ d48"});
  const Model m;
  for (const auto& row : rows) {
    const double prompt = row.at("n_prompt");
    const double generate = row.at("n_gen");
    const double depth = row.at("n_depth");
    const double ns = row.at("avg_ns");
    INFO(row.at("test"));
    REQUIRE(row.at("samples_ns").size() == 1);
    CHECK(row.at("samples_ns")[0] == ns);
    CHECK(row.at("stddev_ns") == 0);
    CHECK(row.at("stddev_ts") == 0.0);
    CHECK(std::abs(row.at("avg_ts").get<double>() / ((prompt + generate) * 1e9 / ns) - 1) < 1e-9);
    // Passes of 16 tokens for the prompt, of 1 for generation. All weights are read in each, the output matrix too
    // where there are logits; keys and values up to the last token of the pass.
    double kv = 0;
    double seen = 0;
    double tokens = depth;
    for (int i = 0; i < prompt / 16; ++i) kv += tokens += 16;
    for (int i = 0; i < generate; ++i) kv += tokens += 1;
    for (double t = depth + 1; t <= tokens; ++t) seen += t;
    const double head = skald::open_gguf(model).at("token_embd.weight").bytes;
    const double head_operations = 2.0 * skald::open_gguf(model).at("token_embd.weight").elements();
    const double calls = (prompt > 0 ? 1 : 0) + generate;
    const double bytes = (prompt / 16 + generate) * (m.weight_bytes - head) + calls * head + kv * m.kv_bytes_per_token;
    const double bandwidth = row.at("bandwidth_bytes_per_second");
    CHECK(std::abs(row.at("percent_bandwidth").get<double>() / (100 * bytes / bandwidth / (ns * 1e-9)) - 1) < 0.02);
    const double seconds = ((prompt + generate) * (m.weight_operations - head_operations) + calls * head_operations) /
                               row.at("int8_operations_per_second").get<double>() +
                           seen * m.attention_operations / row.at("f32_operations_per_second").get<double>();
    CHECK(std::abs(row.at("percent_peak").get<double>() / (100 * seconds / (ns * 1e-9)) - 1) < 1e-6);
  }
}

TEST_CASE("cli.bench: ranges, several sessions, every form of output", "[cli]") {
  const std::vector<std::string> base{"bench", "-m", model, "--no-probe", "-r", "2"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return output_of(more);
  };
  const auto lines = with({"-p", "4-16*2,5", "-n", "2-3", "-o", "jsonl", "--sequences", "1,3", "-t", "1,2"});
  CHECK(skald_test::line_count(lines) == 2 * 2 * 6);
  std::vector<int> prompts;
  std::vector<int> threads;
  std::istringstream stream(lines);
  for (std::string line; std::getline(stream, line);) {
    const auto row = json::parse(line);
    prompts.push_back(row.at("n_prompt"));
    threads.push_back(row.at("n_threads"));
    CHECK(row.at("percent_peak").is_null());
    const double tokens =
        (row.at("n_prompt").get<double>() + row.at("n_gen").get<double>()) * row.at("n_sequences").get<double>();
    const auto samples = row.at("samples_ns").get<std::vector<double>>();
    REQUIRE(samples.size() == 2);
    CHECK(std::abs(row.at("avg_ts").get<double>() / (tokens * 0.5e9 * (1 / samples[0] + 1 / samples[1])) - 1) < 1e-9);
    CHECK(std::abs(row.at("stddev_ns").get<double>() - std::abs(samples[0] - samples[1]) / std::sqrt(2.0)) <= 1.0);
  }
  CHECK(std::vector<int>(prompts.begin(), prompts.begin() + 6) == std::vector<int>{4, 8, 16, 5, 0, 0});
  CHECK(threads.front() == 1);
  CHECK(threads.back() == 2);

  const auto csv = with({"-p", "8", "-n", "0", "-d", "0,8", "-o", "csv"});
  CHECK(skald_test::line_count(csv) == 3);
  const auto header = csv.substr(0, csv.find('\n'));
  const auto first = csv.substr(header.size() + 1, csv.find('\n', header.size() + 1) - header.size() - 1);
  std::size_t values = 1;
  for (std::size_t i = 0; i + 2 < first.size(); ++i) values += first.compare(i, 3, "\",\"") == 0;
  CHECK(values == static_cast<std::size_t>(std::count(header.begin(), header.end(), ',')) + 1);

  const auto table = with({"-p", "8", "-n", "2", "-o", "md"});
  CHECK(table.starts_with("| model "));
  CHECK(table.find("pp8 |") != std::string::npos);
  CHECK(table.find("tg2 |") != std::string::npos);
}

TEST_CASE("cli.bench: repetitions of all tests in turn, if wanted", "[cli]") {
  const auto told = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"bench", "-m", model, "--no-probe", "--no-warmup", "-p", "4", "-n", "2", "-d", "0,8", "-r", "2",
                               "-o", "json", "--progress"});
    const auto outcome = run_program(more);
    REQUIRE(outcome.code == 0);
    const auto rows = json::parse(outcome.out);
    REQUIRE(rows.size() == 4);
    for (const auto& row : rows) CHECK(row.at("samples_ns").size() == 2);
    CHECK(rows[1].at("test") == "tg2");
    CHECK(rows[2].at("test") == "pp4 @ d8");
    std::vector<std::string> tests;
    std::istringstream lines(outcome.err);
    for (std::string line; std::getline(lines, line);)
      if (const auto end = line.find(": repetition "); end != std::string::npos)
        tests.push_back(line.substr(model.size() + 1, end - model.size() - 1));
    return tests;
  };
  CHECK(told({}) == std::vector<std::string>{"pp4", "pp4", "tg2", "tg2", "pp4 @ d8", "pp4 @ d8", "tg2 @ d8", "tg2 @ d8"});
  CHECK(told({"--in-turn"}) ==
        std::vector<std::string>{"pp4", "tg2", "pp4 @ d8", "tg2 @ d8", "pp4", "tg2", "pp4 @ d8", "tg2 @ d8"});
}

TEST_CASE("cli.bench: sessions with a common prefix read it once, others each their own", "[cli]") {
  const auto row = [&](const std::string& in) {
    return json::parse(output_of({"bench", "-m", model, "--no-probe", "--no-warmup", "-r", "1", "-p", "0", "-n", "4", "-d", "256",
                                  "--sequences", "3", "--depth-in", in, "--random-depth", "-o", "jsonl"}));
  };
  const auto own = row("own");
  const auto shared = row("shared");
  CHECK(own.at("kv_bytes_shared").get<std::uint64_t>() == 0);
  CHECK(shared.at("kv_bytes_shared").get<std::uint64_t>() > 0);
  CHECK(shared.at("kv_bytes_read").get<std::uint64_t>() < own.at("kv_bytes_read").get<std::uint64_t>());
  CHECK(shared.at("test") == "tg4 @ d256 x3 shared");
  CHECK(shared.at("depth_random") == true);
}

TEST_CASE("cli.bench: a cache with slow memory has it where it is told", "[cli]") {
  const Folder folder;
  const auto command = [&](const std::string& directory) {
    return std::vector<std::string>{"bench", "-m", model, "--no-probe", "--no-warmup", "-r", "1", "-p", "0", "-n", "2", "-d", "64",
                                    "-ctk", "f16;values=16", "--kv-directory", directory, "-o", "jsonl"};
  };
  CHECK(json::parse(output_of(command(folder.file("")))).at("avg_ts").get<double>() > 0);
  const auto failed = run_program(command(folder.file("none")));
  CHECK(failed.code == 1);
  CHECK(failed.err.find(folder.file("none")) != std::string::npos);
}

TEST_CASE("cli.golden: logits of the reference data through the program, on both backends", "[cli][golden]") {
  if (!skald_test::have_shared("goldens/models")) return;
  const Folder folder;
  for (const std::string name : {"llama2-spm", "llama3-ropefreqs", "llama-yarn", "llama-linear-bias", "qwen2", "qwen3"})
    for (const std::string backend : {"reference", "cpu"}) {
      INFO(name << " on " << backend);
      const auto description =
          json::parse(skald_test::read_text(skald_test::shared_path("goldens/logits/" + name + ".json")));
      for (int k = 1; k <= 2; ++k) {
        const auto tokens = description.at("prompts").at(static_cast<std::size_t>(k - 1));
        const auto list = tokens.dump();
        output_of({"logits", "-m", skald_test::shared_path("goldens/models/" + name + ".gguf"), "--tokens",
                   list.substr(1, list.size() - 2), "--greedy", "16", "--backend", backend, "-o", folder.file("out")});
        const auto result = json::parse(skald_test::read_text(folder.file("out.json")));
        const auto found = skald_test::read_floats(folder.file("out"));
        const auto expected = skald_test::read_floats(
            skald_test::shared_path("goldens/logits/" + name + ".p" + std::to_string(k) + ".f32"));
        REQUIRE(found.size() == expected.size());
        CHECK(result.at("shape")[0] == tokens.size());
        CHECK(result.at("shape")[0].get<std::size_t>() * result.at("shape")[1].get<std::size_t>() == found.size());
        double most = 0;
        for (std::size_t i = 0; i < found.size(); ++i)
          most = std::max(most, std::abs(static_cast<double>(found[i]) - expected[i]));
        CHECK(most <= 5e-4);
        if (k == 2) CHECK(result.at("greedy") == description.at("greedy_ids"));
      }
    }
}

TEST_CASE("cli.golden: token ids and texts of the reference data through the program", "[cli][golden]") {
  if (!skald_test::have_shared("goldens/tokenizers")) return;
  const Folder folder;
  for (const std::string name : {"ggml-vocab-gpt-2", "ggml-vocab-llama-spm", "ggml-vocab-deepseek-llm",
                                 "probe-llama-bpe", "probe-qwen2", "tiny-llama2-spm"}) {
    const auto golden =
        json::parse(skald_test::read_text(skald_test::shared_path("goldens/tokenizers/" + name + ".json")));
    const auto file_name = golden.at("vocab").get<std::string>();
    const auto vocabulary = skald_test::shared_path(
        file_name.starts_with("models/") ? "goldens/" + file_name : "goldens/tokenizers/vocab/" + file_name);
    std::size_t checked = 0;
    for (std::size_t i = 0; i < golden.at("cases").size() && checked < 6; i += 5, ++checked) {
      const auto& entry = golden.at("cases")[i];
      const auto text = entry.at("text").get<std::string>();
      INFO(name << " case " << i);
      const auto file = folder.file("text", text);
      const auto ids = [&](std::vector<std::string> flags) {
        flags.insert(flags.begin(), {"tokenize", "-m", vocabulary, "--file", file});
        return json::parse(output_of(flags));
      };
      const auto& plain = entry.at("ids");
      const auto added = entry.value("ids_add", plain);
      CHECK(ids({"--no-add-special", "--no-parse-special"}) == plain);
      CHECK(ids({"--no-add-special"}) == entry.value("ids_parse", plain));
      CHECK(ids({"--no-parse-special"}) == added);
      CHECK(ids({}) == entry.value("ids_add_parse", added));
      if (!entry.contains("detok") || entry.at("detok").is_object()) continue;
      const auto expected = entry.at("detok").is_string() ? entry.at("detok").get<std::string>() : text;
      CHECK(output_of({"detokenize", "-m", vocabulary, "--stdin"}, plain.dump()) == expected);
    }
    CHECK(checked == 6);
  }
}

TEST_CASE("cli.eval: rows of every format, policy and budget, in a table, as CSV, JSON and plots", "[cli]") {
  const Folder folder;
  const std::vector<std::string> base{"eval", "-m", model, "--items", "3", "--length", "128", "--tasks",
                                      "perplexity,passkey", "--policy", "none", "--policy", "h2o", "--budgets", "100,50",
                                      "--formats", "f16,q8_0"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return output_of(more);
  };
  const auto csv = folder.file("eval.csv");
  const auto rows = json::parse(with({"--json", "--csv", csv, "--svg", folder.file("plot")}));
  REQUIRE(rows.size() == 2 * 3 * 2);  // nothing, all, half
  std::map<std::string, json> by;
  for (const auto& row : rows)
    by[row.at("kv_format").get<std::string>() + row.at("policy").get<std::string>() +
       std::to_string(row.at("budget_percent").get<int>()) + row.at("task").get<std::string>()] = row;
  for (const std::string format : {"f16", "q8_0"}) {
    CHECK(by.at(format + "h2o100perplexity").at("nll") == by.at(format + "none100perplexity").at("nll"));
    CHECK(by.at(format + "h2o50perplexity").at("nll") != by.at(format + "none100perplexity").at("nll"));
    CHECK(by.at(format + "h2o50perplexity").at("eviction") == "h2o:budget=64");
    CHECK(by.at(format + "h2o50perplexity").at("kv_bytes") < by.at(format + "none100perplexity").at("kv_bytes"));
  }
  CHECK(by.at("q8_0none100passkey").at("kv_bytes") < by.at("f16none100passkey").at("kv_bytes"));
  CHECK(by.at("f16none100passkey").at("answers") == 3);
  const auto text = skald_test::read_text(csv);
  CHECK(skald_test::line_count(text) == 1 + 12);
  CHECK(text.starts_with("kv_format,policy,eviction,budget_percent,task,"));
  for (const char* name : {"plot-perplexity.svg", "plot-passkey.svg"}) {
    const auto svg = skald_test::read_text(folder.file(name));
    CHECK(svg.starts_with("<svg "));
    CHECK(svg.ends_with("</svg>\n"));
    CHECK(svg.find(">h2o q8_0</text>") != std::string::npos);
    CHECK(svg.find("nan") == std::string::npos);
  }
  // The same again, but for the times.
  auto again = json::parse(with({"--json"}));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    again[i]["tokens_per_second"] = rows[i].at("tokens_per_second");
    CHECK(again[i] == rows[i]);
  }
  CHECK(skald_test::line_count(with({})) == 2 + 12);
}

TEST_CASE("cli.eval: the perplexity of a file is that of the command perplexity, and what is wrong is refused", "[cli]") {
  const Folder folder;
  const auto text = folder.file("story.txt", skald_test::StoryGrammar(9).text(6000));
  const auto whole = json::parse(output_of({"perplexity", "-m", model, "-f", text, "-c", "200", "--json"}));
  const auto rows = json::parse(output_of({"eval", "-m", model, "-f", text, "--length", "200", "--json"}));
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].at("task") == "text");
  CHECK(rows[0].at("items") == whole.at("chunks"));
  CHECK(rows[0].at("tokens") == whole.at("tokens"));
  CHECK(std::abs(rows[0].at("nll").get<double>() - whole.at("nll").get<double>()) < 1e-9);
  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {"--tasks", "poetry"}, {"--budgets", "0"}, {"--budgets", "101"}, {"--policy", "nobody", "--budgets", "50"},
           {"--kinds", "why"}, {"--formats", "f17"}, {"--csv", "/nowhere/at/all.csv"}, {"--length", "5"}}) {
    std::vector<std::string> arguments{"eval", "-m", model, "--items", "1", "--length", "100"};
    arguments.insert(arguments.end(), wrong.begin(), wrong.end());
    const auto outcome = run_program(arguments);
    INFO(json(wrong).dump());
    CHECK(outcome.code != 0);
    CHECK(outcome.err.starts_with("error: "));
  }
}
