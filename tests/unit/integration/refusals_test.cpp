// Options that cannot be what was meant.
#include <skald/state/policies.hpp>

#include "helpers.hpp"
#include "support/catch.hpp"

using namespace skald_test;

namespace {

const TinyShape shape{};

std::string reason(const skald::Model& model, const skald::DecoderOptions& options) {
  try {
    const skald::Decoder decoder(model, options);
  } catch (const skald::Error& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("integration.options: numbers that are out of range are refused by name") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  constexpr auto huge = std::numeric_limits<std::int64_t>::max();
  for (const auto tokens : {std::int64_t{-1}, huge})
    CHECK(contains(reason(model, {.kv = {.rollback_tokens = tokens}}), "kv.rollback_tokens"));
  for (const auto tokens : {std::int64_t{-1}, huge})
    CHECK(contains(reason(model, {.kv = {.capacity_tokens = tokens}}), "kv.capacity_tokens"));
  for (const auto tokens : {std::int32_t{-16}, std::int32_t{0}, std::int32_t{24}})
    CHECK(contains(reason(model, {.kv = {.page_tokens = tokens}}), "page_tokens"));
  CHECK(reason(model, {.kv = {.rollback_tokens = 1 << 20}}).empty());
}

TEST_CASE("integration.options: what was chosen twice, or has nothing to act on, is refused") {
  const auto model = tiny_model(shape, {.backend = cpu_with(1)});
  const auto composed = [&](const skald::DecoderOptions& options) -> std::string {
    try {
      const skald::Decoder<skald::BackendInterface, skald::HeavyHitters, skald::KvQ8> decoder(model, skald::HeavyHitters{}, {}, options);
    } catch (const skald::IncompatibleError& error) {
      return error.what();
    }
    return {};
  };
  CHECK(composed({}).empty());
  CHECK(composed({.kv = {.format = "q8_0", .eviction = "h2o:budget=512,recent=50"}}).empty());
  CHECK(contains(composed({.kv = {.format = "q4_0"}}), "kv.format 'q4_0'"));
  CHECK(contains(composed({.kv = {.eviction = "window:sinks=4,window=60"}}), "kv.eviction 'window:sinks=4,window=60'"));
  CHECK(contains(reason(model, {.kv = {.format = "f16;iterations=3"}}), "iterations"));
}
