// Speed of prompt processing and text generation, with llama-bench's tests, flags, table and JSON fields, and beside
// them the share of what the machine can do, measured in the same run.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <ctime>
#include <tuple>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <skald/core/random.hpp>
#include <skald/kernels/probe.hpp>
#include <skald/state/kv_rows.hpp>
#include <skald/state/paged_kv.hpp>

#include "common.hpp"

namespace skald_cli {

namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct BenchFlags {
  std::vector<std::string> models;
  std::vector<std::string> prompts{"512"};
  std::vector<std::string> generations{"128"};
  std::vector<std::string> combined;
  std::vector<std::string> depths{"0"};
  std::vector<std::string> sequences{"1"};
  std::vector<std::string> depth_in{"own"};
  bool random_depth = false;
  std::vector<std::string> threads{"0"};
  std::vector<std::string> batches{"2048"};
  std::vector<std::string> ubatches{"512"};
  std::vector<std::string> cache_k{"f16"};
  std::vector<std::string> cache_v;
  std::vector<std::string> flash{"1"};
  std::vector<std::string> mmap{"1"};
  ForeignFlags foreign;
  std::string isa;
  std::string output = "md";
  int repetitions = 5;
  bool in_turn = false;
  bool no_warmup = false;
  bool no_probe = false;
  bool no_repack = false;
  std::string packed_cache;
  std::string kv_directory;
  bool progress = false;
};

/// Whole numbers and ranges: 512, 128-512, 128-512+128, 128-1024*2. @throws skald::UsageError.
std::vector<std::int64_t> numbers(const char* flag, const std::vector<std::string>& texts, std::int64_t least,
                                  std::int64_t most) {
  std::vector<std::int64_t> result;
  for (const auto& text : texts) {
    const auto refuse = [&] {
      throw skald::UsageError(
          "cli.bench", fmt::format("{} {}: a number from {} to {} is needed, or a range as 128-512+128 or 128-1024*2",
                                   flag, skald::printable(text), least, most));
    };
    const char* at = text.data();
    const char* const end = text.data() + text.size();
    const auto number = [&] {
      std::int64_t value = 0;
      const auto [next, error] = std::from_chars(at, end, value);
      if (error != std::errc{} || value < least || value > most || *at == '-') refuse();
      at = next;
      return value;
    };
    const auto first = number();
    auto last = first;
    char operation = '+';
    std::int64_t step = 1;
    if (at != end && *at == '-') {
      ++at;
      last = number();
      if (at != end && (*at == '+' || *at == '*')) {
        operation = *at++;
        step = number();
      }
    }
    if (at != end || last < first || (last - first) / std::max<std::int64_t>(1, step) > 10000) refuse();
    for (auto value = first; value <= last;) {
      result.push_back(value);
      const auto next = operation == '+' ? value + step : value * step;
      if (next <= value) {
        if (last > first) refuse();  // would never end
        break;
      }
      value = next;
    }
  }
  return result;
}

/// One test: n_prompt tokens at once and then n_gen one by one, after `depth` tokens, in `sequences` sessions.
struct Test {
  std::int64_t prompt = 0;
  std::int64_t generate = 0;
  std::int64_t depth = 0;
  std::int64_t sequences = 1;
  bool shared = false;  // the tokens before the test are common to all sessions
  [[nodiscard]] std::string name() const {
    std::string text;
    if (prompt > 0 && generate > 0) text = fmt::format("pp{}+tg{}", prompt, generate);
    else if (prompt > 0) text = fmt::format("pp{}", prompt);
    else text = fmt::format("tg{}", generate);
    if (depth > 0) text += fmt::format(" @ d{}", depth);
    if (sequences > 1) text += fmt::format(" x{}", sequences);
    if (shared) text += " shared";
    return text;
  }
};

struct Machine {
  double bandwidth = 0.0;  // bytes per second
  double int8_peak = 0.0;  // operations per second
  double f32_peak = 0.0;
  double bf16_peak = 0.0;  // of products with bf16 weights
};

/// What one token costs: bytes that decoding must read, operations of the matrices.
struct Cost {
  double head_bytes = 0.0;  // read when logits are computed
  double body_bytes = 0.0;  // read by every pass
  struct Experts {
    double bytes = 0.0;  // of all
    double used = 0.0;   // share that one token uses
  };
  std::vector<Experts> experts;  // of each layer that has them
  double head_operations = 0.0;
  double body_operations = 0.0;
  double kv_bytes_per_token = 0.0;
  double attention_operations = 0.0;  // per token and visible token, f32
  bool integer = false;
  bool bf16 = false;
};

Cost cost_of(const skald::Model& model, const skald::AnyKvFormat& kv) {
  const auto& spec = model.spec();
  Cost cost;
  const auto add = [&](skald::Role role, int layer) {
    const auto* weight = model.weight(role, layer);
    if (weight == nullptr) return;
    (role == skald::Role::head ? cost.head_bytes : cost.body_bytes) += static_cast<double>(weight->bytes());
    cost.integer = cost.integer || skald::dtype_info(weight->type()).quantized;
    cost.bf16 = cost.bf16 || weight->type() == skald::DType::bf16;
    const double operations = 2.0 * static_cast<double>(weight->rows()) * static_cast<double>(weight->cols());
    (role == skald::Role::head ? cost.head_operations : cost.body_operations) += operations;
  };
  const auto add_experts = [&](int layer, const skald::ExpertsSpec& experts) {
    Cost::Experts cost_of_layer{.used = static_cast<double>(experts.used) / experts.count};
    for (const auto role : {skald::Role::expert_gate, skald::Role::expert_up, skald::Role::expert_down}) {
      const auto* weight = model.weight(role, layer);
      cost_of_layer.bytes += static_cast<double>(weight->bytes());
      cost.integer = cost.integer || skald::dtype_info(weight->type()).quantized;
      cost.body_operations +=
          2.0 * cost_of_layer.used * static_cast<double>(weight->rows()) * static_cast<double>(weight->cols());
    }
    cost.experts.push_back(cost_of_layer);
  };
  for (int layer = 0; layer < spec.layer_count(); ++layer) {
    const auto& ffn = spec.layers[static_cast<std::size_t>(layer)].ffn;
    if (ffn && ffn->experts) add_experts(layer, *ffn->experts);
    for (const auto role : {skald::Role::query, skald::Role::key, skald::Role::value, skald::Role::attention_output,
                            skald::Role::ffn_gate, skald::Role::ffn_up, skald::Role::ffn_down,
                            skald::Role::expert_router})
      add(role, layer);
    const auto& attention = spec.layers[static_cast<std::size_t>(layer)].attention;
    if (!attention) continue;
    for (std::int32_t head = 0; head < attention->kv_heads; ++head) {
      const skald::KvPageLayout page{.dtype = kv.dtype(layer, head),
                                     .head_dim_k = attention->stored_dim_k(),
                                     .head_dim_v = attention->stored_dim_v(),
                                     .values_in_keys = attention->latent.has_value()};
      cost.kv_bytes_per_token += static_cast<double>(page.token_bytes());
    }
    cost.attention_operations += 2.0 * attention->heads * (attention->stored_dim_k() + attention->stored_dim_v());
  }
  add(skald::Role::head, -1);
  return cost;
}

/// Seconds that the machine needs at least: memory and arithmetic limits of a test.
struct Limits {
  double memory_seconds = 0.0;
  double compute_seconds = 0.0;
};

Limits limits_of(const Test& test, const Cost& cost, const Machine& machine, std::int64_t batch, std::int64_t ubatch) {
  Limits limits;
  const double peak = cost.integer ? machine.int8_peak : cost.bf16 ? machine.bf16_peak : machine.f32_peak;
  // Of a layer's experts a pass reads those that some row uses: so many if every row chose at random.
  const auto expert_bytes = [&](std::int64_t rows) {
    double bytes = 0.0;
    for (const auto& layer : cost.experts)
      bytes += layer.bytes * (1.0 - std::pow(1.0 - layer.used, static_cast<double>(rows)));
    return bytes;
  };
  const auto add = [&](std::int64_t calls, std::int64_t tokens, std::int64_t depth) {
    // `calls` calls of `tokens` tokens in each session, cut into passes of `ubatch` rows; one row of logits per call
    // and session. A pass reads the weights once, and for its tokens the keys and values up to them.
    double bytes = 0.0;
    double operations = 0.0;
    double attention = 0.0;
    for (std::int64_t call = 0; call < calls; ++call) {
      const auto rows = tokens * test.sequences;
      const auto passes = (rows + ubatch - 1) / ubatch;
      const auto before = static_cast<double>(depth + call * tokens);
      const auto in_session = (tokens + ubatch - 1) / ubatch;  // passes that a session's tokens are cut into
      const double mean_seen = before + 0.5 * static_cast<double>(in_session + 1) / static_cast<double>(in_session) *
                                            static_cast<double>(tokens);
      auto kv_rows = static_cast<double>(test.sequences * in_session) * mean_seen;
      if (test.shared) kv_rows -= static_cast<double>((test.sequences - 1) * in_session * test.depth);
      bytes += static_cast<double>(passes) * (cost.body_bytes + expert_bytes(std::min(rows, ubatch))) + cost.head_bytes +
               kv_rows * cost.kv_bytes_per_token;
      operations +=
          static_cast<double>(rows) * cost.body_operations + static_cast<double>(test.sequences) * cost.head_operations;
      attention +=
          static_cast<double>(rows) * (before + 0.5 * static_cast<double>(tokens + 1)) * cost.attention_operations;
    }
    limits.memory_seconds += bytes / machine.bandwidth;
    limits.compute_seconds += operations / peak + attention / machine.f32_peak;
  };
  const auto whole = test.prompt / batch;
  if (whole > 0) add(whole, batch, test.depth);
  if (test.prompt % batch > 0) add(1, test.prompt % batch, test.depth + whole * batch);
  if (test.generate > 0) add(test.generate, 1, test.depth + test.prompt);
  return limits;
}

class Runner {
 public:
  Runner(const skald::Model& model, const skald::DecoderOptions& options, const Test& test, std::int64_t batch,
         bool random_depth)
      : decoder_(model, options),
        test_(test),
        batch_tokens_(batch),
        random_depth_(random_depth),
        vocabulary_(model.spec().vocabulary) {
    for (std::int64_t s = 0; s < test.sequences; ++s) sessions_.push_back(decoder_.new_session());
  }

