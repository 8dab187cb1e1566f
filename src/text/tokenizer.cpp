#include <skald/text/tokenizer.hpp>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <utility>

#include <skald/core/error.hpp>

#include "text/byte_level.hpp"
#include "text/special_roles.hpp"
#include "text/tokenizer_impl.hpp"
#include "text/utf8.hpp"

namespace skald::inline v0 {
namespace {

constexpr std::string_view where = "text.tokenizer";
constexpr std::string_view sentence_piece_space = "\xe2\x96\x81";  // U+2581

[[noreturn]] void refuse(const Vocabulary& vocabulary, std::string_view key, const std::string& message) {
  throw FormatError(where, message, {.file = vocabulary.source, .key = vocabulary.key_prefix + std::string(key)});
}

std::size_t count_invalid_bytes(std::string_view text) noexcept {
  std::size_t count = 0;
  for (std::size_t at = detail::utf8_valid_prefix(text); at < text.size();) {
    const detail::Utf8Step step = detail::utf8_step(text.substr(at));
    if (step.kind != detail::Utf8Step::Kind::valid) count += step.size;
    at += step.size;
  }
  return count;
}

using Family = detail::TokenizerFamily;

std::optional<Family> family_of(std::string_view model) noexcept {
  if (model == "gpt2") return Family::byte_level;
  if (model == "llama") return Family::sentence_piece;
  if (model == "t5") return Family::unigram;
  if (model == "bert") return Family::word_piece;
  if (model == "rwkv") return Family::longest_match;
  return std::nullopt;
}

bool is_special(TokenType type) noexcept { return type == TokenType::control || type == TokenType::unknown; }

bool is_space(char c) noexcept { return c == ' ' || (c >= '\t' && c <= '\r'); }

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t found; (found = text.find(from, at)) != std::string::npos; at = found + from.size()) {
    out.append(text, at, found - at).append(to);
  }
  if (at == 0) return;
  text = out.append(text, at);
}

void check_ids(const Vocabulary& vocabulary) {
  const auto count = static_cast<std::int64_t>(vocabulary.tokens.size());
  const auto check = [&](TokenId id, std::string_view key, bool may_be_absent) {
    if (id >= (may_be_absent ? -1 : 0) && id < count) return;
    refuse(vocabulary, key,
           "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(count) + " tokens");
  };
  const Vocabulary& v = vocabulary;
  const std::initializer_list<std::pair<TokenId, std::string_view>> ids = {{v.bos, "bos_token_id"},
                                                                           {v.eos, "eos_token_id"},
                                                                           {v.eot, "eot_token_id"},
                                                                           {v.eom, "eom_token_id"},
                                                                           {v.unk, "unknown_token_id"},
                                                                           {v.sep, "seperator_token_id"},
                                                                           {v.pad, "padding_token_id"},
                                                                           {v.mask, "mask_token_id"},
                                                                           {v.cls, "cls_token_id"},
                                                                           {v.fim_prefix, "fim_pre_token_id"},
                                                                           {v.fim_suffix, "fim_suf_token_id"},
                                                                           {v.fim_middle, "fim_mid_token_id"},
                                                                           {v.fim_pad, "fim_pad_token_id"},
                                                                           {v.fim_repo, "fim_rep_token_id"},
                                                                           {v.fim_separator, "fim_sep_token_id"}};
  for (const auto& [id, key] : ids) check(id, key, true);
  for (const TokenId id : v.extra_eog) check(id, "eog_token_ids", false);
  for (const TokenId id : v.strip_left) check(id, "strip_left", false);
  for (const TokenId id : v.strip_right) check(id, "strip_right", false);
}

void check_vocabulary(const Vocabulary& vocabulary) {
  if (!family_of(vocabulary.model)) {
    throw UnsupportedError(where,
                           "tokenizer model '" + printable(vocabulary.model) +
                               "' is not supported; supported are 'gpt2' (byte-level BPE), 'llama' (SentencePiece "
                               "BPE), 't5' (SentencePiece unigram), 'bert' (WordPiece) and 'rwkv' (longest match)",
                           {.file = vocabulary.source, .key = vocabulary.key_prefix + "model"});
  }
  const std::size_t count = vocabulary.tokens.size();
  if (count == 0) refuse(vocabulary, "tokens", "there are no tokens");
  if (count > std::numeric_limits<TokenId>::max()) refuse(vocabulary, "tokens", "there are more than 2^31 - 1 tokens");
  const auto check_length = [&](std::size_t length, std::string_view key) {
    if (length == 0 || length == count) return;
    refuse(vocabulary, key, "has " + std::to_string(length) + " entries for " + std::to_string(count) + " tokens");
  };
  check_length(vocabulary.scores.size(), "scores");
  check_length(vocabulary.types.size(), "token_type");
  const bool by_trie = vocabulary.model == "t5" || vocabulary.model == "bert" || vocabulary.model == "rwkv";
  const std::size_t longest = by_trie ? detail::longest_piece : 16384;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string& text = vocabulary.tokens[i];
    const auto refuse_token = [&](const std::string& why) {
      refuse(vocabulary, "tokens", "tokens[" + std::to_string(i) + "] = '" + printable(text, 80) + "' " + why);
    };
    if (detail::utf8_valid_prefix(text) != text.size()) refuse_token("is not valid UTF-8");
    if (text.size() > longest) refuse_token("is longer than " + std::to_string(longest) + " bytes");
    const int type = vocabulary.types.empty() ? 1 : static_cast<int>(vocabulary.types[i]);
    if (type < 0 || type > 6) {
      refuse(vocabulary, "token_type",
             "token_type[" + std::to_string(i) + "] is " + std::to_string(type) + "; allowed are 0 to 6");
    }
  }
  check_ids(vocabulary);
}

