#include "text/charsmap.hpp"

#include <skald/core/error.hpp>

namespace skald::inline v0::detail {
namespace {

std::uint32_t little_endian(std::string_view bytes, std::size_t at) noexcept {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

// A unit holds the offset to its children in bits 10 to 30 (bit 9: times 256), whether one of them holds a value in
// bit 8, and its own byte in bits 0 to 7. Units with bit 31 hold a value.
std::uint32_t offset_of(std::uint32_t unit) noexcept { return (unit >> 10) << ((unit & (1U << 9)) >> 6); }
bool has_byte(std::uint32_t unit, unsigned char byte) noexcept { return (unit & (1U << 31 | 0xff)) == byte; }

}  // namespace

Charsmap::Charsmap(std::string_view bytes) {
  if (bytes.empty()) return;
  const auto refuse = [&](const std::string& why) {
    throw FormatError("text.charsmap", "the normalization table of " + std::to_string(bytes.size()) + " bytes " + why);
  };
  if (bytes.size() < 4) refuse("is too short for its size field");
  const std::size_t size = little_endian(bytes, 0);
  if (size >= bytes.size() - 4) refuse("cannot hold an array of " + std::to_string(size) + " bytes and replacements");
  if (size == 0 || size % 4 != 0)
    refuse("has an array of " + std::to_string(size) + " bytes, which is no multiple of 4");
  if (bytes.back() != '\0') refuse("does not end with a zero");
  units_.reserve(size / 4);
  for (std::size_t at = 4; at < 4 + size; at += 4) units_.push_back(little_endian(bytes, at));
  replacements_ = bytes.substr(4 + size);
}

template <bool first>
std::optional<Charsmap::Match> Charsmap::find(std::string_view text) const noexcept {
  std::optional<Match> best;
  if (units_.empty()) return best;
  std::size_t node = offset_of(units_[0]);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == 0) break;
    node ^= byte;
    if (node >= units_.size() || !has_byte(units_[node], byte)) break;
    const std::uint32_t unit = units_[node];
    node ^= offset_of(unit);
    if ((unit >> 8 & 1) == 0) continue;
    if (node >= units_.size()) break;
    const std::size_t at = units_[node] & ~(1U << 31);
    if (at >= replacements_.size()) break;
    best = {i + 1, std::string_view(replacements_.data() + at)};  // the last byte is zero
    if (first) break;
  }
  return best;
}

std::optional<Charsmap::Match> Charsmap::longest(std::string_view text) const noexcept { return find<false>(text); }
std::optional<Charsmap::Match> Charsmap::shortest(std::string_view text) const noexcept { return find<true>(text); }

}  // namespace skald::inline v0::detail
