#include <skald/text/tokenizer_json.hpp>

#include <algorithm>
#include <utility>

#include "text/json_depth.hpp"
#include "text/json_node.hpp"
#include "text/json_tokenizer.hpp"
#include "text/tokenizer_impl.hpp"

namespace skald::inline v0 {
namespace detail {

nlohmann::json parse_json_document(std::string_view text, const std::string& file) {
  const auto refuse = [&](const std::string& why, std::size_t offset) {
    throw FormatError("text.tokenizer_json", why, {.file = file, .offset = offset});
  };
  if (const auto at = find_too_deep(text))
    refuse("nests deeper than the limit of " + std::to_string(deepest_json), *at);
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    refuse("is not valid JSON", error.byte);
  } catch (const nlohmann::json::exception&) {
    refuse("has a number out of range", 0);
  }
  return {};
}

}  // namespace detail

namespace {

using detail::JsonNode;

// A token is named by its text or by an object with the text.
std::string token_text(const JsonNode& root, const char* key) {
  const auto node = root.find(key);
  if (!node) return {};
  return node->is_object() ? node->at("content").string() : node->string();
}

void read_chat_templates(const JsonNode& node, TokenizerConfig& config) {
  if (node.is_string()) {
    config.chat_templates.push_back({"default", node.string()});
    return;
  }
  for (std::size_t i = 0; i < node.array_size(); ++i) {
    const JsonNode entry = node.at(i);
    config.chat_templates.push_back({entry.at("name").string(), entry.at("template").string()});
  }
}

Vocabulary make_vocabulary(const detail::JsonTokenizer& json, const TokenizerConfig& config,
                           const TokenizerFiles& files) {
  Vocabulary v;
  v.source = files.source;
  v.key_prefix = "$.";
  v.model = json.model().name();
  v.tokens = json.texts();
  v.types = json.types();
  const detail::TokenIndex index(v.tokens, [](TokenId, TokenId) {});
  v.bos = index.find(config.bos_token);
  v.eos = index.find(config.eos_token);
  v.unk = index.find(config.unk_token);
  v.pad = index.find(config.pad_token);
  v.sep = index.find(config.sep_token);
  v.cls = index.find(config.cls_token);
  v.mask = index.find(config.mask_token);
  if (v.bos < 0) v.bos = files.bos_token_id.value_or(v.cls);
  if (v.eos < 0) v.eos = files.eos_token_ids.empty() ? v.sep : files.eos_token_ids.front();
  if (v.unk < 0) v.unk = index.find(json.model().unknown());
  v.extra_eog = files.eos_token_ids;
  const auto contains = [](const std::vector<TokenId>& ids, TokenId id) {
    return id >= 0 && std::ranges::find(ids, id) != ids.end();
  };
  v.add_bos = contains(json.prefix(), v.bos);
  v.add_eos = contains(json.suffix(), v.eos);
  return v;
}

}  // namespace

const std::string* TokenizerConfig::find_chat_template(std::string_view name) const noexcept {
  const auto found = std::ranges::find(chat_templates, name, &NamedChatTemplate::name);
  return found == chat_templates.end() ? nullptr : &found->source;
}

TokenizerConfig read_tokenizer_config(std::string_view json, std::string_view source) {
  const std::string file(source);
  const nlohmann::json document = detail::parse_json_document(json, file);
  const JsonNode root(document, "$", file);
  TokenizerConfig config;
  config.bos_token = token_text(root, "bos_token");
  config.eos_token = token_text(root, "eos_token");
  config.unk_token = token_text(root, "unk_token");
  config.pad_token = token_text(root, "pad_token");
  config.sep_token = token_text(root, "sep_token");
  config.cls_token = token_text(root, "cls_token");
  config.mask_token = token_text(root, "mask_token");
  const auto flag = [&](const char* key) -> std::optional<bool> {
    const auto node = root.find(key);
    return node ? std::optional(node->boolean()) : std::nullopt;
  };
  config.add_bos_token = flag("add_bos_token");
  config.add_eos_token = flag("add_eos_token");
  config.clean_up_tokenization_spaces = flag("clean_up_tokenization_spaces");
  config.tokenizer_class = root.string_or("tokenizer_class", "");
  if (const auto node = root.find("chat_template")) read_chat_templates(*node, config);
  return config;
}

Tokenizer read_tokenizer_json(const TokenizerFiles& files) {
  TokenizerConfig config;
  if (!files.tokenizer_config_json.empty()) {
    config = read_tokenizer_config(files.tokenizer_config_json, "tokenizer_config.json");
  }
  std::shared_ptr<const detail::JsonTokenizer> json;
  {
    const nlohmann::json document = detail::parse_json_document(files.tokenizer_json, files.source);
    json = std::make_shared<const detail::JsonTokenizer>(JsonNode(document, "$", files.source));
  }
  Vocabulary vocabulary = make_vocabulary(*json, config, files);
  return Tokenizer(std::make_shared<const Tokenizer::Impl>(std::move(vocabulary), std::move(json),
                                                           config.clean_up_tokenization_spaces.value_or(false)));
}

}  // namespace skald::inline v0
