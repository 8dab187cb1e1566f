#include "text/json_tokenizer.hpp"

#include <algorithm>
#include <utility>

#include "text/sentence_piece.hpp"
#include "text/unicode.hpp"
#include "text/utf8.hpp"

namespace skald::inline v0::detail {
namespace {

bool ends_with_word(std::string_view text) noexcept {
  std::size_t at = text.size();
  while (at > 0 && (static_cast<unsigned char>(text[--at]) & 0xc0) == 0x80) {
  }
  return !text.empty() && is_word(decode_point(text.substr(at)).value);
}

bool starts_with_word(std::string_view text) noexcept { return !text.empty() && is_word(decode_point(text).value); }

// Bytes of white space that the text ends with.
std::size_t space_at_end(std::string_view text) noexcept {
  std::size_t end = text.size();
  while (end > 0) {
    std::size_t at = end - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
    if (!is_white_space(decode_point(text.substr(at)).value)) break;
    end = at;
  }
  return text.size() - end;
}

std::size_t space_at_start(std::string_view text) noexcept {
  std::size_t at = 0;
  while (at < text.size() && is_white_space(decode_point(text.substr(at)).value)) {
    at += decode_point(text.substr(at)).size;
  }
  return at;
}

constexpr std::size_t longest_added_token = 16384;

}  // namespace

JsonTokenizer::JsonTokenizer(const JsonNode& root) {
  model_ = read_json_model(root.at("model"), model_texts_, index_);
  texts_ = model_texts_;
  if (const auto node = root.find("normalizer")) normalizer_ = read_normalizer(*node);
  if (const auto node = root.find("pre_tokenizer")) pre_tokenizer_ = read_pre_tokenizer(*node);
  if (const auto node = root.find("decoder")) decoder_ = JsonDecoder(*node);
  if (const auto node = root.find("added_tokens")) read_added_tokens(*node);
  is_special_.resize(texts_.size(), false);
  if (const auto node = root.find("post_processor")) read_post_processor(*node);
  if (texts_.empty()) root.at("model").fail("there are no tokens");
}

void JsonTokenizer::read_added_tokens(const JsonNode& list) {
  const std::int64_t most = most_id(texts_.size() + list.array_size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    const JsonNode node = list.at(i);
    const std::string& content = node.at("content").string();
    if (content.size() > longest_added_token) {
      node.at("content").fail("is longer than " + std::to_string(longest_added_token) + " bytes");
    }
    if (content.empty()) continue;
    Added token;
    token.special = node.boolean_or("special", false);
    token.normalized = node.boolean_or("normalized", !token.special);
    token.left = node.boolean_or("lstrip", false);
    token.right = node.boolean_or("rstrip", false);
    token.word = node.boolean_or("single_word", false);
    // A token that the model knows keeps the model's id.
    token.id = index_.find(content);
    if (token.id < 0) token.id = static_cast<TokenId>(node.at("id").integer(0, most));
    const auto id = static_cast<std::size_t>(token.id);
    if (id >= texts_.size()) texts_.resize(id + 1);
    if (!texts_[id].empty() && texts_[id] != content) {
      node.fail("'" + printable(content, 80) + "' and '" + printable(texts_[id], 80) + "' both have the id " +
                std::to_string(id));
    }
    texts_[id] = content;
    added_.push_back(token);
  }
  std::ranges::stable_sort(added_, [](const Added& a, const Added& b) { return a.special && !b.special; });
  is_special_.assign(texts_.size(), false);
  for (std::size_t i = 0; i < added_.size(); ++i) {
    const Added& token = added_[i];
    const std::string& content = texts_[static_cast<std::size_t>(token.id)];
    if (token.special) is_special_[static_cast<std::size_t>(token.id)] = true;
    // The automaton speaks of places in `added_`.
    if (!token.normalized || !normalizer_) {
      (token.normalized ? normalized_ : plain_).add(content, static_cast<TokenId>(i));
      continue;
    }
    JsonNormalizer::Text text{content, true, most_text(content.size())};
    normalizer_->apply(text);
    if (!text.text.empty()) normalized_.add(text.text, static_cast<TokenId>(i));
  }
  plain_.finish();
  normalized_.finish();
}

void JsonTokenizer::read_template(const JsonNode& node) {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
  bool seen = false;
  const JsonNode items = node.at("single");
  for (std::size_t i = 0; i < items.array_size(); ++i) {
    const JsonNode item = items.at(i);
    if (item.find("Sequence")) {
      if (seen) item.unsupported("the text more than once in its own template");
      seen = true;
      continue;
    }
    const std::string& name = item.at("SpecialToken").at("id").string();
    const JsonNode ids = node.at("special_tokens").at(name.c_str()).at("ids");
    for (std::size_t k = 0; k < ids.array_size(); ++k) {
      const auto id = static_cast<TokenId>(ids.at(k).integer(0, static_cast<std::int64_t>(texts_.size()) - 1));
      (seen ? after : before).push_back(id);
    }
  }
  if (!seen) items.fail("has no place for the text");
  prefix_.insert(prefix_.begin(), before.begin(), before.end());
  suffix_.insert(suffix_.end(), after.begin(), after.end());
}

void JsonTokenizer::read_post_processor(const JsonNode& node) {
  const std::string& type = node.at("type").string();
  const auto id_of = [&](const char* key) {
    const JsonNode pair = node.at(key);
    return static_cast<TokenId>(pair.at(1).integer(0, static_cast<std::int64_t>(texts_.size()) - 1));
  };
  if (type == "TemplateProcessing") {
    read_template(node);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    prefix_.insert(prefix_.begin(), id_of("cls"));
    suffix_.push_back(id_of("sep"));
  } else if (type == "Sequence") {
    const JsonNode list = node.at("processors");
    for (std::size_t i = 0; i < list.array_size(); ++i) read_post_processor(list.at(i));
  } else if (type != "ByteLevel") {  // which changes offsets only
    node.unsupported("post-processor '" + printable(type, 80) +
                     "' is not implemented; known are TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel "
                     "and Sequence");
  }
}

// Cuts the added tokens out of a text.
void JsonTokenizer::cut(std::string_view text, const SpecialTokens& tokens, bool special,
                        std::vector<Part>& parts) const {
  std::vector<SpecialTokens::Match> matches;
  tokens.find_leftmost(text, matches);
  std::size_t last = 0;
  for (const SpecialTokens::Match& match : matches) {
    const Added& token = added_[static_cast<std::size_t>(match.token)];
    if (token.special && !special) continue;
    std::size_t begin = match.begin;
    std::size_t end = begin + match.size;
    if (token.word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) continue;
    if (token.left) begin = std::max(begin - space_at_end(text.substr(0, begin)), last);
    if (token.right) end += space_at_start(text.substr(end));
    // A token that lies in the space another one has swallowed counts all the same.
    if (begin > last) parts.push_back({text.substr(last, begin - last), -1});
    parts.push_back({text.substr(begin, end - begin), token.id});
    last = end;
  }
  if (last < text.size()) parts.push_back({text.substr(last), -1});
}

void JsonTokenizer::encode_part(std::string_view text, bool at_start, std::size_t most, const std::vector<bool>* skip,
                                std::vector<TokenId>& tokens, JsonModel::Scratch& scratch, JsonWords& words) const {
  words.text = text;
  words.words.assign(1, {0, static_cast<std::uint32_t>(text.size()), at_start});
  words.most = most;
  if (pre_tokenizer_) pre_tokenizer_->apply(words);
  for (const JsonWords::Word& word : words.words) {
    model_->encode(std::string_view(words.text).substr(word.begin, word.end - word.begin), tokens, scratch, skip);
  }
}

std::vector<TokenId> JsonTokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::string valid;
  if (utf8_valid_prefix(text) != text.size()) {
    for (std::string_view rest = text; !rest.empty();) {
      const DecodedPoint point = decode_point(rest);
      append_point(valid, point.value);
      rest.remove_prefix(point.size);
    }
    text = valid;
  }
  const std::size_t most = most_text(text.size());
  const std::vector<bool>* skip = options.parse_special ? nullptr : &is_special_;
  std::vector<TokenId> tokens;
  if (options.add_special) tokens = prefix_;
  JsonModel::Scratch scratch;
  JsonWords words;
  std::vector<Part> parts;
  std::vector<Part> inner;
  cut(text, plain_, options.parse_special, parts);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].token >= 0) {
      tokens.push_back(parts[i].token);
      continue;
    }
    JsonNormalizer::Text normalized{std::string(parts[i].text), i == 0, most};
    if (normalizer_) normalizer_->apply(normalized);
    inner.clear();
    cut(normalized.text, normalized_, options.parse_special, inner);
    for (std::size_t k = 0; k < inner.size(); ++k) {
      if (inner[k].token >= 0) tokens.push_back(inner[k].token);
      else encode_part(inner[k].text, normalized.at_start && k == 0, most, skip, tokens, scratch, words);
    }
  }
  if (options.add_special) tokens.insert(tokens.end(), suffix_.begin(), suffix_.end());
  return tokens;
}

