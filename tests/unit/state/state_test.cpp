#include <cstring>
#include <numeric>
#include <set>

#include <skald/state/kv_format.hpp>
#include <skald/state/kv_rows.hpp>
#include <skald/state/paged_kv.hpp>
#include <skald/state/sequence.hpp>

#include "support/catch.hpp"

namespace {

constexpr skald::KvPageLayout layout{skald::DType::f32, 16, 1, 4, 2};

std::shared_ptr<skald::KvPool> make_pool(std::uint32_t pages) {
  return std::make_shared<skald::KvPool>(skald::make_reference_backend(), layout, pages);
}

skald::SequenceState make_sequence(const std::shared_ptr<skald::KvPool>& pool, int layers = 2, int groups = 2) {
  std::vector<std::unique_ptr<skald::LayerState>> states;
  for (int i = 0; i < layers; ++i) states.push_back(std::make_unique<skald::PagedKv>(pool, groups, 256));
  return skald::SequenceState(std::move(states));
}

const skald::PagedKv& kv(const skald::SequenceState& sequence, int layer) {
  return static_cast<const skald::PagedKv&>(*sequence.layer(layer));
}

float* key(const skald::SequenceState& sequence, int layer, int group, std::int64_t slot) {
  const auto& state = kv(sequence, layer);
  const auto page = state.pages(group)[static_cast<std::size_t>(slot / 16)];
  return reinterpret_cast<float*>(state.pool().address(page)) + layout.key_index(static_cast<int>(slot % 16), 0);
}

/// Appends tokens and marks each slot's first key element with layer, group and value.
void write_tokens(skald::SequenceState& sequence, int count, float value) {
  const auto begin = sequence.length();
  sequence.append(count);
  for (int l = 0; l < sequence.layer_count(); ++l)
    for (int g = 0; g < kv(sequence, l).groups(); ++g)
      for (int i = 0; i < count; ++i) {
        const auto slot = kv(sequence, l).slots(g) - count + i;
        *key(sequence, l, g, slot) = value + static_cast<float>(begin + i) + 1000.0F * static_cast<float>(l * 2 + g);
      }
  sequence.commit();
}

std::vector<float> keys(const skald::SequenceState& sequence, int layer, int group) {
  std::vector<float> result;
  for (std::int64_t s = 0; s < kv(sequence, layer).slots(group); ++s) result.push_back(*key(sequence, layer, group, s));
  return result;
}

}  // namespace

TEST_CASE("state.kv_pool: hands out each page once, refuses when empty, counts references", "[state]") {
  const auto pool = make_pool(3);
  std::set<skald::PageId> pages{pool->take(), pool->take(), pool->take()};
  CHECK(pages.size() == 3);
  CHECK_THROWS_AS(pool->take(), skald::OutOfMemoryError);
  pool->retain(*pages.begin());
  CHECK(pool->shared(*pages.begin()));
  pool->release(*pages.begin());
  CHECK(pool->used_pages() == 3);
  pool->release(*pages.begin());
  CHECK(pool->used_pages() == 2);
  CHECK(pool->take() == *pages.begin());
  CHECK(pool->peak_pages() == 3);
  CHECK_THROWS_AS(skald::KvPool(skald::make_reference_backend(), {skald::DType::f32, 24, 1, 4, 4}, 1), skald::UsageError);
  CHECK_THROWS_AS(skald::KvPool(skald::make_reference_backend(), {skald::DType::q5_0, 16, 1, 4, 4}, 1),
                  skald::UnsupportedError);
}

TEST_CASE("state.paged_kv: pages are taken as tokens come and all return", "[state]") {
  const auto pool = make_pool(100);
  {
    auto sequence = make_sequence(pool);
    write_tokens(sequence, 1, 0);
    CHECK(pool->used_pages() == 4);  // 2 layers x 2 groups
    write_tokens(sequence, 15, 0);
    CHECK(pool->used_pages() == 4);
    write_tokens(sequence, 1, 0);
    CHECK(pool->used_pages() == 8);
    CHECK(sequence.bytes() == 8 * layout.page_bytes());
    sequence.truncate(16);
    CHECK(pool->used_pages() == 4);
    CHECK_THROWS_AS(sequence.truncate(17), skald::UsageError);
    sequence.append(20);
    CHECK(pool->used_pages() == 12);
    sequence.rollback();
    CHECK(pool->used_pages() == 4);
    CHECK(sequence.length() == 16);
  }
  CHECK(pool->used_pages() == 0);
}

TEST_CASE("state.paged_kv: an append that does not fit changes nothing", "[state]") {
  const auto pool = make_pool(6);
  auto sequence = make_sequence(pool);
  write_tokens(sequence, 10, 0);
  CHECK_THROWS_AS(sequence.append(10), skald::OutOfMemoryError);
  CHECK(pool->used_pages() == 4);
  CHECK(sequence.length() == 10);
  CHECK(kv(sequence, 0).slots(0) == 10);
  write_tokens(sequence, 6, 0);
  CHECK(sequence.length() == 16);
}

