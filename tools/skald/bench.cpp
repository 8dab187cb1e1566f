// Speed of prompt processing and text generation, with llama-bench's tests, flags, table and JSON fields, and beside
// them the share of what the machine can do, measured in the same run.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/kernels/probe.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct BenchFlags {
  std::vector<std::string> models;
  std::vector<std::int64_t> prompts{512};
  std::vector<std::int64_t> generations{128};
  std::vector<std::string> combined;
  std::vector<std::int64_t> depths{0};
  std::vector<std::int64_t> sequences{1};
  std::vector<int> threads{0};
  std::vector<std::int64_t> batches{2048};
  std::vector<std::int64_t> ubatches{512};
  std::vector<std::string> cache_k{"f16"};
  std::vector<std::string> cache_v;
  std::vector<int> flash{1};
  std::vector<int> mmap{1};
  std::string isa;
  std::string output = "md";
  int repetitions = 5;
  bool no_warmup = false;
  bool no_probe = false;
  bool no_repack = false;
  bool progress = false;
};

/// One test: n_prompt tokens at once and then n_gen one by one, after `depth` tokens, in `sequences` sessions.
struct Test {
  std::int64_t prompt = 0;
  std::int64_t generate = 0;
  std::int64_t depth = 0;
  std::int64_t sequences = 1;
  [[nodiscard]] std::string name() const {
    std::string text;
    if (prompt > 0 && generate > 0) text = fmt::format("pp{}+tg{}", prompt, generate);
    else if (prompt > 0) text = fmt::format("pp{}", prompt);
    else text = fmt::format("tg{}", generate);
    if (depth > 0) text += fmt::format(" @ d{}", depth);
    if (sequences > 1) text += fmt::format(" x{}", sequences);
    return text;
  }
};

struct Machine {
  double bandwidth = 0.0;  // bytes per second
  double int8_peak = 0.0;  // operations per second
  double f32_peak = 0.0;
};

/// What one token costs: bytes that decoding must read, operations of the matrices.
struct Cost {
  double weight_bytes = 0.0;
  double head_operations = 0.0;
  double body_operations = 0.0;
  double kv_bytes_per_token = 0.0;
  double attention_operations = 0.0;  // per token and visible token, f32
  bool integer = false;
};

Cost cost_of(const skald::Model& model, skald::DType kv) {
  const auto& spec = model.spec();
  Cost cost;
  const auto add = [&](skald::Role role, int layer) {
    const auto* weight = model.weight(role, layer);
    if (weight == nullptr) return;
    cost.weight_bytes += static_cast<double>(weight->bytes());
    cost.integer = cost.integer || skald::dtype_info(weight->type()).quantized;
    const double operations = 2.0 * static_cast<double>(weight->rows()) * static_cast<double>(weight->cols());
    (role == skald::Role::head ? cost.head_operations : cost.body_operations) += operations;
  };
  for (int layer = 0; layer < spec.layer_count(); ++layer) {
    for (const auto role : {skald::Role::query, skald::Role::key, skald::Role::value, skald::Role::attention_output,
                            skald::Role::ffn_gate, skald::Role::ffn_up, skald::Role::ffn_down})
      add(role, layer);
    const auto& attention = spec.layers[static_cast<std::size_t>(layer)].attention;
    if (!attention) continue;
    const double element = kv == skald::DType::f32 ? 4.0 : 2.0;
    cost.kv_bytes_per_token += element * static_cast<double>(attention->k_cols() + attention->v_cols());
    cost.attention_operations += 2.0 * attention->heads * (attention->head_dim_k + attention->head_dim_v);
  }
  add(skald::Role::head, -1);
  return cost;
}

/// Seconds that the machine needs at least: memory and arithmetic limits of a test.
struct Limits {
  double memory_seconds = 0.0;
  double compute_seconds = 0.0;
};