std::string JsonTokenizer::decode(std::span<const TokenId> tokens) const {
  std::vector<std::string> parts;
  parts.reserve(tokens.size());
  for (const TokenId token : tokens) parts.push_back(texts_[static_cast<std::size_t>(token)]);
  return decoder_.decode(std::move(parts));
}

std::vector<TokenType> JsonTokenizer::types() const {
  std::vector<TokenType> types(texts_.size(), TokenType::normal);
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    if (texts_[i].empty()) types[i] = TokenType::unused;
    else if (model_->byte_fallback() && byte_of_spelling(texts_[i]) >= 0) types[i] = TokenType::byte;
  }
  for (const Added& token : added_) {
    types[static_cast<std::size_t>(token.id)] = token.special ? TokenType::control : TokenType::user_defined;
  }
  const TokenId unknown = index_.find(model_->unknown());
  if (unknown >= 0) types[static_cast<std::size_t>(unknown)] = TokenType::unknown;
  return types;
}

std::string JsonTokenizer::first_piece(TokenId token) const {
  return decoder_.decode({texts_[static_cast<std::size_t>(token)]});
}

std::string JsonTokenizer::piece(TokenId token) const {
  if (!streams()) return first_piece(token);
  // A token before it takes what happens to the start of a text.
  const std::string alone = decoder_.decode({"x"});
  const std::string both = decoder_.decode({"x", texts_[static_cast<std::size_t>(token)]});
  return both.substr(std::min(alone.size(), both.size()));
}

}  // namespace skald::inline v0::detail
