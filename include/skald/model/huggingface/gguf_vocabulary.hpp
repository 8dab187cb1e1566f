#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <skald/model/metadata.hpp>
#include <skald/text/tokenizer.hpp>

namespace skald::inline v0 {

/// The tokenizer of a folder, from the keys `tokenizer.huggingface.…` that open_huggingface made. @throws as
/// read_tokenizer_json; FormatError if there is no such key.
[[nodiscard]] SKALD_API Tokenizer folder_tokenizer(const Metadata& metadata);

/// The tokenizer that a model has: that of a folder (or of a file converted from one), else the one of the keys
/// `tokenizer.ggml.…`; nothing if there is none. @throws as read_tokenizer_json, vocabulary_from_metadata and Tokenizer.
[[nodiscard]] SKALD_API std::optional<Tokenizer> tokenizer_from_metadata(const Metadata& metadata);

/// Adds `tokenizer.ggml.…` to what open_huggingface read: tokens, their types, merges or scores, the pre-tokenizer's name,
/// ids of special tokens; for engines that do not read `tokenizer.huggingface.json`. `rows` is the number of tokens of the
/// network; those that the tokenizer lacks are written as unused. The form is chosen by the model (byte-level BPE "gpt2", BPE
/// with byte fallback "llama", Unigram "t5", WordPiece "bert"), the pre-tokenizer by comparing what both make of texts.
/// Returns why the result is not complete or gives other tokens for some texts; empty if it is as good as the folder's, or
/// there is no tokenizer. @throws as folder_tokenizer.
SKALD_API std::string add_gguf_vocabulary(Metadata& metadata, std::int64_t rows);

}  // namespace skald::inline v0
