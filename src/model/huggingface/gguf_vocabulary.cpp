#include <skald/model/huggingface/gguf_vocabulary.hpp>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include <fmt/format.h>

#include <skald/core/error.hpp>
#include <skald/model/gguf/vocabulary.hpp>
#include <skald/text/tokenizer_json.hpp>

#include "model/json.hpp"

namespace skald::inline v0 {

namespace {

constexpr std::string_view space = "\xe2\x96\x81";  // how SentencePiece writes it
constexpr std::string_view json_key = "tokenizer.huggingface.json";

// What tells pre-tokenizers apart: contractions, cases, runs of spaces, digits, punctuation, scripts, line ends.
constexpr std::array<std::string_view, 9> probes = {
    "Hello, world! It's 2024; we'll see 1234567 things, don't we?",
    "  two  spaces   three\n\nlines\r\n\ttabs \n  end  ",
    "HELLO'S You'LL I'M camelCase ALLCaps snake_case kebab-case",
    "price: $1,234.56 (50% off) [x] {y} <z> a/b\\c #tag @at ~tilde `code`",
    "na\xc3\xafve caf\xc3\xa9 \xc3\x9c" "ber \xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82 \xce\xba\xce\xb1\xce\xbb\xce\xb7",
    "\xe4\xbd\xa0\xe5\xa5\xbd\xe4\xb8\x96\xe7\x95\x8c 12\xe3\x80\x82\xe3\x81\x93\xe3\x82\x93\xe3\x81\xab\xe3\x81\xa1\xe3\x81\xaf 345",
    "\xf0\x9f\x98\x80 emoji \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb...!!!??? --- ===\n#include <x>\n",
    "for (int i = 0; i < 100; ++i) { sum += a[i] * 3.14e-10; }  // comment\n",
    "the quick brown fox jumps over the lazy dog and they were happy 7 77 777 7777",
};

// One name of each way of splitting, those of the models with the most users first.
constexpr std::array<std::string_view, 18> pre_tokenizers = {
    "gpt-2",   "qwen2",    "dbrx",       "smollm",     "falcon",   "deepseek-llm", "deepseek-coder", "deepseek-v3", "gpt-4o",
    "bloom",   "viking",   "superbpe",   "bailingmoe", "seed-coder", "kimi-k2",    "chameleon",      "llama-bpe",   "tekken"};

/// Steps of a normalizer, pre-tokenizer or the like, those of sequences one by one.
void each_step(const json::Value& node, const auto& visit) {
  visit(node);
  for (const char* list : {"normalizers", "pretokenizers", "processors"})
    if (const json::Value* steps = node.find(list); steps && steps->array())
      for (const json::Value& step : *steps->array()) each_step(step, visit);
}

const json::Value* find_step(const json::Value& root, std::string_view part, std::string_view type) {
  const json::Value* found = nullptr;
  if (const json::Value* node = root.find(part))
    each_step(*node, [&](const json::Value& step) {
      const json::Value* name = step.find("type");
      if (!found && name && name->text() && *name->text() == type) found = &step;
    });
  return found;
}

std::vector<std::uint8_t> from_base64(std::string_view text) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<std::uint8_t> bytes;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const auto value = digits.find(c);
    if (value == std::string_view::npos) break;  // padding; the tokenizer has refused all else
    bits = (bits << 6 | static_cast<std::uint32_t>(value)) & 0xff'ffffu;
    if ((count += 6) >= 8) bytes.push_back(static_cast<std::uint8_t>(bits >> (count -= 8)));
  }
  return bytes;
}

