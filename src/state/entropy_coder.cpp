#include <skald/state/entropy_coder.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

namespace skald::inline v0 {

namespace {

constexpr std::uint32_t lowest_state = 1U << 16;

/// Unsigned in groups of seven bits, the low ones first.
void write_varint(ArchiveWriter& out, std::uint32_t value) {
  for (; value >= 128; value >>= 7) out.value(static_cast<std::uint8_t>(value | 128U));
  out.value(static_cast<std::uint8_t>(value));
}

std::uint32_t read_varint(ArchiveReader& in, std::string_view field) {
  std::uint32_t value = 0;
  for (int shift = 0; shift < 28; shift += 7) {
    const auto byte = in.value<std::uint8_t>(field);
    value |= static_cast<std::uint32_t>(byte & 127U) << shift;
    if (byte < 128) return value;
  }
  in.refuse(field, "a number has too many digits");
}

/// Shares of 4096: at least 1 for what was counted, and for the last, the escape.
std::vector<std::uint16_t> shares(const std::vector<std::uint64_t>& counts) {
  std::uint64_t sum = 0;
  for (const auto count : counts) sum += count;
  std::vector<std::uint16_t> result(counts.size(), 0);
  std::int64_t left = SymbolTable::total;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const bool needed = counts[i] > 0 || i + 1 == counts.size();
    const auto exact =
        static_cast<double>(counts[i]) * SymbolTable::total / static_cast<double>(std::max<std::uint64_t>(sum, 1));
    result[i] = needed ? static_cast<std::uint16_t>(std::clamp(std::nearbyint(exact), 1.0, 4095.0)) : 0;
    left -= result[i];
  }
  // What rounding left over goes to, or comes from, the most frequent: there it changes the least.
  while (left != 0) {
    const auto most = std::max_element(result.begin(), result.end());
    const auto step = left > 0 ? left : std::max<std::int64_t>(left, 1 - *most);
    *most = static_cast<std::uint16_t>(*most + step);
    left -= step;
  }
  return result;
}

}  // namespace

SymbolTable::SymbolTable() : SymbolTable(0, std::array<std::uint64_t, 1>{1}) {}

SymbolTable::SymbolTable(std::int32_t first, std::span<const std::uint64_t> counts, std::uint64_t others)
    : first_(first) {
  while (!counts.empty() && counts.front() == 0) {
    counts = counts.subspan(1);
    ++first_;
  }
  while (!counts.empty() && counts.back() == 0) counts = counts.first(counts.size() - 1);
  // Outliers on either side are escaped: a table of hundreds of singles costs more than they do.
  while (counts.size() > most_symbols || first_ < -16000 || first_ + static_cast<std::int32_t>(counts.size()) > 16000) {
    const bool low = counts.front() < counts.back() ||
                     (counts.front() == counts.back() && -first_ > first_ + static_cast<std::int32_t>(counts.size()));
    others += low ? counts.front() : counts.back();
    first_ += low ? 1 : 0;
    counts = low ? counts.subspan(1) : counts.first(counts.size() - 1);
    if (counts.empty()) first_ = 0;
  }
  std::vector<std::uint64_t> all(counts.begin(), counts.end());
  all.push_back(others);
  frequencies_ = shares(all);
  set_begins();
}

void SymbolTable::set_begins() {
  begins_.clear();
  std::uint32_t at = 0;
  for (const auto frequency : frequencies_) {
    begins_.push_back(static_cast<std::uint16_t>(at));
    at += frequency;
  }
}

void SymbolTable::prepare() {
  slots_.resize(total);
  std::size_t at = 0;
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    const bool escape = i + 1 == frequencies_.size();
    const auto symbol = escape ? 0 : first_ + static_cast<std::int32_t>(i);
    for (std::uint16_t k = 0; k < frequencies_[i]; ++k)
      slots_[at++] = {static_cast<std::int16_t>(symbol), frequencies_[i], k, static_cast<std::uint16_t>(escape)};
  }
}

void SymbolTable::save(ArchiveWriter& out) const {
  out.value(static_cast<std::int16_t>(first_));
  write_varint(out, static_cast<std::uint32_t>(frequencies_.size()));
  for (const auto frequency : frequencies_) write_varint(out, frequency);
}

