#include <skald/text/detokenizer.hpp>

#include <utility>

#include <skald/core/error.hpp>

#include "text/utf8.hpp"

namespace skald::inline v0 {

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const detail::Utf8Step step = detail::utf8_step(bytes);
    text += step.kind == detail::Utf8Step::Kind::valid ? bytes.substr(0, step.size) : detail::replacement_character;
    bytes.remove_prefix(step.size);
  }
  return text;
}

StreamingDetokenizer::StreamingDetokenizer(Tokenizer tokenizer, DecodeOptions options)
    : tokenizer_(std::move(tokenizer)), options_(options) {
  if (options.clean_up_spaces) {
    throw UsageError("text.detokenizer", "clean_up_spaces needs the whole text; use Tokenizer::decode");
  }
  if (!tokenizer_.streams()) {
    throw UsageError("text.detokenizer", "the tokenizer's decoder needs the whole text; use Tokenizer::decode");
  }
}

std::string StreamingDetokenizer::push(TokenId token) {
  const bool at_start = at_start_ && options_.strip_space_prefix;
  const std::string_view piece = at_start ? tokenizer_.first_piece(token) : tokenizer_.piece(token);
  const TokenType type = tokenizer_.type(token);
  if (options_.skip_special && (type == TokenType::control || type == TokenType::unknown)) return {};
  at_start_ = false;
  held_ += piece;

  std::string text;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const detail::Utf8Step step = detail::utf8_step(rest);
    if (step.kind == detail::Utf8Step::Kind::truncated) break;
    text += step.kind == detail::Utf8Step::Kind::valid ? rest.substr(0, step.size) : detail::replacement_character;
    rest.remove_prefix(step.size);
  }
  held_.erase(0, held_.size() - rest.size());
  return text;
}

std::string StreamingDetokenizer::finish() {
  const std::string rest = replace_invalid_utf8(std::exchange(held_, {}));
  at_start_ = true;
  return rest;
}

}  // namespace skald::inline v0