  /// Once before the first repetition: the whole prompt and one token, on empty sessions.
  void warm_up(const std::stop_token& stop) {
    if (test_.prompt > 0) prompt(test_.prompt, stop);
    if (test_.generate > 0) generate(1, stop);
    for (auto& session : sessions_) session.clear();
  }
  /// Outside the measured time; repetitions go back to it.
  void fill_depth(const std::stop_token& stop) {
    if (test_.depth == 0) return;
    if (!test_.shared) return random_depth_ ? fill_randomly() : prompt(test_.depth, stop);
    std::vector<skald::Session> first;
    first.push_back(std::move(sessions_.front()));
    sessions_.swap(first);  // only one session is given the tokens
    if (random_depth_) fill_randomly();
    else prompt(test_.depth, stop);
    while (static_cast<std::int64_t>(sessions_.size()) < test_.sequences) sessions_.push_back(sessions_.front().fork());
  }
  /// Nanoseconds of one repetition.
  std::uint64_t measure(const std::stop_token& stop) {
    reset();
    const auto start = Clock::now();
    if (test_.prompt > 0) prompt(test_.prompt, stop);
    if (test_.generate > 0) generate(test_.generate, stop);
    const auto end = Clock::now();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(end - start).count());
  }
  [[nodiscard]] const skald::EffectiveConfig& config() const { return decoder_.effective_config(); }
  [[nodiscard]] skald::DecoderCounters counters() const { return decoder_.counters(); }

