#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <skald/backend/backend.hpp>
#include <skald/core/byte_source.hpp>
#include <skald/core/log.hpp>
#include <skald/core/progress.hpp>
#include <skald/model/architecture.hpp>
#include <skald/model/classifier.hpp>
#include <skald/model/model_file.hpp>
#include <skald/model/model_spec.hpp>

namespace skald::inline v0 {

class Tokenizer;
class ChatTemplate;

/// How a model is brought into memory.
struct LoadOptions {
  AnyBackend backend{};  ///< null: make_cpu_backend()
  WeightLayout layout = WeightLayout::packed;
  /// Encode the matrices in this type while loading: one of quantization_names(), e.g. "q4_k" or "q4_k_m"; empty: keep
  /// those of the file.
  std::string quantize{};
  /// With WeightLayout::rows, use the file's pages in place: a mapped file that another process truncates ends this
  /// process (SIGBUS), so switch off for files that may change. Packed weights are always read piecewise.
  /// Applies to loading from a path.
  bool map = true;
  /// Most bytes that weights, vectors and tokenizer may take; a load that needs more is refused before any is
  /// allocated.
  std::optional<std::size_t> memory_budget{};
  /// A file that keeps the packed weights of this model for this processor: if it is there and matches, it is mapped
  /// and the weights are used in place; if not, the weights are packed as usual and the file is written (whole or not at
  /// all). ModelInfo::packed_cache says what happened. The file carries versions, layout, identity of the model's files
  /// and checksums, which are verified; but it is not protected against forgery, and truncating it while it is in use
  /// ends the process (SIGBUS): keep it where only its users write. Empty: none. With WeightLayout::packed only.
  std::string packed_cache{};
  bool tokenizer = true;        ///< also build the tokenizer and parse the chat template
  bool check_weights = false;   ///< decode every weight and refuse NaN and infinities (vectors are always checked)
  /// Architectures of the host's own; they come before built-in ones of the same name.
  std::vector<Architecture> architectures{};
  /// Share of the feed-forward width that is loaded, for all layers or for each: see take_nested_ffn; empty: all of it.
  std::vector<float> ffn_fraction{};
  ProgressCallback progress{};  ///< stage "load", in bytes of tensor data; the last call has done == total
  std::stop_token stop{};
  LogSink log{};
};

/// What was loaded.
struct ModelInfo {
  std::string file{};
  std::string name{};  ///< general.name, may be empty
  std::string architecture{};
  std::string description{};       ///< e.g. "llama 1.24B Q4_0"
  std::uint64_t parameters = 0;    ///< elements of all used tensors
  std::uint64_t file_bytes = 0;    ///< bytes of tensor data in the file
  std::uint64_t weight_bytes = 0;  ///< bytes held in backend memory for matrices
  std::uint64_t vector_bytes = 0;  ///< bytes held in backend memory for norms and biases
  /// Matrix elements by format, most first: {"q4_k", 1.1e9}, {"q6_k", 1.3e8}.
  std::vector<std::pair<std::string, std::uint64_t>> formats{};
  std::vector<std::string> unused{};       ///< tensors of the file that this architecture does not read
  std::vector<std::string> unused_keys{};  ///< hyper-parameters of the file that this architecture does not read
  double load_seconds = 0.0;
  /// LoadOptions::packed_cache: "" (not asked for), "mapped", "written", "unused".
  std::string packed_cache{};
  std::string packed_cache_reason{};  ///< why it was not mapped: "there is none", "the model file has changed", …
};

/// A loaded network: spec, weights in backend memory, tokenizer. Immutable, cheap to copy (copies share everything),
/// safe to use from several threads at once.
class SKALD_API Model {
 public:
  /// Opens a GGUF file (of a split model, any shard) or a Hugging Face folder (see open_huggingface). Everything that metadata and tensor shapes can tell is checked
  /// before any tensor data is read.
  /// @throws FormatError naming key or tensor; UnsupportedError (architecture, tensor type, tokenizer family); IoError;
  /// OutOfMemoryError with need and budget; CancelledError within 50 ms after a stop request; what `progress` throws.
  [[nodiscard]] static Model load(const std::string& path, const LoadOptions& options = {});
  /// The same from any bytes that hold one whole GGUF file; they need not be aligned.
  [[nodiscard]] static Model load(AnyByteSource source, const LoadOptions& options = {});
  /// The same from a container that was already read.
  [[nodiscard]] static Model load(ModelFile file, const LoadOptions& options = {});

  // Copying shares; there is no moved-from state that could be misused.
  Model(const Model&) = default;
  Model& operator=(const Model&) = default;
  ~Model() = default;

  /// The nested network with a share of the feed-forward width, see take_nested_ffn: what LoadOptions::ffn_fraction loads,
  /// but in this model's memory. No weight is copied, so that any number of widths costs next to nothing, and one of them
  /// can draft for another. @throws UsageError for shares out of range, or widths that end within a block of the format;
  /// UnsupportedError if the backend cannot share.
  [[nodiscard]] Model nested(std::span<const float> fractions) const;

  [[nodiscard]] const ModelSpec& spec() const noexcept;
  [[nodiscard]] const AnyBackend& backend() const noexcept;
  [[nodiscard]] WeightLayout layout() const noexcept;

  /// The matrix of a role, nullptr if the model has none (or `layer` is out of range). `layer` is -1 for roles outside
  /// the layers. With a tied head, Role::head gives the embedding table.
  [[nodiscard]] const Weight* weight(Role role, int layer = -1) const noexcept;
  /// [device] f32 vector of a norm or bias, nullptr if the model has none: what Norm and LinearPart take.
  [[nodiscard]] const float* vector(Role role, int layer = -1) const noexcept;
  /// The classifier of spec().classifier, nullptr if there is none.
  [[nodiscard]] const Classifier* classifier() const noexcept;
  /// Frequencies of spec().ropes[index]. @throws UsageError if there is no such entry.
  [[nodiscard]] const RopeFrequencies& rope(std::int32_t index) const;

  /// Formats of the matrices that multiply (all but an embedding table that is not the head), each once.
  [[nodiscard]] std::span<const DType> weight_types() const noexcept;
  /// Those of the experts' matrices, each once.
  [[nodiscard]] std::span<const DType> expert_types() const noexcept;

  [[nodiscard]] bool has_tokenizer() const noexcept;
  /// @throws UsageError if the model was loaded without one or the file has none.
  [[nodiscard]] const Tokenizer& tokenizer() const;
  /// nullptr if the file has none. A template that skald refuses does not prevent loading:
  /// @throws the error that its parser gave (FormatError or UnsupportedError).
  [[nodiscard]] const ChatTemplate* chat_template() const;

  /// Metadata of the file without its long arrays (vocabulary, merges, scores).
  [[nodiscard]] const Metadata& metadata() const noexcept;
  [[nodiscard]] const ModelInfo& info() const noexcept;
  /// Identifies the model's content: equal for the same file wherever it lies and however it is loaded. A hash of spec,
  /// tensor table, all vectors and samples of every matrix; for session files, not against forgery.
  [[nodiscard]] std::array<std::uint64_t, 2> fingerprint() const noexcept;

 private:
  struct Impl;
  friend class ModelLoader;
  explicit Model(std::shared_ptr<const Impl> impl) noexcept : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace skald::inline v0
