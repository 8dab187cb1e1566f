#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <skald/core/dtype.hpp>
#include <skald/model/metadata.hpp>

namespace skald::inline v0 {

/// Writes GGUF version 3, little-endian. Metadata first, then tensors in the order added.
class SKALD_API GgufWriter {
 public:
  /// Fills `out` with the tensor's bytes from `offset`. Called in order; pieces cover whole rows, about 1 MiB or
  /// one row each, so that a producer may convert row by row.
  using Provider = std::function<void(std::uint64_t offset, std::span<std::byte> out)>;

  /// `alignment` of tensor data: a power of two, 8 to 65536; written as `general.alignment` unless it is 32.
  /// @throws UsageError.
  explicit GgufWriter(std::uint32_t alignment = 32);

  /// Adds or replaces a pair. @throws UsageError for a key that is empty, too long, not UTF-8 or
  /// `general.alignment` (which the constructor sets).
  void set(std::string key, MetadataValue value);
  /// All pairs of `metadata` except `general.alignment`.
  void set_all(const Metadata& metadata);
  /// Adds a tensor; `dims` innermost first. The provider is called while writing.
  /// @throws UsageError for a bad or repeated name, dims that are not 1 to 4 positive numbers, rows that are not
  /// whole blocks.
  void add_tensor(std::string name, DType type, std::vector<std::int64_t> dims, Provider provider);
  /// The same with bytes that are copied now. @throws UsageError if their number is not that of type and dims.
  void add_tensor(std::string name, DType type, std::vector<std::int64_t> dims, std::span<const std::byte> bytes);

  /// Bytes of the whole file.
  [[nodiscard]] std::uint64_t file_bytes() const;
  /// Writes to a new file beside `path` and renames it, so that `path` holds the old or the whole new file.
  /// @throws IoError; what a provider throws.
  void write_file(const std::string& path) const;
  /// The file as bytes in memory.
  [[nodiscard]] std::vector<std::byte> to_bytes() const;

 private:
  using Sink = std::function<void(std::span<const std::byte>)>;
  struct PendingTensor {
    std::string name;
    DType type;
    std::vector<std::int64_t> dims;
    std::uint64_t row_bytes;
    std::uint64_t bytes;
    std::uint64_t offset;  // within the data section
    Provider provider;
  };
  [[nodiscard]] std::vector<std::byte> header() const;
  void write(const Sink& sink) const;

  std::uint32_t alignment_;
  Metadata metadata_;
  std::vector<PendingTensor> tensors_;
  std::set<std::string, std::less<>> names_;
  std::uint64_t data_bytes_ = 0;
};

}  // namespace skald::inline v0
