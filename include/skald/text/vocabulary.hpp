#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <skald/config.hpp>

namespace skald::inline v0 {

/// Index of a token in its vocabulary; -1 stands for "no such token".
using TokenId = std::int32_t;

/// Kind of a token, numbered as in `tokenizer.ggml.token_type` of GGUF files.
enum class TokenType : std::int8_t {
  undefined = 0,
  normal = 1,        ///< text
  unknown = 2,       ///< stands for what the vocabulary cannot spell
  control = 3,       ///< steers the model (begin, end, roles); never made from plain text
  user_defined = 4,  ///< text that is always one token
  unused = 5,        ///< a placeholder; contributes no text
  byte = 6,          ///< one byte, spelled `<0xHH>`
};

/// Everything a tokenizer needs to know, independent of the file it came from. Plain data: `Tokenizer` checks it.
/// Token texts are as in the file: byte-level vocabularies write bytes as printable characters, SentencePiece
/// vocabularies write spaces as U+2581.
struct Vocabulary {
  /// "gpt2": byte-level BPE; "llama": SentencePiece BPE; "t5": SentencePiece unigram; "bert": WordPiece;
  /// "rwkv": longest match
  std::string model{};
  std::string pre{};                  ///< pre-tokenizer name of GGUF files (byte-level BPE only); empty: "default"
  std::vector<std::string> tokens{};  ///< text of every token; UTF-8, no two equal
  std::vector<float> scores{};        ///< empty, or one per token; greater merges first; logarithms (unigram)
  std::vector<TokenType> types{};     ///< empty (all normal), or one per token
  std::vector<std::string> merges{};  ///< byte-level BPE: "left right", in order of rank

  TokenId bos = -1;   ///< beginning of a sequence
  TokenId eos = -1;   ///< end of a sequence
  TokenId eot = -1;   ///< end of a turn; found by its usual spellings when absent
  TokenId eom = -1;   ///< end of a message that expects a tool's answer; found likewise
  TokenId unk = -1;   ///< unknown
  TokenId sep = -1;   ///< separator
  TokenId pad = -1;   ///< padding
  TokenId mask = -1;  ///< mask of masked and diffusion models
  TokenId cls = -1;   ///< classification
  TokenId fim_prefix = -1;
  TokenId fim_suffix = -1;
  TokenId fim_middle = -1;
  TokenId fim_pad = -1;
  TokenId fim_repo = -1;
  TokenId fim_separator = -1;
  std::vector<TokenId> extra_eog{};    ///< further tokens that end generation
  std::vector<TokenId> strip_left{};   ///< matched in text, these swallow the white space before them
  std::vector<TokenId> strip_right{};  ///< likewise after them

  std::optional<bool> add_bos{};           ///< absent: the family's default
  std::optional<bool> add_eos{};           ///< absent: the family's default
  std::optional<bool> add_space_prefix{};  ///< SentencePiece: a space before text at the start and after special tokens

  std::optional<bool> remove_extra_whitespaces{};  ///< unigram: runs of spaces count as one
  std::string precompiled_charsmap{};              ///< unigram: the normalization table, as bytes

  std::string source{};                        ///< name of the file, for error messages
  std::string key_prefix = "tokenizer.ggml.";  ///< put before the field names in error messages
};

}  // namespace skald::inline v0
