// The program as its users meet it: started as a process, with its output, exit codes and error lines.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>

#include <nlohmann/json.hpp>

#include <skald/model/gguf/reader.hpp>
#include <skald/model/gguf/writer.hpp>

#include "program.hpp"
#include "support/huggingface_folder.hpp"

namespace {

using nlohmann::json;
using skald_test::Folder;
using skald_test::run_program;

const std::string model = skald_test::model_path("skald-tiny-q8_0.gguf");

/// A run that must succeed; its standard output.
std::string output_of(const std::vector<std::string>& arguments, const skald_test::Start& start = {}) {
  const auto outcome = run_program(arguments, start);
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  return outcome.out;
}

/// A run that must fail with one line that contains a text, and as JSON with a code.
void check_error(std::vector<std::string> arguments, const std::string& contained, const std::string& code,
                 const skald_test::Start& start = {}) {
  arguments.push_back("--quiet");
  const int exit_code = code == "usage of flags" ? 2 : 1;
  INFO("skald " << json(arguments).dump());
  auto outcome = run_program(arguments, start);
  CHECK(outcome.code == exit_code);
  INFO(outcome.err);
  CHECK(outcome.err.starts_with("error: "));
  CHECK(skald_test::line_count(outcome.err) == 1);
  CHECK(outcome.err.find(contained) != std::string::npos);
  arguments.push_back("--json-errors");
  outcome = run_program(arguments, start);
  CHECK(outcome.code == exit_code);
  CHECK(skald_test::line_count(outcome.err) == 1);
  const auto error = json::parse(outcome.err, nullptr, false);
  REQUIRE(error.is_object());
  CHECK(error.at("code") == (exit_code == 2 ? "usage" : code));
  CHECK(!error.at("message").get<std::string>().empty());
}

void check_usage(const std::vector<std::string>& arguments, const std::string& contained) {
  check_error(arguments, contained, "usage of flags");
}

}  // namespace

TEST_CASE("cli: help, version and instruction sets are told", "[cli]") {
  CHECK(output_of({"--version"}).starts_with("skald "));
  const auto help = output_of({"--help"});
  for (const char* command :
       {"generate", "chat", "bench", "inspect", "perplexity", "tokenize", "detokenize", "logits"}) {
    CHECK(help.find(command) != std::string::npos);
    const auto text = output_of({command, "--help"});
    CHECK(text.find("-m,--model") != std::string::npos);
  }
  const auto text = output_of({"generate", "--help"});
  for (const char* flag : {"-c,--ctx-size", "-b,--batch-size", "-ub,--ubatch-size", "-t,--threads", "-tb,", "-ngl,",
                           "-fa,", "-ctk,--cache-type-k", "-ctv,--cache-type-v", "-np,--parallel", "--n-predict",
                           "-s,--seed", "--temp", "--top-k", "--top-p", "--min-p"})
    CHECK(text.find(flag) != std::string::npos);
  CHECK(output_of({"inspect", "--isas"}).find("baseline") != std::string::npos);
}

TEST_CASE("cli: wrong usage gives one line and exit code 2", "[cli]") {
  check_usage({}, "subcommand");
  check_usage({"bogus"}, "no subcommand 'bogus'");
  check_usage({"-q", "bogus", "--model", model}, "no subcommand 'bogus'");
  check_usage({"inspect", model}, "a model is given with -m");
  check_usage({"generate", "-m", model, "-c", "-1"}, "-1 is less than 0 (see");
  check_usage({"generate", "-m", model, "-b", "0"}, "0 is less than 1 (see");
  check_usage({"generate", "-m", model, "-b", "1.5"}, "'1.5' is not an integer");
  check_usage({"generate"}, "--model is required");
  check_usage({"generate", "-m", model, "--bogus"}, "--bogus");
  check_usage({"generate", "-m", model, "-p", "x", "-n", "many"}, "many");
  check_usage({"generate", "-m", model, "-p", "x", "-mg", "0"}, "-mg");
  check_usage({"generate", "-m", model, "-p", "x", "-ub"}, "-ub");
  check_usage({"generate", "-m", model, "-p", "x", "-f", "y"}, "excludes");
  check_usage({"generate", "-m", model, "-p", "x", "--logprobs", "3"}, "--json");
  check_usage({"generate", "-m", model, "-p", "x", "--context-level", "0"}, "--load-context");
  check_usage({"generate", "-m", model, "-p", "x", "--context-steps", "0.5"}, "--save-context");
  check_usage({"embed", "-m", model, "--label", "1", "a"}, "--query");
  check_usage({"embed", "-m", model, "--query", "q", "--dims", "3", "a"}, "excludes");
  check_usage({"tokenize", "-m", model}, "--text");
  check_usage({"tokenize", "-m", model, "--text", "a", "--stdin"}, "--text");
  check_usage({"tokenize", "-m", model, "--file", ""}, "--file");
  check_usage({"logits", "-m", model, "-o", "x"}, "--tokens");
  check_usage({"bench", "-m", model, "-o", "xml"}, "xml");
}

