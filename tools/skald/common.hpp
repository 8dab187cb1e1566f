#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <skald/skald.hpp>

namespace skald_cli {

/// Exit codes of the program.
enum ExitCode : int { exit_ok = 0, exit_error = 1, exit_usage = 2 };

/// Settings of the whole program.
struct Global {
  bool json_errors = false;
  bool quiet = false;
};

/// Where the model lies and how it is brought into memory: -m, -t, --backend, --isa, --no-mmap, --no-repack.
struct ModelFlags {
  std::string path;
  std::string backend = "cpu";
  std::string isa;
  int threads = 0;
  bool no_mmap = false;
  bool no_repack = false;
  bool no_huge_pages = false;

  void add_to(CLI::App& app, bool model_required = true);
  [[nodiscard]] skald::AnyBackend make_backend() const;
  /// Loads with progress on stderr if that is a terminal.
  [[nodiscard]] skald::Model load(const Global& global, bool tokenizer = true) const;
};

/// Decoder settings: -c, -b/-ub, -ctk/-ctv, --kv-eviction, -np.
struct DecoderFlags {
  std::int64_t context = 0;
  std::int64_t batch = 0;
  std::int64_t ubatch = 512;
  std::string cache_k = "f16";
  std::string cache_v;
  std::string eviction = "none";
  int parallel = 1;
  int page_tokens = 64;

  void add_to(CLI::App& app);
  [[nodiscard]] skald::DecoderOptions options() const;
};

/// Sampling settings with llama.cpp's spelling.
struct SamplerFlags {
  skald::SamplerOptions options;
  void add_to(CLI::App& app);
};

/// One command: its flags are added by the constructor function, it runs by the returned action.
using Action = std::function<int()>;
struct Command {
  CLI::App* app;
  Action run;
};

void add_generate(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_chat(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_tokenize(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_detokenize(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_logits(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_inspect(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_perplexity(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_bench(CLI::App& app, Global& global, std::vector<Command>& commands);

/// A whole file, or standard input for "-". @throws skald::IoError.
[[nodiscard]] std::string read_input(const std::string& path);
/// A line of progress on stderr, rewritten in place; silent if quiet or stderr is no terminal.
class ProgressLine {
 public:
  explicit ProgressLine(bool quiet);
  ~ProgressLine();
  void show(const std::string& text);
  /// Callback for the library's long calls.
  [[nodiscard]] skald::ProgressCallback callback(std::string what);

 private:
  bool on_;
  std::size_t width_ = 0;
};
/// True after Ctrl-C; `stop_on_interrupt` makes the first one request a stop, the second one ends the program.
[[nodiscard]] std::stop_token stop_on_interrupt();
/// 1.23 GiB
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);

}  // namespace skald_cli
