#pragma once

#include <map>
#include <string>

#include "model/huggingface/config.hpp"
#include "model/tensor_view.hpp"

namespace skald::inline v0::huggingface {

using Views = std::map<std::string, TensorView, std::less<>>;

/// Replaces `x.qweight`, `x.qzeros`, `x.scales` and `x.g_idx` by `x.weight` for every x, as `quantization_config` says.
/// GPTQ (Frantar et al. 2022, arXiv 2210.17323): codes packed along the inputs, weight = scale * (code - (zero + 1)).
/// AWQ (Lin et al. 2023, arXiv 2306.00978; "gemm" packing): codes packed along the outputs in the order 0 2 4 6 1 3 5 7,
/// weight = scale * (code - zero).
void unpack_group_quantized(const Config& quantization, Views& views);

}  // namespace skald::inline v0::huggingface