// Spaces that detokenizers of the older byte-level families take out: before punctuation, around a lone apostrophe,
// and before the contractions 's, 'm, 're and 've.
std::string clean_up(std::string_view text) {
  std::string first;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool mark = text[i] == '?' || text[i] == '!' || text[i] == '.' || text[i] == ',';
    // The space before is the one of the text, so one mark takes one space only.
    if (mark && i > 0 && text[i - 1] == ' ') first.pop_back();
    first += text[i];
  }
  std::string second;
  for (std::size_t i = 0; i < first.size(); ++i) {
    const bool lone = first[i] == '\'' && i > 0 && i + 1 < first.size() && first[i - 1] == ' ' && first[i + 1] == ' ';
    if (lone) second.pop_back();
    second += first[i];
    if (lone) first[++i] = '\0';
  }
  std::string third;
  for (std::size_t i = 0; i < second.size(); ++i) {
    const std::string_view rest = std::string_view(second).substr(i);
    const bool contraction =
        rest.starts_with("'s") || rest.starts_with("'m") || rest.starts_with("'re") || rest.starts_with("'ve");
    if (contraction && i > 0 && second[i - 1] == ' ') third.pop_back();
    third += second[i];
  }
  return third;
}

}  // namespace

Tokenizer::Impl::Impl(Vocabulary from) : vocabulary(std::move(from)) {
  check_vocabulary(vocabulary);
  if (vocabulary.types.empty()) vocabulary.types.assign(vocabulary.tokens.size(), TokenType::normal);
  index = detail::TokenIndex(vocabulary.tokens, [&](TokenId first, TokenId second) {
    refuse(vocabulary, "tokens",
           "tokens " + std::to_string(first) + " and " + std::to_string(second) + " are both '" +
               printable(vocabulary.tokens[static_cast<std::size_t>(first)], 80) + "'");
  });
  ends = detail::resolve_special_roles(vocabulary, index);
  family = *family_of(vocabulary.model);
  build_encoder();
  resolve_flags();
  make_special_tokens();
  make_pieces();
  vocabulary.scores = {};
  vocabulary.merges = {};
  vocabulary.precompiled_charsmap = {};
  make_roles();
}

