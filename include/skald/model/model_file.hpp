#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/core/byte_source.hpp>
#include <skald/core/dtype.hpp>
#include <skald/model/metadata.hpp>

namespace skald::inline v0 {

/// Where a tensor lies and what it is. Dimensions are in ggml order: dims[0] is the innermost (contiguous) one,
/// the columns; dims[1] the rows; unused ones are 1.
struct TensorInfo {
  std::string name{};
  DType type = DType::f32;
  std::array<std::int64_t, 4> dims{1, 1, 1, 1};
  std::size_t rank = 1;      ///< dimensions written in the file, 1 to 4
  std::uint64_t offset = 0;  ///< first byte, absolute in its source
  std::uint64_t bytes = 0;   ///< size of the data
  std::size_t source = 0;    ///< index into ModelFile::sources()

  [[nodiscard]] std::int64_t elements() const noexcept { return dims[0] * dims[1] * dims[2] * dims[3]; }
  /// Elements of one contiguous row.
  [[nodiscard]] std::int64_t columns() const noexcept { return dims[0]; }
  /// Number of rows over all outer dimensions.
  [[nodiscard]] std::int64_t rows() const noexcept { return dims[1] * dims[2] * dims[3]; }
  /// Dimensions in words, innermost first: "[2048, 512]".
  [[nodiscard]] SKALD_API std::string shape() const;
};

/// A model container after its structure was checked: metadata, tensor table and the bytes behind it. Readers of
/// all container formats produce this. Immutable; safe to use from several threads at once.
class SKALD_API ModelFile {
 public:
  ModelFile() = default;
  /// Checks what all formats have in common. @throws FormatError for two tensors of one name, data outside its
  /// source, or a size that contradicts type and dims.
  ModelFile(std::string name, Metadata metadata, std::vector<TensorInfo> tensors, std::vector<AnyByteSource> sources);

  /// Name of the file (of the first, if it is sharded).
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const Metadata& metadata() const noexcept { return metadata_; }
  /// All tensors in file order.
  [[nodiscard]] std::span<const TensorInfo> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const AnyByteSource> sources() const noexcept { return sources_; }
  /// Sum of the tensors' bytes.
  [[nodiscard]] std::uint64_t tensor_bytes() const noexcept { return tensor_bytes_; }

  /// The tensor of a name, or nullptr.
  [[nodiscard]] const TensorInfo* find(std::string_view name) const noexcept;
  /// The tensor of a name. @throws FormatError if the file has none.
  [[nodiscard]] const TensorInfo& at(std::string_view name) const;

  /// Copies a tensor's data. @throws UsageError if `out` is not tensor.bytes long; IoError if reading fails.
  void read(const TensorInfo& tensor, std::span<std::byte> out) const;
  /// Copies a part of a tensor's data from `offset` within it. @throws UsageError, IoError.
  void read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const;
  /// The data in place, or an empty span if the source is not in memory. It may be unaligned.
  [[nodiscard]] std::span<const std::byte> view(const TensorInfo& tensor) const;
  /// Tells the source that the tensor's data will not be needed again.
  void release(const TensorInfo& tensor) const;
  /// Throws FormatError with the file, the tensor and the offset of its data: for checks made by the caller.
  [[noreturn]] void fail(const TensorInfo& tensor, std::string_view message) const;

 private:
  [[nodiscard]] const AnyByteSource& source_of(const TensorInfo& tensor) const;

  std::string name_;
  Metadata metadata_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::uint32_t> by_name_;  // indices of tensors_, sorted by name
  std::vector<AnyByteSource> sources_;
  std::uint64_t tensor_bytes_ = 0;
};

}  // namespace skald::inline v0