TEST_CASE("cli: errors give one line and exit code 1", "[cli]") {
  const Folder folder;
  check_error({"generate", "-m", folder.file("none.gguf"), "-p", "x"}, "none.gguf", "io");
  check_error({"generate", "-m", folder.file("."), "-p", "x"}, "config.json", "format");
  check_error({"generate", "-m", folder.file("bad.gguf", "no model"), "-p", "x"}, "bad.gguf", "format");
  check_error({"generate", "-m", folder.file("."), "-p", "x"}, "one of its GGUF files: bad.gguf", "format");
  check_error({"generate", "-m", model, "-f", folder.file("none.txt")}, "none.txt", "io");
  check_error({"generate", "-m", model, "-f", folder.file(".")}, "directory", "io");
  check_error({"generate", "-m", model, "-p", "x", "--temp", "-3"}, "temperature is -3, allowed", "usage");
  check_error({"generate", "-m", model, "-p", "x", "-n", "-7"}, "-7", "usage");
  check_error({"generate", "-m", model, "-p", std::string(400, 'z'), "-c", "64"}, "64", "usage");
  check_error({"generate", "-m", model, "-p", "x", "--load-session", folder.file("bad.session", "no session")},
              "bad.session", "format");
  check_error({"generate", "-m", model, "-p", "x", "-n", "1", "--save-session", folder.file("none/x")}, "none/x", "io");
  check_error({"generate", "-m", model, "-p", "x", "--backend", "abacus"}, "abacus", "usage");
  check_error({"generate", "-m", model, "-p", "x", "--isa", "abacus"}, "abacus", "unsupported");
  check_error({"tokenize", "-m", folder.file("none.gguf"), "--text", "x"}, "none.gguf", "io");
  check_error({"tokenize", "-m", model, "--file", folder.file("none.txt")}, "none.txt", "io");
  check_error({"detokenize", "-m", model, "--text", "{"}, "JSON", "format");
  check_error({"detokenize", "-m", model, "--text", "7"}, "array", "format");
  check_error({"detokenize", "-m", model, "--text", "[1,[2]]"}, "element 1", "format");
  check_error({"detokenize", "-m", model, "--text", "[1,-2]"}, "element 1", "format");
  check_error({"detokenize", "-m", model, "--text", "[1,2.5]"}, "element 1", "format");
  check_error({"detokenize", "-m", model, "--text", "[999999]"}, "999999", "usage");
  check_error({"logits", "-m", model, "--tokens", "1,,2", "-o", folder.file("x")}, "no token id", "usage");
  check_error({"logits", "-m", model, "--tokens", "", "-o", folder.file("x")}, "no token id", "usage");
  check_error({"logits", "-m", model, "--tokens", "-1", "-o", folder.file("x")}, "-1", "usage");
  check_error({"logits", "-m", model, "--tokens", "1,999999", "-o", folder.file("x")}, "999999", "usage");
  check_error({"logits", "-m", model, "--tokens", "1", "-o", folder.file("none/x")}, "none/x", "io");
  check_error({"perplexity", "-m", model, "-f", folder.file("short.txt", "too short")}, "512", "usage");
  check_error({"perplexity", "-m", model, "-f", folder.file("short.txt"), "-c", "3"}, "at least 4", "usage");
  check_error({"perplexity", "-m", model, "-f", folder.file("short.txt"), "--csv", folder.file("none/x")}, "none/x",
              "io");
  check_error({"inspect"}, "-m", "usage");
  check_error({"inspect", "-m", model, "--base", model}, "--base", "usage");
  check_error({"bench", "-m", folder.file("none.gguf"), "-o", "csv"}, "none.gguf", "io");
  check_error({"bench", "-m", model, "-p", "5-"}, "5-", "usage");
  check_error({"bench", "-m", model, "-p", "1-8*1"}, "1-8*1", "usage");
  check_error({"bench", "-m", model, "-pg", "5"}, "512,128", "usage");
  check_error({"bench", "-m", model, "-p", "0", "-n", "0"}, "nothing", "usage");
  CHECK(folder.files() == 3);  // no half-written or temporary file
}