 private:
  void reset() {
    for (auto& session : sessions_) {
      const auto length = std::min(session.length(), test_.depth);
      if (random_depth_) session.state().truncate(length);  // what was not computed has no tokens
      else session.truncate(length);
    }
  }
  /// Random keys and values in the place of computed ones.
  void fill_randomly() {
    std::vector<std::byte> page;
    for (auto& session : sessions_) {
      auto& state = session.state();
      state.append(test_.depth);
      for (int l = 0; l < state.layer_count(); ++l) {
        const auto* layer = dynamic_cast<const skald::PagedKv*>(state.layer(l));
        if (layer == nullptr) continue;
        page.assign(layer->pool().page_bytes(), std::byte{0});
        fill_page(layer->pool().layout(), page);
        for (int g = 0; g < layer->groups(); ++g)
          for (const auto id : layer->pages(g)) layer->pool().backend().write(layer->pool().address(id), page);
      }
      state.commit();
    }
  }
  static void fill_page(const skald::KvPageLayout& layout, std::vector<std::byte>& page) {
    skald::CounterRandom random(1, 0, 0);
    std::vector<float> key(static_cast<std::size_t>(layout.head_dim_k));
    std::vector<float> value(static_cast<std::size_t>(layout.head_dim_v));
    for (std::int32_t head = 0; head < layout.heads; ++head)
      for (std::int32_t slot = 0; slot < layout.page_tokens; ++slot) {
        for (auto* row : {&key, &value})
          for (auto& x : *row) x = static_cast<float>(random.uniform() - 0.5);
        skald::write_kv_key(layout, page.data(), head, slot, key);
        if (!layout.values_in_keys) skald::write_kv_value(layout, page.data(), head, slot, value);
      }
  }
  skald::TokenId next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<skald::TokenId>((state_ >> 33) % static_cast<std::uint64_t>(vocabulary_));
  }
  /// In calls of at most -b tokens per session.
  void prompt(std::int64_t count, const std::stop_token& stop) {
    for (std::int64_t done = 0; done < count;) {
      const auto part = std::min(count - done, batch_tokens_);
      forward(part, stop);
      done += part;
    }
  }
  void generate(std::int64_t count, const std::stop_token& stop) {
    for (std::int64_t i = 0; i < count; ++i) forward(1, stop);
  }
  void forward(std::int64_t count, const std::stop_token& stop) {
    tokens_.resize(static_cast<std::size_t>(count));
    batch_.clear();
    for (auto& session : sessions_) {
      for (auto& token : tokens_) token = next();
      batch_.add(session, tokens_);
    }
    (void)decoder_.forward(batch_, {.stop = stop});
  }
  skald::Decoder<> decoder_;
  Test test_;
  std::int64_t batch_tokens_;
  bool random_depth_;
  std::int64_t vocabulary_;
  std::vector<skald::TokenId> tokens_;
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
    if (format_ == "json") write_out("[\n");
    if (format_ == "md")
      write_out(
          fmt::format("| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>15} | {:>20} | {:>6} | {:>6} |\n", "model",
                      "size", "params", "backend", "threads", "test", "t/s", "% bw", "% peak") +
          fmt::format("| {:-<30} | {:->9}: | {:->9}: | {:-<10} | {:->6}: | {:->14}: | {:->19}: | {:->5}: | {:->5}: |\n",
                      "", "", "", "", "", "", "", "", ""));
  }
  void row(const ordered_json& r) {
    if (format_ == "json") write_out((first_ ? "" : ",\n") + text_of(r, 2));
    else if (format_ == "jsonl") write_out(text_of(r, -1) + "\n");
    else if (format_ == "csv") csv(r);
    else
      write_out(fmt::format("| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>15} | {:>20} | {:>6} | {:>6} |\n",
                            r["model_type"].get<std::string>(), human_bytes(r["model_size"].get<std::uint64_t>()),
                            parameters(r["model_n_params"].get<double>()), r["backends"].get<std::string>(),
                            r["n_threads"].get<int>(), r["test"].get<std::string>(),
                            fmt::format("{:.2f} ± {:.2f}", r["avg_ts"].get<double>(), r["stddev_ts"].get<double>()),
                            percent(r["percent_bandwidth"]), percent(r["percent_peak"])));
    first_ = false;
  }
  /// Ends the array of JSON, also after an error.
  void close() {
    if (format_ == "json") write_out(first_ ? "]\n" : "\n]\n");
  }
  void legend(const Machine& machine) {
    if (format_ == "md" && machine.bandwidth > 0)
      write_out(
          fmt::format("\nmachine, measured in this run: {:.1f} GB/s read, {:.2f} int8 TOP/s, {:.0f} f32 GFLOP/s, {:.0f} bf16 GFLOP/s; % bw "
                      "and % peak: least time for the\n"
                      "memory traffic (weights and KV) or for the arithmetic of the test, over the time it took; more "
                      "than 100 % bw: the\n"
                      "weights stay in a cache\n",
                      machine.bandwidth * 1e-9, machine.int8_peak * 1e-12, machine.f32_peak * 1e-9,
                      machine.bf16_peak * 1e-9));
  }

 private:
  static std::string text_of(const ordered_json& r, int indent) {
    return r.dump(indent, ' ', false, ordered_json::error_handler_t::replace);
  }
  static std::string percent(const ordered_json& value) {
    return value.is_null() ? "-" : fmt::format("{:.1f}", value.get<double>());
  }
  static std::string parameters(double n) {
    return n >= 1e9 ? fmt::format("{:.2f} B", n * 1e-9) : fmt::format("{:.2f} M", n * 1e-6);
  }
  /// Single values only, all quoted; true and false as 1 and 0.
  void csv(const ordered_json& r) {
    std::string head;
    std::string line;
    for (const auto& [key, value] : r.items()) {
      if (value.is_structured()) continue;
      std::string text;
      if (value.is_string()) text = value.get<std::string>();
      else if (value.is_boolean()) text = value.get<bool>() ? "1" : "0";
      else if (!value.is_null()) text = value.dump();
      std::string quoted = "\"";
      for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
      head += (head.empty() ? "" : ",") + key;
      line += (line.empty() ? "" : ",") + quoted + "\"";
    }
    write_out((first_ ? head + "\n" : "") + line + "\n");
  }
  std::string format_;
  bool first_ = true;
};

