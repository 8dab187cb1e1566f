#pragma once

#include <cstdint>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/model/gguf/reader.hpp>
#include <skald/model/model_file.hpp>

namespace skald::inline v0::gguf {

/// One file's structure after all checks that concern it alone.
struct Header {
  Metadata metadata;
  std::vector<TensorInfo> tensors;  ///< offsets absolute, source 0
};

/// @throws as read_gguf.
[[nodiscard]] Header read_header(const AnyByteSource& source, const GgufOptions& options);

}  // namespace skald::inline v0::gguf