TEST_CASE("cli: tokenize and detokenize take Hugging Face folders", "[cli]") {
  const skald_test::TemporaryFolder folder("tokenize");
  folder.write("config.json", R"({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2,
    "num_hidden_layers": 1, "max_position_embeddings": 16, "vocab_size": 4})");
  skald_test::write_tensors(folder, {{"model.norm.weight", {{8}, std::vector<float>(8, 1.0F)}}});
  check_error({"tokenize", "-m", folder.path(), "--text", "x"}, "no tokenizer", "unsupported");
  const auto file = skald_test::source_path("tests/unit/text/tokenizer_json/falcon.json");
  folder.write("tokenizer.json", json::parse(skald_test::read_text(file)).at("tokenizer").dump());
  const auto ids = output_of({"tokenize", "-m", folder.path(), "--text", "Hello, world"});
  CHECK(json::parse(ids).size() > 1);
  CHECK(output_of({"detokenize", "-m", folder.path(), "--text", ids}) == "Hello, world");
}

TEST_CASE("cli: convert does not replace its own input", "[cli]") {
  const Folder folder;
  const auto copy = folder.file("copy.gguf");
  std::filesystem::copy_file(model, copy);
  const auto size = std::filesystem::file_size(copy);
  check_error({"convert", "-m", copy, "-o", copy, "--type", "q4_0"}, "give -o another name", "usage");
  check_error({"convert", "-m", copy, "-o", folder.file("./copy.gguf")}, "give -o another name", "usage");
  check_error({"convert", "-m", copy, "-o", folder.file(".")}, "a folder", "usage");
  CHECK(std::filesystem::file_size(copy) == size);
  CHECK(folder.files() == 1);
}

TEST_CASE("cli: a packed cache that cannot be written is told", "[cli]") {
  const Folder folder;
  const auto outcome =
      run_program({"generate", "-m", model, "-p", "x", "-n", "1", "--packed-cache", folder.file("none/x")});
  CHECK(outcome.code == 0);
  CHECK(outcome.err.find("warning: --packed-cache has no effect: ") != std::string::npos);
  CHECK(outcome.err.find("No such file") != std::string::npos);
}

TEST_CASE("cli: flags of llama.cpp mean the same or are refused", "[cli]") {
  const std::vector<std::string> base{"generate", "-m", model, "-p", "One day", "-n", "2"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return more;
  };
  check_error(with({"-ngl", "99"}), "-ngl 99", "unsupported");
  check_error(with({"-tb", "3", "-t", "2"}), "-tb 3", "unsupported");
  check_error(with({"-fa", "off"}), "-fa off", "unsupported");
  check_error(with({"-np", "2"}), "-np 2", "unsupported");
  check_error(with({"-md", "draft.gguf"}), "-md", "unsupported");
  check_error(with({"-ctk", "f32", "-ctv", "f16"}), "f16", "incompatible");
  check_error(with({"-ctk", "q5_1"}), "q5_1", "unsupported");
  check_error({"bench", "-m", model, "-fa", "0"}, "-fa 0", "unsupported");
  check_error({"bench", "-m", model, "-ngl", "1"}, "-ngl 1", "unsupported");
  const auto plain = output_of(with({}));
  CHECK(output_of(with({"-ngl", "0",  "-fa", "on", "-t",   "2",   "-tb",  "2",   "-np", "1",
                        "-b",   "64", "-ub", "16", "-ctk", "f16", "-ctv", "f16", "-c",  "128"})) == plain);
  // A value may look like a flag.
  CHECK(output_of({"generate", "-m", model, "-p", "-ub -m", "-n", "1"}).starts_with("-ub -m"));
  CHECK(output_of({"tokenize", "-m", model, "--text", "-ctk"}) == output_of({"tokenize", "-m", model, "--text=-ctk"}));
}

