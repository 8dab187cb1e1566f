#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_node.hpp"

namespace skald::inline v0::detail {

/// Bytes that a step may make of a text of that size; a file whose steps make more is hostile.
[[nodiscard]] constexpr std::size_t most_text(std::size_t original) noexcept {
  return (std::size_t{1} << 24) + 32 * original;
}
/// Throws `FormatError` if `size` is more than `most`.
void check_text_size(std::size_t size, std::size_t most);

/// One normalizer of `tokenizer.json`.
class JsonNormalizer {
 public:
  struct Text {
    std::string text;      ///< valid UTF-8
    bool at_start = true;  ///< begins where the whole text does
    std::size_t most = 0;  ///< bytes that it may grow to
  };
  virtual ~JsonNormalizer() = default;
  virtual void apply(Text& text) const = 0;
};
[[nodiscard]] std::unique_ptr<const JsonNormalizer> read_normalizer(const JsonNode& node);

/// A text cut into words. What pre-tokenizers remove belongs to no word.
struct JsonWords {
  struct Word {
    std::uint32_t begin, end;
    bool at_start;  ///< begins where the whole text does
  };
  std::string text;
  std::vector<Word> words;
  std::size_t most = 0;
};

/// One pre-tokenizer of `tokenizer.json`.
class JsonPreTokenizer {
 public:
  virtual ~JsonPreTokenizer() = default;
  virtual void apply(JsonWords& words) const = 0;
};
[[nodiscard]] std::unique_ptr<const JsonPreTokenizer> read_pre_tokenizer(const JsonNode& node);

}  // namespace skald::inline v0::detail