/// The name whose steps look like those of tokenizer.json. With a small vocabulary several ways of splitting give the same
/// tokens, so that comparing tokens alone cannot decide.
std::string_view likely_pre_tokenizer(const json::Value& root, bool whole_words) {
  std::string patterns;
  if (const json::Value* node = root.find("pre_tokenizer"))
    each_step(*node, [&](const json::Value& step) {
      const json::Value* pattern = step.find("pattern");
      const json::Value* regex = pattern ? pattern->find("Regex") : nullptr;
      if (regex && regex->text()) patterns += *regex->text() + "\n";
    });
  const auto has = [&](std::string_view part) { return patterns.find(part) != std::string::npos; };
  const auto step = [&](std::string_view type) { return find_step(root, "pre_tokenizer", type) != nullptr; };
  if (step("Punctuation") && step("Digits")) return "falcon";
  if (step("Digits")) return "smollm";
  if (patterns.empty()) return "gpt-2";
  if (has(R"(\s?\p{P}+)")) return "deepseek-coder";
  if (has(R"([\r\n])" "\n")) return "deepseek-llm";
  if (patterns.starts_with(R"(\p{N}{1,3})" "\n")) return "deepseek-v3";
  if (has(R"(\p{Han})")) return "kimi-k2";
  if (has(R"(\p{Lu})")) return has(R"(\p{N}{1,3})") ? "gpt-4o" : "tekken";
  if (has(R"( ?[^(\s|)")) return has(R"(\p{N})") ? "viking" : "bloom";
  if (has(R"(\p{N}{1,3})")) return whole_words ? "llama-bpe" : "dbrx";
  if (has("'re") && has(R"(|\p{N}|)")) return "qwen2";
  return "gpt-2";
}

class VocabularyWriter {
 public:
  VocabularyWriter(Metadata& metadata, std::int64_t rows)
      : metadata_(metadata),
        rows_(rows),
        tokenizer_(folder_tokenizer(metadata)),
        root_(json::parse(metadata.get_string(json_key), metadata.file())) {}

  std::string run() {
    const json::Value* model = root_.find("model");
    if (!model) return "tokenizer.json has no model";
    const bool byte_level = find_step(root_, "pre_tokenizer", "ByteLevel") || find_step(root_, "normalizer", "ByteLevel");
    const json::Value* fallback = model->find("byte_fallback");
    const bool bytes = fallback && fallback->boolean().value_or(false);
    const std::string kind(tokenizer_.model());
    if (kind == "BPE" && byte_level) vocabulary_.model = "gpt2";
    else if (kind == "BPE" && bytes) vocabulary_.model = "llama";
    else if (kind == "Unigram") vocabulary_.model = "t5";
    else if (kind == "WordPiece") vocabulary_.model = "bert";
    else return fmt::format("GGUF files have no form for a {} tokenizer of this kind", kind);
    if (tokenizer_.size() > rows_)
      return fmt::format("the tokenizer has {} tokens, the network {}", tokenizer_.size(), rows_);
    tokens();
    if (vocabulary_.model == "gpt2") merges(*model);
    if (vocabulary_.model == "llama") ranks(*model);
    if (vocabulary_.model == "t5") unigram(*model);
    roles();
    const std::string difference = choose();
    write();
    return difference;
  }

 private:
  void tokens() {
    std::set<std::string, std::less<>> seen;
    for (std::int64_t i = 0; i < rows_; ++i) {
      const auto id = static_cast<TokenId>(i);
      const bool there = id < tokenizer_.size() && !tokenizer_.token_text(id).empty();
      std::string text = there ? std::string(tokenizer_.token_text(id)) : fmt::format("[PAD{}]", i);
      TokenType type = there ? tokenizer_.type(id) : TokenType::unused;
      // WordPiece of GGUF files marks beginnings of words instead of what continues them.
      if (vocabulary_.model == "bert" && type == TokenType::normal) {
        if (text.starts_with("##") && text.size() > 2) text.erase(0, 2);
        else text.insert(0, space);
      }
      // Tokens that are found in the text itself, before its spaces are marked.
      if (vocabulary_.model == "llama" && type == TokenType::user_defined)
        for (auto at = text.find(space); at != std::string::npos; at = text.find(space)) text.replace(at, space.size(), " ");
      while (!seen.insert(text).second) {  // a name that is taken
        text += "_";
        type = TokenType::unused;
      }
      vocabulary_.tokens.push_back(std::move(text));
      vocabulary_.types.push_back(type);
    }
  }