Tokenizer::Impl::Impl(Vocabulary from, std::shared_ptr<const detail::JsonTokenizer> read, bool clean_up_spaces)
    : vocabulary(std::move(from)), family(Family::json), json(std::move(read)) {
  index = detail::TokenIndex(vocabulary.tokens, [](TokenId, TokenId) {});
  check_ids(vocabulary);
  // The file says which tokens are special; spellings only tell what ends a text.
  const std::vector<TokenType> types = vocabulary.types;
  ends = detail::resolve_special_roles(vocabulary, index);
  vocabulary.types = types;
  traits = {.add_bos = false, .whole_words = false, .clean_up_spaces = clean_up_spaces};
  add_bos = *vocabulary.add_bos;
  add_eos = *vocabulary.add_eos;
  make_json_pieces();
  make_roles();
}

void Tokenizer::Impl::make_roles() {
  roles = vocabulary;
  roles.tokens = {};
  roles.types = {};
}

void Tokenizer::Impl::build_encoder() {
  traits = {.add_bos = false, .whole_words = false, .clean_up_spaces = false};
  switch (family) {
    case Family::byte_level: {
      splitter.emplace_back(vocabulary.pre);
      traits = splitter.front().traits();
      byte_pair.build(vocabulary, index, traits.whole_words);
      detail::BytePairEncoder::Scratch scratch;
      byte_pair.encode(detail::replacement_character, replacement, scratch);
      break;
    }
    case Family::sentence_piece:
      traits.add_bos = true;
      sentence_piece.build(vocabulary, index);
      break;
    case Family::unigram: unigram.build(vocabulary); break;
    case Family::word_piece:
      traits.add_bos = true;
      traits.clean_up_spaces = true;
      word_piece.build(vocabulary);
      break;
    case Family::longest_match: longest_match.build(vocabulary); break;
    case Family::json: break;
  }
}

void Tokenizer::Impl::resolve_flags() {
  Vocabulary& v = vocabulary;
  const auto require = [&](std::optional<bool> flag, TokenId id, std::string_view key, std::string_view token) {
    if (flag.value_or(false) && id < 0) {
      refuse(v, key, "asks for a token that is absent: " + v.key_prefix + std::string(token));
    }
  };
  require(v.add_bos, v.bos, "add_bos_token", "bos_token_id");
  require(v.add_eos, v.eos, "add_eos_token", "eos_token_id");
  add_bos = v.add_bos.value_or(traits.add_bos && v.bos >= 0);
  add_eos = v.add_eos.value_or(family == Family::unigram && v.eos >= 0);
  // Only SentencePiece text carries its spaces in front of words.
  add_space_prefix = (family == Family::sentence_piece || family == Family::unigram) &&
                     v.add_space_prefix.value_or(family == Family::sentence_piece);
  // Files say little about this; engines put both tokens around every text, whatever the flags are.
  if (family == Family::word_piece) {
    if (v.bos < 0) v.bos = v.cls;
    add_bos = v.bos >= 0;
    add_eos = false;
    add_sep = v.sep >= 0;
  }
  v.add_bos = add_bos;
  v.add_eos = add_eos;
  v.add_space_prefix = add_space_prefix;
}

void Tokenizer::Impl::make_special_tokens() {
  const std::size_t count = vocabulary.tokens.size();
  for (std::size_t i = 0; i < count; ++i) {
    const TokenType type = vocabulary.types[i];
    if (vocabulary.tokens[i].empty() || (type != TokenType::user_defined && !is_special(type))) continue;
    when_parsing.add(vocabulary.tokens[i], static_cast<TokenId>(i));
    if (type == TokenType::user_defined) always.add(vocabulary.tokens[i], static_cast<TokenId>(i));
  }
  always.finish();
  when_parsing.finish();
  strips_left.assign(count, false);
  strips_right.assign(count, false);
  for (const TokenId id : vocabulary.strip_left) strips_left[static_cast<std::size_t>(id)] = true;
  for (const TokenId id : vocabulary.strip_right) strips_right[static_cast<std::size_t>(id)] = true;
}

