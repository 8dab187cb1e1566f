#include "text/json_model.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "text/unicode.hpp"

namespace skald::inline v0::detail {
namespace {

std::string byte_spelling(unsigned byte) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  return {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
}

std::array<TokenId, 256> find_byte_tokens(const TokenIndex& index) {
  std::array<TokenId, 256> tokens{};
  for (unsigned byte = 0; byte < 256; ++byte) tokens[byte] = index.find(byte_spelling(byte));
  return tokens;
}

// Appends the byte tokens of `text` if there is one for each of its bytes.
bool append_bytes(std::string_view text, const std::array<TokenId, 256>& bytes, std::vector<TokenId>& tokens) {
  const auto id = [&](char c) { return bytes[static_cast<unsigned char>(c)]; };
  if (std::ranges::any_of(text, [&](char c) { return id(c) < 0; })) return false;
  for (const char c : text) tokens.push_back(id(c));
  return true;
}

bool skipped(const std::vector<bool>* skip, TokenId id) {
  return skip != nullptr && id >= 0 && static_cast<std::size_t>(id) < skip->size() &&
         (*skip)[static_cast<std::size_t>(id)];
}

void read_vocabulary_object(const JsonNode& node, JsonVocabulary& vocabulary, TokenIndex& index) {
  if (!node.is_object()) node.fail(std::string("found ") + node.json().type_name() + ", allowed is an object");
  const std::int64_t most = most_id(node.size());
  for (const auto& [text, id] : node.json().items()) {
    // A path for every entry would cost more than the rest, so it is made when it is needed.
    const bool fits = id.is_number_integer() && id.get<std::int64_t>() >= 0 && id.get<std::int64_t>() <= most;
    if (!fits) (void)node.at(text.c_str()).integer(0, most);
    const auto i = static_cast<std::size_t>(id.get<std::int64_t>());
    if (i >= vocabulary.size()) vocabulary.resize(i + 1);
    if (!vocabulary[i].empty() && !text.empty()) {
      node.fail("'" + printable(text, 80) + "' and '" + printable(vocabulary[i], 80) + "' both have the id " +
                std::to_string(i));
    }
    vocabulary[i] = text;
  }
  index = TokenIndex(vocabulary, [](TokenId, TokenId) {});
}

/// For models whose work is the length of the text times that of the longest token.
[[noreturn]] void refuse_length(const JsonNode& vocabulary, std::size_t id) {
  vocabulary.fail("token " + std::to_string(id) + " has more than the " + std::to_string(longest_piece) +
                  " bytes that one of this model may have");
}

// --- BPE -------------------------------------------------------------------------------------------------------------

class BytePairModel final : public JsonModel {
 public:
  BytePairModel(const JsonNode& node, JsonVocabulary& vocabulary, TokenIndex& index) : index_(&index) {
    read_vocabulary_object(node.at("vocab"), vocabulary, index);
    if (const auto dropout = node.find("dropout"); dropout && dropout->number() != 0) {
      dropout->unsupported("dropout makes tokens random; only 0 and null are supported");
    }
    prefix_ = node.string_or("continuing_subword_prefix", "");
    suffix_ = node.string_or("end_of_word_suffix", "");
    fuse_unknown_ = node.boolean_or("fuse_unk", false);
    byte_fallback_ = node.boolean_or("byte_fallback", false);
    whole_words_ = node.boolean_or("ignore_merges", false);
    if (const auto unknown = node.find("unk_token")) {
      unknown_text_ = unknown->string();
      unknown_ = index.find(unknown_text_);
    }
    byte_tokens_ = find_byte_tokens(index);
    read_merges(node.at("merges"), vocabulary);
  }