constexpr std::int64_t most_tokens = std::int64_t{1} << 24;

std::vector<Test> tests_of(const BenchFlags& flags) {
  std::vector<Test> tests;
  std::vector<std::pair<std::int64_t, std::int64_t>> combined;
  for (const auto& pair : flags.combined) {
    const auto comma = pair.find(',');
    if (comma == std::string::npos)
      throw skald::UsageError("cli.bench", "-pg takes two numbers, as 512,128; found '" + pair + "'");
    combined.emplace_back(numbers("-pg", {pair.substr(0, comma)}, 0, most_tokens).front(),
                          numbers("-pg", {pair.substr(comma + 1)}, 0, most_tokens).front());
  }
  const auto add = [&](std::int64_t depth, std::int64_t sequences, bool shared) {
    for (const auto prompt : numbers("-p", flags.prompts, 0, most_tokens))
      if (prompt > 0) tests.push_back({prompt, 0, depth, sequences, shared});
    for (const auto generate : numbers("-n", flags.generations, 0, most_tokens))
      if (generate > 0) tests.push_back({0, generate, depth, sequences, shared});
    for (const auto& [prompt, generate] : combined)
      if (prompt + generate > 0) tests.push_back({prompt, generate, depth, sequences, shared});
  };
  for (const auto& in : flags.depth_in)
    if (in != "own" && in != "shared")
      throw skald::UsageError("cli.bench", "--depth-in " + skald::printable(in) + ": allowed are own, shared");
  for (const auto depth : numbers("-d", flags.depths, 0, most_tokens))
    for (const auto sequences : numbers("--sequences", flags.sequences, 1, 4096))
      for (const auto& in : flags.depth_in) add(depth, sequences, in == "shared" && depth > 0 && sequences > 1);
  if (tests.empty()) throw skald::UsageError("cli.bench", "there is nothing to measure: -p, -n and -pg are all 0");
  return tests;
}