void Tokenizer::Impl::make_json_pieces() {
  const std::size_t count = vocabulary.tokens.size();
  piece_begin.reserve(count + 1);
  for (std::size_t i = 0; i < count; ++i) {
    const auto id = static_cast<TokenId>(i);
    piece_begin.push_back(pieces.size());
    if (vocabulary.tokens[i].empty()) continue;
    const std::string piece = json->piece(id);
    pieces += piece;
    if (std::string first = json->first_piece(id); first != piece) {
      first_pieces.emplace(id, std::move(first));
      // What is a space on all tokens but the first is what others call a space prefix.
      add_space_prefix = true;
    }
  }
  piece_begin.push_back(pieces.size());
}

void Tokenizer::Impl::make_pieces() {
  const std::size_t count = vocabulary.tokens.size();
  piece_begin.reserve(count + 1);
  for (std::size_t i = 0; i < count; ++i) {
    piece_begin.push_back(pieces.size());
    const TokenType type = vocabulary.types[i];
    std::string text = vocabulary.tokens[i];
    if (family == Family::longest_match) {
      text = longest_match.bytes(i);
    } else if (type == TokenType::normal && family == Family::byte_level) {
      text = detail::byte_level_decode(text);
    } else if (type == TokenType::normal) {
      replace_all(text, sentence_piece_space, " ");
    } else if (type == TokenType::byte && (family == Family::sentence_piece || family == Family::unigram) &&
               detail::byte_of_spelling(text) >= 0) {
      text.assign(1, static_cast<char>(detail::byte_of_spelling(text)));
    } else if (!is_special(type) && type != TokenType::user_defined) {
      text.clear();
    }
    pieces += text;
  }
  piece_begin.push_back(pieces.size());
  longest_match.forget_bytes();
}

std::size_t Tokenizer::Impl::checked(TokenId token) const {
  if (token < 0 || static_cast<std::size_t>(token) >= vocabulary.tokens.size()) {
    throw UsageError(where, "token " + std::to_string(token) + " is outside the vocabulary of " +
                                std::to_string(vocabulary.tokens.size()) + " tokens");
  }
  return static_cast<std::size_t>(token);
}

void Tokenizer::Impl::encode_byte_level(std::string_view text, std::vector<TokenId>& tokens, Scratch& scratch) const {
  // The expressions need UTF-8. Bytes that are not are seen by them as U+FFFD and by the encoder as themselves,
  // so that decoding gives them back.
  std::string_view valid = text;
  auto& raw_bytes = scratch.raw_bytes;  // offsets in `valid` of the characters that stand for one byte of `text`
  raw_bytes.clear();
  if (const std::size_t bad = count_invalid_bytes(text)) {
    raw_bytes.reserve(bad);
    scratch.valid.clear();
    scratch.valid.reserve(text.size() + bad * detail::replacement_character.size());
    for (std::size_t at = 0; at < text.size();) {
      const detail::Utf8Step step = detail::utf8_step(text.substr(at));
      if (step.kind == detail::Utf8Step::Kind::valid) {
        scratch.valid += text.substr(at, step.size);
        at += step.size;
        continue;
      }
      for (std::uint32_t i = 0; i < step.size; ++i) {
        raw_bytes.push_back(static_cast<std::uint32_t>(scratch.valid.size()));
        scratch.valid += detail::replacement_character;
      }
      at += step.size;
    }
    valid = scratch.valid;
  }
  splitter.front().split(valid, scratch.word_ends);
  if (raw_bytes.empty()) {
    std::size_t begin = 0;
    for (const std::uint32_t end : scratch.word_ends) {
      byte_pair.encode(text.substr(begin, end - begin), tokens, scratch.byte_pair);
      begin = end;
    }
    return;
  }
  std::string& word = scratch.escaped;
  word.clear();
  const auto flush = [&] {
    byte_pair.encode(word, tokens, scratch.byte_pair);
    word.clear();
  };
  std::size_t begin = 0;
  std::size_t source = 0;  // offset in `text`
  auto raw = raw_bytes.begin();
  for (const std::uint32_t end : scratch.word_ends) {
    while (begin < end) {
      const std::size_t stop = raw != raw_bytes.end() && *raw < end ? *raw : end;
      word += text.substr(source, stop - begin);
      source += stop - begin;
      begin = stop;
      if (begin == end) break;
      const char byte = text[source++];
      if (byte_pair.spells(static_cast<unsigned char>(byte))) {
        word += byte;
      } else {
        flush();
        tokens.insert(tokens.end(), replacement.begin(), replacement.end());
      }
      begin += detail::replacement_character.size();
      ++raw;
    }
    flush();
  }
}

