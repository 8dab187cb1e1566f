#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/config.hpp>
#include <skald/core/byte_source.hpp>

namespace skald::inline v0 {

/// Element types of the safetensors format.
enum class SafetensorsType : std::uint8_t {
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  i64,
  u64,
  f64,
};
/// Name as in a header: "F32", "BF16", "BOOL".
[[nodiscard]] SKALD_API std::string_view to_string(SafetensorsType type) noexcept;
/// Bytes of one element.
[[nodiscard]] SKALD_API std::size_t element_bytes(SafetensorsType type) noexcept;

/// A tensor of a safetensors file.
struct SafetensorsTensor {
  std::string name{};
  SafetensorsType type = SafetensorsType::f32;
  std::vector<std::int64_t> shape{};  ///< outermost dimension first; empty for a scalar, extents may be 0
  std::uint64_t offset = 0;           ///< first byte, absolute in its source
  std::uint64_t bytes = 0;
  std::size_t source = 0;  ///< index into SafetensorsFile::sources()

  [[nodiscard]] std::int64_t elements() const noexcept {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    return count;
  }
};

struct SafetensorsOptions {
  /// Map files instead of reading them piecewise. A mapped file that another process truncates ends this process
  /// (SIGBUS): switch off for files that may change.
  bool map = true;
  /// Largest header that is read; the format's own implementation allows 100 MB.
  std::uint64_t max_header_bytes = 100'000'000;
};

/// One safetensors file, or several with their index, after everything was checked. Immutable; safe to use from
/// several threads at once.
class SKALD_API SafetensorsFile {
 public:
  SafetensorsFile() = default;
  SafetensorsFile(std::string name, std::vector<SafetensorsTensor> tensors, std::vector<AnyByteSource> sources,
                  std::vector<std::pair<std::string, std::string>> metadata);

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// All tensors, by source and place in it.
  [[nodiscard]] std::span<const SafetensorsTensor> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const AnyByteSource> sources() const noexcept { return sources_; }
  /// `__metadata__` of all files, in file order.
  [[nodiscard]] std::span<const std::pair<std::string, std::string>> metadata() const noexcept { return metadata_; }

  /// The tensor of a name, or nullptr.
  [[nodiscard]] const SafetensorsTensor* find(std::string_view name) const noexcept;
  /// The tensor of a name. @throws FormatError if there is none.
  [[nodiscard]] const SafetensorsTensor& at(std::string_view name) const;
  /// Copies a part of a tensor's data from `offset` within it. @throws UsageError, IoError.
  void read(const SafetensorsTensor& tensor, std::uint64_t offset, std::span<std::byte> out) const;
  /// All elements of a floating-point tensor as f32 (f64 is rounded). @throws FormatError for another type; IoError.
  [[nodiscard]] std::vector<float> read_floats(const SafetensorsTensor& tensor) const;
  /// Throws FormatError with the file, the tensor and the offset of its data: for checks made by the caller.
  [[noreturn]] void fail(const SafetensorsTensor& tensor, std::string_view message) const;

 private:
  std::string name_;
  std::vector<SafetensorsTensor> tensors_;
  std::vector<std::uint32_t> by_name_;
  std::vector<AnyByteSource> sources_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

/// Reads the structure of a safetensors file (specification: github.com/huggingface/safetensors, README.md, "Format")
/// and checks all of it: length of the header, JSON with unique keys, element types, shapes whose product fits, ranges
/// that begin at 0, follow each other without gap or overlap in some order, have the bytes that type and shape need
/// and end where the file ends. Tensor data is not touched.
/// @throws FormatError with file, offset and, where one is involved, tensor; UnsupportedError for an unknown element
/// type; IoError from the source; OutOfMemoryError.
[[nodiscard]] SKALD_API SafetensorsFile read_safetensors(AnyByteSource source, const SafetensorsOptions& options = {});

/// Reads a model that is split into several files, given with their names. `index` is the text of
/// model.safetensors.index.json: its weight_map must name every tensor of every file and the file that holds it.
/// @throws as read_safetensors; FormatError naming the tensor for which index and files disagree.
[[nodiscard]] SKALD_API SafetensorsFile read_safetensors_shards(
    const std::vector<std::pair<std::string, AnyByteSource>>& files, std::string_view index,
    const std::string& index_name, const SafetensorsOptions& options = {});

/// Opens a file (`*.safetensors`), an index (`*.index.json`) with the files beside it, or a folder that holds either as
/// `model.safetensors` or `model.safetensors.index.json`. @throws as above; IoError.
[[nodiscard]] SKALD_API SafetensorsFile open_safetensors(const std::string& path,
                                                         const SafetensorsOptions& options = {});

}  // namespace skald::inline v0
