#include "common.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <fmt/format.h>

namespace skald_cli {

CLI::Validator at_least(std::int64_t least) {
  return CLI::Validator(
      [least](const std::string& text) {
        std::int64_t value = 0;
        const char* end = text.data() + text.size();
        const auto [stopped, error] = std::from_chars(text.data(), end, value);
        if (error != std::errc() || stopped != end) return fmt::format("'{}' is not an integer", text);
        return value < least ? fmt::format("{} is less than {}", value, least) : std::string();
      },
      fmt::format("at least {}", least));
}

void ForeignFlags::add_to(CLI::App& app, bool flash) {
  app.add_option("--ngl,--gpu-layers,--n-gpu-layers", gpu_layers, "Layers on a GPU: only 0, there is no GPU backend");
  if (flash) app.add_option("--fa,--flash-attn", flash_attention, "Tiled attention: on or auto (it is always on)");
  app.add_option("--md,--model-draft", draft_model)->group("");
}

void ForeignFlags::check() const {
  const auto refuse = [](const std::string& message) { throw skald::UnsupportedError("cli", message); };
  if (!gpu_layers.empty() && gpu_layers != "0")
    refuse("-ngl " + gpu_layers + ": there is no GPU backend; only 0 is allowed");
  for (const char* on : {"", "on", "auto", "1"})
    if (flash_attention == on) {
      if (!draft_model.empty()) refuse("-md: there is no speculative decoding with a draft model");
      return;
    }
  refuse("-fa " + flash_attention + ": attention is always computed in tiles; on, auto and 1 are allowed");
}

void ModelFlags::add_to(CLI::App& app) {
  app.add_option("-m,--model", path, "GGUF file (of a split model, any part) or Hugging Face folder")->required();
  app.add_option("-t,--threads", threads, "Threads; 0 or -1: all that this process may use")
      ->check(CLI::Range(-1, 1024))
      ->capture_default_str();
  app.add_option("--tb,--threads-batch", batch_threads, "Threads for prompts: must equal -t");
  app.add_option("--backend", backend, "Backend: cpu or reference")->capture_default_str();
  app.add_option("--isa", isa, "Instruction set of the cpu backend: see inspect --isas (default: the best)");
  app.add_flag("--no-mmap", no_mmap, "Read the file instead of mapping it");
  app.add_flag("--no-repack", no_repack, "Keep the file's weight layout instead of the backend's");
  app.add_option("--packed-cache", packed_cache,
                 "File that keeps the repacked weights: mapped if it fits this model, processor and version, else written");
  app.add_flag("--no-huge-pages", no_huge_pages, "Do not ask for 2 MiB pages");
  foreign.add_to(app);
}

skald::AnyBackend ModelFlags::make_backend() const {
  if (backend == "cpu")
    return skald::make_cpu_backend({.isa = isa, .threads = std::max(0, threads), .huge_pages = !no_huge_pages});
  if (backend == "reference" && (!isa.empty() || threads > 1))
    throw skald::IncompatibleError(
        "cli", "the reference backend has one thread and no instruction sets; leave out -t and --isa");
  return skald::make_backend(backend);
}

skald::Model ModelFlags::load(const Global& global, bool tokenizer) const {
  foreign.check();
  if (batch_threads && std::max(0, *batch_threads) != std::max(0, threads))
    throw skald::UnsupportedError(
        "cli",
        fmt::format("-tb {} differs from -t {}: prompts and generation share their threads", *batch_threads, threads));
  ProgressLine progress(global.quiet);
  skald::LoadOptions options;
  options.backend = make_backend();
  options.layout = no_repack ? skald::WeightLayout::rows : skald::WeightLayout::packed;
  options.map = !no_mmap;
  options.packed_cache = packed_cache;
  options.tokenizer = tokenizer;
  options.progress = progress.callback("loading");
  options.stop = stop_on_interrupt();
  auto model = skald::Model::load(path, options);
  const auto& info = model.info();
  if (!global.quiet && !packed_cache.empty() && info.packed_cache == "unused")
    fmt::print(stderr, "warning: --packed-cache has no effect: {}\n", skald::printable(info.packed_cache_reason, 400));
  return model;
}

std::int64_t choose_context(const std::optional<std::int64_t>& given, const skald::ModelSpec& spec,
                            std::int64_t standard) {
  const std::int64_t own = spec.context_length;
  if (!given) return std::min(own, standard);
  return *given == 0 ? own : *given;
}

void DecoderFlags::add_to(CLI::App& app) {
  app.add_option("-c,--ctx-size", context,
                 "Tokens of context; 0: the model's own (default: the model's own, at most 4096)")
      ->check(at_least(0));
  app.add_option("-b,--batch-size", batch, "Most tokens per call; a smaller one lowers -ub")
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--ub,--ubatch-size", ubatch, "Most tokens that go through the network together")
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--ctk,--cache-type-k", cache_k, "Format of keys and values: f32, f16, bf16, q8_0, q4_0, q4_1, coupled; 'q4_0;layers 0-1=f16;heads 3=q8_0' by layer and KV head; 'f16;values=128' and 'f16;chunks=256' in slow memory")
      ->capture_default_str();
  app.add_option("--ctv,--cache-type-v", cache_v, "Must equal -ctk");
  std::string policies = "Eviction policy, one of";
  for (const auto& policy : skald::AnyEviction::registered())
    policies += fmt::format("\n  {}{}{}: keeps {}", policy.name, policy.parameters.empty() ? "" : ":", policy.parameters,
                            policy.keeps);
  app.add_option("--kv-eviction", eviction, policies)
      ->capture_default_str();
  app.add_option("--kv-codebooks", codebooks, "Codebooks of -ctk coupled, from 'skald calibrate'");
  app.add_option("--kv-directory", directory, "Directory for the slow memory of -ctk 'f16;values=128' or 'f16;chunks=256'");
  app.add_option("--kv-page", page_tokens, "Tokens per KV page: 16, 32, 64, 128 or 256")->capture_default_str();
  app.add_option("--np,--parallel", parallel, "Sessions at the same time: only 1 here")->capture_default_str();
}

skald::DecoderOptions DecoderFlags::options(const skald::ModelSpec& spec, const Global& global,
                                            std::int64_t standard) const {
  if (!cache_v.empty() && cache_v != cache_k)
    throw skald::IncompatibleError(
        "cli", "keys in '" + cache_k + "' and values in '" + cache_v + "': both have one format per page");
  if (parallel != 1)
    throw skald::UnsupportedError(
        "cli", fmt::format("-np {}: this command runs one session; 'skald bench --sequences' runs several", parallel));
  skald::DecoderOptions result;
  result.context = choose_context(context, spec, standard);
  if (result.context > spec.context_length && !global.quiet)
    fmt::print(stderr, "warning: a context of {} tokens is longer than the {} that the model was made for\n",
               result.context, spec.context_length);
  result.batch_tokens = std::min(batch, ubatch);
  result.parallel = 1;
  result.kv.format = cache_k;
  result.kv.eviction = eviction;
  result.kv.slow_directory = directory;
  if (!codebooks.empty())
    result.kv.codebooks = std::make_shared<const skald::CoupledCodebooks>(skald::CoupledCodebooks::load(codebooks));
  result.kv.page_tokens = page_tokens;
  return result;
}

void AdapterFlags::add_to(CLI::App& app) {
  app.add_option("--lora", texts, "Adapter, FILE or FILE:SCALE: a PEFT folder or a GGUF file; may be repeated")
      ->allow_extra_args(false);
}

void AdapterFlags::apply(skald::Session& session) const {
  std::vector<skald::ScaledAdapter> adapters;
  for (const auto& text : texts) {
    const auto [path, scale] = split_scale(text);
    adapters.push_back({skald::Adapter::load(path, session.model()), scale});
  }
  session.set_adapters(std::move(adapters));
}

std::pair<std::string, float> split_scale(const std::string& text) {
  const auto at = text.rfind(':');
  if (at == std::string::npos) return {text, 1.0F};
  float scale = 1.0F;
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data() + at + 1, end, scale);
  if (error != std::errc() || stopped != end || !std::isfinite(scale)) return {text, 1.0F};
  return {text.substr(0, at), scale};
}