/// What one row of the table was run with.
struct Setting {
  std::string path;
  int threads;
  bool mmap;
  std::int64_t batch;
  std::int64_t ubatch;
  std::string cache;
};

struct Samples {
  std::vector<double> ns;
  std::vector<double> ts;
};

ordered_json row_of(const Setting& setting, const Test& test, const skald::Model& model, const Samples& samples) {
  const auto info = model.backend()->info();
  ordered_json row{{"build_commit", skald::library_version()},
                   {"build_number", 0},
                   {"cpu_info", info.device},
                   {"gpu_info", ""},
                   {"backends", "CPU"},
                   {"model_filename", setting.path},
                   {"model_type", model.info().description},
                   {"model_size", model.info().file_bytes},
                   {"model_n_params", model.info().parameters},
                   {"n_batch", setting.batch},
                   {"n_ubatch", setting.ubatch},
                   {"n_threads", info.threads},
                   {"cpu_mask", "0x0"},
                   {"cpu_strict", false},
                   {"poll", 0},
                   {"type_k", setting.cache},
                   {"type_v", setting.cache},
                   {"n_gpu_layers", 0},
                   {"n_cpu_moe", 0},
                   {"split_mode", "none"},
                   {"main_gpu", 0},
                   {"no_kv_offload", false},
                   {"flash_attn", true},
                   {"devices", "none"},
                   {"tensor_split", "0.00"},
                   {"tensor_buft_overrides", "none"},
                   {"use_mmap", setting.mmap},
                   {"embeddings", false},
                   {"no_op_offload", 0},
                   {"no_host", false},
                   {"n_prompt", test.prompt},
                   {"n_gen", test.generate},
                   {"n_depth", test.depth},
                   {"test_time", timestamp()}};
  row["avg_ns"] = static_cast<std::uint64_t>(mean(samples.ns));
  row["stddev_ns"] = static_cast<std::uint64_t>(deviation(samples.ns));
  row["avg_ts"] = mean(samples.ts);
  row["stddev_ts"] = deviation(samples.ts);
  row["samples_ns"] = std::vector<std::uint64_t>(samples.ns.begin(), samples.ns.end());
  row["samples_ts"] = samples.ts;
  row["test"] = test.name();
  row["n_sequences"] = test.sequences;
  row["isa"] = info.isa;
  return row;
}

