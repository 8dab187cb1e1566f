#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0::detail {

/// What a pre-tokenizer name stands for besides the splitting.
struct PreTokenizerTraits {
  bool add_bos = false;      ///< default of `Vocabulary::add_bos`
  bool whole_words = false;  ///< a word that is a token is that token, whatever the merges say
  bool clean_up_spaces = true;
};

/// Splits text into the words within which byte pairs merge. Immutable and safe to share between threads.
class PreTokenizer {
 public:
  /// Pre-tokenizer of that name in GGUF files; empty means "default". Throws `UnsupportedError` for other names.
  explicit PreTokenizer(std::string_view name);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;

  [[nodiscard]] const PreTokenizerTraits& traits() const noexcept { return traits_; }

  /// Replaces `ends` by the end offset of every word of `text`, ascending; the last one is `text.size()`.
  /// `text` must be UTF-8 of less than 2 GiB. Throws `OutOfMemoryError` only.
  void split(std::string_view text, std::vector<std::uint32_t>& ends) const;

 private:
  struct Step;
  PreTokenizerTraits traits_;
  std::vector<Step> steps_;
};

}  // namespace skald::inline v0::detail
