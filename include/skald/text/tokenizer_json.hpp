#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <skald/config.hpp>
#include <skald/text/tokenizer.hpp>

namespace skald::inline v0 {

/// A chat template and the name it goes by: "default", "tool_use", "rag", … whatever the model's makers chose.
struct NamedChatTemplate {
  std::string name;
  std::string source;
};

/// What `tokenizer_config.json` says. Everything may be absent.
struct TokenizerConfig {
  std::string bos_token{}, eos_token{}, unk_token{}, pad_token{}, sep_token{}, cls_token{}, mask_token{};
  std::optional<bool> add_bos_token{}, add_eos_token{};
  std::optional<bool> clean_up_tokenization_spaces{};
  std::string tokenizer_class{};
  /// A single `chat_template` has the name "default".
  std::vector<NamedChatTemplate> chat_templates{};

  /// Source of the template of that name; null if there is none.
  [[nodiscard]] SKALD_API const std::string* find_chat_template(std::string_view name = "default") const noexcept;
};

/// Reads `tokenizer_config.json`. `source` names the file in error messages. Unknown members are ignored.
/// @throws FormatError, with the JSON path, for malformed JSON and members of the wrong type.
[[nodiscard]] SKALD_API TokenizerConfig read_tokenizer_config(std::string_view json, std::string_view source = {});

/// The files of a Hugging Face directory that make a tokenizer.
struct TokenizerFiles {
  std::string_view tokenizer_json;           ///< text of `tokenizer.json`
  std::string_view tokenizer_config_json{};  ///< text of `tokenizer_config.json`; empty if there is none
  /// Further tokens that end generation (`eos_token_id` of `generation_config.json` or `config.json`), whose first is
  /// the end of a sequence where `tokenizer_config.json` names none.
  std::vector<TokenId> eos_token_ids{};
  /// Beginning of a sequence where `tokenizer_config.json` names none.
  std::optional<TokenId> bos_token_id{};
  std::string source = "tokenizer.json";  ///< name of the file in error messages
};

/// The tokenizer that `tokenizer.json` describes. `encode` and `decode` give what the `tokenizers` library of Hugging
/// Face gives for texts in UTF-8; bytes that are not UTF-8 count as U+FFFD.
///
/// `EncodeOptions::add_special` runs the post-processor; `parse_special` lets text that spells special tokens become
/// them (the library's default; its `encode_special_tokens` is the opposite). Truncation and padding of the file are
/// not applied.
///
/// Models: BPE, Unigram, WordPiece, WordLevel. Every kind of normalizer, pre-tokenizer, post-processor and decoder that
/// is not known is refused by name.
/// @throws FormatError, with the JSON path, for malformed JSON, wrong types and contradictions; UnsupportedError for
/// what is not implemented.
[[nodiscard]] SKALD_API Tokenizer read_tokenizer_json(const TokenizerFiles& files);

}  // namespace skald::inline v0