Limits limits_of(const Test& test, const Cost& cost, const Machine& machine, std::int64_t ubatch) {
  Limits limits;
  const double peak = cost.integer ? machine.int8_peak : machine.f32_peak;
  const auto run = [&](std::int64_t tokens, std::int64_t per_pass, std::int64_t depth) {
    const double passes = std::ceil(static_cast<double>(tokens) / static_cast<double>(per_pass));
    const double seen = static_cast<double>(tokens) * (static_cast<double>(depth) + 0.5 * static_cast<double>(tokens + 1));
    const auto sequences = static_cast<double>(test.sequences);
    // Keys and values before each pass are read once per pass.
    const double kv_read = passes * (static_cast<double>(depth) + 0.5 * static_cast<double>(tokens));
    limits.memory_seconds += (passes * cost.weight_bytes + sequences * kv_read * cost.kv_bytes_per_token) / machine.bandwidth;
    limits.compute_seconds += sequences * (static_cast<double>(tokens) * cost.body_operations + passes * cost.head_operations) / peak +
                              sequences * seen * cost.attention_operations / machine.f32_peak;
  };
  if (test.prompt > 0) run(test.prompt, ubatch, test.depth);
  if (test.generate > 0) run(test.generate, 1, test.depth + test.prompt);
  return limits;
}

class Runner {
 public:
  Runner(const skald::Model& model, skald::DecoderOptions options, const Test& test)
      : decoder_(model, options), test_(test), vocabulary_(model.spec().vocabulary) {
    for (std::int64_t s = 0; s < test.sequences; ++s) sessions_.push_back(decoder_.new_session());
  }

  void fill_depth(std::stop_token stop) {
    if (test_.depth > 0) prompt(test_.depth, stop);
  }
  void warm_up(std::stop_token stop) {
    if (test_.prompt > 0) prompt(std::min<std::int64_t>(test_.prompt, 512), stop);
    if (test_.generate > 0) generate(1, stop);
    reset();
  }
  /// Nanoseconds of one repetition.
  std::uint64_t measure(std::stop_token stop) {
    reset();
    const auto start = Clock::now();
    if (test_.prompt > 0) prompt(test_.prompt, stop);
    if (test_.generate > 0) generate(test_.generate, stop);
    const auto end = Clock::now();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(end - start).count());
  }
  [[nodiscard]] const skald::EffectiveConfig& config() const { return decoder_.effective_config(); }

 private:
  void reset() {
    for (auto& session : sessions_) session.truncate(std::min(session.length(), test_.depth));
  }
  skald::TokenId next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<skald::TokenId>((state_ >> 33) % static_cast<std::uint64_t>(vocabulary_));
  }
  void prompt(std::int64_t count, std::stop_token stop) {
    batch_.clear();
    for (auto& session : sessions_) {
      std::vector<skald::TokenId> tokens(static_cast<std::size_t>(count));
      for (auto& token : tokens) token = next();
      batch_.add(session, tokens);
    }
    (void)decoder_.forward(batch_, {.stop = stop});
  }
  void generate(std::int64_t count, std::stop_token stop) {
    for (std::int64_t i = 0; i < count; ++i) {
      batch_.clear();
      for (auto& session : sessions_) {
        const auto token = next();
        batch_.add(session, {&token, 1});
      }
      (void)decoder_.forward(batch_, {.stop = stop});
    }
  }
  skald::Decoder<> decoder_;
  Test test_;
  std::int64_t vocabulary_;
  std::vector<skald::Session> sessions_;
  skald::Batch batch_;
  std::uint64_t state_ = 1;
};

double mean(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

double deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0.0;
  const double m = mean(values);
  double sum = 0.0;
  for (const double v : values) sum += (v - m) * (v - m);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

std::string timestamp() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char buffer[32];
  std::strftime(buffer, sizeof buffer, "%FT%TZ", &utc);
  return buffer;
}

