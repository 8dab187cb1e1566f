#pragma once

#include <vector>

#include <skald/config.hpp>
#include <skald/model/metadata.hpp>
#include <skald/text/tokenizer_json.hpp>
#include <skald/text/vocabulary.hpp>

namespace skald::inline v0 {

/// The vocabulary that the `tokenizer.ggml.…` keys of a GGUF file describe, with the defaults that engines for such
/// files agree on: SentencePiece files without ids begin with <unk>, <s>, </s>; phi-3 files swallow the white space
/// after special tokens. `Tokenizer` checks the contents.
/// @throws FormatError, with file, key and offset, for missing keys, wrong element types, arrays that disagree in
/// length and ids outside the vocabulary.
[[nodiscard]] SKALD_API Vocabulary vocabulary_from_metadata(const Metadata& metadata);

/// The chat templates of a GGUF file: `tokenizer.chat_template`, under the name "default", and
/// `tokenizer.chat_template.NAME`, under theirs, in the order of the file. Give one of them to `ChatTemplate`.
/// @throws FormatError, with file and key, for keys that do not hold text.
[[nodiscard]] SKALD_API std::vector<NamedChatTemplate> chat_templates_from_metadata(const Metadata& metadata);

}  // namespace skald::inline v0
