#include "text/sentence_unigram.hpp"

#include <algorithm>
#include <limits>

#include <skald/core/error.hpp>

#include "text/utf8.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr std::string_view escaped_space = "\xe2\x96\x81";  // U+2581
constexpr double unknown_penalty = 10;

}  // namespace

void SentenceUnigramEncoder::build(const Vocabulary& vocabulary) {
  try {
    charsmap_ = Charsmap(vocabulary.precompiled_charsmap);
  } catch (const FormatError& error) {
    throw FormatError(error.where(), error.message(),
                      {.file = vocabulary.source, .key = vocabulary.key_prefix + "precompiled_charsmap"});
  }
  unknown_ = vocabulary.unk;
  merge_spaces_ = vocabulary.remove_extra_whitespaces.value_or(false);
  std::vector<ByteTrie::Entry> user_defined;
  std::vector<Unigram::Entry> entries;
  double least = std::numeric_limits<float>::max();
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const TokenType type = vocabulary.types[i];
    const double score = vocabulary.scores.empty() ? 0.0 : static_cast<double>(vocabulary.scores[i]);
    if (type == TokenType::normal) least = std::min(least, score);
    if (type == TokenType::user_defined) user_defined.emplace_back(vocabulary.tokens[i], id);
    if (type == TokenType::normal || type == TokenType::unused) {
      entries.push_back({vocabulary.tokens[i], id, score});
    } else if (type == TokenType::user_defined) {
      // Scores are logarithms, so this one beats all others.
      entries.push_back({vocabulary.tokens[i], id, 0.0});
    }
  }
  user_defined_.build(std::move(user_defined));
  model_.build(entries, vocabulary.tokens.size(), least - unknown_penalty);
}

// How much of the text comes next, and what stands for it.
std::pair<std::size_t, std::string_view> SentenceUnigramEncoder::normalize_prefix(std::string_view text) const {
  if (const auto size = user_defined_.longest(text).first; size > 0) return {size, text.substr(0, size)};
  if (const auto match = charsmap_.longest(text)) return {match->size, match->replacement};
  const Utf8Step step = utf8_step(text);
  if (step.kind != Utf8Step::Kind::valid) return {1, replacement_character};
  return {step.size, text.substr(0, step.size)};
}

void SentenceUnigramEncoder::normalize(std::string_view text, bool space_prefix, std::string& out) const {
  out.clear();
  bool in_word = false;
  bool prefixed = false;
  while (!text.empty()) {
    const auto [size, replacement] = normalize_prefix(text);
    text.remove_prefix(size);
    for (const char c : replacement) {
      if (c == ' ') {
        in_word = false;
        if (!merge_spaces_) out += escaped_space;
        continue;
      }
      if (!in_word && (merge_spaces_ || (space_prefix && !prefixed))) {
        out += escaped_space;
        prefixed = true;
      }
      in_word = true;
      out += c;
    }
  }
}

void SentenceUnigramEncoder::encode(std::string_view text, bool space_prefix, std::vector<TokenId>& tokens,
                                    Scratch& scratch) const {
  normalize(text, space_prefix, scratch.normalized);
  // A table may cut code points; the model works on whole ones.
  if (utf8_valid_prefix(scratch.normalized) != scratch.normalized.size()) {
    std::string valid;
    for (std::string_view rest = scratch.normalized; !rest.empty();) {
      const Utf8Step step = utf8_step(rest);
      valid += step.kind == Utf8Step::Kind::valid ? rest.substr(0, step.size) : replacement_character;
      rest.remove_prefix(step.size);
    }
    scratch.normalized.swap(valid);
  }
  bool after_unknown = false;
  for (const Unigram::Piece& piece : model_.split(scratch.normalized, scratch.unigram, nullptr)) {
    if (piece.token >= 0) tokens.push_back(piece.token);
    else if (!after_unknown && unknown_ >= 0) tokens.push_back(unknown_);
    after_unknown = piece.token < 0;
  }
}

}  // namespace skald::inline v0::detail
