#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <skald/config.hpp>
#include <skald/core/dtype.hpp>
#include <skald/model/model_file.hpp>

namespace skald::inline v0 {

/// What quantized() accepts: every type that encode_row writes ("f16", "q4_0", "q6_k", …) and the mixtures "q4_k_m",
/// "q5_k_m" (the base type, and q6_k for the head and for half of the value and down matrices: those of the first and
/// last eighth of the layers and every third between) and "q4_k_s", "q5_k_s" (q6_k for the head alone).
[[nodiscard]] SKALD_API std::vector<std::string> quantization_names();

/// A file whose matrices are in another type. They are encoded while they are read, so that memory is not taken for
/// them. Vectors, routers, position tables and other small tensors that networks are sensitive to stay as they are.
/// Rows that are not whole blocks of the type take a smaller one: q8_0 for q6_k, q5_1 for q5_k, q5_0 for q4_k and below,
/// or else f16.
/// @throws UsageError for a name that quantization_names does not list; UnsupportedError for a tensor whose type cannot be
/// decoded. Reading throws NumericError for values that are not finite or too large for the type.
[[nodiscard]] SKALD_API ModelFile quantized(const ModelFile& file, std::string_view name);

/// The type that a tensor of `file` gets. @throws as above.
[[nodiscard]] SKALD_API DType quantized_type(const ModelFile& file, const TensorInfo& tensor, std::string_view name);

}  // namespace skald::inline v0
