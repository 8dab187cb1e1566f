#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <skald/config.hpp>
#include <skald/state/archive.hpp>

namespace skald::inline v0 {

/// How often each symbol comes, in parts of 4096: what the entropy coder needs to know. Symbols are integers around
/// zero; those that the table does not list are written out in full after an escape, so that every integer can be
/// coded.
class SKALD_API SymbolTable {
 public:
  static constexpr int precision = 12;
  static constexpr std::uint32_t total = 1U << precision;
  static constexpr std::size_t most_symbols = 1024;

  /// The table of a single symbol, zero.
  SymbolTable();
  /// From counts of the symbols `first`, `first` + 1, ...; runs of more than most_symbols keep those around the middle.
  /// `others` counts symbols that are known not to be listed.
  SymbolTable(std::int32_t first, std::span<const std::uint64_t> counts, std::uint64_t others = 0);

  void save(ArchiveWriter& out) const;
  /// @throws FormatError unless the frequencies add up to 4096.
  static SymbolTable load(ArchiveReader& in);

  struct Entry {
    std::uint16_t begin = 0;
    std::uint16_t frequency = 0;
  };
  /// The entry of a symbol; that of the escape if the symbol is not listed.
  [[nodiscard]] Entry entry(std::int32_t symbol, bool& escape) const noexcept;
  /// Makes ready for reading: a table of 32 KiB. Not done by `load`, which must not take more memory than the data
  /// does.
  void prepare();
  /// What a number below 4096 stands for.
  struct Slot {
    std::int16_t symbol = 0;
    std::uint16_t frequency = 0;
    std::uint16_t offset = 0;  ///< of the number within the symbol's range
    std::uint16_t escape = 0;
  };
  /// 4096 of them, or none before `prepare`.
  [[nodiscard]] std::span<const Slot> slots() const noexcept { return slots_; }

 private:
  void set_begins();
  std::int32_t first_ = 0;
  std::vector<std::uint16_t> frequencies_;  // of the symbols from first_ on, then of the escape
  std::vector<std::uint16_t> begins_;
  std::vector<Slot> slots_;
};

/// Symbols that share a table.
struct SymbolRun {
  const SymbolTable* table = nullptr;
  std::span<const std::int32_t> symbols{};
};

/// Codes runs of symbols by range asymmetric numeral systems (Duda 2013, arXiv 1311.2540) in four interleaved states
/// with words of 16 bits. Near the entropy under the tables; lossless for every integer.
[[nodiscard]] SKALD_API std::vector<std::byte> encode_symbols(std::span<const SymbolRun> runs);

/// Reads what encode_symbols wrote, run by run, with the same tables, which must be prepared.
class SKALD_API SymbolReader {
 public:
  /// @throws FormatError if the stream is shorter than it says.
  explicit SymbolReader(ArchiveReader& in);
  /// The next run. Returns false when the stream has ended too early; what `out` holds is then unspecified.
  [[nodiscard]] bool read(const SymbolTable& table, std::span<std::int32_t> out) noexcept;
  /// True if all of the stream was used and its states came back to where the encoder began.
  [[nodiscard]] bool complete() const noexcept;

 private:
  std::array<std::uint32_t, 4> states_{};
  std::span<const std::byte> words_;
  std::span<const std::byte> escapes_;
  std::size_t word_ = 0;
  std::size_t escape_ = 0;
};

}  // namespace skald::inline v0