TEST_CASE("cli: adapters change what is generated as far as their scale says, and inspect tells of them", "[cli]") {
  const Folder folder;
  const auto matrix = skald::open_gguf(model).at("blk.0.ffn_up.weight");
  const auto factor = [](std::int64_t count, float sign) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = sign * 0.1F * static_cast<float>(i % 11) - 0.4F;
    return values;
  };
  const auto a = factor(2 * matrix.columns(), 1.0F), b = factor(2 * matrix.rows(), -1.0F);
  skald::GgufWriter writer;
  writer.set("general.type", std::string("adapter"));
  writer.set("general.architecture", std::string("llama"));
  writer.set("adapter.type", std::string("lora"));
  writer.set("adapter.lora.alpha", 8.0F);
  writer.add_tensor(matrix.name + ".lora_a", skald::DType::f32, {matrix.columns(), 2}, std::as_bytes(std::span(a)));
  writer.add_tensor(matrix.name + ".lora_b", skald::DType::f32, {2, matrix.rows()}, std::as_bytes(std::span(b)));
  const auto path = folder.file("adapter.gguf");
  writer.write_file(path);
  const auto with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all{"generate", "-m", model, "-p", "One day", "-n", "12", "--temp", "0", "-q"};
    all.insert(all.end(), more.begin(), more.end());
    return output_of(all);
  };
  const auto base = with({});
  CHECK(with({"--lora", path + ":0"}) == base);
  CHECK(with({"--lora", path}) != base);
  CHECK(with({"--lora", path + ":0", "--lora", path}) == with({"--lora", path}));
  const auto merged = folder.file("merged.gguf");
  (void)output_of({"convert", "-m", model, "-o", merged, "--lora", path + ":0.5", "-q"});
  CHECK(skald::open_gguf(merged).at(matrix.name).type == skald::DType::f32);

  const auto told = json::parse(output_of({"inspect", "-m", path, "--base", model, "--json"}));
  CHECK(told["adapter"] == "gguf");
  CHECK(told["tensor_count"] == 2);
  REQUIRE(told["changes"].size() == 1);
  CHECK(told["changes"][0]["tensor"] == matrix.name);
  CHECK(told["changes"][0]["rank"] == 2);
  CHECK(told["changes"][0]["scale"] == 4.0F);
  CHECK(output_of({"inspect", "-m", path, "--base", model}).find(matrix.name) != std::string::npos);
  check_error({"generate", "-m", model, "-p", "x", "--lora", folder.file("none.gguf")}, "none.gguf", "io");
  check_error({"generate", "-m", model, "-p", "x", "--lora", model}, "adapter", "format");
}

TEST_CASE("cli: output that cannot be written is an error", "[cli]") {
  skald_test::Start closed;
  closed.close_reader = true;
  check_error({"generate", "-m", model, "-p", "x", "-n", "400", "--ignore-eos"}, "standard output", "io", closed);
  if (!std::filesystem::exists("/dev/full")) return;
  skald_test::Start full;
  full.output_file = "/dev/full";
  check_error({"generate", "-m", model, "-p", "x", "-n", "2"}, "standard output", "io", full);
  check_error({"tokenize", "-m", model, "--text", "x"}, "standard output", "io", full);
  check_error({"inspect", "-m", model}, "standard output", "io", full);
}

TEST_CASE("cli: Ctrl-C ends with one line and exit code 1", "[cli]") {
  skald_test::Start start;
  start.interrupt_after = 1;
  // Of the reference backend, which takes seconds for this.
  auto outcome = run_program({"generate", "-m", model, "-p", "Once", "-n", "100000", "-c", "100000", "--ignore-eos",
                              "--quiet", "--backend", "reference"},
                             start);
  CHECK(outcome.code == 1);
  CHECK(outcome.err == "error: interrupted\n");
  CHECK(outcome.out.starts_with("Once"));
  outcome = run_program({"bench", "-m", model, "-r", "100000", "--no-probe", "-o", "json", "--json-errors"}, start);
  CHECK(outcome.code == 1);
  CHECK(json::parse(outcome.err).at("code") == "cancelled");
  CHECK(json::parse(outcome.out).is_array());
  start.keep_input_open = true;  // waiting for a line
  outcome = run_program({"chat", "-m", model}, start);
  CHECK(outcome.code == 1);
  CHECK(outcome.err.ends_with("error: interrupted\n"));
}