  /// The two parts of every merge, in order.
  static void each_merge(const json::Value& model, const auto& visit) {
    const json::Value* list = model.find("merges");
    if (!list || !list->array()) return;
    for (const json::Value& merge : *list->array()) {
      if (const auto* pair = merge.array(); pair && pair->size() == 2 && (*pair)[0].text() && (*pair)[1].text())
        visit(*(*pair)[0].text(), *(*pair)[1].text());
      else if (const auto* text = merge.text())
        if (const auto space = text->find(' ', 1); space != std::string::npos)
          visit(text->substr(0, space), text->substr(space + 1));
    }
  }
  void merges(const json::Value& model) {
    each_merge(model, [&](const std::string& left, const std::string& right) {
      vocabulary_.merges.push_back(left + " " + right);
    });
  }
  /// SentencePiece merges by the score of the result: minus the rank of the first merge that makes it.
  void ranks(const json::Value& model) {
    std::map<std::string, float, std::less<>> rank;
    each_merge(model, [&](const std::string& left, const std::string& right) {
      rank.emplace(left + right, static_cast<float>(rank.size()));
    });
    const auto last = static_cast<float>(rank.size());
    for (std::size_t i = 0; i < vocabulary_.tokens.size(); ++i) {
      const auto at = rank.find(vocabulary_.tokens[i]);
      const bool text = vocabulary_.types[i] == TokenType::normal;
      vocabulary_.scores.push_back(at != rank.end() ? -at->second : text ? -last : 0.0F);
    }
    spaces();
  }
  void unigram(const json::Value& model) {
    vocabulary_.scores.assign(vocabulary_.tokens.size(), 0.0F);
    if (const json::Value* list = model.find("vocab"); list && list->array())
      for (std::size_t i = 0; i < std::min(list->array()->size(), vocabulary_.scores.size()); ++i) {
        const auto* entry = (*list->array())[i].array();
        const auto score = entry && entry->size() == 2 ? (*entry)[1].number() : std::nullopt;
        vocabulary_.scores[i] = static_cast<float>(score.value_or(0.0));
      }
    if (const json::Value* step = find_step(root_, "normalizer", "Precompiled"))
      if (const json::Value* map = step->find("precompiled_charsmap"); map && map->text()) charsmap_ = from_base64(*map->text());
    vocabulary_.precompiled_charsmap.assign(charsmap_.begin(), charsmap_.end());
    vocabulary_.remove_extra_whitespaces =
        find_step(root_, "normalizer", "Replace") || find_step(root_, "pre_tokenizer", "WhitespaceSplit");
    spaces();
  }
  void spaces() {
    const json::Value* step = find_step(root_, "pre_tokenizer", "Metaspace");
    if (!step) step = find_step(root_, "normalizer", "Metaspace");
    bool prepends = find_step(root_, "normalizer", "Prepend") != nullptr;
    if (step) {
      const json::Value* scheme = step->find("prepend_scheme");
      const json::Value* older = step->find("add_prefix_space");
      prepends = scheme && scheme->text() ? *scheme->text() != "never" : !older || older->boolean().value_or(true);
    }
    vocabulary_.add_space_prefix = prepends;
  }

  void roles() {
    const Vocabulary& from = tokenizer_.roles();
    vocabulary_.bos = from.bos;
    vocabulary_.eos = from.eos;
    vocabulary_.eot = from.eot;
    vocabulary_.unk = from.unk;
    vocabulary_.sep = from.sep;
    vocabulary_.pad = from.pad;
    vocabulary_.mask = from.mask;
    vocabulary_.cls = from.cls;
    vocabulary_.add_bos = tokenizer_.adds_bos();
    vocabulary_.add_eos = tokenizer_.adds_eos();
    vocabulary_.source = metadata_.file();
  }

  /// Texts for which a vocabulary gives other tokens than the folder's tokenizer.
  [[nodiscard]] std::size_t differences(const Vocabulary& vocabulary) const {
    const Tokenizer other(vocabulary);
    return static_cast<std::size_t>(std::ranges::count_if(probes, [&](std::string_view probe) {
      return other.encode(probe) != tokenizer_.encode(probe) || other.encode("") != tokenizer_.encode("");
    }));
  }

  std::string choose() {
    std::size_t least = probes.size() + 1;
    if (vocabulary_.model != "gpt2") {
      least = differences(vocabulary_);
    } else {
      const json::Value* whole = root_.find("model")->find("ignore_merges");
      std::vector<std::string_view> names(pre_tokenizers.begin(), pre_tokenizers.end());
      names.insert(names.begin(), likely_pre_tokenizer(root_, whole && whole->boolean().value_or(false)));
      std::string best;
      for (const std::string_view name : names) {
        vocabulary_.pre = name;
        const std::size_t count = differences(vocabulary_);
        if (count >= least) continue;
        least = count;
        best = name;
        if (least == 0) break;
      }
      vocabulary_.pre = best;
    }
    if (least == 0) return {};
    return fmt::format("as '{}'{} it gives other tokens than tokenizer.json for {} of {} texts", vocabulary_.model,
                       vocabulary_.pre.empty() ? "" : " with pre-tokenizer '" + vocabulary_.pre + "'", least, probes.size());
  }

