#pragma once

// The file of LoadOptions::packed_cache: a header that says for what the weights are good, then the packed weights, each
// aligned to 64 bytes so that it can be used in place.
//
//   "SKPACKED", format version (4 bytes), zero (4), bytes of the header (8), bytes of the file (8), checksum of the header
//   with zero in this place (8); then strings as length (4) and bytes, numbers in 8 bytes but for the layer and counts (4):
//   version of the library, layout, fingerprint of the model (2 numbers), files: count, each its bytes and the time of its
//   last change in ns; weights: count, each role, layer, type, rows, columns, matrices, offset, bytes, checksum; zeros up
//   to a multiple of 64 bytes. All numbers little-endian.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <skald/core/byte_source.hpp>

namespace skald::inline v0 {

/// Which model, library and processor packed weights belong to.
struct PackedIdentity {
  struct File {
    std::uint64_t bytes = 0;
    std::int64_t changed_ns = 0;
    bool operator==(const File&) const = default;
  };
  std::string version{};
  std::string layout{};
  std::array<std::uint64_t, 2> fingerprint{};
  std::vector<File> files{};
};

struct PackedEntry {
  std::string role{};
  std::int32_t layer = -1;
  std::string type{};
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t matrices = 1;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;
};

struct PackedHeader {
  PackedIdentity identity{};
  std::vector<PackedEntry> entries{};
};

inline constexpr std::uint64_t packed_alignment = 64;

/// The files behind a model's sources, or nothing if one is not a file that can be told from a changed one.
[[nodiscard]] std::optional<std::vector<PackedIdentity::File>> stamp_files(std::span<const AnyByteSource> sources);
/// Gives the entries their offsets, one after the other behind the header. @return bytes of the file.
std::uint64_t place_entries(PackedHeader& header);
/// The header's bytes. `file_bytes`: what place_entries gave.
[[nodiscard]] std::vector<std::byte> encode_header(const PackedHeader& header, std::uint64_t file_bytes);
/// Checks the structure, not what it is good for. @throws FormatError, IoError.
[[nodiscard]] PackedHeader read_packed_header(const AnyByteSource& file);
/// What differs between a file's and the wanted identity, in words; empty if nothing does.
[[nodiscard]] std::string identity_difference(const PackedIdentity& found, const PackedIdentity& wanted);
/// What differs but for offset and checksum; empty if nothing does.
[[nodiscard]] std::string entry_difference(const PackedEntry& found, const PackedEntry& wanted);

/// 64-bit checksum of any bytes, at the speed of memory. Finds damage, not forgery.
class PackedChecksum {
 public:
  /// Pieces but the last must be multiples of 64 bytes.
  void add(std::span<const std::byte> bytes) noexcept;
  [[nodiscard]] std::uint64_t value() const noexcept;

 private:
  std::array<std::uint64_t, 8> lanes_{1, 2, 3, 4, 5, 6, 7, 8};
  std::uint64_t length_ = 0;
};

}  // namespace skald::inline v0