SymbolTable SymbolTable::load(ArchiveReader& in) {
  SymbolTable table;
  table.first_ = in.value<std::int16_t>("symbols");
  const auto count = read_varint(in, "symbols");
  if (count < 1 || count > most_symbols + 1 || table.first_ < -16000 || table.first_ + static_cast<int>(count) > 16001)
    in.refuse("symbols", std::to_string(count) + " symbols from " + std::to_string(table.first_) + " on");
  table.frequencies_.clear();
  std::uint32_t sum = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto frequency = read_varint(in, "frequency");
    if (frequency > total) in.refuse("frequency", "more than the whole");
    sum += frequency;
    table.frequencies_.push_back(static_cast<std::uint16_t>(frequency));
  }
  if (table.frequencies_.back() == 0) in.refuse("frequency", "the escape cannot come");
  if (sum != total) in.refuse("frequency", "the frequencies add up to " + std::to_string(sum) + ", not 4096");
  table.set_begins();
  return table;
}

SymbolTable::Entry SymbolTable::entry(std::int32_t symbol, bool& escape) const noexcept {
  const auto index = static_cast<std::int64_t>(symbol) - first_;
  const auto last = static_cast<std::int64_t>(frequencies_.size()) - 1;
  escape = index < 0 || index >= last || frequencies_[static_cast<std::size_t>(index)] == 0;
  const auto at = static_cast<std::size_t>(escape ? last : index);
  return {begins_[at], frequencies_[at]};
}

std::vector<std::byte> encode_symbols(std::span<const SymbolRun> runs) {
  std::array<std::uint32_t, 4> states{};
  states.fill(lowest_state);
  std::vector<std::uint16_t> words;  // backwards
  std::vector<std::int32_t> escapes;
  for (auto run = runs.rbegin(); run != runs.rend(); ++run) {
    for (std::size_t i = run->symbols.size(); i-- > 0;) {
      bool escape = false;
      const auto [begin, frequency] = run->table->entry(run->symbols[i], escape);
      if (escape) escapes.push_back(run->symbols[i]);
      auto& state = states[i % 4];
      if (state >= std::uint64_t{frequency} << (32 - SymbolTable::precision)) {
        words.push_back(static_cast<std::uint16_t>(state));
        state >>= 16;
      }
      state = (state / frequency << SymbolTable::precision) + state % frequency + begin;
    }
  }
  std::reverse(words.begin(), words.end());
  std::reverse(escapes.begin(), escapes.end());
  ArchiveWriter out;
  for (const auto state : states) out.value(state);
  out.array(std::span<const std::uint16_t>(words));
  out.array(std::span<const std::int32_t>(escapes));
  return out.take();
}

SymbolReader::SymbolReader(ArchiveReader& in) {
  for (auto& state : states_) state = in.value<std::uint32_t>("state");
  const auto part = [&](std::size_t element, std::string_view field) {
    const auto count = in.value<std::uint64_t>(field);
    if (count > (std::uint64_t{1} << 40)) in.refuse(field, "a length of " + std::to_string(count));
    return in.raw(static_cast<std::size_t>(count) * element, field);
  };
  words_ = part(2, "words");
  escapes_ = part(4, "escapes");
}

bool SymbolReader::read(const SymbolTable& table, std::span<std::int32_t> out) noexcept {
  if (table.slots().empty()) return false;
  const auto* slots = table.slots().data();
  const auto* words = words_.data();
  const std::size_t end = words_.size() / 2;
  auto word = word_;
  auto states = states_;
  const auto step = [&](std::uint32_t& state, std::int32_t& symbol) {
    const auto slot = slots[state % SymbolTable::total];
    state = slot.frequency * (state >> SymbolTable::precision) + slot.offset;
    symbol = slot.symbol;
    if (state < lowest_state) {
      if (word == end) return false;
      std::uint16_t next = 0;
      std::memcpy(&next, words + 2 * word++, sizeof next);
      state = state << 16 | next;
    }
    if (slot.escape != 0) {
      if (escape_ == escapes_.size()) return false;
      std::memcpy(&symbol, escapes_.data() + escape_, sizeof symbol);
      escape_ += sizeof symbol;
    }
    return true;
  };
  std::size_t i = 0;
  for (; i + 4 <= out.size(); i += 4)
    if (!step(states[0], out[i]) || !step(states[1], out[i + 1]) || !step(states[2], out[i + 2]) ||
        !step(states[3], out[i + 3]))
      return false;
  for (; i < out.size(); ++i)
    if (!step(states[i % 4], out[i])) return false;
  states_ = states;
  word_ = word;
  return true;
}

bool SymbolReader::complete() const noexcept {
  return word_ == words_.size() / 2 && escape_ == escapes_.size() &&
         std::all_of(states_.begin(), states_.end(), [](std::uint32_t state) { return state == lowest_state; });
}

}  // namespace skald::inline v0