/// The share of the machine: null where it was not measured.
void add_shares(ordered_json& row, const Limits* limits, const Machine& machine, double seconds) {
  for (const char* name : {"percent_bandwidth", "percent_peak", "bandwidth_bytes_per_second",
                           "int8_operations_per_second", "f32_operations_per_second", "bf16_operations_per_second"})
    row[name] = nullptr;
  if (limits == nullptr) return;
  row["percent_bandwidth"] = 100.0 * limits->memory_seconds / seconds;
  row["percent_peak"] = 100.0 * limits->compute_seconds / seconds;
  row["bandwidth_bytes_per_second"] = machine.bandwidth;
  row["int8_operations_per_second"] = machine.int8_peak;
  row["f32_operations_per_second"] = machine.f32_peak;
  row["bf16_operations_per_second"] = machine.bf16_peak;
}

skald::Model load(const BenchFlags& flags, const Global& global, const Setting& setting) {
  ModelFlags model_flags;
  model_flags.path = setting.path;
  model_flags.threads = setting.threads;
  model_flags.isa = flags.isa;
  model_flags.no_mmap = !setting.mmap;
  model_flags.no_repack = flags.no_repack;
  model_flags.packed_cache = flags.packed_cache;
  return model_flags.load(global, false);
}

Machine probe(const skald::Model& model) {
  const auto executor = skald::make_tbb_executor();
  const skald::ProbeOptions options{.isa = *skald::isa_from_name(model.backend()->info().isa)};
  return {skald::measure_bandwidth(executor, options), skald::measure_int8_peak(executor, options),
          skald::measure_f32_peak(executor, options), skald::measure_bf16_peak(executor, options)};
}

