#include "text/longest_match.hpp"

#include <skald/core/error.hpp>

namespace skald::inline v0::detail {
namespace {

int hex_digit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// \t, \n, \r, \xHH; a backslash before anything else stands for that. False if the text ends too early or has other
// digits.
bool unescape(std::string_view text, std::string& out) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      out += text[i];
      continue;
    }
    if (++i == text.size()) return false;
    switch (text[i]) {
      case 't': out += '\t'; break;
      case 'n': out += '\n'; break;
      case 'r': out += '\r'; break;
      case 'x': {
        if (i + 2 >= text.size()) return false;
        const int high = hex_digit(text[i + 1]);
        const int low = hex_digit(text[i + 2]);
        if (high < 0 || low < 0) return false;
        out += static_cast<char>(high * 16 + low);
        i += 2;
        break;
      }
      default: out += text[i];
    }
  }
  return true;
}

}  // namespace

void LongestMatchEncoder::build(const Vocabulary& vocabulary) {
  unknown_ = vocabulary.unk;
  bytes_.assign(vocabulary.tokens.size(), {});
  std::vector<ByteTrie::Entry> entries;
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (!unescape(vocabulary.tokens[i], bytes_[i])) {
      throw FormatError("text.tokenizer",
                        "tokens[" + std::to_string(i) + "] = '" + printable(vocabulary.tokens[i], 80) +
                            "' has an escape sequence that is none of \\t, \\n, \\r, \\xHH",
                        {.file = vocabulary.source, .key = vocabulary.key_prefix + "tokens"});
    }
    entries.emplace_back(bytes_[i], static_cast<TokenId>(i));
  }
  trie_.build(std::move(entries));
}

void LongestMatchEncoder::encode(std::string_view text, std::vector<TokenId>& tokens) const {
  while (!text.empty()) {
    const auto [size, token] = trie_.longest(text);
    if (size == 0) {
      if (unknown_ >= 0) tokens.push_back(unknown_);
      text.remove_prefix(1);
      continue;
    }
    tokens.push_back(token);
    text.remove_prefix(size);
  }
}

}  // namespace skald::inline v0::detail
