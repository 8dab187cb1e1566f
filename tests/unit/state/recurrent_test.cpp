#include <cstring>

#include <skald/state/recurrent.hpp>
#include <skald/state/sequence.hpp>

#include "support/catch.hpp"

namespace {

constexpr std::int64_t elements = 5;

skald::RecurrentOptions options(std::int64_t interval, std::int32_t checkpoints) {
  return {.elements = elements, .checkpoint_interval = interval, .checkpoints = checkpoints, .max_tokens = 1000};
}

skald::RecurrentState make_state(std::int64_t interval, std::int32_t checkpoints) {
  return skald::RecurrentState(skald::make_reference_backend(), options(interval, checkpoints));
}

/// A pass over `count` tokens: each adds one to every element.
void pass(skald::RecurrentState& state, std::int64_t count, bool commit = true) {
  state.append(count);
  const auto place = state.place();
  for (std::int64_t i = 0; i < elements; ++i)
    place.to[i] = (place.from != nullptr ? place.from[i] : 0.0F) + static_cast<float>(count);
  if (commit) state.commit();
}

float value(const skald::RecurrentState& state) {
  const auto place = state.place();
  return place.from != nullptr ? place.from[elements - 1] : 0.0F;
}

}  // namespace

TEST_CASE("state.recurrent: begins with zeros, moves on when committed, and a pass that fails changes nothing",
          "[state]") {
  auto state = make_state(4, 2);
  CHECK(state.place().from == nullptr);
  pass(state, 3);
  CHECK(state.length() == 3);
  CHECK(value(state) == 3.0F);
  pass(state, 2, false);
  CHECK(state.length() == 5);
  state.remove_last(2);
  CHECK(state.length() == 3);
  CHECK(value(state) == 3.0F);
  state.clear();
  CHECK(state.place().from == nullptr);
  CHECK(state.bytes() == skald::RecurrentState::needed_bytes(options(4, 2)));
  CHECK(state.bytes() == std::size_t{4} * 64);
}

TEST_CASE("state.recurrent: goes back to the checkpoints that it keeps and to the beginning, nowhere else", "[state]") {
  auto state = make_state(4, 2);
  for (int i = 0; i < 14; ++i) pass(state, 1);
  CHECK(state.checkpoint_lengths() == std::vector<std::int64_t>{8, 12});
  CHECK(state.restorable(20) == 14);
  CHECK(state.restorable(13) == 12);
  CHECK(state.restorable(11) == 8);
  CHECK(state.restorable(7) == 0);
  CHECK(state.restorable(-1) < 0);
  CHECK_THROWS_AS(state.remove_last(1), skald::UsageError);
  CHECK(value(state) == 14.0F);
  state.remove_last(6);
  CHECK(state.length() == 8);
  CHECK(value(state) == 8.0F);
  CHECK(state.checkpoint_lengths() == std::vector<std::int64_t>{8});
  for (int i = 0; i < 9; ++i) pass(state, 1);
  CHECK(state.checkpoint_lengths() == std::vector<std::int64_t>{12, 16});
  state.remove_last(17);
  CHECK(state.length() == 0);
  CHECK(state.place().from == nullptr);
  auto none = make_state(0, 5);
  pass(none, 9);
  CHECK(none.restorable(8) == 0);
  CHECK(none.bytes() == std::size_t{2} * 64);
}

TEST_CASE("state.recurrent: a fork and the state that it came from keep their checkpoints apart", "[state]") {
  auto state = make_state(4, 1);
  pass(state, 4);
  const auto copy = state.fork();
  auto& fork = static_cast<skald::RecurrentState&>(*copy);
  pass(state, 4);
  CHECK(state.checkpoint_lengths() == std::vector<std::int64_t>{8});
  CHECK(fork.checkpoint_lengths() == std::vector<std::int64_t>{4});
  pass(fork, 1);
  fork.remove_last(1);
  CHECK(value(fork) == 4.0F);
  pass(state, 1);
  state.remove_last(1);
  CHECK(value(state) == 8.0F);
}

TEST_CASE("state.recurrent: keeps all of the last tokens or none, never some", "[state]") {
  auto state = make_state(0, 0);
  const std::int32_t all[] = {0, 1, 2};
  pass(state, 3, false);
  state.select_last(3, all);
  state.commit();
  CHECK(state.length() == 3);
  pass(state, 3, false);
  CHECK_THROWS_AS(state.select_last(3, std::span(all).first(2)), skald::UsageError);
  state.select_last(3, {});
  CHECK(state.length() == 3);
}

TEST_CASE("state.recurrent: damaged archives are refused and leave nothing behind", "[state]") {
  auto state = make_state(4, 2);
  for (int i = 0; i < 9; ++i) pass(state, 1);
  skald::ArchiveWriter out;
  state.save(out);
  const auto bytes = out.take();
  auto other = make_state(4, 2);
  skald::ArchiveReader in(bytes, "test");
  other.load(in);
  in.finish();
  CHECK(value(other) == 9.0F);
  CHECK(other.checkpoint_lengths() == std::vector<std::int64_t>{4, 8});
  other.remove_last(5);
  CHECK(value(other) == 4.0F);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::span<const std::byte> part(bytes.data(), size);
    skald::ArchiveReader cut(part, "cut");
    CHECK_THROWS_AS(other.load(cut), skald::FormatError);
    CHECK(other.length() == 0);
  }
  // The lengths of the state, of the sequence and of the checkpoints; ones that cannot be.
  const std::size_t places[] = {0, 8, 16 + elements * 4 + 8, 16 + elements * 4 + 16};
  for (const auto at : places)
    for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{1} << 40}) {
      auto changed = bytes;
      std::memcpy(changed.data() + at, &wrong, sizeof wrong);
      skald::ArchiveReader damaged(changed, "damaged");
      CHECK_THROWS_AS(other.load(damaged), skald::FormatError);
      CHECK(other.length() == 0);
    }
}

TEST_CASE("state.sequence: second states of layers move with the first", "[state]") {
  std::vector<std::unique_ptr<skald::LayerState>> states(4);
  states[3] = std::make_unique<skald::RecurrentState>(skald::make_reference_backend(), options(4, 1));
  skald::SequenceState sequence(std::move(states), 2);
  CHECK(sequence.layer_count() == 2);
  CHECK(sequence.layer(1) == nullptr);
  CHECK(sequence.second(0) == nullptr);
  REQUIRE(sequence.second(1) != nullptr);
  auto& state = static_cast<skald::RecurrentState&>(*sequence.second(1));
  for (int i = 0; i < 6; ++i) {
    sequence.append(1);
    sequence.commit();
  }
  CHECK(state.length() == 6);
  CHECK(sequence.restorable(5) == 4);
  CHECK_THROWS_AS(sequence.truncate(5), skald::UsageError);
  sequence.truncate(4);
  CHECK(state.length() == 4);
  const auto fork = sequence.fork();
  CHECK(fork.layer_count() == 2);
  REQUIRE(fork.second(1) != nullptr);
  CHECK(fork.second(1)->length() == 4);
  CHECK_FALSE(sequence.row_wise());
  CHECK(fork.bytes_beyond(sequence) == fork.bytes());
}