class Printer {
 public:
  explicit Printer(std::string format) : format_(std::move(format)) {
    if (format_ == "json") fmt::print("[\n");
    if (format_ == "md") {
      fmt::print("| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>15} | {:>20} | {:>6} | {:>6} |\n", "model", "size", "params", "backend",
                 "threads", "test", "t/s", "% bw", "% peak");
      fmt::print("| {:-<30} | {:->9}: | {:->9}: | {:-<10} | {:->6}: | {:->14}: | {:->19}: | {:->5}: | {:->5}: |\n", "", "", "", "", "", "", "", "", "");
    }
  }
  void row(const ordered_json& r) {
    if (format_ == "json") fmt::print("{}{}", first_ ? "" : ",\n", r.dump(2));
    else if (format_ == "jsonl") fmt::print("{}\n", r.dump());
    else if (format_ == "csv") csv(r);
    else
      fmt::print("| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>15} | {:>20} | {:>6} | {:>6} |\n", r["model_type"].get<std::string>(),
                 human_bytes(r["model_size"].get<std::uint64_t>()), parameters(r["model_n_params"].get<double>()), r["backends"].get<std::string>(),
                 r["n_threads"].get<int>(), r["test"].get<std::string>(),
                 fmt::format("{:.2f} ± {:.2f}", r["avg_ts"].get<double>(), r["stddev_ts"].get<double>()), percent(r["percent_bandwidth"]),
                 percent(r["percent_peak"]));
    first_ = false;
    std::fflush(stdout);
  }
  void finish(const Machine& machine) {
    if (format_ == "json") fmt::print("\n]\n");
    if (format_ == "md" && machine.bandwidth > 0)
      fmt::print("\nmachine, measured in this run: {:.1f} GB/s read, {:.2f} int8 TOP/s, {:.0f} f32 GFLOP/s; % bw and % peak: least time for the\n"
                 "memory traffic (weights and KV) or for the arithmetic of the test, over the time it took\n",
                 machine.bandwidth * 1e-9, machine.int8_peak * 1e-12, machine.f32_peak * 1e-9);
  }

 private:
  static std::string percent(const ordered_json& value) { return value.is_null() ? "-" : fmt::format("{:.1f}", value.get<double>()); }
  static std::string parameters(double n) { return n >= 1e9 ? fmt::format("{:.2f} B", n * 1e-9) : fmt::format("{:.2f} M", n * 1e-6); }
  void csv(const ordered_json& r) {
    std::string head;
    std::string line;
    for (const auto& [key, value] : r.items()) {
      head += (head.empty() ? "" : ",") + key;
      auto text = value.is_string() ? value.get<std::string>() : value.dump();
      std::string quoted = "\"";
      for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
      line += (line.empty() ? "" : ",") + quoted + "\"";
    }
    if (first_) fmt::print("{}\n", head);
    fmt::print("{}\n", line);
  }
  std::string format_;
  bool first_ = true;
};

std::vector<Test> tests_of(const BenchFlags& flags) {
  std::vector<Test> tests;
  for (const auto depth : flags.depths)
    for (const auto sequences : flags.sequences) {
      for (const auto prompt : flags.prompts)
        if (prompt > 0) tests.push_back({prompt, 0, depth, sequences});
      for (const auto generate : flags.generations)
        if (generate > 0) tests.push_back({0, generate, depth, sequences});
      for (const auto& pair : flags.combined) {
        const auto comma = pair.find(',');
        std::int64_t p = 0;
        std::int64_t g = 0;
        try {
          if (comma == std::string::npos) throw std::invalid_argument("");
          p = std::stoll(pair.substr(0, comma));
          g = std::stoll(pair.substr(comma + 1));
        } catch (const std::exception&) {
          throw skald::UsageError("cli.bench", "-pg takes two numbers, as 512,128; found '" + pair + "'");
        }
        tests.push_back({p, g, depth, sequences});
      }
    }
  return tests;
}

