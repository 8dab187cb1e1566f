#pragma once

#include <string>
#include <string_view>

#include <skald/config.hpp>
#include <skald/text/tokenizer.hpp>

namespace skald::inline v0 {

/// `bytes` with every part that is not UTF-8 replaced by U+FFFD, one for each maximal prefix of a well-formed
/// sequence (Unicode 15.0, section 3.9, "U+FFFD substitution of maximal subparts").
[[nodiscard]] SKALD_API std::string replace_invalid_utf8(std::string_view bytes);

/// Turns tokens into text one by one. What `push` returns is always whole code points: bytes of a code point that
/// is not complete yet are held back. All pushes and `finish` together give
/// `replace_invalid_utf8(tokenizer.decode(tokens, options))`.
class SKALD_API StreamingDetokenizer {
 public:
  /// Throws `UsageError` for `clean_up_spaces` and for tokenizers that do not stream: both need the text as a whole.
  explicit StreamingDetokenizer(Tokenizer tokenizer, DecodeOptions options = {});

  /// The text that this token completes, perhaps empty. Throws `UsageError` for ids outside the vocabulary.
  [[nodiscard]] std::string push(TokenId token);
  /// What was held back, which is then an incomplete code point: U+FFFD, or nothing. Ready for a new text afterwards.
  [[nodiscard]] std::string finish();
  /// Number of bytes held back, at most 3.
  [[nodiscard]] int pending() const noexcept { return static_cast<int>(held_.size()); }

 private:
  Tokenizer tokenizer_;
  DecodeOptions options_;
  std::string held_;
  bool at_start_ = true;
};

}  // namespace skald::inline v0