  void encode(std::string_view word, std::vector<TokenId>& tokens, Scratch& scratch,
              const std::vector<bool>* skip) const override {
    if (whole_words_) {
      const TokenId id = index_->find(word);
      if (id >= 0 && !skipped(skip, id)) {
        tokens.push_back(id);
        return;
      }
    }
    auto& symbols = scratch.byte_pair.symbols;
    symbols.clear();
    const auto add = [&](TokenId id) { symbols.push_back({id, 0, 0, 0}); };
    bool pending = false;  // unknown characters that wait for being written
    for (std::size_t at = 0; at < word.size();) {
      const std::size_t size = decode_point(word.substr(at)).size;
      std::string_view point = word.substr(at, size);
      const bool first = at == 0;
      at += size;
      if ((!first && !prefix_.empty()) || (at == word.size() && !suffix_.empty())) {
        scratch.text.assign(first ? "" : prefix_).append(point).append(at == word.size() ? suffix_ : "");
        point = scratch.text;
      }
      if (const TokenId id = index_->find(point); id >= 0) {
        if (std::exchange(pending, false)) add(unknown_);
        add(id);
        continue;
      }
      if (byte_fallback_ && std::ranges::none_of(point, [&](char c) { return byte_token(c) < 0; })) {
        for (const char c : point) add(byte_token(c));
        continue;
      }
      if (unknown_text_.empty()) continue;
      if (unknown_ < 0) {
        throw FormatError("text.tokenizer_json", "the unknown token '" + printable(unknown_text_, 80) +
                                                     "' is needed but not in the vocabulary");
      }
      if (pending && !fuse_unknown_) add(unknown_);
      pending = true;
    }
    if (pending) add(unknown_);
    merges_.merge(scratch.byte_pair);
    for (std::int32_t i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
      tokens.push_back(symbols[static_cast<std::size_t>(i)].id);
    }
  }
  [[nodiscard]] std::string_view name() const noexcept override { return "BPE"; }
  [[nodiscard]] std::string_view unknown() const noexcept override { return unknown_text_; }
  [[nodiscard]] bool byte_fallback() const noexcept override { return byte_fallback_; }

 private:
  [[nodiscard]] TokenId byte_token(char c) const noexcept { return byte_tokens_[static_cast<unsigned char>(c)]; }

  void read_merges(const JsonNode& node, const JsonVocabulary&) {
    const std::size_t count = node.array_size();
    std::vector<MergeTable::Entry> entries;
    entries.reserve(count);
    std::string result;
    for (std::size_t rank = 0; rank < count; ++rank) {
      const auto& merge = node.json()[rank];
      std::string_view left;
      std::string_view right;
      if (merge.is_string()) {
        const std::string_view text = merge.get_ref<const std::string&>();
        const std::size_t space = text.find(' ');
        if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
          node.at(rank).fail("'" + printable(text, 80) + "' is not of the form 'left right'");
        }
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else {
        const JsonNode pair = node.at(rank);
        if (pair.array_size() != 2) pair.fail("has " + std::to_string(pair.size()) + " elements, allowed are 2");
        left = pair.at(std::size_t{0}).string();
        right = pair.at(1).string();
      }
      const TokenId a = index_->find(left);
      const TokenId b = index_->find(right);
      if (a < 0 || b < 0) {
        node.at(rank).fail("'" + printable(a < 0 ? left : right, 80) + "' is not in the vocabulary");
      }
      result.assign(left).append(right.substr(right.starts_with(prefix_) ? prefix_.size() : 0));
      const TokenId merged = index_->find(result);
      if (merged < 0) node.at(rank).fail("gives '" + printable(result, 80) + "', which is not in the vocabulary");
      entries.push_back({a, b, static_cast<std::uint32_t>(rank), merged});
    }
    merges_.build(entries);
  }

