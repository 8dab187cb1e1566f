#include "text/unicode.hpp"

#include <utf8proc.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <memory>

#include <skald/core/error.hpp>

#include "text/utf8.hpp"

namespace skald::inline v0::detail {
namespace {

utf8proc_category_t category(CodePoint point) noexcept {
  return utf8proc_category(static_cast<utf8proc_int32_t>(point));
}

}  // namespace

DecodedPoint decode_point(std::string_view text) noexcept {
  const Utf8Step step = utf8_step(text);
  if (step.kind != Utf8Step::Kind::valid) return {0xfffd, step.size};
  return {utf8_code_point(text), step.size};
}

void append_point(std::string& out, CodePoint point) {
  const auto put = [&](CodePoint byte) { out += static_cast<char>(byte); };
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

std::size_t count_points(std::string_view text) noexcept {
  std::size_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return count;
}

bool is_white_space(CodePoint point) noexcept {
  if (point < 0x80) return point == ' ' || (point >= '\t' && point <= '\r');
  return point == 0x85 || point == 0xa0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200a) || point == 0x2028 ||
         point == 0x2029 || point == 0x202f || point == 0x205f || point == 0x3000;
}

bool is_punctuation(CodePoint point) noexcept {
  switch (category(point)) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO: return true;
    default: return false;
  }
}

bool is_symbol(CodePoint point) noexcept {
  switch (category(point)) {
    case UTF8PROC_CATEGORY_SM:
    case UTF8PROC_CATEGORY_SC:
    case UTF8PROC_CATEGORY_SK:
    case UTF8PROC_CATEGORY_SO: return true;
    default: return false;
  }
}

bool is_mark(CodePoint point) noexcept {
  const auto kind = category(point);
  return kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_MC || kind == UTF8PROC_CATEGORY_ME;
}

bool is_nonspacing_mark(CodePoint point) noexcept { return category(point) == UTF8PROC_CATEGORY_MN; }

bool is_number(CodePoint point) noexcept {
  const auto kind = category(point);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}

bool is_other(CodePoint point) noexcept {
  const auto kind = category(point);
  return kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF || kind == UTF8PROC_CATEGORY_CS ||
         kind == UTF8PROC_CATEGORY_CO;
}

bool is_word(CodePoint point) noexcept {
  switch (category(point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
  }
  // Joiners, and the circled and squared letters, which are symbols with the property Alphabetic.
  return point == 0x200c || point == 0x200d || (point >= 0x24b6 && point <= 0x24e9) ||
         (point >= 0x1f130 && point <= 0x1f149) || (point >= 0x1f150 && point <= 0x1f169) ||
         (point >= 0x1f170 && point <= 0x1f189);
}

bool is_chinese(CodePoint point) noexcept {
  // The last block but two begins at U+2B920 in the tokenizers that the vocabularies were made with.
  return (point >= 0x4e00 && point <= 0x9fff) || (point >= 0x3400 && point <= 0x4dbf) ||
         (point >= 0x20000 && point <= 0x2a6df) || (point >= 0x2a700 && point <= 0x2b73f) ||
         (point >= 0x2b740 && point <= 0x2b81f) || (point >= 0x2b920 && point <= 0x2ceaf) ||
         (point >= 0xf900 && point <= 0xfaff) || (point >= 0x2f800 && point <= 0x2fa1f);
}

void append_lower(std::string& out, CodePoint point) {
  if (point < 0x80) {
    out += static_cast<char>(point >= 'A' && point <= 'Z' ? point + 32 : point);
  } else {
    append_point(out, static_cast<CodePoint>(utf8proc_tolower(static_cast<utf8proc_int32_t>(point))));
    if (point == 0x130) out += "\xcc\x87";  // capital I with dot above keeps its dot
  }
}

CodePoint base_point(CodePoint point) noexcept {
  if (point < 0xc0) return point;
  std::array<utf8proc_int32_t, 32> decomposed{};
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(point), decomposed.data(),
                                             static_cast<utf8proc_ssize_t>(decomposed.size()),
                                             static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE), nullptr);
  return count > 0 ? static_cast<CodePoint>(decomposed[0]) : point;
}

std::string normal_form(std::string_view text, NormalForm form) {
  // ASCII is in all forms.
  bool plain = true;
  for (const char c : text) plain = plain && static_cast<unsigned char>(c) < 0x80;
  if (plain) return std::string(text);
  int options = UTF8PROC_STABLE;
  options |= form == NormalForm::nfc || form == NormalForm::nfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::nfkc || form == NormalForm::nfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* raw = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &raw, static_cast<utf8proc_option_t>(options));
  struct Free {
    void operator()(utf8proc_uint8_t* bytes) const noexcept { std::free(bytes); }
  };
  const std::unique_ptr<utf8proc_uint8_t, Free> result(raw);
  if (size < 0) throw OutOfMemoryError("text.unicode", std::string("cannot normalize: ") + utf8proc_errmsg(size));
  return {reinterpret_cast<const char*>(result.get()), static_cast<std::size_t>(size)};
}

std::size_t grapheme_size(std::string_view text) noexcept {
  DecodedPoint last = decode_point(text);
  std::size_t size = last.size;
  utf8proc_int32_t state = 0;
  while (size < text.size()) {
    const DecodedPoint next = decode_point(text.substr(size));
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(last.value),
                                         static_cast<utf8proc_int32_t>(next.value), &state)) {
      break;
    }
    last = next;
    size += next.size;
  }
  return size;
}

}  // namespace skald::inline v0::detail
