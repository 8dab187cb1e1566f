#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/model/model_file.hpp>
#include <skald/model/model_spec.hpp>

namespace skald::inline v0 {

class HyperParameters;

/// How a tensor is kept.
enum class TensorUse : std::uint8_t {
  matrix,  ///< a Weight of the backend, any format
  vector,  ///< f32 in backend memory; stored as f32, f16 or bf16
  host,    ///< f32 in the spec; stored as f32, f16 or bf16
};

/// One tensor that an architecture reads.
struct TensorBinding {
  Role role = Role::token_embedding;
  int layer = -1;
  std::string name{};                 ///< name in the file
  std::vector<std::int64_t> shape{};  ///< {rows, cols} of a matrix, {elements} of a vector
  std::int64_t matrices = 1;          ///< of a stack, also of vectors; shape has the rows of all
  TensorUse use = TensorUse::matrix;
  bool required = true;
};

/// An architecture as data: its name in `general.architecture` and how its metadata becomes a spec.
struct Architecture {
  std::string_view name;
  std::string_view models;  ///< well-known members, for `skald inspect` and error messages
  ModelSpec (*read)(HyperParameters& parameters);
};

/// All architectures, in the order of their names.
[[nodiscard]] SKALD_API std::span<const Architecture> architectures() noexcept;

/// Reads and checks the spec of a model: from metadata and the tensor table alone, except `rope_factors`, whose few
/// numbers are read. @throws UnsupportedError for an unknown architecture (listing the known ones) or a variant that is
/// not implemented; FormatError naming the key for missing, wrong or contradicting hyper-parameters.
[[nodiscard]] SKALD_API ModelSpec read_spec(const ModelFile& file);

/// The tensors that a spec needs, in the order of a forward pass.
[[nodiscard]] SKALD_API std::vector<TensorBinding> tensor_bindings(const ModelSpec& spec);

/// A binding and its tensor in the file.
struct BoundTensor {
  TensorBinding binding;
  const TensorInfo* tensor = nullptr;
};
/// All tensors of a file against a spec.
struct BoundTensors {
  std::vector<BoundTensor> used;  ///< in file order
  std::vector<std::string> unused;
};
/// Finds every binding's tensor and checks its shape and type. @throws FormatError naming a tensor that is missing, has
/// another shape (found and expected are given) or a type that its role cannot have; UnsupportedError.
/// The result points into `file`.
[[nodiscard]] SKALD_API BoundTensors bind_tensors(const ModelFile& file, const ModelSpec& spec);

}  // namespace skald::inline v0
