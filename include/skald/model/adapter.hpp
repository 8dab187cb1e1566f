#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/backend/ops.hpp>
#include <skald/config.hpp>
#include <skald/model/metadata.hpp>
#include <skald/model/model_file.hpp>

namespace skald::inline v0 {

class Model;
class Weight;

/// A change of one matrix as a file states it, on the host. @see WeightDelta
struct AdapterDelta {
  std::string tensor{};  ///< name of the matrix in GGUF files, e.g. "blk.0.attn_q.weight"
  DeltaKind kind = DeltaKind::low_rank;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  std::int32_t rank = 0;
  float scale = 1.0F;
  std::vector<float> first{};
  std::vector<float> second{};
  std::vector<std::int32_t> columns{};
  std::vector<std::int32_t> rows{};  ///< kronecker: row of the product for every output; empty: in order
  std::int32_t a_rows = 0, a_cols = 0, b_rows = 0, b_cols = 0;
  /// low_rank, of `outputs` elements or empty: the lengths that the rows of the changed matrix get (DoRA, Liu et al. 2024,
  /// arXiv 2402.09353). Such a change can be merged; it cannot be applied beside the matrix.
  std::vector<float> magnitude{};

  /// out = row `output` of the changed matrix, where out is that of the matrix; `inputs` elements: add_row, then the
  /// row's length is made magnitude[output], if there is one.
  SKALD_API void change_row(std::int64_t output, float factor, std::span<float> out) const;
  /// out += factor * scale * row `output` of the change; `inputs` elements.
  SKALD_API void add_row(std::int64_t output, float factor, std::span<float> out) const;
};

/// The contents of an adapter, checked.
struct AdapterFile {
  std::string name{};
  std::vector<AdapterDelta> deltas{};
};

/// Reads an adapter for a model of these hyper-parameters (`Model::metadata()` or those of its file):
/// - a folder of the PEFT library: adapter_config.json and adapter_model.safetensors with LoRA factors
///   (`….lora_A.weight`, `….lora_B.weight`; lora_alpha / r, or / sqrt(r) with use_rslora, alpha_pattern, rank_pattern;
///   with use_dora `….lora_magnitude_vector` [outputs]),
///   LoKr factors (`….lokr_w1`, `….lokr_w2`), sums of Kronecker products (`….kron_A` [terms, p, q], `….kron_B`
///   [terms, m, n]) or changed columns (`….paca_columns` [n] of I32, `….paca_delta` [outputs, n]);
/// - a GGUF file of general.type "adapter" (`….lora_a`, `….lora_b`, adapter.lora.alpha).
/// Rows are moved as those of the matrices are when the model is opened.
/// @throws FormatError naming file and tensor; UnsupportedError for other kinds of adapters; IncompatibleError for names
/// that models of this architecture do not have; NumericError for values that are not finite; IoError.
[[nodiscard]] SKALD_API AdapterFile read_adapter(const std::string& path, const Metadata& model);

/// True for a folder with an adapter_config.json and for a GGUF file of general.type "adapter".
/// @throws FormatError, IoError for a file that is no GGUF file.
[[nodiscard]] SKALD_API bool is_adapter(const std::string& path);

/// An adapter in the memory of a model's backend. Immutable, cheap to copy, safe to use from several threads at once;
/// it may be loaded and dropped while sessions of the model run.
class SKALD_API Adapter {
 public:
  /// @throws as read_adapter; IncompatibleError naming the tensor if the model has no matrix of this name, one of another
  /// shape, or one that a delta cannot enter while it runs: embedding tables, stacks of experts, the absorbed parts of
  /// latent attention (attn_kv_b, attn_k_b, attn_v_b), or if a delta has magnitudes; all but stacks can be merged instead.
  /// OutOfMemoryError.
  [[nodiscard]] static Adapter load(const std::string& path, const Model& model);
  [[nodiscard]] static Adapter load(const AdapterFile& file, const Model& model);

  Adapter(const Adapter&) = default;
  Adapter& operator=(const Adapter&) = default;
  ~Adapter() = default;

  [[nodiscard]] const std::string& name() const noexcept;
  /// Identifies the contents.
  [[nodiscard]] std::array<std::uint64_t, 2> fingerprint() const noexcept;
  /// Bytes in backend memory.
  [[nodiscard]] std::size_t bytes() const noexcept;
  /// True if it was loaded for this model.
  [[nodiscard]] bool belongs_to(const Model& model) const noexcept;
  /// The changes of a matrix, pointing into backend memory; empty if it has none.
  [[nodiscard]] std::span<const WeightDelta> deltas(const Weight* weight) const noexcept;

 private:
  struct Impl;
  explicit Adapter(std::shared_ptr<const Impl> impl) noexcept : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// An adapter and how strongly it applies.
struct ScaledAdapter {
  Adapter adapter;
  float scale = 1.0F;
};

/// A model file whose matrices have adapters added to them, in f32; all other tensors are as in `file`. Computed while
/// it is read. @throws FormatError if a matrix is missing, is a stack, or has another shape.
[[nodiscard]] SKALD_API ModelFile merged(const ModelFile& file, const AdapterFile& adapter, float scale = 1.0F);

}  // namespace skald::inline v0