TEST_CASE("cli.generate: text, JSON, stop strings, files and seeds", "[cli]") {
  const Folder folder;
  const auto text =
      output_of({"generate", "-m", model, "-p", "Once upon a time", "-n", "24", "--ignore-eos", "-s", "3"});
  CHECK(text.starts_with("Once upon a time"));
  CHECK(text.ends_with("\n"));
  CHECK(text.size() > 40);
  CHECK(output_of({"generate", "-m", model, "-f", folder.file("p", "Once upon a time\n"), "-n", "24", "--ignore-eos",
                   "-s", "3"}) == text);
  skald_test::Start start;
  start.input = "Once upon a time";
  CHECK(output_of({"generate", "-m", model, "-f", "-", "-n", "24", "--ignore-eos", "-s", "3"}, start) == text);
  CHECK("Once upon a time" + output_of({"generate", "-m", model, "-p", "Once upon a time", "-n", "24", "--ignore-eos",
                                        "-s", "3", "--no-display-prompt"}) ==
        text);
  const auto result = json::parse(output_of({"generate", "-m", model, "-p", "Once upon a time", "-n", "24",
                                             "--ignore-eos", "-s", "3", "--json", "--logprobs", "3"}));
  CHECK(result.at("prompt").get<std::string>() + result.at("text").get<std::string>() + "\n" == text);
  CHECK(result.at("tokens").size() == 24);
  CHECK(result.at("finish_reason") == "length");
  CHECK(result.at("seed") == 3);
  CHECK(result.at("timings").at("predicted_n") == 24);
  CHECK(result.at("timings").at("prompt_n") >= 4);
  REQUIRE(result.at("logprobs").size() == 24);
  CHECK(result.at("logprobs")[0].at("top").size() == 3);
  CHECK(result.at("logprobs")[0].at("top")[0].at("logprob") <= 0.0);
  // A piece of the text as a stop string: it and what follows do not come out.
  const auto generated = result.at("text").get<std::string>();
  const auto word = generated.substr(generated.size() / 2, 5);
  const auto stopped = json::parse(output_of({"generate", "-m", model, "-p", "Once upon a time", "-n", "24",
                                              "--ignore-eos", "-s", "3", "--json", "-r", word}));
  CHECK(stopped.at("finish_reason") == "stop_string");
  CHECK(stopped.at("text") == generated.substr(0, generated.find(word)));
  CHECK(json::parse(output_of({"generate", "-m", model, "-p", "a\\nb\\q", "-e", "-n", "0", "--json"})).at("prompt") ==
        "a\nb\\q");
  CHECK(json::parse(output_of({"generate", "-m", model, "-p", "a\\nb", "-n", "0", "--json"})).at("prompt") == "a\\nb");
  // Seeds: -1 is a new one each time.
  const auto seed = [&] {
    return json::parse(output_of({"generate", "-m", model, "-p", "x", "-n", "0", "-s", "-1", "--json"}))
        .at("seed")
        .get<std::uint64_t>();
  };
  CHECK(seed() != seed());
}

TEST_CASE("cli.generate: the context ends a text, and more of it than the model knows is allowed with a warning",
          "[cli]") {
  auto outcome =
      run_program({"generate", "-m", model, "-p", "x", "-n", "99999999999", "-c", "32", "--json", "--ignore-eos"});
  CHECK(outcome.code == 0);
  CHECK(json::parse(outcome.out).at("finish_reason") == "context");
  outcome = run_program({"generate", "-m", model, "-p", "x", "-n", "1", "-c", "5000"});
  CHECK(outcome.code == 0);
  CHECK(outcome.err.starts_with("warning: a context of 5000"));
  outcome = run_program({"generate", "-m", model, "-p", "x", "-n", "1", "-c", "5000", "--quiet"});
  CHECK(outcome.code == 0);
  CHECK(outcome.err.empty());
  outcome = run_program({"generate", "-m", model, "-p", "x", "-n", "1", "-c", "0", "--show-config", "-q"});
  const auto all = json::parse(output_of({"inspect", "-m", model, "--json"}));
  CHECK(json::parse(outcome.err).at("context") == all.at("metadata").at("llama.context_length"));
}