/// One test of one setting.
class Measurement {
 public:
  Measurement(const BenchFlags& flags, const skald::Model& model, const Setting& setting, const Test& test)
      : flags_(flags),
        model_(model),
        setting_(setting),
        test_(test),
        runner_(model, options(), test, setting.batch, flags.random_depth) {}

  /// What is not measured.
  void prepare() {
    if (!flags_.no_warmup) {
      tell("warm-up");
      runner_.warm_up(stop_);
    }
    runner_.fill_depth(stop_);
  }
  void repeat(int number) {
    tell(fmt::format("repetition {}/{}", number, flags_.repetitions));
    const auto tokens = static_cast<double>((test_.prompt + test_.generate) * test_.sequences);
    samples_.ns.push_back(static_cast<double>(runner_.measure(stop_)));
    samples_.ts.push_back(1e9 * tokens / samples_.ns.back());
  }
  [[nodiscard]] ordered_json row(const Machine& machine) const {
    auto row = row_of(setting_, test_, model_, samples_);
    if (machine.bandwidth > 0) {
      const auto cost = cost_of(model_, skald::AnyKvFormat(setting_.cache));
      const auto limits = limits_of(test_, cost, machine, setting_.batch, options().batch_tokens);
      add_shares(row, &limits, machine, mean(samples_.ns) * 1e-9);
    } else {
      add_shares(row, nullptr, machine, 0.0);
    }
    row["in_turn"] = flags_.in_turn;
    row["depth_shared"] = test_.shared;
    row["depth_random"] = flags_.random_depth;
    row["kv_bytes_read"] = runner_.counters().kv_bytes_read;
    row["kv_bytes_shared"] = runner_.counters().kv_bytes_shared;
    row["techniques"] = ordered_json::parse(runner_.config().to_json());
    return row;
  }

 private:
  [[nodiscard]] skald::DecoderOptions options() const {
    skald::DecoderOptions options;
    options.context = test_.depth + test_.prompt + std::max<std::int64_t>(1, test_.generate);
    options.parallel = static_cast<std::int32_t>(test_.sequences);
    options.batch_tokens = std::min(setting_.ubatch, setting_.batch);
    options.kv.format = setting_.cache;
    options.kv.slow_directory = flags_.kv_directory;
    options.check_finite = skald::CheckFinite::off;
    return options;
  }
  void tell(const std::string& what) const {
    if (flags_.progress) fmt::print(stderr, "{} {}: {}\n", setting_.path, test_.name(), what);
  }

  const BenchFlags& flags_;
  const skald::Model& model_;
  const Setting& setting_;
  Test test_;
  std::stop_token stop_ = stop_on_interrupt();
  Runner runner_;
  Samples samples_{};
};

/// All tests of a setting, one after the other or with their repetitions in turn.
void measure(const BenchFlags& flags, const skald::Model& model, const Setting& setting, const std::vector<Test>& tests,
             const Machine& machine, Printer& printer) {
  const auto together = flags.in_turn ? tests.size() : 1;
  for (std::size_t first = 0; first < tests.size(); first += together) {
    std::vector<std::unique_ptr<Measurement>> all;
    for (std::size_t i = 0; i < together; ++i) {
      all.push_back(std::make_unique<Measurement>(flags, model, setting, tests[first + i]));
      all.back()->prepare();
    }
    for (int r = 1; r <= flags.repetitions; ++r)
      for (auto& each : all) each->repeat(r);
    for (const auto& each : all) printer.row(each->row(machine));
  }
}

std::vector<Setting> settings_of(const BenchFlags& flags) {
  std::vector<Setting> settings;
  for (const auto& model : flags.models)
    for (const auto mmap : numbers("-mmp", flags.mmap, 0, 1))
      for (const auto threads : numbers("-t", flags.threads, 0, 1024))
        for (const auto batch : numbers("-b", flags.batches, 1, most_tokens))
          for (const auto ubatch : numbers("-ub", flags.ubatches, 1, most_tokens))
            for (const auto& cache : flags.cache_k)
              settings.push_back({model, static_cast<int>(threads), mmap != 0, batch, ubatch, cache});
  return settings;
}

