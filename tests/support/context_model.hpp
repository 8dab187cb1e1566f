#pragma once

#include "support/tiny_model.hpp"

namespace skald_test {

/// The model whose compressed contexts the fuzzer reads.
inline skald::Model context_model() {
  return tiny_model(TinyShape{.vocabulary = 64, .dim = 32, .heads = 2, .kv_heads = 2, .head_dim = 16, .ffn = 32, .context = 256});
}

}  // namespace skald_test