TEST_CASE("cli.generate: a saved session goes on as if it had not ended", "[cli]") {
  const Folder folder;
  const auto session = folder.file("s");
  const auto first = output_of({"generate", "-m", model, "-p", "Once upon a time", "-n", "9", "--temp", "0", "--json",
                                "--save-session", session});
  const auto tokens = json::parse(first).at("tokens").get<std::vector<int>>();
  // The last token is not part of the session yet: it is the prompt that continues it.
  const auto last = output_of({"detokenize", "-m", model, "--text", json({tokens.back()}).dump(), "--keep-spaces"});
  const auto whole =
      json::parse(output_of({"generate", "-m", model, "-p", "Once upon a time", "-n", "16", "--temp", "0", "--json"}));
  const auto rest = json::parse(
      output_of({"generate", "-m", model, "-p", last, "-n", "7", "--temp", "0", "--json", "--load-session", session}));
  auto expected = whole.at("tokens").get<std::vector<int>>();
  expected.erase(expected.begin(), expected.begin() + 9);
  CHECK(rest.at("tokens").get<std::vector<int>>() == expected);
}

TEST_CASE("cli.tokenize: text, file and standard input give ids that detokenize takes back", "[cli]") {
  const Folder folder;
  const std::string text = "Once upon a time,\nin a <|im_start|> \"house\".";
  const auto ids = output_of({"tokenize", "-m", model, "--text", text});
  CHECK(json::parse(ids).is_array());
  skald_test::Start start;
  start.input = text;
  CHECK(output_of({"tokenize", "-m", model, "--file", folder.file("t", text)}) == ids);
  CHECK(output_of({"tokenize", "-m", model, "--stdin"}, start) == ids);
  const auto without = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"tokenize", "-m", model, "--text", text});
    return json::parse(output_of(flags)).get<std::vector<int>>();
  };
  const auto all = json::parse(ids).get<std::vector<int>>();
  const auto plain = without({"--no-add-special"});
  CHECK(std::vector<int>(all.begin() + 1, all.end()) == plain);  // this vocabulary adds BOS
  CHECK(without({"--no-add-special", "--no-parse-special"}).size() > plain.size());
  const auto back = json(plain).dump();
  CHECK(output_of({"detokenize", "-m", model, "--text", back}) == text);
  CHECK(output_of({"detokenize", "-m", model, "--file", folder.file("ids", back)}) == text);
  start.input = back + "\n";
  CHECK(output_of({"detokenize", "-m", model, "--stdin"}, start) == text);
  CHECK(output_of({"detokenize", "-m", model, "--text", "[]"}).empty());
  CHECK(json::parse(output_of({"tokenize", "-m", model, "--text", "", "--no-add-special"})) == json::array());
}

