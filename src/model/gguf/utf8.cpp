#include "model/gguf/format.hpp"

namespace skald::inline v0::gguf {

bool valid_utf8(std::string_view text) noexcept {
  const auto* at = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = at + text.size();
  while (at != end) {
    const unsigned lead = *at++;
    if (lead < 0x80) continue;
    // Well-formed byte sequences: Unicode Standard, table 3-7.
    unsigned low = 0x80;
    unsigned high = 0xBF;
    int more = 0;
    if (lead >= 0xC2 && lead <= 0xDF) more = 1;
    else if (lead >= 0xE0 && lead <= 0xEF) more = 2;
    else if (lead >= 0xF0 && lead <= 0xF4) more = 3;
    else return false;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    if (end - at < more) return false;
    for (; more > 0; --more, low = 0x80, high = 0xBF) {
      if (*at < low || *at > high) return false;
      ++at;
    }
  }
  return true;
}

}  // namespace skald::inline v0::gguf