int run(const BenchFlags& flags, const Global& global) {
  flags.foreign.check();
  if (!flags.cache_v.empty() && flags.cache_v != flags.cache_k)
    throw skald::IncompatibleError("cli.bench", "-ctk and -ctv must be equal: both have one format per page");
  for (const auto on : numbers("-fa", flags.flash, 0, 1))
    if (on == 0) throw skald::UnsupportedError("cli.bench", "-fa 0: attention is always computed in tiles over pages");
  for (const auto& cache : flags.cache_k) (void)skald::AnyKvFormat(cache);
  const auto tests = tests_of(flags);
  const auto settings = settings_of(flags);
  Printer printer(flags.output);
  Machine machine;
  std::optional<skald::Model> model;
  const Setting* loaded = nullptr;
  try {
    for (const auto& setting : settings) {
      if (loaded == nullptr || std::tie(loaded->path, loaded->threads, loaded->mmap) !=
                                   std::tie(setting.path, setting.threads, setting.mmap)) {
        model.reset();  // two models at once may not fit
        model = load(flags, global, setting);
        loaded = &setting;
      }
      if (!flags.no_probe && machine.bandwidth == 0.0) machine = probe(*model);
      measure(flags, *model, setting, tests, machine, printer);
    }
  } catch (...) {
    try {
      printer.close();
    } catch (const skald::IoError&) {  // the output itself may be what failed
    }
    throw;
  }
  printer.close();
  printer.legend(machine);
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
  command->add_option("--pg", flags->combined, "Prompt then generation in one test: 512,128; may be repeated");
  list("-d,--n-depth", flags->depths, "Tokens in the sessions before the test");
  list("--sequences,--npl", flags->sequences, "Sessions that run together");
  list("--depth-in", flags->depth_in, "own: each session has tokens of its own before the test; shared: all have the same");
  command->add_flag("--random-depth", flags->random_depth, "Random keys and values before the test, not computed ones");
  list("-t,--threads", flags->threads, "Threads; 0: all");
  list("-b,--batch-size", flags->batches, "Most tokens of a session per call");
  list("--ub,--ubatch-size", flags->ubatches, "Most tokens that go through the network together");
  list("--ctk,--cache-type-k", flags->cache_k, "KV format: f32, f16, bf16, q8_0, q4_0");
  list("--ctv,--cache-type-v", flags->cache_v, "Must equal -ctk");
  list("--fa,--flash-attn", flags->flash, "Tiled attention: only 1");
  list("--mmp,--mmap", flags->mmap, "Map the file: 0 or 1");
  flags->foreign.add_to(*command, false);
  command->add_option("-r,--repetitions", flags->repetitions, "Repetitions of each test")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_flag("--in-turn", flags->in_turn,
                    "One repetition of each test after the other, again and again, so that a machine whose speed changes "
                    "changes all; takes the memory of all tests at once");
  command->add_option("-o,--output", flags->output, "md, csv, json or jsonl")
      ->check(CLI::IsMember({"md", "csv", "json", "jsonl"}))
      ->capture_default_str();
  command->add_option("--isa", flags->isa, "Instruction set (default: best)");
  command->add_flag("--no-warmup", flags->no_warmup, "No run before the first repetition");
  command->add_flag("--no-probe", flags->no_probe, "Do not measure the machine's bandwidth and peaks");
  command->add_flag("--no-repack", flags->no_repack, "Keep the file's weight layout");
  command->add_option("--packed-cache", flags->packed_cache, "As in other commands: file that keeps the repacked weights");
  command->add_option("--kv-directory", flags->kv_directory, "Directory for the slow memory of -ctk 'f16;values=128' or 'f16;chunks=256'");
  command->add_flag("--progress", flags->progress, "Tell each repetition on stderr");
  command->footer(
      "Numbers may be lists and ranges: 128,256 or 128-512+128 or 128-1024*2. Tokens are random; sampling is not "
      "measured.");
  commands.push_back({command, [flags, &global] { return run(*flags, global); }});
}

}  // namespace skald_cli
