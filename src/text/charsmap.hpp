#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0::detail {

/// The precompiled normalization table of SentencePiece models: a double array (Kanda 2018, "Space- and Time-Efficient
/// String Dictionaries") of byte sequences, and what each becomes. Layout: 32-bit size of the array in bytes, the
/// array, zero-terminated replacements.
class Charsmap {
 public:
  Charsmap() = default;
  /// Throws `FormatError` if the sizes contradict each other or the last replacement has no end. Offsets inside the
  /// array are checked when it is walked: one that leads outside matches nothing.
  explicit Charsmap(std::string_view bytes);

  [[nodiscard]] bool empty() const noexcept { return units_.empty(); }

  struct Match {
    std::size_t size;  ///< bytes of the text
    std::string_view replacement;
  };
  /// The longest sequence of the table that `text` begins with.
  [[nodiscard]] std::optional<Match> longest(std::string_view text) const noexcept;
  /// The shortest one.
  [[nodiscard]] std::optional<Match> shortest(std::string_view text) const noexcept;

 private:
  template <bool first>
  [[nodiscard]] std::optional<Match> find(std::string_view text) const noexcept;
  std::vector<std::uint32_t> units_;
  std::string replacements_;
};

}  // namespace skald::inline v0::detail
