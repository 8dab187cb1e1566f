#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <skald/config.hpp>
#include <skald/text/vocabulary.hpp>

namespace skald::inline v0 {

struct TokenizerFiles;
class Tokenizer;
/// See tokenizer_json.hpp.
[[nodiscard]] SKALD_API Tokenizer read_tokenizer_json(const TokenizerFiles& files);

/// How text becomes tokens.
struct EncodeOptions {
  bool add_special = true;     ///< add the begin and end tokens this vocabulary asks for
  bool parse_special = false;  ///< text that spells control tokens becomes them; leave off for text of others
};

/// How tokens become text.
struct DecodeOptions {
  bool skip_special = false;       ///< leave control and unknown tokens out
  bool strip_space_prefix = true;  ///< drop the space that encoding put before the first word; off to continue a text
  bool clean_up_spaces = false;    ///< remove spaces before punctuation and contractions; not lossless
};

/// Text to tokens and back: byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) with the pre-tokenizers of the
/// GGUF format, SentencePiece BPE (Kudo and Richardson 2018) with byte fallback and unigram models (Kudo 2018),
/// WordPiece (Wu et al. 2016) and the longest-match tokenizer of RWKV.
///
/// Immutable, cheap to copy, and safe to use from many threads. Encoding takes O(n log n) time, O(n) memory and a
/// bounded stack, and accepts any bytes: bytes that are not UTF-8 become byte tokens, or U+FFFD where the vocabulary
/// cannot spell them. Byte-level vocabularies that lack the token of a byte drop that byte, as they were trained to.
class SKALD_API Tokenizer {
 public:
  /// Checks the vocabulary. Throws `UnsupportedError` for a model or pre-tokenizer that skald does not know and
  /// `FormatError`, naming the field, for one that contradicts itself.
  explicit Tokenizer(Vocabulary vocabulary);

  /// Tokens of `text`. Throws `UsageError` only for texts of 2 GiB and more.
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text, EncodeOptions options = {}) const;
  /// Bytes of the tokens, one after the other; not valid UTF-8 where the tokens do not spell it.
  /// Throws `UsageError` for ids outside the vocabulary.
  [[nodiscard]] std::string decode(std::span<const TokenId> tokens, DecodeOptions options = {}) const;

  /// Bytes the token contributes to a text. Special tokens contribute their spelling.
  [[nodiscard]] std::string_view piece(TokenId token) const;
  /// Bytes the token contributes to the beginning of a text: without the space that encoding put there.
  [[nodiscard]] std::string_view first_piece(TokenId token) const;
  /// Whether a text is its tokens' pieces one after the other. Only decoders of `tokenizer.json` that look at several
  /// tokens at once (BPEDecoder, CTC) are not like that; `StreamingDetokenizer` refuses them.
  [[nodiscard]] bool streams() const noexcept;
  /// Text of the token as the vocabulary writes it.
  [[nodiscard]] std::string_view token_text(TokenId token) const;
  [[nodiscard]] TokenType type(TokenId token) const;
  /// The token that the vocabulary writes like this.
  [[nodiscard]] std::optional<TokenId> find(std::string_view token_text) const;
  /// True for the end of a sequence, turn or message, by id or by well-known spelling. False for ids outside.
  [[nodiscard]] bool is_end_of_generation(TokenId token) const noexcept;
  /// True for control tokens. False for ids outside.
  [[nodiscard]] bool is_control(TokenId token) const noexcept;
  /// All tokens that end generation, ascending.
  [[nodiscard]] std::span<const TokenId> end_of_generation() const noexcept;

  /// Number of tokens.
  [[nodiscard]] int size() const noexcept;
  [[nodiscard]] TokenId bos() const noexcept;
  [[nodiscard]] TokenId eos() const noexcept;
  [[nodiscard]] TokenId eot() const noexcept;
  [[nodiscard]] TokenId eom() const noexcept;
  [[nodiscard]] TokenId unk() const noexcept;
  [[nodiscard]] TokenId pad() const noexcept;
  [[nodiscard]] TokenId mask() const noexcept;
  /// Whether `encode` with `add_special` puts `bos()` first.
  [[nodiscard]] bool adds_bos() const noexcept;
  /// Whether `encode` with `add_special` puts `eos()` last.
  [[nodiscard]] bool adds_eos() const noexcept;
  /// Whether encoding puts a space before the first word.
  [[nodiscard]] bool adds_space_prefix() const noexcept;
  /// Whether the family's own detokenizer removes spaces before punctuation (`DecodeOptions::clean_up_spaces`).
  [[nodiscard]] bool cleans_up_spaces() const noexcept;
  /// "gpt2", "llama", "t5", "bert" or "rwkv"; of `tokenizer.json` "BPE", "Unigram", "WordPiece" or "WordLevel".
  [[nodiscard]] std::string_view model() const noexcept;
  /// Name of the pre-tokenizer; empty for all models but "gpt2".
  [[nodiscard]] std::string_view pre_tokenizer() const noexcept;
  /// Special ids and flags as they are in effect; `tokens`, `scores`, `types` and `merges` are left out.
  [[nodiscard]] const Vocabulary& roles() const noexcept;

 private:
  struct Impl;
  friend SKALD_API Tokenizer read_tokenizer_json(const TokenizerFiles& files);
  explicit Tokenizer(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace skald::inline v0
