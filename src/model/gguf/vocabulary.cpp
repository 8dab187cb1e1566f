#include <skald/model/gguf/vocabulary.hpp>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace skald::inline v0 {
namespace {

constexpr std::string_view prefix = "tokenizer.ggml.";

std::string key_of(std::string_view field) { return std::string(prefix).append(field); }

void check_length(const Metadata& metadata, const std::string& key, std::size_t length, std::size_t tokens) {
  if (length == tokens) return;
  metadata.fail(key, "found " + std::to_string(length) + " elements, allowed is one for each of the " +
                         std::to_string(tokens) + " tokens");
}

void read_arrays(const Metadata& metadata, Vocabulary& vocabulary) {
  for (const std::string_view text : metadata.get_strings(key_of("tokens"))) vocabulary.tokens.emplace_back(text);
  const std::size_t count = vocabulary.tokens.size();
  if (auto scores = metadata.find_array<float>(key_of("scores"))) {
    check_length(metadata, key_of("scores"), scores->size(), count);
    vocabulary.scores = std::move(*scores);
  }
  if (const auto types = metadata.find_array<std::int32_t>(key_of("token_type"))) {
    check_length(metadata, key_of("token_type"), types->size(), count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::int32_t type = (*types)[i];
      if (type < 0 || type > 6) {
        metadata.fail(key_of("token_type"),
                      "element " + std::to_string(i) + " is " + std::to_string(type) + ", allowed is 0 to 6");
      }
      vocabulary.types.push_back(static_cast<TokenType>(type));
    }
  }
  if (vocabulary.model == "gpt2") {
    for (const std::string_view text : metadata.get_strings(key_of("merges"))) vocabulary.merges.emplace_back(text);
  }
}

void read_ids(const Metadata& metadata, Vocabulary& vocabulary) {
  Vocabulary& v = vocabulary;
  const auto count = static_cast<TokenId>(v.tokens.size());
  if (v.model == "llama" && count > 2) {
    v.unk = 0;
    v.bos = 1;
    v.eos = 2;
  } else if (v.model == "t5" && count > 2) {
    v.pad = 0;
    v.eos = 1;
    v.unk = 2;
  } else if (v.model == "bert" && count > 103) {
    v.pad = 0;
    v.unk = 100;
    v.bos = 101;
    v.sep = 102;
    v.mask = 103;
  }
  // Later names of a role win over earlier ones; "seperator" is how the format spells it.
  const std::initializer_list<std::pair<std::string_view, TokenId*>> roles = {
      {"bos_token_id", &v.bos},
      {"eos_token_id", &v.eos},
      {"eot_token_id", &v.eot},
      {"eom_token_id", &v.eom},
      {"unknown_token_id", &v.unk},
      {"seperator_token_id", &v.sep},
      {"padding_token_id", &v.pad},
      {"mask_token_id", &v.mask},
      {"cls_token_id", &v.cls},
      {"prefix_token_id", &v.fim_prefix},
      {"suffix_token_id", &v.fim_suffix},
      {"middle_token_id", &v.fim_middle},
      {"fim_pre_token_id", &v.fim_prefix},
      {"fim_suf_token_id", &v.fim_suffix},
      {"fim_mid_token_id", &v.fim_middle},
      {"fim_pad_token_id", &v.fim_pad},
      {"fim_rep_token_id", &v.fim_repo},
      {"fim_sep_token_id", &v.fim_separator},
  };
  for (const auto& [field, id] : roles) {
    if (!metadata.contains(key_of(field))) continue;
    if (count == 0) metadata.fail(key_of(field), "there are no tokens");
    *id = static_cast<TokenId>(metadata.get_u64(key_of(field), 0, static_cast<std::uint64_t>(count) - 1));
  }
}

// Writers store the bytes as signed or unsigned numbers.
void read_charsmap(const Metadata& metadata, Vocabulary& vocabulary) {
  const std::string key = key_of("precompiled_charsmap");
  const auto copy = [&](const auto& bytes) {
    vocabulary.precompiled_charsmap.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  if (!metadata.contains(key)) return;
  if (type_name(metadata.find(key)->value).find("i8") != std::string_view::npos) {
    copy(metadata.get_array<std::int8_t>(key));
  } else {
    copy(metadata.get_array<std::uint8_t>(key));
  }
}

std::string lower_case(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return text;
}

// GGUF files do not say which tokens swallow white space; it goes by the name of the model.
void read_stripping(const Metadata& metadata, Vocabulary& vocabulary) {
  const auto contains = [](std::string_view text, std::string_view part) { return text.find(part) != text.npos; };
  if (contains(vocabulary.pre, "jina-v2-de") || contains(vocabulary.pre, "jina-v2-es") ||
      contains(vocabulary.pre, "jina-v2-code")) {
    const auto mask = std::ranges::find(vocabulary.tokens, "<mask>");
    if (mask != vocabulary.tokens.end()) {
      vocabulary.strip_left.push_back(static_cast<TokenId>(mask - vocabulary.tokens.begin()));
    }
    return;
  }
  const std::string* name = metadata.find_string("general.name");
  const std::string lower = name == nullptr ? std::string() : lower_case(*name);
  if (!contains(lower, "phi-3") && !contains(lower, "phi3")) return;
  constexpr std::array<std::string_view, 3> keep = {"<unk>", "<s>", "<|endoftext|>"};
  for (std::size_t i = 0; i < vocabulary.types.size(); ++i) {
    const TokenType type = vocabulary.types[i];
    const bool special = type == TokenType::control || type == TokenType::user_defined || type == TokenType::unknown;
    const std::string& text = vocabulary.tokens[i];
    if ((special && std::ranges::find(keep, text) == keep.end()) || text == "</s>") {
      vocabulary.strip_right.push_back(static_cast<TokenId>(i));
    }
  }
}

}  // namespace

Vocabulary vocabulary_from_metadata(const Metadata& metadata) {
  Vocabulary vocabulary;
  vocabulary.source = metadata.file();
  vocabulary.key_prefix = prefix;
  vocabulary.model = metadata.get_string(key_of("model"));
  if (const std::string* pre = metadata.find_string(key_of("pre"))) vocabulary.pre = *pre;
  // Of models without an implementation nothing more is needed for `Tokenizer` to refuse them by name.
  constexpr std::array<std::string_view, 5> known = {"gpt2", "llama", "t5", "bert", "rwkv"};
  if (std::ranges::find(known, vocabulary.model) == known.end()) return vocabulary;
  read_arrays(metadata, vocabulary);
  read_ids(metadata, vocabulary);
  vocabulary.add_bos = metadata.find_bool(key_of("add_bos_token"));
  vocabulary.add_eos = metadata.find_bool(key_of("add_eos_token"));
  vocabulary.add_space_prefix = metadata.find_bool(key_of("add_space_prefix"));
  vocabulary.remove_extra_whitespaces = metadata.find_bool(key_of("remove_extra_whitespaces"));
  read_charsmap(metadata, vocabulary);
  read_stripping(metadata, vocabulary);
  return vocabulary;
}

std::vector<NamedChatTemplate> chat_templates_from_metadata(const Metadata& metadata) {
  constexpr std::string_view single = "tokenizer.chat_template";
  std::vector<NamedChatTemplate> templates;
  for (const auto& entry : metadata.entries()) {
    const std::string_view key = entry.key;
    if (!key.starts_with(single)) continue;
    if (key == single) {
      templates.push_back({"default", std::string(metadata.get_string(key))});
    } else if (key[single.size()] == '.' && key.size() > single.size() + 1) {
      templates.push_back({std::string(key.substr(single.size() + 1)), std::string(metadata.get_string(key))});
    }
  }
  return templates;
}

}  // namespace skald::inline v0