TEST_CASE("cli.logits: rows as floats, shape and greedy ids", "[cli]") {
  const Folder folder;
  const auto run = [&](const std::string& tokens, const std::string& name, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"logits", "-m", model, "--tokens", tokens, "-o", folder.file(name)});
    CHECK(output_of(more).empty());
    return skald_test::read_floats(folder.file(name));
  };
  const auto rows = run("5,6,7,8", "a", {"--greedy", "3"});
  const auto description = json::parse(skald_test::read_text(folder.file("a.json")));
  const auto vocabulary = description.at("shape").at(1).get<std::size_t>();
  CHECK(description.at("shape").at(0) == 4);
  CHECK(vocabulary > 256);
  REQUIRE(rows.size() == 4 * vocabulary);
  const auto greedy = description.at("greedy").get<std::vector<int>>();
  REQUIRE(greedy.size() == 3);
  // The greedy ids are those of the rows, fed back.
  const auto longer =
      run("[5, 6, 7, 8, " + std::to_string(greedy[0]) + ", " + std::to_string(greedy[1]) + "]", "b", {"-ub", "2"});
  REQUIRE(longer.size() == 6 * vocabulary);
  CHECK(std::equal(rows.begin(), rows.end(), longer.begin()));
  for (std::size_t i = 0; i < 3; ++i) {
    const auto row = longer.begin() + static_cast<std::ptrdiff_t>((3 + i) * vocabulary);
    CHECK(std::max_element(row, row + static_cast<std::ptrdiff_t>(vocabulary)) - row == greedy[i]);
  }
  CHECK(!json::parse(skald_test::read_text(folder.file("b.json"))).contains("greedy"));
  const auto reference = run("5,6,7,8", "c", {"--backend", "reference"});
  double most = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    most = std::max(most, std::abs(static_cast<double>(rows[i]) - reference[i]));
  CHECK(most > 0);  // the cpu backend rounds activations to 8 bits here: another computation
  CHECK(most < 1.0);
  CHECK(json::parse(skald_test::read_text(folder.file("c.json"))).at("config").at("backend") == "reference");
}

TEST_CASE("cli: generate keeps a compressed context and goes on from each of its levels", "[cli]") {
  const Folder folder;
  const std::vector<std::string> common{"generate", "-m", model, "-n", "4", "--temp", "0", "--no-display-prompt", "-q"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), common.begin(), common.end());
    return more;
  };
  output_of(with({"-p", "Once upon a time there was", "--save-context", folder.file("a"), "--context-steps", "0.02,1"}));
  output_of(with({"-p", "Once upon a time there was", "--save-session", folder.file("b")}));
  const auto whole = output_of(with({"-p", " and", "--load-session", folder.file("b")}));
  CHECK(output_of(with({"-p", " and", "--load-context", folder.file("a")})) == whole);
  CHECK(output_of(with({"-p", " and", "--load-context", folder.file("a"), "--context-level", "-1"})) == whole);
  CHECK(!output_of(with({"-p", " and", "--load-context", folder.file("a"), "--context-level", "1"})).empty());
  check_error(with({"-p", "x", "--load-context", folder.file("a"), "--context-level", "2"}), "level 2 of 2", "usage");
  check_error(with({"-p", "x", "--load-context", folder.file("b")}), "not a skald context", "format");
  check_usage(with({"-p", "x", "--load-context", folder.file("a"), "--load-session", folder.file("b")}), "excludes");
}

TEST_CASE("cli: calibrate learns codebooks, generate and perplexity use them", "[cli]") {
  const Folder folder;
  const auto text = folder.file("text");
  std::ofstream(text) << output_of({"generate", "-m", model, "-n", "300", "-q", "-p", "Once upon a time", "--ignore-eos"});
  const auto books = folder.file("books");
  const auto told = output_of({"calibrate", "-m", model, "-f", text, "-o", books, "--channels", "4", "--bits", "6", "-q"});
  CHECK(told.find("4 channels in 6 bits") != std::string::npos);
  const std::vector<std::string> common{"generate", "-m", model, "-n", "4", "--temp", "0", "-q", "-p", "Once upon a time"};
  auto coupled = common;
  for (const auto& flag : {std::string("-ctk"), std::string("coupled"), std::string("--kv-codebooks"), books})
    coupled.push_back(flag);
  CHECK(!output_of(coupled).empty());
  check_error({"generate", "-m", model, "-p", "x", "-ctk", "coupled"}, "needs kv.codebooks", "usage");
  check_error({"generate", "-m", model, "-p", "x", "--kv-codebooks", books}, "for kv.format 'coupled'", "usage");
  check_error({"generate", "-m", model, "-p", "x", "-ctk", "coupled", "--kv-codebooks", text}, "codebooks", "format");
}

