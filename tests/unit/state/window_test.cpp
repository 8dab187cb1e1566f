// Layers with a sliding window keep their window.
#include <skald/state/paged_kv.hpp>
#include <skald/state/sequence.hpp>

#include "support/catch.hpp"

namespace {

constexpr skald::KvPageLayout layout{skald::DType::f32, 16, 1, 4, 2};
constexpr std::int64_t window = 40;

std::shared_ptr<skald::KvPool> make_pool(std::uint32_t pages) {
  return std::make_shared<skald::KvPool>(skald::make_reference_backend(), layout, pages);
}

/// A layer with a window and one without.
skald::SequenceState make_sequence(const std::shared_ptr<skald::KvPool>& pool, std::int64_t rollback = 0) {
  std::vector<std::unique_ptr<skald::LayerState>> states;
  states.push_back(std::make_unique<skald::PagedKv>(
      pool, 2, skald::PagedKvOptions{.max_tokens = 1024, .window = window, .rollback = rollback}));
  states.push_back(std::make_unique<skald::PagedKv>(pool, 1, skald::PagedKvOptions{.max_tokens = 1024}));
  return skald::SequenceState(std::move(states));
}

const skald::PagedKv& kv(const skald::SequenceState& sequence, int layer) {
  return static_cast<const skald::PagedKv&>(*sequence.layer(layer));
}

float* key(const skald::SequenceState& sequence, int layer, int group, std::int64_t slot) {
  const auto& state = kv(sequence, layer);
  const auto page = state.pages(group)[static_cast<std::size_t>((slot - state.first_slot(group)) / 16)];
  return reinterpret_cast<float*>(state.pool().address(page)) + layout.key_index(static_cast<int>(slot % 16), 0);
}

void write_tokens(skald::SequenceState& sequence, std::int64_t count, float mark = 0) {
  const auto begin = sequence.length();
  sequence.append(count);
  for (int l = 0; l < 2; ++l)
    for (int g = 0; g < kv(sequence, l).groups(); ++g)
      for (std::int64_t i = 0; i < count; ++i)
        *key(sequence, l, g, begin + i) = mark + static_cast<float>(begin + i);
  sequence.commit();
}

/// Every slot that the next token may see is there and holds its mark.
void check_window(const skald::SequenceState& sequence, float mark_from = 1e9F, float mark = 0) {
  const auto length = sequence.length();
  for (int g = 0; g < 2; ++g) {
    REQUIRE(kv(sequence, 0).slots(g) == length);
    REQUIRE(kv(sequence, 0).first_slot(g) % 16 == 0);
    REQUIRE(kv(sequence, 0).first_slot(g) <= std::max<std::int64_t>(0, length - window + 1));
    for (std::int64_t slot = std::max<std::int64_t>(0, length - window + 1); slot < length; ++slot) {
      const auto value = static_cast<float>(slot);
      REQUIRE(*key(sequence, 0, g, slot) == (value >= mark_from ? mark + value : value));
    }
  }
}

}  // namespace

TEST_CASE("state.window: a layer keeps its window and at most one page more, however tokens come", "[state]") {
  for (const std::int64_t chunk : {1, 7, 16, 100}) {
    const auto pool = make_pool(400);
    auto sequence = make_sequence(pool);
    while (sequence.length() < 400) {
      write_tokens(sequence, chunk);
      check_window(sequence);
      // 39 slots that the next token sees, in pages of 16, the first and the last of them partly used.
      CHECK(kv(sequence, 0).bytes() <= 2 * 4 * layout.page_bytes());
      CHECK(kv(sequence, 0).bytes() <= 2 * static_cast<std::size_t>(window + 16 + 15) / 16 * layout.page_bytes());
      CHECK(kv(sequence, 1).bytes() == static_cast<std::size_t>((sequence.length() + 15) / 16) * layout.page_bytes());
    }
    CHECK(pool->used_pages() * layout.page_bytes() == sequence.bytes());
  }
}

TEST_CASE("state.window: truncating within what is kept is exact, beyond is refused and changes nothing", "[state]") {
  const auto pool = make_pool(400);
  auto sequence = make_sequence(pool);
  write_tokens(sequence, 200);
  // 200 - 40 + 1 = 161: pages from slot 160 on are left, so that one token can be taken back.
  CHECK(kv(sequence, 0).first_slot(0) == 160);
  CHECK(sequence.restorable(199) == 199);
  CHECK(sequence.restorable(198) == -1);
  CHECK_THROWS_AS(sequence.truncate(198), skald::UsageError);
  CHECK(sequence.length() == 200);
  sequence.truncate(199);
  write_tokens(sequence, 30, 500);
  check_window(sequence, 199, 500);
  sequence.append(50);
  sequence.rollback();
  check_window(sequence, 199, 500);
  auto slack = make_sequence(pool, 24);
  write_tokens(slack, 200);
  slack.truncate(176);
  check_window(slack);
  auto young = make_sequence(pool);
  write_tokens(young, 39);
  young.truncate(0);
  CHECK(young.length() == 0);
}

TEST_CASE("state.window: forks share the window and part without touching each other, all pages return", "[state]") {
  const auto pool = make_pool(400);
  {
    auto parent = make_sequence(pool);
    write_tokens(parent, 100);
    const auto used = pool->used_pages();
    auto child = parent.fork();
    CHECK(pool->used_pages() == used);
    write_tokens(child, 70, 1000);
    write_tokens(parent, 5);
    check_window(parent);
    check_window(child, 100, 1000);
    parent.clear();
    check_window(child, 100, 1000);
  }
  CHECK(pool->used_pages() == 0);
}

TEST_CASE("state.window: save and load carry the window, a table that lacks a visible slot is refused", "[state]") {
  const auto pool = make_pool(400);
  auto sequence = make_sequence(pool);
  write_tokens(sequence, 150);
  skald::ArchiveWriter out;
  sequence.save(out);
  auto copy = make_sequence(pool);
  skald::ArchiveReader in(out.bytes(), "memory");
  copy.load(in);
  in.finish();
  check_window(copy);
  write_tokens(copy, 20);
  check_window(copy);
  for (std::size_t length = 0; length < out.bytes().size(); length += 61) {
    skald::ArchiveReader cut(out.bytes().first(length), "cut");
    CHECK_THROWS_AS(copy.load(cut), skald::Error);
    CHECK(copy.length() == 0);
  }
  // The table of a layer without a window must begin at slot 0.
  std::vector<std::unique_ptr<skald::LayerState>> states;
  states.push_back(std::make_unique<skald::PagedKv>(pool, 2, skald::PagedKvOptions{.max_tokens = 1024}));
  states.push_back(std::make_unique<skald::PagedKv>(pool, 1, skald::PagedKvOptions{.max_tokens = 1024}));
  skald::SequenceState plain(std::move(states));
  skald::ArchiveReader again(out.bytes(), "memory");
  CHECK_THROWS_AS(plain.load(again), skald::FormatError);
}