TEST_CASE("state.paged_kv: a fork shares pages and copies a partial page when it writes", "[state]") {
  const auto pool = make_pool(100);
  auto parent = make_sequence(pool, 1, 1);
  write_tokens(parent, 20, 0);
  auto child = parent.fork();
  CHECK(pool->used_pages() == 2);
  CHECK(child.bytes_beyond(parent) == 0);
  write_tokens(child, 3, 500);
  CHECK(pool->used_pages() == 3);
  CHECK(child.bytes_beyond(parent) == pool->page_bytes());
  CHECK(child.bytes_beyond(make_sequence(pool, 1, 1)) == child.bytes());
  write_tokens(parent, 2, 0);
  CHECK(pool->used_pages() == 3);  // the parent now owns the partial page alone
  std::vector<float> expected(22);
  std::iota(expected.begin(), expected.end(), 0.0F);
  CHECK(keys(parent, 0, 0) == expected);
  expected.resize(20);
  for (const float v : {520.0F, 521.0F, 522.0F}) expected.push_back(v);
  CHECK(keys(child, 0, 0) == expected);
  child.truncate(16);  // exactly the shared full page
  write_tokens(child, 1, 900);
  CHECK(keys(parent, 0, 0)[16] == 16.0F);
  child.truncate(10);  // inside the shared page: the next write must not touch the parent's
  write_tokens(child, 1, 700);
  CHECK(keys(parent, 0, 0)[10] == 10.0F);
  CHECK(keys(child, 0, 0)[10] == 710.0F);
  parent.clear();
  child.clear();
  CHECK(pool->used_pages() == 0);
}

TEST_CASE("state.sequence: commit_selected keeps one path of a tree", "[state]") {
  const auto pool = make_pool(100);
  auto sequence = make_sequence(pool, 2, 2);
  write_tokens(sequence, 14, 0);
  sequence.append(6);
  for (int i = 0; i < 6; ++i) *key(sequence, 1, 1, 14 + i) = 100.0F + static_cast<float>(i);
  const std::int32_t path[] = {0, 3, 5};
  sequence.commit_selected(path);
  CHECK(sequence.length() == 17);
  const auto values = keys(sequence, 1, 1);
  REQUIRE(values.size() == 17);
  CHECK(values[14] == 100.0F);
  CHECK(values[15] == 103.0F);
  CHECK(values[16] == 105.0F);
  sequence.append(2);
  const std::int32_t wrong[] = {1, 1};
  CHECK_THROWS_AS(sequence.commit_selected(wrong), skald::UsageError);
  sequence.rollback();
  CHECK(sequence.length() == 17);
}

TEST_CASE("state.eviction: dropped pages return to the pool, per group, and cannot be rolled back into", "[state]") {
  struct OnlyGroupOne {
    [[nodiscard]] std::string name() const { return "only_group_one"; }
    [[nodiscard]] skald::ComponentTraits traits() const { return {.drops_tokens = true, .lossy = true}; }
    void evict(const skald::EvictionView& view, std::span<std::uint8_t> drop) const {
      if (view.group == 1 && drop.size() > 1) drop[0] = 1;
    }
  };
  const auto pool = make_pool(100);
  auto sequence = make_sequence(pool, 1, 2);
  write_tokens(sequence, 48, 0);
  CHECK(pool->used_pages() == 6);
  sequence.evict(OnlyGroupOne{});
  CHECK(pool->used_pages() == 5);
  CHECK(kv(sequence, 0).slots(0) == 48);
  CHECK(kv(sequence, 0).slots(1) == 32);
  CHECK(keys(sequence, 0, 1).front() == 1016.0F);
  CHECK(kv(sequence, 0).evicted_pages() == 1);
  write_tokens(sequence, 5, 0);
  CHECK(keys(sequence, 0, 1).back() == 1052.0F);
  sequence.truncate(48);
  CHECK_THROWS_AS(sequence.truncate(47), skald::UsageError);
  auto fork = sequence.fork();
  fork.evict(skald::AnyEviction::from_spec("recent_pages:sinks=0,recent=1"));
  CHECK(kv(fork, 0).slots(0) == 16);
  CHECK(kv(sequence, 0).slots(0) == 48);
  CHECK_THROWS_AS(skald::AnyEviction::from_spec("h3o:budget=3"), skald::UsageError);
  CHECK_THROWS_AS(skald::AnyEviction::from_spec("recent_pages:recent=0"), skald::UsageError);
  CHECK_THROWS_AS(skald::AnyEviction::from_spec("recent_pages:x=1"), skald::UsageError);
}

