#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <skald/text/vocabulary.hpp>

#include "text/byte_level.hpp"

namespace skald_test {

/// 256 bytes, a few merges, and the control tokens <s>, </s>, <|im_start|>, <|im_end|>; pre-tokenizer of GPT-2.
inline skald::Vocabulary small_byte_level() {
  skald::Vocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "gpt-2";
  for (unsigned byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.emplace_back(skald::detail::byte_level_char(static_cast<unsigned char>(byte)));
  }
  vocabulary.merges = {"l l", "h e", "ll o", "he llo", "Ġ hello"};
  vocabulary.tokens.insert(vocabulary.tokens.end(), {"ll", "he", "hello", "llo", "Ġhello"});
  vocabulary.types.assign(vocabulary.tokens.size(), skald::TokenType::normal);
  const auto control = [&](const char* text) {
    vocabulary.tokens.emplace_back(text);
    vocabulary.types.push_back(skald::TokenType::control);
    return static_cast<skald::TokenId>(vocabulary.tokens.size() - 1);
  };
  vocabulary.bos = control("<s>");
  vocabulary.eos = control("</s>");
  control("<|im_start|>");
  control("<|im_end|>");
  return vocabulary;
}

/// <unk>, <s>, </s>, 256 byte tokens and a few pieces, some of which lead to the spelling of <s>.
inline skald::Vocabulary small_sentence_piece() {
  skald::Vocabulary vocabulary;
  vocabulary.model = "llama";
  const auto add = [&](std::string text, float score, skald::TokenType type) {
    vocabulary.tokens.push_back(std::move(text));
    vocabulary.scores.push_back(score);
    vocabulary.types.push_back(type);
    return static_cast<skald::TokenId>(vocabulary.tokens.size() - 1);
  };
  vocabulary.unk = add("<unk>", 0, skald::TokenType::unknown);
  vocabulary.bos = add("<s>", 0, skald::TokenType::control);
  vocabulary.eos = add("</s>", 0, skald::TokenType::control);
  for (int byte = 0; byte < 256; ++byte) {
    const char* digits = "0123456789ABCDEF";
    add(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">", 0, skald::TokenType::byte);
  }
  float score = -1;
  for (const char* text :
       {"▁", "h", "i", "hi", "▁hi", "s>", "<s", "<", "s", ">", "l", "ll", "llll", "▁▁", "aa", "11"}) {
    add(text, score--, skald::TokenType::normal);
  }
  return vocabulary;
}

/// Small random generator with reproducible results.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e37'79b9'7f4a'7c15U + 1) {}

  std::uint32_t below(std::uint32_t bound) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<std::uint32_t>(state_ >> 32) % bound;
  }
  /// Up to `most` random bytes.
  std::string bytes(std::uint32_t most) {
    std::string text(below(most + 1), '\0');
    for (char& c : text) c = static_cast<char>(below(256));
    return text;
  }
  /// Up to `most` code points from all planes, with many letters, digits and spaces among them.
  std::string utf8_text(std::uint32_t most) {
    std::string text;
    for (std::uint32_t n = below(most + 1); n > 0; --n) append_code_point(text, code_point());
    return text;
  }

 private:
  std::uint32_t code_point() {
    switch (below(6)) {
      case 0: return below(0x80);
      case 1: return "hello <s>'12 \n"[below(14)] & 0x7f;
      case 2: return 0x80 + below(0x780);
      case 3: return 0x2000 + below(0x100);
      case 4: {
        const std::uint32_t point = below(0x10000);
        return point >= 0xd800 && point < 0xe000 ? 0x4e00 : point;
      }
      default: return 0x10000 + below(0x100000);
    }
  }
  static void append_code_point(std::string& text, std::uint32_t point) {
    const auto put = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
    if (point < 0x80) return put(point);
    if (point < 0x800) {
      put(0xc0 | point >> 6);
    } else if (point < 0x10000) {
      put(0xe0 | point >> 12);
      put(0x80 | (point >> 6 & 0x3f));
    } else {
      put(0xf0 | point >> 18);
      put(0x80 | (point >> 12 & 0x3f));
      put(0x80 | (point >> 6 & 0x3f));
    }
    put(0x80 | (point & 0x3f));
  }

  std::uint64_t state_;
};

}  // namespace skald_test
