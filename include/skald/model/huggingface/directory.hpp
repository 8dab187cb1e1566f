#pragma once

#include <string>
#include <vector>

#include <skald/config.hpp>
#include <skald/model/model_file.hpp>

namespace skald::inline v0 {

struct HuggingFaceOptions {
  /// Map the safetensors files instead of reading them piecewise. A mapped file that another process truncates ends this
  /// process (SIGBUS): switch off for files that may change.
  bool map = true;
};

/// Opens a folder as `transformers` writes it: config.json and model.safetensors or its shards with their index; and,
/// where they are there, generation_config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja and
/// 1_Pooling/config.json. The result has the keys and tensor names of a GGUF file, so that everything that takes one
/// takes the folder too. Tensors that GGUF files hold in another form (rows permuted for interleaved rotation, fused
/// and stacked matrices, transposed ones, norms plus one) are formed while they are read.
///
/// GPTQ and AWQ checkpoints (`quantization_config`) become the smallest type that holds their numbers exactly: Q4_0
/// where every zero point is the middle code, Q4_1 where scale times zero point fits binary16, Q8_0 otherwise, each for
/// groups of a multiple of 32 columns in order and scales that fit binary16; f32 where that is not so
/// (desc_act). The numbers are scale * (code - zero point), not rounded.
///
/// Other checkpoints that `quantization_config` describes: "mxfp4" (gpt-oss: blocks and their scales, as MXFP4), "fp8" and
/// "compressed-tensors" of format float-quantized (F8_E4M3 with one scale for the matrix, each row, or each block of
/// weight_block_size): element times scale, held exactly as BF16 where all scales are powers of two, else as F32.
///
/// @throws FormatError naming file and JSON path or tensor for what is malformed or contradicts; UnsupportedError for an
/// unknown model_type (listing the known ones), quantization method, rotary scaling or activation; IoError.
[[nodiscard]] SKALD_API ModelFile open_huggingface(const std::string& folder, const HuggingFaceOptions& options = {});

/// The values of `model_type` that open_huggingface knows, sorted.
[[nodiscard]] SKALD_API std::vector<std::string> huggingface_model_types();

/// Opens a GGUF file or a folder of Hugging Face's form. @throws as open_gguf and open_huggingface.
[[nodiscard]] SKALD_API ModelFile open_model(const std::string& path, bool map = true);

}  // namespace skald::inline v0