void Tokenizer::Impl::encode_text(std::string_view text, bool space_prefix, std::vector<TokenId>& tokens,
                                  Scratch& scratch) const {
  if (text.empty()) return;
  switch (family) {
    case Family::byte_level: return encode_byte_level(text, tokens, scratch);
    case Family::unigram: return unigram.encode(text, space_prefix, tokens, scratch.unigram);
    case Family::word_piece: return word_piece.encode(text, tokens, scratch.word_piece);
    case Family::longest_match: return longest_match.encode(text, tokens);
    case Family::sentence_piece:
    case Family::json: break;
  }
  scratch.escaped.clear();
  const auto spaces = static_cast<std::size_t>(std::ranges::count(text, ' ')) + 1;
  scratch.escaped.reserve(text.size() + spaces * sentence_piece_space.size());
  if (space_prefix) scratch.escaped = sentence_piece_space;
  for (const char c : text) {
    if (c == ' ') scratch.escaped += sentence_piece_space;
    else scratch.escaped += c;
  }
  sentence_piece.encode(scratch.escaped, tokens, scratch.sentence_piece);
}

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer::Tokenizer(Vocabulary vocabulary) : impl_(std::make_shared<const Impl>(std::move(vocabulary))) {}

std::vector<TokenId> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  // Three bytes per byte at most (U+2581 for a space), and offsets are 32 bits wide.
  constexpr std::size_t limit = std::numeric_limits<std::int32_t>::max() / 3;
  if (text.size() > limit) {
    throw UsageError(where, "text has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(limit) +
                                " can be encoded at once");
  }
  const Impl& impl = *impl_;
  if (impl.json) return impl.json->encode(text, options);
  std::vector<TokenId> tokens;
  if (options.add_special && impl.add_bos) tokens.push_back(impl.vocabulary.bos);
  std::vector<detail::SpecialTokens::Match> matches;
  (options.parse_special ? impl.when_parsing : impl.always).find(text, matches);
  Impl::Scratch scratch;
  std::size_t begin = 0;
  bool after_special = true;  // the start of the text counts as such
  bool strip = false;
  for (std::size_t i = 0; i <= matches.size(); ++i) {
    const bool last = i == matches.size();
    std::string_view gap = text.substr(begin, (last ? text.size() : matches[i].begin) - begin);
    while (strip && !gap.empty() && is_space(gap.front())) gap.remove_prefix(1);
    if (!last && impl.strips_left[static_cast<std::size_t>(matches[i].token)]) {
      while (!gap.empty() && is_space(gap.back())) gap.remove_suffix(1);
    }
    impl.encode_text(gap, impl.add_space_prefix && after_special, tokens, scratch);
    if (last) break;
    tokens.push_back(matches[i].token);
    begin = matches[i].begin + matches[i].size;
    after_special = true;
    strip = impl.strips_right[static_cast<std::size_t>(matches[i].token)];
  }
  if (options.add_special && impl.add_sep) tokens.push_back(impl.vocabulary.sep);
  if (options.add_special && impl.add_eos) tokens.push_back(impl.vocabulary.eos);
  return tokens;
}