struct Setting {
  int threads;
  std::int64_t batch;
  std::int64_t ubatch;
  std::string cache;
  bool mmap;
};

void measure(const BenchFlags& flags, const Global& global, const std::string& path, const Setting& setting, Machine& machine, Printer& printer) {
  ModelFlags model_flags;
  model_flags.path = path;
  model_flags.threads = setting.threads;
  model_flags.isa = flags.isa;
  model_flags.no_mmap = !setting.mmap;
  model_flags.no_repack = flags.no_repack;
  const auto model = model_flags.load(global, false);
  const auto info = model.backend()->info();
  const auto stop = stop_on_interrupt();
  if (!flags.no_probe && machine.bandwidth == 0.0) {
    const auto executor = skald::make_tbb_executor();
    const skald::ProbeOptions probe{.isa = *skald::isa_from_name(info.isa)};
    machine = {skald::measure_bandwidth(executor, probe), skald::measure_int8_peak(executor, probe), skald::measure_f32_peak(executor, probe)};
  }
  const auto cost = cost_of(model, skald::AnyKvFormat(setting.cache).dtype());
  for (const auto& test : tests_of(flags)) {
    skald::DecoderOptions options;
    options.context = test.depth + test.prompt + test.generate + 1;
    options.parallel = static_cast<std::int32_t>(test.sequences);
    options.batch_tokens = std::min(setting.ubatch, setting.batch);
    options.kv.format = setting.cache;
    options.check_finite = skald::CheckFinite::off;
    Runner runner(model, options, test);
    if (!flags.no_warmup) runner.warm_up(stop);
    runner.fill_depth(stop);
    std::vector<std::uint64_t> ns;
    std::vector<double> ts;
    std::vector<double> seconds;
    const auto tokens = static_cast<double>((test.prompt + test.generate) * test.sequences);
    for (int r = 0; r < flags.repetitions; ++r) {
      if (flags.progress) fmt::print(stderr, "{} {}: repetition {}/{}\n", path, test.name(), r + 1, flags.repetitions);
      ns.push_back(runner.measure(stop));
      seconds.push_back(static_cast<double>(ns.back()) * 1e-9);
      ts.push_back(tokens / seconds.back());
    }
    const auto& config = runner.config();
    ordered_json row{{"build_commit", skald::library_version()}, {"build_number", 0}, {"cpu_info", info.device}, {"gpu_info", ""},
                     {"backends", "CPU"}, {"model_filename", path}, {"model_type", model.info().description},
                     {"model_size", model.info().file_bytes}, {"model_n_params", model.info().parameters}, {"n_batch", setting.batch},
                     {"n_ubatch", setting.ubatch}, {"n_threads", info.threads}, {"cpu_mask", "0x0"}, {"cpu_strict", false}, {"poll", 0},
                     {"type_k", setting.cache}, {"type_v", setting.cache}, {"n_gpu_layers", 0}, {"n_cpu_moe", 0}, {"split_mode", "none"},
                     {"main_gpu", 0}, {"no_kv_offload", false}, {"flash_attn", true}, {"devices", "none"}, {"tensor_split", "0.00"},
                     {"tensor_buft_overrides", "none"}, {"use_mmap", setting.mmap}, {"embeddings", false}, {"no_op_offload", 0}, {"no_host", false},
                     {"n_prompt", test.prompt}, {"n_gen", test.generate}, {"n_depth", test.depth}, {"test_time", timestamp()}};
    std::vector<double> ns_double(ns.begin(), ns.end());
    row["avg_ns"] = static_cast<std::uint64_t>(mean(ns_double));
    row["stddev_ns"] = static_cast<std::uint64_t>(deviation(ns_double));
    row["avg_ts"] = mean(ts);
    row["stddev_ts"] = deviation(ts);
    row["samples_ns"] = ns;
    row["samples_ts"] = ts;
    row["test"] = test.name();
    row["n_sequences"] = test.sequences;
    row["isa"] = info.isa;
    row["percent_bandwidth"] = nullptr;
    row["percent_peak"] = nullptr;
    if (machine.bandwidth > 0) {
      const auto limits = limits_of(test, cost, machine, options.batch_tokens);
      row["percent_bandwidth"] = 100.0 * limits.memory_seconds / mean(seconds);
      row["percent_peak"] = 100.0 * limits.compute_seconds / mean(seconds);
      row["bandwidth_bytes_per_second"] = machine.bandwidth;
      row["int8_operations_per_second"] = machine.int8_peak;
      row["f32_operations_per_second"] = machine.f32_peak;
    }
    row["techniques"] = ordered_json::parse(config.to_json());
    printer.row(row);
  }
}

