#include <cmath>
#include <limits>
#include <map>

#include <skald/core/random.hpp>
#include <skald/state/entropy_coder.hpp>

#include "support/catch.hpp"

namespace {

using namespace skald;

/// Near a two-sided geometric distribution of some width.
std::vector<std::int32_t> draw(std::uint64_t seed, std::size_t count, double width) {
  CounterRandom random(seed, 0, 0);
  std::vector<std::int32_t> symbols(count);
  for (auto& symbol : symbols) {
    const double size = -std::log(1.0 - random.uniform()) * width;
    symbol = static_cast<std::int32_t>(size) * (random.uniform() < 0.5 ? -1 : 1);
  }
  return symbols;
}

SymbolTable table_of(std::span<const std::int32_t> symbols, std::int32_t reach) {
  std::vector<std::uint64_t> counts(static_cast<std::size_t>(2 * reach + 1));
  std::uint64_t others = 0;
  for (const auto symbol : symbols) {
    if (std::abs(symbol) <= reach) ++counts[static_cast<std::size_t>(symbol + reach)];
    else ++others;
  }
  return {-reach, counts, others};
}

double entropy_bits(std::span<const std::int32_t> symbols) {
  std::map<std::int32_t, double> counts;
  for (const auto symbol : symbols) ++counts[symbol];
  double bits = 0;
  for (const auto& [symbol, count] : counts) bits -= count * std::log2(count / static_cast<double>(symbols.size()));
  return bits;
}

bool round_trip(std::span<const SymbolRun> runs) {
  const auto bytes = encode_symbols(runs);
  ArchiveReader in(bytes, "stream");
  SymbolReader reader(in);
  in.finish();
  for (const auto& run : runs) {
    auto table = *run.table;
    table.prepare();
    std::vector<std::int32_t> out(run.symbols.size());
    if (!reader.read(table, out) || !std::equal(out.begin(), out.end(), run.symbols.begin())) return false;
  }
  return reader.complete();
}

}  // namespace

TEST_CASE("state.entropy_coder: every run of integers comes back, listed or not", "[state]") {
  const SymbolTable zero;
  const auto narrow = draw(1, 4001, 1.5);
  const auto wide = draw(2, 777, 60.0);
  const std::vector<std::int32_t> extremes{
      0, 1, -1, std::numeric_limits<std::int32_t>::max(), std::numeric_limits<std::int32_t>::min(), 16000, -16000, 7};
  const auto table = table_of(narrow, 5);
  CHECK(round_trip(std::vector<SymbolRun>{{&zero, std::vector<std::int32_t>(9, 0)}}) == true);
  for (std::size_t n = 0; n < 9; ++n) {
    const SymbolRun runs[] = {
        {&table, std::span(narrow).first(n)}, {&zero, extremes}, {&table, wide}, {&table, narrow}};
    CHECK(round_trip(runs));
  }
  CHECK(round_trip({}));
}

TEST_CASE("state.entropy_coder: takes at most one percent and some bytes more than the entropy", "[state]") {
  for (const double width : {0.3, 1.0, 3.0, 12.0}) {
    const auto symbols = draw(3, 60000, width);
    const auto table = table_of(symbols, 200);
    const SymbolRun run[] = {{&table, symbols}};
    const auto bits = 8.0 * static_cast<double>(encode_symbols(run).size());
    INFO("width " << width << ": " << bits << " bits, entropy " << entropy_bits(symbols));
    CHECK(bits < 1.01 * entropy_bits(symbols) + 8 * 64);
    CHECK(bits > entropy_bits(symbols));
  }
}

TEST_CASE("state.entropy_coder: tables are restored, frequencies that do not add up are refused", "[state]") {
  const auto symbols = draw(4, 3000, 4.0);
  const auto table = table_of(symbols, 30);
  ArchiveWriter out;
  table.save(out);
  ArchiveReader in(out.bytes(), "table");
  auto restored = SymbolTable::load(in);
  in.finish();
  const SymbolRun run[] = {{&table, symbols}};
  const SymbolRun again[] = {{&restored, symbols}};
  CHECK(encode_symbols(run) == encode_symbols(again));
  for (std::size_t i = 0; i < out.bytes().size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::vector<std::byte> damaged(out.bytes().begin(), out.bytes().end());
      damaged[i] ^= static_cast<std::byte>(1 << bit);
      ArchiveReader reader(damaged, "table");
      try {
        auto other = SymbolTable::load(reader);
        other.prepare();
        CHECK(other.slots().size() == SymbolTable::total);
      } catch (const FormatError&) {
      }
    }
}

TEST_CASE("state.entropy_coder: a damaged stream ends, with an error or with wrong symbols", "[state]") {
  const auto symbols = draw(5, 500, 3.0);
  auto table = table_of(symbols, 6);
  table.prepare();
  const SymbolRun run[] = {{&table, symbols}};
  const auto bytes = encode_symbols(run);
  int noticed = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    auto damaged = bytes;
    damaged[i] ^= std::byte{0x11};
    try {
      ArchiveReader in(damaged, "stream");
      SymbolReader reader(in);
      std::vector<std::int32_t> out(symbols.size());
      noticed += !reader.read(table, out) || !reader.complete() || out != symbols;
    } catch (const FormatError&) {
      ++noticed;
    }
  }
  CHECK(noticed == static_cast<int>(bytes.size()));
}
