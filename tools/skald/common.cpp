#include "common.hpp"

#include <atomic>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>

#include <unistd.h>

#include <fmt/format.h>

namespace skald_cli {

void ModelFlags::add_to(CLI::App& app, bool model_required) {
  auto* model = app.add_option("-m,--model", path, "GGUF model file (of a split model, any part)");
  if (model_required) model->required();
  app.add_option("-t,--threads", threads, "Threads (0: all this process may use)")->check(CLI::Range(0, 1024));
  app.add_option("--backend", backend, "Backend: cpu or reference")->capture_default_str();
  app.add_option("--isa", isa, "Instruction set of the cpu backend: baseline, avx2, avx512, avx512vnni (default: best)");
  app.add_flag("--no-mmap", no_mmap, "Read the file instead of mapping it");
  app.add_flag("--no-repack", no_repack, "Keep the file's weight layout instead of the backend's");
  app.add_flag("--no-huge-pages", no_huge_pages, "Do not ask for 2 MiB pages");
}

skald::AnyBackend ModelFlags::make_backend() const {
  if (backend == "cpu" || backend.empty())
    return skald::make_cpu_backend({.isa = isa, .threads = threads, .huge_pages = !no_huge_pages});
  return skald::make_backend(backend);
}

skald::Model ModelFlags::load(const Global& global, bool tokenizer) const {
  ProgressLine progress(global.quiet);
  skald::LoadOptions options;
  options.backend = make_backend();
  options.layout = no_repack ? skald::WeightLayout::rows : skald::WeightLayout::packed;
  options.map = !no_mmap;
  options.tokenizer = tokenizer;
  options.progress = progress.callback("loading");
  options.stop = stop_on_interrupt();
  return skald::Model::load(path, options);
}

void DecoderFlags::add_to(CLI::App& app) {
  app.add_option("-c,--ctx-size", context, "Tokens of context (0: the model's, at most 4096)")->check(CLI::NonNegativeNumber);
  app.add_option("-b,--batch-size", batch, "Most tokens per call (accepted for compatibility; -ub decides)");
  app.add_option("-u,--ubatch-size,--ub", ubatch, "Most tokens that go through the network together")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--cache-type-k,--ctk", cache_k, "Format of keys and values: f32, f16, bf16")->capture_default_str();
  app.add_option("--cache-type-v,--ctv", cache_v, "Must equal --cache-type-k");
  app.add_option("--kv-eviction", eviction, "Eviction policy, e.g. recent_pages:sinks=1,recent=8")->capture_default_str();
  app.add_option("--kv-page", page_tokens, "Tokens per KV page")->capture_default_str();
  app.add_option("--parallel,--np", parallel, "Sessions that may be full at the same time")->check(CLI::PositiveNumber);
}

skald::DecoderOptions DecoderFlags::options() const {
  if (!cache_v.empty() && cache_v != cache_k)
    throw skald::IncompatibleError("cli", "keys in '" + cache_k + "' and values in '" + cache_v +
                                              "': both have one format per page");
  skald::DecoderOptions result;
  result.context = context;
  result.batch_tokens = ubatch;
  result.parallel = parallel;
  result.kv.format = cache_k;
  result.kv.eviction = eviction;
  result.kv.page_tokens = page_tokens;
  return result;
}

void SamplerFlags::add_to(CLI::App& app) {
  app.add_option("-s,--seed", options.seed, "Seed of the random draws")->capture_default_str();
  app.add_option("--temp", options.temperature, "Temperature; 0: always the most probable token")->capture_default_str();
  app.add_option("--top-k", options.top_k, "Keep the k most probable tokens; 0: off")->capture_default_str();
  app.add_option("--top-p", options.top_p, "Keep the most probable tokens that hold probability p; 1: off")->capture_default_str();
  app.add_option("--min-p", options.min_p, "Keep tokens at least p times as probable as the best; 0: off")->capture_default_str();
  app.add_option("--typical", options.typical_p, "Locally typical sampling; 1: off")->capture_default_str();
  app.add_option("--repeat-penalty", options.repeat_penalty, "Penalty on repeated tokens; 1: off")->capture_default_str();
  app.add_option("--repeat-last-n", options.repeat_last_n, "Tokens the penalties look at; -1: all")->capture_default_str();
  app.add_option("--frequency-penalty", options.frequency_penalty, "Penalty per occurrence; 0: off")->capture_default_str();
  app.add_option("--presence-penalty", options.presence_penalty, "Penalty for having occurred; 0: off")->capture_default_str();
  app.add_option("--dry-multiplier", options.dry_multiplier, "DRY repetition penalty; 0: off")->capture_default_str();
  app.add_option("--dry-base", options.dry_base, "DRY base")->capture_default_str();
  app.add_option("--dry-allowed-length", options.dry_allowed_length, "DRY allowed length")->capture_default_str();
  app.add_option("--dry-penalty-last-n", options.dry_last_n, "Tokens DRY looks at; -1: all")->capture_default_str();
}

std::string read_input(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  std::ifstream file(path, std::ios::binary);
  if (!file) throw skald::IoError("cli", "cannot open", {.file = path});
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw skald::IoError("cli", "cannot read", {.file = path});
  return text;
}

ProgressLine::ProgressLine(bool quiet) : on_(!quiet && ::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() { show(""); }

void ProgressLine::show(const std::string& text) {
  if (!on_) return;
  std::fprintf(stderr, "\r%-*s\r%s", static_cast<int>(width_), "", text.c_str());
  std::fflush(stderr);
  width_ = text.size();
}

skald::ProgressCallback ProgressLine::callback(std::string what) {
  if (!on_) return {};
  return [this, what = std::move(what), last = -1](const skald::Progress& progress) mutable {
    const int percent = progress.total > 0 ? static_cast<int>(100.0 * static_cast<double>(progress.done) / static_cast<double>(progress.total)) : 100;
    if (percent != last) show(fmt::format("{} {:3d} %", what, percent));
    last = percent;
  };
}

namespace {
std::atomic<int> interrupts{0};
extern "C" void on_interrupt(int) {
  if (interrupts.fetch_add(1) > 0) ::_exit(130);
}
}  // namespace

std::stop_token stop_on_interrupt() {
  // A signal handler may only set a flag; a thread of the program turns it into a stop request.
  static std::stop_source source;
  static std::jthread watcher([](const std::stop_token& end) {
    std::signal(SIGINT, on_interrupt);
    while (!end.stop_requested() && interrupts.load() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (interrupts.load() > 0) source.request_stop();
  });
  return source.get_token();
}

std::string human_bytes(std::uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= (1ull << 30)) return fmt::format("{:.2f} GiB", value / (1ull << 30));
  if (bytes >= (1ull << 20)) return fmt::format("{:.2f} MiB", value / (1ull << 20));
  if (bytes >= (1ull << 10)) return fmt::format("{:.1f} KiB", value / (1ull << 10));
  return fmt::format("{} B", bytes);
}

}  // namespace skald_cli