TEST_CASE("state.sequence: save and load carry everything, damaged data is refused at every length", "[state]") {
  const auto pool = make_pool(100);
  auto sequence = make_sequence(pool);
  write_tokens(sequence, 40, 0);
  sequence.evict(skald::AnyEviction::from_spec("recent_pages:sinks=0,recent=1"));
  write_tokens(sequence, 7, 0);
  skald::ArchiveWriter out;
  sequence.save(out);
  auto copy = make_sequence(pool);
  write_tokens(copy, 3, 0);
  skald::ArchiveReader in(out.bytes(), "memory");
  copy.load(in);
  in.finish();
  CHECK(copy.length() == 47);
  for (int l = 0; l < 2; ++l)
    for (int g = 0; g < 2; ++g) CHECK(keys(copy, l, g) == keys(sequence, l, g));
  CHECK_THROWS_AS(copy.truncate(39), skald::UsageError);
  for (std::size_t length = 0; length < out.bytes().size(); length += 13) {
    skald::ArchiveReader cut(out.bytes().first(length), "cut");
    CHECK_THROWS_AS(copy.load(cut), skald::Error);
    CHECK(copy.length() == 0);
  }
  auto other = make_sequence(pool, 3);
  skald::ArchiveReader again(out.bytes(), "memory");
  CHECK_THROWS_AS(other.load(again), skald::FormatError);
  const auto used = pool->used_pages();
  sequence.clear();
  CHECK(pool->used_pages() < used);
}

TEST_CASE("state.paged_kv: a state from which nothing can be dropped does not load one with tokens missing", "[state]") {
  const auto pool = make_pool(8);
  skald::PagedKv kept(pool, 1, skald::PagedKvOptions{.max_tokens = 64});
  const auto load = [&](std::int64_t kept_from, std::int64_t slots) {
    skald::ArchiveWriter out;
    for (const std::int64_t number : {std::int64_t{20}, kept_from, kept_from, std::int64_t{0}, std::int64_t{0}, std::int64_t{0}})
      out.value(number);
    out.value(std::uint32_t{1});
    out.value(std::int64_t{0});
    out.value(slots);
    (void)out.reserve(static_cast<std::size_t>(slots) * skald::kv_slot_bytes(layout));
    out.array(std::span<const float>{});
    out.array(std::span<const std::int32_t>{});
    const auto bytes = out.take();
    skald::ArchiveReader in(bytes, "crafted");
    kept.load(in);
  };
  CHECK_NOTHROW(load(0, 20));
  CHECK_THROWS_AS(load(10, 10), skald::FormatError);
  CHECK(kept.length() == 0);
}

TEST_CASE("state.kv_format: names give formats, others are refused by name", "[state]") {
  CHECK(skald::AnyKvFormat("bf16").dtype() == skald::DType::bf16);
  CHECK(skald::AnyKvFormat("q8_0").dtype() == skald::DType::q8_0);
  CHECK(skald::AnyKvFormat(skald::KvQ4{}).dtype() == skald::DType::q4_0);
  CHECK(skald::AnyKvFormat(skald::KvF16{}).dtype() == skald::DType::f16);
  CHECK_THROWS_AS(skald::AnyKvFormat("q5_1"), skald::UnsupportedError);
}

TEST_CASE("state.kv_format: rules choose formats for layers and heads, later ones first", "[state]") {
  using skald::DType;
  const skald::AnyKvFormat format(" q4_0 ; layers 0-1,5=f16;heads 2=q8_0; layers 5 heads 0-1 = f32");
  CHECK(format.dtype() == DType::q4_0);
  CHECK(format.dtype(3, 0) == DType::q4_0);
  CHECK(format.dtype(1, 0) == DType::f16);
  CHECK(format.dtype(5, 3) == DType::f16);
  CHECK(format.dtype(5, 2) == DType::q8_0);
  CHECK(format.dtype(5, 1) == DType::f32);
  CHECK(format.name() == "q4_0;layers 0-1,5=f16;heads 2=q8_0;layers 5 heads 0-1=f32");
  CHECK(skald::AnyKvFormat(format.name()).name() == format.name());
  CHECK_NOTHROW(format.check(6, 3));
  CHECK_THROWS_AS(format.check(5, 3), skald::IncompatibleError);
  CHECK_THROWS_AS(format.check(6, 2), skald::IncompatibleError);
  for (const auto* bad : {"f16;", "f16;layers 0", "f16;layers =f32", "f16;layers 3-1=f32", "f16;rows 1=f32", "f16;layers -1=f32",
                          "f16;=f32", "f16;layers 0 heads=f32", "f16;layers 99999999999=f32", "f16;layers 0x=f32"}) {
    INFO(bad);
    if (std::string(bad) == "f16;") CHECK_NOTHROW(skald::AnyKvFormat(bad));
    else CHECK_THROWS_AS(skald::AnyKvFormat(bad), skald::UsageError);
  }
  CHECK_THROWS_AS(skald::AnyKvFormat("f16;layers 0=q5_1"), skald::UnsupportedError);
}
