#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/model/hyper_parameters.hpp>
#include <skald/model/model_file.hpp>
#include <skald/model/model_spec.hpp>

namespace skald::inline v0 {

/// How a tensor is kept.
enum class TensorUse : std::uint8_t {
  matrix,  ///< a Weight of the backend, any format
  vector,  ///< f32 in backend memory; stored as f32, f16 or bf16
  host,    ///< f32 in the spec; stored as f32, f16 or bf16
  host_matrix,  ///< f32 in the process's memory, of any format (a classifier's)
};
/// True for the uses of matrices.
[[nodiscard]] constexpr bool is_matrix(TensorUse use) noexcept {
  return use == TensorUse::matrix || use == TensorUse::host_matrix;
}

/// One tensor that an architecture reads.
struct TensorBinding {
  Role role = Role::token_embedding;
  int layer = -1;
  std::string name{};                 ///< name in the file
  std::vector<std::int64_t> shape{};  ///< {rows, cols} of a matrix, {elements} of a vector
  std::int64_t matrices = 1;          ///< of a stack, also of vectors; shape has the rows of all
  TensorUse use = TensorUse::matrix;
  bool required = true;
  std::int64_t file_rows = 0;  ///< if not 0, rows (elements) of the file's tensor, of which the first ones are used
  std::int64_t file_cols = 0;  ///< if not 0, columns of the file's matrix, of which the first ones are used
  std::vector<std::string> other_names{};  ///< tried in order if the file has no `name`

  // Several matrices (or vectors) may lie in one tensor: query, key and value; gate and up.
  std::string fused_name{};     ///< the common tensor; empty: there is none
  std::string fused_unless{};   ///< the common tensor is used if the file has no tensor of this name
  std::int64_t first_row = 0;   ///< of the common tensor, first row (or element) of this part
  std::int64_t fused_rows = 0;  ///< rows (or elements) of the common tensor
  // The matrices of two stacks may lie in one tensor, those of the same number together (keys and values of a latent row).
  std::string grouped_name{};    ///< the common tensor, used if the file has no `name`; empty: there is none
  std::int64_t group_rows = 0;   ///< rows of one matrix of each stack
  std::int64_t group_first = 0;  ///< of them the first of this stack
  bool transposed = false;       ///< in the common tensor; the weight is made in f32 then
  bool loose_shape = false;  ///< dimensions of one element may stand anywhere in the file's shape
  bool fused_must_fit = false;  ///< the name may also be that of one part alone: only a tensor of this size is common
};

/// What the tensors of an architecture are called, where that differs from the names that most have in common.
struct TensorNames {
  /// Role and names without the layer's prefix, the preferred one first. Earlier entries win.
  std::vector<std::pair<Role, std::vector<std::string>>> roles{};
  std::string layers = "blk.";          ///< before a layer's number
  std::string encoder_layers = "enc.blk.";
};

/// An architecture as data: its name in `general.architecture` and how its metadata becomes a spec.
struct Architecture {
  std::string name{};
  std::string models{};  ///< well-known members, for `skald inspect` and error messages
  std::function<ModelSpec(HyperParameters&)> read{};
  TensorNames names{};
};

/// All architectures that are built in, in the order of their names.
[[nodiscard]] SKALD_API std::vector<Architecture> architectures();

/// Reads and checks the spec of a model: from metadata and the tensor table alone, except rope factors, whose few
/// numbers are read. `more` are architectures of the caller; they come before built-in ones of the same name.
/// @throws UnsupportedError for an unknown architecture (listing the known ones) or a variant that is
/// not implemented; FormatError naming the key for missing, wrong or contradicting hyper-parameters.
[[nodiscard]] SKALD_API ModelSpec read_spec(const ModelFile& file, std::span<const Architecture> more = {});

/// The tensors that a spec needs, in the order of a forward pass, under the names of its architecture.
[[nodiscard]] SKALD_API std::vector<TensorBinding> tensor_bindings(const ModelSpec& spec,
                                                                   std::span<const Architecture> more = {});

/// A binding and its tensor in the file, or the part of one.
struct BoundTensor {
  TensorBinding binding;
  const TensorInfo* tensor = nullptr;
  bool part = false;           ///< only a part of the tensor
  std::int64_t first_row = 0;  ///< first row (of a vector: element) that is used
  std::int64_t rows = 0;       ///< rows of the tensor that are used, over all matrices (of a vector: elements)

  bool grouped = false;        ///< the tensor is that of binding.grouped_name

  /// Rows of the tensor that one matrix of a grouped stack takes.
  [[nodiscard]] std::int64_t group_count() const noexcept {
    return binding.transposed ? binding.shape[1] : binding.shape[0] / binding.matrices;
  }
  /// Format of the weight that is made of it.
  [[nodiscard]] DType type() const noexcept { return grouped && binding.transposed ? DType::f32 : tensor->type; }
  /// Elements that are used.
  [[nodiscard]] std::uint64_t elements() const noexcept {
    const auto count = static_cast<std::uint64_t>(rows);
    return is_matrix(binding.use) ? count * static_cast<std::uint64_t>(binding.shape[1]) : count;
  }
  /// Bytes of the tensor's rows that are used.
  [[nodiscard]] SKALD_API std::uint64_t bytes() const;
};
/// All tensors of a file against a spec.
struct BoundTensors {
  std::vector<BoundTensor> used;  ///< in file order
  std::vector<std::string> unused;
};
/// Finds every binding's tensor and checks its shape and type. @throws FormatError naming a tensor that is missing, has
/// another shape (found and expected are given) or a type that its role cannot have; UnsupportedError for a type, or a norm
/// that the network does not use.
/// The result points into `file`.
[[nodiscard]] SKALD_API BoundTensors bind_tensors(const ModelFile& file, const ModelSpec& spec,
                                                  std::span<const Architecture> more = {});

}  // namespace skald::inline v0