std::string Tokenizer::decode(std::span<const TokenId> tokens, DecodeOptions options) const {
  std::string text;
  bool first = options.strip_space_prefix;
  std::vector<TokenId> kept;
  for (const TokenId token : tokens) {
    const std::string_view part = first ? first_piece(token) : piece(token);
    if (options.skip_special && is_special(type(token))) continue;
    first = false;
    if (streams()) text += part;
    else kept.push_back(token);
  }
  if (!streams()) text = impl_->json->decode(kept);
  return options.clean_up_spaces ? clean_up(text) : text;
}

bool Tokenizer::streams() const noexcept { return !impl_->json || impl_->json->streams(); }

std::string_view Tokenizer::first_piece(TokenId token) const {
  std::string_view part = piece(token);
  if (impl_->json) {
    const auto first = impl_->first_pieces.find(token);
    return first == impl_->first_pieces.end() ? part : std::string_view(first->second);
  }
  if (impl_->add_space_prefix && part.starts_with(' ')) part.remove_prefix(1);
  return part;
}

std::string_view Tokenizer::piece(TokenId token) const {
  const std::size_t i = impl_->checked(token);
  return std::string_view(impl_->pieces)
      .substr(impl_->piece_begin[i], impl_->piece_begin[i + 1] - impl_->piece_begin[i]);
}

std::string_view Tokenizer::token_text(TokenId token) const { return impl_->vocabulary.tokens[impl_->checked(token)]; }

TokenType Tokenizer::type(TokenId token) const { return impl_->vocabulary.types[impl_->checked(token)]; }

std::optional<TokenId> Tokenizer::find(std::string_view token_text) const {
  const TokenId id = impl_->index.find(token_text);
  return id < 0 ? std::nullopt : std::optional(id);
}

bool Tokenizer::is_end_of_generation(TokenId token) const noexcept {
  return std::ranges::binary_search(impl_->ends, token);
}

bool Tokenizer::is_control(TokenId token) const noexcept {
  return token >= 0 && token < size() && impl_->vocabulary.types[static_cast<std::size_t>(token)] == TokenType::control;
}

std::span<const TokenId> Tokenizer::end_of_generation() const noexcept { return impl_->ends; }
int Tokenizer::size() const noexcept { return static_cast<int>(impl_->vocabulary.tokens.size()); }
TokenId Tokenizer::bos() const noexcept { return impl_->vocabulary.bos; }
TokenId Tokenizer::eos() const noexcept { return impl_->vocabulary.eos; }
TokenId Tokenizer::eot() const noexcept { return impl_->vocabulary.eot; }
TokenId Tokenizer::eom() const noexcept { return impl_->vocabulary.eom; }
TokenId Tokenizer::unk() const noexcept { return impl_->vocabulary.unk; }
TokenId Tokenizer::pad() const noexcept { return impl_->vocabulary.pad; }
TokenId Tokenizer::mask() const noexcept { return impl_->vocabulary.mask; }
bool Tokenizer::adds_bos() const noexcept { return impl_->add_bos; }
bool Tokenizer::adds_eos() const noexcept { return impl_->add_eos; }
bool Tokenizer::adds_space_prefix() const noexcept { return impl_->add_space_prefix; }
bool Tokenizer::cleans_up_spaces() const noexcept { return impl_->traits.clean_up_spaces; }
std::string_view Tokenizer::model() const noexcept { return impl_->vocabulary.model; }
std::string_view Tokenizer::pre_tokenizer() const noexcept {
  if (impl_->family != Family::byte_level) return {};
  return impl_->vocabulary.pre.empty() ? std::string_view("default") : std::string_view(impl_->vocabulary.pre);
}
const Vocabulary& Tokenizer::roles() const noexcept { return impl_->roles; }

}  // namespace skald::inline v0