void SamplerFlags::add_to(CLI::App& app) {
  const auto add = [&](const char* names, auto& target, const char* help) {
    return app.add_option(names, target, help)->capture_default_str();
  };
  add("-s,--seed", seed, "Seed of the random draws; -1: a new one each time")
      ->check(CLI::Range(std::int64_t{-1}, INT64_MAX));
  add("--temp", values.temperature, "Temperature; 0: always the most probable token");
  add("--top-k", values.top_k, "Keep the k most probable tokens; 0: off");
  add("--top-p", values.top_p, "Keep the most probable tokens that hold probability p; 1: off");
  add("--min-p", values.min_p, "Keep tokens at least p times as probable as the best; 0: off");
  add("--typical", values.typical_p, "Locally typical sampling; 1: off");
  add("--repeat-penalty", values.repeat_penalty, "Penalty on repeated tokens; 1: off");
  add("--repeat-last-n", values.repeat_last_n, "Tokens the penalties look at; -1: all");
  add("--frequency-penalty", values.frequency_penalty, "Penalty per occurrence; 0: off");
  add("--presence-penalty", values.presence_penalty, "Penalty for having occurred; 0: off");
  add("--dry-multiplier", values.dry_multiplier, "DRY repetition penalty; 0: off");
  add("--dry-base", values.dry_base, "DRY base");
  add("--dry-allowed-length", values.dry_allowed_length, "Longest repetition that DRY leaves alone");
  add("--dry-penalty-last-n", values.dry_last_n, "Tokens DRY looks at; -1: all");
  app.add_option(
      "--dry-sequence-breaker", dry_breakers,
      "Text whose tokens end a repetition; may be repeated, none: no breakers (default: line end, ':', '\"', '*')");
}

