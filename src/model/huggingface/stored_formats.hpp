#pragma once

#include <map>
#include <string>

#include <skald/model/safetensors/reader.hpp>

#include "model/huggingface/config.hpp"
#include "model/huggingface/group_quantized.hpp"
#include "model/tensor_view.hpp"

namespace skald::inline v0::huggingface {

/// A tensor whose elements only mean something together with another tensor: bytes of shape `view.shape`.
struct RawTensor {
  SafetensorsType type = SafetensorsType::u8;
  TensorView view;  ///< as i8
};
using RawTensors = std::map<std::string, RawTensor, std::less<>>;

/// Replaces what `quantization_config` says was quantized by tensors that GGUF files know:
/// - "gptq", "awq": unpack_group_quantized;
/// - "mxfp4": `x_blocks` [..., n, 16] and `x_scales` [..., n] of U8 by `x` [..., 32 n] of MXFP4. Byte j of a block holds
///   element 2 j below and 2 j + 1 above (Open Compute Project, Microscaling Formats 1.0);
/// - "fp8" and "compressed-tensors" of format float-quantized: `x.weight` of F8_E4M3 and `x.weight_scale_inv` or
///   `x.weight_scale` (one number, one for each row, or one for each block of `weight_block_size`) by `x.weight`, element
///   times scale: bf16 if all scales are powers of two, which keeps every number, else f32.
/// What was used is taken out of `raw`. @throws FormatError naming the tensor; UnsupportedError for other methods.
void unpack_stored_formats(const Config& quantization, RawTensors& raw, Views& views);

}  // namespace skald::inline v0::huggingface