  const TokenIndex* index_;
  BytePairMerger merges_;
  std::array<TokenId, 256> byte_tokens_{};
  std::string prefix_, suffix_, unknown_text_;
  TokenId unknown_ = -1;
  bool fuse_unknown_ = false, byte_fallback_ = false, whole_words_ = false;
};

// --- Unigram ---------------------------------------------------------------------------------------------------------

class UnigramModel final : public JsonModel {
 public:
  UnigramModel(const JsonNode& node, JsonVocabulary& vocabulary, TokenIndex& index) : index_(&index) {
    const JsonNode list = node.at("vocab");
    const std::size_t count = list.array_size();
    std::vector<Unigram::Entry> entries;
    vocabulary.resize(count);
    std::vector<double> scores(count);
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < count; ++i) {
      const auto& pair = list.json()[i];
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_number()) {
        list.at(i).fail("is not a pair of text and score");
      }
      vocabulary[i] = pair[0].get<std::string>();
      scores[i] = pair[1].get<double>();
      least = std::min(least, scores[i]);
    }
    index = TokenIndex(vocabulary, [](TokenId, TokenId) {});
    for (std::size_t i = 0; i < count; ++i) {
      if (vocabulary[i].size() > longest_piece) refuse_length(list, i);
      entries.push_back({vocabulary[i], static_cast<TokenId>(i), scores[i]});
    }
    constexpr double penalty = 10;
    model_.build(entries, count, least - penalty);
    byte_fallback_ = node.boolean_or("byte_fallback", false);
    byte_tokens_ = find_byte_tokens(index);
    if (const auto unknown = node.find("unk_id")) {
      if (count == 0) unknown->fail("is outside the empty vocabulary");
      unknown_ = static_cast<TokenId>(unknown->integer(0, static_cast<std::int64_t>(count) - 1));
      unknown_text_ = vocabulary[static_cast<std::size_t>(unknown_)];
    }
  }

  void encode(std::string_view word, std::vector<TokenId>& tokens, Scratch& scratch,
              const std::vector<bool>* skip) const override {
    const auto& pieces = model_.split(word, scratch.unigram, skip);
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const bool unknown = is_unknown(pieces[i].token);
      if (!unknown) {
        tokens.push_back(pieces[i].token);
        continue;
      }
      // A run of unknown pieces is one, and may by chance be a token.
      const std::size_t begin = pieces[i].begin;
      while (i + 1 < pieces.size() && is_unknown(pieces[i + 1].token)) ++i;
      const std::string_view run = word.substr(begin, pieces[i].begin + pieces[i].size - begin);
      if (const TokenId id = index_->find(run); id >= 0 && !skipped(skip, id)) tokens.push_back(id);
      else if (byte_fallback_ && append_bytes(run, byte_tokens_, tokens)) continue;
      else if (unknown_ >= 0) tokens.push_back(unknown_);
      else throw FormatError("text.tokenizer_json", "a text needs the unknown token, and there is none (unk_id)");
    }
  }
  [[nodiscard]] std::string_view name() const noexcept override { return "Unigram"; }
  [[nodiscard]] std::string_view unknown() const noexcept override { return unknown_text_; }
  [[nodiscard]] bool byte_fallback() const noexcept override { return byte_fallback_; }

 private:
  [[nodiscard]] bool is_unknown(TokenId token) const noexcept { return token < 0 || token == unknown_; }
  const TokenIndex* index_;
  Unigram model_;
  std::array<TokenId, 256> byte_tokens_{};
  std::string unknown_text_;
  TokenId unknown_ = -1;
  bool byte_fallback_ = false;
};

// --- WordPiece and WordLevel -----------------------------------------------------------------------------------------

class WordPieceModel final : public JsonModel {
 public:
  WordPieceModel(const JsonNode& node, JsonVocabulary& vocabulary, TokenIndex& index) {
    read_vocabulary_object(node.at("vocab"), vocabulary, index);
    unknown_text_ = node.string_or("unk_token", "[UNK]");
    prefix_ = node.string_or("continuing_subword_prefix", "##");
    if (const auto most = node.find("max_input_chars_per_word")) {
      longest_word_ = static_cast<std::size_t>(most->integer(0, 1 << 20));
    }
    unknown_ = index.find(unknown_text_);
    std::vector<ByteTrie::Entry> whole;
    std::vector<ByteTrie::Entry> continuing;
    for (std::size_t i = 0; i < vocabulary.size(); ++i) {
      const std::string_view text = vocabulary[i];
      if (text.size() > longest_piece) refuse_length(node.at("vocab"), i);
      whole.emplace_back(text, static_cast<TokenId>(i));
      if (text.starts_with(prefix_)) continuing.emplace_back(text.substr(prefix_.size()), static_cast<TokenId>(i));
    }
    whole_.build(std::move(whole));
    continuing_.build(std::move(continuing));
  }

