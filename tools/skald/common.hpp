#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include <skald/skald.hpp>

namespace skald_cli {

/// A number of at least `least`. (The parser's own checks tell the largest floating-point number as the limit.)
[[nodiscard]] CLI::Validator at_least(std::int64_t least);

/// Exit codes of the program.
enum ExitCode : int { exit_ok = 0, exit_error = 1, exit_usage = 2 };

/// Settings of the whole program.
struct Global {
  bool json_errors = false;
  bool quiet = false;
};

/// Flags of llama.cpp that ask for what skald does not have. Values that ask for nothing (-ngl 0, -fa on, -tb equal to
/// -t) are accepted, all others refused: none is ignored.
struct ForeignFlags {
  std::string gpu_layers;
  std::string flash_attention;
  std::string draft_model;

  void add_to(CLI::App& app, bool flash = true);
  /// @throws skald::UnsupportedError naming the flag and the reason.
  void check() const;
};

/// Where the model lies and how it is brought into memory: -m, -t, --backend, --isa, --no-mmap, --no-repack.
struct ModelFlags {
  std::string path;
  std::string backend = "cpu";
  std::string isa;
  int threads = 0;
  std::optional<int> batch_threads;
  ForeignFlags foreign;
  bool no_mmap = false;
  bool no_repack = false;
  bool no_huge_pages = false;
  std::string packed_cache;

  void add_to(CLI::App& app);
  [[nodiscard]] skald::AnyBackend make_backend() const;
  /// Loads with progress on stderr if that is a terminal.
  [[nodiscard]] skald::Model load(const Global& global, bool tokenizer = true) const;
};

/// Tokens of context when no -c is given.
inline constexpr std::int64_t default_context = 4096;
/// -c as given: nothing: the model's context, at most `standard`; 0: the model's context.
[[nodiscard]] std::int64_t choose_context(const std::optional<std::int64_t>& given, const skald::ModelSpec& spec,
                                          std::int64_t standard = default_context);

/// Decoder settings: -c, -b/-ub, -ctk/-ctv, --kv-eviction, -np.
struct DecoderFlags {
  std::optional<std::int64_t> context;
  std::int64_t batch = 2048;
  std::int64_t ubatch = 512;
  std::string cache_k = "f16";
  std::string cache_v;
  std::string eviction = "none";
  std::string codebooks;
  std::string directory;
  int parallel = 1;
  int page_tokens = 64;

  void add_to(CLI::App& app);
  /// Warns on stderr, unless quiet, when the context is longer than what the model was trained for.
  /// `standard` is the context when no -c was given.
  [[nodiscard]] skald::DecoderOptions options(const skald::ModelSpec& spec, const Global& global,
                                              std::int64_t standard = default_context) const;
};

/// --lora FILE[:SCALE], as often as wished.
struct AdapterFlags {
  std::vector<std::string> texts;

  void add_to(CLI::App& app);
  /// Loads the adapters and gives them to an empty session.
  void apply(skald::Session& session) const;
};
/// FILE and SCALE (1 if there is none) of "FILE:SCALE"; a colon before anything but a number belongs to the file's name.
[[nodiscard]] std::pair<std::string, float> split_scale(const std::string& text);

/// Sampling settings with llama.cpp's spelling.
struct SamplerFlags {
  skald::SamplerOptions values;
  std::int64_t seed = 0;
  std::vector<std::string> dry_breakers{"\n", ":", "\"", "*"};
  void add_to(CLI::App& app);
  /// With the seed drawn if it was -1, and the breaker tokens of DRY looked up.
  [[nodiscard]] skald::SamplerOptions options(const skald::Tokenizer& tokenizer) const;
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
void add_embed(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_logits(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_inspect(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_convert(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_calibrate(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_perplexity(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_eval(CLI::App& app, Global& global, std::vector<Command>& commands);
void add_bench(CLI::App& app, Global& global, std::vector<Command>& commands);

/// A whole file, or standard input for "-". @throws skald::IoError; skald::CancelledError after Ctrl-C.
[[nodiscard]] std::string read_input(const std::string& path);
/// A line of standard input without its end; nothing at the end of input. @throws skald::CancelledError after Ctrl-C.
[[nodiscard]] std::optional<std::string> read_line();
/// Writes to standard output and flushes. @throws skald::IoError, also when the reader has gone.
void write_out(std::string_view text);
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
/// While it lives, the first Ctrl-C requests a stop and the second ends the program with exit code 130.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
};
/// The stop that Ctrl-C requests.
[[nodiscard]] std::stop_token stop_on_interrupt();
/// 1.23 GiB
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);

}  // namespace skald_cli
