#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <skald/model/safetensors/reader.hpp>

namespace skald::inline v0 {

/// Writes a safetensors file: tensors in the order added, the header padded with spaces to 8 bytes.
class SKALD_API SafetensorsWriter {
 public:
  /// Fills `out` with the tensor's bytes from `offset`; called in order, about 1 MiB at a time.
  using Provider = std::function<void(std::uint64_t offset, std::span<std::byte> out)>;

  /// Adds an entry of `__metadata__`. @throws UsageError for a repeated key.
  void set_metadata(std::string key, std::string value);
  /// Adds a tensor; `shape` outermost first. @throws UsageError for a repeated or reserved name or a negative extent.
  void add_tensor(std::string name, SafetensorsType type, std::vector<std::int64_t> shape, Provider provider);
  /// The same with bytes that are copied now. @throws UsageError also if their number is not that of type and shape.
  void add_tensor(std::string name, SafetensorsType type, std::vector<std::int64_t> shape,
                  std::span<const std::byte> bytes);

  /// Bytes of all tensors, `total_size` of an index.
  [[nodiscard]] std::uint64_t data_bytes() const noexcept { return data_bytes_; }
  /// Writes to a new file beside `path` and renames it. @throws IoError; what a provider throws.
  void write_file(const std::string& path) const;
  [[nodiscard]] std::vector<std::byte> to_bytes() const;

 private:
  struct Pending {
    std::string name;
    SafetensorsType type;
    std::vector<std::int64_t> shape;
    std::uint64_t offset;
    std::uint64_t bytes;
    Provider provider;
  };
  void write(const std::function<void(std::span<const std::byte>)>& sink) const;

  std::vector<std::pair<std::string, std::string>> metadata_;
  std::vector<Pending> tensors_;
  std::set<std::string, std::less<>> names_;
  std::uint64_t data_bytes_ = 0;
};

}  // namespace skald::inline v0