  void encode(std::string_view word, std::vector<TokenId>& tokens, Scratch&,
              const std::vector<bool>* skip) const override {
    const std::size_t before = tokens.size();
    bool spelled = count_points(word) <= longest_word_;
    for (std::size_t begin = 0; spelled && begin < word.size();) {
      std::size_t longest = 0;
      TokenId token = -1;
      (begin == 0 ? whole_ : continuing_).prefixes(word.substr(begin), [&](std::size_t size, TokenId id) {
        if (skipped(skip, id)) return;
        longest = size;
        token = id;
      });
      spelled = token >= 0;
      if (spelled) tokens.push_back(token);
      begin += longest;
    }
    if (spelled) return;
    tokens.resize(before);
    if (unknown_ < 0) {
      throw FormatError("text.tokenizer_json",
                        "the unknown token '" + printable(unknown_text_, 80) + "' is needed but not in the vocabulary");
    }
    tokens.push_back(unknown_);
  }
  [[nodiscard]] std::string_view name() const noexcept override { return "WordPiece"; }
  [[nodiscard]] std::string_view unknown() const noexcept override { return unknown_text_; }

 private:
  ByteTrie whole_, continuing_;  // of all tokens; of those with the prefix, without it
  std::string unknown_text_, prefix_;
  TokenId unknown_ = -1;
  std::size_t longest_word_ = 100;
};

class WordLevelModel final : public JsonModel {
 public:
  WordLevelModel(const JsonNode& node, JsonVocabulary& vocabulary, TokenIndex& index) : index_(&index) {
    read_vocabulary_object(node.at("vocab"), vocabulary, index);
    unknown_text_ = node.string_or("unk_token", "<unk>");
    unknown_ = index.find(unknown_text_);
  }
  void encode(std::string_view word, std::vector<TokenId>& tokens, Scratch&,
              const std::vector<bool>* skip) const override {
    TokenId id = index_->find(word);
    if (id < 0 || skipped(skip, id)) id = unknown_;
    if (id < 0) {
      throw FormatError("text.tokenizer_json",
                        "the unknown token '" + printable(unknown_text_, 80) + "' is needed but not in the vocabulary");
    }
    tokens.push_back(id);
  }
  [[nodiscard]] std::string_view name() const noexcept override { return "WordLevel"; }
  [[nodiscard]] std::string_view unknown() const noexcept override { return unknown_text_; }

 private:
  const TokenIndex* index_;
  std::string unknown_text_;
  TokenId unknown_ = -1;
};

// Older files do not name the type.
std::string model_type(const JsonNode& node) {
  if (const auto type = node.find("type")) return type->string();
  if (node.find("merges")) return "BPE";
  if (node.at("vocab").is_array()) return "Unigram";
  return node.find("max_input_chars_per_word") ? "WordPiece" : "WordLevel";
}

}  // namespace

std::unique_ptr<const JsonModel> read_json_model(const JsonNode& node, JsonVocabulary& vocabulary, TokenIndex& index) {
  const std::string type = model_type(node);
  if (type == "BPE") return std::make_unique<BytePairModel>(node, vocabulary, index);
  if (type == "Unigram") return std::make_unique<UnigramModel>(node, vocabulary, index);
  if (type == "WordPiece") return std::make_unique<WordPieceModel>(node, vocabulary, index);
  if (type == "WordLevel") return std::make_unique<WordLevelModel>(node, vocabulary, index);
  node.unsupported("model '" + printable(type, 80) +
                   "' is not implemented; known are BPE, Unigram, WordPiece and WordLevel");
}

}  // namespace skald::inline v0::detail
