#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/model/model_file.hpp>

namespace skald::inline v0 {

struct GgufOptions {
  /// Map files instead of reading them piecewise. A mapped file that another process truncates ends this process
  /// (SIGBUS): switch off for files that may change.
  bool map = true;
  /// Largest header (metadata and tensor table) that is read; the largest published ones take about 30 MB.
  std::uint64_t max_header_bytes = std::uint64_t{128} << 20;
};

/// Reads the structure of a GGUF container, version 2 or 3, little-endian (specification: github.com/ggml-org/ggml,
/// docs/gguf.md), and checks all of it before returning: counts and lengths against the bytes that exist, unique
/// keys and names, UTF-8, dimensions, types, offsets, alignment and overlap. Tensor data is not touched. Memory
/// taken is bounded by a small multiple of the header's size.
/// @throws FormatError with file, offset and, where one is involved, key or tensor; UnsupportedError for other
/// versions, big-endian files and unknown tensor types; IoError from the source; OutOfMemoryError.
[[nodiscard]] SKALD_API ModelFile read_gguf(AnyByteSource source, const GgufOptions& options = {});

/// Reads a model that is split into several sources, given in any order: `split.count`, `split.no` and
/// `split.tensors.count` must agree, no tensor may occur twice. The metadata is that of shard 0.
/// @throws as read_gguf; UsageError if no source is given.
[[nodiscard]] SKALD_API ModelFile read_gguf_shards(std::vector<AnyByteSource> sources, const GgufOptions& options = {});

/// Opens a file; of a split model (`NAME-00001-of-00003.gguf`, any shard may be named) all shards, which must lie
/// in the same folder. @throws as read_gguf_shards.
[[nodiscard]] SKALD_API ModelFile open_gguf(const std::string& path, const GgufOptions& options = {});

}  // namespace skald::inline v0