  void write() {
    const auto set = [&](std::string_view name, MetadataValue value) {
      metadata_.set(fmt::format("tokenizer.ggml.{}", name), std::move(value));
    };
    set("model", vocabulary_.model);
    if (vocabulary_.model == "gpt2") set("pre", vocabulary_.pre);
    else set("pre", std::string("default"));
    set("tokens", MetadataArray{StringArray(vocabulary_.tokens)});
    std::vector<std::int32_t> types;
    for (const TokenType type : vocabulary_.types) types.push_back(static_cast<std::int32_t>(type));
    set("token_type", MetadataArray{std::move(types)});
    if (!vocabulary_.merges.empty()) set("merges", MetadataArray{StringArray(vocabulary_.merges)});
    if (!vocabulary_.scores.empty()) set("scores", MetadataArray{vocabulary_.scores});
    if (!charsmap_.empty()) set("precompiled_charsmap", MetadataArray{charsmap_});
    for (const auto& [name, id] :
         {std::pair{"bos", vocabulary_.bos}, {"eos", vocabulary_.eos}, {"eot", vocabulary_.eot},
          {"unknown", vocabulary_.unk}, {"seperator", vocabulary_.sep}, {"padding", vocabulary_.pad},
          {"mask", vocabulary_.mask}, {"cls", vocabulary_.cls}})
      if (id >= 0) set(fmt::format("{}_token_id", name), static_cast<std::uint32_t>(id));
    set("add_bos_token", *vocabulary_.add_bos);
    set("add_eos_token", *vocabulary_.add_eos);
    if (vocabulary_.add_space_prefix) set("add_space_prefix", *vocabulary_.add_space_prefix);
    if (vocabulary_.remove_extra_whitespaces) set("remove_extra_whitespaces", *vocabulary_.remove_extra_whitespaces);
    if (vocabulary_.model == "bert") set("token_type_count", std::uint32_t{2});
  }

  Metadata& metadata_;
  std::int64_t rows_;
  Tokenizer tokenizer_;
  json::Value root_;
  Vocabulary vocabulary_;
  std::vector<std::uint8_t> charsmap_;
};

}  // namespace

Tokenizer folder_tokenizer(const Metadata& metadata) {
  TokenizerFiles files;
  files.tokenizer_json = metadata.get_string(json_key);
  files.source = fmt::format("{}, {}", metadata.file(), json_key);
  if (const auto* config = metadata.find_string("tokenizer.huggingface.config_json"))
    files.tokenizer_config_json = *config;
  if (const auto ends = metadata.find_array<std::int32_t>("tokenizer.ggml.eos_token_ids"))
    files.eos_token_ids.assign(ends->begin(), ends->end());
  else if (const auto end = metadata.find_u32("tokenizer.ggml.eos_token_id", 0, INT32_MAX))
    files.eos_token_ids.push_back(static_cast<TokenId>(*end));
  if (const auto begin = metadata.find_u32("tokenizer.ggml.bos_token_id", 0, INT32_MAX))
    files.bos_token_id = static_cast<TokenId>(*begin);
  return read_tokenizer_json(files);
}

std::optional<Tokenizer> tokenizer_from_metadata(const Metadata& metadata) {
  // What a converted folder's file says in GGUF's own form is for other engines: this is exact.
  if (metadata.contains(json_key)) return folder_tokenizer(metadata);
  if (!metadata.contains("tokenizer.ggml.model")) return {};
  const std::string_view kind = metadata.get_string("tokenizer.ggml.model");
  if (kind == "no_vocab" || kind == "none") return {};  // how GGUF says that there is none
  return Tokenizer(vocabulary_from_metadata(metadata));
}

std::string add_gguf_vocabulary(Metadata& metadata, std::int64_t rows) {
  if (!metadata.contains(json_key) || metadata.contains("tokenizer.ggml.tokens")) return {};
  return VocabularyWriter(metadata, rows).run();
}

}  // namespace skald::inline v0
