#include "text/special_roles.hpp"

#include <algorithm>
#include <initializer_list>
#include <string_view>

namespace skald::inline v0::detail {
namespace {

using Spellings = std::initializer_list<std::string_view>;

void set_type(Vocabulary& vocabulary, TokenId id, TokenType type) {
  vocabulary.types[static_cast<std::size_t>(id)] = type;
}

// Sets an absent id to the first spelling that is a token.
void find_role(Vocabulary& vocabulary, const TokenIndex& index, TokenId& role, Spellings spellings) {
  for (const std::string_view spelling : spellings) {
    if (role >= 0) return;
    role = index.find(spelling);
    // Files often give such a token another type; treating it as text would let plain text end a turn.
    if (role >= 0) set_type(vocabulary, role, TokenType::control);
  }
}

}  // namespace

std::vector<TokenId> resolve_special_roles(Vocabulary& vocabulary, const TokenIndex& index) {
  Vocabulary& v = vocabulary;
  find_role(v, index, v.eot,
            {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
             "_<EOT>", "<｜end▁of▁sentence｜>", "<end_of_utterance>"});
  find_role(v, index, v.eom, {"<|eom_id|>"});
  find_role(
      v, index, v.fim_prefix,
      {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"});
  find_role(v, index, v.fim_suffix,
            {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"});
  find_role(v, index, v.fim_middle,
            {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"});
  find_role(v, index, v.fim_pad, {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>"});
  find_role(v, index, v.fim_repo, {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"});
  find_role(v, index, v.fim_separator, {"<|file_sep|>"});

  std::vector<TokenId> ends = v.extra_eog;
  for (const std::string_view spelling :
       {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
        "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>"}) {
    if (const TokenId id = index.find(spelling); id >= 0) {
      set_type(v, id, TokenType::control);
      ends.push_back(id);
    }
  }
  // The markup of the harmony chat format is meant to be seen.
  for (const std::string_view spelling : {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}) {
    if (const TokenId id = index.find(spelling); id >= 0) set_type(v, id, TokenType::user_defined);
  }
  ends.insert(ends.end(), {v.eos, v.eot, v.eom, v.fim_pad, v.fim_repo, v.fim_separator});
  // In that format <|end|> closes one of several messages of an answer; <|return|> and <|call|> end it.
  const TokenId message_end = index.find("<|end|>");
  if (message_end >= 0 && index.find("<|return|>") >= 0 && index.find("<|call|>") >= 0) {
    std::erase(ends, message_end);
    set_type(v, message_end, TokenType::user_defined);
  }
  std::erase(ends, -1);
  std::ranges::sort(ends);
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

}  // namespace skald::inline v0::detail