TEST_CASE("cli.inspect: spec, plan, tensors and metadata", "[cli]") {
  const auto text = output_of({"inspect", "-m", model, "--tensors", "--metadata"});
  for (const char* part : {"spec:", "plan for 1 sequence of ", "token_embd.weight", "general.architecture"})
    CHECK(text.find(part) != std::string::npos);
  const auto all = json::parse(output_of({"inspect", "-m", model, "--json", "-c", "256", "-np", "2", "-ctk", "f32"}));
  CHECK(all.at("tensors").size() == all.at("tensor_count"));
  CHECK(all.at("metadata").at("general.architecture") == "llama");
  CHECK(all.at("plan_context") == 256);
  const auto half = json::parse(output_of({"inspect", "-m", model, "--json", "-c", "256", "-np", "2", "-ctk", "f16"}));
  CHECK(all.at("plan").at("kv").get<std::uint64_t>() == 2 * half.at("plan").at("kv").get<std::uint64_t>());
  CHECK(all.at("plan").at("weights") == half.at("plan").at("weights"));
  const auto apart = json::parse(output_of({"inspect", "-m", model, "--json", "-c", "256", "-np", "2", "-ctk", "f16;values=32"}));
  CHECK(2 * apart.at("plan").at("kv").get<std::uint64_t>() == half.at("plan").at("kv").get<std::uint64_t>());
  CHECK(apart.at("plan").at("slow") == apart.at("plan").at("kv"));
  const auto h2o = json::parse(output_of({"inspect", "-m", model, "--json", "-c", "256", "--kv-eviction", "h2o:budget=128"}));
  CHECK(h2o.at("plan").at("policies").get<std::uint64_t>() > 0);
}

TEST_CASE("cli.embed: texts become vectors, a query needs a classifier", "[cli]") {
  const Folder folder;
  const auto found = json::parse(output_of({"embed", "-m", model, "-q", "--dims", "32", "The fox ran.", "A hen sat."}));
  CHECK(found.at("pooling") == "mean");
  CHECK(found.at("dims") == 32);
  REQUIRE(found.at("embeddings").size() == 2);
  for (const auto& vector : found.at("embeddings")) {
    double square = 0;
    for (const auto& value : vector) square += value.get<double>() * value.get<double>();
    CHECK(square == Approx(1.0).margin(1e-5));
  }
  const auto lines = folder.file("lines", "The fox ran.\n\nA hen sat.\n");
  CHECK(json::parse(output_of({"embed", "-m", model, "-q", "--dims", "32", "-f", lines})) == found);
  check_error({"embed", "-m", model, "--query", "Who ran?", "The fox."}, "classifier", "unsupported");
  check_error({"embed", "-m", model, "--pooling", "sum", "x"}, "mean, cls, last or rank", "usage");
  check_error({"embed", "-m", model}, "give texts", "usage");
}

TEST_CASE("cli.convert: numbers that no kernel reads are named by inspect and become f32", "[cli]") {
  const Folder folder;
  const auto source = skald::open_gguf(model);
  skald::GgufWriter writer;
  writer.set_all(source.metadata());
  for (const auto& tensor : source.tensors()) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes));
    source.read(tensor, bytes);
    auto type = tensor.type;
    if (tensor.name == "output_norm.weight") {
      type = skald::DType::f64;
      std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
      std::memcpy(values.data(), bytes.data(), bytes.size());
      const std::vector<double> wide(values.begin(), values.end());
      const auto view = std::as_bytes(std::span(wide));
      bytes.assign(view.begin(), view.end());
    }
    writer.add_tensor(tensor.name, type, {tensor.dims.begin(), tensor.dims.begin() + static_cast<std::ptrdiff_t>(tensor.rank)},
                      bytes);
  }
  const auto wide = folder.file("wide.gguf");
  writer.write_file(wide);
  const auto type_in = [](const std::string& path) {
    const auto inspected = json::parse(output_of({"inspect", "-m", path, "--json"}));
    for (const auto& tensor : inspected.at("tensors"))
      if (tensor.at("name") == "output_norm.weight") return tensor.at("type").get<std::string>();
    return std::string();
  };
  CHECK(type_in(wide) == "f64");
  const auto back = folder.file("back.gguf");
  (void)output_of({"convert", "-m", wide, "-o", back, "-q"});
  CHECK(type_in(back) == "f32");
  const std::vector<std::string> more{"-n", "8", "--temp", "0", "-q", "-p", "Once upon a time"};
  const auto text_of = [&](const std::string& path) {
    std::vector<std::string> arguments{"generate", "-m", path};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return output_of(arguments);
  };
  CHECK(text_of(wide) == text_of(model));
}
