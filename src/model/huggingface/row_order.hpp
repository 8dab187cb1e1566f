#pragma once

#include <cstdint>
#include <vector>

#include "model/huggingface/families.hpp"

namespace skald::inline v0::huggingface {

/// Which row of a folder's matrix becomes row i of the GGUF file's, for the forms that move rows (rotary_q, rotary_k,
/// head_qkv, group_qkv); in order for all others. Empty if the rows are not whole heads, or more than 2^31 - 1.
[[nodiscard]] std::vector<std::int32_t> row_order(Form form, std::int64_t rows, std::int64_t query_heads,
                                                  std::int64_t key_heads);

}  // namespace skald::inline v0::huggingface
