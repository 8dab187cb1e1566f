#include "text/byte_level.hpp"

#include "text/utf8.hpp"

namespace skald::inline v0::detail {
namespace {

constexpr bool is_printable(unsigned byte) noexcept {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Tables {
  std::array<std::uint16_t, 256> code_points{};
  std::array<std::array<char, 2>, 256> chars{};
  std::array<std::int16_t, 0x144> bytes{};  // byte of a code point below U+0144, or -1
};

constexpr Tables make_tables() noexcept {
  Tables tables;
  for (auto& byte : tables.bytes) byte = -1;
  std::uint16_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto code_point = is_printable(byte) ? static_cast<std::uint16_t>(byte) : next++;
    tables.code_points[byte] = code_point;
    tables.bytes[code_point] = static_cast<std::int16_t>(byte);
    if (code_point < 0x80) {
      tables.chars[byte] = {static_cast<char>(code_point), 0};
    } else {
      tables.chars[byte] = {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
    }
  }
  return tables;
}

constexpr Tables tables = make_tables();

}  // namespace

std::uint32_t byte_level_code_point(unsigned char byte) noexcept { return tables.code_points[byte]; }

std::string_view byte_level_char(unsigned char byte) noexcept {
  return {tables.chars[byte].data(), tables.code_points[byte] < 0x80 ? 1U : 2U};
}

std::string byte_level_decode(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    const std::uint32_t code_point = step.kind == Utf8Step::Kind::valid ? utf8_code_point(text) : 0xffff'ffff;
    if (code_point < tables.bytes.size() && tables.bytes[code_point] >= 0) {
      bytes += static_cast<char>(tables.bytes[code_point]);
    } else {
      bytes += text.substr(0, step.size);
    }
    text.remove_prefix(step.size);
  }
  return bytes;
}

}  // namespace skald::inline v0::detail