skald::SamplerOptions SamplerFlags::options(const skald::Tokenizer& tokenizer) const {
  auto result = values;
  if (seed >= 0) {
    result.seed = static_cast<std::uint64_t>(seed);
  } else {
    std::random_device device;
    result.seed = (std::uint64_t{device()} << 31) ^ device();
  }
  if (result.dry_multiplier == 0.0F) return result;
  for (skald::TokenId token = 0; token < tokenizer.size(); ++token)
    for (const auto& breaker : dry_breakers)
      if (breaker != "none" && !breaker.empty() && tokenizer.piece(token).find(breaker) != std::string_view::npos) {
        result.dry_breakers.push_back(token);
        break;
      }
  return result;
}

namespace {

// A signal handler may do almost nothing: it writes one byte into a pipe. The byte stays there; a thread that sleeps
// until it comes turns it into a stop request, and whoever waits for input waits for it too.
int pipe_ends[2] = {-1, -1};

/// Returns when reading from `fd` does not block. @throws skald::CancelledError after Ctrl-C.
void wait_for_input(int fd) {
  pollfd polled[2] = {{fd, POLLIN, 0}, {pipe_ends[0], POLLIN, 0}};
  while (::poll(polled, 2, -1) < 0 && errno == EINTR) {
  }
  if (polled[1].revents != 0) throw skald::CancelledError("cli", "interrupted");
}

}  // namespace

std::string read_input(const std::string& path) {
  const std::string name = path == "-" ? "standard input" : path;
  const auto fail = [&](const char* what) {
    const int error = errno;
    throw skald::IoError("cli", std::string(what) + ": " + std::strerror(error), {.file = name});
  };
  const int fd = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("cannot open");
  struct Close {
    int fd;
    ~Close() {
      if (fd != STDIN_FILENO) ::close(fd);
    }
  } close{fd};
  std::string text;
  std::vector<char> buffer(std::size_t{1} << 16);
  while (true) {
    wait_for_input(fd);
    const auto got = ::read(fd, buffer.data(), buffer.size());
    if (got == 0) return text;
    if (got < 0) fail("cannot read");
    text.append(buffer.data(), static_cast<std::size_t>(got));
  }
}

std::optional<std::string> read_line() {
  std::string line;
  while (true) {
    char c = 0;
    wait_for_input(STDIN_FILENO);
    const auto got = ::read(STDIN_FILENO, &c, 1);  // one by one: a line of a person, and nothing is read ahead
    if (got < 0)
      throw skald::IoError("cli", std::string("cannot read: ") + std::strerror(errno), {.file = "standard input"});
    if (got == 0 && line.empty()) return std::nullopt;
    if (got == 0 || c == '\n') break;
    line += c;
  }
  if (line.ends_with('\r')) line.pop_back();
  return line;
}

void write_out(std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (!written || std::fflush(stdout) != 0)
    throw skald::IoError("cli", std::string("cannot write: ") + std::strerror(errno), {.file = "standard output"});
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
    const int percent =
        progress.total > 0
            ? static_cast<int>(100.0 * static_cast<double>(progress.done) / static_cast<double>(progress.total))
            : 100;
    if (percent != last) show(fmt::format("{} {:3d} %", what, percent));
    last = percent;
  };
}

namespace {

std::atomic<int> wake_fd{-1};
std::atomic<int> interrupts{0};

extern "C" void on_interrupt(int) {
  if (interrupts.fetch_add(1) > 0) ::_exit(130);
  const int saved = errno;
  const char byte = 0;
  if (::write(wake_fd.load(), &byte, 1) < 0) ::_exit(130);
  errno = saved;
}

std::stop_source& stop_source() {
  static std::stop_source source;
  return source;
}

std::thread watcher;

}  // namespace

InterruptGuard::InterruptGuard() {
  (void)stop_source();
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0) return;  // Ctrl-C then ends the program as it does by default
  wake_fd = pipe_ends[1];
  watcher = std::thread([] {
    pollfd polled{pipe_ends[0], POLLIN, 0};
    while (::poll(&polled, 1, -1) < 0 && errno == EINTR) {
    }
    if ((polled.revents & POLLIN) != 0) stop_source().request_stop();
  });
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
}

InterruptGuard::~InterruptGuard() {
  if (!watcher.joinable()) return;
  std::signal(SIGINT, SIG_DFL);
  ::close(pipe_ends[1]);
  watcher.join();
  ::close(pipe_ends[0]);
}

std::stop_token stop_on_interrupt() { return stop_source().get_token(); }

std::string human_bytes(std::uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= (1ull << 30)) return fmt::format("{:.2f} GiB", value / (1ull << 30));
  if (bytes >= (1ull << 20)) return fmt::format("{:.2f} MiB", value / (1ull << 20));
  if (bytes >= (1ull << 10)) return fmt::format("{:.1f} KiB", value / (1ull << 10));
  return fmt::format("{} B", bytes);
}

}  // namespace skald_cli
