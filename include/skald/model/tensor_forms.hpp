#pragma once

#include <skald/model/model_file.hpp>

namespace skald::inline v0 {

/// True for the plain types that no kernel reads, and that loading turns into f32: f64, i8, i16, i32.
[[nodiscard]] constexpr bool is_stored_as_number(DType type) noexcept {
  return type == DType::f64 || type == DType::i8 || type == DType::i16 || type == DType::i32;
}

/// True if in_usual_forms(file) would change something.
[[nodiscard]] SKALD_API bool has_rare_forms(const ModelFile& file);

/// A file with its tensors as loading uses them. Nothing is read or held in memory: bytes are converted when the result
/// is read, some at a time.
/// - f64, i8, i16 and i32 become f32 (rounded to nearest);
/// - the experts of a layer that have a tensor each (`blk.N.ffn_gate.E.weight`, the form of older files) become the stack
///   `blk.N.ffn_gate_exps.weight`, expert 0 first; the same for `ffn_up`, `ffn_down` and biases;
/// - the shares of the token shift of RWKV-6 (`blk.N.time_mix_lerp_{w,k,v,r,g}.weight`) become
///   `blk.N.time_mix_lerp_fused.weight`.
/// @throws FormatError naming the tensor of a stack that is missing or has another type or shape than the others.
[[nodiscard]] SKALD_API ModelFile in_usual_forms(const ModelFile& file);

}  // namespace skald::inline v0