int run(const BenchFlags& flags, const Global& global) {
  if (!flags.cache_v.empty() && flags.cache_v != flags.cache_k)
    throw skald::IncompatibleError("cli.bench", "-ctk and -ctv must be equal: both have one format per page");
  for (const int on : flags.flash)
    if (on == 0) throw skald::UnsupportedError("cli.bench", "-fa 0: attention is always computed in tiles over pages");
  Printer printer(flags.output);
  Machine machine;
  for (const auto& model : flags.models)
    for (const int threads : flags.threads)
      for (const auto batch : flags.batches)
        for (const auto ubatch : flags.ubatches)
          for (const auto& cache : flags.cache_k)
            for (const int mmap : flags.mmap)
              measure(flags, global, model, {threads, batch, ubatch, cache, mmap != 0}, machine, printer);
  printer.finish(machine);
  return exit_ok;
}

}  // namespace

void add_bench(CLI::App& app, Global& global, std::vector<Command>& commands) {
  auto* command = app.add_subcommand("bench", "Speed of prompts (pp) and generation (tg), as llama-bench measures it");
  auto flags = std::make_shared<BenchFlags>();
  const auto list = [&](const char* names, auto& target, const char* help) {
    command->add_option(names, target, help)->delimiter(',')->capture_default_str();
  };
  command->add_option("-m,--model", flags->models, "GGUF model files")->required()->delimiter(',');
  list("-p,--n-prompt", flags->prompts, "Prompt lengths; 0: none");
  list("-n,--n-gen", flags->generations, "Generation lengths; 0: none");
  command->add_option("--pg", flags->combined, "Prompt then generation in one test: 512,128");
  list("-d,--n-depth", flags->depths, "Tokens in the sessions before the test");
  list("--sequences,--npl", flags->sequences, "Sessions that run together");
  list("-t,--threads", flags->threads, "Threads; 0: all");
  list("-b,--batch-size", flags->batches, "Most tokens per call");
  list("-u,--ubatch-size,--ub", flags->ubatches, "Most tokens that go through the network together");
  list("--cache-type-k,--ctk", flags->cache_k, "KV format: f32, f16, bf16");
  list("--cache-type-v,--ctv", flags->cache_v, "Must equal --ctk");
  list("--flash-attn,--fa", flags->flash, "Always 1");
  list("--mmap,--mmp", flags->mmap, "Map the file: 0 or 1");
  command->add_option("-r,--repetitions", flags->repetitions, "Repetitions of each test")->check(CLI::Range(1, 100000))->capture_default_str();
  command->add_option("-o,--output", flags->output, "md, csv, json or jsonl")->check(CLI::IsMember({"md", "csv", "json", "jsonl"}))->capture_default_str();
  command->add_option("--isa", flags->isa, "Instruction set (default: best)");
  command->add_flag("--no-warmup", flags->no_warmup, "No run before the first repetition");
  command->add_flag("--no-probe", flags->no_probe, "Do not measure the machine's bandwidth and peaks");
  command->add_flag("--no-repack", flags->no_repack, "Keep the file's weight layout");
  command->add_flag("--progress", flags->progress, "Tell each repetition on stderr");
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
